//! Reads jobs, registers them with the ledger and cuts them into slices.
//!
//! A job is acked only after the broker has confirmed every slice. Slice ids are derived from the
//! submission. So a job that is read again, after a crash or because its producer published it
//! twice, publishes the same slices, and the ledger absorbs the repeats.
//!
//! Reading and cutting a list of 100,000 takes tens of milliseconds of CPU, so a large job is
//! handled on a blocking thread. Besides the message itself it holds some fifty bytes per
//! recipient, and one batch of slices that are being published.
//!
//! A list is not cut while its target is parked or paused, or while many slices wait on its lane. The
//! job is accepted, and then waits as it came on the retry ladder, which brings it back to its queue.
//! So what waits for a target has a bound in slices, and jobs for other targets are taken.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::completion::announcement;
use super::direct::{Direct, NotDelivered};
use super::session::WorkerSession;
use crate::clock::{self, now_ms};
use crate::domain::accounts::Accounts;
use crate::domain::announce::EventKind;
use crate::domain::audience::Member;
use crate::domain::directive::{Go, Kind};
use crate::domain::fallback::ForFallback;
use crate::domain::ids::{Fingerprinter, JobId, SliceId};
use crate::domain::job::{self, Job};
use crate::domain::lane::{EXPRESS_RECIPIENTS_MAX, Lane, LaneClass, Priority};
use crate::domain::message::Content;
use crate::domain::message_id::KeepsIds;
use crate::domain::schedule::{LOOK_AGAIN_MAX, RUNGS, rung};
use crate::domain::slice::{
    Cut, Cutter, Enumeration, Head, Shape, Slice, Together, Unrecorded, slice_recipients,
};
use crate::json;
use crate::metrics::{JobResult, LedgerStep};
use crate::ports::{
    Accepted, Consumer, Delivery, LedgerError, Lost, Outgoing, Publisher, Route, Scope, Session,
    Store, Submission, Transport, Unassigned,
};
use crate::runtime::context::{Context, RECONNECT};
use crate::runtime::traces::{Span, SpanKind};
use crate::service::BeforeAccept;
use crate::service::admission::{Admission, Admitted, Refused, Resolved, admit, resolve};

/// Larger jobs are cut one after the other, on a thread of their own: cutting takes several times
/// the bytes of the list, and keeps a CPU busy.
const SMALL_BYTES: usize = 64 * 1024;

/// Slices published and confirmed together.
const BATCH_SLICES: usize = 16;

/// Users expected of an audience that is not counted yet; decides on the layout of its ledger.
const ALL_EXPECTED: u64 = 100_000;

/// Takes jobs of one priority until the session ends.
pub(super) async fn intake<B: Session, S: Store, T: Transport, P: Publisher>(
    broker: Arc<B>,
    session: Arc<WorkerSession<S, T, P>>,
    priority: Priority,
    mut jobs: impl Consumer,
    direct: Arc<Direct>,
) {
    let mut ledger_up = session.context.ledger_up();
    let large = Semaphore::new(1);
    // A small job waits for confirms most of its time, so several are taken at a time: as many as
    // the broker hands out unacked.
    let mut taken = FuturesUnordered::new();
    loop {
        // A job is taken only when the ledger can register it; the rest stays in the queue.
        let next = async {
            let _ = ledger_up.wait_for(|up| *up).await;
            jobs.next().await
        };
        tokio::select! {
            biased;
            Some(()) = taken.next(), if !taken.is_empty() => {}
            next = session.halt.run_until_cancelled(next) => match next.flatten() {
                Some(delivery) => taken.push(take(&broker, &session, priority, &large, &direct, delivery)),
                None => break,
            },
        }
    }
    while taken.next().await.is_some() {}
    jobs.cancel().await;
    while let Some(delivery) = jobs.next().await {
        let _ = delivery.requeue().await;
    }
}

