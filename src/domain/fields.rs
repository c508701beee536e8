//! Reads a JSON object field by field and collects every problem, so that a producer sees all of
//! them at once instead of one per attempt.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// One problem of a document: the field, what is wrong, and how to correct it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// Path of the field, such as `audience.users[17]`; empty for the document itself.
    pub field: String,
    pub what: String,
}

/// The longest path and the longest text of a problem. Both may contain what a producer wrote,
/// which may be megabytes.
const FIELD_SHOWN: usize = 200;
const WHAT_SHOWN: usize = 600;

impl Problem {
    pub fn new(field: impl Into<String>, what: impl Into<String>) -> Self {
        let bounded = |text: String, most: usize| match shorten(&text, most) {
            Cow::Borrowed(_) => text,
            Cow::Owned(short) => short,
        };
        Self {
            field: bounded(field.into(), FIELD_SHOWN),
            what: bounded(what.into(), WHAT_SHOWN),
        }
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

/// The most problems that are reported for one document; further ones are counted.
pub const PROBLEMS_SHOWN: usize = 20;

/// The problems of one document. They are bounded here, because a list may have a million bad
/// entries.
#[derive(Debug, Default)]
pub struct Problems {
    first: Vec<Problem>,
    found: usize,
}

impl Problems {
    pub fn push(&mut self, problem: Problem) {
        self.found += 1;
        if self.first.len() < PROBLEMS_SHOWN {
            self.first.push(problem);
        }
    }

    /// How many problems were found, reported or not.
    pub fn found(&self) -> usize {
        self.found
    }

    pub fn is_empty(&self) -> bool {
        self.found == 0
    }
}

impl Extend<Problem> for Problems {
    fn extend<I: IntoIterator<Item = Problem>>(&mut self, problems: I) {
        problems.into_iter().for_each(|problem| self.push(problem));
    }
}

impl From<Problems> for Vec<Problem> {
    /// The first problems, followed by the number of further ones.
    fn from(problems: Problems) -> Self {
        let mut told = problems.first;
        if problems.found > told.len() {
            let what = format!("and {} more problems", problems.found - told.len());
            told.push(Problem::new("", what));
        }
        told
    }
}

/// The first twenty problems of a document, as one line.
pub fn summary(problems: &[Problem]) -> String {
    let shown = problems.iter().take(PROBLEMS_SHOWN).map(Problem::to_string);
    let mut line = shown.collect::<Vec<_>>().join("; ");
    match problems.get(PROBLEMS_SHOWN..).unwrap_or_default() {
        [] => {}
        // The number of problems that were not kept.
        [rest] if rest.field.is_empty() => line.push_str(&format!("; {rest}")),
        more => line.push_str(&format!("; and {} more", more.len())),
    }
    line
}

/// The name of `known` that is closest to `name`, if `name` may be a misspelling of it.
pub fn suggestion<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    known
        .into_iter()
        // A comparison takes as long as the product of both lengths, and one of them may be
        // megabytes.
        .filter(|candidate| name.len() <= 4 * (candidate.len() + 4))
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// The fields of one JSON object that were not read yet.
pub struct Fields<'a> {
    path: String,
    left: BTreeMap<Cow<'a, str>, &'a RawValue>,
    known: Vec<&'static str>,
}

/// The most fields that are kept of one object. No object of ours has more than some twenty.
const FIELDS_MAX: usize = 200;

/// The fields of an object by name, and the problems with their names.
#[derive(Default)]
struct Object<'a> {
    fields: BTreeMap<Cow<'a, str>, &'a RawValue>,
    twice: Problems,
    more: usize,
}

impl<'a> Object<'a> {
    /// Reads an object of the document at this path.
    fn parse(path: &str, json: &'a str) -> Result<Self, serde_json::Error> {
        let mut object = Self::default();
        each_field(json, |name, value| {
            if object.fields.contains_key(&name) {
                object.twice.push(Problem::new(within(path, &name), TWICE));
            } else if object.fields.len() < FIELDS_MAX {
                object.fields.insert(name, value);
            } else {
                object.more += 1;
            }
        })?;
        Ok(object)
    }
}

