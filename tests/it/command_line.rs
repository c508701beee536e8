//! The command line through a server: no configuration on this side, only an address and a token.
//! The same commands against `fanwise serve` and against a gateway with a worker on RabbitMQ and
//! Redis.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use fanwise_mock_im::{MockHandle, Settings, Version};
use serde_json::{Value, json};

use crate::support::certificates::Authority;
use crate::support::mock;
use crate::support::process::{Finished, Process, fanwise, run_fanwise};
use crate::support::scratch::Scratch;
use crate::support::servers::{amqp_url, redis_url};
use crate::support::wait::until;
use crate::support::world::{BOUND, free_port, users};

const ADMINISTRATOR: &str = "the-token-of-the-administrator";
const SHOP: &str = "the-token-of-the-shop";

/// A running server, and the files of a caller that knows nothing but its address.
struct There {
    mock: MockHandle,
    url: String,
    token_file: PathBuf,
    /// The server's own configuration.
    config: String,
    scratch: Scratch,
    _processes: Vec<Process>,
    _stop: tokio_util::sync::DropGuard,
}

/// Where the jobs of a server are kept.
enum Engine {
    Embedded,
    Servers(String),
}

impl Engine {
    fn servers(name: &str) -> Option<Self> {
        let own = format!("{name}-{}-{:x}", std::process::id(), fastrand::u32(..));
        Some(Self::Servers(format!(
            "[broker]\nurl = \"{}\"\nnamespace = \"{own}\"\n[ledger]\nurl = \"{}\"\nprefix = \"{own}\"\n",
            amqp_url()?,
            redis_url()?
        )))
    }
}

impl There {
    async fn start(engine: Engine, more: &str) -> Self {
        let (address, mock, stop) = mock::start(Settings {
            wukongim: Version::V3,
            ..Settings::default()
        })
        .await;
        let refuse = json!({"refuse_prefix": "bad-"});
        mock.patch_faults(&refuse).unwrap();
        let scratch = Scratch::new("command-line");
        let (port, admin) = (free_port(), free_port());
        let head = match &engine {
            Engine::Embedded => format!("[embedded]\ndir = {:?}\n", scratch.path().join("data")),
            Engine::Servers(tables) => tables.clone(),
        };
        let config = format!(
            r#"
            {head}
            [gateway]
            listen = "127.0.0.1:{port}"
            token = "{ADMINISTRATOR}"
            {more}
            [admin]
            listen = "127.0.0.1:{admin}"
            [apps.default]
            target = "im"
            [apps.shop]
            target = "im"
            token = "{SHOP}"
            recipients_max = 3
            [targets.im]
            type = "wukongim"
            version = "v3"
            sender = "news"
            url = "http://{address}"
            call_timeout = "3s"
            "#
        );
        let config = scratch.write("fanwise.toml", config);
        let config = config.to_str().unwrap().to_owned();
        let token_file = scratch.write("token", format!("{ADMINISTRATOR}\n"));
        let elsewhere = [("FANWISE_ADMIN__LISTEN", "127.0.0.1:0")];
        let mut processes = Vec::new();
        match engine {
            Engine::Embedded => {
                let mut serve = fanwise(&["serve", "--config", &config], &[]);
                serve.until_prints("ready: jobs are taken", BOUND).await;
                processes.push(serve);
            }
            Engine::Servers(_) => {
                let mut worker = fanwise(&["worker", "--config", &config], &elsewhere);
                worker.until_prints("ready: jobs are taken", BOUND).await;
                let mut gateway = fanwise(&["gateway", "--config", &config], &[]);
                gateway.until_prints("gateway listens", BOUND).await;
                processes.extend([worker, gateway]);
            }
        }
        let scheme = match more.contains("tls_key") {
            true => "https",
            false => "http",
        };
        let there = Self {
            mock,
            url: format!("{scheme}://localhost:{port}"),
            token_file,
            config,
            scratch,
            _processes: processes,
            _stop: stop.drop_guard(),
        };
        until("the server is ready", BOUND, async || {
            let healthy = there.here(&["healthcheck"]).await;
            (healthy.code == Some(0)).then_some(())
        })
        .await;
        there
    }

