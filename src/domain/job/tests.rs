use proptest::prelude::*;

use super::*;

struct Apps;

impl Context for Apps {
    fn default_target(&self, app: &str) -> Result<String, String> {
        if app == "default" {
            Ok("im".to_owned())
        } else {
            Err(format!("there is no app {app:?}"))
        }
    }
    fn check_target(&self, target: &str) -> Result<(), String> {
        if target == "im" {
            Ok(())
        } else {
            Err(format!("there is no target {target:?}"))
        }
    }
}

fn read(json: &str) -> Result<Job<'_>, Vec<String>> {
    Job::read(json.as_bytes(), None, &Apps, Timestamp::UNIX_EPOCH)
        .map_err(|problems| problems.iter().map(Problem::to_string).collect())
}

const JOB: &str = r#"{"v":1,"client_msg_no":"n1","audience":{"users":["u1","u2","u1"]},
    "message":{"type":"text","text":"hello"}}"#;

#[test]
fn the_smallest_job_is_read() {
    let job = read(JOB).unwrap();
    assert_eq!(
        (job.entries, job.head.target.as_str(), job.head.app.as_str()),
        (3, "im", "default")
    );
    let mut users = Vec::new();
    job.for_each_recipient(|user| users.push(user.into_owned()));
    assert_eq!(users, ["u1", "u2", "u1"]);
}

#[test]
fn every_problem_is_reported_at_once() {
    let problems = read(
        r#"{"v":2,"app":"shop","audience":{"users":["", 7]},"mesage":{},"rate":"fast",
            "expires_at":"tomorrow","part":{"number":3,"of":2}}"#,
    )
    .unwrap_err();
    let expected = [
        "v: version 2 is not known, 1 is",
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
    let problems = read(&JOB.replace("\"u2\"", "\"\"")).unwrap_err();
    assert_eq!(problems, ["audience.users[1]: empty"]);
    let problems = read(&JOB.replace("\"u2\"", "7")).unwrap_err();
    assert!(
        problems[0].starts_with("audience.users: a list of texts is expected: at entry 1"),
        "{problems:?}"
    );
}

#[test]
fn excluded_recipients_are_not_counted() {
    let job = JOB.replace(r#""u1"]}"#, r#""u1"],"exclude":["u1","u9"]}"#);
    assert_eq!(read(&job).unwrap().entries, 1);
}

#[test]
fn the_same_content_has_the_same_digest_however_it_is_written() {
    let custom = |data: &str| {
        JOB.replace(
            r#""type":"text","text":"hello""#,
            &format!(r#""type":"custom","data":{data}"#),
        )
    };
    let digest = |json: &str| read(json).unwrap().content_digest;
    assert_eq!(
        digest(&custom(r#"{"a":1,"b":2}"#)),
        digest(&custom(r#"{ "b" : 2, "a": 1 }"#))
    );
    assert_ne!(digest(&custom(r#"{"a":1}"#)), digest(&custom(r#"{"a":2}"#)));
    assert_eq!(read(JOB).unwrap().submission, read(JOB).unwrap().submission);
}

#[test]
fn limits_are_enforced_at_their_edge() {
    let with_no = |length: usize| JOB.replace("n1", &"n".repeat(length));
    assert!(read(&with_no(CLIENT_MSG_NO_BYTES_MAX)).is_ok());
    assert!(read(&with_no(CLIENT_MSG_NO_BYTES_MAX + 1)).is_err());
    let with_user = |length: usize| JOB.replace("u2", &"u".repeat(length));
    assert!(read(&with_user(RECIPIENT_BYTES_MAX)).is_ok());
    assert!(read(&with_user(RECIPIENT_BYTES_MAX + 1)).is_err());
    let with_users = |count: usize| JOB.replace("\"u2\"", &vec!["\"u\""; count].join(","));
    assert!(read(&with_users(JOB_RECIPIENTS_MAX - 2)).is_ok());
    assert!(read(&with_users(JOB_RECIPIENTS_MAX - 1)).is_err());
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
            users: vec!["u1".into()],
            exclude: vec!["u2".into()],
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
        rate: Some("10/s".into()),
        on_uncertain: Some(OnUncertain::Hold),
        part: Some(Part { number: 1, of: 2 }),
    };
    let json = serde_json::to_string(&document).unwrap();
    let job = read(&json).unwrap();
    assert_eq!(
        (job.head.priority, job.part.of, job.entries),
        (Priority::Bulk, 2, 1)
    );
}

proptest! {
    /// Whatever arrives, reading it ends in a job or in problems, never in a panic.
    #[test]
    fn reading_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Job::read(&bytes, None, &Apps, Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn broken_jobs_never_panic(cut in 0usize..130, insert in "\\PC{0,3}") {
        let mut json = JOB.to_owned();
        let at = json.floor_char_boundary(cut.min(json.len()));
        json.insert_str(at, &insert);
        let _ = read(&json);
    }
}
