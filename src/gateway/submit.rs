//! `POST /v1/jobs`: a job as JSON, or a job and then its audience as a list of any length.
//!
//! | content type | the job | the audience |
//! |---|---|---|
//! | `application/json` | the body | in it |
//! | `application/x-ndjson`, `text/csv`, `text/plain` | header `Fanwise-Job-Spec` | the body |
//! | `multipart/form-data` | part `job` | part `audience`, after it |
//!
//! 202: a job, or further recipients of one, are durable with the broker. 200: all of it was known
//! before, the job was waited for and is completed, or this was a dry run. All or nothing: a list
//! is accepted as a whole or not at all.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header, request};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use futures_util::StreamExt as _;
use multer::Field;
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::access::Caller;
use super::body::{self, Held, unreadable};
use super::caller_view::CallerView;
use super::form::{self, Form};
use super::params::Params;
use super::problem::Refusal;
use super::spec::{self, SPEC_BYTES_MAX, Spec};
use super::spool::spool;
use super::upload::{ListKind, Parts, Received, Upload};
use super::{Gateway, Open, PublisherOf};
use crate::domain::audience::Member;
use crate::domain::fields::Problem;
use crate::domain::ids::JobId;
use crate::domain::job::{JOB_BYTES_MAX, ListPart};
use crate::domain::lane::Priority;
use crate::domain::list::Format;
use crate::domain::permissions::Asked;
use crate::domain::trace::traceparent;
use crate::metrics::LedgerStep;
use crate::ports::{
    Broker, Entry, Gathered, JobRecord, JobState, Outgoing, Route, Store, Transport,
};
use crate::service::Vars;
use crate::service::admission::{
    Examined, agree, allow, charge, conflicts, examine, keeps_rules, preview,
};
use crate::service::api::{JobStanding, Preview, Submitted};

/// Largest body that is read: a job slightly above its bound gets an explanation and is not cut
/// off.
pub(super) const BODY_BYTES_MAX: usize = JOB_BYTES_MAX + 64 * 1024;

/// The advice for a job that is too large.
/// Parts that the ledger is told of at a time.
const NOTES_AT_A_TIME: usize = 32;

const UPLOAD: &str = "a longer list is uploaded as application/x-ndjson, text/csv or text/plain";

/// Bodies up to this size are read on the thread where they arrive; larger ones on a thread that
/// may block.
const SMALL_BODY_BYTES: usize = 32 * 1024;

/// Time between two readings of a job that is waited for, at first and at last.
const LOOK_AFTER: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

