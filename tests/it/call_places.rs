//! `calls_in_flight = "auto"`: a target gets as many calls at a time as it answers without delay.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, Worker, users};

const PLACES: &str = "fanwise_calls_in_flight_max{target=\"im\"}";

async fn places(worker: &Worker) -> usize {
    worker.metrics().await[PLACES] as usize
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_answers_at_once_gets_more_calls() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.target.push_str("\ncalls_in_flight = \"auto\"");
    let world = plan.start("auto").await;
    let latency = json!({ "latency": "200ms" });
    world.mock.patch_faults(&latency).unwrap();
    let worker = world.worker().await;
    assert_eq!(places(&worker).await, 2);
    let recipients = users(3000);
    let job = world.send("auto", &recipients, &[]).await;
    until("64 calls at a time", BOUND, async || {
        (places(&worker).await >= 64).then_some(())
    })
    .await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 3000, "{record}");
    world.assert_once_each(&recipients);
    // Refusals shrink it, whatever it has grown to.
    world
        .mock
        .patch_faults(&json!({ "error_503": 1.0 }))
        .unwrap();
    let grown = places(&worker).await;
    world.send("shrinks", &users(200), &[]).await;
    until("fewer calls at a time", BOUND, async || {
        (places(&worker).await <= grown / 2).then_some(())
    })
    .await;
    worker.drain().await;
    world.end().await;
}

/// A server that answers one call after the other, each on a connection of its own, and lets five
/// wait.
struct Patient {
    address: SocketAddr,
    answered: Arc<AtomicUsize>,
    _serves: AbortOnDropHandle<()>,
}

impl Patient {
    fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(5).unwrap();
        let address = listener.local_addr().unwrap();
        let answered = Arc::new(AtomicUsize::new(0));
        let serves = tokio::spawn(Self::serve(listener, Arc::clone(&answered)));
        Self {
            address,
            answered,
            _serves: AbortOnDropHandle::new(serves),
        }
    }

    async fn serve(listener: TcpListener, answered: Arc<AtomicUsize>) {
        while let Ok((stream, _)) = listener.accept().await {
            if Self::answer(stream).await.is_ok() {
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
        let mut request = Vec::new();
        // The body of a call ends with the brace that closes it.
        while !request.ends_with(b"}") {
            if stream.read_buf(&mut request).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        stream.write_all(reply).await?;
        stream.shutdown().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lets_five_wait_is_not_met_by_hundreds() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    let server = Patient::start();
    plan.own_url = true;
    plan.target = format!(
        "type = \"webhook\"\nurl = \"http://{}/\"\ncalls_in_flight = \"auto\"",
        server.address
    );
    let world = plan.start("patient").await;
    let worker = world.worker().await;
    let job = world.send("patient", &users(400), &[]).await;
    let mut most = 0;
    until("the end of the job", BOUND, async || {
        most = most.max(places(&worker).await);
        (server.answered.load(Ordering::Relaxed) >= 400).then_some(())
    })
    .await;
    // The server works on one and lets six wait.
    assert!(most <= 7, "{most} calls at a time");
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 400, "{record}");
    let metrics = worker.metrics().await;
    assert_eq!(metrics["fanwise_unreached_calls_total{target=\"im\"}"], 0.0);
    assert_eq!(metrics["fanwise_retries_total{target=\"im\"}"], 0.0);
    worker.drain().await;
    world.end().await;
}
