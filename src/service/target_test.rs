//! What a test message is, and what a target made of it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::outcome::Class;

/// A message to test a target with.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct TestRequest {
    /// The user who gets the message.
    pub to: String,
    /// The text of the message; a harmless one if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The sender of the message; the target's default sender if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// Written to the log, as the author is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
}

/// What a target made of a test message.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Tested {
    /// Whether the target accepted the message.
    pub sent: bool,
    /// `null` if no request was made, for example because the login failed.
    pub request: Option<ToldRequest>,
    /// `null` if there was no answer.
    pub reply: Option<ToldReply>,
    /// What the answer means.
    pub class: Class,
    pub code: String,
    pub text: String,
}

/// The request without what may be secret.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ToldRequest {
    pub method: String,
    pub url: String,
    /// `(hidden)` where the value may be secret.
    pub headers: BTreeMap<String, String>,
    /// The beginning of a long body.
    pub body: String,
}

/// The answer without what may be secret.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ToldReply {
    pub status: u16,
    /// `(hidden)` where the value may be secret.
    pub headers: BTreeMap<String, String>,
    /// The beginning of a long body.
    pub body: String,
    /// From the request to the end of the answer.
    pub milliseconds: u64,
}
