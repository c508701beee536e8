//! Decides which job gets a free place of a target, and which slice gives one up (promise 8).
//!
//! The jobs with slices at a worker share its places for the target in three steps: the classes by
//! their weight, the apps of a class by theirs, and the jobs of an app equally. The slices in work
//! take turns at the target's limits and calls in flight, so a job with half of the places gets
//! half of the target's throughput. Work is therefore measured in *place-time*: a slice of 5,000
//! recipients costs its job more than one of 100, and a slice that finds nothing to do costs next
//! to nothing. The place-time of a member divided by its weight is its *tag*, and the member with
//! the lowest tag is next. Only use changes a tag; asking for the next member does not.
//!
//! - A member without waiting slices saves nothing up: it starts, or continues, at the tags of the
//!   others. A member that was without slices owes at most one `TURN`, and is forgotten when it
//!   owes nothing.
//! - A slice in work counts as one `TURN` from its start, and as the time that it has taken from
//!   then on. So several places that become free at once are shared by weight, too.
//! - A slice that has had its `TURN` makes way when another class, app or job is owed one, so the
//!   wait for a place does not depend on how long slices take.
//! - An app may have a bound on its places. While it has that many, its waiting slices do not
//!   count, and others take the places that are free.
//!
//! What a class gets is the same whether one app or ten have work in it, and what an app gets is
//! the same whether it has one job or a hundred.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::ids::JobId;

/// How long a slice keeps its place before it makes way for a member that is owed one. Making way
/// costs one publish, of the remainder of the slice, so each place costs at most two publishes a
/// second.
pub const TURN: Duration = Duration::from_millis(500);

/// Whose slice it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seat {
    pub class: usize,
    pub app: Arc<str>,
    pub job: JobId,
}

/// What the configuration grants an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppShare {
    pub weight: u32,
    /// The most places that it may have at a time, in all classes together.
    pub places_max: usize,
}

/// What the configuration says about the share of an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppRules {
    pub weight: u32,
    /// The most that it may have of the places of a target, in percent.
    pub concurrency_max: u32,
}

impl Default for AppRules {
    fn default() -> Self {
        Self {
            weight: 1,
            concurrency_max: 100,
        }
    }
}

impl AppRules {
    /// Its share of so many places: at least one of them. Without a bound it is never full: its
    /// priorities make way for each other also while it has all places.
    pub fn of(self, places: usize) -> AppShare {
        let most = places.saturating_mul(self.concurrency_max as usize) / 100;
        let is_bounded = self.concurrency_max < 100;
        AppShare {
            weight: self.weight,
            places_max: if is_bounded { most.max(1) } else { usize::MAX },
        }
    }
}

/// One slice in work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// The jobs that share the places of one target. Times count from any fixed moment.
#[derive(Clone, Debug)]
pub struct Turns {
    weights: Vec<u32>,
    classes: Group,
    /// The apps that have slices here.
    apps: BTreeMap<Arc<str>, AppPlaces>,
    tickets: u64,
}

/// The slices of one app, in all classes.
#[derive(Clone, Copy, Debug)]
struct AppPlaces {
    share: AppShare,
    waiting: usize,
    held: usize,
}

/// A member of one of the three levels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Class(usize),
    App(Arc<str>),
    Job(JobId),
}

impl Seat {
    fn keys(&self) -> [Key; 3] {
        [
            Key::Class(self.class),
            Key::App(Arc::clone(&self.app)),
            Key::Job(self.job),
        ]
    }

    fn of(keys: &[Key]) -> Option<Self> {
        match keys {
            [Key::Class(class), Key::App(app), Key::Job(job)] => Some(Self {
                class: *class,
                app: Arc::clone(app),
                job: *job,
            }),
            _ => None,
        }
    }
}

impl Turns {
    /// Classes with these weights.
    pub fn new(weights: &[u32]) -> Self {
        Self {
            weights: weights.to_vec(),
            classes: Group::default(),
            apps: BTreeMap::new(),
            tickets: 0,
        }
    }

