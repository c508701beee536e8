//! `POST /v1/jobs`: a job as JSON, or a job and then its audience as a list of any length.
//!
//! | content type | the job | the audience |
//! |---|---|---|
//! | `application/json` | the body | in it, or at the address that it names |
//! | `application/x-ndjson`, `text/csv`, `text/plain` | header `Fanwise-Job-Spec` | the body |
//! | `multipart/form-data` | part `job` | part `audience`, after it |
//!
//! 202: a job, or further recipients of one, are durable with the broker. 200: all of it was known
//! before, the job was waited for and is completed, or this was a dry run. All or nothing: a list
//! is accepted as a whole or not at all.
//!
//! [`draft`] receives a job and checks it. This module makes it durable and answers.

mod draft;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::runtime::Handle;
use tokio::time::Instant;

use self::draft::{Checked, Draft, blocking};
use super::access::Caller;
use super::params::Params;
use super::problem::Refusal;
use super::spec::Given;
use super::upload::{ListKind, Parts};
use super::{Gateway, Open, PublisherOf, spans};
use crate::clock::now_ms;
use crate::domain::fields::Problem;
use crate::domain::ids::JobId;
use crate::domain::job::JOB_BYTES_MAX;
use crate::domain::lane::Priority;
use crate::domain::list::Format;
use crate::metrics::LedgerStep;
use crate::ports::{
    Broker, Entry, Gathered, JobRecord, JobState, Outgoing, Route, Store, Transport,
};
use crate::service::Rehearsal;
use crate::service::admission::{Admission as _, agree, charge, conflicts};
use crate::service::api::{Estimate, JobStanding, Preview, Submitted};
use crate::service::control;

/// Largest body that is read: a job slightly above its bound gets an explanation and is not cut
/// off.
pub(super) const BODY_BYTES_MAX: usize = JOB_BYTES_MAX + 64 * 1024;

/// Parts that the ledger is told of at a time.
const NOTES_AT_A_TIME: usize = 32;

/// Time between two readings of a job that is waited for, at first and at last.
const LOOK_AFTER: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

