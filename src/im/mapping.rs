//! Writes the mapping of every target as a table: `schemas/mapping.md`. It is generated from the
//! code that refuses features that a target cannot honour.

use std::fmt::Write as _;

use super::samples;
use crate::domain::mapping::{Feature, Mapping};

/// The table as Markdown: a row per feature, a column per kind of target.
pub fn markdown() -> String {
    let samples = samples();
    let mut table = String::from(
        "# What each target makes of a job\n\n\
         Generated from the code by `fanwise schema`. A field that is not honoured is refused when the job is\n\
         accepted, by its name; with `\"mapping\": \"lenient\"` an option is dropped instead, with a warning in the\n\
         job. *≈* is an approximation, **no** is refused.\n\n| |",
    );
    for (name, _) in &samples {
        let _ = write!(table, " {name} |");
    }
    let _ = write!(table, "\n|---|{}\n", "---|".repeat(samples.len()));
    for feature in Feature::ALL {
        let _ = write!(table, "| {} |", feature.words());
        for (_, target) in &samples {
            let cell = match target.maps(*feature) {
                Mapping::Exact(how) => how.to_owned(),
                Mapping::Approximate(how) => format!("≈ {how}"),
                Mapping::Refused(why) => format!("**no**: {why}"),
            };
            let _ = write!(table, " {} |", cell.replace('|', "\\|"));
        }
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_has_a_cell_for_every_kind_of_target() {
        let table = markdown();
        let rows: Vec<_> = table
            .lines()
            .filter(|line| line.starts_with("| `"))
            .collect();
        assert!(rows.len() > 25, "{table}");
        for row in rows {
            assert_eq!(row.matches(" |").count(), samples().len() + 1, "{row}");
            assert!(!row.contains("|  |"), "{row}");
        }
    }
}
