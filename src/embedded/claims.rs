//! Keeps the open claims: who may send to which recipient, and until when.
//!
//! A claim is one row on disk, however many recipients it covers, and an index in memory. The disk
//! holds only the fact, not the deadline. Leases end with the process that held them, so claims of
//! an earlier opening have no lease any more, and the next delivery takes them over (promise 4).
//!
//! The index changes while a transaction is made, for the steps that follow in it. If the commit
//! fails, the index is read again from disk; claims that have not changed keep their deadlines.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use redb::{ReadTransaction, ReadableTable};

use super::disk::StorageError;
use super::tables::{CLAIMS, number};
use super::transaction::Lazy;
use crate::ports::ClaimState;

/// The opening and the owner of recipients that were released in doubt. No opening and no owner has
/// this number, so a version that does not know it reads them as claims of an earlier opening.
const DOUBT: u64 = 0;

/// A recipient: the life of its job and its fingerprint.
type Recipient = (u64, u64);

/// The claims of this opening and the remaining ones of earlier openings.
#[derive(Debug, Default)]
pub(super) struct Claims {
    opening: u64,
    next_row: u64,
    rows: HashMap<u64, ClaimRow>,
    held: HashMap<Recipient, Held>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    row: u64,
    /// None: a claim of an earlier opening.
    ends: Option<Instant>,
    /// The claim was taken over, or the recipient was released in doubt before. Only in memory: the
    /// next opening takes over every claim anyway.
    in_doubt: bool,
}

/// A row as it is stored: life, opening, owner, lease in ms (8 bytes each), fingerprints.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ClaimRow {
    life: u64,
    opening: u64,
    owner: u64,
    lease: Duration,
    fingerprints: Vec<u64>,
}

impl ClaimRow {
    fn write(&self) -> Vec<u8> {
        let lease = self.lease.as_millis() as u64;
        let head = [self.life, self.opening, self.owner, lease];
        let numbers = head.iter().chain(&self.fingerprints);
        numbers.flat_map(|number| number.to_be_bytes()).collect()
    }

    fn decode(bytes: &[u8]) -> Result<Self, StorageError> {
        let (numbers, rest) = bytes.as_chunks::<8>();
        let (&[life, opening, owner, lease], fingerprints) = numbers
            .split_first_chunk::<4>()
            .filter(|_| rest.is_empty())
            .ok_or_else(|| StorageError::broken("a claim is cut short"))?;
        Ok(Self {
            life: number(&life),
            opening: number(&opening),
            owner: number(&owner),
            lease: Duration::from_millis(number(&lease)),
            fingerprints: fingerprints.iter().map(|it| number(it)).collect(),
        })
    }
}

/// The delivery that asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) life: u64,
    pub(super) owner: u64,
}

impl Claims {
    pub(super) fn load(
        table: &impl ReadableTable<u64, &'static [u8]>,
        opening: u64,
    ) -> Result<Self, StorageError> {
        let mut claims = Self {
            opening,
            ..Self::default()
        };
        let now = Instant::now();
        for entry in table.iter()? {
            let (row, bytes) = entry?;
            let (row, claim) = (row.value(), ClaimRow::decode(bytes.value())?);
            let ends = (claim.opening == opening).then(|| now + claim.lease);
            for fingerprint in &claim.fingerprints {
                let held = Held {
                    row,
                    ends,
                    in_doubt: false,
                };
                claims.held.insert((claim.life, *fingerprint), held);
            }
            claims.rows.insert(row, claim);
            claims.next_row = claims.next_row.max(row + 1);
        }
        Ok(claims)
    }

    /// Reads the claims from disk again. Claims that are unchanged there keep their deadlines.
    pub(super) fn reload(&mut self, transaction: &ReadTransaction) -> Result<(), StorageError> {
        let mut found = Self::load(&transaction.open_table(CLAIMS)?, self.opening)?;
        // A row number that may have been used is not used again.
        found.next_row = found.next_row.max(self.next_row);
        for (recipient, held) in &mut found.held {
            let before = self.held.get(recipient);
            if let Some(before) = before.filter(|before| before.row == held.row) {
                held.ends = before.ends;
                held.in_doubt = before.in_doubt;
            }
        }
        *self = found;
        Ok(())
    }

