//! What Fanwise is about, as values and arithmetic.
//!
//! Nothing here awaits, reads a clock, draws a random number or knows a broker, a store or a socket:
//! `now` and randomness come in as arguments. Everything above can therefore be tested against it.

/// Totals, outcomes and what is still pending: promise 2 as arithmetic.
pub mod accounts;
/// Dead letters and job events: what leaves on `fanwise.dead` and `fanwise.events`.
pub mod announce;
/// Who is to get a message, and how a list of them is read.
pub mod audience;
/// JSON in a canonical form, for digests.
mod canonical;
/// One delivery of a slice: where each of its recipients stands.
pub mod delivery;
/// Directives: pause, cancel and re-rate, and what they mean for a slice.
pub mod directive;
/// Which lane gets a place, and which makes way: promise 8.
pub mod fairness;
/// Reads JSON objects field by field and reports every problem at once.
pub mod fields;
/// Job ids, fingerprints, slice ids and owners: who is who, in how few bytes.
pub mod ids;
/// A job as producers publish it: bytes in, a job or all its problems out.
pub mod job;
/// Lanes: the queue of one target and class.
pub mod lane;
/// Dead letters as people look at them: filters, pages, what is left when some go.
pub mod letters;
/// Rates, bursts and the GCRA arithmetic behind the throttle.
pub mod limits;
/// Lists of recipients as people have them: lines, CSV, NDJSON, as a stream.
pub mod list;
/// What a target makes of each thing a job can ask for.
pub mod mapping;
/// The message and its options.
pub mod message;
/// Notices of a completed job, and whom a job may name to be told.
pub mod notice;
/// What a call answered, what that means for a recipient, and what to do next.
pub mod outcome;
/// How fast a job goes, from what its ledger remembers.
pub mod pace;
/// What an app may send: as whom, where to, to whom and to how many.
pub mod permissions;
/// Texts with placeholders, rendered for each recipient.
pub mod personal;
/// Placeholders for which a job brings no values.
pub mod placeholders;
/// Texts from outside, made harmless for a terminal.
pub mod printable;
/// New jobs made from dead letters.
pub mod redrive;
/// Retry delays and the ladder of waiting queues.
pub mod schedule;
/// Slices: the unit on the lanes and of ack, and how an audience is cut into them.
pub mod slice;
/// Cells of CSV files that a spreadsheet takes for nothing but texts.
pub mod spreadsheet;
/// Stored messages: what may be stored, and a job with one in its place.
pub mod template;
/// Texts from outside: encodings, characters that cannot be seen, numbers that were rounded.
pub mod text;
/// W3C trace context.
pub mod trace;
