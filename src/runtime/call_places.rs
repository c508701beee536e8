//! The places for calls of a target: each call in flight has one. Their number is fixed, or adapts
//! to the answers.

use std::time::Duration;

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::domain::concurrency::{CallsInFlight, Concurrency};
use crate::ports::{HttpReply, SendError};

pub struct CallPlaces {
    free: Semaphore,
    adaptive: Option<Mutex<Adaptive>>,
    /// Shows how many places there are.
    shown: IntGauge,
}

struct Adaptive {
    concurrency: Concurrency,
    /// The origin of the times that it gets.
    epoch: Instant,
    /// Places that exist, free or taken.
    places: usize,
}

impl CallPlaces {
    pub fn new(configured: CallsInFlight, shown: IntGauge) -> Self {
        let (places, adaptive) = match configured {
            CallsInFlight::Fixed(places) => (places, None),
            CallsInFlight::Auto => {
                let concurrency = Concurrency::default();
                let places = concurrency.bound();
                let adaptive = Adaptive {
                    concurrency,
                    epoch: Instant::now(),
                    places,
                };
                (places, Some(Mutex::new(adaptive)))
            }
        };
        shown.set(places as i64);
        Self {
            free: Semaphore::new(places),
            adaptive,
            shown,
        }
    }

    /// Waits for a place. Callers get places in the order in which they came.
    pub(crate) async fn take(&self) -> SemaphorePermit<'_> {
        match self.free.acquire().await {
            Ok(place) => place,
            // It is never closed: the places live as long as the target.
            Err(_) => std::future::pending().await,
        }
    }

    /// A place, if one is free.
    pub(crate) fn try_take(&self) -> Option<SemaphorePermit<'_>> {
        self.free.try_acquire().ok()
    }

    /// As many places as are free, at most so many.
    pub(crate) fn try_take_some(&self, most: usize) -> Option<SemaphorePermit<'_>> {
        let some = self.free.available_permits().min(most);
        self.free.try_acquire_many(u32::try_from(some).ok()?).ok()
    }

    /// Gives back the place of a call that has ended. If there are too many places, this one goes:
    /// free ones are gone already, and somebody may wait for this one.
    pub(crate) fn give_back(&self, place: SemaphorePermit<'_>) {
        let Some(adaptive) = &self.adaptive else {
            return;
        };
        let mut adaptive = adaptive.lock();
        if adaptive.places > adaptive.concurrency.bound() {
            adaptive.places -= 1;
            self.shown.set(adaptive.places as i64);
            place.forget();
        }
    }

    /// Learns from a call that began at a time. With a fixed number it costs nothing.
    pub(crate) fn heard(&self, began: Instant, sent: &Result<HttpReply, SendError>) {
        if let Some(adaptive) = &self.adaptive {
            self.learn(adaptive, began.elapsed(), sent);
        }
    }

    fn learn(
        &self,
        adaptive: &Mutex<Adaptive>,
        took: Duration,
        sent: &Result<HttpReply, SendError>,
    ) {
        let mut adaptive = adaptive.lock();
        let now = adaptive.epoch.elapsed();
        let in_flight = adaptive
            .places
            .saturating_sub(self.free.available_permits());
        match sent {
            Ok(reply) if is_overloaded(reply.status) => adaptive.concurrency.refused(now),
            // A target refuses these at once, which tells nothing about its speed.
            Ok(reply) if reply.status >= 400 => {}
            Ok(_) => adaptive.concurrency.answered(took, in_flight, now),
            Err(error) if error.is_lasting() => {}
            Err(_) => adaptive.concurrency.refused(now),
        }
        let bound = adaptive.concurrency.bound();
        if bound > adaptive.places {
            self.free.add_permits(bound - adaptive.places);
            adaptive.places = bound;
        } else {
            adaptive.places -= self.free.forget_permits(adaptive.places - bound);
        }
        self.shown.set(adaptive.places as i64);
    }
}

/// Whether a status says that the server has too much to do.
fn is_overloaded(status: u16) -> bool {
    matches!(status, 502..=504)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::concurrency::START;

    fn places(configured: CallsInFlight) -> CallPlaces {
        CallPlaces::new(configured, IntGauge::new("places", "Places").unwrap())
    }

    const TOOK: Duration = Duration::from_millis(20);

    fn hear(places: &CallPlaces, sent: &Result<HttpReply, SendError>) {
        match &places.adaptive {
            Some(adaptive) => places.learn(adaptive, TOOK, sent),
            None => places.heard(Instant::now(), sent),
        }
    }

    fn reply(status: u16) -> Result<HttpReply, SendError> {
        Ok(HttpReply {
            status,
            headers: http::HeaderMap::new(),
            body: bytes::Bytes::new(),
        })
    }

    #[tokio::test]
    async fn places_come_with_answers_and_go_with_refusals() {
        let places = places(CallsInFlight::Auto);
        let taken: Vec<_> = (0..START).map(|_| places.try_take().unwrap()).collect();
        assert!(places.try_take().is_none());
        // The calls that started before anything was known, and a round.
        (0..START + 16).for_each(|_| hear(&places, &reply(200)));
        assert_eq!(places.shown.get(), 2 * START as i64);
        let more: Vec<_> = (0..START).map(|_| places.try_take().unwrap()).collect();
        // The calls from before, and one that is refused.
        (0..START).for_each(|_| hear(&places, &reply(200)));
        hear(&places, &reply(503));
        // Nobody waits, and still the places of calls in flight go as the calls end.
        let all = taken.into_iter().chain(more);
        all.for_each(|place| places.give_back(place));
        assert_eq!(places.shown.get(), START as i64);
        assert_eq!(places.free.available_permits(), START);
    }

    #[tokio::test]
    async fn one_place_stays_for_a_target_that_refuses_everything() {
        let places = places(CallsInFlight::Auto);
        for _ in 0..3 {
            let place = places.take().await;
            (0..16).for_each(|_| hear(&places, &reply(502)));
            places.give_back(place);
            let free = places.free.available_permits();
            assert_eq!((places.shown.get(), free), (1, 1));
        }
    }

    #[tokio::test]
    async fn a_fixed_number_stays() {
        let places = places(CallsInFlight::Fixed(2));
        let taken = [places.try_take().unwrap(), places.try_take().unwrap()];
        (0..100).for_each(|_| hear(&places, &reply(503)));
        taken.into_iter().for_each(|place| places.give_back(place));
        assert_eq!(
            (places.shown.get(), places.free.available_permits()),
            (2, 2)
        );
        assert!(
            places
                .try_take_some(9)
                .is_some_and(|it| it.num_permits() == 2)
        );
    }
}
