//! Finds the line of each key in a file of settings, so that a problem can say where it is.

use std::collections::{BTreeMap, BTreeSet};

use toml::de::{DeTable, DeValue};

use super::path_of;

/// The line of each key that a file gives.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// By the path of the key.
    lines: BTreeMap<String, usize>,
    /// The keys that variables set instead.
    from_environment: BTreeSet<String>,
}

impl Lines {
    /// The lines of a file, and the names of variables that override it. No lines if the file is
    /// not TOML.
    pub(in crate::config) fn of<'v>(
        file: &str,
        variables: impl IntoIterator<Item = &'v String>,
    ) -> Self {
        let paths = variables.into_iter().filter_map(|name| path_of(name));
        let mut lines = Self {
            lines: BTreeMap::new(),
            from_environment: paths.map(|path| path.join(".")).collect(),
        };
        if let Ok(table) = DeTable::parse(file) {
            lines.read("", table.get_ref(), file);
        }
        lines
    }

    fn read(&mut self, path: &str, table: &DeTable<'_>, text: &str) {
        for (key, value) in table {
            let path = match path {
                "" => key.get_ref().to_string(),
                path => format!("{path}.{}", key.get_ref()),
            };
            let before = &text.as_bytes()[..key.span().start];
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            if let DeValue::Table(table) = value.get_ref() {
                self.read(&path, table, text);
            }
            self.lines.insert(path, line);
        }
    }

    /// The line of a key, or of the section that lacks it. `None` for a key that a variable sets.
    pub fn find(&self, key: &str) -> Option<usize> {
        if self.from_environment.contains(key) {
            return None;
        }
        let section = || self.lines.get(key.rsplit_once('.')?.0);
        self.lines.get(key).or_else(section).copied()
    }

    /// `line 12: `, or nothing if the line is not known.
    pub fn place(&self, key: &str) -> String {
        let line = self.find(key);
        line.map_or_else(String::new, |line| format!("line {line}: "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_where_it_is_written() {
        let lines = Lines::of(
            "# A comment\n[targets.im]\ntype = \"x\"\n\n  limit = \"1/s\"\n\
             codes = { 1 = \"done\" }\n[apps.\"a.b\"]\nlog.level = \"info\"\n",
            [&"FANWISE_TARGETS__IM__SENDER".to_owned()],
        );
        for (key, line) in [
            ("targets.im.type", Some(3)),
            ("targets.im.limit", Some(5)),
            ("targets.im.codes.1", Some(6)),
            ("apps.a.b.log.level", Some(8)),
            // What is missing belongs to its section.
            ("targets.im.url", Some(2)),
            ("broker.url", None),
            ("targets.im.sender", None),
        ] {
            assert_eq!(lines.find(key), line, "{key}");
        }
        assert_eq!(Lines::of("= not TOML", []).find("a"), None);
    }
}
