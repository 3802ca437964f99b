//! TLS as operators give it: files with a CA, a certificate and its key; and what its failures mean.
//!
//! The files are read at each connection, so that renewed certificates are taken up without a restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// Longest PEM file read, in bytes.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// Files in PEM form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The CAs that may sign the server's certificate.
    pub ca: Option<PathBuf>,
    /// Our certificate with its chain, and its private key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Why TLS can't be set up with these files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No CA is given.
    #[error("TLS needs the CA that signed the server's certificate: give it with {0}")]
    NoCa(&'static str),
    /// The OS refuses.
    #[error("can't read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the OS says.
        source: std::io::Error,
    },
    /// Not what it should be.
    #[error("{} holds no {what} in PEM form", .path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// rustls does not like them together.
    #[error("certificate and key can't be used: {0}")]
    Refused(String),
}

/// The files' contents, checked to be PEM.
pub(crate) struct TlsMaterial {
    pub(crate) ca: Vec<u8>,
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl TlsFiles {
    /// Reads the files. `ca_option` is the command line's word for the CA.
    pub(crate) fn read(&self, ca_option: &'static str) -> Result<TlsMaterial, TlsError> {
        let ca_path = self.ca.as_deref().ok_or(TlsError::NoCa(ca_option))?;
        let ca = read(ca_path)?;
        certificates(&ca, ca_path)?;
        let identity = match &self.identity {
            None => None,
            Some((cert_path, key_path)) => {
                let (cert, key) = (read(cert_path)?, read(key_path)?);
                certificates(&cert, cert_path)?;
                private_key(&key, key_path)?;
                Some((cert, key))
            }
        };
        Ok(TlsMaterial { ca, identity })
    }

    /// A connector that trusts the CA alone and shows our certificate, if there is one.
    pub(crate) fn connector(&self, ca_option: &'static str) -> Result<TlsConnector, TlsError> {
        let material = self.read(ca_option)?;
        let refused = |error: tokio_rustls::rustls::Error| TlsError::Refused(error.to_string());
        let mut roots = RootCertStore::empty();
        for ca in certificates(&material.ca, Path::new(""))? {
            roots.add(ca).map_err(refused)?;
        }
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(refused)?.with_root_certificates(roots);
        let config = match &material.identity {
            None => config.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = certificates(cert, Path::new(""))?;
                config.with_client_auth_cert(chain, private_key(key, Path::new(""))?).map_err(refused)?
            }
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    use std::io::Read;
    let fail = |source| TlsError::Read { path: path.into(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(fail)?;
    file.take(FILE_MAX_BYTES).read_to_end(&mut bytes).map_err(fail)?;
    Ok(bytes)
}

fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect();
    if found.is_empty() {
        Err(TlsError::NotPem { path: path.into(), what: "certificate" })
    } else {
        Ok(found)
    }
}

fn private_key(pem: &[u8], path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|_| TlsError::NotPem { path: path.into(), what: "private key" })
}

/// What to do about a TLS failure, by the words rustls has for it. `option` is the prefix of the
/// options concerned: `--etcd` or `--amqp`.
pub(crate) fn remedy(text: &str, option: &str) -> Option<String> {
    let has = |word: &str| text.contains(word);
    if has("UnknownIssuer") || has("BadSignature") {
        return Some(format!(
            "the server's certificate is not signed by the CA of {option}-ca: give the CA that signed it"
        ));
    }
    if has("not valid for name") || has("NotValidForName") {
        return Some("the server's certificate does not name this host: use a name it has".into());
    }
    if has("certificate expired") || has("Expired") {
        return Some("renew the server's certificate, or set this machine's clock".into());
    }
    if has("not valid yet") || has("NotValidYet") {
        return Some("set this machine's clock".into());
    }
    if has("CertificateRequired") || has("certificate required") {
        return Some(format!("the server wants a certificate: give {option}-cert and {option}-key"));
    }
    if has("UnknownCA") || has("BadCertificate") || has("CertificateUnknown") || has("DecryptError") {
        return Some(format!(
            "the server does not accept our certificate: give one its CA signed with {option}-cert and {option}-key"
        ));
    }
    if has("InvalidContentType") || has("corrupt message") {
        return Some("the server does not speak TLS on this port".into());
    }
    None
}
