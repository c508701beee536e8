//! Logs calls at `debug`, with the first bytes of the answer: a sample of them, so that a fast
//! target does not fill the disk.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::domain::outcome::{TargetAnswer, Verdict};
use crate::domain::printable::on_one_line;
use crate::ports::{HttpReply, SendError};

/// Calls of one target that are logged in one second.
const EACH_SECOND: u32 = 5;

/// Bytes of an answer that are shown.
const SHOWN: usize = 200;

/// The calls of one target that were logged lately.
#[derive(Default)]
pub struct CallLog(Mutex<Second>);

#[derive(Default)]
struct Second {
    began: Option<Instant>,
    logged: u32,
    left_out: u64,
}

impl CallLog {
    /// Notes a call, and logs it if it belongs to the sample.
    pub(crate) fn note(
        &self,
        target: &str,
        recipients: usize,
        took: Duration,
        reply: &Result<HttpReply, SendError>,
        verdict: &Verdict,
    ) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let Some(left_out) = self.turn(Instant::now()) else {
            return;
        };
        let (status, body) = match reply {
            Ok(reply) => (reply.status, shown(&reply.body)),
            Err(error) => (0, error.to_string()),
        };
        let TargetAnswer { class, code, .. } = verdict.of(0);
        tracing::debug!(
            target.name = target, recipients, class = class.as_str(), code = %code, status,
            took_ms = took.as_millis() as u64, left_out, "call: {body}"
        );
    }

    /// The number of calls that were not logged before this one; none if this one is not logged
    /// either.
    fn turn(&self, now: Instant) -> Option<u64> {
        let mut second = self.0.lock();
        let is_over = |began: Instant| now.duration_since(began) >= Duration::from_secs(1);
        if second.began.is_none_or(is_over) {
            second.began = Some(now);
            second.logged = 0;
        }
        if second.logged >= EACH_SECOND {
            second.left_out += 1;
            return None;
        }
        second.logged += 1;
        Some(std::mem::take(&mut second.left_out))
    }
}

fn shown(body: &[u8]) -> String {
    let first = String::from_utf8_lossy(&body[..body.len().min(SHOWN)]);
    let rest = if body.len() > SHOWN { " ..." } else { "" };
    format!("{}{rest}", on_one_line(&first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_target_is_sampled_and_the_rest_is_counted() {
        let log = CallLog::default();
        let now = Instant::now();
        let logged = (0..100).filter(|_| log.turn(now).is_some()).count();
        assert_eq!(logged, EACH_SECOND as usize);
        let later = now + Duration::from_secs(1);
        assert_eq!(log.turn(later), Some(100 - u64::from(EACH_SECOND)));
        assert_eq!(log.turn(later), Some(0));
    }

    #[test]
    fn an_answer_is_shown_on_one_line_and_in_part() {
        assert_eq!(shown(b"a\nb"), on_one_line("a\nb"));
        let long = shown(&[b'x'; 300]);
        assert_eq!(long.len(), SHOWN + 4);
    }
}
