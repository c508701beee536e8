//! Checks texts from outside: their encoding, invisible characters, and damage by other programs.

use std::borrow::Cow;

/// The byte order mark, which many programs write before UTF-8.
const MARK: &str = "\u{feff}";

/// A document as text, without a leading byte order mark.
pub fn decode(bytes: &[u8]) -> Result<&str, String> {
    if let Some(what) = foreign(bytes) {
        return Err(what.to_owned());
    }
    let text = bytes.strip_prefix(MARK.as_bytes()).unwrap_or(bytes);
    str::from_utf8(text).map_err(|error| format!("not UTF-8: {error}"))
}

/// A document without a leading byte order mark.
pub fn unmarked(text: &str) -> &str {
    text.strip_prefix(MARK).unwrap_or(text)
}

/// Recognises by their first bytes some formats that are not UTF-8 and that users send.
pub fn foreign(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, _, ..] | [_, 0, ..] => {
            Some("UTF-16 instead of UTF-8: save it as UTF-8")
        }
        [0x1f, 0x8b, ..] => Some("compressed with gzip: send it uncompressed"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("compressed with zstd: send it uncompressed"),
        [b'P', b'K', 3, 4, ..] => Some("a ZIP file or a workbook: save it as CSV, UTF-8"),
        _ => None,
    }
}

/// The name of the first invisible character. An id with one is the id of another user.
pub fn invisible(text: &str) -> Option<String> {
    if text.is_ascii() {
        return None;
    }
    let mut before = None;
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let joined = |near: Option<&char>| near.is_some_and(|letter| !letter.is_ascii());
        let name = match letter {
            '\u{ad}' => "a soft hyphen",
            '\u{200b}' => "a zero-width space",
            // Part of Persian words and of emoji, but not of Latin text.
            '\u{200c}' | '\u{200d}' if joined(before.as_ref()) && joined(letters.peek()) => "",
            '\u{200c}' | '\u{200d}' => "a zero-width joiner",
            '\u{feff}' => "a byte order mark",
            '\u{2028}' | '\u{2029}' => "a line separator",
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' => {
                "a mark of writing direction"
            }
            '\u{2066}'..='\u{2069}' => "a mark of writing direction",
            '\u{180e}' | '\u{2060}'..='\u{2064}' | '\u{206a}'..='\u{206f}' => {
                "an invisible character"
            }
            '\u{fff9}'..='\u{fffb}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}' => {
                "an invisible character"
            }
            '\u{fffd}' => "a character that was lost in conversion",
            _ => "",
        };
        if !name.is_empty() {
            return Some(format!("{name} (U+{:04X})", u32::from(letter)));
        }
        before = Some(letter);
    }
    None
}

/// Whether an id is a long number that a spreadsheet has rounded, such as `1.23457E+17`: many
/// different ids become the same.
pub fn is_rounded(id: &str) -> bool {
    let Some((number, exponent)) = id.split_once(['E', 'e']) else {
        return false;
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = number.split_once(['.', ',']).unwrap_or((number, "0"));
    digits(whole) && digits(fraction) && exponent.strip_prefix('+').is_some_and(digits)
}

/// Finds half of a character in JSON, `\ud83d` without its other half, as when a program cuts an
/// emoji. Returns it with the text before it.
pub fn half_character(json: &str) -> Option<Cow<'_, str>> {
    let bytes = json.as_bytes();
    let unit = |at: usize| {
        let digits = json.get(at..at + 6)?.strip_prefix("\\u")?;
        u32::from_str_radix(digits, 16).ok()
    };
    let mut at = 0;
    while let Some(next) = bytes[at..].iter().position(|byte| *byte == b'\\') {
        at += next;
        at += match unit(at) {
            Some(0xd800..=0xdbff) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => 12,
            Some(0xd800..=0xdfff) => {
                let from = json.floor_char_boundary(at.saturating_sub(20));
                return json.get(from..at + 6).map(Cow::Borrowed);
            }
            Some(_) => 6,
            None => 2,
        };
        if at >= bytes.len() {
            break;
        }
    }
    None
}

