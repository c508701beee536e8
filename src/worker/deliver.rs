//! Delivers one slice, from its first byte to the reason for its ack.
//!
//! A slice is worked off in windows: wait for the limits, claim a window of recipients, call the
//! target for them, settle what came back. Only a window's recipients are ever claimed, so a worker
//! that is killed leaves in doubt at most the calls it had in flight (promise 4). Waiting happens
//! before the claim and costs nothing but the slice's place.
//!
//! What a recipient's answer leads to is decided in `domain::outcome::next`:
//! - settled: recorded at the end of the window;
//! - to be dead-lettered: `failed` ones are released and recorded only after the dead letter is
//!   confirmed, so a crash in between repeats a refused call, never loses a letter; `uncertain` ones
//!   stay claimed meanwhile, so that nobody sends to them;
//! - to be retried: released, and part of the remainder that goes on the ladder.
//!
//! A delivery leaves at most one remainder, published and confirmed before the ack. Therefore, when a
//! delivery has an outcome for all its recipients, the whole slice has, and what the slice did not
//! count itself were duplicates.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;

use super::call::{Caller, lost};
use super::context::{Halted, Store, TargetRuntime, chain, now_ms, rfc3339};
use super::enumerate::enumerate;
use super::shift::Shift;
use super::together::{self, Turn};
use crate::domain::announce::{DeadLetter, DeadRecipient};
use crate::domain::directive::{Board, Go, Order};
use crate::domain::fields::{Problem, summary};
use crate::domain::ids::{Fingerprint, Fingerprinter, Owner};
use crate::domain::limits::{Cost, Grant, Rate};
use crate::domain::outcome::{Answer, Class, Next, OnUncertain, Outcome, Verdict};
use crate::domain::personal::Personal;
use crate::domain::schedule::{LOOK_AGAIN_MAX, look_again, rung};
use crate::domain::slice::{Addressed, CallGroup, SLICE_VERSION, Slice};
use crate::metrics::LedgerStep;
use crate::ports::{
    Calls, Claim, ClaimState, Claimed, Lease, Limit, Lost, Outgoing, Publisher, Reason, Route,
    Scope, Settle, SliceRef, Standing, Transport,
};

/// Longest wait for a limit or a parked target inside a delivery; a longer one goes on the ladder.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(1);

/// How long a slice of a newer version is left to newer workers.
const NEWER_WAIT: Duration = Duration::from_secs(5);

/// How the delivery of a slice is to be ended.
#[derive(Debug)]
pub(super) enum Fate {
    /// Every recipient has its outcome: ack.
    Done,
    /// The rest is published: ack.
    PutOff,
    /// The session is gone: nothing can be acked.
    Lost,
    Reject(String),
}

/// Works on one slice.
pub(super) async fn deliver<S: Store, T: Transport, P: Publisher>(
    shift: &Shift<S, T, P>,
    body: Bytes,
    traceparent: Option<String>,
) -> Fate {
    let slice: Slice = match serde_json::from_slice(&body) {
        Ok(slice) => slice,
        Err(error) => return unreadable(shift, body, traceparent, &error).await,
    };
    let Some(target) = shift.context.targets.get(&slice.head.target) else {
        return Fate::Reject(format!("there is no target {:?} here", slice.head.target));
    };
    if let Some(asking) = &slice.enumeration {
        let fate = enumerate(shift, target, &slice, asking, traceparent).await;
        return fate.unwrap_or(Fate::Lost);
    }
    let personal = match Personal::of(&slice.head) {
        Ok(personal) => personal,
        Err(problems) => return Fate::Reject(summary(&problems)),
    };
    let fate = Work::new(shift, Arc::clone(target), slice, personal, traceparent)
        .run()
        .await;
    fate.unwrap_or(Fate::Lost)
}

/// A slice of a newer version waits for a newer worker; anything else is no slice.
async fn unreadable<S: Store, T, P: Publisher>(
    shift: &Shift<S, T, P>,
    body: Bytes,
    traceparent: Option<String>,
    error: &serde_json::Error,
) -> Fate {
    #[derive(serde::Deserialize)]
    struct Version {
        v: u32,
        lane: String,
    }
    let newer = serde_json::from_slice::<Version>(&body)
        .ok()
        .filter(|it| it.v > SLICE_VERSION);
    let Some(Version { lane, v }) = newer else {
        return Fate::Reject(format!("not a slice: {error}"));
    };
    tracing::warn!(
        slice.version = v,
        "a slice of a newer version is left to newer workers"
    );
    let route = Route::Wait {
        lane,
        rung: rung(NEWER_WAIT),
    };
    let message = Outgoing {
        route,
        body,
        message_id: format!("newer-{v}"),
        traceparent,
    };
    match shift.publish(vec![message]).await {
        Ok(()) => Fate::PutOff,
        Err(Lost) => Fate::Lost,
    }
}

