//! Reads and checks the fields that a job adds to the request. They override the message, and
//! `sessionType` overrides the target's `session`. They cannot set recipients, sender or time.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::domain::fields::{Problem, shorten};

/// Fields that decide recipients, sender and time.
const OURS: [&str; 6] = [
    "recvID",
    "recvIDs",
    "groupID",
    "isSendAll",
    "sendID",
    "sendTime",
];

/// The session of a message to users: 1 with the sender, 4 for notifications.
pub(in crate::im) const SESSION_TYPE: &str = "sessionType";

/// The other fields of the request, with the type that the server accepts. It would refuse every
/// call with another type.
const THEIRS: [(&str, Takes); 10] = [
    ("content", Takes::Object),
    ("contentType", Takes::Number),
    ("ex", Takes::Text),
    ("isOnlineOnly", Takes::Boolean),
    ("notOfflinePush", Takes::Boolean),
    ("offlinePushInfo", Takes::Object),
    ("senderFaceURL", Takes::Text),
    ("senderNickname", Takes::Text),
    ("senderPlatformID", Takes::Number),
    (SESSION_TYPE, Takes::Session),
];

#[derive(Clone, Copy)]
enum Takes {
    Text,
    Number,
    Boolean,
    Object,
    Session,
}

impl Takes {
    fn fits(self, value: &RawValue) -> bool {
        let value = value.get();
        match self {
            Self::Text => value.starts_with('"'),
            Self::Number => value.parse::<i32>().is_ok(),
            Self::Boolean => ["true", "false"].contains(&value),
            Self::Object => value.starts_with('{'),
            Self::Session => ["1", "4"].contains(&value),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Number => "a whole number",
            Self::Boolean => "true or false",
            Self::Object => "an object",
            Self::Session => "1 or 4",
        }
    }
}

/// Native fields, by the server's names.
pub(super) type Native<'a> = BTreeMap<String, &'a RawValue>;

/// The server reads names without regard to case, so `ISSENDALL` is `isSendAll`, and so is a name
/// with the long `ſ` or the Kelvin sign.
fn same(one: &str, other: &str) -> bool {
    let fold = |name: &str| name.to_uppercase().to_lowercase();
    fold(one) == fold(other)
}

/// The native fields of a job. Accepting the job checked that they are an object.
pub(super) fn parse(native: Option<&RawValue>) -> Native<'_> {
    let fields: Native<'_> = crate::json::again(native.map_or("{}", RawValue::get));
    fields
        .into_iter()
        // The server treats `null` as missing, so the message's own value stays.
        .filter(|(_, value)| value.get() != "null")
        .map(
            |(name, value)| match THEIRS.iter().find(|(it, _)| same(it, &name)) {
                Some((known, _)) => ((*known).to_owned(), value),
                None => (name, value),
            },
        )
        .collect()
}

/// Reports problems of native fields.
pub(super) fn problems(native: &Native<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, value) in native {
        let what = if OURS.iter().any(|ours| same(ours, name)) {
            "Fanwise sets this field itself; audience, sender and target decide it".to_owned()
        } else if let Some((_, takes)) = THEIRS.iter().find(|(known, _)| known == name)
            && !takes.fits(value)
        {
            let shown = shorten(value.get(), 40);
            format!("{} is expected, not {shown}", takes.words())
        } else {
            continue;
        };
        problems.push(Problem::new(format!("message.native.{name}"), what));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Vec<String> {
        let raw = RawValue::from_string(json.to_owned()).unwrap();
        let problems = problems(&parse(Some(&raw)));
        problems.into_iter().map(|it| it.field).collect()
    }

    #[test]
    fn recipients_sender_and_time_are_refused_however_they_are_written() {
        for name in OURS {
            for name in [name.to_owned(), name.to_uppercase(), name.to_lowercase()] {
                let found = fields(&format!(r#"{{"{name}":1}}"#));
                assert_eq!(found, [format!("message.native.{name}")]);
            }
        }
        for name in [r"is\u0053endAll", "iſſendAll", r"\u017fendID"] {
            assert_eq!(fields(&format!(r#"{{"{name}":true}}"#)).len(), 1, "{name}");
        }
    }

    #[test]
    fn values_that_the_server_cannot_read_are_refused() {
        let wrong = r#"{"content":"x","contentType":"101","ex":{},"isOnlineOnly":1,
            "notOfflinePush":"false","offlinePushInfo":[],"senderFaceURL":1,"senderNickname":null,
            "senderPlatformID":1.5,"sessionType":3,"later":[1]}"#;
        assert_eq!(
            fields(wrong),
            [
                "content",
                "contentType",
                "ex",
                "isOnlineOnly",
                "notOfflinePush",
                "offlinePushInfo",
                "senderFaceURL",
                "senderPlatformID",
                "sessionType"
            ]
            .map(|name| format!("message.native.{name}"))
        );
        assert!(fields(r#"{"SenderPlatformId":2,"content":{},"SESSIONTYPE":4}"#).is_empty());
        let problems = {
            let raw = RawValue::from_string(r#"{"notOfflinePush":"false"}"#.to_owned()).unwrap();
            problems(&parse(Some(&raw)))
        };
        assert_eq!(
            problems[0].to_string(),
            "message.native.notOfflinePush: true or false is expected, not \"false\""
        );
    }
}
