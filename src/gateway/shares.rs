//! The resources that all callers share, with a share for each of them; see `pool` for its size.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use axum::body::{Body, HttpBody as _};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::access::Caller;
use super::pool::{Pool, Share};
use super::problem::{RETRY_AFTER_SECONDS, Refusal};
use super::routes::Shared;
use crate::http::server::{Kept, Peer};
use crate::metrics::{Bound, Metrics};

/// Bodies in memory, of all requests together. A job rarely has more than some KiB.
const BODIES_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Answers that clients have not taken yet, all together. A page of dead letters has some MiB.
const ANSWERS_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The same for answers to requests without credentials, which are short.
const STRANGERS_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Memory of an answer besides its bytes: its stream and its head.
const ANSWER_BYTES: usize = 2 * 1024;

/// Memory that an answer of unknown length takes at a time.
const STREAM_BYTES: usize = 32 * 1024;

/// Uploads at a time: each may fill the disk up to its bound.
const UPLOADS_MAX: usize = 16;

/// Most streams of events. Each may hold a connection, so half of the connections are left to
/// requests.
const STREAMS_MAX: usize = 1024;

/// Uploads that are read and published at a time: each holds a part of several megabytes in memory,
/// and one keeps a core busy.
const SURVEYS_MAX: usize = 2;

/// One place in this many is for requests whose head does not tell their sender.
const STRANGERS: usize = 8;

/// Marks an answer, as one of its extensions: its bytes are there once, for all answers.
#[derive(Clone, Copy)]
pub(super) struct Static;

/// The resources that the callers of one gateway share.
pub(super) struct Shares {
    places: Arc<Pool<Caller>>,
    room: Arc<Pool<Caller>>,
    uploads: Arc<Pool<Caller>>,
    streams: Arc<Pool<Caller>>,
    answers: Arc<Pool<Caller>>,
    strangers: Arc<Pool<IpAddr>>,
    guesses: Arc<Pool<IpAddr>>,
    strangers_answers: Arc<Pool<IpAddr>>,
    surveys: Semaphore,
    turns: Mutex<HashMap<Caller, Arc<Semaphore>>>,
    metrics: Arc<Metrics>,
}

impl Shares {
    pub(super) fn new(requests_max: usize, connections_max: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            places: Pool::new(requests_max),
            room: Pool::new(BODIES_BYTES_MAX),
            uploads: Pool::new(UPLOADS_MAX),
            streams: Pool::new(STREAMS_MAX.min(connections_max.div_ceil(2))),
            answers: Pool::new(ANSWERS_BYTES_MAX),
            strangers: Pool::of_strangers(requests_max.div_ceil(STRANGERS)),
            guesses: Pool::of_strangers(requests_max.div_ceil(STRANGERS)),
            strangers_answers: Pool::of_strangers(STRANGERS_BYTES_MAX),
            surveys: Semaphore::new(SURVEYS_MAX),
            turns: Mutex::default(),
            metrics,
        }
    }

    /// Refuses because a bound is reached.
    pub(super) fn full(&self, bound: Bound, what: &str) -> Refusal {
        self.metrics.request_refused(bound);
        Refusal::Unavailable(what.to_owned())
    }

    /// Takes room in memory for bytes of a body.
    pub(super) fn room(&self, caller: &Caller, bytes: usize) -> Result<Share<Caller>, Refusal> {
        let room = self.room.take(caller, bytes);
        room.ok_or_else(|| self.no_room())
    }

    pub(super) fn no_room(&self) -> Refusal {
        self.full(Bound::Bodies, "too many large requests at a time")
    }

    /// Takes a place among the requests that are served at a time, held until the answer is taken.
    pub(super) fn place(&self, caller: &Caller) -> Result<Share<Caller>, Refusal> {
        let place = self.places.take(caller, 1);
        place.ok_or_else(|| self.full(Bound::Places, "too many requests at a time"))
    }

    /// Takes a place for a request whose head does not tell its sender.
    pub(super) fn stranger(&self, network: IpAddr) -> Result<Share<IpAddr>, Refusal> {
        let place = self.strangers.take(&network, 1);
        place.ok_or_else(|| self.full(Bound::Logins, "too many logins at a time"))
    }

    /// Takes a place for a wrong guess whose answer waits. Logins have other places.
    pub(super) fn guess(&self, network: IpAddr) -> Option<Share<IpAddr>> {
        self.guesses.take(&network, 1)
    }

    pub(super) fn upload(&self, caller: &Caller) -> Result<Share<Caller>, Refusal> {
        let place = self.uploads.take(caller, 1);
        place.ok_or_else(|| self.full(Bound::Uploads, "too many uploads at a time"))
    }

    pub(super) fn stream(&self, caller: &Caller) -> Result<Share<Caller>, Refusal> {
        let place = self.streams.take(caller, 1);
        place.ok_or_else(|| self.full(Bound::Streams, "too many streams are open already"))
    }

    /// Waits for the caller's turn to have a list read. A caller waits for its own lists first, so
    /// that at most one list of each caller is in the common queue.
    pub(super) async fn survey(
        &self,
        caller: &Caller,
    ) -> (OwnedSemaphorePermit, SemaphorePermit<'_>) {
        let own = {
            let mut turns = self.turns.lock();
            let own = turns.entry(caller.clone());
            Arc::clone(own.or_insert_with(|| Arc::new(Semaphore::new(1))))
        };
        // Neither semaphore is ever closed.
        loop {
            let (Ok(own), Ok(turn)) = (
                Arc::clone(&own).acquire_owned().await,
                self.surveys.acquire().await,
            ) else {
                continue;
            };
            return (own, turn);
        }
    }

    /// Keeps what a request took up until its answer is taken, and counts the bytes of the answer.
    /// If there is no room for them, only the head is sent.
    fn keep(&self, mut response: Response, network: Option<IpAddr>) -> Response {
        let held = response.extensions_mut().remove::<Arc<Share<Caller>>>();
        if response.body().is_end_stream() {
            return response;
        }
        let size = response.body().size_hint().exact();
        let size = match response.extensions().get::<Static>() {
            Some(Static) => ANSWER_BYTES,
            None => size.map_or(STREAM_BYTES, |size| size as usize) + ANSWER_BYTES,
        };
        let kept = match (held, network) {
            (Some(held), _) => {
                let room = self.answers.take(held.who(), size);
                room.map(|room| Kept::new((held, room)))
            }
            (None, Some(network)) => {
                let room = self.strangers_answers.take(&network, size);
                room.map(Kept::new)
            }
            (None, None) => return response,
        };
        match kept {
            Some(kept) => {
                response.extensions_mut().insert(kept);
            }
            None => {
                self.metrics.request_refused(Bound::Answers);
                return headless(response);
            }
        }
        response
    }
}

