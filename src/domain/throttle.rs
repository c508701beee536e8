//! The throttle of one worker: units of the limits that it leased ahead, and the slices that wait
//! for them, in their order. No I/O.
//!
//! All workers share each limit (`domain::limits`). A worker leases units of it in blocks, at most
//! 50 ms of its rate, and hands them out from memory, so a call costs no round trip. A slice gets
//! units of all its limits together, or none.
//!
//! - A block is as large as the waiting slices need. While the limit grants blocks without a wait,
//!   the worker also leases ahead, twice as much each time.
//! - Units are used within `KEPT`, or not at all: units that no slice takes go back to the limit, and
//!   a slice that could not call in time asks anew. Otherwise a ledger or a process that stood still
//!   would be followed by calls of seconds that are over. So each second exceeds a rate by at most
//!   the burst and one block per worker, the one that is on its way from the limit.
//! - Slices wait in the order in which they came. Small jobs go first, but of every four grants one
//!   goes to another slice that waits (promise 8).

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::ids::JobId;
use super::limits::{Cost, Grant, LimitScope, Rate, Weight};

/// How long units may be used after they were leased, and again after a slice got them.
pub const KEPT: Duration = Duration::from_millis(100);

/// Grants in a row that small jobs get while other slices wait.
const SMALL_JOBS_FIRST: u32 = 3;

/// How long a limit still counts as one that holds up its slices. Between two blocks it holds up none
/// for a moment.
const HELD_UP: Duration = Duration::from_millis(250);

/// A limit that nobody has used for this long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(1);

/// One limit. A limit whose rate changes is another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LimitKey {
    pub scope: LimitScope,
    /// Name of the target, app, job or shared limit, or target and sender.
    pub name: String,
    pub rate: Rate,
    pub cost: Cost,
    /// The units of the rate that one unit takes here. All weights of a limit share its limiter.
    pub weight: Weight,
    /// This process keeps the limit alone, because the ledger is down.
    pub alone: bool,
}

impl LimitKey {
    fn units(&self, recipients: u32, per_call: u32) -> u32 {
        match self.cost {
            Cost::PerCall => recipients.div_ceil(per_call),
            Cost::PerRecipient => recipients,
        }
    }

    /// Recipients that these units are enough for.
    fn recipients(&self, units: u32, per_call: u32) -> u32 {
        match self.cost {
            Cost::PerCall => units.saturating_mul(per_call),
            Cost::PerRecipient => units,
        }
    }

    /// The most units to lease at once.
    fn lease_units_max(&self) -> u32 {
        self.rate.weighed(self.weight).lease_units(u32::MAX)
    }
}

/// What a slice asks for.
#[derive(Clone, Debug)]
pub struct Ask {
    pub limits: Vec<LimitKey>,
    /// Recipients, in calls of `per_call`; both at least 1.
    pub recipients: u32,
    pub per_call: u32,
    pub small_job: bool,
}

impl Ask {
    /// A call is filled even when that takes more units than are worth leasing at once.
    fn full_call(&self) -> u32 {
        self.recipients.min(self.per_call)
    }
}

/// The answer to an [`Ask`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granted {
    /// So many recipients may be sent to now.
    Recipients(u32),
    /// The limit of an app or a job grants nothing for this long.
    Later(Duration),
}

/// What became of units that a slice got.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    pub recipients: u32,
    pub calls: u32,
    /// Others may use the rest. Otherwise it is too old.
    pub rest: bool,
}

impl Used {
    /// All units are for others.
    pub const NOTHING: Self = Self {
        recipients: 0,
        calls: 0,
        rest: true,
    };
}

/// Apps and jobs whose slices wait for limits of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldUp {
    pub apps: HashSet<String>,
    pub jobs: HashSet<String>,
}

impl HeldUp {
    pub fn is_empty(&self) -> bool {
        self.apps.is_empty() && self.jobs.is_empty()
    }

