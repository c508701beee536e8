//! Resolves uncertain recipients: an operator found out that they got the message, or that they did
//! not, or has it sent again.
//!
//! The ledger changes first, then the letters, so that a run that is killed in between is right to
//! repeat: it finds the same recipients and changes the letters that are left.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use super::{
    ACCEPT_PATIENCE, DeadError, LedgerView, RECIPIENTS_ASKED, Redrive, Redriven, all, redrive,
};
use crate::domain::ids::Fingerprinter;
use crate::domain::lane::Priority;
use crate::domain::letters::{Left, LetterFilter, read_letter, with_outcome, without};
use crate::domain::outcome::Outcome;
use crate::ports::{
    ClaimState, JobRecord, Ledger, LedgerError, Publisher, Resolution, RetainedEdit,
    RetainedMessage, RetainedQueue, RetainedQueues, Steering,
};
use crate::service::admission::Admission;

/// What became of uncertain recipients, or is to become of them.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    JsonSchema,
    IntoStaticStr,
    VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum ResolveAs {
    /// They got the message.
    Sent,
    /// They did not get it; their dead letters stay and can be redriven.
    Failed,
    /// They get it again, in a new job, and perhaps twice.
    Resend,
}

impl ResolveAs {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What a resolution did.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Resolved {
    /// Recipients that were named, or all uncertain ones with a dead letter.
    pub recipients: u64,
    /// Recipients that were uncertain and are no longer, or that are sent to again.
    pub changed: u64,
    /// The new jobs of a resend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redriven: Option<Redriven>,
}

/// Resolves uncertain recipients of a job: the named ones, or all that have a dead letter.
pub async fn resolve<B: RetainedQueues, P: Publisher, A: Admission>(
    broker: &B,
    publisher: &P,
    admission: &A,
    secret: &str,
    record: &JobRecord,
    to: ResolveAs,
    named: Option<BTreeSet<String>>,
) -> Result<Resolved, DeadError>
where
    A::Store: Steering,
{
    let to = match to {
        ResolveAs::Sent => Resolution::Sent,
        ResolveAs::Failed => Resolution::Failed,
        ResolveAs::Resend => {
            let again = send_again(broker, publisher, admission, secret, record, named);
            return again.await;
        }
    };
    let names = match named {
        Some(named) => named,
        None => {
            let wanted = LetterFilter::uncertain(record.job, None);
            let rows = all(broker, &wanted, false).await?;
            rows.into_iter().map(|row| row.recipient).collect()
        }
    };
    let view = LedgerView {
        store: admission.store(),
        secret,
    };
    let changed = settle(&view, record, &names, to).await?;
    let settled = settled(&view, record, &names, to).await?;
    correct_letters(broker, record, &settled, to).await?;
    Ok(Resolved {
        recipients: names.len() as u64,
        changed,
        redriven: None,
    })
}

async fn send_again<B: RetainedQueues, P: Publisher, A: Admission>(
    broker: &B,
    publisher: &P,
    admission: &A,
    secret: &str,
    record: &JobRecord,
    named: Option<BTreeSet<String>>,
) -> Result<Resolved, DeadError> {
    let again = Redrive {
        wanted: LetterFilter::uncertain(record.job, named),
        uncertain: true,
        dry_run: false,
        purge: true,
        accept_within: ACCEPT_PATIENCE,
        priority: record.priority.unwrap_or(Priority::Normal),
    };
    let redriven = redrive(broker, publisher, admission, secret, &again).await?;
    Ok(Resolved {
        recipients: redriven.recipients + redriven.redriven_before + redriven.contradicted,
        changed: redriven.recipients,
        redriven: Some(redriven),
    })
}

/// Changes the outcomes in the ledger. Returns how many it changed.
async fn settle<S: Ledger + Steering>(
    view: &LedgerView<'_, S>,
    record: &JobRecord,
    names: &BTreeSet<String>,
    to: Resolution,
) -> Result<u64, LedgerError> {
    let fingerprinter = Fingerprinter::new(view.secret, record.job);
    let all: Vec<_> = names
        .iter()
        .map(|name| fingerprinter.fingerprint(name))
        .collect();
    let mut count = 0;
    for some in all.chunks(RECIPIENTS_ASKED) {
        let changed = view.store.resolve(record, some, to).await?;
        count += changed.iter().filter(|changed| **changed).count() as u64;
    }
    Ok(count)
}

/// The recipients that have this outcome now.
async fn settled<S: Ledger>(
    view: &LedgerView<'_, S>,
    record: &JobRecord,
    names: &BTreeSet<String>,
    to: Resolution,
) -> Result<BTreeSet<String>, LedgerError> {
    let outcome = outcome(to);
    let states = view
        .states(record, names.iter().map(String::as_str))
        .await?;
    let has = |(_, state): &(&String, ClaimState)| *state == ClaimState::Settled(outcome);
    let settled = names.iter().zip(states).filter(has);
    Ok(settled.map(|(name, _)| name.clone()).collect())
}

fn outcome(to: Resolution) -> Outcome {
    match to {
        Resolution::Sent => Outcome::Sent,
        Resolution::Failed => Outcome::Failed,
    }
}

/// Removes the letters of recipients that got the message, and changes the others: the ledger
/// forgets the job one day, and the letters must not tell of a doubt then.
async fn correct_letters<B: RetainedQueues>(
    broker: &B,
    record: &JobRecord,
    names: &BTreeSet<String>,
    to: Resolution,
) -> Result<(), DeadError> {
    if names.is_empty() {
        return Ok(());
    }
    let job = record.job.to_string();
    let decide = |message: RetainedMessage| {
        let Some(letter) = read_letter(&message.body).filter(|letter| letter.job == job) else {
            return RetainedEdit::Keep;
        };
        let left = match to {
            Resolution::Sent => without(&message.body, &letter, |dead| {
                names.contains(&dead.recipient)
            }),
            Resolution::Failed => {
                let changed = |name: &str| names.contains(name);
                let changed = with_outcome(&message.body, changed, Outcome::Failed);
                changed.map_or(Left::All, Left::Some)
            }
        };
        match left {
            Left::All => RetainedEdit::Keep,
            Left::Nothing => RetainedEdit::Remove,
            Left::Some(body) => RetainedEdit::Replace(body.into()),
        }
    };
    broker.edit(RetainedQueue::Dead, decide).await?;
    Ok(())
}
