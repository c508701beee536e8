//! Stored messages: which may be stored, under which names, and how one is inserted into a job.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::value::RawValue;

use super::fields::{Problem, suggestion};
use super::message::{Content, Message, Options};
use super::personal;
use super::slice::Head;

/// Longest name of a stored message, in bytes.
pub const TEMPLATE_NAME_BYTES_MAX: usize = 64;

/// Longest stored message, in bytes of JSON.
pub const TEMPLATE_BYTES_MAX: usize = 256 * 1024;

/// The most names that an error text lists.
const NAMES_SHOWN: usize = 10;

/// Splits a job's reference to a stored message: its name, and the version after an `@`. Without
/// one, the newest version is meant.
pub fn named_version(reference: &str) -> (&str, Option<u32>) {
    let split = reference.split_once('@').and_then(|(name, version)| {
        let digits = version.bytes().all(|byte| byte.is_ascii_digit());
        Some((name, Some(version.parse().ok().filter(|_| digits)?)))
    });
    split.unwrap_or((reference, None))
}

/// The reference to one version of a stored message.
pub fn with_version(name: &str, version: u32) -> String {
    format!("{name}@{version}")
}

/// Why a text cannot be the name of a stored message, if it cannot. Names are used in keys and
/// paths.
pub fn wrong_template_name(name: &str) -> Option<String> {
    let fits = (1..=TEMPLATE_NAME_BYTES_MAX).contains(&name.len());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let what =
        format!("{name:?} is not 1 to {TEMPLATE_NAME_BYTES_MAX} letters, digits, '-', '_' and '.'");
    (!fits || !name.bytes().all(plain)).then_some(what)
}

/// Reads a message that is stored or is to be stored.
pub fn read_template(json: &str) -> Result<Message, Vec<Problem>> {
    if json.len() > TEMPLATE_BYTES_MAX {
        let what = format!(
            "{} bytes, at most {TEMPLATE_BYTES_MAX} are allowed",
            json.len()
        );
        return Err(vec![Problem::new("message", what)]);
    }
    let message = Message::from_json(json)?;
    if message.literal {
        let what = "is not allowed in a stored message: its placeholders are always filled in";
        return Err(vec![Problem::new("message.literal", what)]);
    }
    let problems = match &message.content {
        Content::Template(_) => {
            let what = "a stored message cannot name another one";
            vec![Problem::new("message.template", what)]
        }
        content => personal::problems(content, &Options::default()),
    };
    if problems.is_empty() {
        Ok(message)
    } else {
        Err(problems)
    }
}

/// Inserts a stored message into a job. The job's own `native` fields and `vars` override those of
/// the message. The result is always a personal message, in which placeholders are filled in.
pub fn with_template(head: &Head, json: &str) -> Result<Arc<Head>, Vec<Problem>> {
    let stored = read_template(json)?;
    let head = Head {
        native: head.native.clone().or(stored.native),
        vars: Some(over(stored.vars.as_deref(), head.vars.as_deref())),
        content: stored.content,
        ..head.clone()
    };
    match personal::problems(&head.content, &head.options) {
        problems if problems.is_empty() => Ok(Arc::new(head)),
        problems => Err(problems),
    }
}

/// Merges two objects; the fields of `upper` win.
fn over(under: Option<&RawValue>, upper: Option<&RawValue>) -> Box<RawValue> {
    let read = |vars: Option<&RawValue>| -> BTreeMap<String, Box<RawValue>> {
        // It was read as an object before.
        crate::json::again(vars.map_or("{}", RawValue::get))
    };
    let mut both = read(under);
    both.extend(
        read(upper)
            .into_iter()
            .filter(|(_, value)| value.get() != "null"),
    );
    crate::json::raw(&both)
}

/// The problem of a job that names a version that is no longer stored.
pub fn version_is_gone(name: &str, version: u32) -> Problem {
    let what = format!("version {version} of {name:?} no longer exists, and the job names it");
    Problem::new("message.template", what)
}