pub(super) async fn submit<B: Broker, S: Store, T: Transport>(
    State(gateway): State<Arc<Gateway<B, S, T>>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Refusal> {
    let wishes = SubmitOptions::of(&caller, request.uri(), request.headers())?;
    // Checked before a body of megabytes is taken in that could not be passed on.
    let open = gateway.open()?;
    let (draft, checked) = Draft::receive(&gateway, &caller, request, &wishes).await?;
    let before = match agree(&*gateway, &checked.job).await? {
        Some(_) => gateway.known(&checked).await?,
        None => None,
    };
    let known = before.is_some();
    if let Some(problem) = checked.job.too_late.clone().filter(|_| !known) {
        return Err(Refusal::BadJob(vec![problem]));
    }
    // A job for all users may reach users that were not there before.
    let repeated = before.as_ref().is_some_and(JobRecord::is_over) && !checked.job.for_all;
    if wishes.dry_run {
        let (preview, estimate) = gateway.rehearse(&caller, &draft, &checked).await?;
        let answer = SubmitAnswer {
            status: StatusCode::OK,
            standing: before.as_ref().map(JobStanding::from),
            waited: None,
            preview,
            estimate,
        };
        return Ok(answer.response(checked, true));
    }
    if !repeated {
        if !known {
            gateway.has_room(&checked.job.target)?;
        }
        charge(&*gateway, std::slice::from_ref(&checked.job.asked)).await?;
        gateway.publish(draft, &checked, &wishes, open).await?;
        gateway
            .enter(&checked.job.entry(checked.job.recipients))
            .await;
    }
    let mut answer = SubmitAnswer {
        status: if known {
            StatusCode::OK
        } else {
            StatusCode::ACCEPTED
        },
        standing: before.as_ref().map(JobStanding::from),
        waited: None,
        preview: Vec::new(),
        estimate: None,
    };
    if let Some(wait) = wishes.wait {
        let wait = wait.min(gateway.wait_max);
        answer.waited = Some(wait);
        if let Some(record) = gateway.settled(&checked, before.as_ref(), wait).await? {
            answer.standing = Some(JobStanding::from(&record));
            if record.state == JobState::Completed {
                answer.status = StatusCode::OK;
            }
        }
    }
    Ok(answer.response(checked, false))
}

/// The caller's options, besides the job.
struct SubmitOptions {
    priority: Option<Priority>,
    dry_run: bool,
    column: Option<String>,
    vars: bool,
    /// The `client_msg_no` of a job that has none.
    key: Option<String>,
    /// The app of a job that names none: that of the token.
    app: Option<String>,
    wait: Option<Duration>,
    traceparent: Option<String>,
}

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const PREFER: &str = "prefer";

impl SubmitOptions {
    fn of(caller: &Caller, uri: &Uri, headers: &HeaderMap) -> Result<Self, Refusal> {
        // An unknown parameter is refused: it may be a misspelt `dry_run`.
        let mut params = Params::of(uri)?;
        let priority = params.one_of("priority", Priority::ALL, Priority::as_str);
        let dry_run = params.get("dry_run", "true or false").unwrap_or_default();
        let column = params.text("column");
        let vars = params.get("vars", "true or false").unwrap_or_default();
        params.finish()?;
        let text = |name: &str| headers.get(name)?.to_str().ok();
        Ok(Self {
            priority,
            dry_run,
            column,
            vars,
            // A quoted text, as the draft of the header says, or a bare one.
            key: text(IDEMPOTENCY_KEY).map(|key| key.trim_matches('"').to_owned()),
            app: match caller {
                Caller::App(own) => Some(own.clone()),
                Caller::Admin | Caller::Nobody => None,
            },
            wait: headers.get_all(PREFER).iter().find_map(wait),
            traceparent: spans::given(headers).map(str::to_owned),
        })
    }

    /// What the job gets if it lacks it.
    fn given(&self) -> Vec<Given<'_>> {
        let given = [("client_msg_no", &self.key), ("app", &self.app)].into_iter();
        given
            .filter_map(|(name, value)| Some((name, value.as_deref()?)))
            .collect()
    }

    /// How to read a list of this format.
    fn list(&self, format: Format) -> Result<ListKind, Refusal> {
        if self.vars && format != Format::Csv {
            let what = "takes the columns of a CSV; in NDJSON, write `vars` into each object";
            return Err(Refusal::BadJob(vec![Problem::new("vars", what)]));
        }
        Ok(ListKind {
            format,
            column: self.column.clone(),
            vars: self.vars,
        })
    }
}

/// The value of `wait=10` among the preferences; others are ignored, as RFC 7240 demands.
fn wait(value: &HeaderValue) -> Option<Duration> {
    let preferences = value.to_str().ok()?.split(',');
    let mut waits = preferences.filter_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        let seconds = value.trim().trim_matches('"').parse().ok()?;
        name.trim()
            .eq_ignore_ascii_case("wait")
            .then_some(Duration::from_secs(seconds))
    });
    waits.next()
}

impl<B: Broker, S: Store, T: Transport> Gateway<B, S, T> {
    /// What a dry run shows: the message for the first recipients, and what sending would take.
    async fn rehearse(
        &self,
        caller: &Caller,
        draft: &Draft,
        checked: &Checked,
    ) -> Result<(Vec<Preview>, Option<Estimate>), Refusal> {
        let job = &checked.job;
        let mut rehearsal = Rehearsal::of(self, &draft.first()?).await?;
        if rehearsal.is_personal() {
            let _turn = self.shares.survey(caller).await;
            tokio::task::block_in_place(|| {
                let count = |message: &[u8]| Ok(rehearsal.count(&*self.context, message)?);
                draft.for_each(checked.parts.as_ref(), count)
            })?;
        }
        if job.for_all {
            return Ok((rehearsal.previews(), None));
        }
        let board = control::board(&self.context.store).await?;
        let limits = (&self.facts, &board);
        let estimate = rehearsal.estimate(&*self.context, job.recipients, limits, now_ms());
        Ok((rehearsal.previews(), estimate))
    }

