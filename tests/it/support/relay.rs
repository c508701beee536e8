//! Runs a TCP relay inside the test, between a client and its server, that can disturb the link.
//!
//! Faults are states of the relay, not events: later connections get them too, until
//! [`Relay::restore`]. The relay keeps its address through all of them. It keeps listening while
//! the link is cut: a new connection is then accepted and reset immediately, because another
//! process could take an address that is given up. For a refused connection, kill the server.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::wait::until;

/// Chunks in flight in one direction. At 16 KiB a chunk this blocks a writer, as a full socket
/// does, so that memory does not grow.
const CHUNKS_UNDER_WAY: usize = 64;
const CHUNK_BYTES: usize = 16 * 1024;
/// A server on this machine accepts immediately or not at all.
const CONNECT_BOUND: Duration = Duration::from_secs(10);
/// No byte budget: the link is not cut by volume.
const UNLIMITED: u64 = u64::MAX;

/// A direction of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer,
    ToClient,
}

/// The current state of the link.
#[derive(Debug, Clone, Default)]
struct Conditions {
    cut: bool,
    /// If set, nothing is read, forwarded or closed in this direction.
    hold_to_server: bool,
    hold_to_client: bool,
    /// Age at which a chunk is forwarded.
    delay: Duration,
    /// Raised to reset the current connections, and only these.
    reset: u64,
}

impl Conditions {
    fn holds(&self, way: Way) -> bool {
        match way {
            Way::ToServer => self.hold_to_server,
            Way::ToClient => self.hold_to_client,
        }
    }
}

#[derive(Debug)]
struct Shared {
    upstream: String,
    weather: watch::Sender<Conditions>,
    open: AtomicUsize,
    accepted: AtomicU64,
    /// Bytes that may still pass before the link is cut, by direction.
    budget_to_server: AtomicU64,
    budget_to_client: AtomicU64,
    passed_to_server: AtomicU64,
    passed_to_client: AtomicU64,
    /// The bytes that clients sent, if they are kept.
    said: Mutex<Option<Vec<u8>>>,
}

impl Shared {
    fn budget(&self, way: Way) -> &AtomicU64 {
        match way {
            Way::ToServer => &self.budget_to_server,
            Way::ToClient => &self.budget_to_client,
        }
    }

    /// How many of `count` bytes may pass, and whether they are the last ones.
    fn take(&self, way: Way, count: usize) -> (usize, bool) {
        let wanted = count as u64;
        let limited = |left| (left != UNLIMITED).then(|| u64::saturating_sub(left, wanted));
        match self
            .budget(way)
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, limited)
        {
            Ok(left) => (left.min(wanted) as usize, left <= wanted),
            Err(_) => (count, false),
        }
    }

    fn passed(&self, way: Way) -> &AtomicU64 {
        match way {
            Way::ToServer => &self.passed_to_server,
            Way::ToClient => &self.passed_to_client,
        }
    }
}