/// Why no further window is started.
enum Pause {
    /// The ledger says that every entry of the slice has its outcome.
    SliceDone,
    /// The rest waits for so long; zero means the end of the lane.
    PutOff(Duration),
    Lost,
}

impl From<Lost> for Pause {
    fn from(Lost: Lost) -> Self {
        Self::Lost
    }
}

struct Work<'a, S, T, P> {
    shift: &'a Shift<S, T, P>,
    target: Arc<TargetRuntime>,
    slice: Slice,
    calls: Box<dyn Calls>,
    /// Every recipient gets a message, and so a call, of its own.
    personal: Option<Personal>,
    per_call: usize,
    fingerprints: Vec<Fingerprint>,
    /// The job id as text, the name of the job's own limit.
    job: String,
    /// Configured limits of the target, the app and the job.
    rates: [Option<Rate>; 3],
    /// Changes whenever a directive does.
    directives: watch::Receiver<Board>,
    /// What directives say to this slice, as of the window that is worked on.
    order: Order,
    fail_open: bool,
    on_uncertain: OnUncertain,
    traceparent: Option<String>,
    owner: Owner,
    began: Instant,
    first_attempt_at_ms: Option<u64>,
    /// Recipients to call, cut into calls, in order.
    todo: VecDeque<Range<usize>>,
    /// Recipients that go on in a remainder.
    left: Vec<CallGroup>,
    /// How long the remainder waits.
    delay: Duration,
    /// Recipients to dead-letter at the end.
    dead: Vec<(usize, DeadRecipient)>,
    standing: Option<Standing>,
    /// The last settle said that the slice is complete.
    closed: bool,
}

/// The recipients of one call that we hold the claim of.
struct PlannedCall {
    members: Vec<usize>,
    /// Some may have been sent to by a worker that ended.
    in_doubt: bool,
    /// How this one is made, where it is not as all others are.
    personal: Option<Box<dyn Calls>>,
}

/// What a window adds to the ledger.
#[derive(Default)]
struct Results {
    outcomes: Vec<(Fingerprint, Outcome)>,
    release: Vec<Fingerprint>,
}

impl<'a, S: Store, T: Transport, P: Publisher> Work<'a, S, T, P> {
    fn new(
        shift: &'a Shift<S, T, P>,
        target: Arc<TargetRuntime>,
        slice: Slice,
        personal: Option<Personal>,
        traceparent: Option<String>,
    ) -> Self {
        let context = &*shift.context;
        let fingerprinter = Fingerprinter::new(&context.settings.fingerprint_secret, slice.head.id);
        let app = context.apps.get(&slice.head.app);
        let job_rate = slice
            .head
            .rate
            .as_deref()
            .and_then(|rate| rate.parse().ok());
        let per_call = match personal {
            Some(_) => 1,
            None => target.recipients_per_call(&slice.head),
        };
        Self {
            calls: target.target.open(&slice.head),
            personal,
            per_call,
            fingerprints: slice
                .recipients
                .iter()
                .map(|id| fingerprinter.fingerprint(id))
                .collect(),
            job: slice.head.id.to_string(),
            rates: [target.limit, app.and_then(|app| app.limit), job_rate],
            directives: context.directives(),
            order: Order::default(),
            fail_open: app.is_some_and(|app| app.fail_open),
            on_uncertain: slice.head.on_uncertain.unwrap_or(target.on_uncertain),
            traceparent,
            owner: Owner(fastrand::u64(..)),
            began: Instant::now(),
            first_attempt_at_ms: slice.first_attempt_at_ms,
            todo: slice.call_ranges(per_call).into(),
            left: Vec::new(),
            delay: Duration::ZERO,
            dead: Vec::new(),
            standing: None,
            closed: false,
            shift,
            target,
            slice,
        }
    }

    async fn run(mut self) -> Result<Fate, Lost> {
        while !self.todo.is_empty() {
            match self.window().await {
                Ok(()) => {}
                Err(Pause::SliceDone) => {
                    // Whoever settled it may have died before the job was completed: the last step
                    // is taken again, which changes nothing if it was taken.
                    self.todo.clear();
                    self.left.clear();
                    self.dead.clear();
                    self.record(&Results::default(), true).await?;
                    break;
                }
                Err(Pause::Lost) => return Err(Lost),
                Err(Pause::PutOff(delay)) => {
                    self.put_off_todo(delay);
                    break;
                }
            }
        }
        self.close().await
    }