async fn take<B: Session, S: Store, T: Transport, P: Publisher>(
    broker: &Arc<B>,
    session: &Arc<WorkerSession<S, T, P>>,
    priority: Priority,
    large: &Semaphore,
    direct: &Arc<Direct>,
    delivery: Delivery,
) {
    let is_large = delivery.body.len() > SMALL_BYTES;
    let from = delivery.traceparent.as_deref();
    let span = session.context.tracer.begin(from, SpanKind::Intake);
    let expansion = Expansion {
        broker: Arc::clone(broker),
        session: Arc::clone(session),
        priority,
        body: delivery.body.clone(),
        traceparent: match &span {
            Some(span) => Some(span.traceparent()),
            None => delivery.traceparent.clone(),
        },
        direct: (!is_large && !delivery.redelivered).then(|| Arc::clone(direct)),
    };
    let expanding = async move { expansion.expand(span).await };
    let handled = if is_large {
        // It is never closed.
        let _turn = large.acquire().await.ok();
        let runtime = Handle::current();
        let thread = tokio::task::spawn_blocking(move || runtime.block_on(expanding));
        thread.await.ok()
    } else {
        AssertUnwindSafe(expanding).catch_unwind().await.ok()
    };
    let end = handled.unwrap_or_else(|| {
        session.context.metrics.panicked();
        IntakeEnd::Requeue
    });
    // None of these has an effect if the session is lost: the broker hands the job out again.
    match end {
        IntakeEnd::Taken(result) => {
            if delivery.ack().await.is_ok() {
                session.context.metrics.job(result);
            }
        }
        IntakeEnd::Waits => {
            let _ = delivery.ack().await;
        }
        IntakeEnd::Requeue => {
            let _ = delivery.requeue().await;
        }
        IntakeEnd::Refused(result, reason) => refuse(session, delivery, result, reason).await,
    }
}

/// Moves a message that is not a valid job to the rejected queue, unchanged.
async fn refuse<S: Store, T, P: Publisher>(
    session: &WorkerSession<S, T, P>,
    delivery: Delivery,
    result: JobResult,
    reason: String,
) {
    let bytes = delivery.body.len();
    match delivery.reject(reason.clone()).await {
        Ok(()) => {
            session.context.metrics.job(result);
            tracing::warn!(
                job.bytes = bytes,
                reason,
                "a message was moved to the rejected queue"
            );
        }
        // It stays unacked and comes back with the next session.
        Err(error) => {
            tracing::warn!(%error, "a message could not be moved to the rejected queue yet")
        }
    }
}

enum IntakeEnd {
    Taken(JobResult),
    /// It still waits to be cut.
    Waits,
    Requeue,
    Refused(JobResult, String),
}

/// Whether a job is refused by the configuration of this worker, and not by an earlier job.
fn is_of_config(end: &IntakeEnd) -> bool {
    matches!(end, IntakeEnd::Refused(JobResult::Rejected, _))
}

/// What became of a submission.
enum SentOut {
    /// Its slices are published, together with its event.
    Announced,
    /// Its slices are published, without an event.
    Silent,
    /// It waits to be cut, and is announced.
    Aside,
}

/// How long a job whose lane is full waits before it looks again: a full lane takes longer.
const FULL_LANE_WAIT: Duration = RUNGS[2];

struct Expansion<B, S, T, P> {
    broker: Arc<B>,
    session: Arc<WorkerSession<S, T, P>>,
    /// The queue of the job.
    priority: Priority,
    body: Bytes,
    traceparent: Option<String>,
    /// None for a job that was handed out before, since its delivery did not end, and for a large
    /// one, which must not keep the turn of large jobs until its last answer.
    direct: Option<Arc<Direct>>,
}

impl From<Refused> for IntakeEnd {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Undecided(_) => Self::Requeue,
            refused => Self::Refused(JobResult::Rejected, refused.to_string()),
        }
    }
}

impl From<NotDelivered> for IntakeEnd {
    fn from(ended: NotDelivered) -> Self {
        match ended {
            NotDelivered::Back => Self::Requeue,
            NotDelivered::Rejected(reason) => Self::Refused(JobResult::Rejected, reason),
        }
    }
}

