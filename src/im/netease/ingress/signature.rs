//! Verifies the signature of both versions of the API: `CheckSum` is the SHA-1 of AppSecret,
//! `Nonce` and `CurTime` in hexadecimal digits. It covers neither path nor body, so an eavesdropper
//! could reuse it for other calls. A signature is therefore valid for five minutes, and only once.

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use crate::codec::hex;
use crate::im::ingress::{DropInEndpoint, Incoming, SKEW, same};

/// Longest `Nonce`, in bytes.
const NONCE_MAX: usize = 128;

/// The texts of a refused signature. Callers use them to tell a wrong signature from a wrong
/// parameter, which has the same code.
pub(in crate::im) const INCOMPLETE: &str = "bad http header";
pub(in crate::im) const WRONG: &str = "checksum error";
pub(in crate::im) const STALE: &str = "CurTime is expired";

/// The signature of a call.
struct Signature<'a> {
    nonce: &'a str,
    cur_time: &'a str,
    check_sum: String,
}

impl<'a> Signature<'a> {
    fn of(incoming: &Incoming<'a>) -> Option<Self> {
        let signature = Self {
            nonce: incoming.header("nonce")?,
            cur_time: incoming.header("curtime")?,
            check_sum: incoming.header("checksum")?.to_ascii_lowercase(),
        };
        let plausible = (1..=NONCE_MAX).contains(&signature.nonce.len());
        (plausible && signature.seconds().is_some()).then_some(signature)
    }

    /// Digits only: with a sign, another text would give the same time.
    fn seconds(&self) -> Option<u64> {
        let digits = self.cur_time.bytes().all(|digit| digit.is_ascii_digit());
        self.cur_time.parse().ok().filter(|_| digits)
    }

    fn is_by(&self, secret: &str) -> bool {
        let expected = check_sum(secret, self.nonce, self.cur_time);
        same(self.check_sum.as_bytes(), expected.as_bytes())
    }

    fn is_fresh(&self, now_ms: u64) -> bool {
        let seconds = self.seconds().unwrap_or_default();
        seconds.abs_diff(now_ms / 1000) <= SKEW.as_secs()
    }
}

/// The endpoint that a call belongs to, and its nonce, to be accepted once; no nonce for an
/// endpoint without a secret.
pub(in crate::im) fn endpoint(
    incoming: &Incoming<'_>,
    endpoints: &[DropInEndpoint],
) -> Result<(usize, Option<String>), &'static str> {
    let key = incoming.header("appkey").unwrap_or_default();
    let with = |key: Option<&str>| -> Vec<usize> {
        let all = 0..endpoints.len();
        all.filter(|index| endpoints[*index].key.as_deref() == key)
            .collect()
    };
    // If the call names an endpoint, no other endpoint may accept it.
    let mut candidates = with(Some(key));
    if candidates.is_empty() {
        candidates = with(None);
    }
    let signature = Signature::of(incoming);
    for index in candidates {
        let Some(secret) = &endpoints[index].secret else {
            return Ok((index, None));
        };
        let Some(signature) = &signature else {
            continue;
        };
        if signature.is_by(secret.expose()) {
            let nonce = format!("{} {}", signature.cur_time, signature.nonce);
            let fresh = signature.is_fresh(incoming.now_ms);
            return fresh.then_some((index, Some(nonce))).ok_or(STALE);
        }
    }
    // The text does not reveal whether the key or the secret is wrong.
    Err(if signature.is_some() && !key.is_empty() {
        WRONG
    } else {
        INCOMPLETE
    })
}

fn check_sum(secret: &str, nonce: &str, cur_time: &str) -> String {
    let text = [secret, nonce, cur_time].concat();
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    hex(digest.as_ref())
}

#[cfg(test)]
pub(in crate::im) mod tests {
    use super::*;
    use crate::im::ingress::fixture::{Call, NOW_MS, endpoint as an_endpoint, open_endpoint};
    use crate::im::netease::ingress::NetEaseIngress;

    pub(in crate::im) const KEY: &str = "go9dnk49";
    pub(in crate::im) const SECRET: &str = "s3cret";

    /// A call signed with `s3cret`, as computed with Python's hashlib.
    pub(in crate::im) fn signed(call: Call) -> Call {
        call.header("appkey", KEY)
            .header("nonce", "4tgggergigwow323t23t")
            .header("curtime", "1700000000")
            .header("checksum", "bc9e49566202f78039748bf86799e3c6dc9623cc")
    }

