//! Submits jobs, and tries them out without sending anything.

use bytes::Bytes;
use fanwise_client::Retry;
use fanwise_client::amqp::{Error, JobMessage, Producer};
use fanwise_client::http::{List, SubmitOptions};

use super::{Access, Direct, traceparent};
use crate::app::{self, LocalAdmission, Names};
use crate::clock::now_ms;
use crate::domain::fields::Problem;
use crate::domain::ids::JobId;
use crate::domain::lane::Priority;
use crate::domain::permissions::Asked;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::ports::{BrokerError, Entry, Ledger as _};
use crate::service::Rehearsal;
use crate::service::admission::{self, Admission as _, Refused, examine, keeps_rules};
use crate::service::api::Submitted;
use crate::service::control;

/// A job ready to submit: its messages, and, if there are several, the whole job as one upload.
pub(in crate::cli) struct Submission {
    pub(in crate::cli) bodies: Vec<Bytes>,
    pub(in crate::cli) upload: Option<Upload>,
    /// It is for all users of its target.
    pub(in crate::cli) for_all: bool,
}

/// A job without its list, and the list.
pub(in crate::cli) struct Upload {
    pub(in crate::cli) job: Bytes,
    pub(in crate::cli) list: List,
}

/// The answer to a submission.
pub(in crate::cli) struct Accepted {
    pub(in crate::cli) submitted: Submitted,
    /// What the job says. Unknown through a server, which refuses a conflict itself.
    pub(in crate::cli) content_digest: Option<String>,
    /// The names of its messages in the ledger. A server keeps them to itself.
    submissions: Vec<String>,
}

impl Access {
    /// Checks a job in all points, and shows it as its first recipients would get it.
    pub(in crate::cli) async fn try_out(&self, job: &Submission) -> Result<Submitted, Failure> {
        match self {
            Self::Server(server) => {
                let options = SubmitOptions {
                    dry_run: true,
                    ..SubmitOptions::default()
                };
                let (body, list) = job.request();
                server.submit(&body, list, &options, Retry::NEVER).await
            }
            Self::Direct(direct) => direct.try_out(job).await,
        }
    }

    /// Submits a job. All of it is accepted when this returns `Ok`.
    pub(in crate::cli) async fn submit(
        &self,
        job: &Submission,
        retry: Retry,
    ) -> Result<Accepted, Failure> {
        let traceparent = traceparent();
        match self {
            Self::Server(server) => {
                let options = SubmitOptions {
                    traceparent,
                    ..SubmitOptions::default()
                };
                let (body, list) = job.request();
                let submitted = server.submit(&body, list, &options, retry);
                Ok(Accepted {
                    submitted: submitted.await?,
                    content_digest: None,
                    submissions: Vec::new(),
                })
            }
            Self::Direct(direct) => direct.submit(job, traceparent, retry).await,
        }
    }

    /// Whether the ledger knows all messages that were submitted. `None` through a server that did
    /// not know them when it answered: it does not say when it does.
    pub(in crate::cli) async fn knows(&self, accepted: &Accepted) -> Result<Option<bool>, Failure> {
        let submitted = &accepted.submitted;
        match self {
            Self::Server(_) => Ok(submitted.standing.as_ref().map(|_| true)),
            Self::Direct(direct) => {
                let knows = direct.ledger()?.knows(submitted.job, &accepted.submissions);
                knows.await.map(Some).or_exit(Exit::Unavailable)
            }
        }
    }

    /// The target that a job would go to.
    pub(in crate::cli) async fn target_of(&self, job: &Submission) -> Result<String, Failure> {
        match self {
            Self::Server(_) => Ok(self.try_out(job).await?.target),
            Self::Direct(direct) => Ok(direct.check(job)?.target),
        }
    }
}

impl Submission {
    /// The body of a request for the whole job, and the list that goes with it.
    fn request(&self) -> (Bytes, Option<&List>) {
        match &self.upload {
            Some(upload) => (upload.job.clone(), Some(&upload.list)),
            None => (self.bodies.first().cloned().unwrap_or_default(), None),
        }
    }
}

/// What the check of a job found.
struct Checked {
    id: JobId,
    target: String,
    priority: Priority,
    content_digest: String,
    /// The job's entry in the ledger.
    entry: Entry,
    /// Set if it is too late to send the job.
    too_late: Option<Problem>,
    /// List entries of all messages.
    entries: u64,
    /// The names of the messages in the ledger.
    submissions: Vec<String>,
    /// What the job goes on without.
    warnings: Vec<String>,
    /// What the app needs permission for.
    asked: Asked,
}

impl Checked {
    fn submitted(self, messages: usize) -> Submitted {
        Submitted {
            job: self.id,
            target: self.target,
            recipients: self.entries,
            messages: messages as u32,
            dry_run: false,
            fetched: None,
            warnings: self.warnings,
            preview: Vec::new(),
            estimate: None,
            standing: None,
        }
    }
}

fn failure(refused: &Refused) -> Failure {
    let exit = match refused {
        Refused::Problems(_) | Refused::Conflict(_) => Exit::BadInput,
        Refused::Forbidden(_) | Refused::Denied { .. } => Exit::NotPermitted,
        Refused::Undecided(_) => Exit::Unavailable,
    };
    Failure::message(exit, refused.to_string())
}

