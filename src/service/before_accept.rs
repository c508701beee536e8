//! `[apps.NAME.before_accept]`: an operator's endpoint that decides about each job before it is
//! accepted.
//!
//! The endpoint allows the job, refuses it, or changes its message and options, and nothing else.
//! The request does not contain the list. It contains everything that is rendered: the message as
//! it was written, the stored message that it names, and the different values of the recipients, up
//! to a bound. The job is sent with the version of the stored message that the request contained.
//!
//! The request is signed like those of a webhook target. Its idempotency key is the same for the
//! same job and message, so an endpoint can give a repeat the same answer. If it changes a repeated
//! job differently, the repeat is a conflict.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use fanwise_client::webhook::Signer;
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::clock::now_ms;
use crate::domain::fields::shorten;
use crate::domain::ids::{JobId, digest_hex};
use crate::domain::job::Job;
use crate::domain::permissions::{Asked, AudienceKind};
use crate::domain::template::named_version;
use crate::domain::text;
use crate::error::chain;
use crate::im::webhook::IDEMPOTENCY_KEY;
use crate::ports::{Request, Transport};

/// The endpoint to ask, and what happens without an answer.
#[derive(Clone, Debug)]
pub struct BeforeAccept {
    pub url: Uri,
    /// Without one, the requests are not signed.
    pub signer: Option<Signer>,
    pub timeout: Duration,
    /// Without an answer, jobs are allowed; otherwise they are refused.
    pub allow_on_failure: bool,
}

/// The body of the request.
#[derive(Serialize)]
struct Question<'a> {
    job: JobId,
    app: &'a str,
    client_msg_no: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender: Option<&'a str>,
    target: &'a str,
    audience: AudienceKind,
    /// List entries; null for an audience of all users.
    recipients: Option<u64>,
    message: Option<&'a RawValue>,
    /// The stored message that `message` names.
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<&'a RawValue>,
    /// The `vars` of the recipients, each different value once.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    vars: &'a [Box<RawValue>],
    /// Recipients whose `vars` are not included, because they exceed the bound.
    #[serde(skip_serializing_if = "crate::json::is_zero")]
    vars_left_out: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<&'a RawValue>,
}

/// The most bytes of `vars` in one request.
const VARS_BYTES_MAX: usize = 64 * 1024;

/// The different values of the recipients, up to the bound.
#[derive(Debug, Default)]
pub struct Vars {
    shown: Vec<Box<RawValue>>,
    /// The same values, for look-ups.
    known: HashSet<Box<str>>,
    bytes: usize,
    left_out: u64,
}

impl Vars {
    pub(super) fn of(job: &Job<'_>) -> Self {
        let mut vars = Self::default();
        if job.head.vars.is_some() {
            job.for_each_recipient(|recipient| vars.push(recipient.vars));
        }
        vars
    }

    fn push(&mut self, vars: Option<&RawValue>) {
        let Some(vars) = vars else { return };
        if self.known.contains(vars.get()) {
            return;
        }
        if self.bytes + vars.get().len() > VARS_BYTES_MAX {
            self.left_out += 1;
            return;
        }
        self.bytes += vars.get().len();
        self.known.insert(vars.get().into());
        self.shown.push(vars.to_owned());
    }

    /// Adds the values of a further part of the list.
    pub fn append(&mut self, part: &Self) {
        part.shown.iter().for_each(|vars| self.push(Some(vars)));
        self.left_out += part.left_out;
    }
}

/// A stored message that the endpoint was shown.
pub(super) struct Seen {
    pub(super) name: String,
    /// Its name with its version.
    pub(super) reference: String,
    pub(super) message: Box<RawValue>,
}

/// The body of the answer.
#[derive(Deserialize)]
struct BeforeAcceptAnswer {
    decision: Word,
    #[serde(default)]
    code: String,
    #[serde(default)]
    text: String,
    message: Option<Box<RawValue>>,
    options: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Allow,
    Deny,
    Change,
}

#[derive(Debug)]
pub(super) enum Decision {
    Allow,
    Deny {
        code: String,
        text: String,
    },
    Change {
        message: Option<Box<RawValue>>,
        options: Option<Box<RawValue>>,
    },
}

/// Why there is no decision.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoDecision(String);

impl BeforeAccept {
    /// Asks about a job. `document` is the job as JSON; only the `vars` of its audience are passed
    /// on. `stored` is the stored message that it names.
    pub(super) async fn ask(
        &self,
        transport: &impl Transport,
        asked: &Asked,
        document: &[u8],
        stored: Option<&RawValue>,
        vars: &Vars,
    ) -> Result<Decision, NoDecision> {
        let request = self.request(asked, document, stored, vars)?;
        let reply = transport.send(request, self.timeout).await;
        let reply = reply.map_err(|error| NoDecision(chain(&error)))?;
        parse_decision(reply.status, &reply.body)
    }