/// A field that is there twice is a problem: only the producer knows which of them is meant.
pub const TWICE: &str = "appears twice; only one of them can count";

/// The whole path of a field.
fn within(path: &str, name: &str) -> String {
    // A name may be as long as its document.
    let name = shorten(name, FIELD_SHOWN);
    if path.is_empty() {
        name.into_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// Calls `each` with every field of a JSON object in order, including repeated ones.
pub fn each_field<'a>(
    json: &'a str,
    each: impl FnMut(Cow<'a, str>, &'a RawValue),
) -> Result<(), serde_json::Error> {
    struct Each<F>(F);
    impl<'de, F: FnMut(Cow<'de, str>, &'de RawValue)> Visitor<'de> for Each<F> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some((CowStr(name), value)) = map.next_entry()? {
                (self.0)(name, value);
            }
            Ok(())
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(json);
    deserializer.deserialize_map(Each(each))?;
    deserializer.end()
}

/// The first name that one of the objects in a JSON document has twice, at any depth that we read.
pub fn name_twice(json: &str) -> Option<String> {
    struct Unique<'t>(&'t mut Option<String>);
    impl<'de> DeserializeSeed<'de> for Unique<'_> {
        type Value = ();
        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
            deserializer.deserialize_any(self)
        }
    }
    impl<'de> Visitor<'de> for Unique<'_> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("JSON")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let mut names = BTreeSet::new();
            while let Some(CowStr(name)) = map.next_key()? {
                if names.contains(&name) {
                    *self.0 = Some(shorten(&name, FIELD_SHOWN).into_owned());
                    return Err(serde::de::Error::custom(TWICE));
                }
                names.insert(name);
                map.next_value_seed(Unique(self.0))?;
            }
            Ok(())
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
            while list.next_element_seed(Unique(self.0))?.is_some() {}
            Ok(())
        }
        fn visit_unit<E>(self) -> Result<(), E> {
            Ok(())
        }
        fn visit_bool<E>(self, _: bool) -> Result<(), E> {
            Ok(())
        }
        fn visit_u64<E>(self, _: u64) -> Result<(), E> {
            Ok(())
        }
        fn visit_i64<E>(self, _: i64) -> Result<(), E> {
            Ok(())
        }
        fn visit_f64<E>(self, _: f64) -> Result<(), E> {
            Ok(())
        }
        fn visit_str<E>(self, _: &str) -> Result<(), E> {
            Ok(())
        }
    }
    let mut twice = None;
    let mut deserializer = serde_json::Deserializer::from_str(json);
    // Other checks report the other faults of the document.
    let _ = Unique(&mut twice).deserialize(&mut deserializer);
    twice
}

