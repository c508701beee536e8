//! For any answers, pauses and losses over the deliveries of a slice, in any order: each recipient
//! is in one place, and ends with one outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::domain::fallback::{FailureClass, Fallback};
use crate::domain::ids::{JobId, Owner, SliceId};
use crate::domain::lane::Priority;
use crate::domain::message::{Content, Options};
use crate::domain::slice::{Addressed, DueLater, Head, Shape};

/// A list of this many recipients, some of them twice, in one slice.
pub(in crate::domain) fn slice(people: u32, repeats: u32) -> Slice {
    let head = Head {
        id: JobId::of("shop", "promo"),
        app: "shop".to_owned(),
        client_msg_no: "promo".to_owned(),
        target: "im".to_owned(),
        priority: Priority::Normal,
        sender: None,
        addressed: Addressed::Users,
        native: None,
        vars: None,
        content: Content::Text("hello".to_owned()),
        options: Options::default(),
        accepted_at_ms: 0,
        not_before_ms: None,
        expires_at_ms: None,
        rate: None,
        window: None,
        pace_until_ms: None,
        category: None,
        on_uncertain: None,
        callback_url: None,
        reply_to: None,
        fallback: None,
        keep_ids: false,
        fell_from: None,
    };
    Slice {
        entries: people + repeats,
        recipients: (0..people).map(|number| format!("user-{number}")).collect(),
        ..Slice::new(
            Arc::new(head),
            SliceId::new("all", 0),
            Shape { buckets: 1 },
            "im.normal.0".parse().unwrap(),
        )
    }
}

fn rules(on_uncertain: OnUncertain) -> Rules {
    Rules {
        attempts_max: 3,
        on_uncertain,
        retries_max: u32::MAX,
        falls_on: FallsOn::default(),
        two_targets: false,
    }
}

fn answer(class: Class) -> TargetAnswer {
    match class {
        Class::Done => TargetAnswer::done(),
        class => TargetAnswer::new(class, class.as_str(), "said the target"),
    }
}

fn lost(_: usize) -> TargetAnswer {
    TargetAnswer::new(Class::Uncertain, "lost", "a worker ended")
}

fn no_delay(_: u32) -> Duration {
    Duration::ZERO
}

/// Grants all claims of the waiting recipients.
fn claim_all(delivery: &mut Delivery, state: ClaimState, rules: Rules) -> Vec<Call> {
    let everybody = delivery.waiting();
    let picked = delivery.pick(everybody, everybody);
    let states = vec![state; picked];
    let claimed = delivery.claimed(&states, None, rules, |_| false, lost);
    claimed.calls
}

fn outcomes(delivery: &Delivery) -> Vec<Outcome> {
    let batch = delivery.batch();
    batch.outcomes.into_iter().map(|(_, it)| it).collect()
}

/// A claim gets no answer, and the worker stops: no recipient is lost.
#[test]
fn a_window_that_waits_for_its_claim_is_given_back_whole() {
    let slice = slice(10, 0);
    let mut delivery = Delivery::new(&slice, 4);
    assert_eq!(delivery.pick(2, 6), 6);
    delivery.defer(Duration::ZERO);
    let remainder = delivery.remainder(&slice, Owner(1), None);
    assert_eq!(remainder.recipients, slice.recipients);
    assert!(delivery.batch().last.is_none());
    // Not even without a defer.
    let mut delivery = Delivery::new(&slice, 4);
    delivery.pick(1, 4);
    let left: BTreeSet<_> = delivery
        .remainder(&slice, Owner(1), None)
        .recipients
        .into_iter()
        .collect();
    assert_eq!(left.len(), 10);
    assert!(!delivery.leaves_nobody());
}

#[test]
fn a_remainder_that_lost_somebody_never_closes_its_slice() {
    let mut slice = slice(3, 1);
    slice.ended = Some(Ended {
        entries: 1,
        repeats: 1,
    });
    slice.entries = 5;
    let mut delivery = Delivery::new(&slice, 1);
    assert_eq!(delivery.missing(), 1);
    let rules = rules(OnUncertain::Hold);
    for call in claim_all(&mut delivery, ClaimState::Granted, rules) {
        let done = Verdict::All(TargetAnswer::done());
        delivery.answered(&call, &done, false, rules, no_delay);
    }
    let batch = delivery.batch();
    assert_eq!((batch.outcomes.len(), batch.last), (3, None));
    delivery.recorded(0);
    assert!(delivery.leaves_nobody());
    assert_eq!(delivery.batch().last, None);
}

