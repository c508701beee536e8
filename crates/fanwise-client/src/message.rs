//! What is sent, and how.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The message. `type` decides which other fields are allowed: `text` and `notice` take `text`;
/// `image`, `audio`, `video` and `file` take `url` and the properties of the file; `location` takes
/// `latitude`, `longitude` and `title`; `mention` takes `text` with `users` or `everybody`;
/// `custom` and `raw` take `data`. `template` names a stored message instead. `native` fields may
/// be added to any of them, or be alone.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Message", deny_unknown_fields))]
#[serde(default)]
pub struct Message {
    /// `text`, `image`, `audio`, `video`, `file`, `location`, `notice`, `mention`, `custom` or `raw`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The text, 1 to 20,000 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// URL of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Name of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Size of the file in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Extension of the file's name without the dot, such as `png`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// MD5 of the file, 32 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub md5: Option<String>,
    /// Pixels; images and videos.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// Pixels; images and videos.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// Milliseconds; audio and videos.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// URL of a still picture; images (a thumbnail) and videos.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cover: Option<String>,
    /// Degrees, -90 to 90.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = -90, max = 90)))]
    pub latitude: Option<f64>,
    /// Degrees, -180 to 180.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = -180, max = 180)))]
    pub longitude: Option<f64>,
    /// Name of the place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Ids of the users that are mentioned, at most 1,000 of 1 to 255 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schemars(length(max = 1000), inner(length(min = 1, max = 255)))
    )]
    pub users: Option<Vec<String>>,
    /// All users are mentioned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub everybody: Option<bool>,
    /// Application data (`custom`) or the target's own message body (`raw`): any JSON of at most
    /// 64 KiB, passed through byte for byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<serde_json::Value>"))]
    pub data: Option<Box<RawValue>>,
    /// Further fields of the target's own request, an object of at most 64 KiB, passed through
    /// unchanged. They override the fields that the message sets. They cannot set recipients, keys
    /// or credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")
    )]
    pub native: Option<Box<RawValue>>,
    /// Name of a stored message that is sent instead, see `fanwise template`. The job uses the
    /// version that is newest when it starts, or the one after an `@`, as in `welcome@3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Values for the placeholders, for all recipients; the `vars` of a recipient override them.
    /// With these, or with any recipient's `vars`, `{{ name }}` is a placeholder in `text`,
    /// `title`, the `name` of a file, the texts within `data` of a custom message,
    /// `options.push.title`, `options.push.text` and an `options.extension` that is a text. In a
    /// stored message it always is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")
    )]
    pub vars: Option<Box<RawValue>>,
    /// Texts are sent unchanged, with their braces. Without it, and without any `vars`, a message
    /// with a `{{ placeholder }}` is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub literal: Option<bool>,
}

impl Message {
    /// A text.
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            kind: Some("text".to_owned()),
            text: Some(text.into()),
            ..Self::default()
        }
    }

    /// A stored message, such as `welcome` or `welcome@3`.
    pub fn template(name: impl Into<String>) -> Self {
        Self {
            template: Some(name.into()),
            ..Self::default()
        }
    }
}

/// Delivery options. An option that is left out takes the target's default. An option that the
/// target does not support refuses the job at acceptance, or is dropped with a warning (`"mapping":
/// "lenient"`).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(deny_unknown_fields))]
#[serde(default)]
pub struct Options {
    /// Only to recipients that are online; not stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online_only: Option<bool>,
    /// Counts as unread (the red dot).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unread: Option<bool>,
    /// A command message that each recipient's devices see once, outside of conversations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_once: Option<bool>,
    /// Seconds after which the backend may drop the message; 0 means never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expire_seconds: Option<u32>,
    /// The sender's own devices do not get the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_no_sense: Option<bool>,
    /// The recipients' devices take it silently: no roaming, no history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receiver_no_sense: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push: Option<Push>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<Route>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moderation: Option<Moderation>,
    /// The backend's free extension field: a text as it is, anything else as JSON; at most 64 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<serde_json::Value>"))]
    pub extension: Option<Box<RawValue>>,
}

/// The push notification that offline devices show.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(deny_unknown_fields))]
#[serde(default)]
pub struct Push {
    /// Default: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// At most 2,048 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 2048)))]
    pub title: Option<String>,
    /// At most 20,000 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 20_000)))]
    pub text: Option<String>,
    /// For the push service: a text as it is, anything else as JSON; at most 64 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<serde_json::Value>"))]
    pub payload: Option<Box<RawValue>>,
    /// Name of a sound, at most 255 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 255)))]
    pub sound: Option<String>,
    /// Raises the badge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub badge: Option<bool>,
    /// Shown even to users who turned notifications off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forced: Option<bool>,
}

/// The copy of each message that the backend sends to the application's callback.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(deny_unknown_fields))]
#[serde(default)]
pub struct Route {
    /// Default: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Name of the environment that gets the copy, at most 255 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 255)))]
    pub environment: Option<String>,
}

/// The backend's own moderation of content.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(deny_unknown_fields))]
#[serde(default)]
pub struct Moderation {
    /// Default: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Name of the rules to apply, at most 255 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 255)))]
    pub business_id: Option<String>,
}
