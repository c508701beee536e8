//! The port that carries requests to targets.

use std::future::Future;
use std::time::Duration;

pub use fanwise_net::http::{BAD_URL, CERTIFICATE, HttpReply, PRIVATE_ADDRESS, Request, SendError};

use crate::domain::outcome::{Class, TargetAnswer};

/// Carries requests to backends: one request, one answer, no retries, no redirects.
pub trait Transport: Send + Sync + 'static {
    /// `Ok`: a whole reply was read. The transport never repeats a request: only the worker knows
    /// whether that is safe.
    fn send(
        &self,
        request: Request,
        timeout: Duration,
    ) -> impl Future<Output = Result<HttpReply, SendError>> + Send;

    /// Closes connections that were idle for too long. Called now and then.
    fn tidy(&self) {}
}

/// The meaning of a missing reply for the recipients of the call.
impl From<&SendError> for TargetAnswer {
    fn from(error: &SendError) -> Self {
        let (class, code, what) = match error {
            // No later attempt helps, and the recipients are not at fault.
            SendError::NotSent { what, code } if error.is_lasting() => (Class::Config, code, what),
            SendError::NotSent { what, code } => (Class::Transient, code, what),
            SendError::Unknown { what, code } => (Class::Uncertain, code, what),
        };
        let answer = Self::new(class, *code, what.clone());
        match error {
            SendError::NotSent { .. } => answer.unreached(),
            SendError::Unknown { .. } => answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_certainly_did_not_leave_can_be_sent_again_and_the_rest_is_in_doubt() {
        let class = |error: SendError| TargetAnswer::from(&error).class;
        let what = || "words".to_owned();
        for (code, expected) in [
            ("refused", Class::Transient),
            ("dns", Class::Transient),
            (CERTIFICATE, Class::Config),
            (BAD_URL, Class::Config),
            (PRIVATE_ADDRESS, Class::Config),
        ] {
            let error = SendError::NotSent { what: what(), code };
            assert_eq!(class(error), expected, "{code}");
        }
        let code = "closed";
        assert_eq!(
            class(SendError::Unknown { what: what(), code }),
            Class::Uncertain
        );
    }
}
