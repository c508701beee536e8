//! Routes that control jobs, apps and targets: `POST /v1/jobs/{id}:pause`, `:resume`, `:cancel`,
//! `:rate`, `:priority`, `:schedule`, `:deadline`, `:pace`, `:repair`, `:recall`; `POST /v1/jobs:cancel` and others for
//! all jobs of an app, a target or a tag; verbs for apps and targets; and live limits.
//!
//! The body of a command may be empty, or
//! `{"reason": …, "author": …, "expires_in": "30m", "rate": …}`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};

use super::Gateway;
use super::asker::Asker;
use super::body::Held;
use super::params::NoParams;
use super::problem::Refusal;
use super::query::unknown;
use super::{recall, target_test};
use crate::clock::now_ms;
use crate::domain::directive::{Scope, Subject};
use crate::domain::fields::{Fields, Problem};
use crate::domain::ids::JobId;
use crate::domain::job_limits::LimitKind;
use crate::domain::lane::Priority;
use crate::domain::limits::Rate;
use crate::domain::schedule::parse_duration;
use crate::domain::trail::Origin;
use crate::ports::{Broker, RetainedQueues, Store, Transport};
use crate::service::control::{
    self, CONFIGURED, Command, ControlError, ControlResult, DirectiveNote, DirectiveView,
    LimitView, ManyCommand, ManyResult, Selection, TargetView, end_time, pace_time, start_time,
};

type Shared<B, S, T> = State<Arc<Gateway<B, S, T>>>;

pub(super) fn routes<B, S, T>() -> Router<Arc<Gateway<B, S, T>>>
where
    B: Broker + RetainedQueues,
    S: Store,
    T: Transport,
{
    Router::new()
        .route("/v1/jobs/{job}", post(job::<B, S, T>))
        .route("/v1/jobs:cancel", post(cancel_many::<B, S, T>))
        .route("/v1/jobs:pause", post(pause_many::<B, S, T>))
        .route("/v1/jobs:resume", post(resume_many::<B, S, T>))
        .route("/v1/jobs:priority", post(priority_many::<B, S, T>))
        .route("/v1/apps/{app}", post(app::<B, S, T>))
        .route("/v1/targets", get(targets::<B, S, T>))
        .route("/v1/targets/{target}", post(target::<B, S, T>))
        .route("/v1/limits", get(limits::<B, S, T>).put(limit::<B, S, T>))
        .route("/v1/directives", get(directives::<B, S, T>))
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Unknown(what) => Self::NotFound(what),
            ControlError::TooLate(what) => Self::TooLate(what),
            ControlError::Wrong(problem) => Self::BadRequest(vec![problem]),
            ControlError::Ledger(error) => error.into(),
        }
    }
}

const JOB_VERBS: &[&str] = &[
    "pause", "resume", "cancel", "rate", "priority", "schedule", "deadline", "pace", "repair",
    "recall",
];

async fn job<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Path(last): Path<String>,
    asker: Asker,
    _: NoParams,
    body: Held,
) -> Result<Response, Refusal> {
    let (id, verb) = verb(&last, JOB_VERBS)?;
    let id: JobId = id
        .parse()
        .map_err(|error| Refusal::NotFound(format!("{error}")))?;
    if verb == "recall" {
        let recalled = recall::recall(&gateway, id, &asker, &body.bytes).await?;
        return Ok(Json(recalled).into_response());
    }
    if let Some(app) = asker.own_app() {
        let record = gateway.context.store.job(id).await?;
        record
            .filter(|record| record.app == app)
            .ok_or_else(|| unknown(&id.to_string()))?;
    }
    let subject = Subject::new(Scope::Job, id.to_string());
    steer(&gateway, &asker, &body.bytes, |order| {
        Ok(match verb {
            "pause" => Command::Pause(subject),
            "resume" => Command::Resume(subject),
            "cancel" => Command::Cancel(id),
            "priority" => Command::Priority(id, order.priority()?),
            "schedule" => Command::Schedule(id, order.not_before()?),
            "deadline" => Command::Deadline(id, order.expires_at()?),
            "pace" => Command::Pace(id, order.pace_until()?),
            "repair" => Command::Repair(id),
            _ => Command::Rate(subject, LimitKind::Main, order.rate()?),
        })
    })
    .await
    .map(IntoResponse::into_response)
}

