//! Promise 11: one caller cannot take all shared resources. Two apps, an administrator and unknown
//! callers use one small gateway; whatever one of them holds, the others get in.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use axum::Router;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::process::{Process, fanwise};
use crate::support::scratch::Scratch;
use crate::support::wait::until;
use crate::support::world::{BOUND, free_port};

const SHOP: &str = "Bearer shop-token";
const BANK: &str = "bearer bank-token";
const ADMIN: &str = "Bearer admin-token";

/// An HTTP answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn parse(text: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(text);
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some(Self {
            status: head.split(' ').nth(1)?.parse().ok()?,
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        })
    }

    fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(found, _)| *found == name);
        found.map(|(_, value)| value).unwrap_or_default()
    }
}

/// A gateway with 16 places and 200 connections. Its target is not reachable, so nothing is sent.
struct Place {
    port: u16,
    admin: u16,
    process: Process,
    _scratch: Scratch,
}

impl Place {
    async fn new(name: &str, gateway: &str, apps: &str) -> Self {
        let scratch = Scratch::new(name);
        let (port, admin) = (free_port(), free_port());
        let config = format!(
            r#"
            [embedded]
            dir = {:?}
            [gateway]
            listen = "127.0.0.1:{port}"
            requests_max = 16
            connections_max = 200
            {gateway}
            [admin]
            listen = "127.0.0.1:{admin}"
            [targets.im]
            type = "webhook"
            url = "http://127.0.0.1:{}/"
            {apps}
            "#,
            scratch.path().join("data"),
            free_port(),
        );
        let config = scratch.write("fanwise.toml", config);
        let config = config.to_str().unwrap();
        let mut process = fanwise(&["serve", "--config", config], &[]);
        let bound = Duration::from_secs(60);
        process.until_prints("ready: jobs are taken", bound).await;
        Self {
            port,
            admin,
            process,
            _scratch: scratch,
        }
    }

    /// With two apps, an administrator and drop-in endpoints.
    async fn shared(name: &str, gateway: &str) -> Self {
        let gateway = format!("token = \"admin-token\"\n{gateway}");
        let apps = r#"
            [apps.shop]
            token = "shop-token"
            [apps.bank]
            token = "bank-token"
            [apps.shop.wukongim]
            secret = "door-token"
            [apps.shop.netease]
            key = "key"
            secret = "secret"
            [apps.shop.yunxin]
            key = "key"
            secret = "other"
            [apps.shop.openim]
            secret = "openim"
        "#;
        Self::new(name, &gateway, apps).await
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }

    async fn ask(&self, request: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut head = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        for (name, value) in headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let _ = write!(head, "Content-Length: {}\r\n\r\n{body}", body.len());
        self.raw(head.as_bytes()).await
    }

    async fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect().await;
        // A server that has refused may not read the whole request.
        let _ = stream.write_all(request).await;
        answer(&mut stream).await
    }

    async fn submit(&self, app: &str, token: &str, more: &[(&str, &str)]) -> Answer {
        let key = format!("k-{:x}", fastrand::u64(..));
        let job = json!({"v": 1, "app": app, "client_msg_no": key,
                         "message": {"type": "text", "text": "x"}, "audience": {"users": ["u"]}});
        let json = [
            ("Authorization", token),
            ("Content-Type", "application/json"),
        ];
        let headers = [&json, more].concat();
        self.ask("POST /v1/jobs", &headers, &job.to_string()).await
    }

    /// Another app and the administrator get their answers while one app takes all it can.
    async fn others_get_in(&self, meanwhile: &str) {
        let accepted = self.submit("bank", BANK, &[]).await;
        assert_eq!(accepted.status, 202, "{meanwhile}: {accepted:?}");
        let headers = [("Authorization", ADMIN)];
        let paused = self.ask("POST /v1/apps/shop:pause", &headers, "{}").await;
        assert_eq!(paused.status, 200, "{meanwhile}: {paused:?}");
    }
}

async fn answer(stream: &mut TcpStream) -> Answer {
    let mut text = Vec::new();
    let read = tokio::time::timeout(BOUND, stream.read_to_end(&mut text));
    // A reset after the answer ends it.
    let _ = read.await.expect("an answer in time");
    Answer::parse(&text).unwrap_or_else(|| panic!("no answer: {text:?}"))
}

/// The head of a request that announces a body, which may or may not follow.
fn head(path: &str, headers: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Type: application/json\r\n"
    )
    .into_bytes()
}

