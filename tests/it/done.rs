//! Tests all promises together: three workers, 100,000 recipients, a backend that refuses, fails
//! and throttles, and a worker that is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use fanwise::ports::ParkReason;
use fanwise_mock_im::Entry;
use serde_json::json;

use crate::examples::publish;
use crate::support::scratch::Scratch;
use crate::support::toolchain::Program;
use crate::support::wait::until;
use crate::support::world::{Plan, Worker};

const RECIPIENTS: usize = 100_000;
const BOUND: Duration = Duration::from_secs(150);

/// The most recipients that a killed worker can leave in doubt: those it had claimed, at most as
/// many as it may have calls in flight (256), rounded up to whole windows of its 12 slices in work.
const IN_DOUBT_MAX: usize = 12 * 256_usize.div_ceil(8);

type Metrics = BTreeMap<String, f64>;

fn of(metrics: &Metrics, name: &str) -> f64 {
    *metrics
        .get(name)
        .unwrap_or_else(|| panic!("no metric {name} in {metrics:#?}"))
}

/// A counter over several workers.
fn sum(workers: &[Metrics], name: &str) -> f64 {
    workers.iter().map(|metrics| of(metrics, name)).sum()
}

/// Three workers share one job of 100,000 that the Python example publishes. The WuKongIM v3
/// refuses 1 % of the users, fails 2 % of the calls and answers 429 for a while. One worker is
/// killed. All others get the message exactly once, the accounts are proved, the dead letters name
/// exactly the refused recipients with the reason, and the metrics agree.
///
/// These hold for the metrics although one worker's counters are lost; K is its last scrape:
/// - a counter that changes only when a job ends is exact over the survivors: one job completed,
///   none inconsistent;
/// - recipients by outcome: survivors + K ≤ accounts ≤ survivors + K + the number that the killed
///   worker can have settled after the scrape, which is the number that the mock accepted or
///   refused in the meantime plus those in flight;
/// - no worker counts more answers than the mock gave: accepted, refused, 429;
/// - the gauges of the survivors are those of idle workers.
#[tokio::test(flavor = "multi_thread")]
async fn three_workers_share_a_hundred_thousand_and_one_is_killed() {
    let (Some(mut plan), Some(producer)) = (Plan::shared(), Program::python("producer.py")) else {
        return;
    };
    let folder = Scratch::new("done");
    let log = folder.path().join("mock.ndjson");
    plan.mock.log = Some(log.clone());
    let world = plan.start("done").await;
    let faults = json!({
        "refuse_prefix": "refused-",
        "error_503": 0.02,
        "burst": { "after": 30_000, "for": "2s", "retry_after": 1 },
    });
    world.mock.patch_faults(&faults).unwrap();

    let name = |number: usize| match number % 100 {
        99 => format!("refused-{number}"),
        _ => format!("u{number}"),
    };
    let listed: Vec<String> = (0..RECIPIENTS).map(name).collect();
    let (refused, good): (BTreeSet<String>, BTreeSet<String>) = listed
        .iter()
        .cloned()
        .partition(|user| user.starts_with("refused-"));
    let list = folder.write("users", listed.join("\n"));

    // A claim of the killed worker is taken over when its lease has passed. A longer lease prevents
    // that a worker without processor time is taken for dead.
    let lease = [("FANWISE_LEDGER__LEASE", "10s")];
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(world.worker_with(&lease).await);
    }
    let flags = ["--file", list.to_str().unwrap()];
    let published = publish(&world, &producer, "done", &flags).await;
    assert_eq!(published.code, Some(0), "{}", published.stderr);

    until("half of the messages", BOUND, async || {
        (world.mock.stats().accepted >= RECIPIENTS as u64 / 2).then_some(())
    })
    .await;
    let mut killed = workers.swap_remove(0);
    let handled = || {
        let stats = world.mock.stats();
        (stats.accepted + stats.refused) as f64
    };
    let handled_before = handled();
    let last_scrape = killed.metrics().await;
    killed.process.kill();
    let meanwhile = handled() - handled_before + IN_DOUBT_MAX as f64;
    assert!(
        of(
            &last_scrape,
            "fanwise_recipients_total{outcome=\"sent\",target=\"im\"}"
        ) > 0.0
    );
    assert!(
        world.mock.stats().accepted < RECIPIENTS as u64 * 9 / 10,
        "killed too late for this test"
    );

    // The accounts.
    let job = world.job("done").await.unwrap()["job"]
        .as_str()
        .unwrap()
        .to_owned();
    until("completion", BOUND, async || {
        world
            .job(&job)
            .await
            .filter(|record| record["state"] == "completed")
    })
    .await;
    let record = world.completed(&job).await;
    let accounts = &record["accounts"];
    assert_eq!(accounts["total"], RECIPIENTS, "{record}");
    assert_eq!(accounts["sent"], good.len(), "{record}");
    // A refused recipient in a call of the killed worker may have got the message, as far as the
    // next worker knows.
    let count = |outcome: &str| accounts[outcome].as_u64().unwrap() as usize;
    assert_eq!(
        count("failed") + count("uncertain"),
        refused.len(),
        "{record}"
    );
    assert!(count("uncertain") <= IN_DOUBT_MAX, "{record}");
    assert_eq!(record["pending"], 0, "{record}");

    // The mock's log: all others exactly once.
    assert_eq!(world.mock.stats().log_errors, 0);
    let mut accepted: BTreeMap<String, usize> = BTreeMap::new();
    for line in fs::read_to_string(&log).unwrap().lines() {
        let entry: Entry = serde_json::from_str(line).unwrap();
        if !entry.replay {
            *accepted.entry(entry.recipient).or_default() += 1;
        }
    }
    let more_than_once: Vec<_> = accepted.iter().filter(|(_, count)| **count != 1).collect();
    assert!(more_than_once.is_empty(), "{more_than_once:?}");
    assert!(
        accepted.into_keys().collect::<BTreeSet<_>>() == good,
        "the mock did not accept exactly the recipients it did not refuse"
    );

    // The dead letters: exactly the refused recipients, with reasons.
    let letters = world.json(&["dead", "list", "--job", &job]).await;
    let (mut dead, mut doubted) = (BTreeSet::new(), 0);
    for letter in letters.as_array().unwrap() {
        if letter["outcome"] == "failed" {
            assert_eq!(letter["class"], "permanent", "{letter}");
        } else {
            assert_eq!(letter["outcome"], "uncertain", "{letter}");
            doubted += 1;
        }
        assert_eq!(letter["client_msg_no"], "done", "{letter}");
        let reason = |field: &str| letter[field].as_str().is_some_and(|text| !text.is_empty());
        assert!(reason("code") && reason("text"), "{letter}");
        assert!(
            dead.insert(letter["recipient"].as_str().unwrap().to_owned()),
            "{letter}"
        );
    }
    assert!(
        dead == refused,
        "{} dead, {} refused",
        dead.len(),
        refused.len()
    );

    assert_eq!(
        doubted,
        count("uncertain"),
        "dead letters and accounts disagree"
    );

    agree(
        &world.mock.stats(),
        accounts,
        &workers,
        last_scrape,
        meanwhile,
    )
    .await;
    for worker in workers {
        worker.drain().await;
    }
    world.end().await;
}

