//! Implements the broker in memory: queues by name, deliveries in flight, messages on the retry
//! ladder, and two retained queues.
//!
//! A consumer fetches ahead up to its prefetch, as with AMQP: fetched messages are unacked, and
//! come back marked as redelivered when the session ends.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fanwise::clock::now_ms;
use fanwise::domain::lane::{Lane, Priority};
use fanwise::domain::schedule::rung;
use fanwise::domain::waking::Waking;
use fanwise::ports::{
    Backlog, BoxFuture, Broker, BrokerError, Consumer, Delivery, EditSummary, EndDelivery,
    Followed, Follower, Lost, Outgoing, PublishError, Publisher, RetainedEdit, RetainedMessage,
    RetainedQueue, RetainedQueues, Route, Session, Shown, Source,
};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Failed, Way, lock};

/// How long a publish waits for its confirm.
const CONFIRM: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(crate) struct MemoryBroker {
    state: Arc<Mutex<State>>,
    turns: Arc<[tokio::sync::Mutex<()>; 2]>,
    way: Way,
}

#[derive(Default)]
struct State {
    queues: BTreeMap<String, Queue>,
    waiting: BTreeMap<(Instant, u64), (String, Message)>,
    out: BTreeMap<u64, Out>,
    sessions: BTreeMap<u64, CancellationToken>,
    dead: BTreeMap<u64, RetainedMessage>,
    rejected: BTreeMap<u64, RetainedMessage>,
    /// What edits of the retained queues did.
    edits: Vec<(RetainedQueue, Shown)>,
    next: u64,
}

#[derive(Default)]
struct Queue {
    /// In the order of arrival.
    ready: BTreeMap<u64, Message>,
    bell: watch::Sender<()>,
}

#[derive(Clone)]
struct Message {
    body: Bytes,
    message_id: String,
    traceparent: Option<String>,
    published_at: u64,
    came_back: bool,
}

/// A delivery that has not ended.
struct Out {
    session: u64,
    consumer: u64,
    queue: String,
    arrival: u64,
    message: Message,
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn put(&mut self, queue: &str, arrival: u64, message: Message) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.ready.insert(arrival, message);
            queue.bell.send_replace(());
        }
    }

    fn take_back(&mut self, out: Out) {
        let message = Message {
            came_back: true,
            ..out.message
        };
        self.put(&out.queue, out.arrival, message);
    }

    fn close(&mut self, session: u64) {
        if let Some(lost) = self.sessions.remove(&session) {
            lost.cancel();
        }
        let held = self.out.extract_if(.., |_, out| out.session == session);
        for (_, out) in held.collect::<Vec<_>>() {
            self.take_back(out);
        }
    }

    /// Moves messages that are due on the retry ladder back to their lanes, in order.
    fn wake(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.waiting.first_entry()
            && entry.key().0 <= now
        {
            let ((_, arrival), (queue, message)) = entry.remove_entry();
            self.put(&queue, arrival, message);
        }
    }

    fn retained(&mut self, retained: RetainedQueue) -> &mut BTreeMap<u64, RetainedMessage> {
        match retained {
            RetainedQueue::Dead => &mut self.dead,
            RetainedQueue::Rejected => &mut self.rejected,
        }
    }

    fn known(&self, queue: String) -> Result<String, PublishError> {
        match self.queues.contains_key(&queue) {
            true => Ok(queue),
            false => Err(PublishError::Unroutable(format!("queue `{queue}`"))),
        }
    }
}

fn jobs(priority: Priority) -> String {
    format!("jobs.{}", priority.as_str())
}

fn send(lane: &Lane) -> String {
    format!("send.{lane}")
}

impl MemoryBroker {
    pub(crate) fn new(targets: &[&str]) -> Self {
        let lanes = targets.iter().flat_map(|target| Lane::all(target));
        let lanes = lanes.map(|lane| send(&lane));
        let names = Priority::ALL.iter().copied().map(jobs).chain(lanes);
        let state = State {
            queues: names.map(|name| (name, Queue::default())).collect(),
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            turns: Arc::default(),
            way: Way::default(),
        }
    }

