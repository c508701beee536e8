//! Submits jobs to a `fanwise serve` or `fanwise gateway`, and follows them.

mod error;
mod form;
mod list;
mod question;
mod server;

pub use self::error::{BadAddress, BadToken, Error, Refused};
pub use self::list::{Format, List};
pub use self::question::{JSON, NDJSON, Question, encoded, query};
pub use self::server::{Server, SubmitOptions, base_of, check_token};

/// The client that [`Server`] calls through, and its settings.
pub use fanwise_net::http::{Client, ClientSettings, HttpReply, SendError};
