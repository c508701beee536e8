//! What workers and gateways share in a process: the ports, the targets and apps as they are
//! configured, and what the process knows of their state.
//!
//! [`Context`] holds all of it. A worker delivers with it; a gateway accepts jobs with it, and tells
//! callers why a job does not move.

mod answers;
mod at_work;
pub(crate) mod backlog;
pub(crate) mod call;
mod call_log;
mod call_places;
mod callbacks;
mod census;
mod complete_lists;
pub(crate) mod context;
mod count_users;
pub(crate) mod credential;
mod health;
mod identify;
mod known_directives;
pub(crate) mod ledger_health;
mod paces;
mod pending;
mod recall;
mod standstills;
mod tally;
pub mod target_test;
pub mod traces;
mod under_way;
mod watch;

use std::time::Duration;

pub use self::at_work::AtWork;
pub use self::call_log::CallLog;
pub use self::call_places::CallPlaces;
pub use self::callbacks::Callbacks;
pub use self::census::count_cluster;
pub use self::context::{AppRuntime, Context, Parking, RECONNECT, Settings, TargetRuntime};
pub use self::count_users::{UserCount, count_users};
pub use self::credential::Keyring;
pub(crate) use self::health::Admission;
pub use self::health::Health;
pub use self::identify::{identify, identify_all};
pub use self::recall::{NoRecall, Recallable};
pub use self::under_way::CallsUnderWay;
pub(crate) use self::watch::POLL;
pub use self::watch::{Role, watch_store};

/// Longest wait for a limit or a parked target inside a delivery. A delivery that must wait longer
/// goes on the retry ladder.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(1);