    /// A slice waits.
    pub fn arrived(&mut self, seat: &Seat, share: AppShare, now: Duration) {
        let app = self.apps.entry(Arc::clone(&seat.app)).or_insert(AppPlaces {
            share,
            waiting: 0,
            held: 0,
        });
        app.share = share;
        app.waiting += 1;
        let class = self.weights.get(seat.class).copied().unwrap_or(1);
        let weights = [class, share.weight, 1];
        self.classes.arrived(&seat.keys(), &weights, now);
        self.bound(&seat.app);
    }

    /// A waiting slice left without a place.
    pub fn withdrawn(&mut self, seat: &Seat, now: Duration) {
        if let Some(app) = self.apps.get_mut(&seat.app) {
            app.waiting = app.waiting.saturating_sub(1);
        }
        self.classes.withdrawn(&seat.keys(), now);
        self.bound(&seat.app);
    }

    /// Whose slice gets a free place.
    pub fn next(&self, now: Duration) -> Option<Seat> {
        let mut keys = Vec::with_capacity(3);
        self.classes.next(now, &mut keys)?;
        Seat::of(&keys)
    }

    /// A slice that waited takes a place.
    pub fn begun(&mut self, seat: &Seat, now: Duration) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        if let Some(app) = self.apps.get_mut(&seat.app) {
            app.waiting = app.waiting.saturating_sub(1);
            app.held += 1;
        }
        self.classes.begun(&seat.keys(), ticket, now);
        self.bound(&seat.app);
        ticket
    }

    /// A slice has left its place.
    pub fn ended(&mut self, seat: &Seat, ticket: Ticket, now: Duration) {
        if let Some(app) = self.apps.get_mut(&seat.app) {
            app.held = app.held.saturating_sub(1);
        }
        self.classes.ended(&seat.keys(), ticket, now);
        self.bound(&seat.app);
    }

    /// Whether more than one job has slices.
    pub fn is_contended(&self) -> bool {
        self.classes.active_leaves() > 1
    }

    /// The slice that must make way while no place is free. Each slice is returned once.
    pub fn makes_way(&mut self, now: Duration) -> Option<Ticket> {
        self.classes.makes_way(now)
    }

    /// Counts the waiting slices of an app only while it may have another place.
    fn bound(&mut self, app: &Arc<str>) {
        let Some(places) = self.apps.get(app).copied() else {
            return;
        };
        let is_full = places.held >= places.share.places_max;
        let key = Key::App(Arc::clone(app));
        for class in self.classes.members.values_mut() {
            if let Some(member) = class.group.members.get_mut(&key) {
                member.is_full = is_full;
            }
        }
        if places.held == 0 && places.waiting == 0 {
            self.apps.remove(app);
        }
    }
}

/// Members that share something by weight: the classes of a target, the apps of a class, or the
/// jobs of an app.
#[derive(Clone, Debug, Default)]
struct Group {
    members: BTreeMap<Key, Member>,
}

#[derive(Clone, Debug)]
struct Member {
    weight: f64,
    /// Place-seconds of ended slices, divided by the weight.
    used: f64,
    waiting: usize,
    /// It may have no further place, so its waiting slices do not count.
    is_full: bool,
    held: Vec<Held>,
    /// Places that slices of other members are about to leave for this one.
    promised: usize,
    /// Those among whom it shares; empty for a job.
    group: Group,
}

/// A place in use.
#[derive(Clone, Debug)]
struct Held {
    ticket: Ticket,
    since: Duration,
    /// The slice must make way.
    leaves: bool,
    /// The member that gets the place, where that is known.
    owed: Option<Key>,
}

impl Held {
    fn lasted(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since)
    }

    fn is_ripe(&self, now: Duration) -> bool {
        !self.leaves && self.lasted(now) >= TURN
    }
}

impl Member {
    fn new() -> Self {
        Self {
            weight: 1.0,
            used: 0.0,
            waiting: 0,
            is_full: false,
            held: Vec::new(),
            promised: 0,
            group: Group::default(),
        }
    }

    fn weighed(&self, time: Duration) -> f64 {
        time.as_secs_f64() / self.weight
    }

    fn tag(&self, now: Duration) -> f64 {
        let held = self.held.iter().map(|held| held.lasted(now).max(TURN));
        let promised = std::iter::repeat_n(TURN, self.promised);
        self.used + held.chain(promised).map(|it| self.weighed(it)).sum::<f64>()
    }

