//! Reads JSON with the variations that callers write.
//!
//! A system's documents, SDKs and server often disagree on whether a flag is a boolean, a number or
//! a text. This module accepts all of them: `true`, `1` and `"1"` are the same flag, an id may be a
//! number, an object may be written inside a text, and names match without regard to case, as in
//! servers written in Go. `null` and an empty text count as absent.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

/// A field whose value has no valid reading.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {expected} is expected")]
pub(in crate::im) struct Wrong {
    pub(in crate::im) field: String,
    expected: &'static str,
}

/// The fields of an object that are not `null`.
#[derive(Debug, Default)]
pub(in crate::im) struct Loose<'a> {
    path: String,
    fields: BTreeMap<String, &'a RawValue>,
}

/// An id. An id of digits may be written as a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Text(String),
    Number(serde_json::Number),
}

impl Text {
    fn into_string(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        }
    }
}

impl<'a> Loose<'a> {
    /// Reads the body of a request.
    pub(in crate::im) fn body(body: &'a [u8]) -> Result<Self, Wrong> {
        let text = std::str::from_utf8(body).unwrap_or_default();
        Self::parse("body", text.trim_start_matches('\u{feff}')).map(|object| Self {
            path: String::new(),
            ..object
        })
    }

    /// Reads the object at `path`.
    pub(in crate::im) fn parse(path: &str, json: &'a str) -> Result<Self, Wrong> {
        let fields: BTreeMap<String, &'a RawValue> =
            serde_json::from_str(json).map_err(|_| Wrong {
                field: path.to_owned(),
                expected: "a JSON object",
            })?;
        let given = fields.into_iter();
        Ok(Self {
            path: path.to_owned(),
            fields: given.filter(|(_, value)| value.get() != "null").collect(),
        })
    }

    /// The whole name of a field, such as `push_config.push_content`.
    pub(in crate::im) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// The error for a field of this object.
    pub(in crate::im) fn wrong(&self, name: &str, expected: &'static str) -> Wrong {
        Wrong {
            field: self.path_of(name),
            expected,
        }
    }

    /// A field as it was written.
    pub(in crate::im) fn raw(&self, name: &str) -> Option<&'a RawValue> {
        let exact = self.fields.get(name);
        let folded = || {
            let mut fields = self.fields.iter();
            let (_, value) = fields.find(|(known, _)| known.eq_ignore_ascii_case(name))?;
            Some(value)
        };
        exact.or_else(folded).copied()
    }

    /// All fields, as they were written.
    pub(in crate::im) fn fields(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        let fields = self.fields.iter();
        fields.map(|(name, value)| (name.as_str(), *value))
    }

    pub(in crate::im) fn has(&self, name: &str) -> bool {
        self.raw(name).is_some()
    }

    /// Whether there are fields other than these.
    pub(in crate::im) fn has_more_than(&self, names: &[&str]) -> bool {
        let known = |field: &String| names.iter().any(|name| name.eq_ignore_ascii_case(field));
        self.fields.keys().any(|field| !known(field))
    }

    /// The object as JSON, without these fields.
    pub(in crate::im) fn without(&self, names: &[&str]) -> Option<Box<RawValue>> {
        let dropped = |field: &str| names.iter().any(|name| name.eq_ignore_ascii_case(field));
        let kept = self.fields.iter().filter(|(field, _)| !dropped(field));
        let kept: BTreeMap<_, _> = kept.collect();
        Some(crate::json::raw(&kept))
    }

    /// A text; `None` if it is absent or empty.
    pub(in crate::im) fn text(&self, name: &str) -> Result<Option<String>, Wrong> {
        let Some(value) = self.raw(name) else {
            return Ok(None);
        };
        match serde_json::from_str::<Text>(value.get()) {
            Ok(text) => Ok(Some(text.into_string()).filter(|text| !text.is_empty())),
            Err(_) => Err(self.wrong(name, "a text")),
        }
    }

    /// A whole number.
    pub(in crate::im) fn number<N: TryFrom<i64>>(&self, name: &str) -> Result<Option<N>, Wrong> {
        let wrong = || self.wrong(name, "a whole number within its bounds");
        match self.text(name).map_err(|_| wrong())? {
            None => Ok(None),
            Some(text) => whole(&text).map(Some).ok_or_else(wrong),
        }
    }

    /// A number with or without a fraction.
    pub(in crate::im) fn fraction(&self, name: &str) -> Result<Option<f64>, Wrong> {
        let wrong = || self.wrong(name, "a number");
        match self.text(name).map_err(|_| wrong())? {
            None => Ok(None),
            Some(text) => match text.trim().parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(Some(number)),
                _ => Err(wrong()),
            },
        }
    }

    /// A flag.
    pub(in crate::im) fn flag(&self, name: &str) -> Result<Option<bool>, Wrong> {
        let Some(value) = self.raw(name) else {
            return Ok(None);
        };
        match value.get().trim_matches('"') {
            "" => Ok(None),
            word => flag(word)
                .map(Some)
                .ok_or_else(|| self.wrong(name, "true or false")),
        }
    }

    /// A list of ids.
    pub(in crate::im) fn texts(&self, name: &str) -> Result<Option<Vec<String>>, Wrong> {
        let Some(value) = self.raw(name) else {
            return Ok(None);
        };
        texts(value.get())
            .map(Some)
            .ok_or_else(|| self.wrong(name, "a list of ids"))
    }

    /// The JSON of an object, which may be written inside a text.
    pub(in crate::im) fn object(&self, name: &str) -> Result<Option<Cow<'a, str>>, Wrong> {
        let Some(value) = self.raw(name) else {
            return Ok(None);
        };
        let json = unpacked(value);
        if json.is_empty() {
            return Ok(None);
        }
        match json.trim_start().starts_with('{') {
            true => Ok(Some(json)),
            false => Err(self.wrong(name, "an object")),
        }
    }
}