/// Finds a whole number in JSON that does not fit into 64 bits: a reader would lose digits.
pub fn long_number(json: &str) -> Option<Cow<'_, str>> {
    let mut quoted = false;
    let mut escaped = false;
    let number = |letter: char| {
        // Whether the letter belongs to a number outside of texts.
        let text = quoted;
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            _ => {}
        }
        !text && matches!(letter, '0'..='9' | '-' | '+' | '.' | 'e' | 'E')
    };
    let mut number = number;
    let mut numbers = json.split(|letter| !number(letter));
    let long = numbers.find(|number| {
        let digits = number.strip_prefix('-').unwrap_or(number);
        digits.len() > 18
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && number.parse::<i64>().is_err()
            && number.parse::<u64>().is_err()
    })?;
    Some(super::fields::shorten(long, 40))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_read_with_a_byte_order_mark_and_named_where_it_is_none() {
        assert_eq!(decode("\u{feff}{}".as_bytes()), Ok("{}"));
        assert_eq!(decode("é".as_bytes()), Ok("é"));
        assert_eq!(decode(b""), Ok(""));
        let utf16: Vec<u8> = "{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for (bytes, what) in [
            (&utf16[..], "UTF-16"),
            (&b"\xff\xfe{\0"[..], "UTF-16"),
            (&b"\x1f\x8b\x08"[..], "gzip"),
            (&b"PK\x03\x04"[..], "workbook"),
            (&b"{\xff"[..], "not UTF-8"),
        ] {
            let found = decode(bytes).unwrap_err();
            assert!(found.contains(what), "{found}");
        }
    }

    #[test]
    fn what_cannot_be_seen_is_named() {
        for (id, name) in [
            ("\u{200b}u2", "a zero-width space (U+200B)"),
            ("u\u{ad}2", "a soft hyphen (U+00AD)"),
            ("u1\u{2028}u2", "a line separator (U+2028)"),
            ("\u{202e}u2", "a mark of writing direction (U+202E)"),
            ("u2\u{feff}", "a byte order mark (U+FEFF)"),
            ("u\u{200d}2", "a zero-width joiner (U+200D)"),
            (
                "u\u{fffd}",
                "a character that was lost in conversion (U+FFFD)",
            ),
        ] {
            assert_eq!(invisible(id).as_deref(), Some(name));
        }
        for id in ["u1", "安娜", "a b", "é", "👩\u{200d}👧", "می\u{200c}خواهم"] {
            assert_eq!(invisible(id), None, "{id}");
        }
    }

    #[test]
    fn rounded_numbers_are_told_from_ids() {
        for id in [
            "1.23457E+17",
            "1,23457E+17",
            "1E+15",
            "9.007199254740993e+15",
        ] {
            assert!(is_rounded(id), "{id}");
        }
        for id in [
            "12e4", "5E10", "1.5", "E+17", "u1E+3", "1.2.3E+4", "1E+", "",
        ] {
            assert!(!is_rounded(id), "{id}");
        }
    }

    #[test]
    fn a_number_that_would_lose_digits_is_found() {
        for exact in [
            "18446744073709551615",
            "-9223372036854775808",
            r#"{"a":"12345678901234567890123"}"#,
            "0.12345678901234567890",
            r#""\"12345678901234567890123""#,
        ] {
            assert_eq!(long_number(exact), None, "{exact}");
        }
        for long in [
            "18446744073709551616",
            r#"{"a":[1,123456789012345678901234567890]}"#,
            r#"{"\\":-9223372036854775809}"#,
        ] {
            assert!(long_number(long).is_some(), "{long}");
        }
    }

    #[test]
    fn half_a_character_is_found_wherever_it_stands() {
        for whole in [
            r#""\ud83d\ude00""#,
            r#""\\ud83d""#,
            r#""\u00e9""#,
            r#""\\""#,
            "\"\\",
            "",
        ] {
            assert_eq!(half_character(whole), None, "{whole}");
        }
        for half in [
            r#""\ud83d""#,
            r#""\ud83dx\ude00""#,
            r#""\ude00""#,
            r#""\ud83d\ud83d""#,
            r#"{"\\\uD83D":1}"#,
        ] {
            assert!(half_character(half).is_some(), "{half}");
        }
        assert_eq!(
            half_character(r#"{"text":"hi \ud83d"}"#).unwrap(),
            r#"{"text":"hi \ud83d"#
        );
    }
}
