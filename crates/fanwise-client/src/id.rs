//! The id of a job.

use std::fmt;
use std::str::FromStr;

use ring::digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One broadcast: the first 96 bits of SHA-256 over app and `client_msg_no`, as 24 hex digits.
///
/// A job is idempotent on (app, `client_msg_no`), so its id needs no register: two producers that
/// publish the same key publish the same job.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId([u8; 12]);

impl JobId {
    /// The id of the job with this key. The app of a job that names none is `default`.
    pub fn of(app: &str, client_msg_no: &str) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(app.as_bytes());
        context.update(&[0]);
        context.update(client_msg_no.as_bytes());
        let mut id = [0; 12];
        id.copy_from_slice(&context.finish().as_ref()[..12]);
        Self(id)
    }

    /// The id as bytes.
    pub const fn bytes(self) -> [u8; 12] {
        self.0
    }

    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 12]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 24 hex digits.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a job id: 24 hexadecimal digits are expected")]
pub struct NotAJobId(String);

impl FromStr for JobId {
    type Err = NotAJobId;

    fn from_str(text: &str) -> Result<Self, NotAJobId> {
        let wrong = || NotAJobId(text.to_owned());
        if text.len() != 24 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut id = [0; 12];
        for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(id))
    }
}

impl Serialize for JobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `printf 'default\0promo-7' | sha256sum` prints it.
    #[test]
    fn a_job_is_known_by_its_key() {
        let id = JobId::of("default", "promo-7");
        assert_eq!(id.to_string(), "78c11f89df83386f913cbda0");
        assert_eq!(id.to_string().parse::<JobId>().unwrap(), id);
        assert_ne!(id, JobId::of("defaultp", "romo-7"));
        for wrong in ["", "promo-7", "0123456789abcdef0123456g", &"é".repeat(12)] {
            assert!(wrong.parse::<JobId>().is_err(), "{wrong}");
        }
    }
}