/// The same admission as at every endpoint.
impl<B: Session, S: Store, T: Transport, P: Publisher> Admission for Expansion<B, S, T, P> {
    type Rules = Context<S, T>;
    type Store = S;
    type Transport = T;

    fn rules(&self) -> &Context<S, T> {
        &self.session.context
    }

    fn store(&self) -> &S {
        &self.session.context.store
    }

    fn transport(&self) -> &T {
        &self.session.context.transport
    }

    /// A slow check would hold up the jobs of all apps.
    fn before_accept(&self, _: &str) -> Option<&BeforeAccept> {
        None
    }

    fn step<V: Send>(
        &self,
        step: LedgerStep,
        act: impl Future<Output = Result<V, LedgerError>> + Send,
    ) -> impl Future<Output = Result<V, LedgerError>> + Send {
        self.session.context.try_step(step, act)
    }
}

impl<B: Session, S: Store, T: Transport, P: Publisher> Expansion<B, S, T, P> {
    async fn expand(&self, mut span: Option<Span>) -> IntakeEnd {
        let end = self.expand_in(&mut span).await;
        if let (Some(span), IntakeEnd::Refused(_, reason)) = (&mut span, &end) {
            span.failed(reason);
        }
        end
    }

    async fn expand_in(&self, span: &mut Option<Span>) -> IntakeEnd {
        let context = &*self.session.context;
        let job = match Job::parse(&self.body, Some(self.priority), context, clock::now()) {
            Ok(job) => job,
            Err(problems) => {
                let named = Job::named(&self.body);
                return self.refuse(named, Refused::Problems(problems).into()).await;
            }
        };
        if let Some(span) = span {
            span.text("fanwise.app", &*job.head.app);
            span.text("fanwise.target", &*job.head.target);
            span.text("fanwise.job", job.head.id.to_string());
            span.text("fanwise.client_msg_no", &*job.head.client_msg_no);
        }
        match self.expand_job(&job).await {
            refused @ IntakeEnd::Refused(..) => self.refuse(Some(job.head.id), refused).await,
            end => end,
        }
    }

    /// Ends a job that cannot be taken. One that was accepted and waits to be cut is kept: the
    /// configuration has changed since, and may change back, as slices wait for a target that is not
    /// configured any more.
    async fn refuse(&self, job: Option<JobId>, refused: IntakeEnd) -> IntakeEnd {
        let Some(job) = job else { return refused };
        let context = &*self.session.context;
        let record = context
            .try_step(LedgerStep::Look, context.store.job(job))
            .await;
        match record {
            Err(_) => return IntakeEnd::Requeue,
            Ok(Some(record)) if record.uncut > 0 && is_of_config(&refused) => {}
            Ok(_) => {
                self.withdraw(job).await;
                return refused;
            }
        }
        context.note_waiting(job).await;
        let message = self.waiting(job.to_string(), LOOK_AGAIN_MAX);
        match self.send(vec![message]).await {
            Ok(()) => IntakeEnd::Waits,
            Err(Lost) => IntakeEnd::Requeue,
        }
    }

    /// The endpoint that accepted a refused job may have entered it in the ledger. Not repeated:
    /// the upkeep finds it too.
    async fn withdraw(&self, job: JobId) {
        let context = &*self.session.context;
        let withdraw = context.store.withdraw(job);
        let _ = context.try_step(LedgerStep::Accept, withdraw).await;
    }

