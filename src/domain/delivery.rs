//! Tracks one delivery of a slice: the state of each of its recipients.
//!
//! A recipient is in exactly one place, and only the methods here move it. A later delivery gets
//! every recipient without an outcome, wherever this delivery stopped: no step takes a list out of
//! this value before the step has succeeded. So no recipient is lost between two deliveries. The
//! number of finished entries is counted, and never computed by subtraction (promise 2).
//!
//! A recipient with a call in doubt stays marked until the target answers what became of the call.
//! If the job ends first, or a later call is refused, the recipient ends `uncertain` (promise 4).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use super::fallback::{FallsOn, ForFallback};
use super::message_id::MessageId;
use super::outcome::{Class, Next, OnUncertain, Outcome, TargetAnswer, Verdict};
use super::schedule::rung;
use super::slice::{Ended, Remark, Slice, Unrecorded};

mod remainder;

/// The ledger's answer to the claim of a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimState {
    /// Granted to us.
    Granted,
    /// Granted to us. The owner that released it made a call for it and does not know the result.
    InDoubt,
    /// Granted to us, taken over from an owner whose lease ended without an outcome. That owner may
    /// have sent to the recipient (promise 4).
    TakenOver,
    /// Another owner holds it for this long.
    Held { left: Duration },
    /// It has its outcome.
    Settled(Outcome),
}

/// The place of a recipient in this delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It waits for a call of this delivery.
    Todo,
    /// The ledger is asked for its claim.
    Picked,
    /// It is claimed, and its call is under way.
    Out,
    /// It is left for a later delivery.
    Left,
    /// It must be dead-lettered, then settled.
    Dead,
    /// It was refused, and waits for the second target.
    Refused,
    /// Its outcome is known, but the ledger does not have it yet.
    Known,
    /// The ledger has its outcome, from us or from another delivery.
    Ended,
}

/// The recipients of one call that may be made, by position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub members: Vec<usize>,
    /// An earlier call for some of them may have been carried out.
    pub in_doubt: bool,
}

/// A recipient that must be dead-lettered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    pub index: usize,
    /// `failed` or `uncertain`.
    pub outcome: Outcome,
    pub answer: TargetAnswer,
    pub attempts: u32,
}

/// The code of a recipient that was not retried because the retries of its slice were spent.
pub const RETRY_BUDGET: &str = "retry_budget";

/// The settings that decide about recipients.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub attempts_max: u32,
    pub on_uncertain: OnUncertain,
    /// Most retries of all recipients of the slice together, in all its deliveries.
    pub retries_max: u32,
    /// Which failed recipients the second target gets.
    pub falls_on: FallsOn,
    /// The job has two targets. Of a doubt that comes from the ledger, nobody knows which target it
    /// is about: to send again, or to ask one of them, could send the message twice.
    pub two_targets: bool,
}

/// The result of a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claimed {
    pub calls: Vec<Call>,
    /// Recipients that were taken over in doubt and that the policy decided about.
    pub uncertain: u64,
}

/// The results of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// Recipients that are retried.
    pub retries: u64,
    /// Recipients whose send is uncertain.
    pub uncertain: u64,
    /// Recipients that would be retried if the slice had retries left.
    pub unretried: u64,
}

/// The records that the ledger must take next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub outcomes: Vec<(usize, Outcome)>,
    /// The ids of messages among them, if the job keeps ids.
    pub ids: Vec<(usize, MessageId)>,
    /// Claims to release, of recipients that were certainly not sent to.
    pub release: Vec<usize>,
    /// Claims to release with the mark of doubt.
    pub doubted: Vec<usize>,
    /// Set if every entry of the slice has its outcome with this batch: the number of repeats among
    /// them.
    pub last: Option<u32>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
            && self.release.is_empty()
            && self.doubted.is_empty()
            && self.last.is_none()
    }
}

