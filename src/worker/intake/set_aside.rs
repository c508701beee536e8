//! Sets a list aside that its target or its lane cannot take now: the job waits as it came.

use std::time::Duration;

use super::{Expansion, SentOut};
use crate::clock::now_ms;
use crate::domain::accounts::Accounts;
use crate::domain::announce::EventKind;
use crate::domain::directive::{Go, Kind};
use crate::domain::job::Job;
use crate::domain::lane::Lane;
use crate::domain::schedule::{RUNGS, rung};
use crate::metrics::{JobResult, LedgerStep};
use crate::ports::{Lost, Outgoing, Publisher, Route, Scope, Session, Store, Transport};
use crate::worker::completion::announcement;

/// How long a job whose lane is full waits before it looks again: a full lane takes longer.
const FULL_LANE_WAIT: Duration = RUNGS[2];

impl<B: Session, S: Store, T: Transport, P: Publisher> Expansion<B, S, T, P> {
    /// How long a list waits before it is cut into slices for its lane; none if it is cut now. A
    /// list that becomes one slice takes no more as a slice than as a job. A list that is over is cut,
    /// so that its recipients get their outcomes.
    pub(super) async fn waits(&self, job: &Job<'_>, lane: &Lane) -> Option<Duration> {
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
    pub(super) async fn is_full(&self, lane: &Lane) -> bool {
        let ready = self.broker.ready(lane).await;
        ready.is_ok_and(|ready| ready >= self.session.context.settings.lane_slices_max)
    }

    /// The job as it came, on its way to the retry ladder.
    pub(super) fn waiting(&self, message_id: String, wait: Duration) -> Outgoing {
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
    pub(super) async fn set_aside(
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
}
