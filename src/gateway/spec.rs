//! A job whose audience follows it as a list: writes the messages of the list, each with the whole
//! job.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::domain::audience::Member;
use crate::domain::fields::{Fields, Problem, Problems, TWICE, each_field};
use crate::domain::job::{ListPart, PARTS_MAX};
use crate::domain::list_reference::{FetchedList, ListReference};
use crate::domain::parts::{Bounds, Filling};
use crate::domain::text;

/// The header for the job of an uploaded list, as JSON or as base64 of it.
pub(super) const HEADER: &str = "Fanwise-Job-Spec";

/// Largest job without its audience. Each part of the list carries it.
pub(super) const SPEC_BYTES_MAX: usize = 1024 * 1024;

/// Most bytes that the job takes in all parts of a list together: it is repeated in each part, and
/// the broker keeps all of them.
const SPEC_BYTES_OF_ALL_MAX: usize = 256 * 1024 * 1024;

/// Recipients in one message of a list. Several messages are on their way through gateway, broker
/// and worker at a time, so smaller ones take less memory; slices are full in any case.
const PART_RECIPIENTS: usize = 25_000;

/// The field of an audience that tells which list was fetched.
const FETCHED: &str = "fetched";

/// The bytes before the recipients.
const LIST: &[u8] = b"\"users\":[";

/// The bytes that all parts of an upload have in common.
#[derive(Debug)]
pub(super) struct Spec {
    /// Everything up to the opening bracket of the recipients.
    before: Vec<u8>,
}

type RawFields<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// The fields of an object; a field that occurs twice is an error.
fn raw_fields<'a>(field: &str, json: &'a str) -> Result<RawFields<'a>, Problem> {
    let (mut fields, mut twice) = (RawFields::new(), None);
    each_field(json, |name, value| match fields.entry(name) {
        Entry::Vacant(place) => drop(place.insert(value)),
        Entry::Occupied(place) => drop(twice.get_or_insert(place.key().clone())),
    })
    .map_err(|error| Problem::new(field, format!("a JSON object is expected: {error}")))?;
    match twice {
        Some(name) => Err(Problem::new(name, TWICE)),
        None => Ok(fields),
    }
}

