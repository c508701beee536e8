//! Selects and sorts dead letters for operators, and removes recipients from a letter.
//!
//! A retained queue has no index and is read from end to end, so all functions here take one letter
//! at a time and hold no more than a page. Letters are published at least once; if a recipient of a
//! job has several, the latest counts.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::announce::{DeadLetter, DeadRecipient};
use super::fields::{Problem, suggestion};
use super::ids::JobId;
use super::outcome::{Class, Outcome};

/// The version of dead letters that this code reads.
const LETTER_VERSION: u32 = 1;

/// Selects recipients of dead letters; all given fields must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DeadFilter {
    /// Only of this job: its id, or its client_msg_no together with `app` (`default` if left out).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// `failed` or `uncertain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Class of the last answer, such as `permanent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// The backend's code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Last attempt at or after this: an RFC 3339 time, or a duration before now such as `2h`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Last attempt before this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// The names of the filter's fields, as in a query.
pub const FILTER_FIELDS: [&str; 9] = [
    "job",
    "app",
    "target",
    "recipient",
    "outcome",
    "class",
    "code",
    "since",
    "until",
];

impl DeadFilter {
    /// The field of this name.
    pub fn field(&mut self, name: &str) -> Option<&mut Option<String>> {
        Some(match name {
            "job" => &mut self.job,
            "app" => &mut self.app,
            "target" => &mut self.target,
            "recipient" => &mut self.recipient,
            "outcome" => &mut self.outcome,
            "class" => &mut self.class,
            "code" => &mut self.code,
            "since" => &mut self.since,
            "until" => &mut self.until,
            _ => return None,
        })
    }

    /// Whether the filter selects all letters.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Parses the filter, or returns all problems.
    pub fn check(&self, now_ms: u64) -> Result<LetterFilter, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut time = |field: &str, text: &Option<String>| {
            let text = text.as_deref()?;
            let found = moment(text, now_ms);
            if found.is_none() {
                problems.push(Problem::new(field, not_a_moment(text)));
            }
            found
        };
        let (since_ms, until_ms) = (time("since", &self.since), time("until", &self.until));
        let outcome = one_of(
            "outcome",
            &self.outcome,
            &[Outcome::Failed, Outcome::Uncertain],
            |outcome| outcome.as_str(),
            &mut problems,
        );
        let classes = [Class::Permanent, Class::Transient, Class::Uncertain];
        let class = one_of(
            "class",
            &self.class,
            &classes,
            |class| class.as_str(),
            &mut problems,
        );
        if !problems.is_empty() {
            return Err(problems);
        }
        let job = self.job.as_deref().map(|job| {
            let app = self.app.as_deref().unwrap_or("default");
            [job.to_owned(), JobId::of(app, job).to_string()]
        });
        Ok(LetterFilter {
            job,
            app: self.app.clone(),
            target: self.target.clone(),
            recipient: self.recipient.clone(),
            only: None,
            outcome,
            class,
            code: self.code.clone(),
            since_ms,
            until_ms,
        })
    }
}

fn one_of<T: Copy>(
    field: &str,
    text: &Option<String>,
    known: &[T],
    name: impl Fn(&T) -> &'static str,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let text = text.as_deref()?;
    let found = known.iter().find(|it| name(it) == text).copied();
    if found.is_none() {
        let names: Vec<_> = known.iter().map(&name).collect();
        let hint = suggestion(text, names.iter().copied())
            .map(|known| format!("; did you mean `{known}`?"))
            .unwrap_or_default();
        let what = format!("{text:?} is not one of {}{hint}", names.join(", "));
        problems.push(Problem::new(field, what));
    }
    found
}

/// Milliseconds since 1970 of an RFC 3339 time, or of a duration before now such as `90m`.
pub fn moment(text: &str, now_ms: u64) -> Option<u64> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return u64::try_from(time.as_millisecond()).ok();
    }
    let ago: SignedDuration = text.parse().ok()?;
    now_ms.checked_sub(u64::try_from(ago.as_millis()).ok()?)
}

/// The error text for a text that is not a moment.
pub fn not_a_moment(text: &str) -> String {
    format!("{text:?} is not a time such as 2026-12-24T18:00:00+08:00, or a time ago such as 2h")
}

/// A parsed filter.
#[derive(Clone, Debug, Default)]
pub struct LetterFilter {
    /// The job as it was written, and the id that it has if that was its client_msg_no.
    job: Option<[String; 2]>,
    app: Option<String>,
    target: Option<String>,
    recipient: Option<String>,
    /// Only these recipients.
    only: Option<BTreeSet<String>>,
    pub outcome: Option<Outcome>,
    class: Option<Class>,
    code: Option<String>,
    since_ms: Option<u64>,
    until_ms: Option<u64>,
}

impl LetterFilter {
    /// The letters about uncertain recipients of one job; about all of them, or only these.
    pub fn uncertain(job: JobId, only: Option<BTreeSet<String>>) -> Self {
        let job = job.to_string();
        Self {
            job: Some([job.clone(), job]),
            only,
            outcome: Some(Outcome::Uncertain),
            ..Self::default()
        }
    }