    /// The same broker, used by another process.
    #[allow(dead_code, reason = "the contract suite has nothing go wrong")]
    pub(crate) fn on(&self, way: Way) -> Self {
        Self {
            way,
            ..self.clone()
        }
    }

    /// Ends every session, as when the broker or the network fails.
    #[allow(dead_code, reason = "the contract suite has nothing go wrong")]
    pub(crate) fn lose_sessions(&self) {
        let mut state = lock(&self.state);
        let sessions: Vec<u64> = state.sessions.keys().copied().collect();
        for session in sessions {
            state.close(session);
        }
    }

    /// Messages ready for delivery.
    #[allow(dead_code, reason = "the schedules ask for everything that is left")]
    pub(crate) fn ready(&self) -> u64 {
        let state = lock(&self.state);
        let ready = state.queues.values().map(|queue| queue.ready.len() as u64);
        ready.sum()
    }

    /// Whether no message waits anywhere and none is in flight.
    #[allow(dead_code, reason = "the contract suite has nothing go wrong")]
    pub(crate) fn is_empty(&self) -> bool {
        let state = lock(&self.state);
        let ready = state.queues.values().all(|queue| queue.ready.is_empty());
        ready && state.waiting.is_empty() && state.out.is_empty()
    }

    fn publish_all(&self, messages: Vec<Outgoing>) -> Result<(), PublishError> {
        let mut state = lock(&self.state);
        let mut result = Ok(());
        for message in messages {
            if let Err(error) = self.publish_one(&mut state, message) {
                // The others are still published.
                result = Err(error);
            }
        }
        result
    }

    fn wait(
        &self,
        state: &mut State,
        arrival: u64,
        delay: Duration,
        queue: String,
        stored: Message,
    ) {
        let due = Instant::now() + rung(delay);
        state.waiting.insert((due, arrival), (queue, stored));
        let broker = Arc::clone(&self.state);
        tokio::spawn(async move {
            tokio::time::sleep_until(due).await;
            lock(&broker).wake();
        });
    }

    fn publish_one(&self, state: &mut State, message: Outgoing) -> Result<(), PublishError> {
        let arrival = state.number();
        let stored = Message {
            body: message.body,
            message_id: message.message_id,
            traceparent: message.traceparent,
            published_at: now_ms() / 1000,
            came_back: false,
        };
        match message.route {
            Route::Job(priority) => {
                state.put(&jobs(priority), arrival, stored);
            }
            Route::Lane(lane) => {
                let queue = state.known(send(&lane))?;
                state.put(&queue, arrival, stored);
            }
            Route::Wait { lane, rung } => {
                let queue = state.known(send(&lane))?;
                self.wait(state, arrival, rung, queue, stored);
            }
            Route::WaitJob { priority, rung } => {
                self.wait(state, arrival, rung, jobs(priority), stored);
            }
            Route::Dead { app, target } => {
                let kept = keep(stored, format!("{app}.{target}"));
                state.dead.insert(arrival, kept);
            }
            // Ledger and messages are in the same memory.
            Route::Sequence | Route::Event { .. } => {}
            Route::Reply { queue, .. } => {
                let what = format!("queue `{queue}`: there is no AMQP in memory");
                return Err(PublishError::Unroutable(what));
            }
        }
        Ok(())
    }
}

fn keep(message: Message, routing_key: String) -> RetainedMessage {
    let traceparent = message.traceparent.map(|it| ("traceparent".to_owned(), it));
    RetainedMessage {
        body: message.body,
        routing_key,
        message_id: Some(message.message_id),
        published_at: Some(message.published_at),
        headers: traceparent.into_iter().collect(),
    }
}

fn refused(what: String, why: Failed) -> BrokerError {
    BrokerError::Refused {
        what,
        source: Box::new(why),
    }
}