    /// Runs a command on the machine of the server, with its configuration.
    async fn here(&self, arguments: &[&str]) -> Finished {
        let arguments = [arguments, &["--config", &self.config]].concat();
        run_fanwise(&arguments, &[], b"", BOUND).await
    }

    /// Runs a command elsewhere, as the administrator.
    async fn run(&self, arguments: &[&str]) -> Finished {
        self.run_with_input(arguments, b"").await
    }

    async fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Finished {
        let token = self.token_file.to_str().unwrap();
        let server = ["--server", &self.url, "--token-file", token];
        let arguments = [arguments, &server].concat();
        run_fanwise(&arguments, &[], input, BOUND).await
    }

    /// Runs a command elsewhere with only these variables.
    async fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Finished {
        run_fanwise(arguments, variables, b"", BOUND).await
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let finished = self.run(&[arguments, &["--json"]].concat()).await;
        assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.stderr);
        serde_json::from_str(&finished.stdout).unwrap()
    }

    /// A command that must fail like this; nothing goes to standard output.
    async fn fails(&self, arguments: &[&str], code: i32, said: &str) {
        let finished = self.run(arguments).await;
        check_failure(&finished, &arguments.join(" "), code, said);
    }
}

fn check_failure(finished: &Finished, what: &str, code: i32, said: &str) {
    assert_eq!(finished.code, Some(code), "{what}: {}", finished.stderr);
    assert!(
        finished.stderr.contains(said),
        "{what}: {}",
        finished.stderr
    );
    assert_eq!(finished.stdout, "", "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_works_through_serve() {
    every_command_works(Engine::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_works_through_a_gateway() {
    let Some(engine) = Engine::servers("through") else {
        return;
    };
    every_command_works(engine).await;
}

async fn every_command_works(engine: Engine) {
    let there = There::start(engine, "").await;
    sends_and_shows(&there).await;
    steers(&there).await;
    is_interrupted(&there).await;
    redrives(&there).await;
    tests_the_target(&there).await;
    stores_messages(&there).await;
    refuses(&there).await;
}

async fn sends_and_shows(there: &There) {
    let send = ["send", "--client-msg-no", "k1", "--text", "hi", "--wait"];
    let sent = there.run(&[&send[..], &["ana", "bob"]].concat()).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    // The job is named before it is waited for, and nobody warns of a server's configuration.
    let first = sent.stderr.lines().next().unwrap_or_default();
    assert!(first.contains("accepted: job "), "{}", sent.stderr);
    assert!(!sent.stderr.contains("WARN"), "{}", sent.stderr);
    assert!(sent.stdout.contains("2 sent of 2"), "{}", sent.stdout);
    // Where there are no dead letters, there is nothing to confirm.
    let none = there.run(&["dead", "redrive"]).await;
    assert_eq!(none.code, Some(0), "{}", none.stderr);
    assert_eq!(none.stdout, "nothing is sent again\n");

    let some_fail = ["send", "--client-msg-no", "k2", "--text", "hi", "--wait"];
    let failed = there
        .run(&[&some_fail[..], &["ana", "bad-1"]].concat())
        .await;
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    assert!(
        failed.stderr.contains("fanwise dead list --job"),
        "{}",
        failed.stderr
    );

    let job = there.json(&["job", "show", "k2"]).await;
    assert_eq!(job["accounts"]["failed"], 1, "{job}");
    let jobs = there.json(&["job", "list"]).await;
    assert_eq!(jobs.as_array().unwrap().len(), 2, "{jobs}");
    let fate = there.json(&["job", "recipient", "k2", "bad-1"]).await;
    assert_eq!(fate["state"], "failed", "{fate}");
    let exact = there.json(&["job", "verify", "k1"]).await;
    assert_eq!(exact["exact"], true, "{exact}");
    let watched = there.run(&["job", "watch", "k2"]).await;
    assert_eq!(watched.code, Some(1), "{}", watched.stderr);
    lists(there).await;
}

/// Listings tell enough to act on, and say what they leave out.
async fn lists(there: &There) {
    let jobs = there.run(&["job", "list", "-l", "1"]).await;
    let rows: Vec<Vec<&str>> = jobs
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let headings = "JOB APP TARGET STATE ACCEPTED SENT TOTAL DONE DEAD KEY";
    assert_eq!(rows[0].join(" "), headings);
    assert_eq!(rows.len(), 2, "{}", jobs.stdout);
    assert_eq!(rows[1][1..4], ["default", "im", "completed"]);
    assert_eq!(rows[1][rows[1].len() - 5..], ["1", "2", "100%", "1", "k2"]);
    let apps = there.run(&["app", "list"]).await;
    let shop = apps.stdout.lines().find(|line| line.starts_with("shop"));
    assert!(shop.is_some_and(|it| it.ends_with("moving")), "{apps:?}");
    let all = there.run(&["send", "-k", "k4", "-m", "hi", "-w", "bad-1", "bad-2"]);
    assert_eq!(all.await.code, Some(1));
    let dead = until("both dead letters", BOUND, async || {
        let dead = there.run(&["dead", "list", "--job", "k4", "-l", "1"]).await;
        dead.stderr.contains("1 more are left out").then_some(dead)
    })
    .await;
    assert!(dead.stdout.contains("bad-1"), "{}", dead.stdout);
    assert!(!dead.stdout.contains("bad-2"), "{}", dead.stdout);
}

/// Ctrl-C ends a command that waits, and the command says how to go on with the job.
async fn is_interrupted(there: &There) {
    let token = there.token_file.to_str().unwrap();
    let send = [
        "send",
        "-k",
        "later",
        "-m",
        "hi",
        "--not-before",
        "2h",
        "-w",
        "ana",
    ];
    let server = ["--server", &there.url, "--token-file", token];
    let mut waiting = fanwise(&[&send[..], &server].concat(), &[]);
    waiting.until_prints("accepted: job ", BOUND).await;
    waiting.interrupt();
    let ended = waiting.finish(BOUND).await;
    assert_eq!(ended.code, Some(130), "{}", ended.stderr);
    let says = ended.stderr.contains("`fanwise job watch ");
    assert!(says && ended.stdout.is_empty(), "{ended:?}");
    let job = there.json(&["job", "show", "later"]).await;
    assert_eq!(job["hindrances"][0]["cause"], "scheduled", "{job}");
    let cancelled = there.run(&["job", "cancel", "later"]).await;
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.stderr);
}

/// A list of several messages, by upload; then it is paused, resumed, re-rated and cancelled.
async fn steers(there: &There) {
    let list = users(150_000).join("\n");
    let send = [
        "send",
        "--client-msg-no",
        "long",
        "--text",
        "hi",
        "--file",
        "-",
        "--not-before",
        "2099-01-01T00:00:00Z",
        "--json",
    ];
    let dry = [&send[..], &["--dry-run"]].concat();
    let seen = [&dry[..dry.len() - 2], &["-n"]].concat();
    let seen = there.run_with_input(&seen, b"ana\nbob\n").await;
    assert!(seen.stdout.contains("  ana: \"hi\"\n"), "{}", seen.stdout);
    assert!(
        seen.stdout.contains("\n2 call(s), about "),
        "{}",
        seen.stdout
    );
    let dry = there.run_with_input(&dry, list.as_bytes()).await;
    assert_eq!(dry.code, Some(0), "{}", dry.stderr);
    let dry: Value = serde_json::from_str(&dry.stdout).unwrap();
    assert_eq!(
        (&dry["recipients"], &dry["target"]),
        (&json!(150_000), &json!("im"))
    );
    let sent = there.run_with_input(&send, list.as_bytes()).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let answer: Value = serde_json::from_str(&sent.stdout).unwrap();
    assert_eq!(answer["recipients"], 150_000, "{answer}");
    assert_eq!(answer["job"], dry["job"]);
    until("the whole list is known", BOUND, async || {
        let job = there.json(&["job", "show", "long"]).await;
        (job["accounts"]["total"] == 150_000).then_some(())
    })
    .await;
    for (command, told) in [
        (&["job", "pause", "long"][..], "paused"),
        (&["job", "resume", "long"], "goes on"),
        (&["job", "rate", "long", "5/s"], "5/s"),
        (&["app", "pause", "default", "--for", "1h"], "paused"),
        (&["directive", "list"], "in 59 min"),
        (&["app", "list"], "paused"),
        (&["app", "resume", "default"], "goes on"),
        (&["target", "park", "im", "--for", "10m"], "parked"),
        (&["target", "unpark", "im"], "goes on"),
        (&["limits", "set", "target", "im", "900/s"], "900/s"),
        (&["limits", "show"], "(live)"),
        (&["target", "list"], "wukongim"),
        (
            &["limits", "set", "target", "im", "default"],
            "configured limit",
        ),
        (&["job", "cancel", "long"], "cancelled"),
    ] {
        let done = there.run(command).await;
        assert_eq!(done.code, Some(0), "{command:?}: {}", done.stderr);
        assert!(done.stdout.contains(told), "{command:?}: {}", done.stdout);
    }
}

async fn redrives(there: &There) {
    let dead = until("the dead letter", BOUND, async || {
        let dead = there.json(&["dead", "list", "--job", "k2"]).await;
        (dead.as_array()?.len() == 1).then_some(dead)
    })
    .await;
    assert_eq!(dead[0]["recipient"], "bad-1");
    there
        .mock
        .patch_faults(&json!({"refuse_prefix": "worse-"}))
        .unwrap();
    // A test has no terminal to answer at.
    for unasked in [&["--job", "k2", "--confirm-above", "0"][..], &[]] {
        let redrive = [&["dead", "redrive"], unasked].concat();
        there.fails(&redrive, 64, "confirm it with --yes").await;
    }
    let again = there.run(&["dead", "redrive", "--job", "k2"]).await;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(
        again.stdout.contains("1 recipient(s) are sent to again"),
        "{}",
        again.stdout
    );
    until("the second attempt", BOUND, async || {
        let mut accepted = there.mock.accepted().into_iter();
        accepted
            .any(|entry| entry.recipient == "bad-1")
            .then_some(())
    })
    .await;
    let twice = there.run(&["dead", "redrive", "--job", "k2"]).await;
    assert!(
        twice.stdout.contains("nothing is sent again"),
        "{}",
        twice.stdout
    );
    let purged = there.run(&["dead", "purge", "--job", "k2", "--yes"]).await;
    assert_eq!(purged.code, Some(0), "{}", purged.stderr);
    let left = there.json(&["dead", "list", "--job", "k2"]).await;
    assert_eq!(left, json!([]));
    let rejected = there.json(&["dead", "rejected"]).await;
    assert_eq!(rejected, json!([]));
}

/// One message goes to the target itself, without a job; what is secret is not shown.
async fn tests_the_target(there: &There) {
    let sent = there.here(&["target", "test", "im", "--to", "probe"]).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    assert!(sent.stdout.starts_with("POST http://"), "{}", sent.stdout);
    assert!(sent.stdout.ends_with("probe got the message\n"));
    let mut accepted = there.mock.accepted().into_iter();
    assert!(accepted.any(|entry| entry.recipient == "probe"));
    let refused = there
        .here(&["target", "test", "im", "--to", "worse-1"])
        .await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stdout.contains("did not get the message"));
    let unknown = there.here(&["target", "test", "imm", "--to", "ana"]).await;
    check_failure(&unknown, "target test", 69, "did you mean \"im\"?");

    let far = ["target", "test", "im", "--to", "distant"];
    let tested = there.json(&far).await;
    assert_eq!(
        (&tested["sent"], &tested["class"]),
        (&json!(true), &json!("done")),
        "{tested}"
    );
    let mut accepted = there.mock.accepted().into_iter();
    assert!(accepted.any(|entry| entry.recipient == "distant"));
    let refused = there
        .run(&["target", "test", "im", "--to", "worse-1"])
        .await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stdout.contains("did not get the message"));
    there
        .fails(
            &["target", "test", "imm", "--to", "ana"],
            69,
            "did you mean \"im\"?",
        )
        .await;
    there
        .fails(&["target", "test", "im", "--to", ""], 65, "audience")
        .await;
}

