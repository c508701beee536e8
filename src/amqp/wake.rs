//! Takes slices and jobs off the retry ladder before their time.
//!
//! A queue has no index, so a reader takes every message of a rung, publishes those that are to be
//! looked at to where they came from, acks them, and returns the others by closing its channel. A returned
//! message keeps its place and its time. The messages that are held meanwhile do not expire: one
//! reading delays them by about a millisecond per message.
//!
//! Only the body and the trace context of a message go there, as with strays.

use fanwise_net::amqp::{AmqpError, Dial};
use lapin::options::BasicAckOptions;
use lapin::types::AMQPValue;

use super::admin::QueueReader;
use super::declare::{self, open_channel, passive_declare};
use super::publisher::{Wire, wire};
use super::topology::Names;
use crate::domain::schedule::RUNGS;
use crate::domain::waking::Waking;
use crate::ports::{Outgoing, Route};

/// Moves the messages that `waking` takes from all rungs but the shortest to where they came from.
/// Returns how many there were.
pub(super) async fn wake(dial: &Dial, names: &Names, waking: &Waking) -> Result<u64, AmqpError> {
    let mut woken = 0;
    for queue in waiting(dial, names).await? {
        woken += of_rung(dial, names, &queue, waking).await?;
    }
    Ok(woken)
}

/// The rungs in which messages wait.
async fn waiting(dial: &Dial, names: &Names) -> Result<Vec<String>, AmqpError> {
    let connection = dial.open("wake").await?;
    let channel = open_channel(dial, &connection).await?;
    let mut waiting = Vec::new();
    for rung in RUNGS.into_iter().skip(1) {
        let queue = names.rung(rung);
        let counts = passive_declare(dial, &channel, &queue).await;
        if counts?.ready > 0 {
            waiting.push(queue);
        }
    }
    declare::close_channel(dial, &channel).await?;
    dial.close(&connection).await;
    Ok(waiting)
}

async fn of_rung(
    dial: &Dial,
    names: &Names,
    queue: &str,
    waking: &Waking,
) -> Result<u64, AmqpError> {
    let reader = QueueReader::open(dial, queue).await?;
    let mut woken = 0;
    for _ in 0..reader.ready() {
        let Some(delivery) = reader.get().await? else {
            break;
        };
        let origin = way_back(delivery.routing_key.as_str());
        let Some(route) = origin.filter(|_| waking.takes(&delivery.data)) else {
            continue;
        };
        let acker = delivery.acker.clone();
        if forward(&reader, names, route, delivery).await? {
            let acked = acker.ack(BasicAckOptions::default());
            dial.ask("remove a message".to_owned(), acked).await?;
            woken += 1;
        }
    }
    reader.leave().await?;
    Ok(woken)
}

/// Where a message goes that leaves the ladder with this routing key.
pub(super) fn way_back(routing_key: &str) -> Option<Route> {
    let lane = routing_key.parse().ok().map(Route::Lane);
    lane.or_else(|| routing_key.parse().ok().map(Route::Job))
}

/// Publishes a message to where it came from. Returns whether it is there; if not, it stays on its rung.
async fn forward(
    reader: &QueueReader<'_>,
    names: &Names,
    route: Route,
    delivery: lapin::message::Delivery,
) -> Result<bool, AmqpError> {
    let properties = &delivery.properties;
    let headers = properties.headers().as_ref();
    let trace = headers.and_then(|it| it.inner().get("traceparent"));
    let message = Outgoing {
        route,
        message_id: properties
            .message_id()
            .as_ref()
            .map_or_else(String::new, ToString::to_string),
        traceparent: match trace {
            Some(AMQPValue::LongString(text)) => Some(text.to_string()),
            _ => None,
        },
        body: delivery.data.into(),
    };
    let Ok(wire) = wire(names, message) else {
        return Ok(false);
    };
    let Wire {
        exchange,
        routing_key,
        properties,
        body,
    } = wire;
    let what = format!("publish to {routing_key}");
    reader
        .publish(what, exchange, routing_key, &body, properties)
        .await
}
