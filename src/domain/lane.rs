//! Lanes: the queues of one target, one for each class of slices and one for notices. The
//! configuration fixes their number; jobs and users do not change it.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray};

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
    JsonSchema,
    EnumString,
    IntoStaticStr,
    VariantArray,
)]
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

/// Sub-lanes of a class. A hash of the job spreads the large jobs of a class over them, so that
/// such jobs interleave instead of waiting for each other.
pub const SUB_LANES: u32 = 2;

/// A job of at most this many recipients takes the express lane, whatever its priority.
pub const EXPRESS_RECIPIENTS_MAX: usize = 100;

/// How much of a text that is no lane an error shows, in characters.
const TEXT_SHOWN_MAX: usize = 100;

/// The class of a lane. Its order breaks ties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LaneClass {
    /// Small jobs.
    Express,
    /// A priority and the sub-lane.
    Of(Priority, u32),
    /// Notices of completed jobs. They are apart from slices, so that a parked target does not
    /// delay them and a slow receiver takes no place of a slice.
    Notices,
}

impl LaneClass {
    /// Every class of a target, in the order in which lanes are declared and drawn.
    pub fn all() -> impl Iterator<Item = Self> {
        let sub_lanes = |priority| (0..SUB_LANES).map(move |sub| Self::Of(priority, sub));
        std::iter::once(Self::Express)
            .chain(Priority::ALL.iter().copied().flat_map(sub_lanes))
            .chain(std::iter::once(Self::Notices))
    }

    /// The weight of its class while all classes have work. The lanes of a class share what the
    /// class gets.
    pub fn weight(self) -> u32 {
        match self {
            Self::Express => 16,
            Self::Of(Priority::High, _) => 8,
            Self::Of(Priority::Normal, _) | Self::Notices => 4,
            Self::Of(Priority::Bulk, _) => 1,
        }
    }
}

impl fmt::Display for LaneClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Express => f.write_str("express"),
            Self::Of(priority, sub) => write!(f, "{}.{sub}", priority.as_str()),
            Self::Notices => f.write_str("notices"),
        }
    }
}

/// One lane. Its text, `<target>.<class>`, is the routing key of its slices.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Lane {
    pub target: String,
    pub class: LaneClass,
}

impl Lane {
    /// The lane of a job with this many recipients; `spread` is any stable hash of the job.
    pub fn of(target: &str, priority: Priority, recipients: usize, spread: u64) -> Self {
        let class = if recipients <= EXPRESS_RECIPIENTS_MAX {
            LaneClass::Express
        } else {
            LaneClass::Of(priority, (spread % u64::from(SUB_LANES)) as u32)
        };
        Self {
            target: target.to_owned(),
            class,
        }
    }

    /// The lane of the notices of a target's jobs.
    pub fn of_notices(target: &str) -> Self {
        Self {
            target: target.to_owned(),
            class: LaneClass::Notices,
        }
    }

    /// Every lane of a target.
    pub fn all(target: &str) -> impl Iterator<Item = Self> {
        LaneClass::all().map(move |class| Self {
            target: target.to_owned(),
            class,
        })
    }
}

impl FromStr for Lane {
    type Err = NotALane;

    fn from_str(text: &str) -> Result<Self, NotALane> {
        let of = |class: LaneClass| {
            let target = text.strip_suffix(&format!(".{class}"))?.to_owned();
            Some(Self { target, class })
        };
        let lane = LaneClass::all().find_map(of);
        lane.ok_or_else(|| NotALane(text.chars().take(TEXT_SHOWN_MAX).collect()))
    }
}

impl TryFrom<String> for Lane {
    type Error = NotALane;

    fn try_from(text: String) -> Result<Self, NotALane> {
        text.parse()
    }
}

impl From<Lane> for String {
    fn from(lane: Lane) -> Self {
        lane.to_string()
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no lane: a lane is written `<target>.<class>`, such as `im.normal.0`")]
pub struct NotALane(String);

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.target, self.class)
    }
}
