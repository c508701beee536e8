//! Metrics, rules and dashboards: by Prometheus' own tools, and by a Prometheus that scrapes a real
//! run with faults.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use fanwise::metrics::Metrics;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::embedded::Place;
use crate::support::process::{Finished, Process};
use crate::support::scratch::Scratch;
use crate::support::servers::{PrivateRedis, amqp_url, skip};
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, free_port, users};

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(deploy(path)).unwrap()
}

const RULES: &str = "prometheus/rules/fanwise.yml";
const TESTS: &str = "prometheus/tests/fanwise.yml";
const DASHBOARDS: [&str; 6] = ["overview", "targets", "jobs", "dead", "servers", "http"];

/// The title of each panel and its expression, of all dashboards.
fn panels() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for name in DASHBOARDS {
        let text = read(&format!("grafana/{name}.json"));
        let dashboard: Value = serde_json::from_str(&text).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let title = format!("{name}: {}", panel["title"].as_str().unwrap());
                found.push((title, target["expr"].as_str().unwrap().to_owned()));
            }
        }
    }
    assert!(found.len() > 80, "{}", found.len());
    found
}

/// The metrics that an expression names, each with its filter, such as `up{job="a"}`.
fn selectors(expression: &str) -> Vec<&str> {
    let is_word = |it: char| it.is_ascii_alphanumeric() || it == '_' || it == ':';
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(start) = rest.find(is_word) {
        rest = &rest[start..];
        let end = rest.find(|it| !is_word(it)).unwrap_or(rest.len());
        let is_metric = ["fanwise_", "target:", "rabbitmq_", "process_"]
            .iter()
            .any(|prefix| rest.starts_with(prefix));
        let filter = match rest[end..].starts_with('{') {
            true => rest[end..].find('}').unwrap() + 1,
            false => 0,
        };
        if is_metric {
            found.push(&rest[..end + filter]);
        }
        rest = &rest[end + filter..];
    }
    found
}

/// Runs one of Prometheus' tools; none if it is not installed.
async fn promtool(arguments: &[&str], input: &str) -> Option<Finished> {
    if std::process::Command::new("promtool")
        .arg("--version")
        .output()
        .is_err()
    {
        skip("promtool is not installed; `tests/servers need` installs prometheus");
        return None;
    }
    let tool = Process::start(Path::new("promtool"), arguments, &[], input.as_bytes());
    Some(tool.finish(BOUND).await)
}

async fn accepts(arguments: &[&str], input: &str) {
    if let Some(Finished {
        code,
        stdout,
        stderr,
    }) = promtool(arguments, input).await
    {
        assert_eq!(code, Some(0), "{arguments:?}: {stdout}{stderr}");
    }
}

/// Each alert fires on its series and on no other, and not before its time; the file says how.
#[tokio::test]
async fn rules_are_valid_and_fire_when_they_should() {
    let [rules, tests, config] = [RULES, TESTS, "prometheus/prometheus.yml"].map(deploy);
    accepts(&["check", "rules", rules.to_str().unwrap()], "").await;
    accepts(&["test", "rules", tests.to_str().unwrap()], "").await;
    accepts(&["check", "config", config.to_str().unwrap()], "").await;
    let (rules, tests, runbook) = (read(RULES), read(TESTS), read("../docs/runbook.md"));
    for alert in alerts(&rules) {
        let expected = format!("{{alertname=\"{alert}\"}}");
        assert!(tests.contains(&expected), "no test in which {alert} fires");
        let entry = format!("\n## {alert}\n");
        assert!(
            runbook.contains(&entry),
            "no entry for {alert} in the runbook"
        );
        let link = format!("runbook_url: docs/runbook.md#{}\n", alert.to_lowercase());
        assert!(rules.contains(&link), "{alert} has no link to the runbook");
    }
}

fn alerts(rules: &str) -> Vec<&str> {
    let lines = rules.lines().map(str::trim);
    lines
        .filter_map(|line| line.strip_prefix("- alert: "))
        .collect()
}

#[test]
fn dashboards_are_as_the_generator_writes_them() {
    let mut generator = std::process::Command::new("python3");
    let generator = generator.arg(deploy("grafana/generate.py")).arg("--check");
    let Ok(ran) = generator.output() else {
        return skip("there is no python3");
    };
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}

