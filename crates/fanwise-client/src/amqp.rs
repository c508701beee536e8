//! Publishes jobs to RabbitMQ, confirmed.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use fanwise_client::amqp::Producer;
//! use fanwise_client::{Audience, Job, Message};
//!
//! let producer = Producer::new("amqp://guest:guest@127.0.0.1:5672/%2f")?;
//! let users = Audience::users(["ana", "bob"]);
//! let job = Job::new("order-4711-shipped", users, Message::text("Your order is on its way"));
//! let published = producer.submit(job).await?;
//! println!("job {} in {} message(s)", published.job, published.messages);
//! producer.close().await;
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::time::{Duration, SystemTime};

pub use fanwise_net::amqp::{AmqpError, DialError, DialSettings};
pub use fanwise_net::tls::TlsSettings;

use fanwise_net::amqp::{Dial, Link};
use fanwise_net::error::chain;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::Mutex;

use crate::id::JobId;
use crate::job::{DEFAULT_APP, Job, Priority};
use crate::retry::{Retry, Tries};

/// The prefix of the names of all exchanges and queues, unless an installation has another.
const NAMESPACE: &str = "fanwise";
/// How long connecting and a confirm may take, and the heartbeat.
const PATIENCE: Duration = Duration::from_secs(10);
/// The property that has a message written to disk.
const PERSISTENT: u8 = 2;

/// Publishes jobs, one message at a time: each is persistent and `mandatory`, and confirmed before
/// the next. It connects when it is first used, and again when it has to.
///
/// A message without a confirm is published again as [`Retry`] says. This is safe, because a job is
/// known by its `client_msg_no`.
pub struct Producer {
    dial: Dial,
    exchange: String,
    confirm_timeout: Duration,
    retry: Retry,
    /// Taken out while it is in use, so that a publish that is given up takes its channel along:
    /// what may still arrive on it is never taken for the answer to another message.
    open: Mutex<Option<Open>>,
}

/// A channel in confirm mode, and the connection that it is on.
struct Open {
    link: Link,
    channel: Channel,
}

/// A message of a job.
#[derive(Clone, Copy, Debug)]
pub struct JobMessage<'a> {
    /// The priority of a job that names none.
    pub priority: Priority,
    /// The same for each repeat of the message.
    pub id: &'a str,
    pub body: &'a [u8],
    /// W3C trace context that goes with every send.
    pub traceparent: Option<&'a str>,
}

/// A job that the broker has on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    pub job: JobId,
    pub messages: u32,
}

/// Why a message is not known to be in a queue.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", chain(.0))]
    Broker(AmqpError),
    #[error("there is no exchange `{exchange}`; run `fanwise topology apply`: {}", chain(.error))]
    NoExchange { exchange: String, error: AmqpError },
    #[error("the broker refused the message: a queue is full or its leader is away")]
    Refused,
    #[error(
        "no queue is bound for exchange `{exchange}`, routing key `{routing_key}`; run `fanwise topology \
         apply`"
    )]
    Unroutable {
        exchange: String,
        routing_key: &'static str,
    },
    #[error("the broker did not confirm within {0:?}")]
    Timeout(Duration),
}

impl Error {
    /// Whether the exchange or the queue is missing.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::NoExchange { .. } | Self::Unroutable { .. })
    }

    /// Whether the same message may be accepted later.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Broker(AmqpError::Refused { .. } | AmqpError::Name(_))
            | Self::NoExchange { .. }
            | Self::Unroutable { .. } => false,
            Self::Broker(_) | Self::Refused | Self::Timeout(_) => true,
        }
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field("dial", &self.dial)
            .field("exchange", &self.exchange)
            .finish_non_exhaustive()
    }
}

impl Producer {
    /// For the broker at `amqp://user:password@host:port/vhost`, or `amqps://`. Does not connect
    /// yet.
    pub fn new(url: &str) -> Result<Self, DialError> {
        Self::with(&DialSettings {
            urls: vec![url.to_owned()],
            tls: TlsSettings::default(),
            section: "broker".to_owned(),
            heartbeat: PATIENCE,
            connect_timeout: PATIENCE,
            connection_name: "fanwise-client".to_owned(),
        })
    }

    /// For a broker of several nodes, or with TLS settings of its own.
    pub fn with(settings: &DialSettings) -> Result<Self, DialError> {
        Ok(Self {
            dial: Dial::new(settings)?,
            exchange: exchange_of(NAMESPACE),
            confirm_timeout: PATIENCE,
            retry: Retry::default(),
            open: Mutex::new(None),
        })
    }

    /// For an installation whose exchanges and queues have another prefix (`broker.namespace`).
    #[must_use]
    pub fn with_namespace(mut self, namespace: &str) -> Self {
        self.exchange = exchange_of(namespace);
        self
    }

    /// How long a message may wait for its confirm; 10 seconds unless this says otherwise.
    #[must_use]
    pub fn with_confirm_timeout(mut self, timeout: Duration) -> Self {
        self.confirm_timeout = timeout;
        self
    }

    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Publishes a job, in as many messages as its list needs. When this returns `Ok`, the broker
    /// has all of it on disk. After an error it may have some of it: submit the job again.
    pub async fn submit(&self, job: Job) -> Result<Published, Error> {
        let app = job.app.as_deref().unwrap_or(DEFAULT_APP);
        let id = JobId::of(app, &job.client_msg_no);
        let priority = job.priority.unwrap_or_default();
        let mut messages = 0;
        for body in job.into_messages() {
            messages += 1;
            let message = JobMessage {
                priority,
                id: &format!("{id}/{messages}"),
                body: &body,
                traceparent: None,
            };
            self.publish(message).await?;
        }
        Ok(Published { job: id, messages })
    }

