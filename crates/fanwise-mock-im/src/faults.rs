//! Decides how the mock misbehaves, and when.
//!
//! [`Faults`] holds the settings: the flags set them at the start, `GET /_mock/faults` returns them
//! and `POST /_mock/faults` changes them. `Chooser` holds them while the server runs and decides
//! the `CallPlan` of each request.
//!
//! The choice for the n-th request depends only on the seed and on n, so a run that sends the same
//! requests in the same order gets the same faults. Whether a user is refused depends only on the
//! seed and the uid, in any order. If several faults would strike one request, the first in the
//! order of [`FaultKind`] does, so a request counts for at most one fault.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::Hasher;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use siphasher::sip::SipHasher13;

use crate::duration::{duration_text, parse_duration};

/// Invalid settings.
#[derive(Debug, thiserror::Error)]
pub enum FaultsError {
    #[error("{0:?} is not a share: give 0..1 or 0%..100%")]
    Share(String),
    #[error("{0:?} is not a latency: give 20ms or 20ms..80ms")]
    Latency(String),
    #[error("{0:?} is not a chance: give 2%, 0.02, x3 (the next 3 requests) or 50%x3")]
    Chance(String),
    #[error("{0:?} is not a fault setting: give KIND=CHANCE, for example reset-after=x3")]
    Setting(String),
    #[error("{0:?} is not a fault; the kinds are listed at --fault in the help")]
    Kind(String),
    #[error("the patch is not a JSON object")]
    NotAnObject,
    #[error("the patch cannot be applied")]
    Patch(#[source] serde_json::Error),
}

/// The faults of a request, in the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// 429 while a [`Burst`] lasts. Only `burst` sets it, never a chance.
    #[serde(rename = "burst_429", skip_deserializing)]
    Burst429,
    /// The request is read, nothing is accepted, and no answer is sent.
    Hang,
    /// The connection is reset; nothing is accepted.
    ResetBefore,
    /// 401, as if the token were wrong; nothing is accepted.
    Unauthorised,
    /// 500; nothing is accepted.
    #[serde(rename = "error_500")]
    Error500,
    /// 503; nothing is accepted.
    #[serde(rename = "error_503")]
    Error503,
    /// 429 with `Retry-After`; nothing is accepted.
    #[serde(rename = "error_429")]
    Error429,
    /// 200 with broken JSON; nothing is accepted.
    BadJsonUnaccepted,
    /// 200 as if accepted, but the message is lost: it is not in the log.
    #[serde(rename = "lost_after_200")]
    LostAfter200,
    /// Accepted, then the connection is reset without an answer.
    ResetAfter,
    /// Accepted, then no answer is sent.
    ReplyLost,
    /// Accepted, then the connection is closed normally, without an answer.
    ReplyClosed,
    /// Accepted; the headers arrive immediately, the body in small pieces, one every `slow_pace`.
    SlowBody,
    /// Accepted; half of the announced body arrives, then the connection closes.
    HalfBody,
    /// Accepted; 200 with broken JSON.
    BadJson,
    /// Accepted; answered as an internal error, because a later step failed.
    ErrorAfter,
}

impl FaultKind {
    /// Every kind, in the order of the enum.
    pub const ALL: [FaultKind; 16] = [
        FaultKind::Burst429,
        FaultKind::Hang,
        FaultKind::ResetBefore,
        FaultKind::Unauthorised,
        FaultKind::Error500,
        FaultKind::Error503,
        FaultKind::Error429,
        FaultKind::BadJsonUnaccepted,
        FaultKind::LostAfter200,
        FaultKind::ResetAfter,
        FaultKind::ReplyLost,
        FaultKind::ReplyClosed,
        FaultKind::SlowBody,
        FaultKind::HalfBody,
        FaultKind::BadJson,
        FaultKind::ErrorAfter,
    ];

    /// The name in JSON and, with dashes, on the command line.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::Burst429 => "burst_429",
            FaultKind::Hang => "hang",
            FaultKind::ResetBefore => "reset_before",
            FaultKind::Unauthorised => "unauthorised",
            FaultKind::Error500 => "error_500",
            FaultKind::Error503 => "error_503",
            FaultKind::Error429 => "error_429",
            FaultKind::BadJsonUnaccepted => "bad_json_unaccepted",
            FaultKind::LostAfter200 => "lost_after_200",
            FaultKind::ResetAfter => "reset_after",
            FaultKind::ReplyLost => "reply_lost",
            FaultKind::ReplyClosed => "reply_closed",
            FaultKind::SlowBody => "slow_body",
            FaultKind::HalfBody => "half_body",
            FaultKind::BadJson => "bad_json",
            FaultKind::ErrorAfter => "error_after",
        }
    }

    /// Whether the fault strikes before the protocol sees the request, so that nothing can be
    /// accepted.
    pub(super) fn strikes_before_accepting(self) -> bool {
        self < FaultKind::LostAfter200
    }
}

