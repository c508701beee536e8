//! Decides which lane of a target gets a free place, and which lane gives one up (promise 8).
//!
//! The lanes of a target share its places. The slices in work take turns at the target's limits and
//! calls in flight, so a lane with half of the places gets half of the target's throughput. Work is
//! therefore measured in *place-time*: a slice of 5,000 recipients costs its lane more than one of
//! 100, and a slice that finds nothing to do costs next to nothing. The place-time of a lane
//! divided by its weight is its *tag*, and the lane with the lowest tag is next. Only use changes a
//! tag; asking for the next lane does not.
//!
//! - A lane without waiting slices saves nothing up: it starts, or continues, at the tags of the
//!   others. A lane that was empty owes at most one `TURN`.
//! - A slice in work counts as one `TURN` from its start, and as the time that it has taken from
//!   then on. So several places that become free at once are shared by weight, too.
//! - A slice that has had its `TURN` makes way when another class or lane is owed one, so the wait
//!   for a place does not depend on how long slices take.
//!
//! Weights belong to classes. The lanes of one class share what their class gets in equal parts, so
//! a class gets the same whether one of its lanes has work or all of them.

use std::time::Duration;

/// How long a slice keeps its place before it makes way for a lane that is owed one. Making way
/// costs one publish, of the remainder of the slice.
pub const TURN: Duration = Duration::from_secs(1);

/// A lane: its class, and its number within the class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub class: usize,
    pub lane: usize,
}

/// One slice in work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// The lanes of one target, which share places. Times count from any fixed moment.
#[derive(Clone, Debug)]
pub struct Turns {
    classes: Shares,
    lanes: Vec<Shares>,
    tickets: u64,
}

impl Turns {
    /// Classes with these weights, of `lanes` lanes each.
    pub fn new(weights: &[u32], lanes: usize) -> Self {
        Self {
            classes: Shares::new(weights.iter().copied()),
            lanes: weights
                .iter()
                .map(|_| Shares::new((0..lanes).map(|_| 1)))
                .collect(),
            tickets: 0,
        }
    }

    /// A slice waits in a lane.
    pub fn arrived(&mut self, at: At, now: Duration) {
        self.classes.arrived(at.class, now);
        self.lanes[at.class].arrived(at.lane, now);
    }

    /// A waiting slice left its lane without a place.
    pub fn withdrawn(&mut self, at: At) {
        self.classes.withdrawn(at.class);
        self.lanes[at.class].withdrawn(at.lane);
    }

    /// The lane that gets a free place.
    pub fn next(&self, now: Duration) -> Option<At> {
        let class = self.classes.next(now)?;
        let lane = self.lanes[class].next(now)?;
        Some(At { class, lane })
    }

    /// A slice that waited in a lane takes a place.
    pub fn begun(&mut self, at: At, now: Duration) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.classes.begun(at.class, ticket, now);
        self.lanes[at.class].begun(at.lane, ticket, now);
        ticket
    }

    /// A slice has left its place.
    pub fn ended(&mut self, at: At, ticket: Ticket, now: Duration) {
        self.classes.ended(at.class, ticket, now);
        self.lanes[at.class].ended(at.lane, ticket, now);
    }

    /// Whether more than one lane has slices.
    pub fn is_contended(&self) -> bool {
        let lanes = self.lanes.iter().flat_map(|class| &class.members);
        lanes.filter(|lane| lane.is_active()).count() > 1
    }

    /// The slice that must make way while no place is free. Each slice is returned once.
    pub fn makes_way(&mut self, now: Duration) -> Option<(At, Ticket)> {
        self.classes.level(now);
        self.lanes.iter_mut().for_each(|lanes| lanes.level(now));
        if let Some((owed, class)) = self.classes.owed(now) {
            let (lane, ticket) = self.lanes[class].ripe(now)?;
            self.classes.leaves(class, ticket, Some(owed));
            self.lanes[class].leaves(lane, ticket, None);
            return Some((At { class, lane }, ticket));
        }
        for (class, lanes) in self.lanes.iter_mut().enumerate() {
            let Some((owed, lane)) = lanes.owed(now) else {
                continue;
            };
            let ticket = lanes.members[lane].ripe(now)?.ticket;
            lanes.leaves(lane, ticket, Some(owed));
            // The place stays in its class.
            self.classes.leaves(class, ticket, Some(class));
            return Some((At { class, lane }, ticket));
        }
        None
    }
}

/// The members that share something by weight: the classes of a target, or the lanes of a class.
#[derive(Clone, Debug)]
struct Shares {
    members: Vec<Member>,
}

#[derive(Clone, Debug)]
struct Member {
    weight: f64,
    /// Place-seconds of ended slices, divided by the weight.
    used: f64,
    waiting: usize,
    held: Vec<Held>,
    /// Places that slices of other members are about to leave for this one.
    promised: usize,
}

/// A place in use.
#[derive(Clone, Copy, Debug)]
struct Held {
    ticket: Ticket,
    since: Duration,
    /// The slice must make way.
    leaves: bool,
    /// The member that gets the place, where that is known.
    owed: Option<usize>,
}

impl Held {
    fn lasted(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since)
    }
}