/// The problem of a job that names an unknown stored message.
pub fn unknown_template(app: &str, name: &str, known: &[(String, u32)]) -> Problem {
    let names = || known.iter().map(|(name, _)| name.as_str());
    let hint = match suggestion(name, names()) {
        Some(near) => format!("; did you mean {near:?}?"),
        None if known.is_empty() => "; it has none, see `fanwise template put`".to_owned(),
        None => {
            let shown: Vec<_> = names().take(NAMES_SHOWN).collect();
            let more = if known.len() > NAMES_SHOWN {
                ", …"
            } else {
                ""
            };
            format!("; there are: {}{more}", shown.join(", "))
        }
    };
    let what = format!("app {app:?} has no stored message {name:?}{hint}");
    Problem::new("message.template", what)
}

#[cfg(test)]
mod tests {
    use super::super::fields::summary;
    use super::*;

    fn check(json: &str, expected: Result<(), &str>) {
        match (read_template(json), expected) {
            (Ok(_), Ok(())) => {}
            (Err(problems), Err(part)) => {
                let what = summary(&problems);
                assert!(what.contains(part), "{what}");
            }
            (found, _) => panic!("{json}: {found:?}"),
        }
    }

    #[test]
    fn what_is_stored_is_a_message_that_compiles() {
        check(
            r#"{"type":"text","text":"Hi {{ name }}","vars":{"name":"you"}}"#,
            Ok(()),
        );
        check(r#"{"type":"text"}"#, Err("message.text: missing"));
        check(r#"{"template":"other"}"#, Err("cannot name another"));
        check(
            r#"{"type":"text","text":"{{ name"}"#,
            Err("message.text: not a template"),
        );
        check("hello", Err("message: a JSON object is expected"));
        let long = format!(
            r#"{{"type":"raw","data":"{}"}}"#,
            "x".repeat(TEMPLATE_BYTES_MAX)
        );
        check(&long, Err("at most 262144"));
    }

    #[test]
    fn names_stand_in_keys_and_paths() {
        for name in ["welcome", "a.b-c_9"] {
            assert_eq!(wrong_template_name(name), None);
        }
        for name in ["", "a:b", "a/b", "é", &"n".repeat(65)] {
            assert!(wrong_template_name(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_version_stands_behind_the_name() {
        for (reference, expected) in [
            ("welcome", ("welcome", None)),
            ("welcome@3", ("welcome", Some(3))),
            ("welcome@", ("welcome@", None)),
            ("welcome@+3", ("welcome@+3", None)),
            ("welcome@99999999999", ("welcome@99999999999", None)),
            ("a@1@2", ("a@1@2", None)),
        ] {
            assert_eq!(named_version(reference), expected, "{reference}");
        }
        assert_eq!(named_version(&with_version("a", 7)), ("a", Some(7)));
        // So it cannot be part of a name.
        assert!(wrong_template_name("a@7").is_some());
    }

    #[test]
    fn the_jobs_values_win_over_the_stored_ones() {
        let raw = |json: &str| RawValue::from_string(json.to_owned()).unwrap();
        let (stored, own) = (raw(r#"{"a":1,"b":2}"#), raw(r#"{"b":3,"c":null}"#));
        assert_eq!(over(Some(&stored), Some(&own)).get(), r#"{"a":1,"b":3}"#);
        assert_eq!(over(None, None).get(), "{}");
    }

    #[test]
    fn an_unknown_name_comes_with_near_ones() {
        let known = [("welcome".to_owned(), 3), ("invoice".to_owned(), 1)];
        let said = |name: &str, known: &[_]| unknown_template("shop", name, known).what;
        assert_eq!(
            said("welcom", &known),
            r#"app "shop" has no stored message "welcom"; did you mean "welcome"?"#
        );
        assert!(said("xyz", &known).ends_with("; there are: welcome, invoice"));
        assert!(said("xyz", &[]).ends_with("see `fanwise template put`"));
    }
}