/// Promise 4: a doubt survives deliveries, and everything but the target's own answer.
#[test]
fn a_call_in_doubt_is_not_forgotten() {
    let slice = slice(1, 0);
    let rules = rules(OnUncertain::Retry);
    let doubted = || {
        let mut delivery = Delivery::new(&slice, 1);
        let calls = claim_all(&mut delivery, ClaimState::Granted, rules);
        assert!(!calls[0].in_doubt);
        let verdict = Verdict::All(answer(Class::Uncertain));
        delivery.answered(&calls[0], &verdict, false, rules, no_delay);
        let batch = delivery.batch();
        assert_eq!((batch.release, batch.doubted), (vec![], vec![0]));
        delivery.recorded(0);
        let remainder = delivery.remainder(&slice, Owner(1), None);
        let json = serde_json::to_string(&remainder).unwrap();
        let remainder: Slice = serde_json::from_str(&json).unwrap();
        let mut next = Delivery::new(&remainder, 1);
        next.pick(1, 1);
        next
    };
    for (over, words) in [
        (Outcome::Cancelled, "the job was cancelled"),
        (Outcome::Expired, "the job expired"),
    ] {
        let mut next = doubted();
        let states = [ClaimState::InDoubt];
        let claimed = next.claimed(&states, Some(over), rules, |_| true, lost);
        assert_eq!(claimed, Claimed::default());
        let dead = &next.dead()[0];
        assert_eq!(
            (dead.outcome, &*dead.answer.code),
            (Outcome::Uncertain, "uncertain")
        );
        assert!(dead.answer.text.ends_with(words), "{}", dead.answer.text);
    }
    for class in [Class::Permanent, Class::Transient] {
        let mut next = doubted();
        let calls = next
            .claimed(&[ClaimState::InDoubt], None, rules, |_| false, lost)
            .calls;
        assert!(calls[0].in_doubt);
        // All attempts are spent.
        let last = Rules {
            attempts_max: 2,
            ..rules
        };
        let verdict = Verdict::All(answer(class));
        next.answered(&calls[0], &verdict, false, last, no_delay);
        let dead = &next.dead()[0];
        assert_eq!(dead.outcome, Outcome::Uncertain);
        assert!(
            dead.answer.text.contains(class.as_str()),
            "{}",
            dead.answer.text
        );
        assert!(
            next.batch().release.is_empty(),
            "nobody may send to it meanwhile"
        );
    }
    // The target's own answer ends it.
    let mut next = doubted();
    let calls = next
        .claimed(&[ClaimState::InDoubt], None, rules, |_| false, lost)
        .calls;
    let refused = Verdict::All(answer(Class::Permanent));
    next.answered(&calls[0], &refused, true, rules, no_delay);
    assert_eq!(next.dead()[0].outcome, Outcome::Failed);
    let mut next = doubted();
    let calls = next
        .claimed(&[ClaimState::InDoubt], None, rules, |_| false, lost)
        .calls;
    next.answered(
        &calls[0],
        &Verdict::All(TargetAnswer::done()),
        false,
        rules,
        no_delay,
    );
    assert_eq!(outcomes(&next), [Outcome::Sent]);
}

/// A doubt of another slice is treated like the doubt of a dead worker.
#[test]
fn a_doubt_of_others_is_decided_by_the_policy() {
    let slice = slice(1, 0);
    for state in [ClaimState::TakenOver, ClaimState::InDoubt] {
        let held = rules(OnUncertain::Hold);
        let mut delivery = Delivery::new(&slice, 1);
        assert_eq!(claim_all(&mut delivery, state, held), []);
        assert_eq!(delivery.dead()[0].outcome, Outcome::Uncertain);
        let mut delivery = Delivery::new(&slice, 1);
        assert_eq!(
            claim_all(&mut delivery, state, rules(OnUncertain::Drop)),
            []
        );
        assert_eq!(outcomes(&delivery), [Outcome::Uncertain]);
        let mut delivery = Delivery::new(&slice, 1);
        let calls = claim_all(&mut delivery, state, rules(OnUncertain::Retry));
        assert!(calls[0].in_doubt);
        // A target that can be asked is asked, under every policy.
        let mut delivery = Delivery::new(&slice, 1);
        delivery.pick(1, 1);
        let claimed = delivery.claimed(&[state], None, held, |_| true, lost);
        assert!(claimed.calls[0].in_doubt && claimed.uncertain == 0);
    }
}

