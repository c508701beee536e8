//! Verifies signed requests.

use std::time::{Duration, SystemTime};

use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use http::{HeaderMap, HeaderName};
use ring::hmac;

use super::signer::{
    BadSecret, FANWISE_VERSION, ID, SIGNATURE, STANDARD_VERSION, Scheme, TIMESTAMP, key_of,
};

/// How far the time of a request may be away: the value of Standard Webhooks.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// The header with the id in [`Scheme::Fanwise`].
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Why a request must not be believed. Answer it with 401.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotGenuine {
    #[error("the header {0} is missing, or is no text")]
    Missing(HeaderName),
    #[error("the header webhook-timestamp is not a number of seconds since 1970")]
    NotATime,
    #[error(
        "the request was signed more than {0:?} ago or ahead: it is a repeat, or a clock is wrong"
    )]
    WrongTime(Duration),
    #[error("no signature is from the holder of the secret, for this id, time and body")]
    WrongSignature,
}

/// Verifies requests that were signed with one of its secrets.
#[derive(Clone, Debug)]
pub struct Verifier {
    keys: Vec<hmac::Key>,
    scheme: Scheme,
    /// The header of [`Scheme::Fanwise`].
    header: HeaderName,
    tolerance: Duration,
}

impl Verifier {
    /// For [`Scheme::Standard`]. The secret is the `signature_secret` of the target.
    pub fn new(secret: &str) -> Result<Self, BadSecret> {
        Self::of(secret, Scheme::Standard)
    }

    pub fn of(secret: &str, scheme: Scheme) -> Result<Self, BadSecret> {
        Ok(Self {
            keys: vec![key_of(secret)?],
            scheme,
            header: HeaderName::from_static(Scheme::FANWISE_HEADER),
            tolerance: TOLERANCE,
        })
    }

    /// Accepts this secret too, while one secret replaces another.
    pub fn or_secret(mut self, secret: &str) -> Result<Self, BadSecret> {
        self.keys.push(key_of(secret)?);
        Ok(self)
    }

    /// Looks for the signature of [`Scheme::Fanwise`] in another header: the target's
    /// `signature_header`.
    #[must_use]
    pub fn with_header(mut self, header: HeaderName) -> Self {
        self.header = header;
        self
    }

