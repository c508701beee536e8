//! Reads calls of `/im/v2/conversations/messages` and answers them. The vendor's server SDKs put
//! `/nimserver` before it (the one for Go, 1.0.0, by default), so that one base URL serves v1 and
//! v2.
//!
//! Every answer is an HTTP 200 with a code in it. Recipients that got the message, or whose
//! delivery goes on, are in `success_list`, and all others in `failed_list` with a code of their
//! own. An entry there has the id under both names that the vendor's SDKs read. `message_server_id`
//! is Fanwise's. If the backend refused the call as a whole, for its sender for example, the call
//! is refused with the backend's code and no recipient is listed as failed.
//!
//! Values that a documentation tool made up, such as a `sub_type` or an `attachment` beside a text,
//! are accepted; an `X-custom-traceid` that the tool did not fill in is ignored. If the target is
//! not Yunxin, fields that neither message nor options can express are dropped: `p2p_option`,
//! `sub_type`, `push_nick_enabled`, the lists of `push_forcepush_ids`, and the like.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::domain::job::AudienceDocument;
use crate::domain::message::{MessageDocument, Moderation, Options, Push, Route, plain_text};
use crate::im::ingress::loose::{Loose, Wrong};
use crate::im::ingress::media::Names;
use crate::im::ingress::{
    self, DropInEndpoint, DropInJob, DropInRequest, Incoming, Ingress, JobReport, Limit,
    RecipientReport, Refusal, Spoken, json,
};
use crate::im::netease::account::length;
use crate::im::netease::ingress::message::{self, Described};
use crate::im::netease::ingress::{No, SERVER, limit, signature};

const PATHS: &[&str] = &[
    "/im/v2/conversations/messages",
    "/nimserver/im/v2/conversations/messages",
];

const LIMITS: &[Limit] = &[
    limit("recipients_max", 100, "recipients of a call"),
    // One edition of the documentation says 500, which newer ones give for other messages only.
    limit(
        "text_max",
        5000,
        "characters of the text of a text or a tip",
    ),
    limit(
        "search_text_max",
        500,
        "characters of the text of any other message",
    ),
    limit("extension_max", 1024, "characters of extension"),
    limit(
        "push_max",
        500,
        "characters of push_content and push_forcepush_content",
    ),
    limit("payload_max", 2048, "characters of push_payload"),
];

const OK: u32 = 200;
const UNKNOWN: u32 = 102_404;
const BOTH_NO_SENSE: u32 = 107_330;
/// The caller's message id already belongs to another message.
const USED: u32 = 107_306;

/// A conversation with a user.
const USER: u8 = 1;

const NAMES: Described = Described {
    file: Names {
        url: "url",
        name: "name",
        size: "size",
        format: "ext",
        md5: "md5",
        width: "width",
        height: "height",
        duration: "duration",
        cover: "",
        unit_ms: 1,
    },
    latitude: "latitude",
    longitude: "longitude",
};

/// The caller's own id of a message. A backend does not get it: there each recipient's message has
/// a different id.
const CLIENT_ID: &str = "message_client_id";

/// The ingress of version 2 of the API.
pub(in crate::im) struct YunxinIngress;

impl Ingress for YunxinIngress {
    fn paths(&self) -> &'static [&'static str] {
        PATHS
    }

    fn limits(&self) -> &'static [Limit] {
        LIMITS
    }

    fn enter(
        &self,
        head: &Incoming<'_>,
        endpoints: &[DropInEndpoint],
    ) -> Result<Option<usize>, Spoken> {
        let entered = signature::endpoint(head, endpoints).map_err(No::parameter);
        entered
            .map(|(endpoint, _)| Some(endpoint))
            .map_err(|no| spoken(&no))
    }

    /// A call names its endpoint by the AppKey.
    fn is_named_by_key(&self) -> bool {
        true
    }

    fn read_request(
        &self,
        incoming: &Incoming<'_>,
        endpoints: &[DropInEndpoint],
    ) -> Result<DropInRequest, Spoken> {
        let asked = signature::endpoint(incoming, endpoints)
            .map_err(No::parameter)
            .and_then(|(endpoint, nonce)| asked(incoming, endpoints, endpoint, nonce));
        asked.map_err(|no| spoken(&no))
    }

    fn refuse(&self, refusal: &Refusal<'_>) -> Spoken {
        let no = No::of(refusal);
        spoken(&match refusal {
            Refusal::Conflict => No { code: USED, ..no },
            _ => no,
        })
    }
}