/// A number from 0 to 1, written `0.02` or `"2%"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Share(f64);

impl Share {
    /// All requests or users.
    pub const ALL: Share = Share(1.0);

    /// Whether a user is in this share; always the same users for a seed. Settings with a `purpose`
    /// of their own choose independently of each other.
    pub(super) fn takes(self, uid: &str, seed: u64, purpose: u64) -> bool {
        let mut hasher = SipHasher13::new_with_keys(seed, purpose);
        hasher.write(uid.as_bytes());
        let draw = (hasher.finish() >> 11) as f64 / (1_u64 << 53) as f64;
        draw < self.0
    }

    fn checked(value: f64, text: &str) -> Result<Share, FaultsError> {
        if (0.0..=1.0).contains(&value) {
            Ok(Share(value))
        } else {
            Err(FaultsError::Share(text.to_owned()))
        }
    }
}

impl FromStr for Share {
    type Err = FaultsError;

    fn from_str(text: &str) -> Result<Share, FaultsError> {
        let (digits, unit) = match text.trim().strip_suffix('%') {
            Some(digits) => (digits, 100.0),
            None => (text.trim(), 1.0),
        };
        let number: f64 = digits
            .trim()
            .parse()
            .map_err(|_| FaultsError::Share(text.to_owned()))?;
        Share::checked(number / unit, text)
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0)
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Share, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => text.parse().map_err(D::Error::custom),
            value => {
                let text = value.to_string();
                let number = value.as_f64().ok_or(FaultsError::Share(text.clone()));
                number
                    .and_then(|number| Share::checked(number, &text))
                    .map_err(D::Error::custom)
            }
        }
    }
}

/// The wait before a request is handled: fixed, or drawn from a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Latency(RangeInclusive<Duration>);

impl Latency {
    fn draw(&self, rng: &mut fastrand::Rng) -> Duration {
        let width = self.0.end().saturating_sub(*self.0.start());
        *self.0.start() + width.mul_f64(rng.f64())
    }
}

impl FromStr for Latency {
    type Err = FaultsError;

    fn from_str(text: &str) -> Result<Latency, FaultsError> {
        let (from, to) = text.split_once("..").unwrap_or((text, text));
        let parse = |part: &str| {
            parse_duration(part.trim()).map_err(|_| FaultsError::Latency(text.to_owned()))
        };
        let (from, to) = (parse(from)?, parse(to)?);
        if from > to {
            return Err(FaultsError::Latency(text.to_owned()));
        }
        Ok(Latency(from..=to))
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", duration_text(*self.0.start()))?;
        if self.0.start() == self.0.end() {
            return Ok(());
        }
        write!(formatter, "..{}", duration_text(*self.0.end()))
    }
}

impl TryFrom<String> for Latency {
    type Error = FaultsError;

    fn try_from(text: String) -> Result<Latency, FaultsError> {
        text.parse()
    }
}

impl From<Latency> for String {
    fn from(latency: Latency) -> String {
        latency.to_string()
    }
}

/// How often a fault strikes: a share of the requests, and a highest number of times.
///
/// In JSON `0.02`, `"2%"`, `"x3"`, `"50%x3"` or `{"rate":0.5,"count":3}`. Without a rate it strikes
/// every request until the count is used up. The count goes down when the fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Chance {
    pub rate: Share,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl Chance {
    /// Strikes every one of the next `count` requests.
    pub fn next(count: u64) -> Chance {
        Chance {
            rate: Share::ALL,
            count: Some(count),
        }
    }

    /// Strikes this share of all requests.
    pub fn share(rate: Share) -> Chance {
        Chance { rate, count: None }
    }

    fn strikes(&self, draw: f64) -> bool {
        self.count != Some(0) && draw < self.rate.0
    }
}

impl FromStr for Chance {
    type Err = FaultsError;

    fn from_str(text: &str) -> Result<Chance, FaultsError> {
        let wrong = |_| FaultsError::Chance(text.to_owned());
        let Some((rate, count)) = text.split_once('x') else {
            return text.parse().map(Chance::share).map_err(wrong);
        };
        let count = count
            .trim()
            .parse()
            .map_err(|_| FaultsError::Chance(text.to_owned()))?;
        let rate = match rate.trim() {
            "" => Share::ALL,
            rate => rate.parse().map_err(wrong)?,
        };
        Ok(Chance {
            rate,
            count: Some(count),
        })
    }
}

