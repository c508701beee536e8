//! Keeps the calls of a delivery that are out. They continue while the delivery waits for anything
//! else, and their answers are kept here until the delivery sorts them.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, Interval};

use super::super::sleep_until;
use super::DeliveryScope;
use crate::domain::delivery::{Call, Delivery};
use crate::ports::{Publisher, Store, Transport};
use crate::runtime::call::Called;

/// Answers that arrive within this time of each other are recorded together, and their places are
/// filled together: the cost is in the ledger's steps, not in the recipients of a step.
const TOGETHER: Duration = Duration::from_millis(2);

/// Longest time that an answer stays unrecorded because others arrive.
const TOGETHER_MAX: Duration = Duration::from_millis(10);

/// A call that is no longer out.
pub(super) struct Back {
    pub(super) call: Call,
    /// None: a directive held the call back, and it never left.
    pub(super) called: Option<Called>,
}

pub(super) struct Flight<'a, S, T, P> {
    scope: &'a DeliveryScope<'a, S, T, P>,
    calls: FuturesUnordered<BoxFuture<'a, Back>>,
    back: VecDeque<Back>,
    /// Calls that came back since the last record. Their places are not free before the next
    /// record.
    unrecorded: usize,
    /// When the first and the last of them came back.
    came: Option<(Instant, Instant)>,
    renewal: Interval,
}

impl<'a, S: Store, T: Transport, P: Publisher> Flight<'a, S, T, P> {
    pub(super) fn new(scope: &'a DeliveryScope<'a, S, T, P>) -> Self {
        let mut renewal = tokio::time::interval(scope.session.context.settings.lease / 3);
        renewal.reset();
        Self {
            scope,
            calls: FuturesUnordered::new(),
            back: VecDeque::new(),
            unrecorded: 0,
            came: None,
            renewal,
        }
    }

    /// Whether no call is out.
    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty() && self.back.is_empty()
    }

    /// Calls that may start now.
    pub(super) fn places(&self) -> usize {
        let taken = self.calls.len() + self.unrecorded;
        self.scope.target.window_calls.max(1).saturating_sub(taken)
    }

    pub(super) fn add(&mut self, call: impl Future<Output = Back> + Send + 'a) {
        self.calls.push(call.boxed());
    }

    /// The next call that came back.
    pub(super) fn take(&mut self) -> Option<Back> {
        self.back.pop_front()
    }

    /// Whether calls came back that are not recorded.
    pub(super) fn has_unrecorded(&self) -> bool {
        self.came.is_some()
    }

    /// Frees the places of the calls that came back: the step that claims for the next calls
    /// records them.
    pub(super) fn free_places(&mut self) {
        self.unrecorded = 0;
    }

    /// Notes that the calls that came back are being recorded.
    pub(super) fn recorded(&mut self) {
        self.unrecorded = 0;
        self.came = None;
    }

    fn came(&mut self, back: Back) {
        self.back.push_back(back);
        self.unrecorded += 1;
        let now = Instant::now();
        self.came = Some((self.came.map_or(now, |(first, _)| first), now));
    }

    /// Waits for a step while calls are out, and renews their claims.
    pub(super) async fn during<V>(
        &mut self,
        delivery: &Delivery,
        step: impl Future<Output = V>,
    ) -> V {
        let mut step = pin!(step);
        loop {
            tokio::select! {
                biased;
                Some(back) = self.calls.next() => self.came(back),
                value = &mut step => return value,
                _ = self.renewal.tick(), if !self.calls.is_empty() => self.scope.renew(delivery).await,
            }
        }
    }

    /// Waits until `grant` resolves, so that the next calls may be made, or until it is time to
    /// record what came back.
    pub(super) async fn until<V>(
        &mut self,
        delivery: &Delivery,
        mut grant: Option<&mut (impl Future<Output = V> + Unpin)>,
    ) -> Option<V> {
        loop {
            // Answers that have already arrived cost no timer.
            while let Some(Some(back)) = self.calls.next().now_or_never() {
                self.came(back);
            }
            let due = self.due();
            if self.calls.is_empty() && grant.is_none() {
                return None;
            }
            let granted = async {
                match grant.as_mut() {
                    Some(grant) => grant.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(back) = self.calls.next() => self.came(back),
                value = granted => return Some(value),
                () = sleep_until(due) => return None,
                _ = self.renewal.tick(), if !self.calls.is_empty() => self.scope.renew(delivery).await,
            }
        }
    }

    /// The latest time at which to record what came back.
    fn due(&self) -> Option<Instant> {
        let (first, last) = self.came?;
        if self.calls.is_empty() {
            return Some(last);
        }
        Some((last + TOGETHER).min(first + TOGETHER_MAX))
    }
}