    async fn expand_job(&self, job: &Job<'_>) -> IntakeEnd {
        let context = &*self.session.context;
        let Admitted {
            sent: resolved,
            mut warnings,
        } = match self.decide(|| admit(self, job)).await {
            Ok(admitted) => admitted,
            Err(end) => return end,
        };
        let unknown_zones = job.unknown_zones();
        warnings.extend(unknown_zones.warning());
        let submission = match job.is_for_all() {
            true => self.submission_of_all(job, &resolved.head, warnings),
            false => self.submission(job, &resolved.head, warnings),
        };
        let submission = Submission {
            template: resolved.template,
            ..submission
        };
        let halted = self.session.halt.cancelled();
        let accepted = context
            .step(LedgerStep::Accept, halted, || {
                context.store.accept(&submission)
            })
            .await;
        let (shape, template, cut, result) = match accepted {
            Err(_) => return IntakeEnd::Requeue,
            Ok(Accepted::Expand {
                shape,
                first,
                template,
                slice_recipients,
            }) => {
                let result = match first {
                    true => JobResult::Accepted,
                    false => JobResult::Extended,
                };
                context.metrics.unknown_zones(unknown_zones.recipients());
                (shape, template, slice_recipients, result)
            }
            Ok(Accepted::Again {
                shape,
                template,
                slice_recipients,
            }) => (shape, template, slice_recipients, JobResult::Repeated),
            // There may be new users since the job was settled.
            Ok(Accepted::Settled) if job.is_for_all() => {
                (submission.shape, None, None, JobResult::Repeated)
            }
            Ok(Accepted::Settled) => {
                let expanded = self.expanded(&job.head, &submission.submission, None);
                return match expanded.await {
                    Ok(()) => IntakeEnd::Taken(JobResult::Repeated),
                    Err(Lost) => IntakeEnd::Requeue,
                };
            }
            Ok(Accepted::Conflict { job: first }) => {
                let reason = format!(
                    "conflict: client_msg_no {:?} of app {:?} stands for another message, job {first}; \
                     use a new client_msg_no for a new message",
                    job.head.client_msg_no, job.head.app
                );
                return IntakeEnd::Refused(JobResult::Conflict, reason);
            }
        };
        let submission = Submission {
            shape,
            slice_recipients: cut.unwrap_or(context.settings.slice_recipients),
            template,
            ..submission
        };
        let published = self.send_out(job, resolved, &submission, result);
        let sent_out = match published.await {
            Ok(sent_out) => sent_out,
            Err(end) => return end,
        };
        let announce = match sent_out {
            SentOut::Aside if result == JobResult::Repeated => return IntakeEnd::Waits,
            SentOut::Aside => return IntakeEnd::Taken(result),
            SentOut::Announced if submission.expanded && result != JobResult::Repeated => {
                return IntakeEnd::Taken(result);
            }
            SentOut::Announced => None,
            SentOut::Silent => Some(result),
        };
        let expanded = self.expanded(&job.head, &submission.submission, announce);
        match expanded.await {
            Ok(()) => IntakeEnd::Taken(result),
            Err(Lost) => IntakeEnd::Requeue,
        }
    }

    /// The lane of a submission of a job (`domain::lane`).
    async fn lane(&self, job: &Job<'_>, recipients: u64) -> Result<Lane, Lost> {
        let (context, head) = (&*self.session.context, &job.head);
        if recipients <= EXPRESS_RECIPIENTS_MAX as u64 {
            let app = context.apps.keys().position(|app| *app == head.app);
            return Ok(Lane::of_small_jobs(&head.target, app.unwrap_or(0)));
        }
        let unassigned = Unassigned {
            job: head.id,
            app: &head.app,
            target: &head.target,
            priority: head.priority,
            recipients,
        };
        let lost = self.session.lost.cancelled();
        let assign = || context.store.assign(&unassigned);
        let sub_lane = context.step(LedgerStep::Accept, lost, assign).await;
        let sub_lane = sub_lane.map_err(|_| Lost)?;
        Ok(Lane {
            target: head.target.clone(),
            class: LaneClass::Of(head.priority, sub_lane),
        })
    }

