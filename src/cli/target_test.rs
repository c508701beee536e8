//! `fanwise target test`: sends one message to one user, and shows the request and the answer.
//!
//! It calls the target itself, as a worker does, and writes no accounts.

use std::time::Instant;

use clap::Args;
use http::HeaderMap;
use serde_json::{Value, json};

use super::access::known;
use super::at::At;
use super::output;
use crate::app::{self, Names};
use crate::clock::{now, now_ms};
use crate::domain::fields::{shorten, summary};
use crate::domain::job::Job;
use crate::domain::outcome::{Class, TargetAnswer};
use crate::exit::{Exit, Failure};
use crate::http::client::{Client, ClientSettings};
use crate::ports::{HttpReply, Request, Signing, Target, fit};
use crate::secret::without_credentials;

/// Longest part of a body that is shown.
const BODY_SHOWN: usize = 4096;

/// Headers whose values are no secrets; all others are hidden.
const SHOWN: [&str; 9] = [
    "content-type",
    "content-length",
    "accept",
    "date",
    "server",
    "idempotency-key",
    "operationid",
    "retry-after",
    "webhook-id",
];

#[derive(Debug, Args)]
pub(super) struct TestArgs {
    /// Name of the target in the configuration
    target: String,
    /// User who gets the message
    #[arg(long, value_name = "USER")]
    to: String,
    /// Text of the message
    #[arg(long, default_value = "A test message of Fanwise")]
    text: String,
    /// Sender of the message [default: the target's default sender]
    #[arg(long)]
    sender: Option<String>,
    /// Print one JSON object
    #[arg(short, long)]
    json: bool,
}

pub(super) async fn run(args: TestArgs, at: At) -> Result<Exit, Failure> {
    let config = at.only_here(
        "`fanwise target test` calls the target itself, with the settings of this machine",
    )?;
    let names = Names::of(&config)?;
    let targets = config.targets.keys().map(String::as_str);
    known("target", &args.target, targets)?;
    let app = config.apps.keys().next().cloned().unwrap_or_default();
    let body = document(&args, &app).to_string();
    let job = Job::parse(body.as_bytes(), None, &names, now())
        .map_err(|problems| Failure::message(Exit::BadInput, summary(&problems)))?;
    let target = app::target(&config, &args.target)?;
    let fit = fit(&*target, &job.head, false, job.strictness);
    if !fit.problems.is_empty() {
        return Err(Failure::message(Exit::BadInput, summary(&fit.problems)));
    }
    let timeout = config.targets[&args.target].call_timeout;
    let client = Client::new(ClientSettings {
        tls_of: app::own_tls(&config),
        ..ClientSettings::defaults()
    });
    let head = std::sync::Arc::new(job.head.clone());
    let calls = target.open(&head);
    let to = [args.to.as_str()];
    let request = signed(&*target, &client, calls.request(&to), timeout).await;
    let (request, reply, took) = match request {
        Err(refused) => return told(&args, None, None, &refused),
        Ok(request) => {
            let started = Instant::now();
            let reply = client.send(request.clone(), timeout).await;
            (request, reply, started.elapsed())
        }
    };
    let answer = match &reply {
        Ok(reply) => calls.read_reply(&to, reply).of(0).clone(),
        Err(error) => error.into(),
    };
    let reply = reply.ok().map(|reply| (reply, took.as_millis()));
    told(&args, Some(&request), reply.as_ref(), &answer)
}

fn document(args: &TestArgs, app: &str) -> Value {
    let mut document = json!({
        "v": 1,
        "app": app,
        "target": args.target,
        "client_msg_no": format!("fanwise-target-test-{}", now_ms()),
        "message": {"type": "text", "text": args.text, "literal": true},
        "audience": {"users": [args.to]},
    });
    if let Some(sender) = &args.sender {
        document["sender"] = sender.clone().into();
    }
    document
}

/// The request with the credential that it needs, signed.
async fn signed(
    target: &dyn Target,
    client: &Client,
    mut request: Request,
    timeout: std::time::Duration,
) -> Result<Request, TargetAnswer> {
    if let Some(login) = target.login() {
        let reply = client.send(login.request(), timeout).await;
        let credential =
            login.read_credential(&reply.map_err(|error| TargetAnswer::from(&error))?)?;
        login.apply(&mut request, credential.secret.expose());
    }
    let signing = Signing {
        now_ms: now_ms(),
        nonce: fastrand::u128(..),
    };
    target.sign(&mut request, signing);
    Ok(request)
}

fn headers(headers: &HeaderMap) -> impl Iterator<Item = (String, String)> {
    headers.iter().map(|(name, value)| {
        let value = match SHOWN.contains(&name.as_str()) {
            true => String::from_utf8_lossy(value.as_bytes()).into_owned(),
            false => "(hidden)".to_owned(),
        };
        (name.to_string(), value)
    })
}

fn body(bytes: &[u8]) -> String {
    shorten(&String::from_utf8_lossy(bytes), BODY_SHOWN).into_owned()
}

fn told(
    args: &TestArgs,
    request: Option<&Request>,
    reply: Option<&(HttpReply, u128)>,
    answer: &TargetAnswer,
) -> Result<Exit, Failure> {
    let exit = match answer.class {
        Class::Done => Exit::Ok,
        _ => Exit::NotAll,
    };
    if args.json {
        let map = |it: &HeaderMap| headers(it).collect::<std::collections::BTreeMap<_, _>>();
        output::json(&json!({
            "sent": exit == Exit::Ok,
            "request": request.map(|it| json!({
                "method": it.method.as_str(), "url": without_credentials(&it.uri.to_string()),
                "headers": map(&it.headers), "body": body(&it.body),
            })),
            "reply": reply.map(|(it, ms)| json!({
                "status": it.status, "headers": map(&it.headers), "body": body(&it.body),
                "milliseconds": ms,
            })),
            "class": answer.class.as_str(), "code": answer.code, "text": answer.text,
        }))?;
        return Ok(exit);
    }
    if let Some(request) = request {
        let url = without_credentials(&request.uri.to_string());
        output::line(format!("{} {url}", request.method))?;
        for (name, value) in headers(&request.headers) {
            output::line(format!("{name}: {value}"))?;
        }
        output::line(format!("\n{}\n", body(&request.body)))?;
    }
    if let Some((reply, ms)) = reply {
        output::line(format!("{} after {ms} ms", reply.status))?;
        for (name, value) in headers(&reply.headers) {
            output::line(format!("{name}: {value}"))?;
        }
        output::line(format!("\n{}\n", body(&reply.body)))?;
    }
    let verdict = match exit {
        Exit::Ok => format!("{} got the message", args.to),
        _ => format!(
            "{} did not get the message, or may not have got it: {} {} {}",
            args.to,
            answer.class.as_str(),
            answer.code,
            answer.text
        ),
    };
    output::line(verdict.trim_end())?;
    Ok(exit)
}
