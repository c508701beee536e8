//! Reads calls of `/message/sendbatch` and `/message/send` and answers them.
//!
//! `/message/sendbatch` has two formats. The documentation shows an array of messages, each to its
//! own channel; releases take one object with `subscribers`. Both are accepted and answered in
//! their own format. An array is accepted as a whole or refused as a whole. Message ids are
//! Fanwise's, and `message_seq` is 0. In the answer to an array, a message that was not delivered
//! has the id 0.
//!
//! Flags may be booleans, integers or texts. `stream_no` and `tag_key` are accepted and ignored, as
//! in current releases; a message with `is_stream` is refused. A `payload` that is not JSON is a
//! text. If it is not UTF-8 either, a target of another system gets it in base64. A text as
//! WuKongIM's SDKs write it (`{"type":1,"content":…}`) is a text on every target; any other payload
//! is `custom`.

#[cfg(test)]
mod tests;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::domain::fields::{shorten, summary};
use crate::domain::job::AudienceDocument;
use crate::domain::message::{MessageDocument, Options, TEXT_BYTES_MAX};
use crate::domain::outcome::{ANSWER_TEXT_MAX, Outcome, RefusalKind};
use crate::im::ingress::loose::{Loose, Wrong};
use crate::im::ingress::{
    self, DropInEndpoint, DropInJob, DropInRequest, Incoming, Ingress, JobReport, Limit,
    RecipientReport, Refusal, Spoken, json, quoted, same,
};
use crate::im::wukongim::Settings;

const BATCH: &str = "/message/sendbatch";
const SINGLE: &str = "/message/send";

const LIMITS: &[Limit] = &[
    Limit {
        name: "messages_max",
        default: 1000,
        what: "messages of a call",
    },
    Limit {
        name: "recipients_max",
        default: 100_000,
        what: "subscribers of a message",
    },
    Limit {
        name: "payload_max",
        default: Settings::PAYLOAD_BYTES_MAX,
        what: "bytes of a decoded payload; clients take no more",
    },
];

/// The channel type of a user.
const PERSON: u8 = 1;
/// The `type` of a text payload.
const TEXT: i64 = 1;

/// The ingress of WuKongIM, all versions.
pub(in crate::im) struct WukongImIngress;

/// A refused call.
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    what: String,
}

impl Refused {
    fn new(status: StatusCode, what: impl Into<String>) -> Self {
        let what = what.into();
        Self {
            status,
            what: shorten(&what, ANSWER_TEXT_MAX).into_owned(),
        }
    }

    fn bad(what: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, what)
    }

    /// The reason why a message was not delivered.
    fn of_report(report: &RecipientReport) -> Option<Self> {
        let RecipientReport::Ended { outcome, .. } = report else {
            return None;
        };
        let status = match (outcome, report.refusal()) {
            (Outcome::Failed, Some(RefusalKind::Forbidden)) => StatusCode::FORBIDDEN,
            (Outcome::Failed, Some(_)) => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Some(Self::new(status, report.reason().unwrap_or_default()))
    }

    fn spoken(&self) -> Spoken {
        #[derive(Serialize)]
        struct Said<'a> {
            msg: &'a str,
            status: u16,
        }
        let said = Said {
            msg: &self.what,
            status: self.status.as_u16(),
        };
        json(self.status, &said)
    }
}

impl From<Wrong> for Refused {
    fn from(wrong: Wrong) -> Self {
        Self::bad(wrong.to_string())
    }
}

