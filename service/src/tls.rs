//! TLS: the one crypto provider of the process, and certificates that can be exchanged while running.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};

use crate::config::{Problems, Validate};

/// Makes aws-lc-rs the provider of this process. First thing in `main`: with none installed, rustls panics when several are
/// compiled in. Doing it again is harmless.
pub fn install_provider() {
    // The error means only that one is installed already; whether it is ours is checked.
    let _ = aws_lc_rs::default_provider().install_default();
    debug_assert!(CryptoProvider::get_default().is_some(), "a provider was just installed");
}

/// `[…tls]`: the certificate of a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file with the certificate and its intermediates.
    pub cert: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
}

/// A certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read, or is no PEM.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The file holds no certificate.
    #[error("{} holds no certificate", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key do not fit, or are of a kind we do not speak.
    #[error("the certificate or its key cannot be used")]
    Rejected(#[source] rustls::Error),
}

impl Validate for TlsConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.check(!self.cert.as_os_str().is_empty(), "cert", "the path of a PEM file is expected");
        problems.check(!self.key.as_os_str().is_empty(), "key", "the path of a PEM file is expected");
    }
}

impl TlsConfig {
    /// Reads certificate and key, and notes under this name what is wrong with them.
    pub fn check_files(&self, name: &str, problems: &mut Problems) {
        if let Err(error) = read(self) {
            problems.failed(name, &error);
        }
    }
}

/// The certificate of a listener; [`ServerCertificate::reload`] exchanges it for new connections.
pub struct ServerCertificate {
    config: TlsConfig,
    current: RwLock<Arc<CertifiedKey>>,
}

impl ServerCertificate {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// When they cannot be read, or do not fit each other.
    pub fn load(config: TlsConfig) -> Result<Arc<Self>, TlsError> {
        let current = RwLock::new(Arc::new(read(&config)?));
        Ok(Arc::new(Self { config, current }))
    }

    /// Reads the files again. On an error the old certificate stays.
    ///
    /// # Errors
    /// As [`ServerCertificate::load`].
    pub fn reload(&self) -> Result<(), TlsError> {
        let fresh = Arc::new(read(&self.config)?);
        *self.current.write() = fresh;
        Ok(())
    }

    /// When the files were last changed, as far as the system tells: another answer than before is a reason to reload.
    #[must_use]
    pub fn modified(&self) -> [Option<std::time::SystemTime>; 2] {
        [&self.config.cert, &self.config.key].map(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok())
    }

    /// What a listener needs: HTTP/2 and HTTP/1.1 by ALPN, TLS 1.2 and 1.3.
    ///
    /// # Errors
    /// When the provider has no cipher suites for these versions.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<rustls::ServerConfig>, TlsError> {
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Rejected)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Self>::clone(self));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read()))
    }
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCertificate").field("cert", &self.config.cert).finish_non_exhaustive()
    }
}

fn read(config: &TlsConfig) -> Result<CertifiedKey, TlsError> {
    let fail = |path: &PathBuf| {
        let path = path.clone();
        |source| TlsError::Read { path, source }
    };
    let chain = CertificateDer::pem_file_iter(&config.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(fail(&config.cert))?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: config.cert.clone() });
    }
    let key = PrivateKeyDer::from_pem_file(&config.key).map_err(fail(&config.key))?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(TlsError::Rejected)
}
