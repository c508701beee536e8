//! Tests the webhook receivers in `examples/` with calls that a worker makes, and with forged ones.

use std::collections::BTreeMap;
use std::time::Duration;

use fanwise::clock::now_ms;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::process::Process;
use crate::support::scratch::Scratch;
use crate::support::signature::sign;
use crate::support::toolchain::Program;
use crate::support::wait::until;
use crate::support::world::{Plan, users};

const SECRET: &str = "whsec_YmV0d2VlbiB5b3UgYW5kIG1l";
const KEY: &[u8] = b"between you and me";

/// How often a receiver delivered to each recipient.
fn delivered(receiver: &Process) -> BTreeMap<String, usize> {
    let mut delivered = BTreeMap::new();
    for line in receiver.stdout().lines() {
        let Some(of) = line.strip_prefix("deliver ") else {
            continue;
        };
        let (recipient, _) = of.split_once(": ").unwrap();
        *delivered.entry(recipient.to_owned()).or_default() += 1;
    }
    delivered
}

/// A request with a signature; returns the status.
async fn post(port: u16, id: &str, seconds: u64, signature: &str, body: &[u8]) -> u16 {
    let head = format!(
        "POST / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nwebhook-id: {id}\r\nwebhook-timestamp: {seconds}\r\n\
         webhook-signature: {signature}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    reply.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Believes only requests that are signed now, and delivers a repeat once.
async fn doubts_strangers(port: u16, receiver: &Process) {
    let now = now_ms() / 1000;
    let body = json!({
        "job": "d8b55e72b3cbe2353a18ba4a", "app": "default", "client_msg_no": "forged",
        "message": {"type": "text", "text": "hi"}, "options": {}, "recipient": "forged",
    });
    let body = body.to_string().into_bytes();
    let signed = |id: &str, seconds: u64| sign(KEY, id, &seconds.to_string(), &body);
    let wrong = sign(b"another key", "a", &now.to_string(), &body);
    let (early, late) = (now - 600, now + 600);
    for (id, seconds, signature) in [
        ("a", now, "v1,".to_owned()),
        ("a", now, String::new()),
        ("a", now, wrong),
        ("b", now, signed("a", now)),
        ("a", now + 1, signed("a", now)),
        ("a", early, signed("a", early)),
        ("a", late, signed("a", late)),
    ] {
        let status = post(port, id, seconds, &signature, &body).await;
        assert_eq!(status, 401, "{id} {seconds} {signature}");
    }
    assert!(!delivered(receiver).contains_key("forged"));
    // While a secret is exchanged, there are two signatures.
    let both = format!("v1,b3RoZXI= {}", signed("c", now));
    for _ in 0..2 {
        assert_eq!(post(port, "c", now, &both, &body).await, 200);
    }
    until(
        "the delivery is printed",
        Duration::from_secs(30),
        async || (delivered(receiver).get("forged") == Some(&1)).then_some(()),
    )
    .await;
}

/// The behaviour that every receiver must have.
async fn receiver_keeps_its_word(plan: Plan, name: &str, receiver: Program) {
    let mut receiver = receiver.start(&["--port", "0", "--secret", SECRET]);
    let port = receiver.until_listens("listening on").await;
    let target = |name: &str, url: &str, more: &str| {
        format!(
            "[targets.{name}]\ntype = \"webhook\"\nidempotent = true\nsignature_secret = {SECRET:?}\n\
             call_timeout = \"3s\"\nurl = \"http://127.0.0.1:{port}{url}\"\n{more}\n"
        )
    };
    let one = target("one", "/users/{recipient}/messages", "");
    let many = target("many", "/messages", "recipients_per_call = 100");
    let world = Plan {
        more: one + &many,
        ..plan
    };
    let world = world.start(name).await;
    let worker = world.worker().await;
    for (target, code) in [("one", "410"), ("many", "gone")] {
        let everybody: Vec<_> = users(250)
            .iter()
            .map(|it| format!("{target}-{it}"))
            .collect();
        let with = [everybody.clone(), vec![format!("gone-{target}")]].concat();
        let job = world.send(target, &with, &["--target", target]).await;
        let record = world.completed(&job).await;
        assert_eq!(record["accounts"]["sent"], 250, "{record}");
        assert_eq!(record["accounts"]["failed"], 1, "{record}");
        let dead = world.dead(&job).await;
        let expected = ("failed".to_owned(), code.to_owned());
        assert_eq!(dead[&format!("gone-{target}")], expected);
        let delivered = delivered(&receiver);
        for recipient in &everybody {
            assert_eq!(delivered.get(recipient), Some(&1), "{recipient}");
        }
    }
    assert_eq!(delivered(&receiver).len(), 500);
    doubts_strangers(port, &receiver).await;
    worker.drain().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_receiver_keeps_its_word() {
    let (Some(plan), Some(receiver)) = (Plan::shared(), Program::python("receiver.py")) else {
        return;
    };
    receiver_keeps_its_word(plan, "hook-python", receiver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_receiver_keeps_its_word() {
    let folder = Scratch::new("hook-node");
    let receiver = Program::node("receiver.mjs", &folder);
    let (Some(plan), Some(receiver)) = (Plan::shared(), receiver) else {
        return;
    };
    receiver_keeps_its_word(plan, "hook-node", receiver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_go_receiver_keeps_its_word() {
    let folder = Scratch::new("hook-go");
    let receiver = Program::go("receiver.go", &folder).await;
    let (Some(plan), Some(receiver)) = (Plan::shared(), receiver) else {
        return;
    };
    receiver_keeps_its_word(plan, "hook-go", receiver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_receiver_keeps_its_word() {
    let Some(plan) = Plan::shared() else { return };
    let receiver = Program::rust("receiver").await;
    receiver_keeps_its_word(plan, "hook-rust", receiver).await;
}
