//! Defines the settings of NetEase's cloud; most of them apply to both of its APIs.

use std::str::FromStr;

use super::quota::Quota;

/// Settings of the NetEase simulation. The fields are the flags of `fanwise mock-im`.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "NetEase v1 and Yunxin v2")]
pub struct NeteaseSettings {
    /// App that may call, and the secret of its signature. Can be repeated.
    #[arg(id = "netease-app", long = "netease-app", value_name = "KEY=SECRET",
          default_value = "mock-key=mock-secret", value_parser = pair::<String>)]
    pub apps: Vec<(String, String)>,

    /// Answer to a repeated RequestId (v1) or X-custom-traceid (v2): the first answer again, or a
    /// code. The call is never delivered again.
    #[arg(
        id = "netease-on-repeat",
        long = "netease-on-repeat",
        value_name = "ANSWER",
        value_enum,
        default_value_t = OnRepeat::Same
    )]
    pub on_repeat: OnRepeat,

    /// Give a sender a fault: unknown, disabled or muted. Can be repeated.
    #[arg(id = "netease-sender", long = "netease-sender", value_name = "ID=STANDING",
          value_parser = pair::<Standing>)]
    pub senders: Vec<(String, Standing)>,

    /// Refuse every call to this recipient (for v1 in lower case), as a whole, with this code, for
    /// example u1=414. Can be repeated.
    #[arg(id = "netease-poison", long = "netease-poison", value_name = "ID=CODE",
          value_parser = pair::<u32>)]
    pub poison: Vec<(String, u32)>,

    /// Stop messages that contain this text in moderation: v1 sendMsg and v2, whose answers report
    /// it.
    #[arg(
        id = "netease-moderate",
        long = "netease-moderate",
        value_name = "TEXT"
    )]
    pub moderate: Option<String>,

    /// v1 sendBatchMsg: how many calls an app may make in which time, and how long a further call
    /// blocks it with 416. The vendor's quota is 120/1m/60s.
    #[arg(
        id = "netease-batch-quota",
        long = "netease-batch-quota",
        value_name = "CALLS/TIME/BLOCK"
    )]
    pub batch_quota: Option<Quota>,

    /// v1 sendMsg: the same. The vendor's quota is 100/1s/10s.
    #[arg(
        id = "netease-single-quota",
        long = "netease-single-quota",
        value_name = "CALLS/TIME/BLOCK"
    )]
    pub single_quota: Option<Quota>,

    /// v1: write unregister and msgids as JSON inside a text, as older releases did.
    #[arg(id = "netease-text-lists", long = "netease-text-lists")]
    pub text_lists: bool,
}

impl Default for NeteaseSettings {
    /// One app, no quota, no faults.
    fn default() -> NeteaseSettings {
        NeteaseSettings {
            apps: vec![("mock-key".to_owned(), "mock-secret".to_owned())],
            on_repeat: OnRepeat::Same,
            senders: Vec::new(),
            poison: Vec::new(),
            moderate: None,
            batch_quota: None,
            single_quota: None,
            text_lists: false,
        }
    }
}

/// The answer to a repeated request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnRepeat {
    /// The first answer again.
    Same,
    /// Code 417, "repeated operation".
    #[value(name = "417")]
    Code417,
    /// Code 431, "repeated HTTP request".
    #[value(name = "431")]
    Code431,
}

/// The reason why a sender is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Unknown,
    Disabled,
    Muted,
}

impl FromStr for Standing {
    type Err = PairError;

    fn from_str(text: &str) -> Result<Standing, PairError> {
        match text {
            "unknown" => Ok(Standing::Unknown),
            "disabled" => Ok(Standing::Disabled),
            "muted" => Ok(Standing::Muted),
            _ => Err(PairError(text.to_owned())),
        }
    }
}

/// A text that is not `KEY=VALUE`, or whose value is invalid.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} cannot be read: give the two parts that the help names, with = between them")]
pub struct PairError(String);

/// Reads `KEY=VALUE`.
pub(crate) fn pair<T: FromStr>(text: &str) -> Result<(String, T), PairError> {
    let wrong = || PairError(text.to_owned());
    let (key, value) = text.split_once('=').ok_or_else(wrong)?;
    let value = value.parse().map_err(|_| wrong())?;
    if key.is_empty() {
        return Err(wrong());
    }
    Ok((key.to_owned(), value))
}