    fn is_own(&self, held: Held, asker: Asker) -> bool {
        held.ends.is_some()
            && self
                .rows
                .get(&held.row)
                .is_some_and(|row| row.owner == asker.owner)
    }

    /// The answer to a claim on a recipient without an outcome. Without an asker, the answer that a
    /// new owner would get.
    pub(super) fn state(
        &self,
        asker: Option<Asker>,
        life: u64,
        fingerprint: u64,
        now: Instant,
    ) -> ClaimState {
        let Some(held) = self.held.get(&(life, fingerprint)) else {
            return ClaimState::Granted;
        };
        if asker.is_some_and(|asker| self.is_own(*held, asker)) {
            return match held.in_doubt {
                true => ClaimState::InDoubt,
                false => ClaimState::Granted,
            };
        }
        let left = held.ends.map(|ends| ends.saturating_duration_since(now));
        match left.filter(|left| !left.is_zero()) {
            Some(left) => ClaimState::Held { left },
            None if self.is_doubt(*held) => ClaimState::InDoubt,
            None => ClaimState::TakenOver,
        }
    }

    /// Whether any recipient of a life is claimed under a lease that is not over.
    pub(super) fn any_held(&self, life: u64, now: Instant) -> bool {
        self.held
            .iter()
            .any(|((of, _), held)| *of == life && held.ends.is_some_and(|ends| ends > now))
    }

    fn is_doubt(&self, held: Held) -> bool {
        let row = self.rows.get(&held.row);
        row.is_some_and(|row| row.opening == DOUBT)
    }

    /// Gives the asker the recipients that were granted or taken over.
    pub(super) fn grant(
        &mut self,
        table: &mut Lazy<'_, u64, &'static [u8]>,
        asker: Asker,
        recipients: &[u64],
        lease: Duration,
        now: Instant,
    ) -> Result<(), StorageError> {
        let ends = Some(now + lease);
        let mut foreign = Vec::new();
        let mut fingerprints = Vec::with_capacity(recipients.len());
        for fingerprint in recipients {
            match self.held.get(&(asker.life, *fingerprint)).copied() {
                // Asked for again: the recipient keeps its row.
                Some(held) if self.is_own(held, asker) => {
                    let held = Held { ends, ..held };
                    self.held.insert((asker.life, *fingerprint), held);
                }
                Some(_) => {
                    foreign.push(*fingerprint);
                    fingerprints.push(*fingerprint);
                }
                None => fingerprints.push(*fingerprint),
            }
        }
        self.drop(table, asker.life, &foreign)?;
        foreign.sort_unstable();
        fingerprints.sort_unstable();
        fingerprints.dedup();
        if fingerprints.is_empty() {
            return Ok(());
        }
        let claim = ClaimRow {
            life: asker.life,
            opening: self.opening,
            owner: asker.owner,
            lease,
            fingerprints,
        };
        self.keep(table, claim, ends, |it| foreign.binary_search(&it).is_ok())
    }

    /// Moves the deadlines of the asker's claims. Returns whether it held all of them.
    pub(super) fn renew(&mut self, asker: Asker, recipients: &[u64], ends: Instant) -> bool {
        let mut all = true;
        for fingerprint in recipients {
            let key = (asker.life, *fingerprint);
            match self.held.get(&key).copied() {
                Some(held) if self.is_own(held, asker) => {
                    let ends = Some(ends);
                    self.held.insert(key, Held { ends, ..held });
                }
                _ => all = false,
            }
        }
        all
    }

    /// Ends the asker's own claims on these recipients.
    pub(super) fn release(
        &mut self,
        table: &mut Lazy<'_, u64, &'static [u8]>,
        asker: Asker,
        recipients: &[u64],
    ) -> Result<(), StorageError> {
        let own = self.own(asker, recipients);
        self.drop(table, asker.life, &own)
    }

