//! Collects what the reading of a configuration finds: all problems, so that they are reported
//! together, and each value with its origin, so that it can be shown.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::fields::Problem;

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
    /// The keys among those of the warnings whose value nobody has replaced yet.
    placeholders: BTreeSet<String>,
    /// Every key with the value in force.
    pub shown: BTreeMap<String, Shown>,
}

impl Findings {
    pub fn problem(&mut self, key: impl Into<String>, what: impl Into<String>) {
        self.problems.push(Problem::new(key, what));
    }

    /// The value is that of an example: valid, and certainly wrong.
    pub(in crate::config) fn placeholder(&mut self, key: &str, what: String) {
        if self.placeholders.insert(key.to_owned()) {
            self.warning(key, what);
        }
    }

    /// Another value is in force instead of this one.
    pub(in crate::config) fn overridden(&mut self, key: &str) {
        if self.placeholders.remove(key) {
            self.warnings.retain(|it| it.field != key);
        }
    }

    /// Whether the value of the key is that of an example.
    pub fn is_placeholder(&self, key: &str) -> bool {
        self.placeholders.contains(key)
    }

    /// Whether there already is a problem with a key that begins like this.
    pub(in crate::config) fn mention(&self, key: &str) -> bool {
        let mut problems = self.problems.iter();
        problems.any(|problem| problem.field.starts_with(key))
    }

    pub fn warning(&mut self, key: impl Into<String>, what: impl Into<String>) {
        self.warnings.push(Problem::new(key, what));
    }
}
