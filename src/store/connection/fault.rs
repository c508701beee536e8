//! Why the ledger's server cannot be used, in a sentence with the address and what to do.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::{ErrorKind, RedisError};

use crate::ports::LedgerError;

#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(
        "{address}: the name of the host is not known: {error}. Check the host in ledger.url, and \
         the name server of this machine"
    )]
    UnknownHost { address: String, error: io::Error },
    #[error("{address}: {error}. Check host and port in ledger.url, and whether Redis runs there")]
    NotReached { address: String, error: io::Error },
    #[error(
        "{address}: no connection within {patience:?}. Check host and port in ledger.url, and the \
         network between here and there"
    )]
    NoConnection { address: String, patience: Duration },
    #[error(
        "{address}: it closed the connection at once ({}). Check host and port in ledger.url; the port \
         for TLS needs an address that begins with rediss://",
        words(error)
    )]
    Closed { address: String, error: RedisError },
    /// No answer arrived in time; the command may have been carried out.
    #[error("{address}: no answer within {patience:?}")]
    NoAnswer { address: String, patience: Duration },
    #[error("{address}: {what}")]
    Tls { address: String, what: String },
    #[error("{address}: {}{advice}", words(error))]
    Said {
        address: String,
        error: RedisError,
        advice: &'static str,
    },
    #[error(
        "{address}: the Sentinels name it as the primary of {primary}, and it is a {role} now. A \
         failover is under way"
    )]
    NotPrimary {
        address: String,
        primary: String,
        role: String,
    },
    #[error("no Sentinel answers: {tried}")]
    NoSentinel { tried: String },
    #[error(
        "{address}: this Sentinel knows no primary with the name {primary}{known}. Correct the name \
         in ledger.url, redis+sentinel://HOST/NAME/0"
    )]
    UnknownPrimary {
        address: String,
        primary: String,
        /// What it knows instead, as a part of the sentence.
        known: String,
    },
    #[error(
        "{address}: {has} of {wanted} replicas have this write (ledger.replicas_min). It counts as \
         not recorded"
    )]
    TooFewReplicas {
        address: String,
        has: i64,
        wanted: u32,
    },
    #[error("the ledger's files for TLS cannot be used")]
    TlsFiles(#[source] crate::tls::TlsError),
    #[error("the attempt to connect was given up")]
    GivenUp,
}

impl Fault {
    pub(super) fn said(address: &str, error: RedisError) -> Self {
        Self::Said {
            address: address.to_owned(),
            advice: advice(&error),
            error,
        }
    }
}

/// The ledger's error for one of the server.
pub(super) fn ledger_error(address: &str, error: RedisError) -> LedgerError {
    // A single record makes no sense; that is no fault of the server.
    if error.code() == Some("WRONGTYPE") || error.to_string().contains("user_script") {
        return super::broken(error);
    }
    let full = error.code() == Some("OOM");
    let said = Box::new(Fault::said(address, error));
    match full {
        true => LedgerError::Full(said),
        false => LedgerError::Unreachable(said),
    }
}

pub(super) fn unreachable(fault: impl Into<Arc<Fault>>) -> LedgerError {
    LedgerError::Unreachable(Box::new(fault.into()))
}

/// What the server said, without the words of its client.
fn words(error: &RedisError) -> String {
    match (error.kind(), error.code(), error.detail()) {
        (ErrorKind::AuthenticationFailed, ..) | (_, Some("WRONGPASS"), _) => {
            "it refuses the user or the password".to_owned()
        }
        (_, Some("NOAUTH"), _) => "it asks for a password".to_owned(),
        (ErrorKind::Parse, ..) => "what it says is not the protocol of Redis".to_owned(),
        (_, Some("ERR"), Some(detail)) => detail.trim_end_matches('.').to_owned(),
        (ErrorKind::Server(_) | ErrorKind::Extension, Some(code), Some(detail)) => {
            format!("{code} {}", detail.trim_end_matches('.'))
        }
        _ => error.to_string(),
    }
}

/// Advice for an error, where the server's text does not say enough.
fn advice(error: &RedisError) -> &'static str {
    match (error.kind(), error.code()) {
        (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS" | "NOAUTH")) => {
            ". Check user and password in ledger.url; special characters must be percent-encoded"
        }
        (ErrorKind::InvalidClientConfig, _) => ". Check ledger.url",
        (_, Some("CLUSTERDOWN")) => {
            ". Not all slots of the cluster have a primary that runs: look at `redis-cli cluster info`"
        }
        (_, Some("TRYAGAIN")) => ". The slot moves to another node at this moment",
        (_, Some("MOVED" | "ASK" | "CROSSSLOT")) => {
            ". It is a node of a Redis Cluster: `fanwise doctor` prints the ledger.url for it"
        }
        (_, Some("READONLY")) => ". It is a read-only replica; give the address of the primary",
        (_, Some("OOM")) => ". Raise maxmemory, or give the machine more memory",
        (_, Some("NOREPLICAS")) => {
            ". Fewer replicas are connected to it than its min-replicas-to-write"
        }
        (_, Some("NOPERM")) => {
            ". Give the user in ledger.url all commands on the keys of ledger.prefix"
        }
        (ErrorKind::Io | ErrorKind::Parse, _) => {
            ". Check host and port in ledger.url, and whether Redis runs there"
        }
        // This error has no code of its own.
        _ if error.detail().is_some_and(|it| it.contains("DB index")) => {
            ". Check the number of the database in ledger.url"
        }
        _ => "",
    }
}
