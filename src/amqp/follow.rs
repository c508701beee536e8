//! Follows a retained queue, so that it is read as a whole only once.
//!
//! A queue of its own gets a copy of every message that is published from now on, then the retained
//! queue is read. A mark, published into the own queue, tells when all earlier copies have arrived:
//! the broker confirms a message when every queue has it. An editor of the retained queue says what
//! it does through the exchange of edits ([`super::edits`]). Whoever does not say all of it, since it
//! was killed or is of an earlier version, has the queue read again.
//!
//! The own queue lives as long as its connection. It would make a publish count as routed although
//! the retained queue is gone, so a follower that misses the retained queue ends. Length limits and
//! expiry that an operator sets by policy drop messages without a word, and what a killed reader held
//! comes back after the next one has counted. Both show in the number of messages.

use std::ops::ControlFlow;
use std::time::Duration;

use fanwise_net::amqp::{AmqpError, Dial, Link};
use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::protocol::AMQPSoftError;
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use tokio::time::{Instant, timeout};

use super::admin::{self, kept_message, lock_of, queue_of};
use super::declare::{Counts, MISSING, open_channel, passive_declare};
use super::edits::Note;
use super::topology::Names;
use crate::ports::{BrokerError, Followed, Follower, RetainedQueue, Shown};

/// Copies that the broker hands out ahead of their acks.
const PREFETCH: u16 = 200;

/// How long a mark may take, behind copies that go on arriving.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// A count that does not fit must stay so for this long, while nobody reads the queue.
const OFF_FOR: Duration = Duration::from_secs(5);

/// Follows one retained queue of RabbitMQ.
pub struct RabbitFollower {
    dial: Dial,
    /// The retained queue.
    queue: String,
    /// The own queue.
    own: ShortString,
    /// The exchange of edits.
    edits: ShortString,
    connection: Link,
    channel: Channel,
    copies: lapin::Consumer,
    marks: u64,
    /// An edit has begun, and has not said that it is at its end.
    editing: bool,
    /// How many messages the retained queue has at least and at most, once it was read.
    bounds: Option<(u64, u64)>,
    /// Since when the broker counts other ones.
    off: Option<Instant>,
}