pub(super) async fn submit<B: Broker, S: Store, T: Transport>(
    State(gateway): State<Arc<Gateway<B, S, T>>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Refusal> {
    let wishes = SubmitOptions::of(request.uri(), request.headers())?;
    // Checked before a body of megabytes is taken in that could not be passed on.
    let open = gateway.open()?;
    let (draft, checked) = Draft::receive(&gateway, &caller, request, &wishes).await?;
    let before = agree(&*gateway, &checked.job).await?;
    let known = before.is_some() && gateway.knows(&checked).await?;
    if let Some(problem) = checked.job.too_late.clone().filter(|_| !known) {
        return Err(Refusal::BadJob(vec![problem]));
    }
    let settled = before
        .as_ref()
        .is_some_and(|record| record.state == JobState::Completed);
    // A job for all users may reach users that were not there before.
    let repeated = known && settled && !checked.job.for_all;
    let first = wishes.dry_run.then(|| draft.first()).transpose()?;
    if !repeated && !wishes.dry_run {
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
        standing: before.as_ref().filter(|_| known).map(JobStanding::of),
        waited: None,
        preview: Vec::new(),
    };
    if let Some(first) = first {
        answer.status = StatusCode::OK;
        answer.preview = preview(&*gateway, &first, PREVIEWS).await?;
    } else if let Some(wait) = wishes.wait {
        let wait = wait.min(gateway.wait_max);
        answer.waited = Some(wait);
        if let Some(record) = gateway.settled(&checked, wait).await? {
            answer.standing = Some(JobStanding::of(&record));
            if record.state == JobState::Completed {
                answer.status = StatusCode::OK;
            }
        }
    }
    Ok(answer.response(checked, wishes.dry_run))
}

/// The caller's options, besides the job.
struct SubmitOptions {
    priority: Option<Priority>,
    dry_run: bool,
    column: Option<String>,
    vars: bool,
    /// The `client_msg_no` of a job that has none.
    key: Option<String>,
    wait: Option<Duration>,
    traceparent: Option<String>,
}

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const PREFER: &str = "prefer";

impl SubmitOptions {
    fn of(uri: &Uri, headers: &HeaderMap) -> Result<Self, Refusal> {
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
            wait: headers.get_all(PREFER).iter().find_map(wait),
            traceparent: text("traceparent").and_then(traceparent).map(str::to_owned),
        })
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

/// How a request carries its job.
enum Kind {
    Job,
    List(Listing),
}

/// How a list follows its job.
enum Listing {
    Body(Format),
    Form { boundary: String },
}

impl Kind {
    fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let Some(value) = headers.get(header::CONTENT_TYPE) else {
            return Ok(Self::Job);
        };
        let text = value.to_str().unwrap_or_default();
        if let Ok(boundary) = multer::parse_boundary(text) {
            return Ok(Self::List(Listing::Form { boundary }));
        }
        let essence = text.split(';').next().unwrap_or_default().trim();
        match essence.to_ascii_lowercase().as_str() {
            "application/json" => Ok(Self::Job),
            other => match list_format(other) {
                Some(format) => Ok(Self::List(Listing::Body(format))),
                None => Err(Refusal::BadBody(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    format!(
                        "{other:?} is not supported; use application/json, or for long lists \
                         application/x-ndjson, text/csv, text/plain or multipart/form-data"
                    ),
                )),
            },
        }
    }
}

fn list_format(essence: &str) -> Option<Format> {
    match essence {
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Some(Format::Ndjson),
        "text/csv" => Some(Format::Csv),
        "text/plain" => Some(Format::Lines),
        _ => None,
    }
}

/// A job that was received.
enum Draft {
    One(Held),
    /// With a key added, or as `before_accept` changed it.
    Changed(Bytes),
    List(Box<Upload>),
}

/// What the check of a job found, if it may be accepted.
struct Checked {
    job: Examined,
    submissions: Vec<String>,
    /// Set for an uploaded list.
    parts: Option<Parts>,
}

/// Recipients of a dry run for which the message is rendered.
const PREVIEWS: usize = 5;

impl Draft {
    /// A job for the first recipients.
    fn first(&self) -> Result<Bytes, Refusal> {
        match self {
            Self::One(held) => Ok(held.bytes.clone()),
            Self::Changed(bytes) => Ok(bytes.clone()),
            Self::List(upload) => tokio::task::block_in_place(|| upload.first_message(PREVIEWS)),
        }
    }

