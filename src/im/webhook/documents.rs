//! The JSON that an endpoint receives and answers, as schemas for those who write one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domain::message::{MessageDocument, Options};
use crate::domain::outcome::Class;

/// The body of a call to a webhook target.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CallDocument {
    /// The id of the job.
    pub job: String,
    pub app: String,
    /// The key of the job within its app.
    pub client_msg_no: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// The kind of group, if the recipients are groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_type: Option<u8>,
    /// The message as the producer wrote it; a personal message is rendered for the recipient.
    pub message: MessageDocument,
    /// The options of the job.
    pub options: Options,
    /// The recipient, if `recipients_per_call` is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// The recipients, if `recipients_per_call` is above 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1000))]
    pub recipients: Option<Vec<String>>,
}

/// The body of an answer with a status that means success. An empty body and a plain text mean that
/// all recipients of the call got the message.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct AnswerDocument {
    /// The recipients that did not get the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<Vec<FailedDocument>>,
}

/// A recipient that did not get the message.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct FailedDocument {
    pub recipient: String,
    /// A text or a number that appears in the dead letter; `failed` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Value>,
    /// Appears in the dead letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What follows; `permanent` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::outcome::Verdict;
    use crate::im::fixture::{head, reply};
    use crate::im::webhook::Settings;
    use crate::im::{TargetSettings, build};

    /// The documents are apart from the code that writes calls and reads answers, for speed, so this
    /// holds them together.
    #[test]
    fn calls_and_answers_are_as_documented() {
        for per_call in [1, 2] {
            let settings = Settings {
                recipients_per_call: per_call,
                ..Settings::new("http://x/hook")
            };
            let target = build("hook", &TargetSettings::Webhook(settings)).unwrap();
            let mut head = head();
            head.sender = Some("news".into());
            let request = target.open(&Arc::new(head)).request(&["ann"]);
            let call: CallDocument = serde_json::from_slice(&request.body).unwrap();
            assert_eq!(call.recipient.is_some(), per_call == 1);
            assert_eq!(call.recipients.is_some(), per_call == 2);
            let written: Value = serde_json::from_slice(&request.body).unwrap();
            assert_eq!(serde_json::to_value(call).unwrap(), written);
        }
        let answer = AnswerDocument {
            failed: Some(vec![FailedDocument {
                recipient: "bob".into(),
                code: Some(Value::from(7)),
                message: Some("no such user".into()),
                class: Some(Class::Transient),
            }]),
        };
        let settings = Settings {
            recipients_per_call: 2,
            ..Settings::new("http://x/hook")
        };
        let target = build("hook", &TargetSettings::Webhook(settings)).unwrap();
        let calls = target.open(&Arc::new(head()));
        let text = serde_json::to_string(&answer).unwrap();
        let verdict = calls.read_reply(&["ann", "bob"], &reply(200, text));
        let Verdict::Each(each) = verdict else {
            panic!("{verdict:?}");
        };
        assert_eq!(each[0].class, Class::Done);
        assert_eq!((each[1].class, &*each[1].code), (Class::Transient, "7"));
    }
}
