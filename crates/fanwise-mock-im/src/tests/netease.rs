//! Tests NetEase v1, and the parts that it shares with Yunxin v2.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use serde_json::{Value, json};

use super::super::{
    FailedKey, MockArgs, NeteaseSettings, OnRepeat, Quota, Settings, Standing, YunxinSettings,
};
use super::{BOUND, Mock, Reply, Sent, start};

const BATCH: &str = "/nimserver/msg/sendBatchMsg.action";
const SINGLE: &str = "/nimserver/msg/sendMsg.action";
const BODY: &str = r#"{"msg":"hello & 100%"}"#;

/// The headers of a signed call.
pub(super) struct Signature {
    cur_time: String,
    checksum: String,
}

impl Signature {
    /// A signature with the current time and the secret of the default app.
    pub(super) fn new() -> Signature {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let cur_time = now.as_secs().to_string();
        let text = format!("mock-secretnonce{cur_time}");
        let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        let hex = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
        Signature {
            cur_time,
            checksum: hex.collect(),
        }
    }

    pub(super) fn on<'a>(&'a self, sent: Sent<'a>) -> Sent<'a> {
        sent.with("AppKey", "mock-key")
            .with("Nonce", "nonce")
            .with("CurTime", &self.cur_time)
            .with("CheckSum", &self.checksum)
    }
}

async fn cloud(netease: NeteaseSettings) -> Mock {
    start(Settings {
        netease,
        ..Settings::default()
    })
    .await
}

async fn quiet() -> Mock {
    cloud(NeteaseSettings::default()).await
}

type Fields<'a> = Vec<(&'a str, String)>;

fn batch(members: &[&str]) -> Fields<'static> {
    vec![
        ("fromAccid", "News".to_owned()),
        ("toAccids", json!(members).to_string()),
        ("type", "0".to_owned()),
        ("body", BODY.to_owned()),
    ]
}

fn single(to: &str) -> Fields<'static> {
    vec![
        ("from", "news".to_owned()),
        ("ope", "0".to_owned()),
        ("to", to.to_owned()),
        ("type", "0".to_owned()),
        ("body", BODY.to_owned()),
    ]
}

fn set<'a>(mut fields: Fields<'a>, name: &'a str, value: impl Into<String>) -> Fields<'a> {
    fields.retain(|(given, _)| *given != name);
    fields.push((name, value.into()));
    fields
}