    /// The waiting slices that may get a place.
    fn ready(&self) -> usize {
        if self.is_full {
            return 0;
        }
        match self.group.members.is_empty() {
            true => self.waiting,
            false => self.group.members.values().map(Self::ready).sum(),
        }
    }

    fn is_active(&self) -> bool {
        self.waiting > 0 || !self.held.is_empty()
    }

    /// The slice that has had its turn for the longest time.
    fn ripe(&self, now: Duration) -> Option<Ticket> {
        if self.group.members.is_empty() {
            let ripe = self.held.iter().filter(|held| held.is_ripe(now));
            return Some(ripe.min_by_key(|held| held.since)?.ticket);
        }
        let members = self.group.members.values();
        let (ticket, _) = members
            .filter_map(|it| Some((it.ripe(now)?, it.tag(now))))
            .max_by(|(_, one), (_, other)| one.total_cmp(other))?;
        Some(ticket)
    }

    /// Notes that a slice makes way, here and below.
    fn leaves(&mut self, ticket: Ticket, owed: Option<&Key>) {
        let Some(held) = self.held.iter_mut().find(|held| held.ticket == ticket) else {
            return;
        };
        held.leaves = true;
        held.owed = owed.cloned();
        for member in self.group.members.values_mut() {
            member.leaves(ticket, None);
        }
    }
}

impl Group {
    fn arrived(&mut self, keys: &[Key], weights: &[u32], now: Duration) {
        let (Some((key, keys)), Some((weight, weights))) =
            (keys.split_first(), weights.split_first())
        else {
            return;
        };
        self.level(now);
        let it = self.members.entry(key.clone()).or_insert_with(Member::new);
        it.weight = f64::from((*weight).max(1));
        if it.ready() == 0 {
            self.wake(key, now);
        }
        if let Some(it) = self.members.get_mut(key) {
            it.waiting += 1;
            it.group.arrived(keys, weights, now);
        }
    }

    /// Moves a member that had no waiting slices to the tag of the others.
    fn wake(&mut self, key: &Key, now: Duration) {
        if !self.members.values().any(Member::is_active) {
            // Use from before everything was empty no longer counts.
            self.members.values_mut().for_each(|it| it.used = 0.0);
            return;
        }
        let others = || self.members.iter().filter(|(other, _)| *other != key);
        let waiting = others()
            .filter(|(_, it)| it.ready() > 0)
            .map(|(_, it)| it.tag(now))
            .min_by(f64::total_cmp);
        let in_work = others()
            .filter(|(_, it)| !it.held.is_empty())
            .map(|(_, it)| it.tag(now))
            .max_by(f64::total_cmp);
        let Some(start) = waiting.or(in_work) else {
            return;
        };
        let Some(it) = self.members.get_mut(key) else {
            return;
        };
        let tag = it.tag(now);
        // Places that it still holds count in full.
        let most = if it.held.is_empty() {
            start + it.weighed(TURN)
        } else {
            f64::INFINITY
        };
        it.used += tag.clamp(start, most) - tag;
    }

    /// The lowest tag of the members with waiting slices.
    fn lowest_waiting(&self, now: Duration) -> Option<f64> {
        let waiting = self.members.values().filter(|it| it.ready() > 0);
        waiting.map(|it| it.tag(now)).min_by(f64::total_cmp)
    }

    /// Members without waiting slices move along with the others, even if they were owed something.
    fn level(&mut self, now: Duration) {
        let Some(lowest) = self.lowest_waiting(now) else {
            return;
        };
        for it in self.members.values_mut().filter(|it| it.ready() == 0) {
            it.used += (lowest - it.tag(now)).max(0.0);
        }
    }

    /// Forgets the members without slices that owe nothing.
    fn tidy(&mut self, now: Duration) {
        let active = self.members.values().filter(|it| it.is_active());
        let lowest = active.map(|it| it.tag(now)).min_by(f64::total_cmp);
        let lowest = lowest.unwrap_or(f64::INFINITY);
        self.members
            .retain(|_, it| it.is_active() || it.promised > 0 || it.used > lowest);
    }