impl Spec {
    /// Takes a job apart; whether it is valid is checked when it is put together. `field` names its
    /// place in the request.
    pub(super) fn parse(field: &str, text: &[u8], given: &[Given<'_>]) -> Result<Self, Problem> {
        Self::take_apart(field, text, given, &mut |name, _| {
            let what =
                "the recipients are in the list that follows; here only `exclude` is permitted";
            Err(Problem::new(format!("audience.{name}"), what))
        })
    }

    /// Takes a job apart whose list is somewhere else.
    pub(super) fn by_reference(
        text: &[u8],
        given: &[Given<'_>],
    ) -> Result<(Self, ListReference), Vec<Problem>> {
        let mut reference = b"{".to_vec();
        let spec = Self::take_apart("", text, given, &mut |name, value| {
            if !ListReference::FIELDS.contains(&name) {
                let what = "the recipients are in the list at `url`; beside it only `exclude` and \
                            what describes that list are permitted";
                return Err(Problem::new(format!("audience.{name}"), what));
            }
            write_field(&mut reference, name, value);
            Ok(())
        });
        let spec = spec.map_err(|problem| vec![problem])?;
        reference.pop();
        reference.push(b'}');
        let mut problems = Problems::default();
        let text = String::from_utf8_lossy(&reference);
        let found = Fields::open("audience", &text, &mut problems)
            .and_then(|mut fields| ListReference::from_fields(&mut fields, &mut problems));
        match found {
            Some(found) if problems.is_empty() => Ok((spec, found)),
            _ => Err(problems.into()),
        }
    }

    /// `other` gets the fields of the audience that do not belong to the spec.
    fn take_apart(
        field: &str,
        text: &[u8],
        given: &[Given<'_>],
        other: &mut dyn FnMut(&str, &str) -> Result<(), Problem>,
    ) -> Result<Self, Problem> {
        let problem = |what: String| Problem::new(field, what);
        if text.len() > SPEC_BYTES_MAX {
            let what = format!(
                "{} bytes; at most {SPEC_BYTES_MAX} are permitted",
                text.len()
            );
            return Err(problem(what));
        }
        let text = text::decode(text).map_err(problem)?;
        let mut fields = raw_fields(field, text)?;
        if fields.contains_key("part") {
            let what = "the gateway cuts an upload into parts; leave it out";
            return Err(Problem::new("part", what));
        }
        let mut before = b"{".to_vec();
        let audience = fields.remove("audience");
        for (name, value) in &fields {
            write_field(&mut before, name, value.get());
        }
        for (name, value) in given.iter().filter(|(name, _)| !fields.contains_key(*name)) {
            write_field(&mut before, name, &json(value));
        }
        before.extend_from_slice(b"\"audience\":{");
        if let Some(audience) = audience {
            let fields = raw_fields("audience", audience.get())?;
            for (name, value) in &fields {
                match &**name {
                    "exclude" | FETCHED => write_field(&mut before, name, value.get()),
                    name => other(name, value.get())?,
                }
            }
        }
        before.extend_from_slice(LIST);
        Ok(Self { before })
    }

    /// The job with the version of the list that was fetched for it.
    pub(super) fn with_fetched(mut self, version: &FetchedList) -> Self {
        let list = self.before.len() - LIST.len();
        self.before.truncate(list);
        write_field(&mut self.before, FETCHED, &crate::json::text(version));
        self.before.extend_from_slice(LIST);
        self
    }

    /// The job without its list, as `before_accept` gets it.
    pub(super) fn document(&self) -> Bytes {
        let audience = self.before.strip_suffix(LIST).unwrap_or(&self.before);
        let audience = audience.strip_suffix(b",").unwrap_or(audience);
        [audience, b"}}"].concat().into()
    }

    /// Most parts that a list with this job may be cut into.
    pub(super) fn parts_max(&self) -> u32 {
        let most = SPEC_BYTES_OF_ALL_MAX / self.before.len().max(1);
        u32::try_from(most).unwrap_or(PARTS_MAX).min(PARTS_MAX)
    }

    /// Starts an empty message.
    pub(super) fn open(&self) -> Message<'_> {
        Message {
            spec: self,
            body: self.before.clone(),
            filling: self.filling(),
        }
    }

    /// An empty list of recipients beside the job.
    fn filling(&self) -> Filling {
        Filling::new(Bounds::of_message(PART_RECIPIENTS, self.before.len()))
    }
}

/// One message of an upload, while recipients are added.
pub(super) struct Message<'a> {
    spec: &'a Spec,
    body: Vec<u8>,
    filling: Filling,
}

impl Message<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.filling.is_empty()
    }

    /// Adds a recipient, unless the message is full.
    pub(super) fn push(&mut self, member: &Member<'_>) -> bool {
        let end = self.body.len();
        if !self.is_empty() {
            self.body.push(b',');
        }
        let start = self.body.len();
        match member.vars {
            None => crate::json::write(&mut self.body, &member.id),
            Some(vars) => {
                self.body.extend_from_slice(b"{\"id\":");
                crate::json::write(&mut self.body, &member.id);
                self.body.extend_from_slice(b",\"vars\":");
                self.body.extend_from_slice(vars.get().as_bytes());
                self.body.push(b'}');
            }
        }
        let fits = self.filling.take(self.body.len() - start);
        if !fits {
            self.body.truncate(end);
        }
        fits
    }

    /// Finishes the message, and starts the next one empty.
    pub(super) fn close(&mut self, part: &ListPart) -> Bytes {
        let next = Vec::with_capacity(self.body.len());
        let mut body = std::mem::replace(&mut self.body, next);
        self.body.extend_from_slice(&self.spec.before);
        self.filling = self.spec.filling();
        body.extend_from_slice(b"]}");
        if part.of > 1 {
            body.extend_from_slice(b",\"part\":");
            crate::json::write(&mut body, part);
        }
        body.push(b'}');
        body.into()
    }
}

fn write_field(body: &mut Vec<u8>, name: &str, value: &str) {
    body.extend_from_slice(json(name).as_bytes());
    body.push(b':');
    body.extend_from_slice(value.as_bytes());
    body.push(b',');
}

fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Whether a job names its list by its address. Reads only jobs that may do so.
pub(super) fn names_a_list(job: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Job<'a> {
        #[serde(borrow)]
        audience: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Audience {
        url: Option<IgnoredAny>,
    }
    if job.len() > SPEC_BYTES_MAX {
        return false;
    }
    let text = text::decode(job).unwrap_or_default();
    let url = || {
        let job: Job<'_> = serde_json::from_str(text).ok()?;
        let audience: Audience = serde_json::from_str(job.audience?.get()).ok()?;
        audience.url
    };
    text.contains("\"url\"") && url().is_some()
}

/// The job in the value of a header.
pub(super) fn of_header(value: &[u8]) -> Result<Vec<u8>, Problem> {
    if value.trim_ascii_start().starts_with(b"{") {
        return Ok(value.to_vec());
    }
    let lenient =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&STANDARD, lenient)
        .decode(value)
        .map_err(|error| {
            let what = format!("neither JSON that begins with {{ nor base64 of it: {error}");
            Problem::new(HEADER, what)
        })
}

/// A field with a value that a job gets from its request, if it has no such field.
pub(super) type Given<'a> = (&'static str, &'a str);

