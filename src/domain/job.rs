//! Reads jobs as producers publish them, and reports every problem of an invalid one.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::audience::{Audience, Member};
pub use super::audience::{AudienceDocument, MemberDocument};
use super::canonical::canonical;
use super::fields::{Fields, Problem, Problems};
use super::ids::JobId;
use super::lane::Priority;
use super::limits::Rate;
use super::mapping::Strictness;
pub use super::message::MessageDocument;
use super::message::{Content, Message, Options};
use super::notice::{CallbackRules, REPLY_TO_BYTES_MAX};
use super::outcome::OnUncertain;
use super::personal::Form;
use super::placeholders::unfilled;
use super::slice::{Head, Together};
use super::template::named_version;
use super::text;

/// Version of the job contract.
pub const JOB_VERSION: u32 = 1;
/// The app of a job that has none.
pub const DEFAULT_APP: &str = "default";
/// Largest inline job, in bytes of JSON. RabbitMQ 4.x refuses messages above 16 MiB.
pub const JOB_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most recipients in one inline job; a longer list travels as parts of one job.
pub const JOB_RECIPIENTS_MAX: usize = 100_000;
/// Longest `client_msg_no`, in bytes.
pub const CLIENT_MSG_NO_BYTES_MAX: usize = 128;
/// Longest recipient or sender id, in bytes.
pub const RECIPIENT_BYTES_MAX: usize = 255;
/// Longest app or target name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest `rate`, in bytes.
const RATE_BYTES_MAX: usize = 64;
/// Most parts of one job.
pub const PARTS_MAX: u32 = 10_000;

/// A job as JSON, for producers. The schema in `schemas/job.schema.json` is generated from this type.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Job", deny_unknown_fields)]
pub struct JobDocument {
    /// Version of this contract: 1.
    #[schemars(range(min = 1, max = 1))]
    pub v: u32,
    /// The key of the job within its app, 1 to 128 bytes. The same key with the same message is the
    /// same job; further recipients extend it; another message is refused.
    #[schemars(length(min = 1, max = 128))]
    pub client_msg_no: String,
    /// The tenant; `default` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// Where to send; the app's default target if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The sender of the message, as the target names it; the target's default sender if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub sender: Option<String>,
    pub audience: AudienceDocument,
    pub message: MessageDocument,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<Options>,
    /// `high`, `normal` or `bulk`; the routing key of the AMQP message if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// RFC 3339 time before which nothing is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// RFC 3339 time after which nothing is sent; the remaining recipients end as `expired`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// A limit of this job alone, such as `500/s` or `500/s burst 50`, in recipients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// What to do when a reply is lost; the target's own rule if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_uncertain: Option<OnUncertain>,
    /// What to do about fields that the target does not support; `strict` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mapping: Option<Strictness>,
    /// URL that gets the job's accounts in a signed POST when the job completes. The app's
    /// configuration lists the hosts that are allowed. If the submissions of a job name several
    /// URLs, the first one counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub callback_url: Option<String>,
    /// AMQP queue to which the job's accounts are published when it completes, through the default
    /// exchange, with the `client_msg_no` as correlation id. The app's configuration lists the
    /// queues that are allowed. If the submissions of a job name several queues, the first one
    /// counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub reply_to: Option<String>,
    /// Must be `true` for an audience of all users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirm_all: Option<bool>,
    /// Set when one audience travels as several messages: the job completes only when all parts
    /// have arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<ListPart>,
}

impl JobDocument {
    /// A job with only the fields that every job has.
    pub fn new(
        client_msg_no: impl Into<String>,
        audience: AudienceDocument,
        message: MessageDocument,
    ) -> Self {
        Self {
            v: JOB_VERSION,
            client_msg_no: client_msg_no.into(),
            app: None,
            target: None,
            sender: None,
            audience,
            message,
            options: None,
            priority: None,
            not_before: None,
            expires_at: None,
            rate: None,
            on_uncertain: None,
            mapping: None,
            callback_url: None,
            reply_to: None,
            confirm_all: None,
            part: None,
        }
    }
}

/// The part of a job that a message carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListPart {
    /// 1 to `of`.
    #[schemars(range(min = 1, max = 10_000))]
    pub number: u32,
    #[schemars(range(min = 1, max = 10_000))]
    pub of: u32,
    /// Name of the whole list, 1 to 64 bytes. Nothing is sent to the list before all its parts are
    /// accepted. If some of them do not arrive within an hour, all its recipients end as
    /// `cancelled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub together: Option<String>,
}