const ENDPOINTS: [&str; 4] = [
    "/message/send",
    "/nimserver/msg/sendBatchMsg.action",
    "/im/v2/conversations/messages",
    "/msg/send_msg",
];

#[tokio::test(flavor = "multi_thread")]
async fn promise_11_bodies_take_places_and_room_of_their_own_app_only() {
    let place = Place::shared("bounds-bodies", "").await;
    // Without credentials the gateway does not wait for a body.
    for endpoint in ENDPOINTS {
        let mut request = head(endpoint, "operationID: 1\r\nConnection: close\r\n");
        request.extend(b"Content-Length: 100\r\n\r\n");
        let refused = place.raw(&request).await;
        assert_ne!(refused.status, 408, "{endpoint} waits: {refused:?}");
        assert!(
            !refused.body.contains("slow"),
            "{endpoint} waits: {refused:?}"
        );
    }
    // The share is counted in bytes of bodies, so small chunks do not use up more of it.
    let mut request = head("/message/send", "token: door-token\r\n");
    request.extend(b"Transfer-Encoding: chunked\r\n\r\n");
    request.extend(b"1\r\n{\r\n".repeat(65_536));
    let mut chunks = place.connect().await;
    chunks.write_all(&request).await.unwrap();
    let own = place.submit("shop", SHOP, &[]).await;
    assert_eq!(own.status, 202, "{own:?}");
    place.others_get_in("one app sends small chunks").await;
    drop(chunks);
    // One app holds bodies that do not arrive and requests that wait.
    let mut held = Vec::new();
    let mut is_refused = false;
    // A submit may take the last place itself, so each follows two more bodies.
    while !is_refused {
        assert!(held.len() < 100, "its share has no end");
        for (path, headers) in [
            ("/message/send", "token: door-token\r\n"),
            ("/v1/jobs", "Authorization: Bearer shop-token\r\n"),
        ] {
            let mut request = head(path, headers);
            request.extend(b"Content-Length: 100\r\n\r\n");
            let mut stream = place.connect().await;
            stream.write_all(&request).await.unwrap();
            held.push(stream);
        }
        is_refused = place.submit("shop", SHOP, &[]).await.status == 503;
    }
    place.others_get_in("one app holds its whole share").await;
    // Logins, whose credentials are in their bodies, have places of their own.
    for _ in 0..40 {
        let mut request = head("/auth/get_admin_token", "operationID: 1\r\n");
        request.extend(b"Content-Length: 100\r\n\r\n");
        let mut stream = place.connect().await;
        stream.write_all(&request).await.unwrap();
        held.push(stream);
    }
    place.others_get_in("logins do not arrive").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promise_11_idle_connections_and_endless_heads_keep_nobody_out() {
    let place = Place::shared("bounds-idle", "patience = \"1s\"").await;
    let mut idle = Vec::new();
    for number in 0..400 {
        let mut stream = place.connect().await;
        if number % 2 == 0 {
            // The server may have closed it already.
            let _ = stream.write_all(b"POST /v1/jobs HTTP/1.1\r\nX: ").await;
        }
        idle.push(stream);
    }
    place.others_get_in("connections are idle").await;
    let endless = [&head("/v1/jobs", "X-Pad: ")[..], &[b'x'; 40_000]].concat();
    assert_eq!(place.raw(&endless).await.status, 431);
    // The port of health and metrics has a bound too.
    let before = descriptors(&place);
    let mut scrapers = Vec::new();
    for _ in 0..300 {
        let stream = TcpStream::connect(("127.0.0.1", place.admin)).await;
        scrapers.push(stream.unwrap());
    }
    let mut stream = TcpStream::connect(("127.0.0.1", place.admin))
        .await
        .unwrap();
    let live = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(live).await.unwrap();
    assert_eq!(answer(&mut stream).await.status, 200);
    let opened = descriptors(&place).saturating_sub(before);
    assert!(opened < 100, "{opened} descriptors more");
    drop((idle, scrapers));
}

fn descriptors(place: &Place) -> usize {
    let folder = format!("/proc/{}/fd", place.process.pid());
    std::fs::read_dir(folder).unwrap().count()
}

/// A minimal HTTP/2 client that can break the rules.
struct Http2(TcpStream);

impl Http2 {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RESET: u8 = 3;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const GO_AWAY: u8 = 7;

    /// With a window of this many bytes for each answer.
    async fn connect(place: &Place, window: u32) -> Self {
        let mut stream = place.connect().await;
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        let mut this = Self(stream);
        let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
        this.write(Self::SETTINGS, 0, 0, &settings).await;
        this
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = (payload.len() as u32).to_be_bytes();
        let frame = [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
        // The peer may be gone.
        let _ = self.0.write_all(&frame).await;
    }

    async fn get(&mut self, stream: u32, path: &str, token: &str) {
        let text = |text: &str| [&[text.len() as u8][..], text.as_bytes()].concat();
        // GET, http; then path, authority and authorization as literals.
        let fields = [
            vec![0x82, 0x86, 0x04],
            text(path),
            vec![0x01],
            text("localhost"),
            vec![0x0f, 0x08],
            text(token),
        ];
        self.write(Self::HEADERS, 5, stream, &fields.concat()).await;
    }

    /// Kind and stream of the next frame that matters; `None` at the end. It answers PINGs.
    async fn next(&mut self) -> Option<(u8, u32)> {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload).await.ok()?;
            let (kind, flags) = (head[3], head[4]);
            match (kind, flags & 1) {
                (Self::SETTINGS, 0) => self.write(kind, 1, 0, &[]).await,
                (Self::PING, 0) => self.write(kind, 1, 0, &payload).await,
                (Self::SETTINGS | Self::PING, _) => {}
                _ => {
                    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                    return Some((kind, stream));
                }
            }
        }
    }
}

