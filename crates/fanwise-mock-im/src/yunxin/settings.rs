//! Defines the settings that Yunxin's v2 does not share with v1.

use crate::faults::Share;
use crate::netease::{Quota, pair};

/// Settings of the Yunxin v2 simulation. The fields are the flags of `fanwise mock-im`.
#[derive(Clone, Debug, PartialEq, clap::Args)]
#[command(next_help_heading = "Yunxin v2")]
pub struct YunxinSettings {
    /// Batch sends: how many calls an app may make in which time, and how long a further call
    /// blocks it with 416, for example 120/1m/60s.
    #[arg(
        id = "yunxin-batch-quota",
        long = "yunxin-batch-quota",
        value_name = "CALLS/TIME/BLOCK"
    )]
    pub batch_quota: Option<Quota>,

    /// Single sends: the same. The vendor allows 100 a second or more, by plan.
    #[arg(
        id = "yunxin-single-quota",
        long = "yunxin-single-quota",
        value_name = "CALLS/TIME/BLOCK"
    )]
    pub single_quota: Option<Quota>,

    /// Name of the id in failed_list; the vendor's own SDKs disagree.
    #[arg(
        id = "yunxin-failed-key",
        long = "yunxin-failed-key",
        value_name = "KEY",
        value_enum,
        default_value_t = FailedKey::AccountId
    )]
    pub failed_key: FailedKey,

    /// Code of the users that --refuse and similar flags refuse.
    #[arg(
        id = "yunxin-refuse-code",
        long = "yunxin-refuse-code",
        value_name = "CODE",
        default_value_t = super::UNKNOWN
    )]
    pub refuse_code: u32,

    /// Refuse this user with a code of its own: u1=102426. Can be repeated.
    #[arg(id = "yunxin-refuse-as", long = "yunxin-refuse-as", value_name = "ID=CODE",
          value_parser = pair::<u32>)]
    pub refuse_as: Vec<(String, u32)>,

    /// Share of the receivers of batches that get the message but are in neither list of the
    /// answer; always the same ones for a seed.
    #[arg(
        id = "yunxin-omit",
        long = "yunxin-omit",
        value_name = "SHARE",
        default_value = "0"
    )]
    pub omit: Share,

    /// Omit this receiver from the lists. Can be repeated.
    #[arg(id = "yunxin-omit-user", long = "yunxin-omit-user", value_name = "ID")]
    pub omit_users: Vec<String>,
}

impl Default for YunxinSettings {
    /// No quota, and every receiver in a list.
    fn default() -> YunxinSettings {
        YunxinSettings {
            batch_quota: None,
            single_quota: None,
            failed_key: FailedKey::AccountId,
            refuse_code: super::UNKNOWN,
            refuse_as: Vec::new(),
            omit: Share::default(),
            omit_users: Vec::new(),
        }
    }
}

/// The name of the id in failed_list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum FailedKey {
    /// As the SDK for Java reads it.
    #[value(name = "account_id")]
    AccountId,
    /// As the SDK for Go reads it.
    #[value(name = "receiver_id")]
    ReceiverId,
    /// Both names in turn within a list.
    Alternating,
}

impl FailedKey {
    /// The name for the entry at `index` of a list.
    pub(super) fn at(self, index: usize) -> &'static str {
        match self {
            FailedKey::ReceiverId => "receiver_id",
            FailedKey::Alternating if index % 2 == 1 => "receiver_id",
            FailedKey::AccountId | FailedKey::Alternating => "account_id",
        }
    }
}
