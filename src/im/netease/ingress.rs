//! Reads calls of `/nimserver/msg/sendBatchMsg.action` and answers them.
//!
//! Every answer is an HTTP 200 with a code in it. A success can list only the recipients that are
//! not registered. A recipient that failed for another reason has no entry in `msgids`, if the call
//! asked for ids. If no recipient got the message, the call as a whole is refused, with the
//! backend's own code if that is one of NetEase's.
//!
//! `useYidun` other than 0 has no effect, as documented. If the target is not NetEase, `msgDesc`,
//! `yidunAntiCheating`, `yidunAntiSpamExt` and the members of `option` other than `push`, `route`,
//! `badge` and `persistent` are dropped.

/// Decodes the fields of a call.
mod form;
/// Reads the body of a message, by its type.
pub(in crate::im) mod message;
/// Verifies signatures.
pub(in crate::im) mod signature;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use http::StatusCode;
use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use self::form::Form;
use self::message::{NAMES, TYPES};
use crate::domain::fields::{shorten, summary};
use crate::domain::job::AudienceDocument;
use crate::domain::limits::{Cost, Rate};
use crate::domain::message::{MessageDocument, Moderation, Options, Push, Route};
use crate::domain::outcome::{ANSWER_TEXT_MAX, Class, Outcome};
use crate::im::ingress::loose::{Loose, flag, texts};
use crate::im::ingress::{
    self, DropInEndpoint, DropInJob, DropInRequest, Incoming, Ingress, JobReport, Limit,
    RecipientReport, Refusal, Spoken, json,
};
use crate::im::netease::account::length;

const PATHS: &[&str] = &["/nimserver/msg/sendBatchMsg.action"];

const LIMITS: &[Limit] = &[
    limit("recipients_max", 500, "recipients of a call"),
    // As the API was documented for years. NetEase now accepts 100, since its ids cost it more. The
    // ids here are Fanwise's, and with a limit of 100 existing callers above it would be refused.
    limit(
        "recipients_with_ids_max",
        500,
        "recipients of a call with returnMsgid",
    ),
    limit("account_max", 32, "characters of an accid"),
    limit("body_max", 5000, "characters of body"),
    limit("description_max", 500, "characters of msgDesc"),
    limit("push_max", 500, "characters of pushcontent"),
    limit("payload_max", 2048, "characters of payload"),
    limit("ext_max", 1024, "characters of ext"),
    limit(
        "moderation_max",
        1024,
        "characters of yidunAntiCheating and yidunAntiSpamExt",
    ),
    limit("environment_max", 32, "characters of env"),
];

pub(in crate::im) const fn limit(name: &'static str, default: usize, what: &'static str) -> Limit {
    Limit {
        name,
        default,
        what,
    }
}

/// The code for a wrong parameter or a wrong signature.
pub(in crate::im) const PARAMETER: u32 = 414;
pub(in crate::im) const FORBIDDEN: u32 = 403;
pub(in crate::im) const TIMEOUT: u32 = 408;
pub(in crate::im) const TOO_OFTEN: u32 = 416;
pub(in crate::im) const SERVER: u32 = 500;
pub(in crate::im) const BUSY: u32 = 503;
const OK: u32 = 200;

/// The text for a list that is too long.
const TOO_MANY: &str = "too many members.";

/// The ingress of version 1 of NetEase's API.
pub(in crate::im) struct NetEaseIngress;

/// A refusal: code and text, before a version formats it.
#[derive(Debug)]
pub(in crate::im) struct No {
    pub(in crate::im) code: u32,
    pub(in crate::im) text: String,
}

