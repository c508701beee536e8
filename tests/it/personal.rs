//! Tests personal and stored messages on the real servers, against the mock's own log.

use std::collections::BTreeMap;

use fanwise::domain::ids::JobId;
use serde_json::{Value, json};

use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, free_port};

/// `u<number>` and the name of that user.
fn person(number: usize) -> (String, String) {
    (format!("u{number}"), format!("Name \"{number}\" <é>"))
}

/// Recipients with values, as NDJSON.
fn people(numbers: impl Iterator<Item = usize>) -> String {
    let line = |number| {
        let (id, name) = person(number);
        json!({"id": id, "vars": {"name": name}}).to_string() + "\n"
    };
    numbers.map(line).collect()
}

/// Submits to recipients given as NDJSON; returns the job id.
async fn send(world: &World, key: &str, people: &str, more: &[&str]) -> String {
    let from_stdin = ["--file", "-", "--format", "ndjson", "--json"];
    let arguments = [&["send", "--client-msg-no", key], more, &from_stdin].concat();
    let sent = world.run_with_input(&arguments, people.as_bytes()).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let answer: Value = serde_json::from_str(&sent.stdout).unwrap();
    answer["job"].as_str().unwrap().to_owned()
}

/// The text that each recipient got, by key and id. Checks that no recipient got two.
fn texts(world: &World) -> BTreeMap<(String, String), String> {
    let mut texts = BTreeMap::new();
    for entry in world.mock.accepted().into_iter().filter(|it| !it.replay) {
        let payload: Value = serde_json::from_str(&entry.payload).unwrap();
        let text = payload["content"].as_str().unwrap().to_owned();
        let key = (entry.client_msg_no, entry.recipient);
        assert_eq!(texts.insert(key.clone(), text), None, "{key:?} got two");
    }
    texts
}

fn text_of<'a>(texts: &'a BTreeMap<(String, String), String>, id: &str) -> Vec<&'a str> {
    let of = texts.iter().filter(|((_, recipient), _)| recipient == id);
    of.map(|(_, text)| text.as_str()).collect()
}

async fn until_accepted(world: &World, count: u64) {
    until("messages accepted by the mock", BOUND, async || {
        (world.mock.stats().accepted >= count).then_some(())
    })
    .await;
}

async fn put(world: &World, name: &str, text: &str) -> u64 {
    let stored = world.json(&["template", "put", name, "--text", text]).await;
    stored["version"].as_u64().unwrap()
}

/// Each recipient gets a text of its own, once, although the worker is killed and calls are
/// repeated: the backend refuses a repeated call with another text.
#[tokio::test(flavor = "multi_thread")]
async fn personal_texts_survive_sigkill() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("personal").await;
    let faults =
        json!({"latency": "5ms..20ms", "reply_lost": {"count": 5}, "error_503": {"count": 5}});
    world.mock.patch_faults(&faults).unwrap();
    let mut first = world.worker().await;
    let list = people(0..1000);
    let message = [
        "--text",
        "Hello {{ name }}, {{ shop }}",
        "--var",
        "shop=Fan",
    ];
    let job = send(&world, "own", &list, &message).await;
    until_accepted(&world, 200).await;
    first.process.kill();
    let second = world.worker().await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 1000, "{record}");
    let texts = texts(&world);
    assert_eq!(texts.len(), 1000);
    for (id, name) in (0..1000).map(person) {
        assert_eq!(text_of(&texts, &id), [format!("Hello {name}, Fan")]);
    }
    second.drain().await;
    world.end().await;
}

