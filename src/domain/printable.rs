//! Makes texts of backends and producers safe to show. Characters that would control a terminal or
//! change the order of the text are replaced by their numbers.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character controls the terminal and is not visible itself: control characters except
/// line breaks and tabs, and those that change the direction of writing.
fn is_order(character: char) -> bool {
    is_hidden(character) && !matches!(character, '\n' | '\t')
}

fn is_hidden(character: char) -> bool {
    let turns = matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    turns || character.is_control()
}

fn replaced(
    text: &str,
    meant: impl Fn(char) -> bool,
    put: impl Fn(&mut String, char),
) -> Cow<'_, str> {
    if !text.contains(&meant) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match meant(character) {
            true => put(&mut shown, character),
            false => shown.push(character),
        }
    }
    Cow::Owned(shown)
}

fn put_number(shown: &mut String, character: char) {
    // Writing to a `String` cannot fail.
    let _ = write!(shown, "\\u{{{:x}}}", u32::from(character));
}

/// Makes a text of any number of lines safe to show.
pub fn printable(text: &str) -> Cow<'_, str> {
    replaced(text, is_order, put_number)
}

/// Makes a text safe that must stay on its line and in its column.
pub fn on_one_line(text: &str) -> Cow<'_, str> {
    replaced(text, is_hidden, put_number)
}

/// Makes JSON safe to show and keeps its meaning. Outside of its strings, JSON has no such
/// characters except line breaks.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    replaced(json, is_order, |shown, character| {
        let _ = write!(shown, "\\u{:04x}", u32::from(character));
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: &str = "a\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}31m\u{7f}\u{202e}b\r\n\tc";

    #[test]
    fn nothing_of_a_text_steers_a_terminal() {
        assert_eq!(
            printable(EVIL),
            "a\\u{1b}]0;title\\u{7}\\u{1b}[2J\\u{9b}31m\\u{7f}\\u{202e}b\\u{d}\n\tc"
        );
        assert!(on_one_line(EVIL).ends_with("b\\u{d}\\u{a}\\u{9}c"));
        for plain in ["", "Grüße 😀 你好", "a\tb\n"] {
            assert!(matches!(printable(plain), Cow::Borrowed(it) if it == plain));
        }
    }

    #[test]
    fn json_means_the_same() {
        let json = serde_json::to_string(EVIL).unwrap();
        let shown = printable_json(&json);
        assert!(!shown.contains(is_order), "{shown}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), EVIL);
    }
}
