//! Decides what an answer means beyond the recipients of its call: whether the target or only the
//! job is parked, for how long and why. The rules are the same for every call, also for calls that
//! list users.
//!
//! A producer can cause a configuration fault: a sender that the backend does not know, a name in
//! the URL that leads nowhere. So the fault stops the job that met it. It counts as the target's
//! fault when a second job meets the same fault while the first is parked and the target has not
//! answered a call normally in between. A fault that no job can cause, such as a certificate or a
//! refused login, parks the target at once.

use std::time::Duration;

use tokio::time::Instant;

use super::WAIT_MAX;
use super::context::{Context, Met, TargetRuntime};
use crate::clock::now_ms;
use crate::domain::directive::{Action, Board, Directive, Subject};
use crate::domain::outcome::{Class, TargetAnswer};
use crate::ports::{Park, ParkReason, Scope, Store};

impl<S: Store, T> Context<S, T> {
    /// Parks a target or a job for all workers if the answer to a call of the job requires it.
    /// `class`: the class of the call as a whole.
    pub(crate) async fn heed(
        &self,
        target: &TargetRuntime,
        job: &str,
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
        if !of_job || self.meets(target, job, &park).await == Met::Target {
            self.park(target, park).await;
        }
    }

    /// Parks the job that met a configuration fault, unless it is the target's fault.
    async fn meets(&self, target: &TargetRuntime, job: &str, park: &Park) -> Met {
        let directive = Directive {
            subject: Subject::new(Scope::Job, job),
            action: Action::Park {
                target: target.name.clone(),
                code: park.code.clone(),
            },
            reason: Some(park.to_string()),
            author: None,
            since_ms: park.since_ms,
            until_ms: Some(park.until_ms),
        };
        let answered = target.health.answered_ms();
        let believed = |board: &Board| is_believed(board, &target.name, job, park, answered);
        let met = self.park_job(&directive, believed).await;
        if met == (Met::Job { moved: true }) {
            tracing::error!(
                job.id = job,
                target.name = target.name,
                code = park.code,
                "a configuration fault: the job is parked for {} s, none of its recipients is \
                 dead-lettered, and other jobs go on: {}",
                target.config_fault_pause.as_secs(),
                park.text
            );
        }
        met
    }
}

/// Whether the fault that a job meets is the target's: another job has met the same fault, and the
/// target has not answered a call normally since.
fn is_believed(board: &Board, target: &str, job: &str, park: &Park, answered_ms: u64) -> bool {
    let met = board.parked_jobs(target, park.since_ms);
    let mut others = met.filter(|(met, code)| met.subject.name != job && *code == park.code);
    others.any(|(met, _)| met.since_ms > answered_ms)
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
        Class::Config => Some((ParkReason::Config, target.config_fault_pause)),
        Class::Throttled => {
            let wait = health.throttled(now, answer.retry_after);
            Some((ParkReason::Throttled, wait))
        }
        Class::Transient if !answer.reached => {
            let wait = health.failed(now).unwrap_or(WAIT_MAX);
            Some((ParkReason::Unreachable, wait))
        }
        Class::Transient | Class::Uncertain => {
            let broken = health.failed(now);
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

    fn parked(job: &str, code: &str, since_ms: u64) -> Directive {
        Directive {
            subject: Subject::new(Scope::Job, job),
            action: Action::Park {
                target: "im".to_owned(),
                code: code.to_owned(),
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
        let board = Board::new([parked("one", "404", NOW - 1000)]);
        let believed = |job: &str, code: &str, answered_ms| {
            is_believed(&board, "im", job, &fault(code), answered_ms)
        };
        assert!(!believed("one", "404", 0), "the same job again");
        assert!(believed("two", "404", 0));
        assert!(!believed("two", "403", 0), "another fault");
        assert!(
            !believed("two", "404", NOW - 500),
            "others were answered well"
        );
        assert!(believed("two", "404", NOW - 1001), "that was before");
        assert!(!is_believed(&board, "crm", "two", &fault("404"), 0));
        let long_ago = Board::new([parked("one", "404", NOW - 60_000)]);
        assert!(!is_believed(&long_ago, "im", "two", &fault("404"), 0));
    }
}
