//! Settles recipients of a slice, claims others, or does both in one step of the server.

use std::sync::LazyLock;

use super::Store;
use super::connection::{Call, Script, broken};
use super::ledger::{
    Groups, Outlined, SHAPES, ScriptReply, distinct, in_order, millis, read_states, sorted,
};
use crate::domain::ids::{Fingerprint, Owner};
use crate::domain::outcome::Outcome;
use crate::domain::slice::Shape;
use crate::ports::{Claim, Claimed, LedgerError, Recorded, Settle, SliceRef, outline};

macro_rules! turn {
    ($flags:literal) => {
        LazyLock::new(|| {
            Script::new(concat!(
                $flags,
                include_str!("scripts/prelude.lua"),
                include_str!("scripts/settle.lua"),
                include_str!("scripts/claim.lua"),
                include_str!("scripts/turn.lua")
            ))
        })
    };
}

/// It claims, which takes memory: a full server refuses it before it writes anything.
static CLAIM: LazyLock<Script> = turn!("#!lua\n");

/// It only settles. It runs on a full server too.
static SETTLE: LazyLock<Script> = turn!("#!lua flags=allow-oom\n");

/// Codes for releasing a claim, besides those of `Outcome::ledger_code`: released for certain,
/// released in doubt, and given up unused, in the state in which it was found.
pub(super) const RELEASE: u8 = b'r';
const DOUBT: u8 = b'd';
const UNUSED: u8 = b'k';
/// Expected size of the record of an id.
const ID_BYTES: usize = 48;
/// Sent by the second target of the job.
const SENT_BY_FALLBACK: u8 = b'b';

impl Store {
    pub(super) async fn claim_only(&self, claim: Claim<'_>) -> Result<Claimed, LedgerError> {
        let (_, claimed) = self
            .turn(claim.slice, claim.owner, None, Some(claim))
            .await?;
        claimed.ok_or_else(|| broken("a claim has no answer"))
    }

    pub(super) async fn settle_only(&self, settle: Settle<'_>) -> Result<Recorded, LedgerError> {
        let turn = self.turn(settle.slice, settle.owner, Some(settle), None);
        let (recorded, _) = turn.await?;
        recorded.ok_or_else(|| broken("a settle has no answer"))
    }

    pub(super) async fn settle_then_claim(
        &self,
        settle: Settle<'_>,
        claim: Claim<'_>,
    ) -> Result<(Recorded, Claimed), LedgerError> {
        let turn = self.turn(settle.slice, settle.owner, Some(settle), Some(claim));
        match turn.await {
            Ok((Some(recorded), Some(claimed))) => Ok((recorded, claimed)),
            Ok(_) => Err(broken("a turn has no answer")),
            // A full server still takes what is known.
            Err(LedgerError::Full(_)) => {
                let recorded = self.settle_only(settle).await?;
                Ok((recorded, self.claim_only(claim).await?))
            }
            Err(error) => Err(error),
        }
    }

    async fn turn(
        &self,
        slice: SliceRef<'_>,
        owner: Owner,
        settle: Option<Settle<'_>>,
        claim: Option<Claim<'_>>,
    ) -> Result<(Option<Recorded>, Option<Claimed>), LedgerError> {
        let connection = &self.0.connection;
        let order = claim.map_or_else(Vec::new, |claim| sorted(claim.recipients));
        let asked = claim.map(|claim| (distinct(&order, claim.recipients), claim));
        let mut known = settle.map(Settlements::of);
        let mut recorded = None;
        let mut shape = slice.shape;
        // Once more, if the server's clock is not known yet or was changed.
        for _ in 0..=SHAPES {
            let call = self.turn_call(slice, owner, shape, known.as_ref(), asked.as_ref());
            let reply = match known {
                Some(_) => connection.call_recorded(&call).await?,
                None => connection.call(&call).await?,
            };
            let reply = ScriptReply::new(reply)?;
            if reply.number(0)? == 0 {
                shape = reply.shape()?;
                continue;
            }
            if reply.number(1)? == 1 {
                let head = slice.head;
                let outline = outline(&head.app, head.first_target(), &[]);
                let outlined = Outlined::Known(&outline);
                self.list(head.id, head.accepted_at_ms, outlined).await?;
            }
            if known.take().is_some() {
                recorded = Some(reply.array(2)?.recorded()?);
            }
            let Some((_, claim)) = &asked else {
                return Ok((recorded, None));
            };
            let answer = reply.array(3)?;
            match answer.number(0)? {
                1 => return Ok((recorded, Some(Claimed::SliceDone))),
                3 => connection.note_time(&call, answer.number(1)?),
                _ => {
                    connection.note_time(&call, answer.number(3)?);
                    let states = read_states(answer.bytes(1)?, answer.bytes(2)?)?;
                    let states = in_order(&order, claim.recipients, &states)?;
                    return Ok((recorded, Some(Claimed::Each(states))));
                }
            }
        }
        Err(broken("the shape of a job changed between two calls"))
    }

