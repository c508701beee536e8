//! Submits broadcast jobs to Fanwise, and verifies what Fanwise sends to your own backend.
//!
//! A [`Job`] is one [`Message`] for an [`Audience`]. Its `client_msg_no` is its key: submit the same
//! job again, after a crash or when in doubt, and no recipient gets it twice. Take the key from your
//! own data, never a new random one for each try.
//!
//! | feature | what it adds |
//! |---|---|
//! | – | the types of the contract, and [`webhook`]: signed requests and their verification |
//! | `http` | `http::Server`: submits to a `fanwise serve` or `fanwise gateway`, and follows jobs |
//! | `amqp` | `amqp::Producer`: publishes to RabbitMQ, confirmed |
//! | `schema` | JSON Schemas of the types |
//!
//! ```no_run
//! # #[cfg(feature = "http")]
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use fanwise_client::http::Server;
//! use fanwise_client::{Audience, Job, Message};
//!
//! let server = Server::new("https://fanwise.example.com")?.with_token("secret")?;
//! let users = Audience::users(["ana", "bob"]);
//! let job = Job::new("order-4711-shipped", users, Message::text("Your order is on its way"));
//! let accepted = server.submit(&job).await?;
//! let done = server.wait(accepted.job).await?;
//! println!("{} of {} sent", done.accounts.sent, done.accounts.total);
//! # Ok(())
//! # }
//! ```

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests start servers and look at the real clock"
    )
)]

#[cfg(feature = "amqp")]
pub mod amqp;
mod answer;
mod audience;
#[cfg(feature = "http")]
pub mod http;
mod id;
mod job;
mod message;
pub mod parts;
mod retry;
pub mod webhook;

pub use self::answer::{
    Accounts, Estimate, FieldProblem, JobStanding, JobState, JobView, Preview, Problem, Submitted,
    TimeLimit,
};
pub use self::audience::{Audience, FetchedList, ListFormat, Recipient};
pub use self::id::{JobId, NotAJobId};
pub use self::job::{
    CLIENT_MSG_NO_BYTES_MAX, DEFAULT_APP, FailureClass, Fallback, JOB_BYTES_MAX,
    JOB_RECIPIENTS_MAX, JOB_VERSION, Job, ListPart, NAME_BYTES_MAX, OnUncertain, PARTS_MAX,
    Priority, RECIPIENT_BYTES_MAX, Strictness, TAG_BYTES_MAX, TAGS_MAX,
};
pub use self::message::{Message, Moderation, Options, Push, Route};
pub use self::retry::Retry;