async fn app<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Path(last): Path<String>,
    asker: Asker,
    _: NoParams,
    body: Held,
) -> Result<Json<ControlResult>, Refusal> {
    let (name, verb) = verb(&last, &["pause", "resume"])?;
    let subject = Subject::new(Scope::App, name);
    steer(&gateway, &asker, &body.bytes, |_| {
        Ok(match verb {
            "pause" => Command::Pause(subject),
            _ => Command::Resume(subject),
        })
    })
    .await
}

async fn target<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Path(last): Path<String>,
    asker: Asker,
    _: NoParams,
    body: Held,
) -> Result<Response, Refusal> {
    let (name, verb) = verb(&last, &["park", "unpark", "pause", "resume", "test"])?;
    if verb == "test" {
        let tested = target_test::test(&gateway, name, &asker, &body.bytes).await?;
        return Ok(Json(tested).into_response());
    }
    let subject = Subject::new(Scope::Target, name);
    steer(&gateway, &asker, &body.bytes, |_| {
        Ok(match verb {
            "park" => Command::Park(subject.name),
            "unpark" => Command::Unpark(subject.name),
            "pause" => Command::Pause(subject),
            _ => Command::Resume(subject),
        })
    })
    .await
    .map(IntoResponse::into_response)
}

/// `PUT /v1/limits` names its subject in the body, and which of its limits is meant:
/// `{"scope": "app", "name": "shop", "kind": "daily", "rate": "100000/day"}`.
async fn limit<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    asker: Asker,
    _: NoParams,
    body: Held,
) -> Result<Json<ControlResult>, Refusal> {
    steer(&gateway, &asker, &body.bytes, |order| {
        let rate = order.rate()?;
        let subject = order
            .subject
            .ok_or_else(|| Problem::new("scope", "is missing, and so is name"))?;
        Ok(Command::Rate(subject, order.kind, rate))
    })
    .await
}

async fn targets<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    _: NoParams,
) -> Result<Json<Vec<TargetView>>, Refusal> {
    let store = &gateway.context.store;
    Ok(Json(
        control::targets(store, &gateway.facts, now_ms()).await?,
    ))
}

async fn limits<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    _: NoParams,
) -> Result<Json<Vec<LimitView>>, Refusal> {
    let store = &gateway.context.store;
    Ok(Json(
        control::limits(store, &gateway.facts, now_ms()).await?,
    ))
}

async fn directives<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    _: NoParams,
) -> Result<Json<Vec<DirectiveView>>, Refusal> {
    let store = &gateway.context.store;
    Ok(Json(control::directives(store, now_ms()).await?))
}

/// Reads the request in the body and carries out the command that `command` makes of it.
async fn steer<B: Broker, S: Store, T>(
    gateway: &Gateway<B, S, T>,
    asker: &Asker,
    body: &[u8],
    command: impl FnOnce(ControlRequest) -> Result<Command, Problem>,
) -> Result<Json<ControlResult>, Refusal> {
    let mut problems = Vec::new();
    let order = ControlRequest::parse(body, &mut problems);
    let note = DirectiveNote {
        origin: asker.origin.clone(),
        ..order.note.clone()
    };
    if !problems.is_empty() {
        return Err(Refusal::BadRequest(problems));
    }
    let command = command(order).map_err(|problem| Refusal::BadRequest(vec![problem]))?;
    let store = &gateway.context.store;
    let result = control::carry_out(store, &gateway.facts, &command, &note, now_ms()).await?;
    let (verb, subject) = (command.verb(), &result.subject);
    tracing::info!(
        author = note.author,
        reason = note.reason,
        "command over HTTP: {verb} {subject}"
    );
    Ok(Json(result))
}

/// The body of a command for many jobs:
/// `{"app": …, "target": …, "tag": …, "dry_run": true, "reason": …, "author": …}`.
async fn cancel_many<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    asker: Asker,
    _: NoParams,
    body: Held,
) -> Result<Json<ManyResult>, Refusal> {
    many(&gateway, &asker, &body.bytes, |_| Ok(ManyCommand::Cancel)).await
}

async fn pause_many<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    asker: Asker,
    _: NoParams,
    body: Held,
) -> Result<Json<ManyResult>, Refusal> {
    many(&gateway, &asker, &body.bytes, |_| Ok(ManyCommand::Pause)).await
}

async fn resume_many<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    asker: Asker,
    _: NoParams,
    body: Held,
) -> Result<Json<ManyResult>, Refusal> {
    many(&gateway, &asker, &body.bytes, |_| Ok(ManyCommand::Resume)).await
}

