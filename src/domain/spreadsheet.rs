//! Writes and reads cells of CSV files that users open in a spreadsheet. A spreadsheet takes a text
//! that begins with `=`, `+`, `-`, `@`, a tab or a carriage return for a formula and executes it.
//!
//! A guarded cell begins with an apostrophe, which tells every spreadsheet that the cell is a text.
//! Reading removes the guard, so an id such as `+8613800000000` returns unchanged. It also reads
//! `="000123"`, which users write to keep the zeros, as `000123`.

use std::borrow::Cow;

const GUARD: char = '\'';

/// Whether a spreadsheet would take a text for a formula, or a reader would take it for a guarded
/// one.
fn is_taken_for_more(text: &str) -> bool {
    text.trim_start_matches(GUARD)
        .starts_with(['=', '+', '-', '@', '\t', '\r'])
}

/// Writes a text as a cell that a spreadsheet takes for a text.
pub fn guarded(text: &str) -> Cow<'_, str> {
    match is_taken_for_more(text) {
        true => Cow::Owned(format!("{GUARD}{text}")),
        false => Cow::Borrowed(text),
    }
}

/// Reads the text of a cell.
pub fn unguarded(cell: &str) -> &str {
    match cell.strip_prefix(GUARD) {
        Some(text) if is_taken_for_more(text) => text,
        _ => shown(cell),
    }
}

/// The text of a formula that contains only a text.
fn shown(cell: &str) -> &str {
    let text = cell.strip_prefix("=\"");
    let text = text.and_then(|text| text.strip_suffix('"'));
    text.filter(|text| !text.contains('"')).unwrap_or(cell)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_cell_is_a_formula() {
        for text in ["=1+1", "+86138", "-1", "@SUM(A1)", "\t=1", "\r=1"] {
            assert_eq!(guarded(text), format!("'{text}"));
        }
        for text in ["", "ann", "a=b", "'quoted'", "1-2"] {
            assert_eq!(guarded(text), text);
        }
    }

    #[test]
    fn a_text_that_a_formula_shows_is_that_text() {
        assert_eq!(unguarded("=\"000123\""), "000123");
        for other in ["=\"", "=\"a\"b\"", "u1", "=\"\"\"", "'=\"1\""] {
            assert_eq!(unguarded(other), other.trim_start_matches('\''));
        }
    }

    proptest! {
        #[test]
        fn every_text_comes_back(text in "['=+@\t\ra-]{0,6}") {
            let cell = guarded(&text);
            prop_assert!(!cell.starts_with(['=', '+', '-', '@', '\t', '\r']), "{cell:?}");
            prop_assert_eq!(unguarded(&cell), &text);
        }
    }
}
