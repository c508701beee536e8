//! Holds the connections of a server, and chooses which one to close if a further one needs its
//! place.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::peer::Peer;

/// Time between two searches for an idle connection, while all are busy.
const LOOK: Duration = Duration::from_millis(100);

/// The open connections.
pub(super) struct Connections {
    places: Arc<Semaphore>,
    open: Arc<Mutex<Open>>,
}

#[derive(Default)]
struct Open {
    next: u64,
    peers: HashMap<u64, Arc<Peer>>,
}

/// The place of one connection, held until this is dropped.
pub(super) struct Entry {
    pub(super) peer: Arc<Peer>,
    number: u64,
    open: Arc<Mutex<Open>>,
    _place: OwnedSemaphorePermit,
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.open).peers.remove(&self.number);
    }
}

fn lock(open: &Mutex<Open>) -> parking_lot::MutexGuard<'_, Open> {
    open.lock()
}

impl Connections {
    pub(super) fn new(most: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(most)),
            open: Arc::default(),
        }
    }

    /// Takes a place for a connection. If there is none, closes one that is idle.
    pub(super) async fn enter(&self, address: IpAddr) -> Entry {
        let place = loop {
            match Arc::clone(&self.places).try_acquire_owned() {
                Ok(place) => break place,
                Err(_) => self.make_place().await,
            }
        };
        let peer = Arc::new(Peer::new(address));
        let mut open = lock(&self.open);
        let number = open.next;
        open.next += 1;
        open.peers.insert(number, Arc::clone(&peer));
        Entry {
            peer,
            number,
            open: Arc::clone(&self.open),
            _place: place,
        }
    }

    /// Ends a connection that loses nothing by it, and waits until it is closed, or for [`LOOK`].
    async fn make_place(&self) {
        let peers: Vec<_> = lock(&self.open).peers.values().cloned().collect();
        if let Some(peer) = expendable(&peers) {
            peer.go();
        }
        let freed = async {
            // The semaphore never closes; the permit is dropped at once, which frees the place.
            let _ = self.places.acquire().await;
        };
        let _ = tokio::time::timeout(LOOK, freed).await;
    }
}

/// The connection that loses least if it is closed. Connections without credentials come first:
/// idle ones, then those that do not take their answers; of these, one from the network with the
/// most such connections, and of those the one that is idle longest. Idle connections with
/// credentials come last.
fn expendable(peers: &[Arc<Peer>]) -> Option<&Arc<Peer>> {
    let candidates = peers.iter().filter_map(|peer| {
        let since = peer.expendable_since()?;
        Some((peer.is_trusted(), since, peer))
    });
    let candidates: Vec<_> = candidates.collect();
    let mut strangers: HashMap<IpAddr, usize> = HashMap::new();
    for (_, _, peer) in candidates.iter().filter(|(trusted, ..)| !trusted) {
        *strangers.entry(peer.network()).or_default() += 1;
    }
    let crowd = |peer: &Peer| strangers.get(&peer.network()).copied().unwrap_or_default();
    let order = |(trusted, since, peer): &(bool, _, &Arc<Peer>)| {
        let crowd = if *trusted { 0 } else { crowd(peer) };
        let is_idle = peer.idle_since().is_some();
        (*trusted, !is_idle, Reverse(crowd), *since)
    };
    candidates
        .into_iter()
        .min_by_key(order)
        .map(|(.., peer)| peer)
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::http::server::peer::Busy;

    fn peer(last: u8) -> Arc<Peer> {
        Arc::new(Peer::new(IpAddr::from([192, 0, 2, last])))
    }

    #[test]
    fn a_connection_without_credentials_makes_place_first() {
        let mut peers = Vec::new();
        for (name, from) in [
            ("busy", 1),
            ("trusted", 1),
            ("alone", 2),
            ("of two", 3),
            ("too", 3),
        ] {
            peers.push((name, peer(from)));
            let now = Instant::now();
            while Instant::now() == now {}
        }
        let _request = peers[0].1.busy();
        peers[1].1.trust();
        // One without credentials that takes no answer, and one with credentials.
        let (unread, slow) = (peer(1), peer(1));
        let mut answers = [unread.busy(), slow.busy()];
        answers.iter_mut().for_each(Busy::answers);
        slow.trust();
        peers.extend([("unread", unread), ("slow", slow)]);
        let mut gone = Vec::new();
        loop {
            let idle: Vec<_> = peers.iter().map(|(_, peer)| Arc::clone(peer)).collect();
            let Some(peer) = expendable(&idle) else { break };
            let index = idle.iter().position(|it| Arc::ptr_eq(it, peer)).unwrap();
            gone.push(peers.remove(index).0);
        }
        assert_eq!(gone, ["of two", "alone", "too", "unread", "trusted"]);
        drop(answers);
    }

    #[tokio::test]
    async fn promise_11_idle_connections_keep_nobody_out() {
        let connections = Connections::new(2);
        for _ in 0..5 {
            let entry = connections.enter(IpAddr::from([192, 0, 2, 1])).await;
            // The task of a connection does this.
            tokio::spawn(async move { entry.peer.told_to_go().await });
        }
        let busy = connections.enter(IpAddr::from([192, 0, 2, 2])).await;
        let _request = busy.peer.busy();
        let second = connections.enter(IpAddr::from([192, 0, 2, 2])).await;
        let request = second.peer.busy();
        let third = connections.enter(IpAddr::from([192, 0, 2, 3]));
        let third = tokio::time::timeout(3 * LOOK, third);
        assert!(third.await.is_err(), "those that are busy stay");
        drop((request, second));
        connections.enter(IpAddr::from([192, 0, 2, 3])).await;
    }
}