/// One delivery of a slice.
#[derive(Debug)]
pub struct Delivery {
    places: Vec<Place>,
    /// The attempts spent on each recipient.
    attempts: Vec<u32>,
    /// The doubtful answer for each recipient in doubt.
    doubts: BTreeMap<usize, TargetAnswer>,
    /// Calls to make, in order.
    todo: VecDeque<Range<usize>>,
    /// Calls whose recipients are being claimed.
    picked: Vec<Range<usize>>,
    /// Calls that a later delivery repeats, each with the same recipients in the same order.
    left: Vec<Vec<usize>>,
    /// How long the remainder waits.
    delay: Duration,
    /// The retries of all deliveries so far.
    retries: u32,
    dead: Vec<Dead>,
    /// Recipients that wait for the second target, with the answer of the first.
    refused: Vec<(usize, TargetAnswer)>,
    /// The same of earlier deliveries.
    refused_before: ForFallback,
    /// At the second target: the answers of the first.
    remarks: BTreeMap<usize, TargetAnswer>,
    known: Vec<(usize, Outcome)>,
    /// The ids of the messages to recipients whose outcome is known.
    ids: Vec<(usize, MessageId)>,
    release: Vec<usize>,
    /// The finished entries of earlier deliveries and of this one.
    ended: Ended,
    /// The outcomes that earlier deliveries know and the ledger lacks.
    unrecorded: Unrecorded,
    /// Entries that are not recipients of this delivery and that no earlier one finished.
    missing: u32,
    /// Recipients that wait for a time of their own: their sending hours, or their next attempt; and
    /// the first of these times.
    put_off: BTreeSet<usize>,
    opens_ms: Option<u64>,
    /// When the next attempt of recipients is due that wait longer than the slice.
    due: BTreeMap<usize, u64>,
}

impl Delivery {
    /// Begins a delivery in which no call is made yet. Its calls have at most `per_call`
    /// recipients.
    pub fn new(slice: &Slice, per_call: usize) -> Self {
        let ended = slice.ended();
        let here = slice.recipients.len() as u32;
        let of = |remarks, class| Remark::by_position(remarks, slice.recipients.len(), class);
        let doubts = of(&slice.doubts, Class::Uncertain);
        Self {
            places: vec![Place::Todo; slice.recipients.len()],
            attempts: (0..slice.recipients.len())
                .map(|index| slice.attempts_of(index))
                .collect(),
            doubts,
            todo: slice.call_ranges(per_call).into(),
            picked: Vec::new(),
            left: Vec::new(),
            delay: Duration::ZERO,
            retries: slice.retries,
            dead: Vec::new(),
            refused: Vec::new(),
            refused_before: slice.for_fallback.clone(),
            remarks: of(&slice.remarks, Class::Permanent),
            known: Vec::new(),
            ids: Vec::new(),
            release: Vec::new(),
            missing: slice
                .entries
                .saturating_sub(ended.entries)
                .saturating_sub(slice.unrecorded.entries())
                .saturating_sub(slice.for_fallback.recipients.len() as u32)
                .saturating_sub(here),
            unrecorded: slice.unrecorded.clone(),
            ended,
            put_off: BTreeSet::new(),
            opens_ms: None,
            due: slice
                .due_later
                .iter()
                .flat_map(|due| {
                    due.recipients
                        .iter()
                        .map(|index| (*index as usize, due.at_ms))
                })
                .filter(|(index, _)| *index < slice.recipients.len())
                .collect(),
        }
    }

    fn count(&self, place: Place) -> usize {
        self.places.iter().filter(|it| **it == place).count()
    }

    fn all(&self, place: Place) -> impl Iterator<Item = usize> {
        let places = self.places.iter().enumerate();
        places.filter_map(move |(index, it)| (*it == place).then_some(index))
    }

    /// Recipients that wait for a call of this delivery.
    pub fn waiting(&self) -> usize {
        self.todo.iter().map(Range::len).sum()
    }

    /// Recipients whose claims must stay valid during the current step.
    pub fn held(&self) -> impl Iterator<Item = usize> {
        let dead = self.dead.iter().map(|dead| dead.index);
        self.all(Place::Out).chain(dead)
    }

