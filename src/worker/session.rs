//! The state that all tasks of a broker session share: the context of the process, the publisher of
//! the session, and the two signals that end its work.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::tail::Tail;
use super::throttle::Throttle;
use crate::error::chain;
use crate::ports::{Lost, Outgoing, PublishError, Publisher, Store};
use crate::runtime::context::{Context, RECONNECT};

pub(super) struct WorkerSession<S, T, P> {
    pub(super) context: Arc<Context<S, T>>,
    pub(super) publisher: P,
    pub(super) throttle: Arc<Throttle>,
    /// Cancelled when the session is lost: nothing can be published or acked any more.
    pub(super) lost: CancellationToken,
    /// Once this is cancelled no new work starts: the process drains, or the session is lost (it is
    /// a child of `lost`). For a single delivery also: its slice makes way for others.
    pub(super) halt: CancellationToken,
    /// For a single delivery: tells when it only waits for its last answers.
    pub(super) tail: Option<Tail>,
}

impl<S: Store, T, P: Publisher> WorkerSession<S, T, P> {
    /// The same session for one delivery, which its own token stops.
    pub(super) fn until(&self, halt: CancellationToken, tail: Tail) -> Self {
        Self {
            context: Arc::clone(&self.context),
            publisher: self.publisher.clone(),
            throttle: Arc::clone(&self.throttle),
            lost: self.lost.clone(),
            halt,
            tail: Some(tail),
        }
    }

    /// Publishes, and repeats it until the broker has confirmed or the session is lost.
    pub(super) async fn publish(&self, messages: Vec<Outgoing>) -> Result<(), Lost> {
        let mut delays = RECONNECT.delays();
        loop {
            match self.publisher.publish(messages.clone()).await {
                Ok(()) => return Ok(()),
                Err(PublishError::Lost(lost)) => return Err(lost),
                Err(error) => {
                    self.context.metrics.publish_failed();
                    tracing::warn!(error = %chain(&error), "a publish is repeated");
                }
            }
            tokio::select! {
                biased;
                () = self.lost.cancelled() => return Err(Lost),
                () = tokio::time::sleep(delays.next_delay()) => {}
            }
        }
    }
}
