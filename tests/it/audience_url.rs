//! Lists by reference: a job names the address of its list, and the gateway fetches it, whole or not
//! at all.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::process::run_fanwise;
use crate::support::wait::until;
use crate::support::world::{BOUND, Gateway, Plan, World, http_get, users};

/// A server with one list, which has versions.
#[derive(Clone, Default)]
struct Lists(Arc<Mutex<(u32, String)>>);

impl Lists {
    async fn start(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let list = |State(lists): State<Lists>, headers: HeaderMap| async move {
            let token = headers.get(header::AUTHORIZATION);
            if token.is_none_or(|it| it != "Bearer list-token") {
                return StatusCode::FORBIDDEN.into_response();
            }
            let (version, text) = lists.0.lock().unwrap().clone();
            let etag = format!("\"v{version}\"");
            (
                [
                    (header::ETAG, etag),
                    (header::CONTENT_TYPE, "text/csv".to_owned()),
                ],
                text,
            )
                .into_response()
        };
        let moved = || async { (StatusCode::FOUND, [(header::LOCATION, "/users")]) };
        let zipped = || async { ([(header::CONTENT_ENCODING, "gzip")], "x") };
        let router = Router::new()
            .route("/users", get(list))
            .route("/moved.txt", get(moved))
            .route("/zipped.txt", get(zipped))
            .route("/bad.txt", get(async || "u1\nu 2\u{7}\nu3\n"))
            .route("/busy.txt", get(async || StatusCode::SERVICE_UNAVAILABLE))
            .route("/unnamed", get(async || Response::new("u1\n".to_owned())))
            .with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    /// A new version of the list.
    fn set(&self, version: u32, recipients: &[String]) -> String {
        let rows = recipients.iter().map(|it| format!("{it},Name of {it}\n"));
        let text = format!("uid,name\n{}", rows.collect::<String>());
        let digest = sha256(&text);
        *self.0.lock().unwrap() = (version, text);
        digest
    }
}

/// A server that promises more bytes than it sends.
async fn cut() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let reply = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 100\r\n\r\nu1\nu2\n";
            // Closed with the request unread, the answer could be lost.
            let _ = stream.read(&mut [0; 4096]).await;
            // A client that is gone needs no answer.
            let _ = stream.write_all(reply.as_bytes()).await;
        }
    });
    address
}

fn job(key: &str, audience: &Value) -> String {
    json!({"v": 1, "client_msg_no": key, "audience": audience,
           "message": {"type": "text", "text": "hello {{ name }}", "vars": {"name": "you"}}})
    .to_string()
}

/// Posts a job.
async fn submit(port: u16, body: String) -> (u16, Value) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut text = String::new();
    let reading = stream.read_to_string(&mut text);
    tokio::time::timeout(BOUND, reading).await.unwrap().unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

async fn world(name: &str) -> Option<World> {
    let mut plan = Plan::shared()?;
    plan.more = r#"
        [apps.default.list_sources.inside]
        hosts = ["127.0.0.1"]
        private = true
        token = "list-token"
        [apps.default.list_sources.outside]
        hosts = ["localhost", "127.0.0.2"]
        "#
    .to_owned();
    Some(plan.start(name).await)
}

