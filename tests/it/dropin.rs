//! Tests the drop-in endpoints as existing callers use them: the documented requests, with only the
//! host and the credentials changed, against `fanwise serve` in front of mocks of all four systems.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fanwise_mock_im::{MockHandle, Settings, Version};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::mock;
use crate::support::process::{Process, fanwise};
use crate::support::scratch::Scratch;
use crate::support::servers::{PrivateRedis, amqp_url, redis_url};
use crate::support::wait::until;
use crate::support::world::{BOUND, free_port};

const KEY: &str = "go9dnk49";
const SECRET: &str = "app-secret";

/// One `serve` with an endpoint for each system, each with a mock of the same system as its target.
struct House {
    mock: MockHandle,
    gateway: u16,
    config: String,
    _scratch: Scratch,
    _stop: tokio_util::sync::DropGuard,
}

impl House {
    /// `netease_target`: the target of requests in NetEase's format.
    async fn new(name: &str, netease_target: &str) -> Self {
        let scratch = Scratch::new(name);
        let engine = format!("[embedded]\ndir = {:?}", scratch.path().join("data"));
        Self::within(scratch, &engine, netease_target).await
    }

    /// On the engine of this configuration.
    async fn within(scratch: Scratch, engine: &str, netease_target: &str) -> Self {
        let (address, handle, stop) = mock::start(Settings {
            wukongim: Version::V2,
            ..Settings::default()
        })
        .await;
        handle
            .patch_faults(&json!({"refuse_users": ["bbb"]}))
            .unwrap();
        let gateway = free_port();
        let account = r#"app_key = "mock-key"
            app_secret = "mock-secret"
            limit = "100/s burst 100""#;
        let config = format!(
            r#"
            {engine}
            [gateway]
            listen = "127.0.0.1:{gateway}"
            token = "admin"
            patience = "1s"
            [admin]
            listen = "127.0.0.1:{}"
            [targets.wukongim]
            type = "wukongim"
            version = "v2"
            url = "http://{address}"
            [targets.openim]
            type = "openim"
            url = "http://{address}"
            secret = "openIM123"
            [targets.netease]
            type = "netease"
            url = "http://{address}/nimserver"
            {account}
            [targets.yunxin]
            type = "yunxin"
            url = "http://{address}"
            {account}
            [apps.shop]
            target = "wukongim"
            [apps.shop.wukongim]
            auth = "none"
            [apps.shop.openim]
            secret = "openim-secret"
            key = "imAdmin"
            target = "openim"
            [apps.shop.netease]
            key = "{KEY}"
            secret = "{SECRET}"
            target = "{netease_target}"
            rate = "1000/s"
            [apps.shop.yunxin]
            key = "{KEY}"
            secret = "{SECRET}"
            target = "yunxin"
            "#,
            free_port(),
        );
        let config = scratch.write("fanwise.toml", config);
        Self {
            mock: handle,
            gateway,
            config: config.to_str().unwrap().to_owned(),
            _scratch: scratch,
            _stop: stop.drop_guard(),
        }
    }

    async fn serve(&self) -> Process {
        self.serve_with(&[]).await
    }

    /// With these environment variables.
    async fn serve_with(&self, variables: &[(&str, &str)]) -> Process {
        let mut process = fanwise(&["serve", "--config", &self.config], variables);
        process
            .until_prints("ready: jobs are taken", Duration::from_secs(60))
            .await;
        process
    }

