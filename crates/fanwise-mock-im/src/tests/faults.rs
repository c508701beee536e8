//! Tests the faults, the log and the control interface.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::super::faults::Chooser;
use super::super::{
    Chance, Entry, FaultKind, Faults, MockArgs, MockError, MockIm, Settings, Version,
};
use super::{Mock, Reply, Sent, message, scratch_file, start};

const SEND: &str = "/message/send";

fn sent(uid: &str) -> Sent<'static> {
    Sent::post(SEND, &message(uid, "m1").to_string())
}

async fn with_fault(name: &str) -> Mock {
    let mock = start(Settings::default()).await;
    mock.set(json!({ name: { "count": 1 } })).await;
    mock
}

/// Checks that the fault struck once and is used up, and how many messages were accepted meanwhile.
async fn check_struck(mock: &Mock, name: &str, accepted: u64) {
    let stats = mock.handle.stats();
    assert_eq!(stats.faults[name], 1, "{stats:?}");
    assert_eq!(stats.accepted, accepted, "{stats:?}");
    assert_eq!(mock.send(&sent("later")).await.status, 200);
    assert_eq!(mock.handle.stats().faults[name], 1);
}

/// Goal: status faults refuse a whole call. Method: each of them once, then a good answer.
#[tokio::test]
async fn status_faults_accept_nothing() {
    let cases = [
        ("unauthorised", 401, ""),
        ("error_500", 500, r#"{"msg":"internal error","status":500}"#),
        ("error_503", 503, r#"{"msg":"retry required","status":503}"#),
        (
            "error_429",
            429,
            r#"{"msg":"too many requests","status":429}"#,
        ),
    ];
    for (name, status, body) in cases {
        let mock = with_fault(name).await;
        mock.set(json!({ "retry_after": 7 })).await;
        let reply = mock.send(&sent("u1")).await;
        assert_eq!((reply.status, reply.body.as_str()), (status, body));
        assert_eq!(reply.has("retry-after: 7"), status == 429);
        check_struck(&mock, name, 0).await;
    }
}

/// Goal: failures have the format of the system that the request is for.
#[tokio::test]
async fn status_faults_speak_the_protocol() {
    let mock = start(Settings {
        wukongim: Version::V3,
        ..Settings::default()
    })
    .await;
    mock.set(json!({ "error_503": 1 })).await;
    let reply = mock.send(&sent("u1")).await;
    assert_eq!(reply.json(), json!({ "error": "retry required" }));
    let reply = mock.post("/hook/u1", &json!({})).await;
    assert_eq!(reply.json()["code"], "unavailable");
}

/// Goal: a reset is an RST, and the log shows whether the message was accepted before it.
#[tokio::test]
async fn resets_come_before_or_after_accepting() {
    for (name, accepted) in [("reset_before", 0), ("reset_after", 1)] {
        let mock = with_fault(name).await;
        let error = mock.raw(&sent("u1")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        check_struck(&mock, name, accepted).await;
    }
}

/// Goal: an orderly close loses the reply after the message was accepted.
#[tokio::test]
async fn reply_closed_ends_without_an_answer() {
    let mock = with_fault("reply_closed").await;
    assert_eq!(mock.raw(&sent("u1")).await.unwrap(), b"");
    check_struck(&mock, "reply_closed", 1).await;
}

/// Goal: answers that a fault holds back end when the server stops, so it can stop immediately.
#[tokio::test]
async fn hang_and_reply_lost_last_until_the_stop() {
    for (name, accepted) in [("hang", 0), ("reply_lost", 1)] {
        let mock = with_fault(name).await;
        let mut stream = mock.open(&sent("u1")).await;
        mock.until("struck", |stats| stats.faults[name] == 1).await;
        check_struck(&mock, name, accepted).await;
        mock.stop().await;
        let mut received = Vec::new();
        assert_eq!(stream.read_to_end(&mut received).await.unwrap(), 0);
    }
}

/// Goal: broken JSON is a 200 with a consistent length, accepted or not.
#[tokio::test]
async fn broken_json_is_accepted_or_not() {
    for (name, accepted) in [("bad_json", 1), ("bad_json_unaccepted", 0)] {
        let mock = with_fault(name).await;
        let reply = mock.send(&sent("u1")).await;
        assert_eq!((reply.status, reply.announced()), (200, reply.body.len()));
        assert!(serde_json::from_str::<Value>(&reply.body).is_err());
        check_struck(&mock, name, accepted).await;
    }
}

/// Goal: half a body is shorter than its announced length.
#[tokio::test]
async fn half_body_breaks_off() {
    let mock = with_fault("half_body").await;
    let reply = mock.send(&sent("u1")).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.body.len(), reply.announced() / 2);
    check_struck(&mock, "half_body", 1).await;
}

/// Goal: a slow body arrives completely.
#[tokio::test]
async fn slow_body_arrives_in_pieces() {
    let mock = with_fault("slow_body").await;
    mock.set(json!({ "slow_pace": "1ms" })).await;
    let reply = mock.send(&sent("u1")).await;
    assert_eq!(reply.json()["status"], 200);
    check_struck(&mock, "slow_body", 1).await;
}

/// Goal: the headers arrive although the body does not, and the stop ends the wait.
#[tokio::test]
async fn slow_body_can_stall() {
    let mock = with_fault("slow_body").await;
    mock.set(json!({ "slow_pace": "1h" })).await;
    let mut stream = mock.open(&sent("u1")).await;
    let mut received = Vec::new();
    while !received.ends_with(b"\r\n\r\n") {
        received.push(stream.read_u8().await.unwrap());
    }
    assert_eq!(Reply::parse(&received).status, 200);
    mock.stop().await;
    let mut rest = Vec::new();
    assert_eq!(stream.read_to_end(&mut rest).await.unwrap(), 0);
}

/// Goal: a lost message looks accepted but is recorded nowhere.
#[tokio::test]
async fn lost_after_200_leaves_no_trace() {
    for wukongim in [Version::V2, Version::V3] {
        let mock = start(Settings {
            wukongim,
            ..Settings::default()
        })
        .await;
        mock.set(json!({ "lost_after_200": "x1" })).await;
        assert_eq!(mock.send(&sent("u1")).await.status, 200);
        assert_eq!(mock.handle.stats().accepted, 0);
        assert_eq!(mock.send(&sent("u1")).await.status, 200);
        assert_eq!(mock.accepted_by("u1").len(), 1);
        assert!(!mock.accepted_by("u1")[0].replay);
    }
}

/// Goal: latency delays the answer; a client that gives up does not undo the message.
#[tokio::test]
async fn latency_outlasts_an_impatient_client() {
    let mock = start(Settings::default()).await;
    mock.set(json!({ "latency": "30ms..40ms" })).await;
    let begun = Instant::now();
    assert_eq!(mock.send(&sent("u1")).await.status, 200);
    assert!(begun.elapsed() >= Duration::from_millis(30));

    let stream = mock.open(&sent("u2")).await;
    mock.until("second request", |stats| stats.requests == 2)
        .await;
    drop(stream);
    mock.until("late acceptance", |stats| stats.accepted == 2)
        .await;
}

/// Goal: a batch is handled to the end after its client gave up, with every recipient.
#[tokio::test]
async fn latency_outlasts_the_client_of_a_batch() {
    let mock = start(Settings::default()).await;
    mock.set(json!({ "latency": "30ms" })).await;
    let batch = json!({ "from_uid": "news", "payload": "eA==", "subscribers": ["u1", "u2"] });
    let batch = batch.to_string();
    let stream = mock.open(&Sent::post("/message/sendbatch", &batch)).await;
    mock.until("request", |stats| stats.requests == 1).await;
    drop(stream);
    mock.until("late batch", |stats| stats.accepted == 2).await;
}

/// Goal: a failure after accepting is an internal error in the system's format, and a refusal stays
/// a refusal.
#[tokio::test]
async fn error_after_hides_an_acceptance() {
    let mock = with_fault("error_after").await;
    let reply = mock.send(&sent("u1")).await;
    let body = r#"{"msg":"internal error","status":500}"#;
    assert_eq!((reply.status, reply.body.as_str()), (500, body));
    check_struck(&mock, "error_after", 1).await;

    mock.set(json!({ "error_after": "x1" })).await;
    assert_eq!(mock.send(&sent("a@b")).await.status, 400);
}

/// Goal: a stop lets requests in flight finish.
#[tokio::test]
async fn stop_drains_requests_in_flight() {
    let mock = start(Settings::default()).await;
    mock.set(json!({ "latency": "50ms" })).await;
    let mut stream = mock.open(&sent("u1")).await;
    mock.until("request", |stats| stats.requests == 1).await;
    mock.stop().await;
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.unwrap();
    assert_eq!(Reply::parse(&received).status, 200);
}

/// Goal: users are refused by list, prefix and share, in the format of each protocol.
#[tokio::test]
async fn refused_users_are_refused_everywhere() {
    let mock = start(Settings::default()).await;
    mock.set(json!({ "refuse_users": ["u1"], "refuse_prefix": "bad-" }))
        .await;
    assert_eq!(mock.send(&sent("u1")).await.status, 400);
    assert_eq!(mock.send(&sent("bad-9")).await.status, 400);
    let batch = json!({ "from_uid": "news", "payload": "eA==", "subscribers": ["u1", "u2"] });
    let reply = mock.post("/message/sendbatch", &batch).await.json();
    assert_eq!(reply["fail_uids"], json!(["u1"]));
    mock.set(json!({ "refuse": "100%" })).await;
    assert_eq!(mock.send(&sent("u2")).await.status, 400);
    mock.set(json!({ "refuse": null, "refuse_users": null }))
        .await;
    assert_eq!(mock.send(&sent("u1")).await.status, 200);

    let mock = start(Settings {
        wukongim: Version::V3,
        ..Settings::default()
    })
    .await;
    mock.set(json!({ "refuse": 1, "refuse_reason": 13 })).await;
    let reply = mock.send(&sent("u1")).await;
    let refused = json!({ "message_id": 0, "message_seq": 0, "reason": 13 });
    assert_eq!((reply.status, reply.json()), (200, refused));
    assert_eq!(mock.handle.stats().accepted, 0);
}

/// Goal: the control interface returns the settings and refuses unknown ones.
#[tokio::test]
async fn faults_are_patched_key_by_key() {
    let mock = start(Settings::default()).await;
    mock.set(json!({ "latency": "20ms..80ms", "reset_after": { "count": 3 } }))
        .await;
    mock.set(json!({ "hang": "2%", "latency": null })).await;
    let shown = mock.get("/_mock/faults").await.json();
    assert_eq!(shown["latency"], Value::Null);
    assert_eq!(shown["reset_after"], json!({ "rate": 1.0, "count": 3 }));
    assert_eq!(shown["hang"], json!({ "rate": 0.02 }));
    mock.set(shown.clone()).await;
    assert_eq!(mock.get("/_mock/faults").await.json(), shown);

    let wrong = [
        json!({ "hangs": 1 }),
        json!({ "hang": 2 }),
        json!({ "hang": { "rat": 1 } }),
        json!({ "burst_429": 1 }),
        json!({ "latency": "fast" }),
        json!([]),
    ];
    for patch in wrong {
        let reply = mock.post("/_mock/faults", &patch).await;
        assert_eq!(reply.status, 400, "{patch}");
        assert!(reply.json()["error"].is_string(), "{patch}");
    }
    assert_eq!(mock.get("/_mock/faults").await.json(), shown);
    assert_eq!(mock.get("/_mock/none").await.status, 404);
    assert_eq!(mock.get("/livez").await.status, 200);
    assert_eq!(mock.handle.stats().requests, 0);
}

/// Goal: the file has a line for every accepted recipient before the answer arrives.
#[tokio::test]
async fn log_has_every_accepted_recipient_before_the_answer() {
    let path = scratch_file("log");
    let mock = start(Settings {
        log: Some(path.clone()),
        ..Settings::default()
    })
    .await;
    let read = || -> Vec<Entry> {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    mock.send(&sent("u1").with("traceparent", trace)).await;
    assert_eq!(read()[0].traceparent.as_deref(), Some(trace));
    let batch = json!({ "from_uid": "news", "payload": "eA==", "subscribers": ["u1", "u2"] });
    mock.post("/message/sendbatch", &batch).await;
    assert_eq!(read().len(), 3);
    mock.set(json!({ "reset_after": "x1" })).await;
    mock.raw(&sent("u3")).await.unwrap_err();
    let lines = read();
    assert_eq!((lines.len(), lines[3].recipient.as_str()), (4, "u3"));

    let kept = mock.get("/_mock/accepted?recipient=u1").await.json();
    assert_eq!(kept["complete"], true);
    assert_eq!(kept["entries"], json!([lines[0], lines[1]]));
    let all = mock.get("/_mock/accepted").await.json();
    assert_eq!(all["entries"].as_array().unwrap().len(), 4);
    std::fs::remove_file(&path).unwrap();
}

/// Goal: memory is bounded, the mock reports when it is full, and the counters go on.
#[tokio::test]
async fn memory_keeps_so_many_entries() {
    let mock = start(Settings {
        keep: 1,
        ..Settings::default()
    })
    .await;
    mock.send(&sent("u1")).await;
    assert!(mock.handle.is_complete());
    mock.send(&sent("u1")).await;
    assert!(!mock.handle.is_complete());
    assert_eq!(mock.handle.accepted().len(), 1);
    let stats = mock.get("/_mock/stats").await.json();
    assert_eq!(
        (&stats["accepted"], &stats["duplicates"]),
        (&json!(2), &json!(1))
    );
}

/// Goal: a failed start returns the reason.
#[tokio::test]
async fn bind_names_what_is_wrong() {
    let log = Settings {
        log: Some("/nowhere/at/all".into()),
        ..Settings::default()
    };
    let error = MockIm::bind(log).await.err().unwrap();
    assert!(matches!(error, MockError::OpenLog { .. }));
    let mock = start(Settings::default()).await;
    let taken = Settings {
        listen: mock.addr,
        ..Settings::default()
    };
    let error = MockIm::bind(taken).await.err().unwrap();
    assert!(matches!(error, MockError::Bind { .. }));
}

/// Goal: a burst begins after the configured number of messages, lasts for its time and comes once.
/// Method: the chooser alone, with a clock passed in.
#[test]
fn burst_comes_once() {
    let patch = json!({ "burst": { "after": 10, "for": "5s", "retry_after": 3 } });
    let mut chooser = Chooser::new(Faults::default(), 0);
    chooser.patch(&patch, 100).unwrap();
    let begun = Instant::now();
    let mut fault = |accepted, seconds| {
        let plan = chooser.draw(0, accepted, begun + Duration::from_secs(seconds));
        plan.fault.map(|kind| (kind, plan.retry_after))
    };
    let burst = Some((FaultKind::Burst429, 3));
    assert_eq!(fault(109, 0), None);
    assert_eq!(fault(110, 1), burst);
    assert_eq!(fault(110, 5), burst);
    assert_eq!(fault(110, 6), None);
    assert_eq!(fault(500, 7), None);
    assert_eq!(chooser.faults().burst, None);
}

/// Goal: a burst over HTTP.
#[tokio::test]
async fn burst_answers_429() {
    let mock = start(Settings::default()).await;
    mock.set(json!({ "burst": { "after": 1, "for": "1h", "retry_after": 9 } }))
        .await;
    assert_eq!(mock.send(&sent("u1")).await.status, 200);
    let reply = mock.send(&sent("u2")).await;
    assert_eq!((reply.status, reply.has("retry-after: 9")), (429, true));
    mock.set(json!({ "burst": null })).await;
    assert_eq!(mock.send(&sent("u2")).await.status, 200);
    assert_eq!(mock.handle.stats().faults["burst_429"], 1);
}

/// Goal: shares are met, a seed repeats a run, and the same users are refused in any order.
#[test]
fn choices_depend_on_the_seed_only() {
    let run = |seed| {
        let share = |text: &str| Chance::share(text.parse().unwrap());
        let chances = [
            (FaultKind::Error503, share("10%")),
            (FaultKind::ResetAfter, share("0.1")),
            (FaultKind::Hang, Chance::next(2)),
        ];
        let faults = Faults {
            refuse: "1%".parse().unwrap(),
            chances: chances.into(),
            ..Faults::default()
        };
        let mut chooser = Chooser::new(faults, seed);
        let now = Instant::now();
        let fates: Vec<_> = (0..10_000).map(|n| chooser.draw(n, 0, now)).collect();
        let refusal = fates[0].refusal.clone();
        let refused = (0..10_000).filter(move |n| refusal.applies_to(&format!("user-{n}")));
        let faults: Vec<_> = fates.iter().map(|plan| plan.fault).collect();
        (faults, refused.collect::<Vec<_>>())
    };
    let (faults, refused) = run(7);
    let struck = |kind| faults.iter().filter(|fault| **fault == Some(kind)).count();
    assert_eq!(struck(FaultKind::Hang), 2);
    assert!((850..1150).contains(&struck(FaultKind::Error503)));
    assert!((750..1050).contains(&struck(FaultKind::ResetAfter)));
    assert!((60..140).contains(&refused.len()), "{}", refused.len());
    assert_eq!(run(7), (faults.clone(), refused));
    assert_ne!(run(8).0, faults);
}

#[test]
fn names_agree_with_json() {
    for (index, kind) in FaultKind::ALL.into_iter().enumerate() {
        assert_eq!(kind as usize, index);
        assert_eq!(json!(kind), kind.name());
    }
}

/// Goal: the flags produce the settings they describe.
#[test]
fn flags_become_settings() {
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: MockArgs,
    }
    let line = "mock --listen 127.0.0.1:0 --wukongim v3 --seed 5 --latency 20ms..80ms \
        --fault error-503=2% --fault reset_after=x3 --fault hang=50%x2 --refuse 1% \
        --users 7 --wukongim-manager me:secret --openim-secret s --openim-admin root \
        --openim-notification-account notice --openim-token-calls 9 --openim-code u=1=1302 \
        --openim-code g1=1201 --openim-refuse-code 1302 --openim-listed-only \
        --refuse-prefix bad- --burst-after 100 --burst-for 2s --burst-retry-after 4";
    let settings = Cli::parse_from(line.split_whitespace())
        .args
        .into_settings();
    assert_eq!((settings.wukongim, settings.seed), (Version::V3, 5));
    let shown = json!(settings.faults);
    assert_eq!(shown["latency"], "20ms..80ms");
    assert_eq!(shown["error_503"], json!({ "rate": 0.02 }));
    assert_eq!(shown["reset_after"], json!({ "rate": 1.0, "count": 3 }));
    assert_eq!(shown["hang"], json!({ "rate": 0.5, "count": 2 }));
    assert_eq!(
        shown["burst"],
        json!({ "after": 100, "for": "2s", "retry_after": 4 })
    );
    assert_eq!(
        (&shown["refuse"], &shown["refuse_prefix"]),
        (&json!(0.01), &json!("bad-"))
    );
    assert_eq!(settings.users, 7);
    assert_eq!(
        settings.wukongim_manager,
        Some("me:secret".parse().unwrap())
    );
    let openim = json!({
        "secret": "s", "admin": "root", "notification_accounts": ["notice"], "token_calls": 9,
        "codes": { "u=1": 1302, "g1": 1201 }, "refuse_code": 1302, "listed_only": true,
    });
    assert_eq!(json!(settings.openim), openim);
    let defaults = Cli::parse_from(["mock"]).args.into_settings();
    assert_eq!(defaults.faults, Faults::default());
    assert_eq!(defaults.openim, Settings::default().openim);
    assert_eq!(defaults.users, Settings::default().users);
    assert!(Cli::try_parse_from(["mock", "--openim-code", "u1"]).is_err());
    assert!(Cli::try_parse_from(["mock", "--wukongim-manager", "me"]).is_err());
    assert!(Cli::try_parse_from(["mock", "--fault", "hangs=1"]).is_err());
    assert!(Cli::try_parse_from(["mock", "--refuse", "101%"]).is_err());
    assert!(Cli::try_parse_from(["mock", "--burst-for", "1s"]).is_err());
}