impl Ingress for WukongImIngress {
    fn paths(&self) -> &'static [&'static str] {
        &[BATCH, SINGLE]
    }

    fn limits(&self) -> &'static [Limit] {
        LIMITS
    }

    fn enter(
        &self,
        head: &Incoming<'_>,
        endpoints: &[DropInEndpoint],
    ) -> Result<Option<usize>, Spoken> {
        enter(head, endpoints).map(Some).ok_or_else(|| {
            let mut spoken = Response::new(Bytes::new());
            *spoken.status_mut() = StatusCode::UNAUTHORIZED;
            spoken
        })
    }

    fn read_request(
        &self,
        incoming: &Incoming<'_>,
        endpoints: &[DropInEndpoint],
    ) -> Result<DropInRequest, Spoken> {
        let endpoint = self.enter(incoming, endpoints)?.unwrap_or_default();
        let call = Call::from_request(incoming, &endpoints[endpoint]);
        let Call { shape, messages } = call.map_err(|refused| refused.spoken())?;
        let numbers = messages.iter().map(|message| message.number.clone());
        Ok(DropInRequest {
            endpoint,
            nonce: None,
            reply: Box::new(WukongImReply {
                shape,
                numbers: numbers.collect(),
            }),
            jobs: messages.into_iter().map(|message| message.wanted).collect(),
        })
    }

    fn refuse(&self, refusal: &Refusal<'_>) -> Spoken {
        let refused = match refusal {
            Refusal::Unreadable(what) => Refused::bad(*what),
            Refusal::Problems(problems) => Refused::bad(summary(problems)),
            Refusal::Conflict => Refused::bad("this client_msg_no was used for another message"),
            Refusal::Replayed => Refused::bad("the call came before"),
            Refusal::Forbidden(why) => Refused::new(StatusCode::FORBIDDEN, *why),
            Refusal::TooOften { .. } => {
                Refused::new(StatusCode::TOO_MANY_REQUESTS, "too many requests")
            }
            Refusal::Unavailable(why) => Refused::new(StatusCode::SERVICE_UNAVAILABLE, *why),
        };
        let mut spoken = refused.spoken();
        if let Refusal::TooOften { block } = refusal {
            let seconds = HeaderValue::from(block.as_secs().max(1));
            spoken.headers_mut().insert(RETRY_AFTER, seconds);
        }
        spoken
    }
}

/// The endpoint whose token the call contains, or else one that requires no token.
fn enter(incoming: &Incoming<'_>, endpoints: &[DropInEndpoint]) -> Option<usize> {
    let token = incoming.header("token").unwrap_or_default();
    let opens = |endpoint: &DropInEndpoint| {
        let secret = endpoint.secret.as_ref();
        secret.is_some_and(|secret| same(token.as_bytes(), secret.expose().as_bytes()))
    };
    let with_token = endpoints.iter().position(opens);
    with_token.or_else(|| {
        endpoints
            .iter()
            .position(|endpoint| endpoint.secret.is_none())
    })
}

/// The format of a call, which decides the format of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// The array of the documentation.
    Array,
    /// The object of the releases.
    Object,
    /// `/message/send` to a channel.
    Single,
    /// `/message/send` to subscribers, whose answer names no message.
    Command,
}

struct Call {
    shape: Shape,
    messages: Vec<Message>,
}

/// One message of a call.
struct Message {
    wanted: DropInJob,
    /// The caller's number, which the answer repeats.
    number: Option<String>,
}

impl Call {
    fn from_request(incoming: &Incoming<'_>, endpoint: &DropInEndpoint) -> Result<Self, Refused> {
        let array = incoming.body.trim_ascii_start().starts_with(b"[");
        if incoming.path == BATCH && array {
            return Self::array(incoming.body, endpoint);
        }
        let fields = Loose::body(incoming.body)?;
        let shape = if incoming.path == BATCH {
            Shape::Object
        } else if fields.has("subscribers") && fields.text("channel_id")?.is_none() {
            Shape::Command
        } else {
            Shape::Single
        };
        Ok(Self {
            shape,
            messages: vec![Message::from_fields(&fields, shape, endpoint)?],
        })
    }