    async fn receive<B: Broker, S: Store, T: Transport>(
        gateway: &Arc<Gateway<B, S, T>>,
        caller: &Caller,
        request: Request,
        wishes: &SubmitOptions,
    ) -> Result<(Self, Checked), Refusal> {
        let (head, body) = request.into_parts();
        match Kind::of(&head.headers)? {
            Kind::Job => {
                let shares = &gateway.shares;
                let held = body::read(shares, caller, body, BODY_BYTES_MAX, UPLOAD).await?;
                let keyed = wishes.key.as_deref();
                let keyed = keyed.and_then(|key| spec::with_key(&held.bytes, key));
                let bytes = keyed.clone().unwrap_or_else(|| held.bytes.clone());
                let checked = read(gateway, caller, &bytes, wishes.priority).await?;
                gateway.admit(caller, &checked.job.asked.app)?;
                if let Some(change) = allow(&**gateway, &checked.job, &bytes).await? {
                    let changed = change.apply(&bytes)?;
                    let checked = read(gateway, caller, &changed, wishes.priority).await?;
                    return Ok((Self::Changed(changed), checked));
                }
                let draft = keyed.map_or(Self::One(held), Self::Changed);
                Ok((draft, checked))
            }
            Kind::List(listing) => {
                let _place = gateway.shares.upload(caller)?;
                let list = receive_list(gateway, caller, listing, &head, body, wishes).await?;
                let size = list.file.metadata().map_or(0, |it| it.len());
                gateway.context.metrics.uploaded(size);
                let (folder, secret) = (gateway.upload_dir.clone(), gateway.fingerprint_secret());
                let sort = move || list.sort(&folder, &secret);
                let (mut upload, checked) = survey_in_turn(gateway, caller, sort, wishes).await?;
                let document = upload.spec.document();
                let Some(change) = allow(&**gateway, &checked.job, &document).await? else {
                    return Ok((Self::List(Box::new(upload)), checked));
                };
                let changed = change.apply(&document)?;
                // The job may be longer or shorter now, so that the list is cut differently.
                upload.spec = Spec::read("job", &changed, None)
                    .map_err(|problem| Refusal::BadJob(vec![problem]))?;
                let same = move || Ok(upload);
                let (upload, checked) = survey_in_turn(gateway, caller, same, wishes).await?;
                Ok((Self::List(Box::new(upload)), checked))
            }
        }
    }
}

/// Reads one message; a large one on a thread that may compute for long.
async fn read<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    caller: &Caller,
    body: &Bytes,
    priority: Option<Priority>,
) -> Result<Checked, Refusal> {
    if body.len() <= SMALL_BODY_BYTES {
        return check(&CallerView::new(&gateway.context, caller), body, priority);
    }
    let (context, caller) = (Arc::clone(&gateway.context), caller.clone());
    let body = body.clone();
    blocking(move || check(&CallerView::new(&context, &caller), &body, priority)).await
}

/// Reads a whole list; only a few lists are read at a time.
async fn survey_in_turn<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    caller: &Caller,
    upload: impl FnOnce() -> Result<Upload, Refusal> + Send + 'static,
    wishes: &SubmitOptions,
) -> Result<(Upload, Checked), Refusal> {
    let _turn = gateway.shares.survey(caller).await;
    let (context, priority) = (Arc::clone(&gateway.context), wishes.priority);
    let caller = caller.clone();
    blocking(move || {
        let upload = upload()?;
        let checked = survey(&CallerView::new(&context, &caller), &upload, priority)?;
        Ok((upload, checked))
    })
    .await
}

