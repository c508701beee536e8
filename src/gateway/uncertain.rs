//! Resolves uncertain recipients of a job: `POST /v1/jobs/{job}/uncertain:resolve`.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};

use super::Gateway;
use super::asker::Asker;
use super::body::Held;
use super::params::Params;
use super::problem::Refusal;
use super::query::find;
use crate::clock::now_ms;
use crate::domain::fields::{Fields, Problem};
use crate::ports::{Broker, RetainedQueues, Store, Transport};
use crate::service::api::ResolveRequest;
use crate::service::control::{self, DirectiveNote};
use crate::service::dead_letters::{self, Resolved};

/// The most recipients of one request.
const RECIPIENTS_MAX: usize = 20_000;

pub(super) async fn resolve<B: Broker + RetainedQueues, S: Store, T: Transport>(
    State(gateway): State<Arc<Gateway<B, S, T>>>,
    Path(job): Path<String>,
    asker: Asker,
    params: Params,
    body: Held,
) -> Result<Json<Resolved>, Refusal> {
    let record = find(&gateway, &job, params).await?;
    let request = parse(&body.bytes).map_err(Refusal::BadRequest)?;
    let publisher = gateway.open()?.publisher;
    let secret = &gateway.context.settings.fingerprint_secret;
    let resolved = dead_letters::resolve(
        &gateway.broker,
        &publisher,
        &*gateway,
        secret,
        &record,
        request.to,
        request.recipients,
    );
    let resolved = Box::pin(resolved).await?;
    let note = DirectiveNote {
        reason: request.reason,
        author: request.author,
        expires_in: None,
        origin: asker.origin,
    };
    let store = &gateway.context.store;
    control::note_resolved(store, &record, request.to, &resolved, &note, now_ms()).await?;
    Ok(Json(resolved))
}

fn parse(body: &[u8]) -> Result<ResolveRequest, Vec<Problem>> {
    let mut problems = Vec::new();
    let text = std::str::from_utf8(body)
        .map_err(|error| vec![Problem::new("", format!("not UTF-8: {error}"))])?;
    let Some(mut fields) = Fields::open("", text, &mut problems) else {
        return Err(problems);
    };
    let to = fields.get("to", "one of sent, failed, resend", &mut problems);
    let recipients: Option<BTreeSet<String>> =
        fields.get("recipients", "an array of texts", &mut problems);
    let all = fields.get("all", "true or false", &mut problems);
    let reason = fields.get("reason", "a text", &mut problems);
    let author = fields.get("author", "a text", &mut problems);
    fields.finish(&mut problems);
    if to.is_none() && problems.is_empty() {
        fields_missing(&mut problems);
    }
    match &recipients {
        Some(named) if named.len() > RECIPIENTS_MAX => {
            let what = format!("{}; at most {RECIPIENTS_MAX} are taken", named.len());
            problems.push(Problem::new("recipients", what));
        }
        None if all != Some(true) => {
            let what = "missing; name them, or say `\"all\": true`";
            problems.push(Problem::new("recipients", what));
        }
        _ => {}
    }
    match to {
        Some(to) if problems.is_empty() => Ok(ResolveRequest {
            to,
            recipients,
            all: all.unwrap_or(false),
            reason,
            author,
        }),
        _ => Err(problems),
    }
}

fn fields_missing(problems: &mut Vec<Problem>) {
    let what = "missing; one of sent, failed, resend is expected";
    problems.push(Problem::new("to", what));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::dead_letters::ResolveAs;

    #[test]
    fn a_request_names_recipients_or_says_all() {
        let request = parse(br#"{"to":"sent","recipients":["a"]}"#).unwrap();
        assert_eq!(request.to, ResolveAs::Sent);
        assert!(parse(br#"{"to":"resend","all":true,"reason":"r"}"#).is_ok());
        for (body, field) in [
            (&br#"{"to":"sent"}"#[..], "recipients"),
            (br#"{"to":"sent","all":false}"#, "recipients"),
            (br#"{"all":true}"#, "to"),
            (br#"{"to":"lost","all":true}"#, "to"),
            (b"", ""),
        ] {
            let problems = parse(body).unwrap_err();
            assert_eq!(problems[0].field, field, "{problems:?}");
        }
    }
}
