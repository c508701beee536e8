//! Decides from the answer to a call what it means for each recipient and what happens next.

use std::borrow::Cow;
use std::time::Duration;

pub use fanwise_client::OnUncertain;
pub use fanwise_client::webhook::Class;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use super::message_id::MessageId;
use super::printable::on_one_line;

/// How a recipient of a job ended. Every list entry has exactly one (promise 2).
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    IntoStaticStr,
    VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// The target accepted the message.
    Sent,
    /// The recipient was already known to this job: listed twice, or in an overlapping list.
    Duplicate,
    /// The target refused permanently, or all attempts failed; dead-lettered.
    Failed,
    /// Possibly sent: a reply was lost and the policy does not retry.
    Uncertain,
    /// `expires_at` passed first.
    Expired,
    /// An operator cancelled the job first.
    Cancelled,
    /// The recipient had reached the frequency cap of the job's category. Nothing was sent, and
    /// nothing failed.
    Capped,
}

impl Outcome {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The byte of a settled recipient in the ledger. A duplicate has none: it is the outcome of a
    /// list entry, and the ledger holds the outcome of the recipient.
    pub fn ledger_code(self) -> Option<u8> {
        match self {
            Self::Sent => Some(b's'),
            Self::Duplicate => None,
            Self::Failed => Some(b'f'),
            Self::Uncertain => Some(b'u'),
            Self::Expired => Some(b'e'),
            Self::Cancelled => Some(b'x'),
            Self::Capped => Some(b'c'),
        }
    }

    /// Whether a recipient that ended so certainly got no message, so that its unit of a frequency
    /// cap goes back.
    pub fn is_without_message(self) -> bool {
        match self {
            Self::Failed | Self::Expired | Self::Cancelled => true,
            // A capped recipient has no unit of this job.
            Self::Sent | Self::Duplicate | Self::Uncertain | Self::Capped => false,
        }
    }

    pub fn from_ledger_code(code: u8) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|outcome| outcome.ledger_code() == Some(code))
    }
}

/// What a target's code is about, where callers of drop-in endpoints are answered differently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RefusalKind {
    /// The target has no such recipient.
    UnknownRecipient,
    /// The sender or the channel may not do this.
    Forbidden,
    /// The call or its sender: all recipients of the call would be refused alike.
    Call,
    #[default]
    Other,
}

/// A class, with the target's code and text. An answer of class `Done` allocates nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetAnswer {
    pub class: Class,
    /// The backend's own code, such as `503` or `reason 15`, shortened to 100 bytes.
    pub code: Cow<'static, str>,
    /// The backend's own text on one line, shortened to 300 bytes.
    pub text: Cow<'static, str>,
    /// How long the target asked us to wait.
    pub retry_after: Option<Duration>,
    /// False if certainly nothing reached the target. That is a fault of the target, not of the
    /// recipients: they wait, and no attempt is spent.
    pub reached: bool,
    /// The credential was refused and nothing was carried out: with a new one, the call may be
    /// repeated at once, one time.
    pub stale: bool,
    /// One of several recipients may have caused the answer, or the cause is unknown: the call is
    /// repeated in smaller calls. Ignored for a call with one recipient.
    pub split: bool,
    /// A probe cannot tell: it would get the same reply whether the call was carried out or not.
    pub unprovable: bool,
    /// What the target calls the message, if the job keeps ids.
    pub message: Option<Box<MessageId>>,
}

/// The longest text that is kept of a backend's answer, in bytes.
pub const ANSWER_TEXT_MAX: usize = 300;

/// The longest code that is kept, in bytes.
const ANSWER_CODE_MAX: usize = 100;

/// A text of a backend on one line and shortened, without characters that control a terminal.
fn kept(text: Cow<'static, str>, most: usize) -> Cow<'static, str> {
    let mut text = match on_one_line(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(shown) => Cow::Owned(shown),
    };
    if text.len() > most {
        let end = text.floor_char_boundary(most);
        text.to_mut().truncate(end);
    }
    text
}

impl TargetAnswer {
    pub fn done() -> Self {
        Self {
            class: Class::Done,
            code: Cow::Borrowed(""),
            text: Cow::Borrowed(""),
            retry_after: None,
            reached: true,
            stale: false,
            split: false,
            unprovable: false,
            message: None,
        }
    }

    /// Accepted, with the id of the message if the target says one.
    pub fn done_as(message: Option<MessageId>) -> Self {
        Self {
            message: message.map(Box::new),
            ..Self::done()
        }
    }

    pub fn new(
        class: Class,
        code: impl Into<Cow<'static, str>>,
        text: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            class,
            code: kept(code.into(), ANSWER_CODE_MAX),
            text: kept(text.into(), ANSWER_TEXT_MAX),
            retry_after: None,
            reached: true,
            stale: false,
            split: false,
            unprovable: false,
            message: None,
        }
    }

    pub fn retry_after(mut self, after: Option<Duration>) -> Self {
        self.retry_after = after;
        self
    }

    /// Marks that a new credential may help.
    pub fn stale(mut self) -> Self {
        self.stale = true;
        self
    }

    /// Marks that smaller calls may succeed.
    pub fn split(mut self) -> Self {
        self.split = true;
        self
    }

    /// Adds to this answer about a call in doubt a later answer that did not resolve the doubt.
    pub fn then(&self, later: &str) -> Self {
        let text = format!("{}; later: {later}", self.text);
        Self::new(Class::Uncertain, self.code.clone(), text)
    }

    /// Marks that a probe is useless.
    pub fn unprovable(mut self) -> Self {
        self.unprovable = true;
        self
    }
}

