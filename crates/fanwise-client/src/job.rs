//! A job as producers write it.

use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray};

use crate::audience::Audience;
use crate::message::{Message, Options};

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
/// The most tags of a job, and the most bytes of one.
pub const TAGS_MAX: usize = 8;
pub const TAG_BYTES_MAX: usize = 64;
/// Most parts of one job.
pub const PARTS_MAX: u32 = 10_000;

/// A job as JSON, for producers. The schema in `schemas/job.schema.json` is generated from this type.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Job", deny_unknown_fields))]
pub struct Job {
    /// Version of this contract: 1.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1)))]
    pub v: u32,
    /// The key of the job within its app, 1 to 128 bytes. The same key with the same message is the
    /// same job; further recipients extend it; another message is refused.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 128)))]
    pub client_msg_no: String,
    /// The tenant; `default` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// Where to send; the app's default target if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The sender of the message, as the target names it; the target's default sender if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 255)))]
    pub sender: Option<String>,
    pub audience: Audience,
    pub message: Message,
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
    /// Hours of the day in which it is sent, such as `09:00-21:00`, or `21:00-06:00` over midnight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// The IANA time zone of `window`, such as `Asia/Shanghai`; UTC if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// The name of a value in the `vars` of the recipients, in which each names its own time zone:
    /// `window` is then meant in the zone of each recipient. `timezone` applies to those without a
    /// value, or with one that is no time zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 64)))]
    pub timezone_var: Option<String>,
    /// RFC 3339 time until which the recipients are spread evenly: not faster, and not slower unless
    /// something else is. Within sending hours, only these count. What is left then is sent without
    /// a pace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pace_until: Option<String>,
    /// The category of the message, such as `marketing`. The app's configuration lists the
    /// categories with the frequency cap of each; recipients that have reached it end as `capped`.
    /// Without a category, no cap applies.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 64)))]
    pub category: Option<String>,
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
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 2048)))]
    pub callback_url: Option<String>,
    /// AMQP queue to which the job's accounts are published when it completes, through the default
    /// exchange, with the `client_msg_no` as correlation id. The app's configuration lists the
    /// queues that are allowed. If the submissions of a job name several queues, the first one
    /// counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 255)))]
    pub reply_to: Option<String>,
    /// A second target for the recipients that the first one fails. They are sent to once more,
    /// there, and end with what that target answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// Keep the target's id of the message to each recipient, and with it the recipient itself, for
    /// as long as the job is remembered. The target must return such ids.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[cfg_attr(feature = "schema", schemars(default))]
    pub keep_ids: bool,
    /// Must be `true` for an audience of all users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirm_all: Option<bool>,
    /// Set when one audience travels as several messages: the job completes only when all parts
    /// have arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<ListPart>,
    /// Names for the job, such as a campaign, by which operators list, cancel, pause and resume
    /// jobs. If the submissions of a job differ, the first one counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "schema",
        schemars(length(max = 8), inner(length(min = 1, max = 64)))
    )]
    pub tags: Vec<String>,
}

impl Job {
    /// A job with only the fields that every job has.
    pub fn new(client_msg_no: impl Into<String>, audience: Audience, message: Message) -> Self {
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
            window: None,
            timezone: None,
            timezone_var: None,
            pace_until: None,
            category: None,
            rate: None,
            on_uncertain: None,
            mapping: None,
            callback_url: None,
            reply_to: None,
            fallback: None,
            keep_ids: false,
            confirm_all: None,
            part: None,
            tags: Vec::new(),
        }
    }
}

/// The part of a job that a message carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ListPart {
    /// 1 to `of`.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 10_000)))]
    pub number: u32,
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 10_000)))]
    pub of: u32,
    /// Name of the whole list, 1 to 64 bytes. Nothing is sent to the list before all its parts are
    /// accepted. If some of them do not arrive within an hour, all its recipients end as
    /// `cancelled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 64)))]
    pub together: Option<String>,
}

impl ListPart {
    /// A list that is one message.
    pub const WHOLE: Self = Self {
        number: 1,
        of: 1,
        together: None,
    };
}

/// The priority that a producer asks for: the routing key of a job.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    EnumString,
    IntoStaticStr,
    VariantArray,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Priority {
    High,
    #[default]
    Normal,
    Bulk,
}

impl Priority {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What to do with a recipient whose send may or may not have happened (promise 4).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr, VariantArray,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum OnUncertain {
    /// Send again; right if the target is idempotent on our key.
    Retry,
    /// Dead-letter as uncertain; an operator decides.
    Hold,
    /// Settle as uncertain, without a dead letter.
    Drop,
}

impl OnUncertain {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What to do about features that the target does not support.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Strictness {
    /// Refuse the job and name the fields.
    #[default]
    Strict,
    /// Send without them, with a warning in the job. A type of message or an audience that the
    /// target does not support still refuses the job, because nothing would be left to send.
    Lenient,
}

/// The second target of a job, and which recipients it gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Fallback {
    /// The name of the target.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 64)))]
    pub target: String,
    /// Why the first target failed them; `["permanent"]` if left out.
    #[serde(default = "permanent")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 2)))]
    pub on: Vec<FailureClass>,
}

fn permanent() -> Vec<FailureClass> {
    vec![FailureClass::Permanent]
}

/// Why a recipient failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// The target refused the recipient for good.
    Permanent,
    /// All attempts, or all retries of the job, are used up.
    Transient,
}
