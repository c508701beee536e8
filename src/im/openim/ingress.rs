//! Reads calls of `/msg/batch_send_msg` and `/msg/send_msg` and answers them; also serves the
//! logins that come before them, `/auth/get_admin_token` and `/auth/user_token`.
//!
//! As with OpenIM, a batch always succeeds and lists the users that did not get the message,
//! without a reason; a single send says why. `serverMsgID` and `clientMsgID` are Fanwise's; the
//! latter is the same for all recipients.
//!
//! OpenIM uses the `operationID` only for tracing, and callers may give the same one to every call.
//! So it is not a key, unless the app sets `operation_id = "dedup"`. The same call with the same id
//! counts as a repeat within the endpoint's `repeat_window`, and after that as another message.
//!
//! Differences from OpenIM: `sendTime` is ignored, since a message with another time would hide
//! among older ones. A batch for a group is one message to the group. `isSendAll`, if the app
//! allows it, goes to all users of the target, page by page. Fanwise does not store the users, so
//! the answer lists none and has `accounts` in their place. If the target is not OpenIM,
//! `senderNickname`, `senderFaceURL`, `senderPlatformID` and a `sessionType` of 4 are dropped.
//! `offlinePushInfo.signalInfo` is always dropped.

/// Reads contents by their type.
mod content;
#[cfg(test)]
mod tests;
/// Issues and verifies tokens.
mod token;

use std::collections::BTreeMap;

use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::domain::fields::{shorten, summary};
use crate::domain::job::AudienceDocument;
use crate::domain::message::{Options, Push};
use crate::domain::outcome::{ANSWER_TEXT_MAX, Class};
use crate::im::ingress::loose::{Loose, Wrong};
use crate::im::ingress::{
    self, AllUsersReport, DropInEndpoint, DropInJob, DropInRequest, Incoming, Ingress, JobReport,
    Limit, RecipientReport, Refusal, Spoken, WrongCredentials, json, same,
};
use crate::im::openim::Settings;
use crate::im::openim::native::SESSION_TYPE;

const BATCH: &str = "/msg/batch_send_msg";
const SINGLE: &str = "/msg/send_msg";
const ADMIN_TOKEN: &str = "/auth/get_admin_token";
const USER_TOKEN: &str = "/auth/user_token";

const LIMITS: &[Limit] = &[
    Limit {
        name: "recipients_max",
        default: 100_000,
        what: "recvIDs of a call",
    },
    Limit {
        name: "mentions_max",
        default: 1000,
        what: "users that a message mentions",
    },
];

const ADMIN_PLATFORM: i32 = 10;

const SERVER: u32 = 500;
const ARGS: u32 = 1001;
const NO_PERMISSION: u32 = 1002;
const DUPLICATE_KEY: u32 = 1003;
const NOT_FOUND: u32 = 1004;

const TO_USER: i32 = 1;
const TO_SUPERSEDED_GROUP: i32 = 2;
const TO_GROUP: i32 = 3;
const NOTIFICATION: i32 = 4;

/// The ingress of OpenIM 3.x.
pub(in crate::im) struct OpenImIngress;

/// A refused call.
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    code: u32,
    detail: String,
}

impl Refused {
    fn new(code: u32, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self {
            status: StatusCode::OK,
            code,
            detail: shorten(&detail, ANSWER_TEXT_MAX).into_owned(),
        }
    }

    /// The refusal of a body that does not fit the call.
    fn unbound(detail: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            ..Self::new(ARGS, detail)
        }
    }

    fn missing(field: &str) -> Self {
        Self::unbound(format!(
            "Field validation for '{field}' failed on the 'required' tag"
        ))
    }

    /// The reason why a recipient did not get the message.
    fn of_report(report: &RecipientReport) -> Option<Self> {
        let RecipientReport::Ended { class, code, .. } = report else {
            return None;
        };
        let own = code.strip_prefix("err_").and_then(|code| code.parse().ok());
        let code = own.unwrap_or(match class {
            _ if report.is_unknown() => NOT_FOUND,
            Some(Class::Permanent) => ARGS,
            _ => SERVER,
        });
        Some(Self::new(code, report.reason().unwrap_or_default()))
    }

    fn spoken(&self) -> Spoken {
        let name = name(self.code);
        let last = format!(": [{}]{name}", self.code);
        // The error of an OpenIM backend already contains both.
        let said = self.detail.strip_suffix(&last).unwrap_or(&self.detail);
        let said = if said == name { "" } else { said };
        let envelope = Envelope::<()> {
            code: self.code,
            message: name,
            detail: format!("{said}{last}"),
            data: None,
        };
        json(self.status, &envelope)
    }
}