/// The answers for the recipients of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same for all of them.
    All(TargetAnswer),
    /// One answer per recipient, in the order of the call.
    Each(Vec<TargetAnswer>),
}

impl Verdict {
    /// The answer to the call as a whole, if there is one.
    pub fn whole(&self) -> Option<&TargetAnswer> {
        match self {
            Self::All(answer) => Some(answer),
            Self::Each(_) => None,
        }
    }

    /// The answer for the recipient at `index` of the call.
    pub fn of(&self, index: usize) -> &TargetAnswer {
        match self {
            Self::All(answer) => answer,
            Self::Each(answers) => &answers[index],
        }
    }
}

/// What to do with a recipient after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Settle as sent.
    Settle,
    /// Dead-letter, then settle as failed.
    Fail,
    /// Retry later; an attempt is spent.
    Retry,
    /// Retry when the lane moves again; no attempt is spent.
    Wait,
    /// Dead-letter, then settle as uncertain.
    Hold,
    /// Settle as uncertain.
    Drop,
}

impl TargetAnswer {
    /// Marks that the target was not reached.
    pub fn unreached(mut self) -> Self {
        self.reached = false;
        self
    }

    /// What to do with a recipient after this answer.
    pub fn next(&self, attempt: u32, attempts_max: u32, on_uncertain: OnUncertain) -> Next {
        if self.reached {
            next(self.class, attempt, attempts_max, on_uncertain)
        } else {
            Next::Wait
        }
    }
}

/// The rule from class to action. `attempt` is 1-based and includes this try.
pub fn next(class: Class, attempt: u32, attempts_max: u32, on_uncertain: OnUncertain) -> Next {
    match class {
        Class::Done => Next::Settle,
        Class::Permanent => Next::Fail,
        Class::Throttled | Class::Config => Next::Wait,
        Class::Transient if attempt >= attempts_max => Next::Fail,
        Class::Transient => Next::Retry,
        Class::Uncertain => match on_uncertain {
            // Without further attempts it is still uncertain whether it failed.
            OnUncertain::Retry if attempt >= attempts_max => Next::Hold,
            OnUncertain::Retry => Next::Retry,
            OnUncertain::Hold => Next::Hold,
            OnUncertain::Drop => Next::Drop,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_faults_and_throttling_never_spend_or_fail_anybody() {
        for class in [Class::Config, Class::Throttled] {
            for attempt in [1, 8, 1000] {
                assert_eq!(next(class, attempt, 8, OnUncertain::Hold), Next::Wait);
            }
        }
    }

    #[test]
    fn uncertain_follows_the_policy_and_is_never_called_failed() {
        assert_eq!(
            next(Class::Uncertain, 1, 8, OnUncertain::Retry),
            Next::Retry
        );
        assert_eq!(next(Class::Uncertain, 8, 8, OnUncertain::Retry), Next::Hold);
        assert_eq!(next(Class::Uncertain, 1, 8, OnUncertain::Hold), Next::Hold);
        assert_eq!(next(Class::Uncertain, 1, 8, OnUncertain::Drop), Next::Drop);
    }

    #[test]
    fn a_target_that_is_not_reached_costs_nobody_an_attempt() {
        let answer = TargetAnswer::new(Class::Transient, "connect", "refused").unreached();
        assert_eq!(answer.next(100, 1, OnUncertain::Hold), Next::Wait);
    }

    #[test]
    fn ledger_codes_are_unique() {
        for &outcome in Outcome::ALL {
            if let Some(code) = outcome.ledger_code() {
                assert_eq!(Outcome::from_ledger_code(code), Some(outcome));
            }
        }
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let answer = TargetAnswer::new(Class::Permanent, "x", "é".repeat(400));
        assert!(answer.text.len() <= ANSWER_TEXT_MAX);
        let answer = TargetAnswer::new(Class::Permanent, "7".repeat(1000), "");
        assert_eq!(answer.code.len(), ANSWER_CODE_MAX);
    }

    #[test]
    fn what_a_backend_says_steers_no_terminal() {
        let answer = TargetAnswer::new(Class::Permanent, "4\u{202e}1", "\u{1b}[2Jno\nsent\u{7}");
        assert_eq!(answer.code, "4\\u{202e}1");
        assert_eq!(answer.text, "\\u{1b}[2Jno\\u{a}sent\\u{7}");
    }
}