/// Keys borrow from the document unless they contain escapes.
#[derive(Deserialize)]
struct CowStr<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Fields<'a> {
    /// Opens an object; reports anything else as a problem.
    pub fn open(path: &str, json: &'a str, problems: &mut impl Extend<Problem>) -> Option<Self> {
        match Object::parse(path, json) {
            Ok(Object {
                fields,
                twice,
                more,
            }) => {
                problems.extend(Vec::from(twice));
                if more > 0 {
                    let what = format!("more than {FIELDS_MAX} fields; most of them are unknown");
                    problems.extend([Problem::new(path, what)]);
                }
                Some(Self {
                    path: path.to_owned(),
                    left: fields,
                    known: Vec::new(),
                })
            }
            Err(error) => {
                problems.extend([Problem::new(
                    path,
                    format!("a JSON object is expected: {error}"),
                )]);
                None
            }
        }
    }

    /// The whole path of a field of this object.
    pub(super) fn path_of(&self, name: &str) -> String {
        within(&self.path, name)
    }

    /// The raw value of a field; `null` counts as absent.
    pub fn raw(&mut self, name: &'static str) -> Option<&'a RawValue> {
        self.known.push(name);
        self.left.remove(name).filter(|value| value.get() != "null")
    }

    /// A field as `T`; `None` if it is absent, or wrong, which is a problem.
    pub fn get<T: Deserialize<'a>>(
        &mut self,
        name: &'static str,
        expected: &str,
        problems: &mut impl Extend<Problem>,
    ) -> Option<T> {
        let value = self.raw(name)?;
        match serde_json::from_str(value.get()) {
            Ok(value) => Some(value),
            Err(_) => {
                let shown = shorten(value.get(), 40);
                problems.extend([Problem::new(
                    self.path_of(name),
                    format!("{expected} is expected, not {shown}"),
                )]);
                None
            }
        }
    }

    /// A list of texts, which is read up to `most` entries.
    pub fn texts(
        &mut self,
        name: &'static str,
        most: usize,
        problems: &mut impl Extend<Problem>,
    ) -> Option<Vec<Cow<'a, str>>> {
        let value = self.raw(name)?;
        let mut deserializer = serde_json::Deserializer::from_str(value.get());
        let mut over = false;
        let texts = Texts {
            most,
            over: &mut over,
        };
        let what = match texts.deserialize(&mut deserializer) {
            Ok(texts) => return Some(texts),
            Err(_) if over => format!("more than {most}"),
            Err(error) => format!("a list of ids, as texts, is expected: {error}"),
        };
        self.problem(name, what, problems);
        None
    }

    /// A text of at most `most` bytes.
    pub fn line(
        &mut self,
        name: &'static str,
        most: usize,
        problems: &mut impl Extend<Problem>,
    ) -> Option<String> {
        let text: String = self.get(name, "a text", problems)?;
        if text.len() > most {
            let what = format!("{} bytes, at most {most} are allowed", text.len());
            self.problem(name, what, problems);
        }
        Some(text)
    }

    /// A nested object.
    pub fn object(
        &mut self,
        name: &'static str,
        problems: &mut impl Extend<Problem>,
    ) -> Option<Fields<'a>> {
        let value = self.raw(name)?;
        Fields::open(&self.path_of(name), value.get(), problems)
    }

    /// Reports a problem with a field of this object.
    pub fn problem(
        &self,
        name: &str,
        what: impl Into<String>,
        problems: &mut impl Extend<Problem>,
    ) {
        problems.extend([Problem::new(self.path_of(name), what)]);
    }

    /// Ends the reading, and reports all fields that were not read as unknown.
    pub fn finish(self, problems: &mut impl Extend<Problem>) {
        for name in self.left.keys() {
            let hint = suggestion(name, self.known.iter().copied())
                .map(|known| format!("; did you mean `{known}`?"))
                .unwrap_or_default();
            problems.extend([Problem::new(
                self.path_of(name),
                format!("unknown field{hint}"),
            )]);
        }
    }
}

/// Reads a list of texts until there are too many.
struct Texts<'f> {
    most: usize,
    over: &'f mut bool,
}

impl<'de> DeserializeSeed<'de> for Texts<'_> {
    type Value = Vec<Cow<'de, str>>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Texts<'_> {
    type Value = Vec<Cow<'de, str>>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of texts")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut texts = Vec::new();
        while let Some(CowStr(text)) = list.next_element()? {
            if texts.len() == self.most {
                *self.over = true;
                return Err(serde::de::Error::custom("too many"));
            }
            texts.push(text);
        }
        Ok(texts)
    }
}

/// The beginning of a text, with an ellipsis if anything is cut off.
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
        let mut problems = Problems::default();
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
        let texts: Vec<_> = Vec::from(problems).iter().map(Problem::to_string).collect();
        assert_eq!(
            texts,
            [
                r#"b: a number is expected, not "x""#,
                "inner.clor: unknown field; did you mean `color`?"
            ]
        );
    }
}