    /// Publishes one message of a job. When this returns `Ok`, it is in a queue and on disk.
    pub async fn publish(&self, message: JobMessage<'_>) -> Result<(), Error> {
        let mut tries = Tries::of(self.retry);
        loop {
            match self.try_publish(message).await {
                Err(error) if error.is_temporary() && tries.again(None).await => {}
                done => return done,
            }
        }
    }

    /// Closes the connection in order.
    pub async fn close(self) {
        if let Some(open) = self.open.into_inner() {
            self.dial.close(&open.link).await;
        }
    }

    async fn try_publish(&self, message: JobMessage<'_>) -> Result<(), Error> {
        let mut place = self.open.lock().await;
        let open = match place.take() {
            Some(open) if open.channel.status().connected() => open,
            _ => self.connect().await?,
        };
        self.confirmed(&open.channel, message).await?;
        *place = Some(open);
        Ok(())
    }

    async fn connect(&self) -> Result<Open, Error> {
        let link = self.dial.open("produce").await.map_err(Error::Broker)?;
        let opened = async {
            let channel = link.create_channel().await?;
            channel
                .confirm_select(ConfirmSelectOptions::default())
                .await?;
            Ok(channel)
        };
        let channel = self.dial.ask("open a channel".to_owned(), opened).await;
        let channel = channel.map_err(Error::Broker)?;
        Ok(Open { link, channel })
    }

    /// Publishes a message and waits until the broker has it on disk. An unroutable message is
    /// confirmed too, but comes back before its confirm.
    async fn confirmed(&self, channel: &Channel, message: JobMessage<'_>) -> Result<(), Error> {
        let routing_key = message.priority.as_str();
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let exchange = self.dial.name(&self.exchange).map_err(Error::Broker)?;
        let publish = async {
            let written = channel.basic_publish(
                exchange,
                routing_key.into(),
                options,
                message.body,
                properties(message),
            );
            written.await?.await
        };
        let what = format!("publish to exchange `{}`", self.exchange);
        let published = self.dial.ask_within(what, self.confirm_timeout, publish);
        let confirmation = published.await.map_err(|error| match error {
            AmqpError::Slow { after, .. } => Error::Timeout(after),
            error if error.is(&AMQPSoftError::NOTFOUND) => Error::NoExchange {
                exchange: self.exchange.clone(),
                error,
            },
            error => Error::Broker(error),
        })?;
        if !matches!(confirmation, Confirmation::Ack(_)) {
            return Err(Error::Refused);
        }
        match confirmation.take_message() {
            None => Ok(()),
            Some(_) => Err(Error::Unroutable {
                exchange: self.exchange.clone(),
                routing_key,
            }),
        }
    }
}

fn exchange_of(namespace: &str) -> String {
    format!("{namespace}.jobs")
}

fn properties(message: JobMessage<'_>) -> BasicProperties {
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_type("job".into())
        .with_timestamp(unix_seconds());
    if let Ok(id) = ShortString::try_new(message.id) {
        properties = properties.with_message_id(id);
    }
    if let Some(traceparent) = message.traceparent {
        let mut headers = FieldTable::default();
        let value = AMQPValue::LongString(traceparent.into());
        headers.insert("traceparent".into(), value);
        properties = properties.with_headers(headers);
    }
    properties
}

#[expect(clippy::disallowed_methods, reason = "a producer has its own clock")]
fn unix_seconds() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audience::Audience;
    use crate::message::Message;

    #[test]
    fn a_producer_goes_to_any_thread_and_shows_no_password() {
        fn check(_: impl Send) {}
        let producer = Producer::new("amqp://ann:s3cret@127.0.0.1/%2f").unwrap();
        let shown = format!("{producer:?}");
        assert!(
            shown.contains("amqp://127.0.0.1:5672") && !shown.contains("s3cret"),
            "{shown}"
        );
        let error = Producer::new("http://ann:s3cret@127.0.0.1").unwrap_err();
        assert!(!error.to_string().contains("s3cret"), "{error}");
        check(producer.submit(Job::new("k", Audience::users(["ann"]), Message::text("x"))));
        check(producer.close());
    }

    #[test]
    fn a_message_is_persistent_and_has_its_id_and_trace() {
        let message = JobMessage {
            priority: Priority::Bulk,
            id: "j/1",
            body: b"{}",
            traceparent: Some("00-1-2-01"),
        };
        let with = properties(message);
        assert_eq!(with.delivery_mode(), &Some(PERSISTENT));
        assert_eq!(with.message_id().as_ref().unwrap().as_str(), "j/1");
        assert!(with.headers().as_ref().unwrap().contains_key("traceparent"));
        // A longer id than AMQP takes is left out, and the job is sent.
        let id = &"x".repeat(256);
        assert_eq!(properties(JobMessage { id, ..message }).message_id(), &None);
    }
}
