//! TLS to the servers that Fanwise connects to: which of them it trusts, and how it identifies
//! itself.
//!
//! A new connection uses the files as they are then: to renew a certificate, replace its files.
//! While they cannot be read, or the key does not fit the certificate because only one of the two
//! is replaced so far, new connections use what was read last.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::chain;

/// The settings of one server, or of one group of servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// Certificates of the CAs to trust, PEM; without it, those that the system trusts.
    pub ca: Option<PathBuf>,
    /// The client's certificate with its chain, and its key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate must have, instead of the host of its address.
    pub server_name: Option<String>,
}

impl TlsSettings {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        let identity = self.identity.iter();
        let identity = identity.flat_map(|(certificate, key)| [certificate, key]);
        self.ca.iter().chain(identity).map(PathBuf::as_path)
    }
}

/// Why TLS cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {key} {path}")]
    Unreadable {
        key: String,
        path: PathBuf,
        source: pem::Error,
    },
    #[error("{section}.certificate and {section}.key do not fit together")]
    Unfit {
        section: String,
        source: rustls::Error,
    },
    #[error("{key} {path} holds a certificate that is not one of a CA")]
    NotCa {
        key: String,
        path: PathBuf,
        source: rustls::Error,
    },
    #[error(
        "the certificates that the system trusts cannot be loaded. Install ca-certificates, set \
         SSL_CERT_FILE to a file of them, or set {section}.ca_file"
    )]
    System {
        section: String,
        source: rustls::Error,
    },
}

/// TLS as a client of one server or group of servers. Cheap to clone.
#[derive(Clone)]
pub struct ClientTls(Arc<Inner>);

struct Inner {
    settings: TlsSettings,
    /// The section of the configuration, for errors.
    section: String,
    protocols: Vec<Vec<u8>>,
    loaded: Mutex<Option<Loaded>>,
}

struct Loaded {
    /// When which file was written, and how long it was.
    stamps: Vec<Option<(SystemTime, u64)>>,
    config: Arc<ClientConfig>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ClientTls").field(&self.0.settings).finish()
    }
}

impl ClientTls {
    /// Does not read the files yet. `section` is the section of the configuration with the
    /// settings; `protocols` is offered to the server.
    pub fn new(settings: TlsSettings, section: &str, protocols: &[&[u8]]) -> Self {
        Self(Arc::new(Inner {
            settings,
            section: section.to_owned(),
            protocols: protocols.iter().map(|it| it.to_vec()).collect(),
            loaded: Mutex::new(None),
        }))
    }

    /// Reads the files, which takes a while. A fault is then found at the start and not by the
    /// first connection.
    pub fn load(&self) -> Result<(), TlsError> {
        self.0.config().map(drop)
    }

    /// The certificates and key in PEM, for a library that has a TLS of its own: the CAs, and the
    /// client's certificate and key.
    pub fn pem(&self) -> Result<Pem, TlsError> {
        let inner = &self.0;
        let read = |name: &str, path: &Path| {
            std::fs::read(path).map_err(|error| inner.unreadable(name, path, pem::Error::Io(error)))
        };
        let settings = &inner.settings;
        let identity = settings.identity.as_ref();
        let identity = identity
            .map(|(certificate, key)| Ok((read("certificate", certificate)?, read("key", key)?)));
        Ok(Pem {
            ca: settings
                .ca
                .as_ref()
                .map(|ca| read("ca_file", ca))
                .transpose()?,
            identity: identity.transpose()?,
        })
    }

    /// Makes a TLS connection over a stream to this host.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let connector = TlsConnector::from(self.config().await?);
        connector.connect(self.name(host)?, stream).await
    }

    /// What a new connection needs. Reads the files if they changed.
    pub async fn config(&self) -> io::Result<Arc<ClientConfig>> {
        if let Some(config) = self.0.unchanged() {
            return Ok(config);
        }
        let inner = Arc::clone(&self.0);
        let config = tokio::task::spawn_blocking(move || inner.config()).await?;
        config.map_err(io::Error::other)
    }

    /// The name that the certificate of a host must have.
    pub fn name(&self, host: &str) -> io::Result<ServerName<'static>> {
        let name = self.0.settings.server_name.as_deref().unwrap_or(host);
        ServerName::try_from(name.to_owned()).map_err(io::Error::other)
    }

    /// A sentence about a failure of TLS with this host and what to do; none if TLS is not the
    /// cause. `plain` is what the address would begin with without TLS.
    pub fn explain(&self, error: &io::Error, host: &str, plain: &str) -> Option<String> {
        let mut cause = error.get_ref()? as &(dyn std::error::Error + 'static);
        loop {
            if let Some(error) = cause.downcast_ref::<rustls::Error>() {
                return Some(self.0.explain(error, host, plain));
            }
            if let Some(error) = cause.downcast_ref::<TlsError>() {
                return Some(chain(error));
            }
            cause = cause.source()?;
        }
    }
}