impl Broker for MemoryBroker {
    type Session = MemorySession;

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        let count = || {
            let state = lock(&self.state);
            let mut backlog = Backlog {
                dead: state.dead.len() as u64,
                rejected: state.rejected.len() as u64,
                ..Backlog::default()
            };
            for (name, queue) in &state.queues {
                let ready = queue.ready.len() as u64;
                match name.strip_prefix("send.") {
                    None => backlog.jobs += ready,
                    Some(lane) => backlog.add(&lane.parse().expect("a lane"), ready),
                }
            }
            backlog
        };
        let counted = self.way.step("backlog", count).await;
        counted.map_err(|why| refused("count its messages".to_owned(), why))
    }

    async fn wake(&self, waking: &Waking) -> Result<u64, BrokerError> {
        let wake = || {
            let mut state = lock(&self.state);
            let taken = |_: &(Instant, u64), (_, message): &mut (String, Message)| {
                waking.takes(&message.body)
            };
            let woken: Vec<_> = state.waiting.extract_if(.., taken).collect();
            let count = woken.len() as u64;
            for ((_, arrival), (queue, message)) in woken {
                state.put(&queue, arrival, message);
            }
            count
        };
        let woken = self.way.step("wake", wake).await;
        woken.map_err(|why| refused("read the retry ladder".to_owned(), why))
    }

    async fn connect(&self) -> Result<MemorySession, BrokerError> {
        let open = || {
            let mut state = lock(&self.state);
            let (id, lost) = (state.number(), CancellationToken::new());
            state.sessions.insert(id, lost.clone());
            let broker = self.clone();
            MemorySession { broker, id, lost }
        };
        let opened = self.way.step("connect", open).await;
        opened.map_err(|why| refused("open a session".to_owned(), why))
    }
}

/// Dropping it closes it.
pub(crate) struct MemorySession {
    broker: MemoryBroker,
    id: u64,
    lost: CancellationToken,
}

impl Session for MemorySession {
    type Consumer = MemoryConsumer;
    type Publisher = MemoryPublisher;

    fn publisher(&self) -> MemoryPublisher {
        MemoryPublisher {
            broker: self.broker.clone(),
            lost: self.lost.clone(),
        }
    }

    async fn ready(&self, lane: &Lane) -> Result<u64, BrokerError> {
        let state = lock(&self.broker.state);
        let queue = state.queues.get(&send(lane));
        Ok(queue.map_or(0, |queue| queue.ready.len() as u64))
    }

    async fn consume(&self, source: Source, prefetch: u16) -> Result<MemoryConsumer, BrokerError> {
        let name = match &source {
            Source::Jobs(priority) => jobs(*priority),
            Source::Lane(lane) => send(lane),
        };
        let open = || {
            let mut state = lock(&self.broker.state);
            let Some(bell) = state.queues.get(&name).map(|queue| queue.bell.subscribe()) else {
                return Err(refused(format!("consume from queue `{name}`"), Failed));
            };
            if self.lost.is_cancelled() {
                return Err(Lost.into());
            }
            Ok(MemoryConsumer {
                broker: self.broker.clone(),
                id: state.number(),
                session: self.id,
                queue: name.clone(),
                prefetch: match prefetch {
                    0 => usize::MAX,
                    bound => bound.into(),
                },
                ahead: VecDeque::new(),
                cancelled: false,
                bell,
                lost: self.lost.clone(),
            })
        };
        let opened = self.broker.way.step("consume", open).await;
        opened.unwrap_or_else(|why| Err(refused(format!("consume from queue `{name}`"), why)))
    }

    fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    fn blocked(&self) -> watch::Receiver<bool> {
        watch::channel(false).1
    }

    async fn close(self) {
        // As if it were dropped.
    }
}

impl Drop for MemorySession {
    fn drop(&mut self) {
        lock(&self.broker.state).close(self.id);
    }
}

#[derive(Clone)]
pub(crate) struct MemoryPublisher {
    broker: MemoryBroker,
    lost: CancellationToken,
}

impl Publisher for MemoryPublisher {
    async fn publish(&self, messages: Vec<Outgoing>) -> Result<(), PublishError> {
        if self.lost.is_cancelled() {
            return Err(Lost.into());
        }
        let put = || match self.lost.is_cancelled() {
            true => Err(Lost.into()),
            false => self.broker.publish_all(messages),
        };
        let published = self.broker.way.step("publish", put).await;
        match published {
            // The message was published, and the confirm was lost with the session.
            Ok(Ok(())) if self.lost.is_cancelled() => Err(Lost.into()),
            Ok(result) => result,
            Err(Failed) => Err(PublishError::Timeout(CONFIRM)),
        }
    }
}