impl From<Wrong> for Refused {
    fn from(wrong: Wrong) -> Self {
        Self::unbound(wrong.to_string())
    }
}

/// The envelope of every answer.
#[derive(Serialize)]
struct Envelope<T> {
    #[serde(rename = "errCode")]
    code: u32,
    #[serde(rename = "errMsg")]
    message: &'static str,
    #[serde(rename = "errDlt")]
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<T>,
}

fn success(data: impl Serialize) -> Spoken {
    let envelope = Envelope {
        code: 0,
        message: "",
        detail: String::new(),
        data: Some(data),
    };
    json(StatusCode::OK, &envelope)
}

/// The server's names for its codes.
fn name(code: u32) -> &'static str {
    match code {
        429 => "too many requests, please try again later",
        SERVER => "ServerInternalError",
        ARGS => "ArgsError",
        NO_PERMISSION => "NoPermissionError",
        DUPLICATE_KEY => "DuplicateKeyError",
        NOT_FOUND => "RecordNotFoundError",
        1101 => "UserIDNotFoundError",
        1201 => "GroupIDNotFoundError",
        1203 => "NotInGroupYetError",
        1204 => "DismissedAlreadyError",
        1302 => "BlockedByPeer",
        1303 => "NotPeersFriend",
        1402 => "MutedInGroup",
        1403 => "MutedGroup",
        1501 => "TokenExpiredError",
        1502 => "TokenInvalidError",
        1503 => "TokenMalformedError",
        1504 => "TokenNotValidYetError",
        1505 => "TokenUnknownError",
        1507 => "TokenNotExistError",
        _ => "Error",
    }
}

impl Ingress for OpenImIngress {
    fn paths(&self) -> &'static [&'static str] {
        &[BATCH, SINGLE, ADMIN_TOKEN, USER_TOKEN]
    }

    fn limits(&self) -> &'static [Limit] {
        LIMITS
    }

    fn enter(
        &self,
        head: &Incoming<'_>,
        endpoints: &[DropInEndpoint],
    ) -> Result<Option<usize>, Spoken> {
        operation(head).map_err(|refused| refused.spoken())?;
        if is_login(head) {
            return Ok(None);
        }
        let entered = enter(head, endpoints);
        entered
            .map(|(endpoint, _)| Some(endpoint))
            .map_err(|refused| refused.spoken())
    }

    fn trace_setting(&self) -> Option<&'static str> {
        Some("operation_id")
    }

    fn read_request(
        &self,
        incoming: &Incoming<'_>,
        endpoints: &[DropInEndpoint],
    ) -> Result<DropInRequest, Spoken> {
        let refused = |refused: Refused| refused.spoken();
        let operation = operation(incoming).map_err(refused)?;
        if is_login(incoming) {
            return Err(login(incoming, endpoints).unwrap_or_else(|refused| wrong_login(&refused)));
        }
        let (endpoint, admin) = enter(incoming, endpoints).map_err(refused)?;
        let call = Call::from_request(incoming, &endpoints[endpoint], admin).map_err(refused)?;
        if call.is_for_nobody() {
            return Err(call.reply.answer(None));
        }
        Ok(DropInRequest {
            endpoint,
            nonce: None,
            jobs: vec![DropInJob {
                key: ingress::key(operation).filter(|_| endpoints[endpoint].id_is_key),
                trace: Some(operation.to_owned()),
                ..call.wanted
            }],
            reply: Box::new(call.reply),
        })
    }

    fn refuse(&self, refusal: &Refusal<'_>) -> Spoken {
        let (status, refused) = match refusal {
            Refusal::Unreadable(what) => (StatusCode::BAD_REQUEST, Refused::unbound(*what)),
            Refusal::Problems(problems) => (StatusCode::OK, Refused::new(ARGS, summary(problems))),
            Refusal::Conflict => {
                let detail = "this operationID was used for another message";
                (StatusCode::OK, Refused::new(DUPLICATE_KEY, detail))
            }
            Refusal::Replayed => (StatusCode::OK, Refused::new(ARGS, "the call came before")),
            Refusal::Forbidden(why) => (StatusCode::OK, Refused::new(NO_PERMISSION, *why)),
            Refusal::TooOften { .. } => (StatusCode::TOO_MANY_REQUESTS, Refused::new(429, "")),
            Refusal::Unavailable(why) => {
                (StatusCode::SERVICE_UNAVAILABLE, Refused::new(SERVER, *why))
            }
        };
        let mut spoken = Refused { status, ..refused }.spoken();
        if let Refusal::TooOften { block } = refusal {
            let seconds = HeaderValue::from(block.as_secs().max(1));
            spoken.headers_mut().insert(RETRY_AFTER, seconds);
        }
        spoken
    }
}