impl ListPart {
    /// Whether a message that no recipient of this part can have is wrong for the whole job: the
    /// part is the whole list, or the first part of a list that is sent to together or not at all.
    fn speaks_for_all(&self) -> bool {
        self.of == 1 || self.number == 1 && self.together.is_some()
    }

    pub const WHOLE: Self = Self {
        number: 1,
        of: 1,
        together: None,
    };

    /// The facts about the other parts that the slices carry.
    pub fn together(&self) -> Option<Together> {
        let list = self.together.clone().filter(|_| self.of > 1)?;
        Some(Together {
            list,
            number: self.number,
            of: self.of,
        })
    }
}

/// The configuration that reading a job needs: default targets, known names, allowed destinations.
pub trait Context {
    /// The default target of an app; an error text if there is no such app or no default.
    fn default_target(&self, app: &str) -> Result<String, String>;
    /// An error text if there is no such app. An implementation that knows no apps accepts every
    /// app.
    fn check_app(&self, _app: &str) -> Result<(), String> {
        Ok(())
    }
    /// An error text if there is no such target.
    fn check_target(&self, target: &str) -> Result<(), String>;
    /// Whether the target treats `Ana` and `ana` as the same user.
    fn folds_case(&self, target: &str) -> bool;
    /// An error text if jobs of this app may not send their accounts to this URL.
    fn check_callback(&self, app: &str, url: &str) -> Result<(), String>;
    /// An error text if jobs of this app may not publish their accounts to this queue.
    fn check_reply_to(&self, app: &str, queue: &str) -> Result<(), String>;
}

/// The target for an app's jobs without one: its default, or the only target of the configuration.
pub fn default_target<A, T>(
    app: &str,
    targets: &BTreeMap<String, T>,
    apps: &BTreeMap<String, A>,
    default: impl Fn(&A) -> Option<&String>,
) -> Result<String, String> {
    known_app(app, apps)?;
    let found = apps.get(app);
    let mut all = targets.keys();
    match (found.and_then(default), all.next(), all.next()) {
        (Some(target), ..) => Ok(target.clone()),
        (None, Some(only), None) => Ok(only.clone()),
        (None, None, _) => {
            Err("no target is configured: the configuration needs a [targets.NAME]".to_owned())
        }
        (None, Some(_), Some(_)) => Err(format!(
            "app {app:?} has no default target, and the job names none of {}",
            names(targets)
        )),
    }
}

/// An error text if there is no such app.
pub fn known_app<A>(app: &str, apps: &BTreeMap<String, A>) -> Result<(), String> {
    match apps.contains_key(app) {
        true => Ok(()),
        false => Err(format!(
            "there is no app {app:?}; there are: {}",
            names(apps)
        )),
    }
}

/// An error text if there is no such target.
pub fn known_target<T>(target: &str, targets: &BTreeMap<String, T>) -> Result<(), String> {
    if targets.contains_key(target) {
        return Ok(());
    }
    Err(format!(
        "there is no target {target:?}; there are: {}",
        names(targets)
    ))
}

fn names<T>(things: &BTreeMap<String, T>) -> String {
    let names: Vec<_> = things.keys().map(String::as_str).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// The error text for a job that the ledger does not know.
pub fn unknown(name: &str) -> String {
    format!(
        "there is no job {name}: not accepted yet, rejected (`fanwise dead rejected` shows why), or older \
         than the dedup window"
    )
}

/// An error text if jobs of an app with these rules, or without rules, may not name this URL.
pub fn check_callback(app: &str, rules: Option<&CallbackRules>, url: &str) -> Result<(), String> {
    match rules {
        Some(rules) => rules.check(url),
        None => Err(format!(
            "app {app:?} sends no callbacks: its configuration has no [apps.{app}.callbacks]"
        )),
    }
}

/// A valid job. Its recipients stay in the message and are read from there one at a time, so no
/// audience needs a second copy.
#[derive(Debug)]
pub struct Job<'a> {
    pub head: Head,
    /// Digest of everything that is sent or decides how; a different digest under the same key is a
    /// conflict.
    pub content_digest: String,
    /// Identifies this list within the job; a repeat of the same message has the same value.
    pub submission: String,
    /// List entries, with repeats and without excluded ones.
    pub entries: usize,
    pub part: ListPart,
    pub strictness: Strictness,
    audience: Audience<'a>,
}

