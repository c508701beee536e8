//! TLS in front of the gateway, for where no proxy ends it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::domain::ids::digest_hex;
use crate::error::chain;

/// Why the gateway cannot speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read gateway.tls_certificate {path}")]
    Certificate { path: PathBuf, source: pem::Error },
    #[error("cannot read gateway.tls_key {path}")]
    Key { path: PathBuf, source: pem::Error },
    #[error("gateway.tls_certificate and gateway.tls_key do not make a server")]
    Unfit(#[source] rustls::Error),
}

/// A client that trusts the certificate in this file and no other, whatever name it is for: who runs
/// a server knows it by its file, and calls it by its address.
pub fn pinned(certificate: &Path) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pinned = CertificateDer::from_pem_file(certificate);
    let pinned = pinned.map_err(|source| TlsError::Certificate {
        path: certificate.to_owned(),
        source,
    })?;
    let verifier = Arc::new(Pinned {
        certificate: pinned,
        algorithms: provider.signature_verification_algorithms,
    });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Unfit)?;
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        let what = "another certificate than the one in gateway.tls_certificate";
        Err(rustls::Error::General(what.to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The protocols offered to a client, the preferred one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(5);

/// TLS with the certificate and key of two PEM files, as these are now: whoever renews a certificate
/// puts other files in their place.
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

/// What new connections are served with.
#[derive(Debug)]
struct Served(RwLock<Pair>);

/// A certificate with its key, known by the bytes they were read from.
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

    /// Serves what the files hold once they hold something else, until `stop`. While they make no pair,
    /// as between the replacing of one and of the other, new connections get what they got before.
    pub(super) async fn follow(&self, stop: &CancellationToken) {
        let mut trouble = None;
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
                    trouble = None;
                    if self.served.replace(pair) {
                        tracing::info!(
                            certificate = %self.files.certificate.display(),
                            "another certificate is served from now on"
                        );
                    }
                }
                Err(error) => {
                    // Once, not every time it is seen again.
                    let error = Some(chain(&error));
                    if error != trouble {
                        tracing::warn!(error, "the certificate that was read last is still served");
                        trouble = error;
                    }
                }
            }
        }
    }
}

impl Served {
    /// Whether it is another one.
    fn replace(&self, pair: Pair) -> bool {
        let mut served = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let another = served.digest != pair.digest;
        *served = pair;
        another
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let served = self.0.read().unwrap_or_else(PoisonError::into_inner);
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
