use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const WEIGHTS: [u32; 3] = [8, 4, 1];

/// More places than any test has.
const ANY: AppShare = AppShare {
    weight: 1,
    places_max: usize::MAX,
};

fn seat(class: usize, app: &str, job: usize) -> Seat {
    Seat {
        class,
        app: app.into(),
        job: JobId::of(app, &job.to_string()),
    }
}

fn at(class: usize, job: usize) -> Seat {
    seat(class, "a", job)
}

/// How often the scheduler checks whether a slice must make way.
const LOOK: Duration = Duration::from_millis(100);

/// Places that jobs share, and jobs that always have work once they have started.
struct SharedPlaces {
    turns: Turns,
    places: usize,
    now: Duration,
    work: Vec<Slice>,
    /// Jobs with work, and the duration of their slices.
    busy: Vec<(Seat, Duration)>,
    /// What the apps have been granted, if it is not [`ANY`].
    shares: BTreeMap<Arc<str>, AppShare>,
    /// Those that wait for limits of their own.
    held_up: HeldUp,
    /// How long a slice takes to make way, because of its calls in flight.
    leaving: Duration,
    /// Place-seconds by job.
    held: BTreeMap<Seat, f64>,
    /// The time since when a job with work holds no place.
    idle_since: BTreeMap<Seat, Duration>,
    longest_wait: Duration,
    asked_in_vain: usize,
    /// If it is set, a job has only these slices, and a slice that left its place waits again
    /// after this time, because it goes through the broker.
    around: Option<Duration>,
    coming: Vec<(Duration, Seat)>,
}

struct Slice {
    at: Seat,
    ticket: Ticket,
    ends: Duration,
}

impl SharedPlaces {
    fn new(places: usize, leaving: Duration) -> Self {
        Self {
            turns: Turns::new(&WEIGHTS),
            places,
            now: Duration::ZERO,
            work: Vec::new(),
            busy: Vec::new(),
            shares: BTreeMap::new(),
            held_up: HeldUp::default(),
            leaving,
            held: BTreeMap::new(),
            idle_since: BTreeMap::new(),
            longest_wait: Duration::ZERO,
            asked_in_vain: 0,
            around: None,
            coming: Vec::new(),
        }
    }

    fn grant(&mut self, app: &str, weight: u32, places_max: usize) {
        let share = AppShare { weight, places_max };
        self.shares.insert(app.into(), share);
    }

    fn arrives(&mut self, at: &Seat) {
        let share = self.shares.get(&at.app).copied().unwrap_or(ANY);
        self.turns.arrived(at, share, self.now);
    }

    fn join(&mut self, at: Seat, takes: Duration) {
        self.join_with(at, takes, 3);
    }

    fn join_with(&mut self, at: Seat, takes: Duration, slices: usize) {
        for _ in 0..slices {
            self.arrives(&at);
        }
        self.busy.push((at, takes));
    }

    /// The job has no further work.
    fn leave(&mut self, at: &Seat) {
        self.busy.retain(|(it, _)| it != at);
        for _ in 0..3 {
            self.turns.withdrawn(at, self.now);
        }
    }

    fn draw(&mut self) {
        self.turns.hold_back(&self.held_up);
        while self.work.len() < self.places {
            let Some(at) = self.turns.next(self.now) else {
                break;
            };
            let takes = self.busy.iter().find(|(it, _)| *it == at).unwrap().1;
            let ticket = self.turns.begun(&at, self.now);
            if self.around.is_none() {
                self.arrives(&at);
            }
            let ends = self.now + takes;
            self.work.push(Slice { at, ticket, ends });
        }
        for (app, share) in &self.shares {
            let has = self
                .work
                .iter()
                .filter(|slice| slice.at.app == *app)
                .count();
            assert!(has <= share.places_max, "{app} has {has} places");
        }
        // Asked without a free place, any number of times.
        if self.work.len() == self.places {
            for _ in 0..self.asked_in_vain {
                self.turns.next(self.now);
            }
        }
        while let Some(ticket) = self.turns.makes_way(self.now) {
            let slice = self.work.iter_mut().find(|it| it.ticket == ticket).unwrap();
            slice.ends = slice.ends.min(self.now + self.leaving);
        }
    }