fn is_login(incoming: &Incoming<'_>) -> bool {
    [ADMIN_TOKEN, USER_TOKEN].contains(&incoming.path)
}

/// The `operationID`, which every call must have.
fn operation<'a>(incoming: &Incoming<'a>) -> Result<&'a str, Refused> {
    let operation = incoming.header("operationid").unwrap_or_default();
    if operation.is_empty() {
        return Err(Refused::new(ARGS, "header must have operationID"));
    }
    Ok(operation)
}

fn wrong_login(refused: &Refused) -> Spoken {
    let mut spoken = refused.spoken();
    spoken.extensions_mut().insert(WrongCredentials);
    spoken
}

fn admin_of(endpoint: &DropInEndpoint) -> &str {
    endpoint.key.as_deref().unwrap_or(Settings::ADMIN_USER)
}

/// Issues a token to a caller that has the secret.
fn login(incoming: &Incoming<'_>, endpoints: &[DropInEndpoint]) -> Result<Spoken, Refused> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Issued {
        token: String,
        expire_time_seconds: u64,
    }
    let body = Loose::body(incoming.body)?;
    let secret = body.text("secret")?.unwrap_or_default();
    let user = body.text("userID")?.unwrap_or_default();
    let knows = |endpoint: &&DropInEndpoint| {
        let theirs = endpoint.secret.as_ref();
        theirs.is_none_or(|theirs| same(secret.as_bytes(), theirs.expose().as_bytes()))
    };
    let known: Vec<_> = endpoints.iter().filter(knows).collect();
    let Some(first) = known.first() else {
        return Err(Refused::new(NO_PERMISSION, "secret invalid"));
    };
    let own = known.iter().find(|endpoint| admin_of(endpoint) == user);
    let (endpoint, platform) = match own {
        Some(endpoint) if incoming.path == ADMIN_TOKEN => (endpoint, ADMIN_PLATFORM),
        None if incoming.path == ADMIN_TOKEN || user.is_empty() => {
            return Err(Refused::new(ARGS, "userID is error."));
        }
        own => {
            let platform = body.number("platformID")?.unwrap_or_default();
            (own.unwrap_or(first), platform)
        }
    };
    Ok(success(Issued {
        token: token::issue(endpoint, &user, platform, incoming.now_ms),
        expire_time_seconds: token::LIFETIME_SECONDS,
    }))
}

/// The endpoint that a call belongs to, and whether the caller is its administrator.
fn enter(incoming: &Incoming<'_>, endpoints: &[DropInEndpoint]) -> Result<(usize, bool), Refused> {
    let refused = match incoming.header("token").unwrap_or_default() {
        "" => Refused::new(ARGS, "header must have token"),
        token => match token::verify(token, endpoints, incoming.now_ms) {
            Ok((endpoint, user)) => return Ok((endpoint, user == admin_of(&endpoints[endpoint]))),
            Err(refused) => refused,
        },
    };
    let open = endpoints
        .iter()
        .position(|endpoint| endpoint.secret.is_none());
    open.map(|endpoint| (endpoint, true)).ok_or(refused)
}

/// A call that was read and accepted.
struct Call {
    wanted: DropInJob,
    reply: OpenImReply,
}

