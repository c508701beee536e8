//! Lanes: the queues of one target. Their number is fixed; jobs, apps and users do not change it.
//!
//! A broker hands out the slices of a queue in their order, so a job behind another one in the same
//! queue waits for it, however fairly the workers share their places. Therefore:
//!
//! - Small jobs have express lanes. The configured apps are dealt out to them in turn, so a flood of
//!   small jobs of one app delays only the apps of its lane: none, with up to four apps.
//! - Each priority has eight sub-lanes. The ledger assigns a job, when it is accepted, to the
//!   sub-lane with the least open work (`least_open`), and all its slices stay there. Jobs of a
//!   priority stand in line only when more of them are open than there are sub-lanes.
//! - The last sub-lane takes no job of more than `MEDIUM_RECIPIENTS_MAX`, and one app's jobs take
//!   at most `APP_SUB_LANES_MAX`. So however many large jobs an app has open, a medium job, and a
//!   job of another app, do not stand behind them.

use std::fmt;
use std::str::FromStr;

pub use fanwise_client::Priority;
use serde::{Deserialize, Serialize};

use super::ids::JobId;

/// Sub-lanes of a priority.
pub const SUB_LANES: u32 = 8;

/// Express lanes of a target.
pub const EXPRESS_LANES: u32 = 4;

/// A job of at most this many recipients takes an express lane, whatever its priority.
pub const EXPRESS_RECIPIENTS_MAX: usize = 100;

/// The last sub-lane of a priority takes only jobs of at most this many recipients.
pub const MEDIUM_RECIPIENTS_MAX: u64 = 10_000;

/// The most sub-lanes of a priority that the open jobs of one app take.
pub const APP_SUB_LANES_MAX: usize = 6;

/// The most open jobs of a priority whose work is looked up to find the sub-lane of the next one.
pub const ASSIGNED_MAX: usize = 64;

/// How much of a text that is no lane an error shows, in characters.
const TEXT_SHOWN_MAX: usize = 100;

/// The class of a lane. Its order breaks ties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LaneClass {
    /// Small jobs, and the number of the lane.
    Express(u32),
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
        (0..EXPRESS_LANES)
            .map(Self::Express)
            .chain(Priority::ALL.iter().copied().flat_map(sub_lanes))
            .chain(std::iter::once(Self::Notices))
    }

    /// The weight of its class while all classes have work.
    pub fn weight(self) -> u32 {
        match self {
            Self::Express(_) => 16,
            Self::Of(Priority::High, _) => 8,
            Self::Of(Priority::Normal, _) | Self::Notices => 4,
            Self::Of(Priority::Bulk, _) => 1,
        }
    }
}

/// An open job and its sub-lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned<'a> {
    pub app: &'a str,
    pub sub_lane: u32,
    /// Recipients without an outcome.
    pub pending: u64,
}