    /// Posts; returns the status, the header `fanwise-job`, and the body.
    async fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, Option<String>, String) {
        let answer = ask(self.gateway, "POST", path, headers, body).await;
        let job = answer.header("fanwise-job").map(str::to_owned);
        (answer.status, job, answer.body)
    }

    async fn signed(&self, path: &str, kind: &str, nonce: &str, body: &str) -> Value {
        let signature = Signature::now(nonce);
        let answer = signature.send(self.gateway, path, kind, body).await;
        answer.json()
    }

    async fn openim_token(&self) -> String {
        let login = r#"{"secret":"openim-secret","userID":"imAdmin"}"#;
        let path = "/auth/get_admin_token";
        let (_, _, body) = self.post(path, &[("operationID", "login")], login).await;
        let answer: Value = serde_json::from_str(&body).unwrap();
        answer["data"]["token"].as_str().unwrap().to_owned()
    }

    /// Sends a control request.
    async fn steer(&self, path: &str, body: &str) {
        let headers = [
            ("Authorization", "Bearer admin"),
            ("Content-Type", "application/json"),
        ];
        let (status, _, answer) = self.post(path, &headers, body).await;
        assert_eq!(status, 200, "{answer}");
    }

    fn got(&self, system: &str) -> Vec<String> {
        let accepted = self.mock.accepted();
        let of = accepted.iter().filter(|entry| &*entry.system == system);
        let mut got: Vec<_> = of.map(|entry| entry.recipient.clone()).collect();
        got.sort_unstable();
        got
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines();
        let mut found = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        found.next()
    }

    /// The body of an answer. Checks that clients of these systems would accept its headers.
    fn json(&self) -> Value {
        let kind = self.header("content-type");
        assert_eq!(
            kind,
            Some("application/json; charset=utf-8"),
            "{}",
            self.body
        );
        serde_json::from_str(&self.body).unwrap()
    }
}

async fn ask(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    ask_announcing(port, method, path, headers, body.len(), body).await
}

/// Announces a body of this many bytes, and sends the given one.
async fn ask_announcing(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    bytes: usize,
    body: &str,
) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {bytes}\r\n"
    );
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    request.push_str(body);
    // A server that has refused may not read the whole request.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

/// The headers of a signature by NetEase's callers.
struct Signature {
    nonce: String,
    now: String,
    sum: String,
}

impl Signature {
    fn now(nonce: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = now.as_secs().to_string();
        let text = format!("{SECRET}{nonce}{now}");
        let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        let digits = hash.as_ref().iter().map(|byte| format!("{byte:02x}"));
        Self {
            nonce: nonce.to_owned(),
            now,
            sum: digits.collect(),
        }
    }

    fn headers(&self) -> [(&str, &str); 4] {
        [
            ("AppKey", KEY),
            ("Nonce", &self.nonce),
            ("CurTime", &self.now),
            ("CheckSum", &self.sum),
        ]
    }

    /// Sends a call with this signature, to any gateway and path, any number of times.
    async fn send(&self, port: u16, path: &str, kind: &str, body: &str) -> Answer {
        let headers = [&self.headers()[..], &[("Content-Type", kind)]].concat();
        let answer = ask(port, "POST", path, &headers, body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer
    }
}

const NETEASE: &str = r#"fromAccid=zhangsan&toAccids=["aaa","bbb"]&type=0&body={"msg":"hello"}"#;
const FORM: &str = "application/x-www-form-urlencoded";
const BATCH: &str = "/nimserver/msg/sendBatchMsg.action";
const OPENIM: &str = "/msg/batch_send_msg";
const LOGIN: &str = "/auth/get_admin_token";
const YUNXIN: &str = "/im/v2/conversations/messages";

/// The servers' part of a configuration: RabbitMQ and Redis, with names of its own.
fn servers(amqp: &str, redis: &str) -> String {
    let unique = format!("dropin-{}-{:x}", std::process::id(), fastrand::u32(..));
    format!(
        "[broker]\nurl = {amqp:?}\nnamespace = {unique:?}\n\
         [ledger]\nurl = {redis:?}\nprefix = {unique:?}"
    )
}

/// The four documented requests: each gets an answer in its own format with the refused user in the
/// right field, and is really sent.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_requests_get_the_documented_answers() {
    let house = House::new("dropin-seeds", "netease").await;
    let mut serve = house.serve().await;

    let answer = house.signed(BATCH, FORM, "n1", NETEASE).await;
    assert_eq!(
        (&answer["code"], &answer["unregister"]),
        (&json!(200), &json!(["bbb"]))
    );
    assert!(answer["timetag"].is_u64());
    assert_eq!(house.got("netease"), ["aaa"]);

