//! Holds one application in NetEase's cloud: the address of its API, the signature of requests, and
//! the id of a request, which is the same when it is repeated. Both versions of the API use it.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use ring::digest::{self, SHA1_FOR_LEGACY_USE_ONLY};

use crate::codec::hex;
use crate::domain::fields::Problem;
use crate::im::address::Base;
use crate::im::json;
use crate::ports::{Request, Signing};
use crate::secret::Secret;

const APP_KEY: HeaderName = HeaderName::from_static("appkey");
const NONCE: HeaderName = HeaderName::from_static("nonce");
const CUR_TIME: HeaderName = HeaderName::from_static("curtime");
const CHECK_SUM: HeaderName = HeaderName::from_static("checksum");

/// One application.
pub(in crate::im) struct Account {
    base: Base,
    /// The headers of all requests: the type of their body and the key of the application.
    headers: HeaderMap,
    secret: Secret,
}

impl Account {
    /// Reports every problem of the settings. `example` is a valid URL for the message.
    pub(in crate::im) fn new(
        url: &str,
        app_key: &str,
        app_secret: &Secret,
        content_type: &'static str,
        example: &str,
        problems: &mut Vec<Problem>,
    ) -> Option<Arc<Self>> {
        let base = Base::parse(url, example)
            .map_err(|what| problems.push(Problem::new("url", what)))
            .ok();
        let key = HeaderValue::from_str(app_key)
            .ok()
            .filter(|key| !key.is_empty());
        if key.is_none() {
            let what = "the AppKey of the application is expected";
            problems.push(Problem::new("app_key", what));
        }
        if app_secret.expose().is_empty() {
            let what = "the AppSecret of the application is expected";
            problems.push(Problem::new("app_secret", what));
        }
        // Leaves space for the id of the request and for the signature.
        let mut headers = HeaderMap::with_capacity(8);
        let content_type = HeaderValue::from_static(content_type);
        headers.insert(http::header::CONTENT_TYPE, content_type);
        headers.insert(APP_KEY, key?);
        Some(Arc::new(Self {
            base: base?,
            headers,
            secret: app_secret.clone(),
        }))
    }

    /// The address of a call. `path` begins with a slash and holds only characters that a path may
    /// hold.
    pub(in crate::im) fn uri(&self, path: &str) -> Uri {
        self.base.join(path)
    }

    /// A request with its id in the header `name`, not signed yet.
    pub(in crate::im) fn request(
        &self,
        uri: Uri,
        name: &HeaderName,
        id: &str,
        body: Vec<u8>,
    ) -> Request {
        let mut headers = self.headers.clone();
        headers.insert(name, header_value(id));
        Request {
            method: Method::POST,
            uri,
            headers,
            body: Bytes::from(body),
        }
    }

    /// Signs a request for the next five minutes: SHA-1 over secret, nonce and time, as NetEase
    /// requires.
    pub(in crate::im) fn sign(&self, request: &mut Request, signing: Signing) {
        let nonce = format!("{:032x}", signing.nonce);
        let seconds = (signing.now_ms / 1000).to_string();
        let mut sum = digest::Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
        for part in [self.secret.expose(), &nonce, &seconds] {
            sum.update(part.as_bytes());
        }
        let check_sum = hex(sum.finish().as_ref());
        request.headers.insert(NONCE, header_value(nonce));
        request.headers.insert(CUR_TIME, header_value(seconds));
        request.headers.insert(CHECK_SUM, header_value(check_sum));
    }
}

/// The id of a call, derived from the job and its recipients in their order: a repeated call has
/// the same id and no other call has it. 32 hexadecimal digits, as the vendor's own SDKs send them.
pub(in crate::im) fn request_id(job: &str, recipients: &[&str]) -> String {
    let mut texts = Vec::with_capacity(recipients.len() + 1);
    texts.push(job);
    texts.extend_from_slice(recipients);
    hex(&json::digest::<16>(&texts))
}

/// The length of a text as the vendor's limits count it: in UTF-16 units, as in Java.
pub(in crate::im) fn length(text: &str) -> usize {
    text.encode_utf16().count()
}

#[expect(clippy::expect_used, reason = "digits, and nothing else")]
fn header_value(value: impl AsRef<[u8]>) -> HeaderValue {
    HeaderValue::from_bytes(value.as_ref()).expect("digits fit in a header")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(secret: &str) -> Arc<Account> {
        let secret = Secret::new(secret);
        Account::new("http://x", "k", &secret, "a/b", "", &mut Vec::new()).unwrap()
    }

    /// Computed with Python's hashlib and with openssl.
    #[test]
    fn check_sums_are_those_of_other_tools() {
        for (now_ms, nonce, expected) in [
            (
                1_443_592_222_999,
                0,
                [
                    "00000000000000000000000000000000",
                    "1443592222",
                    "cadb1f83048896bd3fdf3bc34c494f79628a8090",
                ],
            ),
            (
                1_700_000_000_000,
                0x0123_4567_89ab_cdef_0123_4567_89ab_cdef,
                [
                    "0123456789abcdef0123456789abcdef",
                    "1700000000",
                    "fd62b3a88a9d802e936dfb9787b143c8fdfcd0c0",
                ],
            ),
        ] {
            let account = account("a1b2c3d4e5f6");
            let uri = account.uri("/p");
            let mut request = account.request(uri, &HeaderName::from_static("id"), "1", Vec::new());
            account.sign(&mut request, Signing { now_ms, nonce });
            let headers = ["nonce", "curtime", "checksum"].map(|name| &request.headers[name]);
            assert_eq!(headers, expected);
            assert_eq!(request.headers.len(), 6);
        }
    }

    /// Computed with Python's hashlib: SHA-256 over job and recipients, each closed by 0xff.
    #[test]
    fn request_ids_never_change() {
        let job = "103700ae6eb43776dac4c71a";
        assert_eq!(request_id(job, &["u1"]), "32b30cca2e043dd6ed53729e9813f1bb");
        assert_eq!(
            request_id(job, &["u1", "u2"]),
            "d42a465260ba6d48fc5e9c63554fa7dd"
        );
        assert_ne!(
            request_id(job, &["u2", "u1"]),
            request_id(job, &["u1", "u2"])
        );
        assert_ne!(request_id(job, &["u1u2"]), request_id(job, &["u1", "u2"]));
        assert_ne!(request_id("other", &["u1"]), request_id(job, &["u1"]));
    }

    #[test]
    fn lengths_are_counted_in_utf_16() {
        assert_eq!(length("aé中"), 3);
        assert_eq!(length("😀"), 2);
    }
}