/// The answer that is sent instead of one for which there is no room.
fn headless(response: Response) -> Response {
    if !response.status().is_success() {
        let (mut head, _) = response.into_parts();
        head.headers.remove(header::CONTENT_LENGTH);
        head.headers.remove(header::CONTENT_TYPE);
        return Response::from_parts(head, Body::empty());
    }
    let retry_after = [(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS))];
    (StatusCode::SERVICE_UNAVAILABLE, retry_after).into_response()
}

/// The outermost layer of every request.
pub(super) async fn accounted<B: crate::ports::Broker, S, T>(
    State(gateway): Shared<B, S, T>,
    request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Arc<Peer>>();
    let network = peer.map(|peer| peer.network());
    let response = next.run(request).await;
    gateway.shares.keep(response, network)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str) -> Caller {
        Caller::App(name.to_owned())
    }

    #[test]
    fn promise_11_an_app_has_a_share_of_places_room_uploads_and_streams() {
        let shares = Shares::new(256, 1024, Arc::default());
        type Take = fn(&Shares, &Caller) -> Result<Share<Caller>, Refusal>;
        let kinds: [(_, Take); 4] = [
            // A request that waits for its job holds a place.
            ("places", Shares::place),
            ("room", |shares, caller| shares.room(caller, 1024 * 1024)),
            ("uploads", Shares::upload),
            ("streams", Shares::stream),
        ];
        for (kind, take) in kinds {
            let mut all = Vec::new();
            while let Ok(share) = take(&shares, &app("shop")) {
                all.push(share);
            }
            assert!(!all.is_empty(), "{kind}");
            assert!(take(&shares, &app("bank")).is_ok(), "{kind}: another app");
            assert!(
                take(&shares, &Caller::Admin).is_ok(),
                "{kind}: the administrator"
            );
        }
    }

    #[tokio::test]
    async fn promise_11_the_lists_of_one_app_stand_in_the_queue_once() {
        let (shares, shop) = (Shares::new(256, 1024, Arc::default()), app("shop"));
        let first = shares.survey(&shop).await;
        // This one waits while the first is read, and takes no turn from others.
        let mut second = std::pin::pin!(shares.survey(&shop));
        assert!(futures_util::poll!(&mut second).is_pending());
        let other = shares.survey(&app("bank")).await;
        drop(first);
        let second = second.await;
        drop((other, second));
    }

    #[test]
    fn promise_11_answers_that_are_not_taken_have_a_bound() {
        let shares = Shares::new(256, 1024, Arc::default());
        let answer = |size: usize, caller: Option<Caller>| {
            let mut response = Response::new(Body::from(vec![b'x'; size]));
            if let Some(caller) = caller {
                let place = shares.place(&caller).unwrap();
                response.extensions_mut().insert(Arc::new(place));
            }
            shares.keep(response, Some(IpAddr::from([192, 0, 2, 1])))
        };
        let mib = 1024 * 1024;
        let (mut kept, mut refused) = (Vec::new(), 0);
        for _ in 0..70 {
            let response = answer(mib, Some(app("shop")));
            match response.status() {
                StatusCode::OK => kept.push(response),
                status => {
                    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
                    assert!(response.body().is_end_stream());
                    refused += 1;
                }
            }
        }
        assert!((30..45).contains(&kept.len()), "{}", kept.len());
        assert_eq!(answer(mib, Some(app("bank"))).status(), StatusCode::OK);
        kept.clear();
        assert!(refused > 0);
        assert_eq!(answer(mib, Some(app("shop"))).status(), StatusCode::OK);
        // Answers to requests without credentials are counted separately.
        let strangers: Vec<_> = (0..10_000).map(|_| answer(300, None)).collect();
        let with_body = |answer: &&Response| !answer.body().is_end_stream();
        let told = strangers.iter().filter(with_body).count();
        assert!((1000..2000).contains(&told), "{told}");
    }
}
