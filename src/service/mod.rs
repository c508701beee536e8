//! Everything that the HTTP interface, the drop-in endpoints and the command line have in common,
//! over the ports alone.
//!
//! - `api`: the answers of the HTTP interface, for its server and for its client.
//! - `admission`: whether a job may be accepted.
//! - `before_accept`: an operator's endpoint that decides about jobs.
//! - `rehearsal`: what a dry run tells.
//! - `jobs`: reads jobs.
//! - `dead_letters`: reads, redrives and purges dead letters.
//! - `target_test`: what a test message is, and what a target made of it.
//! - `control`: steers jobs, apps and targets, and finds out why a job does not move.

pub mod admission;
pub mod api;
mod before_accept;
pub mod control;
pub mod dead_letters;
pub mod jobs;
mod rehearsal;
pub mod target_test;

pub use self::before_accept::{BeforeAccept, Vars};
pub use self::rehearsal::{PREVIEWS, Rehearsal};
