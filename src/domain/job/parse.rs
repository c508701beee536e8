//! Parses a job field by field, and reports every problem.

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::context::Context;
use super::speaks_for_all;
use super::{
    CLIENT_MSG_NO_BYTES_MAX, DEFAULT_APP, JOB_VERSION, Job, ListPart, NAME_BYTES_MAX,
    PACE_DAYS_MAX, PARTS_MAX, RECIPIENT_BYTES_MAX, TAG_BYTES_MAX, TAGS_MAX, TIMEZONE_VAR_BYTES_MAX,
    wrong_id,
};
use crate::domain::audience::Audience;
use crate::domain::canonical::canonical;
use crate::domain::fallback::Fallback;
use crate::domain::fields::{Fields, Problem, Problems};
use crate::domain::frequency_cap::CATEGORY_BYTES_MAX;
use crate::domain::ids::{JobId, digest_hex};
use crate::domain::lane::Priority;
use crate::domain::limits::Rate;
use crate::domain::message::{Content, Message, Options, options_from_fields};
use crate::domain::notice::REPLY_TO_BYTES_MAX;
use crate::domain::personal::Form;
use crate::domain::placeholders::unfilled;
use crate::domain::slice::Head;
use crate::domain::template::named_version;
use crate::domain::window::{NoWindow, Window};

/// Longest `rate`, in bytes.
const RATE_BYTES_MAX: usize = 64;

/// Longest `window` and `timezone`, in bytes.
const WINDOW_BYTES_MAX: usize = 64;

const DAY_MS: u64 = 24 * 3600 * 1000;

