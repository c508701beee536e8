//! Intake: reads jobs, registers them with the ledger and cuts them into slices.
//!
//! A job is acked only after every slice is confirmed by the broker. Slice ids are derived, so a job
//! that is read again, after a crash or because its producer published it twice, publishes the same
//! slices, and the ledger absorbs the repeats.
//!
//! Reading and cutting a list of 100,000 takes tens of milliseconds of CPU, so a job is handled on a
//! blocking thread; beyond the message itself it holds one slice buffer per partition and one batch
//! of slices on their way out.

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::context::{Store, now_ms};
use super::shift::Shift;
use crate::domain::announce::EventKind;
use crate::domain::fields::{Problem, summary};
use crate::domain::ids::Fingerprinter;
use crate::domain::job::Job;
use crate::domain::lane::Priority;
use crate::domain::slice::{Cut, Cutter, Head, SLICE_VERSION, Shape, Slice};
use crate::metrics::{JobResult, LedgerStep};
use crate::ports::{
    Accepted, Consumer, Delivery, Lost, Outgoing, Publisher, Route, Submission, Transport,
};

/// Slices published and confirmed together.
const BATCH_SLICES: usize = 16;

/// Takes jobs of one priority until the shift ends.
pub(super) async fn intake<S: Store, T: Transport, P: Publisher>(
    shift: Arc<Shift<S, T, P>>,
    priority: Priority,
    mut jobs: impl Consumer,
) {
    let mut ledger_up = shift.context.ledger_up();
    loop {
        // A job is taken only when the ledger can register it: the rest stays in the queue.
        let next = async {
            let _ = ledger_up.wait_for(|up| *up).await;
            jobs.next().await
        };
        let Some(Some(delivery)) = shift.halt.run_until_cancelled(next).await else {
            break;
        };
        take(&shift, priority, delivery).await;
    }
    jobs.cancel().await;
    while let Some(delivery) = jobs.next().await {
        let _ = delivery.give_back().await;
    }
}

async fn take<S: Store, T: Transport, P: Publisher>(
    shift: &Arc<Shift<S, T, P>>,
    priority: Priority,
    delivery: Delivery,
) {
    let worker = Arc::clone(shift);
    let (body, traceparent) = (delivery.body.clone(), delivery.traceparent.clone());
    let runtime = Handle::current();
    let handled = tokio::task::spawn_blocking(move || {
        Expansion {
            shift: &worker,
            runtime,
            traceparent,
        }
        .expand(&body, priority)
    })
    .await;
    let fate = handled.unwrap_or_else(|_| {
        shift.context.metrics.panicked();
        Fate::GiveBack
    });
    // A lost session makes any of these void; the broker hands the job out again.
    match fate {
        Fate::Taken(result) => {
            if delivery.ack().await.is_ok() {
                shift.context.metrics.job(result);
            }
        }
        Fate::GiveBack => {
            let _ = delivery.give_back().await;
        }
        Fate::Refused(result, reason) => refuse(shift, delivery, result, reason).await,
    }
}