#[test]
fn a_repeated_call_has_the_same_recipients_in_the_same_order() {
    let slice = slice(10, 0);
    let rules = rules(OnUncertain::Retry);
    let mut delivery = Delivery::new(&slice, 4);
    let calls = claim_all(&mut delivery, ClaimState::Granted, rules);
    assert_eq!(
        calls
            .iter()
            .map(|call| call.members.len())
            .collect::<Vec<_>>(),
        [4, 4, 2]
    );
    let transient = Verdict::All(answer(Class::Transient));
    for call in [&calls[2], &calls[0]] {
        delivery.answered(call, &transient, false, rules, no_delay);
    }
    delivery.answered(
        &calls[1],
        &Verdict::All(TargetAnswer::done()),
        false,
        rules,
        no_delay,
    );
    delivery.recorded(0);
    let remainder = delivery.remainder(&slice, Owner(1), None);
    assert_eq!(remainder.calls, [2, 4]);
    assert_eq!(remainder.recipients[..3], ["user-8", "user-9", "user-0"]);
    assert_eq!(remainder.attempts, [1; 6]);
    assert_eq!(
        remainder.ended,
        Some(Ended {
            entries: 4,
            repeats: 0
        })
    );
}

/// Promise 7: some recipients of a call were throttled, the others got the message. Nothing is
/// parked, so these wait by themselves, without an attempt, and are not called again at once.
#[test]
fn those_of_a_call_who_are_to_wait_do_wait() {
    let slice = slice(2, 0);
    let rules = rules(OnUncertain::Hold);
    for class in [Class::Throttled, Class::Config] {
        let mut delivery = Delivery::new(&slice, 2);
        let calls = claim_all(&mut delivery, ClaimState::Granted, rules);
        let verdict = Verdict::Each(vec![TargetAnswer::done(), answer(class)]);
        let delay = |attempt: u32| Duration::from_secs(attempt.into());
        let answered = delivery.answered(&calls[0], &verdict, false, rules, delay);
        assert_eq!((answered.retries, delivery.attempts_of(1)), (0, 0));
        assert_eq!(delivery.delay(), Duration::from_secs(1), "{class:?}");
    }
}

#[test]
fn a_refused_call_is_halved_until_its_cause_is_alone() {
    let slice = slice(8, 0);
    let rules = rules(OnUncertain::Hold);
    let mut delivery = Delivery::new(&slice, 8);
    let mut made = 0;
    while delivery.waiting() > 0 {
        delivery.pick(1, 8);
        let states = vec![ClaimState::Granted; delivery.picked().count()];
        let claimed = delivery.claimed(&states, None, rules, |_| false, lost);
        for call in claimed.calls {
            made += 1;
            let verdict = match call.members.contains(&5) {
                true => Verdict::All(answer(Class::Permanent).split()),
                false => Verdict::All(TargetAnswer::done()),
            };
            delivery.answered(&call, &verdict, false, rules, no_delay);
        }
        delivery.recorded(0);
    }
    assert_eq!(made, 7);
    assert_eq!(
        delivery
            .dead()
            .iter()
            .map(|it| it.index)
            .collect::<Vec<_>>(),
        [5]
    );
}

// -------------------------------------------------------------------------------------------------
// Against a ledger
// -------------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Step {
    Pick(usize, usize),
    /// The claim is not answered.
    Unpick,
    /// The claim is answered, one state for each recipient in turn.
    Claimed(Vec<u8>, Option<Outcome>),
    /// The oldest call returns.
    Answered(Vec<Class>, bool),
    NotMade,
    Record,
    /// The delivery ends, perhaps while the ledger is away; its remainder is delivered.
    Deferred {
        away: bool,
    },
    /// The delivery is lost with its session; the same slice comes again.
    Again,
    Letters,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let class = || prop::sample::select(Class::ALL.to_vec());
    let over = || {
        prop::sample::select(vec![
            None,
            None,
            None,
            Some(Outcome::Cancelled),
            Some(Outcome::Expired),
        ])
    };
    let step = prop_oneof![
        3 => (1..4usize, 1..12usize).prop_map(|(calls, most)| Step::Pick(calls, most)),
        1 => Just(Step::Unpick),
        3 => (prop::collection::vec(0..10u8, 1..5), over()).prop_map(|(states, over)| Step::Claimed(states, over)),
        5 => (prop::collection::vec(class(), 1..4), prop::bool::weighted(0.1)).prop_map(|(classes, split)| Step::Answered(classes, split)),
        1 => Just(Step::NotMade),
        3 => Just(Step::Record),
        1 => any::<bool>().prop_map(|away| Step::Deferred { away }),
        1 => Just(Step::Again),
        1 => Just(Step::Letters),
    ];
    prop::collection::vec(step, 1..80)
}

