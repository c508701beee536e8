//! A job as its producer sent it, before it is published: one message, or a job and its list.
//! Receives it by its content type, and checks all of it as the intake will.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header, request};
use bytes::Bytes;
use futures_util::StreamExt as _;
use multer::Field;
use serde_json::value::RawValue;

use super::{BODY_BYTES_MAX, SubmitOptions};
use crate::domain::audience::Member;
use crate::domain::fields::Problem;
use crate::domain::ids::JobId;
use crate::domain::job::ListPart;
use crate::domain::lane::Priority;
use crate::domain::list::Format;
use crate::domain::permissions::Asked;
use crate::gateway::Gateway;
use crate::gateway::access::Caller;
use crate::gateway::body::{self, Held, unreadable};
use crate::gateway::caller_view::CallerView;
use crate::gateway::form::{self, Form};
use crate::gateway::problem::Refusal;
use crate::gateway::spec::{self, SPEC_BYTES_MAX, Spec};
use crate::gateway::spool::spool;
use crate::gateway::upload::{Parts, Received, Upload};
use crate::ports::{Broker, Store, Transport};
use crate::service::admission::{Examined, allow, examine, keeps_rules};
use crate::service::{PREVIEWS, Vars};

/// The advice for a job that is too large.
const UPLOAD: &str = "a longer list is uploaded as application/x-ndjson, text/csv or text/plain";

/// Bodies up to this size are read on the thread where they arrive; larger ones on a thread that
/// may block.
const SMALL_BODY_BYTES: usize = 32 * 1024;

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
pub(super) enum Draft {
    One(Held),
    /// With the fields that it lacked, or as `before_accept` changed it.
    Changed(Bytes),
    List(Box<Upload>),
}

/// What the check of a job found, if it may be accepted.
pub(super) struct Checked {
    pub(super) job: Examined,
    pub(super) submissions: Vec<String>,
    /// Set for an uploaded list.
    pub(super) parts: Option<Parts>,
}

impl Draft {
    /// A job for the first recipients.
    pub(super) fn first(&self) -> Result<Bytes, Refusal> {
        match self {
            Self::One(held) => Ok(held.bytes.clone()),
            Self::Changed(bytes) => Ok(bytes.clone()),
            Self::List(upload) => tokio::task::block_in_place(|| upload.first_message(PREVIEWS)),
        }
    }

    /// Passes on each message of the job.
    pub(super) fn for_each(
        &self,
        parts: Option<&Parts>,
        mut each: impl FnMut(&[u8]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        match (self, parts) {
            (Self::One(held), _) => each(&held.bytes),
            (Self::Changed(bytes), _) => each(bytes),
            (Self::List(upload), Some(parts)) => upload.for_each_message(parts, |it| each(&it)),
            (Self::List(_), None) => Ok(()),
        }
    }

    pub(super) async fn receive<B: Broker, S: Store, T: Transport>(
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
                if spec::names_a_list(&held.bytes) {
                    let _place = gateway.shares.upload(caller)?;
                    let list = fetch_list(gateway, caller, held, wishes).await?;
                    return Self::of_list(gateway, caller, list, wishes).await;
                }
                let completed = spec::complete(&held.bytes, &wishes.given());
                let bytes = completed.clone().unwrap_or_else(|| held.bytes.clone());
                let checked = check_message(gateway, caller, &bytes, wishes.priority).await?;
                gateway.admit(caller, &checked.job.asked.app)?;
                if let Some(change) = allow(&**gateway, &checked.job, &bytes).await? {
                    let changed = change.apply(&bytes)?;
                    let checked = check_message(gateway, caller, &changed, wishes.priority).await?;
                    return Ok((Self::Changed(changed), checked));
                }
                let draft = completed.map_or(Self::One(held), Self::Changed);
                Ok((draft, checked))
            }
            Kind::List(listing) => {
                let _place = gateway.shares.upload(caller)?;
                let list = receive_list(gateway, caller, listing, &head, body, wishes).await?;
                Self::of_list(gateway, caller, list, wishes).await
            }
        }
    }

    /// Reads and checks a list that was received.
    async fn of_list<B: Broker, S: Store, T: Transport>(
        gateway: &Arc<Gateway<B, S, T>>,
        caller: &Caller,
        list: Received,
        wishes: &SubmitOptions,
    ) -> Result<(Self, Checked), Refusal> {
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
        upload.spec =
            Spec::parse("job", &changed, &[]).map_err(|problem| Refusal::BadJob(vec![problem]))?;
        let same = move || Ok(upload);
        let (upload, checked) = survey_in_turn(gateway, caller, same, wishes).await?;
        Ok((Self::List(Box::new(upload)), checked))
    }
}

/// Reads one message; a large one on a thread that may compute for long.
async fn check_message<B: Broker, S: Store, T: Transport>(
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

/// Checks a job before its list is taken in: whether it is valid, and whether its app may send it.
/// Returns its app too.
fn check_spec<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    caller: &Caller,
    spec: &Spec,
    wishes: &SubmitOptions,
) -> Result<(JobId, String), Refusal> {
    let context = CallerView::new(&gateway.context, caller);
    let tried = try_out(&context, spec, wishes.priority)?;
    gateway.admit(caller, &tried.job.asked.app)?;
    keeps_rules(&*gateway.context, &tried.job.asked)?;
    Ok((tried.job.id, tried.job.asked.app))
}

/// Fetches the list that a job names.
async fn fetch_list<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    caller: &Caller,
    held: Held,
    wishes: &SubmitOptions,
) -> Result<Received, Refusal> {
    let (spec, reference) =
        Spec::by_reference(&held.bytes, &wishes.given()).map_err(Refusal::BadJob)?;
    // The list may take minutes; the request is no longer needed.
    drop(held);
    let (job, app) = check_spec(gateway, caller, &spec, wishes)?;
    let fetched = gateway.fetch(&app, reference).await?;
    Ok(Received {
        job,
        spec: spec.with_fetched(&fetched.version),
        list: fetched.list,
        file: fetched.file,
    })
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
        let spec = Spec::parse(field, text, &wishes.given()).map_err(bad)?;
        let (job, _) = check_spec(gateway, caller, &spec, wishes)?;
        Ok((job, spec))
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
pub(super) async fn blocking<V: Send + 'static>(
    work: impl FnOnce() -> Result<V, Refusal> + Send + 'static,
) -> Result<V, Refusal> {
    let worked = tokio::task::spawn_blocking(work).await;
    worked.map_err(|_| Refusal::Unavailable("the job could not be read".to_owned()))?
}

/// Reads one message as the worker will.
pub(super) fn check<S: Store, T: Transport>(
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
