//! The ids that a target gives to messages, as the ledger keeps them for jobs that ask for it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use super::slice::Addressed;

/// Longest id that is kept, in bytes.
const ID_BYTES_MAX: usize = 64;

/// What a target calls a message, and when it took it, where it says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageId {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
}

impl MessageId {
    /// `None` for an id that is empty or too long to be kept.
    pub fn new(id: impl Into<String>, at_ms: Option<u64>) -> Option<Self> {
        let id = id.into();
        let fits = (1..=ID_BYTES_MAX).contains(&id.len());
        fits.then_some(Self { id, at_ms })
    }
}

/// What became of the recall of a message.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
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
pub enum RecallState {
    /// It was not recalled, or the target did not answer.
    #[default]
    No,
    /// The target recalled it.
    Recalled,
    /// The target says that it cannot be recalled.
    Refused,
}

impl RecallState {
    /// Its byte in the ledger.
    pub fn code(self) -> u8 {
        match self {
            Self::No => 0,
            Self::Recalled => 1,
            Self::Refused => 2,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::VARIANTS.iter().copied().find(|it| it.code() == code)
    }
}

/// The id of the message to one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptId {
    pub recipient: String,
    pub message: MessageId,
    /// The second target of the job has the message.
    pub by_fallback: bool,
    pub recall: RecallState,
}

/// What a recall needs to know of a job that keeps ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepsIds {
    /// The sender that the job names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    #[serde(default)]
    pub addressed: Addressed,
}

/// The id is a number of eight bytes, as most systems have it, else a text.
const IS_NUMBER: u8 = 1;
const HAS_TIME: u8 = 2;
const BY_FALLBACK: u8 = 4;

/// Bytes of a time in milliseconds: enough for 8,900 years.
const TIME_BYTES: usize = 6;

impl KeptId {
    /// The bytes that the ledger keeps, beginning with that of the recall: for an id of digits 10
    /// bytes and the recipient, and 6 more with a time.
    pub fn encode(&self) -> Vec<u8> {
        let number = decimal(&self.message.id);
        let at_ms = self.message.at_ms.filter(|at| at >> (8 * TIME_BYTES) == 0);
        let mut flags = 0;
        for (flag, is_set) in [
            (IS_NUMBER, number.is_some()),
            (HAS_TIME, at_ms.is_some()),
            (BY_FALLBACK, self.by_fallback),
        ] {
            flags |= if is_set { flag } else { 0 };
        }
        let mut bytes = vec![self.recall.code(), flags];
        push_text(&mut bytes, &self.recipient);
        match number {
            Some(number) => bytes.extend_from_slice(&number.to_be_bytes()),
            None => push_text(&mut bytes, &self.message.id),
        }
        if let Some(at_ms) = at_ms {
            bytes.extend_from_slice(&at_ms.to_be_bytes()[8 - TIME_BYTES..]);
        }
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let ([recall, flags], mut rest) = bytes.split_first_chunk()?;
        let recipient = take_text(&mut rest)?;
        let id = match flags & IS_NUMBER {
            0 => take_text(&mut rest)?,
            _ => {
                let (number, after) = rest.split_first_chunk()?;
                rest = after;
                u64::from_be_bytes(*number).to_string()
            }
        };
        let at_ms = match flags & HAS_TIME {
            0 => None,
            _ => {
                let (time, after) = rest.split_first_chunk::<TIME_BYTES>()?;
                rest = after;
                Some(time.iter().fold(0, |at, byte| at << 8 | u64::from(*byte)))
            }
        };
        rest.is_empty().then_some(Self {
            recipient,
            message: MessageId { id, at_ms },
            by_fallback: flags & BY_FALLBACK != 0,
            recall: RecallState::from_code(*recall)?,
        })
    }
}

/// A text that is exactly a number: no sign, no leading zero.
fn decimal(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// Texts here have at most 255 bytes.
fn push_text(bytes: &mut Vec<u8>, text: &str) {
    let text = &text.as_bytes()[..text.len().min(255)];
    bytes.push(text.len() as u8);
    bytes.extend_from_slice(text);
}

fn take_text(bytes: &mut &[u8]) -> Option<String> {
    let (length, rest) = bytes.split_first()?;
    let (text, rest) = rest.split_at_checked(usize::from(*length))?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(recipient: &str, id: &str, at_ms: Option<u64>) -> KeptId {
        KeptId {
            recipient: recipient.to_owned(),
            message: MessageId::new(id, at_ms).unwrap(),
            by_fallback: false,
            recall: RecallState::No,
        }
    }

    #[test]
    fn kept_ids_come_back_and_numbers_are_short() {
        let now = Some(1_707_017_423_142);
        for (id, bytes) in [
            (kept("user0001", "9897543190303", now), 2 + 9 + 8 + 6),
            (kept("user0001", "18446744073709551615", None), 2 + 9 + 8),
            // Not what a number is written as.
            (kept("", "007", None), 2 + 1 + 4),
            (kept("ü", "+7", Some(0)), 2 + 3 + 3 + 6),
            (
                KeptId {
                    by_fallback: true,
                    recall: RecallState::Refused,
                    ..kept(&"r".repeat(255), &"f".repeat(64), now)
                },
                2 + 256 + 65 + 6,
            ),
        ] {
            let encoded = id.encode();
            assert_eq!(encoded.len(), bytes, "{id:?}");
            assert_eq!(KeptId::decode(&encoded), Some(id));
        }
    }

    #[test]
    fn the_state_of_a_recall_is_the_first_byte() {
        let mut id = kept("a", "1", None);
        let mut encoded = id.encode();
        for state in RecallState::VARIANTS {
            encoded[0] = state.code();
            id.recall = *state;
            assert_eq!(KeptId::decode(&encoded).as_ref(), Some(&id));
        }
    }

    #[test]
    fn bytes_that_are_cut_short_are_no_id() {
        let whole = kept("user", "abc", Some(1)).encode();
        for end in 0..whole.len() {
            assert_eq!(KeptId::decode(&whole[..end]), None, "{end}");
        }
        assert_eq!(KeptId::decode(&[&whole[..], &[0]].concat()), None);
        assert_eq!(MessageId::new("", None), None);
        assert_eq!(MessageId::new("x".repeat(65), None), None);
    }
}