/// Moves a message that is no job of ours out of the way, unharmed.
async fn refuse<S: Store, T, P: Publisher>(
    shift: &Shift<S, T, P>,
    delivery: Delivery,
    result: JobResult,
    reason: String,
) {
    let bytes = delivery.body.len();
    match delivery.reject(reason.clone()).await {
        Ok(()) => {
            shift.context.metrics.job(result);
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

enum Fate {
    Taken(JobResult),
    GiveBack,
    Refused(JobResult, String),
}

struct Expansion<'a, S, T, P> {
    shift: &'a Shift<S, T, P>,
    runtime: Handle,
    traceparent: Option<String>,
}

impl<S: Store, T: Transport, P: Publisher> Expansion<'_, S, T, P> {
    fn expand(&self, body: &Bytes, priority: Priority) -> Fate {
        let context = &*self.shift.context;
        let now = jiff::Timestamp::now();
        let refused = |problems: &[Problem]| Fate::Refused(JobResult::Rejected, summary(problems));
        let job = match Job::read(body, Some(priority), context, now) {
            Ok(job) => job,
            Err(problems) => return refused(&problems),
        };
        let target = &context.targets[&job.head.target];
        let problems = target.target.check(&job.head);
        if !problems.is_empty() {
            return refused(&problems);
        }
        let submission = self.submission(&job);
        let halted = self.shift.halt.cancelled();
        let accepted = self
            .runtime
            .block_on(context.step(LedgerStep::Accept, halted, || {
                context.store.accept(&submission)
            }));
        let (shape, result) = match accepted {
            Err(_) => return Fate::GiveBack,
            Ok(Accepted::Expand { shape, first: true }) => (shape, JobResult::Accepted),
            Ok(Accepted::Expand {
                shape,
                first: false,
            }) => (shape, JobResult::Extended),
            Ok(Accepted::Again { shape }) => (shape, JobResult::Repeated),
            Ok(Accepted::Settled) => {
                return match self.announce(&job.head, &submission.submission, JobResult::Repeated) {
                    Ok(()) => Fate::Taken(JobResult::Repeated),
                    Err(Lost) => Fate::GiveBack,
                };
            }
            Ok(Accepted::Conflict { job: first }) => {
                let reason = format!(
                    "conflict: client_msg_no {:?} of app {:?} stands for another message, job {first}; \
                     use a new client_msg_no for a new message",
                    job.head.client_msg_no, job.head.app
                );
                return Fate::Refused(JobResult::Conflict, reason);
            }
        };
        match self.publish(&job, shape, &submission.submission, result) {
            Ok(()) => Fate::Taken(result),
            Err(Lost) => Fate::GiveBack,
        }
    }

    fn submission(&self, job: &Job<'_>) -> Submission {
        // A job in parts is shaped for all of them.
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
            shape: Shape::of(expected, self.shift.context.settings.slice_recipients),
            rate: job.head.rate.clone(),
            not_before_ms: job.head.not_before_ms,
            now_ms: now_ms(),
        }
    }

    /// Cuts and publishes all slices, then tells the ledger that they are out.
    fn publish(
        &self,
        job: &Job<'_>,
        shape: Shape,
        submission: &str,
        result: JobResult,
    ) -> Result<(), Lost> {
        let context = &*self.shift.context;
        let settings = &context.settings;
        let fingerprinter = Fingerprinter::new(&settings.fingerprint_secret, job.head.id);
        let mut cutter = Cutter::new(fingerprinter, shape, submission, settings.slice_recipients);
        let lane = job.head.lane(job.entries).to_string();
        let head = Arc::new(job.head.clone());
        let mut batch = Vec::with_capacity(BATCH_SLICES);
        let mut published = Ok(());
        job.for_each_recipient(|recipient| {
            if let Some(cut) = cutter.push(recipient) {
                batch.push(self.outgoing(&head, &lane, shape, cut));
            }
            if batch.len() >= BATCH_SLICES && published.is_ok() {
                published = self.send(std::mem::take(&mut batch));
            }
        });
        published?;
        for cut in cutter.finish() {
            batch.push(self.outgoing(&head, &lane, shape, cut));
            if batch.len() >= BATCH_SLICES {
                self.send(std::mem::take(&mut batch))?;
            }
        }
        self.send(batch)?;
        self.announce(&head, submission, result)
    }

    fn send(&self, batch: Vec<Outgoing>) -> Result<(), Lost> {
        if batch.is_empty() {
            return Ok(());
        }
        self.runtime.block_on(self.shift.publish(batch))
    }

    fn outgoing<R: AsRef<str>>(
        &self,
        head: &Arc<Head>,
        lane: &str,
        shape: Shape,
        cut: Cut<R>,
    ) -> Outgoing {
        let slice = Slice {
            v: SLICE_VERSION,
            head: Arc::clone(head),
            id: cut.id,
            entries: cut.entries,
            shape,
            lane: lane.to_owned(),
            first_attempt_at_ms: None,
            recipients: cut
                .recipients
                .iter()
                .map(|recipient| recipient.as_ref().to_owned())
                .collect(),
            attempts: Vec::new(),
            calls: Vec::new(),
        };
        slice.outgoing(Route::Lane(lane.to_owned()), self.traceparent.clone())
    }

    /// Tells the ledger that all slices are out, and follows from where the job stands then.
    fn announce(&self, head: &Head, submission: &str, result: JobResult) -> Result<(), Lost> {
        let context = &*self.shift.context;
        self.runtime.block_on(async {
            let lost = self.shift.lost.cancelled();
            let standing = context
                .step(LedgerStep::Expanded, lost, || {
                    context.store.expanded(head.id, submission)
                })
                .await
                .map_err(|_| Lost)?;
            if result != JobResult::Repeated {
                self.shift
                    .announce(EventKind::Accepted, head, standing.accounts)
                    .await?;
                tracing::info!(
                    job.id = %head.id, job.app = head.app, job.client_msg_no = head.client_msg_no,
                    job.target = head.target, job.total = standing.accounts.total,
                    "job {}", if result == JobResult::Accepted { "accepted" } else { "extended" }
                );
            }
            self.shift.follow(head, standing).await
        })
    }
}

impl Slice {
    /// The slice as a message.
    pub(super) fn outgoing(&self, route: Route, traceparent: Option<String>) -> Outgoing {
        Outgoing {
            route,
            // Every field is a string, a number or JSON that was parsed before.
            body: serde_json::to_vec(self).unwrap_or_default().into(),
            message_id: format!("{}/{}", self.head.id, self.id),
            traceparent,
        }
    }
}