fn encoded(fields: &Fields<'_>) -> String {
    let escape = |byte: u8| match byte {
        b' ' => "+".to_owned(),
        _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    let parameter = |(name, value): &(&str, String)| {
        let value: String = value.bytes().map(escape).collect();
        format!("{name}={value}")
    };
    fields.iter().map(parameter).collect::<Vec<_>>().join("&")
}

async fn post(mock: &Mock, path: &str, fields: &Fields<'_>, id: &str) -> Reply {
    let signature = Signature::new();
    let form = Sent::post(path, &encoded(fields))
        .with(
            "content-type",
            "application/x-www-form-urlencoded;charset=utf-8",
        )
        .with("RequestId", id);
    mock.send(&signature.on(form)).await
}

/// The answer to a call without a request id, which is always an HTTP 200.
async fn call(mock: &Mock, path: &str, fields: &Fields<'_>) -> Value {
    let reply = post(mock, path, fields, "").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()
}

/// Checks that a call gets this code and, unless it is 200, reaches no recipient.
async fn check(mock: &Mock, path: &str, fields: &Fields<'_>, code: u32, text: &str) {
    let before = mock.handle.stats().accepted;
    let reply = call(mock, path, fields).await;
    assert_eq!(reply["code"], code, "{fields:?} got {reply}");
    if code != 200 {
        assert!(reply["desc"].as_str().unwrap().contains(text), "{reply}");
    }
    let accepted = mock.handle.stats().accepted - before;
    assert_eq!(accepted > 0, code == 200, "{fields:?}");
}

/// Goal: the answer lists unregistered accids, and all others are in the log in lower case.
#[tokio::test]
async fn batch_names_the_unregistered() {
    let mock = quiet().await;
    mock.set(json!({ "refuse_prefix": "gone" })).await;
    let reply = call(&mock, BATCH, &batch(&["U1", "Gone-1", "u2"])).await;
    assert_eq!(reply["code"], 200);
    assert_eq!(reply["unregister"], json!(["gone-1"]));
    assert!(reply["timetag"].as_u64().unwrap() > 1_600_000_000_000);
    assert!(reply.get("msgids").is_none());

    let entry = &mock.accepted_by("u1")[0];
    assert_eq!((&*entry.system, &*entry.from), ("netease", "news"));
    assert_eq!((&*entry.payload, entry.channel_type), (BODY, 1));
    assert!(mock.accepted_by("U1").is_empty());
    let stats = mock.handle.stats();
    assert_eq!((stats.accepted, stats.refused), (2, 1));

    let option = set(batch(&["u3"]), "option", r#"{"persistent":false}"#);
    let reply = call(&mock, BATCH, &set(option, "returnMsgid", "true")).await;
    let entry = &mock.accepted_by("u3")[0];
    assert_eq!(reply["unregister"], json!([]));
    assert_eq!(reply["msgids"], json!({ "u3": entry.message_id }));
    assert!(entry.no_persist);
}

/// Goal: lists can be JSON inside a text, as in older releases.
#[tokio::test]
async fn lists_can_be_text() {
    let mock = cloud(NeteaseSettings {
        text_lists: true,
        ..NeteaseSettings::default()
    })
    .await;
    mock.set(json!({ "refuse_users": ["u2"] })).await;
    let reply = call(
        &mock,
        BATCH,
        &set(batch(&["u1", "u2"]), "returnMsgid", "true"),
    )
    .await;
    assert_eq!(reply["unregister"], r#"["u2"]"#);
    let id = mock.accepted_by("u1")[0].message_id;
    assert_eq!(reply["msgids"], format!(r#"{{"u1":{id}}}"#));
}

/// Goal: a call that is unsigned, not a form, or to an unknown path is refused and reaches no
/// recipient.
#[tokio::test]
async fn unsigned_calls_are_refused() {
    let mock = quiet().await;
    let form = encoded(&batch(&["u1"]));
    let bare = mock.send(&Sent::post(BATCH, &form)).await;
    let expected = json!({ "code": 414, "desc": "bad http header" });
    assert_eq!((bare.status, bare.json()), (200, expected));

    let mut forged = Signature::new();
    forged.checksum = "0".repeat(40);
    let reply = mock.send(&forged.on(Sent::post(BATCH, &form))).await;
    assert_eq!(
        reply.json(),
        json!({ "code": 414, "desc": "checksum error" })
    );

    let signature = Signature::new();
    let reply = mock.send(&signature.on(Sent::post(BATCH, &form))).await;
    assert_eq!(
        reply.json()["code"],
        414,
        "a body that is not announced as a form"
    );
    let unknown = Sent::post("/nimserver/msg/unknown.action", &form);
    assert_eq!(mock.send(&signature.on(unknown)).await.status, 404);
    assert_eq!(mock.send(&Sent::get(BATCH)).await.status, 404);
    let stats = mock.handle.stats();
    assert_eq!((stats.accepted, stats.invalid), (0, 3));
}

/// Goal: the documented limits apply exactly. Method: a table of forms.
#[tokio::test]
async fn fields_are_checked() {
    let mock = quiet().await;
    let ids: Vec<String> = (0..501).map(|n| format!("u{n}")).collect();
    let members = |count: usize| {
        let ids: Vec<&str> = ids[..count].iter().map(String::as_str).collect();
        batch(&ids)
    };
    let with_ids = |count| set(members(count), "returnMsgid", "true");
    let ok = || batch(&["u1"]);
    let json_of = |length: usize| format!("\"{}\"", "x".repeat(length - 2));
    let body_of = |length: usize| format!(r#"{{"msg":"{}"}}"#, "文".repeat(length - 10));

    let too_many = "too many members.";
    check(&mock, BATCH, &members(500), 200, "").await;
    check(&mock, BATCH, &members(501), 414, too_many).await;
    check(&mock, BATCH, &with_ids(100), 200, "").await;
    check(&mock, BATCH, &with_ids(101), 414, too_many).await;
    check(&mock, BATCH, &batch(&[&"u".repeat(32)]), 200, "").await;
    let long = batch(&["u1", &"u".repeat(33)]);
    check(&mock, BATCH, &long, 414, "toAccids").await;

    let limits = [
        ("body", body_of(5000), body_of(5001)),
        ("msgDesc", "x".repeat(500), "x".repeat(501)),
        ("pushcontent", "x".repeat(500), "x".repeat(501)),
        ("pushContent", "x".repeat(500), "x".repeat(501)),
        ("payload", json_of(2048), json_of(2049)),
        ("ext", json_of(1024), json_of(1025)),
        ("yidunAntiCheating", json_of(1024), json_of(1025)),
        ("yidunAntiSpamExt", json_of(1024), json_of(1025)),
        ("env", "x".repeat(32), "x".repeat(33)),
        ("fromAccid", "x".repeat(32), "x".repeat(33)),
        ("type", "100".to_owned(), "5".to_owned()),
        ("type", "10".to_owned(), "text".to_owned()),
        ("body", BODY.to_owned(), r#"{"text":"no msg"}"#.to_owned()),
        ("body", BODY.to_owned(), "hello".to_owned()),
        ("body", BODY.to_owned(), String::new()),
        ("toAccids", r#"["u1"]"#.to_owned(), "u1,u2".to_owned()),
        ("toAccids", r#"["u1"]"#.to_owned(), "[]".to_owned()),
        ("toAccids", r#"["u1"]"#.to_owned(), "[1]".to_owned()),
        ("option", r#"{"push":false}"#.to_owned(), "[]".to_owned()),
        ("payload", r#"{"a":1}"#.to_owned(), "a=1".to_owned()),
        ("ext", r#"{"a":1}"#.to_owned(), "a".to_owned()),
        ("msgSenderNoSense", "1".to_owned(), "true".to_owned()),
        ("returnMsgid", "false".to_owned(), "1".to_owned()),
    ];
    for (name, good, bad) in limits {
        check(&mock, BATCH, &set(ok(), name, good), 200, "").await;
        check(&mock, BATCH, &set(ok(), name, bad), 414, "").await;
    }
}

/// Goal: a sender can be refused, with the documented codes.
#[tokio::test]
async fn senders_can_be_refused() {
    let standings = [Standing::Unknown, Standing::Disabled, Standing::Muted];
    let names = ["unknown", "disabled", "muted"].map(str::to_owned);
    let mock = cloud(NeteaseSettings {
        senders: names.into_iter().zip(standings).collect(),
        ..NeteaseSettings::default()
    })
    .await;
    for (sender, code) in [("unknown", 404), ("Disabled", 422), ("muted", 423)] {
        let fields = set(batch(&["u1"]), "fromAccid", sender);
        check(&mock, BATCH, &fields, code, "account").await;
        let fields = set(single("u1"), "from", sender);
        check(&mock, SINGLE, &fields, code, "account").await;
    }
    check(&mock, BATCH, &batch(&["u1"]), 200, "").await;
}

/// Goal: one recipient can make the mock refuse a whole call.
#[tokio::test]
async fn poison_refuses_the_whole_call() {
    let mock = cloud(NeteaseSettings {
        poison: vec![("bad".to_owned(), 414), ("worse".to_owned(), 403)],
        ..NeteaseSettings::default()
    })
    .await;
    check(&mock, BATCH, &batch(&["u1", "Bad"]), 414, "bad").await;
    check(&mock, BATCH, &batch(&["worse"]), 403, "worse").await;
    check(&mock, SINGLE, &single("bad"), 414, "bad").await;
    check(&mock, BATCH, &batch(&["u1"]), 200, "").await;
}

/// Goal: a call above the quota blocks the app for a time, for this action only.
#[tokio::test]
async fn quota_blocks_the_app() {
    let quota: Quota = "2/1h/1h".parse().unwrap();
    let mock = cloud(NeteaseSettings {
        batch_quota: Some(quota),
        ..NeteaseSettings::default()
    })
    .await;
    for _ in 0..2 {
        check(&mock, BATCH, &batch(&["u1"]), 200, "").await;
    }
    for _ in 0..2 {
        check(&mock, BATCH, &batch(&["u1"]), 416, "too many").await;
    }
    check(&mock, SINGLE, &single("u1"), 200, "").await;
    assert_eq!(mock.handle.stats().limited, 2);
}

/// Goal: the block ends.
#[tokio::test]
async fn block_ends_after_its_time() {
    let quota: Quota = "1/1h/30ms".parse().unwrap();
    let mock = cloud(NeteaseSettings {
        single_quota: Some(quota),
        ..NeteaseSettings::default()
    })
    .await;
    assert_eq!(call(&mock, SINGLE, &single("u1")).await["code"], 200);
    let begun = Instant::now();
    while call(&mock, SINGLE, &single("u2")).await["code"] != 200 {
        assert!(begun.elapsed() < BOUND);
    }
    assert!(begun.elapsed() >= quota.block);
    assert!(mock.handle.stats().limited >= 1);
}

/// Goal: a repeated RequestId delivers once. Method: each configured answer to it.
#[tokio::test]
async fn repeated_request_id_is_not_delivered_again() {
    for (on_repeat, code) in [
        (OnRepeat::Same, 200),
        (OnRepeat::Code417, 417),
        (OnRepeat::Code431, 431),
    ] {
        let mock = cloud(NeteaseSettings {
            on_repeat,
            ..NeteaseSettings::default()
        })
        .await;
        mock.set(json!({ "refuse_users": ["u2"] })).await;
        let fields = batch(&["u1", "u2", "u3"]);
        let first = post(&mock, BATCH, &fields, "r1").await;
        assert_eq!(first.json()["code"], 200);
        let again = post(&mock, BATCH, &fields, "r1").await;
        assert_eq!(again.json()["code"], code);
        assert_eq!(again.body == first.body, code == 200);
        let stats = mock.handle.stats();
        assert_eq!((stats.accepted, stats.replays, stats.duplicates), (2, 2, 0));

        // Other recipients under the same id get nothing, and the call counts as invalid.
        let other = post(&mock, BATCH, &batch(&["u4"]), "r1").await;
        assert_eq!(other.json()["code"], code);
        assert!(mock.accepted_by("u4").is_empty());
        assert_eq!(mock.handle.stats().invalid, 1);

        post(&mock, BATCH, &fields, "r2").await;
        let stats = mock.handle.stats();
        assert_eq!((stats.accepted, stats.duplicates), (4, 2));
    }
}

/// Goal: of two concurrent calls with one id, the second waits for the first and gets its answer.
#[tokio::test]
async fn concurrent_calls_with_one_id_deliver_once() {
    let mock = quiet().await;
    mock.set(json!({ "latency": "20ms" })).await;
    let fields = batch(&["u1", "u2"]);
    let one = || post(&mock, BATCH, &fields, "r1");
    let (a, b, c) = tokio::join!(one(), one(), one());
    assert!(a.body == b.body && b.body == c.body);
    let stats = mock.handle.stats();
    assert_eq!((stats.accepted, stats.replays, stats.duplicates), (2, 4, 0));
}

/// Goal: a RequestId can be repeated after a lost answer; a call that was refused or lost leaves it
/// unused.
#[tokio::test]
async fn request_id_is_known_once_its_call_is_accepted() {
    let mock = quiet().await;
    let fields = batch(&["u1"]);
    mock.set(json!({ "error_503": "x1" })).await;
    assert_eq!(post(&mock, BATCH, &fields, "r1").await.json()["code"], 503);
    mock.set(json!({ "lost_after_200": "x1" })).await;
    assert_eq!(post(&mock, BATCH, &fields, "r1").await.json()["code"], 200);
    assert_eq!(mock.handle.stats().accepted, 0);

    mock.set(json!({ "half_body": "x1" })).await;
    post(&mock, BATCH, &fields, "r1").await;
    assert_eq!(post(&mock, BATCH, &fields, "r1").await.json()["code"], 200);
    let replays: Vec<bool> = mock.accepted_by("u1").iter().map(|e| e.replay).collect();
    assert_eq!(replays, [false, true]);
}

/// Goal: without a RequestId, and for an accid listed twice, sender and text reveal the duplicate.
#[tokio::test]
async fn duplicates_are_counted_by_sender_and_text() {
    let mock = quiet().await;
    call(&mock, BATCH, &batch(&["u1", "u2"])).await;
    call(&mock, BATCH, &batch(&["u2"])).await;
    assert_eq!(mock.handle.stats().duplicates, 1);
    call(&mock, BATCH, &batch(&["u3", "U3"])).await;
    assert_eq!(mock.handle.stats().duplicates, 2);
    let other = set(batch(&["u1"]), "body", r#"{"msg":"other"}"#);
    call(&mock, BATCH, &other).await;
    assert_eq!(mock.handle.stats().duplicates, 2);
}

/// Goal: sendMsg reaches a user or a team, or returns the reason why not.
#[tokio::test]
async fn single_reaches_a_person_or_a_team() {
    let mock = cloud(NeteaseSettings {
        moderate: Some("casino".to_owned()),
        ..NeteaseSettings::default()
    })
    .await;
    mock.set(json!({ "refuse_users": ["gone"] })).await;
    let reply = call(&mock, SINGLE, &single("U1")).await;
    assert_eq!(
        (&reply["code"], &reply["data"]["antispam"]),
        (&json!(200), &json!(false))
    );
    assert_eq!(reply["data"]["msgid"], mock.accepted_by("u1")[0].message_id);

    call(&mock, SINGLE, &set(single("1234"), "ope", "1")).await;
    assert_eq!(mock.accepted_by("1234")[0].channel_type, 2);
    check(&mock, SINGLE, &single("Gone"), 404, "gone").await;
    check(&mock, SINGLE, &set(single("u1"), "ope", "2"), 414, "ope").await;
    check(&mock, SINGLE, &set(single("u1"), "to", ""), 414, "to").await;

    let before = mock.handle.stats().accepted;
    let bet = set(single("u1"), "body", r#"{"msg":"casino"}"#);
    let reply = call(&mock, SINGLE, &bet).await;
    assert_eq!(
        (&reply["code"], &reply["data"]["antispam"]),
        (&json!(200), &json!(true))
    );
    assert_eq!(mock.handle.stats().accepted, before);
}

/// Goal: the generic faults are codes in an HTTP 200, without a Retry-After.
#[tokio::test]
async fn status_faults_are_codes() {
    let mock = quiet().await;
    for (fault, code) in [
        ("error_500", 500),
        ("error_503", 503),
        ("error_429", 416),
        ("unauthorised", 414),
    ] {
        mock.set(json!({ fault: "x2" })).await;
        let reply = post(&mock, BATCH, &batch(&["u1"]), "").await;
        assert_eq!(
            (reply.status, reply.json()["code"].clone()),
            (200, json!(code))
        );
        assert!(reply.json()["desc"].is_string());
        assert!(!reply.head.contains("retry-after"));
        let reply = mock.get("/im/v2/accounts").await;
        assert_eq!(
            (reply.status, reply.json()["code"].clone()),
            (200, json!(code))
        );
        assert!(reply.json()["msg"].is_string());
    }
    assert_eq!(mock.handle.stats().accepted, 0);
}

/// Goal: the flags produce the settings they describe.
#[test]
fn flags_become_settings() {
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: MockArgs,
    }
    let line = "mock --netease-app k1=s1 --netease-app k2=s2 --netease-on-repeat 431 \
        --netease-sender news=muted --netease-poison bad=414 --netease-moderate casino \
        --netease-batch-quota 120/1m/60s --netease-single-quota 100/1s/10s --netease-text-lists \
        --yunxin-batch-quota 60/1m/200ms --yunxin-single-quota 10/1s/1s \
        --yunxin-failed-key alternating --yunxin-refuse-code 102405 \
        --yunxin-refuse-as u1=102426 --yunxin-omit 5% --yunxin-omit-user u2";
    let settings = Cli::parse_from(line.split_whitespace())
        .args
        .into_settings();
    let named = |id: &str, code: u32| vec![(id.to_owned(), code)];
    let app = |key: &str, secret: &str| (key.to_owned(), secret.to_owned());
    let quota = |text: &str| Some(text.parse().unwrap());
    let netease = NeteaseSettings {
        apps: vec![app("k1", "s1"), app("k2", "s2")],
        on_repeat: OnRepeat::Code431,
        senders: vec![("news".to_owned(), Standing::Muted)],
        poison: named("bad", 414),
        moderate: Some("casino".to_owned()),
        batch_quota: quota("120/1m/60s"),
        single_quota: quota("100/1s/10s"),
        text_lists: true,
    };
    assert_eq!(settings.netease, netease);
    let yunxin = YunxinSettings {
        batch_quota: quota("60/1m/200ms"),
        single_quota: quota("10/1s/1s"),
        failed_key: FailedKey::Alternating,
        refuse_code: 102_405,
        refuse_as: named("u1", 102_426),
        omit: "5%".parse().unwrap(),
        omit_users: vec!["u2".to_owned()],
    };
    assert_eq!(settings.yunxin, yunxin);

    let defaults = Cli::parse_from(["mock"]).args.into_settings();
    assert_eq!(defaults.netease, NeteaseSettings::default());
    assert_eq!(defaults.yunxin, YunxinSettings::default());
    for wrong in [
        ["--netease-app", "key"],
        ["--netease-sender", "news=asleep"],
        ["--netease-poison", "=414"],
        ["--netease-batch-quota", "120"],
        ["--yunxin-refuse-as", "u1=x"],
    ] {
        let line = ["mock", wrong[0], wrong[1]];
        assert!(Cli::try_parse_from(line).is_err(), "{wrong:?}");
    }
}

/// A recall names a message by its id and both accounts; one that does not exist counts as recalled,
/// as the vendor documents, and nothing happens.
#[tokio::test]
async fn a_message_is_recalled_by_its_id() {
    let mock = quiet().await;
    let sent = call(&mock, SINGLE, &single("ann")).await;
    let (id, at) = (&sent["data"]["msgid"], &sent["data"]["timetag"]);
    let fields = |id: &Value, to: &str| -> Fields<'static> {
        vec![
            ("deleteMsgid", id.to_string()),
            ("timetag", at.to_string()),
            ("type", "7".to_owned()),
            ("from", "news".to_owned()),
            ("to", to.to_owned()),
        ]
    };
    const RECALL: &str = "/nimserver/msg/recall.action";
    for (fields, code, recalled) in [
        (fields(id, "Ann"), 200, 1),
        (fields(id, "bob"), 200, 1),
        (fields(&json!(1), "ann"), 200, 1),
        (set(fields(id, "ann"), "timetag", "1000"), 414, 1),
        (
            set(set(fields(id, "ann"), "timetag", "1000"), "ignoreTime", "1"),
            200,
            2,
        ),
        (set(fields(id, "ann"), "type", "0"), 414, 2),
        (set(fields(id, "ann"), "ignoreTime", "0"), 414, 2),
        (set(fields(id, "ann"), "deleteMsgid", "x"), 414, 2),
    ] {
        let answer = call(&mock, RECALL, &fields).await;
        assert_eq!(answer["code"], code, "{fields:?}");
        assert_eq!(mock.handle.recalled().len(), recalled, "{fields:?}");
    }
    assert_eq!(mock.handle.recalled()[0].recipient, "ann");
}
