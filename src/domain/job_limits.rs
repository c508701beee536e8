//! The limits that apply to a job: which there are, which limiter each has, and what it counts.

use std::borrow::Cow;
use std::ops::{Index, IndexMut};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use super::cost::COST_MAX;
use super::directive::{Kind, Scope};
use super::ids::digest_hex;
use super::limits::{LimitScope, Rate, Weight};

/// Which limit of a target or an app. Others have the first one only.
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
    JsonSchema,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum LimitKind {
    #[default]
    Main,
    /// The second one, a day.
    Daily,
    /// That of each sender of a target.
    Sender,
}

impl LimitKind {
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    pub fn is_main(&self) -> bool {
        *self == Self::Main
    }

    /// The kind of directive that sets it.
    pub fn directive(self) -> Kind {
        match self {
            Self::Main => Kind::Rate,
            Self::Daily => Kind::DailyRate,
            Self::Sender => Kind::SenderRate,
        }
    }
}

/// A limit that may apply to a job.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    JsonSchema,
    IntoStaticStr,
    VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum LimitOf {
    Target,
    App,
    Job,
    TargetDaily,
    AppDaily,
    Sender,
    Shared,
}

impl LimitOf {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// `None` if such a subject has no such limit.
    pub fn new(scope: Scope, kind: LimitKind) -> Option<Self> {
        Some(match (scope, kind) {
            (Scope::Target, LimitKind::Main) => Self::Target,
            (Scope::Target, LimitKind::Daily) => Self::TargetDaily,
            (Scope::Target, LimitKind::Sender) => Self::Sender,
            (Scope::App, LimitKind::Main) => Self::App,
            (Scope::App, LimitKind::Daily) => Self::AppDaily,
            (Scope::Job, LimitKind::Main) => Self::Job,
            (Scope::Shared, LimitKind::Main) => Self::Shared,
            (Scope::App | Scope::Job | Scope::Shared, _) => return None,
        })
    }

    /// The subject that it belongs to, and which of its limits it is.
    pub fn subject(self) -> (Scope, LimitKind) {
        match self {
            Self::Target => (Scope::Target, LimitKind::Main),
            Self::TargetDaily => (Scope::Target, LimitKind::Daily),
            Self::Sender => (Scope::Target, LimitKind::Sender),
            Self::App => (Scope::App, LimitKind::Main),
            Self::AppDaily => (Scope::App, LimitKind::Daily),
            Self::Job => (Scope::Job, LimitKind::Main),
            Self::Shared => (Scope::Shared, LimitKind::Main),
        }
    }

    /// The scope of its limiter.
    pub fn scope(self) -> LimitScope {
        match self {
            Self::Target | Self::TargetDaily => LimitScope::Target,
            Self::App | Self::AppDaily => LimitScope::App,
            Self::Job => LimitScope::Job,
            Self::Sender => LimitScope::Sender,
            Self::Shared => LimitScope::Shared,
        }
    }

    /// The units that a message takes which costs so much at its target.
    pub fn weight(self, message: Weight) -> Weight {
        match self {
            Self::Target | Self::TargetDaily | Self::Sender => message,
            // The other targets may have other prices.
            Self::Shared => Weight {
                max: COST_MAX,
                ..message
            },
            Self::App | Self::AppDaily | Self::Job => Weight::ONE,
        }
    }
}

/// The names that the limiters of a job have.
#[derive(Clone, Copy, Debug)]
pub struct Limited<'a> {
    pub target: &'a str,
    pub app: &'a str,
    pub job: &'a str,
    /// An id of the backend.
    pub sender: &'a str,
    pub shared: Option<&'a str>,
}

impl<'a> Limited<'a> {
    /// The name of the limiter. A sender may have any characters, so its limiter has a digest.
    pub fn name(&self, limit: LimitOf) -> Cow<'a, str> {
        match limit {
            LimitOf::Target | LimitOf::TargetDaily => self.target.into(),
            LimitOf::App | LimitOf::AppDaily => self.app.into(),
            LimitOf::Job => self.job.into(),
            LimitOf::Shared => self.shared.unwrap_or_default().into(),
            LimitOf::Sender => {
                let sender = digest_hex(&[self.sender.as_bytes()], 16);
                format!("{}/{sender}", self.target).into()
            }
        }
    }
}

/// A rate for each limit that there is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates([Option<Rate>; LimitOf::ALL.len()]);

impl Rates {
    pub fn any(&self) -> bool {
        self.0.iter().any(Option::is_some)
    }

    /// These rates, and the others where there is none.
    #[must_use]
    pub fn or(&self, others: &Self) -> Self {
        let mut rates = *self;
        for (rate, other) in rates.0.iter_mut().zip(others.0) {
            *rate = rate.or(other);
        }
        rates
    }

    /// The limits that there are.
    pub fn all(self) -> impl Iterator<Item = (LimitOf, Rate)> {
        let limits = LimitOf::ALL.iter().copied();
        limits.filter_map(move |limit| Some((limit, self[limit]?)))
    }
}

impl Index<LimitOf> for Rates {
    type Output = Option<Rate>;

    fn index(&self, limit: LimitOf) -> &Option<Rate> {
        &self.0[limit as usize]
    }
}

impl IndexMut<LimitOf> for Rates {
    fn index_mut(&mut self, limit: LimitOf) -> &mut Option<Rate> {
        &mut self.0[limit as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_belongs_to_one_subject() {
        for &limit in LimitOf::ALL {
            let (scope, kind) = limit.subject();
            assert_eq!(LimitOf::new(scope, kind), Some(limit));
        }
        assert_eq!(LimitOf::new(Scope::Shared, LimitKind::Daily), None);
        assert_eq!(LimitOf::new(Scope::App, LimitKind::Sender), None);
    }

    #[test]
    fn rates_that_are_set_replace_configured_ones() {
        let (mut set, mut configured) = (Rates::default(), Rates::default());
        assert!(!set.or(&configured).any());
        configured[LimitOf::Target] = "5/s".parse().ok();
        configured[LimitOf::Sender] = "6/s".parse().ok();
        set[LimitOf::Sender] = "7/s".parse().ok();
        set[LimitOf::Shared] = "8/s".parse().ok();
        let both: Vec<_> = set
            .or(&configured)
            .all()
            .map(|(it, rate)| (it, rate.units))
            .collect();
        let expected = [
            (LimitOf::Target, 5),
            (LimitOf::Sender, 7),
            (LimitOf::Shared, 8),
        ];
        assert_eq!(both, expected);
    }
}