/// A missing value fails only its recipient, whose dead letter names the value and holds all that a
/// new attempt needs.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_variable_is_a_dead_letter_that_names_it() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("missing").await;
    let worker = world.worker().await;
    let long = json!({"id": "long", "vars": {"name": "x".repeat(15_000), "x": 1}});
    let list = format!(
        "{}{{\"id\":\"none\",\"vars\":{{\"x\":1}}}}\n{long}\n",
        people(0..50)
    );
    let message = ["--text", "Hello {{ name }}{{ name }}"];
    let job = send(&world, "missing", &list, &message).await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 50, "{record}");
    assert_eq!(record["accounts"]["failed"], 2, "{record}");
    let dead = world.json(&["dead", "list", "--job", &job]).await;
    let dead: BTreeMap<_, _> = dead
        .as_array()
        .unwrap()
        .iter()
        .map(|dead| (dead["recipient"].as_str().unwrap(), dead))
        .collect();
    for (id, what) in [
        ("none", "message.text: undefined variable \"name\""),
        (
            "long",
            "message.text: more than 20000 bytes once it is filled in",
        ),
    ] {
        let dead = dead[id];
        assert_eq!(dead["text"], what, "{dead}");
        let found = (
            &dead["class"],
            &dead["code"],
            &dead["attempts"],
            &dead["vars"]["x"],
        );
        assert_eq!(
            found,
            (
                &json!("permanent"),
                &json!("template"),
                &json!(0),
                &json!(1)
            )
        );
    }
    let metrics = worker.metrics().await;
    assert_eq!(
        metrics["fanwise_calls_total{class=\"done\",target=\"im\"}"],
        50.0
    );

    // An exported list can be sent again, values included.
    let exported = world.run(&["dead", "export", "--job", &job]).await;
    let again = ["--text", "Again {{ x }}"];
    let again = send(&world, "again", &exported.stdout, &again).await;
    world.completed(&again).await;
    let texts = texts(&world);
    assert_eq!(text_of(&texts, "none"), ["Again 1"]);
    assert_eq!(text_of(&texts, "long"), ["Again 1"]);

    // A text that does not compile is refused.
    let bad = world
        .run(&[
            "send",
            "--client-msg-no",
            "bad",
            "--text",
            "a\nb {{ name",
            "--var",
            "name=x",
            "u1",
        ])
        .await;
    assert_eq!(bad.code, Some(65), "{}", bad.stderr);
    assert!(
        bad.stderr.contains("message.text: not a template"),
        "{}",
        bad.stderr
    );
    assert!(bad.stderr.contains("(line 2)"), "{}", bad.stderr);
    worker.drain().await;
    world.end().await;
}

/// A target that packs sends personal messages one by one, and packs messages without placeholders.
#[tokio::test(flavor = "multi_thread")]
async fn personal_messages_are_never_packed() {
    let Some(plan) = Plan::shared() else { return };
    let mut plan = plan.not_idempotent();
    plan.target.push_str("\npacked = true");
    let world = plan.start("unpacked").await;
    let worker = world.worker().await;
    let calls =
        async || worker.metrics().await["fanwise_calls_total{class=\"done\",target=\"im\"}"];
    let plain = send(&world, "plain", &people(0..60), &["--text", "Hello all"]).await;
    world.completed(&plain).await;
    let packed = calls().await;
    assert!(packed < 60.0, "{packed} calls");
    let own = send(
        &world,
        "own",
        &people(0..60),
        &["--text", "Hello {{ name }}"],
    )
    .await;
    world.completed(&own).await;
    assert_eq!(calls().await - packed, 60.0);
    worker.drain().await;
    world.end().await;
}

/// A job keeps the version of a stored message that it started with: while it runs, when it is
/// extended, and after the name is deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_changes_does_not_change_a_job() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("stored").await;
    world
        .mock
        .patch_faults(&json!({"latency": "10ms"}))
        .unwrap();
    assert_eq!(
        put(&world, "welcome", "One {{ name|default('you') }}").await,
        1
    );
    let worker = world.worker().await;
    let by_name = ["--template", "welcome"];
    let job = send(&world, "first", &people(0..400), &by_name).await;
    until_accepted(&world, 50).await;
    assert_eq!(put(&world, "welcome", "Two {{ name }}").await, 2);
    assert_eq!(send(&world, "first", &people(0..600), &by_name).await, job);
    let second = send(&world, "second", &people(600..700), &by_name).await;
    world.completed(&second).await;
    let deleted = world.run(&["template", "delete", "welcome"]).await;
    assert_eq!(deleted.code, Some(0), "{}", deleted.stderr);
    assert_eq!(send(&world, "first", "\"u1000\"\n", &by_name).await, job);
    until("all three submissions settled", BOUND, async || {
        let record = world.job(&job).await?;
        let all = record["state"] == "completed" && record["accounts"]["sent"] == 601;
        all.then(|| assert_eq!(record["template"], 1, "{record}"))
    })
    .await;
    let texts = texts(&world);
    assert_eq!(texts.len(), 701);
    for number in 0..700 {
        let (id, name) = person(number);
        let word = if number < 600 { "One" } else { "Two" };
        assert_eq!(text_of(&texts, &id), [format!("{word} {name}")]);
    }
    assert_eq!(text_of(&texts, "u1000"), ["One you"]);

    // New jobs are refused, and the answer lists the names that exist.
    put(&world, "welcome-2", "Hi").await;
    send(&world, "third", "\"u1\"\n", &by_name).await;
    let rejected = until("the job to be rejected", BOUND, async || {
        let rejected = world.json(&["dead", "rejected"]).await;
        rejected[0]["reason"].as_str().map(str::to_owned)
    })
    .await;
    assert_eq!(
        rejected,
        "message.template: app \"default\" has no stored message \"welcome\"; did you mean \"welcome-2\"?"
    );
    worker.drain().await;
    world.end().await;
}

