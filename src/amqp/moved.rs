//! Recognises messages that the broker itself put into the rejected queue: messages that expired
//! because their producer set `expiration`, and messages past the delivery limit.
//!
//! No worker sees the broker move them. So the rejected exchange has a second queue for copies,
//! which workers read: each message that the broker moved is counted once and logged. The broker's
//! record in `x-death` is turned into a reason like those of Fanwise's own rejects.

use lapin::types::{AMQPValue, FieldTable};

/// A message that the broker moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    /// The queue it was in.
    pub(super) queue: String,
    pub(super) reason: String,
    /// Unix seconds.
    pub(super) at: Option<u64>,
}

impl Moved {
    /// Reads the headers, if the broker moved the message: Fanwise removes `x-death` from messages
    /// that it rejects.
    pub(super) fn of(headers: &FieldTable) -> Option<Self> {
        let AMQPValue::FieldArray(deaths) = headers.inner().get("x-death")? else {
            return None;
        };
        // The first entry is the latest.
        let AMQPValue::FieldTable(death) = deaths.as_slice().first()? else {
            return None;
        };
        let text = |name: &str| match death.inner().get(name) {
            Some(AMQPValue::LongString(text)) => Some(text.to_string()),
            _ => None,
        };
        let queue = text("queue")?;
        let at = match death.inner().get("time") {
            Some(AMQPValue::Timestamp(at)) => Some(*at),
            _ => None,
        };
        let expiration = text("original-expiration");
        let reason = words(&text("reason")?, &queue, expiration.as_deref());
        Some(Self { queue, reason, at })
    }
}

/// What happened, with advice.
fn words(reason: &str, queue: &str, expiration: Option<&str>) -> String {
    match (reason, expiration) {
        ("expired", Some(expiration)) => format!(
            "expired in queue {queue} before a worker took it: its producer set the property \
             `expiration` to {expiration} ms; leave it out, and give the job an `expires_at` if it must \
             not be sent late"
        ),
        ("expired", None) => format!("expired in queue {queue}: a policy limits message age"),
        ("delivery_limit", _) => format!(
            "queue {queue} handed it out as often as its delivery limit allows, and each time the \
             worker ended or lost its session before it was done"
        ),
        ("maxlen", _) => format!("queue {queue} was full: a policy limits its length"),
        (other, _) => format!("the broker took it out of queue {queue}: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(entries: &[(&'static str, AMQPValue)]) -> FieldTable {
        let mut death = FieldTable::default();
        for (name, value) in entries {
            death.insert((*name).into(), value.clone());
        }
        let older = AMQPValue::FieldTable(FieldTable::default());
        let deaths = vec![AMQPValue::FieldTable(death), older];
        let mut headers = FieldTable::default();
        headers.insert("x-death".into(), AMQPValue::FieldArray(deaths.into()));
        headers
    }

    fn text(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    /// Promise 1: no accepted message disappears without a trace.
    #[test]
    fn an_expired_message_says_what_its_producer_did() {
        let moved = Moved::of(&headers(&[
            ("queue", text("fanwise.jobs.normal.v1")),
            ("reason", text("expired")),
            ("original-expiration", text("1000")),
            ("time", AMQPValue::Timestamp(7)),
        ]))
        .unwrap();
        assert_eq!(moved.queue, "fanwise.jobs.normal.v1");
        assert_eq!(moved.at, Some(7));
        assert!(
            moved.reason.contains("`expiration` to 1000 ms"),
            "{moved:?}"
        );
    }

    #[test]
    fn what_we_rejected_and_what_is_broken_was_not_moved() {
        assert_eq!(Moved::of(&FieldTable::default()), None);
        assert_eq!(Moved::of(&headers(&[("queue", text("q"))])), None);
        let mut odd = FieldTable::default();
        odd.insert("x-death".into(), text("no list"));
        assert_eq!(Moved::of(&odd), None);
    }
}
