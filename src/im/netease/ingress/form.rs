//! Decodes the fields of a call.
//!
//! The documentation's own example gives `curl -d` unencoded JSON. So a `%` that does not begin an
//! encoded byte is a percent sign, and an `&` within unencoded JSON does not end the field. A `+`
//! is a space, as for the vendor's servers. A body that is a JSON object is accepted too: its
//! fields that are not texts are taken as their JSON.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::codec::percent_decoded;
use crate::im::ingress::loose::{Loose, unpacked};

/// The fields that contain JSON, and the others.
const JSON: [&str; 7] = [
    "toAccids",
    "body",
    "option",
    "payload",
    "ext",
    "yidunAntiCheating",
    "yidunAntiSpamExt",
];
const PLAIN: [&str; 10] = [
    "fromAccid",
    "type",
    "msgDesc",
    "pushcontent",
    "pushContent",
    "useYidun",
    "bid",
    "returnMsgid",
    "env",
    "msgSenderNoSense",
];

/// Fields by name, without empty ones.
pub(super) struct Form(BTreeMap<String, String>);

impl Form {
    /// The fields of a body; `None` if it is not UTF-8.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(body).ok()?;
        let fields = if text.trim_start().starts_with('{') {
            Self::of_json(text)?
        } else {
            Self::of_form(text)?
        };
        let given = fields.into_iter().filter(|(_, value)| !value.is_empty());
        let mut form = BTreeMap::new();
        for (name, value) in given {
            // The first value of a name counts, as in a Java servlet.
            form.entry(name).or_insert(value);
        }
        Some(Self(form))
    }

    fn of_json(text: &str) -> Option<Vec<(String, String)>> {
        let object = Loose::body(text.as_bytes()).ok()?;
        let fields = object.fields();
        Some(
            fields
                .map(|(name, value)| (name.to_owned(), unpacked(value).into_owned()))
                .collect(),
        )
    }

    fn of_form(text: &str) -> Option<Vec<(String, String)>> {
        let mut fields: Vec<(String, String)> = Vec::new();
        let mut json = Progress::default();
        for part in text.split('&') {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let known = JSON.contains(&name) || PLAIN.contains(&name);
            match fields.last_mut() {
                Some((_, before)) if json.is_open() && !known => {
                    let part = decoded(part)?;
                    json.feed(&part);
                    before.push('&');
                    before.push_str(&part);
                }
                _ => {
                    let field = (decoded(name)?, decoded(value)?);
                    json = Progress::default();
                    // Encoders never leave a bracket or a brace unencoded.
                    if JSON.contains(&name) && value.starts_with(['{', '[']) {
                        json.feed(&field.1);
                    }
                    fields.push(field);
                }
            }
        }
        Some(fields)
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

/// The state of a JSON text that is read in parts, by its brackets and quotes. It looks at each
/// byte once.
#[derive(Default)]
struct Progress {
    depth: usize,
    in_text: bool,
    escaped: bool,
}

impl Progress {
    fn feed(&mut self, json: &str) {
        for byte in json.bytes() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = self.in_text,
                b'"' => self.in_text = !self.in_text,
                b'{' | b'[' if !self.in_text => self.depth += 1,
                b'}' | b']' if !self.in_text => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
    }

    fn is_open(&self) -> bool {
        self.in_text || self.depth > 0
    }
}

/// A text without its encoding; `None` if the result is not UTF-8.
fn decoded(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    percent_decoded(spaced.as_bytes()).map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(body: &str, name: &str, expected: Option<&str>) {
        let form = Form::parse(body.as_bytes()).unwrap();
        assert_eq!(form.get(name), expected, "{body}");
    }

    #[test]
    fn encoded_fields_are_decoded() {
        check("a=1+2%2B3&b=%7b%22x%22%3A1%7D", "a", Some("1 2+3"));
        check("a=1&b=%7b%22x%22%3A1%7D", "b", Some(r#"{"x":1}"#));
        check("%E4%BD%A0=%F0%9F%98%80", "你", Some("😀"));
        check("a=1&a=2", "a", Some("1"));
        for absent in ["", "a", "a=", "b=1", "&&", "=1"] {
            check(absent, "a", None);
        }
    }

    #[test]
    fn json_may_stand_unencoded() {
        let body = r#"toAccids=["aaa","bbb"]&type=0&body={"msg":"a=b & c&d=1"}&ext={}"#;
        check(body, "toAccids", Some(r#"["aaa","bbb"]"#));
        check(body, "type", Some("0"));
        check(body, "body", Some(r#"{"msg":"a=b & c&d=1"}"#));
        check(body, "ext", Some("{}"));
        // Complete JSON ends its field, and so does the name of a known field after incomplete
        // JSON.
        check("body={\"msg\":1}&x=1", "x", Some("1"));
        check("body={\"msg&type=0", "type", Some("0"));
        check("pushcontent=[Sale]&x=1", "x", Some("1"));
        check("body=%7B%22a&x=1", "x", Some("1"));
        check(r#"body={"msg":"x"}&type=0"#, "type", Some("0"));
    }

    #[test]
    fn unencoded_json_ends_where_its_brackets_close() {
        check(
            r#"body={"a":["}&x=1"]}&x=2"#,
            "body",
            Some(r#"{"a":["}&x=1"]}"#),
        );
        check(r#"body={"a":["}&x=1"]}&x=2"#, "x", Some("2"));
        check(r#"body={"a":"\"}&x=1"}&x=2"#, "x", Some("2"));
        check(r#"body={"a":"\\"}&x=1"#, "x", Some("1"));
        // A field of any length is looked at once.
        let endless = format!("body={{\"{}", "&".repeat(1_000_000));
        check(&endless, "type", None);
    }

    #[test]
    fn a_stray_percent_sign_stands_for_itself() {
        check(
            r#"body={"msg":"50% off, 100%"}"#,
            "body",
            Some(r#"{"msg":"50% off, 100%"}"#),
        );
        check("a=%&b=%4", "a", Some("%"));
        check("a=%&b=%4", "b", Some("%4"));
        check("a=%zz%41", "a", Some("%zzA"));
        check("a=%é", "a", Some("%é"));
    }

    #[test]
    fn a_json_body_is_taken_too() {
        let body = r#"{"type":0,"toAccids":["a"],"option":{"push":false},"body":"{\"msg\":\"x\"}","ext":null}"#;
        check(body, "type", Some("0"));
        check(body, "toAccids", Some(r#"["a"]"#));
        check(body, "option", Some(r#"{"push":false}"#));
        check(body, "body", Some(r#"{"msg":"x"}"#));
        check(body, "ext", None);
    }

    #[test]
    fn what_is_not_utf_8_is_refused() {
        for body in [&b"a=\xff"[..], b"a=%ff", b"%ff=a"] {
            assert!(Form::parse(body).is_none());
        }
    }

    proptest! {
        #[test]
        fn what_an_encoder_writes_is_read(values in prop::collection::vec(".+", 1..5)) {
            let mut body = String::new();
            for (index, value) in values.iter().enumerate() {
                let encoded: String = value.bytes().map(|byte| format!("%{byte:02X}")).collect();
                body.push_str(&format!("&f{index}={encoded}"));
            }
            let form = Form::parse(body.as_bytes()).unwrap();
            for (index, value) in values.iter().enumerate() {
                prop_assert_eq!(form.get(&format!("f{index}")), Some(value.as_str()));
            }
        }
    }
}
