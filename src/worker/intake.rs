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

mod cut;
mod set_aside;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::completion::announcement;
use super::direct::{Direct, NotDelivered};
use super::session::WorkerSession;
use crate::clock;
use crate::domain::accounts::Accounts;
use crate::domain::announce::EventKind;
use crate::domain::ids::JobId;
use crate::domain::job::Job;
use crate::domain::lane::{EXPRESS_RECIPIENTS_MAX, Lane, LaneClass, Priority};
use crate::domain::message::Content;
use crate::domain::schedule::LOOK_AGAIN_MAX;
use crate::domain::slice::Head;
use crate::metrics::{JobResult, LedgerStep};
use crate::ports::{
    Accepted, Consumer, Delivery, LedgerError, Lost, Publisher, Session, Store, Submission,
    Transport, Unassigned,
};
use crate::runtime::context::{Context, RECONNECT};
use crate::runtime::traces::{Span, SpanKind};
use crate::service::BeforeAccept;
use crate::service::admission::{Admission, Admitted, Refused, Resolved, admit, resolve};

/// Larger jobs are cut one after the other, on a thread of their own: cutting takes several times
/// the bytes of the list, and keeps a CPU busy.
const SMALL_BYTES: usize = 64 * 1024;

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
}
