use proptest::prelude::*;

use super::*;
use crate::domain::fallback::{FailureClass, Fallback};
use crate::domain::message::Options;
use crate::domain::notice::{QueuePattern, ReplyRules};
use crate::domain::outcome::OnUncertain;
use crate::domain::slice::{SLICE_VERSION, SLICE_VERSION_PLAIN, Slice, Unrecorded};

struct Apps;

impl Context for Apps {
    fn default_target(&self, app: &str) -> Result<String, String> {
        if app == "default" {
            Ok("im".to_owned())
        } else {
            Err(format!("there is no app {app:?}"))
        }
    }
    fn check_app(&self, app: &str) -> Result<(), String> {
        self.default_target(app).map(drop)
    }
    fn check_target(&self, target: &str) -> Result<(), String> {
        if ["im", "sms", "folds"].contains(&target) {
            Ok(())
        } else {
            Err(format!("there is no target {target:?}"))
        }
    }
    fn folds_case(&self, target: &str) -> bool {
        target == "folds"
    }
    fn check_category(&self, app: &str, category: &str) -> Result<(), String> {
        let categories = [("marketing".to_owned(), ())].into();
        known_category(app, category, Some(&categories))
    }

    fn check_callback(&self, app: &str, url: &str) -> Result<(), String> {
        check_callback(app, None, url)
    }
    fn check_reply_to(&self, app: &str, queue: &str) -> Result<(), String> {
        let rules = ReplyRules(vec![QueuePattern::parse("done").unwrap()]);
        rules.check(Some("fanwise"), app, queue)
    }
}

fn parse(json: &str) -> Result<Job<'_>, Vec<String>> {
    Job::parse(json.as_bytes(), None, &Apps, Timestamp::UNIX_EPOCH)
        .map_err(|problems| problems.iter().map(Problem::to_string).collect())
}

const JOB: &str = r#"{"v":1,"client_msg_no":"n1","audience":{"users":["u1","u2","u1"]},
    "message":{"type":"text","text":"hello"}}"#;

#[test]
fn the_smallest_job_is_read() {
    let job = parse(JOB).unwrap();
    assert_eq!(
        (job.entries, job.head.target.as_str(), job.head.app.as_str()),
        (3, "im", "default")
    );
    let mut users = Vec::new();
    job.for_each_recipient(|user| users.push(user.id.into_owned()));
    assert_eq!(users, ["u1", "u2", "u1"]);
}

/// An unknown app has no rules for the other fields of the job.
#[test]
fn an_unknown_app_is_refused_even_with_a_target() {
    let job = JOB.replacen("{", r#"{"app":"shop","target":"im","#, 1);
    assert_eq!(parse(&job).unwrap_err(), ["app: there is no app \"shop\""]);
}

#[test]
fn every_problem_is_reported_at_once() {
    let problems = parse(
        r#"{"v":2,"app":"shop","audience":{"users":["", 7]},"mesage":{},"rate":"fast",
            "expires_at":"tomorrow","part":{"number":3,"of":2}}"#,
    )
    .unwrap_err();
    let expected = [
        "v: version 2 is unknown, use 1",
        "client_msg_no: missing",
        "app: there is no app \"shop\"",
        "message: missing",
        "expires_at: \"tomorrow\" is not an RFC 3339 time",
        "rate: \"fast\" is not a rate",
        "part: 3 of 2",
        "mesage: unknown field; did you mean `message`?",
    ];
    for part in expected {
        assert!(
            problems.iter().any(|problem| problem.starts_with(part)),
            "{part} in {problems:#?}"
        );
    }
}

#[test]
fn bad_recipients_are_named_by_position() {
    let problems = parse(&JOB.replace("\"u2\"", "\"\"")).unwrap_err();
    assert_eq!(problems, ["audience.users[1]: empty"]);
    let problems = parse(&JOB.replace("\"u2\"", "7")).unwrap_err();
    assert!(
        problems[0].starts_with("audience.users: a list of recipients is expected: at entry 1"),
        "{problems:?}"
    );
}