    /// Publishes the slices of a job, or the request for its users. The slices of a job that came
    /// as a whole carry its event with them, so that a small job waits for one confirm.
    async fn send_out(
        &self,
        job: &Job<'_>,
        resolved: Resolved,
        submission: &Submission,
        result: JobResult,
    ) -> Result<SentOut, IntakeEnd> {
        let lost = |Lost| IntakeEnd::Requeue;
        if job.is_for_all() {
            // The head keeps the template's name: the parts of the job are resolved like the job
            // itself.
            self.ask_for_all(job, submission).await.map_err(lost)?;
            return Ok(SentOut::Silent);
        }
        let head = self.ruled(&job.head, resolved, submission.template);
        let head = head.await?;
        self.gather(job).await.map_err(lost)?;
        let whole = job.part.of == 1 && result == JobResult::Accepted;
        let event = whole.then(|| {
            let accounts = Accounts {
                total: submission.entries,
                ..Accounts::default()
            };
            announcement(EventKind::Accepted, &(&job.head).into(), accounts)
        });
        let lane = self.lane(job, job.entries as u64).await.map_err(lost)?;
        match self.waits(job, &lane).await {
            Some(wait) => self.set_aside(job, wait, result).await.map_err(lost),
            None => self.publish(job, &head, submission, lane, event).await,
        }
    }

    /// How long a list waits before it is cut into slices for its lane; none if it is cut now. A
    /// list that becomes one slice takes no more as a slice than as a job. A list that is over is cut,
    /// so that its recipients get their outcomes.
    async fn waits(&self, job: &Job<'_>, lane: &Lane) -> Option<Duration> {
        if lane.is_of_small_jobs() {
            return None;
        }
        let (context, head, now) = (&*self.session.context, &job.head, now_ms());
        let (control, is_paused) = {
            let directives = context.directives();
            let board = directives.borrow();
            let names = [&*head.target, &*head.app, &head.id.to_string()];
            let pause = board.find(Scope::Target, &head.target, Kind::Pause, now);
            (board.control(names, now), pause.is_some())
        };
        let (_, expires_at) = control.times(head);
        let ends_in = match control.go {
            Go::Cancelled => Some(0),
            Go::Wait(_) | Go::On => expires_at.map(|at| at.saturating_sub(now)),
        };
        let ends_in = ends_in.map_or(Duration::MAX, Duration::from_millis);
        if ends_in.is_zero() {
            return None;
        }
        let wait = match (context.parked_for(&head.target), control.go) {
            (Some(left), _) => left,
            (None, Go::Wait(wait)) if is_paused => wait,
            _ if self.is_full(lane).await => FULL_LANE_WAIT,
            _ => return None,
        };
        Some(wait.min(ends_in))
    }

    /// Whether so many slices wait on a lane that it gets no further ones. A broker that does not
    /// say is not asked again: the publish comes next.
    async fn is_full(&self, lane: &Lane) -> bool {
        let ready = self.broker.ready(lane).await;
        ready.is_ok_and(|ready| ready >= self.session.context.settings.lane_slices_max)
    }

    /// The job as it came, on its way to the retry ladder.
    fn waiting(&self, message_id: String, wait: Duration) -> Outgoing {
        Outgoing {
            route: Route::WaitJob {
                priority: self.priority,
                rung: rung(wait),
            },
            body: self.body.clone(),
            message_id,
            traceparent: self.traceparent.clone(),
        }
    }

    /// Puts a job on the retry ladder as it came, and announces it if it is new.
    async fn set_aside(
        &self,
        job: &Job<'_>,
        wait: Duration,
        result: JobResult,
    ) -> Result<SentOut, Lost> {
        let context = &*self.session.context;
        context.note_waiting(job.head.id).await;
        let name = format!("{}/{}", job.head.id, job.submission);
        let mut messages = vec![self.waiting(name, wait)];
        if result == JobResult::Repeated {
            self.send(messages).await?;
            return Ok(SentOut::Aside);
        }
        let lost = self.session.lost.cancelled();
        let read = || context.store.job(job.head.id);
        let record = context.step(LedgerStep::Look, lost, read).await;
        let accounts = match record.map_err(|_| Lost)? {
            Some(record) => record.accounts,
            None => Accounts::default(),
        };
        messages.push(announcement(
            EventKind::Accepted,
            &(&job.head).into(),
            accounts,
        ));
        self.send(messages).await?;
        self.accepted(&job.head, result, accounts.total);
        Ok(SentOut::Aside)
    }

