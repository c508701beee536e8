//! What an answer means for the target as a whole: whether it is parked, for how long and why. The same
//! for every call, those that list users included.

use std::time::{Duration, Instant};

use super::context::{Context, Store, TargetRuntime, now_ms};
use super::deliver::WAIT_MAX;
use crate::domain::outcome::{Answer, Class};
use crate::ports::{Park, ParkReason};

impl<S: Store, T> Context<S, T> {
    /// Parks a target if the answer to a call asks for it, for all workers. `class`: of the call as a
    /// whole.
    pub(super) async fn heed(&self, target: &TargetRuntime, class: Class, answer: &Answer) {
        let Some((reason, wait)) = parking(target, class, answer) else {
            return;
        };
        let since_ms = now_ms();
        let park = Park {
            since_ms,
            until_ms: since_ms.saturating_add(wait.as_millis() as u64),
            reason,
            code: answer.code.clone().into_owned(),
            text: answer.text.clone().into_owned(),
        };
        if self.park(target, park).await && reason == ParkReason::Config {
            tracing::error!(
                target.name, code = %answer.code,
                "configuration fault, the target is parked and nobody is dead-lettered: {}",
                answer.text
            );
        }
    }
}

/// Why and for how long a target is to be parked; nothing if it may go on.
fn parking(
    target: &TargetRuntime,
    class: Class,
    answer: &Answer,
) -> Option<(ParkReason, Duration)> {
    let broken = match class {
        Class::Done | Class::Permanent => {
            target.breaker.succeeded();
            None
        }
        // It answers, and is left alone for what it says.
        Class::Config | Class::Throttled => None,
        Class::Transient | Class::Uncertain => target.breaker.failed(Instant::now()),
    };
    match class {
        Class::Config => Some((ParkReason::Config, target.config_park)),
        Class::Throttled => {
            let wait = answer.retry_after.unwrap_or(WAIT_MAX);
            Some((ParkReason::Throttled, wait))
        }
        Class::Transient if !answer.reached => {
            Some((ParkReason::Unreachable, broken.unwrap_or(WAIT_MAX)))
        }
        Class::Transient if answer.retry_after > broken => {
            answer.retry_after.map(|wait| (ParkReason::Throttled, wait))
        }
        Class::Transient | Class::Uncertain => broken.map(|wait| (ParkReason::Breaker, wait)),
        Class::Done | Class::Permanent => None,
    }
}