    pub fn attempts_of(&self, index: usize) -> u32 {
        self.attempts[index]
    }

    /// How long the remainder waits.
    pub fn delay(&self) -> Duration {
        self.delay
    }

    pub fn dead(&self) -> &[Dead] {
        &self.dead
    }

    /// Entries of the slice that were lost before this delivery. It cannot send to them, and
    /// reports them instead of counting them as repeats.
    pub fn missing(&self) -> u32 {
        self.missing
    }

    // --- Own sending hours -------------------------------------------------------------------

    /// Leaves recipients for a later delivery, before anything is claimed, that are outside of their
    /// own sending hours or whose next attempt is not due. `opens`: when the hours of a recipient
    /// begin, unless it is within them. A call in doubt keeps its recipients, so all of them wait.
    pub fn put_off(&mut self, now_ms: u64, opens: impl Fn(usize) -> Option<u64>) {
        let all_due = std::mem::take(&mut self.due);
        let due = |index| all_due.get(&index).copied().filter(|at| *at > now_ms);
        let opens = |index| opens(index).max(due(index));
        for call in std::mem::take(&mut self.todo) {
            let in_doubt = call.clone().any(|index| self.doubts.contains_key(&index));
            let latest = call.clone().filter_map(&opens).max();
            let Some(latest) = latest else {
                self.todo.push_back(call);
                continue;
            };
            let (closed, open): (Vec<_>, Vec<_>) =
                call.partition(|index| in_doubt || opens(*index).is_some());
            let first = closed.iter().filter_map(|index| opens(*index)).min();
            let opens_ms = if in_doubt { Some(latest) } else { first };
            let earliest = [self.opens_ms, opens_ms].into_iter().flatten().min();
            self.opens_ms = earliest;
            self.put_off.extend(&closed);
            self.leave(closed);
            self.todo.extend(contiguous(&open));
        }
        self.due = all_due;
    }

    /// Whether recipients wait longer than the slice for their next attempt.
    pub fn any_due_later(&self) -> bool {
        !self.due.is_empty()
    }

    /// If recipients are left that wait for a time of their own, the remainder comes back at the
    /// first of these times, and those that are retried later wait until then by themselves. Returns
    /// whether it does.
    pub fn wait_for_hours(&mut self, now_ms: u64) -> bool {
        self.due.retain(|index, _| self.put_off.contains(index));
        let Some(opens_ms) = self.opens_ms else {
            return false;
        };
        let opens_in = Duration::from_millis(opens_ms.saturating_sub(now_ms));
        let left = self.all(Place::Left);
        let retried: Vec<_> = left.filter(|it| !self.put_off.contains(it)).collect();
        if !retried.is_empty() && self.delay <= opens_in {
            return false;
        }
        let due_ms = now_ms + rung(self.delay).as_millis() as u64;
        self.due
            .extend(retried.into_iter().map(|index| (index, due_ms)));
        self.delay = opens_in;
        true
    }

    // --- Claim -------------------------------------------------------------------------------

    /// Chooses the next calls to claim: at most `calls` calls with at most `recipients` together;
    /// the last call is split if necessary. Returns the number of their recipients.
    pub fn pick(&mut self, calls: usize, recipients: usize) -> usize {
        let mut room = recipients.max(1);
        while room > 0
            && self.picked.len() < calls.max(1)
            && let Some(call) = self.todo.pop_front()
        {
            let end = call.end.min(call.start + room);
            if end < call.end {
                self.todo.push_front(end..call.end);
            }
            room -= end - call.start;
            self.places[call.start..end].fill(Place::Picked);
            self.picked.push(call.start..end);
        }
        self.picked.iter().map(Range::len).sum()
    }

    /// The recipients to claim, in the order of the answers to [`Delivery::claimed`].
    pub fn picked(&self) -> impl Iterator<Item = usize> {
        self.picked.iter().cloned().flatten()
    }

