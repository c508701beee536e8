//! What filters ask of a row, in few bytes, and what they ask of a block of rows, in few bits: a
//! page reads only blocks that may have a row for it.
//!
//! Texts are compared by their hashes here. A row that is found so is compared with its letter
//! before it is shown.

use std::hash::{BuildHasher as _, RandomState};

use crate::domain::announce::{DeadLetter, DeadRecipient};
use crate::domain::letters::{LetterFilter, last_attempt_ms};

/// What a row says besides its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) at_ms: u64,
    pub(super) app: u32,
    pub(super) target: u32,
    pub(super) code: u32,
    pub(super) class: u8,
    pub(super) outcome: u8,
}

/// Hashes texts. Each copy draws its own key, so that no sender can choose texts that collide.
#[derive(Default)]
pub(super) struct Hasher(RandomState);

impl Hasher {
    pub(super) fn text(&self, text: &str) -> u32 {
        let hash = self.0.hash_one(text);
        (hash ^ (hash >> 32)) as u32
    }

    pub(super) fn facts(&self, letter: &DeadLetter, dead: &DeadRecipient) -> Facts {
        Facts {
            at_ms: last_attempt_ms(letter),
            app: self.text(&letter.app),
            target: self.text(&letter.target),
            code: self.text(&dead.code),
            class: dead.class as u8,
            outcome: dead.outcome as u8,
        }
    }
}

/// The rows that a filter may select, apart from the job.
pub(super) struct Sought<'f> {
    filter: &'f LetterFilter,
    app: Option<u32>,
    target: Option<u32>,
    code: Option<u32>,
    recipient: Option<u32>,
}

impl<'f> Sought<'f> {
    pub(super) fn new(filter: &'f LetterFilter, hasher: &Hasher) -> Self {
        let hash = |text: Option<&str>| text.map(|text| hasher.text(text));
        Self {
            filter,
            app: hash(filter.app()),
            target: hash(filter.target()),
            code: hash(filter.code()),
            recipient: hash(filter.recipient()),
        }
    }

    pub(super) fn takes(&self, recipient: &[u8], facts: &Facts) -> bool {
        let is = |wanted: Option<u32>, is: u32| wanted.is_none_or(|it| it == is);
        is(self.app, facts.app)
            && is(self.target, facts.target)
            && is(self.code, facts.code)
            && (self.filter.recipient()).is_none_or(|it| it.as_bytes() == recipient)
            && (self.filter.class()).is_none_or(|it| it as u8 == facts.class)
            && (self.filter.outcome).is_none_or(|it| it as u8 == facts.outcome)
            && self.filter.takes_ms(facts.at_ms)
    }

    /// Whether a block may have a row for it.
    pub(super) fn may_be_in(&self, summary: &Summary) -> bool {
        let terms = [
            (Kind::App, self.app),
            (Kind::Target, self.target),
            (Kind::Code, self.code),
            (Kind::Recipient, self.recipient),
        ];
        (self.filter.class()).is_none_or(|it| summary.classes & bit(it as u8) != 0)
            && (self.filter.outcome).is_none_or(|it| summary.outcomes & bit(it as u8) != 0)
            && (self.filter).takes_some_ms(summary.first_ms, summary.last_ms)
            && terms
                .iter()
                .all(|(kind, hash)| hash.is_none_or(|hash| summary.may_have(*kind, hash)))
    }
}

/// Words of the bit set of a block. With 256 recipients and few other texts, and five bits for each,
/// one block in a hundred is read in vain.
const WORDS: usize = 40;
const BITS_OF_TEXT: u64 = 5;

/// What the rows of a block say: each text sets some bits.
pub(super) struct Summary {
    texts: Box<[u64; WORDS]>,
    classes: u32,
    outcomes: u32,
    first_ms: u64,
    last_ms: u64,
}

#[derive(Clone, Copy)]
enum Kind {
    App,
    Target,
    Code,
    Recipient,
}

impl Default for Summary {
    fn default() -> Self {
        Self {
            texts: Box::new([0; WORDS]),
            classes: 0,
            outcomes: 0,
            first_ms: u64::MAX,
            last_ms: 0,
        }
    }
}

impl Summary {
    pub(super) fn note(&mut self, recipient: u32, facts: &Facts) {
        let texts = [
            (Kind::App, facts.app),
            (Kind::Target, facts.target),
            (Kind::Code, facts.code),
            (Kind::Recipient, recipient),
        ];
        for (kind, hash) in texts {
            for (word, bit) in places(kind, hash) {
                self.texts[word] |= bit;
            }
        }
        self.classes |= bit(facts.class);
        self.outcomes |= bit(facts.outcome);
        self.first_ms = self.first_ms.min(facts.at_ms);
        self.last_ms = self.last_ms.max(facts.at_ms);
    }

    fn may_have(&self, kind: Kind, hash: u32) -> bool {
        places(kind, hash).all(|(word, bit)| self.texts[word] & bit != 0)
    }

    pub(super) fn may_have_recipient(&self, hash: u32) -> bool {
        self.may_have(Kind::Recipient, hash)
    }
}

fn bit(number: u8) -> u32 {
    1 << (number % 32)
}

/// The bits of a text: words, and a bit in each.
fn places(kind: Kind, hash: u32) -> impl Iterator<Item = (usize, u64)> {
    let mixed = ((u64::from(hash) << 2) | kind as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let (first, step) = (mixed >> 32, (mixed & 0xFFFF_FFFF) | 1);
    (0..BITS_OF_TEXT).map(move |number| {
        let bit = (first + number * step) as usize % (WORDS * 64);
        (bit / 64, 1 << (bit % 64))
    })
}