/// The sub-lane with the least open work, for a job of an app. `open`: the open jobs of the
/// priority, or the first [`ASSIGNED_MAX`] of them; with that many, the job's id decides among the
/// sub-lanes that are open to it. Large jobs fill the sub-lanes from the first one on, medium jobs
/// from the last.
pub fn least_open(open: &[Assigned<'_>], job: JobId, app: &str, recipients: u64) -> u32 {
    let of = |lane| open.iter().filter(move |it| it.sub_lane == lane);
    let has = |lane: &u32| of(*lane).any(|it| it.app == app);
    let is_medium = recipients <= MEDIUM_RECIPIENTS_MAX;
    let is_full = (0..SUB_LANES).filter(has).count() >= APP_SUB_LANES_MAX;
    let may = |lane: &u32| (*lane + 1 < SUB_LANES || is_medium) && (!is_full || has(lane));
    let mut lanes: Vec<u32> = (0..SUB_LANES).filter(may).collect();
    if is_medium {
        lanes.reverse();
    }
    if open.len() >= ASSIGNED_MAX {
        let number = job.bytes().into_iter().take(8);
        let number = number.fold(0, |sum, byte| (sum << 8) | u64::from(byte));
        let at = number % lanes.len().max(1) as u64;
        return lanes.get(at as usize).copied().unwrap_or(0);
    }
    let work = |lane: &u32| {
        let pending = of(*lane).map(|it| it.pending);
        (pending.fold(0, u64::saturating_add), of(*lane).count())
    };
    lanes.into_iter().min_by_key(work).unwrap_or(0)
}

impl fmt::Display for LaneClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The only express lane of earlier versions.
            Self::Express(0) => f.write_str("express"),
            Self::Express(number) => write!(f, "express.{number}"),
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
    /// The lane of the small jobs of an app, by its number among the configured apps.
    pub fn of_small_jobs(target: &str, app: usize) -> Self {
        Self {
            target: target.to_owned(),
            class: LaneClass::Express((app % EXPRESS_LANES as usize) as u32),
        }
    }

    /// Whether its slices are the whole of a small job each.
    pub fn is_of_small_jobs(&self) -> bool {
        matches!(self.class, LaneClass::Express(_))
    }

    /// The lane of a job of this lane after its priority was changed. Small jobs have one lane for
    /// all priorities.
    #[must_use]
    pub fn with_priority(&self, priority: Priority) -> Self {
        let class = match self.class {
            LaneClass::Of(_, sub) => LaneClass::Of(priority, sub),
            other => other,
        };
        Self {
            class,
            ..self.clone()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(app: &'static str, sub_lane: u32, pending: u64) -> Assigned<'static> {
        Assigned {
            app,
            sub_lane,
            pending,
        }
    }

    #[test]
    fn every_lane_is_read_as_it_is_written() {
        let lanes: Vec<_> = Lane::all("im").collect();
        assert_eq!(lanes.len(), 4 + 3 * 8 + 1);
        for lane in &lanes {
            assert_eq!(lane.to_string().parse().as_ref(), Ok(lane));
        }
        // The lanes of earlier versions.
        for text in ["im.express", "im.high.0", "im.normal.1", "im.notices"] {
            let lane: Lane = text.parse().unwrap();
            assert!(lanes.contains(&lane));
            assert_eq!(lane.to_string(), text);
        }
        assert!("im.normal.8".parse::<Lane>().is_err());
        assert!("im.express.0".parse::<Lane>().is_err());
    }

    /// Assigns jobs one after the other; returns their sub-lanes.
    fn assign(jobs: &[(&'static str, u64)]) -> Vec<u32> {
        let mut open = Vec::new();
        for (app, recipients) in jobs {
            let job = JobId::of(app, &open.len().to_string());
            let lane = least_open(&open, job, app, *recipients);
            open.push(assigned(app, lane, *recipients));
        }
        open.iter().map(|it| it.sub_lane).collect()
    }

    #[test]
    fn no_two_jobs_stand_in_line_while_a_sub_lane_is_free() {
        assert_eq!(assign(&[("a", 1_000_000); 6]), [0, 1, 2, 3, 4, 5]);
        assert_eq!(assign(&[("a", 101); 6]), [7, 6, 5, 4, 3, 2]);
        let mixed = [("a", 1_000_000), ("b", 101), ("a", 500), ("c", 1_000_000)];
        assert_eq!(assign(&mixed), [0, 7, 6, 1]);
    }

    #[test]
    fn the_large_jobs_of_one_app_leave_room() {
        let mut jobs = vec![("a", 1_000_000); 20];
        let lanes = assign(&jobs);
        assert!(lanes.iter().all(|lane| *lane < 6), "{lanes:?}");
        jobs.push(("b", 1_000_000));
        assert_eq!(assign(&jobs)[20], 6);
        jobs.push(("c", 500));
        assert_eq!(assign(&jobs)[21], 7);
    }

    /// A medium job never stands behind a large one, whatever apps have open.
    #[test]
    fn a_medium_job_does_not_stand_behind_a_large_one() {
        let large: Vec<_> = ["a", "b", "c"]
            .iter()
            .map(|app| (*app, 1_000_000))
            .collect();
        let mut jobs: Vec<_> = large.iter().copied().cycle().take(30).collect();
        jobs.push(("d", 10_000));
        let lanes = assign(&jobs);
        assert_eq!(lanes[30], 7);
        assert!(lanes[..30].iter().all(|lane| *lane < 7), "{lanes:?}");
    }

    #[test]
    fn the_least_open_work_decides_and_not_the_number_of_jobs() {
        let mut open: Vec<_> = (0..8).map(|lane| assigned("a", lane, 50_000)).collect();
        open[3].pending = 20;
        assert_eq!(least_open(&open, JobId::of("a", "9"), "a", 1_000_000), 3);
    }

    /// Beyond that many open jobs the sub-lane is not looked up, and the rules still hold.
    #[test]
    fn many_open_jobs_are_spread_by_their_ids() {
        let jobs = vec![("a", 1_000_000); 1000];
        let lanes = assign(&jobs);
        let of = |lane| lanes.iter().filter(|it| **it == lane).count();
        assert!((0..6).all(|lane| of(lane) > 100), "{lanes:?}");
        assert_eq!(of(6) + of(7), 0);
    }
}
