//! Keeps the retained queues for operators: dead letters and rejected messages.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redb::{ReadTransaction, ReadableTable as _};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

use super::broker::EmbeddedBroker;
use super::deliveries::Place;
use super::disk::StorageError;
use super::edit_logs::{EditLog, EditLogs};
use super::tables::{self, KEPT, Message, Rejected};
use super::writer::WriteContext;
use crate::ports::{
    BrokerError, EditSummary, Followed, Follower, Lost, RetainedEdit, RetainedMessage,
    RetainedQueue, RetainedQueues, Shown,
};

const DEAD: u8 = 0;
const REJECTED: u8 = 1;

/// The retained queues among the counted queues, with numbers that no other queue has.
pub(super) const COUNTED: [(&str, u32); 2] = [("dead", u32::MAX), ("rejected", u32::MAX - 1)];

/// Most messages of a page, which is in memory as a whole.
const PAGE_MESSAGES: usize = 500;

/// Most bytes of bodies in a page.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// The longest reason that is kept with a rejected message.
const REASON_BYTES_MAX: usize = 4 * 1024;

fn number(retained: RetainedQueue) -> u8 {
    match retained {
        RetainedQueue::Dead => DEAD,
        RetainedQueue::Rejected => REJECTED,
    }
}

/// How long an edit waits for the one before it.
const TURN_WAIT_MAX: Duration = Duration::from_secs(5);

/// One turn per retained queue: edits run one at a time, since each writes bodies that it has read
/// before. Reading changes nothing and needs no turn.
#[derive(Debug, Default)]
pub(super) struct Turns([Mutex<()>; 2], [Arc<EditLogs>; 2]);

impl Turns {
    /// Where edits tell what they do.
    fn logs(&self, retained: u8) -> &Arc<EditLogs> {
        &self.1[usize::from(retained)]
    }

    /// Waits for the turn, up to a bound.
    async fn take(&self, retained: u8) -> Option<MutexGuard<'_, ()>> {
        let turn = self.0[usize::from(retained)].lock();
        timeout(TURN_WAIT_MAX, turn).await.ok()
    }
}

impl RetainedQueues for EmbeddedBroker {
    type Follower = EmbeddedFollower;

    async fn read(
        &self,
        retained: RetainedQueue,
        mut visit: impl FnMut(RetainedMessage) -> ControlFlow<()> + Send,
    ) -> Result<u64, BrokerError> {
        let keep = |message| match visit(message) {
            ControlFlow::Continue(()) => RetainedEdit::Keep,
            ControlFlow::Break(()) => RetainedEdit::Stop,
        };
        Ok(walk(self, retained, keep).await?.shown)
    }

    async fn edit(
        &self,
        retained: RetainedQueue,
        decide: impl FnMut(RetainedMessage) -> RetainedEdit + Send,
    ) -> Result<EditSummary, BrokerError> {
        let Some(_turn) = self.0.0.turns.take(number(retained)).await else {
            let advice = "another request is changing it, try again when that is done";
            return Err(refused(retained, advice.into()));
        };
        walk(self, retained, decide).await
    }

    async fn follow(&self, retained: RetainedQueue) -> Result<EmbeddedFollower, BrokerError> {
        Ok(EmbeddedFollower {
            broker: self.clone(),
            retained,
            next: 0,
            edits: self.0.0.turns.logs(number(retained)).follow(),
        })
    }
}

/// Follows one retained queue. Messages have rising numbers, so it reads on from the last one, and
/// edits have a log.
pub struct EmbeddedFollower {
    broker: EmbeddedBroker,
    retained: RetainedQueue,
    next: u64,
    edits: Arc<EditLog>,
}

impl Follower for EmbeddedFollower {
    async fn catch_up(
        &mut self,
        mut visit: impl FnMut(Shown) -> ControlFlow<()> + Send,
    ) -> Result<Followed, BrokerError> {
        // An edit is in the log before it is in the file. So the log is taken first and shown last:
        // what the walk still finds in the file goes again.
        let edits = self.edits.take();
        let keep = |message| match visit(Shown::Kept(message)) {
            ControlFlow::Continue(()) => RetainedEdit::Keep,
            ControlFlow::Break(()) => RetainedEdit::Stop,
        };
        let walked = walk_from(&self.broker, self.retained, self.next, keep).await?;
        self.next = walked.end;
        let Some(edits) = edits else {
            return Ok(Followed::Edited);
        };
        for edit in edits {
            if visit(edit).is_break() {
                break;
            }
        }
        Ok(Followed::All)
    }

