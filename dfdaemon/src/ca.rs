//! The certificate authority of interception: its files, and the certificates of the hosts it stands in for.

use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use moka::future::Cache;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SerialNumber, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Makes certificates for intercepted hosts.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    leaves: Cache<String, Arc<ServerConfig>>,
}

/// The CA cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// A file cannot be read or written.
    #[error("cannot {what} {path}")]
    File {
        /// `read`, `write`.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// One of the two files is there and the other is not.
    #[error("{present} is there but {missing} is not: restore it, or remove both to have new ones made")]
    Half {
        /// The file that is there.
        present: PathBuf,
        /// The one that is not.
        missing: PathBuf,
    },
    /// The files are there already.
    #[error("{path} is there already: clients trust it; remove it first if a new ca is really wanted")]
    There {
        /// The file.
        path: PathBuf,
    },
    /// The files do not hold a certificate and its key.
    #[error("{path} holds no usable ca")]
    Content {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// rustls does not take it.
    #[error("cannot use a certificate")]
    Tls(#[from] rustls::Error),
}

/// How long a new CA is good for. Long, because every client has to be told of the next one.
const CA_DAYS: u64 = 3650;
/// How long a host's certificate is good for; some clients refuse more than 398 days.
const LEAF_DAYS: u64 = 30;
/// Certificates start this much earlier, for clients whose clock is behind.
const CLOCK_SKEW_DAYS: u64 = 2;
/// Hosts whose certificates are kept.
const LEAVES_MAX: u64 = 1024;
/// A kept certificate is made anew after this, long before it expires.
const LEAF_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

// === impl Authority ===

impl Authority {
    /// Reads the CA, or makes one when neither file is there.
    ///
    /// # Errors
    /// See [`CaError`].
    pub fn load_or_generate(certificate: &Path, key: &Path) -> Result<Self, CaError> {
        match (is_there(certificate)?, is_there(key)?) {
            (true, true) => {}
            (false, false) => generate(certificate, key)?,
            (true, false) => return Err(CaError::Half { present: certificate.into(), missing: key.into() }),
            (false, true) => return Err(CaError::Half { present: key.into(), missing: certificate.into() }),
        }
        Self::load(certificate, key)
    }

    fn load(certificate_path: &Path, key_path: &Path) -> Result<Self, CaError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|source| CaError::File { what: "read", path: path.into(), source })
        };
        let (certificate_pem, key_pem) = (read(certificate_path)?, read(key_path)?);
        let content = |source: Box<dyn std::error::Error + Send + Sync>| CaError::Content {
            path: certificate_path.into(),
            source,
        };
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|e| content(e.into()))?;
        let key = KeyPair::from_pem(&key_pem).map_err(|e| content(e.into()))?;
        // The first certificate must be the key's: leaves signed by another key would be refused by every client.
        let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(
            &PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| content(e.into()))?,
        )?;
        rustls::sign::CertifiedKey::new(vec![certificate.clone()], signer)
            .keys_match()
            .map_err(|e| content(e.into()))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(|e| content(e.into()))?;
        let leaves = Cache::builder().max_capacity(LEAVES_MAX).time_to_live(LEAF_KEPT).build();
        Ok(Self { issuer, certificate, leaves })
    }

    /// TLS towards a client, as this host.
    ///
    /// # Errors
    /// When the name cannot stand in a certificate.
    pub async fn server_config(&self, host: &str) -> Result<Arc<ServerConfig>, Arc<CaError>> {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        self.leaves.try_get_with(host.clone(), async { self.make_leaf(&host) }).await
    }

    fn make_leaf(&self, host: &str) -> Result<Arc<ServerConfig>, CaError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, host.chars().take(64).collect::<String>());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, LEAF_DAYS);
        let leaf = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| rustls::Error::General(e.to_owned()))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone(), self.certificate.clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Without the key.
impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("leaves", &self.leaves.entry_count()).finish_non_exhaustive()
    }
}

/// Makes a CA and writes its two files; the key is readable for the owner only.
///
/// # Errors
/// When a file is there already, or cannot be written.
pub fn generate(certificate: &Path, key: &Path) -> Result<(), CaError> {
    for path in [certificate, key] {
        if is_there(path)? {
            return Err(CaError::There { path: path.into() });
        }
    }
    let pair = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    // Distinct names: a client that trusts two of them must not take one for the other.
    params.distinguished_name.push(DnType::CommonName, format!("Skimmer interception {:08x}", rand::random::<u32>()));
    params.distinguished_name.push(DnType::OrganizationName, "Skimmer");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, CA_DAYS);
    let ca = params.self_signed(&pair)?;
    write_new(key, pair.serialize_pem().as_bytes(), 0o600)?;
    write_new(certificate, ca.pem().as_bytes(), 0o644)
}

fn is_there(path: &Path) -> Result<bool, CaError> {
    path.try_exists().map_err(|source| CaError::File { what: "read", path: path.into(), source })
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), CaError> {
    let failed = |source| CaError::File { what: "write", path: path.into(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)
}

fn set_validity(params: &mut CertificateParams, days: u64) {
    let today = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / 86400;
    let (year, month, day) = civil(today.saturating_sub(CLOCK_SKEW_DAYS));
    params.not_before = date_time_ymd(year, month, day);
    let (year, month, day) = civil(today + days);
    params.not_after = date_time_ymd(year, month, day);
    params.serial_number = Some(SerialNumber::from_slice(&serial()));
}

/// RFC 5280 section 4.1.2.2: positive, at most 20 bytes.
fn serial() -> [u8; 16] {
    let mut serial: [u8; 16] = rand::random();
    serial[0] = (serial[0] & 0x7f) | 0x40;
    serial
}

/// The Gregorian date of a day counted from 1970-01-01. Years are counted from March, so that leap days come last.
fn civil(day: u64) -> (i32, u8, u8) {
    let shifted = day + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (i32::try_from(year).unwrap_or(i32::MAX), u8::try_from(month).unwrap_or(1), u8::try_from(day).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(59), (1970, 3, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_513), (2026, 3, 1));
    }

    #[tokio::test]
    async fn files_are_made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("sub/ca.crt"), dir.path().join("sub/ca.key"));
        let authority = Authority::load_or_generate(&certificate, &key).unwrap();
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        let first = std::fs::read(&certificate).unwrap();
        let one = authority.server_config("Example.com").await.unwrap();
        let two = authority.server_config("example.com").await.unwrap();
        assert!(Arc::ptr_eq(&one, &two));
        assert!(authority.server_config("127.0.0.1").await.is_ok() && authority.server_config("[::1]").await.is_ok());

        Authority::load_or_generate(&certificate, &key).unwrap();
        assert_eq!(std::fs::read(&certificate).unwrap(), first);
        assert!(matches!(generate(&certificate, &key), Err(CaError::There { .. })));

        // A key of another CA is noticed at once, not by clients.
        let (other_certificate, other_key) = (dir.path().join("o.crt"), dir.path().join("o.key"));
        generate(&other_certificate, &other_key).unwrap();
        assert!(matches!(Authority::load_or_generate(&certificate, &other_key), Err(CaError::Content { .. })));
        std::fs::remove_file(&key).unwrap();
        assert!(matches!(Authority::load_or_generate(&certificate, &key), Err(CaError::Half { .. })));
    }
}