    fn call() -> Call {
        signed(Call::new("", ""))
    }

    fn enter(
        call: &Call,
        endpoints: &[DropInEndpoint],
    ) -> Result<(usize, Option<String>), &'static str> {
        let incoming = Incoming {
            path: call.path,
            headers: &call.headers,
            body: &call.body,
            now_ms: call.now_ms,
        };
        endpoint(&incoming, endpoints)
    }

    fn endpoints() -> [DropInEndpoint; 1] {
        [an_endpoint(&NetEaseIngress, KEY, SECRET)]
    }

    const VECTORS: [(&str, &str, &str, &str); 5] = [
        (
            "s3cret",
            "4tgggergigwow323t23t",
            "1700000000",
            "bc9e49566202f78039748bf86799e3c6dc9623cc",
        ),
        (
            "s3cret",
            "n",
            "1700000000",
            "b0eae4be73b54d861f787111288477746a8e28c0",
        ),
        (
            "go9dnk49bkd9jd9vmel1kglw0803mgq3",
            "4tgggergigwow323t23t",
            "1443592222",
            "021889e740178fc3cc1c8e04fd29fdf28ecfa810",
        ),
        ("", "", "", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
        ("中文", "é", "0", "de12a383aedcc7ce44ebd1534a6546cb32f5c494"),
    ];

    const NONCE: &str = "1700000000 4tgggergigwow323t23t";

    #[test]
    fn check_sums_are_those_of_other_implementations() {
        // Computed with hashlib.sha1 and with `openssl dgst -sha1`.
        for (secret, nonce, cur_time, expected) in VECTORS {
            assert_eq!(check_sum(secret, nonce, cur_time), expected);
        }
    }

    #[test]
    fn a_signature_is_good_for_five_minutes_around_its_time() {
        let at = |now_ms| {
            let call = Call { now_ms, ..call() };
            enter(&call, &endpoints())
        };
        for now_ms in [1_699_999_700_000, NOW_MS, 1_700_000_300_999] {
            assert_eq!(at(now_ms), Ok((0, Some(NONCE.to_owned()))));
        }
        for now_ms in [0, 1_699_999_699_999, 1_700_000_301_000, u64::MAX] {
            assert_eq!(at(now_ms), Err(STALE), "{now_ms}");
        }
    }

    #[test]
    fn nobody_comes_in_with_a_wrong_signature() {
        let long = "n".repeat(NONCE_MAX + 1);
        for (name, value, expected) in [
            ("appkey", "other", WRONG),
            ("appkey", "", INCOMPLETE),
            ("nonce", "m", WRONG),
            ("nonce", "", INCOMPLETE),
            ("nonce", &long, INCOMPLETE),
            ("curtime", "1700000001", WRONG),
            ("curtime", "now", INCOMPLETE),
            ("curtime", "+1700000000", INCOMPLETE),
            ("curtime", "", INCOMPLETE),
            ("checksum", "", WRONG),
            (
                "checksum",
                "9e9db3b6c9abb2e1962cf3e6f7316fcc55583f86",
                WRONG,
            ),
        ] {
            let result = enter(&call().header(name, value), &endpoints());
            assert_eq!(result, Err(expected), "{name}: {value}");
        }
        for name in ["appkey", "nonce", "curtime", "checksum"] {
            assert_eq!(enter(&call().without(name), &endpoints()), Err(INCOMPLETE));
        }
        assert_eq!(enter(&call(), &[]), Err(WRONG));
    }

    #[test]
    fn digits_may_be_of_either_case() {
        let upper = "bc9e49566202f78039748bf86799e3c6dc9623cc".to_uppercase();
        let call = call().header("checksum", &upper);
        assert!(enter(&call, &endpoints()).is_ok());
    }

    #[test]
    fn the_key_names_the_door() {
        let open = open_endpoint(&NetEaseIngress);
        let other = an_endpoint(&NetEaseIngress, "other", SECRET);
        let [ours] = endpoints();
        let endpoints = [open.clone(), other, ours.clone()];
        assert_eq!(enter(&call(), &endpoints).unwrap().0, 2);
        // A caller that names its own endpoint cannot fall back to the open one.
        let spoilt = call().header("checksum", "0");
        assert_eq!(enter(&spoilt, &endpoints), Err(WRONG));
        // A caller that names no endpoint gets the open one.
        assert_eq!(enter(&call().without("appkey"), &endpoints), Ok((0, None)));
        assert_eq!(enter(&Call::new("", ""), &[ours, open]), Ok((1, None)));
    }
}