async fn stores_messages(there: &There) {
    let put = there
        .run(&["template", "put", "hello", "--text", "Hi {{ name }}"])
        .await;
    assert_eq!(put.code, Some(0), "{}", put.stderr);
    let listed = there.json(&["template", "list"]).await;
    assert_eq!(listed[0]["name"], "hello", "{listed}");
    let got = there.run(&["template", "get", "hello"]).await;
    assert!(got.stdout.contains("Hi {{ name }}"), "{}", got.stdout);
    let deleted = there.run(&["template", "delete", "hello"]).await;
    assert_eq!(deleted.code, Some(0), "{}", deleted.stderr);
}

/// What does not exist is an error, and so is what rules forbid: a script tells them apart.
async fn refuses(there: &There) {
    for (command, said) in [
        (&["job", "show", "nothing"][..], "there is no job"),
        (&["job", "cancel", "nothing"], "there is no job"),
        (
            &["job", "recipients", "nothing", "--file", "/dev/null"],
            "there is no job",
        ),
        (
            &["job", "list", "--app", "nobody"],
            "there is no app \"nobody\"",
        ),
        (&["job", "list", "--target", "imm"], "did you mean \"im\"?"),
        (&["job", "list", "--client-msg-no", "x"], "there is no job"),
        (&["dead", "list", "--job", "nothing"], "there is no job"),
        (
            &["send", "-k", "k0", "-m", "Hi", "-a", "nobody", "a"],
            "there is no app",
        ),
        (
            &["send", "-k", "k0", "-m", "Hi", "-t", "imm", "a", "-n"],
            "there is no target",
        ),
        (&["dead", "export", "--app", "nobody"], "there is no app"),
        (
            &["dead", "redrive", "--target", "imm"],
            "there is no target",
        ),
        (
            &["dead", "purge", "--app", "nobody", "--yes"],
            "there is no app",
        ),
        (&["template", "list", "--app", "nobody"], "there is no app"),
        (&["template", "get", "nothing"], "no stored message"),
        (&["app", "pause", "nobody"], "there is no app"),
        (&["target", "pause", "imm"], "there is no target"),
        (
            &["limits", "set", "app", "nobody", "1/s"],
            "there is no app",
        ),
    ] {
        there.fails(command, 69, said).await;
    }
    let send = [
        "send",
        "--client-msg-no",
        "k3",
        "--text",
        "hi",
        "--app",
        "shop",
    ];
    let many = [&send[..], &["a", "b", "c", "d"]].concat();
    there.fails(&many, 77, "at most 3").await;
    there
        .fails(&[&many[..], &["--dry-run"]].concat(), 77, "at most 3")
        .await;
    let local = there.here(&many).await;
    check_failure(&local, "here", 77, "at most 3");
    // The shop may send its own jobs, and sees nothing else.
    let own = [
        ("FANWISE_SERVER", there.url.as_str()),
        ("FANWISE_TOKEN", SHOP),
    ];
    let few = [&send[..], &["a", "--wait"]].concat();
    let sent = there.run_with(&few, &own).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    knows_its_app(there, &own).await;
    let other = there.run_with(&["job", "show", "k1", "--json"], &own).await;
    assert_ne!(other.code, Some(0), "{}", other.stdout);
    let test = ["target", "test", "im", "--to", "a"];
    let tested = there.run_with(&test, &own).await;
    check_failure(&tested, "the shop tests a target", 77, "not permitted");
    let targets = there.run_with(&["target", "list"], &own).await;
    check_failure(&targets, "the shop lists targets", 77, "not permitted");
}

