//! Provides calls and answers for the tests of all systems.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::Value;

use super::{
    DropInEndpoint, DropInJob, DropInRequest, Incoming, Ingress, JobReport, RecipientReport, Spoken,
};
use crate::domain::fields::Problem;
use crate::domain::ids::JobId;
use crate::domain::job::{self, Context, Job, JobDocument, MemberDocument};
use crate::domain::notice::ReplyRules;
use crate::domain::outcome::{Class, Outcome, RefusalKind};
use crate::domain::slice::Head;
use crate::im::{netease, openim, webhook, wukongim, yunxin};
use crate::secret::Secret;

/// The time at which the calls of tests arrive.
pub(in crate::im) const NOW_MS: u64 = 1_700_000_000_123;

/// An endpoint of the app `shop`, with the documented limits.
pub(in crate::im) fn endpoint(ingress: &dyn Ingress, key: &str, secret: &str) -> DropInEndpoint {
    let limits = ingress.limits().iter();
    DropInEndpoint {
        app: "shop".to_owned(),
        target: None,
        key: Some(key.to_owned()),
        id_is_key: ingress.trace_setting().is_none(),
        secret: Some(Secret::new(secret)),
        answer_within: Duration::from_secs(3),
        repeat_window: Duration::from_secs(10),
        rate: None,
        block_for: Duration::ZERO,
        send_all: false,
        limits: limits.map(|limit| (limit.name, limit.default)).collect(),
    }
}

/// An endpoint without credentials.
pub(in crate::im) fn open_endpoint(ingress: &dyn Ingress) -> DropInEndpoint {
    DropInEndpoint {
        key: None,
        secret: None,
        ..endpoint(ingress, "", "")
    }
}

/// A call to an ingress.
#[derive(Clone, Debug)]
pub(in crate::im) struct Call {
    pub(in crate::im) path: &'static str,
    pub(in crate::im) headers: HeaderMap,
    pub(in crate::im) body: Vec<u8>,
    pub(in crate::im) now_ms: u64,
}

impl Call {
    pub(in crate::im) fn new(path: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            path,
            headers: HeaderMap::new(),
            body: body.into(),
            now_ms: NOW_MS,
        }
    }

    pub(in crate::im) fn header(mut self, name: &'static str, value: &str) -> Self {
        let name = HeaderName::from_static(name);
        self.headers
            .insert(name, HeaderValue::from_str(value).unwrap());
        self
    }

    pub(in crate::im) fn without(mut self, name: &'static str) -> Self {
        self.headers.remove(name);
        self
    }

    #[expect(clippy::result_large_err, reason = "as in the trait")]
    pub(in crate::im) fn read_request(
        &self,
        ingress: &dyn Ingress,
        endpoints: &[DropInEndpoint],
    ) -> Result<DropInRequest, Spoken> {
        let incoming = Incoming {
            path: self.path,
            headers: &self.headers,
            body: &self.body,
            now_ms: self.now_ms,
        };
        // The head alone must lead to the same endpoint, or be refused with the same answer.
        let head = Incoming {
            body: &[],
            ..incoming
        };
        let entered = ingress.enter(&head, endpoints);
        let read = ingress.read_request(&incoming, endpoints);
        match (&entered, &read) {
            (Ok(endpoint), Ok(asked)) => assert_eq!(*endpoint, Some(asked.endpoint)),
            (Err(early), Err(late)) => {
                assert_eq!((early.status(), early.body()), (late.status(), late.body()));
            }
            (Err(early), Ok(_)) => panic!("its head is refused: {:?}", early.body()),
            (Ok(_), Err(_)) => {}
        }
        read
    }

    /// The request that the call asks for. Checks that the intake would accept its jobs.
    pub(in crate::im) fn asked(
        &self,
        ingress: &dyn Ingress,
        endpoints: &[DropInEndpoint],
    ) -> DropInRequest {
        let asked = self
            .read_request(ingress, endpoints)
            .unwrap_or_else(|spoken| panic!("refused: {:?}", spoken.body()));
        for wanted in &asked.jobs {
            head(wanted).unwrap();
        }
        asked
    }

    /// The refusal as status and JSON.
    pub(in crate::im) fn refusal(
        &self,
        ingress: &dyn Ingress,
        endpoints: &[DropInEndpoint],
    ) -> (u16, Value) {
        let spoken = self
            .read_request(ingress, endpoints)
            .err()
            .unwrap_or_else(|| panic!("taken"));
        (spoken.status().as_u16(), body(&spoken))
    }
}