/// The ledger's content, and the progress of a slice.
struct World {
    rules: Rules,
    per_call: usize,
    whole: Slice,
    slice: Slice,
    delivery: Delivery,
    out: VecDeque<Call>,
    settled: BTreeMap<String, Outcome>,
    /// Settled by this slice.
    counted: u32,
    /// Recipients with a call in doubt whose result the target has not told.
    doubted: BTreeSet<String>,
    repeats: u32,
}

impl World {
    fn new(
        people: u32,
        repeats: u32,
        per_call: usize,
        on_uncertain: OnUncertain,
        fallback: Option<Fallback>,
    ) -> Self {
        let mut whole = slice(people, repeats);
        Arc::get_mut(&mut whole.head).unwrap().fallback = fallback;
        Self {
            rules: Rules {
                falls_on: FallsOn::of(whole.head.fallback.as_ref()),
                two_targets: whole.head.has_two_targets(),
                ..rules(on_uncertain)
            },
            per_call,
            delivery: Delivery::new(&whole, per_call),
            slice: whole.clone(),
            whole,
            out: VecDeque::new(),
            settled: BTreeMap::new(),
            counted: 0,
            doubted: BTreeSet::new(),
            repeats,
        }
    }

    fn name(&self, index: usize) -> String {
        self.slice.recipients[index].clone()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Pick(calls, most) => {
                if self.delivery.picked().next().is_none() && self.delivery.waiting() > 0 {
                    self.delivery.pick(calls, most);
                }
            }
            Step::Unpick => self.delivery.unpick(),
            Step::Claimed(states, over) => self.claimed(&states, over),
            Step::Answered(classes, split) => self.answered(&classes, split),
            Step::NotMade => {
                if let Some(call) = self.out.pop_front() {
                    self.delivery.not_made(&call);
                }
            }
            Step::Record => self.record(),
            Step::Letters => self.delivery.lettered(),
            Step::Deferred { away } => {
                while let Some(call) = self.out.pop_front() {
                    self.delivery.not_made(&call);
                }
                self.delivery.lettered();
                if !away {
                    self.catch_up();
                    self.record();
                }
                self.delivery.defer(Duration::ZERO);
                let mut remainder = self.delivery.remainder(&self.slice, Owner(1), None);
                if remainder.falls_back() {
                    let refused = &remainder.for_fallback.recipients;
                    let doubted = refused.iter().find(|name| self.doubted.contains(*name));
                    assert_eq!(doubted, None, "moves on and may have been sent to");
                    remainder = remainder.at_fallback().unwrap();
                    self.rules.falls_on = FallsOn::of(remainder.head.fallback.as_ref());
                }
                let json = serde_json::to_string(&remainder).unwrap();
                self.slice = serde_json::from_str(&json).unwrap();
                self.delivery = Delivery::new(&self.slice, self.per_call);
            }
            Step::Again => {
                for call in std::mem::take(&mut self.out) {
                    let names = call.members.iter().map(|index| self.name(*index));
                    self.doubted.extend(names.collect::<Vec<_>>());
                }
                self.delivery = Delivery::new(&self.slice, self.per_call);
            }
        }
        self.check();
    }

    fn claimed(&mut self, states: &[u8], over: Option<Outcome>) {
        let picked: Vec<usize> = self.delivery.picked().collect();
        let mut answers = Vec::new();
        for (at, index) in picked.into_iter().enumerate() {
            let name = self.name(index);
            let state = match states[at % states.len()] {
                _ if self.settled.contains_key(&name) => ClaimState::Settled(self.settled[&name]),
                0 => {
                    // Another delivery was faster.
                    self.settled.insert(name, Outcome::Sent);
                    ClaimState::Settled(Outcome::Sent)
                }
                1 => ClaimState::Held {
                    left: Duration::from_secs(1),
                },
                2 => {
                    self.doubted.insert(name);
                    ClaimState::TakenOver
                }
                _ if self.doubted.contains(&name) => ClaimState::InDoubt,
                _ => ClaimState::Granted,
            };
            answers.push(state);
        }
        let claimed = self
            .delivery
            .claimed(&answers, over, self.rules, |_| false, lost);
        self.out.extend(claimed.calls);
    }

    fn answered(&mut self, classes: &[Class], split: bool) {
        let Some(call) = self.out.pop_front() else {
            return;
        };
        let mut each = Vec::new();
        for (at, index) in call.members.iter().enumerate() {
            let name = self.name(*index);
            let mut answer = answer(classes[at % classes.len()]);
            match answer.class {
                Class::Uncertain => {
                    self.doubted.insert(name);
                }
                Class::Done => {
                    self.doubted.remove(&name);
                }
                _ if split => answer = answer.split(),
                _ => {}
            }
            each.push(answer);
        }
        let verdict = Verdict::Each(each);
        self.delivery
            .answered(&call, &verdict, false, self.rules, no_delay);
    }

    /// The ledger takes the outcomes of earlier deliveries.
    fn catch_up(&mut self) {
        let mut stood = 0;
        for (outcome, names) in self.delivery.unrecorded().outcomes.clone() {
            for name in names {
                match self.settled.contains_key(&name) {
                    true => stood += 1,
                    false => {
                        self.settled.insert(name, outcome);
                        self.counted += 1;
                    }
                }
            }
        }
        self.delivery.caught_up(stood);
    }

    /// Records as the ledger does: the first outcome counts.
    fn record(&mut self) {
        let batch = self.delivery.batch();
        let mut stood = 0;
        for (index, outcome) in &batch.outcomes {
            let name = self.name(*index);
            if self.settled.contains_key(&name) {
                stood += 1;
                continue;
            }
            let certain = !matches!(outcome, Outcome::Sent | Outcome::Uncertain);
            assert!(
                !(certain && self.doubted.contains(&name)),
                "{name} ends {outcome:?} and may have been sent to"
            );
            self.settled.insert(name, *outcome);
            self.counted += 1;
        }
        let released = batch.release.iter().chain(&batch.doubted);
        for index in released.clone() {
            assert_ne!(
                self.delivery.places[*index],
                Place::Out,
                "an open call is given up"
            );
        }
        for index in &batch.release {
            assert!(!self.delivery.doubts.contains_key(index));
        }
        self.delivery.recorded(stood);
        if let Some(repeats) = batch.last {
            assert!(
                self.whole.entries - self.counted <= repeats + stood,
                "duplicates nobody saw"
            );
        }
    }

    /// Each recipient is in exactly the place that it has, and none is missing.
    fn check(&self) {
        let delivery = &self.delivery;
        let mut places = vec![Place::Ended; delivery.places.len()];
        let mut put = |index: usize, place: Place| {
            assert_eq!(places[index], Place::Ended, "{index} is in two places");
            places[index] = place;
        };
        let ranges = |ranges: Vec<Range<usize>>| ranges.into_iter().flatten().collect::<Vec<_>>();
        ranges(delivery.todo.iter().cloned().collect())
            .into_iter()
            .for_each(|it| put(it, Place::Todo));
        ranges(delivery.picked.clone())
            .into_iter()
            .for_each(|it| put(it, Place::Picked));
        self.out
            .iter()
            .flat_map(|call| &call.members)
            .for_each(|it| put(*it, Place::Out));
        delivery
            .left
            .iter()
            .flatten()
            .for_each(|it| put(*it, Place::Left));
        delivery
            .dead
            .iter()
            .for_each(|it| put(it.index, Place::Dead));
        delivery.known.iter().for_each(|it| put(it.0, Place::Known));
        delivery
            .refused
            .iter()
            .for_each(|it| put(it.0, Place::Refused));
        assert_eq!(places, delivery.places);
        assert_eq!(delivery.missing(), 0);

        // Each recipient without an outcome is in the remainder, once.
        let remainder = delivery.remainder(&self.slice, Owner(1), None);
        let refused = &remainder.for_fallback.recipients;
        let all = || remainder.recipients.iter().chain(refused);
        let left: BTreeSet<&String> = all().collect();
        assert_eq!(left.len(), all().count(), "somebody comes twice");
        let outcomes = remainder.unrecorded.outcomes.iter();
        let unrecorded: Vec<&String> = outcomes.flat_map(|(_, names)| names).collect();
        for name in &self.whole.recipients {
            let known = unrecorded.contains(&name);
            assert!(
                left.contains(name) || known || self.settled.contains_key(name),
                "{name} is lost"
            );
            assert!(!(left.contains(name) && known), "{name} comes twice");
        }
        let ended = remainder.ended();
        assert_eq!(
            ended.entries + remainder.unrecorded.entries() + all().count() as u32,
            self.whole.entries
        );
    }

    /// Delivers until no recipient is left.
    fn finish(mut self) {
        let last = loop {
            self.step(Step::Deferred { away: false });
            if self.slice.recipients.is_empty() {
                break self.delivery.batch().last;
            }
            self.step(Step::Pick(usize::MAX, usize::MAX));
            self.step(Step::Claimed(vec![9], None));
            while !self.out.is_empty() {
                self.step(Step::Answered(vec![Class::Done], false));
            }
            self.step(Step::Letters);
        };
        let repeats = last.expect("nobody is left");
        assert_eq!(self.settled.len(), self.whole.recipients.len());
        let duplicates = self.whole.entries - self.counted;
        assert!(
            duplicates <= repeats,
            "{duplicates} duplicates, {repeats} seen"
        );
        assert!(duplicates >= self.repeats);
    }
}