    /// Repeats a request to the ledger until it has a verdict, since the ledger may be down. What
    /// was counted is not counted again.
    async fn decide<V, F>(&self, ask: impl Fn() -> F) -> Result<V, IntakeEnd>
    where
        F: Future<Output = Result<V, Refused>>,
    {
        let decided = async {
            let mut delays = RECONNECT.delays();
            loop {
                match ask().await {
                    Err(Refused::Undecided(_)) => tokio::time::sleep(delays.next_delay()).await,
                    decided => return decided,
                }
            }
        };
        match self.session.halt.run_until_cancelled(decided).await {
            Some(Ok(value)) => Ok(value),
            Some(Err(refused)) => Err(refused.into()),
            None => Err(IntakeEnd::Requeue),
        }
    }

    /// The head of the job with the template version that applies: another submission of the job
    /// may have come first.
    async fn ruled(
        &self,
        head: &Head,
        sent: Resolved,
        ruling: Option<u32>,
    ) -> Result<Arc<Head>, IntakeEnd> {
        match &head.content {
            Content::Template(_) if ruling.is_some() && ruling != sent.template => {
                let resolved = self.decide(|| resolve(self, head, ruling)).await;
                Ok(resolved?.head)
            }
            _ => Ok(sent.head),
        }
    }

    /// The recipients per slice for a list that was not cut before.
    fn slice_recipients(&self, job: &Job<'_>, head: &Head) -> u32 {
        let context = &*self.session.context;
        let target = context.targets.get(&head.target);
        let per_call = match &head.vars {
            // Each recipient has a call of its own.
            Some(_) => 1,
            None => target.map_or(1, |target| target.recipients_per_call(head)),
        };
        let head_bytes = match job.entries <= EXPRESS_RECIPIENTS_MAX {
            true => 0,
            false => json::size(head),
        };
        let most = context.settings.slice_recipients;
        slice_recipients(job.entries, per_call, most, head_bytes)
    }

    /// `head` is that of the slices, with the message that a template stands for.
    fn submission(&self, job: &Job<'_>, head: &Head, warnings: Vec<String>) -> Submission {
        // The shape of a job in parts allows for all of them.
        let entries = job.entries as u64;
        let expected = entries * u64::from(job.part.of);
        Submission {
            job: job.head.id,
            app: job.head.app.clone(),
            client_msg_no: job.head.client_msg_no.clone(),
            target: job.head.target.clone(),
            content_digest: job.content_digest.clone(),
            submission: job.submission.clone(),
            entries,
            parts: job.part.of,
            shape: Shape::of(expected),
            slice_recipients: self.slice_recipients(job, head),
            sender: job.head.sender.clone(),
            window: job.head.window.as_ref().map(ToString::to_string),
            pace_until_ms: job.head.pace_until_ms,
            category: job.head.category.clone(),
            rate: job.head.rate.map(|rate| rate.short()),
            priority: job.head.priority,
            not_before_ms: job.head.not_before_ms,
            expires_at_ms: job.head.expires_at_ms,
            tags: job.tags.clone(),
            fetched: job.fetched().cloned(),
            callback_url: job.head.callback_url.clone(),
            reply_to: job.head.reply_to.clone(),
            fallback: job.head.fallback.as_ref().map(|it| it.target.clone()),
            keeps_ids: job.head.keep_ids.then(|| KeepsIds {
                sender: job.head.sender.clone(),
                addressed: job.head.addressed,
            }),
            now_ms: now_ms(),
            warnings,
            template: None,
            // A longer list may wait before it is cut.
            expanded: (1..=EXPRESS_RECIPIENTS_MAX as u64).contains(&entries),
        }
    }