async fn priority_many<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    asker: Asker,
    _: NoParams,
    body: Held,
) -> Result<Json<ManyResult>, Refusal> {
    let command = |order: &ControlRequest| Ok(ManyCommand::Priority(order.priority()?));
    many(&gateway, &asker, &body.bytes, command).await
}

async fn many<B: Broker, S: Store, T>(
    gateway: &Gateway<B, S, T>,
    asker: &Asker,
    body: &[u8],
    command: impl FnOnce(&ControlRequest) -> Result<ManyCommand, Problem>,
) -> Result<Json<ManyResult>, Refusal> {
    let mut problems = Vec::new();
    let order = ControlRequest::parse(body, &mut problems);
    if !problems.is_empty() {
        return Err(Refusal::BadRequest(problems));
    }
    let command = command(&order).map_err(|problem| Refusal::BadRequest(vec![problem]))?;
    let mut selection = order.selection;
    if let Some(own) = asker.own_app() {
        if selection.app.as_deref().is_some_and(|app| app != own) {
            let what = format!("this token belongs to app {own:?}");
            return Err(Refusal::Forbidden(vec![Problem::new("app", what)]));
        }
        selection.app = Some(own.to_owned());
    }
    let note = DirectiveNote {
        origin: asker.origin.clone(),
        ..order.note
    };
    let (store, facts) = (&gateway.context.store, &gateway.facts);
    let dry_run = order.dry_run;
    let done = control::carry_out_many(store, facts, command, &selection, &note, dry_run, now_ms());
    let result = done.await?;
    tracing::info!(
        author = note.author,
        reason = note.reason,
        jobs = result.changed,
        dry_run,
        "command over HTTP: {} all of {selection}",
        command.verb()
    );
    Ok(Json(result))
}

/// Splits the last segment of a path into name and verb: a router matches only whole segments.
fn verb<'a>(last: &'a str, verbs: &[&str]) -> Result<(&'a str, &'a str), Refusal> {
    match last.rsplit_once(':') {
        Some((name, verb)) if verbs.contains(&verb) => Ok((name, verb)),
        _ => Err(Refusal::NotFound(format!(
            "{last:?} is not NAME:VERB; verbs are {}",
            verbs.join(", ")
        ))),
    }
}

/// The body of a command.
#[derive(Debug, Default, PartialEq)]
struct ControlRequest {
    note: DirectiveNote,
    subject: Option<Subject>,
    kind: LimitKind,
    /// The rate in the body; `Some(None)` is the configured one.
    rate: Option<Option<Rate>>,
    priority: Option<Priority>,
    not_before_ms: Option<u64>,
    /// `Some(None)` is never.
    expires_at_ms: Option<Option<u64>>,
    /// `Some(None)` is none.
    pace_until_ms: Option<Option<u64>>,
    selection: Selection,
    dry_run: bool,
}

impl ControlRequest {
    fn priority(&self) -> Result<Priority, Problem> {
        let what = "one of \"high\", \"normal\", \"bulk\" is expected";
        self.priority.ok_or_else(|| Problem::new("priority", what))
    }

    fn not_before(&self) -> Result<u64, Problem> {
        let what = "a time such as \"2026-12-24T18:00:00+08:00\", or \"now\", is expected";
        self.not_before_ms
            .ok_or_else(|| Problem::new("not_before", what))
    }

    fn expires_at(&self) -> Result<Option<u64>, Problem> {
        let what = "a time such as \"2026-12-24T18:00:00+08:00\", or \"never\", is expected";
        self.expires_at_ms
            .ok_or_else(|| Problem::new("expires_at", what))
    }

    fn pace_until(&self) -> Result<Option<u64>, Problem> {
        let what = "a time such as \"2026-12-24T18:00:00+08:00\", or \"none\", is expected";
        self.pace_until_ms
            .ok_or_else(|| Problem::new("pace_until", what))
    }

    /// The rate of a command that needs one.
    fn rate(&self) -> Result<Option<Rate>, Problem> {
        self.rate.ok_or_else(|| {
            let what = format!("a rate such as \"2000/s\", or {CONFIGURED:?}, is expected");
            Problem::new("rate", what)
        })
    }

