//! Recalls the messages of a job, one call for each, within the limits of the target (`units`). While
//! the target is parked or paused, nothing is recalled.
//!
//! The ledger notes the result of some messages at a time. A run that ends early, or is killed, is
//! right to repeat: it goes on with the messages that have no result. A message whose call was made
//! and not noted is recalled once more, which changes nothing at the target.

mod units;

use std::collections::VecDeque;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::call::authorised;
use super::context::{Context, TargetRuntime};
use crate::clock::now_ms;
use crate::domain::directive::{Kind, Scope};
use crate::domain::ids::{Fingerprint, JobId};
use crate::domain::lane::Priority;
use crate::domain::message_id::{KeepsIds, KeptId, RecallState};
use crate::domain::outcome::{Class, TargetAnswer};
use crate::ports::{JobRecord, LedgerError, Recall, Recalled, Request, Store, Transport};
use crate::service::api::RecallResult;

/// Calls at a time, and results that are noted together.
const AT_ONCE: usize = 20;

/// After so many failures in a row, the run ends: the target does not answer.
const FAILURES_MAX: usize = 20;

/// Why the messages of a job cannot be recalled.
#[derive(Debug)]
pub struct NoRecall(pub String);

/// What can be recalled of a job.
pub struct Recallable<'a> {
    record: &'a JobRecord,
    keeps: &'a KeepsIds,
    first: &'a TargetRuntime,
    second: Option<&'a TargetRuntime>,
}

/// One message to recall.
struct Due {
    fingerprint: Fingerprint,
    id: KeptId,
}

impl<'a> Recallable<'a> {
    /// Finds out whether the messages of a job can be recalled.
    pub fn of<S: Store, T: Transport>(
        context: &'a Context<S, T>,
        record: &'a JobRecord,
    ) -> Result<Self, NoRecall> {
        let impossible = |what: String| Err(NoRecall(what));
        let Some(keeps) = &record.keeps_ids else {
            return impossible(match record.keep_ids {
                true => "the ledger does not know the sender of its messages, which a recall must name: it \
                         lost the record of the job, or the first list of the job kept no ids"
                    .to_owned(),
                false => "the job keeps no ids of its messages; only a job that is submitted with \
                          \"keep_ids\": true can be recalled"
                    .to_owned(),
            });
        };
        let target = |name: &String| match context.targets.get(name) {
            Some(target) => match target.target.recall() {
                Ok(_) => Ok(&**target),
                Err(why) => Err(format!("target {name:?}: {why}")),
            },
            None => Err(format!("target {name:?} is not configured any more")),
        };
        let first = match target(&record.target) {
            Ok(first) => first,
            Err(what) => return impossible(what),
        };
        // Without it, the messages of the second target stay.
        let second = record.fallback.as_ref().and_then(|name| target(name).ok());
        Ok(Self {
            record,
            keeps,
            first,
            second,
        })
    }