/// A metric with another name is found here, before a panel is empty and an alert never fires.
#[test]
fn rules_and_dashboards_name_metrics_that_exist() {
    let known: BTreeSet<_> = Metrics::ALL.iter().map(|it| it.name).collect();
    let rules = read(RULES);
    let recorded: BTreeSet<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- record: "))
        .collect();
    let exists = |selector: &str| {
        let name = selector.split('{').next().unwrap();
        let plain = ["_bucket", "_count", "_sum"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(name);
        known.contains(name) || known.contains(plain) || recorded.contains(name)
    };
    let ours = |it: &&str| it.starts_with("fanwise_") || it.starts_with("target:");
    let mut seen = 0;
    for (place, expression) in panels() {
        for selector in selectors(&expression).into_iter().filter(ours) {
            assert!(exists(selector), "{place}: {selector}");
            seen += 1;
        }
    }
    let expressions = rules.lines().filter(|line| !line.contains("record:"));
    for selector in expressions.flat_map(selectors).filter(|it| ours(it)) {
        assert!(exists(selector), "{RULES}: {selector}");
        seen += 1;
    }
    assert!(seen > 120, "{seen}");
}

// --- A real run ----------------------------------------------------------------------------------

/// Expressions that may find nothing in the run, by a part of them, and why.
const MAY_BE_EMPTY: [(&str, &str); 2] = [
    (
        "rabbitmq_",
        "the plugin rabbitmq_prometheus is not enabled in tests",
    ),
    ("fanwise_certificate_", "no process of the run speaks TLS"),
];

/// The body of an answer; HTTP/1.0, so that it comes in one piece.
async fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some(body.to_owned())
}

/// A Prometheus that scrapes admin ports every second.
struct Prometheus {
    port: u16,
    _process: Process,
    _folder: Scratch,
}

impl Prometheus {
    async fn start(admins: &[u16]) -> Self {
        let folder = Scratch::new("prometheus");
        let targets: Vec<_> = admins.iter().map(|it| format!("127.0.0.1:{it}")).collect();
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [deploy(RULES)],
            "scrape_configs": [{
                "job_name": "fanwise",
                "static_configs": [{"targets": targets, "labels": {"namespace": "shop"}}],
            }],
        });
        // JSON is YAML.
        let config = folder.write("prometheus.yml", config.to_string());
        let port = free_port();
        let arguments = [
            format!("--config.file={}", config.display()),
            format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ];
        let process = Process::start(Path::new("prometheus"), &arguments, &[], b"");
        // Before that it answers with 503 and a text.
        until("Prometheus", BOUND, async || {
            let answer = get(port, "/-/ready").await?;
            answer.contains("Ready").then_some(())
        })
        .await;
        let prometheus = Self {
            port,
            _process: process,
            _folder: folder,
        };
        // An increase is seen only after an earlier value.
        let all = format!("count(up == 1) == {}", admins.len());
        until("the first values of all", BOUND, async || {
            prometheus.finds(&all).await.then_some(())
        })
        .await;
        prometheus
    }

    async fn api(&self, path: &str) -> Value {
        let answer = get(self.port, &format!("/api/v1/{path}")).await.unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].clone()
    }

    async fn finds(&self, expression: &str) -> bool {
        let query = utf8_percent_encode(expression, NON_ALPHANUMERIC);
        let found = self.api(&format!("query?query={query}")).await;
        !found["result"].as_array().unwrap().is_empty()
    }

    /// Waits until each expression has found something once, and panics with those that have not.
    async fn until_all_find(&self, expressions: &BTreeMap<String, String>) {
        let mut left = expressions.clone();
        until("an answer to every expression", BOUND, async || {
            for (expression, place) in left.clone() {
                if self.finds(&expression).await {
                    left.remove(&expression);
                } else {
                    eprintln!("nothing yet: {place}: {expression}");
                }
            }
            left.is_empty().then_some(())
        })
        .await;
    }
}

/// Every expression, as Grafana would send it, with its place. Alerts are silent in a healthy
/// system, so of them each metric with its filter must find something.
fn expressions() -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let fill = |expression: &str| {
        ["$namespace", "$target", "$app"]
            .iter()
            .fold(expression.to_owned(), |text, name| text.replace(name, ".*"))
            .replace("$__rate_interval", "1m")
            .replace("$__range", "5m")
    };
    for (title, expression) in panels() {
        all.insert(fill(&expression), title);
    }
    for line in read(RULES).lines().filter(|it| !it.contains("- record:")) {
        for selector in selectors(line) {
            let expression = format!("last_over_time({selector}[5m])");
            all.insert(expression, RULES.to_owned());
        }
    }
    all.retain(|expression, _| {
        !MAY_BE_EMPTY
            .iter()
            .any(|(part, _)| expression.contains(part))
    });
    all
}