    fn parse(body: &[u8], problems: &mut Vec<Problem>) -> Self {
        let text = match std::str::from_utf8(body) {
            Ok(text) if text.trim().is_empty() => return Self::default(),
            Ok(text) => text,
            Err(error) => {
                problems.push(Problem::new("", format!("not UTF-8: {error}")));
                return Self::default();
            }
        };
        let Some(mut fields) = Fields::open("", text, problems) else {
            return Self::default();
        };
        let note = DirectiveNote {
            reason: fields.get("reason", "a text", problems),
            author: fields.get("author", "a text", problems),
            expires_in: fields
                .get::<String>("expires_in", "a duration such as \"30m\"", problems)
                .and_then(|text| parsed(&fields, "expires_in", parse_duration(&text), problems)),
            origin: Origin::default(),
        };
        let priority = fields.get(
            "priority",
            "one of \"high\", \"normal\", \"bulk\"",
            problems,
        );
        let not_before_ms = fields
            .get::<String>("not_before", "a time, or \"now\"", problems)
            .and_then(|text| parsed(&fields, "not_before", start_time(&text, now_ms()), problems));
        let expires_at_ms = fields
            .get::<String>("expires_at", "a time, or \"never\"", problems)
            .and_then(|text| parsed(&fields, "expires_at", end_time(&text, now_ms()), problems));
        let pace_until_ms = fields
            .get::<String>("pace_until", "a time, or \"none\"", problems)
            .and_then(|text| parsed(&fields, "pace_until", pace_time(&text, now_ms()), problems));
        let selection = Selection {
            app: fields.get("app", "a text", problems),
            target: fields.get("target", "a text", problems),
            tag: fields.get("tag", "a text", problems),
        };
        let dry_run = fields.get("dry_run", "true or false", problems);
        let scope = fields.get("scope", "target, app, shared or job", problems);
        let kind = fields.get("kind", "main, daily or sender", problems);
        let name: Option<String> = fields.get("name", "a text", problems);
        let rate = fields
            .get::<String>("rate", "a rate such as \"2000/s\"", problems)
            .and_then(|text| {
                if text == CONFIGURED {
                    return Some(None);
                }
                let rate = text.parse::<Rate>().map_err(|error| error.to_string());
                parsed(&fields, "rate", rate, problems).map(Some)
            });
        if scope.is_some() != name.is_some() {
            let missing = if scope.is_some() { "name" } else { "scope" };
            fields.problem(missing, "is missing", problems);
        }
        fields.finish(problems);
        Self {
            note,
            subject: scope.zip(name).map(|(scope, name)| Subject { scope, name }),
            kind: kind.unwrap_or_default(),
            rate,
            priority,
            not_before_ms,
            expires_at_ms,
            pace_until_ms,
            selection,
            dry_run: dry_run.unwrap_or(false),
        }
    }
}

fn parsed<V>(
    fields: &Fields<'_>,
    name: &str,
    value: Result<V, String>,
    problems: &mut Vec<Problem>,
) -> Option<V> {
    value
        .map_err(|what| fields.problem(name, what, problems))
        .ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn parse(body: &str) -> (ControlRequest, Vec<String>) {
        let mut problems = Vec::new();
        let order = ControlRequest::parse(body.as_bytes(), &mut problems);
        (order, problems.iter().map(Problem::to_string).collect())
    }

    #[test]
    fn a_body_may_be_missing_and_is_read_whole_otherwise() {
        assert_eq!(parse(" "), (ControlRequest::default(), vec![]));
        let body = r#"{"scope": "app", "name": "shop", "rate": "5/s burst 2", "reason": "r",
                       "author": "ana", "expires_in": "30m"}"#;
        let order = ControlRequest {
            note: DirectiveNote {
                reason: Some("r".to_owned()),
                author: Some("ana".to_owned()),
                expires_in: Some(Duration::from_secs(1800)),
                origin: Origin::default(),
            },
            subject: Some(Subject::new(Scope::App, "shop")),
            rate: Some(Some("5/s burst 2".parse().unwrap())),
            ..ControlRequest::default()
        };
        assert_eq!(parse(body), (order, vec![]));
        assert_eq!(parse(r#"{"rate": "default"}"#).0.rate, Some(None));
    }

    #[test]
    fn every_problem_of_a_body_is_told() {
        let body = r#"{"scope": "cow", "rate": "fast", "expires_in": "soon", "resaon": "x"}"#;
        let (_, problems) = parse(body);
        let text = problems.join("\n");
        for part in [
            "scope: target, app, shared or job",
            "rate: ",
            "expires_in: ",
            "did you mean `reason`",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn the_verb_stands_after_the_last_colon() {
        let ok = verb("a:b:pause", &["pause"]).unwrap();
        assert_eq!(ok, ("a:b", "pause"));
        assert!(verb("a:b", &["pause"]).is_err());
        assert!(verb("a", &["pause"]).is_err());
    }
}