    async fn much_waits(&self) {
        self.edits.much_waits().await;
    }

    async fn end(self) {}
}

fn refused(
    retained: RetainedQueue,
    source: Box<dyn std::error::Error + Send + Sync>,
) -> BrokerError {
    let (name, _) = COUNTED[usize::from(number(retained))];
    BrokerError::Refused {
        what: format!("read queue `{name}`"),
        source,
    }
}

/// Shows every message to `decide`, a page at a time, and carries out each decision.
async fn walk(
    broker: &EmbeddedBroker,
    retained: RetainedQueue,
    decide: impl FnMut(RetainedMessage) -> RetainedEdit + Send,
) -> Result<EditSummary, BrokerError> {
    Ok(walk_from(broker, retained, 0, decide).await?.summary)
}

/// What a walk did, and the number after the last message that it knew of.
struct Walked {
    summary: EditSummary,
    end: u64,
}

async fn walk_from(
    broker: &EmbeddedBroker,
    retained: RetainedQueue,
    mut from: u64,
    mut decide: impl FnMut(RetainedMessage) -> RetainedEdit + Send,
) -> Result<Walked, BrokerError> {
    let (inner, number) = (&broker.0.0, number(retained));
    let failed = |error| match error {
        StorageError::Stopped => Lost.into(),
        error => refused(retained, error.into()),
    };
    let end = inner
        .read(move |it| end(it, number))
        .await
        .map_err(failed)?;
    // The last ones may have been removed.
    let end = end.max(from);
    let mut summary = EditSummary::default();
    while from < end {
        let page = inner.read(move |it| page(it, number, from, end));
        let Some(page) = page.await.map_err(failed)? else {
            break;
        };
        from = page.next;
        let (mut changes, mut stopped) = (Vec::new(), false);
        for (seq, message) in page.messages {
            summary.shown += 1;
            let seen = message.body.clone();
            match decide(message) {
                RetainedEdit::Keep => {}
                RetainedEdit::Remove => {
                    summary.removed += 1;
                    changes.push(Change {
                        seq,
                        seen,
                        body: None,
                    });
                }
                RetainedEdit::Replace(body) => {
                    summary.replaced += 1;
                    changes.push(Change {
                        seq,
                        seen,
                        body: Some(body),
                    });
                }
                RetainedEdit::Stop => {
                    stopped = true;
                    break;
                }
            }
        }
        if !changes.is_empty() {
            let bodies = changes.iter().flat_map(|it| &it.body);
            let bytes = bodies.map(Bytes::len).sum();
            let logs = Arc::clone(inner.turns.logs(number));
            let change = move |work: &mut WriteContext<'_>| change(work, number, &changes, &logs);
            let changed = inner.write(bytes, change).await;
            changed.map_err(|error| {
                // The log may say what has not come about.
                inner.turns.logs(number).lose();
                failed(error)
            })?;
        }
        if stopped {
            break;
        }
    }
    Ok(Walked { summary, end })
}

/// The number after the last message that exists now.
fn end(transaction: &ReadTransaction, retained: u8) -> Result<u64, StorageError> {
    let table = transaction.open_table(KEPT)?;
    let last = table
        .range((retained, 0)..=(retained, u64::MAX))?
        .next_back();
    Ok(last.transpose()?.map_or(0, |(key, _)| key.value().1 + 1))
}

struct Page {
    messages: Vec<(u64, RetainedMessage)>,
    next: u64,
}

/// The next messages; None when there are none.
fn page(
    transaction: &ReadTransaction,
    retained: u8,
    from: u64,
    end: u64,
) -> Result<Option<Page>, StorageError> {
    let table = transaction.open_table(KEPT)?;
    let mut page = Page {
        messages: Vec::new(),
        next: end,
    };
    let mut bytes = 0;
    for entry in table.range((retained, from)..(retained, end))? {
        let (key, row) = entry?;
        let seq = key.value().1;
        if page.messages.len() >= PAGE_MESSAGES || bytes >= PAGE_BYTES {
            page.next = seq;
            break;
        }
        let message = kept(&Message::decode(row.value())?)?;
        bytes += message.body.len();
        page.messages.push((seq, message));
    }
    Ok((!page.messages.is_empty()).then_some(page))
}

