//! The port to the queues that keep messages for operators.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::BrokerError;

/// A queue that keeps messages until an operator looks at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetainedQueue {
    /// Dead letters: recipients that ended failed or uncertain.
    Dead,
    /// Messages that are not valid jobs or slices.
    Rejected,
}

/// A message in a retained queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetainedMessage {
    pub body: Bytes,
    pub routing_key: String,
    pub message_id: Option<String>,
    /// Unix seconds, as the publisher set them.
    pub published_at: Option<u64>,
    /// The headers that are texts, numbers, times or booleans. A rejected message has
    /// `fanwise-reason`, `fanwise-source` and, where it is known, `fanwise-rejected-at`, whether the
    /// broker or Fanwise rejected it.
    pub headers: BTreeMap<String, String>,
}

/// What to do with a message of a retained queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetainedEdit {
    Keep,
    Remove,
    /// Keep another body in its place.
    Replace(Bytes),
    /// Keep it, and end the walk.
    Stop,
}

/// What a walk over a retained queue did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EditSummary {
    pub shown: u64,
    pub removed: u64,
    pub replaced: u64,
}

/// What a follower shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A message that is in the queue.
    Kept(RetainedMessage),
    /// A message with this body was removed or replaced.
    Gone(Bytes),
}

/// What a follower knows after it has caught up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// It has shown every message that is in the queue, and every one that an edit has removed.
    All,
    /// An edit was not followed to its end. What was shown is no longer true: drop it, and follow
    /// anew.
    Edited,
    /// The queue has other messages than were shown: the broker dropped some, or had not given all
    /// back that an earlier reader held.
    Off,
}

/// Follows a retained queue.
pub trait Follower: Send + 'static {
    /// Shows the messages that it has not shown, the first time all of them. It may show a message
    /// twice. Every message is shown whose publish was confirmed before this call, and every change
    /// of an edit that has returned before it: the old body as gone, a new one as kept.
    ///
    /// A follower whose `visit` broke off, or that returned an error, is of no further use.
    fn catch_up(
        &mut self,
        visit: impl FnMut(Shown) -> ControlFlow<()> + Send,
    ) -> impl Future<Output = Result<Followed, BrokerError>> + Send;

    /// Returns when so much waits to be shown that the engine cannot hold it for long, or never.
    fn much_waits(&self) -> impl Future<Output = ()> + Send;

    /// Gives back what the engine holds for it.
    fn end(self) -> impl Future<Output = ()> + Send;
}

/// Reads and edits the retained queues.
pub trait RetainedQueues: Send + Sync {
    type Follower: Follower;

    /// Shows every message of a retained queue to `visit`, the oldest first, until `visit` breaks
    /// off, and removes none of them. Returns how many messages it showed. Messages that arrive
    /// meanwhile are not shown.
    ///
    /// A reader sees the whole queue or gets an error. Where an engine allows only one reader at a
    /// time, the others wait some seconds for their turn. `visit` must not block.
    fn read(
        &self,
        retained: RetainedQueue,
        visit: impl FnMut(RetainedMessage) -> ControlFlow<()> + Send,
    ) -> impl Future<Output = Result<u64, BrokerError>> + Send;

    /// Works like [`RetainedQueues::read`], and does with every message what `decide` returns. It
    /// handles one message at a time, which is slower than reading.
    ///
    /// A new body is durable before the old one is removed. A walk that is killed or fails half-way
    /// may therefore leave a message twice, with both bodies, and loses none. Messages that it
    /// removed before then stay removed.
    fn edit(
        &self,
        retained: RetainedQueue,
        decide: impl FnMut(RetainedMessage) -> RetainedEdit + Send,
    ) -> impl Future<Output = Result<EditSummary, BrokerError>> + Send;

    /// Follows a retained queue from now on, so that it need not be read as a whole again.
    fn follow(
        &self,
        retained: RetainedQueue,
    ) -> impl Future<Output = Result<Self::Follower, BrokerError>> + Send;
}