    let array = r#"[{"header":{"no_persist":0,"red_dot":1,"sync_once":0},"client_msg_no":"batch_msg_1",
        "from_uid":"system","channel_id":"group123","channel_type":2,"expire":0,
        "payload":"SGVsbG8gR3JvdXAgMQ==","tag_key":"notification"},
        {"header":{"no_persist":0,"red_dot":1,"sync_once":0},"client_msg_no":"batch_msg_2",
        "from_uid":"system","channel_id":"group456","channel_type":2,"expire":0,
        "payload":"SGVsbG8gR3JvdXAgMg==","tag_key":"notification"}]"#;
    let (status, jobs, body) = house.post("/message/sendbatch", &[], array).await;
    assert_eq!((status, jobs.unwrap().split(", ").count()), (200, 2));
    let answer: Value = serde_json::from_str(&body).unwrap();
    for (index, number) in ["batch_msg_1", "batch_msg_2"].iter().enumerate() {
        assert_eq!(answer[index]["client_msg_no"], *number);
        assert_eq!(answer[index]["message_seq"], 0);
        assert!(answer[index]["message_id"].is_i64());
    }
    // The object of the releases, answered in its own format.
    let object = r#"{"header":{"red_dot":1},"from_uid":"system","subscribers":["u1","bbb"],
        "payload":"SGVsbG8="}"#;
    let (status, _, body) = house.post("/message/sendbatch", &[], object).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &answer["fail_uids"]), (200, &json!(["bbb"])));
    assert_eq!(house.got("wukongim"), ["group123", "group456", "u1"]);

    let login = r#"{"secret":"openim-secret","userID":"imAdmin"}"#;
    let path = "/auth/get_admin_token";
    let (_, _, body) = house.post(path, &[("operationID", "login-1")], login).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    let token = answer["data"]["token"].as_str().unwrap().to_owned();
    let batch = r#"{"recvIDs":["9948077346","bbb"],"sendID":"3473643418","senderNickname":"Alice",
        "senderFaceURL":"http://nvpydodr.ae/ylyqu","senderPlatformID":2,"content":{"content":"hello!!"},
        "contentType":101,"sessionType":1,"isOnlineOnly":false,"notOfflinePush":false,
        "sendTime":1340619319058,"offlinePushInfo":{"title":"1213","desc":"in eiusmod magna","ex":"ex",
        "iOSPushSound":"in Duis ut sunt nostrud","iOSBadgeCount":true},"ex":"ex","isSendAll":false}"#;
    let headers = [("operationID", "1646445464564"), ("token", &*token)];
    let (_, _, body) = house.post("/msg/batch_send_msg", &headers, batch).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (&answer["errCode"], &answer["errDlt"]),
        (&json!(0), &json!(""))
    );
    assert_eq!(answer["data"]["results"][0]["recvID"], "9948077346");
    assert_eq!(answer["data"]["failedUserIDs"], json!(["bbb"]));
    assert_eq!(house.got("openim"), ["9948077346"]);
    // A call for all users is refused unless the endpoint allows it.
    let all = batch.replace("\"isSendAll\":false", "\"isSendAll\":true");
    let headers = [("operationID", "1646445464565"), ("token", &*token)];
    let (_, _, body) = house.post("/msg/batch_send_msg", &headers, &all).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_ne!(answer["errCode"], 0, "{body}");

    let yunxin = r#"{"sender_no_sense":false,"extension":"officia labore ex sit ut","message":
        {"message_type":0,"sub_type":30164486,"text":"laborum irure","attachment":{"name":"x",
        "md5":"amet sit Excepteur officia","url":"http://xkjotf.cq/ckp","ext":"in qui","width":10,
        "height":95,"size":89}},"route_config":{"route_enabled":false,"route_environment":"magna"},
        "push_config":{"push_enabled":true,"push_nick_enabled":false,"push_content":"reprehenderit",
        "push_payload":null,"push_forcepush_all":true,"push_forcepush_ids":["30"],
        "push_forcepush_content":"irure"},"antispam_config":{"antispam_enabled":false,
        "antispam_business_id":"31","antispam_extension":null,"antispam_cheating":null},
        "p2p_option":{"check_friend":true},"sender_id":"apifoxtest1",
        "receiver_ids":["apifoxtest2","bbb"]}"#;
    let answer = house.signed(YUNXIN, "application/json", "n2", yunxin).await;
    assert_eq!(
        (&answer["code"], &answer["msg"]),
        (&json!(200), &json!("success"))
    );
    let sent = &answer["data"]["success_list"][0];
    assert_eq!(sent["receiver_id"], "apifoxtest2");
    assert_eq!(
        (&sent["text"], &sent["sub_type"]),
        (&json!("laborum irure"), &json!(30164486))
    );
    assert_eq!(answer["data"]["failed_list"][0]["account_id"], "bbb");
    assert_eq!(house.got("yunxin"), ["apifoxtest2"]);
    // The vendor's SDKs have one base URL for v1 and v2.
    let other = yunxin.replace("laborum irure", "another");
    let path = format!("/nimserver{YUNXIN}");
    let answer = house.signed(&path, "application/json", "n3", &other).await;
    assert_eq!(
        answer["data"]["success_list"][0]["receiver_id"],
        "apifoxtest2"
    );
    serve.kill();
}

