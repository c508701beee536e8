//! Strays: what left the ladder for a lane that the broker did not know.
//!
//! Either its lane was gone for a moment only, for instance because somebody deleted its queue, or the
//! broker was just starting; then it is taken there now. Or somebody put it on the ladder with a lane
//! that was never there, or the target is gone for good; then it is rejected, with the reason.
//!
//! Nothing of a stray travels to a lane but its body and trace context. It may come from anybody, and a
//! header like `CC` would lead a copy of it to other lanes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::warn;

use super::consumer::{Origin, hand_out};
use crate::domain::lane::Lane;
use crate::ports::{Lost, Moved, Outgoing, PublishError, Publisher, Route};

/// Strays in work at a time: those whose lane does not exist must not hold up the others for long.
pub(super) const PREFETCH: u16 = 64;

/// How often, and after which pause, a lane is looked for: longer than a worker needs to declare a
/// queue again that somebody deleted.
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
            // After an error nothing can be ended any more, and the stream ends too.
            if let Ok(stray) = stray {
                let _ = end(stray, origin, tell).await;
            }
        })
        .await;
}

/// Takes a stray to its lane, or rejects it.
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
    let parsed = lane.parse::<Lane>();
    let message = parsed.map(|lane| Outgoing {
        route: Route::Lane(lane),
        body: delivery.body.clone(),
        message_id,
        traceparent: delivery.traceparent.clone(),
    });
    let mut looks = 0;
    while let Ok(message) = &message {
        match origin.publisher.publish(vec![message.clone()]).await {
            Ok(()) => return delivery.ack().await,
            Err(PublishError::Lost(lost)) => return Err(lost),
            Err(PublishError::Unroutable(_)) => looks += 1,
            // The lane is there, and full for now.
            Err(_) => {}
        }
        if looks >= LOOKS {
            break;
        }
        sleep(PAUSE).await;
    }
    let reason = format!(
        "its waiting time was up and its lane {lane:?} does not exist; if its target was removed by \
         mistake, run `fanwise topology apply` with it and publish the message to the lane again"
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
