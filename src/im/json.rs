//! Builds JSON and digests for calls, without intermediate values.

use std::hash::Hasher;

use ring::digest::{self, SHA256};
use siphasher::sip::SipHasher13;

/// Appends a text as a JSON string, quotes included.
pub(super) fn push_string(out: &mut Vec<u8>, text: &str) {
    push(out, text);
}

pub(super) use crate::json::write as push;

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

/// Eight bytes derived from a text, the same on every machine and in every version. They tell texts
/// apart and prove nothing: two texts with the same eight bytes are easy to find. The cost is a
/// tenth of the digest's.
pub(super) fn short_hash(text: &str) -> [u8; 8] {
    let mut hasher = SipHasher13::new_with_key(b"fanwise-message-");
    hasher.write(text.as_bytes());
    hasher.finish().to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_never_change() {
        // Backends remember message ids and keys that contain these bytes, so they must not change.
        assert_eq!(
            short_hash("u1"),
            [0x06, 0xa3, 0x15, 0x37, 0xd6, 0x91, 0xb7, 0xd9]
        );
        assert_eq!(digest::<4>(&["u1"]), [0x99, 0x8e, 0x35, 0xfc]);
    }
}
