//! Decides what an answer means beyond the recipients of its call: whether the target or only the
//! job is parked, for how long and why. The rules are the same for every call, also for calls that
//! list users.
//!
//! A producer can cause a configuration fault: a sender that the backend does not know, a name in
//! the URL that leads nowhere. So the fault stops the job that met it. It counts as the target's
//! fault when a second job meets the same fault while the first is parked and the target has not
//! answered a call normally in between. Where the code may be about the sender alone, only a job of
//! another sender counts. A fault that no job can cause, such as a certificate or a refused login,
//! parks the target at once.

use std::time::Duration;

use tokio::time::Instant;

use super::WAIT_MAX;
use super::context::{Context, Met, TargetRuntime};
use crate::clock::now_ms;
use crate::domain::adapt::Climb;
use crate::domain::directive::{Action, Board, Directive, Subject};
use crate::domain::job_limits::LimitOf;
use crate::domain::outcome::{Class, TargetAnswer};
use crate::ports::{Park, ParkReason, Scope, Store};

impl<S: Store, T> Context<S, T> {
    /// Parks a target or a job for all workers if the answer to a call of the job requires it.
    /// `class`: the class of the call as a whole. `sender`: the sender of the job, if a
    /// configuration fault may be its fault alone.
    pub(crate) async fn heed(
        &self,
        target: &TargetRuntime,
        job: &str,
        sender: Option<&str>,
        class: Class,
        answer: &TargetAnswer,
    ) {
        let now = now_ms();
        let Some((reason, wait)) = parking(target, class, answer, now) else {
            return;
        };
        let park = Park {
            since_ms: now,
            until_ms: now.saturating_add(wait.as_millis() as u64),
            reason,
            code: answer.code.clone().into_owned(),
            text: answer.text.clone().into_owned(),
        };
        // The target was not reached or refused the login: no job can cause that.
        let of_job = reason == ParkReason::Config && answer.reached;
        if !of_job || self.meets(target, job, sender, &park).await == Met::Target {
            let cause = park.clone();
            if self.park(target, park).await {
                self.adapt(target, &cause).await;
            }
        }
    }

    /// Lowers the limit of a target that was just parked, so that it gets no full burst when it
    /// comes back.
    async fn adapt(&self, target: &TargetRuntime, park: &Park) {
        let directive = {
            let board = self.directives();
            let board = board.borrow();
            adapted(&board, target, park)
        };
        let Some(directive) = directive else { return };
        tracing::info!(
            target.name = target.name,
            "the limit of target {} is adapted: {park}",
            target.name
        );
        self.put_directive(&directive).await;
    }

    /// Parks the job that met a configuration fault, unless it is the target's fault.
    async fn meets(
        &self,
        target: &TargetRuntime,
        job: &str,
        sender: Option<&str>,
        park: &Park,
    ) -> Met {
        let directive = Directive {
            subject: Subject::new(Scope::Job, job),
            action: Action::Park {
                target: target.name.clone(),
                code: park.code.clone(),
                sender: sender.map(ToOwned::to_owned),
            },
            reason: Some(park.to_string()),
            author: None,
            since_ms: park.since_ms,
            until_ms: Some(park.until_ms),
        };
        let met = Fault {
            target: &target.name,
            job,
            sender,
            park,
        };
        let answered = target.health.answered_ms();
        let believed = |board: &Board| is_believed(board, &met, answered);
        let met = self.park_job(&directive, believed).await;
        if met == (Met::Job { moved: true }) {
            tracing::error!(
                job.id = job,
                target.name = target.name,
                code = park.code,
                "a configuration fault: the job is parked for {} s, none of its recipients is \
                 dead-lettered, and other jobs go on: {park}",
                target.config_fault_pause.as_secs(),
            );
        }
        met
    }
}

/// How the limit of a target goes on after a park; nothing if it has no limit, or if another worker
/// has lowered it for the same cause.
fn adapted(board: &Board, target: &TargetRuntime, park: &Park) -> Option<Directive> {
    let now = park.since_ms;
    board.rate(LimitOf::Target, &target.name, target.limit, now)?;
    let before = board.adapted(&target.name, now);
    if before.is_some_and(|climb| climb.from_ms > now) {
        return None;
    }
    let climb = match park.reason {
        ParkReason::Throttled => {
            Climb::halved(before.as_ref(), now, park.until_ms, target.adapt_interval)
        }
        ParkReason::Breaker | ParkReason::Unreachable => {
            Climb::warming(park.until_ms, target.warm_up?)
        }
        ParkReason::Config | ParkReason::Operator => return None,
    };
    Some(Directive {
        subject: Subject::new(Scope::Target, &*target.name),
        action: Action::Adapt { climb },
        reason: Some(park.to_string()),
        author: None,
        since_ms: now,
        until_ms: Some(climb.ends_ms()),
    })
}