    /// Reads all messages, or returns every problem.
    fn array(body: &[u8], endpoint: &DropInEndpoint) -> Result<Self, Refused> {
        let items: Vec<&RawValue> =
            serde_json::from_slice(body).map_err(|_| Refused::bad("a JSON array is expected"))?;
        let most = endpoint.limit("messages_max");
        if items.is_empty() || items.len() > most {
            let what = format!("{} messages, 1 to {most} are taken", items.len());
            return Err(Refused::bad(what));
        }
        let (mut messages, mut problems) = (Vec::with_capacity(items.len()), Vec::new());
        for (index, item) in items.iter().enumerate() {
            let fields = Loose::parse(&format!("[{index}]"), item.get()).map_err(Refused::from);
            match fields.and_then(|fields| Message::from_fields(&fields, Shape::Array, endpoint)) {
                Ok(message) => messages.push(message),
                Err(refused) => problems.push(refused.what),
            }
        }
        if problems.is_empty() {
            let shape = Shape::Array;
            Ok(Self { shape, messages })
        } else {
            Err(Refused::bad(problems.join("; ")))
        }
    }
}

impl Message {
    fn from_fields(
        from: &Loose<'_>,
        shape: Shape,
        endpoint: &DropInEndpoint,
    ) -> Result<Self, Refused> {
        let bad = |name: &str, what: &str| Refused::bad(format!("{} {what}", from.path_of(name)));
        let options = options(from)?;
        let sender = match from.text("from_uid")? {
            Some(sender) => Some(sender),
            None => from.text("sender_uid")?,
        };
        let sender = sender.filter(|sender| !sender.trim().is_empty());
        // Only a single message has a default sender.
        if sender.is_none() && matches!(shape, Shape::Array | Shape::Object) {
            return Err(bad("from_uid", "is missing"));
        }
        if from.flag("is_stream")? == Some(true) {
            return Err(bad("is_stream", "is not taken here"));
        }
        let audience = audience(from, shape, options.sync_once == Some(true), endpoint)?;
        let encoded = from.text("payload")?.unwrap_or_default();
        let payload = decoded(&encoded).ok_or_else(|| bad("payload", "is not base64"))?;
        if payload.is_empty() {
            return Err(bad("payload", "is missing or empty"));
        }
        let most = endpoint.limit("payload_max");
        if payload.len() > most {
            let what = format!("is longer than {most} bytes");
            return Err(bad("payload", &what));
        }
        let number = from.text("client_msg_no")?;
        let number = number.filter(|number| !number.trim().is_empty());
        let (message, encoded) = message(&payload);
        let key = number.as_deref().and_then(ingress::key);
        // A message to one channel keeps the caller's own number, so that the caller can look it
        // up.
        let to_channel = shape == Shape::Array || shape == Shape::Single;
        let as_given = to_channel && key.is_some() && key == number;
        Ok(Self {
            wanted: DropInJob {
                key,
                sender,
                audience,
                message,
                options,
                native: native(encoded.as_deref(), as_given),
                ..DropInJob::default()
            },
            number,
        })
    }
}

/// Reads `header`, and the fields that 3.x accepts in its place.
fn options(from: &Loose<'_>) -> Result<Options, Refused> {
    let json = from.object("header")?.unwrap_or("{}".into());
    let header = Loose::parse(&from.path_of("header"), &json)?;
    let flag = |name| match header.flag(name)? {
        Some(flag) => Ok::<_, Refused>(flag),
        None => Ok(from.flag(name)?.unwrap_or(false)),
    };
    let expire: Option<u32> = from.number("expire")?;
    Ok(Options {
        online_only: flag("no_persist")?.then_some(true),
        // Here a missing flag means "not unread"; on other systems it may mean the opposite.
        unread: Some(flag("red_dot")?),
        sync_once: flag("sync_once")?.then_some(true),
        expire_seconds: expire.filter(|seconds| *seconds > 0),
        ..Options::default()
    })
}