    /// The claim got no answer: its recipients wait as before.
    pub fn unpick(&mut self) {
        for call in std::mem::take(&mut self.picked).into_iter().rev() {
            self.places[call.clone()].fill(Place::Todo);
            self.todo.push_front(call);
        }
    }

    /// The picked recipients that are in doubt according to the ledger and for which we know no
    /// reason.
    pub fn unexplained(&self, states: &[ClaimState]) -> Vec<usize> {
        let doubted =
            |state: &ClaimState| matches!(state, ClaimState::TakenOver | ClaimState::InDoubt);
        self.picked()
            .zip(states)
            .filter(|(index, state)| doubted(state) && !self.doubts.contains_key(index))
            .map(|(index, _)| index)
            .collect()
    }

    /// Takes the answer to the claim of the picked recipients and returns the calls that may be
    /// made.
    ///
    /// `over`: the outcome of all recipients without one, if nothing may be sent any more. `asks`:
    /// whether the target can be asked about an earlier call for this recipient. `why`: the reason
    /// for a doubt, from elsewhere.
    pub fn claimed(
        &mut self,
        states: &[ClaimState],
        over: Option<Outcome>,
        rules: Rules,
        asks: impl Fn(usize) -> bool,
        why: impl Fn(usize) -> TargetAnswer,
    ) -> Claimed {
        let mut claimed = Claimed::default();
        let mut states = states.iter();
        // These claims are held again, so they must not be released.
        let places = &self.places;
        self.release.retain(|index| places[*index] != Place::Picked);
        for range in std::mem::take(&mut self.picked) {
            let (mut members, mut held) = (Vec::with_capacity(range.len()), Vec::new());
            let mut any_in_doubt = false;
            for index in range {
                // Without an answer the recipient is left for later.
                let missing = ClaimState::Held {
                    left: Duration::ZERO,
                };
                let state = states.next().copied().unwrap_or(missing);
                match state {
                    ClaimState::Settled(_) => {
                        self.places[index] = Place::Ended;
                        self.doubts.remove(&index);
                        self.ended.add(1, 1);
                        continue;
                    }
                    ClaimState::Held { left } => {
                        self.places[index] = Place::Left;
                        self.delay = self.delay.max(left);
                        held.push(index);
                        continue;
                    }
                    ClaimState::Granted | ClaimState::InDoubt | ClaimState::TakenOver => {}
                }
                let is_granted = state == ClaimState::Granted;
                let strange = !is_granted && rules.two_targets && !self.doubts.contains_key(&index);
                if !is_granted {
                    self.doubts.entry(index).or_insert_with(|| why(index));
                }
                let in_doubt = self.doubts.contains_key(&index);
                let asked = over.is_none() && in_doubt && !strange && asks(index);
                if let (Some(outcome), false) = (over, in_doubt) {
                    self.knows(index, outcome);
                    continue;
                }
                if in_doubt && !asked {
                    claimed.uncertain += u64::from(state == ClaimState::TakenOver);
                    let retries = !strange && rules.on_uncertain == OnUncertain::Retry;
                    if over.is_some() || !retries {
                        let doubt = self.doubts[&index].clone();
                        let answer = match over {
                            Some(Outcome::Expired) => doubt.then("the job expired"),
                            Some(_) => doubt.then("the job was cancelled"),
                            None => doubt,
                        };
                        self.end_uncertain(index, answer, rules);
                        continue;
                    }
                }
                self.places[index] = Place::Out;
                any_in_doubt |= in_doubt;
                members.push(index);
            }
            if !held.is_empty() {
                self.left.push(held);
            }
            if !members.is_empty() {
                claimed.calls.push(Call {
                    members,
                    in_doubt: any_in_doubt,
                });
            }
        }
        claimed
    }

    // --- Answers -----------------------------------------------------------------------------

    /// Undoes a claimed call that is not made: its recipients are as before.
    pub fn not_made(&mut self, call: &Call) {
        self.release.extend(&call.members);
        self.again_at_once(&call.members);
    }