/// A reader that takes no answers uses up the share of its own app, which is refused immediately.
/// Each answer that ends frees its place.
#[tokio::test(flavor = "multi_thread")]
async fn promise_11_answers_that_nobody_takes_use_up_the_share_of_their_app_only() {
    // No answer is given up while the test runs.
    let place = Place::shared("bounds-unread", "patience = \"5m\"").await;
    let mut reader = Http2::connect(&place, 0).await;
    let mut streams = (0..).map(|number| 1 + 2 * number);
    // A submit may take the last place itself, so the reader sends requests until there is none.
    let mut refused = None;
    while refused.is_none() {
        let stream = streams.next().unwrap();
        assert!(stream < 200, "its share has no end");
        reader.get(stream, "/v1/jobs?app=shop", SHOP).await;
        let answered = async { while reader.next().await != Some((Http2::HEADERS, stream)) {} };
        let answered = tokio::time::timeout(BOUND, answered).await;
        assert!(answered.is_ok(), "stream {stream} has no answer");
        let more = place.submit("shop", SHOP, &[]).await;
        refused = (more.status != 202).then_some(more);
    }
    let refused = refused.unwrap();
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.header("retry-after"), "1", "{refused:?}");
    let why = "too many requests at a time";
    assert!(refused.body.contains(why), "{refused:?}");
    place.others_get_in("answers are not read").await;
    drop(reader);
    until("an app that has its share again", BOUND, async || {
        let more = place.submit("shop", SHOP, &[]).await;
        (more.status == 202).then_some(())
    })
    .await;
}

/// Each answer that is not read is given up by itself, and then the connection, which has nothing
/// left to do.
#[tokio::test(flavor = "multi_thread")]
async fn promise_11_answers_that_nobody_takes_are_given_up() {
    let place = Place::shared("bounds-answers", "patience = \"5s\"").await;
    let mut reader = Http2::connect(&place, 0).await;
    let streams: BTreeSet<u32> = (0..5).map(|number| 1 + 2 * number).collect();
    for stream in &streams {
        reader.get(*stream, "/v1/jobs?app=shop", SHOP).await;
    }
    let (mut answered, mut given_up) = (BTreeSet::new(), BTreeSet::new());
    let mut told = false;
    let closed = async {
        while let Some((kind, stream)) = reader.next().await {
            match kind {
                Http2::HEADERS => drop(answered.insert(stream)),
                Http2::RESET => drop(given_up.insert(stream)),
                Http2::GO_AWAY => told = true,
                Http2::DATA => panic!("data without a window"),
                _ => {}
            }
        }
    };
    let closed = tokio::time::timeout(BOUND, closed).await;
    assert!(closed.is_ok(), "the connection is still open");
    assert_eq!(answered, streams);
    assert_eq!(given_up, streams);
    assert!(told, "it was closed without a word");
    let own = place.submit("shop", SHOP, &[]).await;
    assert_eq!(own.status, 202, "{own:?}");
}