impl No {
    pub(in crate::im) fn new(code: u32, text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            code,
            text: shorten(&text, ANSWER_TEXT_MAX).into_owned(),
        }
    }

    /// The refusal of a wrong parameter.
    pub(in crate::im) fn parameter(text: impl Into<String>) -> Self {
        Self::new(PARAMETER, text)
    }

    /// Maps a refusal of the gateway to the vendor's codes.
    pub(in crate::im) fn of(refusal: &Refusal<'_>) -> Self {
        match refusal {
            Refusal::Unreadable(what) => Self::parameter(*what),
            Refusal::Problems(problems) => Self::parameter(summary(problems)),
            Refusal::Conflict => {
                Self::parameter("the id of this request was used for another message")
            }
            Refusal::TooOften { block } => Self::new(
                TOO_OFTEN,
                format!("too many calls, blocked for {} seconds", block.as_secs()),
            ),
            Refusal::Replayed => {
                Self::parameter("checksum error: this Nonce was used before; take another one")
            }
            Refusal::Forbidden(why) => Self::new(FORBIDDEN, *why),
            Refusal::Unavailable(why) => Self::new(BUSY, *why),
        }
    }

    /// Maps the result of a recipient to the vendor's codes; `None` unless it failed.
    pub(in crate::im) fn of_report(report: &RecipientReport) -> Option<Self> {
        let RecipientReport::Ended {
            outcome,
            class,
            code,
            ..
        } = report
        else {
            return None;
        };
        let own = code.parse().ok().filter(|code| is_own(*code));
        let code = own.unwrap_or(match (outcome, class) {
            (Outcome::Uncertain, _) => TIMEOUT,
            (Outcome::Failed, Some(Class::Permanent)) => FORBIDDEN,
            (Outcome::Expired | Outcome::Cancelled | Outcome::Capped, _) => FORBIDDEN,
            _ => SERVER,
        });
        Some(Self::new(code, report.reason().unwrap_or_default()))
    }

    fn spoken(&self) -> Spoken {
        #[derive(Serialize)]
        struct Refused<'a> {
            code: u32,
            desc: &'a str,
        }
        let refused = Refused {
            code: self.code,
            desc: &self.text,
        };
        json(StatusCode::OK, &refused)
    }
}

/// Whether a code is one with which the vendor refuses a message, in either version.
fn is_own(code: u32) -> bool {
    const FIRST: [u32; 16] = [
        301, 315, 403, 404, 405, 408, 414, 416, 419, 422, 423, 500, 503, 508, 509, 514,
    ];
    FIRST.contains(&code) || (100_000..200_000).contains(&code)
}

impl Ingress for NetEaseIngress {
    fn paths(&self) -> &'static [&'static str] {
        PATHS
    }

    fn limits(&self) -> &'static [Limit] {
        LIMITS
    }

    /// A call names its endpoint by the AppKey.
    fn is_named_by_key(&self) -> bool {
        true
    }

    fn calls(&self) -> Option<(Rate, Duration)> {
        Some((
            Rate {
                units: 120,
                period: Duration::from_secs(60),
                // All calls of a minute may come together.
                burst: 120,
                cost: Some(Cost::PerCall),
            },
            Duration::from_secs(60),
        ))
    }

    fn enter(
        &self,
        head: &Incoming<'_>,
        endpoints: &[DropInEndpoint],
    ) -> Result<Option<usize>, Spoken> {
        let entered = signature::endpoint(head, endpoints).map_err(No::parameter);
        entered
            .map(|(endpoint, _)| Some(endpoint))
            .map_err(|no| no.spoken())
    }

    fn read_request(
        &self,
        incoming: &Incoming<'_>,
        endpoints: &[DropInEndpoint],
    ) -> Result<DropInRequest, Spoken> {
        let asked = signature::endpoint(incoming, endpoints)
            .map_err(No::parameter)
            .and_then(|(endpoint, nonce)| asked(incoming, endpoints, endpoint, nonce));
        asked.map_err(|no| no.spoken())
    }

    fn refuse(&self, refusal: &Refusal<'_>) -> Spoken {
        No::of(refusal).spoken()
    }
}

fn asked(
    incoming: &Incoming<'_>,
    endpoints: &[DropInEndpoint],
    endpoint: usize,
    nonce: Option<String>,
) -> Result<DropInRequest, No> {
    let form = Form::parse(incoming.body)
        .ok_or_else(|| No::parameter("the body is neither a form nor JSON in UTF-8"))?;
    let call = Call {
        form: &form,
        endpoint: &endpoints[endpoint],
    };
    let ids = call.flag("returnMsgid")?.unwrap_or(false);
    let wanted = call.wanted(ids)?;
    let key = incoming.header("requestid").and_then(ingress::key);
    Ok(DropInRequest {
        endpoint,
        nonce,
        jobs: vec![DropInJob { key, ..wanted }],
        reply: Box::new(NetEaseReply { ids }),
    })
}