    /// An audience of all users is one submission without recipients, and at least one part that
    /// follows.
    fn submission_of_all(&self, job: &Job<'_>, head: &Head, warnings: Vec<String>) -> Submission {
        Submission {
            submission: "all".to_owned(),
            entries: 0,
            expanded: false,
            parts: 2,
            shape: Shape::of(ALL_EXPECTED),
            ..self.submission(job, head, warnings)
        }
    }

    /// Starts to ask the target for its users, on a lane like everything that waits for a target.
    async fn ask_for_all(&self, job: &Job<'_>, submission: &Submission) -> Result<(), Lost> {
        let lane = self.lane(job, ALL_EXPECTED).await?;
        let slice = Slice {
            v: Slice::version(&job.head, &Unrecorded::default()),
            head: Arc::new(job.head.clone()),
            id: SliceId::new("all", 0),
            entries: 0,
            shape: submission.shape,
            lane: lane.clone(),
            first_attempt_at_ms: None,
            due_at_ms: None,
            due_later: Vec::new(),
            together: None,
            recipients: Vec::new(),
            enumeration: Some(Enumeration {
                cursor: None,
                number: 1,
                failures: 0,
                exclude: job
                    .excluded()
                    .iter()
                    .map(|id| id.clone().into_owned())
                    .collect(),
            }),
            vars: Vec::new(),
            attempts: Vec::new(),
            calls: Vec::new(),
            ended: None,
            retries: 0,
            doubts: Vec::new(),
            for_fallback: ForFallback::default(),
            remarks: Vec::new(),
            unrecorded: Unrecorded::default(),
        };
        self.send(vec![
            slice.outgoing(Route::Lane(lane), self.traceparent.clone()),
        ])
        .await
    }

    /// Tells the ledger that a part has arrived, of a list that waits for all of its parts.
    async fn gather(&self, job: &Job<'_>) -> Result<(), Lost> {
        let Some(part) = job::together(&job.part) else {
            return Ok(());
        };
        let context = &*self.session.context;
        let lost = self.session.lost.cancelled();
        context
            .step(LedgerStep::Gather, lost, || {
                context.store.gather(job.head.id, &part, false)
            })
            .await
            .map(drop)
            .map_err(|_| Lost)
    }

    /// Cuts and publishes all slices, and with them the event of a new job.
    async fn publish(
        &self,
        job: &Job<'_>,
        head: &Arc<Head>,
        submission: &Submission,
        lane: Lane,
        event: Option<Outgoing>,
    ) -> Result<SentOut, IntakeEnd> {
        let lost = |Lost| IntakeEnd::Requeue;
        let context = &*self.session.context;
        let settings = &context.settings;
        let fingerprinter = Fingerprinter::new(&settings.fingerprint_secret, job.head.id);
        let mut cutter = Cutter::new(fingerprinter, job.entries);
        job.for_each_recipient(|recipient| cutter.push(recipient));
        let together = job::together(&job.part);
        let mut batch = Vec::with_capacity(BATCH_SLICES);
        let (name, shape) = (&submission.submission, submission.shape);
        for cut in cutter.finish(name, submission.slice_recipients) {
            batch.push(self.outgoing(head, &lane, together.as_ref(), shape, cut));
            if batch.len() >= BATCH_SLICES {
                self.send(std::mem::take(&mut batch)).await.map_err(lost)?;
            }
        }
        let Some(event) = event else {
            self.send(batch).await.map_err(lost)?;
            return Ok(SentOut::Silent);
        };
        match self.direct_place(job, &lane, &batch).await {
            Some((direct, place)) => {
                let announced = self.announce(job, event, submission.entries);
                let delivered = async {
                    match batch.pop() {
                        Some(slice) => direct.deliver(&lane, slice, place).await,
                        None => Ok(()),
                    }
                };
                let (announced, delivered) = tokio::join!(announced, delivered);
                announced.map_err(lost)?;
                delivered.map_err(IntakeEnd::from)?;
            }
            None => {
                batch.push(event);
                self.send(batch).await.map_err(lost)?;
                self.accepted(&job.head, JobResult::Accepted, submission.entries);
            }
        }
        Ok(SentOut::Announced)
    }