    fn turn_call(
        &self,
        slice: SliceRef<'_>,
        owner: Owner,
        shape: Shape,
        settle: Option<&Settlements>,
        claim: Option<&(Vec<Fingerprint>, Claim<'_>)>,
    ) -> Call<'static> {
        let script = if claim.is_some() { &CLAIM } else { &SETTLE };
        let settled = settle.map(|settle| Groups::of(shape, &settle.recipients));
        let asked = claim.map(|(asked, _)| Groups::of(shape, asked));
        let groups = || settled.iter().chain(&asked);
        let keys = 4 + groups().map(Groups::count).sum::<usize>();
        let bytes = 768 + groups().map(Groups::bytes).sum::<usize>();
        let ids = settle.map_or(0, |settle| settle.ids.len());
        let (args, bytes) = match ids {
            0 => (10 + 2 * keys, bytes),
            ids => (10 + 3 * keys, bytes + ids * ID_BYTES),
        };
        let mut call = Call::new(script, keys, args, bytes);
        let job = self.0.keys.job(slice.head.id);
        call.push(&job.header)
            .push(job.slices())
            .push(job.submissions())
            .push(job.owners());
        groups().for_each(|groups| groups.push_keys(&job, &mut call));
        self.push_slice(&mut call, slice, shape);
        let due_ms = self.0.connection.answer_due_ms(&call);
        call.push(&owner.to_bytes());
        match claim {
            Some((_, claim)) => call.push(millis(claim.lease)),
            None => call.push(""),
        };
        call.push(due_ms);
        match settle.and_then(|settle| settle.last) {
            Some(repeats) => call.push(repeats),
            None => call.push(""),
        };
        match &settled {
            Some(groups) => call.push(groups.count()),
            None => call.push(""),
        };
        if let (Some(groups), Some(settle)) = (&settled, settle) {
            for group in &groups.groups {
                call.push(groups.packed(group))
                    .push(&settle.codes[group.start..group.end]);
            }
        }
        if let Some(groups) = &asked {
            for group in &groups.groups {
                call.push(groups.packed(group));
            }
        }
        if let (Some(groups), Some(settle)) = (&settled, settle)
            && !settle.ids.is_empty()
        {
            for group in &groups.groups {
                call.push(settle.ids_of(&settle.recipients[group.start..group.end]));
            }
        }
        call
    }
}

/// What to write for recipients, sorted, each recipient once.
struct Settlements {
    recipients: Vec<Fingerprint>,
    codes: Vec<u8>,
    /// The ids to keep, as the ledger keeps them, sorted.
    ids: Vec<(Fingerprint, Vec<u8>)>,
    last: Option<u32>,
}

impl Settlements {
    /// The first outcome given counts; an outcome takes precedence over a release, and a release
    /// that keeps a doubt over one that does not. Nothing is written for duplicates: they are the
    /// rest of the entries when the slice ends.
    fn of(settle: Settle<'_>) -> Self {
        let by_fallback = settle.slice.head.fell_from.is_some();
        let code = |outcome: Outcome| match outcome {
            Outcome::Sent if by_fallback => Some(SENT_BY_FALLBACK),
            outcome => outcome.ledger_code(),
        };
        let outcomes = settle
            .outcomes
            .iter()
            .filter_map(|(fingerprint, outcome)| Some((*fingerprint, code(*outcome)?)));
        let doubts = settle.doubted.iter().map(|it| (*it, DOUBT));
        let unused = settle.unused.iter().map(|it| (*it, UNUSED));
        let releases = settle.release.iter().map(|it| (*it, RELEASE));
        let releases = doubts.chain(unused).chain(releases);
        let mut entries: Vec<_> = outcomes.chain(releases).collect();
        entries.sort_by_key(|(fingerprint, _)| *fingerprint);
        entries.dedup_by_key(|(fingerprint, _)| *fingerprint);
        let (recipients, codes) = entries.into_iter().unzip();
        Self {
            recipients,
            codes,
            ids: super::message_ids::records(settle.ids),
            last: settle.last,
        }
    }

    /// The ids of these recipients, one after the other.
    fn ids_of(&self, recipients: &[Fingerprint]) -> Vec<u8> {
        let mut records = Vec::new();
        for recipient in recipients {
            let at = self.ids.binary_search_by_key(recipient, |(it, _)| *it);
            if let Ok(at) = at {
                records.extend_from_slice(&self.ids[at].1);
            }
        }
        records
    }
}

impl ScriptReply {
    fn recorded(&self) -> Result<Recorded, LedgerError> {
        Ok(Recorded {
            stood: self.number(0)? as u32,
            missing: self.number(1)? as u32,
            progress: match self.len() {
                ..=2 => None,
                _ => Some(self.progress(2)?),
            },
        })
    }
}