/// The fields of a call, and the endpoint's limits.
struct Call<'a> {
    form: &'a Form,
    endpoint: &'a DropInEndpoint,
}

impl<'a> Call<'a> {
    fn wanted(&self, ids: bool) -> Result<DropInJob, No> {
        let sender = self.needed("fromAccid", "account_max")?;
        let recipients = self.recipients(ids)?;
        let (number, body) = (self.kind()?, self.needed("body", "body_max")?);
        let (message, whole) = message(number, body)?;
        let mut native = BTreeMap::new();
        if !whole {
            native.insert("type", number.to_string());
            native.insert("body", body.to_owned());
        }
        let is_text = message::is_text(number);
        let description = self.bounded("msgDesc", "description_max")?;
        // It has no meaning for texts.
        if let Some(description) = description.filter(|_| !is_text) {
            native.insert("msgDesc", description.to_owned());
        }
        for name in ["yidunAntiCheating", "yidunAntiSpamExt"] {
            if let Some(value) = self.json(name, "moderation_max")? {
                native.insert(name, value.to_owned());
            }
        }
        let options = self.options(&mut native)?;
        Ok(DropInJob {
            sender: Some(sender.to_owned()),
            audience: AudienceDocument {
                users: Some(recipients.into_iter().map(Into::into).collect()),
                ..AudienceDocument::default()
            },
            message,
            options,
            native: if native.is_empty() {
                None
            } else {
                Some(crate::json::raw(&native))
            },
            ..DropInJob::default()
        })
    }

    fn options(&self, native: &mut BTreeMap<&'static str, String>) -> Result<Options, No> {
        let text = self
            .bounded("pushcontent", "push_max")?
            .or(self.bounded("pushContent", "push_max")?);
        let payload = self.json("payload", "payload_max")?.and_then(as_json);
        let extension = self.json("ext", "ext_max")?.and_then(as_json);
        let option = self.form.get("option");
        let behaviour = option.map_or(Ok(Loose::default()), |option| {
            Loose::parse("option", option).map_err(wrong)
        })?;
        let flag = |name| behaviour.flag(name).map_err(wrong);
        let push = Push {
            enabled: flag("push")?,
            text: text.map(str::to_owned),
            payload,
            ..Push::default()
        };
        let route = Route {
            enabled: flag("route")?,
            environment: self.bounded("env", "environment_max")?.map(str::to_owned),
        };
        let moderation = Moderation {
            enabled: (self.form.get("useYidun") == Some("0")).then_some(false),
            business_id: self.form.get("bid").map(str::to_owned),
        };
        let stored = flag("persistent")?;
        if behaviour.has_more_than(&["push", "route", "badge"]) {
            native.insert("option", option.unwrap_or_default().to_owned());
        }
        Ok(Options {
            online_only: (stored == Some(false)).then_some(true),
            unread: flag("badge")?,
            // Here a missing flag means "sensed"; on other systems it may mean the opposite.
            sender_no_sense: Some(self.flag("msgSenderNoSense")?.unwrap_or(false)),
            push: Some(push).filter(|push| {
                push.enabled.is_some() || push.text.is_some() || push.payload.is_some()
            }),
            route: Some(route)
                .filter(|route| route.enabled.is_some() || route.environment.is_some()),
            moderation: Some(moderation).filter(|moderation| {
                moderation.enabled.is_some() || moderation.business_id.is_some()
            }),
            extension,
            ..Options::default()
        })
    }

    fn recipients(&self, ids: bool) -> Result<Vec<String>, No> {
        let given = self.form.get("toAccids").and_then(texts);
        let recipients = given
            .filter(|recipients| !recipients.is_empty())
            .ok_or_else(|| No::parameter("toAccids is not a JSON array of accids"))?;
        let most = self.endpoint.limit(if ids {
            "recipients_with_ids_max"
        } else {
            "recipients_max"
        });
        if recipients.len() > most {
            return Err(No::parameter(TOO_MANY));
        }
        let longest = self.endpoint.limit("account_max");
        let fits = |accid: &String| (1..=longest).contains(&length(accid));
        if !recipients.iter().all(fits) {
            let text = format!("toAccids holds an accid that is empty or longer than {longest}");
            return Err(No::parameter(text));
        }
        Ok(recipients)
    }