pub(super) fn read_job<'a>(
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
        .and_then(|audience| Audience::from_fields(audience, problems));
    let message = read_required(&mut fields, "message", problems)
        .and_then(|message| Message::from_fields(message, problems));
    let options = fields
        .object("options", problems)
        .map_or_else(Options::default, |options| {
            options_from_fields(options, problems)
        });
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
    let window = read_window(&mut fields, problems);
    let start_ms = not_before
        .unwrap_or_default()
        .max(now.as_millisecond().unsigned_abs());
    let pace_until = read_pace(&mut fields, (not_before, start_ms), expires_at, problems);
    let category = read_checked(&mut fields, "category", problems, |category| {
        wrong_id(category, CATEGORY_BYTES_MAX)
            .map_or_else(|| context.check_category(&app, category), Err)
    });
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
    let keep_ids: Option<bool> = fields.get("keep_ids", "true or false", problems);
    let confirmed: Option<bool> = fields.get("confirm_all", "true or false", problems);
    let part = read_part(&mut fields, problems);
    let tags = read_tags(&mut fields, problems);
    let fallback = read_fallback(&mut fields, target.as_deref(), context, problems);
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
            Ok(Some(form)) if problems.is_empty() && speaks_for_all(&part) => {
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
        window,
        pace_until_ms: pace_until,
        category,
        rate,
        on_uncertain,
        callback_url,
        reply_to,
        fallback,
        keep_ids: keep_ids.unwrap_or_default(),
        fell_from: None,
    };
    Some(Job {
        content_digest: content_digest(&head),
        entries: totals.entries,
        submission: totals.digest(&part),
        part,
        strictness: mapping.unwrap_or_default(),
        tags,
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

/// The second target of a job.
fn read_fallback(
    fields: &mut Fields<'_>,
    first: Option<&str>,
    context: &impl Context,
    problems: &mut Problems,
) -> Option<Fallback> {
    let expected = "an object such as {\"target\":\"sms\",\"on\":[\"permanent\",\"transient\"]}";
    let mut fallback: Fallback = fields.get("fallback", expected, problems)?;
    let target = &fallback.target;
    if let Err(what) = context.check_target(target) {
        fields.problem("fallback.target", what, problems);
        return None;
    }
    if first == Some(target) {
        let what = format!("{target:?} is the first target of the job; name another one");
        fields.problem("fallback.target", what, problems);
    }
    // Two recipients of the first target could be one user of the second, who would get two messages.
    if first.is_some_and(|first| !context.folds_case(first)) && context.folds_case(target) {
        let what = format!(
            "{target:?} takes \"Ana\" and \"ana\" for one user, and the first target does not"
        );
        fields.problem("fallback.target", what, problems);
    }
    if fallback.on.is_empty() {
        let what = "empty; name \"permanent\", \"transient\" or both, or leave it out";
        fields.problem("fallback.on", what, problems);
    }
    fallback.on.sort_by_key(|class| *class as u8);
    fallback.on.dedup();
    Some(fallback)
}

/// The tags of a job, each once.
fn read_tags(fields: &mut Fields<'_>, problems: &mut Problems) -> Vec<String> {
    let mut tags: Vec<String> = fields
        .get("tags", "an array of texts", problems)
        .unwrap_or_default();
    if tags.len() > TAGS_MAX {
        let what = format!("{} tags, at most {TAGS_MAX} are allowed", tags.len());
        fields.problem("tags", what, problems);
    }
    for (index, tag) in tags.iter().enumerate().take(TAGS_MAX) {
        if let Some(what) = wrong_id(tag, TAG_BYTES_MAX) {
            fields.problem(&format!("tags[{index}]"), what, problems);
        }
    }
    tags.sort();
    tags.dedup();
    tags
}

/// A time, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Time {
    At(u64),
    /// The year 9999, which databases and .NET write for no end.
    Never,
}

fn read_window(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Window> {
    let hours = fields.line("window", WINDOW_BYTES_MAX, problems);
    let zone = fields.line("timezone", WINDOW_BYTES_MAX, problems);
    let var = read_id(fields, "timezone_var", TIMEZONE_VAR_BYTES_MAX, problems);
    let Some(hours) = hours else {
        let named = [
            ("timezone", zone.is_some()),
            ("timezone_var", var.is_some()),
        ];
        for (name, _) in named.into_iter().filter(|(_, is_there)| *is_there) {
            let what = "has no meaning without `window`, whose time zone it is";
            fields.problem(name, what, problems);
        }
        return None;
    };
    let zone = zone.as_deref().unwrap_or(Window::ZONE);
    match Window::new(&hours, zone) {
        Ok(window) => Some(window.with_zone_var(var)),
        Err(wrong) => {
            let name = match wrong {
                NoWindow::Hours(_) => "window",
                NoWindow::Zone(_) => "timezone",
            };
            fields.problem(name, wrong.to_string(), problems);
            None
        }
    }
}

/// The time until which the recipients are spread. `start`: before which nothing is sent, as the job
/// says, and in truth.
fn read_pace(
    fields: &mut Fields<'_>,
    (not_before, start_ms): (Option<u64>, u64),
    expires_at: Option<u64>,
    problems: &mut Problems,
) -> Option<u64> {
    let until = match read_time(fields, "pace_until", problems)? {
        Time::At(at) => at,
        Time::Never => {
            let what = "is in the year 9999: nothing would ever be sent";
            fields.problem("pace_until", what, problems);
            return None;
        }
    };
    let what = if not_before.is_some_and(|from| from >= until) {
        "is not after not_before: there is no time to spread the recipients over".to_owned()
    } else if expires_at.is_some_and(|at| at < until) {
        "is after expires_at: the last recipients would not get the message".to_owned()
    } else if until.saturating_sub(start_ms) > PACE_DAYS_MAX * DAY_MS {
        format!("is more than {PACE_DAYS_MAX} days after the start of the job")
    } else {
        return Some(until);
    };
    fields.problem("pace_until", what, problems);
    None
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
    let (addressed, content) = (
        canonical(&crate::json::text(&head.addressed)),
        canonical(&crate::json::text(&*content)),
    );
    let vars = raw(&head
        .vars
        .clone()
        .filter(|vars| vars.get() != no_vars().get()));
    let (native, options) = (
        raw(&head.native),
        canonical(&crate::json::text(&head.options)),
    );
    let mut parts = vec![
        head.target.as_bytes(),
        head.sender.as_deref().unwrap_or_default().as_bytes(),
        addressed.as_bytes(),
        content.as_bytes(),
        native.as_bytes(),
        vars.as_bytes(),
        options.as_bytes(),
    ];
    // Left out without one, so that the digest of a job stays what it was.
    let fallback = head.fallback.as_ref().map(crate::json::text);
    parts.extend(fallback.as_ref().map(|it| it.as_bytes()));
    digest_hex(&parts, 16)
}