impl Call {
    fn from_request(
        incoming: &Incoming<'_>,
        endpoint: &DropInEndpoint,
        admin: bool,
    ) -> Result<Self, Refused> {
        let batch = incoming.path == BATCH;
        let body = Loose::body(incoming.body)?;
        let needed = |name| body.text(name)?.ok_or_else(|| Refused::missing(name));
        let number = |name| match body.number(name)? {
            None | Some(0) => Err(Refused::missing(name)),
            Some(number) => Ok(number),
        };
        let sender = needed("sendID")?;
        let content_type = number("contentType")?;
        let session = number("sessionType")?;
        let said = body.object("content")?;
        let said = said.ok_or_else(|| Refused::missing("content"))?;
        let fields = Loose::parse("content", &said)?;
        let group = match session {
            TO_GROUP | TO_SUPERSEDED_GROUP => Some(needed("groupID")?),
            _ => None,
        };
        let all = batch && body.flag("isSendAll")?.unwrap_or(false);
        // A notice goes to users, whatever the session.
        let to_users = group.is_none() || content_type == content::NOTICE;
        let users = match (to_users, batch) {
            (false, _) => Vec::new(),
            (true, false) => vec![needed("recvID")?],
            (true, true) if all => Vec::new(),
            (true, true) => {
                let users = body.texts("recvIDs")?;
                users.ok_or_else(|| Refused::missing("recvIDs"))?
            }
        };
        let (options, native) = (options(&body)?, native(&body)?);
        if !admin {
            let detail = "only app manager can send message";
            return Err(Refused::new(NO_PERMISSION, detail));
        }
        if ![TO_USER, TO_GROUP, NOTIFICATION].contains(&session) {
            return Err(Refused::new(ARGS, "unknown sessionType"));
        }
        if all && to_users && !endpoint.send_all {
            let detail = "this app may not send to all users";
            return Err(Refused::new(NO_PERMISSION, detail));
        }
        let most = endpoint.limit("recipients_max");
        if users.len() > most {
            return Err(Refused::new(ARGS, format!("more than {most} recvIDs")));
        }
        let mentions = endpoint.limit("mentions_max");
        let (message, whole) = content::message(content_type, &fields, mentions)?;
        let mut native = native;
        // A notice always has the session of its type.
        if group.is_none() && content_type != content::NOTICE {
            native.extend(raw(&session).map(|it| (SESSION_TYPE, it)));
        }
        if !whole {
            native.extend(raw(&content_type).map(|it| ("contentType", it)));
            native.extend(fields.without(&[]).map(|it| ("content", it)));
        }
        let audience = AudienceDocument {
            users: (to_users && !all).then(|| users.into_iter().map(Into::into).collect()),
            groups: group.filter(|_| !to_users).map(|group| vec![group]),
            all: to_users && all,
            ..AudienceDocument::default()
        };
        Ok(Self {
            wanted: DropInJob {
                sender: Some(sender),
                audience,
                message,
                options,
                native: if native.is_empty() {
                    None
                } else {
                    raw(&native)
                },
                ..DropInJob::default()
            },
            reply: if batch {
                OpenImReply::Batch
            } else {
                OpenImReply::Single
            },
        })
    }

    /// A batch without recipients succeeds immediately.
    fn is_for_nobody(&self) -> bool {
        self.wanted
            .audience
            .users
            .as_ref()
            .is_some_and(Vec::is_empty)
    }
}

fn options(body: &Loose<'_>) -> Result<Options, Refused> {
    let silent = body.flag("notOfflinePush")?.unwrap_or(false);
    let info = body.object("offlinePushInfo")?.unwrap_or("{}".into());
    let info = Loose::parse("offlinePushInfo", &info)?;
    let push = Push {
        enabled: silent.then_some(false),
        title: info.text("title")?,
        text: info.text("desc")?,
        payload: info.text("ex")?.as_deref().and_then(ingress::quoted),
        sound: info.text("iOSPushSound")?,
        badge: info.flag("iOSBadgeCount")?,
        forced: None,
    };
    let push = match silent {
        // As documented, the other push fields are then ignored.
        true => Some(Push {
            enabled: push.enabled,
            ..Push::default()
        }),
        false => {
            let fields = ["title", "desc", "ex", "iOSPushSound", "iOSBadgeCount"];
            fields.iter().any(|name| info.has(name)).then_some(push)
        }
    };
    Ok(Options {
        online_only: body.flag("isOnlineOnly")?.filter(|only| *only),
        push,
        extension: body.text("ex")?.as_deref().and_then(ingress::quoted),
        ..Options::default()
    })
}

