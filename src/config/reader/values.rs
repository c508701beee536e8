//! Reads the values of a section by their types: texts, numbers, durations, rates, secrets, lists.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Value;

use super::Section;
use super::findings::{Findings, Origin};
use crate::config::placeholders;
use crate::domain::concurrency::CallsInFlight;
use crate::domain::limits::Rate;
use crate::domain::schedule::{duration_text, parse_duration};
use crate::secret::{Secret, without_credentials};

impl Section {
    /// Reads a value as `T`, or returns the default. A value that `parse` refuses is a problem,
    /// which says what is expected.
    fn value<T>(
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

    pub(in crate::config) fn text(
        &mut self,
        name: &'static str,
        default: &str,
        findings: &mut Findings,
    ) -> String {
        let show = |text: &String| format!("{text:?}");
        self.value(name, default.to_owned(), show, "a text", as_text, findings)
    }

    pub(in crate::config) fn optional_text(
        &mut self,
        name: &'static str,
        findings: &mut Findings,
    ) -> Option<String> {
        let show =
            |text: &Option<String>| text.as_ref().map_or("(none)".into(), |t| format!("{t:?}"));
        self.value(
            name,
            None,
            show,
            "a text",
            |value| as_text(value).map(Some),
            findings,
        )
    }

    /// A required text.
    pub(in crate::config) fn required_text(
        &mut self,
        name: &'static str,
        findings: &mut Findings,
    ) -> String {
        let text = self.optional_text(name, findings);
        if text.as_ref().is_none_or(String::is_empty) {
            findings.problem(self.key(name), "missing");
        }
        text.unwrap_or_default()
    }

    /// The address of a backend. Parts that may be credentials are never shown.
    pub(in crate::config) fn optional_address(
        &mut self,
        name: &'static str,
        findings: &mut Findings,
    ) -> Option<String> {
        let show = |url: &Option<String>| {
            let url = url.as_deref().map(without_credentials);
            url.map_or("(none)".into(), |url| format!("{url:?}"))
        };
        let parse = |value: &Value| as_text(value).map(Some);
        self.value(name, None, show, "a text", parse, findings)
    }

    /// A required address.
    pub(in crate::config) fn required_address(
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
    pub(in crate::config) fn required_secret(
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
    pub(in crate::config) fn secret(
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
            (Some((_, Origin::File)), Some((_, Origin::Environment))) => {
                findings.overridden(&self.key(name));
                direct = None;
            }
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
        // The value of the key itself was checked with all others.
        if let Some((text, _, given)) = &value
            && *given == file_name
        {
            placeholders::check(&self.key(file_name), text, findings);
        }
        value.map(|(text, ..)| Secret::new(text))
    }

    pub(in crate::config) fn boolean(
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
        self.value(
            name,
            default,
            bool::to_string,
            "true or false",
            parse,
            findings,
        )
    }

    pub(in crate::config) fn integer(
        &mut self,
        name: &'static str,
        default: u64,
        bounds: RangeInclusive<u64>,
        findings: &mut Findings,
    ) -> u64 {
        let expected = format!("a whole number, {} to {},", bounds.start(), bounds.end());
        let parse = |value: &Value| whole_number(value, &bounds);
        self.value(name, default, u64::to_string, expected, parse, findings)
    }

    /// A whole number, or "auto".
    pub(in crate::config) fn calls_in_flight(
        &mut self,
        name: &'static str,
        default: usize,
        bounds: RangeInclusive<u64>,
        findings: &mut Findings,
    ) -> CallsInFlight {
        const AUTO: &str = "auto";
        let (least, most) = (bounds.start(), bounds.end());
        let expected = format!("a whole number, {least} to {most}, or {AUTO:?}");
        let parse = |value: &Value| match value.as_str() {
            Some(AUTO) => Some(CallsInFlight::Auto),
            _ => whole_number(value, &bounds).map(|calls| CallsInFlight::Fixed(calls as usize)),
        };
        let show = |calls: &CallsInFlight| match calls {
            CallsInFlight::Fixed(calls) => calls.to_string(),
            CallsInFlight::Auto => format!("{AUTO:?}"),
        };
        let default = CallsInFlight::Fixed(default);
        self.value(name, default, show, expected, parse, findings)
    }

    /// An optional whole number.
    pub(in crate::config) fn optional_integer(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<u64>,
        findings: &mut Findings,
    ) -> Option<u64> {
        let expected = format!("a whole number from {}", bounds.start());
        let show = |number: &Option<u64>| number.map_or("(none)".into(), |it| it.to_string());
        let parse = |value: &Value| whole_number(value, &bounds).map(Some);
        self.value(name, None, show, expected, parse, findings)
    }

    /// A list of secrets, such as addresses with passwords.
    pub(in crate::config) fn secrets(
        &mut self,
        name: &'static str,
        findings: &mut Findings,
    ) -> Vec<Secret> {
        let values = self.list(name, &[], findings);
        if let Some(shown) = findings.shown.get_mut(&self.key(name))
            && !values.is_empty()
        {
            "(secret)".clone_into(&mut shown.value);
        }
        values.into_iter().map(Secret::new).collect()
    }

    /// A list of texts; an environment variable separates them by commas.
    pub(in crate::config) fn list(
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
        self.value(name, default, show, expected, parse, findings)
    }

    pub(in crate::config) fn ratio(
        &mut self,
        name: &'static str,
        default: f64,
        findings: &mut Findings,
    ) -> f64 {
        let parse = |value: &Value| as_number(value).filter(|number| (0.0..1.0).contains(number));
        self.value(
            name,
            default,
            f64::to_string,
            "a number from 0 to below 1",
            parse,
            findings,
        )
    }

    /// A share.
    pub(in crate::config) fn share(
        &mut self,
        name: &'static str,
        default: f64,
        bounds: RangeInclusive<f64>,
        findings: &mut Findings,
    ) -> f64 {
        let expected = format!("a number from {} to {}", bounds.start(), bounds.end());
        let parse = |value: &Value| as_number(value).filter(|share| bounds.contains(share));
        self.value(name, default, f64::to_string, expected, parse, findings)
    }

    /// An optional share, which may be more than the whole.
    pub(in crate::config) fn optional_share(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<f64>,
        findings: &mut Findings,
    ) -> Option<f64> {
        let expected = format!("a number from {} to {}", bounds.start(), bounds.end());
        let show = |share: &Option<f64>| share.map_or("(none)".into(), |it| it.to_string());
        let parse = |value: &Value| {
            let share = as_number(value).filter(|share| bounds.contains(share))?;
            Some(Some(share))
        };
        self.value(name, None, show, expected, parse, findings)
    }

    pub(in crate::config) fn duration(
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
        self.value(name, default, show, expected, parse, findings)
    }

    pub(in crate::config) fn optional_duration(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<Duration>,
        findings: &mut Findings,
    ) -> Option<Duration> {
        let given = self.has(name);
        let duration = self.duration(name, *bounds.start(), bounds, findings);
        if !given {
            self.show(name, "(none)", Origin::Default, findings);
        }
        given.then_some(duration)
    }

    /// A required value of any type, which `read` reads.
    pub(in crate::config) fn required<T>(
        &mut self,
        name: &'static str,
        findings: &mut Findings,
        read: impl FnOnce(&mut Self, &mut Findings) -> T,
    ) -> Option<T> {
        if !self.left.contains_key(name) {
            self.known.push(name);
            findings.problem(self.key(name), "missing");
            return None;
        }
        Some(read(self, findings))
    }

    pub(in crate::config) fn rate(
        &mut self,
        name: &'static str,
        findings: &mut Findings,
    ) -> Option<Rate> {
        let show = |rate: &Option<Rate>| rate.map_or("(none)".into(), |rate| format!("\"{rate}\""));
        let expected = "a rate such as \"2000/s burst 200\" or \"120/min per call\"";
        let parse = |value: &Value| value.as_str()?.parse().ok().map(Some);
        self.value(name, None, show, expected, parse, findings)
    }

    /// A rate a day.
    pub(in crate::config) fn daily_rate(
        &mut self,
        name: &'static str,
        findings: &mut Findings,
    ) -> Option<Rate> {
        let rate = self.rate(name, findings)?;
        if !rate.is_daily() {
            let what = format!("a rate a day such as \"100000/day\" is expected, not \"{rate}\"");
            findings.problem(self.key(name), what);
        }
        Some(rate)
    }

    /// One of several words.
    pub(in crate::config) fn choice<T: Copy>(
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
        let word = self.value(name, default, show, expected, parse, findings);
        choices
            .iter()
            .find(|(choice, _)| *choice == word)
            .map(|(_, value)| *value)
    }

    /// A required choice.
    pub(in crate::config) fn required_choice<T: Copy>(
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
    pub(in crate::config) fn texts(
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
}

fn as_number(value: &Value) -> Option<f64> {
    match value {
        Value::Float(number) => Some(*number),
        Value::Integer(number) => Some(*number as f64),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// A whole number within bounds; as a text too, since environment variables have no types.
fn whole_number(value: &Value, bounds: &RangeInclusive<u64>) -> Option<u64> {
    let number = match value {
        Value::Integer(number) => u64::try_from(*number).ok(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.filter(|number| bounds.contains(number))
}

/// Reads a number as a text too: environment variables have no types.
fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}