    pub fn has(&self, app: &str, job: JobId) -> bool {
        self.apps.contains(app) || (!self.jobs.is_empty() && self.jobs.contains(&job.to_string()))
    }
}

/// A block to lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub limit: LimitKey,
    pub units: u32,
}

/// The place of an [`Ask`] among those that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// `W` is how the answer reaches the slice that waits. Times count from any fixed moment.
#[derive(Debug)]
pub struct Throttle<W> {
    pools: HashMap<LimitKey, Pool>,
    small_jobs: VecDeque<Waiting<W>>,
    others: VecDeque<Waiting<W>>,
    /// Grants in a row that small jobs got.
    streak: u32,
    tickets: u64,
}

#[derive(Debug)]
struct Waiting<W> {
    ticket: Ticket,
    ask: Ask,
    handle: W,
}

/// The units of one limit. Below zero, calls have taken more than was leased, and the next block
/// covers them.
#[derive(Debug, Default)]
struct Pool {
    units: i64,
    /// Units to lease beyond those that slices wait for.
    ahead: u32,
    /// A block is being leased.
    asked: bool,
    /// The limit grants nothing before this time.
    closed_until: Duration,
    /// The units that come next may not be used before this time.
    late_until: Duration,
    /// When units were last leased or taken.
    used: Duration,
    /// Units that were too old to be used, and go back to the limit.
    unused: u32,
}

impl Pool {
    /// The units that may be used.
    fn fresh(&self, now: Duration) -> u32 {
        let units = u32::try_from(self.units.max(0)).unwrap_or(u32::MAX);
        if now.saturating_sub(self.used) < KEPT {
            units
        } else {
            0
        }
    }

    /// Puts units aside that are too old. A limit has long forgotten units of twice that age: giving
    /// them back would let others exceed it.
    fn expire(&mut self, now: Duration) {
        let idle = now.saturating_sub(self.used);
        if idle >= KEPT && self.units > 0 {
            if idle < 2 * KEPT {
                let units = u32::try_from(self.units).unwrap_or(u32::MAX);
                self.unused = self.unused.saturating_add(units);
            }
            self.units = 0;
        }
    }

    /// Notes that units are leased or taken now.
    fn use_now(&mut self, now: Duration) {
        self.expire(now);
        self.used = now;
    }
}

impl<W> Default for Throttle<W> {
    fn default() -> Self {
        Self {
            pools: HashMap::new(),
            small_jobs: VecDeque::new(),
            others: VecDeque::new(),
            streak: 0,
            tickets: 0,
        }
    }
}

impl<W> Throttle<W> {
    /// Lets a slice wait. [`Self::serve`] says when it gets its units.
    pub fn wait(&mut self, ask: Ask, handle: W, now: Duration) -> Ticket {
        for limit in &ask.limits {
            let pool = self.pools.entry(limit.clone()).or_default();
            pool.use_now(now);
        }
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let queue = match ask.small_job {
            true => &mut self.small_jobs,
            false => &mut self.others,
        };
        queue.push_back(Waiting {
            ticket,
            ask,
            handle,
        });
        ticket
    }

    /// A slice does not wait any longer.
    pub fn leave(&mut self, ticket: Ticket) {
        for queue in [&mut self.small_jobs, &mut self.others] {
            queue.retain(|waiting| waiting.ticket != ticket);
        }
    }

    /// The slices that get units now. A call is filled, unless a block of one of its limits has
    /// just `arrived`: then the slice takes what there is.
    pub fn serve(&mut self, arrived: Option<&LimitKey>, now: Duration) -> Vec<(W, Ask, u32)> {
        let mut served = Vec::new();
        while let Some(next) = self.next(arrived, now) {
            served.push(next);
        }
        served
    }