fn spoken(no: &No) -> Spoken {
    #[derive(Serialize)]
    struct Refused<'a> {
        code: u32,
        msg: &'a str,
    }
    let refused = Refused {
        code: no.code,
        msg: &no.text,
    };
    json(StatusCode::OK, &refused)
}

impl From<Wrong> for No {
    fn from(wrong: Wrong) -> Self {
        Self::parameter(wrong.to_string())
    }
}

fn asked(
    incoming: &Incoming<'_>,
    endpoints: &[DropInEndpoint],
    endpoint: usize,
    nonce: Option<String>,
) -> Result<DropInRequest, No> {
    let body = Loose::body(incoming.body)?;
    let limits = Limits(&endpoints[endpoint]);
    let sender = body.text("sender_id")?;
    let sender = sender.ok_or_else(|| No::parameter("sender_id is missing"))?;
    let recipients = body.texts("receiver_ids")?.unwrap_or_default();
    if recipients.is_empty() || recipients.iter().any(String::is_empty) {
        let text = "receiver_ids is missing, empty, or holds an empty id";
        return Err(No::parameter(text));
    }
    let most = endpoints[endpoint].limit("recipients_max");
    if recipients.len() > most {
        let text = format!("receiver_ids holds more than {most} ids");
        return Err(No::parameter(text));
    }
    let json = body.object("message")?;
    let json = json.ok_or_else(|| No::parameter("message is missing"))?;
    let said = Said::from_fields(&Loose::parse("message", &json)?, &limits)?;
    let mut native = said.native;
    let options = options(&body, &limits, &mut native)?;
    let trace = incoming.header("x-custom-traceid").filter(|id| is_made(id));
    let client_id = said.echo.message_client_id.clone();
    let key = trace.or(client_id.as_deref()).and_then(ingress::key);
    let wanted = DropInJob {
        key,
        sender: Some(sender.clone()),
        audience: AudienceDocument {
            users: Some(recipients.into_iter().map(Into::into).collect()),
            ..AudienceDocument::default()
        },
        message: said.message,
        options,
        native: if native.is_empty() {
            None
        } else {
            Some(crate::json::raw(&native))
        },
        ..DropInJob::default()
    };
    Ok(DropInRequest {
        endpoint,
        nonce,
        jobs: vec![wanted],
        reply: Box::new(YunxinReply {
            sender,
            echo: said.echo,
        }),
    })
}

/// Whether an id is filled in, and not an unfilled template.
fn is_made(id: &str) -> bool {
    !id.starts_with("{%")
}

/// The endpoint's limits of lengths.
struct Limits<'a>(&'a DropInEndpoint);

impl Limits<'_> {
    fn text(&self, from: &Loose<'_>, name: &str, limit: &str) -> Result<Option<String>, No> {
        let text = from.text(name)?;
        self.check(&from.path_of(name), text.as_deref(), limit)?;
        Ok(text)
    }

    fn check(&self, name: &str, text: Option<&str>, limit: &str) -> Result<(), No> {
        let most = self.0.limit(limit);
        if text.is_some_and(|text| length(text) > most) {
            let text = format!("{name} is longer than {most} characters");
            return Err(No::parameter(text));
        }
        Ok(())
    }
}

type Native = BTreeMap<&'static str, Box<RawValue>>;

/// The message of a call.
struct Said {
    message: MessageDocument,
    native: Native,
    echo: Echo,
}

/// The parts of the message that every entry of the answer repeats.
#[derive(Clone, Debug)]
struct Echo {
    message_client_id: Option<String>,
    message_type: i64,
    sub_type: Option<i64>,
    text: Option<String>,
    attachment: Option<Box<RawValue>>,
}