pub(in crate::im) fn body(spoken: &Spoken) -> Value {
    serde_json::from_slice(spoken.body()).unwrap_or(Value::Null)
}

struct Anywhere;

impl Context for Anywhere {
    fn default_target(&self, _app: &str) -> Result<String, String> {
        Ok("im".to_owned())
    }

    fn check_target(&self, _target: &str) -> Result<(), String> {
        Ok(())
    }

    fn folds_case(&self, _target: &str) -> bool {
        false
    }

    fn check_category(&self, app: &str, category: &str) -> Result<(), String> {
        job::known_category::<()>(app, category, None)
    }

    fn check_callback(&self, app: &str, url: &str) -> Result<(), String> {
        job::check_callback(app, None, url)
    }

    fn check_reply_to(&self, app: &str, queue: &str) -> Result<(), String> {
        ReplyRules::default().check(None, app, queue)
    }
}

/// The head of the job that the request asks for, native fields included.
pub(in crate::im) fn head(wanted: &DropInJob) -> Result<Head, Vec<Problem>> {
    let mut message = wanted.message.clone();
    message.native = wanted.native.clone();
    let key = wanted.key.as_deref().unwrap_or("key");
    let mut job = JobDocument::new(key, wanted.audience.clone(), message);
    job.sender = wanted.sender.clone();
    job.options = Some(wanted.options.clone());
    job.confirm_all = Some(true);
    let json = serde_json::to_vec(&job).unwrap();
    Job::parse(&json, None, &Anywhere, Timestamp::UNIX_EPOCH).map(|job| job.head)
}

/// The recipients of a job.
pub(in crate::im) fn recipients(wanted: &DropInJob) -> Vec<String> {
    let users = wanted.audience.users.iter().flatten();
    let users = users.map(|member| match member {
        MemberDocument::Id(id) | MemberDocument::WithVars { id, .. } => id.clone(),
    });
    let groups = wanted.audience.groups.iter().flatten();
    users.chain(groups.cloned()).collect()
}

/// A report in which all recipients of the job have the state `all`, except those in `but`.
pub(in crate::im) fn job_report(
    wanted: &DropInJob,
    all: &RecipientReport,
    but: &[(&str, RecipientReport)],
) -> JobReport {
    let key = wanted.key.as_deref().unwrap_or("made-of-content");
    let report = |recipient: &String| {
        let named = but.iter().find(|(name, _)| name == recipient);
        named.map_or(all, |(_, report)| report).clone()
    };
    let recipients = recipients(wanted).into_iter();
    JobReport {
        job: JobId::of("shop", key),
        client_msg_no: key.to_owned(),
        accepted_at_ms: NOW_MS,
        folds_case: false,
        everybody: None,
        recipients: recipients
            .map(|recipient| {
                let report = report(&recipient);
                (recipient, report)
            })
            .collect(),
    }
}

/// A permanent failure with a code and a text of the system whose codes look like this one.
pub(in crate::im) fn failed(code: &str, text: &str) -> RecipientReport {
    let kind = match code {
        "unregister" => netease::code::refusal_kind(code),
        _ if code.starts_with("err_") => openim::code::refusal_kind(code),
        _ if code.starts_with("reason_") => wukongim::code::refusal_kind(code),
        _ => yunxin::code::refusal_kind(code),
    };
    failed_as(kind, code, text)
}

/// A permanent failure with a status of a webhook.
pub(in crate::im) fn failed_at_webhook(status: &str, text: &str) -> RecipientReport {
    failed_as(webhook::statuses::refusal_kind(status), status, text)
}

fn failed_as(kind: RefusalKind, code: &str, text: &str) -> RecipientReport {
    RecipientReport::Ended {
        outcome: Outcome::Failed,
        class: Some(Class::Permanent),
        kind,
        code: code.to_owned(),
        text: text.to_owned(),
    }
}

/// The answer to a call whose recipients have the state `all`, except those in `but`.
pub(in crate::im) fn answer(
    asked: &DropInRequest,
    all: &RecipientReport,
    but: &[(&str, RecipientReport)],
) -> Spoken {
    let jobs = asked.jobs.iter();
    let jobs: Vec<_> = jobs.map(|wanted| job_report(wanted, all, but)).collect();
    asked.reply.render(&jobs)
}

/// Any value that a field may hold.
pub(in crate::im) fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-z_]{1,12}", inner, 0..4)
                .prop_map(|map| map.into_iter().collect()),
        ]
    })
}