proptest! {
    /// Promises 2 and 4 for any sequence of answers, pauses and losses.
    #[test]
    fn everybody_is_in_one_place_and_ends_once(
        people in 1..12u32, repeats in 0..3u32, per_call in 1..5usize,
        policy in prop::sample::select(vec![OnUncertain::Retry, OnUncertain::Hold, OnUncertain::Drop]),
        steps in steps(), falls: bool,
    ) {
        let fallback = falls.then(|| Fallback {
            target: "sms".to_owned(),
            on: vec![FailureClass::Permanent, FailureClass::Transient],
        });
        let mut world = World::new(people, repeats, per_call, policy, fallback);
        for step in steps {
            world.step(step);
        }
        world.finish();
    }
}

/// Another slice of the job may call a recipient that was refused here, before its failure is
/// recorded: the result of that call counts.
#[test]
fn who_was_refused_is_claimed_again_before_the_letter() {
    let (slice, rules) = (slice(4, 0), rules(OnUncertain::Hold));
    let mut delivery = Delivery::new(&slice, 4);
    let call = claim_all(&mut delivery, ClaimState::Granted, rules).remove(0);
    let refused = Verdict::All(answer(Class::Permanent));
    delivery.answered(&call, &refused, false, rules, no_delay);
    delivery.recorded(0);
    let asked = delivery.refused_and_free();
    assert_eq!(asked, [0, 1, 2, 3]);
    let left = Duration::from_secs(3);
    let states = [
        ClaimState::Granted,
        ClaimState::Settled(Outcome::Sent),
        ClaimState::Held { left },
        ClaimState::TakenOver,
    ];
    delivery.regained(&asked, &states, rules, || lost(0));
    let dead: Vec<_> = delivery.dead().iter().map(|dead| dead.index).collect();
    assert_eq!(dead, [0]);
    delivery.lettered();
    let batch = delivery.batch();
    assert_eq!(batch.outcomes, [(0, Outcome::Failed)]);
    assert_eq!(batch.doubted, [3]);
    assert_eq!(batch.last, None);
    let remainder = delivery.remainder(&slice, Owner(1), None);
    assert_eq!(remainder.recipients, ["user-2", "user-3"]);
    assert_eq!(remainder.doubts[0].recipients, [1]);
    assert!(delivery.delay() >= left);
}