impl Said {
    fn from_fields(from: &Loose<'_>, limits: &Limits<'_>) -> Result<Self, No> {
        let number = from.number("message_type")?;
        let number = number
            .filter(|number| message::TYPES.contains(number))
            .ok_or_else(|| {
                let text = format!("message.message_type is not one of {:?}", message::TYPES);
                No::parameter(text)
            })?;
        let is_text = message::is_text(number);
        let longest = if is_text {
            "text_max"
        } else {
            "search_text_max"
        };
        let text = limits.text(from, "text", longest)?;
        let sub_type = from.number("sub_type")?;
        if sub_type.is_some_and(|sub_type: i64| sub_type <= 0) {
            return Err(No::parameter("message.sub_type is not above 0"));
        }
        let attachment = from.object("attachment")?;
        let message = match (is_text, &text, &attachment) {
            (true, Some(text), _) => message::words(number, text.clone()),
            (true, None, _) => return Err(No::parameter("message.text is missing")),
            (false, _, None) => return Err(No::parameter("message.attachment is missing")),
            (false, _, Some(json)) => attached(number, json)?,
        };
        // The fields that a message reproduces exactly. With any other field the original goes to
        // `native`.
        let ours: &[&str] = match number {
            message::CUSTOM => &["message_type", "attachment", CLIENT_ID],
            _ if is_text => &["message_type", "text", CLIENT_ID],
            _ => &[],
        };
        let mut native = Native::new();
        if from.has_more_than(ours) {
            let written = as_written(from, attachment.as_deref());
            native.extend(written.map(|it| ("message", it)));
        }
        Ok(Self {
            message,
            native,
            echo: Echo {
                message_client_id: from.text(CLIENT_ID)?,
                message_type: number,
                sub_type,
                text,
                attachment: attachment.and_then(|json| RawValue::from_string(json.into()).ok()),
            },
        })
    }
}

/// The original message for a backend. The attachment may be JSON inside a text, which a backend
/// would refuse, so it is unpacked.
fn as_written(from: &Loose<'_>, attachment: Option<&str>) -> Option<Box<RawValue>> {
    let fields = from.fields().filter(|(name, _)| *name != CLIENT_ID);
    let mut fields: BTreeMap<_, _> = fields.map(|(name, it)| (name, it.to_owned())).collect();
    if let Some(json) = attachment {
        fields.insert("attachment", RawValue::from_string(json.to_owned()).ok()?);
    }
    Some(crate::json::raw(&fields))
}

fn attached(number: i64, json: &str) -> Result<MessageDocument, No> {
    let object = Loose::parse("message.attachment", json)?;
    if number == message::CUSTOM {
        let data = RawValue::from_string(json.to_owned());
        let data = data.map_err(|_| No::parameter("message.attachment is not JSON"))?;
        return Ok(message::custom(data));
    }
    let text = "message.attachment does not say where the file or the place is";
    message::described(number, &object, &NAMES).ok_or_else(|| No::parameter(text))
}

/// The options of a call. Whole sections that they cannot express go to `native`.
fn options(body: &Loose<'_>, limits: &Limits<'_>, native: &mut Native) -> Result<Options, No> {
    let sender_no_sense = body.flag("sender_no_sense")?.unwrap_or(false);
    let receiver_no_sense = body.flag("receiver_no_sense")?.unwrap_or(false);
    if sender_no_sense && receiver_no_sense {
        return Err(No::new(BOTH_NO_SENSE, "neither side would sense it"));
    }
    let extension = body
        .raw("extension")
        .filter(|extension| extension.get() != r#""""#);
    let text = extension.map(plain_text);
    limits.check("extension", text.as_deref(), "extension_max")?;

    let mut section = |name: &'static str, ours: &[&str]| {
        let json = body.object(name)?.unwrap_or("{}".into());
        let fields = Loose::parse(name, &json)?;
        if fields.has_more_than(ours) {
            native.extend(fields.without(&[]).map(|it| (name, it)));
        }
        Ok::<_, No>(json)
    };
    let message_json = section("message_config", &["unread_enabled"])?;
    let route_json = section("route_config", &["route_enabled", "route_environment"])?;
    let push_ours = [
        "push_enabled",
        "push_content",
        "push_payload",
        "push_forcepush_all",
    ];
    let push_json = section("push_config", &push_ours)?;
    let antispam_ours = ["antispam_enabled", "antispam_business_id"];
    let antispam_json = section("antispam_config", &antispam_ours)?;
    section("p2p_option", &[])?;
    if let Some(detail) = body.raw("need_message_detail") {
        native.insert("need_message_detail", detail.to_owned());
    }

    let config = Loose::parse("message_config", &message_json)?;
    let offline = config.flag("offline_enabled")?;
    Ok(Options {
        online_only: (offline == Some(false)).then_some(true),
        unread: config.flag("unread_enabled")?,
        // Here a missing flag means "sensed"; on other systems it may mean the opposite.
        sender_no_sense: Some(sender_no_sense),
        receiver_no_sense: receiver_no_sense.then_some(true),
        push: push(&Loose::parse("push_config", &push_json)?, limits)?,
        route: route(&Loose::parse("route_config", &route_json)?)?,
        moderation: moderation(&Loose::parse("antispam_config", &antispam_json)?)?,
        extension: extension.map(ToOwned::to_owned),
        ..Options::default()
    })
}

