//! Checks the body of a send, by rules that batch and single sends share.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Admitted, Rejection};
use crate::netease::{TYPES, millis_now};
use crate::state::{Receipt, count};

const ANY_TEXT: Kind = Kind::Text(usize::MAX);

/// Fields that are optional, by section, in the vendor's spelling.
const FIELDS: [(&str, &str, Kind); 27] = [
    ("", "extension", ANY_TEXT),
    ("", "sender_no_sense", Kind::Bool),
    ("", "receiver_no_sense", Kind::Bool),
    ("", "need_message_detail", Kind::Bool),
    ("message", "message_client_id", ANY_TEXT),
    ("message", "sub_type", Kind::Positive),
    ("message", "attachment", Kind::Object),
    ("message_config", "unread_enabled", Kind::Bool),
    ("message_config", "mutil_sync_enabled", Kind::Bool),
    ("message_config", "offline_enabled", Kind::Bool),
    ("message_config", "history_enabled", Kind::Bool),
    ("message_config", "roaming_enabled", Kind::Bool),
    ("message_config", "conversation_update_enabled", Kind::Bool),
    ("route_config", "route_enabled", Kind::Bool),
    ("route_config", "route_environment", ANY_TEXT),
    ("push_config", "push_enabled", Kind::Bool),
    ("push_config", "push_nick_enabled", Kind::Bool),
    ("push_config", "push_content", Kind::Text(500)),
    ("push_config", "push_payload", Kind::Text(2048)),
    ("push_config", "push_forcepush_all", Kind::Bool),
    ("push_config", "push_forcepush_ids", Kind::Texts),
    ("push_config", "push_forcepush_content", Kind::Text(500)),
    ("antispam_config", "antispam_enabled", Kind::Bool),
    ("antispam_config", "antispam_business_id", ANY_TEXT),
    ("antispam_config", "antispam_extension", ANY_TEXT),
    ("antispam_config", "antispam_cheating", ANY_TEXT),
    ("p2p_option", "check_friend", Kind::Bool),
];

const SECTIONS: [&str; 6] = [
    "message",
    "message_config",
    "route_config",
    "push_config",
    "antispam_config",
    "p2p_option",
];

/// Types that are a text: 0 text, 10 tip.
const TEXTS: [i64; 2] = [0, 10];
const TEXT_CHARS_MAX: usize = 5000;
/// The text of other types is used only for search.
const SEARCH_TEXT_CHARS_MAX: usize = 500;
/// Neither sender nor receiver would notice the message.
const BOTH_NO_SENSE: u32 = 107_330;

/// The type that a field must have, unless it is missing or null.
#[derive(Clone, Copy)]
enum Kind {
    Bool,
    Positive,
    Object,
    Texts,
    /// With at most this many characters.
    Text(usize),
}

impl Kind {
    fn admits(self, value: &Value) -> bool {
        match self {
            Kind::Bool => value.is_boolean(),
            Kind::Positive => value.as_i64().is_some_and(|number| number > 0),
            Kind::Object => value.is_object(),
            Kind::Texts => {
                let texts = value.as_array();
                texts.is_some_and(|texts| texts.iter().all(Value::is_string))
            }
            Kind::Text(max) => {
                let text = value.as_str();
                text.is_some_and(|text| text.chars().count() <= max)
            }
        }
    }
}

/// A valid body.
pub(super) struct Request<'a> {
    pub(super) body: Value,
    /// The message as it was written.
    pub(super) payload: &'a str,
}

#[derive(Deserialize)]
struct Written<'a> {
    #[serde(borrow)]
    message: &'a RawValue,
}

impl<'a> Request<'a> {
    pub(super) fn from_call(admitted: &Admitted<'a>) -> Result<Request<'a>, Rejection> {
        let bytes: &'a [u8] = &admitted.call.body;
        let body: Value = serde_json::from_slice(bytes).unwrap_or_default();
        check(&body).map_err(|text| admitted.invalid(text))?;
        let written: Written<'a> =
            serde_json::from_slice(bytes).map_err(|_| admitted.invalid("message is missing"))?;
        if body["sender_no_sense"] == true && body["receiver_no_sense"] == true {
            count(&admitted.state.counters.invalid, 1);
            return Err(Rejection::new(BOTH_NO_SENSE, "nobody would sense it"));
        }
        let payload = written.message.get();
        Ok(Request { body, payload })
    }

    /// The caller's id of the message.
    pub(super) fn client_id(&self) -> Option<&str> {
        let id = self.body["message"]["message_client_id"].as_str();
        id.filter(|id| !id.is_empty())
    }

    /// Whether a receiver that is offline never gets it.
    pub(super) fn is_online_only(&self) -> bool {
        self.body["message_config"]["offline_enabled"] == false
    }

    /// The entry of a receiver's message in an answer.
    pub(super) fn shown(&self, sender: &str, conversation_type: u8, receipt: &Receipt) -> Value {
        let message = &self.body["message"];
        let mut shown = json!({
            "message_server_id": receipt.message_id,
            "sender_id": sender,
            "conversation_type": conversation_type,
            "receiver_id": receipt.recipient,
            "create_time": millis_now(),
        });
        let given = [
            "message_type",
            "message_client_id",
            "sub_type",
            "text",
            "attachment",
        ];
        for key in given.into_iter().filter(|key| !message[*key].is_null()) {
            shown[key] = message[key].clone();
        }
        shown
    }
}

/// Returns the first rule that a body breaks.
fn check(body: &Value) -> Result<(), String> {
    if !body.is_object() {
        return Err("the body is not a JSON object".to_owned());
    }
    for section in SECTIONS {
        if !body[section].is_object() && !body[section].is_null() {
            return Err(format!("{section} is not an object"));
        }
    }
    for (section, key, kind) in FIELDS {
        let holder = if section.is_empty() {
            body
        } else {
            &body[section]
        };
        if !holder[key].is_null() && !kind.admits(&holder[key]) {
            return Err(format!("{key} has the wrong type or is too long"));
        }
    }
    check_message(&body["message"])
}

fn check_message(message: &Value) -> Result<(), String> {
    let type_ = message["message_type"].as_i64();
    let Some(type_) = type_.filter(|type_| TYPES.contains(type_)) else {
        return Err("message_type is missing or not one".to_owned());
    };
    let text = &message["text"];
    let (required, max) = match TEXTS.contains(&type_) {
        true => (true, TEXT_CHARS_MAX),
        false => (false, SEARCH_TEXT_CHARS_MAX),
    };
    if text.is_null() && !required || Kind::Text(max).admits(text) {
        Ok(())
    } else {
        Err(format!("text is missing or longer than {max} characters"))
    }
}
