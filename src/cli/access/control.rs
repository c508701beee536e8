//! Commands that control jobs, apps and targets.

use http::Method;

use super::{Access, Server, refused};
use crate::clock::now_ms;
use crate::domain::directive::Scope;
use crate::domain::schedule::duration_text;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::service::control::{
    self, CONFIGURED, Command, ControlError, ControlResult, DirectiveNote, LimitView, TargetView,
};

impl Access {
    /// Carries out a command and returns the state that results.
    pub(in crate::cli) async fn steer(
        &self,
        command: &Command,
        note: &DirectiveNote,
    ) -> Result<ControlResult, Failure> {
        match self {
            Self::Direct(direct) => {
                let (store, facts) = (direct.ledger()?, &direct.facts);
                let result = control::carry_out(store, facts, command, note, now_ms()).await;
                result.map_err(|error| {
                    let exit = match error {
                        ControlError::TooLate(_) => Exit::BadInput,
                        ControlError::Unknown(_) | ControlError::Ledger(_) => Exit::Unavailable,
                    };
                    Failure::new(exit, error)
                })
            }
            Self::Server(server) => server.steer(command, note).await,
        }
    }

    pub(in crate::cli) async fn targets(&self) -> Result<Vec<TargetView>, Failure> {
        match self {
            Self::Direct(direct) => control::targets(direct.ledger()?, &direct.facts, now_ms())
                .await
                .or_exit(Exit::Unavailable),
            Self::Server(server) => Ok(server.get("/v1/targets").await?.unwrap_or_default()),
        }
    }

    pub(in crate::cli) async fn limits(&self) -> Result<Vec<LimitView>, Failure> {
        match self {
            Self::Direct(direct) => control::limits(direct.ledger()?, &direct.facts, now_ms())
                .await
                .or_exit(Exit::Unavailable),
            Self::Server(server) => Ok(server.get("/v1/limits").await?.unwrap_or_default()),
        }
    }
}

impl Server {
    async fn steer(
        &self,
        command: &Command,
        note: &DirectiveNote,
    ) -> Result<ControlResult, Failure> {
        let subject = command.subject();
        let mut body = serde_json::json!({
            "reason": note.reason,
            "author": note.author,
            "expires_in": note.expires_in.map(duration_text),
        });
        if let Command::Rate(_, rate) = command {
            body["rate"] = rate
                .map_or_else(|| CONFIGURED.to_owned(), |it| it.to_string())
                .into();
        }
        let (method, path) = match (command, subject.scope) {
            (Command::Rate(..), Scope::Target | Scope::App) => {
                body["scope"] = subject.scope.as_str().into();
                body["name"] = subject.name.into();
                (Method::PUT, "/v1/limits".to_owned())
            }
            (_, scope) => {
                let path = format!(
                    "/v1/{}s/{}:{}",
                    scope.as_str(),
                    subject.name,
                    command.verb()
                );
                (Method::POST, path)
            }
        };
        let body = body.to_string().into_bytes();
        let reply = self
            .ask(method, &path, Some(super::JSON), body.into(), None)
            .await?;
        match reply.status {
            200 => serde_json::from_slice(&reply.body).or_exit(Exit::Unavailable),
            _ => Err(refused(&reply)),
        }
    }
}