    async fn look(&self, job: JobId) -> Result<Option<JobRecord>, Refusal> {
        let look = self.context.store.job(job);
        Ok(self.context.try_step(LedgerStep::Look, look).await?)
    }

    /// Enters a durable job into the ledger, so that it is found at once. Errors do not matter: the
    /// job is accepted, and is found as soon as a worker takes it.
    pub(super) async fn enter(&self, entry: &Entry) {
        let enter = self.context.store.enter(entry);
        let _ = self.context.try_step(LedgerStep::Accept, enter).await;
    }

    /// The record of a job whose submissions are all known. It is read after they are, so that it
    /// counts their recipients.
    async fn known(&self, job: &Checked) -> Result<Option<JobRecord>, Refusal> {
        match self.knows(job).await? {
            true => self.look(job.job.id).await,
            false => Ok(None),
        }
    }

    /// Whether all submissions of the job are known.
    async fn knows(&self, job: &Checked) -> Result<bool, Refusal> {
        let knows = self.context.store.knows(job.job.id, &job.submissions);
        Ok(self.context.try_step(LedgerStep::Look, knows).await?)
    }

    /// Makes a job durable with the broker.
    async fn publish(
        &self,
        draft: Draft,
        job: &Checked,
        wishes: &SubmitOptions,
        open: Open<PublisherOf<B>>,
    ) -> Result<(), Refusal> {
        let outgoing = {
            let (id, priority) = (job.job.id, job.job.priority);
            let traceparent = wishes.traceparent.clone();
            move |name: &str, body: Bytes| Outgoing {
                route: Route::Job(priority),
                body,
                message_id: format!("{id}/{name}"),
                traceparent: traceparent.clone(),
            }
        };
        let name = job.submissions.first().map_or("", String::as_str);
        let (upload, parts) = match (draft, job.parts.clone()) {
            (Draft::One(held), _) => {
                let message = outgoing(name, held.bytes.clone());
                return open.publish(vec![message]).await;
            }
            (Draft::Changed(body), _) => {
                return open.publish(vec![outgoing(name, body)]).await;
            }
            (Draft::List(upload), Some(parts)) => (upload, parts),
            (Draft::List(_), None) => return Err(Refusal::BadJob(Vec::new())),
        };
        self.not_given_up(job.job.id, &parts).await?;
        let names = job.submissions.clone();
        let runtime = Handle::current();
        let published = parts.clone();
        blocking(move || {
            let mut names = names.iter();
            upload.for_each_message(&parts, |body| {
                open.check()?;
                let name = names.next().map_or("", String::as_str);
                // In order, and the first one is confirmed before the second: see `not_given_up`.
                runtime.block_on(open.publish(vec![outgoing(name, body)]))
            })
        })
        .await?;
        self.note_parts(job.job.id, &published).await;
        Ok(())
    }

    /// Tells the ledger that all parts of a list are durable, so that their slices need not wait
    /// until a worker has taken the last part. Errors do not matter: the workers tell it too.
    async fn note_parts(&self, job: JobId, parts: &Parts) {
        if parts.of == 1 {
            return;
        }
        let notes = (1..=parts.of).map(async |number| {
            let part = parts.part(number);
            let gather = self.context.store.gather(job, &part, false);
            let _ = self.context.try_step(LedgerStep::Gather, gather).await;
        });
        let notes = futures_util::stream::iter(notes);
        notes
            .buffer_unordered(NOTES_AT_A_TIME)
            .collect::<()>()
            .await;
    }

