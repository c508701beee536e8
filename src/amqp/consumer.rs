//! Consumes the deliveries of one queue, and ends each of them.
//!
//! A delivery holds the channel that it came on, and through it the session's `lost` token. Once
//! that is cancelled nothing is handed out and nothing is acked any more, even if this channel
//! would still do it, because the session is lost as a whole.
//!
//! An ack returns once it is sent to the broker. When a session is closed right after a burst of
//! acks, the broker may drop those that its channel still holds back from the queue, and hand the
//! messages out again. This is one more reason why every reader accepts repeats.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicNackOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Acker, BasicProperties, Channel};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::publisher::{PERSISTENT, RabbitPublisher, Wire, unix_seconds};
use crate::domain::trace;
use crate::ports::{BoxFuture, Consumer, Delivery, EndDelivery, Lost, PublishError};

/// The longest reason that is kept with a rejected message.
const REASON_BYTES_MAX: usize = 4 * 1024;

/// Headers of a rejected message: the reason, the queue it came from, and when.
pub(super) const REASON: &str = "fanwise-reason";
pub(super) const SOURCE: &str = "fanwise-source";
pub(super) const REJECTED_AT: &str = "fanwise-rejected-at";

/// The broker's own headers, which must not travel with a copy. The counts are those of the old
/// queue. Before RabbitMQ 4 the broker believes a re-published `x-death`, and could drop the
/// message as one that goes in circles.
const BROKER_HEADERS: [&str; 3] = ["x-death", "x-delivery-count", "x-acquired-count"];

/// Where deliveries come from and what is needed to end them.
pub(super) struct Origin {
    /// Stays open as long as one of its deliveries.
    pub(super) channel: Channel,
    pub(super) queue: String,
    pub(super) rejected_exchange: String,
    pub(super) publisher: RabbitPublisher,
    pub(super) lost: CancellationToken,
    /// Properties must fit in one frame; a larger one ends the connection that publishes.
    pub(super) frame_max: usize,
}

/// Deliveries of one queue.
pub struct RabbitConsumer {
    stream: lapin::Consumer,
    origin: Arc<Origin>,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Consuming,
    /// Asked to stop; deliveries on their way still arrive.
    Cancelled,
    Ended,
}

impl RabbitConsumer {
    pub(super) fn new(stream: lapin::Consumer, origin: Origin) -> Self {
        Self {
            stream,
            origin: Arc::new(origin),
            phase: Phase::Consuming,
        }
    }

    /// The stream has ended. Unless it was cancelled, the session is lost.
    fn end(&mut self, error: Option<&lapin::Error>) {
        let lost = &self.origin.lost;
        if self.phase == Phase::Consuming && !lost.is_cancelled() {
            let error = error.map(tracing::field::display);
            let queue = self.origin.queue.as_str();
            // Without an error the queue is gone, or the broker has requeued the unacked
            // deliveries.
            warn!(queue, error, "a consumer ended, the session is lost");
            lost.cancel();
        }
        self.phase = Phase::Ended;
    }
}

impl Consumer for RabbitConsumer {
    async fn next(&mut self) -> Option<Delivery> {
        while self.phase != Phase::Ended {
            // Cancel safe: the stream yields a delivery only when it is ready, and nothing is
            // awaited before it is handed out.
            let item = tokio::select! {
                biased;
                () = self.origin.lost.cancelled() => None,
                item = self.stream.next() => item,
            };
            match item {
                // The buffer still yields deliveries of a dead channel; they belong to the broker
                // again.
                Some(Ok(delivery)) if !delivery.acker.usable() => {}
                Some(Ok(delivery)) => return Some(hand_out(delivery, &self.origin)),
                Some(Err(error)) => self.end(Some(&error)),
                None => self.end(None),
            }
        }
        None
    }

    async fn cancel(&mut self) {
        if self.phase != Phase::Consuming {
            return;
        }
        self.phase = Phase::Cancelled;
        let cancelled = self
            .origin
            .channel
            .basic_cancel(self.stream.tag(), BasicCancelOptions::default());
        let refused = tokio::select! {
            () = self.origin.lost.cancelled() => false,
            cancelled = cancelled => cancelled.is_err(),
        };
        if refused {
            self.origin.lost.cancel();
        }
    }
}

pub(super) fn hand_out(delivery: lapin::message::Delivery, origin: &Arc<Origin>) -> Delivery {
    let body = Bytes::from(delivery.data);
    Delivery {
        body: body.clone(),
        traceparent: traceparent(&delivery.properties),
        redelivered: delivery.redelivered,
        end: Box::new(Ending {
            acker: delivery.acker,
            routing_key: delivery.routing_key,
            properties: delivery.properties,
            body,
            origin: Arc::clone(origin),
        }),
    }
}

fn traceparent(properties: &BasicProperties) -> Option<String> {
    let headers = properties.headers().as_ref()?;
    let value = headers.inner().get("traceparent")?;
    let text = std::str::from_utf8(value.as_long_string()?.as_bytes()).ok()?;
    trace::traceparent(text).map(str::to_owned)
}

