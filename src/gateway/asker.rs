//! Tells who asked for a change, for the audit trail, and which jobs it may reach.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::access::Caller;
use super::problem::Refusal;
use crate::domain::trail::{Origin, Via};
use crate::http::server::Peer;

/// The header by which our own clients name themselves. It decides nothing.
pub(crate) const CLIENT: &str = "fanwise-client";

/// The sender of a request that changes something.
pub(super) struct Asker {
    caller: Caller,
    pub(super) origin: Origin,
}

impl Asker {
    /// The app whose jobs alone it may reach; `None` for the administrator.
    pub(super) fn own_app(&self) -> Option<&str> {
        match &self.caller {
            Caller::App(app) => Some(app),
            Caller::Admin | Caller::Nobody => None,
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Asker {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        let caller = parts.extensions.get::<Caller>().cloned();
        let caller = caller.ok_or(Refusal::Unauthorized)?;
        let peer = parts.extensions.get::<Arc<Peer>>();
        let client = parts.headers.get(CLIENT).map(|it| it.as_bytes());
        let origin = Origin {
            via: match client {
                Some(b"console") => Via::Console,
                Some(b"cli") => Via::Cli,
                _ => Via::Http,
            },
            caller: match &caller {
                Caller::Admin => Some("administrator".to_owned()),
                Caller::App(app) => Some(format!("app {app}")),
                Caller::Nobody => None,
            },
            address: peer.map(|peer| peer.network().to_string()),
        };
        Ok(Self { caller, origin })
    }
}
