//! Reads jobs, registers them with the ledger and cuts them into slices.
//!
//! A job is acked only after the broker has confirmed every slice. Slice ids are derived from the
//! submission. So a job that is read again, after a crash or because its producer published it
//! twice, publishes the same slices, and the ledger absorbs the repeats.
//!
//! Reading and cutting a list of 100,000 takes tens of milliseconds of CPU, so a large job is
//! handled on a blocking thread. Besides the message itself it holds some fifty bytes per
//! recipient, and one batch of slices that are being published.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

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
use crate::domain::fallback::ForFallback;
use crate::domain::ids::{Fingerprinter, JobId, SliceId};
use crate::domain::job::{self, Job};
use crate::domain::lane::{EXPRESS_RECIPIENTS_MAX, Lane, LaneClass, Priority};
use crate::domain::message::Content;
use crate::domain::message_id::KeepsIds;
use crate::domain::slice::{
    Cut, Cutter, Enumeration, Head, Shape, Slice, Together, Unrecorded, slice_recipients,
};
use crate::json;
use crate::metrics::{JobResult, LedgerStep};
use crate::ports::{
    Accepted, Consumer, Delivery, LedgerError, Lost, Outgoing, Publisher, Route, Store, Submission,
    Transport, Unassigned,
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
pub(super) async fn intake<S: Store, T: Transport, P: Publisher>(
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
                Some(delivery) => taken.push(take(&session, priority, &large, &direct, delivery)),
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

async fn take<S: Store, T: Transport, P: Publisher>(
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
        session: Arc::clone(session),
        traceparent: match &span {
            Some(span) => Some(span.traceparent()),
            None => delivery.traceparent.clone(),
        },
        direct: (!is_large && !delivery.redelivered).then(|| Arc::clone(direct)),
    };
    let body = delivery.body.clone();
    let expanding = async move { expansion.expand(&body, priority, span).await };
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
    Requeue,
    Refused(JobResult, String),
}

/// Whether the event of a submission went out with its slices.
enum Announced {
    Yes,
    No,
}

struct Expansion<S, T, P> {
    session: Arc<WorkerSession<S, T, P>>,
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
impl<S: Store, T: Transport, P: Publisher> Admission for Expansion<S, T, P> {
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

impl<S: Store, T: Transport, P: Publisher> Expansion<S, T, P> {
    async fn expand(&self, body: &Bytes, priority: Priority, mut span: Option<Span>) -> IntakeEnd {
        let end = self.expand_in(body, priority, &mut span).await;
        if let (Some(span), IntakeEnd::Refused(_, reason)) = (&mut span, &end) {
            span.failed(reason);
        }
        end
    }

    async fn expand_in(
        &self,
        body: &Bytes,
        priority: Priority,
        span: &mut Option<Span>,
    ) -> IntakeEnd {
        let context = &*self.session.context;
        let job = match Job::parse(body, Some(priority), context, clock::now()) {
            Ok(job) => job,
            Err(problems) => {
                if let Some(job) = Job::named(body) {
                    self.withdraw(job).await;
                }
                return Refused::Problems(problems).into();
            }
        };
        if let Some(span) = span {
            span.text("fanwise.app", &*job.head.app);
            span.text("fanwise.target", &*job.head.target);
            span.text("fanwise.job", job.head.id.to_string());
            span.text("fanwise.client_msg_no", &*job.head.client_msg_no);
        }
        let end = self.expand_job(&job).await;
        if matches!(end, IntakeEnd::Refused(..)) {
            self.withdraw(job.head.id).await;
        }
        end
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
        let announced = match published.await {
            Ok(announced) => announced,
            Err(end) => return end,
        };
        if submission.expanded
            && result != JobResult::Repeated
            && matches!(announced, Announced::Yes)
        {
            return IntakeEnd::Taken(result);
        }
        let announce = match announced {
            Announced::Yes => None,
            Announced::No => Some(result),
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
    ) -> Result<Announced, IntakeEnd> {
        let lost = |Lost| IntakeEnd::Requeue;
        if job.is_for_all() {
            // The head keeps the template's name: the parts of the job are resolved like the job
            // itself.
            self.ask_for_all(job, submission).await.map_err(lost)?;
            return Ok(Announced::No);
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
        self.publish(job, &head, submission, event).await
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
            expanded: entries > 0,
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
        event: Option<Outgoing>,
    ) -> Result<Announced, IntakeEnd> {
        let lost = |Lost| IntakeEnd::Requeue;
        let context = &*self.session.context;
        let settings = &context.settings;
        let fingerprinter = Fingerprinter::new(&settings.fingerprint_secret, job.head.id);
        let mut cutter = Cutter::new(fingerprinter, job.entries);
        job.for_each_recipient(|recipient| cutter.push(recipient));
        let lane = self.lane(job, job.entries as u64).await.map_err(lost)?;
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
            return Ok(Announced::No);
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
        Ok(Announced::Yes)
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