/// curl sends the call as the document prints it, unescaped. If two elements of one request have
/// the same key and differ, the request is refused before any message is sent.
#[tokio::test(flavor = "multi_thread")]
async fn curl_sends_the_documented_call_and_contradictions_are_refused() {
    let house = House::new("dropin-curl", "netease").await;
    let mut serve = house.serve().await;
    let url = format!("http://127.0.0.1:{}/message/sendbatch", house.gateway);
    let object =
        r#"{"header":{"red_dot":1},"from_uid":"system","subscribers":["u7"],"payload":"SGVsbG8="}"#;
    let output = tokio::task::block_in_place(|| {
        std::process::Command::new("curl")
            .args([
                "-s",
                "-X",
                "POST",
                &url,
                "-H",
                "Content-Type: application/json",
                "-d",
                object,
            ])
            .output()
    });
    match output {
        Ok(output) => {
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(answer, json!({"fail_uids": [], "reason": []}));
            assert_eq!(house.got("wukongim"), ["u7"]);
        }
        Err(error) => println!("skipped the part with curl: {error}"),
    }
    let element = |payload: &str| {
        json!({"client_msg_no": "same", "from_uid": "s", "channel_id": "u8", "channel_type": 1,
            "payload": payload})
    };
    let array = json!([element("SGVsbG8="), element("SGVsbG8gYWdhaW4=")]).to_string();
    let (status, _, body) = house.post("/message/sendbatch", &[], &array).await;
    assert_eq!(status, 400, "{body}");
    assert!(house.mock.accepted_by("u8").is_empty());
    serve.kill();
}

/// A repeated request within the window is the same job, with exactly the same answer.
#[tokio::test(flavor = "multi_thread")]
async fn an_identical_retry_sends_nobody_twice() {
    let house = House::new("dropin-retry", "netease").await;
    let mut serve = house.serve().await;
    let with_ids = format!("{NETEASE}&returnMsgid=true");
    let first = house.signed(BATCH, FORM, "r1", &with_ids).await;
    let again = house.signed(BATCH, FORM, "r2", &with_ids).await;
    // The ids, the time and the unregistered recipients.
    assert_eq!(first, again);
    assert_eq!(again["unregister"], json!(["bbb"]));
    assert_eq!(house.got("netease"), ["aaa"]);
    serve.kill();
}

/// Callers of OpenIM may give one `operationID` to all their calls, since it is only for tracing:
/// every announcement arrives, and an identical call within the window is not sent twice.
#[tokio::test(flavor = "multi_thread")]
async fn an_operation_id_that_never_changes_loses_nobody() {
    let house = House::new("dropin-operation", "netease").await;
    let window = ("FANWISE_APPS__SHOP__OPENIM__REPEAT_WINDOW", "1s");
    let mut serve = house.serve_with(&[window]).await;
    let token = house.openim_token().await;
    let say = async |operation: &str, text: &str| {
        let call = json!({"recvIDs": ["u1"], "sendID": "s", "content": {"content": text},
            "contentType": 101, "sessionType": 1});
        let headers = [("operationID", operation), ("token", &*token)];
        let (_, job, body) = house
            .post("/msg/batch_send_msg", &headers, &call.to_string())
            .await;
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["errCode"], 0, "{body}");
        assert_eq!(answer["data"]["results"][0]["recvID"], "u1");
        job.unwrap()
    };
    let morning = say("1", "Good morning").await;
    let lunch = say("1", "Lunch is ready").await;
    assert_ne!(morning, lunch, "another message");
    assert_ne!(say("2", "Lunch is ready").await, lunch, "another call");
    let sent = Instant::now();
    let first = say("1", "Good night").await;
    let again = say("1", "Good night").await;
    if sent.elapsed() < Duration::from_millis(900) {
        assert_eq!(first, again, "a repeat within the window");
    }
    // The same announcement on the next day.
    until("the end of the window", BOUND, async || {
        (say("1", "Good morning").await != morning).then_some(())
    })
    .await;
    assert!(house.got("openim").len() >= 5);
    serve.kill();

    // An app whose callers give each message an id of its own may make it the key.
    let dedup = ("FANWISE_APPS__SHOP__OPENIM__OPERATION_ID", "dedup");
    let mut serve = house.serve_with(&[window, dedup]).await;
    assert_eq!(say("9", "Hello").await, say("9", "Hello").await);
    let other = json!({"recvIDs": ["u1"], "sendID": "s", "content": {"content": "Other"},
        "contentType": 101, "sessionType": 1});
    let headers = [("operationID", "9"), ("token", &*token)];
    let (_, _, body) = house
        .post("/msg/batch_send_msg", &headers, &other.to_string())
        .await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer["errCode"], 1003, "{body}");
    serve.kill();
}