/// The relay. Dropping it closes its address and its connections.
pub(crate) struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Relay {
    /// Listens on a free port of 127.0.0.1 and forwards to `upstream` (`host:port`).
    pub(crate) async fn start(upstream: impl Into<String>) -> Relay {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("bind the relay");
        let address = listener.local_addr().expect("address of the relay");
        let shared = Arc::new(Shared {
            upstream: upstream.into(),
            weather: watch::Sender::default(),
            open: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            budget_to_server: AtomicU64::new(UNLIMITED),
            budget_to_client: AtomicU64::new(UNLIMITED),
            passed_to_server: AtomicU64::new(0),
            passed_to_client: AtomicU64::new(0),
            said: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&shared)));
        Relay {
            address,
            shared,
            _tasks: tasks,
        }
    }

    /// A relay in front of the server of `url`, and the URL that leads through it.
    pub(crate) async fn before(url: &str) -> (Relay, String) {
        let upstream = authority(url);
        let relay = Relay::start(upstream).await;
        let through = url.replacen(upstream, &relay.address.to_string(), 1);
        (relay, through)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Resets every connection on both sides, and new ones until [`Relay::restore`]. When this
    /// returns, the sockets are closed.
    pub(crate) async fn cut(&self) {
        self.shared
            .weather
            .send_modify(|weather| weather.cut = true);
        self.until_none_open().await;
    }

    /// Cuts the link, as [`Relay::cut`] does, as soon as `bytes` more have passed in this
    /// direction; with 0, at the next byte.
    pub(crate) fn cut_after(&self, way: Way, bytes: u64) {
        self.shared.budget(way).store(bytes, Ordering::SeqCst);
    }

    /// Resets the current connections; new ones work.
    pub(crate) async fn reset(&self) {
        let before = self.shared.open.load(Ordering::SeqCst);
        self.shared
            .weather
            .send_modify(|weather| weather.reset += 1);
        if before > 0 {
            // A client that reconnects immediately may keep the count up: its connection is a new
            // one.
            let accepted = self.accepted();
            until(
                "the reset of the relay's connections",
                Duration::from_secs(10),
                async || (self.connections() == 0 || self.accepted() > accepted).then_some(()),
            )
            .await;
        }
    }

    /// Stops forwarding in both directions without closing anything, as a dead router does.
    pub(crate) fn blackhole(&self) {
        self.hold(Way::ToServer);
        self.hold(Way::ToClient);
    }

    /// Stops forwarding in one direction: with [`Way::ToClient`] requests arrive and their
    /// answers do not.
    pub(crate) fn hold(&self, way: Way) {
        self.shared.weather.send_modify(|weather| match way {
            Way::ToServer => weather.hold_to_server = true,
            Way::ToClient => weather.hold_to_client = true,
        });
    }

    /// Delays every byte by this time, in each direction; the throughput stays the same.
    pub(crate) fn delay(&self, delay: Duration) {
        self.shared
            .weather
            .send_modify(|weather| weather.delay = delay);
    }

    /// Ends all faults. Data that were held back are forwarded; cut connections stay cut, new ones
    /// work.
    pub(crate) fn restore(&self) {
        for way in [Way::ToServer, Way::ToClient] {
            self.shared.budget(way).store(UNLIMITED, Ordering::SeqCst);
        }
        self.shared.weather.send_modify(|weather| {
            *weather = Conditions {
                reset: weather.reset,
                ..Conditions::default()
            };
        });
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.shared.weather.borrow().cut
    }

    /// Connections open now.
    pub(crate) fn connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// All connections accepted so far, including those that were reset immediately.
    pub(crate) fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Bytes forwarded in this direction, over all connections.
    pub(crate) fn passed(&self, way: Way) -> u64 {
        self.shared.passed(way).load(Ordering::SeqCst)
    }

    /// From now on keeps the bytes that clients send.
    pub(crate) fn keep(&self) {
        *self.shared.said.lock().unwrap() = Some(Vec::new());
    }

    /// The bytes that clients sent since then and that were forwarded.
    pub(crate) fn said(&self) -> Vec<u8> {
        self.shared.said.lock().unwrap().clone().unwrap_or_default()
    }

    async fn until_none_open(&self) {
        until(
            "the relay's connections to close",
            Duration::from_secs(10),
            async || (self.connections() == 0).then_some(()),
        )
        .await;
    }
}

/// `host:port` of a URL such as `amqp://user:password@host:port/vhost`.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host)
}

/// Counts a connection as open until it is dropped, however its task ends.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: &Arc<Shared>) -> Open {
        shared.open.fetch_add(1, Ordering::SeqCst);
        Open(Arc::clone(shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => client,
                // The client gave up before it was accepted.
                Err(_) => continue,
            },
            // Finished tasks are collected here, so the set does not grow.
            Some(_) = connections.join_next() => continue,
        };
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        let weather = shared.weather.subscribe();
        if weather.borrow().cut {
            reset_on_close(&client);
            continue;
        }
        let open = Open::new(&shared);
        connections.spawn(connection(open, client, weather));
    }
}

/// Makes closing this socket send RST in place of FIN, and discard unsent data.
fn reset_on_close(stream: &TcpStream) {
    // An error means that the peer has reset it already.
    let _ = stream.set_zero_linger();
}

/// One client and its connection to the server. `open` comes first, so that it is dropped last,
/// after the sockets.
async fn connection(open: Open, mut client: TcpStream, mut weather: watch::Receiver<Conditions>) {
    let shared = &open.0;
    let born = weather.borrow().reset;
    let connecting = timeout(CONNECT_BOUND, TcpStream::connect(&shared.upstream));
    let connected = tokio::select! {
        connected = connecting => connected,
        () = spoiled(&mut weather, born) => return reset_on_close(&client),
    };
    let Ok(Ok(mut server)) = connected else {
        return reset_on_close(&client);
    };
    // An error means that the peer is gone, which forwarding will notice.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));

    let orderly = {
        let (client_read, client_write) = client.split();
        let (server_read, server_write) = server.split();
        let both = async {
            tokio::try_join!(
                forward(Way::ToServer, client_read, server_write, shared),
                forward(Way::ToClient, server_read, client_write, shared),
            )
        };
        tokio::select! {
            result = both => result.is_ok(),
            () = spoiled(&mut weather, born) => false,
        }
    };
    if !orderly {
        reset_on_close(&client);
        reset_on_close(&server);
    }
}