    fn request(
        &self,
        asked: &Asked,
        document: &[u8],
        stored: Option<&RawValue>,
        vars: &Vars,
    ) -> Result<Request, NoDecision> {
        let members = members(document)?;
        let question = Question {
            job: asked.job,
            app: &asked.app,
            client_msg_no: &asked.client_msg_no,
            sender: asked.sender.as_deref(),
            target: &asked.target,
            audience: asked.crowd,
            recipients: (asked.crowd != AudienceKind::All).then(|| asked.recipients()),
            message: members.get("message").copied(),
            stored,
            vars: &vars.shown,
            vars_left_out: vars.left_out,
            options: members.get("options").copied(),
        };
        let body = crate::json::bytes(&question);
        let key = format!("{}-{}", asked.job, digest_hex(&[&body], 16));
        let mut headers = HeaderMap::new();
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        let key = HeaderValue::try_from(key).map_err(|error| NoDecision(error.to_string()))?;
        if let Some(signer) = &self.signer {
            signer.sign(&mut headers, &key, now_ms(), &body);
        }
        headers.insert(IDEMPOTENCY_KEY, key);
        Ok(Request {
            method: Method::POST,
            uri: self.url.clone(),
            headers,
            body: body.into(),
        })
    }
}

fn parse_decision(status: u16, body: &[u8]) -> Result<Decision, NoDecision> {
    if status != 200 {
        return Err(NoDecision(format!("it answered with status {status}")));
    }
    let answer: BeforeAcceptAnswer = serde_json::from_slice(body).map_err(|error| {
        let text = String::from_utf8_lossy(body);
        let text = shorten(&text, 200);
        NoDecision(format!("it answered {text}, not a decision: {error}"))
    })?;
    Ok(match answer.decision {
        Word::Allow => Decision::Allow,
        Word::Deny => Decision::Deny {
            code: answer.code,
            text: answer.text,
        },
        Word::Change => Decision::Change {
            message: answer.message,
            options: answer.options,
        },
    })
}

type Members<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// The fields of a job, each as it was written.
pub(super) fn members(document: &[u8]) -> Result<Members<'_>, NoDecision> {
    let document = text::decode(document).map_err(NoDecision)?;
    serde_json::from_str(document).map_err(|error| NoDecision(error.to_string()))
}

/// The name of the stored message in a job, if it has one.
pub(super) fn names_stored(document: &[u8]) -> Option<String> {
    // A document that is not a job is refused by its reader.
    template_of(members(document).ok()?.get("message")?)
}

fn template_of(message: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Message {
        template: Option<String>,
    }
    let message: Message = serde_json::from_str(message.get()).ok()?;
    message.template
}

/// The job with another message or other options; everything else stays.
pub(super) fn changed(
    document: &[u8],
    message: Option<&RawValue>,
    options: Option<&RawValue>,
) -> Result<Bytes, NoDecision> {
    let mut members = members(document)?;
    for (name, value) in [("message", message), ("options", options)] {
        if let Some(value) = value {
            members.insert(Cow::Borrowed(name), value);
        }
    }
    Ok(crate::json::bytes(&members).into())
}

/// A message that names the stored message in the version that was shown. `None` if it does not
/// name it.
pub(super) fn pinned(
    message: Option<&RawValue>,
    seen: &Seen,
) -> Result<Option<Box<RawValue>>, NoDecision> {
    let Some(message) = message else {
        return Ok(None);
    };
    let names_it = template_of(message).is_some_and(|it| named_version(&it).0 == seen.name);
    if !names_it {
        return Ok(None);
    }
    let mut members = members(message.get().as_bytes())?;
    let reference = crate::json::raw(&seen.reference);
    members.insert(Cow::Borrowed("template"), &reference);
    Ok(Some(crate::json::raw(&members)))
}

#[cfg(test)]
mod tests {
    use ring::hmac;

    use super::*;
    use fanwise_client::webhook::Scheme;

    fn asked() -> Asked {
        Asked {
            job: JobId::of("shop", "promo"),
            app: "shop".to_owned(),
            client_msg_no: "promo".to_owned(),
            sender: None,
            target: "im".to_owned(),
            fallback: None,
            crowd: AudienceKind::Users,
            lists: vec![("a".to_owned(), 3)],
        }
    }

    const JOB: &str = r#"{"v":1,"client_msg_no":"promo","audience":{"users":["a","b","c"]},"message":{"text": "hi"},"x":1.0}"#;