pub(crate) struct MemoryConsumer {
    broker: MemoryBroker,
    id: u64,
    session: u64,
    queue: String,
    prefetch: usize,
    /// Deliveries that were fetched and not read yet.
    ahead: VecDeque<u64>,
    cancelled: bool,
    bell: watch::Receiver<()>,
    lost: CancellationToken,
}

impl MemoryConsumer {
    fn fetch(&mut self, state: &mut State) {
        let mine = |out: &&Out| out.consumer == self.id;
        let unacked = state.out.values().filter(mine).count();
        for _ in unacked..self.prefetch {
            let Some(queue) = state.queues.get_mut(&self.queue) else {
                return;
            };
            let Some((arrival, message)) = queue.ready.pop_first() else {
                return;
            };
            let tag = state.number();
            let out = Out {
                session: self.session,
                consumer: self.id,
                queue: self.queue.clone(),
                arrival,
                message,
            };
            state.out.insert(tag, out);
            self.ahead.push_back(tag);
        }
    }

    fn take(&mut self) -> Option<Delivery> {
        let broker = self.broker.clone();
        let mut state = lock(&broker.state);
        if !self.cancelled {
            self.fetch(&mut state);
        }
        let tag = self.ahead.pop_front()?;
        let message = &state.out.get(&tag)?.message;
        Some(Delivery {
            body: message.body.clone(),
            traceparent: message.traceparent.clone(),
            redelivered: message.came_back,
            end: Box::new(Ending {
                broker: broker.clone(),
                tag,
            }),
        })
    }
}

impl Consumer for MemoryConsumer {
    async fn next(&mut self) -> Option<Delivery> {
        loop {
            if self.lost.is_cancelled() {
                return None;
            }
            self.bell.borrow_and_update();
            if let Some(delivery) = self.take() {
                return Some(delivery);
            }
            if self.cancelled {
                return None;
            }
            tokio::select! {
                biased;
                () = self.lost.cancelled() => return None,
                _ = self.bell.changed() => {}
            }
        }
    }

    async fn cancel(&mut self) {
        self.cancelled = true;
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        let mut state = lock(&self.broker.state);
        for tag in self.ahead.drain(..) {
            if let Some(out) = state.out.remove(&tag) {
                state.take_back(out);
            }
        }
    }
}

struct Ending {
    broker: MemoryBroker,
    tag: u64,
}

impl Ending {
    fn end(&self) -> Result<(MemoryBroker, Out), Lost> {
        let mut state = lock(&self.broker.state);
        let out = state.out.remove(&self.tag).ok_or(Lost)?;
        // The consumer may fetch another one.
        if let Some(queue) = state.queues.get(&out.queue) {
            queue.bell.send_replace(());
        }
        Ok((self.broker.clone(), out))
    }
}

impl EndDelivery for Ending {
    fn ack(self: Box<Self>) -> BoxFuture<Result<(), Lost>> {
        Box::pin(async move {
            let acked = self.broker.way.step("ack", || self.end()).await;
            // An ack has no answer: one that fails ends its session.
            match acked {
                Ok(acked) => acked.map(drop),
                Err(Failed) => {
                    self.broker.lose_sessions();
                    Err(Lost)
                }
            }
        })
    }

    fn requeue(self: Box<Self>) -> BoxFuture<Result<(), Lost>> {
        Box::pin(async move {
            let requeue = || {
                let (broker, out) = self.end()?;
                lock(&broker.state).take_back(out);
                Ok(())
            };
            let given_back = self.broker.way.step("give_back", requeue).await;
            given_back.unwrap_or_else(|Failed| {
                self.broker.lose_sessions();
                Err(Lost)
            })
        })
    }