/// No list that is not exactly what the job asks for reaches anybody; the answer says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_by_reference_comes_whole_or_not_at_all() {
    let Some(world) = world("list-refused").await else {
        return;
    };
    let lists = Lists::default();
    let (here, cut) = (lists.start().await, cut().await);
    lists.set(2, &users(3));
    let gateway = world.gateway(&[]).await;
    let port = here.port();
    let at = |path: &str| format!("http://{here}{path}");
    for (audience, status, told) in [
        (
            json!({"url": "http://lists.example.com/u"}),
            400,
            "is in no [apps.default.list_sources.NAME]",
        ),
        (
            json!({"url": format!("http://127.0.0.2:{port}/users")}),
            400,
            "`private` of its source is false",
        ),
        // A name that leads inside.
        (
            json!({"url": format!("http://localhost:{port}/users")}),
            400,
            "which is not a public address",
        ),
        (json!({"url": "file:///etc/passwd"}), 400, "audience.url"),
        (
            json!({"url": at("/moved.txt")}),
            400,
            "follows no redirects",
        ),
        (json!({"url": at("/zipped.txt")}), 400, "compressed (gzip)"),
        (
            json!({"url": at("/nothing.txt")}),
            400,
            "the server answers 404",
        ),
        (json!({"url": at("/busy.txt")}), 503, "submit the job again"),
        (json!({"url": at("/bad.txt")}), 400, "line 2"),
        (
            json!({"url": at("/unnamed"), "format": "csv", "vars": true, "column": "x"}),
            400,
            "line 1",
        ),
        (
            json!({"url": format!("http://{cut}/u")}),
            503,
            "broke off after 6 bytes",
        ),
        (
            json!({"url": at("/users"), "etag": "v1"}),
            400,
            "the list has \"v2\" now, not \"v1\"",
        ),
        (
            json!({"url": at("/users"), "sha256": "0".repeat(64)}),
            400,
            "audience.sha256",
        ),
        (
            json!({"url": at("/users"), "users": ["a"]}),
            400,
            "audience.users",
        ),
    ] {
        let (answered, problem) = submit(gateway.port, job("no", &audience)).await;
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(
            answered == status && detail.contains(told),
            "{audience}: {answered} {problem}"
        );
    }
    let known = world.json(&["job", "list"]).await;
    assert_eq!(known, json!([]));
    // Without a gateway nothing fetches it, and the reason says who does.
    let url = at("/users");
    let direct = world
        .run(&["send", "-k", "no", "-m", "x", "--audience-url", &url])
        .await;
    assert_eq!(direct.code, Some(65), "{}", direct.stderr);
    assert!(
        direct.stderr.contains("only the gateway fetches a list"),
        "{}",
        direct.stderr
    );
    gateway.end().await;
    world.end().await;
}

/// A repeated job is the same job; a new version of the list extends it, and both tell which it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_by_reference_is_sent_once_and_its_version_is_told() {
    let Some(world) = world("list-fetched").await else {
        return;
    };
    let lists = Lists::default();
    let here = lists.start().await;
    let (gateway, worker) = (world.gateway(&[]).await, world.worker().await);
    let all = users(701);
    let first = lists.set(1, &all[..700]);
    let url = format!("http://{here}/users?signature=secret");
    let audience = json!({"url": url, "vars": true, "sha256": first, "exclude": ["u0"]});
    let (status, taken) = submit(gateway.port, job("list", &audience)).await;
    assert_eq!(
        (status, &taken["recipients"]),
        (202, &json!(699)),
        "{taken}"
    );
    let version = |tag: &str, sha256: &str| {
        let (_, text) = lists.0.lock().unwrap().clone();
        json!({"url": format!("http://{here}/users"), "etag": tag, "sha256": sha256, "bytes": text.len()})
    };
    assert_eq!(taken["fetched"], version("v1", &first));
    let id = taken["job"].as_str().unwrap().to_owned();
    let record = world.completed(&id).await;
    assert_eq!(record["fetched"], version("v1", &first));
    assert_eq!(record["accounts"]["sent"], 699);
    let (again, same) = submit(gateway.port, job("list", &audience)).await;
    assert_eq!((again, &same["job"]), (200, &taken["job"]), "{same}");

    let second = lists.set(2, &all);
    let server = format!("http://127.0.0.1:{}", gateway.port);
    let body = world.write("job.json", job("list", &json!({"exclude": ["u0"]})));
    let arguments = [
        "send",
        "--server",
        &server,
        "--job",
        body.to_str().unwrap(),
        "--audience-url",
        &url,
        "--vars",
        "--exclude",
        "u0",
        "--etag",
        "v2",
        "--json",
    ];
    let sent = run_fanwise(&arguments, &[], b"", BOUND).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let record = until("the extended job", BOUND, async || {
        let record = world.job(&id).await?;
        (record["accounts"]["sent"] == 700 && record["state"] == "completed").then_some(record)
    })
    .await;
    assert_eq!(record["fetched"], version("v2", &second));
    world.assert_once_each(&all[1..]);
    let text = world
        .mock
        .accepted()
        .into_iter()
        .find(|it| it.recipient == "u9");
    assert!(text.is_some_and(|it| it.payload.contains("hello Name of u9")));
    worker.drain().await;
    gateway.end().await;
    world.end().await;
}