    fn note_waits(&mut self) {
        for (at, _) in &self.busy {
            if self.work.iter().any(|slice| slice.at == *at) {
                self.idle_since.remove(at);
            } else {
                let since = self.idle_since.entry(at.clone()).or_insert(self.now);
                self.longest_wait = self.longest_wait.max(self.now - *since);
            }
        }
        let busy = &self.busy;
        self.idle_since
            .retain(|key, _| busy.iter().any(|(at, _)| at == key));
    }

    /// Runs for a while; returns what each job had of all places.
    fn run(&mut self, lasts: Duration) -> BTreeMap<Seat, f64> {
        let before = self.held.clone();
        let until = self.now + lasts;
        while self.now < until {
            self.draw();
            self.note_waits();
            let ends = self.work.iter().map(|it| it.ends);
            let ends = ends.chain(self.coming.iter().map(|(at, _)| *at));
            let next = ends.min().unwrap_or(until).min(self.now + LOOK).min(until);
            let passed = (next - self.now).as_secs_f64();
            for slice in &self.work {
                *self.held.entry(slice.at.clone()).or_default() += passed;
            }
            self.now = next;
            let (ended, work) = std::mem::take(&mut self.work)
                .into_iter()
                .partition(|it| it.ends <= next);
            self.work = work;
            for slice in ended {
                self.turns.ended(&slice.at, slice.ticket, next);
                let comes = self.around.map(|around| (next + around, slice.at));
                self.coming.extend(comes);
            }
            let came: Vec<_> = self.coming.extract_if(.., |(at, _)| *at <= next).collect();
            for (_, at) in came {
                self.arrives(&at);
            }
        }
        let total = self.places as f64 * lasts.as_secs_f64();
        let shares = self.held.iter().map(|(at, held)| {
            let held = held - before.get(at).copied().unwrap_or_default();
            (at.clone(), held / total)
        });
        shares.collect()
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn near(share: f64, expected: f64, off: f64) {
    assert!((share - expected).abs() <= off, "{share} is not {expected}");
}

/// What the jobs of an app had together.
fn of_app(shares: &BTreeMap<Seat, f64>, app: &str) -> f64 {
    let mine = shares.iter().filter(|(at, _)| &*at.app == app);
    mine.map(|(_, share)| share).sum()
}

#[test]
fn priorities_are_rates_over_any_ten_seconds() {
    for takes in [ms(30), ms(700), ms(45_000)] {
        for places in [4, 8] {
            let mut shared = SharedPlaces::new(places, ms(300));
            for class in 0..3 {
                shared.join(at(class, 0), takes);
            }
            for _ in 0..20 {
                let shares = shared.run(ms(10_000));
                for (class, weight) in (0..).zip(WEIGHTS) {
                    near(shares[&at(class, 0)], f64::from(weight) / 13.0, 0.05);
                }
            }
        }
    }
}

/// An app without a bound may have all places, and its priorities share them all the same.
#[test]
fn priorities_of_one_app_share_all_places() {
    let mut shared = SharedPlaces::new(4, ms(300));
    let AppShare { weight, places_max } = AppRules::default().of(4);
    shared.grant("a", weight, places_max);
    for class in 0..3 {
        shared.join(at(class, 0), ms(45_000));
    }
    for _ in 0..20 {
        let shares = shared.run(ms(10_000));
        for (class, weight) in (0..).zip(WEIGHTS) {
            near(shares[&at(class, 0)], f64::from(weight) / 13.0, 0.05);
        }
    }
}

#[test]
fn two_equal_jobs_get_the_same_over_any_ten_seconds() {
    for (one, other) in [(30, 30), (20_000, 20_000), (400, 20_000)] {
        let mut shared = SharedPlaces::new(4, ms(300));
        shared.join(at(1, 0), ms(one));
        shared.run(ms(60_000));
        shared.join(at(1, 1), ms(other));
        shared.run(ms(2_000));
        for _ in 0..20 {
            let shares = shared.run(ms(10_000));
            near(shares[&at(1, 0)], 0.5, 0.05);
        }
    }
}

/// An app with ten jobs gets no more than one with a single job, and weights are shares.
#[test]
fn apps_share_by_weight_however_many_jobs_they_have() {
    for (weight, expected) in [(1, 0.5), (3, 0.25)] {
        let mut shared = SharedPlaces::new(4, ms(200));
        shared.grant("a", weight, usize::MAX);
        for job in 0..10 {
            shared.join(at(1, job), ms(30_000));
        }
        shared.run(ms(60_000));
        shared.join(seat(1, "b", 0), ms(30_000));
        shared.run(ms(2_000));
        for _ in 0..10 {
            let shares = shared.run(ms(10_000));
            near(of_app(&shares, "b"), expected, 0.05);
        }
        let shares = shared.run(ms(120_000));
        for job in 0..10 {
            near(shares[&at(1, job)], (1.0 - expected) / 10.0, 0.02);
        }
    }
}

#[test]
fn the_second_app_gets_its_share_within_two_seconds() {
    for takes in [ms(50), ms(60_000)] {
        let mut shared = SharedPlaces::new(4, ms(100));
        shared.join(at(1, 0), takes);
        shared.run(ms(300_000));
        shared.join(seat(1, "b", 0), takes);
        shared.run(ms(1_000));
        let shares = shared.run(ms(2_000));
        near(of_app(&shares, "b"), 0.5, 0.1);
    }
}

/// The places that a bounded app may not have go to others, and stay free if there are none.
#[test]
fn a_bounded_app_has_its_places_and_no_more() {
    let mut shared = SharedPlaces::new(8, ms(200));
    shared.grant("a", 1, 2);
    shared.join(at(0, 0), ms(3_000));
    shared.join(at(2, 1), ms(3_000));
    let alone = shared.run(ms(20_000));
    near(of_app(&alone, "a"), 0.25, 0.001);
    shared.join(seat(2, "b", 0), ms(3_000));
    let shares = shared.run(ms(20_000));
    near(of_app(&shares, "a"), 0.25, 0.01);
    near(of_app(&shares, "b"), 0.75, 0.01);
}

/// The priorities and the jobs of an app share the places that it may have as they share all of
/// them, whatever places are free and whatever other apps do.
#[test]
fn a_bounded_app_shares_its_places_among_its_own() {
    for others in [None, Some(0), Some(2)] {
        let mut shared = SharedPlaces::new(8, ms(200));
        shared.grant("a", 1, 2);
        if let Some(class) = others {
            shared.join(seat(class, "b", 0), ms(45_000));
        }
        shared.join(at(2, 0), ms(45_000));
        shared.run(ms(60_000));
        shared.join(at(1, 0), ms(45_000));
        shared.join(at(1, 1), ms(45_000));
        let begun = shared.run(ms(1_500));
        assert!(begun[&at(1, 0)] + begun[&at(1, 1)] > 0.0, "{begun:?}");
        shared.run(ms(3_000));
        for _ in 0..10 {
            let shares = shared.run(ms(20_000));
            let all = of_app(&shares, "a");
            near(all, 0.25, 0.06);
            for (job, expected) in [(at(2, 0), 0.2), (at(1, 0), 0.4), (at(1, 1), 0.4)] {
                near(shares[&job] / all, expected, 0.05);
            }
        }
    }
}

/// A job that waits for its own limit, or for that of its app, keeps one place, as long as others want
/// the rest. Afterwards it is owed nothing for that time.
#[test]
fn a_job_that_waits_for_its_own_limit_leaves_its_places_to_others() {
    for of_app in [false, true] {
        let (slow, other) = (at(1, 0), seat(1, "b", 0));
        let mut shared = SharedPlaces::new(8, ms(200));
        shared.join(slow.clone(), ms(45_000));
        shared.run(ms(5_000));
        match of_app {
            true => shared.held_up.apps.insert("a".to_owned()),
            false => shared.held_up.jobs.insert(slow.job.to_string()),
        };
        near(shared.run(ms(5_000))[&slow], 1.0, 0.001);
        shared.join(other.clone(), ms(45_000));
        shared.run(ms(6_000));
        for _ in 0..10 {
            let shares = shared.run(ms(10_000));
            near(shares[&slow], 0.125, 0.02);
            near(shares[&other], 0.875, 0.02);
        }
        shared.held_up = HeldUp::default();
        shared.run(ms(2_000));
        near(shared.run(ms(10_000))[&slow], 0.5, 0.05);
    }
}

/// An app that was at its bound has saved nothing up.
#[test]
fn a_bound_that_ends_is_not_made_up_for() {
    let mut shared = SharedPlaces::new(8, ms(200));
    shared.grant("a", 1, 1);
    shared.join(at(1, 0), ms(700));
    shared.join(seat(1, "b", 0), ms(700));
    shared.run(ms(100_000));
    shared.grant("a", 1, usize::MAX);
    shared.run(ms(2_000));
    let shares = shared.run(ms(10_000));
    near(of_app(&shares, "a"), 0.5, 0.05);
}

/// Asking while no place is free changes nothing.
#[test]
fn to_ask_without_a_free_place_changes_nothing() {
    let mut shares = Vec::new();
    for asked_in_vain in [0, 1, 7] {
        let mut shared = SharedPlaces::new(1, ms(0));
        shared.asked_in_vain = asked_in_vain;
        shared.join(at(2, 0), ms(10));
        shared.run(ms(5_000));
        shared.join(at(0, 0), ms(10));
        shared.join(at(1, 1), ms(10));
        shares.push(shared.run(ms(60_000)));
    }
    assert!(shares.iter().all(|it| *it == shares[0]), "{shares:?}");
    near(shares[0][&at(0, 0)], 8.0 / 13.0, 0.03);
}

#[test]
fn a_class_gets_the_same_with_one_job_or_two() {
    let mut shared = SharedPlaces::new(8, ms(100));
    shared.join(at(0, 0), ms(500));
    shared.join(at(2, 0), ms(500));
    shared.join(at(2, 1), ms(500));
    let shares = shared.run(ms(120_000));
    near(shares[&at(0, 0)], 8.0 / 9.0, 0.02);
    near(shares[&at(2, 0)], 0.5 / 9.0, 0.02);
}

/// A job has few slices, and each takes a while from one place to the next. The job often has
/// none waiting, and still gets its share.
#[test]
fn few_slices_that_go_through_the_broker_get_their_share() {
    for around in [5, 50, 150] {
        let mut shared = SharedPlaces::new(8, ms(100));
        shared.around = Some(ms(around));
        for (class, slices) in [(2, 4), (1, 5), (0, 8)] {
            shared.join_with(at(class, 0), ms(40_000), slices);
        }
        shared.run(ms(3_000));
        let shares = shared.run(ms(20_000));
        for (class, weight) in (0..).zip(WEIGHTS) {
            near(shares[&at(class, 0)], f64::from(weight) / 13.0, 0.06);
        }
    }
}

/// A job with all its slices in work, and with less than its share, is owed nothing for that time.
#[test]
fn a_job_with_nothing_waiting_saves_nothing_up() {
    let mut shared = SharedPlaces::new(8, ms(75));
    shared.around = Some(ms(50));
    for (class, slices, then) in [(2, 2, 2_000), (1, 2, 30_000), (0, 3, 1_000)] {
        for job in 0..2 {
            shared.join_with(at(class, job), ms(60_000), slices);
        }
        shared.run(ms(then));
    }
    let shares = shared.run(ms(10_000));
    for (class, weight) in (0..).zip(WEIGHTS) {
        let share: f64 = (0..2).filter_map(|job| shares.get(&at(class, job))).sum();
        near(share, f64::from(weight) / 13.0, 0.06);
    }
}

#[test]
fn what_comes_behind_slices_of_minutes_begins_at_once() {
    let mut shared = SharedPlaces::new(4, ms(200));
    shared.join(at(2, 0), ms(60_000));
    shared.run(ms(300_000));
    shared.join(at(0, 0), ms(2_000));
    let shares = shared.run(ms(1_000));
    assert!(shares[&at(0, 0)] > 0.5, "{shares:?}");
    assert!(shared.longest_wait <= ms(400), "{:?}", shared.longest_wait);
}

#[test]
fn nothing_waiting_is_nothing() {
    let mut turns = Turns::new(&WEIGHTS);
    assert_eq!(turns.next(ms(0)), None);
    assert_eq!(turns.makes_way(ms(0)), None);
    turns.arrived(&at(1, 1), ANY, ms(0));
    turns.withdrawn(&at(1, 1), ms(0));
    assert_eq!(turns.next(ms(0)), None);
}

/// Jobs come and go by the million; what is kept are those that have slices.
#[test]
fn jobs_and_apps_that_are_gone_leave_nothing() {
    let mut turns = Turns::new(&WEIGHTS);
    let mut now = ms(0);
    turns.arrived(&seat(1, "long", 0), ANY, now);
    let long = turns.begun(&seat(1, "long", 0), now);
    for job in 0..1_000 {
        let here = seat(job % 3, &format!("app{}", job % 50), job);
        let places_max = [1, usize::MAX][job % 2];
        let share = AppShare { places_max, ..ANY };
        turns.arrived(&here, share, now);
        turns.arrived(&here, share, now);
        let ticket = turns.begun(&here, now);
        turns.makes_way(now);
        now += ms(900);
        turns.withdrawn(&here, now);
        turns.ended(&here, ticket, now);
    }
    turns.ended(&seat(1, "long", 0), long, now);
    turns.arrived(&seat(2, "last", 0), ANY, now);
    turns.withdrawn(&seat(2, "last", 0), now);
    assert!(turns.apps.is_empty(), "{:?}", turns.apps);
    assert!(turns.kept.is_empty(), "{:?}", turns.kept);
    assert!(turns.classes.members.is_empty(), "{:?}", turns.classes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// For slices of any duration, jobs that always have work share by the weights of their
    /// classes and apps.
    #[test]
    fn full_jobs_share_by_weight(
        takes in prop::collection::vec(100u64..60_000, 12),
        full in prop::collection::vec(any::<bool>(), 12),
        weight in 1u32..5,
        places in 1usize..20,
        leaving in 0u64..400,
    ) {
        let mut shared = SharedPlaces::new(places, ms(leaving));
        shared.grant("b", weight, usize::MAX);
        let mut jobs: BTreeMap<(usize, &str), u32> = BTreeMap::new();
        for (index, full) in full.iter().enumerate() {
            if *full {
                let (class, app) = (index / 4, ["a", "b"][index / 2 % 2]);
                shared.join(seat(class, app, index % 2), ms(takes[index]));
                *jobs.entry((class, app)).or_default() += 1;
            }
        }
        let weight_of = |app: &str| if app == "b" { f64::from(weight) } else { 1.0 };
        let classes = (0..3).filter(|class| jobs.keys().any(|(it, _)| it == class));
        let total: u32 = classes.map(|class| WEIGHTS[class]).sum();
        let shares = shared.run(ms(120_000));
        for (at, share) in shares {
            let apps = jobs.keys().filter(|(class, _)| *class == at.class);
            let apps: f64 = apps.map(|(_, app)| weight_of(app)).sum();
            let here = f64::from(jobs[&(at.class, &*at.app)]);
            let expected = f64::from(WEIGHTS[at.class]) / f64::from(total)
                * weight_of(&at.app) / apps / here;
            prop_assert!((share - expected).abs() <= 0.03, "{at:?}: {share} {expected}");
        }
    }

    /// A job that comes anew is served within one round, whatever happened before; no job waits
    /// longer.
    #[test]
    fn a_job_that_comes_anew_is_served_within_one_round(
        takes in prop::collection::vec(5u64..60_000, 6),
        joins in prop::collection::vec((0usize..6, 0u64..30_000, any::<bool>()), 1..12),
        places in 1usize..12,
        leaving in 0u64..500,
    ) {
        let mut shared = SharedPlaces::new(places, ms(leaving));
        for (index, after, leaves) in joins {
            let at = seat(index / 2, ["a", "b"][index % 2], 0);
            let is_busy = shared.busy.iter().any(|(it, _)| *it == at);
            match (is_busy, leaves) {
                (false, _) => shared.join(at, ms(takes[index])),
                (true, true) => shared.leave(&at),
                (true, false) => {}
            }
            shared.run(ms(after));
        }
        shared.run(ms(60_000));
        // Both jobs of the lowest class, each with a slice that exceeds its turn by the time that
        // the others are then owed.
        let turn = TURN + LOOK + ms(leaving);
        let round = 2 * 3 * turn * 13 / places.min(8) as u32 + 3 * turn;
        prop_assert!(shared.longest_wait <= round, "{:?} of {round:?}", shared.longest_wait);
    }

    /// No app exceeds its bound, a free place is used by those who may, and nothing is left behind.
    #[test]
    fn bounds_hold_and_free_places_are_used(
        bounds in prop::collection::vec(1usize..6, 3),
        jobs in prop::collection::vec((0usize..3, 0usize..3, 20u64..5_000), 1..10),
        places in 1usize..10,
    ) {
        let mut shared = SharedPlaces::new(places, ms(50));
        for (app, bound) in ["a", "b", "c"].iter().zip(&bounds) {
            shared.grant(app, 1, *bound);
        }
        let mut may = [0; 3];
        for (job, (class, app, takes)) in jobs.iter().enumerate() {
            shared.join(seat(*class, ["a", "b", "c"][*app], job), ms(*takes));
            may[*app] = bounds[*app];
        }
        for _ in 0..20 {
            shared.run(ms(500));
            shared.draw();
            let most: usize = may.iter().sum();
            prop_assert_eq!(shared.work.len(), places.min(most));
        }
    }
}