/// While a target is parked or paused, no answer reports a delivered message. The job is kept, and
/// a repeated request is the same job.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_hears_that_a_target_stands_still() {
    let house = House::new("dropin-busy", "netease").await;
    let mut variables = Vec::new();
    for system in ["NETEASE", "YUNXIN", "OPENIM", "WUKONGIM"] {
        variables.push((
            format!("FANWISE_APPS__SHOP__{system}__ANSWER_WITHIN"),
            "300ms",
        ));
        // The window recognises no repeats here.
        variables.push((format!("FANWISE_APPS__SHOP__{system}__REPEAT_WINDOW"), "0s"));
    }
    let variables: Vec<_> = variables.iter().map(|(name, it)| (&**name, *it)).collect();
    let mut serve = house.serve_with(&variables).await;
    let token = house.openim_token().await;
    for target in ["netease", "yunxin"] {
        house
            .steer(
                &format!("/v1/targets/{target}:park"),
                r#"{"expires_in":"10m"}"#,
            )
            .await;
    }
    house.steer("/v1/targets/openim:pause", "{}").await;
    house.steer("/v1/targets/wukongim:pause", "{}").await;

    let ask = async |turn: &str, user: &str| {
        let text = json!({"message_type": 0, "text": "x"});
        let netease = format!(r#"fromAccid=s&toAccids=["{user}"]&type=0&body={{"msg":"x"}}"#);
        let yunxin = json!({"sender_id": "s", "receiver_ids": [user], "message": text}).to_string();
        let openim = json!({"recvIDs": [user], "sendID": "s", "content": {"content": "x"},
            "contentType": 101, "sessionType": 1})
        .to_string();
        let wukongim = json!([{"client_msg_no": user, "from_uid": "s", "channel_id": user,
            "channel_type": 1, "payload": "SGVsbG8="}])
        .to_string();
        let nonce = format!("a{turn}");
        let netease = house.signed(BATCH, FORM, &nonce, &netease).await;
        let nonce = format!("b{turn}");
        let yunxin = house
            .signed(YUNXIN, "application/json", &nonce, &yunxin)
            .await;
        let headers = [("operationID", turn), ("token", &*token)];
        let openim = house.post("/msg/batch_send_msg", &headers, &openim).await;
        let wukongim = house.post("/message/sendbatch", &[], &wukongim).await;
        let jobs = [openim.1.unwrap(), wukongim.1.unwrap()];
        let code: Value = serde_json::from_str(&openim.2).unwrap();
        let codes = [&netease["code"], &yunxin["code"], &code["errCode"]];
        (json!([codes, openim.0, wukongim.0]), jobs)
    };
    let busy = json!([[503, 503, 500], 503, 503]);
    let mut turn = 0;
    until("workers to know", BOUND, async || {
        turn += 1;
        let other = format!("other-{turn}");
        let (codes, _) = ask(&other, &other).await;
        (codes == busy).then_some(())
    })
    .await;
    let (codes, jobs) = ask("1", "u1").await;
    assert_eq!(codes, busy);
    let (codes, again) = ask("2", "u1").await;
    assert_eq!(codes, busy);
    assert_eq!(jobs, again);
    assert!(house.mock.accepted_by("u1").is_empty());

    for target in ["netease", "yunxin"] {
        let path = format!("/v1/targets/{target}:unpark");
        house.steer(&path, "{}").await;
    }
    house.steer("/v1/targets/openim:resume", "{}").await;
    house.steer("/v1/targets/wukongim:resume", "{}").await;
    until("a message of each system", BOUND, async || {
        (house.mock.accepted_by("u1").len() >= 4).then_some(())
    })
    .await;
    // The job is over: another such request is another message, unless it has a number as its key.
    until("success", BOUND, async || {
        turn += 1;
        let other = format!("other-{turn}");
        let (codes, _) = ask(&other, &other).await;
        (codes == json!([[200, 200, 0], 200, 200])).then_some(())
    })
    .await;
    let (codes, _) = ask("3", "u1").await;
    assert_eq!(codes, json!([[200, 200, 0], 200, 200]));
    let expected = [
        "netease", "netease", "openim", "openim", "wukongim", "yunxin", "yunxin",
    ];
    until("all messages", BOUND, async || {
        let got = house.mock.accepted_by("u1");
        let mut systems: Vec<_> = got.iter().map(|entry| &*entry.system).collect();
        systems.sort_unstable();
        (systems == expected).then_some(())
    })
    .await;
    serve.kill();
}

