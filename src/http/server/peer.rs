//! The state of one connection, shared by its requests and by the code that gives out places.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// A connection; in the extensions of each of its requests.
#[derive(Debug)]
pub(crate) struct Peer {
    /// The network it comes from.
    network: IpAddr,
    /// Whether it brought a request.
    asked: AtomicBool,
    /// Whether it brought valid credentials.
    trusted: AtomicBool,
    /// Requests under way, and answers that are not taken yet.
    under_way: AtomicUsize,
    /// How many of those are answers.
    answering: AtomicUsize,
    idle_since: Mutex<Instant>,
    /// Set to take no further requests: the connection ends when those under way are answered.
    ends: CancellationToken,
    /// Set to end the connection now.
    goes: CancellationToken,
}

impl Peer {
    pub(super) fn new(address: IpAddr) -> Self {
        Self {
            network: network(address),
            asked: AtomicBool::new(false),
            trusted: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
            answering: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
            ends: CancellationToken::new(),
            goes: CancellationToken::new(),
        }
    }

    pub(crate) fn network(&self) -> IpAddr {
        self.network
    }

    /// Notes that it brought valid credentials, so that it is among the last to make place for
    /// others.
    pub(crate) fn trust(&self) {
        self.trusted.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_trusted(&self) -> bool {
        self.trusted.load(Ordering::Relaxed)
    }

    /// Takes no further requests from it.
    pub(crate) fn end(&self) {
        self.ends.cancel();
    }

    pub(super) async fn asked_to_end(&self) {
        self.ends.cancelled().await;
    }

    /// Ends it now. Only for a connection that is expendable.
    pub(super) fn go(&self) {
        self.goes.cancel();
    }

    pub(super) async fn told_to_go(&self) {
        self.goes.cancelled().await;
    }

    pub(super) fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Since when it has had no work; `None` if it has some.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let since = *self.idle_since.lock();
        (self.under_way.load(Ordering::Acquire) == 0).then_some(since)
    }

    /// Since when closing it has done no harm: it is idle, or it brought no credentials and has
    /// only answers that it does not take. `None` if closing it would do harm.
    pub(super) fn expendable_since(&self) -> Option<Instant> {
        let since = *self.idle_since.lock();
        let under_way = self.under_way.load(Ordering::Acquire);
        let answering = self.answering.load(Ordering::Acquire);
        let is_stranger = !self.is_trusted() && answering >= under_way;
        (under_way == 0 || is_stranger).then_some(since)
    }

    /// Restarts the time that it has been idle.
    pub(super) fn is_idle_from_now(&self) {
        *self.idle_since.lock() = Instant::now();
    }

    /// Returns once it has been idle for this long.
    pub(super) async fn idle_for(&self, patience: Duration) {
        loop {
            let now = Instant::now();
            let until = self.idle_since().map_or(now, |since| since) + patience;
            if until <= now {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// Marks it busy until the guard is dropped.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.asked.store(true, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::AcqRel);
        Busy {
            peer: Arc::clone(self),
            answers: false,
        }
    }
}

/// A request under way, and then its answer.
pub(super) struct Busy {
    peer: Arc<Peer>,
    answers: bool,
}

impl Busy {
    /// Notes that the answer is ready and waits for its reader.
    pub(super) fn answers(&mut self) {
        if !std::mem::replace(&mut self.answers, true) {
            self.peer.answering.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.peer.is_idle_from_now();
        if self.answers {
            self.peer.answering.fetch_sub(1, Ordering::AcqRel);
        }
        self.peer.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The address that stands for a caller: an IPv4 address, or the /64 network of an IPv6 address,
/// since a caller there has billions of addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let bits = address.to_bits() & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_network_are_one_caller() {
        let check = |address: &str, expected: &str| {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(network(address).to_string(), expected);
        };
        check("192.0.2.7", "192.0.2.7");
        check("::ffff:192.0.2.7", "192.0.2.7");
        check("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::");
        check("2001:db8:1:3::1", "2001:db8:1:3::");
    }

    #[tokio::test]
    async fn what_is_busy_is_not_idle() {
        let peer = Arc::new(Peer::new(IpAddr::from([127, 0, 0, 1])));
        let patience = Duration::from_millis(20);
        let begun = Instant::now();
        let busy = peer.busy();
        let later = tokio::time::timeout(3 * patience, peer.idle_for(patience));
        assert!(later.await.is_err(), "it is busy");
        drop(busy);
        peer.idle_for(patience).await;
        assert!(begun.elapsed() >= 4 * patience);
    }
}
