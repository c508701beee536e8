//! TLS of the gateway, for installations without a proxy that terminates it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::expiry::expires_at;
use crate::domain::ids::digest_hex;
use crate::error::chain;
use crate::http::tls::TlsError;
use crate::metrics::Metrics;

/// The protocols offered to a client, the preferred one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Time between two checks of the files.
const LOOK: Duration = Duration::from_secs(5);

/// TLS with the certificate and key of two PEM files, as these are now: to renew a certificate,
/// replace the files.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    files: Files,
    served: Arc<Served>,
}

#[derive(Clone)]
struct Files {
    /// The certificate with its chain.
    certificate: PathBuf,
    key: PathBuf,
}

/// The certificate that new connections get.
#[derive(Debug)]
struct Served(RwLock<Pair>);

/// A certificate with its key, and a digest of the bytes they were read from.
#[derive(Debug)]
struct Pair {
    certified: Arc<CertifiedKey>,
    digest: String,
}

impl Tls {
    pub fn open(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let files = Files {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        };
        let served = Arc::new(Served(RwLock::new(files.read()?)));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Unfit)?;
        let mut config = builder
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&served) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            files,
            served,
        })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// Serves a new certificate when the files hold one, until `stop`. While the files do not form
    /// a pair, as when only one of them is replaced, new connections get the previous certificate.
    pub(super) async fn follow(&self, metrics: &Metrics, stop: &CancellationToken) {
        self.served.show(metrics);
        let mut fault = None;
        while stop
            .run_until_cancelled(tokio::time::sleep(LOOK))
            .await
            .is_some()
        {
            let files = self.files.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || files.read()).await else {
                continue;
            };
            match read {
                Ok(pair) => {
                    fault = None;
                    if self.served.replace(pair) {
                        self.served.show(metrics);
                        tracing::info!(
                            certificate = %self.files.certificate.display(),
                            "another certificate is served from now on"
                        );
                    }
                }
                Err(error) => {
                    // Logged once, not at every check.
                    let error = Some(chain(&error));
                    if error != fault {
                        tracing::warn!(error, "the certificate that was read last is still served");
                        fault = error;
                    }
                }
            }
        }
    }
}

impl Served {
    /// Replaces the pair; true if it is another one.
    fn replace(&self, pair: Pair) -> bool {
        let mut served = self.0.write();
        let another = served.digest != pair.digest;
        *served = pair;
        another
    }

    fn show(&self, metrics: &Metrics) {
        let served = self.0.read();
        if let Some(at) = served.certified.cert.first().and_then(|it| expires_at(it)) {
            metrics.certificate_expires(at);
        }
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let served = self.0.read();
        Some(Arc::clone(&served.certified))
    }
}

impl Files {
    fn read(&self) -> Result<Pair, TlsError> {
        let certificate = |source| TlsError::Certificate {
            path: self.certificate.clone(),
            source,
        };
        let key = |source| TlsError::Key {
            path: self.key.clone(),
            source,
        };
        let bytes = |path| std::fs::read(path).map_err(pem::Error::Io);
        let certificate_pem = bytes(&self.certificate).map_err(certificate)?;
        let key_pem = bytes(&self.key).map_err(key)?;
        let chain = CertificateDer::pem_slice_iter(&certificate_pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(certificate)?;
        if chain.is_empty() {
            return Err(certificate(pem::Error::NoItemsFound));
        }
        let private = PrivateKeyDer::from_pem_slice(&key_pem).map_err(key)?;
        let provider = rustls::crypto::ring::default_provider();
        let certified =
            CertifiedKey::from_der(chain, private, &provider).map_err(TlsError::Unfit)?;
        Ok(Pair {
            certified: Arc::new(certified),
            digest: digest_hex(&[&certificate_pem, &key_pem], 16),
        })
    }
}
