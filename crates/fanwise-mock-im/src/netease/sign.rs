//! Checks the signature: `CheckSum` is the SHA-1 of secret, `Nonce` and `CurTime`, valid for five
//! minutes.

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use crate::Call;

/// Largest difference between `CurTime` and the mock's clock, in either direction.
const SKEW_SECONDS_MAX: u64 = 300;
const NONCE_CHARS_MAX: usize = 128;

const HEADER_WRONG: &str = "bad http header";
pub(super) const CHECKSUM_WRONG: &str = "checksum error";
const CHECKSUM_STALE: &str = "checksum expired";

/// The app whose secret signed the call, or the error.
pub(super) fn signed_by<'a>(
    apps: &'a [(String, String)],
    call: &Call,
    now: u64,
) -> Result<&'a str, &'static str> {
    let header = |name| call.header(name).ok_or(HEADER_WRONG);
    let (key, nonce) = (header("appkey")?, header("nonce")?);
    let (cur_time, given) = (header("curtime")?, header("checksum")?);
    let seconds: u64 = cur_time.parse().map_err(|_| HEADER_WRONG)?;
    if !(1..=NONCE_CHARS_MAX).contains(&nonce.len()) {
        return Err(HEADER_WRONG);
    }
    let app = apps.iter().find(|(app, _)| app == key);
    let (app, secret) = app.ok_or(HEADER_WRONG)?;
    if given != checksum(secret, nonce, cur_time) {
        return Err(CHECKSUM_WRONG);
    }
    if seconds.abs_diff(now) > SKEW_SECONDS_MAX {
        return Err(CHECKSUM_STALE);
    }
    Ok(app)
}

fn checksum(secret: &str, nonce: &str, cur_time: &str) -> String {
    let text = [secret, nonce, cur_time].concat();
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    let hex = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
    hex.collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Request;

    use super::*;

    fn call(headers: &[(&str, &str)]) -> Call {
        let mut request = Request::new(());
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        Call {
            parts: request.into_parts().0,
            body: Bytes::new(),
        }
    }

    /// Goal: only a signature with the app's own secret is accepted, for five minutes around its
    /// time. Method: one signature, made with hashlib, at several times and with each header
    /// changed.
    #[test]
    fn signature_holds_for_five_minutes() {
        let apps = [("key".to_owned(), "s3cret".to_owned())];
        let good = [
            ("AppKey", "key"),
            ("Nonce", "n"),
            ("CurTime", "1700000000"),
            ("CheckSum", "b0eae4be73b54d861f787111288477746a8e28c0"),
        ];
        let at = |now| signed_by(&apps, &call(&good), now);
        for now in [1_699_999_700, 1_700_000_000, 1_700_000_300] {
            assert_eq!(at(now), Ok("key"));
        }
        for now in [1_699_999_699, 1_700_000_301] {
            assert_eq!(at(now), Err(CHECKSUM_STALE));
        }
        let long = "n".repeat(NONCE_CHARS_MAX + 1);
        let spoilt = [
            (0, "other", HEADER_WRONG),
            (1, "", HEADER_WRONG),
            (1, &long, HEADER_WRONG),
            (1, "m", CHECKSUM_WRONG),
            (2, "now", HEADER_WRONG),
            (2, "1700000001", CHECKSUM_WRONG),
            (
                3,
                "B0EAE4BE73B54D861F787111288477746A8E28C0",
                CHECKSUM_WRONG,
            ),
        ];
        for (index, value, text) in spoilt {
            let mut headers = good;
            headers[index].1 = value;
            let signed = signed_by(&apps, &call(&headers), 1_700_000_000);
            assert_eq!(signed, Err(text), "{value}");
        }
        for missing in 0..good.len() {
            let mut headers = good.to_vec();
            headers.remove(missing);
            let signed = signed_by(&apps, &call(&headers), 1_700_000_000);
            assert_eq!(signed, Err(HEADER_WRONG), "{:?}", good[missing]);
        }
    }

    /// Goal: the digest agrees with other tools. The constants come from Python's hashlib and
    /// openssl.
    #[test]
    fn checksum_agrees_with_other_implementations() {
        assert_eq!(
            checksum("mock-secret", "4tgggergigwow323t23t", "1443592222"),
            "3e4b88bda661141a113d8c0dfb29f881015fc931"
        );
        assert_eq!(
            checksum("s3cret", "n", "1700000000"),
            "b0eae4be73b54d861f787111288477746a8e28c0"
        );
    }
}
