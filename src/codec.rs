//! Writes bytes as text: hexadecimal digits and percent-encoding.

use std::borrow::Cow;

use data_encoding::HEXLOWER;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};

/// Everything but the unreserved characters of RFC 3986, so the result is data in every part of a
/// URL and in a form.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

pub(crate) fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    out.resize(start + HEXLOWER.encode_len(bytes.len()), 0);
    HEXLOWER.encode_mut(bytes, &mut out[start..]);
}

/// Appends a text percent-encoded.
pub(crate) fn push_percent(out: &mut Vec<u8>, text: &[u8]) {
    for piece in percent_encode(text, RESERVED) {
        out.extend_from_slice(piece.as_bytes());
    }
}

/// Appends a text as one segment of a path or one value of a query. A segment of dots alone would
/// mean a folder, so such dots are encoded too.
pub(crate) fn push_segment(out: &mut String, text: &str) {
    if text.bytes().all(|byte| byte == b'.') {
        out.extend(std::iter::repeat_n("%2E", text.len()));
    } else {
        out.extend(percent_encode(text.as_bytes(), RESERVED));
    }
}

/// Decodes a percent-encoded text; `None` if it is not UTF-8. A percent sign without two digits
/// stays.
pub(crate) fn percent_decoded(text: &[u8]) -> Option<Cow<'_, str>> {
    percent_decode(text).decode_utf8().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_lower_case_and_appended() {
        let mut out = b"x-".to_vec();
        push_hex(&mut out, &[0, 0xab, 0xff]);
        assert_eq!(out, b"x-00abff");
        assert_eq!(hex(&[0, 0xab, 0xff]), "00abff");
    }

    #[test]
    fn what_means_something_in_a_url_is_encoded() {
        let mut segment = "/".to_owned();
        push_segment(&mut segment, "a b/\u{e9}?&=%~._-");
        assert_eq!(segment, "/a%20b%2F%C3%A9%3F%26%3D%25~._-");
        for dots in [".", ".."] {
            let mut segment = String::new();
            push_segment(&mut segment, dots);
            assert_eq!(segment, "%2E".repeat(dots.len()));
        }
        assert_eq!(percent_decoded(b"%C3%A9%2F%").unwrap(), "\u{e9}/%");
        assert_eq!(percent_decoded(b"%ff"), None);
    }
}