impl Member {
    fn new(weight: u32) -> Self {
        Self {
            weight: f64::from(weight.max(1)),
            used: 0.0,
            waiting: 0,
            held: Vec::new(),
            promised: 0,
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

    fn is_active(&self) -> bool {
        self.waiting > 0 || !self.held.is_empty()
    }

    /// The slice that has had its turn for the longest time.
    fn ripe(&self, now: Duration) -> Option<&Held> {
        let ripe = |held: &&Held| !held.leaves && held.lasted(now) >= TURN;
        self.held.iter().filter(ripe).min_by_key(|held| held.since)
    }
}

impl Shares {
    fn new(weights: impl Iterator<Item = u32>) -> Self {
        Self {
            members: weights.map(Member::new).collect(),
        }
    }

    fn arrived(&mut self, member: usize, now: Duration) {
        self.level(now);
        if self.members[member].waiting == 0 {
            self.wake(member, now);
        }
        self.members[member].waiting += 1;
    }

    /// Moves a member that had no waiting slices to the tag of the others.
    fn wake(&mut self, member: usize, now: Duration) {
        if !self.members.iter().any(Member::is_active) {
            // Use from before everything was empty no longer counts.
            self.members.iter_mut().for_each(|it| it.used = 0.0);
            return;
        }
        let others = || {
            let others = self.members.iter().enumerate();
            others.filter_map(move |(index, it)| (index != member).then_some(it))
        };
        let waiting = others()
            .filter(|it| it.waiting > 0)
            .map(|it| it.tag(now))
            .min_by(f64::total_cmp);
        let in_work = others()
            .filter(|it| !it.held.is_empty())
            .map(|it| it.tag(now))
            .max_by(f64::total_cmp);
        let Some(start) = waiting.or(in_work) else {
            return;
        };
        let it = &mut self.members[member];
        let tag = it.tag(now);
        // Places that it still holds count in full.
        let most = if it.held.is_empty() {
            start + it.weighed(TURN)
        } else {
            f64::INFINITY
        };
        it.used += tag.clamp(start, most) - tag;
    }

    /// Members without waiting slices move along with the others, even if they were owed something.
    fn level(&mut self, now: Duration) {
        let waiting = self.members.iter().filter(|it| it.waiting > 0);
        let tags = waiting.map(|it| it.tag(now));
        let Some(lowest) = tags.min_by(f64::total_cmp) else {
            return;
        };
        for it in self.members.iter_mut().filter(|it| it.waiting == 0) {
            it.used += (lowest - it.tag(now)).max(0.0);
        }
    }

    fn withdrawn(&mut self, member: usize) {
        let waiting = &mut self.members[member].waiting;
        *waiting = waiting.saturating_sub(1);
    }

    fn next(&self, now: Duration) -> Option<usize> {
        self.lowest(now, |it| it.waiting > 0)
    }

    /// If several have the same tag, the first one.
    fn lowest(&self, now: Duration, is_meant: impl Fn(&Member) -> bool) -> Option<usize> {
        let members = self.members.iter().enumerate();
        let (index, _) = members
            .filter(|(_, it)| is_meant(it))
            .map(|(index, it)| (index, it.tag(now)))
            .min_by(|(_, one), (_, other)| one.total_cmp(other))?;
        Some(index)
    }

    fn begun(&mut self, member: usize, ticket: Ticket, now: Duration) {
        self.withdrawn(member);
        self.members[member].held.push(Held {
            ticket,
            since: now,
            leaves: false,
            owed: None,
        });
    }

    fn ended(&mut self, member: usize, ticket: Ticket, now: Duration) {
        self.level(now);
        let it = &mut self.members[member];
        let Some(index) = it.held.iter().position(|held| held.ticket == ticket) else {
            return;
        };
        let held = it.held.swap_remove(index);
        it.used += it.weighed(held.lasted(now));
        if let Some(owed) = held.owed {
            let promised = &mut self.members[owed].promised;
            *promised = promised.saturating_sub(1);
        }
    }

    /// The member that is owed a turn, and the member that must give one.
    fn owed(&self, now: Duration) -> Option<(usize, usize)> {
        let owed = self.lowest(now, |it| it.waiting > it.promised)?;
        let holders = self.members.iter().enumerate();
        let (holder, tag) = holders
            .filter(|(index, it)| *index != owed && it.ripe(now).is_some())
            .map(|(index, it)| (index, it.tag(now)))
            .max_by(|(_, one), (_, other)| one.total_cmp(other))?;
        let it = &self.members[owed];
        (tag - it.tag(now) >= it.weighed(TURN)).then_some((owed, holder))
    }

    /// The slice that has had its turn for the longest time, of the member that has used most.
    fn ripe(&self, now: Duration) -> Option<(usize, Ticket)> {
        let members = self.members.iter().enumerate();
        let (index, held, _) = members
            .filter_map(|(index, it)| Some((index, it.ripe(now)?, it.tag(now))))
            .max_by(|(.., one), (.., other)| one.total_cmp(other))?;
        Some((index, held.ticket))
    }

    fn leaves(&mut self, member: usize, ticket: Ticket, owed: Option<usize>) {
        let held = &mut self.members[member].held;
        if let Some(held) = held.iter_mut().find(|held| held.ticket == ticket) {
            held.leaves = true;
            held.owed = owed;
        }
        if let Some(owed) = owed {
            self.members[owed].promised += 1;
        }
    }
}

#[cfg(test)]
mod tests;