/// Ends a delivery: holds everything that is needed to ack it or to reject it unchanged.
struct Ending {
    acker: Acker,
    routing_key: ShortString,
    properties: BasicProperties,
    body: Bytes,
    origin: Arc<Origin>,
}

impl Ending {
    /// Waits until the answer is written. The client returns `false` when the delivery's channel is
    /// gone.
    async fn write(&self, written: impl Future<Output = lapin::Result<bool>>) -> Result<(), Lost> {
        tokio::select! {
            biased;
            () = self.origin.lost.cancelled() => Err(Lost),
            written = written => match written {
                Ok(true) => Ok(()),
                Ok(false) | Err(_) => Err(Lost),
            },
        }
    }

    async fn ack(&self) -> Result<(), Lost> {
        self.write(self.acker.ack(BasicAckOptions::default())).await
    }
}

impl EndDelivery for Ending {
    fn ack(self: Box<Self>) -> BoxFuture<Result<(), Lost>> {
        Box::pin(async move { Self::ack(&self).await })
    }

    fn requeue(self: Box<Self>) -> BoxFuture<Result<(), Lost>> {
        Box::pin(async move {
            // Not `reject`: from RabbitMQ 4.3 on that counts as a failure of the message.
            let options = BasicNackOptions {
                requeue: true,
                ..BasicNackOptions::default()
            };
            self.write(self.acker.nack(options)).await
        })
    }

    fn reject(self: Box<Self>, reason: String) -> BoxFuture<Result<(), PublishError>> {
        Box::pin(async move {
            if self.origin.lost.is_cancelled() {
                return Err(Lost.into());
            }
            let reason = explained(reason, &self.properties);
            let notes = Notes {
                reason: &reason,
                queue: &self.origin.queue,
                frame_max: self.origin.frame_max,
            };
            let wire = Wire {
                exchange: ShortString::try_new(self.origin.rejected_exchange.as_str())
                    .map_err(|_| PublishError::Unroutable(self.origin.rejected_exchange.clone()))?,
                routing_key: self.routing_key.clone(),
                properties: rejected_properties(&self.properties, &notes),
                body: self.body.clone(),
            };
            self.origin.publisher.publish_wire(wire).await?;
            Self::ack(&self).await?;
            Ok(())
        })
    }
}

/// The facts that are added to a rejected message.
struct Notes<'a> {
    reason: &'a str,
    queue: &'a str,
    /// The frame that all properties must fit in.
    frame_max: usize,
}

/// The reason, with the producer's content encoding if that explains why the body cannot be read.
fn explained(reason: String, properties: &BasicProperties) -> String {
    let plain = ["", "identity", "utf-8", "utf8", "none"];
    let encoding = properties.content_encoding().as_ref().map(|it| it.as_str());
    match encoding.filter(|it| !plain.contains(&it.to_ascii_lowercase().as_str())) {
        Some(encoding) => format!(
            "{reason}; its content_encoding is {encoding:?}: bodies are not decompressed, publish \
             the JSON uncompressed"
        ),
        None => reason,
    }
}

/// The properties of a rejected message: the original ones, and the notes among the headers. Three
/// properties cannot travel unchanged. The delivery mode becomes persistent. `expiration` would
/// delete the message in the rejected queue, and `user-id` must be the publisher's own; both become
/// headers.
fn rejected_properties(original: &BasicProperties, notes: &Notes<'_>) -> BasicProperties {
    let mut headers = BTreeMap::new();
    let mut note = |name: &'static str, value: &str| {
        headers.insert(ShortString::from(name), AMQPValue::LongString(value.into()));
    };
    note(
        REASON,
        shorten(notes.reason, REASON_BYTES_MAX.min(notes.frame_max / 8)),
    );
    note(SOURCE, notes.queue);
    if let Some(expiration) = original.expiration() {
        note("fanwise-expiration", expiration.as_str());
    }
    if let Some(user_id) = original.user_id() {
        note("fanwise-user-id", user_id.as_str());
    }
    headers.insert(REJECTED_AT.into(), AMQPValue::Timestamp(unix_seconds()));
    let kept = original.headers().iter().flat_map(FieldTable::inner);
    let mut bytes = 0;
    for (name, value) in kept {
        if BROKER_HEADERS.contains(&name.as_str()) || headers.contains_key(name) {
            continue;
        }
        bytes += name.as_str().len() + wire_bytes(value);
        // Headers that arrived fit in this, unless the producer's frames were larger.
        if bytes > notes.frame_max / 2 {
            headers.insert("fanwise-headers-cut".into(), AMQPValue::Boolean(true));
            break;
        }
        headers.insert(name.clone(), value.clone());
    }

    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers.into());
    macro_rules! keep {
        ($($get:ident => $with:ident),*) => {$(
            if let Some(value) = original.$get() {
                properties = properties.$with(value.clone());
            }
        )*};
    }
    keep!(
        content_type => with_content_type,
        content_encoding => with_content_encoding,
        priority => with_priority,
        correlation_id => with_correlation_id,
        reply_to => with_reply_to,
        message_id => with_message_id,
        timestamp => with_timestamp,
        kind => with_type,
        app_id => with_app_id,
        cluster_id => with_cluster_id
    );
    properties
}

