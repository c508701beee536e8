//! Remembers accepted calls, by the key that their caller gave them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::log::Shards;
use crate::reply::Answer;
use crate::state::Receipt;

/// An accepted call.
pub(crate) struct First {
    /// Distinguishes a repeated call from another call with the same key.
    pub(super) content: u128,
    pub(super) answer: Answer,
    pub(super) receipts: Vec<Receipt>,
}

impl First {
    /// Its receipts, marked as replays for the log.
    pub(super) fn replayed(&self) -> Vec<Receipt> {
        let again = |receipt: &Receipt| Receipt {
            replay: true,
            ..receipt.clone()
        };
        self.receipts.iter().map(again).collect()
    }
}

type Slot = Arc<Mutex<Option<First>>>;

/// Remembers accepted calls for as long as the mock runs.
pub(crate) struct Repeats(Shards<HashMap<u128, Slot>>);

impl Repeats {
    pub(crate) fn new() -> Repeats {
        Repeats(Shards::new())
    }

    /// Accepts the first call with `key`. Later ones wait for it and are repeated calls. A refused
    /// call leaves the key unused.
    pub(crate) fn once<E>(
        &self,
        key: u128,
        accept: impl FnOnce() -> Result<First, E>,
        repeat: impl FnOnce(&First) -> Result<Answer, E>,
    ) -> Result<Answer, E> {
        let slot = Arc::clone(self.0.lock(key).entry(key).or_default());
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Some(first) => repeat(first),
            None => {
                let first = slot.insert(accept()?);
                Ok(first.answer.clone())
            }
        }
    }
}
