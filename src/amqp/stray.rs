//! Handles strays: messages that left the retry ladder for a lane that the broker did not know.
//!
//! The lane may have been missing only for a moment, for instance because an operator deleted its
//! queue or because the broker was just starting; then the stray is published to it now. Or a
//! client put the message on the retry ladder with a lane that never existed, or the target is gone
//! permanently; then the stray is rejected, with the reason.
//!
//! Only the body and the trace context of a stray go to the lane. Any client may have written it,
//! and a header like `CC` would route a copy of it to other lanes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::warn;

use super::consumer::{Origin, hand_out};
use super::wake::way_back;
use crate::ports::{Lost, Moved, Outgoing, PublishError, Publisher};

/// Strays in work at a time: those whose lane does not exist must not delay the others for long.
pub(super) const PREFETCH: u16 = 64;

/// How often, and after which pause, the lane is tried: longer than a worker needs to declare a
/// deleted queue again.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// Ends strays until the stream ends or the session is lost.
pub(super) async fn take_back(
    strays: lapin::Consumer,
    origin: Origin,
    tell: &watch::Sender<Moved>,
) {
    let origin = &Arc::new(origin);
    strays
        .for_each_concurrent(usize::from(PREFETCH), async |stray| {
            // After an error no stray can be ended any more, and the stream ends too.
            if let Ok(stray) = stray {
                let _ = end(stray, origin, tell).await;
            }
        })
        .await;
}

/// Publishes a message to its lane. Returns false if the lane does not exist.
async fn reaches_its_lane(message: Outgoing, origin: &Origin) -> Result<bool, Lost> {
    let mut looks = 0;
    loop {
        match origin.publisher.publish(vec![message.clone()]).await {
            Ok(()) => return Ok(true),
            Err(PublishError::Lost(lost)) => return Err(lost),
            Err(PublishError::Unroutable(_)) => looks += 1,
            // The lane exists, and is full for now.
            Err(_) => {}
        }
        if looks >= LOOKS {
            return Ok(false);
        }
        sleep(PAUSE).await;
    }
}

/// Publishes a stray to its lane, or rejects it.
async fn end(
    stray: lapin::message::Delivery,
    origin: &Arc<Origin>,
    tell: &watch::Sender<Moved>,
) -> Result<(), Lost> {
    let lane = stray.routing_key.to_string();
    let message_id = stray.properties.message_id().as_ref();
    let message_id = message_id.map_or_else(String::new, ToString::to_string);
    let delivery = hand_out(stray, origin);
    // What is no lane at all is rejected without a look.
    if let Some(route) = way_back(&lane) {
        let message = Outgoing {
            route,
            body: delivery.body.clone(),
            message_id,
            traceparent: delivery.traceparent.clone(),
        };
        if reaches_its_lane(message, origin).await? {
            return delivery.ack().await;
        }
    }
    let reason = format!(
        "its waiting time was over and its lane {lane:?} does not exist; if its target was \
         removed by mistake, run `fanwise topology apply` with it and publish the message to the \
         lane again"
    );
    warn!(
        lane,
        "a slice or notice that waited for a lane that does not exist is rejected"
    );
    match delivery.reject(reason).await {
        Ok(()) => tell.send_modify(|all| all.slices += 1),
        Err(PublishError::Lost(lost)) => return Err(lost),
        // It stays unacked, and comes back in the next session.
        Err(error) => warn!(%error, lane, "a stray could not be rejected yet"),
    }
    Ok(())
}