/// The first bytes of a reason, up to a whole character.
fn shorten(reason: &str, bytes_max: usize) -> &str {
    let mut end = reason.len().min(bytes_max);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

/// About how long a value is on the wire.
fn wire_bytes(value: &AMQPValue) -> usize {
    let overhead = 6;
    overhead
        + match value {
            AMQPValue::LongString(text) => text.len(),
            AMQPValue::ShortString(text) => text.as_str().len(),
            AMQPValue::ByteArray(bytes) => bytes.len(),
            AMQPValue::FieldArray(values) => values.as_slice().iter().map(wire_bytes).sum(),
            AMQPValue::FieldTable(table) => table
                .into_iter()
                .map(|(name, value)| name.as_str().len() + wire_bytes(value))
                .sum(),
            AMQPValue::Boolean(_)
            | AMQPValue::ShortShortInt(_)
            | AMQPValue::ShortShortUInt(_)
            | AMQPValue::ShortInt(_)
            | AMQPValue::ShortUInt(_)
            | AMQPValue::LongInt(_)
            | AMQPValue::LongUInt(_)
            | AMQPValue::LongLongInt(_)
            | AMQPValue::Float(_)
            | AMQPValue::Double(_)
            | AMQPValue::DecimalValue(_)
            | AMQPValue::Timestamp(_)
            | AMQPValue::Void => 8,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes() -> Notes<'static> {
        Notes {
            reason: "no client_msg_no",
            queue: "fanwise.jobs.high.v1",
            frame_max: 128 * 1024,
        }
    }

    fn text(value: &str) -> AMQPValue {
        AMQPValue::LongString(value.into())
    }

    #[test]
    fn rejected_messages_keep_what_they_came_with() {
        let mut headers = FieldTable::default();
        headers.insert("tenant".into(), text("t1"));
        headers.insert("count".into(), AMQPValue::LongLongInt(-3));
        headers.insert("x-death".into(), AMQPValue::Void);
        let original = BasicProperties::default()
            .with_correlation_id("c".into())
            .with_reply_to("answers".into())
            .with_timestamp(7)
            .with_type("campaign".into())
            .with_user_id("alice".into())
            .with_expiration("60000".into())
            .with_headers(headers);
        let kept = rejected_properties(&original, &notes());
        assert_eq!(kept.correlation_id(), original.correlation_id());
        assert_eq!(kept.reply_to(), original.reply_to());
        assert_eq!(kept.timestamp(), original.timestamp());
        assert_eq!(kept.kind(), original.kind());
        assert_eq!((kept.user_id(), kept.expiration()), (&None, &None));
        let headers = kept.headers().as_ref().unwrap().inner();
        assert_eq!(headers["tenant"], text("t1"));
        assert_eq!(headers["count"], AMQPValue::LongLongInt(-3));
        assert_eq!(headers["fanwise-reason"], text("no client_msg_no"));
        assert_eq!(headers["fanwise-source"], text("fanwise.jobs.high.v1"));
        assert_eq!(headers["fanwise-user-id"], text("alice"));
        assert_eq!(headers["fanwise-expiration"], text("60000"));
        assert!(!headers.contains_key("x-death"));
    }

    #[test]
    fn headers_stay_within_a_frame() {
        let mut headers = FieldTable::default();
        for index in 0..200 {
            headers.insert(format!("h{index}").into(), text(&"x".repeat(1000)));
        }
        let original = BasicProperties::default().with_headers(headers);
        let kept = rejected_properties(&original, &notes());
        let kept = AMQPValue::FieldTable(kept.headers().clone().unwrap());
        assert!(wire_bytes(&kept) < 64 * 1024 + 2 * REASON_BYTES_MAX);
        let AMQPValue::FieldTable(kept) = kept else {
            unreachable!()
        };
        assert!(kept.contains_key("fanwise-headers-cut"));
    }

    #[test]
    fn a_body_that_is_marked_as_packed_is_said_to_be_so() {
        let marked = |encoding: &str| {
            let properties = BasicProperties::default().with_content_encoding(encoding.into());
            explained("not UTF-8".to_owned(), &properties)
        };
        assert!(marked("gzip").starts_with("not UTF-8; its content_encoding is \"gzip\""));
        assert_eq!(marked("UTF-8"), "not UTF-8");
    }

    #[test]
    fn long_reasons_are_cut_at_a_character() {
        let reason = "é".repeat(REASON_BYTES_MAX);
        let max = REASON_BYTES_MAX;
        assert!(shorten(&format!("x{reason}"), max).len() < max);
        assert_eq!(shorten("short", max), "short");
    }
}