/// A request refused for its rate can be sent again unchanged: its nonce is not used up.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_call_keeps_its_nonce() {
    let house = House::new("dropin-nonce", "netease").await;
    let prefix = "FANWISE_APPS__SHOP__NETEASE__";
    let calls = (&*format!("{prefix}RATE"), "1/s burst 1");
    let block = (&*format!("{prefix}BLOCK_FOR"), "1s");
    let mut serve = house.serve_with(&[calls, block]).await;
    let first = house.signed(BATCH, FORM, "n1", NETEASE).await;
    assert_eq!(first["code"], 200);
    let refused = Signature::now("n2");
    let mut codes = Vec::new();
    until("a call that comes in", BOUND, async || {
        let answer = refused.send(house.gateway, BATCH, FORM, NETEASE).await;
        codes.push(answer.json()["code"].as_u64().unwrap());
        (codes.last() == Some(&200)).then_some(())
    })
    .await;
    let (last, before) = codes.split_last().unwrap();
    assert_eq!(*last, 200);
    assert!(before.iter().all(|code| *code == 416), "{codes:?}");
    // After it was accepted, the nonce is used up.
    until("a replay that is looked at", BOUND, async || {
        let answer = refused
            .send(house.gateway, BATCH, FORM, NETEASE)
            .await
            .json();
        assert_ne!(answer["code"], 200);
        (answer["code"] == 414).then_some(())
    })
    .await;
    serve.kill();
}

/// A message to all users is answered when it is complete, with the number of users.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_to_all_users_is_answered_when_it_is_through() {
    let house = House::new("dropin-all", "netease").await;
    let mut serve = house
        .serve_with(&[
            ("FANWISE_APPS__SHOP__OPENIM__SEND_ALL", "true"),
            ("FANWISE_APPS__SHOP__OPENIM__ANSWER_WITHIN", "1m"),
            ("FANWISE_APPS__SHOP__AUDIENCES", "users,groups,all"),
        ])
        .await;
    let token = house.openim_token().await;
    let all = r#"{"isSendAll":true,"sendID":"s","content":{"content":"x"},"contentType":101,"sessionType":1}"#;
    let headers = [("operationID", "1"), ("token", &*token)];
    let (_, _, body) = house.post("/msg/batch_send_msg", &headers, all).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer["errCode"], 0, "{body}");
    let sent = house.got("openim").len();
    assert!(sent > 0);
    assert_eq!(
        answer["data"]["accounts"],
        json!({"total": sent, "sent": sent, "failed": 0, "pending": 0})
    );
    serve.kill();
}

