//! Reads settings key by key from a TOML tree and the environment. It collects all problems, so
//! that they are reported together, and records where each value came from, so that it can be
//! shown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::{Table, Value};

use crate::domain::fields::{Problem, suggestion};
use crate::domain::limits::Rate;
use crate::domain::schedule::{duration_text, parse_duration};
use crate::secret::{Secret, without_credentials};

/// Prefix of all environment variables of Fanwise; `__` separates section and key.
pub const ENV_PREFIX: &str = "FANWISE_";

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    File,
    Environment,
}

/// The value in force of one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub value: String,
    pub origin: Origin,
}

/// Problems, warnings and values found while reading.
#[derive(Debug, Default)]
pub struct Findings {
    pub problems: Vec<Problem>,
    /// Valid settings that are probably a mistake.
    pub warnings: Vec<Problem>,
    /// Every key with the value in force.
    pub shown: BTreeMap<String, Shown>,
}

impl Findings {
    pub fn problem(&mut self, key: impl Into<String>, what: impl Into<String>) {
        self.problems.push(Problem::new(key, what));
    }

    /// Whether there already is a problem with a key that begins like this.
    pub(super) fn mention(&self, key: &str) -> bool {
        let mut problems = self.problems.iter();
        problems.any(|problem| problem.field.starts_with(key))
    }

    pub fn warning(&mut self, key: impl Into<String>, what: impl Into<String>) {
        self.warnings.push(Problem::new(key, what));
    }
}

/// The settings of one table that are not read yet.
pub(super) struct Section {
    path: String,
    left: Table,
    from_environment: BTreeSet<String>,
    known: Vec<&'static str>,
}

/// The old and the present names of keys.
const RENAMED: [(&str, &str); 11] = [
    ("block", "block_for"),
    ("calls", "rate"),
    ("config_park", "config_fault_pause"),
    ("express_in_work", "small_job_concurrency"),
    ("folder", "dir"),
    ("requests", "request_rate"),
    ("slice_budget", "slice_time_max"),
    ("slices_in_work", "slice_concurrency"),
    ("upload_folder", "upload_dir"),
    ("wait", "answer_within"),
    ("window", "repeat_window"),
];