    fn reject(self: Box<Self>, reason: String) -> BoxFuture<Result<(), PublishError>> {
        Box::pin(async move {
            let reject = || {
                let (broker, out) = self.end()?;
                let (_, key) = out.queue.split_once('.').unwrap_or_default();
                let mut kept = keep(out.message, key.to_owned());
                let at = (now_ms() / 1000).to_string();
                kept.headers.extend([
                    ("fanwise-reason".to_owned(), reason),
                    ("fanwise-source".to_owned(), out.queue),
                    ("fanwise-rejected-at".to_owned(), at),
                ]);
                let mut state = lock(&broker.state);
                let number = state.number();
                state.rejected.insert(number, kept);
                Ok(())
            };
            let rejected = self.broker.way.step("reject", reject).await;
            rejected.unwrap_or(Err(PublishError::Timeout(CONFIRM)))
        })
    }
}

// ---------------------------------------------------------------------------------------------
// Retained queues
// ---------------------------------------------------------------------------------------------

/// Messages between two await points of a read.
const PAGE: usize = 50;

impl MemoryBroker {
    async fn walk(
        &self,
        retained: RetainedQueue,
        mut decide: impl FnMut(RetainedMessage) -> RetainedEdit + Send,
    ) -> EditSummary {
        let there: Vec<_> = {
            let mut state = lock(&self.state);
            let kept = state.retained(retained).iter();
            kept.map(|(at, it)| (*at, it.clone())).collect()
        };
        let mut summary = EditSummary::default();
        for (number, (at, message)) in there.into_iter().enumerate() {
            if number % PAGE == PAGE - 1 {
                tokio::task::yield_now().await;
            }
            summary.shown += 1;
            let decided = decide(message);
            let mut state = lock(&self.state);
            match decided {
                RetainedEdit::Keep => {}
                RetainedEdit::Stop => break,
                RetainedEdit::Remove => {
                    if let Some(old) = state.retained(retained).remove(&at) {
                        state.edits.push((retained, Shown::Gone(old.body)));
                    }
                    summary.removed += 1;
                }
                RetainedEdit::Replace(body) => {
                    if let Some(kept) = state.retained(retained).get_mut(&at) {
                        let old = std::mem::replace(&mut kept.body, body);
                        let new = kept.clone();
                        state.edits.push((retained, Shown::Gone(old)));
                        state.edits.push((retained, Shown::Kept(new)));
                    }
                    summary.replaced += 1;
                }
            }
        }
        summary
    }
}

impl RetainedQueues for MemoryBroker {
    type Follower = MemoryFollower;

    async fn read(
        &self,
        retained: RetainedQueue,
        mut visit: impl FnMut(RetainedMessage) -> ControlFlow<()> + Send,
    ) -> Result<u64, BrokerError> {
        let keep = |message| match visit(message) {
            ControlFlow::Continue(()) => RetainedEdit::Keep,
            ControlFlow::Break(()) => RetainedEdit::Stop,
        };
        Ok(self.walk(retained, keep).await.shown)
    }

    async fn edit(
        &self,
        retained: RetainedQueue,
        decide: impl FnMut(RetainedMessage) -> RetainedEdit + Send,
    ) -> Result<EditSummary, BrokerError> {
        let _turn = self.turns[retained as usize].lock().await;
        Ok(self.walk(retained, decide).await)
    }

    async fn follow(&self, retained: RetainedQueue) -> Result<MemoryFollower, BrokerError> {
        Ok(MemoryFollower {
            broker: self.clone(),
            retained,
            next: 0,
            edits: lock(&self.state).edits.len(),
        })
    }
}

pub(crate) struct MemoryFollower {
    broker: MemoryBroker,
    retained: RetainedQueue,
    next: u64,
    edits: usize,
}

impl Follower for MemoryFollower {
    async fn catch_up(
        &mut self,
        mut visit: impl FnMut(Shown) -> ControlFlow<()> + Send,
    ) -> Result<Followed, BrokerError> {
        let mut state = lock(&self.broker.state);
        for (number, message) in state.retained(self.retained).range(self.next..) {
            self.next = number + 1;
            if visit(Shown::Kept(message.clone())).is_break() {
                break;
            }
        }
        for (retained, edit) in &state.edits[self.edits..] {
            if *retained == self.retained && visit(edit.clone()).is_break() {
                break;
            }
        }
        self.edits = state.edits.len();
        Ok(Followed::All)
    }

    async fn much_waits(&self) {
        std::future::pending().await
    }

    async fn end(self) {}
}