    fn next(&mut self, arrived: Option<&LimitKey>, now: Duration) -> Option<(W, Ask, u32)> {
        let find = |queue: &VecDeque<Waiting<W>>| {
            let mut fits = queue.iter().enumerate().map(|(index, waiting)| {
                let partly = arrived.is_some_and(|limit| waiting.ask.limits.contains(limit));
                Some((index, self.fitting(&waiting.ask, partly, now)?))
            });
            fits.find_map(|it| it)
        };
        let small_job = find(&self.small_jobs);
        let other = find(&self.others);
        let (is_small, (index, recipients)) = match (small_job, other) {
            (Some(_), Some(other)) if self.streak >= SMALL_JOBS_FIRST => (false, other),
            (Some(small_job), _) => (true, small_job),
            (None, Some(other)) => (false, other),
            (None, None) => return None,
        };
        self.streak = if is_small { self.streak + 1 } else { 0 };
        let queue = match is_small {
            true => &mut self.small_jobs,
            false => &mut self.others,
        };
        let Waiting { ask, handle, .. } = queue.remove(index)?;
        for limit in &ask.limits {
            let pool = self.pools.entry(limit.clone()).or_default();
            pool.use_now(now);
            pool.units -= i64::from(limit.units(recipients, ask.per_call));
        }
        Some((handle, ask, recipients))
    }

    /// Recipients that the units of all limits are enough for now.
    fn fitting(&self, ask: &Ask, partly: bool, now: Duration) -> Option<u32> {
        let fitting = ask.limits.iter().map(|limit| {
            let units = self.pools.get(limit).map_or(0, |pool| pool.fresh(now));
            limit.recipients(units, ask.per_call)
        });
        let fitting = fitting.min().unwrap_or(u32::MAX).min(ask.recipients);
        let least = if partly { 1 } else { ask.full_call() };
        (fitting >= least).then_some(fitting)
    }

    /// Takes the difference between the units that were granted and those that were used.
    pub fn correct(&mut self, ask: &Ask, granted: u32, used: Used) {
        for limit in &ask.limits {
            let taken = match limit.cost {
                Cost::PerCall => used.calls,
                Cost::PerRecipient => used.recipients,
            };
            let rest = i64::from(limit.units(granted, ask.per_call)) - i64::from(taken);
            if let Some(pool) = self.pools.get_mut(limit)
                && (rest < 0 || used.rest)
            {
                pool.units += rest;
            }
        }
    }

    /// The blocks to lease now. Each is asked for once, until [`Self::leased`] has its answer.
    pub fn to_lease(&mut self, now: Duration) -> Vec<Block> {
        let mut needs: HashMap<&LimitKey, (u32, u32)> = HashMap::new();
        for Waiting { ask, .. } in self.small_jobs.iter().chain(&self.others) {
            for limit in &ask.limits {
                let (units, full_call) = needs.entry(limit).or_default();
                *units = units.saturating_add(limit.units(ask.recipients, ask.per_call));
                *full_call = (*full_call).max(limit.units(ask.full_call(), ask.per_call));
            }
        }
        let mut blocks = Vec::new();
        for (limit, pool) in &mut self.pools {
            if pool.asked || pool.closed_until > now {
                continue;
            }
            let (wanted, full_call) = needs.get(limit).copied().unwrap_or_default();
            let have = pool.fresh(now);
            let debt = u32::try_from(pool.units.min(0).unsigned_abs()).unwrap_or(u32::MAX);
            let short = wanted.saturating_sub(have);
            if short == 0 && (pool.ahead == 0 || have >= pool.ahead.div_ceil(2)) {
                continue;
            }
            let most = limit.lease_units_max().saturating_sub(have);
            let want = short.saturating_add(pool.ahead.saturating_sub(have));
            let units = want.min(most).max(full_call.min(short));
            if units == 0 {
                continue;
            }
            pool.asked = true;
            blocks.push(Block {
                limit: limit.clone(),
                units: units.saturating_add(debt),
            });
        }
        blocks
    }

    /// The units of a block may be used only after this time.
    pub fn late(&mut self, limit: &LimitKey, after: Duration, now: Duration) {
        let pool = self.pools.entry(limit.clone()).or_default();
        pool.late_until = pool.late_until.max(now + after);
    }

