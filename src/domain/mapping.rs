//! Compares a job with its target, feature by feature.
//!
//! A job uses *features*: the type of its message, each option that it sets, its kind of audience.
//! A target maps every feature exactly, approximately, or not at all. A job with an unmapped
//! feature is refused at acceptance with the name of the field (`strict`, the default), or
//! continues without the feature and with a warning (`lenient`). The documentation's table is
//! generated from the same mapping ([`crate::im::mapping`]), so the two cannot differ.

pub use fanwise_client::Strictness;

use super::fields::Problem;
use super::message::Content;
use super::slice::{Addressed, Head};

/// How a target maps a feature, with an explanation for readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    Exact(&'static str),
    Approximate(&'static str),
    Refused(&'static str),
}

macro_rules! features {
    ($($feature:ident, $field:literal, $words:literal;)*) => {
        /// Something that a job can ask for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Feature {
            $(#[doc = $words] $feature,)*
        }

        impl Feature {
            pub const ALL: &[Self] = &[$(Self::$feature,)*];

            /// The field of a job that asks for it.
            pub fn field(self) -> &'static str {
                match self {
                    $(Self::$feature => $field,)*
                }
            }

            /// Its name in the documentation.
            pub fn words(self) -> &'static str {
                match self {
                    $(Self::$feature => $words,)*
                }
            }
        }
    };
}

features! {
    Text, "message.type", "`text`";
    Image, "message.type", "`image`";
    Audio, "message.type", "`audio`";
    Video, "message.type", "`video`";
    File, "message.type", "`file`";
    Location, "message.type", "`location`";
    Notice, "message.type", "`notice`";
    Mention, "message.type", "`mention`";
    Custom, "message.type", "`custom`";
    Raw, "message.type", "`raw`";
    Native, "message.native", "`native` fields";
    Users, "audience.users", "users";
    Groups, "audience.groups", "groups";
    All, "audience.all", "all users";
    Sender, "sender", "`sender`";
    OnlineOnly, "options.online_only", "`online_only`";
    Unread, "options.unread", "`unread: true`";
    NotUnread, "options.unread", "`unread: false`";
    SyncOnce, "options.sync_once", "`sync_once`";
    Expire, "options.expire_seconds", "`expire_seconds`";
    SenderNoSense, "options.sender_no_sense", "`sender_no_sense: true`";
    SenderSense, "options.sender_no_sense", "`sender_no_sense: false`";
    ReceiverNoSense, "options.receiver_no_sense", "`receiver_no_sense`";
    NoPush, "options.push.enabled", "`push.enabled: false`";
    PushTitle, "options.push.title", "`push.title`";
    PushText, "options.push.text", "`push.text`";
    PushPayload, "options.push.payload", "`push.payload`";
    PushSound, "options.push.sound", "`push.sound`";
    PushBadge, "options.push.badge", "`push.badge: true`";
    NoPushBadge, "options.push.badge", "`push.badge: false`";
    PushForced, "options.push.forced", "`push.forced`";
    NoRoute, "options.route.enabled", "`route.enabled: false`";
    RouteEnvironment, "options.route.environment", "`route.environment`";
    NoModeration, "options.moderation.enabled", "`moderation.enabled: false`";
    ModerationRules, "options.moderation.business_id", "`moderation.business_id`";
    Extension, "options.extension", "`extension`";
    KeepIds, "keep_ids", "`keep_ids`";
}

impl Feature {
    /// Without it there is no message or no recipient.
    fn is_essential(self) -> bool {
        use Feature::*;
        matches!(
            self,
            Text | Image
                | Audio
                | Video
                | File
                | Location
                | Notice
                | Mention
                | Custom
                | Raw
                | Native
                | Users
                | Groups
                | All
        )
    }

    fn of_content(content: &Content) -> Option<Self> {
        Some(match content {
            Content::Text(_) => Self::Text,
            Content::Image(_) => Self::Image,
            Content::Audio(_) => Self::Audio,
            Content::Video(_) => Self::Video,
            Content::File(_) => Self::File,
            Content::Location { .. } => Self::Location,
            Content::Notice(_) => Self::Notice,
            Content::Mention { .. } => Self::Mention,
            Content::Custom(_) => Self::Custom,
            Content::Raw(_) => Self::Raw,
            Content::Native | Content::Template(_) => return None,
        })
    }