/// A signature is valid once: at all gateways together, and at all endpoints with the same key.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_refused_at_every_gateway() {
    let (Some(amqp), Some(redis)) = (amqp_url(), redis_url()) else {
        return;
    };
    let engine = servers(&amqp, &redis);
    let house = House::within(Scratch::new("dropin-replay"), &engine, "netease").await;
    let (port, admin) = (free_port(), format!("127.0.0.1:{}", free_port()));
    let listen = format!("127.0.0.1:{port}");
    let other = [
        ("FANWISE_GATEWAY__LISTEN", &*listen),
        ("FANWISE_ADMIN__LISTEN", &*admin),
    ];
    let (mut first, mut second) = (house.serve().await, house.serve_with(&other).await);
    let signature = Signature::now("once");
    let call = signature.send(house.gateway, BATCH, FORM, NETEASE).await;
    assert_eq!(call.json()["code"], 200, "{}", call.body);
    let yunxin =
        r#"{"sender_id":"a","receiver_ids":["b"],"message":{"message_type":0,"text":"x"}}"#;
    for (port, path, body) in [
        (house.gateway, BATCH, NETEASE),
        (port, BATCH, NETEASE),
        (
            port,
            BATCH,
            "fromAccid=zhangsan&toAccids=[\"ccc\"]&type=0&body={\"msg\":\"mine\"}",
        ),
        (port, YUNXIN, yunxin),
    ] {
        let replayed = signature.send(port, path, FORM, body).await.json();
        assert_eq!(replayed["code"], 414, "{replayed}");
        let text = replayed.to_string();
        assert!(text.contains("this Nonce was used before"), "{text}");
    }
    let other = Signature::now("another");
    let fresh = other.send(port, YUNXIN, "application/json", yunxin).await;
    assert_eq!(fresh.json()["code"], 200);
    assert_eq!(house.got("netease"), ["aaa"]);
    first.kill();
    second.kill();
}

/// While the ledger is away nothing is accepted, with an answer in each system's format. A call
/// refused for that can be repeated unchanged, including its signature.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_ledger_calls_are_put_off() {
    let Some(amqp) = amqp_url() else {
        return;
    };
    let Some(mut redis) = PrivateRedis::start().await else {
        return;
    };
    let engine = servers(&amqp, redis.url());
    let house = House::within(Scratch::new("dropin-ledger"), &engine, "netease").await;
    let mut serve = house.serve().await;
    redis.stop().await;
    let object = r#"{"from_uid":"system","subscribers":["u1"],"payload":"SGVsbG8="}"#;
    until("the outage to be seen", BOUND, async || {
        let answer = ask(house.gateway, "POST", "/message/sendbatch", &[], object).await;
        (answer.status == 503).then(|| {
            assert_eq!(answer.header("retry-after"), Some("1"), "{}", answer.head);
            assert_eq!(answer.json()["status"], 503);
        })
    })
    .await;
    let signature = Signature::now("again");
    let refused = signature.send(house.gateway, BATCH, FORM, NETEASE).await;
    assert_eq!(refused.json()["code"], 503, "{}", refused.body);
    assert_eq!(refused.header("retry-after"), Some("1"));
    redis.start_again().await;
    until("the ledger to be back", BOUND, async || {
        let answer = signature.send(house.gateway, BATCH, FORM, NETEASE).await;
        let code = answer.json()["code"].clone();
        assert!(code == 200 || code == 503, "{}", answer.body);
        (code == 200).then_some(())
    })
    .await;
    serve.kill();
}