/// A configuration fault that a job meets.
struct Fault<'a> {
    target: &'a str,
    job: &'a str,
    /// If it may be the fault of this sender alone.
    sender: Option<&'a str>,
    park: &'a Park,
}

/// Whether a fault is the target's: another job, of another sender where that matters, has met the
/// same fault, and the target has not answered a call normally since.
fn is_believed(board: &Board, fault: &Fault<'_>, answered_ms: u64) -> bool {
    let Fault { park, .. } = fault;
    let met = board.parked_jobs(fault.target, park.since_ms);
    let mut same = met.filter(|(_, code, _)| *code == park.code);
    same.any(|(met, _, sender)| {
        let is_other = match (sender, fault.sender) {
            (Some(one), Some(other)) => one != other,
            _ => met.subject.name != fault.job,
        };
        is_other && met.since_ms > answered_ms
    })
}

/// Why and for how long to park the target or the job; nothing if it may continue.
fn parking(
    target: &TargetRuntime,
    class: Class,
    answer: &TargetAnswer,
    now_ms: u64,
) -> Option<(ParkReason, Duration)> {
    let (health, now) = (&target.health, Instant::now());
    match class {
        Class::Done | Class::Permanent => {
            health.succeeded(now_ms);
            None
        }
        // The target answers, so this is no failure; the answer itself parks it.
        Class::Config => {
            if answer.reached {
                health.answers();
            }
            Some((ParkReason::Config, target.config_fault_pause))
        }
        Class::Throttled => {
            health.answers();
            let wait = health.throttled(now, answer.retry_after);
            Some((ParkReason::Throttled, wait))
        }
        Class::Transient if !answer.reached => {
            let wait = health.failed(now, now_ms).unwrap_or(WAIT_MAX);
            Some((ParkReason::Unreachable, wait))
        }
        Class::Transient | Class::Uncertain => {
            let broken = health.failed(now, now_ms);
            let asked = answer.retry_after.filter(|_| class == Class::Transient);
            match asked.filter(|asked| !asked.is_zero() && Some(*asked) > broken) {
                Some(asked) => Some((ParkReason::Throttled, asked)),
                None => broken.map(|wait| (ParkReason::Breaker, wait)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn fault(code: &str) -> Park {
        Park {
            since_ms: NOW,
            until_ms: NOW + 60_000,
            reason: ParkReason::Config,
            code: code.to_owned(),
            text: "no".to_owned(),
        }
    }

    fn parked(job: &str, code: &str, sender: Option<&str>, since_ms: u64) -> Directive {
        Directive {
            subject: Subject::new(Scope::Job, job),
            action: Action::Park {
                target: "im".to_owned(),
                code: code.to_owned(),
                sender: sender.map(ToOwned::to_owned),
            },
            reason: None,
            author: None,
            since_ms,
            until_ms: Some(since_ms + 60_000),
        }
    }

    /// Promise 10: a mistake of one producer stops only its own job.
    #[test]
    fn a_configuration_fault_is_believed_when_a_second_job_meets_it() {
        let board = Board::new([parked("one", "404", None, NOW - 1000)]);
        let on = |board: &Board, target: &str, job: &str, code: &str, answered_ms| {
            let met = Fault {
                target,
                job,
                sender: None,
                park: &fault(code),
            };
            is_believed(board, &met, answered_ms)
        };
        let believed =
            |job: &str, code: &str, answered_ms| on(&board, "im", job, code, answered_ms);
        assert!(!believed("one", "404", 0), "the same job again");
        assert!(believed("two", "404", 0));
        assert!(!believed("two", "403", 0), "another fault");
        assert!(
            !believed("two", "404", NOW - 500),
            "others were answered well"
        );
        assert!(believed("two", "404", NOW - 1001), "that was before");
        assert!(!on(&board, "crm", "two", "404", 0));
        let long_ago = Board::new([parked("one", "404", None, NOW - 60_000)]);
        assert!(!on(&long_ago, "im", "two", "404", 0));
    }

    /// A sender that may not send meets the same fault with each of its jobs.
    #[test]
    fn a_fault_that_a_sender_can_cause_is_believed_when_another_sender_meets_it() {
        let believed = |known: Option<&str>, sender: Option<&str>| {
            let board = Board::new([parked("one", "403", known, NOW - 1000)]);
            let met = Fault {
                target: "im",
                job: "two",
                sender,
                park: &fault("403"),
            };
            is_believed(&board, &met, 0)
        };
        assert!(!believed(Some("news"), Some("news")));
        assert!(believed(Some("news"), Some("sales")));
        // A worker of an earlier version did not note the sender.
        assert!(believed(None, Some("news")));
        assert!(believed(Some("news"), None));
    }
}
