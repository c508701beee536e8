//! Packs the outlines of jobs by thousands, so that a listing finds few jobs among many.
//!
//! From the list and the hash of outlines, the server reads a thousand jobs in a millisecond. A pack
//! is one value with the places and outlines of all jobs that were accepted within a span of time,
//! and the server reads it in some microseconds. Packs are copies, and whoever reads them first
//! counts: a pack counts if the list has as many jobs in its span as the pack has. A job may be
//! added to a span late; but none is removed from the list before the dedup window has passed, and
//! no pack is used for so long. So an equal count means equal jobs. A job without a pack is found
//! in the list.
//!
//! The process that lists new jobs packs them from time to time, and so does the upkeep.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::Ordering;

use redis::Value;

use super::Store;
use crate::clock::now_ms;
use crate::domain::ids::JobId;
use crate::ports::{JobPlace, LedgerError};
use crate::store::connection::broken;

/// Jobs of a pack.
pub(super) const PACK_JOBS: usize = 5_000;

/// New jobs after which a process looks whether there are enough for a pack, and the packs that it
/// writes then.
const LOOK_AFTER: usize = PACK_JOBS / 2;
const PACKS_AT_LOOK: usize = 2;

/// The newest jobs are not packed: others may still be listed with an earlier time.
const SETTLED_MS: u64 = 2_000;

/// The clocks of two processes may differ by this much.
const SKEW_MS: u64 = 60_000;

/// All jobs that the list has from one time to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pack {
    pub(super) from_ms: u64,
    pub(super) to_ms: u64,
    jobs: usize,
}

impl Pack {
    pub(super) fn covers(&self, at_ms: u64) -> bool {
        (self.from_ms..=self.to_ms).contains(&at_ms)
    }

    fn read(field: &str) -> Option<Self> {
        let mut numbers = field.split('-').map(|it| it.parse::<u64>().ok());
        let mut number = || numbers.next().flatten();
        let (from_ms, to_ms, jobs) = (number()?, number()?, number()?);
        Some(Self {
            from_ms,
            to_ms,
            jobs: jobs as usize,
        })
    }
}

/// The field of the pack.
impl fmt::Display for Pack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.from_ms, self.to_ms, self.jobs)
    }
}

/// The packs that count, oldest first, and the fields of the others.
#[derive(Default)]
struct Packs {
    count: Vec<Pack>,
    others: Vec<String>,
}

impl Store {
    /// The packs that count, oldest first.
    pub(super) async fn packs(&self) -> Result<Vec<Pack>, LedgerError> {
        Ok(self.all_packs().await?.count)
    }

    async fn fields_of_packs(&self) -> Result<Vec<String>, LedgerError> {
        let mut cmd = redis::cmd("HKEYS");
        cmd.arg(self.0.keys.packs());
        redis::from_redis_value(self.0.connection.command(&cmd).await?).map_err(broken)
    }

    async fn all_packs(&self) -> Result<Packs, LedgerError> {
        let mut packs = Packs::default();
        let oldest_ms = self.oldest_packed_ms();
        for field in self.fields_of_packs().await? {
            match Pack::read(&field).filter(|pack| pack.from_ms >= oldest_ms) {
                Some(pack) => packs.count.push(pack),
                None => packs.others.push(field),
            }
        }
        if packs.count.is_empty() {
            return Ok(packs);
        }
        let mut counts = redis::pipe();
        for pack in &packs.count {
            let count = counts.cmd("ZCOUNT").arg(self.0.keys.jobs());
            count.arg(pack.from_ms).arg(pack.to_ms);
        }
        let mut counts = self.0.connection.pipeline(&counts).await?.into_iter();
        packs.count.retain(|pack| {
            let is_whole = counts.next() == Some(Value::Int(pack.jobs as i64));
            if !is_whole {
                packs.others.push(pack.to_string());
            }
            is_whole
        });
        packs.count.sort_by_key(|pack| pack.from_ms);
        Ok(packs)
    }

    /// Jobs that were accepted earlier than this may be removed from the list.
    fn oldest_packed_ms(&self) -> u64 {
        now_ms().saturating_sub((self.0.window_s * 1000).saturating_sub(SKEW_MS))
    }