    /// The job as it was written, and the id that it has if that was its client_msg_no.
    pub fn job(&self) -> Option<&[String; 2]> {
        self.job.as_ref()
    }

    pub fn app(&self) -> Option<&str> {
        self.app.as_deref()
    }

    pub fn target(&self) -> Option<&str> {
        self.target.as_deref()
    }

    pub fn recipient(&self) -> Option<&str> {
        self.recipient.as_deref()
    }

    pub fn class(&self) -> Option<Class> {
        self.class
    }

    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    pub fn takes_letter(&self, letter: &DeadLetter) -> bool {
        let is = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|it| it == is);
        let names = self.job.as_ref();
        names.is_none_or(|names| names.contains(&letter.job))
            && is(&self.app, &letter.app)
            && is(&self.target, &letter.target)
            && self.takes_time(&letter.last_attempt_at)
    }

    fn takes_time(&self, last_attempt_at: &str) -> bool {
        self.takes_ms(milliseconds(last_attempt_at))
    }

    /// Whether a letter whose last attempt was then may match.
    pub fn takes_ms(&self, at_ms: u64) -> bool {
        self.takes_some_ms(at_ms, at_ms)
    }

    /// Whether a letter from between these times may match.
    pub fn takes_some_ms(&self, first_ms: u64, last_ms: u64) -> bool {
        self.since_ms.is_none_or(|since| last_ms >= since)
            && self.until_ms.is_none_or(|until| first_ms < until)
    }

    /// Whether a row matches. The caller checks job, app and target.
    pub fn takes_row(&self, row: &DeadRow) -> bool {
        self.takes_time(&row.last_attempt_at)
            && self.takes(&row.recipient, &row.code, row.outcome, row.class)
    }

    pub fn takes_recipient(&self, dead: &DeadRecipient) -> bool {
        self.takes(&dead.recipient, &dead.code, dead.outcome, dead.class)
    }

    fn takes(&self, recipient: &str, code: &str, outcome: Outcome, class: Class) -> bool {
        let is = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|it| it == is);
        is(&self.recipient, recipient)
            && (self.only.as_ref()).is_none_or(|only| only.contains(recipient))
            && is(&self.code, code)
            && self.outcome.is_none_or(|it| it == outcome)
            && self.class.is_none_or(|it| it == class)
    }
}

/// Reads a dead letter; `None` if it is invalid or has another version.
pub fn read_letter(body: &[u8]) -> Option<DeadLetter> {
    let letter: DeadLetter = serde_json::from_slice(body).ok()?;
    (letter.v == LETTER_VERSION).then_some(letter)
}

/// The time of a letter's last attempt, in milliseconds since 1970.
pub fn last_attempt_ms(letter: &DeadLetter) -> u64 {
    milliseconds(&letter.last_attempt_at)
}

/// Milliseconds since 1970 of an RFC 3339 time; 0 for any other text.
pub fn milliseconds(time: &str) -> u64 {
    let time: Option<Timestamp> = time.parse().ok();
    time.map_or(0, |time| time.as_millisecond().max(0).unsigned_abs())
}

/// One recipient of a dead letter, with its job. The fields of [`DeadRecipient`] are repeated here,
/// because serde cannot read raw JSON such as `vars` from a flattened field.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DeadRow {
    /// Job id, 24 hexadecimal digits.
    pub job: String,
    pub app: String,
    pub client_msg_no: String,
    pub target: String,
    pub recipient: String,
    /// The recipient's values for the placeholders of the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub vars: Option<Box<RawValue>>,
    /// `failed` or `uncertain`.
    pub outcome: Outcome,
    /// Class of the last answer.
    pub class: Class,
    /// The backend's code, such as `410`, `reason 4` or `timeout`.
    pub code: Cow<'static, str>,
    /// The backend's text.
    pub text: Cow<'static, str>,
    /// Attempts made, including the last one.
    pub attempts: u32,
    /// RFC 3339 time.
    pub first_attempt_at: String,
    /// RFC 3339 time.
    pub last_attempt_at: String,
    /// The message; only if the request asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<DeadContent>,
}

/// The message of a dead letter.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DeadContent {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// The message as the job carried it.
    pub message: serde_json::Value,
    pub options: serde_json::Value,
}

impl DeadRow {
    pub fn new(letter: &DeadLetter, dead: &DeadRecipient, with_content: bool) -> Self {
        // JSON that nests too deep for a value is shown as a text.
        let value =
            |raw: &RawValue| serde_json::from_str(raw.get()).unwrap_or_else(|_| raw.get().into());
        Self {
            job: letter.job.clone(),
            app: letter.app.clone(),
            client_msg_no: letter.client_msg_no.clone(),
            target: letter.target.clone(),
            recipient: dead.recipient.clone(),
            vars: dead.vars.clone(),
            outcome: dead.outcome,
            class: dead.class,
            code: dead.code.clone(),
            text: dead.text.clone(),
            attempts: dead.attempts,
            first_attempt_at: letter.first_attempt_at.clone(),
            last_attempt_at: letter.last_attempt_at.clone(),
            content: with_content.then(|| DeadContent {
                sender: letter.sender.clone(),
                message: value(&letter.message),
                options: value(&letter.options),
            }),
        }
    }