    fn withdrawn(&mut self, keys: &[Key], now: Duration) {
        let Some((key, keys)) = keys.split_first() else {
            return;
        };
        if let Some(it) = self.members.get_mut(key) {
            it.waiting = it.waiting.saturating_sub(1);
            it.group.withdrawn(keys, now);
        }
        self.tidy(now);
    }

    /// The member with the lowest tag of those with waiting slices, and on to its job. If several
    /// have the same tag, the first one.
    fn next(&self, now: Duration, keys: &mut Vec<Key>) -> Option<()> {
        let (key, it) = self.lowest(now, |it| it.ready() > 0)?;
        keys.push(key.clone());
        match it.group.members.is_empty() {
            true => Some(()),
            false => it.group.next(now, keys),
        }
    }

    fn lowest(&self, now: Duration, is_meant: impl Fn(&Member) -> bool) -> Option<(&Key, &Member)> {
        let members = self.members.iter().filter(|(_, it)| is_meant(it));
        let tags = members.map(|(key, it)| (key, it, it.tag(now)));
        let (key, it, _) = tags.min_by(|(.., one), (.., other)| one.total_cmp(other))?;
        Some((key, it))
    }

    fn begun(&mut self, keys: &[Key], ticket: Ticket, now: Duration) {
        let Some((key, keys)) = keys.split_first() else {
            return;
        };
        let Some(it) = self.members.get_mut(key) else {
            return;
        };
        it.waiting = it.waiting.saturating_sub(1);
        it.held.push(Held {
            ticket,
            since: now,
            leaves: false,
            owed: None,
        });
        it.group.begun(keys, ticket, now);
    }

    fn ended(&mut self, keys: &[Key], ticket: Ticket, now: Duration) {
        let Some((key, keys)) = keys.split_first() else {
            return;
        };
        self.level(now);
        let mut owed = None;
        if let Some(it) = self.members.get_mut(key) {
            if let Some(index) = it.held.iter().position(|held| held.ticket == ticket) {
                let held = it.held.swap_remove(index);
                it.used += it.weighed(held.lasted(now));
                owed = held.owed;
            }
            it.group.ended(keys, ticket, now);
        }
        if let Some(it) = owed.and_then(|owed| self.members.get_mut(&owed)) {
            it.promised = it.promised.saturating_sub(1);
        }
        self.tidy(now);
    }

    fn active_leaves(&self) -> usize {
        let active = self.members.values().filter(|it| it.is_active());
        active
            .map(|it| match it.group.members.is_empty() {
                true => 1,
                false => it.group.active_leaves(),
            })
            .sum()
    }

    /// The slice that makes way for another member of this group, or of one below.
    fn makes_way(&mut self, now: Duration) -> Option<Ticket> {
        self.level(now);
        if let Some((owed, holder)) = self.owed(now) {
            let holder = self.members.get_mut(&holder)?;
            let ticket = holder.ripe(now)?;
            holder.leaves(ticket, Some(&owed));
            self.members.get_mut(&owed)?.promised += 1;
            return Some(ticket);
        }
        for (key, it) in &mut self.members {
            let Some(ticket) = it.group.makes_way(now) else {
                continue;
            };
            // The place stays with this member.
            if let Some(held) = it.held.iter_mut().find(|held| held.ticket == ticket) {
                held.leaves = true;
                held.owed = Some(key.clone());
                it.promised += 1;
            }
            return Some(ticket);
        }
        None
    }

    /// The member that is owed a turn, and the member that must give one.
    fn owed(&self, now: Duration) -> Option<(Key, Key)> {
        let (owed, it) = self.lowest(now, |it| it.ready() > it.promised)?;
        let holders = self.members.iter();
        let (holder, tag) = holders
            .filter(|(key, it)| *key != owed && it.ripe(now).is_some())
            .map(|(key, it)| (key, it.tag(now)))
            .max_by(|(_, one), (_, other)| one.total_cmp(other))?;
        (tag - it.tag(now) >= it.weighed(TURN)).then(|| (owed.clone(), holder.clone()))
    }
}

#[cfg(test)]
mod tests;
