//! Cuts a job into slices and publishes them.

use std::sync::Arc;

use tokio::sync::SemaphorePermit;

use super::{Expansion, IntakeEnd, SentOut};
use crate::clock::now_ms;
use crate::domain::announce::EventKind;
use crate::domain::audience::Member;
use crate::domain::ids::{Fingerprinter, SliceId};
use crate::domain::job::{self, Job};
use crate::domain::lane::{EXPRESS_RECIPIENTS_MAX, Lane};
use crate::domain::message_id::KeepsIds;
use crate::domain::slice::{
    Cut, Cutter, Enumeration, Head, Shape, Slice, Together, slice_recipients,
};
use crate::json;
use crate::metrics::{JobResult, LedgerStep};
use crate::ports::{Lost, Outgoing, Publisher, Route, Session, Store, Submission, Transport};
use crate::worker::completion::announcement;
use crate::worker::direct::Direct;

/// Slices published and confirmed together.
const BATCH_SLICES: usize = 16;

/// Users expected of an audience that is not counted yet; decides on the layout of its ledger.
const ALL_EXPECTED: u64 = 100_000;

impl<B: Session, S: Store, T: Transport, P: Publisher> Expansion<B, S, T, P> {
    /// The recipients per slice for a list that was not cut before.
    pub(super) fn slice_recipients(&self, job: &Job<'_>, head: &Head) -> u32 {
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
    pub(super) fn submission(
        &self,
        job: &Job<'_>,
        head: &Head,
        warnings: Vec<String>,
    ) -> Submission {
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
    pub(super) fn submission_of_all(
        &self,
        job: &Job<'_>,
        head: &Head,
        warnings: Vec<String>,
    ) -> Submission {
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
    pub(super) async fn ask_for_all(
        &self,
        job: &Job<'_>,
        submission: &Submission,
    ) -> Result<(), Lost> {
        let lane = self.lane(job, ALL_EXPECTED).await?;
        let enumeration = Enumeration {
            cursor: None,
            number: 1,
            failures: 0,
            exclude: job
                .excluded()
                .iter()
                .map(|id| id.clone().into_owned())
                .collect(),
        };
        let (head, id) = (Arc::new(job.head.clone()), SliceId::new("all", 0));
        let slice = Slice {
            enumeration: Some(enumeration),
            ..Slice::new(head, id, submission.shape, lane.clone())
        };
        self.send(vec![
            slice.outgoing(Route::Lane(lane), self.traceparent.clone()),
        ])
        .await
    }

    /// Tells the ledger that a part has arrived, of a list that waits for all of its parts.
    pub(super) async fn gather(&self, job: &Job<'_>) -> Result<(), Lost> {
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
    pub(super) async fn publish(
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
    pub(super) async fn direct_place(
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
    pub(super) async fn announce(
        &self,
        job: &Job<'_>,
        event: Outgoing,
        total: u64,
    ) -> Result<(), Lost> {
        self.send(vec![event]).await?;
        self.accepted(&job.head, JobResult::Accepted, total);
        Ok(())
    }

    pub(super) async fn send(&self, batch: Vec<Outgoing>) -> Result<(), Lost> {
        if batch.is_empty() {
            return Ok(());
        }
        self.session.publish(batch).await
    }

    pub(super) fn outgoing(
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
            entries: cut.entries,
            together: together.cloned(),
            vars: if personal { vars.collect() } else { Vec::new() },
            recipients: cut
                .recipients
                .into_iter()
                .map(|member| member.id.into_owned())
                .collect(),
            ..Slice::new(Arc::clone(head), cut.id, shape, lane.clone())
        };
        slice.outgoing(Route::Lane(lane.clone()), self.traceparent.clone())
    }

    /// Tells the ledger that all slices are published, and takes the steps that follow from the
    /// job's progress. `announce`: the result of the submission, if it is still to be announced.
    pub(super) async fn expanded(
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
    pub(super) fn accepted(&self, head: &Head, result: JobResult, total: u64) {
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
    pub(in crate::worker) fn outgoing(
        &self,
        route: Route,
        traceparent: Option<String>,
    ) -> Outgoing {
        Outgoing {
            route,
            body: json::bytes(self).into(),
            message_id: format!("{}/{}", self.head.id, self.id),
            traceparent,
        }
    }
}
