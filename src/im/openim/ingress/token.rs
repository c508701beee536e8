//! Issues and verifies administrators' tokens: JSON Web Tokens signed with the secret, as OpenIM
//! makes them. Nothing is stored: any server with the same secret can verify a token, an OpenIM
//! included.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde::{Deserialize, Serialize};

use super::Refused;
use crate::im::ingress::DropInEndpoint;
use crate::secret::Secret;

/// OpenIM's default.
pub(super) const LIFETIME_SECONDS: u64 = 90 * 24 * 60 * 60;

const EXPIRED: u32 = 1501;
const INVALID: u32 = 1502;
const MALFORMED: u32 = 1503;
const NOT_YET_VALID: u32 = 1504;
const UNKNOWN: u32 = 1505;
const NOT_EXIST: u32 = 1507;

const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// The claims of a token. A token made by OpenIM names no app.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claims {
    #[serde(rename = "UserID")]
    pub(super) user: String,
    #[serde(rename = "PlatformID")]
    pub(super) platform: i32,
    #[serde(rename = "App", default, skip_serializing_if = "Option::is_none")]
    pub(super) app: Option<String>,
    /// Seconds since 1970. From this second on the token has expired.
    pub(super) exp: u64,
    #[serde(default)]
    pub(super) nbf: u64,
    #[serde(default)]
    pub(super) iat: u64,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
}