/// Requests that wait for their jobs hold places, and streams of events hold connections: an app
/// gets its share of both.
#[tokio::test(flavor = "multi_thread")]
async fn promise_11_waits_and_streams_take_the_share_of_their_own_app_only() {
    let place = Place::shared("bounds-waits", "patience = \"5m\"").await;
    let key = place.submit("shop", SHOP, &[]).await;
    let job: Value = serde_json::from_str(&key.body).unwrap();
    let job = job["job"].as_str().unwrap();
    let mut streams = Vec::new();
    let mut refused = 0;
    for _ in 0..250 {
        let mut stream = place.connect().await;
        let request = format!(
            "GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: {SHOP}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        let read = stream.read_exact(&mut status);
        let read = tokio::time::timeout(BOUND, read).await;
        read.expect("an answer while streams are open").unwrap();
        match &status {
            b"HTTP/1.1 200" => streams.push(stream),
            b"HTTP/1.1 503" => refused += 1,
            other => panic!("{}", String::from_utf8_lossy(other)),
        }
    }
    assert!(!streams.is_empty() && refused > 0, "{refused} refused");
    place.others_get_in("one app holds its streams").await;
    // The jobs of these are not sent.
    let mut waiting = Vec::new();
    let mut is_refused = false;
    while !is_refused {
        let number = waiting.len();
        assert!(number < 100, "its share has no end");
        let body = format!(
            r#"{{"v":1,"app":"shop","client_msg_no":"w{number}","message":{{"type":"text","text":"x"}},"audience":{{"users":["u"]}}}}"#
        );
        let mut request = head(
            "/v1/jobs",
            &format!("Authorization: {SHOP}\r\nPrefer: wait=60\r\n"),
        );
        request.extend(format!("Content-Length: {}\r\n\r\n{body}", body.len()).bytes());
        let mut stream = place.connect().await;
        stream.write_all(&request).await.unwrap();
        waiting.push(stream);
        is_refused = place.submit("shop", SHOP, &[]).await.status == 503;
    }
    place.others_get_in("one app holds its waits").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promise_11_an_idle_connection_of_http_2_is_closed() {
    let place = Place::shared("bounds-h2", "patience = \"1s\"").await;
    let mut idle = Http2::connect(&place, 65_535).await;
    idle.get(1, "/v1/jobs?app=shop", SHOP).await;
    let closed = async {
        let mut kinds = Vec::new();
        while let Some((kind, _)) = idle.next().await {
            kinds.push(kind);
        }
        kinds
    };
    let kinds = tokio::time::timeout(BOUND, closed).await.expect("an end");
    assert!(kinds.contains(&Http2::DATA), "{kinds:?}");
    assert!(kinds.contains(&Http2::GO_AWAY), "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn web_pages_and_other_hosts_need_credentials() {
    let endpoints = r#"
        [apps.default]
        target = "im"
        [apps.default.wukongim]
        auth = "none"
        target = "live"
        [apps.default.netease]
        auth = "none"
        [targets.live]
        type = "webhook"
    "#;
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", backend.local_addr().unwrap());
    let takes_all = Router::new().fallback(|| async { "" });
    tokio::spawn(async move { axum::serve(backend, takes_all).await });
    let endpoints = format!("{endpoints}url = {url:?}\n");
    let place = Place::new("bounds-pages", "", &endpoints).await;
    let text = ("Content-Type", "text/plain");
    let page = ("Origin", "http://evil.example");
    let fetch = ("Sec-Fetch-Site", "cross-site");
    let message = r#"{"channel_id":"u","channel_type":1,"from_uid":"n","payload":"aGk="}"#;
    for by_page in [page, fetch] {
        for (request, body) in [
            ("GET /v1/jobs", ""),
            ("GET /v1/dead?content=true", ""),
            ("POST /v1/jobs", "{}"),
            ("POST /message/send", message),
            ("POST /nimserver/msg/sendBatchMsg.action", "fromAccid=n"),
        ] {
            let refused = place.ask(request, &[text, by_page], body).await;
            let words = refused.body.contains("web page");
            assert!(refused.status == 403 || words, "{request}: {refused:?}");
        }
        let linked = place.ask("GET /openapi.json", &[by_page], "").await;
        assert_eq!(linked.status, 200, "it says nothing of jobs");
    }
    for request in ["GET /v1/jobs", "POST /message/send"] {
        let by_name = |host: &str| {
            let close = "Connection: close\r\nContent-Length: 0\r\n\r\n";
            format!(
                "{request} HTTP/1.1\r\nHost: {host}:{}\r\n{close}",
                place.port
            )
        };
        let refused = place.raw(by_name("evil.example").as_bytes()).await;
        assert_eq!(refused.status, 403, "{request}: {refused:?}");
        let own = place.raw(by_name("127.0.0.1").as_bytes()).await;
        assert_ne!(own.status, 403, "{request}: {own:?}");
    }
    for hosts in ["", "Host: localhost\r\nHost: evil.example\r\n"] {
        let request = format!("GET /livez HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
        let refused = place.raw(request.as_bytes()).await;
        assert_eq!(refused.status, 400, "{hosts:?}: {refused:?}");
    }
    let old = place.raw(b"GET /livez HTTP/1.0\r\n\r\n").await;
    assert_eq!(old.status, 200, "HTTP/1.0 needs no host");
    // A message for many leaves space for other headers.
    let many: Vec<_> = (0..300)
        .map(|number| {
            json!({"channel_id": format!("u{number}"), "channel_type": 1, "from_uid": "n",
                   "client_msg_no": format!("m{number}"), "payload": "aGk="})
        })
        .collect();
    let many = json!(many).to_string();
    let sent = place.ask("POST /message/sendbatch", &[], &many).await;
    assert_eq!(sent.status, 200, "{}", sent.body);
    assert_eq!(sent.header("fanwise-jobs"), "300", "{}", sent.head);
    assert!(sent.header("fanwise-job").len() < 4096 && sent.head.len() < 4096);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_told_shortly_and_wrong_tokens_slowly() {
    let place = Place::shared("bounds-words", "").await;
    let json = ("Content-Type", "application/json");
    let shop = ("Authorization", SHOP);
    // Names of a megabyte are shortened in the answer, and the answer is fast: they are not
    // compared with known names.
    let name = "n".repeat(1 << 20);
    let long = format!(r#"{{"v":1,"app":"shop","{name}":1,"client_msg_no":"a"}}"#);
    let refused = place.ask("POST /v1/jobs", &[shop, json], &long).await;
    assert!(
        refused.status == 400 && refused.body.len() < 10_000,
        "{}",
        refused.body.len()
    );
    let job = |app: &str, more: &str| {
        format!(
            r#"{{"v":1,"app":{app:?},"client_msg_no":"a",{more}"message":{{"type":"text","text":"x"}},"audience":{{"users":["u"]}}}}"#
        )
    };
    // An app cannot learn which other names exist.
    for body in [job("nobody", ""), job("shop", r#""target":"gone","#)] {
        let refused = place.ask("POST /v1/jobs", &[shop, json], &body).await;
        assert_eq!(refused.status, 400, "{refused:?}");
        assert!(!refused.body.contains("there are"), "{refused:?}");
        let admin = ("Authorization", ADMIN);
        let refused = place.ask("POST /v1/jobs", &[admin, json], &body).await;
        assert!(refused.body.contains("there are"), "{refused:?}");
    }
    // Compressed bodies are not read as text.
    let gzip = ("Content-Encoding", "gzip");
    for kind in ["application/json", "text/csv"] {
        let kind = ("Content-Type", kind);
        let refused = place.ask("POST /v1/jobs", &[shop, kind, gzip], "x").await;
        assert_eq!(refused.status, 415, "{refused:?}");
        assert!(refused.body.contains("uncompressed"), "{refused:?}");
    }
    let endpoint = ("token", "door-token");
    let refused = place
        .ask("POST /message/send", &[endpoint, json, gzip], "x")
        .await;
    assert!(refused.body.contains("uncompressed"), "{refused:?}");
    let told: Value = serde_json::from_str(&refused.body).unwrap();
    assert!(
        told["msg"].is_string(),
        "not in the system's own format: {told}"
    );
    // Answers to wrong tokens are delayed, answers to right ones are not.
    let began = Instant::now();
    for _ in 0..30 {
        let wrong = [("Authorization", "Bearer wrong")];
        assert_eq!(place.ask("GET /v1/jobs", &wrong, "").await.status, 401);
    }
    assert!(
        began.elapsed() > Duration::from_millis(700),
        "answers to wrong tokens are not delayed"
    );
    place
        .others_get_in("a client guesses from the same address")
        .await;
}