    /// How far the time of a request may be away; five minutes unless this says otherwise.
    #[must_use]
    pub fn with_tolerance(mut self, tolerance: Duration) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// The id of a request, which is the same on each attempt, if it is genuine. Give the bytes of the body as
    /// they arrived.
    ///
    /// A request of [`Scheme::Fanwise`] has no time, so only its id tells a repeat.
    pub fn verify<'h>(
        &self,
        headers: &'h HeaderMap,
        body: &[u8],
        now: SystemTime,
    ) -> Result<&'h str, NotGenuine> {
        match self.scheme {
            Scheme::Standard => {
                let (id, timestamp) = (text(headers, &ID)?, text(headers, &TIMESTAMP)?);
                let signatures = text(headers, &SIGNATURE)?;
                self.check_time(timestamp, now)?;
                let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
                // Several, while a secret replaces another.
                let signatures = signatures.split(' ').filter_map(|signature| {
                    let encoded = signature.strip_prefix(STANDARD_VERSION)?;
                    BASE64.decode(encoded.as_bytes()).ok()
                });
                self.check(&signed, signatures).map(|()| id)
            }
            Scheme::Fanwise => {
                let id = text(headers, &IDEMPOTENCY_KEY)?;
                let signature = text(headers, &self.header)?;
                let signed = [id.as_bytes(), b".", body].concat();
                let signature = signature
                    .strip_prefix(FANWISE_VERSION)
                    .and_then(|digits| HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok());
                self.check(&signed, signature.into_iter()).map(|()| id)
            }
        }
    }

    fn check_time(&self, timestamp: &str, now: SystemTime) -> Result<(), NotGenuine> {
        let seconds: u64 = timestamp.parse().map_err(|_| NotGenuine::NotATime)?;
        let now = now.duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        match Duration::from_secs(now.abs_diff(seconds)) > self.tolerance {
            true => Err(NotGenuine::WrongTime(self.tolerance)),
            false => Ok(()),
        }
    }

    fn check(
        &self,
        signed: &[u8],
        mut signatures: impl Iterator<Item = Vec<u8>>,
    ) -> Result<(), NotGenuine> {
        let genuine = signatures.any(|signature| {
            let mut keys = self.keys.iter();
            keys.any(|key| hmac::verify(key, signed, &signature).is_ok())
        });
        match genuine {
            true => Ok(()),
            false => Err(NotGenuine::WrongSignature),
        }
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<&'h str, NotGenuine> {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.ok_or_else(|| NotGenuine::Missing(name.clone()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::super::Signer;
    use super::*;

    const NOW_SECONDS: u64 = 1_614_265_330;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn signed(secret: &str, scheme: Scheme, body: &[u8]) -> HeaderMap {
        let id = HeaderValue::from_static("j.1");
        let mut headers = HeaderMap::from_iter([(IDEMPOTENCY_KEY, id.clone())]);
        let signer = Signer::new(secret, scheme).unwrap();
        signer.sign(&mut headers, &id, NOW_SECONDS * 1000, body);
        headers
    }

    /// The example of the specification of Standard Webhooks.
    #[test]
    fn a_request_of_the_specification_is_genuine() {
        let headers = [
            ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
            ("webhook-timestamp", "1614265330"),
            (
                "webhook-signature",
                "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            ),
        ];
        let headers = headers.map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        let headers = HeaderMap::from_iter(headers);
        let verifier = Verifier::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let id = verifier.verify(&headers, br#"{"test": 2432232314}"#, at(NOW_SECONDS));
        assert_eq!(id, Ok("msg_p5jXN8AQM9LWM0D4loKWxJek"));
    }

    #[test]
    fn only_the_holder_of_the_secret_signs_this_id_time_and_body() {
        for scheme in Scheme::ALL.iter().copied() {
            let verifier = Verifier::of("secret", scheme).unwrap();
            let verify = |headers: &HeaderMap, body: &[u8]| {
                verifier
                    .verify(headers, body, at(NOW_SECONDS))
                    .map(str::to_owned)
            };
            let headers = signed("secret", scheme, b"{}");
            assert_eq!(verify(&headers, b"{}").as_deref(), Ok("j.1"));
            let wrong = Err(NotGenuine::WrongSignature);
            assert_eq!(verify(&headers, b"{ }"), wrong);
            assert_eq!(verify(&signed("other", scheme, b"{}"), b"{}"), wrong);
            let mut other = headers.clone();
            let id = match scheme {
                Scheme::Standard => ID,
                Scheme::Fanwise => IDEMPOTENCY_KEY,
            };
            other.insert(id, HeaderValue::from_static("j.2"));
            assert_eq!(verify(&other, b"{}"), wrong);
            // Nothing that cannot be decoded is a signature.
            let header = match scheme {
                Scheme::Standard => SIGNATURE,
                Scheme::Fanwise => HeaderName::from_static(Scheme::FANWISE_HEADER),
            };
            for odd in ["", "v1", "v1,", "v1=", "v1,é", "v2,AAAA", "v1=xyz", " "] {
                let mut headers = headers.clone();
                headers.insert(
                    header.clone(),
                    HeaderValue::from_bytes(odd.as_bytes()).unwrap(),
                );
                assert!(verify(&headers, b"{}").is_err(), "{odd:?}");
            }
            let missing = Err(NotGenuine::Missing(header.clone()));
            other.remove(&header);
            assert_eq!(verify(&other, b"{}"), missing);
        }
    }

    #[test]
    fn an_old_request_is_refused_whoever_signed_it() {
        let headers = signed("secret", Scheme::Standard, b"{}");
        let verifier = Verifier::new("secret").unwrap();
        for (seconds, genuine) in [(300, true), (301, false)] {
            for now in [NOW_SECONDS + seconds, NOW_SECONDS - seconds] {
                let id = verifier.verify(&headers, b"{}", at(now));
                assert_eq!(id.is_ok(), genuine, "{seconds}");
            }
        }
        let patient = verifier.clone().with_tolerance(Duration::from_secs(3600));
        assert!(
            patient
                .verify(&headers, b"{}", at(NOW_SECONDS + 3600))
                .is_ok()
        );
        let mut odd = headers;
        odd.insert(TIMESTAMP, HeaderValue::from_static("soon"));
        let refused = verifier.verify(&odd, b"{}", at(NOW_SECONDS));
        assert_eq!(refused, Err(NotGenuine::NotATime));
    }

    #[test]
    fn two_secrets_are_accepted_while_one_replaces_the_other() {
        let both = Verifier::new("new").unwrap().or_secret("old").unwrap();
        let verify = |headers: &HeaderMap| both.verify(headers, b"{}", at(NOW_SECONDS)).is_ok();
        for (secret, genuine) in [("new", true), ("old", true), ("other", false)] {
            assert_eq!(
                verify(&signed(secret, Scheme::Standard, b"{}")),
                genuine,
                "{secret}"
            );
        }
        // A sender may sign with both.
        let mut headers = signed("unknown", Scheme::Standard, b"{}");
        let known = signed("old", Scheme::Standard, b"{}");
        let value = [&headers[SIGNATURE], &known[SIGNATURE]].map(|it| it.to_str().unwrap());
        headers.insert(SIGNATURE, value.join(" ").parse().unwrap());
        assert!(verify(&headers));
    }
}