/// Issues a token of `endpoint` to a user.
pub(super) fn issue(endpoint: &DropInEndpoint, user: &str, platform: i32, now_ms: u64) -> String {
    let now = now_ms / 1000;
    let claims = Claims {
        user: user.to_owned(),
        platform,
        app: Some(endpoint.app.clone()),
        exp: now.saturating_add(LIFETIME_SECONDS),
        nbf: now,
        iat: now,
    };
    let claims = crate::json::bytes(&claims);
    let parts = [HEADER.as_bytes(), &claims].map(|part| URL_SAFE_NO_PAD.encode(part));
    let signed = parts.join(".");
    let signature = hmac::sign(&key(endpoint.secret.as_ref()), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

/// The endpoint and the user that a token was issued for.
pub(super) fn verify(
    token: &str,
    endpoints: &[DropInEndpoint],
    now_ms: u64,
) -> Result<(usize, String), Refused> {
    let malformed = || Refused::new(MALFORMED, "");
    let (signed, signature) = token.rsplit_once('.').ok_or_else(malformed)?;
    let (header, claims) = signed.split_once('.').ok_or_else(malformed)?;
    let decoded = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
    let signature = decoded(signature).ok_or_else(malformed)?;
    let header = decoded(header).and_then(|json| serde_json::from_slice::<Header>(&json).ok());
    let header = header.ok_or_else(malformed)?;
    let claims = decoded(claims).ok_or_else(malformed)?;
    // Other algorithms are refused, so that the header cannot choose how it is verified.
    if header.alg != "HS256" {
        return Err(Refused::new(UNKNOWN, ""));
    }
    let signs = |endpoint: &DropInEndpoint| {
        let key = key(endpoint.secret.as_ref());
        endpoint.secret.is_some() && hmac::verify(&key, signed.as_bytes(), &signature).is_ok()
    };
    let by: Vec<usize> = (0..endpoints.len())
        .filter(|index| signs(&endpoints[*index]))
        .collect();
    if by.is_empty() {
        return Err(Refused::new(UNKNOWN, ""));
    }
    let claims: Claims = serde_json::from_slice(&claims).map_err(|_| Refused::new(INVALID, ""))?;
    let now = now_ms / 1000;
    if now >= claims.exp {
        return Err(Refused::new(EXPIRED, ""));
    }
    if now < claims.nbf {
        return Err(Refused::new(NOT_YET_VALID, ""));
    }
    let app = claims.app.as_deref();
    let is_of = |index: &usize| app.is_none_or(|app| app == endpoints[*index].app);
    // The app of the token may have been removed.
    let endpoint = by.into_iter().find(is_of);
    let endpoint = endpoint.ok_or_else(|| Refused::new(NOT_EXIST, ""))?;
    Ok((endpoint, claims.user))
}

fn key(secret: Option<&Secret>) -> hmac::Key {
    let secret = secret.map_or("", Secret::expose);
    hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::im::ingress::fixture::{NOW_MS, endpoint};
    use crate::im::openim::ingress::OpenImIngress;

    fn shop() -> DropInEndpoint {
        endpoint(&OpenImIngress, "imAdmin", "openIM123")
    }

    fn code(token: &str, endpoints: &[DropInEndpoint], now_ms: u64) -> u32 {
        verify(token, endpoints, now_ms).unwrap_err().code
    }

    /// Computed with Python's hmac and base64 from the claims that OpenIM writes, without an app.
    const FOREIGN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJVc2VySUQiOiJpbUFkbWluIiwiUGxhdGZvcm1JRCI6MTAsImV4cCI6MTcwNzc3NjAwMCwibmJmIjoxNjk5OTk5NzAwLCJpYXQiOjE3MDAwMDAwMDB9.5yTbeg6vzg5zMDRh2zFpOT7FuNXe-8509sInmpLYV88";
    const MISSING_USER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJleHAiOjE3MDAwMDAxMDB9.canBGclJT0Tqo3zx6W0fE8N8EDmtlmquV_oO0OM91Eo";
    const UNSIGNED: &str = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJVc2VySUQiOiJpbUFkbWluIiwiUGxhdGZvcm1JRCI6MTAsImV4cCI6MTcwNzc3NjAwMH0.";

    #[test]
    fn tokens_are_good_until_they_expire() {
        let endpoints = [shop()];
        let token = issue(&endpoints[0], "imAdmin", 10, NOW_MS);
        let ours = || (0, "imAdmin".to_owned());
        let last = NOW_MS + LIFETIME_SECONDS * 1000 - 1000;
        for now_ms in [NOW_MS, last] {
            assert_eq!(verify(&token, &endpoints, now_ms).unwrap(), ours());
        }
        assert_eq!(code(&token, &endpoints, last + 1000), EXPIRED);
        assert_eq!(code(&token, &endpoints, NOW_MS - 1000), NOT_YET_VALID);
        // A token that an OpenIM with the same secret made.
        assert_eq!(verify(FOREIGN, &endpoints, NOW_MS).unwrap(), ours());
        assert_eq!(code(FOREIGN, &endpoints, 1_707_776_000_000), EXPIRED);
    }

    #[test]
    fn ours_are_what_other_implementations_make() {
        let token = issue(&shop(), "imAdmin", 10, NOW_MS);
        assert_eq!(
            token,
            "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJVc2VySUQiOiJpbUFkbWluIiwiUGxhdGZvcm1JRCI6MTAsIkFwcCI6InNob3AiLCJleHAiOjE3MDc3NzYwMDAsIm5iZiI6MTcwMDAwMDAwMCwiaWF0IjoxNzAwMDAwMDAwfQ.q088edizcslYdzcfVFEjkzzvU3Tc9DmRj5UOBAKdPLE"
        );
    }

    #[test]
    fn nothing_else_is_a_token() {
        let endpoints = [shop()];
        let token = issue(&endpoints[0], "imAdmin", 10, NOW_MS);
        for text in ["", "x", "a.b", "a.b.c", "....", "é.é.é"] {
            assert_eq!(code(text, &endpoints, NOW_MS), MALFORMED, "{text}");
        }
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let other = signature.replace(|it: char| it != 'A', "A");
        let forged = format!("{signed}.{other}");
        assert_eq!(code(&forged, &endpoints, NOW_MS), UNKNOWN);
        let mut secret = shop();
        secret.secret = Some(Secret::new("another"));
        assert_eq!(code(&token, &[secret], NOW_MS), UNKNOWN);
        assert_eq!(code(UNSIGNED, &endpoints, NOW_MS), UNKNOWN);
        assert_eq!(code(MISSING_USER, &endpoints, NOW_MS), INVALID);
        assert_eq!(code(&token, &[], NOW_MS), UNKNOWN);
    }

    #[test]
    fn a_token_opens_the_door_of_its_own_app() {
        let shop = shop();
        let news = DropInEndpoint {
            app: "news".to_owned(),
            ..shop.clone()
        };
        let token = issue(&news, "imAdmin", 10, NOW_MS);
        let both = [shop.clone(), news];
        assert_eq!(verify(&token, &both, NOW_MS).unwrap().0, 1);
        assert_eq!(code(&token, &[shop], NOW_MS), NOT_EXIST);
    }
}
