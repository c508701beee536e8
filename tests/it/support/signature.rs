//! Signatures of webhooks as their receivers see them: by the specification of Standard Webhooks, and
//! not by the code under test.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;

/// The value of `webhook-signature`.
pub(crate) fn sign(key: &[u8], id: &str, timestamp: &str, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
    format!("v1,{}", BASE64.encode(hmac::sign(&key, &signed)))
}

/// Panics unless a request is signed with the key.
pub(crate) fn assert_signed<'a>(key: &[u8], header: impl Fn(&str) -> &'a str, body: &[u8]) {
    let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
    assert_eq!(id, header("idempotency-key"));
    assert_eq!(header("webhook-signature"), sign(key, id, timestamp, body));
}