impl<'a> Job<'a> {
    /// Reads a job published with this routing key.
    pub fn read(
        body: &'a [u8],
        routing_key: Option<Priority>,
        context: &impl Context,
        now: Timestamp,
    ) -> Result<Self, Vec<Problem>> {
        if body.len() > JOB_BYTES_MAX {
            let what = format!(
                "{} bytes, at most {JOB_BYTES_MAX} are allowed in one message; send longer lists as parts",
                body.len()
            );
            return Err(vec![Problem::new("", what)]);
        }
        let text = text::read(body).map_err(|what| vec![Problem::new("", what)])?;
        let mut problems = Problems::default();
        problems.extend(half_character(text));
        let job = Fields::open("", text, &mut problems)
            .and_then(|fields| read_job(fields, routing_key, context, now, &mut problems));
        match job {
            Some(job) if problems.is_empty() => Ok(job),
            _ => Err(problems.into()),
        }
    }

    /// The id of the job in a message, even if the job is invalid.
    pub fn named(body: &[u8]) -> Option<JobId> {
        #[derive(Deserialize)]
        struct Name {
            client_msg_no: String,
            app: Option<String>,
        }
        let name: Name = serde_json::from_str(text::read(body).ok()?).ok()?;
        let app = name.app.as_deref().unwrap_or(DEFAULT_APP);
        Some(JobId::of(app, &name.client_msg_no))
    }

    /// Calls `each` with every recipient, in the order of the list.
    pub fn for_each_recipient(&self, each: impl FnMut(Member<'a>)) {
        self.audience.for_each(each);
    }

    /// Returns a problem if the job has expired: no recipient would get it. The check is for new
    /// jobs; a job that was accepted in time ends as expired.
    pub fn too_late(&self, now_ms: u64) -> Option<Problem> {
        let at = self.head.expires_at_ms.filter(|at| *at <= now_ms)?;
        let at = Timestamp::from_millisecond(at.cast_signed()).unwrap_or_default();
        let what = format!("{at} has passed: no recipient would get the message");
        Some(Problem::new("expires_at", what))
    }

    /// Whether the audience is all users of the target instead of a list.
    pub fn is_for_all(&self) -> bool {
        self.audience.is_all()
    }

    /// The recipients that the job leaves out, sorted.
    pub fn excluded(&self) -> &[Cow<'a, str>] {
        self.audience.excluded()
    }
}

fn read_job<'a>(
    mut fields: Fields<'a>,
    routing_key: Option<Priority>,
    context: &impl Context,
    now: Timestamp,
    problems: &mut Problems,
) -> Option<Job<'a>> {
    match fields.get::<u32>("v", "the number 1", problems) {
        Some(JOB_VERSION) => {}
        Some(other) => fields.problem("v", format!("version {other} is unknown, use 1"), problems),
        None => fields.problem(
            "v",
            "missing; the version of the contract, 1, is expected",
            problems,
        ),
    }
    let client_msg_no = read_id(
        &mut fields,
        "client_msg_no",
        CLIENT_MSG_NO_BYTES_MAX,
        problems,
    );
    if client_msg_no.is_none() {
        fields.problem(
            "client_msg_no",
            "missing; it makes a repeat harmless",
            problems,
        );
    }
    let app =
        read_id(&mut fields, "app", NAME_BYTES_MAX, problems).unwrap_or_else(|| DEFAULT_APP.into());
    let target = read_target(&mut fields, &app, context, problems);
    let sender = read_id(&mut fields, "sender", RECIPIENT_BYTES_MAX, problems);
    let audience = read_required(&mut fields, "audience", problems)
        .and_then(|audience| Audience::read(audience, problems));
    let message = read_required(&mut fields, "message", problems)
        .and_then(|message| Message::read(message, problems));
    let options = fields
        .object("options", problems)
        .map_or_else(Options::default, |options| Options::read(options, problems));
    let priority = fields
        .get(
            "priority",
            "one of \"high\", \"normal\", \"bulk\"",
            problems,
        )
        .or(routing_key)
        .unwrap_or_default();
    let not_before = match read_time(&mut fields, "not_before", problems) {
        Some(Time::Never) => {
            let what = "is in the year 9999: nothing would ever be sent";
            fields.problem("not_before", what, problems);
            None
        }
        Some(Time::At(at)) => Some(at),
        None => None,
    };
    let expires_at = match read_time(&mut fields, "expires_at", problems) {
        Some(Time::At(at)) => Some(at),
        Some(Time::Never) | None => None,
    };
    if let (Some(from), Some(until)) = (not_before, expires_at)
        && from >= until
    {
        fields.problem(
            "expires_at",
            "is not after not_before: no recipient would get the message",
            problems,
        );
    }
    let rate = fields.line("rate", RATE_BYTES_MAX, problems);
    let rate = match rate.as_deref().map(str::parse::<Rate>).transpose() {
        Ok(rate) => rate,
        Err(error) => {
            fields.problem("rate", error.to_string(), problems);
            None
        }
    };
    let on_uncertain = fields.get(
        "on_uncertain",
        "one of \"retry\", \"hold\", \"drop\"",
        problems,
    );
    let mapping = fields.get("mapping", "one of \"strict\", \"lenient\"", problems);
    let callback_url = read_checked(&mut fields, "callback_url", problems, |url| {
        context.check_callback(&app, url)
    });
    let reply_to = read_checked(&mut fields, "reply_to", problems, |queue| {
        wrong_id(queue, REPLY_TO_BYTES_MAX).map_or_else(|| context.check_reply_to(&app, queue), Err)
    });
    let confirmed: Option<bool> = fields.get("confirm_all", "true or false", problems);
    let part = read_part(&mut fields, problems);
    if audience.as_ref().is_some_and(Audience::is_all) && confirmed != Some(true) {
        let what = "missing; a job for all users must set \"confirm_all\": true";
        fields.problem("confirm_all", what, problems);
    }
    fields.finish(problems);

    let (mut audience, message, target) = (audience?, message?, target?);
    audience.prepare(context.folds_case(&target));
    let totals = audience.totals(problems);
    // One part of several may be empty, since the others have recipients.
    if !audience.is_all() && totals.entries == 0 && part.of == 1 && problems.is_empty() {
        problems.push(Problem::new(
            "audience.users",
            "empty; no recipient would get the message",
        ));
    }
    let vars = match message.vars {
        None if totals.personal => Some(no_vars()),
        vars => vars,
    };
    match &vars {
        Some(_) if message.literal => {
            let what = "has no meaning beside `vars`: with them, texts are filled in";
            problems.push(Problem::new("message.literal", what));
        }
        Some(vars) => match Form::of(&message.content, &options, vars) {
            Err(found) => problems.extend(found),
            Ok(Some(form)) if problems.is_empty() && part.speaks_for_all() => {
                problems.extend(audience.unfillable(&form));
            }
            Ok(_) => {}
        },
        None if message.literal => {}
        None => problems.extend(unfilled(&message.content, &options)),
    }
    let client_msg_no = client_msg_no?;
    let head = Head {
        id: JobId::of(&app, &client_msg_no),
        app,
        client_msg_no,
        target,
        priority,
        sender,
        addressed: audience.addressed(),
        content: message.content,
        native: message.native,
        vars,
        options,
        accepted_at_ms: now.as_millisecond().unsigned_abs(),
        not_before_ms: not_before,
        expires_at_ms: expires_at,
        rate,
        on_uncertain,
        callback_url,
        reply_to,
    };
    Some(Job {
        content_digest: content_digest(&head),
        entries: totals.entries,
        submission: totals.digest(&part),
        part,
        strictness: mapping.unwrap_or_default(),
        audience,
        head,
    })
}

