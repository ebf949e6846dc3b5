//! Whom a secure connection trusts: the system's roots, a host's own, or, where it says so, anybody.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::sync::OnceCell;

use super::config::HostRule;

/// TLS settings, made on first use and kept: a node that reads plain http only never looks for roots.
pub(super) struct TlsConfigs {
    provider: Arc<CryptoProvider>,
    http2: bool,
    system_roots: OnceCell<Arc<RootCertStore>>,
    /// By the number of the host's rule.
    made: Mutex<HashMap<Option<usize>, Arc<ClientConfig>>>,
}

// === impl TlsConfigs ===

impl TlsConfigs {
    pub(super) fn new(http2: bool) -> Self {
        Self {
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            http2,
            system_roots: OnceCell::new(),
            made: Mutex::default(),
        }
    }

    /// The settings for a host with this rule.
    pub(super) async fn for_rule(&self, rule: Option<(usize, &HostRule)>) -> io::Result<Arc<ClientConfig>> {
        // Hosts that change nothing about trust share the settings, and with them the session cache.
        let rule = rule.filter(|(_, rule)| rule.options.insecure || !rule.certificates.is_empty());
        let key = rule.map(|(number, _)| number);
        if let Some(made) = self.made.lock().get(&key) {
            return Ok(made.clone());
        }
        let config = Arc::new(self.make(rule.map(|(_, rule)| rule)).await?);
        Ok(self.made.lock().entry(key).or_insert(config).clone())
    }

    async fn make(&self, rule: Option<&HostRule>) -> io::Result<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| io::Error::new(io::ErrorKind::Unsupported, error))?;
        let mut config = if rule.is_some_and(|rule| rule.options.insecure) {
            let anybody = Arc::new(Anybody(self.provider.clone()));
            builder.dangerous().with_custom_certificate_verifier(anybody).with_no_client_auth()
        } else {
            let mut roots = self.system_roots().await?.as_ref().clone();
            for certificate in rule.map(|rule| rule.certificates.as_slice()).unwrap_or_default() {
                roots.add(certificate.clone()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            }
            if roots.is_empty() {
                let what =
                    "no trusted root certificates on this system (package ca-certificates), and no `ca` for this host";
                return Err(io::Error::new(io::ErrorKind::NotFound, rustls::Error::General(what.to_owned())));
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        };
        config.alpn_protocols =
            if self.http2 { vec![b"h2".to_vec(), b"http/1.1".to_vec()] } else { vec![b"http/1.1".to_vec()] };
        Ok(config)
    }

    async fn system_roots(&self) -> io::Result<&Arc<RootCertStore>> {
        let load = || async {
            // Reads some 150 files or one large one.
            let found =
                tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await.map_err(io::Error::other)?;
            for error in &found.errors {
                tracing::warn!(%error, "cannot read some of the system's root certificates");
            }
            let mut roots = RootCertStore::empty();
            let (used, unusable) = roots.add_parsable_certificates(found.certs);
            tracing::debug!(used, unusable, "read the system's root certificates");
            Ok(Arc::new(roots))
        };
        self.system_roots.get_or_try_init(load).await
    }
}

/// Accepts any certificate, for hosts marked `insecure`. The handshake's signatures are still checked.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
