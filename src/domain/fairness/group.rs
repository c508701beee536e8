//! Shares something among members by weight, down several levels: the classes of a target, the apps
//! of a class and the jobs of an app.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{TURN, Ticket};
use crate::domain::ids::JobId;
use crate::domain::throttle::HeldUp;

/// A member of one of the three levels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Class(usize),
    App(Arc<str>),
    Job(JobId),
}

/// Members that share something by weight: the classes of a target, the apps of a class, or the
/// jobs of an app.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub(super) members: BTreeMap<Key, Member>,
}

#[derive(Clone, Debug)]
pub(super) struct Member {
    weight: f64,
    /// Place-seconds of ended slices, divided by the weight.
    used: f64,
    waiting: usize,
    /// It gets no further place, so its waiting slices do not count.
    pub(super) is_full: bool,
    held: Vec<Held>,
    /// Places that slices of other members are about to leave for this one.
    promised: usize,
    /// Those among whom it shares; empty for a job.
    pub(super) group: Group,
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
        self.group.leaves(ticket);
    }
}

impl Group {
    /// Decides for each job whether it gets further places. `app`: whose jobs these are, if the group is
    /// of one app.
    pub(super) fn hold_back(&mut self, app: Option<&str>, held_up: &HeldUp) {
        for (key, it) in &mut self.members {
            match key {
                Key::Job(job) => {
                    let has_some = !it.held.is_empty();
                    it.is_full = has_some && app.is_some_and(|app| held_up.has(app, *job));
                }
                Key::App(app) => it.group.hold_back(Some(&**app), held_up),
                Key::Class(_) => it.group.hold_back(app, held_up),
            }
        }
    }

    /// A slice that has had its turn, of a job that is held back and has several places.
    pub(super) fn surplus(&self, now: Duration) -> Option<Ticket> {
        self.members.iter().find_map(|(key, it)| match key {
            Key::Job(_) => {
                let stays = it.held.iter().filter(|held| !held.leaves).count();
                let is_surplus = it.is_full && stays == it.held.len() && stays > 1;
                is_surplus.then(|| it.ripe(now)).flatten()
            }
            Key::App(_) | Key::Class(_) => it.group.surplus(now),
        })
    }

    /// Whether a slice waits that may get a place.
    pub(super) fn is_waited_for(&self) -> bool {
        self.members.values().any(|it| it.ready() > 0)
    }

    /// Notes that a slice makes way, for a reason that is not in this group.
    pub(super) fn leaves(&mut self, ticket: Ticket) {
        for member in self.members.values_mut() {
            member.leaves(ticket, None);
        }
    }

    pub(super) fn arrived(&mut self, keys: &[Key], weights: &[u32], now: Duration) {
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

    pub(super) fn withdrawn(&mut self, keys: &[Key], now: Duration) {
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
    pub(super) fn next(&self, now: Duration, keys: &mut Vec<Key>) -> Option<()> {
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

    pub(super) fn begun(&mut self, keys: &[Key], ticket: Ticket, now: Duration) {
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

    pub(super) fn ended(&mut self, keys: &[Key], ticket: Ticket, now: Duration) {
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

    pub(super) fn active_leaves(&self) -> usize {
        let active = self.members.values().filter(|it| it.is_active());
        active
            .map(|it| match it.group.members.is_empty() {
                true => 1,
                false => it.group.active_leaves(),
            })
            .sum()
    }

    /// The slice that makes way for another member of this group, or of one below.
    pub(super) fn makes_way(&mut self, now: Duration) -> Option<Ticket> {
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
