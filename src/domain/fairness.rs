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
//!   count, and others take the places that are free. Its own classes and jobs share its places by
//!   the same rules: a slice makes way for another one of its app, which gets the place.
//! - A job that waits for its own limit, or that of its app, needs no more places than it has. While
//!   that lasts it gets no further one, and if others wait, it gives back one after the other, as
//!   long as one is left.
//!
//! What a class gets is the same whether one app or ten have work in it, and what an app gets is
//! the same whether it has one job or a hundred.

mod group;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use self::group::{Group, Key};
use super::ids::JobId;
use super::throttle::HeldUp;

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
    /// The app of each place that a slice left for another one of its app.
    kept: Vec<Arc<str>>,
    /// Some jobs are held back.
    holds_back: bool,
    tickets: u64,
}

/// The slices of one app, in all classes.
#[derive(Clone, Debug)]
struct AppPlaces {
    share: AppShare,
    waiting: usize,
    held: usize,
    /// Its classes and their jobs, among whom it shares its places while it may have no more of
    /// them. Empty without a bound.
    own: Group,
    /// Its slices that make way for another one of its own.
    leaving: Vec<Ticket>,
}

impl AppPlaces {
    fn new(share: AppShare) -> Self {
        Self {
            share,
            waiting: 0,
            held: 0,
            own: Group::default(),
            leaving: Vec::new(),
        }
    }

    fn is_bounded(&self) -> bool {
        self.share.places_max < usize::MAX
    }

    fn is_full(&self) -> bool {
        self.held >= self.share.places_max
    }

    /// The slice that makes way for another class or job of the app.
    fn makes_way(&mut self, now: Duration) -> Option<Ticket> {
        let ticket = self.own.makes_way(now)?;
        self.leaving.push(ticket);
        Some(ticket)
    }

    /// Whether this slice, which has left its place, made way for another one of the app.
    fn has_left(&mut self, ticket: Ticket) -> bool {
        let index = self.leaving.iter().position(|it| *it == ticket);
        index.map(|it| self.leaving.swap_remove(it)).is_some()
    }
}

impl Seat {
    fn keys(&self) -> [Key; 3] {
        [
            Key::Class(self.class),
            Key::App(Arc::clone(&self.app)),
            Key::Job(self.job),
        ]
    }

    /// Among the slices of its app.
    fn own_keys(&self) -> [Key; 2] {
        [Key::Class(self.class), Key::Job(self.job)]
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
            kept: Vec::new(),
            holds_back: false,
            tickets: 0,
        }
    }

    /// A slice waits.
    pub fn arrived(&mut self, seat: &Seat, share: AppShare, now: Duration) {
        let class = self.weights.get(seat.class).copied().unwrap_or(1);
        let app = self.apps.entry(Arc::clone(&seat.app));
        let app = app.or_insert_with(|| AppPlaces::new(share));
        app.share = share;
        app.waiting += 1;
        if app.is_bounded() {
            app.own.arrived(&seat.own_keys(), &[class, 1], now);
        }
        let weights = [class, share.weight, 1];
        self.classes.arrived(&seat.keys(), &weights, now);
        self.bound(&seat.app);
    }

    /// A waiting slice left without a place.
    pub fn withdrawn(&mut self, seat: &Seat, now: Duration) {
        if let Some(app) = self.apps.get_mut(&seat.app) {
            app.waiting = app.waiting.saturating_sub(1);
            app.own.withdrawn(&seat.own_keys(), now);
        }
        self.classes.withdrawn(&seat.keys(), now);
        self.bound(&seat.app);
    }

    /// Whose slice gets a free place.
    pub fn next(&self, now: Duration) -> Option<Seat> {
        let mut keys = Vec::with_capacity(3);
        if let Some(app) = self.kept.first()
            && let Some(places) = self.apps.get(app)
            && places.own.next(now, &mut keys).is_some()
        {
            keys.insert(1, Key::App(Arc::clone(app)));
        } else {
            keys.clear();
            self.classes.next(now, &mut keys)?;
        }
        Seat::of(&keys)
    }

    /// A slice that waited takes a place.
    pub fn begun(&mut self, seat: &Seat, now: Duration) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        if let Some(app) = self.apps.get_mut(&seat.app) {
            app.waiting = app.waiting.saturating_sub(1);
            app.held += 1;
            app.own.begun(&seat.own_keys(), ticket, now);
        }
        if let Some(index) = self.kept.iter().position(|app| *app == seat.app) {
            self.kept.remove(index);
        }
        self.classes.begun(&seat.keys(), ticket, now);
        self.bound(&seat.app);
        ticket
    }

    /// A slice has left its place.
    pub fn ended(&mut self, seat: &Seat, ticket: Ticket, now: Duration) {
        if let Some(app) = self.apps.get_mut(&seat.app) {
            app.held = app.held.saturating_sub(1);
            app.own.ended(&seat.own_keys(), ticket, now);
            if app.has_left(ticket) {
                self.kept.push(Arc::clone(&seat.app));
            }
        }
        self.classes.ended(&seat.keys(), ticket, now);
        self.bound(&seat.app);
    }

    /// Holds back the jobs that wait for limits of their own. The places that they have are enough
    /// for these, so they get no further ones, and give back what they do not need.
    pub fn hold_back(&mut self, held_up: &HeldUp) {
        if held_up.is_empty() && !self.holds_back {
            return;
        }
        self.holds_back = !held_up.is_empty();
        self.classes.hold_back(None, held_up);
        for (name, app) in &mut self.apps {
            app.own.hold_back(Some(&**name), held_up);
        }
    }

    /// Whether more than one job has slices.
    pub fn is_contended(&self) -> bool {
        self.classes.active_leaves() > 1
    }

    /// Whether an app has as many places as it may have.
    pub fn has_full_app(&self) -> bool {
        self.apps.values().any(AppPlaces::is_full)
    }

    /// The slice that must make way while no place is free, or none for its app. Each slice is
    /// returned once.
    pub fn makes_way(&mut self, now: Duration) -> Option<Ticket> {
        if let Some(ticket) = self.classes.makes_way(now) {
            self.note_leaving(ticket);
            return Some(ticket);
        }
        let mut full = self.apps.values_mut().filter(|app| app.is_full());
        if let Some(ticket) = full.find_map(|app| app.makes_way(now)) {
            self.classes.leaves(ticket);
            return Some(ticket);
        }
        if !self.holds_back || !self.classes.is_waited_for() {
            return None;
        }
        let ticket = self.classes.surplus(now)?;
        self.classes.leaves(ticket);
        self.note_leaving(ticket);
        Some(ticket)
    }

    /// Tells the apps that a slice makes way for a reason that is not theirs.
    fn note_leaving(&mut self, ticket: Ticket) {
        let apps = self.apps.values_mut();
        apps.for_each(|app| app.own.leaves(ticket));
    }

    /// Counts the waiting slices of an app only while it may have another place.
    fn bound(&mut self, app: &Arc<str>) {
        let Some(places) = self.apps.get(app) else {
            return;
        };
        let is_full = places.is_full();
        let key = Key::App(Arc::clone(app));
        for class in self.classes.members.values_mut() {
            if let Some(member) = class.group.members.get_mut(&key) {
                member.is_full = is_full;
            }
        }
        if places.waiting == 0 {
            self.kept.retain(|it| it != app);
            if places.held == 0 {
                self.apps.remove(app);
            }
        }
    }
}

#[cfg(test)]
mod tests;