    /// Ends these recipients of a call that is not made yet: they have reached their frequency cap.
    /// A recipient with a call in doubt ends uncertain, since it may have got the message.
    pub fn capped(&mut self, capped: &[usize], rules: Rules) {
        for index in capped.iter().copied() {
            match self.doubts.get(&index) {
                Some(doubt) => {
                    let answer = doubt.then("no further attempt, because of the frequency cap");
                    self.end_uncertain(index, answer, rules);
                }
                None => self.knows(index, Outcome::Capped),
            }
        }
    }

    /// Fails a recipient for which no call can be made, now or later.
    pub fn refused(&mut self, index: usize, answer: TargetAnswer, rules: Rules) {
        let attempts = self.attempts[index];
        self.fail(index, answer, attempts, rules);
    }

    /// Sorts the recipients of a call by the verdict. `cleared`: the target says that no earlier
    /// call was carried out. `delay`: how long to wait after this many attempts.
    pub fn answered(
        &mut self,
        call: &Call,
        verdict: &Verdict,
        cleared: bool,
        rules: Rules,
        delay: impl Fn(u32) -> Duration,
    ) -> Answered {
        let mut answered = Answered::default();
        let (mut again, mut waiting, mut smaller) = (Vec::new(), Vec::new(), Vec::new());
        for (position, index) in call.members.iter().copied().enumerate() {
            let answer = verdict.of(position);
            let attempt = self.attempts[index].saturating_add(1);
            if cleared {
                self.doubts.remove(&index);
            }
            answered.uncertain += u64::from(answer.class == Class::Uncertain);
            if answer.split && call.members.len() > 1 {
                self.release.push(index);
                smaller.push(index);
                continue;
            }
            match answer.next(attempt, rules.attempts_max, rules.on_uncertain) {
                Next::Settle => {
                    self.doubts.remove(&index);
                    let id = answer.message.as_deref();
                    self.ids.extend(id.map(|id| (index, id.clone())));
                    self.knows(index, Outcome::Sent);
                }
                Next::Drop => self.knows(index, Outcome::Uncertain),
                Next::Fail => self.fail(index, answer.clone(), attempt, rules),
                Next::Hold => {
                    self.attempts[index] = attempt;
                    self.bury(index, Outcome::Uncertain, answer.clone());
                }
                Next::Retry if self.retries >= rules.retries_max => {
                    answered.unretried += 1;
                    self.not_retried(index, answer, attempt, rules);
                }
                Next::Retry => {
                    self.retries += 1;
                    if answer.class == Class::Uncertain {
                        self.doubts.insert(index, answer.clone());
                    }
                    self.attempts[index] = attempt;
                    self.delay = self.delay.max(delay(attempt));
                    self.release.push(index);
                    again.push(index);
                }
                Next::Wait => {
                    self.release.push(index);
                    waiting.push(index);
                }
            }
        }
        answered.retries = again.len() as u64;
        self.leave(again);
        self.call_in_smaller(&smaller, call.members.len());
        if waiting.len() == call.members.len() {
            self.again_at_once(&waiting);
        } else if !waiting.is_empty() {
            // The rest of the call succeeded or failed, so these wait by themselves.
            self.delay = self.delay.max(delay(1));
            self.leave(waiting);
        }
        answered
    }

    /// Puts recipients back to be called at once in smaller calls. If the call as a whole was
    /// refused, the calls are halves, which finds the recipient that caused it in few calls. If the
    /// answer named some recipients, each gets a call of its own. Nothing was carried out for them,
    /// so no attempt is spent.
    fn call_in_smaller(&mut self, smaller: &[usize], of: usize) {
        if smaller.len() == of {
            let (first, second) = smaller.split_at(smaller.len() / 2);
            self.again_at_once(second);
            self.again_at_once(first);
        } else {
            smaller
                .chunks(1)
                .rev()
                .for_each(|one| self.again_at_once(one));
        }
    }

