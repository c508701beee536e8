//! `fanwise doctor`: checks everything a worker needs and says how to fix what is wrong.

mod ledger;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{load_config, output};
use crate::app;
use crate::config::{Config, EngineKind};
use crate::error::chain;
use crate::exit::{Exit, Failure};
use crate::http::client::{Client, ClientSettings};
use crate::im::TargetSettings;
use crate::runtime::{Keyring, identify};

/// Longest wait for the answer of a target, and for the broker to take a message.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Print one JSON object
    #[arg(short, long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One thing that was checked, and the finding.
#[derive(Debug, serde::Serialize)]
struct Check {
    verdict: Verdict,
    what: &'static str,
    finding: String,
}

#[derive(Default)]
struct Report(Vec<Check>);

impl Report {
    fn add(&mut self, verdict: Verdict, what: &'static str, finding: impl Into<String>) {
        self.0.push(Check {
            verdict,
            what,
            finding: finding.into(),
        });
    }
}

pub(super) async fn run(args: DoctorArgs, file: Option<PathBuf>) -> Result<Exit, Failure> {
    let mut loaded = load_config(file.as_deref())?;
    loaded.config.require_process(&mut loaded.findings);
    let mut report = Report::default();
    for problem in &loaded.findings.problems {
        let place = loaded.lines.place(&problem.field);
        report.add(Verdict::Fail, "config", format!("{place}{problem}"));
    }
    for warning in &loaded.findings.warnings {
        // With a placeholder, nothing works that needs the value.
        let verdict = match loaded.findings.is_placeholder(&warning.field) {
            true => Verdict::Fail,
            false => Verdict::Warn,
        };
        let place = loaded.lines.place(&warning.field);
        report.add(verdict, "config", format!("{place}{warning}"));
    }
    if loaded.findings.problems.is_empty() {
        report.add(
            Verdict::Ok,
            "config",
            format!("{} settings", loaded.findings.shown.len()),
        );
    }
    let config = &loaded.config;
    if config.engine() == EngineKind::Embedded {
        let what = format!(
            "embedded in {}: `fanwise serve`",
            config.embedded.dir.display()
        );
        report.add(Verdict::Ok, "engine", what);
    }
    if config.broker.url.is_some() {
        look_at_broker(config, &mut report).await;
    }
    if config.ledger.url.is_some() {
        look_at_ledger(config, &mut report).await;
    }
    look_at_targets(config, &mut report).await;

    let worst = report
        .0
        .iter()
        .map(|check| check.verdict)
        .max()
        .unwrap_or(Verdict::Ok);
    if args.json {
        output::json(&json!({"ok": worst < Verdict::Fail, "checks": report.0}))?;
    } else {
        for Check {
            verdict,
            what,
            finding,
        } in &report.0
        {
            let verdict = match verdict {
                Verdict::Ok => "ok  ",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            output::line(format!("{verdict}  {what:<10}{finding}"))?;
        }
    }
    let config_failed = report
        .0
        .iter()
        .any(|check| check.what == "config" && check.verdict == Verdict::Fail);
    Ok(match worst {
        Verdict::Fail if config_failed => Exit::BadConfig,
        Verdict::Fail => Exit::Unavailable,
        Verdict::Ok | Verdict::Warn => Exit::Ok,
    })
}

async fn look_at_broker(config: &Config, report: &mut Report) {
    let broker = match app::broker(config) {
        Ok(broker) => broker,
        Err(failure) => return report.add(Verdict::Fail, "broker", chain(&*failure.error)),
    };
    let depths = match broker.depths().await {
        Ok(depths) => depths,
        Err(error) => return report.add(Verdict::Fail, "broker", chain(&error)),
    };
    report.add(
        Verdict::Ok,
        "broker",
        format!("{} answers", broker.address()),
    );
    let missing = depths.iter().filter(|depth| depth.counts.is_none()).count();
    if missing > 0 {
        let what = format!(
            "{missing} of {} queues are missing: fanwise topology apply",
            depths.len()
        );
        report.add(Verdict::Fail, "topology", what);
    } else {
        report.add(Verdict::Ok, "topology", format!("{} queues", depths.len()));
        match broker.takes_messages(PATIENCE).await {
            Ok(true) => {}
            Ok(false) => report.add(
                Verdict::Fail,
                "broker",
                "takes no messages: it is short of memory or disk; `rabbitmqctl status` names its \
                 alarms",
            ),
            // Whoever looks may not be permitted to publish.
            Err(error) => report.add(Verdict::Warn, "broker", chain(&error)),
        }
    }
    let counts = |part: &str| {
        let of = depths.iter().filter(|depth| depth.queue.contains(part));
        of.filter_map(|depth| depth.counts).collect::<Vec<_>>()
    };
    if counts(".jobs.").iter().all(|counts| counts.consumers == 0) {
        report.add(
            Verdict::Warn,
            "workers",
            "no worker takes jobs: start `fanwise worker`",
        );
    }
    for (part, what) in [
        (".dead.", "dead letters: fanwise dead list"),
        (".rejected.", "rejected messages: fanwise dead rejected"),
    ] {
        let ready: u32 = counts(part).iter().map(|counts| counts.ready).sum();
        if ready > 0 {
            report.add(Verdict::Warn, "queues", format!("{ready} {what}"));
        }
    }
}

async fn look_at_ledger(config: &Config, report: &mut Report) {
    let store = match app::ledger(config) {
        Ok(store) => store,
        Err(failure) => return report.add(Verdict::Fail, "ledger", chain(&*failure.error)),
    };
    match store.check().await {
        Err(error) => report.add(Verdict::Fail, "ledger", chain(&error)),
        Ok(found) => {
            for (verdict, finding) in ledger::findings(&found) {
                report.add(verdict, "ledger", finding);
            }
        }
    }
}

/// Checks that each target listens, that it is the system that the settings name, and that it takes
/// the credentials, where it can be asked without sending anything. A target that fails a check is
/// a failure: jobs would not be delivered, or not as promised.
async fn look_at_targets(config: &Config, report: &mut Report) {
    let client = Client::new(ClientSettings {
        tls_of: app::own_tls(config),
        ..ClientSettings::defaults()
    });
    for (name, target) in &config.targets {
        let Some((host, port)) = target.settings.address() else {
            continue;
        };
        let connect = tokio::net::TcpStream::connect((host.as_str(), port));
        let found = match tokio::time::timeout(PATIENCE, connect).await {
            Ok(Ok(_)) => identity(&target.settings, name, &client).await,
            Ok(Err(error)) => Err(format!("{error}. Check its url, and whether it runs")),
            Err(_) => Err("does not answer. Check its url, and whether it runs".to_owned()),
        };
        let (verdict, finding) = match found {
            Ok(finding) => (Verdict::Ok, finding),
            Err(finding) => (Verdict::Fail, finding),
        };
        report.add(
            verdict,
            "target",
            format!("{name}: {host}:{port}: {finding}"),
        );
    }
}

/// Identifies the system that listens and checks the credentials, as far as it can be asked.
async fn identity(
    settings: &TargetSettings,
    name: &str,
    client: &Client,
) -> Result<String, String> {
    // Wrong settings are reported by the configuration's own check.
    let Ok(target) = crate::im::build(name, settings) else {
        return Ok("listens".to_owned());
    };
    let found = identify(&*target, &Keyring::default(), client, PATIENCE).await?;
    Ok(found.unwrap_or_else(|| "listens; its credentials are not checked".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use fanwise_mock_im::{MockIm, Settings, Version};

    /// The finding about a target with these settings.
    async fn found(at: SocketAddr, target: &str) -> (Verdict, String) {
        let name = format!(
            "fanwise-doctor-{}-{}",
            std::process::id(),
            fastrand::u64(..)
        );
        let file = std::env::temp_dir().join(name);
        let target = target.replace("{at}", &at.to_string());
        std::fs::write(&file, format!("[targets.im]\n{target}")).unwrap();
        let loaded = crate::config::load(Some(&file), std::iter::empty()).unwrap();
        std::fs::remove_file(&file).unwrap();
        let mut report = Report::default();
        look_at_targets(&loaded.config, &mut report).await;
        let [check] = &report.0[..] else {
            panic!("{:?}: {:?}", report.0, loaded.findings.problems);
        };
        (check.verdict, check.finding.clone())
    }

    /// The doctor finds a wrong credential before the first job meets it, and says what to do.
    #[tokio::test]
    async fn what_is_wrong_with_a_target_is_told_with_what_to_do() {
        let mock = MockIm::bind(Settings {
            wukongim: Version::V2,
            token: Some("right".to_owned()),
            ..Settings::default()
        });
        let mock = mock.await.unwrap();
        let (at, stop) = (mock.addr(), CancellationToken::new());
        let running = tokio::spawn(mock.run(stop.clone().cancelled_owned()));
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let gone = nobody.local_addr().unwrap();
        drop(nobody);

        let wukongim = "type = \"wukongim\"\nurl = \"http://{at}\"\n";
        let netease =
            "type = \"netease\"\nurl = \"http://{at}/nimserver\"\napp_key = \"mock-key\"\n";
        let openim = "type = \"openim\"\nurl = \"http://{at}\"\n";
        for (at, target, rest, right, said) in [
            (
                at,
                wukongim,
                "version = \"v2\"\ntoken = \"right\"",
                true,
                "WuKongIM 1.x or 2.x",
            ),
            (
                at,
                wukongim,
                "version = \"v2\"\ntoken = \"wrong\"",
                false,
                "refuses the token",
            ),
            (
                at,
                wukongim,
                "version = \"v3\"\ntoken = \"right\"",
                false,
                "set `version` to it",
            ),
            (
                at,
                netease,
                "app_secret = \"mock-secret\"",
                true,
                "takes the app key and secret",
            ),
            (
                at,
                netease,
                "app_secret = \"wrong\"",
                false,
                "Check app key, secret and the clock",
            ),
            (
                at,
                openim,
                "secret = \"openIM123\"",
                true,
                "gives a token for the secret",
            ),
            (at, openim, "secret = \"wrong\"", false, "Check its secret"),
            (
                gone,
                wukongim,
                "version = \"v2\"",
                false,
                "Check its url, and whether it runs",
            ),
        ] {
            let (verdict, finding) = found(at, &format!("{target}{rest}")).await;
            let expected = if right { Verdict::Ok } else { Verdict::Fail };
            assert_eq!(verdict, expected, "{rest}: {finding}");
            assert!(finding.contains(said), "{rest}: {finding}");
            assert!(finding.contains(&at.to_string()), "{rest}: {finding}");
        }
        stop.cancel();
        running.await.unwrap();
    }
}