/// Of two recipients that a target refuses, one for good and one for now, the second target gets
/// those of its classes, with what the first one said, and nobody whose call is in doubt.
#[test]
fn who_is_refused_moves_to_the_second_target() {
    let mut slice = slice(4, 1);
    Arc::get_mut(&mut slice.head).unwrap().fallback = Some(Fallback {
        target: "sms".to_owned(),
        on: vec![FailureClass::Permanent],
    });
    let first = Rules {
        falls_on: FallsOn::of(slice.head.fallback.as_ref()),
        two_targets: true,
        attempts_max: 1,
        ..rules(OnUncertain::Hold)
    };
    let mut delivery = Delivery::new(&slice, 4);
    let call = claim_all(&mut delivery, ClaimState::Granted, first).remove(0);
    let classes = [
        Class::Permanent,
        Class::Transient,
        Class::Uncertain,
        Class::Done,
    ];
    let verdict = Verdict::Each(classes.map(answer).to_vec());
    delivery.answered(&call, &verdict, false, first, no_delay);
    let dead: Vec<_> = delivery.dead().iter().map(|dead| dead.index).collect();
    assert_eq!(dead, [1, 2]);
    delivery.lettered();
    assert_eq!(delivery.batch().release, [0, 1]);
    assert_eq!(delivery.batch().last, None);
    delivery.recorded(0);
    assert!(!delivery.leaves_nobody());
    let left = delivery.remainder(&slice, Owner(1), None);
    assert!(left.falls_back() && left.v == 3);

    let second = left.at_fallback().unwrap();
    let targets = (&*second.head.target, second.head.first_target());
    assert_eq!(targets, ("sms", "im"));
    assert_eq!(second.recipients, ["user-0"]);
    assert_eq!(second.lane.to_string(), "sms.normal.0");
    assert_eq!(second.entries, 5);
    let json = serde_json::to_string(&second).unwrap();
    let second: Slice = serde_json::from_str(&json).unwrap();
    let mut delivery = Delivery::new(&second, 4);
    assert_eq!(delivery.remark(0).unwrap().code, "permanent");
    assert_eq!(delivery.missing(), 0);
    let rules = Rules {
        falls_on: FallsOn::of(second.head.fallback.as_ref()),
        ..first
    };
    let call = claim_all(&mut delivery, ClaimState::Granted, rules).remove(0);
    let sent = Verdict::All(TargetAnswer::done());
    delivery.answered(&call, &sent, false, rules, no_delay);
    let batch = delivery.batch();
    assert_eq!(batch.outcomes, [(0, Outcome::Sent)]);
    assert_eq!(batch.last, Some(1));
}