async fn agree(
    mock: &fanwise_mock_im::Stats,
    accounts: &serde_json::Value,
    workers: &[Worker],
    last_scrape: Metrics,
    meanwhile: f64,
) {
    let scrape = async || {
        let mut scrapes = Vec::new();
        for worker in workers {
            scrapes.push(worker.metrics().await);
        }
        scrapes
    };
    // The job completes just before the slice that completes it is acked.
    let survivors = until("rest", BOUND, async || {
        let scrapes = scrape().await;
        let names = [
            "fanwise_slices_in_flight",
            "fanwise_calls_in_flight{target=\"im\"}",
        ];
        names
            .iter()
            .all(|name| sum(&scrapes, name) == 0.0)
            .then_some(scrapes)
    })
    .await;
    assert_eq!(sum(&survivors, "fanwise_jobs_completed_total"), 1.0);
    assert_eq!(sum(&survivors, "fanwise_jobs_inconsistent_total"), 0.0);
    assert_eq!(sum(&survivors, "fanwise_panics_total"), 0.0);
    assert_eq!(
        sum(&survivors, "fanwise_unguarded_sends_total{target=\"im\"}"),
        0.0
    );
    assert_eq!(sum(&survivors, r#"fanwise_broker_up{role="worker"}"#), 2.0);
    assert_eq!(sum(&survivors, "fanwise_ledger_up"), 2.0);
    for &reason in ParkReason::ALL {
        let reason = reason.as_str();
        let parked = format!("fanwise_target_parked{{reason=\"{reason}\",target=\"im\"}}");
        assert_eq!(sum(&survivors, &parked), 0.0, "{reason}");
    }
    let taken_over = sum(&survivors, "fanwise_claims_total{state=\"taken_over\"}");
    assert!(
        taken_over <= IN_DOUBT_MAX as f64,
        "{taken_over} claims taken over"
    );

    let all: Vec<_> = survivors.into_iter().chain([last_scrape]).collect();
    assert_eq!(sum(&all, "fanwise_jobs_total{result=\"accepted\"}"), 1.0);
    assert_eq!(sum(&all, "fanwise_jobs_total{result=\"rejected\"}"), 0.0);
    for outcome in ["sent", "failed", "uncertain"] {
        let counted = sum(
            &all,
            &format!("fanwise_recipients_total{{outcome=\"{outcome}\",target=\"im\"}}"),
        );
        let account = accounts[outcome].as_f64().unwrap();
        assert!(
            (counted..=counted + meanwhile).contains(&account),
            "{outcome}: {account} in the accounts, {counted} counted, at most {meanwhile} in between"
        );
    }
    for outcome in ["expired", "cancelled"] {
        let name = format!("fanwise_recipients_total{{outcome=\"{outcome}\",target=\"im\"}}");
        assert_eq!(sum(&all, &name), 0.0, "{outcome}");
    }
    let fault = |name: &str| mock.faults.get(name).copied().unwrap_or_default();
    for (class, given) in [
        ("done", mock.accepted + mock.replays),
        ("permanent", mock.refused),
        ("throttled", fault("burst_429")),
    ] {
        let counted = sum(
            &all,
            &format!("fanwise_calls_total{{class=\"{class}\",target=\"im\"}}"),
        );
        assert!(given > 0, "the mock never answered {class}");
        assert!(
            counted > 0.0 && counted <= given as f64,
            "{class}: {counted} counted, {given} given"
        );
    }
    // Calls without a connection are transient too, so there may be more of them than answers.
    assert!(fault("error_503") > 0);
    assert!(
        sum(
            &all,
            "fanwise_calls_total{class=\"transient\",target=\"im\"}"
        ) > 0.0
    );
}