/// The token of an app says which app is meant.
async fn knows_its_app(there: &There, own: &[(&str, &str)]) {
    let send = |key, app: &'static [&'static str]| {
        let job = ["send", "--client-msg-no", key, "--text", "hi", "own-1"];
        [&job[..], app, &["--json"]].concat()
    };
    let sent = there.run_with(&send("own", &["--wait"]), own).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let record: Value = serde_json::from_str(&sent.stdout).unwrap();
    assert_eq!(
        (&record["app"], &record["accounts"]["sent"]),
        (&json!("shop"), &json!(1))
    );
    // Its key is found too, and with the app's name it is the same job.
    let shown = there.run_with(&["job", "show", "own", "--json"], own).await;
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    let again = there.run_with(&send("own", &["--app", "shop"]), own).await;
    let again: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(again["job"], record["job"]);
    let stored = there.run_with(&["template", "list", "--json"], own).await;
    assert_eq!(stored.code, Some(0), "{}", stored.stderr);
    for command in [
        send("other", &["--app", "default"]),
        send("other", &["--app", "default", "-n"]),
    ] {
        let refused = there.run_with(&command, own).await;
        for name in ["\"default\"", "\"shop\""] {
            check_failure(&refused, "another app", 77, name);
        }
    }
}

/// What `config init` wrote and nobody replaced is named with its line; only the doctor fails on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_placeholder_is_named_until_it_is_replaced() {
    let scratch = Scratch::new("placeholder");
    let config = scratch.path().join("fanwise.toml");
    let config = config.to_str().unwrap();
    let run = async |arguments: &[&str], variables: &[(&str, &str)]| {
        let arguments = [arguments, &["--config", config]].concat();
        run_fanwise(&arguments, variables, b"", BOUND).await
    };
    let written = run(&["config", "init", "netease"], &[]).await;
    assert_eq!(written.code, Some(0), "{}", written.stderr);
    let text = fs::read_to_string(config).unwrap();
    let line_of = |key: &str| {
        let mut lines = text.lines().zip(1..);
        lines.find(|(line, _)| line.starts_with(key)).unwrap().1
    };
    let check = run(&["config", "check"], &[]).await;
    assert_eq!(check.code, Some(0), "{}", check.stderr);
    let here = [("FANWISE_TARGETS__IM__URL", "http://127.0.0.1:1")];
    let doctor = run(&["doctor"], &here).await;
    assert_eq!(doctor.code, Some(78), "{}", doctor.stdout);
    for key in ["app_key", "app_secret"] {
        let line = line_of(key);
        let said = format!("line {line}: targets.im.{key}: is still a placeholder: put the");
        assert!(
            check.stdout.contains(&format!("warning: {said}")),
            "{}",
            check.stdout
        );
        let failed = |line: &str| line.starts_with("FAIL  config") && line.contains(&said);
        assert!(doctor.stdout.lines().any(failed), "{}", doctor.stdout);
    }
    // The secret itself is not shown.
    assert!(!check.stdout.contains("REPLACE-WITH"), "{}", check.stdout);
    let real = [
        here[0],
        ("FANWISE_TARGETS__IM__APP_KEY", "k"),
        ("FANWISE_TARGETS__IM__APP_SECRET", "s"),
    ];
    let check = run(&["config", "check"], &real).await;
    assert!(
        !check.stdout.contains("is still a placeholder"),
        "{}",
        check.stdout
    );
    let doctor = run(&["doctor"], &real).await;
    assert_eq!(
        doctor.code,
        Some(69),
        "the target is away: {}",
        doctor.stdout
    );
    assert!(
        !doctor.stdout.contains("is still a placeholder"),
        "{}",
        doctor.stdout
    );
    // A start says it too.
    let data = scratch.path().join("data");
    let start = [
        ("FANWISE_EMBEDDED__DIR", data.to_str().unwrap()),
        ("FANWISE_GATEWAY__LISTEN", "127.0.0.1:0"),
        ("FANWISE_ADMIN__LISTEN", "127.0.0.1:0"),
        here[0],
    ];
    let mut serve = fanwise(&["serve", "--config", config], &start);
    serve
        .until_prints("targets.im.app_secret: is still a placeholder", BOUND)
        .await;
}

