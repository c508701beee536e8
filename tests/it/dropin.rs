//! Drop-in endpoints as existing callers use them: the documented requests, with only the host and the
//! credentials changed, against `fanwise serve` in front of mocks of all four systems.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fanwise::im::mock::{MockHandle, MockIm, Settings, Version};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::support::process::{Process, fanwise};
use crate::support::scratch::Scratch;
use crate::support::world::free_port;

const KEY: &str = "go9dnk49";
const SECRET: &str = "app-secret";

/// One `serve` with a door for each system, each leading to a mock of the same system.
struct House {
    mock: MockHandle,
    gateway: u16,
    config: String,
    _scratch: Scratch,
    _stop: tokio_util::sync::DropGuard,
}

impl House {
    /// `netease_target`: where requests in NetEase's manner are delivered.
    async fn new(name: &str, netease_target: &str) -> Self {
        let mock = MockIm::bind(Settings {
            wukongim: Version::V2,
            ..Settings::default()
        })
        .await
        .unwrap();
        let (address, handle) = (mock.addr(), mock.handle());
        let stop = CancellationToken::new();
        tokio::spawn(mock.run(stop.clone().cancelled_owned()));
        handle
            .patch_faults(&json!({"refuse_users": ["bbb"]}))
            .unwrap();
        let scratch = Scratch::new(name);
        let gateway = free_port();
        let account = r#"app_key = "mock-key"
            app_secret = "mock-secret"
            limit = "100/s burst 100""#;
        let config = format!(
            r#"
            [embedded]
            folder = {:?}
            [gateway]
            listen = "127.0.0.1:{gateway}"
            token = "admin"
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
            calls = "1000/s"
            [apps.shop.yunxin]
            key = "{KEY}"
            secret = "{SECRET}"
            target = "yunxin"
            "#,
            scratch.path().join("data"),
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
        let mut process = fanwise(&["serve", "--config", &self.config], &[]);
        process
            .until_prints("ready: jobs are taken", Duration::from_secs(60))
            .await;
        process
    }

    /// Posts; the status, the header `fanwise-job`, and the body.
    async fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, Option<String>, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.gateway))
            .await
            .unwrap();
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        request.push_str(body);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let job = head
            .lines()
            .find_map(|line| line.strip_prefix("fanwise-job: "))
            .map(str::to_owned);
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, job, body.to_owned())
    }

    async fn signed(&self, path: &str, kind: &str, nonce: &str, body: &str) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = now.as_secs().to_string();
        let text = format!("{SECRET}{nonce}{now}");
        let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        let sum: String = hash
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let headers = [
            ("AppKey", KEY),
            ("Nonce", nonce),
            ("CurTime", &*now),
            ("CheckSum", &*sum),
            ("Content-Type", kind),
        ];
        let (status, _, body) = self.post(path, &headers, body).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    fn got(&self, system: &str) -> Vec<String> {
        let accepted = self.mock.accepted();
        let of = accepted.iter().filter(|entry| &*entry.system == system);
        let mut got: Vec<_> = of.map(|entry| entry.recipient.clone()).collect();
        got.sort_unstable();
        got
    }
}

const NETEASE: &str = r#"fromAccid=zhangsan&toAccids=["aaa","bbb"]&type=0&body={"msg":"hello"}"#;
const FORM: &str = "application/x-www-form-urlencoded";
const BATCH: &str = "/nimserver/msg/sendBatchMsg.action";

/// The four documented requests, each answered in its own shape with the refused user in the right
/// field, and really sent.
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
    // The object of the releases, in its own shape.
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
    // Not for everybody unless the door allows it.
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
    let path = "/im/v2/conversations/messages";
    let answer = house.signed(path, "application/json", "n2", yunxin).await;
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
    serve.kill();
}

/// curl sends what the document prints, unescaped as it is there, and two elements of one request under
/// one key that differ are refused before anybody is sent to.
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

/// The same request again within the window is the same job, a replayed signature is refused, and a
/// second gateway would know both the job and its ids.
#[tokio::test(flavor = "multi_thread")]
async fn an_identical_retry_sends_nobody_twice() {
    let house = House::new("dropin-retry", "netease").await;
    let mut serve = house.serve().await;
    let with_ids = format!("{NETEASE}&returnMsgid=true");
    let first = house.signed(BATCH, FORM, "r1", &with_ids).await;
    let again = house.signed(BATCH, FORM, "r2", &with_ids).await;
    assert_eq!(first["msgids"], again["msgids"]);
    assert_eq!(again["unregister"], json!(["bbb"]));
    assert_eq!(house.got("netease"), ["aaa"]);
    let replayed = house.signed(BATCH, FORM, "r2", &with_ids).await;
    assert_eq!(replayed["code"], 414, "{replayed}");
    serve.kill();
}

/// A request in NetEase's manner is delivered by WuKongIM, and the answer is NetEase's.
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
