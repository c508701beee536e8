//! Writes bytes as text: hexadecimal digits and percent-encoding.

use std::borrow::Cow;

use data_encoding::HEXLOWER;
pub(crate) use fanwise_net::http::{push_percent, push_segment};
use percent_encoding::percent_decode;

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

pub(crate) fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    out.resize(start + HEXLOWER.encode_len(bytes.len()), 0);
    HEXLOWER.encode_mut(bytes, &mut out[start..]);
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
    fn a_percent_sign_without_digits_stays() {
        assert_eq!(percent_decoded(b"%C3%A9%2F%").unwrap(), "\u{e9}/%");
        assert_eq!(percent_decoded(b"%ff"), None);
    }
}