async fn receive_list<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    caller: &Caller,
    listing: Listing,
    head: &request::Parts,
    body: Body,
    wishes: &SubmitOptions,
) -> Result<Received, Refusal> {
    let bad = |problem| Refusal::BadJob(vec![problem]);
    let spec_of = |field: &str, text: &[u8]| -> Result<(JobId, Spec), Refusal> {
        let spec = Spec::read(field, text, wishes.key.as_deref()).map_err(bad)?;
        let context = CallerView::new(&gateway.context, caller);
        let tried = try_out(&context, &spec, wishes.priority)?;
        // Checked before a list is taken in that may not be sent to.
        gateway.admit(caller, &tried.job.asked.app)?;
        keeps_rules(&*gateway.context, &tried.job.asked)?;
        Ok((tried.job.id, spec))
    };
    let (folder, most) = (&*gateway.upload_dir, gateway.upload_bytes_max);
    match listing {
        Listing::Body(format) => {
            let list = wishes.list(format)?;
            let Some(value) = head.headers.get(spec::HEADER) else {
                let what = "missing; the job without its audience is expected there, as JSON or \
                            base64 of it, or use multipart/form-data";
                return Err(bad(Problem::new(spec::HEADER, what)));
            };
            let spec = spec::of_header(value.as_bytes()).map_err(bad)?;
            let (job, spec) = spec_of(spec::HEADER, &spec)?;
            let chunks = body.into_data_stream();
            let chunks = chunks.map(|chunk| chunk.map_err(|error| unreadable(&error)));
            let file = spool(folder, most, chunks).await?;
            Ok(Received {
                job,
                spec,
                list,
                file,
            })
        }
        Listing::Form { boundary } => {
            let mut form = Form::new(body, boundary);
            let mut job = part(&mut form, "job").await?;
            let mut text = Vec::new();
            while let Some(chunk) = job.chunk().await? {
                // Keep one byte too many, so that the reader refuses the job.
                let room = (SPEC_BYTES_MAX + 1).saturating_sub(text.len());
                text.extend_from_slice(&chunk[..chunk.len().min(room)]);
            }
            drop(job);
            let (job, spec) = spec_of("job", &text)?;
            let audience = part(&mut form, "audience").await?;
            let list = wishes.list(format_of_part(&audience.field)?)?;
            let file = spool(folder, most, audience.chunks()).await?;
            if form.next().await?.is_some() {
                let what = "nothing may follow the part `audience`";
                return Err(bad(Problem::new("audience", what)));
            }
            Ok(Received {
                job,
                spec,
                list,
                file,
            })
        }
    }
}

/// The next part of a form, which must have this name.
async fn part(form: &mut Form, name: &'static str) -> Result<form::Part, Refusal> {
    let part = form.next().await?;
    let found = part.as_ref().and_then(|part| part.field.name());
    let found = found.map(str::to_owned);
    match part {
        Some(part) if found.as_deref() == Some(name) => Ok(part),
        _ => {
            let what = format!(
                "missing; a form has the part `job`, a JSON object, and then the part `audience`, a \
                 file; found {}",
                found.map_or_else(|| "no part".to_owned(), |name| format!("{name:?}"))
            );
            Err(Refusal::BadJob(vec![Problem::new(name, what)]))
        }
    }
}

/// The format of the list: by the name of its file, or else by its content type.
fn format_of_part(field: &Field<'_>) -> Result<Format, Refusal> {
    let by_type = field
        .content_type()
        .and_then(|kind| list_format(kind.essence_str()));
    let name = field.file_name().unwrap_or_default().to_ascii_lowercase();
    let by_name = match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("csv") => Some(Format::Csv),
        Some("ndjson" | "jsonl") => Some(Format::Ndjson),
        Some("txt") => Some(Format::Lines),
        _ => None,
    };
    // Clients only guess the content type of files that they do not know, so the name counts first.
    by_name.or(by_type).ok_or_else(|| {
        let what = "the format is not known: name the file .ndjson, .csv or .txt, or give its \
                    content type";
        Refusal::BadJob(vec![Problem::new("audience", what)])
    })
}

/// Runs work that computes for long, or blocks, on a thread where it may.
async fn blocking<V: Send + 'static>(
    work: impl FnOnce() -> Result<V, Refusal> + Send + 'static,
) -> Result<V, Refusal> {
    let worked = tokio::task::spawn_blocking(work).await;
    worked.map_err(|_| Refusal::Unavailable("the job could not be read".to_owned()))?
}

/// Reads one message as the worker will.
fn check<S: Store, T: Transport>(
    context: &CallerView<'_, S, T>,
    body: &[u8],
    priority: Option<Priority>,
) -> Result<Checked, Refusal> {
    let job = examine(context, body, priority)?;
    Ok(Checked {
        submissions: vec![job.submission.clone()],
        job,
        parts: None,
    })
}

