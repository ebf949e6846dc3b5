//! What QUIC needs of TLS, **without anybody's identity being checked yet**.
//!
//! QUIC has no unencrypted form. Each endpoint makes itself a certificate when it starts, and [`AnyServer`] accepts
//! every one: bytes are hidden from those who listen, not from those who pretend. Pieces are verified by their
//! hashes whoever they come from, so what is missing is the right to refuse strangers.
//!
//! This module is the one place where that changes: [`server`] will take a configured certificate and ask for the
//! client's, [`client`] will verify against the cluster's authority. The TCP side's place is [`super::Security`].

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};

use super::error::BindError;

/// What both ends must name, so that other users of QUIC are not mistaken for ours.
const ALPN: &[u8] = b"skimmer/1";
/// The name in the certificates. It says nothing: no authority stands behind it.
pub(super) const SERVER_NAME: &str = "skimmer";

/// The TLS side of a QUIC listener, with a certificate of its own.
pub(super) fn server() -> Result<quinn::ServerConfig, BindError> {
    let own = rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()]).map_err(of_tls)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(of_tls)?
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .map_err(of_tls)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    let config = QuicServerConfig::try_from(config).map_err(of_tls)?;
    Ok(quinn::ServerConfig::with_crypto(Arc::new(config)))
}

/// The TLS side of a QUIC dialer.
pub(super) fn client() -> Result<quinn::ClientConfig, BindError> {
    let provider = provider();
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(of_tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let config = QuicClientConfig::try_from(config).map_err(of_tls)?;
    Ok(quinn::ClientConfig::new(Arc::new(config)))
}

/// Named here rather than taken from the process, so that a library user need not install one.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn of_tls(error: impl std::error::Error + Send + Sync + 'static) -> BindError {
    BindError::Tls(Box::new(error))
}

/// Accepts every certificate whose key the other side holds. To be replaced by a verifier of the cluster's authority.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("quic has no tls 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