    /// A place to deliver a small job at once, if its only slice is due and a place is free.
    async fn direct_place(
        &self,
        job: &Job<'_>,
        lane: &Lane,
        slices: &[Outgoing],
    ) -> Option<(&Direct, SemaphorePermit<'_>)> {
        let is_due = job.head.not_before_ms.is_none_or(|at| at <= now_ms());
        if !lane.is_of_small_jobs() || slices.len() != 1 || !is_due {
            return None;
        }
        let direct = self.direct.as_deref()?;
        Some((direct, direct.place().await?))
    }

    /// Publishes the event of a new job alone.
    async fn announce(&self, job: &Job<'_>, event: Outgoing, total: u64) -> Result<(), Lost> {
        self.send(vec![event]).await?;
        self.accepted(&job.head, JobResult::Accepted, total);
        Ok(())
    }

    async fn send(&self, batch: Vec<Outgoing>) -> Result<(), Lost> {
        if batch.is_empty() {
            return Ok(());
        }
        self.session.publish(batch).await
    }

    fn outgoing(
        &self,
        head: &Arc<Head>,
        lane: &Lane,
        together: Option<&Together>,
        shape: Shape,
        cut: Cut<Member<'_>>,
    ) -> Outgoing {
        let personal = cut.recipients.iter().any(|member| member.vars.is_some());
        let vars = cut
            .recipients
            .iter()
            .map(|member| member.vars.map(ToOwned::to_owned));
        let slice = Slice {
            v: Slice::version(head, &Unrecorded::default()),
            head: Arc::clone(head),
            id: cut.id,
            entries: cut.entries,
            shape,
            lane: lane.clone(),
            first_attempt_at_ms: None,
            due_at_ms: None,
            due_later: Vec::new(),
            enumeration: None,
            together: together.cloned(),
            vars: if personal { vars.collect() } else { Vec::new() },
            recipients: cut
                .recipients
                .into_iter()
                .map(|member| member.id.into_owned())
                .collect(),
            attempts: Vec::new(),
            calls: Vec::new(),
            ended: None,
            retries: 0,
            doubts: Vec::new(),
            for_fallback: ForFallback::default(),
            remarks: Vec::new(),
            unrecorded: Unrecorded::default(),
        };
        slice.outgoing(Route::Lane(lane.clone()), self.traceparent.clone())
    }

    /// Tells the ledger that all slices are published, and takes the steps that follow from the
    /// job's progress. `announce`: the result of the submission, if it is still to be announced.
    async fn expanded(
        &self,
        head: &Head,
        submission: &str,
        announce: Option<JobResult>,
    ) -> Result<(), Lost> {
        let context = &*self.session.context;
        let lost = self.session.lost.cancelled();
        let progress = context
            .step(LedgerStep::Expanded, lost, || {
                context.store.mark_expanded(head.id, submission)
            })
            .await
            .map_err(|_| Lost)?;
        if let Some(result) = announce.filter(|result| *result != JobResult::Repeated) {
            let accounts = progress.accounts;
            let event = announcement(EventKind::Accepted, &head.into(), accounts);
            self.send(vec![event]).await?;
            self.accepted(head, result, accounts.total);
        }
        self.session.follow(head, progress).await
    }

    /// Notes that a submission and its event are published.
    fn accepted(&self, head: &Head, result: JobResult, total: u64) {
        self.session.context.metrics.event(EventKind::Accepted);
        tracing::info!(
            job.id = %head.id, job.app = head.app, job.client_msg_no = head.client_msg_no,
            job.target = head.target, job.total = total,
            "job {}", if result == JobResult::Accepted { "accepted" } else { "extended" }
        );
    }
}

impl Slice {
    /// The slice as a message.
    pub(super) fn outgoing(&self, route: Route, traceparent: Option<String>) -> Outgoing {
        Outgoing {
            route,
            body: json::bytes(self).into(),
            message_id: format!("{}/{}", self.head.id, self.id),
            traceparent,
        }
    }
}