    /// Refuses a list that came in part and was given up: it would only be cancelled again. The
    /// question also notes the first part, which does no harm, since that part is published before
    /// any other.
    async fn not_given_up(&self, job: JobId, parts: &Parts) -> Result<(), Refusal> {
        if parts.of == 1 {
            return Ok(());
        }
        let first = parts.part(1);
        let gather = self.context.store.gather(job, &first, false);
        let gathered = self.context.try_step(LedgerStep::Gather, gather).await?;
        match gathered {
            Gathered::GivenUp => Err(Refusal::GivenUp(job)),
            Gathered::Complete | Gathered::Waiting => Ok(()),
        }
    }

    /// Waits until an accepted job, which was like `before` if it was known, is completed; returns
    /// what is known of it when the time is over. The end of an earlier submission is not its end.
    async fn settled(
        &self,
        job: &Checked,
        before: Option<&JobRecord>,
        wait: Duration,
    ) -> Result<Option<JobRecord>, Refusal> {
        let deadline = Instant::now() + wait;
        let (mut pause, pause_max) = LOOK_AFTER;
        let (mut known, mut seen) = (false, None);
        loop {
            // Asked before the record is read: then the record counts their recipients.
            known = known || self.knows(job).await.unwrap_or(false);
            // An error does not matter: the job is accepted.
            if let Ok(Some(record)) = self.look(job.job.id).await {
                if conflicts(&record, &job.job.content_digest) {
                    return Err(Refusal::Conflict(job.job.id));
                }
                let taken = known && !before.is_some_and(|before| record.waits_to_reopen(before));
                match record.state {
                    JobState::Completed if taken => return Ok(Some(record)),
                    JobState::Completed => {}
                    JobState::Accepted | JobState::Running => seen = Some(record),
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stop.is_cancelled() {
                return Ok(seen);
            }
            let pausing = tokio::time::sleep(pause.min(left));
            self.stop.run_until_cancelled(pausing).await;
            pause = (pause * 2).min(pause_max);
        }
    }
}

/// The answer about an accepted job.
struct SubmitAnswer {
    status: StatusCode,
    standing: Option<JobStanding>,
    waited: Option<Duration>,
    preview: Vec<Preview>,
    estimate: Option<Estimate>,
}

const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

impl SubmitAnswer {
    fn response(self, job: Checked, dry_run: bool) -> Response {
        let Checked {
            job, submissions, ..
        } = job;
        let location = format!("/v1/jobs/{}", job.id);
        let submitted = Submitted {
            job: job.id,
            target: job.target,
            recipients: job.recipients,
            messages: submissions.len() as u32,
            dry_run,
            fetched: job.fetched,
            warnings: job.warnings,
            preview: self.preview,
            estimate: self.estimate,
            standing: self.standing,
        };
        let mut response = (self.status, Json(submitted)).into_response();
        let headers = response.headers_mut();
        if let Ok(location) = HeaderValue::try_from(location)
            && !dry_run
        {
            headers.insert(header::LOCATION, location);
        }
        if let Some(waited) = self.waited {
            let applied = HeaderValue::try_from(format!("wait={}", waited.as_secs()));
            headers.extend(applied.map(|applied| (PREFERENCE_APPLIED, applied)));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferences_are_read_as_they_are_written() {
        let of = |text: &str| wait(&HeaderValue::from_str(text).unwrap());
        let ten = Some(Duration::from_secs(10));
        assert_eq!(of("wait=10"), ten);
        assert_eq!(of("respond-async, Wait = 10 ;x=y"), ten);
        assert_eq!(of("wait=\"10\""), ten);
        assert_eq!(of("wait=x, return=minimal"), None);
        assert_eq!(of("wait=-1"), None);
    }

    #[test]
    fn a_parameter_that_is_not_known_is_refused() {
        let none = HeaderMap::new();
        let of = |query: &str| SubmitOptions::of(&Caller::Admin, &query.parse().unwrap(), &none);
        assert!(of("/?dry_run=true&priority=bulk").unwrap().dry_run);
        assert!(of("/?dry-run=true").is_err());
        assert!(of("/?priority=urgent").is_err());
        assert!(of("/?dry_run=yes").is_err());
    }
}