/// Certificates and key as bytes in PEM.
pub struct Pem {
    pub ca: Option<Vec<u8>>,
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Inner {
    fn stamps(&self) -> Vec<Option<(SystemTime, u64)>> {
        let stamp = |path: &Path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        self.settings.files().map(stamp).collect()
    }

    fn unchanged(&self) -> Option<Arc<ClientConfig>> {
        let loaded = self.loaded.lock();
        let loaded = loaded.as_ref()?;
        (loaded.stamps == self.stamps()).then(|| Arc::clone(&loaded.config))
    }

    fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        // Taken before the files are read: a file that changes meanwhile is read again.
        let stamps = self.stamps();
        let mut loaded = self.loaded.lock();
        if let Some(loaded) = loaded.as_ref().filter(|it| it.stamps == stamps) {
            return Ok(Arc::clone(&loaded.config));
        }
        let config = match (self.read(), loaded.as_ref()) {
            (Ok(config), before) => {
                if before.is_some() {
                    tracing::info!(section = self.section, "the certificates were read again");
                }
                Arc::new(config)
            }
            (Err(error), Some(before)) => {
                let error = chain(&error);
                tracing::warn!(error, "the certificates that were read last stay in use");
                Arc::clone(&before.config)
            }
            (Err(error), None) => return Err(error),
        };
        *loaded = Some(Loaded {
            stamps,
            config: Arc::clone(&config),
        });
        Ok(config)
    }

    fn read(&self) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let system = |source| TlsError::System {
            section: self.section.clone(),
            source,
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(system)?;
        let builder = match &self.settings.ca {
            Some(path) => builder.with_root_certificates(self.read_roots(path)?),
            None => builder.with_platform_verifier().map_err(system)?,
        };
        let mut config = match &self.settings.identity {
            Some((certificate, key)) => {
                let identity = self.read_identity(certificate, key, &provider)?;
                builder.with_client_cert_resolver(identity)
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&self.protocols);
        Ok(config)
    }

    fn read_certificates(
        &self,
        name: &str,
        path: &Path,
    ) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let unreadable = |source| self.unreadable(name, path, source);
        let certificates = CertificateDer::pem_file_iter(path)
            .map_err(unreadable)?
            .collect::<Result<Vec<_>, _>>()
            .map_err(unreadable)?;
        match certificates.is_empty() {
            true => Err(unreadable(pem::Error::NoItemsFound)),
            false => Ok(certificates),
        }
    }

    fn read_roots(&self, path: &Path) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.read_certificates("ca_file", path)? {
            roots.add(certificate).map_err(|source| TlsError::NotCa {
                key: format!("{}.ca_file", self.section),
                path: path.to_owned(),
                source,
            })?;
        }
        Ok(roots)
    }

    fn read_identity(
        &self,
        certificate: &Path,
        key: &Path,
        provider: &CryptoProvider,
    ) -> Result<Arc<dyn ResolvesClientCert>, TlsError> {
        let chain = self.read_certificates("certificate", certificate)?;
        let key = PrivateKeyDer::from_pem_file(key)
            .map_err(|source| self.unreadable("key", key, source))?;
        let certified =
            CertifiedKey::from_der(chain, key, provider).map_err(|source| TlsError::Unfit {
                section: self.section.clone(),
                source,
            })?;
        Ok(Arc::new(SingleCertAndKey::from(certified)))
    }

    fn unreadable(&self, name: &str, path: &Path, source: pem::Error) -> TlsError {
        TlsError::Unreadable {
            key: format!("{}.{name}", self.section),
            path: path.to_owned(),
            source,
        }
    }

    fn explain(&self, error: &rustls::Error, host: &str, plain: &str) -> String {
        let section = &self.section;
        let name = self.settings.server_name.as_deref().unwrap_or(host);
        match error {
            rustls::Error::InvalidCertificate(fault) => match fault {
                CertificateError::UnknownIssuer => match &self.settings.ca {
                    Some(path) => format!(
                        "its certificate is not from the CA in {section}.ca_file {}",
                        path.display()
                    ),
                    None => format!(
                        "its certificate is from a CA that this machine does not trust. Set \
                         {section}.ca_file to the certificate of that CA"
                    ),
                },
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "its certificate has expired. Renew it there, or correct the clock of this \
                     machine"
                        .to_owned()
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "its certificate is not valid yet. Check the clock of this machine".to_owned()
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => format!(
                    "its certificate is not for {name}. Set {section}.server_name to a name that \
                     the certificate has"
                ),
                other => format!("its certificate is refused: {other}"),
            },
            rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => format!(
                "it asks for a certificate of the client. Set {section}.certificate and \
                 {section}.key"
            ),
            rustls::Error::AlertReceived(alert) if self.settings.identity.is_some() => {
                format!("it refuses the certificate in {section}.certificate: {alert:?}")
            }
            rustls::Error::AlertReceived(AlertDescription::HandshakeFailure) => format!(
                "it ended the handshake; it may ask for a certificate of the client: set \
                 {section}.certificate and {section}.key"
            ),
            rustls::Error::InvalidMessage(_) => format!(
                "it does not speak TLS on this port. Give the port for TLS, or an address that \
                 begins with {plain}"
            ),
            other => format!("no TLS with it: {other}"),
        }
    }
}