/// Whatever makes a request unreadable, the answer has the format of the system it was written for.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_refused_in_the_systems_own_manner() {
    let house = House::new("dropin-manners", "netease").await;
    let mut serve = house.serve().await;
    let long = "x".repeat(5 * 1024 * 1024);
    let signature = Signature::now("manners");
    let token = house.openim_token().await;
    // Faults of the head are answered before the body is read, faults of the body after that.
    for (path, status, code, text, lacks) in [
        (BATCH, 200, "/code", "/desc", Some("bad http header")),
        (YUNXIN, 200, "/code", "/msg", Some("bad http header")),
        (OPENIM, 400, "/errCode", "/errDlt", Some("must have token")),
        (LOGIN, 400, "/errCode", "/errDlt", None),
        ("/message/sendbatch", 400, "/status", "/msg", None),
        ("/message/send", 400, "/status", "/msg", None),
    ] {
        let operation = [("operationID", "1")];
        let check = |answer: Answer, status: u16, expected: &str| {
            let body = answer.json();
            let wrong = match code {
                "/errCode" => 1001,
                "/status" => 400,
                _ => 414,
            };
            assert_eq!(answer.status, status, "{path}: {body}");
            assert_eq!(body.pointer(code), Some(&json!(wrong)), "{path}: {body}");
            let told = body.pointer(text).and_then(Value::as_str).unwrap();
            assert!(told.contains(expected), "{path}: {told}");
            answer
        };
        let wrong_method = ask(house.gateway, "GET", path, &[], "").await;
        let wrong_method = check(wrong_method, status, "GET is not supported here, use POST");
        assert_eq!(wrong_method.header("allow"), Some("POST"));
        let post = async |headers: &[(&str, &str)], bytes: usize, body: &str| {
            ask_announcing(house.gateway, "POST", path, headers, bytes, body).await
        };
        if let Some(lacks) = lacks {
            check(post(&operation, long.len(), &long).await, 200, lacks);
            check(post(&operation, 100, "{").await, 200, lacks);
        }
        let credentials = match path {
            BATCH | YUNXIN => signature.headers().to_vec(),
            OPENIM => vec![("token", &*token)],
            _ => Vec::new(),
        };
        let entering = [&operation[..], &credentials].concat();
        let too_large = match path {
            LOGIN => "bytes; no login has as many",
            _ => "bytes; send to fewer recipients at a time",
        };
        check(post(&entering, long.len(), &long).await, status, too_large);
        let slow = post(&entering, 100, "{").await;
        check(slow, status, "the body came too slowly");
    }
    // Faults within the body as well.
    let (status, _, body) = house.post("/message/sendbatch", &[], "{}").await;
    assert_eq!(
        (status, &*body),
        (400, r#"{"msg":"from_uid is missing","status":400}"#)
    );
    let operation = [("operationID", "1")];
    let login = "[";
    let (status, _, body) = house.post("/auth/get_admin_token", &operation, login).await;
    assert_eq!(status, 400, "{body}");
    assert!(
        body.starts_with(r#"{"errCode":1001,"errMsg":"ArgsError""#),
        "{body}"
    );
    // The answer is not that of the native interface.
    let native = ask(house.gateway, "GET", "/message/sendbatch/", &[], "").await;
    assert_eq!(
        native.header("content-type"),
        Some("application/problem+json")
    );
    serve.kill();
}

/// If a request of several messages exceeds what its app may send, none of it is accepted or
/// counted.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_counts_of_a_request_that_is_too_much() {
    let house = House::new("dropin-quota", "netease").await;
    let quota = [("FANWISE_APPS__SHOP__DAILY_RECIPIENTS", "3")];
    let mut serve = house.serve_with(&quota).await;
    let array = |name: &str, count: usize| {
        let element = |number| {
            json!({"client_msg_no": format!("{name}-{number}"), "from_uid": "s",
                "channel_id": format!("{name}-{number}"), "channel_type": 2, "payload": "SGVsbG8="})
        };
        Value::Array((0..count).map(element).collect()).to_string()
    };
    let send = async |body: String| house.post("/message/sendbatch", &[], &body).await;
    let (status, jobs, body) = send(array("four", 4)).await;
    assert_eq!((status, jobs), (403, None), "{body}");
    assert!(body.contains("4 recipients"), "{body}");
    assert!(body.contains("has 3 of 3 left until 00:00 UTC"), "{body}");
    // So three recipients are left, the same ones again, and no others.
    for _ in 0..2 {
        let (status, _, body) = send(array("three", 3)).await;
        assert_eq!(status, 200, "{body}");
    }
    let (status, _, body) = send(array("one", 1)).await;
    assert_eq!(status, 403, "{body}");
    assert!(body.contains("has 0 of 3 left"), "{body}");
    assert_eq!(house.got("wukongim"), ["three-0", "three-1", "three-2"]);
    serve.kill();
}

/// WuKongIM delivers a request in NetEase's format, and the answer is in NetEase's format.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_one_system_is_delivered_by_another() {
    let house = House::new("dropin-across", "wukongim").await;
    let mut serve = house.serve().await;
    let answer = house.signed(BATCH, FORM, "a1", NETEASE).await;
    assert_eq!(answer["code"], 200, "{answer}");
    let accepted = house.mock.accepted_by("aaa");
    assert_eq!(&*accepted[0].system, "wukongim");
    let payload: Value = serde_json::from_str(&accepted[0].payload).unwrap();
    assert_eq!(payload, json!({"type": 1, "content": "hello"}));
    assert!(house.mock.accepted_by("bbb").is_empty());
    serve.kill();
}
