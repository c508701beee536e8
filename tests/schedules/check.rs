//! Checks the state after a schedule has come to rest.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use fanwise::domain::announce::{DeadLetter, DeadRecipient};
use fanwise::domain::ids::Fingerprinter;
use fanwise::domain::outcome::{OnUncertain, Outcome};
use fanwise::ports::{
    ClaimState, JobState, Ledger as _, RetainedMessage, RetainedQueue, RetainedQueues as _,
};

use crate::play::{SECRET, World};
use crate::system::SECOND;

/// Every fault, in words.
pub(crate) async fn check(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    if !world.broker.is_empty() {
        wrong.push("something is left in a queue, on the ladder or unacked".to_owned());
    }
    let rejected = |message: RetainedMessage| {
        wrong.push(format!("rejected: {}", message.headers["fanwise-reason"]));
        ControlFlow::Continue(())
    };
    world
        .broker
        .read(RetainedQueue::Rejected, rejected)
        .await
        .unwrap();
    let letters = letters(world).await;
    for job in 0..world.plan.jobs() {
        for what in check_job(world, job, &letters).await {
            wrong.push(format!("job {job}: {what}"));
        }
    }
    wrong
}

type Letters = BTreeMap<(String, String), DeadRecipient>;

/// The last dead letter of each recipient, which is the one that counts.
async fn letters(world: &World) -> Letters {
    let mut letters = Letters::new();
    let note = |message: RetainedMessage| {
        let letter: DeadLetter = serde_json::from_slice(&message.body).unwrap();
        for dead in letter.recipients {
            letters.insert((letter.job.clone(), dead.recipient.clone()), dead);
        }
        ControlFlow::Continue(())
    };
    world.broker.read(RetainedQueue::Dead, note).await.unwrap();
    letters
}

async fn check_job(world: &World, job: usize, letters: &Letters) -> Vec<String> {
    let mut wrong = Vec::new();
    let id = world.id(job);
    let Some(record) = world.store.job(id).await.unwrap() else {
        return vec!["the ledger does not know it".to_owned()];
    };
    let accounts = record.accounts;
    if record.state != JobState::Completed || record.pending > 0 {
        wrong.push(format!("{:?}, {accounts:?}", record.state));
    }
    if record.rebuilt || record.lost > 0 {
        wrong.push("it was rebuilt or abandoned".to_owned());
    }
    let lists = world.lists(job);
    let entries: usize = lists.iter().map(|list| list.len()).sum();
    let users: BTreeSet<&String> = lists.iter().copied().flatten().collect();
    if accounts.total != entries as u64 || accounts.settled() != accounts.total {
        wrong.push(format!("{entries} entries, {accounts:?}"));
    }
    if accounts.duplicate != (entries - users.len()) as u64 {
        let recipients = users.len();
        wrong.push(format!("{recipients} recipients, {accounts:?}"));
    }
    let audit = world.store.audit(&record).await.unwrap();
    wrong.extend(record.differences(&audit));
    if audit.claimed > 0 {
        wrong.push(format!("{} claims are left", audit.claimed));
    }

    let fingerprinter = Fingerprinter::new(SECRET, id);
    let log = world.system.log().accepted.clone();
    let mut by_second = 0;
    for user in users {
        let asked = [fingerprinter.fingerprint(user)];
        let states = world.store.peek(&record, &asked).await.unwrap();
        let ClaimState::Settled(outcome) = states[0] else {
            wrong.push(format!("{user} has no outcome: {:?}", states[0]));
            continue;
        };
        let key = (id.to_string(), user.clone());
        let at_second = (format!("{id}{SECOND}"), user.clone());
        let [first, second] = [&key, &at_second].map(|key| log.get(key).copied().unwrap_or(0));
        let accepted = first + second;
        if first > 0 && second > 0 {
            wrong.push(format!("{user} was accepted by both targets"));
        }
        by_second += u64::from(second > 0 && outcome == Outcome::Sent);
        let refused = world.system.log().refused.contains(&key);
        let says = match outcome {
            Outcome::Sent => accepted > 0,
            Outcome::Failed | Outcome::Cancelled | Outcome::Expired | Outcome::Capped => {
                accepted == 0
            }
            Outcome::Uncertain => true,
            Outcome::Duplicate => false,
        };
        if !says {
            wrong.push(format!(
                "{user} ended {}, and the system accepted it {accepted} times (refused: {refused})",
                outcome.as_str()
            ));
        }
        if accepted > 1 && world.plan.on_uncertain != OnUncertain::Retry {
            wrong.push(format!("{user} was accepted {accepted} times"));
        }
        wrong.extend(check_letter(world, user, outcome, letters.get(&key)));
    }
    if record.sent_by_fallback != by_second {
        let counted = record.sent_by_fallback;
        wrong.push(format!(
            "the second target reached {by_second}, counted {counted}"
        ));
    }
    wrong
}

fn check_letter(
    world: &World,
    user: &str,
    outcome: Outcome,
    letter: Option<&DeadRecipient>,
) -> Option<String> {
    let told = letter.map(|it| it.outcome);
    let right = match outcome {
        Outcome::Failed => told == Some(Outcome::Failed),
        Outcome::Uncertain if world.plan.on_uncertain == OnUncertain::Drop => true,
        // The dead letter of a process that stalled beyond its lease may come last.
        Outcome::Uncertain if world.has_stalled() => told.is_some(),
        Outcome::Uncertain => told == Some(Outcome::Uncertain),
        // A process died between dead letter and record, and a later call succeeded.
        _ => told.is_none() || world.is_unclean(),
    };
    if !right {
        let outcome = outcome.as_str();
        return Some(format!(
            "{user} ended {outcome}, and its dead letter says {told:?}"
        ));
    }
    let silent = letter.is_some_and(|it| it.code.is_empty());
    silent.then(|| format!("the dead letter of {user} has no reason"))
}