fn push(from: &Loose<'_>, limits: &Limits<'_>) -> Result<Option<Push>, No> {
    limits.text(from, "push_forcepush_content", "push_max")?;
    from.texts("push_forcepush_ids")?;
    let payload = from.raw("push_payload").map(plain_text);
    let payload = payload.filter(|payload| !payload.is_empty());
    limits.check(
        "push_config.push_payload",
        payload.as_deref(),
        "payload_max",
    )?;
    let push = Push {
        enabled: from.flag("push_enabled")?,
        text: limits.text(from, "push_content", "push_max")?,
        payload: payload.as_deref().and_then(ingress::quoted),
        forced: from.flag("push_forcepush_all")?,
        ..Push::default()
    };
    Ok(Some(push).filter(|push| {
        push.enabled.is_some()
            || push.text.is_some()
            || push.payload.is_some()
            || push.forced.is_some()
    }))
}

fn route(from: &Loose<'_>) -> Result<Option<Route>, No> {
    let route = Route {
        enabled: from.flag("route_enabled")?,
        environment: from.text("route_environment")?,
    };
    Ok(Some(route).filter(|route| route.enabled.is_some() || route.environment.is_some()))
}

fn moderation(from: &Loose<'_>) -> Result<Option<Moderation>, No> {
    let moderation = Moderation {
        enabled: from.flag("antispam_enabled")?,
        business_id: from.text("antispam_business_id")?,
    };
    Ok(Some(moderation).filter(|it| it.enabled.is_some() || it.business_id.is_some()))
}

/// Renders the answer to a call.
struct YunxinReply {
    sender: String,
    echo: Echo,
}

#[derive(Serialize)]
struct ResultBody<'a> {
    code: u32,
    msg: &'static str,
    data: Lists<'a>,
}

#[derive(Serialize)]
struct Lists<'a> {
    success_list: Vec<SentData<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failed_list: Vec<Failed<'a>>,
}

/// An entry, with its fields in the order of the documentation.
#[derive(Serialize)]
struct SentData<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attachment: Option<&'a RawValue>,
    message_server_id: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_client_id: Option<&'a str>,
    sender_id: &'a str,
    conversation_type: u8,
    receiver_id: &'a str,
    create_time: u64,
    message_type: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub_type: Option<i64>,
}

/// A failed recipient. The id has two names, since the vendor's SDKs read different ones.
#[derive(Serialize)]
struct Failed<'a> {
    account_id: &'a str,
    receiver_id: &'a str,
    error_code: u32,
    error_msg: String,
}

impl ingress::DropInReply for YunxinReply {
    fn render(&self, jobs: &[JobReport]) -> Spoken {
        let Some(job_report) = jobs.first() else {
            return spoken(&No::new(SERVER, "nothing is known of this call"));
        };
        if let Some(no) = refused(job_report) {
            return spoken(&no);
        }
        let recipients = || job_report.recipients.iter();
        let sent = recipients().filter(|(_, report)| report.is_good());
        let answer = ResultBody {
            code: OK,
            msg: "success",
            data: Lists {
                success_list: sent.map(|(id, _)| self.sent(job_report, id)).collect(),
                failed_list: recipients()
                    .filter_map(|(id, report)| failed(id, report))
                    .collect(),
            },
        };
        json(StatusCode::OK, &answer)
    }
}

impl YunxinReply {
    fn sent<'a>(&'a self, job_report: &JobReport, recipient: &'a str) -> SentData<'a> {
        SentData {
            text: self.echo.text.as_deref(),
            attachment: self.echo.attachment.as_deref(),
            message_server_id: job_report.message_id(recipient),
            message_client_id: self.echo.message_client_id.as_deref(),
            sender_id: &self.sender,
            conversation_type: USER,
            receiver_id: recipient,
            create_time: job_report.accepted_at_ms,
            message_type: self.echo.message_type,
            sub_type: self.echo.sub_type,
        }
    }
}

/// The refusal of the whole call, if all recipients have a code that is about the call.
fn refused(job_report: &JobReport) -> Option<No> {
    let reports = || job_report.recipients.iter().map(|(_, report)| report);
    let no = No::of_report(reports().next()?)?;
    reports().all(RecipientReport::is_about_call).then_some(no)
}

fn failed<'a>(recipient: &'a str, report: &RecipientReport) -> Option<Failed<'a>> {
    let no = No::of_report(report)?;
    Some(Failed {
        account_id: recipient,
        receiver_id: recipient,
        error_code: if report.is_unknown() {
            UNKNOWN
        } else {
            no.code
        },
        error_msg: no.text,
    })
}