    fn again_at_once(&mut self, members: &[usize]) {
        for range in contiguous(members).into_iter().rev() {
            self.places[range.clone()].fill(Place::Todo);
            self.todo.push_front(range);
        }
    }

    fn leave(&mut self, members: Vec<usize>) {
        if members.is_empty() {
            return;
        }
        for index in &members {
            self.places[*index] = Place::Left;
        }
        self.left.push(members);
    }

    fn knows(&mut self, index: usize, outcome: Outcome) {
        self.places[index] = Place::Known;
        self.known.push((index, outcome));
    }

    /// The recipient is refused permanently. After a call in doubt, that says nothing about the
    /// earlier call.
    fn fail(&mut self, index: usize, answer: TargetAnswer, attempts: u32, rules: Rules) {
        self.attempts[index] = attempts;
        match self.doubts.get(&index) {
            Some(doubt) => {
                let answer = doubt.then(&format!("{}: {}", answer.code, answer.text));
                self.end_uncertain(index, answer, rules);
            }
            None if rules.falls_on.takes(answer.class) => {
                self.release.push(index);
                self.places[index] = Place::Refused;
                self.refused.push((index, answer));
            }
            None => {
                // Free until its dead letter is written: at worst, one more refused call is made.
                self.release.push(index);
                self.bury(index, Outcome::Failed, answer);
            }
        }
    }

    /// The recipient is not retried, because the slice has no retries left.
    fn not_retried(&mut self, index: usize, answer: &TargetAnswer, attempts: u32, rules: Rules) {
        let cause = format!(
            "the retry budget of the job is spent after {} retries",
            self.retries
        );
        if answer.class == Class::Uncertain {
            self.attempts[index] = attempts;
            self.bury(index, Outcome::Uncertain, answer.then(&cause));
            return;
        }
        let text = format!(
            "{cause}; the last answer was {}: {}",
            answer.code, answer.text
        );
        let answer = TargetAnswer::new(Class::Transient, RETRY_BUDGET, text);
        self.fail(index, answer, attempts, rules);
    }

    /// The doubt cannot be resolved. The recipient stays claimed until that is recorded, so that no
    /// other delivery sends to it.
    fn end_uncertain(&mut self, index: usize, answer: TargetAnswer, rules: Rules) {
        match rules.on_uncertain {
            OnUncertain::Drop => self.knows(index, Outcome::Uncertain),
            OnUncertain::Retry | OnUncertain::Hold => {
                self.bury(index, Outcome::Uncertain, answer);
            }
        }
    }

    fn bury(&mut self, index: usize, outcome: Outcome, answer: TargetAnswer) {
        self.places[index] = Place::Dead;
        self.dead.push(Dead {
            index,
            outcome,
            answer,
            attempts: self.attempts[index],
        });
    }

    // --- Record ------------------------------------------------------------------------------

    /// The next records for the ledger. They stay here until [`Delivery::recorded`].
    pub fn batch(&self) -> Batch {
        let (doubted, release) = self
            .release
            .iter()
            .partition(|index| self.doubts.contains_key(index));
        let open = |place: &Place| !matches!(place, Place::Known | Place::Ended);
        let last = self.missing == 0
            && self.unrecorded.is_empty()
            && self.refused_before.is_empty()
            && !self.places.iter().any(open);
        Batch {
            outcomes: self.known.clone(),
            ids: self.ids.clone(),
            release,
            doubted,
            last: last.then_some(self.ended.repeats),
        }
    }

    /// The ledger has taken the batch. `stood` of its outcomes were there before: these are
    /// repeats.
    pub fn recorded(&mut self, stood: u32) {
        self.release.clear();
        self.ids.clear();
        let known = std::mem::take(&mut self.known);
        self.ended.add(known.len() as u32, stood);
        for (index, _) in known {
            self.places[index] = Place::Ended;
            self.doubts.remove(&index);
        }
    }

    /// The outcomes that earlier deliveries know and the ledger lacks. They are recorded first.
    pub fn unrecorded(&self) -> &Unrecorded {
        &self.unrecorded
    }