fn read_required<'a>(
    fields: &mut Fields<'a>,
    name: &'static str,
    problems: &mut Problems,
) -> Option<Fields<'a>> {
    let before = problems.found();
    let object = fields.object(name, problems);
    if object.is_none() && problems.found() == before {
        fields.problem(name, "missing", problems);
    }
    object
}

/// An id or name: printable, not empty, at most `bytes_max` bytes.
fn read_id(
    fields: &mut Fields<'_>,
    name: &'static str,
    bytes_max: usize,
    problems: &mut Problems,
) -> Option<String> {
    let id: String = fields.get(name, "a text", problems)?;
    if let Some(what) = wrong_id(&id, bytes_max) {
        fields.problem(name, what, problems);
    }
    Some(id)
}

/// Why a text cannot be an id; `None` if it can.
pub fn wrong_id(id: &str, bytes_max: usize) -> Option<String> {
    if id.is_empty() {
        Some("empty".to_owned())
    } else if id.len() > bytes_max {
        Some(format!(
            "{} bytes, at most {bytes_max} are allowed",
            id.len()
        ))
    } else if id.chars().any(char::is_control) {
        Some("contains a control character".to_owned())
    } else {
        let what = text::invisible(id)?;
        Some(format!(
            "contains {what}, so it is not the id that it looks like"
        ))
    }
}