    /// The bytes of a pack; `None` if it is no longer there.
    pub(super) async fn pack_bytes(&self, pack: &Pack) -> Result<Option<Vec<u8>>, LedgerError> {
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.0.keys.packs()).arg(pack.to_string());
        let bytes = self.0.connection.command(&cmd).await?;
        redis::from_redis_value(bytes).map_err(broken)
    }

    /// Notes that a job was listed; after some thousands of them, packs them. Not repeated: a
    /// listing finds them all the same.
    pub(super) async fn note_listed(&self) {
        let before = self.0.listed.fetch_add(1, Ordering::Relaxed);
        if before % LOOK_AFTER == LOOK_AFTER - 1 {
            let _ = self.pack(PACKS_AT_LOOK).await;
        }
    }

    /// Packs what is not packed, oldest first, with at most so many new packs.
    pub(in crate::store) async fn pack(&self, mut most: usize) -> Result<(), LedgerError> {
        let packs = self.all_packs().await?;
        let settled = now_ms().saturating_sub(SETTLED_MS);
        let oldest = self
            .places_from(self.oldest_packed_ms(), settled, 1)
            .await?;
        let Some(mut begin) = oldest.first().map(|place| place.at_ms) else {
            return self.remove_packs(&packs.others).await;
        };
        for pack in &packs.count {
            // There is a gap where a pack no longer counts.
            if begin < pack.from_ms {
                self.fill(begin, pack.from_ms - 1, 1, &mut most).await?;
            }
            begin = begin.max(pack.to_ms + 1);
        }
        self.fill(begin, settled, PACK_JOBS, &mut most).await?;
        self.remove_packs(&packs.others).await
    }

    /// Packs the jobs from one time to another, as long as there are `least` of them.
    async fn fill(
        &self,
        mut begin: u64,
        end: u64,
        least: usize,
        most: &mut usize,
    ) -> Result<(), LedgerError> {
        while *most > 0 && begin <= end {
            let mut places = self.places_from(begin, end, PACK_JOBS).await?;
            let Some(last_ms) = places.last().map(|place| place.at_ms) else {
                return Ok(());
            };
            if places.len() < least {
                return Ok(());
            }
            *most -= 1;
            // More jobs of the last millisecond may follow.
            let is_full = places.len() >= PACK_JOBS;
            let to_ms = if is_full {
                last_ms.saturating_sub(1)
            } else {
                end
            };
            places.retain(|place| place.at_ms <= to_ms);
            if places.is_empty() {
                // All are of one millisecond: these stay without a pack.
                begin = last_ms + 1;
                continue;
            }
            let outlines = self.outlines(&places).await?;
            let pack = Pack {
                from_ms: begin,
                to_ms,
                jobs: places.len(),
            };
            if let Some(bytes) = encode(places.iter().zip(&outlines)) {
                let mut cmd = redis::cmd("HSET");
                cmd.arg(self.0.keys.packs())
                    .arg(pack.to_string())
                    .arg(bytes);
                self.0.connection.command(&cmd).await?;
            }
            begin = to_ms + 1;
        }
        Ok(())
    }

    /// The places of the oldest jobs from one time to another, oldest first.
    async fn places_from(
        &self,
        from_ms: u64,
        to_ms: u64,
        most: usize,
    ) -> Result<Vec<JobPlace>, LedgerError> {
        let mut cmd = redis::cmd("ZRANGEBYSCORE");
        cmd.arg(self.0.keys.jobs()).arg(from_ms).arg(to_ms);
        cmd.arg("WITHSCORES").arg("LIMIT").arg(0).arg(most);
        let rows: Vec<(String, u64)> =
            redis::from_redis_value(self.0.connection.command(&cmd).await?).map_err(broken)?;
        rows.into_iter()
            .map(|(job, at_ms)| {
                let job = job.parse().map_err(broken)?;
                Ok(JobPlace { at_ms, job })
            })
            .collect()
    }

    /// Removes the packs that have a job whose outline changed.
    pub(super) async fn remove_packs_with(&self, job: JobId) -> Result<(), LedgerError> {
        let mut cmd = redis::cmd("ZSCORE");
        cmd.arg(self.0.keys.jobs()).arg(job.to_string());
        let at_ms = self.0.connection.command(&cmd).await?;
        let at_ms: Option<u64> = redis::from_redis_value(at_ms).map_err(broken)?;
        let Some(at_ms) = at_ms else { return Ok(()) };
        let mut fields = self.fields_of_packs().await?;
        fields.retain(|field| Pack::read(field).is_some_and(|pack| pack.covers(at_ms)));
        self.remove_packs(&fields).await
    }

    async fn remove_packs(&self, fields: &[String]) -> Result<(), LedgerError> {
        if fields.is_empty() {
            return Ok(());
        }
        let mut cmd = redis::cmd("HDEL");
        cmd.arg(self.0.keys.packs()).arg(fields);
        self.0.connection.command(&cmd).await.map(drop)
    }
}

// ---------------------------------------------------------------------------------------------
// The bytes of a pack
// ---------------------------------------------------------------------------------------------

/// A job in a pack: the time (6 bytes), the id (12 bytes) and the number of its outline (2 bytes).
const ENTRY: usize = 20;

/// The number of a job that had no outline.
const WITHOUT: u16 = u16::MAX;

