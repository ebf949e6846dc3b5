//! A private certificate authority, and the little encoding its users need.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

/// Signs certificates for the origins of one run.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
    path: PathBuf,
}

/// A server's certificate and key, as PEM files.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    der: Vec<u8>,
}

// === impl Authority ===

impl Authority {
    /// A new authority whose files lie in `folder`.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn new(folder: &Path) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "private authority of one test run");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key)?;
        let path = folder.join("ca.pem");
        std::fs::write(&path, cert.pem())?;
        Ok(Self { issuer: Issuer::new(params, key), folder: folder.to_owned(), path })
    }

    /// The authority's certificate, a PEM file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A certificate for these names and addresses.
    ///
    /// # Errors
    /// When a name is not one, or the files cannot be written.
    pub fn issue(&self, file: &str, names: &[&str], addresses: &[IpAddr]) -> Result<Certificate> {
        let key = KeyPair::generate()?;
        self.issue_for(file, names, addresses, &key)
    }

    pub(crate) fn issue_for(
        &self,
        file: &str,
        names: &[&str],
        addresses: &[IpAddr],
        key: &KeyPair,
    ) -> Result<Certificate> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
        params.distinguished_name.push(DnType::CommonName, file);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let cert = params.signed_by(key, &self.issuer)?;
        let paths = (self.folder.join(format!("{file}.pem")), self.folder.join(format!("{file}.key")));
        std::fs::write(&paths.0, cert.pem())?;
        std::fs::write(&paths.1, key.serialize_pem())?;
        Ok(Certificate { cert: paths.0, key: paths.1, der: cert.der().to_vec() })
    }
}

impl Certificate {
    pub(crate) fn der(&self) -> &[u8] {
        &self.der
    }
}

// === encoding ===

/// Which base64 (RFC 4648).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alphabet {
    /// Section 4, padded.
    Standard,
    /// Section 5, without padding, as JWTs use it.
    Url,
}

pub(crate) fn base64(bytes: &[u8], alphabet: Alphabet) -> String {
    const START: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let end = if alphabet == Alphabet::Standard { b"+/" } else { b"-_" };
    let letter = |six: u32| match six as usize & 63 {
        at @ 0..62 => char::from(START[at]),
        at => char::from(end[at - 62]),
    };
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0, |word, at| word << 8 | u32::from(chunk.get(at).copied().unwrap_or(0)));
        (0..=chunk.len()).for_each(|at| text.push(letter(word >> (18 - 6 * at))));
        if alphabet == Alphabet::Standard {
            (chunk.len()..3).for_each(|_| text.push('='));
        }
    }
    text
}

/// ES256 as JWTs want it (RFC 7518, 3.4): r and s, 32 bytes each, instead of the ASN.1 that signers produce.
pub(crate) fn raw_signature(asn1: &[u8]) -> Result<[u8; 64]> {
    let integer = |bytes: &mut &[u8]| -> Option<[u8; 32]> {
        let (&[tag, length], rest) = bytes.split_first_chunk::<2>()?;
        let (value, rest) = (tag == 2).then(|| rest.split_at_checked(length.into()))??;
        *bytes = rest;
        let value = &value[value.iter().position(|byte| *byte != 0)?..];
        let mut padded = [0; 32];
        padded.get_mut(32_usize.checked_sub(value.len())?..)?.copy_from_slice(value);
        Some(padded)
    };
    let parse = || -> Option<[u8; 64]> {
        // A sequence of less than 128 bytes: its tag, its length, two integers.
        let mut rest = asn1.get(2..)?;
        let mut raw = [0; 64];
        raw[..32].copy_from_slice(&integer(&mut rest)?);
        raw[32..].copy_from_slice(&integer(&mut rest)?);
        Some(raw)
    };
    parse().context("signature is not two integers in asn.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
        for (plain, coded) in cases {
            assert_eq!(base64(plain.as_bytes(), Alphabet::Standard), coded);
            assert_eq!(base64(plain.as_bytes(), Alphabet::Url), coded.trim_end_matches('='));
        }
        assert_eq!(base64(&[0xfb, 0xff], Alphabet::Standard), "+/8=");
        assert_eq!(base64(&[0xfb, 0xff], Alphabet::Url), "-_8");
    }

    #[test]
    fn signatures_are_padded_and_stripped() {
        let mut asn1 = vec![0x30, 0, 2, 33, 0];
        asn1.extend([0xff; 32]);
        asn1.extend([2, 1, 7]);
        let raw = raw_signature(&asn1).unwrap();
        assert_eq!(raw[..32], [0xff; 32]);
        assert_eq!((raw[63], raw[32..63].iter().all(|byte| *byte == 0)), (7, true));
        assert!(raw_signature(&asn1[..20]).is_err());
        assert!(raw_signature(&[]).is_err());
    }
}
