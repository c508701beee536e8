//! The calls of a delivery that are out. They go on while anything else is waited for, and what comes
//! back lies here until it is sorted.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, Interval};

use super::super::call::Called;
use super::DeliveryScope;
use crate::domain::delivery::{Call, Delivery};
use crate::ports::{Publisher, Store, Transport};

/// Answers that come within so long of each other are recorded together, and their places are taken
/// together: it is steps of the ledger that cost, not recipients in them.
const TOGETHER: Duration = Duration::from_millis(2);

/// Longest time for which an answer is not recorded because others come.
const TOGETHER_MAX: Duration = Duration::from_millis(10);

/// A call that is no longer out.
pub(super) struct Back {
    pub(super) call: Call,
    /// None: it was held back, and never left.
    pub(super) called: Option<Called>,
}

pub(super) struct Flight<'a, S, T, P> {
    scope: &'a DeliveryScope<'a, S, T, P>,
    calls: FuturesUnordered<BoxFuture<'a, Back>>,
    back: VecDeque<Back>,
    /// Calls that came back since the last record; their places are not free before the next one.
    unrecorded: usize,
    /// When the first and the last of them came.
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

    /// Calls that may be begun now.
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

    /// What came back is being recorded.
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

    /// Waits for something while calls are out, and keeps their claims.
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

    /// Waits until the next calls may be made, which `grant` says, or it is time to record what came
    /// back.
    pub(super) async fn until<V>(
        &mut self,
        delivery: &Delivery,
        mut grant: Option<&mut (impl Future<Output = V> + Unpin)>,
    ) -> Option<V> {
        loop {
            // Whatever is there already costs no timer.
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

    /// When what came back is recorded at the latest.
    fn due(&self) -> Option<Instant> {
        let (first, last) = self.came?;
        if self.calls.is_empty() {
            return Some(last);
        }
        Some((last + TOGETHER).min(first + TOGETHER_MAX))
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
