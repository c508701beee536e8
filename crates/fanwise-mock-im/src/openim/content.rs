//! Checks contents: the content types accepted over HTTP, and the fields that each requires.
//!
//! The server decodes weakly (`"1"` counts as 1) and then requires that required fields are not
//! their zero value. It has no code of its own for either failure, so both are answered 500.

use serde_json::{Map, Value};

use super::refused::{ARGS, Refused, SERVER_INTERNAL};

pub(super) const OA_NOTIFICATION: i32 = 1400;
const AT: i32 = 106;
const AT_USERS_MAX: usize = 1000;

/// The required fields of a content type, as paths; `None` for a type that is not accepted.
fn required(content_type: i32) -> Option<&'static [&'static str]> {
    let fields: &[&str] = match content_type {
        101 => &["content"],
        102 => &[
            "sourcePicture/type",
            "sourcePicture/width",
            "sourcePicture/height",
            "sourcePicture/url",
            "bigPicture/type",
            "bigPicture/width",
            "bigPicture/height",
            "bigPicture/url",
            "snapshotPicture/type",
            "snapshotPicture/width",
            "snapshotPicture/height",
            "snapshotPicture/url",
        ],
        103 => &["sourceUrl", "duration"],
        104 => &[
            "videoUrl",
            "videoType",
            "videoSize",
            "duration",
            "snapshotUrl",
            "snapshotWidth",
            "snapshotHeight",
        ],
        105 => &["sourceUrl", "fileName", "fileSize"],
        AT => &[],
        110 => &["data"],
        114 => &[],
        118 => &["content"],
        OA_NOTIFICATION => &["notificationName", "notificationType", "text"],
        _ => return None,
    };
    Some(fields)
}

/// Refuses a content that the server would refuse.
pub(super) fn check(content_type: i32, content: &Map<String, Value>) -> Result<(), Refused> {
    let required = required(content_type)
        .ok_or_else(|| Refused::invalid(ARGS, "not support err contentType"))?;
    for path in required {
        if find(content, path).is_none_or(is_unfit) {
            return Err(undecodable(path, "required"));
        }
    }
    match content_type {
        AT => check_at(content),
        OA_NOTIFICATION => check_mix(content),
        _ => Ok(()),
    }
}

/// The field at a path; the server ignores the case of field names.
fn find<'a>(content: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    let (name, rest) = path.split_once('/').unwrap_or((path, ""));
    let mut fields = content.iter();
    let (_, value) = fields.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
    match rest {
        "" => Some(value),
        rest => find(value.as_object()?, rest),
    }
}

/// The list must be present but may be empty; weak decoding turns a single text into a list.
fn check_at(content: &Map<String, Value>) -> Result<(), Refused> {
    match find(content, "atUserList") {
        None | Some(Value::Null | Value::Object(_)) => Err(undecodable("atUserList", "required")),
        Some(Value::Array(users)) if users.len() > AT_USERS_MAX => {
            Err(undecodable("atUserList", "max"))
        }
        Some(_) => Ok(()),
    }
}

/// The kind of a notification's attachment; 0, for none, by default.
fn check_mix(content: &Map<String, Value>) -> Result<(), Refused> {
    let told = find(content, "mixType").filter(|value| !value.is_null());
    let kind = told.map_or(Some(0), Value::as_i64);
    match kind {
        Some(0..=5) => Ok(()),
        _ => Err(undecodable("mixType", "lte")),
    }
}

fn undecodable(path: &str, tag: &str) -> Refused {
    let text = format!("Field validation for '{path}' failed on the '{tag}' tag");
    Refused::invalid(SERVER_INTERNAL, text)
}

/// Whether this is Go's zero value, or cannot be decoded into a text or a number.
fn is_unfit(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) | Value::Array(_) | Value::Object(_) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) => false,
    }
}
