//! Pools of resources that all callers share: places, bytes, uploads, streams.
//!
//! No caller can take everything. A caller may hold three times as much as is still free: alone, it
//! gets three quarters of the whole; beside others, less; and there is always something left for a
//! caller that holds nothing yet. This needs no setting and no list of callers. A part is reserved
//! for the administrator, who may take everything that is free.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

/// A caller may hold this many times what is free.
const TIMES_FREE: usize = 3;

/// One unit in this many is reserved for the administrator.
const RESERVE: usize = 8;

/// A caller that draws from a pool.
pub(super) trait Holder: Clone + Eq + Hash {
    fn is_administrator(&self) -> bool;
}

impl Holder for std::net::IpAddr {
    fn is_administrator(&self) -> bool {
        false
    }
}

/// Units that callers share.
pub(super) struct Pool<K: Holder> {
    size: usize,
    reserve: usize,
    held: Mutex<Held<K>>,
}

struct Held<K> {
    total: usize,
    /// How many of them the administrator holds.
    administrators: usize,
    by: HashMap<K, usize>,
}

/// Units of a pool, held until this is dropped.
pub(super) struct Share<K: Holder> {
    pool: Arc<Pool<K>>,
    who: K,
    units: usize,
}

impl<K: Holder> Pool<K> {
    pub(super) fn new(size: usize) -> Arc<Self> {
        Self::with_reserve(size, size.div_ceil(RESERVE).min(size.saturating_sub(1)))
    }

    /// A pool without an administrator.
    pub(super) fn of_strangers(size: usize) -> Arc<Self> {
        Self::with_reserve(size, 0)
    }

    fn with_reserve(size: usize, reserve: usize) -> Arc<Self> {
        Arc::new(Self {
            size,
            reserve,
            held: Mutex::new(Held {
                total: 0,
                administrators: 0,
                by: HashMap::new(),
            }),
        })
    }

    /// Takes units, if the caller may have them.
    pub(super) fn take(self: &Arc<Self>, who: &K, units: usize) -> Option<Share<K>> {
        self.add(who, units).then(|| Share {
            pool: Arc::clone(self),
            who: who.clone(),
            units,
        })
    }

    fn add(&self, who: &K, units: usize) -> bool {
        let mut held = self.lock();
        if !self.may(&held, who, units) {
            return false;
        }
        held.total += units;
        if who.is_administrator() {
            held.administrators += units;
        }
        *held.by.entry(who.clone()).or_default() += units;
        true
    }

    fn may(&self, held: &Held<K>, who: &K, units: usize) -> bool {
        let free = self.size - held.total;
        if who.is_administrator() {
            return units <= free;
        }
        // The administrator's units are taken from the reserve first.
        let kept = self.reserve.saturating_sub(held.administrators);
        let free = free.saturating_sub(kept);
        let own = held.by.get(who).copied().unwrap_or_default();
        units <= free && (own == 0 || own + units <= TIMES_FREE * (free - units))
    }

    fn lock(&self) -> MutexGuard<'_, Held<K>> {
        self.held.lock()
    }
}

impl<K: Holder> Share<K> {
    pub(super) fn who(&self) -> &K {
        &self.who
    }

    /// Takes further units, if the caller may have them.
    pub(super) fn grow(&mut self, units: usize) -> bool {
        let may = self.pool.add(&self.who, units);
        if may {
            self.units += units;
        }
        may
    }
}

impl<K: Holder> Drop for Share<K> {
    fn drop(&mut self) {
        let mut held = self.pool.lock();
        held.total -= self.units;
        if self.who.is_administrator() {
            held.administrators -= self.units;
        }
        if let Some(own) = held.by.get_mut(&self.who) {
            *own -= self.units;
            if *own == 0 {
                held.by.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    enum Who {
        Admin,
        App(u8),
    }

    impl Holder for Who {
        fn is_administrator(&self) -> bool {
            *self == Self::Admin
        }
    }

    fn take_all(pool: &Arc<Pool<Who>>, who: Who) -> Vec<Share<Who>> {
        std::iter::from_fn(|| pool.take(&who, 1)).collect()
    }

    #[test]
    fn promise_11_an_app_leaves_something_to_others_and_the_administrator_gets_in() {
        let pool = Pool::new(256);
        let first = take_all(&pool, Who::App(1));
        assert_eq!(first.len(), 168, "three quarters of what is not kept");
        let second = take_all(&pool, Who::App(2));
        assert_eq!(second.len(), 42);
        let third = take_all(&pool, Who::App(3));
        assert!(!third.is_empty());
        let admin = take_all(&pool, Who::Admin);
        assert!(admin.len() >= 32, "{}", admin.len());
        drop(first);
        assert_eq!(pool.lock().total, second.len() + third.len() + admin.len());
        drop((second, third, admin));
        let held = pool.lock();
        assert_eq!((held.total, held.by.len()), (0, 0));
    }

    #[test]
    fn the_smallest_pools_can_be_used() {
        for size in 1..4 {
            let pool = Pool::new(size);
            assert!(!take_all(&pool, Who::App(1)).is_empty(), "{size}");
            assert_eq!(take_all(&pool, Who::Admin).len(), size);
        }
    }

    proptest! {
        /// Whatever apps do: no unit is given twice, the reserve stays free, and an app that holds
        /// nothing gets something unless as many apps as there are units hold something.
        #[test]
        fn nobody_takes_all(steps in prop::collection::vec((1u8..6, 1usize..40, any::<bool>()), 1..200)) {
            let pool = Pool::new(256);
            let mut shares: Vec<(u8, Share<Who>)> = Vec::new();
            for (app, units, gives_back) in steps {
                if gives_back && !shares.is_empty() {
                    shares.remove(units % shares.len());
                } else {
                    let share = pool.take(&Who::App(app), units);
                    shares.extend(share.map(|share| (app, share)));
                }
                let total: usize = shares.iter().map(|(_, share)| share.units).sum();
                prop_assert_eq!(pool.lock().total, total);
                prop_assert!(total <= 256 - 32);
                prop_assert!(pool.take(&Who::Admin, 32).is_some());
            }
        }
    }
}