/// A job for all users can name a stored message too: each of its parts sends the same message.
#[tokio::test(flavor = "multi_thread")]
async fn all_users_get_a_stored_message() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    let port = free_port();
    plan.mock.listen = ([127, 0, 0, 1], port).into();
    plan.mock.users = 250;
    plan.target
        .push_str(&format!("\nmanager_url = \"http://127.0.0.1:{port}\""));
    plan.more = "[apps.default]\naudiences = [\"all\"]".to_owned();
    let world = plan.start("all").await;
    put(&world, "welcome", "Hello {{ name }}").await;
    let worker = world.worker().await;
    let job = json!({
        "v": 1, "client_msg_no": "all", "audience": {"all": true}, "confirm_all": true,
        "message": {"template": "welcome", "vars": {"name": "all"}},
    });
    world.publish_raw(job.to_string().as_bytes()).await;
    let id = JobId::of("default", "all").to_string();
    let record = world.completed(&id).await;
    assert_eq!(record["accounts"]["sent"], 250, "{record}");
    let texts = texts(&world);
    assert_eq!(texts.len(), 250);
    assert!(texts.values().all(|text| text == "Hello all"), "{texts:?}");
    worker.drain().await;
    world.end().await;
}

/// The commands for stored messages, and values from the columns of a CSV.
#[tokio::test(flavor = "multi_thread")]
async fn stored_messages_from_the_command_line() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("template").await;
    let document =
        br#"{"type":"text","text":"{{ greeting }} {{ name }}","vars":{"greeting":"Hello"}}"#;
    let stored = world
        .run_with_input(&["template", "put", "hi"], document)
        .await;
    assert_eq!(stored.code, Some(0), "{}", stored.stderr);
    assert_eq!(stored.stdout, "stored hi, version 1\n");
    assert_eq!(put(&world, "hi", "Bye {{ name }}").await, 2);
    let old = world
        .run(&["template", "get", "hi", "--version", "1"])
        .await;
    assert_eq!(old.stdout.trim_end().as_bytes(), document);
    let list = world.json(&["template", "list"]).await;
    assert_eq!(
        list,
        json!([{"app": "default", "name": "hi", "version": 2}])
    );
    for (arguments, input, code, said) in [
        (vec!["template", "put", "a/b", "--text", "x"], "", 65, "a/b"),
        (
            vec!["template", "put", "x", "--text", "{{ }}"],
            "",
            65,
            "not a template",
        ),
        (
            vec!["template", "put", "x"],
            "{\"type\":\"text\"}",
            65,
            "message.text: missing",
        ),
        (
            vec!["template", "put", "x", "--app", "shop", "--text", "x"],
            "",
            69,
            "no app",
        ),
        (vec!["template", "get", "ho"], "", 69, "no stored message"),
        (
            vec!["template", "delete", "ho"],
            "",
            69,
            "no stored message",
        ),
    ] {
        let finished = world.run_with_input(&arguments, input.as_bytes()).await;
        assert_eq!(
            finished.code,
            Some(code),
            "{arguments:?}: {}",
            finished.stderr
        );
        assert!(
            finished.stderr.contains(said),
            "{arguments:?}: {}",
            finished.stderr
        );
    }
    let worker = world.worker().await;
    let csv = b"uid,name\nu1,Ana\nu2,\n";
    let arguments = [
        "send",
        "--client-msg-no",
        "csv",
        "--template",
        "hi",
        "--var",
        "name=friend",
        "--file",
        "-",
        "--format",
        "csv",
        "--vars",
        "--wait",
        "--json",
    ];
    let sent = world.run_with_input(&arguments, csv).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let texts = texts(&world);
    assert_eq!(text_of(&texts, "u1"), ["Bye Ana"]);
    assert_eq!(text_of(&texts, "u2"), ["Bye friend"]);
    worker.drain().await;
    world.end().await;
}