/// A start logs what each target answers, before the first job.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_of_another_version_is_logged_at_the_start() {
    let there = There::start(Engine::Embedded, "").await;
    let folder = there.scratch.path().join("other");
    let changed = [
        ("FANWISE_WORKER__IDENTIFY_TARGETS", "true"),
        ("FANWISE_TARGETS__IM__VERSION", "v2"),
        ("FANWISE_GATEWAY__LISTEN", "127.0.0.1:0"),
        ("FANWISE_ADMIN__LISTEN", "127.0.0.1:0"),
        ("FANWISE_EMBEDDED__DIR", folder.to_str().unwrap()),
    ];
    let mut other = fanwise(&["serve", "--config", &there.config], &changed);
    let line = other.until_prints("target im: ", BOUND).await;
    assert!(
        line.contains("WARN") && line.contains("set `version`"),
        "{line}"
    );
}

/// Flags, variables and profiles name a server, and each says clearly what is wrong with it.
#[tokio::test(flavor = "multi_thread")]
async fn the_way_to_a_server_is_named_in_many_ways() {
    let there = There::start(Engine::Embedded, "").await;
    let list = ["job", "list", "--json"];
    let home = there.scratch.path().join("home");
    let folder = home.join("fanwise");
    fs::create_dir_all(&folder).unwrap();
    let profiles = folder.join("profiles.toml");
    let text = format!(
        "[here]\nserver = \"{0}\"\ntoken = \"{ADMINISTRATOR}\"\n\
         [by-file]\nserver = \"{0}/\"\ntoken_file = {1:?}\n[none]\nserver = \"{0}\"\n\
         [shop]\nserver = \"{0}\"\ntoken = \"{SHOP}\"\n",
        there.url, there.token_file
    );
    fs::write(&profiles, text).unwrap();
    let home = home.to_str().unwrap();
    let base = ("XDG_CONFIG_HOME", home);

    // The file holds a token, and others can read it.
    fs::set_permissions(&profiles, fs::Permissions::from_mode(0o644)).unwrap();
    let open = there
        .run_with(&[&list[..], &["--profile", "here"]].concat(), &[base])
        .await;
    check_failure(&open, "a file that others read", 78, "chmod 600");
    fs::set_permissions(&profiles, fs::Permissions::from_mode(0o600)).unwrap();

    let profile = |name| [&list[..], &["--profile", name]].concat();
    let url = there.url.as_str();
    let wrong = ("FANWISE_TOKEN", "wrong");
    let right = ("FANWISE_TOKEN", ADMINISTRATOR);
    for (arguments, variables) in [
        (profile("here"), vec![base]),
        (profile("by-file"), vec![base]),
        // The token of a profile goes before that of the environment.
        (profile("here"), vec![base, wrong]),
        (profile("none"), vec![base, right]),
        (list.to_vec(), vec![base, ("FANWISE_PROFILE", "here")]),
        (list.to_vec(), vec![("FANWISE_SERVER", url), right]),
        // A server that a flag names does not get the token of a profile.
        (
            [&list[..], &["--server", url, "--token", ADMINISTRATOR]].concat(),
            vec![base, ("FANWISE_PROFILE", "nothing"), wrong],
        ),
    ] {
        let found = there.run_with(&arguments, &variables).await;
        assert_eq!(
            found.code,
            Some(0),
            "{arguments:?} {variables:?}: {}",
            found.stderr
        );
        assert_eq!(found.stdout.trim(), "[]");
        assert_eq!(found.stderr, "");
    }
    for (arguments, variables, code, said) in [
        (profile("hree"), vec![base], 78, "did you mean \"here\"?"),
        (profile("none"), vec![base], 78, "none is given"),
        (profile("none"), vec![base, wrong], 78, "refuses the token"),
        (
            profile("x"),
            vec![("XDG_CONFIG_HOME", "/nowhere")],
            78,
            "cannot read /nowhere",
        ),
        (
            [&list[..], &["--server", "localhost:1"]].concat(),
            vec![],
            64,
            "http://",
        ),
        (
            [&list[..], &["--server", "http://127.0.0.1:1"]].concat(),
            vec![],
            69,
            "is it the address of",
        ),
    ] {
        let found = there.run_with(&arguments, &variables).await;
        check_failure(&found, &format!("{arguments:?}"), code, said);
    }
    let send = [
        "send",
        "-k",
        "by-profile",
        "-m",
        "hi",
        "a",
        "--profile",
        "shop",
    ];
    let sent = there.run_with(&send, &[base]).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let shown = ["job", "show", "by-profile", "--json", "--app", "shop"];
    let shown = there.run(&shown).await;
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_private_ca_is_trusted_by_its_file() {
    let ours = Authority::new("ours");
    let pair = ours.sign("localhost", "DNS:localhost");
    let tls = format!(
        "tls_certificate = {:?}\ntls_key = {:?}",
        pair.certificate, pair.key
    );
    let there = There::start(Engine::Embedded, &tls).await;
    let ca = ours.file();
    let ca = ca.to_str().unwrap();
    let trusted = there.run(&["target", "list", "--ca-file", ca]).await;
    assert_eq!(trusted.code, Some(0), "{}", trusted.stderr);
    there.fails(&["target", "list"], 69, "certificate").await;
    let stranger = Authority::new("other");
    let other = stranger.file();
    let other = ["target", "list", "--ca-file", other.to_str().unwrap()];
    there.fails(&other, 69, "certificate").await;
    there
        .fails(&["target", "list", "--ca-file", "/nowhere"], 78, "/nowhere")
        .await;
}
