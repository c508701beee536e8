//! Follows a retained queue, so that it is read as a whole only once.
//!
//! A queue of its own gets a copy of every message that is published from now on, then the retained
//! queue is read. A mark, published into the own queue, tells when all earlier copies have arrived:
//! the broker confirms a message when every queue has it. An editor of the retained queue says so
//! through the exchange of edits, before the first change.
//!
//! The own queue lives as long as its connection. It would make a publish count as routed although
//! the retained queue is gone, so a follower that misses the retained queue ends. Length limits and
//! expiry that an operator sets by policy drop messages without a word; then the broker counts fewer
//! messages than there must be.

use std::ops::ControlFlow;
use std::time::Duration;

use fanwise_net::amqp::{AmqpError, Dial, Link};
use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::protocol::AMQPSoftError;
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use tokio::time::{Instant, timeout};

use super::admin::{self, kept_message, queue_of};
use super::declare::{MISSING, close_channel, open_channel, passive_declare};
use super::topology::Names;
use crate::ports::{BrokerError, Followed, Follower, RetainedMessage, RetainedQueue};

/// Copies that the broker hands out ahead of their acks.
const PREFETCH: u16 = 200;

/// How long a mark may take, behind copies that go on arriving.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Messages are gone if too few are counted for this long, while nobody reads them.
const FEWER_FOR: Duration = Duration::from_secs(5);

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
    /// Messages that the retained queue must have, once it was read.
    least: Option<u64>,
    /// Since when it counts fewer.
    fewer: Option<Instant>,
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
            least: None,
            fewer: None,
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

    /// Shows the copies before the last mark. Returns their number, or nothing if the queue is
    /// edited.
    async fn copies(
        &mut self,
        visit: &mut impl FnMut(RetainedMessage) -> ControlFlow<()>,
    ) -> Result<Option<u64>, AmqpError> {
        let mut shown = 0;
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
            let is_edit = copy.exchange == self.edits;
            if is_edit {
                return Ok(None);
            }
            if !is_mark {
                shown += 1;
                if visit(kept_message(copy)).is_break() {
                    return Ok(Some(shown));
                }
            }
            if is_last || shown % u64::from(PREFETCH / 2) == 0 {
                let acked = acker.ack(BasicAckOptions { multiple: true });
                let what = format!("follow queue `{}`", self.queue);
                self.dial.ask(what, acked).await?;
            }
            if is_last {
                return Ok(Some(shown));
            }
        }
    }

    /// Whether the broker has dropped messages of the retained queue.
    async fn has_fewer(&mut self, least: u64) -> Result<bool, AmqpError> {
        let now = passive_declare(&self.dial, &self.channel, &self.queue).await?;
        // A reader holds messages, which are not counted meanwhile.
        if u64::from(now.ready) >= least || now.consumers > 0 {
            self.fewer = None;
            return Ok(false);
        }
        let since = *self.fewer.get_or_insert_with(Instant::now);
        Ok(since.elapsed() >= FEWER_FOR)
    }

    async fn follow(
        &mut self,
        visit: &mut impl FnMut(RetainedMessage) -> ControlFlow<()>,
    ) -> Result<Followed, AmqpError> {
        let before = match self.least {
            Some(least) => least,
            None => admin::read(&self.dial, &self.queue, &mut *visit).await?,
        };
        self.mark().await?;
        let Some(shown) = self.copies(visit).await? else {
            return Ok(Followed::Edited);
        };
        let least = match self.least {
            Some(_) => before + shown,
            // They may be among those that were read.
            None => before,
        };
        self.least = Some(least);
        match self.has_fewer(least).await? {
            true => Ok(Followed::Fewer),
            false => Ok(Followed::All),
        }
    }
}

impl Follower for RabbitFollower {
    async fn catch_up(
        &mut self,
        mut visit: impl FnMut(RetainedMessage) -> ControlFlow<()> + Send,
    ) -> Result<Followed, BrokerError> {
        Ok(self.follow(&mut visit).await?)
    }

    async fn end(self) {
        self.dial.close(&self.connection).await;
    }
}

/// Tells the followers of a queue that it is going to be edited. They find removed messages
/// themselves, only later, so this may fail.
pub(super) async fn tell_edit(
    dial: &Dial,
    connection: &Link,
    edits: &str,
    queue: &str,
) -> Result<(), AmqpError> {
    let channel = open_channel(dial, connection).await?;
    let what = || format!("say that queue `{queue}` is edited");
    let confirmed = channel.confirm_select(ConfirmSelectOptions::default());
    dial.ask(what(), confirmed).await?;
    let (exchange, key) = (dial.name(edits)?, dial.name(queue)?);
    let published = async {
        let options = BasicPublishOptions::default();
        channel
            .basic_publish(exchange, key, options, &[], BasicProperties::default())
            .await?
            .await
    };
    dial.ask(what(), published).await?;
    close_channel(dial, &channel).await
}
