//! What every front door does alike, over the ports alone: the HTTP interface, the drop-in endpoints, the
//! command line.
//!
//! - `admission`: whether a job may be accepted.
//! - `before_accept`: an endpoint of the operator's that is asked about it.
//! - `dead_letters`: looking at dead letters, sending to them again, removing them.

pub mod admission;
mod before_accept;
pub mod dead_letters;

pub use self::before_accept::{BeforeAccept, Vars};