    fn target(&self, id: &KeptId) -> Option<&'a TargetRuntime> {
        match id.by_fallback {
            true => self.second,
            false => Some(self.first),
        }
    }

    /// Counts the messages of the job, without any call.
    pub async fn count<S: Store>(&self, store: &S) -> Result<RecallResult, LedgerError> {
        let mut result = RecallResult::of(self.record);
        let mut from = Some(0);
        while let Some(place) = from {
            let page = store.kept_page(self.record, place).await?;
            for (_, id) in &page.ids {
                result.messages += 1;
                match id.recall {
                    RecallState::Recalled => result.recalled += 1,
                    RecallState::Refused => result.refused += 1,
                    RecallState::No if self.target(id).is_none() => result.elsewhere += 1,
                    RecallState::No => result.left += 1,
                }
            }
            from = page.next;
        }
        result.without_id = self.record.accounts.sent.saturating_sub(result.messages);
        Ok(result)
    }

    /// Recalls what is left, until this time. `result` is the count of what was there before.
    pub async fn run<S: Store, T: Transport>(
        &self,
        context: &Context<S, T>,
        mut result: RecallResult,
        until: Instant,
    ) -> Result<RecallResult, LedgerError> {
        let (mut from, mut failures) = (Some(0), 0);
        let left_before = result.left;
        while let Some(place) = from {
            let page = context.store.kept_page(self.record, place).await?;
            let due = page.ids.into_iter().filter_map(|(fingerprint, id)| {
                let is_due = id.recall == RecallState::No && self.target(&id).is_some();
                is_due.then_some(Due { fingerprint, id })
            });
            let mut due: VecDeque<_> = due.collect();
            while let Some(first) = due.front() {
                // One target at a time: a page of two targets alternates seldom.
                let (by_fallback, Some(target)) = (first.id.by_fallback, self.target(&first.id))
                else {
                    break;
                };
                let same = due.iter().take_while(|it| it.id.by_fallback == by_fallback);
                let most = same.count().min(AT_ONCE);
                if let Some(why) = held_up(context, target) {
                    result.stop_because(why);
                    return Ok(result);
                }
                let Ok(recall) = target.target.recall() else {
                    break;
                };
                let priority = self.record.priority.unwrap_or(Priority::Normal);
                let units = units::lease(context, target, recall, priority, most, until);
                let Some(units) = units.await? else {
                    if result.left == left_before {
                        // The limits have granted nothing yet.
                        result.retry_after_seconds = Some(1);
                    }
                    return Ok(result);
                };
                let some: Vec<_> = due.drain(..units).collect();
                let calls = some.iter().map(|due| self.call(context, target, due));
                let answers = join_all(calls).await;
                let noted = some.iter().zip(&answers).filter_map(|(due, answer)| {
                    let state = match answer.class {
                        Class::Done => RecallState::Recalled,
                        Class::Permanent => RecallState::Refused,
                        _ => return None,
                    };
                    Some((due.fingerprint, state))
                });
                let noted: Vec<_> = noted.collect();
                context.store.note_recalls(self.record.job, &noted).await?;
                for answer in &answers {
                    failures = match result.add(answer) {
                        true => 0,
                        false => failures + 1,
                    };
                }
                let stops = |answer: &&TargetAnswer| {
                    matches!(answer.class, Class::Throttled | Class::Config)
                };
                let stop = answers.iter().find(stops);
                let silent = answers.last().filter(|_| failures >= FAILURES_MAX);
                if let Some(answer) = stop.or(silent) {
                    if answer.class == Class::Throttled {
                        // The account is throttled as a whole: sends wait too.
                        let job = self.record.job.to_string();
                        context.heed(target, &job, None, answer.class, answer).await;
                    }
                    result.stop(answer);
                    return Ok(result);
                }
            }
            from = page.next;
        }
        Ok(result)
    }

    async fn call<S: Store, T: Transport>(
        &self,
        context: &Context<S, T>,
        target: &TargetRuntime,
        due: &Due,
    ) -> TargetAnswer {
        let Ok(recall) = target.target.recall() else {
            return TargetAnswer::new(Class::Permanent, "no_recall", "the target has no recall");
        };
        let Some(request) = self.request(recall, self.record.job, &due.id) else {
            let text = "what the recall must name was not kept";
            return TargetAnswer::new(Class::Permanent, "unknown", text);
        };
        let sign = |request: &mut _, signing| target.target.sign(request, signing);
        let called = authorised(
            &context.transport,
            target.target.login(),
            &target.keyring,
            target.call_timeout,
            sign,
            || request,
        );
        match called.await {
            Ok((Ok(reply), _)) => recall.read_reply(&reply),
            Ok((Err(error), _)) => TargetAnswer::from(&error),
            Err(answer) => answer,
        }
    }

    fn request(&self, recall: &dyn Recall, job: JobId, id: &KeptId) -> Option<Request> {
        recall.request(&Recalled {
            job,
            sender: self.keeps.sender.as_deref(),
            addressed: self.keeps.addressed,
            recipient: &id.recipient,
            message: &id.message,
        })
    }
}

/// Why nothing is to be sent to the target now, if so; and for how many seconds, if that is known.
fn held_up<S: Store, T>(
    context: &Context<S, T>,
    target: &TargetRuntime,
) -> Option<(String, Option<u64>)> {
    let (name, now) = (&target.name, now_ms());
    if let Some(park) = context.park_of(name) {
        let left = park.until_ms.saturating_sub(now).div_ceil(1000);
        return Some((format!("target {name:?} is parked: {park}"), Some(left)));
    }
    let directives = context.directives();
    let board = directives.borrow();
    let pause = board.find(Scope::Target, name, Kind::Pause, now)?;
    Some((format!("target {name:?} is {pause}"), None))
}
