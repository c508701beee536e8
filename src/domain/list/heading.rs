//! Finds the column of a CSV that holds the recipients. A first line is a heading only if one of
//! its names is known; otherwise it is a row, so that its recipient is not lost.

use std::collections::BTreeSet;

use super::Reading;
use super::csv::Record;
use crate::domain::fields::shorten;

/// The names of a recipient's column, the most preferred first; the later ones are those of the
/// systems.
pub(super) const KEYS: [&str; 11] = [
    "recipient",
    "user",
    "uid",
    "id",
    "userid",
    "accid",
    "recvid",
    "receiver",
    "receiverid",
    "accountid",
    "toaccid",
];

/// The rank of `id`, which may be the id of anything if a system's own name is there too.
const ID: usize = 3;

/// The most columns that an error text names.
const SHOWN: usize = 10;

/// The result of reading a list's first line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Columns {
    /// The column of the recipients.
    pub(super) index: usize,
    /// The names of the columns; `None` if the first line is a row.
    pub(super) names: Option<Vec<String>>,
    pub(super) count: usize,
}

/// The rank of a name as the recipient's; the lowest one counts. Case and separators of words are
/// ignored.
pub(super) fn rank(name: &str) -> Option<usize> {
    let plain = |letter: &char| letter.is_alphanumeric();
    // It is longer than any key.
    if name.len() > 24 {
        return None;
    }
    let name: String = name
        .chars()
        .filter(plain)
        .flat_map(char::to_lowercase)
        .collect();
    KEYS.iter().position(|key| *key == name)
}

impl Columns {
    /// Reads the first line.
    pub(super) fn of(first: &Record, how: Reading<'_>) -> Result<Self, String> {
        let names: Vec<&str> = first.cells().collect::<Result<_, _>>()?;
        let columns = Self::find(&names, how.column)?;
        match &columns.names {
            Some(names) if how.vars => match twice(names) {
                Some(name) => Err(format!("more than one column is called {name:?}")),
                None => Ok(columns),
            },
            None if how.vars && columns.count > 1 => Err(
                "values need a heading that names their columns, and this line is not a heading"
                    .to_owned(),
            ),
            _ => Ok(columns),
        }
    }

    fn find(names: &[&str], column: Option<&str>) -> Result<Self, String> {
        let heading = |index| Self {
            index,
            names: Some(names.iter().map(|name| (*name).to_owned()).collect()),
            count: names.len(),
        };
        match column {
            Some(column) => Self::named(names, column, heading),
            None => Self::known(names, heading),
        }
    }

    /// A list without a heading: the first line is a row.
    fn bare(index: usize, count: usize) -> Self {
        Self {
            index,
            names: None,
            count,
        }
    }

    fn named(
        names: &[&str],
        column: &str,
        heading: impl Fn(usize) -> Self,
    ) -> Result<Self, String> {
        let is = |name: &&str| name.to_lowercase() == column.trim().to_lowercase();
        let number: Option<usize> = column.parse().ok();
        match (names.iter().position(is), number) {
            (Some(index), _) if names.iter().filter(|name| is(name)).count() == 1 => {
                Ok(heading(index))
            }
            (Some(_), _) => Err(format!("more than one column is called {column:?}")),
            (None, Some(number)) if (1..=names.len()).contains(&number) => {
                Ok(Self::bare(number - 1, names.len()))
            }
            (None, _) => Err(format!(
                "there is no column {column:?}; there are: {}",
                shown(names)
            )),
        }
    }

    fn known(names: &[&str], heading: impl Fn(usize) -> Self) -> Result<Self, String> {
        let ranks = names.iter().enumerate();
        let mut ranks: Vec<_> = ranks
            .filter_map(|(index, name)| Some((rank(name)?, index)))
            .collect();
        ranks.sort_unstable();
        match ranks[..] {
            [] if names.len() <= 1 => Ok(Self::bare(0, names.len())),
            [] => Err(format!(
                "no column is called recipient, user, uid, id or as a system calls it (userID, accid, …): \
                 name it with `column`, or give its number if this line is not a \
                 heading; there are: {}",
                shown(names)
            )),
            // Many exports have the number of a row beside the user's id.
            [(ID, one), (_, other), ..] => Err(ambiguous(names, one, other)),
            [(rank, one), (same, other), ..] if rank == same => Err(ambiguous(names, one, other)),
            [(_, index), ..] => Ok(heading(index)),
        }
    }
}

/// A name that two columns have. Columns without a name hold no values.
fn twice(names: &[String]) -> Option<&String> {
    let mut seen = BTreeSet::new();
    names
        .iter()
        .filter(|name| !name.is_empty())
        .find(|name| !seen.insert(*name))
}

fn ambiguous(names: &[&str], one: usize, other: usize) -> String {
    format!(
        "the recipients may be column {} {:?} or {} {:?}: say which with `column`",
        one + 1,
        shorten(names[one], 40),
        other + 1,
        shorten(names[other], 40)
    )
}

fn shown(names: &[&str]) -> String {
    let mut line: Vec<_> = names
        .iter()
        .take(SHOWN)
        .map(|name| shorten(name, 40))
        .collect();
    if names.len() > SHOWN {
        line.push("…".into());
    }
    line.join(", ")
}
