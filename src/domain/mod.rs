//! The values and rules of Fanwise: jobs, slices, outcomes, limits, accounts.
//!
//! Nothing here awaits, reads a clock, or depends on a broker, a store or a socket: the time comes
//! in as an argument, and lists come in as bytes or readers. Everything depends on its arguments
//! alone, so its tests need no server and no waiting. The one exception is [`schedule`], which draws
//! the jitter of its delays at random.

/// The accounts of a job: totals, outcomes and pending recipients (promise 2).
pub mod accounts;
/// The limit of a target that throttled us, as it climbs back.
pub mod adapt;
/// Dead letters and job events: the messages on `fanwise.dead` and `fanwise.events`.
pub mod announce;
/// Who gets a message, and how a list of recipients is read.
pub mod audience;
/// When the breaker of a target opens.
pub mod breaker;
/// JSON in a canonical form, for digests.
mod canonical;
/// Gives the codes of a backend another class, as a target configures it.
pub mod codes;
pub mod concurrency;
/// What a message costs, in units of the limits of its target.
pub mod cost;
/// One delivery of a slice: the state of each of its recipients.
pub mod delivery;
/// Directives: pause, cancel and re-rate, and what they mean for a slice.
pub mod directive;
/// Which lane gets a place, and which lane gives one up: promise 8.
pub mod fairness;
/// A second target for recipients that the first one refuses.
pub mod fallback;
/// Reads JSON objects field by field and reports every problem at once.
pub mod fields;
/// At most so many messages of a category to a recipient within a period.
pub mod frequency_cap;
/// Short ids that are derived from what they identify: jobs, fingerprints, slices and owners.
pub mod ids;
/// Reads a job as producers publish it, or reports all its problems.
pub mod job;
/// The limits that apply to a job.
pub mod job_limits;
/// Lanes: the queues of one target, by class.
pub mod lane;
/// The address of the ledger: one Redis, Sentinels, or a cluster.
pub mod ledger_url;
/// Dead letters as operators read them: filters, pages, and what remains after a removal.
pub mod letters;
/// Rates, bursts and the GCRA arithmetic behind the throttle.
pub mod limits;
/// Reads lists of recipients as a stream: lines, CSV, NDJSON.
pub mod list;
/// Lists that a job names by their address.
pub mod list_reference;
/// How a target maps each feature that a job can ask for.
pub mod mapping;
/// The message of a job and its options.
pub mod message;
/// The ids that targets give to messages.
pub mod message_id;
/// Notices of completed jobs, and which destinations a job may name.
pub mod moment;
pub mod notice;
/// What a call returned, what that means for a recipient, and what to do next.
pub mod outcome;
/// The sending hours of recipients in zones of their own.
pub mod own_hours;
/// The speed of a job, from what its ledger remembers.
pub mod pace;
/// The rule that cuts lists into messages and slices.
pub use fanwise_client::parts;
/// What an app may send: its senders, targets, audiences and numbers.
pub mod permissions;
/// Texts with placeholders, rendered for each recipient.
pub mod personal;
/// Placeholders for which a job has no values.
pub mod placeholders;
/// Makes texts from outside harmless for a terminal.
pub mod printable;
/// New jobs made from dead letters.
pub mod redrive;
/// Whether anything of a silent job is left to deliver.
pub mod repair;
/// How often and when recipients are retried, by target and app.
pub mod retry;
/// Retry delays and the ladder of waiting queues.
pub mod schedule;
/// Slices: the unit on the lanes and of ack, and how an audience is cut into them.
pub mod slice;
/// Spreads the recipients of a job evenly over a time.
pub mod spread;
/// Writes and reads CSV cells so that a spreadsheet takes them for texts only.
pub mod spreadsheet;
/// Stored messages: what may be stored, and a job with a stored message inserted.
pub mod template;
/// Texts from outside: encodings, invisible characters, rounded numbers.
pub mod text;
pub mod throttle;
/// W3C trace context.
pub mod trace;
pub mod trail;
pub mod waking;
/// Sending hours.
pub mod window;