/// Reads a job whose list is still to come, with a made-up recipient. It is not known yet whether
/// the list has values for placeholders, so this tries both.
fn try_out<S: Store, T: Transport>(
    context: &CallerView<'_, S, T>,
    spec: &Spec,
    priority: Option<Priority>,
) -> Result<Checked, Refusal> {
    let values = crate::json::raw(&serde_json::Map::new());
    try_with(context, spec, priority, None)
        .or_else(|refusal| try_with(context, spec, priority, Some(&values)).map_err(|_| refusal))
}

fn try_with<S: Store, T: Transport>(
    context: &CallerView<'_, S, T>,
    spec: &Spec,
    priority: Option<Priority>,
    vars: Option<&RawValue>,
) -> Result<Checked, Refusal> {
    let mut message = spec.open();
    let somebody = Member {
        id: "somebody".into(),
        vars,
    };
    if !message.push(&somebody) {
        let what = "the job leaves no room for recipients";
        return Err(Refusal::BadJob(vec![Problem::new("", what)]));
    }
    // A part of several may be empty, in case the made-up recipient is excluded.
    let part = ListPart {
        number: 1,
        of: 2,
        together: None,
    };
    check(context, &message.close(&part), priority)
}

/// Reads a whole list, and sums up its parts.
fn survey<S: Store, T: Transport>(
    context: &CallerView<'_, S, T>,
    upload: &Upload,
    priority: Option<Priority>,
) -> Result<Checked, Refusal> {
    let mut first: Option<Checked> = None;
    let mut recipients = 0;
    let mut lists = Vec::new();
    let mut vars = Vars::default();
    let (parts, submissions) = upload.survey(|message| {
        let mut checked = check(context, message, priority)?;
        recipients += checked.job.recipients;
        lists.append(&mut checked.job.asked.lists);
        vars.append(&checked.job.vars);
        let submission = checked.submissions.pop().unwrap_or_default();
        // If one recipient has values, all messages of the same part are personal.
        if let Some(first) = &first
            && first.job.personal != checked.job.personal
        {
            let what = "some recipients have `vars` and others have none; give them to all, an empty object \
                        if need be";
            return Err(Refusal::BadJob(vec![Problem::new("audience", what)]));
        }
        first.get_or_insert(checked);
        Ok(submission)
    })?;
    if recipients == 0 {
        let what = "every recipient on the list is excluded; no recipient would get the message";
        return Err(Refusal::BadJob(vec![Problem::new("audience", what)]));
    }
    let first = first.ok_or_else(|| Refusal::BadJob(Vec::new()))?;
    let asked = Asked {
        lists,
        ..first.job.asked
    };
    Ok(Checked {
        job: Examined {
            asked,
            recipients,
            vars,
            ..first.job
        },
        submissions,
        parts: Some(parts),
    })
}

impl<B: Broker, S: Store, T: Transport> Gateway<B, S, T> {
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

    /// Waits until an accepted job is completed; returns what is known of it when the time is over.
    async fn settled(&self, job: &Checked, wait: Duration) -> Result<Option<JobRecord>, Refusal> {
        let deadline = Instant::now() + wait;
        let (mut pause, pause_max) = LOOK_AFTER;
        let mut seen = None;
        loop {
            // An error does not matter: the job is accepted.
            if let Ok(Some(record)) = self.look(job.job.id).await {
                if conflicts(&record, &job.job.content_digest) {
                    return Err(Refusal::Conflict(job.job.id));
                }
                if record.state == JobState::Completed && self.knows(job).await.unwrap_or(false) {
                    return Ok(Some(record));
                }
                seen = Some(record);
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
            warnings: job.warnings,
            preview: self.preview,
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
        let of = |query: &str| SubmitOptions::of(&query.parse().unwrap(), &HeaderMap::new());
        assert!(of("/?dry_run=true&priority=bulk").unwrap().dry_run);
        assert!(of("/?dry-run=true").is_err());
        assert!(of("/?priority=urgent").is_err());
        assert!(of("/?dry_run=yes").is_err());
    }
}