/// The present name of a key under its old name, if the section knows the present one.
fn renamed(name: &str, known: &[&'static str]) -> Option<&'static str> {
    let (_, now) = RENAMED.iter().find(|(old, _)| *old == name)?;
    known.contains(now).then_some(*now)
}

impl Section {
    /// The whole tree: the table of the file, overridden by `FANWISE_…` variables.
    pub(super) fn root(
        mut file: Table,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Self {
        let mut from_environment = BTreeSet::new();
        for (name, value) in environment {
            let Some(path) = name.strip_prefix(ENV_PREFIX) else {
                continue;
            };
            let path: Vec<String> = path.split("__").map(str::to_ascii_lowercase).collect();
            // A single word is an option of the command line, such as FANWISE_CONFIG.
            if path.len() > 1 && insert(&mut file, &path, value) {
                from_environment.insert(path.join("."));
            }
        }
        Self {
            path: String::new(),
            left: file,
            from_environment,
            known: Vec::new(),
        }
    }

    pub(super) fn key(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    fn take(&mut self, name: &'static str) -> Option<(Value, Origin)> {
        self.known.push(name);
        let value = self.left.remove(name)?;
        let environment = self.from_environment.contains(&self.key(name));
        Some((
            value,
            if environment {
                Origin::Environment
            } else {
                Origin::File
            },
        ))
    }

    /// A sub-table; empty if it is missing.
    pub(super) fn section(&mut self, name: &'static str, findings: &mut Findings) -> Self {
        let table = match self.take(name) {
            None => Table::new(),
            Some((Value::Table(table), _)) => table,
            Some(_) => {
                findings.problem(self.key(name), "a table is expected");
                Table::new()
            }
        };
        self.child(name, table)
    }

    /// A sub-table, if it is present.
    pub(super) fn optional(&mut self, name: &'static str, findings: &mut Findings) -> Option<Self> {
        let there = self.left.contains_key(name);
        self.known.push(name);
        there.then(|| self.section(name, findings))
    }

    /// All sub-tables of a table of names, such as `targets`.
    pub(super) fn named(
        &mut self,
        name: &'static str,
        findings: &mut Findings,
    ) -> Vec<(String, Self)> {
        let parent = self.section(name, findings);
        let mut sections = Vec::new();
        for (key, value) in parent.left.clone() {
            match value {
                Value::Table(table) => sections.push((key.clone(), parent.child(&key, table))),
                _ => findings.problem(parent.key(&key), "a table is expected"),
            }
        }
        sections
    }

    fn child(&self, name: &str, table: Table) -> Self {
        Self {
            path: self.key(name),
            left: table,
            from_environment: self.from_environment.clone(),
            known: Vec::new(),
        }
    }

    fn show(&self, name: &str, value: impl Into<String>, origin: Origin, findings: &mut Findings) {
        findings.shown.insert(
            self.key(name),
            Shown {
                value: value.into(),
                origin,
            },
        );
    }

    /// Reads a value as `T`, or returns the default. A value that `parse` refuses is a problem,
    /// which says what is expected.
    fn read<T>(
        &mut self,
        name: &'static str,
        default: T,
        show: impl Fn(&T) -> String,
        expected: impl fmt::Display,
        parse: impl Fn(&Value) -> Option<T>,
        findings: &mut Findings,
    ) -> T {
        let (value, origin) = match self.take(name) {
            None => (default, Origin::Default),
            Some((given, origin)) => match parse(&given) {
                Some(value) => (value, origin),
                None => {
                    findings.problem(
                        self.key(name),
                        format!("{expected} is expected, not {given}"),
                    );
                    (default, Origin::Default)
                }
            },
        };
        self.show(name, show(&value), origin, findings);
        value
    }

    pub(super) fn text(
        &mut self,
        name: &'static str,
        default: &str,
        findings: &mut Findings,
    ) -> String {
        let show = |text: &String| format!("{text:?}");
        self.read(name, default.to_owned(), show, "a text", as_text, findings)
    }

    pub(super) fn optional_text(
        &mut self,
        name: &'static str,
        findings: &mut Findings,
    ) -> Option<String> {
        let show =
            |text: &Option<String>| text.as_ref().map_or("(none)".into(), |t| format!("{t:?}"));
        self.read(
            name,
            None,
            show,
            "a text",
            |value| as_text(value).map(Some),
            findings,
        )
    }

    /// A required text.
    pub(super) fn required_text(&mut self, name: &'static str, findings: &mut Findings) -> String {
        let text = self.optional_text(name, findings);
        if text.as_ref().is_none_or(String::is_empty) {
            findings.problem(self.key(name), "missing");
        }
        text.unwrap_or_default()
    }

    /// The address of a backend. Parts that may be credentials are never shown.
    pub(super) fn optional_address(
        &mut self,
        name: &'static str,
        findings: &mut Findings,
    ) -> Option<String> {
        let show = |url: &Option<String>| {
            let url = url.as_deref().map(without_credentials);
            url.map_or("(none)".into(), |url| format!("{url:?}"))
        };
        let parse = |value: &Value| as_text(value).map(Some);
        self.read(name, None, show, "a text", parse, findings)
    }

    /// A required address.
    pub(super) fn required_address(
        &mut self,
        name: &'static str,
        findings: &mut Findings,
    ) -> String {
        let url = self.optional_address(name, findings);
        if url.as_ref().is_none_or(String::is_empty) {
            findings.problem(self.key(name), "missing");
        }
        url.unwrap_or_default()
    }

    /// A required secret. `missing` is the problem if it is not given.
    pub(super) fn required_secret(
        &mut self,
        name: &'static str,
        file_name: &'static str,
        missing: &str,
        findings: &mut Findings,
    ) -> Option<Secret> {
        let is_given = self.left.contains_key(name) || self.left.contains_key(file_name);
        let secret = self.secret(name, file_name, findings);
        if !is_given {
            findings.problem(self.key(name), missing);
        }
        secret
    }

    /// A secret: the value of the key, or the contents of the file that `<key>_file` names. An
    /// empty secret is always a problem: it would let every caller in, or none.
    pub(super) fn secret(
        &mut self,
        name: &'static str,
        file_name: &'static str,
        findings: &mut Findings,
    ) -> Option<Secret> {
        let mut direct = self.take(name);
        let mut file = self.take(file_name);
        // A variable overrides the file, even if it sets the other of the two keys.
        match (&direct, &file) {
            (Some((_, Origin::Environment)), Some((_, Origin::File))) => file = None,
            (Some((_, Origin::File)), Some((_, Origin::Environment))) => direct = None,
            _ => {}
        }
        let value = match (direct, file) {
            (Some(_), Some(_)) => {
                findings.problem(self.key(name), format!("and {file_name} are both given"));
                None
            }
            (Some((value, origin)), None) => {
                let text = as_text(&value);
                if text.is_none() {
                    findings.problem(self.key(name), "a text is expected");
                }
                text.map(|text| (text, origin, name))
            }
            (None, Some((path, origin))) => {
                let path = as_text(&path).unwrap_or_default();
                match std::fs::read_to_string(&path) {
                    Ok(text) => Some((text.trim_end().to_owned(), origin, file_name)),
                    Err(error) => {
                        let what = format!("cannot read {path:?}: {error}");
                        findings.problem(self.key(file_name), what);
                        None
                    }
                }
            }
            (None, None) => None,
        };
        let value = value.filter(|(text, _, given)| {
            let is_empty = text.trim().is_empty();
            if is_empty {
                let what = "is empty; set a value, or leave the key out";
                findings.problem(self.key(given), what);
            }
            !is_empty
        });
        let origin = value
            .as_ref()
            .map_or(Origin::Default, |(_, origin, _)| *origin);
        let shown = if value.is_some() {
            "(secret)"
        } else {
            "(none)"
        };
        self.show(name, shown, origin, findings);
        value.map(|(text, ..)| Secret::new(text))
    }

    pub(super) fn boolean(
        &mut self,
        name: &'static str,
        default: bool,
        findings: &mut Findings,
    ) -> bool {
        let parse = |value: &Value| match value {
            Value::Boolean(boolean) => Some(*boolean),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        self.read(
            name,
            default,
            bool::to_string,
            "true or false",
            parse,
            findings,
        )
    }

    pub(super) fn integer(
        &mut self,
        name: &'static str,
        default: u64,
        bounds: RangeInclusive<u64>,
        findings: &mut Findings,
    ) -> u64 {
        let expected = format!("a whole number, {} to {},", bounds.start(), bounds.end());
        let parse = |value: &Value| {
            let number = match value {
                Value::Integer(number) => u64::try_from(*number).ok(),
                Value::String(text) => text.parse().ok(),
                _ => None,
            };
            number.filter(|number| bounds.contains(number))
        };
        self.read(name, default, u64::to_string, expected, parse, findings)
    }

    /// An optional whole number.
    pub(super) fn optional_integer(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<u64>,
        findings: &mut Findings,
    ) -> Option<u64> {
        let expected = format!("a whole number from {}", bounds.start());
        let show = |number: &Option<u64>| number.map_or("(none)".into(), |it| it.to_string());
        let parse = |value: &Value| {
            let number = match value {
                Value::Integer(number) => u64::try_from(*number).ok(),
                Value::String(text) => text.parse().ok(),
                _ => None,
            };
            number.filter(|number| bounds.contains(number)).map(Some)
        };
        self.read(name, None, show, expected, parse, findings)
    }

    /// A list of secrets, such as addresses with passwords.
    pub(super) fn secrets(&mut self, name: &'static str, findings: &mut Findings) -> Vec<Secret> {
        let values = self.list(name, &[], findings);
        if let Some(shown) = findings.shown.get_mut(&self.key(name))
            && !values.is_empty()
        {
            "(secret)".clone_into(&mut shown.value);
        }
        values.into_iter().map(Secret::new).collect()
    }

    /// A list of texts; an environment variable separates them by commas.
    pub(super) fn list(
        &mut self,
        name: &'static str,
        default: &[&str],
        findings: &mut Findings,
    ) -> Vec<String> {
        let default = default.iter().map(|text| (*text).to_owned()).collect();
        let show = |list: &Vec<String>| match list.is_empty() {
            true => "(none)".to_owned(),
            false => format!("{list:?}"),
        };
        let parse = |value: &Value| match value {
            Value::Array(list) => list.iter().map(as_text).collect(),
            Value::String(text) => {
                let texts = text.split(',').map(str::trim);
                Some(texts.map(str::to_owned).collect())
            }
            _ => None,
        };
        let expected = "a list of texts";
        self.read(name, default, show, expected, parse, findings)
    }

    pub(super) fn ratio(
        &mut self,
        name: &'static str,
        default: f64,
        findings: &mut Findings,
    ) -> f64 {
        let parse = |value: &Value| {
            let number = match value {
                Value::Float(number) => Some(*number),
                Value::Integer(number) => Some(*number as f64),
                Value::String(text) => text.parse().ok(),
                _ => None,
            };
            number.filter(|number| (0.0..1.0).contains(number))
        };
        self.read(
            name,
            default,
            f64::to_string,
            "a number from 0 to below 1",
            parse,
            findings,
        )
    }

    pub(super) fn duration(
        &mut self,
        name: &'static str,
        default: Duration,
        bounds: RangeInclusive<Duration>,
        findings: &mut Findings,
    ) -> Duration {
        let show = |duration: &Duration| format!("\"{}\"", duration_text(*duration));
        let (least, most) = (duration_text(*bounds.start()), duration_text(*bounds.end()));
        let expected = format!("a duration such as \"500ms\" or \"2m\", {least} to {most},");
        let parse = |value: &Value| {
            let duration = parse_duration(value.as_str()?).ok()?;
            bounds.contains(&duration).then_some(duration)
        };
        self.read(name, default, show, expected, parse, findings)
    }

    pub(super) fn rate(&mut self, name: &'static str, findings: &mut Findings) -> Option<Rate> {
        let show = |rate: &Option<Rate>| rate.map_or("(none)".into(), |rate| format!("\"{rate}\""));
        let expected = "a rate such as \"2000/s burst 200\" or \"120/min per call\"";
        let parse = |value: &Value| value.as_str()?.parse().ok().map(Some);
        self.read(name, None, show, expected, parse, findings)
    }

    /// One of several words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        name: &'static str,
        default: &'static str,
        choices: &[(&'static str, T)],
        findings: &mut Findings,
    ) -> Option<T> {
        let words: Vec<_> = choices
            .iter()
            .map(|(word, _)| format!("{word:?}"))
            .collect();
        let expected = format!("one of {}", words.join(", "));
        let parse = |value: &Value| {
            let text = value.as_str()?;
            choices
                .iter()
                .map(|(word, _)| *word)
                .find(|word| *word == text)
        };
        let show = |word: &&'static str| format!("{word:?}");
        let word = self.read(name, default, show, expected, parse, findings);
        choices
            .iter()
            .find(|(choice, _)| *choice == word)
            .map(|(_, value)| *value)
    }

    /// A required choice.
    pub(super) fn required_choice<T: Copy>(
        &mut self,
        name: &'static str,
        choices: &[(&'static str, T)],
        findings: &mut Findings,
    ) -> Option<T> {
        if !self.left.contains_key(name) {
            self.known.push(name);
            let words: Vec<_> = choices
                .iter()
                .map(|(word, _)| format!("{word:?}"))
                .collect();
            findings.problem(
                self.key(name),
                format!("missing; one of {} is expected", words.join(", ")),
            );
            return None;
        }
        self.choice(name, "", choices, findings)
    }

    /// A table of texts, such as headers.
    pub(super) fn texts(
        &mut self,
        name: &'static str,
        findings: &mut Findings,
    ) -> Vec<(String, String)> {
        let mut texts = Vec::new();
        for (key, value) in self.section(name, findings).left {
            match as_text(&value) {
                Some(text) => texts.push((key, text)),
                None => findings.problem(self.key(&format!("{name}.{key}")), "a text is expected"),
            }
        }
        let origin = if texts.is_empty() {
            Origin::Default
        } else {
            Origin::File
        };
        self.show(name, format!("{} entries", texts.len()), origin, findings);
        texts
    }

    /// Learns which keys a reader knows, and ignores the values.
    pub(super) fn learn(&mut self, read: impl FnOnce(&mut Self, &mut Findings)) {
        let mut pupil = Self {
            path: self.path.clone(),
            left: self.left.clone(),
            from_environment: BTreeSet::new(),
            known: Vec::new(),
        };
        read(&mut pupil, &mut Findings::default());
        self.left.retain(|name, _| pupil.left.contains_key(name));
        self.known.extend(pupil.known);
    }

    /// Ends the reading: every key left over is unknown. Unknown variables only give a warning,
    /// because a cluster injects variables of its own, such as `FANWISE_…_PORT`.
    pub(super) fn finish(self, findings: &mut Findings) {
        for name in self.left.keys() {
            let key = self.key(name);
            if let Some(now) = renamed(name, &self.known) {
                findings.problem(key, format!("is now called `{now}`"));
                continue;
            }
            let hint = suggestion(name, self.known.iter().copied())
                .map(|known| format!("; did you mean `{known}`?"))
                .unwrap_or_default();
            let what = format!("unknown key{hint}");
            let below = format!("{key}.");
            let environment = |path: &String| *path == key || path.starts_with(&below);
            if self.from_environment.iter().any(environment) {
                findings.warning(key, format!("{what} (from the environment)"));
            } else {
                findings.problem(key, what);
            }
        }
    }
}

/// Reads a number as a text too: environment variables have no types.
fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Puts a value into the tree; false if a plain value is in the way.
fn insert(table: &mut Table, path: &[String], value: String) -> bool {
    match path {
        [] => false,
        [name] => {
            table.insert(name.clone(), Value::String(value));
            true
        }
        [name, rest @ ..] => {
            let child = table
                .entry(name.clone())
                .or_insert_with(|| Value::Table(Table::new()));
            child
                .as_table_mut()
                .is_some_and(|child| insert(child, rest, value))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(toml: &str, environment: &[(&str, &str)]) -> Section {
        let environment = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Section::root(toml.parse().unwrap(), environment)
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let mut findings = Findings::default();
        let mut root = section(
            "[a]\nn = 3",
            &[
                ("FANWISE_A__N", "5"),
                ("OTHER", "1"),
                ("FANWISE_CONFIG", "x"),
            ],
        );
        let mut a = root.section("a", &mut findings);
        assert_eq!(a.integer("n", 1, 0..=10, &mut findings), 5);
        assert_eq!(findings.shown["a.n"].origin, Origin::Environment);
        a.finish(&mut findings);
        root.finish(&mut findings);
        assert!(findings.problems.is_empty() && findings.warnings.is_empty());
    }

    #[test]
    fn a_key_under_its_old_name_is_refused_with_the_new_one() {
        let from_file = "[a]\nwait = \"2s\"";
        let from_environment = [("FANWISE_A__WAIT", "2s")];
        for (text, environment) in [(from_file, &[][..]), ("", &from_environment)] {
            let mut findings = Findings::default();
            let mut root = section(text, environment);
            let mut a = root.section("a", &mut findings);
            let second = Duration::from_secs(1);
            a.duration("answer_within", second, second..=second * 60, &mut findings);
            a.finish(&mut findings);
            let texts: Vec<_> = findings.problems.iter().map(Problem::to_string).collect();
            assert_eq!(texts, ["a.wait: is now called `answer_within`"]);
        }
    }

    #[test]
    fn every_problem_has_its_key() {
        let mut findings = Findings::default();
        let mut root = section(
            "[a]\nwait = \"9h\"\nlimt = 3\nn = -1",
            &[("FANWISE_A__PORT", "1")],
        );
        let mut a = root.section("a", &mut findings);
        let second = Duration::from_secs(1);
        assert_eq!(
            a.duration("wait", second, second..=second * 60, &mut findings),
            second
        );
        a.integer("limit", 1, 0..=10, &mut findings);
        a.integer("n", 1, 0..=10, &mut findings);
        a.finish(&mut findings);
        let texts: Vec<_> = findings.problems.iter().map(Problem::to_string).collect();
        assert_eq!(
            texts,
            [
                "a.wait: a duration such as \"500ms\" or \"2m\", 1s to 1m, is expected, not \"9h\"",
                "a.n: a whole number, 0 to 10, is expected, not -1",
                "a.limt: unknown key; did you mean `limit`?",
            ]
        );
        assert_eq!(findings.warnings.len(), 1);
    }
}