/// The outlines, each one once with its length before it, and then the jobs. `None` if it does not
/// fit the format.
fn encode<'a>(jobs: impl Iterator<Item = (&'a JobPlace, &'a Option<String>)>) -> Option<Vec<u8>> {
    let mut numbers = HashMap::new();
    let (mut outlines, mut entries) = (Vec::new(), Vec::new());
    for (place, outline) in jobs {
        let number = match outline {
            None => WITHOUT,
            Some(outline) => {
                let next = u16::try_from(numbers.len())
                    .ok()
                    .filter(|it| *it < WITHOUT)?;
                let length = u16::try_from(outline.len()).ok()?;
                *numbers.entry(outline).or_insert_with(|| {
                    outlines.extend(length.to_be_bytes());
                    outlines.extend(outline.as_bytes());
                    next
                })
            }
        };
        entries.extend(&place.at_ms.to_be_bytes()[2..]);
        entries.extend(place.job.bytes());
        entries.extend(number.to_be_bytes());
    }
    let count = u16::try_from(numbers.len()).ok()?;
    Some([&count.to_be_bytes()[..], &outlines, &entries].concat())
}

/// The jobs of a pack.
pub(super) struct PackedJobs<'a> {
    outlines: Vec<&'a str>,
    entries: &'a [[u8; ENTRY]],
}

impl<'a> PackedJobs<'a> {
    /// `None` if the bytes are no pack.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let (count, mut rest) = bytes.split_first_chunk::<2>()?;
        let mut outlines = Vec::new();
        for _ in 0..u16::from_be_bytes(*count) {
            let (length, after) = rest.split_first_chunk::<2>()?;
            let (outline, after) = after.split_at_checked(u16::from_be_bytes(*length).into())?;
            outlines.push(std::str::from_utf8(outline).ok()?);
            rest = after;
        }
        let (entries, left_over) = rest.as_chunks::<ENTRY>();
        left_over.is_empty().then_some(Self { outlines, entries })
    }

    pub(super) fn count(&self) -> usize {
        self.entries.len()
    }

    /// The outlines that its jobs have, each one once.
    pub(super) fn outlines(&self) -> &[&'a str] {
        &self.outlines
    }

    /// Places and outlines of the jobs whose outlines are taken, and of those without one, newest
    /// first.
    pub(super) fn taken(
        &self,
        taken: &[bool],
    ) -> impl Iterator<Item = (JobPlace, Option<&'a str>)> {
        self.entries.iter().rev().filter_map(|entry| {
            let (place, number) = entry.split_at(ENTRY - 2);
            let number = usize::from(u16::from_be_bytes(number.try_into().ok()?));
            if taken.get(number) == Some(&false) {
                return None;
            }
            Some((read_place(place)?, self.outlines.get(number).copied()))
        })
    }
}

fn read_place(bytes: &[u8]) -> Option<JobPlace> {
    let (at_ms, job) = bytes.split_first_chunk::<6>()?;
    let mut time = [0; 8];
    time[2..].copy_from_slice(at_ms);
    Some(JobPlace {
        at_ms: u64::from_be_bytes(time),
        job: JobId::from_bytes(job.try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_come_back() {
        let jobs: Vec<(JobPlace, Option<String>)> = (0..1_000_u64)
            .map(|number| {
                let place = JobPlace {
                    at_ms: 1_700_000_000_000 + number / 3,
                    job: JobId::of("shop", &number.to_string()),
                };
                let outline = format!("shop\nim\nshare-{}", number % 7);
                (place, (number % 10 > 0).then_some(outline))
            })
            .collect();
        let bytes = encode(jobs.iter().map(|(place, outline)| (place, outline))).unwrap();
        assert!(bytes.len() < 1_000 * 21, "{}", bytes.len());
        let packed = PackedJobs::read(&bytes).unwrap();
        assert_eq!(packed.count(), jobs.len());
        for taken in ["", "share-3"] {
            let expected = jobs.iter().rev();
            let expected = expected.map(|(place, outline)| (*place, outline.as_deref()));
            let expected = expected.filter(|(_, it)| it.is_none_or(|it| it.contains(taken)));
            let wanted = packed.outlines().iter().map(|it| it.contains(taken));
            let wanted: Vec<_> = wanted.collect();
            assert!(packed.taken(&wanted).eq(expected), "{taken}");
        }
        for wrong in [0, 1, 5, bytes.len() - 1] {
            assert!(PackedJobs::read(&bytes[..wrong]).is_none(), "{wrong}");
        }
        let nothing = encode(std::iter::empty()).unwrap();
        assert_eq!(PackedJobs::read(&nothing).unwrap().count(), 0);
    }

    #[test]
    fn a_pack_is_named_by_its_span_and_its_count() {
        let pack = Pack {
            from_ms: 17,
            to_ms: 19,
            jobs: 5_000,
        };
        assert_eq!(pack.to_string(), "17-19-5000");
        assert_eq!(Pack::read("17-19-5000"), Some(pack));
        assert_eq!(
            [16, 17, 19, 20].map(|at| pack.covers(at)),
            [false, true, true, false]
        );
        for other in ["", "17", "17-19", "17-19-x"] {
            assert_eq!(Pack::read(other), None, "{other}");
        }
    }
}
