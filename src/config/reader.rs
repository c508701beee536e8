//! Reads settings key by key from a TOML tree and the environment: the sections of the tree, and
//! which keys are left over. [`values`] reads the values by type.

mod findings;
mod lines;
mod values;

use std::collections::BTreeSet;

use toml::{Table, Value};

pub use self::findings::{Findings, Origin, Shown};
pub use self::lines::Lines;
use super::placeholders;
use crate::domain::fields::{Problem, suggestion};

/// Prefix of all environment variables of Fanwise; `__` separates section and key.
pub const ENV_PREFIX: &str = "FANWISE_";

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
            if let Some(path) = path_of(&name)
                && insert(&mut file, &path, value)
            {
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

    /// Reports the values that nobody has replaced yet.
    pub(super) fn find_placeholders(&self, findings: &mut Findings) {
        placeholders::find(&self.path, &self.left, findings);
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

    /// Whether the key is given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
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
        self.child_of(&self.key(name), table)
    }

    fn child_of(&self, path: &str, table: Table) -> Self {
        Self {
            path: path.to_owned(),
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

    /// Reads the section as each of these readers would. A key that any of them knows is known, and
    /// a problem that all of them find is a problem.
    pub(super) fn read_as_any(
        &mut self,
        readers: impl IntoIterator<Item = impl FnOnce(&mut Self, &mut Findings)>,
        findings: &mut Findings,
    ) {
        let left = self.left.clone();
        let mut problems: Option<Vec<Problem>> = None;
        for read in readers {
            let mut pupil = self.child_of(&self.path, left.clone());
            let mut found = Findings::default();
            read(&mut pupil, &mut found);
            self.left.retain(|name, _| pupil.left.contains_key(name));
            self.known.extend(pupil.known);
            problems = Some(match problems {
                None => found.problems,
                Some(mut common) => {
                    common.retain(|problem| found.problems.contains(problem));
                    common
                }
            });
        }
        findings.problems.extend(problems.unwrap_or_default());
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

/// The path of the key that a variable sets. A single word is an option of the command line, such as
/// FANWISE_CONFIG.
fn path_of(variable: &str) -> Option<Vec<String>> {
    let path = variable.strip_prefix(ENV_PREFIX)?;
    let path: Vec<String> = path.split("__").map(str::to_ascii_lowercase).collect();
    (path.len() > 1).then_some(path)
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
    use std::time::Duration;

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
