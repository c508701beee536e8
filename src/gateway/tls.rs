//! TLS in front of the gateway, for where no proxy ends it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

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

/// The protocols offered to a client, the preferred one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Reads a certificate with its chain, and its key, from PEM files.
pub fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let unread = |source| TlsError::Certificate {
        path: certificate.to_owned(),
        source,
    };
    let chain = CertificateDer::pem_file_iter(certificate).map_err(unread)?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(unread)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::Key {
        path: key.to_owned(),
        source,
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            let builder = builder.with_no_client_auth();
            builder.with_single_cert(chain, key)
        })
        .map_err(TlsError::Unfit)?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(TlsAcceptor::from(Arc::new(config)))
}
