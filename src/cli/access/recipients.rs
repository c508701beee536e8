//! Questions about many recipients of a job, and the resolution of uncertain ones.

use std::collections::BTreeSet;

use http::Method;

use super::Access;
use super::server::Question;
use crate::domain::ids::JobId;
use crate::domain::job;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::ports::Ledger as _;
use crate::service::api::{RecallRequest, RecallResult, RecipientRow, ResolveRequest};
use crate::service::control::DirectiveNote;
use crate::service::dead_letters::{ResolveAs, Resolved};
use crate::service::jobs;

impl Access {
    /// What became of these users, at most [`jobs::LOOKUP_AT_ONCE`] of them.
    pub(in crate::cli) async fn lookup(
        &self,
        job: JobId,
        users: &[String],
    ) -> Result<Vec<RecipientRow>, Failure> {
        match self {
            Self::Direct(direct) => {
                let ledger = direct.ledger()?;
                let secret = direct.fingerprint_secret();
                let record = ledger.job(job).await.or_exit(Exit::Unavailable)?;
                let record = record.ok_or_else(|| unknown(job))?;
                let rows = jobs::lookup(ledger, secret, &record, users);
                rows.await.or_exit(Exit::Unavailable)
            }
            Self::Server(server) => {
                let lines: Result<Vec<_>, _> = users.iter().map(serde_json::to_string).collect();
                let lines = lines.or_exit(Exit::Internal)?;
                let path = format!("/v1/jobs/{job}/recipients:lookup");
                let question = Question::new(Method::POST, &path);
                let question = question.with(super::NDJSON, lines.join("\n"));
                let mut rows = Vec::new();
                server.lines(question, |row| rows.push(row)).await?;
                Ok(rows)
            }
        }
    }

    pub(in crate::cli) async fn resolve(
        &self,
        job: JobId,
        to: ResolveAs,
        recipients: Option<BTreeSet<String>>,
        note: DirectiveNote,
    ) -> Result<Resolved, Failure> {
        match self {
            Self::Direct(direct) => direct.resolve(job, to, recipients, &note).await,
            Self::Server(server) => {
                let request = ResolveRequest {
                    to,
                    all: recipients.is_none(),
                    recipients,
                    reason: note.reason,
                    author: note.author,
                };
                let path = format!("/v1/jobs/{job}/uncertain:resolve");
                server.post(&path, &request).await
            }
        }
    }
}

impl Access {
    /// Recalls messages of a job for some time, or counts them.
    pub(in crate::cli) async fn recall(
        &self,
        job: JobId,
        request: &RecallRequest,
    ) -> Result<RecallResult, Failure> {
        match self {
            Self::Direct(_) => {
                let what = "a gateway recalls messages, with the credentials of the target: name it with \
                            --server";
                Err(Failure::message(Exit::Usage, what))
            }
            Self::Server(server) => {
                server
                    .post(&format!("/v1/jobs/{job}:recall"), request)
                    .await
            }
        }
    }
}

pub(super) fn unknown(job: JobId) -> Failure {
    Failure::message(Exit::Unavailable, job::unknown(&job.to_string()))
}
