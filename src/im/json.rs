//! How calls are put together: JSON and digests without detours.

use ring::digest::{self, SHA256};

/// Appends a text as a JSON string, quotes included.
#[expect(
    clippy::expect_used,
    reason = "a text has a JSON form, and a Vec takes it"
)]
pub(super) fn push_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a text is written to memory");
}

pub(super) fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

/// The first `N` bytes of the SHA-256 of texts, each closed by a byte that no text contains.
pub(super) fn digest<const N: usize>(texts: &[&str]) -> [u8; N] {
    let mut context = digest::Context::new(&SHA256);
    for text in texts {
        context.update(text.as_bytes());
        context.update(&[0xff]);
    }
    let digest = context.finish();
    let mut first = [0; N];
    first.copy_from_slice(&digest.as_ref()[..N]);
    first
}
