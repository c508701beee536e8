//! Signs requests that their receivers verify: calls of webhook targets, notices of completed jobs,
//! and the questions of `before_accept`.
//!
//! - [`Scheme::Standard`] is that of Standard Webhooks, for which receivers find libraries in every
//!   language. `webhook-id` is the idempotency key, `webhook-timestamp` the time of the attempt in
//!   seconds since 1970, and `webhook-signature` is `v1,` and the HMAC-SHA-256 in base64 over
//!   `<id>.<timestamp>.<body>`.
//! - [`Scheme::Fanwise`] is one header, `fanwise-signature`: `v1=` and the HMAC-SHA-256 in hex over
//!   `<id>.<body>`. It contains no time, so a repeat is identical byte for byte.

use data_encoding::{BASE64, HEXLOWER};
use http::{HeaderMap, HeaderName, HeaderValue};
use ring::hmac;
use strum::{EnumString, IntoStaticStr, VariantArray};

/// The header with the idempotency key, in [`Scheme::Standard`].
pub const ID: HeaderName = HeaderName::from_static("webhook-id");
/// The header with the time of the attempt, in [`Scheme::Standard`].
pub const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
/// The header with the signature, in [`Scheme::Standard`].
pub const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// What is in front of a signature in each scheme.
pub(super) const STANDARD_VERSION: &str = "v1,";
pub(super) const FANWISE_VERSION: &str = "v1=";

/// A secret with this prefix is base64 of the key; any other secret is the key itself.
const SECRET_PREFIX: &str = "whsec_";

/// What is wrong with a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSecret {
    #[error("base64 is expected after whsec_; a secret without that prefix is taken as it is")]
    NotBase64,
    #[error("a secret is expected, not an empty text")]
    Empty,
}

/// The key that a secret means.
pub(super) fn key_of(secret: &str) -> Result<hmac::Key, BadSecret> {
    let key = match secret.strip_prefix(SECRET_PREFIX) {
        Some(encoded) => BASE64
            .decode(encoded.as_bytes())
            .map_err(|_| BadSecret::NotBase64)?,
        None => secret.as_bytes().to_vec(),
    };
    match key.is_empty() {
        true => Err(BadSecret::Empty),
        false => Ok(hmac::Key::new(hmac::HMAC_SHA256, &key)),
    }
}

/// How a receiver verifies a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Scheme {
    #[default]
    Standard,
    Fanwise,
}

impl Scheme {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// The header of [`Scheme::Fanwise`], unless a target names another.
    pub const FANWISE_HEADER: &str = "fanwise-signature";

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Signs requests with one secret.
#[derive(Clone, Debug)]
pub struct Signer {
    key: hmac::Key,
    scheme: Scheme,
    /// The header of [`Scheme::Fanwise`].
    header: HeaderName,
}

impl Signer {
    pub fn new(secret: &str, scheme: Scheme) -> Result<Self, BadSecret> {
        Ok(Self {
            key: key_of(secret)?,
            scheme,
            header: HeaderName::from_static(Scheme::FANWISE_HEADER),
        })
    }

    /// Puts the signature of [`Scheme::Fanwise`] into another header.
    #[must_use]
    pub fn with_header(mut self, header: HeaderName) -> Self {
        self.header = header;
        self
    }

    /// The headers that a signature sets.
    pub fn headers(&self) -> Vec<HeaderName> {
        match self.scheme {
            Scheme::Standard => vec![ID, TIMESTAMP, SIGNATURE],
            Scheme::Fanwise => vec![self.header.clone()],
        }
    }

    /// Signs a request that has this idempotency key and body.
    pub fn sign(&self, headers: &mut HeaderMap, id: &HeaderValue, now_ms: u64, body: &[u8]) {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(id.as_bytes());
        context.update(b".");
        match self.scheme {
            Scheme::Standard => {
                let timestamp = HeaderValue::from(now_ms / 1000);
                context.update(timestamp.as_bytes());
                context.update(b".");
                context.update(body);
                let mut signature = STANDARD_VERSION.to_owned();
                BASE64.encode_append(context.sign().as_ref(), &mut signature);
                headers.insert(ID, id.clone());
                headers.insert(TIMESTAMP, timestamp);
                insert(headers, SIGNATURE, signature);
            }
            Scheme::Fanwise => {
                context.update(body);
                let mut signature = FANWISE_VERSION.to_owned();
                HEXLOWER.encode_append(context.sign().as_ref(), &mut signature);
                insert(headers, self.header.clone(), signature);
            }
        }
    }
}

#[expect(clippy::expect_used, reason = "letters, digits and signs of ASCII")]
fn insert(headers: &mut HeaderMap, name: HeaderName, value: String) {
    headers.insert(name, HeaderValue::try_from(value).expect("a header value"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(secret: &str, scheme: Scheme, id: &'static str, body: &str) -> HeaderMap {
        let signer = Signer::new(secret, scheme).unwrap();
        let mut headers = HeaderMap::new();
        let id = HeaderValue::from_static(id);
        signer.sign(&mut headers, &id, 1_614_265_330_999, body.as_bytes());
        assert_eq!(
            headers.keys().cloned().collect::<Vec<_>>(),
            signer.headers()
        );
        headers
    }

    /// The example of the specification of Standard Webhooks.
    #[test]
    fn a_standard_signature_is_that_of_the_specification() {
        let headers = signed(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            Scheme::Standard,
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(headers[ID], "msg_p5jXN8AQM9LWM0D4loKWxJek");
        assert_eq!(headers[TIMESTAMP], "1614265330");
        assert_eq!(
            headers[SIGNATURE],
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    /// As `printf '%s' 'j.1.{}' | openssl dgst -sha256 -hmac secret` prints it.
    #[test]
    fn a_signature_without_a_time_is_what_openssl_computes() {
        let headers = signed("secret", Scheme::Fanwise, "j.1", "{}");
        assert_eq!(
            headers["fanwise-signature"],
            "v1=cf2c2a29e96d8308474b3ee54aa789873005cd1b6ab00843b7a3e8cbe41b781b"
        );
    }

    #[test]
    fn a_secret_is_a_text_or_base64() {
        let new = |secret| Signer::new(secret, Scheme::Standard);
        assert!(new("any text").is_ok());
        assert!(new("whsec_AAEC").is_ok());
        for (secret, what) in [("", "empty"), ("whsec_", "empty"), ("whsec_%", "base64")] {
            let problem = new(secret).unwrap_err();
            assert!(problem.to_string().contains(what), "{secret}: {problem}");
        }
    }
}