    pub fn key(&self) -> Key {
        (self.job.clone(), self.recipient.clone())
    }
}

/// The order of pages: by job, then by recipient. The order of the retained queue cannot be used,
/// because RabbitMQ does not keep it.
pub type Key = (String, String);

/// The first `most` entries at or after a place, out of any number of entries in any order.
#[derive(Debug)]
pub struct Window<T> {
    from: Option<Key>,
    most: usize,
    entries: BTreeMap<Key, (u64, T)>,
    /// The lowest key that did not fit: the window has no entry at or after it.
    end: Option<Key>,
}

impl<T> Window<T> {
    pub fn new(from: Option<Key>, most: usize) -> Self {
        Self {
            from,
            most: most.max(1),
            entries: BTreeMap::new(),
            end: None,
        }
    }

    /// Whether an entry with this key would be kept.
    pub fn takes(&self, key: &Key) -> bool {
        self.from.as_ref().is_none_or(|from| key >= from)
            && self.end.as_ref().is_none_or(|end| key < end)
    }

    /// Adds an entry with its time. If several have the same key, the latest stays; of equal times,
    /// the last.
    pub fn put(&mut self, key: Key, at_ms: u64, entry: T) {
        if !self.takes(&key) || self.entries.get(&key).is_some_and(|(at, _)| *at > at_ms) {
            return;
        }
        self.entries.insert(key, (at_ms, entry));
        if self.entries.len() > self.most {
            self.end = self.entries.pop_last().map(|(key, _)| key);
        }
    }

    /// Leaves this key and all later ones to the next window.
    pub fn end_at(&mut self, key: Key) {
        if self.takes(&key) {
            self.entries.split_off(&key);
            self.end = Some(key);
        }
    }

    /// Removes an entry that a later one, which is not shown itself, replaces.
    pub fn overrule(&mut self, key: &Key, at_ms: u64) {
        if self.entries.get(key).is_some_and(|(at, _)| *at <= at_ms) {
            self.entries.remove(key);
        }
    }

    /// The entries in order, and where the next window begins if there is one.
    pub fn finish(self) -> (impl Iterator<Item = (Key, T)>, Option<Key>) {
        let entries = self.entries.into_iter();
        (entries.map(|(key, (_, entry))| (key, entry)), self.end)
    }
}

/// The rest of a letter after some recipients are removed.
#[derive(Debug, PartialEq, Eq)]
pub enum Left {
    /// The whole letter: none of its recipients is removed.
    All,
    Nothing,
    /// The letter without those recipients, otherwise unchanged.
    Some(Vec<u8>),
}

/// The letter in which these recipients have this outcome; `None` if none of them is in it with
/// another one. Everything else stays unchanged, including fields that we do not know.
pub fn with_outcome(
    body: &[u8],
    changes: impl Fn(&str) -> bool,
    outcome: Outcome,
) -> Option<Vec<u8>> {
    let mut letter: serde_json::Value = serde_json::from_slice(body).ok()?;
    let mut any = false;
    for dead in letter.get_mut("recipients")?.as_array_mut()? {
        let named = dead.get("recipient").and_then(serde_json::Value::as_str);
        if named.is_some_and(&changes) && dead["outcome"] != outcome.as_str() {
            dead["outcome"] = outcome.as_str().into();
            any = true;
        }
    }
    any.then(|| crate::json::bytes(&letter))
}

/// Removes the recipients for which `goes` returns true from a letter.
pub fn without(
    body: &[u8],
    letter: &DeadLetter,
    mut goes: impl FnMut(&DeadRecipient) -> bool,
) -> Left {
    let stays: Vec<bool> = letter.recipients.iter().map(|dead| !goes(dead)).collect();
    if stays.iter().all(|stays| *stays) {
        return Left::All;
    }
    if !stays.contains(&true) {
        return Left::Nothing;
    }
    // Field by field, so that everything else stays unchanged, including fields that we do not
    // know.
    let fields: Result<BTreeMap<String, &RawValue>, _> = serde_json::from_slice(body);
    let recipients: Result<Vec<&RawValue>, _> = match &fields {
        Ok(fields) => fields
            .get("recipients")
            .map_or(Ok(Vec::new()), |list| serde_json::from_str(list.get())),
        Err(_) => return Left::All,
    };
    let (Ok(mut fields), Ok(mut recipients)) = (fields, recipients) else {
        return Left::All;
    };
    let mut stay = stays.into_iter();
    recipients.retain(|_| stay.next().unwrap_or(true));
    let Ok(recipients) = serde_json::value::to_raw_value(&recipients) else {
        return Left::All;
    };
    fields.insert("recipients".to_owned(), &recipients);
    serde_json::to_vec(&fields).map_or(Left::All, Left::Some)
}

#[cfg(test)]
mod tests;
