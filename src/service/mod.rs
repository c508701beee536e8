//! What every front door does alike, over the ports alone: the HTTP interface, the drop-in endpoints, the
//! command line.
//!
//! - `api`: what the HTTP interface takes and answers, for its server and for its client.
//! - `admission`: whether a job may be accepted.
//! - `before_accept`: an endpoint of the operator's that is asked about it.
//! - `jobs`: looking at jobs.
//! - `dead_letters`: looking at dead letters, sending to them again, removing them.

pub mod admission;
pub mod api;
mod before_accept;
pub mod control;
pub mod dead_letters;
pub mod jobs;

pub use self::before_accept::{BeforeAccept, Vars};