    /// The apps and jobs that their own limits hold up. The other limits hold up slices of any job.
    pub fn held_up(&self, now: Duration) -> HeldUp {
        let mut held_up = HeldUp::default();
        for (limit, pool) in &self.pools {
            if !pool.late_until.is_zero() && now < pool.late_until + HELD_UP {
                let names = match limit.scope {
                    LimitScope::App => &mut held_up.apps,
                    LimitScope::Job | LimitScope::Pace => &mut held_up.jobs,
                    LimitScope::Target | LimitScope::Shared | LimitScope::Sender => continue,
                };
                names.insert(limit.name.clone());
            }
        }
        held_up
    }

    /// The limit answered. The units of a grant may be used now: the caller has waited.
    /// Returns the slices that do not wait for this limit, and how long it grants nothing.
    pub fn leased(&mut self, block: &Block, grant: Grant, now: Duration) -> Vec<(W, Duration)> {
        let pool = self.pools.entry(block.limit.clone()).or_default();
        pool.asked = false;
        pool.use_now(now);
        let after = match grant {
            Grant::Units { units, after } => {
                pool.units += i64::from(units);
                let most = block.limit.lease_units_max();
                pool.ahead = match after.is_zero() && units >= block.units {
                    true => block.units.max(pool.ahead.saturating_mul(2)).min(most),
                    false => 0,
                };
                return Vec::new();
            }
            Grant::Later { after } => after,
        };
        pool.ahead = 0;
        pool.late_until = now + after;
        if block.limit.scope.is_of_lane() {
            // It holds up the whole lane, so the slices may as well wait here.
            pool.closed_until = now + after;
            return Vec::new();
        }
        let mut sent_away = Vec::new();
        for queue in [&mut self.small_jobs, &mut self.others] {
            let mut index = 0;
            while let Some(waiting) = queue.get(index) {
                if !waiting.ask.limits.contains(&block.limit) {
                    index += 1;
                } else if let Some(waiting) = queue.remove(index) {
                    sent_away.push((waiting.handle, after));
                }
            }
        }
        sent_away
    }

    /// The units to give back to their limits, because no slice has taken them for a while.
    pub fn unused(&mut self, now: Duration) -> Vec<Block> {
        let mut blocks = Vec::new();
        self.pools.retain(|limit, pool| {
            let idle = now.saturating_sub(pool.used);
            if idle >= KEPT && !pool.asked {
                pool.ahead = 0;
                pool.expire(now);
            }
            let units = std::mem::take(&mut pool.unused);
            if units > 0 {
                let limit = limit.clone();
                blocks.push(Block { limit, units });
            }
            pool.asked || idle < FORGOTTEN_AFTER || pool.closed_until > now
        });
        blocks
    }

    /// All units that were leased and not used: nothing more is sent.
    pub fn close(&mut self) -> Vec<Block> {
        let pools = self.pools.drain();
        pools
            .filter_map(|(limit, pool)| {
                let left = u32::try_from(pool.units.max(0)).unwrap_or(u32::MAX);
                let units = left.saturating_add(pool.unused);
                (units > 0).then_some(Block { limit, units })
            })
            .collect()
    }

    /// When the throttle has something to do by itself; `None` if it has nothing.
    pub fn next_due(&self, now: Duration) -> Option<Duration> {
        let due = self.pools.values().filter_map(|pool| {
            let closed = (pool.closed_until > now).then_some(pool.closed_until);
            let kept = (pool.units > 0 && !pool.asked).then_some(pool.used + KEPT);
            let ahead = (pool.ahead > 0 && !pool.asked).then_some(pool.used + KEPT);
            let unused = (pool.unused > 0).then_some(now);
            [closed, kept, ahead, unused].into_iter().flatten().min()
        });
        due.min()
    }
}

#[cfg(test)]
mod tests;