    fn kind(&self) -> Result<i64, No> {
        let number = self.form.get("type").and_then(|text| text.parse().ok());
        number
            .filter(|number| TYPES.contains(number))
            .ok_or_else(|| No::parameter(format!("type is not one of {TYPES:?}")))
    }

    /// A field. Refuses one that is longer than its limit.
    fn bounded(&self, name: &str, limit: &str) -> Result<Option<&'a str>, No> {
        let most = self.endpoint.limit(limit);
        match self.form.get(name) {
            Some(value) if length(value) > most => Err(No::parameter(format!(
                "{name} is longer than {most} characters"
            ))),
            value => Ok(value),
        }
    }

    fn needed(&self, name: &str, limit: &str) -> Result<&'a str, No> {
        let missing = || No::parameter(format!("{name} is missing"));
        self.bounded(name, limit)?.ok_or_else(missing)
    }

    fn json(&self, name: &str, limit: &str) -> Result<Option<&'a str>, No> {
        match self.bounded(name, limit)? {
            Some(json) if serde_json::from_str::<IgnoredAny>(json).is_err() => {
                Err(No::parameter(format!("{name} is not JSON")))
            }
            value => Ok(value),
        }
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, No> {
        let Some(word) = self.form.get(name) else {
            return Ok(None);
        };
        let wrong = || No::parameter(format!("{name} is neither true nor false"));
        flag(word).map(Some).ok_or_else(wrong)
    }
}

/// The message of a body, and whether it expresses the body completely.
fn message(number: i64, body: &str) -> Result<(MessageDocument, bool), No> {
    if number == message::CUSTOM {
        let data = RawValue::from_string(body.to_owned());
        let data = data.map_err(|_| No::parameter("body is not JSON"))?;
        return Ok((message::custom(data), true));
    }
    let object = Loose::parse("body", body).map_err(wrong)?;
    if message::is_text(number) {
        let text = object.text("msg").map_err(wrong)?;
        let text = text.ok_or_else(|| No::parameter("body.msg is missing"))?;
        return Ok((
            message::words(number, text),
            !object.has_more_than(&["msg"]),
        ));
    }
    let message = message::described(number, &object, &NAMES);
    let missing = || No::parameter("body does not say where the file or the place is");
    Ok((message.ok_or_else(missing)?, false))
}

/// A text that contains JSON, as JSON. If that JSON is itself a text, it is quoted again, so that
/// the two cases stay distinct.
fn as_json(text: &str) -> Option<Box<RawValue>> {
    if text.trim_start().starts_with('"') {
        return ingress::quoted(text);
    }
    RawValue::from_string(text.to_owned()).ok()
}

fn wrong(wrong: impl std::fmt::Display) -> No {
    No::parameter(wrong.to_string())
}

/// Renders the answer to a call.
struct NetEaseReply {
    ids: bool,
}

#[derive(Serialize)]
struct SentData<'a> {
    code: u32,
    unregister: Vec<&'a str>,
    timetag: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    msgids: Option<BTreeMap<&'a str, i64>>,
}

impl ingress::DropInReply for NetEaseReply {
    fn render(&self, jobs: &[JobReport]) -> Spoken {
        let Some(job_report) = jobs.first() else {
            return No::new(SERVER, "nothing is known of this call").spoken();
        };
        if let Some(no) = refused(job_report) {
            return no.spoken();
        }
        let recipients = job_report.recipients.iter();
        let unknown = recipients.clone().filter(|(_, report)| report.is_unknown());
        let good = recipients.filter(|(_, report)| report.is_good());
        let ids = good.map(|(accid, _)| (accid.as_str(), job_report.message_id(accid)));
        let sent = SentData {
            code: OK,
            unregister: unknown.map(|(accid, _)| accid.as_str()).collect(),
            timetag: job_report.accepted_at_ms,
            msgids: self.ids.then(|| ids.collect()),
        };
        json(StatusCode::OK, &sent)
    }
}

/// The refusal if no recipient got the message; `None` if one did, or if all of them are merely not
/// registered.
fn refused(job_report: &JobReport) -> Option<No> {
    let reports = || job_report.recipients.iter().map(|(_, report)| report);
    if reports().any(RecipientReport::is_good) {
        return None;
    }
    No::of_report(reports().find(|report| !report.is_unknown())?)
}