impl<'de> Deserialize<'de> for Chance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Chance, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            #[serde(default)]
            rate: Option<Share>,
            #[serde(default)]
            count: Option<u64>,
        }
        match Value::deserialize(deserializer)? {
            Value::String(text) => text.parse().map_err(D::Error::custom),
            value @ Value::Object(_) => {
                let fields: Fields = serde_json::from_value(value).map_err(D::Error::custom)?;
                Ok(Chance {
                    rate: fields.rate.unwrap_or(Share::ALL),
                    count: fields.count,
                })
            }
            value => serde_json::from_value(value)
                .map(Chance::share)
                .map_err(D::Error::custom),
        }
    }
}

/// One fault from the command line: `reset-after=2%`.
#[derive(Clone, Debug)]
pub struct FaultFlag {
    pub kind: FaultKind,
    pub chance: Chance,
}

impl FromStr for FaultFlag {
    type Err = FaultsError;

    fn from_str(text: &str) -> Result<FaultFlag, FaultsError> {
        let (kind, chance) = text
            .split_once('=')
            .ok_or_else(|| FaultsError::Setting(text.to_owned()))?;
        let name = Value::String(kind.trim().replace('-', "_"));
        Ok(FaultFlag {
            kind: serde_json::from_value(name).map_err(|_| FaultsError::Kind(kind.to_owned()))?,
            chance: chance.parse()?,
        })
    }
}

/// After `after` accepted messages every request is answered 429 for a while, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Burst {
    /// Accepted messages between setting this and the start of the burst.
    pub after: u64,
    /// Its duration, from the first request that it strikes.
    #[serde(rename = "for", with = "human")]
    pub lasts: Duration,
    /// The `Retry-After` of its answers, in seconds.
    pub retry_after: u32,
}

/// All misbehaviour, as set by the flags and by `/_mock/faults`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Faults {
    /// The wait before a request is handled. A request whose client gives up is handled all the
    /// same.
    pub latency: Option<Latency>,
    /// Time between two pieces of a slow body.
    #[serde(with = "human")]
    pub slow_pace: Duration,
    /// `Retry-After` of `error_429`, in seconds.
    pub retry_after: u32,
    /// Share of the users that are refused, chosen by a hash of the uid.
    pub refuse: Share,
    /// Users refused by name.
    pub refuse_users: Vec<String>,
    /// Users whose uid begins with this are refused.
    pub refuse_prefix: Option<String>,
    /// WuKongIM v3 reason code of a refusal; 4 is "in blacklist".
    pub refuse_reason: u8,
    pub burst: Option<Burst>,
    /// The faults that strike by chance, by name.
    #[serde(flatten)]
    pub chances: BTreeMap<FaultKind, Chance>,
}

impl Default for Faults {
    fn default() -> Faults {
        Faults {
            latency: None,
            slow_pace: Duration::from_millis(100),
            retry_after: 1,
            refuse: Share::default(),
            refuse_users: Vec::new(),
            refuse_prefix: None,
            refuse_reason: 4,
            burst: None,
            chances: BTreeMap::new(),
        }
    }
}

impl Faults {
    /// These settings with the keys of `patch` changed; `null` resets a key to its default.
    pub fn patched(&self, patch: &Value) -> Result<Faults, FaultsError> {
        patched(self, patch)
    }
}

/// Any settings with the keys of `patch` changed; `null` removes a key, so that its default
/// applies.
pub(super) fn patched<T>(settings: &T, patch: &Value) -> Result<T, FaultsError>
where
    T: Serialize + DeserializeOwned,
{
    let patch = patch.as_object().ok_or(FaultsError::NotAnObject)?;
    let mut settings = serde_json::to_value(settings).map_err(FaultsError::Patch)?;
    let keys = settings.as_object_mut().ok_or(FaultsError::NotAnObject)?;
    for (key, value) in patch {
        if value.is_null() {
            keys.remove(key);
        } else {
            keys.insert(key.clone(), value.clone());
        }
    }
    serde_json::from_value(settings).map_err(FaultsError::Patch)
}

/// The refused users: a snapshot that a request can use without a lock.
#[derive(Debug)]
pub(super) struct Refusal {
    seed: u64,
    share: Share,
    users: Vec<String>,
    prefix: Option<String>,
    /// The reason code that WuKongIM v3 gives.
    pub(super) reason: u8,
}