    /// One window: wait, claim, call, settle.
    async fn window(&mut self) -> Result<(), Pause> {
        self.order = self.ask_order();
        let mut over = self.over();
        self.check_time(over.is_some())?;
        if over.is_none() {
            over = self.given_up().await?;
        }
        let most = if over.is_some() {
            self.slice.recipients.len()
        } else {
            self.wait_while_parked().await?;
            match self.lease().await? {
                0 => return Ok(()),
                most => most,
            }
        };
        let picked = self.pick(most);
        let leased: usize = picked.iter().map(Range::len).sum();
        let (planned, mut results) = self.claim(picked, over.is_some()).await?;
        if let Some(outcome) = over {
            let members = planned.iter().flat_map(|call| &call.members);
            results
                .outcomes
                .extend(members.map(|index| (self.fingerprints[*index], outcome)));
        } else {
            let planned = self.fill_in(planned, &mut results);
            self.refund(leased, &planned).await;
            self.call(planned, &mut results).await;
        }
        self.settle(results).await
    }

    /// What directives say to this slice now.
    fn ask_order(&mut self) -> Order {
        let head = &self.slice.head;
        let board = self.directives.borrow_and_update();
        board.order([&head.target, &head.app, &self.job], now_ms())
    }

    /// Whether directives let a call of this window leave: asked before each one. As long as no
    /// directive has changed since the window began, that is the look at one number.
    fn may_leave(&self) -> bool {
        if !self.directives.has_changed().unwrap_or(false) {
            return true;
        }
        let head = &self.slice.head;
        let board = self.directives.borrow();
        let order = board.order([&head.target, &head.app, &self.job], now_ms());
        order.go == Go::On
    }

    /// How everybody without an outcome ends, if there is nothing to send any more.
    fn over(&self) -> Option<Outcome> {
        let expires_at = self.slice.head.expires_at_ms;
        if expires_at.is_some_and(|at| now_ms() >= at) {
            Some(Outcome::Expired)
        } else {
            (self.order.go == Go::Cancelled).then_some(Outcome::Cancelled)
        }
    }

    /// Whether this delivery may go on with the slice now; what is over need not wait for its time.
    fn check_time(&self, over: bool) -> Result<(), Pause> {
        if self.shift.lost.is_cancelled() {
            return Err(Pause::Lost);
        }
        if self.shift.halt.is_cancelled() || self.began.elapsed() > self.budget() {
            return Err(Pause::PutOff(Duration::ZERO));
        }
        if over {
            return Ok(());
        }
        if let Go::Wait(wait) = self.order.go {
            return Err(Pause::PutOff(wait));
        }
        let now = now_ms();
        match self.slice.head.not_before_ms {
            Some(at) if at > now => Err(Pause::PutOff(Duration::from_millis(at - now))),
            _ => Ok(()),
        }
    }

    /// A list that travels in parts waits until all of them are there; one that was given up in between
    /// is cancelled.
    async fn given_up(&mut self) -> Result<Option<Outcome>, Pause> {
        let Some(part) = &self.slice.together else {
            return Ok(None);
        };
        match together::turn(self.shift, &self.slice.head, part).await {
            Ok(Turn::Go) => {
                self.slice.together = None;
                Ok(None)
            }
            Ok(Turn::Wait(wait)) => Err(Pause::PutOff(wait)),
            Ok(Turn::Cancel) => Ok(Some(Outcome::Cancelled)),
            Err(Halted) => Err(Pause::PutOff(Duration::ZERO)),
        }
    }

    fn budget(&self) -> Duration {
        self.shift.context.settings.slice_budget
    }

    async fn wait_while_parked(&self) -> Result<(), Pause> {
        while let Some(park) = self.shift.context.park_of(&self.target.name) {
            let now = now_ms();
            let left = Duration::from_millis(park.until_ms.saturating_sub(now));
            if left > WAIT_MAX {
                // It may be unparked before its time.
                let lasted = Duration::from_millis(now.saturating_sub(park.since_ms));
                return Err(Pause::PutOff(left.min(look_again(lasted))));
            }
            self.sleep(left).await?;
        }
        Ok(())
    }

    /// Sleeps unless the shift ends.
    async fn sleep(&self, wait: Duration) -> Result<(), Pause> {
        tokio::select! {
            biased;
            () = self.shift.halt.cancelled() => Err(Pause::PutOff(Duration::ZERO)),
            () = tokio::time::sleep(wait) => Ok(()),
        }
    }

    /// Sleeps unless the shift ends or a directive changes.
    async fn sleep_until_told(&self, wait: Duration) -> Result<(), Pause> {
        let mut directives = self.directives.clone();
        tokio::select! {
            slept = self.sleep(wait) => slept,
            _ = directives.changed() => Ok(()),
        }
    }

    // --- Limits ------------------------------------------------------------------------------