    /// Ends the asker's own claims on these recipients and records that they may have been sent to.
    pub(super) fn doubt(
        &mut self,
        table: &mut Lazy<'_, u64, &'static [u8]>,
        asker: Asker,
        recipients: &[u64],
    ) -> Result<(), StorageError> {
        let own = self.own(asker, recipients);
        self.drop(table, asker.life, &own)?;
        if own.is_empty() {
            return Ok(());
        }
        self.keep(
            table,
            ClaimRow {
                life: asker.life,
                opening: DOUBT,
                owner: DOUBT,
                lease: Duration::ZERO,
                fingerprints: own,
            },
            None,
            |_| true,
        )
    }

    /// Whether the asker holds this recipient and got it in doubt.
    pub(super) fn holds_in_doubt(&self, asker: Asker, fingerprint: u64) -> bool {
        let held = self.held.get(&(asker.life, fingerprint));
        held.is_some_and(|held| held.in_doubt && self.is_own(*held, asker))
    }

    fn own(&self, asker: Asker, recipients: &[u64]) -> Vec<u64> {
        let is_own = |fingerprint: &u64| {
            let held = self.held.get(&(asker.life, *fingerprint));
            held.is_some_and(|held| self.is_own(*held, asker))
        };
        recipients.iter().copied().filter(is_own).collect()
    }

    fn keep(
        &mut self,
        table: &mut Lazy<'_, u64, &'static [u8]>,
        claim: ClaimRow,
        ends: Option<Instant>,
        in_doubt: impl Fn(u64) -> bool,
    ) -> Result<(), StorageError> {
        let row = self.next_row;
        self.next_row += 1;
        for fingerprint in &claim.fingerprints {
            let held = Held {
                row,
                ends,
                in_doubt: in_doubt(*fingerprint),
            };
            self.held.insert((claim.life, *fingerprint), held);
        }
        table.open()?.insert(row, claim.write().as_slice())?;
        self.rows.insert(row, claim);
        Ok(())
    }

    /// Ends the claims on these recipients, whoever the owner is.
    pub(super) fn drop(
        &mut self,
        table: &mut Lazy<'_, u64, &'static [u8]>,
        life: u64,
        recipients: &[u64],
    ) -> Result<(), StorageError> {
        let mut changed: HashMap<u64, Vec<u64>> = HashMap::new();
        for fingerprint in recipients {
            if let Some(held) = self.held.remove(&(life, *fingerprint)) {
                changed.entry(held.row).or_default().push(*fingerprint);
            }
        }
        for (row, mut gone) in changed {
            let Some(claim) = self.rows.get_mut(&row) else {
                continue;
            };
            gone.sort_unstable();
            claim
                .fingerprints
                .retain(|fingerprint| gone.binary_search(fingerprint).is_err());
            if claim.fingerprints.is_empty() {
                self.rows.remove(&row);
                table.open()?.remove(row)?;
            } else {
                table.open()?.insert(row, claim.write().as_slice())?;
            }
        }
        Ok(())
    }

    /// Ends every claim of a life.
    pub(super) fn drop_life(
        &mut self,
        table: &mut Lazy<'_, u64, &'static [u8]>,
        life: u64,
    ) -> Result<(), StorageError> {
        let rows: Vec<_> = self
            .rows
            .iter()
            .filter(|(_, row)| row.life == life)
            .map(|(number, _)| *number)
            .collect();
        for row in rows {
            if let Some(claim) = self.rows.remove(&row) {
                for fingerprint in claim.fingerprints {
                    self.held.remove(&(life, fingerprint));
                }
            }
            table.open()?.remove(row)?;
        }
        Ok(())
    }
}

/// Number of recipients of a life that are claimed, in a consistent view.
pub(super) fn count(transaction: &ReadTransaction, life: u64) -> Result<u64, StorageError> {
    let mut count = 0;
    for entry in transaction.open_table(CLAIMS)?.iter()? {
        let claim = ClaimRow::decode(entry?.1.value())?;
        if claim.life == life {
            count += claim.fingerprints.len() as u64;
        }
    }
    Ok(count)
}
