//! Defines the flags of `fanwise mock-im`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::faults::{Burst, FaultFlag, Faults, Latency, Share};
use super::openim::OpenimArgs;
use super::wukongim::{Login, Version};
use super::{KEEP_DEFAULT, NeteaseSettings, Settings, USERS_DEFAULT, YunxinSettings};

/// Run a mock IM server that misbehaves on demand and logs every accepted message.
///
/// WuKongIM answers at /message/send and /message/sendbatch, OpenIM at /msg/send_msg and
/// /msg/batch_send_msg, NetEase v1 below /nimserver, Yunxin v2 below /im/v2, a plain webhook below
/// /hook. OpenIM's /user/get_users and WuKongIM's manager (v2 /cluster/users, v3 /manager/users)
/// list the users. All misbehaviour can be changed while it runs: POST the JSON of GET
/// /_mock/faults back to it, and the settings of OpenIM to /_mock/openim. GET /_mock/stats returns
/// counters, GET /_mock/accepted?recipient=UID the messages of a user.
#[derive(Clone, Debug, clap::Args)]
pub struct MockArgs {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:5001")]
    pub listen: SocketAddr,

    /// WuKongIM release to simulate.
    #[arg(long, value_name = "VERSION", value_enum, default_value_t = Version::V2)]
    pub wukongim: Version,

    /// WuKongIM v1 and v2: require this value in the header `token`.
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,

    /// Webhook: answer a repeated Idempotency-Key with the first answer.
    #[arg(long)]
    pub webhook_idempotent: bool,

    /// WuKongIM v3: USER:PASSWORD of the manager API; without it the manager requires no login. The
    /// manager of v2 requires the --token.
    #[arg(long, value_name = "USER:PASSWORD")]
    pub wukongim_manager: Option<Login>,

    #[command(flatten)]
    pub openim: OpenimArgs,

    /// Users to list, u1 to uN. Messages to other users are accepted too, except with
    /// --openim-listed-only.
    #[arg(long, value_name = "COUNT", default_value_t = USERS_DEFAULT)]
    pub users: u64,

    /// Append every accepted message to FILE, as one JSON line for each recipient, before the
    /// answer is sent.
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,

    /// Accepted messages to keep in memory for /_mock/accepted.
    #[arg(long, value_name = "COUNT", default_value_t = KEEP_DEFAULT)]
    pub keep: usize,

    /// Seed of every random choice; the same requests in the same order get the same faults.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub seed: u64,

    /// Wait before handling a request: 20ms, or 20ms..80ms.
    #[arg(long, value_name = "TIME")]
    pub latency: Option<Latency>,

    /// A fault and how often it strikes: error-503=2%, reset-after=x3 (the next 3 requests),
    /// hang=50%x3. Can be repeated.
    ///
    /// Nothing accepted: hang, reset-before, unauthorised, error-500, error-503, error-429,
    /// bad-json-unaccepted. Answered 200 and lost: lost-after-200. Accepted, then: reset-after,
    /// reply-lost, reply-closed, slow-body, half-body, bad-json, error-after (an internal error, as
    /// when OpenIM cannot write the status of a message that it sent).
    #[arg(long = "fault", value_name = "KIND=CHANCE")]
    pub faults: Vec<FaultFlag>,

    /// Retry-After of error-429, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    pub retry_after: u32,

    /// Time between the pieces of a slow body.
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = crate::duration::parse_duration)]
    pub slow_pace: Duration,

    /// After COUNT accepted messages answer 429 for a while, once.
    #[arg(long, value_name = "COUNT")]
    pub burst_after: Option<u64>,

    /// How long the burst of 429 lasts.
    #[arg(long, value_name = "TIME", default_value = "5s", requires = "burst_after",
          value_parser = crate::duration::parse_duration)]
    pub burst_for: Duration,

    /// Retry-After of the burst, in seconds.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 1,
        requires = "burst_after"
    )]
    pub burst_retry_after: u32,

    /// Refuse this share of the users, always the same ones for a seed: 1% or 0.01.
    #[arg(long, value_name = "SHARE", default_value = "0")]
    pub refuse: Share,

    /// Refuse this user. Can be repeated.
    #[arg(long, value_name = "UID")]
    pub refuse_user: Vec<String>,

    /// Refuse users whose uid begins with this.
    #[arg(long, value_name = "PREFIX")]
    pub refuse_prefix: Option<String>,

    /// WuKongIM v3: reason code of a refusal (4 is "in blacklist").
    #[arg(long, value_name = "CODE", default_value_t = 4)]
    pub refuse_reason: u8,

    #[command(flatten)]
    pub netease: NeteaseSettings,

    #[command(flatten)]
    pub yunxin: YunxinSettings,
}

impl MockArgs {
    /// The settings that these flags describe.
    pub fn into_settings(self) -> Settings {
        let burst = self.burst_after.map(|after| Burst {
            after,
            lasts: self.burst_for,
            retry_after: self.burst_retry_after,
        });
        let chances = self.faults.into_iter().map(|flag| (flag.kind, flag.chance));
        Settings {
            listen: self.listen,
            wukongim: self.wukongim,
            token: self.token,
            webhook_idempotent: self.webhook_idempotent,
            users: self.users,
            wukongim_manager: self.wukongim_manager,
            openim: self.openim.into_rules(),
            netease: self.netease,
            yunxin: self.yunxin,
            log: self.log,
            keep: self.keep,
            seed: self.seed,
            faults: Faults {
                latency: self.latency,
                slow_pace: self.slow_pace,
                retry_after: self.retry_after,
                refuse: self.refuse,
                refuse_users: self.refuse_user,
                refuse_prefix: self.refuse_prefix,
                refuse_reason: self.refuse_reason,
                burst,
                chances: chances.collect(),
            },
        }
    }
}
