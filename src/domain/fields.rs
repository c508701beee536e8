//! Reads a JSON object field by field and collects every problem, so that a producer sees all of
//! them at once instead of one per attempt.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;

/// One thing that is wrong: where, what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// Path of the field, such as `audience.users[17]`; empty for the document itself.
    pub field: String,
    pub what: String,
}

impl Problem {
    pub fn new(field: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            field: bounded(field.into(), FIELD_BYTES_MAX),
            what: bounded(what.into(), WHAT_BYTES_MAX),
        }
    }
}

/// Longest path and longest explanation of a problem. Both hold names and values as they came in, which
/// may be as long as the document.
const FIELD_BYTES_MAX: usize = 256;
const WHAT_BYTES_MAX: usize = 1024;

fn bounded(text: String, bytes: usize) -> String {
    match shorten(&text, bytes) {
        Cow::Borrowed(_) => text,
        Cow::Owned(shortened) => shortened,
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.what)
        } else {
            write!(f, "{}: {}", self.field, self.what)
        }
    }
}

/// The problems of a document as one line, the first twenty of them.
pub fn summary(problems: &[Problem]) -> String {
    const SHOWN: usize = 20;
    let mut line = problems
        .iter()
        .take(SHOWN)
        .map(Problem::to_string)
        .collect::<Vec<_>>()
        .join("; ");
    if problems.len() > SHOWN {
        line.push_str(&format!("; and {} more", problems.len() - SHOWN));
    }
    line
}

/// The closest of `known` to `name`, if it is close enough to be a slip.
pub fn suggestion<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let is_close = |candidate: &&str| name.len() <= candidate.len() + 4 * slip(candidate);
    known
        .into_iter()
        // Comparing costs the product of both lengths, and a name may have megabytes.
        .filter(is_close)
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= slip(candidate))
        .min()
        .map(|(_, candidate)| candidate)
}

/// How far a slip may be from a word, in characters, each of at most four bytes.
fn slip(word: &str) -> usize {
    1 + word.len() / 4
}

/// The fields of one JSON object that were not taken yet.
pub struct Fields<'a> {
    path: String,
    left: BTreeMap<Cow<'a, str>, &'a RawValue>,
    known: Vec<&'static str>,
}

#[derive(Deserialize)]
struct Object<'a>(#[serde(borrow)] BTreeMap<CowStr<'a>, &'a RawValue>);

/// Keys borrow from the document unless they hold escapes.
#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct CowStr<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Fields<'a> {
    /// Opens an object; anything else is a problem.
    pub fn open(path: &str, json: &'a str, problems: &mut Vec<Problem>) -> Option<Self> {
        match serde_json::from_str::<Object<'a>>(json) {
            Ok(object) => Some(Self {
                path: path.to_owned(),
                left: object
                    .0
                    .into_iter()
                    .map(|(key, value)| (key.0, value))
                    .collect(),
                known: Vec::new(),
            }),
            Err(error) => {
                problems.push(Problem::new(
                    path,
                    format!("a JSON object is expected: {error}"),
                ));
                None
            }
        }
    }

    /// The whole path of a field of this object.
    pub(super) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// The raw value of a field; `null` counts as absent.
    pub fn raw(&mut self, name: &'static str) -> Option<&'a RawValue> {
        self.known.push(name);
        self.left.remove(name).filter(|value| value.get() != "null")
    }

    /// A field as `T`, or nothing when it is absent or wrong; wrong is a problem.
    pub fn get<T: Deserialize<'a>>(
        &mut self,
        name: &'static str,
        expected: &str,
        problems: &mut Vec<Problem>,
    ) -> Option<T> {
        let value = self.raw(name)?;
        match serde_json::from_str(value.get()) {
            Ok(value) => Some(value),
            Err(_) => {
                let shown = shorten(value.get(), 40);
                problems.push(Problem::new(
                    self.path_of(name),
                    format!("{expected} is expected, not {shown}"),
                ));
                None
            }
        }
    }

    /// A nested object.
    pub fn object(
        &mut self,
        name: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Option<Fields<'a>> {
        let value = self.raw(name)?;
        Fields::open(&self.path_of(name), value.get(), problems)
    }

    /// Reports a field of this object.
    pub fn problem(&self, name: &str, what: impl Into<String>, problems: &mut Vec<Problem>) {
        problems.push(Problem::new(self.path_of(name), what));
    }

    /// Ends the reading: whatever was not taken is unknown.
    pub fn finish(self, problems: &mut Vec<Problem>) {
        for name in self.left.keys() {
            let hint = suggestion(name, self.known.iter().copied())
                .map(|known| format!("; did you mean `{known}`?"))
                .unwrap_or_default();
            problems.push(Problem::new(
                self.path_of(name),
                format!("unknown field{hint}"),
            ));
        }
    }
}

/// The beginning of a text, with an ellipsis where something is missing.
pub fn shorten(text: &str, bytes: usize) -> Cow<'_, str> {
    if text.len() <= bytes {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}…", &text[..text.floor_char_boundary(bytes)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_reported_with_its_path() {
        let mut problems = Vec::new();
        let json = r#"{"a": 1, "b": "x", "inner": {"c": true, "clor": 1}}"#;
        let mut fields = Fields::open("", json, &mut problems).unwrap();
        assert_eq!(fields.get::<u32>("a", "a number", &mut problems), Some(1));
        assert_eq!(fields.get::<u32>("b", "a number", &mut problems), None);
        let mut inner = fields.object("inner", &mut problems).unwrap();
        assert_eq!(
            inner.get::<bool>("c", "true or false", &mut problems),
            Some(true)
        );
        assert_eq!(
            inner.get::<bool>("color", "true or false", &mut problems),
            None
        );
        inner.finish(&mut problems);
        fields.finish(&mut problems);
        let texts: Vec<_> = problems.iter().map(Problem::to_string).collect();
        assert_eq!(
            texts,
            [
                r#"b: a number is expected, not "x""#,
                "inner.clor: unknown field; did you mean `color`?"
            ]
        );
    }
}