impl Refusal {
    fn new(faults: &Faults, seed: u64) -> Refusal {
        Refusal {
            seed,
            share: faults.refuse,
            users: faults.refuse_users.clone(),
            prefix: faults.refuse_prefix.clone(),
            reason: faults.refuse_reason,
        }
    }

    pub(super) fn applies_to(&self, uid: &str) -> bool {
        let prefixed = |prefix: &String| uid.starts_with(prefix.as_str());
        self.prefix.as_ref().is_some_and(prefixed)
            || self.users.iter().any(|user| user == uid)
            || self.share.takes(uid, self.seed, 0)
    }
}

/// The faults and settings of one request.
#[derive(Clone, Debug)]
pub(super) struct CallPlan {
    pub(super) fault: Option<FaultKind>,
    pub(super) latency: Duration,
    pub(super) retry_after: u32,
    pub(super) slow_pace: Duration,
    pub(super) refusal: Arc<Refusal>,
}

/// The current settings, and the choice of faults.
#[derive(Debug)]
pub(super) struct Chooser {
    seed: u64,
    faults: Faults,
    refusal: Arc<Refusal>,
    /// Messages accepted when the burst was set.
    burst_base: u64,
    burst_until: Option<Instant>,
}

impl Chooser {
    pub(super) fn new(faults: Faults, seed: u64) -> Chooser {
        Chooser {
            seed,
            refusal: Arc::new(Refusal::new(&faults, seed)),
            faults,
            burst_base: 0,
            burst_until: None,
        }
    }

    pub(super) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Changes the settings; a new burst counts from `accepted`.
    pub(super) fn patch(&mut self, patch: &Value, accepted: u64) -> Result<&Faults, FaultsError> {
        self.faults = self.faults.patched(patch)?;
        self.refusal = Arc::new(Refusal::new(&self.faults, self.seed));
        if patch.get("burst").is_some() {
            self.burst_base = accepted;
            self.burst_until = None;
        }
        Ok(&self.faults)
    }

    /// Decides the faults of request `number`, after `accepted` messages were accepted.
    pub(super) fn draw(&mut self, number: u64, accepted: u64, now: Instant) -> CallPlan {
        // The odd constant (2^64 / golden ratio) spreads neighbouring numbers over all seeds.
        let seed = self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut rng = fastrand::Rng::with_seed(seed);
        let latency = self.faults.latency.as_ref();
        let mut plan = CallPlan {
            fault: None,
            latency: latency.map_or(Duration::ZERO, |latency| latency.draw(&mut rng)),
            retry_after: self.faults.retry_after,
            slow_pace: self.faults.slow_pace,
            refusal: Arc::clone(&self.refusal),
        };
        if let Some(retry_after) = self.burst(accepted, now) {
            plan.fault = Some(FaultKind::Burst429);
            plan.retry_after = retry_after;
        } else {
            plan.fault = self.strike(seed);
        }
        plan
    }

    /// The `Retry-After` of the burst, if it is active. Removes a burst that is over.
    fn burst(&mut self, accepted: u64, now: Instant) -> Option<u32> {
        let burst = self.faults.burst.as_ref()?;
        if accepted.saturating_sub(self.burst_base) < burst.after {
            return None;
        }
        let until = *self.burst_until.get_or_insert(now + burst.lasts);
        if now < until {
            return Some(burst.retry_after);
        }
        self.faults.burst = None;
        self.burst_until = None;
        None
    }

    fn strike(&mut self, seed: u64) -> Option<FaultKind> {
        let mut struck = self.faults.chances.iter_mut().filter_map(|(kind, chance)| {
            // A generator for each kind, so that a used-up fault does not shift the draws of
            // another.
            let seed = seed.wrapping_add(1 + *kind as u64);
            let draw = fastrand::Rng::with_seed(seed).f64();
            chance.strikes(draw).then_some((*kind, chance))
        });
        let (kind, chance) = struck.next()?;
        if let Some(count) = &mut chance.count {
            *count -= 1;
            if *count == 0 {
                self.faults.chances.remove(&kind);
            }
        }
        Some(kind)
    }
}

/// Durations in readable form: `250ms`, `1m 30s`.
mod human {
    use super::{Deserialize, Deserializer, Duration, Serializer, duration_text, parse_duration};
    use serde::de::Error as _;

    pub(super) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&duration_text(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text).map_err(D::Error::custom)
    }
}