impl Direct {
    /// Reads every message as the worker will, to find mistakes before anything is sent.
    fn check(&self, job: &Submission) -> Result<Checked, Failure> {
        let names = Names::of(&self.config)?;
        let mut checked: Option<Checked> = None;
        for body in &job.bodies {
            let job = examine(&names, body, None).map_err(|refused| failure(&refused))?;
            match &mut checked {
                Some(checked) => {
                    checked.entries += job.recipients;
                    checked.submissions.push(job.submission);
                    checked.asked.lists.extend(job.asked.lists);
                }
                None => {
                    checked = Some(Checked {
                        entry: job.entry(0),
                        too_late: job.too_late,
                        id: job.id,
                        target: job.target,
                        priority: job.priority,
                        content_digest: job.content_digest,
                        entries: job.recipients,
                        submissions: vec![job.submission],
                        warnings: job.warnings,
                        asked: job.asked,
                    });
                }
            }
        }
        let nothing = || Failure::message(Exit::BadInput, "no recipients");
        let mut checked = checked.ok_or_else(nothing)?;
        checked.entry.entries = checked.entries;
        keeps_rules(&names, &checked.asked).map_err(|refused| failure(&refused))?;
        Ok(checked)
    }

    /// Also checks what the messages alone do not settle: an earlier job of its key, its stored
    /// message, `before_accept`. For this it needs the ledger.
    async fn try_out(&self, job: &Submission) -> Result<Submitted, Failure> {
        let checked = self.check(job)?;
        if let Some(late) = &checked.too_late {
            return Err(Failure::message(Exit::BadInput, late.to_string()));
        }
        let priority = checked.priority;
        let mut submitted = checked.submitted(job.bodies.len());
        submitted.dry_run = true;
        let Some(store) = &self.ledger else {
            return Ok(submitted);
        };
        let admission = LocalAdmission::of(&self.config, store)?;
        let bodies = job.bodies.clone();
        let considered = admission::consider(&admission, bodies, priority);
        let considered = considered.await.map_err(|refused| failure(&refused))?;
        if let Some((_, first)) = considered.messages.first() {
            let rehearsal = Rehearsal::of(&admission, first).await;
            let mut rehearsal = rehearsal.map_err(|refused| failure(&refused))?;
            for (_, message) in &considered.messages {
                let counted = rehearsal.count(admission.rules(), message);
                counted.map_err(|refused| failure(&refused))?;
            }
            let board = control::board(store).await.or_exit(Exit::Unavailable)?;
            let (limits, recipients) = ((&self.facts, &board), submitted.recipients);
            submitted.preview = rehearsal.previews();
            if !job.for_all {
                let rules = admission.rules();
                submitted.estimate = rehearsal.estimate(rules, recipients, limits, now_ms());
            }
        }
        Ok(submitted)
    }

    /// Publishes the messages of a job in order, and enters the job into the ledger, so that it is
    /// found at once.
    async fn submit(
        &self,
        job: &Submission,
        traceparent: Option<String>,
        retry: Retry,
    ) -> Result<Accepted, Failure> {
        let checked = self.check(job)?;
        if let Some(late) = &checked.too_late
            && !self.knows_job(checked.id).await?
        {
            return Err(Failure::message(Exit::BadInput, late.to_string()));
        }
        let producer = app::producer(&self.config)?.with_retry(retry);
        for (number, body) in (1..).zip(&job.bodies) {
            let message = JobMessage {
                priority: checked.priority,
                id: &format!("{}/{number}", checked.id),
                body,
                traceparent: traceparent.as_deref(),
            };
            self.publish(&producer, message).await?;
        }
        producer.close().await;
        if let Some(ledger) = &self.ledger {
            // Errors do not matter: the job is accepted, and is found a little later.
            let _ = ledger.enter(&checked.entry).await;
        }
        Ok(Accepted {
            content_digest: Some(checked.content_digest.clone()),
            submissions: checked.submissions.clone(),
            submitted: checked.submitted(job.bodies.len()),
        })
    }

    /// Publishes a message. Declares the queues if there are none yet, unless others declare them.
    async fn publish(&self, producer: &Producer, message: JobMessage<'_>) -> Result<(), Failure> {
        let mut published = producer.publish(message).await;
        let missing = published.as_ref().is_err_and(Error::is_missing);
        if missing && self.config.broker.declare {
            self.broker.apply().await.or_exit(Exit::Unavailable)?;
            published = producer.publish(message).await;
        }
        published.map_err(|error| match error {
            Error::Broker(error) => Failure::new(Exit::Unavailable, BrokerError::from(error)),
            // It may take the message later.
            Error::Refused => Failure::new(Exit::Temporary, error),
            error => Failure::new(Exit::Unavailable, error),
        })
    }

    async fn knows_job(&self, job: JobId) -> Result<bool, Failure> {
        match self.ledger {
            None => Ok(false),
            Some(_) => Ok(self.job(job).await?.is_some()),
        }
    }
}
