//! Ids. All but `Owner` are derived from what they identify, so that computing one again gives
//! the same id.

use std::fmt;
use std::hash::Hasher;
use std::str::FromStr;

use ring::digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use siphasher::sip::SipHasher13;

use crate::codec;

/// One broadcast: the first 96 bits of SHA-256 over app and `client_msg_no`, as 24 hex digits.
///
/// A job is idempotent on (app, `client_msg_no`), so its id needs no register: two producers that
/// publish the same key publish the same job.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId([u8; 12]);

impl JobId {
    pub fn of(app: &str, client_msg_no: &str) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(app.as_bytes());
        context.update(&[0]);
        context.update(client_msg_no.as_bytes());
        let mut id = [0; 12];
        id.copy_from_slice(&context.finish().as_ref()[..12]);
        Self(id)
    }

    /// The first bytes of the id.
    pub fn beginning(self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.0;
        [a, b, c, d, e, f]
    }

    /// A number that is as good as random.
    pub fn number(self) -> u64 {
        self.0
            .iter()
            .take(8)
            .fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
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

/// The 64-bit keyed hash of a recipient in the ledger of one job.
///
/// Among a million recipients two collide with probability 3e-8; then one of them counts as a
/// repeat of the other. The key prevents outsiders from choosing which ones collide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub u64);

impl Fingerprint {
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

/// Computes fingerprints for one job, or for the jobs of one app.
#[derive(Clone, Copy)]
pub struct Fingerprinter {
    key: [u8; 16],
}

impl Fingerprinter {
    pub fn new(secret: &str, job: JobId) -> Self {
        Self::with_key(&[secret.as_bytes(), &job.0])
    }

    /// Fingerprints that are the same in all jobs of an app. `kind` keeps apart users and groups
    /// with the same id.
    pub fn of_app(secret: &str, app: &str, kind: &str) -> Self {
        Self::with_key(&[
            secret.as_bytes(),
            b"\0app\0",
            app.as_bytes(),
            b"\0",
            kind.as_bytes(),
        ])
    }

    fn with_key(parts: &[&[u8]]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        parts.iter().for_each(|part| context.update(part));
        let mut key = [0; 16];
        key.copy_from_slice(&context.finish().as_ref()[..16]);
        Self { key }
    }

    pub fn fingerprint(&self, recipient: &str) -> Fingerprint {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        hasher.write(recipient.as_bytes());
        Fingerprint(hasher.finish())
    }
}

/// SHA-256 of the parts as hexadecimal digits, shortened to `bytes` bytes.
pub fn digest_hex(parts: &[&[u8]], bytes: usize) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        // The length keeps ("ab", "c") apart from ("a", "bc").
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    codec::hex(&context.finish().as_ref()[..bytes])
}

/// Identifies who holds a claim. It is drawn for every delivery of a slice, so a delivery that
/// returns to the same process is a different owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner(pub u64);

impl Owner {
    /// The eight bytes of a claim in the ledger.
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

/// Identifies a slice of a job by its submission and its position there. It is deterministic, so an
/// intake that runs again cuts the same slices.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SliceId(pub String);

impl SliceId {
    pub fn new(submission: &str, index: u32) -> Self {
        Self(format!("{submission}.{index}"))
    }

    /// The submission from which it was cut.
    pub fn submission(&self) -> &str {
        self.0.rsplit_once('.').map_or(&self.0, |(name, _)| name)
    }
}

impl fmt::Display for SliceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_ids_are_derived_and_travel_as_text() {
        let id = JobId::of("shop", "promo-1");
        assert_eq!(id, JobId::of("shop", "promo-1"));
        assert_ne!(id, JobId::of("shopp", "romo-1"));
        assert_eq!(id.to_string().parse::<JobId>().unwrap(), id);
        assert!("xyz".parse::<JobId>().is_err());
    }

    #[test]
    fn the_submission_of_a_slice_is_found_whatever_it_is_called() {
        for name in ["5f", "a.b", ""] {
            assert_eq!(SliceId::new(name, 14).submission(), name);
        }
    }

    #[test]
    fn fingerprints_differ_between_jobs_and_secrets() {
        let job = JobId::of("a", "1");
        let one = Fingerprinter::new("s", job).fingerprint("u1");
        assert_eq!(one, Fingerprinter::new("s", job).fingerprint("u1"));
        assert_ne!(one, Fingerprinter::new("t", job).fingerprint("u1"));
        assert_ne!(
            one,
            Fingerprinter::new("s", JobId::of("a", "2")).fingerprint("u1")
        );
    }
}