fn audience(
    from: &Loose<'_>,
    shape: Shape,
    sync_once: bool,
    endpoint: &DropInEndpoint,
) -> Result<AudienceDocument, Refused> {
    let bad = |name: &str, what: &str| Refused::bad(format!("{} {what}", from.path_of(name)));
    let subscribers = from.texts("subscribers")?.unwrap_or_default();
    let channel = from.text("channel_id")?.unwrap_or_default();
    if subscribers.iter().any(|uid| uid.trim().is_empty()) {
        return Err(bad("subscribers", "hold an empty uid"));
    }
    let most = endpoint.limit("recipients_max");
    if subscribers.len() > most {
        return Err(bad("subscribers", &format!("are more than {most}")));
    }
    if shape == Shape::Object {
        if subscribers.is_empty() {
            return Err(bad("subscribers", "is missing or empty"));
        }
        return Ok(users(subscribers));
    }
    if shape == Shape::Single && !subscribers.is_empty() {
        let what = "and channel_id cannot be given both";
        return Err(bad("subscribers", what));
    }
    if !subscribers.is_empty() {
        if !sync_once {
            return Err(bad(
                "subscribers",
                "are for messages with sync_once = 1 only",
            ));
        }
        return Ok(users(subscribers));
    }
    if channel.trim().is_empty() {
        return Err(bad("channel_id", "is missing"));
    }
    match from.number("channel_type")? {
        None | Some(0) => Err(bad("channel_type", "is missing")),
        Some(PERSON) if channel.contains(['@', '#', '&']) => {
            Err(bad("channel_id", "holds one of @, # and &"))
        }
        Some(PERSON) => Ok(users(vec![channel])),
        Some(kind) => Ok(AudienceDocument {
            groups: Some(vec![channel]),
            group_type: Some(kind),
            ..AudienceDocument::default()
        }),
    }
}

fn users(uids: Vec<String>) -> AudienceDocument {
    AudienceDocument {
        users: Some(uids.into_iter().map(Into::into).collect()),
        ..AudienceDocument::default()
    }
}

/// Decodes base64 as Go does: line breaks are ignored. Padding may be missing.
fn decoded(text: &str) -> Option<Vec<u8>> {
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    ENGINE.decode(text.replace(['\r', '\n'], "")).ok()
}

/// The fields for a target of the same system.
fn native(payload: Option<&str>, as_given: bool) -> Option<Box<RawValue>> {
    #[derive(Serialize)]
    struct Fields<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        payload: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        client_msg_no: Option<&'static str>,
    }
    if payload.is_none() && !as_given {
        return None;
    }
    let fields = Fields {
        payload,
        client_msg_no: as_given.then_some("job"),
    };
    Some(crate::json::raw(&fields))
}

/// The message that a payload contains; and the payload itself in base64, if the message does not
/// reproduce it exactly.
fn message(payload: &[u8]) -> (MessageDocument, Option<String>) {
    let text = std::str::from_utf8(payload).ok();
    let json = text
        .filter(|text| text.trim_start().starts_with(['{', '[']))
        .and_then(|text| RawValue::from_string(text.to_owned()).ok());
    let encoded = || base64::engine::general_purpose::STANDARD.encode(payload);
    match (json, text) {
        (Some(json), _) => match words(&json) {
            Some(text) => (of_text(&text), None),
            None => {
                // The JSON value loses whitespace around it.
                let changed = json.get().len() < payload.len();
                (custom(Some(json)), changed.then(encoded))
            }
        },
        (None, Some(text)) if text.len() <= TEXT_BYTES_MAX => (of_text(text), Some(encoded())),
        (None, Some(text)) => (custom(quoted(text)), Some(encoded())),
        (None, None) => (custom(quoted(&encoded())), Some(encoded())),
    }
}

/// The text of a payload that is a plain text message and has no other fields.
fn words(json: &RawValue) -> Option<String> {
    let fields = Loose::parse("payload", json.get()).ok()?;
    let plain =
        fields.number("type") == Ok(Some(TEXT)) && !fields.has_more_than(&["type", "content"]);
    let text: String = serde_json::from_str(fields.raw("content")?.get()).ok()?;
    (plain && (1..=TEXT_BYTES_MAX).contains(&text.len())).then_some(text)
}

