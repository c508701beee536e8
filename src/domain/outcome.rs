//! What a call answered, what that means for each recipient, and what happens next.

use std::borrow::Cow;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::printable::on_one_line;

/// How a recipient of a job ended. Exactly one per list entry (promise 2).
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
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// The target accepted the message.
    Sent,
    /// The recipient was already known to this job: listed twice, or in an overlapping list.
    Duplicate,
    /// The target refused for good, or the attempts were used up; dead-lettered.
    Failed,
    /// Perhaps sent, perhaps not: a reply was lost and the policy is not to retry.
    Uncertain,
    /// `expires_at` passed first.
    Expired,
    /// An operator cancelled the job first.
    Cancelled,
}

impl Outcome {
    pub const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The byte that stands for a settled recipient in the ledger. A duplicate has none: it is an
    /// outcome of a list entry, while the ledger holds the recipient's own.
    pub fn ledger_code(self) -> Option<u8> {
        match self {
            Self::Sent => Some(b's'),
            Self::Duplicate => None,
            Self::Failed => Some(b'f'),
            Self::Uncertain => Some(b'u'),
            Self::Expired => Some(b'e'),
            Self::Cancelled => Some(b'x'),
        }
    }

    pub fn from_ledger_code(code: u8) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|outcome| outcome.ledger_code() == Some(code))
    }
}

/// What an answer of a target means for the recipients it speaks of.
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
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Class {
    /// Accepted.
    Done,
    /// Refused for good: no later attempt can succeed.
    Permanent,
    /// Not accepted, may be accepted later; costs an attempt.
    Transient,
    /// Not accepted because we are too fast: the lane waits, no attempt is spent.
    Throttled,
    /// Perhaps accepted: the reply was lost or says so. Policy decides (promise 4).
    Uncertain,
    /// Our configuration is wrong (signature, token, permission): the job is parked, and with a second
    /// one the target; nobody is dead-lettered (promise 10).
    Config,
}

impl Class {
    pub const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A class with what the target said. Making one for `Done` allocates nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetAnswer {
    pub class: Class,
    /// The backend's own code, such as `503` or `reason 15`, shortened to 100 bytes; fit for a filter.
    pub code: Cow<'static, str>,
    /// The backend's own words on one line, shortened to 300 bytes.
    pub text: Cow<'static, str>,
    /// How long the target asked us to wait.
    pub retry_after: Option<Duration>,
    /// False when certainly nothing reached the target. That is about the target, not about the
    /// recipients: they wait, and no attempt is spent.
    pub reached: bool,
    /// The credential was refused and nothing was carried out: with a new one the call may be made
    /// again at once, once.
    pub stale: bool,
    /// One recipient of several may have caused it, or the reason is not told: the call is made again
    /// in smaller ones. Of no meaning for a call of one.
    pub split: bool,
    /// A probe could not tell: it would say the same whether the call was carried out or not.
    pub unprovable: bool,
}

/// Longest text kept of a backend's answer, in bytes.
pub const ANSWER_TEXT_MAX: usize = 300;

/// Longest code kept of it.
const ANSWER_CODE_MAX: usize = 100;

/// What a backend said, without what would steer the terminal of who reads it.
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
        }
    }

    pub fn retry_after(mut self, after: Option<Duration>) -> Self {
        self.retry_after = after;
        self
    }

    /// The same answer; a new credential may mend it.
    pub fn stale(mut self) -> Self {
        self.stale = true;
        self
    }

    /// The same answer; smaller calls may fare better.
    pub fn split(mut self) -> Self {
        self.split = true;
        self
    }

    /// This answer about a call in doubt, with what came after it and did not resolve it.
    pub fn then(&self, later: &str) -> Self {
        let text = format!("{}; later: {later}", self.text);
        Self::new(Class::Uncertain, self.code.clone(), text)
    }

    /// The same answer; nobody need be asked what became of the call.
    pub fn unprovable(mut self) -> Self {
        self.unprovable = true;
        self
    }
}

/// What a reply says about the recipients of its call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same for all of them.
    All(TargetAnswer),
    /// One answer per recipient, in the order of the call.
    Each(Vec<TargetAnswer>),
}

impl Verdict {
    /// The answer to all recipients of the call, if it is the same.
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

/// What to do with a recipient whose send may or may not have happened (promise 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnUncertain {
    /// Send again; right where the target is idempotent on our key.
    Retry,
    /// Dead-letter as uncertain; an operator decides.
    Hold,
    /// Settle as uncertain and say no more.
    Drop,
}

/// What to do with a recipient after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Settle as sent.
    Settle,
    /// Dead-letter, then settle as failed.
    Fail,
    /// Try again later; an attempt is spent.
    Retry,
    /// Try again when the lane moves again; no attempt is spent.
    Wait,
    /// Dead-letter, then settle as uncertain.
    Hold,
    /// Settle as uncertain.
    Drop,
}

impl TargetAnswer {
    /// The same answer, from nobody: the target was not reached.
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

/// The one rule from answers to deeds. `attempt` is 1-based and counts this try.
pub fn next(class: Class, attempt: u32, attempts_max: u32, on_uncertain: OnUncertain) -> Next {
    match class {
        Class::Done => Next::Settle,
        Class::Permanent => Next::Fail,
        Class::Throttled | Class::Config => Next::Wait,
        Class::Transient if attempt >= attempts_max => Next::Fail,
        Class::Transient => Next::Retry,
        Class::Uncertain => match on_uncertain {
            // Out of attempts, it is still not known to have failed.
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
        for outcome in Outcome::ALL.iter().copied() {
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