/// Answers each request in a way of its own, and then closes: its number, and the first byte that it
/// asks for.
type Answers = Box<dyn Fn(usize, Option<usize>) -> String + Send + Sync>;

/// The heads of the requests so far.
type Asked = Arc<Mutex<Vec<String>>>;

/// A server whose answers break off.
async fn flaky(answers: Answers) -> (SocketAddr, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Asked::default());
    let heads = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte.into()),
                    Err(_) => break,
                }
            }
            let range = head.split("range: bytes=").nth(1);
            let from = range.and_then(|it| it.split('-').next()?.parse().ok());
            let number = heads.lock().unwrap().len();
            heads.lock().unwrap().push(head);
            // A client that is gone needs no answer.
            let _ = stream.write_all(answers(number, from).as_bytes()).await;
        }
    });
    (address, asked)
}

/// The answer with a list, or with its rest from a byte on, of which `sent` bytes come.
fn part(list: &str, etag: &str, from: Option<usize>, sent: usize) -> String {
    let rest = &list[from.unwrap_or(0)..];
    let (status, range) = match from {
        Some(from) => {
            let range = format!(
                "content-range: bytes {from}-{}/{}\r\n",
                list.len() - 1,
                list.len()
            );
            ("206 Partial Content", range)
        }
        None => ("200 OK", String::new()),
    };
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n{range}etag: {etag}\r\n\r\n{}",
        rest.len(),
        &rest[..sent.min(rest.len())]
    )
}

fn lines(count: usize) -> String {
    users(count).iter().map(|it| format!("{it}\n")).collect()
}

fn sha256(text: &str) -> String {
    let digest = digest(&SHA256, text.as_bytes());
    digest
        .as_ref()
        .iter()
        .map(|it| format!("{it:02x}"))
        .collect()
}

