//! Reads when a certificate expires. X.509 has the time at a fixed place, so a few steps through
//! its DER are enough.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// When the certificate expires, in seconds since 1970. None if it is not a certificate.
pub(super) fn expires_at(certificate: &[u8]) -> Option<i64> {
    let (certificate, _) = of_tag(SEQUENCE, certificate)?;
    let (signed, _) = of_tag(SEQUENCE, certificate)?;
    let mut rest = match of_tag(VERSION, signed) {
        Some((_, rest)) => rest,
        None => signed,
    };
    // The serial number, the algorithm of the signature, the issuer.
    for _ in 0..3 {
        (_, _, rest) = element(rest)?;
    }
    let (validity, _) = of_tag(SEQUENCE, rest)?;
    let (_, _, rest) = element(validity)?;
    let (tag, text, _) = element(rest)?;
    time(tag, std::str::from_utf8(text).ok()?)
}

/// `261129105320Z`, or `20810901105320Z` from the year 2050 on.
fn time(tag: u8, text: &str) -> Option<i64> {
    let digits = text.strip_suffix('Z')?;
    let digits = match tag {
        UTC_TIME if digits.get(..2)? < "50" => format!("20{digits}"),
        UTC_TIME => format!("19{digits}"),
        GENERALIZED_TIME => digits.to_owned(),
        _ => return None,
    };
    let time = DateTime::strptime("%Y%m%d%H%M%S", digits).ok()?;
    let time = time.to_zoned(TimeZone::UTC).ok()?;
    Some(time.timestamp().as_second())
}

/// The contents of an element of this tag, and what follows it.
fn of_tag(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (found, contents, rest) = element(bytes)?;
    (found == tag).then_some((contents, rest))
}

/// Tag and contents of the first element, and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            let length = digits
                .iter()
                .fold(0, |sum, digit| sum << 8 | usize::from(*digit));
            (length, rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((tag, contents, rest))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;

    use super::*;

    /// Made with `openssl req -x509 -newkey ec -days N`; the second one outlives the year 2050.
    const CERTIFICATES: [(&str, &str); 2] = [
        (
            "2027-11-29T10:53:20Z",
            "MIIBbjCCAROgAwIBAgIUImxNUzEtlsU1WYNmTHAH1417uQYwCgYIKoZIzj0EAwIwDDEKMAgGA1UE\
                    AwwBdDAeFw0yNjExMjkxMDUzMjBaFw0yNzExMjkxMDUzMjBaMAwxCjAIBgNVBAMMAXQwWTATBgcq\
                    hkjOPQIBBggqhkjOPQMBBwNCAARLv1vffsxfEmDHIKKtq86SEro1EspoSvkoDcQg611UUQfjDNlg\
                    t+qwzcrgF3bm1SUnEa/NOY3PXQAojFx+FgP3o1MwUTAdBgNVHQ4EFgQUWW2mX14xU5SHP9bjNU2J\
                    Uan2sv8wHwYDVR0jBBgwFoAUWW2mX14xU5SHP9bjNU2JUan2sv8wDwYDVR0TAQH/BAUwAwEB/zAK\
                    BggqhkjOPQQDAgNJADBGAiEAv+LbXm+yuAKBbvFsmpWaK91+jogazDMtP2tCQiGLSJgCIQCsN9Wh\
                    o0wKt4E2keI7bwcBwym+Bwfi5bM7hwLul2yZIg==",
        ),
        (
            "2081-09-01T10:53:20Z",
            "MIIBcDCCARWgAwIBAgIUMuh3Br6itwLYr7bg31K40iUqXIwwCgYIKoZIzj0EAwIwDDEKMAgGA1UE\
                    AwwBdDAgFw0yNjExMjkxMDUzMjBaGA8yMDgxMDkwMTEwNTMyMFowDDEKMAgGA1UEAwwBdDBZMBMG\
                    ByqGSM49AgEGCCqGSM49AwEHA0IABBd2LnkJ1dmteg0hDiEQXrSi3wMs2XKombcPGotyje1jurlu\
                    270Wx6u2T1RIymCX5lgcd5YHXd/A/6Ff+cB9clOjUzBRMB0GA1UdDgQWBBTZ3TWL5HhzuajFa4ry\
                    tJePj7PeGjAfBgNVHSMEGDAWgBTZ3TWL5HhzuajFa4rytJePj7PeGjAPBgNVHRMBAf8EBTADAQH/\
                    MAoGCCqGSM49BAMCA0kAMEYCIQDpSmB2IHapS3hwXZILfkdTIOTDUG37qrd5RYWMV2a1RgIhAOqp\
                    d4973YvGTMhZnBh+F0Ff51ScPR66TLJtzzAefDki",
        ),
    ];

    #[test]
    fn the_end_of_a_certificate_is_read_and_nonsense_is_not() {
        for (end, certificate) in CERTIFICATES {
            let certificate = BASE64_STANDARD.decode(certificate).unwrap();
            let end: jiff::Timestamp = end.parse().unwrap();
            assert_eq!(expires_at(&certificate), Some(end.as_second()));
            for length in 0..certificate.len().min(150) {
                assert_eq!(expires_at(&certificate[..length]), None, "{length}");
            }
        }
    }
}
