//! Checks the parameters that describe a message, and their limits. Batch and single sends share
//! them.

use serde_json::{Map, Value};

use super::form::Form;

/// 0 text, 1 picture, 2 voice, 3 video, 4 location, 6 file, 10 tip, 100 custom.
pub(crate) const TYPES: [i64; 8] = [0, 1, 2, 3, 4, 6, 10, 100];
/// Types whose body is `{"msg": TEXT}`.
const TEXTS: [i64; 2] = [0, 10];

/// Parameters that contain JSON.
const JSON: [&str; 5] = [
    "option",
    "payload",
    "ext",
    "yidunAntiCheating",
    "yidunAntiSpamExt",
];

/// The longest value of a parameter, in characters.
const CHARS_MAX: [(&str, usize); 10] = [
    ("body", 5000),
    ("msgDesc", 500),
    ("pushcontent", 500),
    ("pushContent", 500),
    ("forcepushcontent", 500),
    ("payload", 2048),
    ("ext", 1024),
    ("yidunAntiCheating", 1024),
    ("yidunAntiSpamExt", 1024),
    ("env", 32),
];

/// Parameters that are 0 or 1.
const SWITCHES: [&str; 2] = ["msgSenderNoSense", "msgReceiverNoSense"];

pub(super) struct Message<'a> {
    pub(super) body: &'a str,
    /// The option `persistent` is false: a receiver that is offline never gets it.
    pub(super) online_only: bool,
}

impl Message<'_> {
    /// The message of a form, or the first rule that it breaks.
    pub(super) fn from_form(form: &Form) -> Result<Message<'_>, String> {
        for (name, max) in CHARS_MAX {
            if form
                .get(name)
                .is_some_and(|text| text.chars().count() > max)
            {
                return Err(format!("{name} is longer than {max} characters"));
            }
        }
        for name in JSON {
            let value = form.get(name).map(serde_json::from_str::<Value>);
            if matches!(value, Some(Err(_))) {
                return Err(format!("{name} is not JSON"));
            }
        }
        for name in SWITCHES {
            if !matches!(form.get(name), None | Some("0" | "1")) {
                return Err(format!("{name} is not 0 or 1"));
            }
        }
        let option: Map<String, Value> = match form.get("option").map(serde_json::from_str) {
            None => Map::new(),
            Some(Ok(option)) => option,
            Some(Err(_)) => return Err("option is not an object".to_owned()),
        };
        Ok(Message {
            body: body(form)?,
            online_only: option.get("persistent") == Some(&Value::Bool(false)),
        })
    }
}

fn body(form: &Form) -> Result<&str, String> {
    let type_ = form.get("type").and_then(|text| text.parse().ok());
    let Some(type_) = type_.filter(|type_| TYPES.contains(type_)) else {
        return Err("type is missing or not one".to_owned());
    };
    let text = form.get("body").ok_or("body is missing")?;
    let object: Map<String, Value> =
        serde_json::from_str(text).map_err(|_| "body is not a JSON object")?;
    let has_msg = object.get("msg").is_some_and(Value::is_string);
    if TEXTS.contains(&type_) && !has_msg {
        return Err("body has no msg".to_owned());
    }
    Ok(text)
}
