//! Writes texts as parts of a URL.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// Everything but the unreserved characters of RFC 3986, so the result is data in every part of a
/// URL and in a form.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Appends a text percent-encoded.
pub fn push_percent(out: &mut Vec<u8>, text: &[u8]) {
    for piece in percent_encode(text, RESERVED) {
        out.extend_from_slice(piece.as_bytes());
    }
}

/// Appends a text as one segment of a path or one value of a query. A segment of dots alone would
/// mean a folder, so such dots are encoded too.
pub fn push_segment(out: &mut String, text: &str) {
    if text.bytes().all(|byte| byte == b'.') {
        out.extend(std::iter::repeat_n("%2E", text.len()));
    } else {
        out.extend(percent_encode(text.as_bytes(), RESERVED));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut form = b"a=".to_vec();
        push_percent(&mut form, b"1 &\xff");
        assert_eq!(form, b"a=1%20%26%FF");
    }
}