    /// The ledger has taken them. `stood` of these outcomes were there before.
    pub fn caught_up(&mut self, stood: u32) {
        let unrecorded = std::mem::take(&mut self.unrecorded);
        self.ended.add(unrecorded.entries(), stood);
    }

    /// The number of recipients whose outcome the ledger lacks.
    pub fn unrecorded_outcomes(&self) -> usize {
        self.known.len()
    }

    /// Recipients to dead-letter whose claim was released when they were refused. Another slice of
    /// the job may have called them meanwhile.
    pub fn refused_and_free(&self) -> Vec<usize> {
        let failed = |dead: &&Dead| dead.outcome == Outcome::Failed;
        self.dead
            .iter()
            .filter(failed)
            .map(|dead| dead.index)
            .collect()
    }

    /// Takes the answer to a claim of these, which the worker makes before it writes their letters.
    /// A granted recipient is refused as before. A recipient that another owner holds or left in
    /// doubt gets no letter from us: a later delivery decides. In a job with two targets, such a
    /// doubt stays. `why`: the reason for it.
    pub fn regained(
        &mut self,
        asked: &[usize],
        states: &[ClaimState],
        rules: Rules,
        why: impl Fn() -> TargetAnswer,
    ) {
        for (index, state) in asked.iter().copied().zip(states) {
            match state {
                ClaimState::Granted => continue,
                ClaimState::Settled(_) => {
                    self.places[index] = Place::Ended;
                    self.ended.add(1, 1);
                }
                ClaimState::Held { left } => {
                    self.delay = self.delay.max(*left);
                    self.leave(vec![index]);
                }
                ClaimState::InDoubt | ClaimState::TakenOver if rules.two_targets => {
                    self.dead.retain(|dead| dead.index != index);
                    self.doubts.insert(index, why());
                    self.end_uncertain(index, why(), rules);
                    continue;
                }
                ClaimState::InDoubt | ClaimState::TakenOver => {
                    self.doubts.insert(index, why());
                    self.release.push(index);
                    self.leave(vec![index]);
                }
            }
            self.dead.retain(|dead| dead.index != index);
        }
    }

    /// The dead letters are durable: their recipients can be settled.
    pub fn lettered(&mut self) {
        for dead in std::mem::take(&mut self.dead) {
            self.knows(dead.index, dead.outcome);
        }
    }

    /// The ledger reports that every entry of the slice has its outcome.
    pub fn slice_is_done(&mut self) {
        let open = self.places.len() - self.count(Place::Ended);
        self.places.fill(Place::Ended);
        self.ended.add(open as u32, 0);
        self.todo.clear();
        self.picked.clear();
        self.left.clear();
        self.dead.clear();
        self.refused.clear();
        self.refused_before = ForFallback::default();
        self.known.clear();
        self.ids.clear();
        self.release.clear();
        self.doubts.clear();
    }

    // --- End ---------------------------------------------------------------------------------

    /// Ends the calls of this delivery; the remainder returns after `delay`. Recipients that wait
    /// for a time or a limit set it, and those to be retried wait as long.
    pub fn defer(&mut self, delay: Duration) {
        self.unpick();
        self.delay = delay;
    }

    /// Whether every recipient has an outcome in the ledger.
    pub fn leaves_nobody(&self) -> bool {
        self.unrecorded.is_empty()
            && self.refused_before.is_empty()
            && self.places.iter().all(|it| *it == Place::Ended)
    }

    /// What the first target of the job said about a recipient at the second one.
    pub fn remark(&self, index: usize) -> Option<&TargetAnswer> {
        self.remarks.get(&index)
    }
}

/// Merges ascending positions into ranges.
fn contiguous(positions: &[usize]) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for position in positions.iter().copied() {
        match ranges.last_mut() {
            Some(last) if last.end == position => last.end += 1,
            _ => ranges.push(position..position + 1),
        }
    }
    ranges
}

#[cfg(test)]
pub(super) mod tests;
