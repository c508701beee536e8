//! Tells the followers of a retained queue what an edit does, through the exchange of edits.
//!
//! An edit says that it begins before its first change, then each removed body and each new one, and
//! at last that all is said. It holds the lock of the queue from beginning to end. So followers know
//! that an edit was broken off: the lock is free, and the end was not said.

use std::collections::VecDeque;

use fanwise_net::amqp::{AmqpError, Dial, Link};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::basic::AMQPProperties;
use lapin::types::{AMQPValue, ShortString};
use lapin::{BasicProperties, Channel, PublisherConfirm};

use super::declare::open_channel;
use crate::error::chain;

/// Header with what a note says.
pub(super) const EDIT: &str = "fanwise-edit";

/// Notes that may wait for their confirms.
const UNCONFIRMED_MAX: usize = 100;

/// What a note says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Note {
    Begin,
    /// A message with the body of the note was removed.
    Gone,
    /// A message with the body of the note has come in place of another one.
    Kept,
    End,
}

impl Note {
    const ALL: [Self; 4] = [Self::Begin, Self::Gone, Self::Kept, Self::End];

    fn name(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Gone => "gone",
            Self::Kept => "kept",
            Self::End => "end",
        }
    }

    /// Reads a note; none if it is from another version.
    pub(super) fn of(properties: &AMQPProperties) -> Option<Self> {
        let headers = properties.headers().as_ref()?;
        let name = headers.inner().get(EDIT)?.as_long_string()?;
        let is = |note: &Self| note.name().as_bytes() == name.as_bytes();
        Self::ALL.into_iter().find(is)
    }
}

/// The notes of an edit. Followers that miss one look at the whole queue again, so an edit goes on
/// when it cannot say what it does.
pub(super) struct Notes<'a> {
    dial: &'a Dial,
    exchange: ShortString,
    queue: ShortString,
    state: State,
    confirms: VecDeque<PublisherConfirm>,
}

enum State {
    /// Nothing was changed.
    Silent,
    Telling(Channel),
    Failed,
}

impl<'a> Notes<'a> {
    pub(super) fn new(dial: &'a Dial, exchange: &str, queue: &str) -> Result<Self, AmqpError> {
        Ok(Self {
            dial,
            exchange: dial.name(exchange)?,
            queue: dial.name(queue)?,
            state: State::Silent,
            confirms: VecDeque::new(),
        })
    }

    /// Says that a change is to come.
    pub(super) async fn begin(&mut self, connection: &Link) {
        if matches!(self.state, State::Silent) {
            let begun = self.open(connection).await;
            self.state = self.told(begun).map_or(State::Failed, State::Telling);
            self.tell(Note::Begin, &[], BasicProperties::default())
                .await;
            self.settle(0).await;
        }
    }

    pub(super) async fn gone(&mut self, body: &[u8]) {
        self.tell(Note::Gone, body, BasicProperties::default())
            .await;
        self.settle(UNCONFIRMED_MAX).await;
    }

    pub(super) async fn kept(&mut self, body: &[u8], properties: BasicProperties) {
        self.tell(Note::Kept, body, properties).await;
    }

    /// Says that every change was told.
    pub(super) async fn end(mut self) {
        self.tell(Note::End, &[], BasicProperties::default()).await;
        self.settle(0).await;
    }

    async fn open(&self, connection: &Link) -> Result<Channel, AmqpError> {
        let channel = open_channel(self.dial, connection).await?;
        let confirmed = channel.confirm_select(ConfirmSelectOptions::default());
        self.dial.ask(self.what(), confirmed).await?;
        Ok(channel)
    }

    async fn tell(&mut self, note: Note, body: &[u8], properties: BasicProperties) {
        let State::Telling(channel) = &self.state else {
            return;
        };
        let mut headers = properties.headers().clone().unwrap_or_default();
        headers.insert(EDIT.into(), AMQPValue::LongString(note.name().into()));
        let published = channel.basic_publish(
            self.exchange.clone(),
            self.queue.clone(),
            BasicPublishOptions::default(),
            body,
            properties.with_headers(headers),
        );
        let published = self.dial.ask(self.what(), published).await;
        match self.told(published) {
            Some(confirm) => self.confirms.push_back(confirm),
            None => self.state = State::Failed,
        }
    }

    /// Waits until at most so many notes are unconfirmed.
    async fn settle(&mut self, unconfirmed: usize) {
        while self.confirms.len() > unconfirmed
            && let Some(confirm) = self.confirms.pop_front()
        {
            let confirmed = self.dial.ask(self.what(), confirm).await;
            if self.told(confirmed).is_none() {
                self.state = State::Failed;
            }
        }
    }

    fn what(&self) -> String {
        format!("say how queue `{}` is edited", self.queue)
    }

    fn told<T>(&self, told: Result<T, AmqpError>) -> Option<T> {
        let log = |error: &AmqpError| {
            let error = chain(error);
            tracing::debug!(%error, "followers of queue {} read it again", self.queue);
        };
        told.inspect_err(log).ok()
    }
}