    fn limits(&self) -> impl Iterator<Item = Limit<'_>> {
        let head = &self.slice.head;
        let names = [
            (Scope::Target, head.target.as_str()),
            (Scope::App, head.app.as_str()),
            (Scope::Job, self.job.as_str()),
        ];
        self.rates
            .iter()
            .zip(self.order.rates)
            .zip(names)
            .filter_map(|((configured, live), (scope, name))| {
                let rate = live.or(*configured)?;
                let default = if scope == Scope::Target {
                    Cost::PerCall
                } else {
                    Cost::PerRecipient
                };
                Some(Limit {
                    scope,
                    name,
                    rate,
                    cost: rate.cost.unwrap_or(default),
                })
            })
    }

    /// Waits until some recipients may be sent to; how many, at most a window. None after a wait that
    /// was long enough to look at everything again.
    async fn lease(&self) -> Result<usize, Pause> {
        let per_call = self.per_call;
        let window = self.target.window_calls.saturating_mul(per_call);
        let limits: Vec<_> = self.limits().collect();
        if limits.is_empty() {
            return Ok(window);
        }
        let waiting: usize = self.todo.iter().map(Range::len).sum();
        let want = limits.iter().fold(window.min(waiting), |want, limit| {
            want.min(worth(limit, per_call as u32, want as u32) as usize)
        });
        // A call is filled even when that takes more than a lease is worth.
        let want = want.max(per_call.min(waiting)) as u32;
        let lease = Lease {
            limits: &limits,
            recipients: want,
            per_call: per_call as u32,
            wait_max: WAIT_MAX,
        };
        let context = &*self.shift.context;
        let halted = self.shift.halt.cancelled();
        let leased = context
            .step(LedgerStep::Lease, halted, || context.store.lease(&lease))
            .await
            .map_err(|_| Pause::PutOff(Duration::ZERO))?;
        let (units, after) = match leased.grant {
            Grant::Units { units, after } => (units, after),
            Grant::Later { after } => (0, after),
        };
        for limit in &limits {
            let limited = Some(limit.scope) == leased.binding && !after.is_zero();
            context.metrics.throttled(limit.scope, limited);
        }
        if units > 0 {
            context.metrics.throttle_wait(after);
            if self.sleep(after).await.is_err() {
                self.give_back_units(units, units.div_ceil(per_call as u32))
                    .await;
                return Err(Pause::PutOff(Duration::ZERO));
            }
            return Ok(units as usize);
        }
        // A target that is too slow for us is too slow for the whole lane, which may as well wait
        // here. A slow app or job steps aside for the others of its lane, and looks now and then
        // whether it is to go faster.
        if leased.binding != Some(Scope::Target) {
            return Err(Pause::PutOff(after.min(LOOK_AGAIN_MAX)));
        }
        self.sleep_until_told(after).await?;
        Ok(0)
    }

    /// Returns what was leased for recipients that turned out to need no call.
    async fn refund(&self, leased: usize, planned: &[PlannedCall]) {
        let used: usize = planned.iter().map(|call| call.members.len()).sum();
        if used == leased {
            return;
        }
        let calls = leased.div_ceil(self.per_call).saturating_sub(planned.len());
        self.give_back_units((leased - used) as u32, calls as u32)
            .await;
    }

    async fn give_back_units(&self, recipients: u32, calls: u32) {
        let limits: Vec<_> = self.limits().collect();
        if limits.is_empty() {
            return;
        }
        let store = &self.shift.context.store;
        // Not repeated: units that are not given back make us slower than allowed, never faster.
        let refund = store.refund(&limits, recipients, calls);
        let _ = self.shift.context.try_step(LedgerStep::Lease, refund).await;
    }

    /// Takes calls of at most `most` recipients from the front, splitting the last one if it must.
    fn pick(&mut self, most: usize) -> Vec<Range<usize>> {
        let mut picked = Vec::new();
        let mut left = most.max(1);
        while left > 0
            && let Some(call) = self.todo.pop_front()
        {
            if call.len() > left {
                self.todo.push_front(call.start + left..call.end);
                picked.push(call.start..call.start + left);
                break;
            }
            left -= call.len();
            picked.push(call);
        }
        picked
    }

    // --- Claim -------------------------------------------------------------------------------

    fn slice_ref(&self) -> SliceRef<'_> {
        SliceRef {
            head: &self.slice.head,
            id: &self.slice.id,
            entries: self.slice.entries,
            shape: self.slice.shape,
        }
    }

    /// Claims the picked recipients: the calls that may be made, and what is decided already. Nobody
    /// of a slice that is `over` is sent to.
    async fn claim(
        &mut self,
        picked: Vec<Range<usize>>,
        over: bool,
    ) -> Result<(Vec<PlannedCall>, Results), Pause> {
        let recipients: Vec<Fingerprint> = picked
            .iter()
            .flat_map(|call| &self.fingerprints[call.clone()])
            .copied()
            .collect();
        let states = match self.claim_states(&recipients).await? {
            Claimed::SliceDone => return Err(Pause::SliceDone),
            Claimed::Each(states) => states,
        };
        self.count_claims(&states);
        let mut results = Results::default();
        let mut planned = Vec::with_capacity(picked.len());
        let mut states = states.into_iter();
        for range in picked {
            let mut members = Vec::with_capacity(range.len());
            let mut held: CallGroup = Vec::new();
            let mut in_doubt = false;
            for (index, state) in range.zip(&mut states) {
                match state {
                    ClaimState::Granted => members.push(index),
                    ClaimState::TakenOver => {
                        if self.takes_over(index, over, &mut results) {
                            members.push(index);
                            in_doubt = true;
                        }
                    }
                    ClaimState::Held { left } => {
                        self.delay = self.delay.max(left);
                        held.push((index, self.slice.attempts_of(index)));
                    }
                    ClaimState::Settled(_) => {}
                }
            }
            if !held.is_empty() {
                self.left.push(held);
            }
            if !members.is_empty() {
                planned.push(PlannedCall {
                    members,
                    in_doubt,
                    personal: None,
                });
            }
        }
        Ok((planned, results))
    }

    async fn claim_states(&self, recipients: &[Fingerprint]) -> Result<Claimed, Pause> {
        let context = &*self.shift.context;
        let claim = Claim {
            slice: self.slice_ref(),
            owner: self.owner,
            lease: context.settings.lease,
            recipients,
        };
        if self.fail_open {
            let claimed = context
                .try_step(LedgerStep::Claim, context.store.claim(claim))
                .await;
            return Ok(claimed.unwrap_or_else(|_| {
                self.target
                    .metrics
                    .unguarded
                    .inc_by(recipients.len() as u64);
                Claimed::Each(vec![ClaimState::Granted; recipients.len()])
            }));
        }
        let halted = self.shift.halt.cancelled();
        context
            .step(LedgerStep::Claim, halted, || context.store.claim(claim))
            .await
            .map_err(|_| Pause::PutOff(Duration::ZERO))
    }

    /// Somebody else's claim ran out without an outcome: perhaps sent, so the policy decides.
    /// Returns whether to send.
    fn takes_over(&mut self, index: usize, over: bool, results: &mut Results) -> bool {
        let attempt = self.slice.attempts_of(index) + 1;
        let recipient = [self.slice.recipients[index].as_str()];
        if !over && self.calls.probe(&recipient).is_some() {
            // The target is asked before anybody decides.
            return true;
        }
        let policy = match self.on_uncertain {
            // Too late to send again, and not known to have failed.
            OnUncertain::Retry if over => OnUncertain::Hold,
            policy => policy,
        };
        self.shift
            .context
            .metrics
            .uncertain(&self.target.name, policy, 1);
        match policy {
            OnUncertain::Retry => true,
            OnUncertain::Hold => {
                self.dead.push((
                    index,
                    self.dead_recipient(index, Outcome::Uncertain, &lost(), attempt),
                ));
                false
            }
            OnUncertain::Drop => {
                results
                    .outcomes
                    .push((self.fingerprints[index], Outcome::Uncertain));
                false
            }
        }
    }

    fn count_claims(&self, states: &[ClaimState]) {
        let mut counts = [0; 4];
        for state in states {
            let slot = match state {
                ClaimState::Granted => 0,
                ClaimState::TakenOver => 1,
                ClaimState::Held { .. } => 2,
                ClaimState::Settled(_) => 3,
            };
            counts[slot] += 1;
        }
        for (state, count) in ["granted", "taken_over", "held", "settled"]
            .into_iter()
            .zip(counts)
        {
            self.shift.context.metrics.claims(state, count);
        }
    }

    // --- Call --------------------------------------------------------------------------------

    /// Fills in the texts of a personal job. Whom they cannot be filled in for fails without a call:
    /// nothing was ever sent there, and no later attempt says anything else.
    fn fill_in(&mut self, planned: Vec<PlannedCall>, results: &mut Results) -> Vec<PlannedCall> {
        let Some(personal) = &self.personal else {
            return planned;
        };
        let mut filled = Vec::with_capacity(planned.len());
        let one_each = planned
            .iter()
            .flat_map(|call| call.members.iter().map(|index| (*index, call.in_doubt)));
        for (index, in_doubt) in one_each {
            match self.open_for(personal, index) {
                Ok(calls) => filled.push(PlannedCall {
                    members: vec![index],
                    in_doubt,
                    personal: Some(calls),
                }),
                Err(problem) => {
                    let answer = Answer::new(Class::Permanent, "template", problem.to_string());
                    let attempts = self.slice.attempts_of(index);
                    let dead = self.dead_recipient(index, Outcome::Failed, &answer, attempts);
                    results.release.push(self.fingerprints[index]);
                    self.dead.push((index, dead));
                }
            }
        }
        filled
    }

    /// The call of one recipient of a personal job, within the limits of the target.
    fn open_for(&self, personal: &Personal, index: usize) -> Result<Box<dyn Calls>, Problem> {
        let head = personal.render(self.slice.vars_of(index))?;
        let target = &*self.target.target;
        match target.check(&head).into_iter().next() {
            Some(problem) => Err(problem),
            None => Ok(target.open(&head)),
        }
    }

    /// Makes the calls of a window side by side and sorts their recipients by what comes back.
    async fn call(&mut self, planned: Vec<PlannedCall>, results: &mut Results) {
        if planned.is_empty() {
            return;
        }
        self.note_first_attempt();
        let held: Vec<Fingerprint> = planned
            .iter()
            .flat_map(|call| &call.members)
            .chain(self.dead.iter().map(|(index, _)| index))
            .map(|index| self.fingerprints[*index])
            .collect();
        let verdicts = {
            let mut in_flight: FuturesUnordered<_> = (0..)
                .zip(&planned)
                .map(|(number, call)| self.one_call(number, call))
                .collect();
            let mut verdicts: Vec<Option<Verdict>> = vec![None; planned.len()];
            let lease = self.shift.context.settings.lease;
            let mut renewal = tokio::time::interval(lease / 3);
            renewal.reset();
            while !in_flight.is_empty() {
                tokio::select! {
                    biased;
                    Some((number, verdict)) = in_flight.next() => verdicts[number] = verdict,
                    _ = renewal.tick() => self.renew(&held).await,
                }
            }
            verdicts
        };
        for (call, verdict) in planned.into_iter().zip(verdicts) {
            match verdict {
                Some(verdict) => self.sort(call, &verdict, results).await,
                None => self.hold_back(&call, results),
            }
        }
    }

    /// A call that was not made: its recipients are as they were before the window. What was leased for
    /// it is not given back, which makes us slower than allowed for a moment, never faster.
    fn hold_back(&mut self, call: &PlannedCall, results: &mut Results) {
        let members = call.members.iter();
        results
            .release
            .extend(members.map(|index| self.fingerprints[*index]));
        contiguous(&call.members)
            .into_iter()
            .rev()
            .for_each(|range| self.todo.push_front(range));
    }

    fn note_first_attempt(&mut self) {
        if self.first_attempt_at_ms.is_none() {
            let head = &self.slice.head;
            let due = head
                .accepted_at_ms
                .max(head.not_before_ms.unwrap_or_default());
            let delay = Duration::from_millis(now_ms().saturating_sub(due));
            self.shift.context.metrics.started(delay);
            self.first_attempt_at_ms = Some(now_ms());
        }
    }

    async fn renew(&self, held: &[Fingerprint]) {
        let context = &*self.shift.context;
        let renewal =
            context
                .store
                .renew(self.slice_ref(), self.owner, context.settings.lease, held);
        // Not repeated: the next tick comes before the lease ends, and the lease outlives the call.
        let _ = context.try_step(LedgerStep::Renew, renewal).await;
    }

    /// Makes a call, unless a directive holds it back.
    async fn one_call(&self, number: usize, call: &PlannedCall) -> (usize, Option<Verdict>) {
        let target = &*self.target;
        // Closed never: the semaphore lives as long as the target.
        let _permit = target.calls.acquire().await;
        if !self.may_leave() {
            return (number, None);
        }
        let one;
        let several;
        let recipients: &[&str] = if let [index] = call.members[..] {
            one = [self.slice.recipients[index].as_str()];
            &one
        } else {
            several = call
                .members
                .iter()
                .map(|index| self.slice.recipients[*index].as_str())
                .collect::<Vec<_>>();
            &several
        };
        let caller = Caller {
            target,
            transport: &self.shift.context.transport,
            traceparent: self.traceparent.as_deref(),
        };
        let started = Instant::now();
        let calls = call.personal.as_deref().unwrap_or(&*self.calls);
        let verdict = caller.call(calls, recipients, call.in_doubt).await;
        let took = started.elapsed();
        target.metrics.call(class_of(&verdict), took);
        (number, Some(verdict))
    }

    /// Decides what happens to each recipient of an answered call.
    async fn sort(&mut self, call: PlannedCall, verdict: &Verdict, results: &mut Results) {
        let attempts_max = self.shift.context.settings.attempts_max;
        let mut again: CallGroup = Vec::new();
        let mut waiting: Vec<usize> = Vec::new();
        let mut smaller: Vec<usize> = Vec::new();
        let mut uncertain = 0;
        for (position, index) in call.members.iter().copied().enumerate() {
            let answer = verdict.of(position);
            let fingerprint = self.fingerprints[index];
            let attempt = self.slice.attempts_of(index) + 1;
            uncertain += u64::from(answer.class == Class::Uncertain);
            if answer.split && call.members.len() > 1 {
                results.release.push(fingerprint);
                smaller.push(index);
                continue;
            }
            match answer.next(attempt, attempts_max, self.on_uncertain) {
                Next::Settle => results.outcomes.push((fingerprint, Outcome::Sent)),
                Next::Drop => results.outcomes.push((fingerprint, Outcome::Uncertain)),
                Next::Fail => {
                    results.release.push(fingerprint);
                    self.dead.push((
                        index,
                        self.dead_recipient(index, Outcome::Failed, answer, attempt),
                    ));
                }
                Next::Hold => {
                    self.dead.push((
                        index,
                        self.dead_recipient(index, Outcome::Uncertain, answer, attempt),
                    ));
                }
                Next::Retry => {
                    results.release.push(fingerprint);
                    self.delay = self
                        .delay
                        .max(self.shift.context.settings.retry.delay(attempt));
                    again.push((index, attempt));
                }
                Next::Wait => {
                    results.release.push(fingerprint);
                    waiting.push(index);
                }
            }
        }
        if uncertain > 0 {
            self.shift
                .context
                .metrics
                .uncertain(&self.target.name, self.on_uncertain, uncertain);
        }
        if !again.is_empty() {
            self.target.metrics.retries.inc_by(again.len() as u64);
            self.left.push(again);
        }
        self.call_in_smaller(&smaller, call.members.len());
        if waiting.len() == call.members.len() {
            contiguous(&waiting)
                .into_iter()
                .rev()
                .for_each(|range| self.todo.push_front(range));
        } else if !waiting.is_empty() {
            let group = waiting
                .iter()
                .map(|index| (*index, self.slice.attempts_of(*index)));
            self.left.push(group.collect());
        }
        let context = &*self.shift.context;
        let class = class_of(verdict);
        context.heed(&self.target, class, verdict.of(0)).await;
    }

    /// Puts recipients back to be called at once in smaller calls: halves when the call as a whole was
    /// refused, which finds the one who caused it in few calls; alone when some were named. Nothing was
    /// carried out for them, so no attempt is spent.
    fn call_in_smaller(&mut self, smaller: &[usize], of: usize) {
        let pieces: Vec<&[usize]> = if smaller.len() == of {
            let (first, second) = smaller.split_at(smaller.len() / 2);
            vec![first, second]
        } else {
            smaller.chunks(1).collect()
        };
        for piece in pieces.into_iter().rev() {
            for range in contiguous(piece).into_iter().rev() {
                self.todo.push_front(range);
            }
        }
    }

    // --- Settle ------------------------------------------------------------------------------

    /// Records a window. An outcome that is known must be recorded even while the session is lost or
    /// the process drains, so this outlasts both, until the claims would have ended anyway.
    async fn settle(&mut self, results: Results) -> Result<(), Pause> {
        let last = self.todo.is_empty() && self.left.is_empty() && self.dead.is_empty();
        if results.outcomes.is_empty() && results.release.is_empty() && !last {
            return Ok(());
        }
        self.record(&results, last).await?;
        Ok(())
    }

    async fn record(&mut self, results: &Results, last: bool) -> Result<(), Lost> {
        let context = &*self.shift.context;
        let settle = Settle {
            slice: self.slice_ref(),
            owner: self.owner,
            outcomes: &results.outcomes,
            release: &results.release,
            last,
        };
        let stop = async {
            self.shift.lost.cancelled().await;
            tokio::time::sleep(context.settings.lease).await;
        };
        let standing = if self.fail_open {
            context
                .try_step(LedgerStep::Settle, context.store.settle(settle))
                .await
                .ok()
        } else {
            let step = context.step(LedgerStep::Settle, stop, || context.store.settle(settle));
            Some(step.await.map_err(|_| Lost)?)
        };
        for outcome in Outcome::ALL {
            let count = results
                .outcomes
                .iter()
                .filter(|(_, found)| *found == outcome)
                .count();
            if count > 0 {
                self.target.metrics.recipients(outcome, count as u64);
            }
        }
        self.standing = standing.or(self.standing);
        self.closed = last;
        Ok(())
    }

    // --- End ---------------------------------------------------------------------------------

    fn put_off_todo(&mut self, delay: Duration) {
        // Those who wait for the clock or the limits decide when the slice comes back; who is to be
        // retried comes along.
        self.delay = delay;
        for range in std::mem::take(&mut self.todo) {
            let group = range
                .map(|index| (index, self.slice.attempts_of(index)))
                .collect();
            self.left.push(group);
        }
    }

    /// Makes everything durable that this delivery leads to, so that it can be acked.
    async fn close(mut self) -> Result<Fate, Lost> {
        if !self.dead.is_empty() {
            self.publish_dead().await?;
            self.explain().await;
        }
        let last = self.left.is_empty();
        if !self.dead.is_empty() || (last && !self.closed) {
            let outcomes = self
                .dead
                .iter()
                .map(|(index, dead)| (self.fingerprints[*index], dead.outcome))
                .collect();
            self.record(
                &Results {
                    outcomes,
                    release: Vec::new(),
                },
                last,
            )
            .await?;
        }
        if !last {
            self.shift.context.note_waiting(self.slice.head.id).await;
            let remainder = self.slice.remainder(&self.left, self.first_attempt_at_ms);
            let lane = self.slice.lane.clone();
            let route = if self.delay.is_zero() {
                Route::Lane(lane)
            } else {
                Route::Wait {
                    lane,
                    rung: rung(self.delay),
                }
            };
            let message = remainder.outgoing(route, self.traceparent.clone());
            self.shift.publish(vec![message]).await?;
        }
        if let Some(standing) = self.standing {
            self.shift.follow(&self.slice.head, standing).await?;
        }
        Ok(if last { Fate::Done } else { Fate::PutOff })
    }

    /// Keeps the reasons where they are found without walking over dead letters. The letters are what
    /// counts: not repeated when it fails.
    async fn explain(&self) {
        let context = &*self.shift.context;
        let reasons: Vec<_> = self
            .dead
            .iter()
            .map(|(index, dead)| (self.fingerprints[*index], Reason::from(dead)))
            .collect();
        let explain = context.store.explain(self.slice.head.id, &reasons);
        let _ = context.try_step(LedgerStep::Settle, explain).await;
    }

    fn dead_recipient(
        &self,
        index: usize,
        outcome: Outcome,
        answer: &Answer,
        attempts: u32,
    ) -> DeadRecipient {
        DeadRecipient {
            recipient: self.slice.recipients[index].clone(),
            vars: self.slice.vars_of(index).map(ToOwned::to_owned),
            outcome,
            class: answer.class,
            code: answer.code.clone(),
            text: answer.text.clone(),
            attempts,
        }
    }

    async fn publish_dead(&self) -> Result<(), Lost> {
        let head = &self.slice.head;
        let now = now_ms();
        let raw = |json: Result<Box<serde_json::value::RawValue>, _>| json.unwrap_or_default();
        let letter = DeadLetter {
            v: 1,
            job: head.id.to_string(),
            app: head.app.clone(),
            client_msg_no: head.client_msg_no.clone(),
            target: head.target.clone(),
            slice: self.slice.id.to_string(),
            sender: head.sender.clone(),
            group_type: match head.addressed {
                Addressed::Users => None,
                Addressed::Groups(kind) => Some(kind),
            },
            message: raw(serde_json::value::to_raw_value(&head.message())),
            options: raw(serde_json::value::to_raw_value(&head.options)),
            first_attempt_at: rfc3339(self.first_attempt_at_ms.unwrap_or(now)),
            last_attempt_at: rfc3339(now),
            recipients: self.dead.iter().map(|(_, dead)| dead.clone()).collect(),
        };
        let body = serde_json::to_vec(&letter).unwrap_or_else(|error| {
            tracing::error!(error = %chain(&error), "a dead letter could not be written as JSON");
            Vec::new()
        });
        self.shift
            .publish(vec![Outgoing {
                route: Route::Dead {
                    app: head.app.clone(),
                    target: head.target.clone(),
                },
                body: body.into(),
                message_id: format!("{}/{}/dead", head.id, self.slice.id),
                traceparent: self.traceparent.clone(),
            }])
            .await?;
        for outcome in [Outcome::Failed, Outcome::Uncertain] {
            let count = self
                .dead
                .iter()
                .filter(|(_, dead)| dead.outcome == outcome)
                .count();
            if count > 0 {
                let metrics = &self.shift.context.metrics;
                metrics.dead_letters(&self.target.name, outcome, count as u64);
            }
        }
        Ok(())
    }
}

/// Ascending positions as ranges.
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

/// Recipients worth leasing at once under a limit.
fn worth(limit: &Limit<'_>, per_call: u32, want: u32) -> u32 {
    match limit.cost {
        Cost::PerRecipient => limit.rate.lease_units(want),
        Cost::PerCall => limit
            .rate
            .lease_units(want.div_ceil(per_call))
            .saturating_mul(per_call),
    }
}

/// The class of a call as a whole: what all its recipients got, or the best any of them did.
fn class_of(verdict: &Verdict) -> Class {
    match verdict {
        Verdict::All(answer) => answer.class,
        Verdict::Each(answers) if answers.iter().any(|answer| answer.class == Class::Done) => {
            Class::Done
        }
        Verdict::Each(answers) => answers.first().map_or(Class::Done, |answer| answer.class),
    }
}