async fn list_metric(gateway: &Gateway, name: &str) -> f64 {
    let text = http_get(gateway.admin, "/metrics").await.unwrap();
    let line = text.lines().find(|it| it.starts_with(name)).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// A list that breaks off is read on where it ended if its entity tag says that it is the same, and
/// again from its beginning otherwise; what reaches anybody is one version, whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_breaks_off_is_read_to_its_end() {
    let Some(world) = world("list-resumed").await else {
        return;
    };
    let gateway = world.gateway(&[]).await;
    let list = lines(3000);
    let digest = sha256(&list);
    let third = list.len() / 3;
    let taken = async |key: &str, server: SocketAddr, more: Value| {
        let mut audience = json!({"url": format!("http://{server}/u.txt")});
        audience
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        submit(gateway.port, job(key, &audience)).await
    };

    // It breaks off twice, then in the middle of a head, and once its server is busy.
    let text = list.clone();
    let (server, asked) = flaky(Box::new(move |number, from| match number {
        2 => "HTTP/1.1 206 Par".to_owned(),
        3 => "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n".to_owned(),
        _ => part(&text, "\"v1\"", from, third),
    }))
    .await;
    let (status, accepted) = taken("resumed", server, json!({"sha256": digest})).await;
    assert_eq!(
        (status, &accepted["recipients"]),
        (202, &json!(3000)),
        "{accepted}"
    );
    assert_eq!(
        (
            &accepted["fetched"]["sha256"],
            &accepted["fetched"]["bytes"]
        ),
        (&json!(digest), &json!(list.len()))
    );
    let heads = asked.lock().unwrap().clone();
    let ranges = [third, 2 * third, 2 * third, 2 * third, 3 * third];
    assert!(!heads[0].contains("range:"), "{}", heads[0]);
    for (head, from) in heads[1..].iter().zip(ranges) {
        assert!(
            head.contains(&format!("range: bytes={from}-\r\n")),
            "{head}"
        );
        assert!(head.contains("if-range: \"v1\"\r\n"), "{head}");
    }
    assert!(heads.len() <= 6, "{}", heads.len());
    assert_eq!(
        list_metric(&gateway, "fanwise_list_read_bytes_total ").await,
        list.len() as f64
    );
    let breaks = list_metric(&gateway, "fanwise_list_read_breaks_total ").await;
    assert_eq!(breaks as usize, heads.len() - 1);

    // Another version comes in the middle, or the server has no strong tag.
    let newer = lines(2000);
    for (key, first_tag, later_tag) in [
        ("changed", "\"v1\"", "\"v2\""),
        ("weak", "W/\"v1\"", "W/\"v2\""),
    ] {
        let (old, new) = (list.clone(), newer.clone());
        let answers = move |number, _| match number {
            0 => part(&old, first_tag, None, third),
            _ => part(&new, later_tag, None, usize::MAX),
        };
        let (server, asked) = flaky(Box::new(answers)).await;
        let (status, accepted) = taken(key, server, json!({})).await;
        assert_eq!(
            (status, &accepted["recipients"]),
            (202, &json!(2000)),
            "{accepted}"
        );
        assert_eq!(accepted["fetched"]["sha256"], sha256(&newer), "{key}");
        let heads = asked.lock().unwrap().clone();
        assert_eq!(heads[1].contains("if-range:"), key != "weak", "{key}");
    }

    // A job that names the version that began gets that one or none.
    let (old, new) = (list.clone(), newer.clone());
    let answers = move |number, _| match number {
        0 => part(&old, "\"v1\"", None, third),
        _ => part(&new, "\"v2\"", None, usize::MAX),
    };
    let (server, _) = flaky(Box::new(answers)).await;
    let (status, refused) = taken("named", server, json!({"sha256": digest})).await;
    assert!(
        status == 400 && refused.to_string().contains("audience.sha256"),
        "{refused}"
    );
    let (old, new) = (list.clone(), newer.clone());
    let answers = move |number, _| match number {
        0 => part(&old, "\"v1\"", None, third),
        _ => part(&new, "\"v2\"", None, usize::MAX),
    };
    let (server, _) = flaky(Box::new(answers)).await;
    let (status, refused) = taken("tagged", server, json!({"etag": "v1"})).await;
    assert!(
        status == 400 && refused.to_string().contains("audience.etag"),
        "{refused}"
    );

    // The server answers with another part than was asked for, under the same tag.
    let text = list.clone();
    let answers = move |number, from: Option<usize>| match number {
        0 => part(&text, "\"v1\"", None, third),
        1 => part(&text, "\"v1\"", from.map(|from| from - 1), usize::MAX),
        _ => part(&text, "\"v1\"", None, usize::MAX),
    };
    let (server, asked) = flaky(Box::new(answers)).await;
    let (status, accepted) = taken("other-part", server, json!({"sha256": digest})).await;
    assert_eq!(status, 202, "{accepted}");
    assert!(!asked.lock().unwrap()[2].contains("range:"));

    // One that goes on by a byte a time is given up, with all that came of it.
    let text = list.clone();
    let (server, asked) = flaky(Box::new(move |_, from| part(&text, "\"v1\"", from, 1))).await;
    let (status, refused) = taken("slow", server, json!({})).await;
    assert!(
        status == 503 && refused.to_string().contains("broke off after 11 bytes"),
        "{refused}"
    );
    assert_eq!(asked.lock().unwrap().len(), 11);
    for (result, count) in [("fetched", 4.0), ("refused", 2.0), ("failed", 1.0)] {
        let name = format!("fanwise_list_reads_total{{result=\"{result}\"}}");
        assert_eq!(list_metric(&gateway, &name).await, count, "{result}");
    }
    let known = world.json(&["job", "list"]).await;
    assert_eq!(known.as_array().unwrap().len(), 4);
    gateway.end().await;
    world.end().await;
}