/// A job with the fields that it lacks; `None` if it lacks none, or is not valid JSON.
pub(super) fn complete(job: &[u8], given: &[Given<'_>]) -> Option<Bytes> {
    let mut lacking = given.to_vec();
    each_field(text::decode(job).ok()?, |name, _| {
        lacking.retain(|(given, _)| *given != name);
    })
    .ok()?;
    if lacking.is_empty() {
        return None;
    }
    // It is an object, since it was read as one.
    let at = job.iter().position(|byte| *byte == b'{')? + 1;
    let mut with = Vec::with_capacity(job.len() + 128);
    with.extend_from_slice(&job[..at]);
    for (name, value) in lacking {
        write_field(&mut with, name, &json(value));
    }
    let rest = job[at..].trim_ascii_start();
    if rest.starts_with(b"}") {
        with.pop();
    }
    with.extend_from_slice(rest);
    Some(with.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::JOB_BYTES_MAX;

    const KEY: &[Given<'_>] = &[("client_msg_no", "b")];

    fn members(spec: &str, given: &[Given<'_>], part: &ListPart) -> String {
        let spec = Spec::parse("job", spec.as_bytes(), given).unwrap();
        let mut message = spec.open();
        for (id, vars) in [("u\"1", None), ("u2", Some("{\"n\":1}"))] {
            let vars = vars.map(|vars| RawValue::from_string(vars.to_owned()).unwrap());
            let member = Member {
                id: id.into(),
                vars: vars.as_deref(),
            };
            assert!(message.push(&member));
        }
        String::from_utf8(message.close(part).to_vec()).unwrap()
    }

    #[test]
    fn a_spec_and_a_list_make_a_job() {
        let spec = r#"{"v":1,"client_msg_no":"a","audience":{"exclude":["x"]}}"#;
        let whole = r#"{"client_msg_no":"a","v":1,"audience":{"exclude":["x"],"users":["u\"1",{"id":"u2","vars":{"n":1}}]}}"#;
        assert_eq!(members(spec, KEY, &ListPart::WHOLE), whole);
        let part = ListPart {
            number: 2,
            of: 3,
            together: Some("l".to_owned()),
        };
        assert_eq!(
            members("{}", KEY, &part),
            r#"{"client_msg_no":"b","audience":{"users":["u\"1",{"id":"u2","vars":{"n":1}}]},"part":{"number":2,"of":3,"together":"l"}}"#
        );
    }

    #[test]
    fn a_spec_is_told_without_its_list_and_read_again() {
        for (spec, told) in [
            (r#"{"v":1}"#, r#"{"v":1,"client_msg_no":"b","audience":{}}"#),
            (
                r#"{"v":1,"client_msg_no":"a","audience":{"exclude":["x"]}}"#,
                r#"{"client_msg_no":"a","v":1,"audience":{"exclude":["x"]}}"#,
            ),
        ] {
            let spec = Spec::parse("job", spec.as_bytes(), KEY).unwrap();
            assert_eq!(spec.document(), told);
            let again = Spec::parse("job", told.as_bytes(), &[]).unwrap();
            let parsed = |spec: &Spec| {
                serde_json::from_slice::<serde_json::Value>(&spec.document()).unwrap()
            };
            assert_eq!(parsed(&again), parsed(&spec));
        }
    }

    #[test]
    fn a_spec_brings_no_recipients_and_no_part() {
        let field = |text: &str| Spec::parse("job", text.as_bytes(), &[]).unwrap_err().field;
        assert_eq!(field("[]"), "job");
        assert_eq!(field(r#"{"part":{}}"#), "part");
        assert_eq!(field(r#"{"audience":{"users":["a"]}}"#), "audience.users");
        assert_eq!(field(r#"{"audience":{"all":true}}"#), "audience.all");
        assert_eq!(field(r#"{"audience":3}"#), "audience");
    }

    #[test]
    fn a_job_may_name_its_list() {
        let job = r#"{"v":1,"client_msg_no":"a","audience":{"url":"http://a/u","exclude":["x"],"etag":"7"}}"#;
        assert!(names_a_list(job.as_bytes()));
        let (spec, reference) = Spec::by_reference(job.as_bytes(), &[]).unwrap();
        assert_eq!(
            (reference.url.as_str(), reference.etag.as_deref()),
            ("http://a/u", Some("7"))
        );
        let version = FetchedList {
            url: "http://a/u".to_owned(),
            etag: None,
            sha256: "0".repeat(64),
            bytes: 3,
        };
        let spec = spec.with_fetched(&version);
        let told = String::from_utf8(spec.document().to_vec()).unwrap();
        let fetched = crate::json::text(&version);
        let expected = format!(
            r#"{{"client_msg_no":"a","v":1,"audience":{{"exclude":["x"],"fetched":{fetched}}}}}"#
        );
        assert_eq!(told, expected);
        assert_eq!(
            Spec::parse("job", told.as_bytes(), &[]).unwrap().document(),
            spec.document()
        );
        for other in [
            r#"{"message":{"text":"\"url\""},"audience":{"users":["a"]}}"#,
            r#"{"audience":{"url":null}}"#,
            r#"{"audience":"url"}"#,
            r#"{"url":"http://a/u"}"#,
        ] {
            assert!(!names_a_list(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn beside_a_reference_there_is_no_other_audience() {
        for (job, field) in [
            (
                r#"{"audience":{"url":"http://a/u","users":["a"]}}"#,
                "audience.users",
            ),
            (
                r#"{"audience":{"url":"http://a/u","url":"http://b/u"}}"#,
                "url",
            ),
            (r#"{"audience":{"url":7}}"#, "audience.url"),
            (r#"{"part":{},"audience":{"url":"http://a/u"}}"#, "part"),
        ] {
            let problems = Spec::by_reference(job.as_bytes(), &[]).unwrap_err();
            assert_eq!(problems[0].field, field, "{job}");
        }
    }

    #[test]
    fn a_key_that_stands_twice_and_a_byte_order_mark_are_seen() {
        let wrong = |text: &str| Spec::parse("job", text.as_bytes(), &[]).unwrap_err();
        assert_eq!(wrong(r#"{"v":1,"v":1}"#).field, "v");
        assert_eq!(
            wrong(r#"{"audience":{"exclude":[],"exclude":[]}}"#).field,
            "exclude"
        );
        assert!(Spec::parse("job", "\u{feff}{}".as_bytes(), &[]).is_ok());
        let keyed = complete("\u{feff}{}".as_bytes(), &[("client_msg_no", "k")]).unwrap();
        assert!(text::decode(&keyed).is_ok_and(|job| job == "{\"client_msg_no\":\"k\"}"));
    }

    #[test]
    fn what_is_repeated_in_every_part_is_bounded() {
        let spec = |bytes: usize| {
            let spec = format!("{{\"x\":\"{}\"}}", "x".repeat(bytes));
            Spec::parse("job", spec.as_bytes(), &[]).unwrap()
        };
        assert_eq!(spec(100).parts_max(), PARTS_MAX);
        let large = spec(SPEC_BYTES_MAX - 100);
        let all = large.parts_max() as usize * large.before.len();
        assert!(all <= SPEC_BYTES_OF_ALL_MAX && large.parts_max() > 200);
    }

    #[test]
    fn a_message_is_closed_before_it_is_too_large() {
        let spec = Spec::parse("job", b"{}", &[]).unwrap();
        let mut message = spec.open();
        let member = Member {
            id: "u".repeat(200).into(),
            vars: None,
        };
        while message.push(&member) {}
        let body = message.close(&ListPart::WHOLE);
        assert!(body.len() <= JOB_BYTES_MAX && body.len() > JOB_BYTES_MAX - 600);
        assert!(message.is_empty() && message.push(&member));
    }

    #[test]
    fn a_header_holds_json_or_base64() {
        for (value, expected) in [
            ("{\"v\":1}", "{\"v\":1}"),
            ("eyJ2IjoxfQ==", "{\"v\":1}"),
            ("eyJ2IjoxfQ", "{\"v\":1}"),
        ] {
            assert_eq!(of_header(value.as_bytes()).unwrap(), expected.as_bytes());
        }
        assert_eq!(of_header(b"?").unwrap_err().field, HEADER);
    }

    #[test]
    fn a_job_gets_the_fields_that_it_lacks() {
        let given = [("client_msg_no", "k"), ("app", "shop")];
        let added = |job: &str| {
            complete(job.as_bytes(), &given).map(|job| String::from_utf8(job.to_vec()).unwrap())
        };
        assert_eq!(
            added(" { \"v\":1}").unwrap(),
            " {\"client_msg_no\":\"k\",\"app\":\"shop\",\"v\":1}"
        );
        let both = "{\"client_msg_no\":\"k\",\"app\":\"shop\"}";
        assert_eq!(added("{ }").unwrap(), both);
        let one = added("{\"client_msg_no\":\"a\"}").unwrap();
        assert_eq!(one, "{\"app\":\"shop\",\"client_msg_no\":\"a\"}");
        // What is there stays, also if it is wrong.
        assert_eq!(added("{\"app\":null,\"client_msg_no\":1}"), None);
        assert_eq!(added("{\"\\u0061pp\":\"x\",\"client_msg_no\":\"a\"}"), None);
        assert_eq!(added("[1"), None);
        assert_eq!(complete(b"{}", &[]), None);
    }
}
