//! Ids. All but `Owner` are derived from what they identify, so that computing one again gives
//! the same id.

use std::fmt;
use std::hash::Hasher;

pub use fanwise_client::{JobId, NotAJobId};
use ring::digest;
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use crate::codec;

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
        Self::with_key(&[secret.as_bytes(), &job.bytes()])
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