fn kept(message: &Message<'_>) -> Result<RetainedMessage, StorageError> {
    let with = message.with()?;
    let mut headers = BTreeMap::new();
    if let Some(traceparent) = with.traceparent {
        headers.insert("traceparent".to_owned(), traceparent);
    }
    if let Some(rejected) = with.rejected {
        headers.insert("fanwise-reason".to_owned(), rejected.reason);
        headers.insert("fanwise-source".to_owned(), rejected.source);
        let at = (rejected.at_ms / 1000).to_string();
        headers.insert("fanwise-rejected-at".to_owned(), at);
    }
    Ok(RetainedMessage {
        body: message.body(),
        routing_key: with.routing_key.unwrap_or_default(),
        message_id: Some(with.message_id),
        published_at: Some(message.published_ms / 1000),
        headers,
    })
}

pub(super) fn put_dead(
    work: &mut WriteContext<'_>,
    seq: u64,
    message: &[u8],
) -> Result<(), StorageError> {
    put(work, DEAD, seq, message)
}

fn put(
    work: &mut WriteContext<'_>,
    retained: u8,
    seq: u64,
    message: &[u8],
) -> Result<(), StorageError> {
    let kept = work.tables.kept.open()?;
    kept.insert((retained, seq), message)?;
    work.change(COUNTED[usize::from(retained)].1).ready += 1;
    Ok(())
}

/// A decided change of a message.
struct Change {
    seq: u64,
    /// The body that was shown.
    seen: Bytes,
    /// The new body, or none to remove the message.
    body: Option<Bytes>,
}

/// Removes messages, or replaces their bodies in place. A message whose body has changed since it
/// was shown stays as it is: an edit that was dropped while it waited for its write has lost its
/// turn, and the next edit may have read before that write.
fn change(
    work: &mut WriteContext<'_>,
    retained: u8,
    changes: &[Change],
    logs: &EditLogs,
) -> Result<(), StorageError> {
    let kept = work.tables.kept.open()?;
    let mut removed = 0;
    for change in changes {
        let Some(row) = kept
            .get((retained, change.seq))?
            .map(|row| row.value().to_vec())
        else {
            continue;
        };
        let message = Message::decode(&row)?;
        if message.body != change.seen {
            continue;
        }
        match &change.body {
            None => {
                kept.remove((retained, change.seq))?;
                removed += 1;
                logs.add(&change.seen, None);
            }
            Some(body) => {
                let row = Message::write(message.published_ms, &message.with()?, body);
                kept.insert((retained, change.seq), row.as_slice())?;
                let new = self::kept(&Message::decode(&row)?)?;
                logs.add(&change.seen, Some(&new));
            }
        }
    }
    work.change(COUNTED[usize::from(retained)].1).ready -= removed;
    Ok(())
}

/// Moves a message from its queue to the rejected ones, unchanged.
pub(super) fn reject(
    work: &mut WriteContext<'_>,
    queue: u32,
    place: Place,
    reason: &str,
) -> Result<(), StorageError> {
    let source = work.queues.names[queue as usize].clone();
    let (row, at_ms) = (stored(work, queue, place)?, work.now_ms);
    // It is gone: it was rejected before, and the answer was lost.
    let Some(row) = row else { return Ok(()) };
    let message = Message::decode(&row)?;
    let mut with = message.with()?;
    with.routing_key = Some(tables::routing_key(&source).to_owned());
    with.rejected = Some(Rejected {
        reason: reason[..reason.floor_char_boundary(REASON_BYTES_MAX)].to_owned(),
        source,
        at_ms,
    });
    let bytes = Message::write(message.published_ms, &with, message.body);
    let seq = work.new_seq();
    put(work, REJECTED, seq, &bytes)?;
    work.delete(queue, place)
}

fn stored(
    work: &mut WriteContext<'_>,
    queue: u32,
    place: Place,
) -> Result<Option<Vec<u8>>, StorageError> {
    let row = match place {
        Place::Ready(seq) => work.tables.ready.open()?.get((queue, seq))?,
        Place::Waiting { due_ms, seq } => work.tables.waiting.open()?.get((queue, due_ms, seq))?,
    };
    Ok(row.map(|row| row.value().to_vec()))
}