/// A problem if a document contains half of a character, which later readers could not handle.
pub(super) fn half_character(json: &str) -> Option<Problem> {
    let half = text::half_character(json)?;
    let what = format!("half of a character, as when an emoji is cut, in {half:?}");
    Some(Problem::new("", what))
}

/// Reads a text that must pass a check.
fn read_checked(
    fields: &mut Fields<'_>,
    name: &'static str,
    problems: &mut Problems,
    check: impl FnOnce(&str) -> Result<(), String>,
) -> Option<String> {
    let text: String = fields.get(name, "a text", problems)?;
    if let Err(what) = check(&text) {
        fields.problem(name, what, problems);
    }
    Some(text)
}

fn read_target(
    fields: &mut Fields<'_>,
    app: &str,
    context: &impl Context,
    problems: &mut Problems,
) -> Option<String> {
    let named = read_id(fields, "target", NAME_BYTES_MAX, problems);
    // Checks the app even if the job names a target: an unknown app is a problem of its own.
    if let Err(what) = context.check_app(app) {
        fields.problem("app", what, problems);
        return None;
    }
    match (named, context.default_target(app)) {
        (Some(target), _) => match context.check_target(&target) {
            Ok(()) => Some(target),
            Err(what) => {
                fields.problem("target", what, problems);
                None
            }
        },
        (None, Ok(target)) => Some(target),
        (None, Err(what)) => {
            fields.problem("app", what, problems);
            None
        }
    }
}

/// A time, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Time {
    At(u64),
    /// The year 9999, which databases and .NET write for no end.
    Never,
}

fn read_time(fields: &mut Fields<'_>, name: &'static str, problems: &mut Problems) -> Option<Time> {
    let text: String = fields.get(name, "an RFC 3339 time", problems)?;
    let what = match text.parse::<Timestamp>() {
        // The last hours of that year are outside the range of a timestamp.
        _ if is_never(&text) => return Some(Time::Never),
        Ok(time) if time.as_millisecond() >= 0 => {
            return Some(Time::At(time.as_millisecond().unsigned_abs()));
        }
        _ if text.starts_with("0001-01-01") => {
            format!("{text:?} is how programs write \"no time\"; leave the field out")
        }
        Ok(_) => format!("{text:?} is before 1970"),
        Err(_) => format!("{text:?} is not an RFC 3339 time such as 2026-12-24T18:00:00+08:00"),
    };
    fields.problem(name, what, problems);
    None
}

fn is_never(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("9999-") else {
        return false;
    };
    let before = format!("9998-{rest}");
    before.parse::<Timestamp>().is_ok() || before.parse::<jiff::civil::DateTime>().is_ok()
}

fn read_part(fields: &mut Fields<'_>, problems: &mut Problems) -> ListPart {
    let expected = "an object such as {\"number\":1,\"of\":3}";
    let part = fields
        .get("part", expected, problems)
        .unwrap_or(ListPart::WHOLE);
    if part.number == 0 || part.number > part.of || part.of > PARTS_MAX {
        let what = format!(
            "{} of {} is not 1 to at most {PARTS_MAX}",
            part.number, part.of
        );
        fields.problem("part", what, problems);
    }
    if let Some(list) = &part.together
        && let Some(what) = wrong_id(list, NAME_BYTES_MAX)
    {
        fields.problem("part.together", what, problems);
    }
    part
}

/// No values for placeholders.
fn no_vars() -> Box<RawValue> {
    crate::json::raw(&serde_json::Map::new())
}

/// The digest of everything that distinguishes two messages under one key, in a canonical form:
/// white space and the order of keys do not count. A stored message counts by its name, because the
/// job keeps the version with which it started.
fn content_digest(head: &Head) -> String {
    let content = match &head.content {
        Content::Template(reference) => {
            Cow::Owned(Content::Template(named_version(reference).0.to_owned()))
        }
        content => Cow::Borrowed(content),
    };
    let raw = |raw: &Option<Box<RawValue>>| {
        let text = raw.as_ref().map_or("", |raw| raw.get());
        canonical(text)
    };
    super::ids::digest_hex(
        &[
            head.target.as_bytes(),
            head.sender.as_deref().unwrap_or_default().as_bytes(),
            canonical(&crate::json::text(&head.addressed)).as_bytes(),
            canonical(&crate::json::text(&*content)).as_bytes(),
            raw(&head.native).as_bytes(),
            raw(&head
                .vars
                .clone()
                .filter(|vars| vars.get() != no_vars().get()))
            .as_bytes(),
            canonical(&crate::json::text(&head.options)).as_bytes(),
        ],
        16,
    )
}

#[cfg(test)]
mod tests;