/// Reads a flag.
pub(in crate::im) fn flag(word: &str) -> Option<bool> {
    match word.to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

/// Reads a list of ids.
pub(in crate::im) fn texts(json: &str) -> Option<Vec<String>> {
    let texts: Vec<Text> = serde_json::from_str(json).ok()?;
    Some(texts.into_iter().map(Text::into_string).collect())
}

/// The JSON inside a text, or the value itself.
pub(in crate::im) fn unpacked(value: &RawValue) -> Cow<'_, str> {
    match serde_json::from_str::<String>(value.get()) {
        Ok(text) => Cow::Owned(text),
        Err(_) => Cow::Borrowed(value.get()),
    }
}

/// A whole number written as text. A fraction of zero is allowed.
fn whole<N: TryFrom<i64>>(text: &str) -> Option<N> {
    let text = text.trim();
    let number = text.parse::<i64>().ok().or_else(|| {
        let number: f64 = text.parse().ok()?;
        // Above 2^53, about 9e15, the float may differ from the number that was written.
        (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64)
    })?;
    N::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: &str) -> Loose<'_> {
        Loose::body(json.as_bytes()).unwrap()
    }

    #[test]
    fn a_flag_is_a_flag_however_it_is_written() {
        for (json, flag) in [
            ("true", Some(true)),
            ("1", Some(true)),
            (r#""true""#, Some(true)),
            (r#""1""#, Some(true)),
            (r#""True""#, Some(true)),
            ("false", Some(false)),
            ("0", Some(false)),
            (r#""0""#, Some(false)),
            (r#""""#, None),
            ("null", None),
        ] {
            let json = format!(r#"{{"f":{json}}}"#);
            assert_eq!(object(&json).flag("f"), Ok(flag), "{json}");
        }
        for json in ["2", r#""yes""#, "[]", "{}", "1.5"] {
            let json = format!(r#"{{"f":{json}}}"#);
            let wrong = object(&json).flag("f").unwrap_err();
            assert_eq!(wrong.to_string(), "f: true or false is expected");
        }
    }

    #[test]
    fn numbers_and_ids_may_stand_in_each_others_clothes() {
        let fields = object(r#"{"n":"17","m":3.0,"id":42,"list":["a",7],"big":9007199254740993}"#);
        assert_eq!(fields.number("n"), Ok(Some(17_u8)));
        assert_eq!(fields.number("m"), Ok(Some(3_i32)));
        assert_eq!(fields.number("big"), Ok(Some(9_007_199_254_740_993_i64)));
        assert!(fields.number::<u8>("big").is_err());
        assert_eq!(fields.text("id"), Ok(Some("42".to_owned())));
        let list = vec!["a".to_owned(), "7".to_owned()];
        assert_eq!(fields.texts("list"), Ok(Some(list)));
        assert!(fields.texts("n").is_err());
        assert!(fields.text("list").is_err());
    }

    #[test]
    fn objects_may_stand_in_texts_and_names_in_any_case() {
        let fields = object(r#"{"Content":"{\"a\":1}","plain":{"b":null},"list":[]}"#);
        assert_eq!(fields.object("content").unwrap().unwrap(), r#"{"a":1}"#);
        let plain = fields.object("plain").unwrap().unwrap();
        let plain = Loose::parse("plain", &plain).unwrap();
        assert!(!plain.has("b"));
        assert_eq!(plain.path_of("b"), "plain.b");
        assert!(fields.object("list").is_err());
        assert!(fields.has_more_than(&["content", "plain"]));
        assert_eq!(
            fields.without(&["content", "LIST"]).unwrap().get(),
            r#"{"plain":{"b":null}}"#
        );
    }

    #[test]
    fn what_is_no_object_is_wrong() {
        for body in [&b""[..], b"[]", b"{", b"{}x", b"\xff", b"null"] {
            let wrong = Loose::body(body).unwrap_err();
            assert_eq!(wrong.to_string(), "body: a JSON object is expected");
        }
        assert!(Loose::body("\u{feff}{}".as_bytes()).is_ok());
    }
}
