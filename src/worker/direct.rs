//! Delivers small jobs at once. The worker that takes such a job hands its slice to its own
//! scheduler and acks the job when the slice has ended. The job itself is durable meanwhile, so the
//! slice need not be: this saves a trip through the broker.
//!
//! If the slice does not end here (its work panics, the process drains, the session is lost), the
//! broker hands the job out again, and its slice then takes the usual way over a lane. So does the
//! slice of a job for which no place is free: a slow target never holds up the intake.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::domain::lane::Lane;
use crate::ports::{BoxFuture, Delivery, EndDelivery, Lost, Outgoing, PublishError};

/// Jobs that are delivered at once at a time.
pub(super) const DIRECT_MAX: u16 = 12;

/// How long a job waits for a place. A fast target frees several in that time.
const PLACE_WAIT: Duration = Duration::from_millis(50);

/// After a job waited in vain, no other waits for this long.
const SLOW: Duration = Duration::from_secs(1);

pub(super) struct Direct {
    /// The numbers of the lanes at the scheduler.
    lanes: HashMap<Lane, usize>,
    scheduler: mpsc::Sender<(usize, Delivery)>,
    places: Semaphore,
    /// No job waits for a place until then.
    slow_until: Mutex<Instant>,
}

/// Why a slice is not delivered.
pub(super) enum NotDelivered {
    /// Its delivery did not end, so the job comes back.
    Back,
    Rejected(String),
}

type Ended = Result<(), NotDelivered>;

impl Direct {
    pub(super) fn new(
        lanes: impl IntoIterator<Item = Lane>,
        scheduler: mpsc::Sender<(usize, Delivery)>,
    ) -> Self {
        let lanes = lanes.into_iter().enumerate();
        Self {
            lanes: lanes.map(|(number, lane)| (lane, number)).collect(),
            scheduler,
            places: Semaphore::new(usize::from(DIRECT_MAX)),
            slow_until: Mutex::new(Instant::now()),
        }
    }

    /// A place for a job, unless they are all taken by slow deliveries.
    pub(super) async fn place(&self) -> Option<SemaphorePermit<'_>> {
        if let Ok(place) = self.places.try_acquire() {
            return Some(place);
        }
        if Instant::now() < *self.slow_until.lock() {
            return None;
        }
        let place = timeout(PLACE_WAIT, self.places.acquire()).await;
        if place.is_err() {
            *self.slow_until.lock() = Instant::now() + SLOW;
        }
        place.ok()?.ok()
    }

    /// Waits until every recipient of a slice has its outcome, or the rest is published.
    pub(super) async fn deliver(
        &self,
        lane: &Lane,
        slice: Outgoing,
        _place: SemaphorePermit<'_>,
    ) -> Ended {
        let Some(number) = self.lanes.get(lane) else {
            return Err(NotDelivered::Back);
        };
        let (end, ended) = oneshot::channel();
        let delivery = Delivery {
            body: slice.body,
            traceparent: slice.traceparent,
            redelivered: false,
            end: Box::new(End(end)),
        };
        // Both fail only when the session ends.
        match self.scheduler.send((*number, delivery)).await {
            Ok(()) => ended.await.unwrap_or(Err(NotDelivered::Back)),
            Err(_) => Err(NotDelivered::Back),
        }
    }
}

/// Tells the intake how the delivery ended.
struct End(oneshot::Sender<Ended>);

impl End {
    fn tell<E: Send + 'static>(self, ended: Ended) -> BoxFuture<Result<(), E>> {
        // The intake waits as long as the session lasts.
        let _ = self.0.send(ended);
        Box::pin(async { Ok(()) })
    }
}

impl EndDelivery for End {
    fn ack(self: Box<Self>) -> BoxFuture<Result<(), Lost>> {
        (*self).tell(Ok(()))
    }

    fn requeue(self: Box<Self>) -> BoxFuture<Result<(), Lost>> {
        (*self).tell(Err(NotDelivered::Back))
    }

    fn reject(self: Box<Self>, reason: String) -> BoxFuture<Result<(), PublishError>> {
        (*self).tell(Err(NotDelivered::Rejected(reason)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Route;

    fn direct() -> (Direct, mpsc::Receiver<(usize, Delivery)>) {
        let (sender, arrivals) = mpsc::channel(1);
        (Direct::new(Lane::all("im"), sender), arrivals)
    }

    fn slice(lane: &Lane) -> Outgoing {
        Outgoing {
            route: Route::Lane(lane.clone()),
            body: "a slice".into(),
            message_id: String::new(),
            traceparent: None,
        }
    }

    /// What the intake learns if the scheduler does this with the delivery.
    async fn ended<F: Future>(end: impl FnOnce(Delivery) -> F) -> Ended {
        let (direct, mut arrivals) = direct();
        let lane = Lane::of_small_jobs("im", 1);
        let place = direct.place().await.unwrap();
        let scheduler = async {
            let (number, delivery) = arrivals.recv().await.unwrap();
            assert_eq!(Lane::all("im").nth(number).as_ref(), Some(&lane));
            assert_eq!(delivery.body, "a slice");
            end(delivery).await;
        };
        let delivered = direct.deliver(&lane, slice(&lane), place);
        tokio::join!(delivered, scheduler).0
    }

    #[tokio::test]
    async fn the_intake_learns_how_a_slice_ended() {
        assert!(matches!(ended(Delivery::ack).await, Ok(())));
        let back = ended(Delivery::requeue).await;
        assert!(matches!(back, Err(NotDelivered::Back)));
        let lost = ended(async |delivery| drop(delivery)).await;
        assert!(matches!(lost, Err(NotDelivered::Back)));
        let refused = ended(|delivery| delivery.reject("no slice".to_owned())).await;
        assert!(matches!(refused, Err(NotDelivered::Rejected(why)) if why == "no slice"));
    }

    #[tokio::test]
    async fn a_session_that_ended_and_a_lane_that_is_not_here_bring_the_job_back() {
        let (direct, arrivals) = direct();
        let place = direct.place().await.unwrap();
        let lane = Lane::of_small_jobs("other", 0);
        let back = direct.deliver(&lane, slice(&lane), place).await;
        assert!(matches!(back, Err(NotDelivered::Back)));
        drop(arrivals);
        let place = direct.place().await.unwrap();
        let lane = Lane::of_small_jobs("im", 0);
        let back = direct.deliver(&lane, slice(&lane), place).await;
        assert!(matches!(back, Err(NotDelivered::Back)));
    }

    #[tokio::test]
    async fn a_job_waits_for_a_place_unless_deliveries_are_slow() {
        let (direct, _arrivals) = direct();
        let mut places = Vec::new();
        for _ in 0..DIRECT_MAX {
            places.push(direct.place().await.unwrap());
        }
        let freed = async {
            tokio::task::yield_now().await;
            places.pop();
        };
        assert!(tokio::join!(direct.place(), freed).0.is_some());
        places.push(direct.place().await.unwrap());
        // None becomes free, and then no other job waits.
        assert!(direct.place().await.is_none());
        let mut waits = std::pin::pin!(direct.place());
        let at_once = futures_util::poll!(&mut waits);
        assert!(matches!(at_once, std::task::Poll::Ready(None)));
    }
}