/// The ledger does not know which of two targets a doubt is about, so nothing is sent again.
#[test]
fn a_doubt_of_others_stays_in_a_job_of_two_targets() {
    let slice = slice(2, 0);
    for state in [ClaimState::TakenOver, ClaimState::InDoubt] {
        let rules = Rules {
            two_targets: true,
            ..rules(OnUncertain::Retry)
        };
        let mut delivery = Delivery::new(&slice, 2);
        delivery.pick(1, 2);
        let states = [state, ClaimState::Granted];
        let claimed = delivery.claimed(&states, None, rules, |_| true, lost);
        assert_eq!(claimed.calls[0].members, [1]);
        assert_eq!(delivery.dead()[0].outcome, Outcome::Uncertain);
    }
}

/// Recipients outside of their own hours wait without an attempt, and hold up no other.
#[test]
fn recipients_outside_of_their_hours_are_put_off() {
    let slice = slice(10, 0);
    let rules = rules(OnUncertain::Retry);
    let mut delivery = Delivery::new(&slice, 4);
    delivery.put_off(0, |index| (index % 3 == 0).then_some(5_000 + index as u64));
    assert_eq!(delivery.waiting(), 6);
    let calls = claim_all(&mut delivery, ClaimState::Granted, rules);
    let called: Vec<_> = calls.iter().flat_map(|call| call.members.clone()).collect();
    assert_eq!(called, [1, 2, 4, 5, 7, 8]);
    for call in &calls {
        let done = Verdict::All(answer(Class::Done));
        delivery.answered(call, &done, false, rules, no_delay);
    }
    delivery.recorded(0);
    delivery.wait_for_hours(2_000);
    assert_eq!(delivery.delay(), Duration::from_millis(3_000));
    assert!(!delivery.leaves_nobody());
    let left = delivery.remainder(&slice, Owner(1), None);
    assert_eq!(left.recipients, ["user-0", "user-3", "user-6", "user-9"]);
    assert_eq!((left.attempts, left.retries), (Vec::new(), 0));
    // Their hours began while the last call was out.
    delivery.wait_for_hours(9_000);
    assert_eq!(delivery.delay(), Duration::ZERO);
}

