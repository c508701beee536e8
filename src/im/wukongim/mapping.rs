//! Defines the mapping of each feature of a job, by version.

use super::{Settings, Version};
use crate::domain::mapping::Feature::{self, *};
use crate::domain::mapping::Mapping::{self, Approximate, Exact, Refused};

const PUSHES: &str = "pushing is your application's work, on the webhook `msg.offline`";
const WEBHOOKS: &str = "webhooks are the server's own settings";
const MODERATION: &str = "WuKongIM does not moderate";

pub(super) fn maps(settings: &Settings, feature: Feature) -> Mapping {
    let version = settings.version;
    match feature {
        Text => Exact("type 1"),
        Image => Exact("type 2"),
        Audio => Approximate("type 4, in whole seconds"),
        Video => Approximate("type 5, in whole seconds"),
        File => Exact("type 8"),
        Location => Exact("type 6"),
        Notice => Exact("type 2000, a tip"),
        Mention => Exact("type 1 with `mention`"),
        Custom | Raw => Exact("the payload"),
        Native if settings.packed => Refused("`/message/sendbatch` takes no further fields"),
        Native => Exact("fields of `/message/send`"),
        Users => Exact("`channel_type` 1"),
        Groups => Exact("`group_type` is the `channel_type`"),
        All if version == Version::V1 => Refused("version 1 cannot list users; give a list"),
        All if settings.manager_url.is_none() => {
            Refused("set `manager_url`, where WuKongIM lists users, or give a list")
        }
        All => Exact("listed by the manager API (`manager_url`)"),
        Sender => Exact("`from_uid`"),
        OnlineOnly if version == Version::V3 => Exact("`no_persist`, with `sync_once` only"),
        OnlineOnly => Exact("`no_persist`"),
        Unread if version == Version::V3 => Refused("version 3 takes no `red_dot` over HTTP"),
        NotUnread if version == Version::V3 => Exact("always so"),
        Unread | NotUnread => Exact("`red_dot`"),
        SyncOnce => Exact("`sync_once`"),
        Expire if settings.packed => Refused("`/message/sendbatch` takes no `expire`"),
        Expire => Approximate("`expire`, for clients: the server keeps the message"),
        SenderNoSense => Refused("only the system user's own list is left alone"),
        SenderSense => Approximate("always so, but for the system user"),
        ReceiverNoSense => Refused("there is no such option"),
        NoPush | PushTitle | PushText | PushPayload | PushSound | PushBadge | NoPushBadge
        | PushForced => Refused(PUSHES),
        NoRoute | RouteEnvironment => Refused(WEBHOOKS),
        NoModeration | ModerationRules => Refused(MODERATION),
        Extension => Refused("there is no such field; put it in the message"),
        KeepIds if settings.packed => Refused("`/message/sendbatch` returns no ids"),
        KeepIds => Approximate("`message_id`; a command to several users has none"),
    }
}