impl RabbitFollower {
    pub(super) async fn open(
        dial: &Dial,
        names: &Names,
        retained: RetainedQueue,
    ) -> Result<Self, AmqpError> {
        let queue = queue_of(retained, names);
        let connection = dial.open("follow").await?;
        let channel = open_channel(dial, &connection).await?;
        // Not below the name of the retained queue, whose policies must not meet it.
        let own = format!("{}.{:016x}", names.exchange("follower"), fastrand::u64(..));
        let own = dial.name(&own)?;
        let what = || format!("follow queue `{queue}`");
        let options = QueueDeclareOptions {
            exclusive: true,
            auto_delete: true,
            ..QueueDeclareOptions::default()
        };
        let declared = channel.queue_declare(own.clone(), options, FieldTable::default());
        dial.ask(what(), declared).await?;
        let published = match retained {
            RetainedQueue::Dead => "dead",
            RetainedQueue::Rejected => "rejected",
        };
        let edits = dial.name(&names.edits())?;
        let bindings = [(names.exchange(published), "#"), (names.edits(), &*queue)];
        for (exchange, key) in bindings {
            let bound = channel.queue_bind(
                own.clone(),
                dial.name(&exchange)?,
                dial.name(key)?,
                QueueBindOptions::default(),
                FieldTable::default(),
            );
            dial.ask(what(), bound)
                .await
                .map_err(|error| error.explain(&AMQPSoftError::NOTFOUND, MISSING))?;
        }
        let qos = channel.basic_qos(PREFETCH, BasicQosOptions::default());
        dial.ask(what(), qos).await?;
        let copies = channel.basic_consume(
            own.clone(),
            "copies".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let copies = dial.ask(what(), copies).await?;
        Ok(Self {
            dial: dial.clone(),
            queue,
            own,
            edits,
            connection,
            channel,
            copies,
            marks: 0,
            editing: false,
            bounds: None,
            off: None,
        })
    }

    /// Publishes a mark into the own queue.
    async fn mark(&mut self) -> Result<(), AmqpError> {
        self.marks += 1;
        let mark = self.marks.to_be_bytes();
        let published = self.channel.basic_publish(
            ShortString::default(),
            self.own.clone(),
            BasicPublishOptions::default(),
            &mark,
            BasicProperties::default(),
        );
        let what = format!("follow queue `{}`", self.queue);
        self.dial.ask(what, published).await.map(drop)
    }

    /// Shows the copies and the edits before the last mark.
    async fn copies(
        &mut self,
        came: &mut Came,
        visit: &mut impl FnMut(Shown) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, AmqpError> {
        let mut taken = 0;
        loop {
            let Ok(item) = timeout(SILENCE_MAX, self.copies.next()).await else {
                return Err(AmqpError::Slow {
                    address: self.dial.address().to_owned(),
                    what: format!("hand out the copies of queue `{}`", self.queue),
                    after: SILENCE_MAX,
                });
            };
            let copy = self.dial.delivered(item)?;
            let acker = copy.acker.clone();
            let is_mark = copy.exchange.as_str().is_empty();
            let is_last = is_mark && copy.data == self.marks.to_be_bytes();
            let shown = match copy.exchange == self.edits {
                _ if is_mark => None,
                false => Some(Shown::Kept(kept_message(copy))),
                true => match Note::of(&copy.properties) {
                    Some(Note::Begin) if !self.editing => {
                        self.editing = true;
                        None
                    }
                    Some(Note::Gone) => Some(Shown::Gone(copy.data.into())),
                    Some(Note::Kept) => Some(Shown::Kept(kept_message(copy))),
                    Some(Note::End) => {
                        self.editing = false;
                        None
                    }
                    // The edit before was broken off, or this one says nothing that we know.
                    Some(Note::Begin) | None => return Ok(ControlFlow::Break(())),
                },
            };
            taken += 1;
            if let Some(shown) = shown {
                came.count(&shown);
                if visit(shown).is_break() {
                    return Ok(ControlFlow::Continue(()));
                }
            }
            if is_last || taken % u64::from(PREFETCH / 2) == 0 {
                let acked = acker.ack(BasicAckOptions { multiple: true });
                let what = format!("follow queue `{}`", self.queue);
                self.dial.ask(what, acked).await?;
            }
            if is_last {
                return Ok(ControlFlow::Continue(()));
            }
        }
    }

    /// Whether somebody reads or edits the queue.
    async fn is_locked(&self) -> Result<bool, AmqpError> {
        let channel = open_channel(&self.dial, &self.connection).await?;
        match passive_declare(&self.dial, &channel, &lock_of(&self.queue)).await {
            Err(error) if error.is(&AMQPSoftError::RESOURCELOCKED) => Ok(true),
            Err(error) if error.is(&AMQPSoftError::NOTFOUND) => Ok(false),
            found => found.map(|_| true),
        }
    }

    /// Whether the queue has other messages than were shown.
    fn is_off(&mut self, counted: Counts, (least, most): (u64, u64)) -> bool {
        let fits = (least..=most).contains(&u64::from(counted.ready));
        // Readers and editors hold messages, which are not counted meanwhile.
        if fits || counted.consumers > 0 || self.editing {
            self.off = None;
            return false;
        }
        self.off.get_or_insert_with(Instant::now).elapsed() >= OFF_FOR
    }

    async fn follow(
        &mut self,
        visit: &mut impl FnMut(Shown) -> ControlFlow<()>,
    ) -> Result<Followed, AmqpError> {
        let before = match self.bounds {
            Some(bounds) => bounds,
            None => {
                let kept = |message| visit(Shown::Kept(message));
                let read = admin::read(&self.dial, &self.queue, kept).await?;
                (read, read)
            }
        };
        // What is counted now is shown before the next mark.
        let counted = passive_declare(&self.dial, &self.channel, &self.queue).await?;
        let mut came = Came::default();
        self.mark().await?;
        let mut goes_on = self.copies(&mut came, visit).await?;
        if goes_on.is_continue() && self.editing && !self.is_locked().await? {
            // What the editor said last has arrived.
            self.mark().await?;
            goes_on = self.copies(&mut came, visit).await?;
            if self.editing {
                return Ok(Followed::Edited);
            }
        }
        if goes_on.is_break() {
            return Ok(Followed::Edited);
        }
        let Came { kept, gone } = came;
        let (least, most) = before;
        // Some of them may have come or gone before the count.
        let is_off = self.is_off(counted, (least.saturating_sub(gone), most + kept));
        self.bounds = Some(match self.bounds {
            Some(_) => (
                (least + kept).saturating_sub(gone),
                (most + kept).saturating_sub(gone),
            ),
            // Or even before the queue was read.
            None => (least.saturating_sub(gone), most + kept),
        });
        Ok(match is_off {
            true => Followed::Off,
            false => Followed::All,
        })
    }
}

/// How many messages were shown.
#[derive(Default)]
struct Came {
    kept: u64,
    gone: u64,
}

impl Came {
    fn count(&mut self, shown: &Shown) {
        match shown {
            Shown::Kept(_) => self.kept += 1,
            Shown::Gone(_) => self.gone += 1,
        }
    }
}

impl Follower for RabbitFollower {
    async fn catch_up(
        &mut self,
        mut visit: impl FnMut(Shown) -> ControlFlow<()> + Send,
    ) -> Result<Followed, BrokerError> {
        Ok(self.follow(&mut visit).await?)
    }

    /// The broker holds what waits.
    async fn much_waits(&self) {
        std::future::pending().await
    }

    async fn end(self) {
        self.dial.close(&self.connection).await;
    }
}