/// Those that are retried do not wait for the hours of others.
#[test]
fn retries_do_not_wait_for_the_hours_of_others() {
    let slice = slice(4, 0);
    let rules = rules(OnUncertain::Retry);
    let mut delivery = Delivery::new(&slice, 1);
    delivery.put_off(0, |index| (index == 0).then_some(3_600_000));
    let calls = claim_all(&mut delivery, ClaimState::Granted, rules);
    for call in &calls {
        let failed = Verdict::All(answer(Class::Transient));
        delivery.answered(call, &failed, false, rules, |_| Duration::from_secs(5));
    }
    delivery.wait_for_hours(0);
    assert_eq!(delivery.delay(), Duration::from_secs(5));
    let left = delivery.remainder(&slice, Owner(1), None);
    let attempts: BTreeMap<_, _> = left.recipients.iter().zip(&left.attempts).collect();
    assert_eq!(attempts[&"user-0".to_owned()], &0);
    assert_eq!(attempts[&"user-3".to_owned()], &1);
}

/// The hours of a recipient begin on time, also while others of its slice wait longer for their next
/// attempt. These wait on until then.
#[test]
fn hours_do_not_wait_for_the_retries_of_others() {
    let rules = rules(OnUncertain::Retry);
    let minutes = |minutes: u64| 60_000 * minutes;
    let opens = |now: u64| move |index| (index == 0 && now < minutes(3)).then_some(minutes(3));
    let fail = |delivery: &mut Delivery| {
        for call in claim_all(delivery, ClaimState::Granted, rules) {
            let failed = Verdict::All(answer(Class::Transient));
            delivery.answered(&call, &failed, false, rules, |_| Duration::from_secs(1800));
        }
    };
    let first = slice(4, 0);
    let mut delivery = Delivery::new(&first, 2);
    delivery.put_off(0, opens(0));
    fail(&mut delivery);
    assert!(delivery.wait_for_hours(0));
    assert_eq!(delivery.delay(), Duration::from_secs(180));
    let second = delivery.remainder(&first, Owner(1), None);
    let at = |name: &str, slice: &Slice| {
        let position = slice.recipients.iter().position(|it| it == name).unwrap();
        let here = |due: &&DueLater| due.recipients.contains(&(position as u32));
        slice.due_later.iter().find(here).map(|due| due.at_ms)
    };
    assert_eq!(at("user-0", &second), None);
    assert_eq!(at("user-3", &second), Some(minutes(30)));
    // Its hours have begun, and it fails too: the others are due before it.
    let mut delivery = Delivery::new(&second, 2);
    delivery.put_off(minutes(3), |_| None);
    assert_eq!(delivery.waiting(), 1);
    fail(&mut delivery);
    assert!(delivery.wait_for_hours(minutes(3)));
    assert_eq!(delivery.delay(), Duration::from_secs(27 * 60));
    let third = delivery.remainder(&second, Owner(2), None);
    assert_eq!(at("user-0", &third), Some(minutes(33)));
    assert_eq!(at("user-1", &third), Some(minutes(30)));
    // All are due.
    let mut delivery = Delivery::new(&third, 2);
    delivery.put_off(minutes(33), |_| None);
    assert_eq!(delivery.waiting(), 4);
    assert!(!delivery.wait_for_hours(minutes(33)));
    let last = delivery.remainder(&third, Owner(3), None);
    assert_eq!(last.due_later, []);
}

/// The target tells a repeated call by its recipients, so a call in doubt waits for all of them.
#[test]
fn a_call_in_doubt_waits_as_a_whole() {
    let whole = Slice {
        attempts: vec![1; 4],
        calls: vec![2, 2],
        doubts: vec![Remark {
            recipients: vec![0],
            code: "timeout".to_owned(),
            text: String::new(),
        }],
        ..slice(4, 0)
    };
    let mut delivery = Delivery::new(&whole, 4);
    delivery.put_off(0, |index| (index % 2 == 1).then_some(7_000 + index as u64));
    // The call of the first two waits for the second of them, and the last one by itself.
    assert_eq!(delivery.waiting(), 1);
    let left = delivery.remainder(&whole, Owner(1), None);
    assert_eq!(left.calls, [2, 1, 1]);
    assert_eq!(left.recipients[..2], ["user-0", "user-1"]);
    delivery.defer(Duration::from_secs(1));
    assert_eq!(delivery.delay(), Duration::from_secs(1));
}