    /// The features of a job. `All` is missing, because the head does not show it: the intake adds
    /// it.
    pub fn of(head: &Head) -> Vec<Self> {
        let options = &head.options;
        let push = options.push.clone().unwrap_or_default();
        let route = options.route.clone().unwrap_or_default();
        let moderation = options.moderation.clone().unwrap_or_default();
        let yes = Some(true);
        let no = Some(false);
        let asked = [
            (Self::Native, head.native.is_some()),
            (Self::Users, head.addressed == Addressed::Users),
            (Self::Groups, head.addressed != Addressed::Users),
            (Self::Sender, head.sender.is_some()),
            (Self::OnlineOnly, options.online_only == yes),
            (Self::Unread, options.unread == yes),
            (Self::NotUnread, options.unread == no),
            (Self::SyncOnce, options.sync_once == yes),
            (
                Self::Expire,
                options.expire_seconds.is_some_and(|it| it > 0),
            ),
            (Self::SenderNoSense, options.sender_no_sense == yes),
            (Self::SenderSense, options.sender_no_sense == no),
            (Self::ReceiverNoSense, options.receiver_no_sense == yes),
            (Self::NoPush, push.enabled == no),
            (Self::PushTitle, push.title.is_some()),
            (Self::PushText, push.text.is_some()),
            (Self::PushPayload, push.payload.is_some()),
            (Self::PushSound, push.sound.is_some()),
            (Self::PushBadge, push.badge == yes),
            (Self::NoPushBadge, push.badge == no),
            (Self::PushForced, push.forced == yes),
            (Self::NoRoute, route.enabled == no),
            (Self::RouteEnvironment, route.environment.is_some()),
            (Self::NoModeration, moderation.enabled == no),
            (Self::ModerationRules, moderation.business_id.is_some()),
            (Self::Extension, options.extension.is_some()),
            (Self::KeepIds, head.keep_ids),
        ];
        let content = Self::of_content(&head.content).into_iter();
        let asked = asked
            .into_iter()
            .filter_map(|(feature, asked)| asked.then_some(feature));
        content.chain(asked).collect()
    }
}

/// The result of comparing a job with a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    /// Why the target cannot take the job.
    pub problems: Vec<Problem>,
    /// The features that it goes on without.
    pub warnings: Vec<String>,
}

/// Compares the features of a job with the mapping of the target called `target`.
pub fn fit(
    asked: impl IntoIterator<Item = Feature>,
    maps: impl Fn(Feature) -> Mapping,
    strictness: Strictness,
    target: &str,
) -> Fit {
    let mut fit = Fit::default();
    for feature in asked {
        let Mapping::Refused(why) = maps(feature) else {
            continue;
        };
        if strictness == Strictness::Lenient && !feature.is_essential() {
            let warning = format!("{}: dropped, target {target:?}: {why}", feature.field());
            fit.warnings.push(warning);
        } else {
            let what = format!("target {target:?} cannot honour {}: {why}", feature.words());
            fit.problems.push(Problem::new(feature.field(), what));
        }
    }
    fit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maps(feature: Feature) -> Mapping {
        match feature {
            Feature::Unread | Feature::Video => Mapping::Refused("there is no such thing"),
            Feature::Extension => Mapping::Approximate("in another field"),
            _ => Mapping::Exact(""),
        }
    }

    #[test]
    fn strict_refuses_by_name_and_lenient_drops_with_a_warning() {
        let asked = [Feature::Text, Feature::Unread, Feature::Extension];
        let strict = fit(asked, maps, Strictness::Strict, "im");
        assert_eq!(strict.problems.len(), 1);
        assert_eq!(strict.problems[0].field, "options.unread");
        let lenient = fit(asked, maps, Strictness::Lenient, "im");
        assert!(lenient.problems.is_empty());
        assert_eq!(
            lenient.warnings,
            ["options.unread: dropped, target \"im\": there is no such thing"]
        );
    }

    #[test]
    fn a_message_that_cannot_be_said_is_refused_even_leniently() {
        let fit = fit([Feature::Video], maps, Strictness::Lenient, "im");
        assert_eq!(fit.problems[0].field, "message.type");
    }
}