#[test]
fn a_second_target_is_another_one_that_takes_the_same_users() {
    let with = |fallback: &str| JOB.replacen('{', &format!(r#"{{"fallback":{fallback},"#), 1);
    let (plain, second) = (with(r#"{"target":"sms"}"#), with("null"));
    let job = parse(&plain).unwrap();
    let fallback = job.head.fallback.as_ref().unwrap();
    assert_eq!(fallback.on, [FailureClass::Permanent]);
    let both = with(r#"{"target":"sms","on":["transient","permanent","transient"]}"#);
    let both = parse(&both).unwrap();
    let on = &both.head.fallback.as_ref().unwrap().on;
    assert_eq!(on[..], [FailureClass::Permanent, FailureClass::Transient]);
    // It decides who gets what, so it is part of what the key stands for.
    let digests = [&job, &both, &parse(&second).unwrap()].map(|job| job.content_digest.clone());
    assert_eq!(digests[2], parse(JOB).unwrap().content_digest);
    assert!(digests[0] != digests[1] && digests[0] != digests[2]);
    for (fallback, problem) in [
        (
            r#"{"target":"im"}"#,
            "fallback.target: \"im\" is the first target",
        ),
        (
            r#"{"target":"mail"}"#,
            "fallback.target: there is no target",
        ),
        (
            r#"{"target":"folds"}"#,
            "fallback.target: \"folds\" takes \"Ana\" and",
        ),
        (r#"{"target":"sms","on":[]}"#, "fallback.on: empty"),
        (
            r#"{"target":"sms","on":["uncertain"]}"#,
            "fallback: an object",
        ),
    ] {
        let json = with(fallback);
        let problems = parse(&json).unwrap_err();
        assert!(problems[0].starts_with(problem), "{problems:?}");
    }
}

#[test]
fn excluded_recipients_are_not_counted() {
    let job = JOB.replace(r#""u1"]}"#, r#""u1"],"exclude":["u1","u9"]}"#);
    assert_eq!(parse(&job).unwrap().entries, 1);
}

#[test]
fn the_same_content_has_the_same_digest_however_it_is_written() {
    let custom = |data: &str| {
        JOB.replace(
            r#""type":"text","text":"hello""#,
            &format!(r#""type":"custom","data":{data}"#),
        )
    };
    let digest = |json: &str| parse(json).unwrap().content_digest;
    assert_eq!(
        digest(&custom(r#"{"a":1,"b":2}"#)),
        digest(&custom(r#"{ "b" : 2, "a": 1 }"#))
    );
    assert_ne!(digest(&custom(r#"{"a":1}"#)), digest(&custom(r#"{"a":2}"#)));
    // A job keeps the version of a stored message with which it started, even if a repeat names
    // another.
    let stored = |reference: &str| {
        let named = format!(r#""template":"{reference}""#);
        digest(&JOB.replace(r#""type":"text","text":"hello""#, &named))
    };
    assert_eq!(stored("welcome"), stored("welcome@3"));
    assert_ne!(stored("welcome"), stored("other@3"));
    assert_eq!(
        parse(JOB).unwrap().submission,
        parse(JOB).unwrap().submission
    );
}

#[test]
fn limits_are_enforced_at_their_edge() {
    let with_no = |length: usize| JOB.replace("n1", &"n".repeat(length));
    assert!(parse(&with_no(CLIENT_MSG_NO_BYTES_MAX)).is_ok());
    assert!(parse(&with_no(CLIENT_MSG_NO_BYTES_MAX + 1)).is_err());
    let with_user = |length: usize| JOB.replace("u2", &"u".repeat(length));
    assert!(parse(&with_user(RECIPIENT_BYTES_MAX)).is_ok());
    assert!(parse(&with_user(RECIPIENT_BYTES_MAX + 1)).is_err());
    let with_users = |count: usize| JOB.replace("\"u2\"", &vec!["\"u\""; count].join(","));
    assert!(parse(&with_users(JOB_RECIPIENTS_MAX - 2)).is_ok());
    assert!(parse(&with_users(JOB_RECIPIENTS_MAX - 1)).is_err());
}

#[test]
fn tags_are_bounded_and_each_counts_once() {
    let with = |tags: &str| JOB.replacen('{', &format!("{{\"tags\":{tags},"), 1);
    let job = with(r#"["b","a","b"]"#);
    assert_eq!(parse(&job).unwrap().tags, ["a", "b"]);
    let many = |count: usize| format!("[{}]", vec!["\"t\""; count].join(","));
    assert!(parse(&with(&many(TAGS_MAX))).is_ok());
    assert!(parse(&with(&many(TAGS_MAX + 1))).is_err());
    let long = |bytes: usize| format!("[\"{}\"]", "t".repeat(bytes));
    assert!(parse(&with(&long(TAG_BYTES_MAX))).is_ok());
    for wrong in [
        &long(TAG_BYTES_MAX + 1),
        r#"[""]"#,
        r#"["a\nb"]"#,
        r#"[1]"#,
        "\"a\"",
    ] {
        let problems = parse(&with(wrong)).unwrap_err();
        assert!(problems[0].to_string().starts_with("tags"), "{problems:?}");
    }
}

#[test]
fn the_document_type_writes_what_the_reader_reads() {
    let document = JobDocument {
        v: JOB_VERSION,
        client_msg_no: "n1".into(),
        app: Some("default".into()),
        target: Some("im".into()),
        sender: Some("system".into()),
        audience: AudienceDocument {
            users: Some(vec!["u1".to_owned().into()]),
            exclude: vec!["u2".into()],
            ..AudienceDocument::default()
        },
        message: MessageDocument {
            kind: Some("text".into()),
            text: Some("x".into()),
            ..Default::default()
        },
        options: Some(Options::default()),
        priority: Some(Priority::Bulk),
        not_before: Some("2026-01-01T00:00:00Z".into()),
        expires_at: Some("2026-01-02T00:00:00+08:00".into()),
        window: Some("09:00-21:00".into()),
        category: Some("marketing".into()),
        timezone: Some("Asia/Shanghai".into()),
        timezone_var: Some("tz".into()),
        pace_until: Some("2026-01-01T12:00:00Z".into()),
        rate: Some("10/s".into()),
        on_uncertain: Some(OnUncertain::Hold),
        mapping: Some(Strictness::Lenient),
        // An app must allow it; the tests of `notice` check that.
        callback_url: None,
        reply_to: Some("done".into()),
        fallback: Some(Fallback {
            target: "sms".into(),
            on: vec![FailureClass::Transient],
        }),
        keep_ids: true,
        confirm_all: Some(true),
        part: Some(ListPart {
            number: 1,
            of: 2,
            together: Some("list".to_owned()),
        }),
        tags: vec!["spring".into()],
    };
    let json = serde_json::to_string(&document).unwrap();
    let job = parse(&json).unwrap();
    assert_eq!(
        (job.head.priority, job.part.of, job.entries),
        (Priority::Bulk, 2, 1)
    );
}

proptest! {
    /// For any input, reading ends in a job or in problems, never in a panic.
    #[test]
    fn reading_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Job::parse(&bytes, None, &Apps, Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn broken_jobs_never_panic(cut in 0usize..130, insert in "\\PC{0,3}") {
        let mut json = JOB.to_owned();
        let at = json.floor_char_boundary(cut.min(json.len()));
        json.insert_str(at, &insert);
        let _ = parse(&json);
    }
}

/// Reads the audience of a job from JSON and returns the ids.
fn audience(audience: &str, more: &str) -> Result<Vec<String>, Vec<String>> {
    let json = format!(
        r#"{{"v":1,"client_msg_no":"n1","audience":{audience},"message":{{"type":"text","text":"x"}}{more}}}"#
    );
    let job = parse(&json)?;
    let mut ids = Vec::new();
    job.for_each_recipient(|member| ids.push(member.id.into_owned()));
    Ok(ids)
}

#[test]
fn an_audience_is_users_or_groups_or_all() {
    assert_eq!(
        audience(r#"{"groups":["g1","g2"]}"#, "").unwrap(),
        ["g1", "g2"]
    );
    assert_eq!(
        audience(r#"{"users":["a","b"],"exclude":["a"]}"#, "").unwrap(),
        ["b"]
    );
    let both = audience(r#"{"users":["a"],"groups":["g"]}"#, "").unwrap_err();
    assert!(
        both[0].starts_with("audience.users: only one of"),
        "{both:?}"
    );
    let neither = audience("{}", "").unwrap_err();
    assert!(
        neither[0].starts_with("audience.users: missing"),
        "{neither:?}"
    );
}

#[test]
fn all_users_must_be_meant() {
    let unconfirmed = audience(r#"{"all":true}"#, "").unwrap_err();
    assert!(
        unconfirmed[0].starts_with("confirm_all: missing"),
        "{unconfirmed:?}"
    );
    assert_eq!(
        audience(r#"{"all":true,"exclude":["x"]}"#, r#","confirm_all":true"#).unwrap(),
        [""; 0]
    );
}

#[test]
fn recipients_may_bring_values_for_placeholders() {
    let json = JOB.replace("\"u2\"", r#"{"id":"u2","vars":{"name":"Ana"}}"#);
    let job = parse(&json).unwrap();
    assert_eq!(job.head.vars.as_ref().unwrap().get(), "{}");
    let mut vars = Vec::new();
    job.for_each_recipient(|member| vars.push(member.vars.map(|vars| vars.get().to_owned())));
    assert_eq!(vars, [None, Some(r#"{"name":"Ana"}"#.to_owned()), None]);
    // The same message without them is the same job: the parts of one list need not agree.
    assert_eq!(job.content_digest, parse(JOB).unwrap().content_digest);
    let wrong = JOB.replace("\"u2\"", r#"{"id":"u2","vars":7}"#);
    assert_eq!(
        parse(&wrong).unwrap_err(),
        ["audience.users[1].vars: a JSON object is expected"]
    );
}

/// The destination of a notice is not part of the content: a repeat may name another one.
#[test]
fn whom_to_tell_is_no_part_of_the_content() {
    let with = JOB.replacen('{', r#"{"reply_to":"done","#, 1);
    let (plain, with) = (parse(JOB).unwrap(), parse(&with).unwrap());
    assert_eq!(with.head.reply_to.as_deref(), Some("done"));
    assert_eq!(plain.content_digest, with.content_digest);
    assert_eq!(plain.submission, with.submission);
}

#[test]
fn nobody_is_told_who_may_not_be() {
    let fields = r#"{"callback_url":"https://example.com/","reply_to":"fanwise.jobs.normal.v1","#;
    let problems = parse(&JOB.replacen('{', fields, 1)).unwrap_err();
    assert_eq!(
        problems,
        [
            "callback_url: app \"default\" sends no callbacks: its configuration has no [apps.default.callbacks]",
            "reply_to: queue \"fanwise.jobs.normal.v1\" belongs to Fanwise itself; name a queue of your own",
        ]
    );
}

/// Promise: reading a job needs no more memory than its size.
#[test]
fn problems_are_bounded_where_they_are_found() {
    let many = |entry: &str| vec![entry; 200_000].join(",");
    let flood = JOB.replace(r#""u1","u2","u1""#, &many("\"\""));
    let problems = parse(&flood).unwrap_err();
    assert_eq!(problems.len(), 21);
    assert_eq!(problems[0], "audience.users[0]: empty");
    // The rest is not read.
    assert_eq!(problems[20], "and 99981 more problems");

    let exclude = JOB.replace(
        "\"users\":",
        &format!("\"exclude\":[{}],\"users\":", many("\"\"")),
    );
    assert_eq!(
        parse(&exclude).unwrap_err(),
        ["audience.exclude: more than 100000"]
    );
    let mentions = JOB.replace(
        "\"type\":\"text\"",
        &format!("\"type\":\"mention\",\"users\":[{}]", many("\"\"")),
    );
    assert_eq!(
        parse(&mentions).unwrap_err(),
        ["message.users: more than 1000"]
    );

    let unknown: String = (0..30_000)
        .map(|number| format!("\"x{number}\":1,"))
        .collect();
    let problems = parse(&JOB.replacen('{', &format!("{{{unknown}"), 1)).unwrap_err();
    assert_eq!(problems.len(), 21);
}

#[test]
fn long_names_and_values_are_not_repeated_whole() {
    let name = "x".repeat(4_000_000);
    for job in [
        JOB.replacen('{', &format!("{{\"{name}\":1,"), 1),
        JOB.replacen('{', &format!("{{\"expires_at\":\"{name}\","), 1),
        JOB.replacen('{', &format!("{{\"app\":\"{name}\","), 1),
        JOB.replacen('{', &format!("{{\"rate\":\"{name}\","), 1),
        JOB.replace("\"u2\"", &format!("{{\"{name}\":1}}")),
        JOB.replace("\"text\",", &format!("\"{name}\",")),
    ] {
        let problems = parse(&job).unwrap_err();
        let told: usize = problems.iter().map(String::len).sum();
        assert!(told < 4_000, "{told} bytes");
    }
}

#[test]
fn a_byte_order_mark_before_a_job_is_no_part_of_it() {
    assert!(parse(&format!("\u{feff}{JOB}")).is_ok());
    let utf16: Vec<u8> = JOB.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let problems = Job::parse(&utf16, None, &Apps, Timestamp::UNIX_EPOCH).unwrap_err();
    assert!(problems[0].what.starts_with("UTF-16"), "{problems:?}");
}

/// No list and no id is dropped silently: neither the first of two lists nor the first of two ids.
#[test]
fn a_key_that_stands_twice_is_refused_with_its_place() {
    for (from, to, problem) in [
        (
            "\"users\":",
            "\"users\":[\"u9\"],\"users\":",
            "audience.users: appears twice",
        ),
        ("\"v\":1", "\"v\":1,\"v\":1", "v: appears twice"),
        (
            "\"text\":\"hello\"",
            "\"text\":\"hello\",\"text\":\"x\"",
            "message.text: appears twice",
        ),
        (
            "\"u2\"",
            "{\"id\":\"a\",\"id\":\"b\",\"vars\":{}}",
            "audience.users: a list of recipients is expected: at entry 1, `id` appears twice",
        ),
        (
            "\"u2\"",
            "{\"id\":\"a\",\"vars\":{\"n\":{\"m\":1,\"m\":2}}}",
            "audience.users[1].vars: \"m\" appears twice",
        ),
        (
            "\"text\":\"hello\"",
            "\"text\":\"hello\",\"native\":{\"a\":1,\"a\":2}",
            "message.native: \"a\" appears twice",
        ),
        (
            "\"text\":\"hello\"",
            "\"text\":\"hello\",\"vars\":{\"a\":1,\"a\":2}",
            "message.vars: \"a\" appears twice",
        ),
        (
            "\"v\":1",
            "\"v\":1,\"options\":{\"push\":{\"text\":\"a\",\"text\":\"b\"}}",
            "options.push.text: appears twice",
        ),
    ] {
        let problems = parse(&JOB.replace(from, to)).map(drop).unwrap_err();
        assert!(problems[0].starts_with(problem), "{problems:?}");
    }
}

#[test]
fn half_of_a_character_and_numbers_that_lose_digits_are_refused() {
    for (from, to) in [
        ("hello", "hello \\ud83d"),
        ("\"u2\"", "\"\\ude00\""),
        (
            "\"type\":\"text\",\"text\":\"hello\"",
            "\"type\":\"custom\",\"data\":{\"a\":\"\\ud83d\"}",
        ),
        (
            "\"u2\"",
            "{\"id\":\"u2\",\"vars\":{\"n\":123456789012345678901234567890}}",
        ),
    ] {
        assert!(parse(&JOB.replace(from, to)).is_err(), "{to}");
    }
    assert!(parse(&JOB.replace("hello", "hello \\ud83d\\ude00")).is_ok());
}

#[test]
fn ids_with_characters_that_cannot_be_seen_are_refused() {
    let problems = parse(&JOB.replace("u2", "u2\u{200b}"))
        .map(drop)
        .unwrap_err();
    assert_eq!(
        problems,
        [
            "audience.users[1]: contains a zero-width space (U+200B), so it is not the id that it looks like"
        ]
    );
}

#[test]
fn the_end_of_time_is_no_expiry_and_the_beginning_is_told() {
    let with =
        |field: &str, time: &str| JOB.replacen('{', &format!("{{\"{field}\":\"{time}\","), 1);
    for never in [
        "9999-12-31T23:59:59Z",
        "9999-12-31T23:59:59.9999999Z",
        "9999-12-31T23:59:59.9999999",
        "9999-12-31T00:00:00+08:00",
        "9999-01-01T00:00:00Z",
    ] {
        assert_eq!(
            parse(&with("expires_at", never))
                .unwrap()
                .head
                .expires_at_ms,
            None
        );
        let problems = parse(&with("not_before", never)).map(drop).unwrap_err();
        assert!(problems[0].contains("year 9999"), "{problems:?}");
    }
    for none in ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00"] {
        let problems = parse(&with("expires_at", none)).map(drop).unwrap_err();
        assert!(problems[0].contains("leave the field out"), "{problems:?}");
    }
    for bad in ["9999-13-01T00:00:00Z", "9999", "1969-01-01T00:00:00Z"] {
        assert!(parse(&with("expires_at", bad)).is_err(), "{bad}");
    }
}

/// The same key with another message is a conflict, however small the difference.
#[test]
fn every_digit_of_a_message_counts_for_its_digest() {
    let digest = |data: &str| {
        let message = format!("\"type\":\"custom\",\"data\":{data}");
        let job = JOB.replace("\"type\":\"text\",\"text\":\"hello\"", &message);
        parse(&job).unwrap().content_digest
    };
    let order = "{\"order\":12345678901234567890123456789";
    assert_ne!(
        digest(&format!("{order}0}}")),
        digest(&format!("{order}1}}"))
    );
    assert_ne!(digest(r#"{"a":1,"a":2}"#), digest(r#"{"a":3,"a":2}"#));
    assert_eq!(
        digest(r#"{"a":1.0,"b":2}"#),
        digest(r#"{ "b":2, "a":1.00 }"#)
    );
}

#[test]
fn a_job_may_be_spread_over_a_time() {
    let with = |fields: &str| {
        let job = JOB.replacen('{', &format!("{{{fields},"), 1);
        parse(&job).map(|job| job.head.pace_until_ms)
    };
    let until = "\"pace_until\":\"1970-01-02T00:00:00Z\"";
    assert_eq!(with(until).unwrap(), Some(24 * 3_600_000));
    for (more, problem) in [
        (
            "\"not_before\":\"1970-01-02T00:00:00Z\"",
            "is not after not_before",
        ),
        (
            "\"expires_at\":\"1970-01-01T23:59:59Z\"",
            "is after expires_at",
        ),
    ] {
        let problems = with(&format!("{until},{more}")).unwrap_err();
        assert!(problems[0].starts_with("pace_until: ") && problems[0].contains(problem));
    }
    assert!(with("\"pace_until\":\"1971-01-02T00:00:00Z\"").is_ok());
    for wrong in ["1971-01-03T00:00:00Z", "9999-12-31T00:00:00Z", "2h"] {
        let problems = with(&format!("\"pace_until\":\"{wrong}\"")).unwrap_err();
        assert!(problems[0].starts_with("pace_until: "), "{problems:?}");
    }
    let job = JOB.replacen('{', &format!("{{{until},"), 1);
    let job = parse(&job).unwrap();
    assert!(job.too_late(24 * 3_600_000 - 1).is_none());
    let late = job.too_late(24 * 3_600_000).unwrap().to_string();
    assert!(
        late.starts_with("pace_until: 1970-01-02T00:00:00Z has passed"),
        "{late}"
    );
    assert_eq!(
        Slice::version(&job.head, &Unrecorded::default()),
        SLICE_VERSION
    );
}

#[test]
fn recipients_may_bring_a_zone_of_their_own() {
    let users = r#"["u1",{"id":"u2","vars":{"tz":"Asia/Tokyo"}},{"id":"u3","vars":{"tz":"Mars"}}]"#;
    let with = |fields: &str| {
        let job = JOB.replacen('{', &format!("{{{fields},"), 1);
        job.replace(r#"["u1","u2","u1"]"#, users)
    };
    let json = with(r#""window":"09:00-21:00","timezone":"Asia/Shanghai","timezone_var":"tz""#);
    let job = parse(&json).unwrap();
    let window = job.head.window.as_ref().unwrap();
    assert_eq!(window.to_string(), "09:00-21:00 vars.tz or Asia/Shanghai");
    assert_eq!(job.unknown_zones().recipients(), 1);
    assert_eq!(
        Slice::version(&job.head, &Unrecorded::default()),
        SLICE_VERSION
    );
    // Without it the values are those of a job as ever.
    let json = with(r#""window":"09:00-21:00""#);
    let job = parse(&json).unwrap();
    assert_eq!(job.unknown_zones().recipients(), 0);
    assert_eq!(
        Slice::version(&job.head, &Unrecorded::default()),
        SLICE_VERSION_PLAIN
    );
    for (fields, problem) in [
        (
            r#""timezone_var":"tz""#,
            "timezone_var: has no meaning without `window`",
        ),
        (
            r#""window":"09:00-21:00","timezone_var":"""#,
            "timezone_var: empty",
        ),
    ] {
        let problems = parse(&with(fields)).map(drop).unwrap_err();
        assert!(problems[0].starts_with(problem), "{problems:?}");
    }
}