    #[test]
    fn the_question_is_signed_and_holds_no_list() {
        let signer = Signer::new("key", Scheme::Fanwise).unwrap();
        let ask = BeforeAccept {
            url: Uri::from_static("http://moderation.example/ask"),
            signer: Some(signer),
            timeout: Duration::from_secs(2),
            allow_on_failure: false,
        };
        let request = ask
            .request(&asked(), JOB.as_bytes(), None, &Vars::default())
            .unwrap();
        let job = JobId::of("shop", "promo");
        let body = str::from_utf8(&request.body).unwrap();
        assert_eq!(
            body,
            format!(
                r#"{{"job":"{job}","app":"shop","client_msg_no":"promo","target":"im","audience":"users","recipients":3,"message":{{"text": "hi"}}}}"#
            )
        );
        let key = &request.headers["idempotency-key"];
        let expected = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, b"key"),
            &[key.as_bytes(), b".", body.as_bytes()].concat(),
        );
        let hex: String = expected
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(request.headers["fanwise-signature"], format!("v1={hex}"));
        // The same request has the same key.
        let again = ask
            .request(&asked(), JOB.as_bytes(), None, &Vars::default())
            .unwrap();
        assert_eq!(again.headers["idempotency-key"], key);
    }

    #[test]
    fn a_stored_message_is_named_by_its_job() {
        let named =
            r#"{"message":{"template":"welcome","vars":{"a":1}},"audience":{"users":["a"]}}"#;
        assert_eq!(names_stored(named.as_bytes()).as_deref(), Some("welcome"));
        for other in [JOB, "{}", "[]", r#"{"message":{"template":null}}"#] {
            assert_eq!(names_stored(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn what_was_seen_is_what_goes_out() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        let seen = Seen {
            name: "welcome".to_owned(),
            reference: "welcome@3".to_owned(),
            message: raw("{}"),
        };
        for (message, expected) in [
            (
                r#"{"template":"welcome","vars":{"n": 1}}"#,
                Some(r#"{"template":"welcome@3","vars":{"n": 1}}"#),
            ),
            (
                r#"{"template":"welcome@1"}"#,
                Some(r#"{"template":"welcome@3"}"#),
            ),
            (r#"{"template":"other"}"#, None),
            (r#"{"type":"text","text":"hi"}"#, None),
        ] {
            let pinned = pinned(Some(&raw(message)), &seen).unwrap();
            assert_eq!(pinned.as_deref().map(RawValue::get), expected, "{message}");
        }
        assert!(pinned(None, &seen).unwrap().is_none());
    }

    #[test]
    fn each_value_is_shown_once_and_the_rest_is_counted() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        let mut vars = Vars::default();
        for json in [r#"{"a":1}"#, r#"{"a":2}"#, r#"{"a":1}"#] {
            vars.push(Some(&raw(json)));
        }
        vars.push(None);
        let long = |byte: &str| raw(&format!("[{:?}]", byte.repeat(VARS_BYTES_MAX / 2)));
        for byte in ["x", "y", "x", "y"] {
            vars.push(Some(&long(byte)));
        }
        let mut whole = Vars::default();
        whole.push(Some(&raw(r#"{"a":2}"#)));
        whole.append(&vars);
        assert_eq!((whole.shown.len(), whole.left_out), (3, 2));
        assert!(whole.bytes <= VARS_BYTES_MAX);
    }

    #[test]
    fn only_message_and_options_change() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        let message = raw(r#"{"text":"***"}"#);
        let options = raw(r#"{"push":false}"#);
        let changed = changed(JOB.as_bytes(), Some(&message), Some(&options)).unwrap();
        assert_eq!(
            changed,
            r#"{"audience":{"users":["a","b","c"]},"client_msg_no":"promo","message":{"text":"***"},"options":{"push":false},"v":1,"x":1.0}"#
        );
    }

    #[test]
    fn what_is_no_decision_is_none() {
        assert!(matches!(
            parse_decision(200, br#"{"decision":"allow"}"#),
            Ok(Decision::Allow)
        ));
        let denied = parse_decision(200, br#"{"decision":"deny","code":"spam"}"#).unwrap();
        assert!(
            matches!(denied, Decision::Deny { code, text } if code == "spam" && text.is_empty())
        );
        let change = parse_decision(200, br#"{"decision":"change","message":{"a": 1}}"#).unwrap();
        let Decision::Change { message, options } = change else {
            panic!("{change:?}");
        };
        assert_eq!(message.unwrap().get(), r#"{"a": 1}"#);
        assert!(options.is_none());
        for (status, body) in [
            (500, r#"{"decision":"allow"}"#),
            (204, ""),
            (200, "ok"),
            (200, r#"{"decision":"maybe"}"#),
            (200, "{}"),
        ] {
            assert!(
                parse_decision(status, body.as_bytes()).is_err(),
                "{status} {body}"
            );
        }
    }
}
