//! Parses the message and the options of a job field by field, and reports every problem.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::kinds::Rules as _;
use super::{
    DATA_BYTES_MAX, LINE_BYTES_MAX, MENTIONS_MAX, Message, MessageDocument, Moderation,
    NAME_BYTES_MAX, Options, Push, Route, TEXT_BYTES_MAX,
};
use crate::domain::audience::wrong_values;
use crate::domain::fields::{Fields, Problem, Problems, TWICE, name_twice};
use crate::domain::job::{RECIPIENT_BYTES_MAX, half_character, wrong_id};
use crate::domain::text;

fn document_from_fields(fields: &mut Fields<'_>, problems: &mut Problems) -> MessageDocument {
    let object = "a JSON object";
    MessageDocument {
        kind: fields.get("type", "a text", problems),
        text: fields.get("text", "a text", problems),
        url: fields.get("url", "a text", problems),
        name: fields.get("name", "a text", problems),
        size: fields.get("size", "a number of bytes", problems),
        format: fields.get("format", "a text", problems),
        md5: fields.get("md5", "a text", problems),
        width: fields.get("width", "a number of pixels", problems),
        height: fields.get("height", "a number of pixels", problems),
        duration_ms: fields.get("duration_ms", "a number of milliseconds", problems),
        cover: fields.get("cover", "a text", problems),
        latitude: fields.get("latitude", "a number of degrees", problems),
        longitude: fields.get("longitude", "a number of degrees", problems),
        title: fields.get("title", "a text", problems),
        users: read_mentions(fields, problems),
        everybody: fields.get("everybody", "true or false", problems),
        data: read_raw(fields, "data", problems),
        native: read_object(fields, "native", object, problems),
        template: fields.get("template", "a text", problems),
        vars: read_values(fields, object, problems),
        literal: fields.get("literal", "true or false", problems),
    }
}

impl Message {
    /// Reads `message` of a job, or a stored message.
    pub(in crate::domain) fn from_fields(
        mut fields: Fields<'_>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let before = problems.found();
        let mut document = document_from_fields(&mut fields, problems);
        if problems.found() == before {
            for Problem { field, what } in document.problems() {
                problems.push(Problem::new(fields.path_of(&field), what));
            }
        }
        fields.finish(problems);
        let (native, vars) = (document.native.take(), document.vars.take());
        let literal = document.literal.unwrap_or_default();
        (problems.found() == before).then(|| Self {
            literal,
            content: document.into_content(),
            native,
            vars,
        })
    }

    /// Reads a stored message from its JSON.
    pub fn from_json(json: &str) -> Result<Self, Vec<Problem>> {
        let json = text::unmarked(json);
        let mut problems = Problems::default();
        problems.extend(half_character(json));
        let message = Fields::open("message", json, &mut problems)
            .and_then(|fields| Self::from_fields(fields, &mut problems));
        let message = message.filter(|_| problems.is_empty());
        message.ok_or_else(|| problems.into())
    }
}

fn read_raw(
    fields: &mut Fields<'_>,
    name: &'static str,
    problems: &mut Problems,
) -> Option<Box<RawValue>> {
    let value = fields.raw(name)?;
    let size = value.get().len();
    if size > DATA_BYTES_MAX {
        let what = format!("{size} bytes, at most {DATA_BYTES_MAX} are allowed");
        fields.problem(name, what, problems);
    }
    Some(value.to_owned())
}

fn read_object(
    fields: &mut Fields<'_>,
    name: &'static str,
    expected: &str,
    problems: &mut Problems,
) -> Option<Box<RawValue>> {
    let value = read_raw(fields, name, problems)?;
    if !value.get().starts_with('{') {
        fields.problem(name, format!("{expected} is expected"), problems);
    } else if let Some(twice) = name_twice(value.get()) {
        fields.problem(name, format!("{twice:?} {TWICE}"), problems);
    }
    Some(value)
}

fn read_values(
    fields: &mut Fields<'_>,
    expected: &str,
    problems: &mut Problems,
) -> Option<Box<RawValue>> {
    let values = read_object(fields, "vars", expected, problems)?;
    if problems.is_empty()
        && let Some(what) = wrong_values(values.get())
    {
        fields.problem("vars", what, problems);
    }
    Some(values)
}

fn read_mentions(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Vec<String>> {
    let users = fields.texts("users", MENTIONS_MAX, problems)?;
    for (index, user) in users.iter().enumerate() {
        if let Some(what) = wrong_id(user, RECIPIENT_BYTES_MAX) {
            let path = fields.path_of(&format!("users[{index}]"));
            problems.push(Problem::new(path, what));
        }
    }
    Some(users.into_iter().map(Cow::into_owned).collect())
}

pub(in crate::domain) fn options_from_fields(
    mut fields: Fields<'_>,
    problems: &mut Problems,
) -> Options {
    let yes_no = "true or false";
    let options = Options {
        online_only: fields.get("online_only", yes_no, problems),
        unread: fields.get("unread", yes_no, problems),
        sync_once: fields.get("sync_once", yes_no, problems),
        expire_seconds: fields.get(
            "expire_seconds",
            "a number of seconds, 0 to 4294967295,",
            problems,
        ),
        sender_no_sense: fields.get("sender_no_sense", yes_no, problems),
        receiver_no_sense: fields.get("receiver_no_sense", yes_no, problems),
        push: fields
            .object("push", problems)
            .map(|push| push_from_fields(push, problems)),
        route: fields
            .object("route", problems)
            .map(|route| route_from_fields(route, problems)),
        moderation: fields
            .object("moderation", problems)
            .map(|moderation| moderation_from_fields(moderation, problems)),
        extension: read_raw(&mut fields, "extension", problems),
    };
    fields.finish(problems);
    options
}

fn push_from_fields(mut fields: Fields<'_>, problems: &mut Problems) -> Push {
    let push = Push {
        enabled: fields.get("enabled", "true or false", problems),
        title: fields.line("title", LINE_BYTES_MAX, problems),
        text: fields.line("text", TEXT_BYTES_MAX, problems),
        payload: read_raw(&mut fields, "payload", problems),
        sound: fields.line("sound", NAME_BYTES_MAX, problems),
        badge: fields.get("badge", "true or false", problems),
        forced: fields.get("forced", "true or false", problems),
    };
    fields.finish(problems);
    push
}

fn route_from_fields(mut fields: Fields<'_>, problems: &mut Problems) -> Route {
    let route = Route {
        enabled: fields.get("enabled", "true or false", problems),
        environment: fields.line("environment", NAME_BYTES_MAX, problems),
    };
    fields.finish(problems);
    route
}

fn moderation_from_fields(mut fields: Fields<'_>, problems: &mut Problems) -> Moderation {
    let moderation = Moderation {
        enabled: fields.get("enabled", "true or false", problems),
        business_id: fields.line("business_id", NAME_BYTES_MAX, problems),
    };
    fields.finish(problems);
    moderation
}
