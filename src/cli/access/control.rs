//! Commands that control jobs, apps and targets.

use http::Method;

use super::server::{Question, encoded};
use super::{Access, Server};
use crate::clock::now_ms;
use crate::domain::directive::Scope;
use crate::domain::moment;
use crate::domain::schedule::duration_text;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::service::control::{
    self, CONFIGURED, Command, ControlError, ControlResult, DirectiveNote, DirectiveView,
    LimitView, ManyCommand, ManyResult, Selection, TargetView,
};
use crate::service::target_test::{TestRequest, Tested};

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
                result.map_err(failure)
            }
            Self::Server(server) => server.steer(command, note).await,
        }
    }

    /// Carries out a command for all selected jobs.
    pub(in crate::cli) async fn steer_many(
        &self,
        command: ManyCommand,
        selection: &Selection,
        note: &DirectiveNote,
        dry_run: bool,
    ) -> Result<ManyResult, Failure> {
        match self {
            Self::Direct(direct) => {
                let (store, facts) = (direct.ledger()?, &direct.facts);
                let now = now_ms();
                let done =
                    control::carry_out_many(store, facts, command, selection, note, dry_run, now);
                done.await.map_err(failure)
            }
            Self::Server(server) => server.steer_many(command, selection, note, dry_run).await,
        }
    }

    pub(in crate::cli) async fn targets(&self) -> Result<Vec<TargetView>, Failure> {
        match self {
            Self::Direct(direct) => control::targets(direct.ledger()?, &direct.facts, now_ms())
                .await
                .or_exit(Exit::Unavailable),
            Self::Server(server) => server.existing("/v1/targets").await,
        }
    }

    /// Has a server send a test message through a target.
    pub(in crate::cli) async fn test_target(
        &self,
        target: &str,
        message: &TestRequest,
    ) -> Result<Tested, Failure> {
        match self {
            Self::Direct(_) => {
                let what =
                    "a target is tested through a server, or with the settings of this machine";
                Err(Failure::message(Exit::Internal, what))
            }
            Self::Server(server) => {
                let target = encoded(target);
                server
                    .post(&format!("/v1/targets/{target}:test"), message)
                    .await
            }
        }
    }

    /// All directives in force.
    pub(in crate::cli) async fn directives(&self) -> Result<Vec<DirectiveView>, Failure> {
        match self {
            Self::Direct(direct) => control::directives(direct.ledger()?, now_ms())
                .await
                .or_exit(Exit::Unavailable),
            Self::Server(server) => server.existing("/v1/directives").await,
        }
    }

    /// The same; `None` if only the administrator may see them.
    pub(in crate::cli) async fn directives_if_permitted(
        &self,
    ) -> Result<Option<Vec<DirectiveView>>, Failure> {
        match self.directives().await {
            Err(failure) if failure.exit == Exit::NotPermitted => Ok(None),
            found => found.map(Some),
        }
    }

    pub(in crate::cli) async fn limits(&self) -> Result<Vec<LimitView>, Failure> {
        match self {
            Self::Direct(direct) => control::limits(direct.ledger()?, &direct.facts, now_ms())
                .await
                .or_exit(Exit::Unavailable),
            Self::Server(server) => server.existing("/v1/limits").await,
        }
    }
}

fn failure(error: ControlError) -> Failure {
    let exit = match error {
        ControlError::TooLate(_) | ControlError::Wrong(_) => Exit::BadInput,
        ControlError::Unknown(_) | ControlError::Ledger(_) => Exit::Unavailable,
    };
    Failure::new(exit, error)
}

impl Server {
    async fn steer_many(
        &self,
        command: ManyCommand,
        selection: &Selection,
        note: &DirectiveNote,
        dry_run: bool,
    ) -> Result<ManyResult, Failure> {
        let priority = match command {
            ManyCommand::Priority(priority) => Some(priority.as_str()),
            _ => None,
        };
        let body = serde_json::json!({
            "app": selection.app,
            "target": selection.target,
            "tag": selection.tag,
            "priority": priority,
            "dry_run": dry_run,
            "reason": note.reason,
            "author": note.author,
            "expires_in": note.expires_in.map(duration_text),
        });
        self.post(&format!("/v1/jobs:{}", command.verb()), &body)
            .await
    }

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
        match command {
            Command::Priority(_, priority) => body["priority"] = priority.as_str().into(),
            Command::Schedule(_, at) => body["not_before"] = moment::text(*at).into(),
            Command::Deadline(_, at) => {
                body["expires_at"] = control::end_text(*at).into();
            }
            Command::Pace(_, at) => body["pace_until"] = control::pace_text(*at).into(),
            _ => {}
        }
        if let Command::Rate(_, kind, rate) = command {
            body["rate"] = rate
                .map_or_else(|| CONFIGURED.to_owned(), |it| it.to_string())
                .into();
            if !kind.is_main() {
                body["kind"] = kind.as_str().into();
            }
        }
        let (method, path) = match (command, subject.scope) {
            (Command::Rate(..), Scope::Target | Scope::App | Scope::Shared) => {
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
        self.told(Question::new(method, &path).with(super::JSON, body))
            .await
    }
}