/// Work with faults: a burst of 429, refused recipients, a target that is not there, a paused and a
/// scheduled job, a message that is no job. Returns the job that nothing holds back.
async fn work(world: &World, gateway: u16) -> String {
    let faults = json!({
        "refuse_users": ["u7", "u8"],
        "burst": {"after": 300, "for": "1s", "retry_after": 1},
    });
    world.mock.patch_faults(&faults).unwrap();
    let sale = world.send("sale", &users(900), &["--app", "shop"]).await;
    let away = ["--app", "shop", "--target", "away"];
    world.send("away", &users(3), &away).await;
    let paused = world.send("paused", &users(4), &away).await;
    let paused = world.run(&["job", "pause", &paused]).await;
    assert_eq!(paused.code, Some(0), "{}", paused.stderr);
    let later = ["--app", "shop", "--not-before", "2099-01-01T00:00:00Z"];
    world.send("later", &users(5), &later).await;
    world.publish_raw(b"no job").await;
    for path in ["/v1/jobs", "/nothing"] {
        until("an answer of the gateway", BOUND, async || {
            get(gateway, path).await
        })
        .await;
    }
    sale
}

/// Prometheus scrapes a worker, a gateway and an embedded engine while targets are throttled and
/// away, recipients are refused, a job is paused, a message is rejected and Redis starts again. Each
/// panel and each rule finds data.
#[tokio::test(flavor = "multi_thread")]
async fn every_panel_and_rule_finds_data_in_a_real_run() {
    let (Some(amqp), Some(mut redis)) = (amqp_url(), PrivateRedis::start().await) else {
        return;
    };
    let Some(_) = promtool(&["--version"], "").await else {
        return;
    };
    let mut plan = Plan::on(&amqp, redis.url());
    plan.target.push_str("\nlimit = \"500/s per recipient\"");
    plan.more = format!(
        "[targets.away]\ntype = \"webhook\"\nurl = \"http://127.0.0.1:{}/\"\n\
         call_timeout = \"3s\"\n\
         [apps.shop]\ntarget = \"im\"\nlimit = \"1000/s\"",
        free_port()
    );
    let world = plan.start("monitoring").await;
    let worker = world.worker_with(&[("FANWISE_LOG__LEVEL", "debug")]).await;
    let gateway = world.gateway(&[]).await;
    let place = Place::new("monitoring").await;
    let _serve = place.serve().await;
    let send = ["send", "--client-msg-no", "here", "--text", "hello", "ana"];
    let sent = place.run(&send, b"").await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let admins = [worker.admin_port(), gateway.admin, place.admin];
    let prometheus = Prometheus::start(&admins).await;

    let sale = work(&world, gateway.port).await;
    world.completed(&sale).await;
    redis.kill().await;
    let down = "fanwise_ledger_up == 0";
    until("a ledger that is down", BOUND, async || {
        prometheus.finds(down).await.then_some(())
    })
    .await;
    redis.start_again().await;

    prometheus.until_all_find(&expressions()).await;
    let rejected = r#"ALERTS{alertname="RejectedMessages", alertstate="firing"}"#;
    until("the alert of rejected messages", BOUND, async || {
        prometheus.finds(rejected).await.then_some(())
    })
    .await;
    let groups = prometheus.api("rules").await;
    for group in groups["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            assert_eq!(rule["health"], "ok", "{rule}");
        }
    }
    for admin in admins {
        let text = get(admin, "/metrics").await.unwrap();
        accepts(&["check", "metrics"], &text).await;
    }
    logs_tell(&worker.process.stderr(), &gateway.process.stderr());
    worker.drain().await;
    world.end().await;
}

/// The log of a worker at `debug` and of a gateway, after the run.
fn logs_tell(worker: &str, gateway: &str) {
    for line in [
        "target away is parked: unreachable",
        "\"class\":\"done\"",
        "\"message\":\"call: ",
    ] {
        assert!(worker.contains(line), "{line} in {worker}");
    }
    let refused = gateway
        .lines()
        .find(|line| line.contains("fanwise::access"));
    let refused = refused.expect("a line of the access log");
    assert!(refused.contains("\"status\":404"), "{refused}");
    assert!(refused.contains("\"message\":\"other\""), "{refused}");
}
