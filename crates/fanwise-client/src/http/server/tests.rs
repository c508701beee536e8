//! Tests the server's client against scripted servers on the loopback interface.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::audience::Audience;
use crate::http::Format;
use crate::message::Message;

const ACCEPTED: &str =
    r#"{"job":"0123456789abcdef01234567","target":"im","recipients":3,"messages":1}"#;

/// What a server does with a request.
#[derive(Clone, Copy)]
enum Act {
    /// Closes the connection, having read the request.
    Close,
    /// Answers with this status and body.
    Answer(u16, &'static str),
    /// Answers before it has read the body.
    AnswerAtOnce(u16, &'static str),
}

/// A request as it arrived: its head in lower case, and its body.
#[derive(Clone, Debug, PartialEq)]
struct Got {
    head: String,
    body: String,
}

/// A server that acts on one request after the other, each on a connection of its own.
async fn serve(acts: &[Act]) -> (Server, Arc<Mutex<Vec<Got>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/", listener.local_addr().unwrap());
    let (acts, got) = (acts.to_vec(), Arc::new(Mutex::new(Vec::new())));
    let kept = Arc::clone(&got);
    tokio::spawn(async move {
        for act in acts {
            let (stream, _) = listener.accept().await.unwrap();
            if let Some(request) = answer(stream, act).await {
                kept.lock().unwrap().push(request);
            }
        }
    });
    let retry = Retry {
        first: Duration::from_millis(1),
        ..Retry::default()
    };
    (Server::new(&address).unwrap().with_retry(retry), got)
}

async fn answer(stream: TcpStream, act: Act) -> Option<Got> {
    let mut stream = BufReader::new(stream);
    let head = lines_to_empty(&mut stream).await;
    let got = match act {
        Act::AnswerAtOnce(..) => None,
        _ => {
            let body = body(&mut stream, &head).await;
            Some(Got { head, body })
        }
    };
    if let Act::Answer(status, body) | Act::AnswerAtOnce(status, body) = act {
        let length = body.len();
        let reply = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
        stream.write_all(reply.as_bytes()).await.unwrap();
    }
    if got.is_none() {
        // The client must see the answer before the connection is reset.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
    got
}

async fn lines_to_empty(stream: &mut BufReader<TcpStream>) -> String {
    let mut lines = String::new();
    while !lines.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut lines).await.unwrap(), 0, "cut");
    }
    lines.to_lowercase()
}

async fn body(stream: &mut BufReader<TcpStream>, head: &str) -> String {
    let mut body = Vec::new();
    if let Some((_, length)) = head.split_once("content-length: ") {
        let length = length.lines().next().unwrap().parse().unwrap();
        body.resize(length, 0);
        stream.read_exact(&mut body).await.unwrap();
    } else {
        assert!(head.contains("transfer-encoding: chunked"), "{head}");
        loop {
            let mut size = String::new();
            stream.read_line(&mut size).await.unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let start = body.len();
            body.resize(start + size + 2, 0);
            stream.read_exact(&mut body[start..]).await.unwrap();
            assert!(body.ends_with(b"\r\n"));
            body.truncate(start + size);
            if size == 0 {
                break;
            }
        }
    }
    String::from_utf8(body).unwrap()
}

fn job(users: &[&str]) -> Job {
    Job::new(
        "k",
        Audience::users(users.iter().copied()),
        Message::text("hello"),
    )
}

#[tokio::test]
async fn the_same_request_is_repeated_until_it_is_answered() {
    let acts = [
        Act::Close,
        Act::Answer(503, "{}"),
        Act::Answer(429, ""),
        Act::Answer(202, ACCEPTED),
    ];
    let (server, got) = serve(&acts).await;
    let server = server.with_token("t0ken").unwrap();
    let submitted = server.submit(&job(&["ann"])).await.unwrap();
    assert_eq!((submitted.recipients, &*submitted.target), (3, "im"));
    let got = got.lock().unwrap().clone();
    assert_eq!(got.len(), 4);
    assert!(got.iter().all(|request| *request == got[0]));
    for line in [
        "post /v1/jobs http/1.1\r\n",
        "authorization: bearer t0ken\r\n",
        "content-type: application/json\r\n",
    ] {
        assert!(got[0].head.contains(line), "{}", got[0].head);
    }
    let sent: serde_json::Value = serde_json::from_str(&got[0].body).unwrap();
    assert_eq!(sent["audience"]["users"][0], "ann");
}