fn of_text(text: &str) -> MessageDocument {
    MessageDocument {
        kind: Some("text".to_owned()),
        text: Some(text.to_owned()),
        ..MessageDocument::default()
    }
}

fn custom(data: Option<Box<RawValue>>) -> MessageDocument {
    MessageDocument {
        kind: Some("custom".to_owned()),
        data,
        ..MessageDocument::default()
    }
}

/// Renders the answer to a call.
struct WukongImReply {
    shape: Shape,
    /// The callers' numbers of the messages.
    numbers: Vec<Option<String>>,
}

/// A message in the answer to an array.
#[derive(Serialize)]
struct Listed<'a> {
    message_id: i64,
    message_seq: u64,
    client_msg_no: &'a str,
}

impl ingress::DropInReply for WukongImReply {
    fn render(&self, jobs: &[JobReport]) -> Spoken {
        let Some(first) = jobs.first() else {
            let what = "nothing is known of this call";
            return Refused::new(StatusCode::INTERNAL_SERVER_ERROR, what).spoken();
        };
        match self.shape {
            Shape::Array => self.array(jobs),
            Shape::Object => object(first),
            Shape::Single | Shape::Command => self.single(first),
        }
    }
}

impl WukongImReply {
    fn number<'a>(&'a self, index: usize, job_report: &'a JobReport) -> &'a str {
        let number = self.numbers.get(index).and_then(Option::as_deref);
        number.unwrap_or(&job_report.client_msg_no)
    }

    fn array(&self, jobs: &[JobReport]) -> Spoken {
        let refusals: Option<Vec<_>> = jobs.iter().map(refused).collect();
        if let Some(refused) = refusals.and_then(|refusals| refusals.into_iter().next()) {
            return refused.spoken();
        }
        let listed = jobs.iter().enumerate().map(|(index, job_report)| Listed {
            message_id: message_id(job_report),
            message_seq: 0,
            client_msg_no: self.number(index, job_report),
        });
        json(StatusCode::OK, &listed.collect::<Vec<_>>())
    }

    fn single(&self, job_report: &JobReport) -> Spoken {
        #[derive(Serialize)]
        struct SentData<'a> {
            status: u16,
            #[serde(skip_serializing_if = "Option::is_none")]
            data: Option<Data<'a>>,
        }
        #[derive(Serialize)]
        struct Data<'a> {
            message_id: i64,
            client_msg_no: &'a str,
        }
        if let Some(refused) = refused(job_report) {
            return refused.spoken();
        }
        let data = Data {
            message_id: message_id(job_report),
            client_msg_no: self.number(0, job_report),
        };
        let sent = SentData {
            status: StatusCode::OK.as_u16(),
            data: (self.shape == Shape::Single).then_some(data),
        };
        json(StatusCode::OK, &sent)
    }
}

/// Two lists of the same length: the failed recipients and the reasons.
fn object(job_report: &JobReport) -> Spoken {
    #[derive(Serialize)]
    struct Failed<'a> {
        fail_uids: Vec<&'a str>,
        reason: Vec<&'a str>,
    }
    let recipients = job_report.recipients.iter();
    let failed = recipients.filter_map(|(uid, report)| Some((uid.as_str(), report.reason()?)));
    let (fail_uids, reason) = failed.unzip();
    json(StatusCode::OK, &Failed { fail_uids, reason })
}

/// The refusal if no recipient got the message; `None` if one did.
fn refused(job_report: &JobReport) -> Option<Refused> {
    if job_report
        .recipients
        .iter()
        .any(|(_, report)| report.is_good())
    {
        return None;
    }
    let (_, report) = job_report.recipients.first()?;
    Refused::of_report(report)
}

/// The id of the message to the first recipient that got it; 0 if none did.
fn message_id(job_report: &JobReport) -> i64 {
    let mut good = job_report
        .recipients
        .iter()
        .filter(|(_, report)| report.is_good());
    good.next()
        .map_or(0, |(recipient, _)| job_report.message_id(recipient))
}