/// Returns when the connections of generation `born` must be reset.
async fn spoiled(weather: &mut watch::Receiver<Conditions>, born: u64) {
    // The sender lives as long as the relay, and this task does not outlive it.
    let _ = weather.wait_for(|now| now.cut || now.reset > born).await;
}

async fn until_held(weather: &mut watch::Receiver<Conditions>, way: Way, held: bool) {
    let _ = weather.wait_for(|now| now.holds(way) == held).await;
}

/// Forwards bytes in one direction until the end of the stream, then closes that direction. An
/// error requests a reset of both sides.
async fn forward(
    way: Way,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    shared: &Shared,
) -> io::Result<()> {
    // Reading and writing are separate, so that a delay costs time but no throughput.
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_UNDER_WAY);

    let mut weather = shared.weather.subscribe();
    let reading = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            until_held(&mut weather, way, false).await;
            let count = tokio::select! {
                biased;
                () = until_held(&mut weather, way, true) => continue,
                count = from.read(&mut buffer) => count?,
            };
            let chunk = (Instant::now(), buffer[..count].to_vec());
            if count == 0 || sender.send(chunk).await.is_err() {
                return io::Result::Ok(());
            }
        }
    };

    let mut weather = shared.weather.subscribe();
    let writing = async move {
        while let Some((read_at, chunk)) = receiver.recv().await {
            let delay = weather.borrow().delay;
            sleep_until(read_at + delay).await;
            until_held(&mut weather, way, false).await;
            let (allowed, last) = shared.take(way, chunk.len());
            to.write_all(&chunk[..allowed]).await?;
            if let (Way::ToServer, Some(said)) = (way, &mut *shared.said.lock().unwrap()) {
                said.extend_from_slice(&chunk[..allowed]);
            }
            shared
                .passed(way)
                .fetch_add(allowed as u64, Ordering::SeqCst);
            if last {
                shared.weather.send_modify(|weather| weather.cut = true);
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
        until_held(&mut weather, way, false).await;
        to.shutdown().await
    };

    tokio::try_join!(reading, writing).map(|_| ())
}

mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(10);

    /// A server that returns what it gets, and a relay in front of it.
    async fn echo() -> (Relay, JoinSet<()>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let upstream = listener.local_addr().unwrap().to_string();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        (Relay::start(upstream).await, server)
    }

    async fn connect(relay: &Relay) -> TcpStream {
        TcpStream::connect(relay.addr()).await.unwrap()
    }

    async fn ping(stream: &mut TcpStream) -> io::Result<()> {
        stream.write_all(b"ping").await?;
        let mut answer = [0; 4];
        timeout(BOUND, stream.read_exact(&mut answer)).await??;
        assert_eq!(&answer, b"ping");
        Ok(())
    }

    async fn assert_reset(stream: &mut TcpStream) {
        let read = timeout(BOUND, stream.read(&mut [0; 16]))
            .await
            .expect("an end");
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    /// Checks that nothing arrives for a moment. Only here time itself is the subject.
    async fn assert_silent(stream: &mut TcpStream) {
        let read = timeout(Duration::from_millis(100), stream.read(&mut [0; 16])).await;
        assert!(read.is_err(), "expected silence, got {read:?}");
    }

    #[tokio::test]
    async fn forwards_and_closes_in_order() {
        let (relay, _server) = echo().await;
        let mut stream = connect(&relay).await;
        let sent: Vec<u8> = (0..3_000_000u32).map(|index| index as u8).collect();
        let (mut read, mut write) = stream.split();
        let mut received = Vec::new();
        let writing = async {
            write.write_all(&sent).await?;
            write.shutdown().await
        };
        let reading = read.read_to_end(&mut received);
        let done = timeout(BOUND, async { tokio::try_join!(writing, reading) });
        done.await.expect("both directions end").unwrap();
        assert!(
            received == sent,
            "{} bytes came back, changed",
            received.len()
        );
        assert_eq!(relay.passed(Way::ToServer), sent.len() as u64);
        until("the close", BOUND, async || {
            (relay.connections() == 0).then_some(())
        })
        .await;
    }

    #[tokio::test]
    async fn cut_resets_old_and_new_connections_until_restored() {
        let (relay, _server) = echo().await;
        let mut stream = connect(&relay).await;
        ping(&mut stream).await.unwrap();
        assert_eq!(relay.connections(), 1);
        relay.cut().await;
        assert_eq!(relay.connections(), 0);
        assert_reset(&mut stream).await;
        assert!(ping(&mut connect(&relay).await).await.is_err());
        relay.restore();
        ping(&mut connect(&relay).await).await.unwrap();
        assert_eq!(relay.accepted(), 3);
    }

    #[tokio::test]
    async fn reset_spares_later_connections() {
        let (relay, _server) = echo().await;
        let mut stream = connect(&relay).await;
        ping(&mut stream).await.unwrap();
        relay.reset().await;
        assert_reset(&mut stream).await;
        ping(&mut connect(&relay).await).await.unwrap();
    }

    #[tokio::test]
    async fn blackhole_keeps_the_connection_and_loses_nothing() {
        let (relay, _server) = echo().await;
        let mut stream = connect(&relay).await;
        ping(&mut stream).await.unwrap();
        relay.blackhole();
        stream.write_all(b"held").await.unwrap();
        assert_silent(&mut stream).await;
        assert_eq!((relay.connections(), relay.passed(Way::ToServer)), (1, 4));
        relay.restore();
        let mut answer = [0; 4];
        timeout(BOUND, stream.read_exact(&mut answer))
            .await
            .expect("an answer")
            .unwrap();
        assert_eq!(&answer, b"held");
    }

    #[tokio::test]
    async fn one_way_can_be_held_alone() {
        let (relay, _server) = echo().await;
        let mut stream = connect(&relay).await;
        relay.hold(Way::ToClient);
        stream.write_all(b"lost?").await.unwrap();
        let arrived = async || (relay.passed(Way::ToServer) == 5).then_some(());
        until("the request to arrive", BOUND, arrived).await;
        assert_silent(&mut stream).await;
        relay.cut().await;
        assert_reset(&mut stream).await;
    }

    #[tokio::test]
    async fn cut_after_a_number_of_bytes() {
        let (relay, _server) = echo().await;
        let mut stream = connect(&relay).await;
        relay.cut_after(Way::ToServer, 10);
        stream.write_all(b"0123456").await.unwrap();
        let mut answer = [0; 7];
        timeout(BOUND, stream.read_exact(&mut answer))
            .await
            .expect("an answer")
            .unwrap();
        assert!(!relay.is_cut());
        stream.write_all(b"7890").await.unwrap();
        until("the cut", BOUND, async || relay.is_cut().then_some(())).await;
        assert_eq!(relay.passed(Way::ToServer), 10);
        relay.restore();
        ping(&mut connect(&relay).await).await.unwrap();
    }

    #[tokio::test]
    async fn delay_is_paid_once_in_each_direction() {
        let (relay, _server) = echo().await;
        let mut stream = connect(&relay).await;
        relay.delay(Duration::from_millis(50));
        let started = Instant::now();
        // Many chunks together: they are delayed together.
        for _ in 0..10 {
            stream.write_all(&[7; 1000]).await.unwrap();
        }
        let mut answer = vec![0; 10_000];
        timeout(BOUND, stream.read_exact(&mut answer))
            .await
            .expect("an answer")
            .unwrap();
        assert!(
            started.elapsed() >= Duration::from_millis(100),
            "{:?}",
            started.elapsed()
        );
    }

    #[tokio::test]
    async fn a_dead_server_is_a_reset_for_its_client() {
        let closed = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        let relay = Relay::start(address.to_string()).await;
        assert_reset(&mut connect(&relay).await).await;
    }

    #[tokio::test]
    async fn stands_before_the_server_of_a_url() {
        for (url, expected) in [
            (
                "amqp://guest:p%40ss@127.0.0.1:5672/%2f?heartbeat=1",
                "127.0.0.1:5672",
            ),
            ("redis://localhost:6379/", "localhost:6379"),
            ("http://im.example:80", "im.example:80"),
        ] {
            assert_eq!(authority(url), expected);
        }
        let (relay, url) = Relay::before("amqp://guest:guest@127.0.0.1:1/%2f").await;
        assert_eq!(url, format!("amqp://guest:guest@{}/%2f", relay.addr()));
    }
}