#[tokio::test]
async fn a_refusal_is_not_repeated() {
    let problem = r#"{"title":"not a valid job","detail":"audience.users: empty","status":400}"#;
    let (server, got) = serve(&[Act::Answer(400, problem)]).await;
    let error = server.submit(&job(&[])).await.unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("answers 400: audience.users: empty"),
        "{error}"
    );
    assert!(!error.is_temporary());
    assert_eq!(got.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn tries_end() {
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", away.local_addr().unwrap());
    drop(away);
    let retry = Retry {
        tries: 3,
        first: Duration::from_millis(1),
        longest: Duration::from_millis(1),
    };
    let server = Server::new(&address).unwrap().with_retry(retry);
    let error = server.submit(&job(&["ann"])).await.unwrap_err();
    assert!(
        error.is_temporary() && error.to_string().contains("not sent"),
        "{error}"
    );
    let (server, got) = serve(&[Act::Answer(503, "{}"); 3]).await;
    let error = server
        .with_retry(retry)
        .submit(&job(&["ann"]))
        .await
        .unwrap_err();
    assert!(error.is_temporary(), "{error}");
    assert_eq!(got.lock().unwrap().len(), 3);
}

/// A list of several pieces, read from its beginning for each try.
#[tokio::test]
async fn a_list_is_uploaded_whole_on_each_try() {
    let (server, got) = serve(&[Act::Close, Act::Answer(202, ACCEPTED)]).await;
    let users = || (0..30_000).map(|number| format!("u{number}"));
    let list = List::recipients(users);
    let job = Job::new("k", Audience::default(), Message::text("hello"));
    server.upload(&job, &list).await.unwrap();
    let got = got.lock().unwrap().clone();
    assert_eq!(got.len(), 2);
    for Got { head, body } in &got {
        let (_, boundary) = head.split_once("multipart/form-data; boundary=").unwrap();
        let boundary = format!("--{}", boundary.lines().next().unwrap());
        let parts: Vec<_> = body.split(&boundary).collect();
        assert_eq!(parts.len(), 4, "{}", &body[..200]);
        let (head, sent) = parts[1].split_once("\r\n\r\n").unwrap();
        assert!(head.contains("name=\"job\""), "{head}");
        assert_eq!(sent.trim_end().as_bytes(), json(&job));
        let (head, sent) = parts[2].split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains("name=\"audience\"; filename=\"audience.ndjson\""),
            "{head}"
        );
        let expected: String = users().map(|user| format!("\"{user}\"\n")).collect();
        assert!(sent.trim_end() == expected.trim_end());
        assert_eq!(parts[3], "--\r\n");
    }
}

/// A server that has no room for a list says so without reading all of it.
#[tokio::test]
async fn an_answer_before_the_end_of_an_upload_counts() {
    let problem = r#"{"title":"too large","detail":"at most 10 bytes","status":413}"#;
    let (server, _) = serve(&[Act::AnswerAtOnce(413, problem)]).await;
    let endless = List::recipients(|| (0_u64..).map(|number| format!("u{number}")));
    let job = Job::new("k", Audience::default(), Message::text("hello"));
    let error = server.upload(&job, &endless).await.unwrap_err();
    assert!(error.to_string().contains("at most 10 bytes"), "{error}");
    assert!(!error.is_temporary());
}

#[tokio::test]
async fn a_file_that_is_not_there_is_an_error_before_anything_is_sent() {
    let (server, got) = serve(&[]).await;
    let list = List::file("/nowhere/users.csv").with_format(Format::Lines);
    let error = server.upload(&job(&[]), &list).await.unwrap_err();
    assert!(matches!(error, Error::List(_)) && !error.is_temporary());
    assert!(got.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_job_is_waited_for_until_it_is_completed() {
    let view = |state: &str| -> &'static str {
        let view = format!(
            r#"{{"job":"0123456789abcdef01234567","app":"default","client_msg_no":"k","target":"im",
            "state":"{state}","pending":0,"accepted_at":"2026-11-29T00:00:00Z","more":{{}},
            "accounts":{{"total":2,"sent":1,"duplicate":0,"failed":1,"uncertain":0,"expired":0,"cancelled":0}}}}"#
        );
        Box::leak(view.into_boxed_str())
    };
    let acts =
        [view("accepted"), view("running"), view("completed")].map(|it| Act::Answer(200, it));
    let (server, _) = serve(&acts).await;
    let id = "0123456789abcdef01234567".parse().unwrap();
    let done = server.wait(id).await.unwrap();
    assert_eq!((done.accounts.sent, done.accounts.failed), (1, 1));
    let (server, _) = serve(&[Act::Answer(404, "{}")]).await;
    assert!(matches!(server.wait(id).await, Err(Error::UnknownJob(_))));
}

#[test]
fn an_address_that_cannot_be_meant_is_refused() {
    for (address, why) in [
        ("localhost:9700", "neither http:// nor https://"),
        ("ftp://host", "neither http:// nor https://"),
        ("", "is no address"),
        ("https://", "is expected"),
        ("https://ana:s3cret@host", "has a user"),
        ("https://host?x=1", "has a query"),
    ] {
        let error = Server::new(address).unwrap_err().to_string();
        assert!(error.contains(why) && !error.contains("s3cret"), "{error}");
    }
    let server = Server::new("http://[::1]:9700/fanwise/").unwrap();
    assert_eq!(server.base(), "http://[::1]:9700/fanwise");
    let server = server.with_token("s3cret").unwrap();
    assert!(!format!("{server:?}").contains("s3cret"));
}

#[test]
fn a_token_is_one_word() {
    for token in ["", " ", "a b", "a\n", "ä"] {
        assert!(check_token(token).is_err(), "{token:?}");
    }
    assert_eq!(check_token("a.b-c_d="), Ok(()));
}

/// A service may submit from any task.
#[test]
fn its_futures_go_to_any_thread() {
    fn check(_: impl Send) {}
    let server = Server::new("http://127.0.0.1:9700").unwrap();
    let (job, list) = (job(&["ann"]), List::bytes(Format::Lines, "ann"));
    check(server.submit(&job));
    check(server.upload(&job, &list));
    check(server.wait(JobId::of("default", "k")));
}