/// Reads the fields that the model does not have.
fn native(body: &Loose<'_>) -> Result<BTreeMap<&'static str, Box<RawValue>>, Refused> {
    // It has no effect, but must be a number.
    body.number::<i64>("sendTime")?;
    let mut native = BTreeMap::new();
    for name in ["senderNickname", "senderFaceURL"] {
        let text = body.text(name)?;
        native.extend(
            text.as_deref()
                .and_then(ingress::quoted)
                .map(|it| (name, it)),
        );
    }
    // The caller's clients may read `ex` in their own way, so Fanwise must not add a value.
    if body.text("ex")?.is_none() {
        native.extend(ingress::quoted("").map(|it| ("ex", it)));
    }
    let platform: Option<i32> = body.number("senderPlatformID")?;
    let platform = platform.filter(|platform| *platform != 0);
    native.extend(
        platform
            .and_then(|it| raw(&it))
            .map(|it| ("senderPlatformID", it)),
    );
    Ok(native)
}

fn raw(value: &impl Serialize) -> Option<Box<RawValue>> {
    Some(crate::json::raw(value))
}

/// Renders the answer to a call.
#[derive(Clone, Copy, Debug)]
enum OpenImReply {
    Batch,
    Single,
}

/// A message in the answer.
#[derive(Serialize)]
struct SentData<'a> {
    #[serde(rename = "serverMsgID")]
    server_id: String,
    #[serde(rename = "clientMsgID")]
    client_id: String,
    #[serde(rename = "sendTime")]
    send_time: u64,
    #[serde(rename = "recvID", skip_serializing_if = "Option::is_none")]
    recipient: Option<&'a str>,
}

/// An empty list is `null`, as Go writes a list without entries.
#[derive(Serialize)]
struct Lists<'a> {
    results: Option<Vec<SentData<'a>>>,
    #[serde(rename = "failedUserIDs")]
    failed: Option<Vec<&'a str>>,
    /// Replaces the lists of users for a request that names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    accounts: Option<AllUsersData>,
}

/// The results of a message to all users.
#[derive(Serialize)]
struct AllUsersData {
    /// The number of users listed so far.
    total: u64,
    sent: u64,
    failed: u64,
    pending: u64,
}

impl AllUsersData {
    fn of(everybody: &AllUsersReport) -> Self {
        let accounts = &everybody.accounts;
        let sent = accounts.sent + accounts.duplicate;
        Self {
            total: accounts.total,
            sent,
            failed: accounts.settled().saturating_sub(sent),
            pending: accounts.total.saturating_sub(accounts.settled()),
        }
    }

    /// The refusal of the whole message, if all recipients are settled and none got it.
    fn refused(everybody: &AllUsersReport) -> Option<Refused> {
        let all = Self::of(everybody);
        (everybody.is_complete && all.sent == 0 && all.failed > 0).then(|| {
            Refused::new(
                SERVER,
                format!("none of {} users got the message", all.total),
            )
        })
    }
}

impl ingress::DropInReply for OpenImReply {
    fn render(&self, jobs: &[JobReport]) -> Spoken {
        self.answer(jobs.first())
    }
}

impl OpenImReply {
    fn answer(self, job_report: Option<&JobReport>) -> Spoken {
        let everybody = job_report.and_then(|job_report| job_report.everybody.as_ref());
        if let Some(refused) = everybody.and_then(AllUsersData::refused) {
            return refused.spoken();
        }
        match (self, job_report) {
            (Self::Batch, job_report) => success(lists(job_report)),
            (Self::Single, Some(job_report)) => single(job_report),
            (Self::Single, None) => Refused::new(SERVER, "nothing is known of it").spoken(),
        }
    }
}

fn lists(job_report: Option<&JobReport>) -> Lists<'_> {
    let recipients = || {
        job_report
            .iter()
            .flat_map(|job_report| &job_report.recipients)
    };
    let (mut results, mut failed) = (Vec::new(), Vec::new());
    for (recipient, report) in recipients() {
        match job_report.filter(|_| report.is_good()) {
            Some(job_report) => results.push(sent(job_report, recipient, Some(recipient))),
            None => failed.push(recipient.as_str()),
        }
    }
    Lists {
        results: Some(results).filter(|list| !list.is_empty()),
        failed: Some(failed).filter(|list| !list.is_empty()),
        accounts: job_report
            .and_then(|job_report| job_report.everybody.as_ref())
            .map(AllUsersData::of),
    }
}

fn single(job_report: &JobReport) -> Spoken {
    let Some((recipient, report)) = job_report.recipients.first() else {
        return Refused::new(SERVER, "nothing is known of it").spoken();
    };
    match Refused::of_report(report) {
        Some(refused) => refused.spoken(),
        None => success(sent(job_report, recipient, None)),
    }
}

fn sent<'a>(job_report: &JobReport, recipient: &str, shown: Option<&'a str>) -> SentData<'a> {
    SentData {
        server_id: job_report.message_id_hex(recipient),
        // No recipient has an empty id, so this is the id of no recipient's message.
        client_id: job_report.message_id_hex(""),
        send_time: job_report.accepted_at_ms,
        recipient: shown,
    }
}
