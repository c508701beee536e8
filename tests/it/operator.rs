//! An hour of an operator's life in a minute, with everything at once. Two big jobs and fifty small
//! ones of three apps go to two targets. One target blocks with 416. The operator works through the
//! server: pauses, re-rates, re-prioritises, resumes, cancels an app and redrives the failed of another.
//! A worker is killed, and the broker dies and comes back. At the end all accounts are exact, no
//! backend got a message twice, and the audit trails tell who did what, when and why.

mod desk;

use std::collections::BTreeSet;
use std::time::SystemTime;

use fanwise::domain::ids::JobId;
use fanwise_mock_im::MockHandle;
use serde_json::{Value, json};

use self::desk::{Desk, Sent, Site, WORKERS};
use crate::fairness::{
    BEGINS, SECOND, accepted, is_of, list, share_until, shares_since, until_sent,
};
use crate::support::wait::until;
use crate::support::world::{BOUND, accepted_by, assert_once_each, milliseconds};

/// More than is sent while shares are measured.
const BIG: usize = 4_000;

fn is_small(job: &Sent) -> bool {
    job.name.starts_with("small")
}

/// Submitted after the cancel.
fn is_small_and_late(job: &Sent) -> bool {
    let number = job.name.strip_prefix("small");
    number.is_some_and(|it| it.parse::<usize>().unwrap() >= 40)
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_micros() as u64
}

fn number(record: &Value, outcome: &str) -> usize {
    record["accounts"][outcome].as_u64().unwrap() as usize
}

/// Messages of a job that the mock accepted in a time.
fn sent_between(mock: &MockHandle, name: &str, from_us: u64, to_us: u64) -> Vec<u64> {
    let accepted = accepted(mock).into_iter();
    let of = accepted.filter(|it| is_of(it, name) && (from_us..to_us).contains(&it.at_us));
    of.map(|it| it.at_us).collect()
}

/// The messages of others that the mock accepted from a time on before the first one of a job.
fn waited_for(mock: &MockHandle, name: &str, since_us: u64) -> usize {
    let accepted = accepted(mock).into_iter();
    let later = accepted.filter(|it| it.at_us >= since_us);
    later.take_while(|it| !is_of(it, name)).count()
}

/// The names of the jobs that the story is about, by their ids.
struct Cast {
    campaign: String,
    sale: String,
    audit: String,
    later: String,
}

/// The shares while the calls of `im` are scarce and `cloud` blocks.
async fn the_morning(desk: &mut Desk) -> Cast {
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let bulk = json!({ "priority": "bulk" });
    let cast = Cast {
        campaign: desk.send("news", "campaign", "im", BIG, &json!({})).await,
        sale: desk.send("shop", "sale", "im", BIG, &json!({})).await,
        audit: desk.send("ops", "audit", "im", BIG, &bulk).await,
        later: {
            let scheduled = json!({ "not_before": later.to_string() });
            desk.send("ops", "later", "im", 150, &scheduled).await
        },
    };
    desk.ten_small_jobs().await;
    desk.send("shop", "notice", "cloud", 600, &json!({})).await;
    let parked = until("the block of the cloud", BOUND, async || {
        let targets = desk.get("/v1/targets").await;
        let mut targets = targets.as_array()?.iter();
        let cloud = targets.find(|it| it["name"] == "cloud")?;
        (cloud["parked"]["code"] == "416").then(|| cloud["parked"].clone())
    })
    .await;
    let slower = ["limits", "set", "target", "cloud", "12/s burst 1"];
    let slower = desk.steer(&slower, "ana", "they block us").await;
    assert_eq!(slower["directives"][0]["author"], "ana", "{slower}");

    // Two equal apps have half each, whatever the other target does.
    for name in ["campaign", "sale"] {
        until_sent(&desk.im, name, 100).await;
    }
    let since_us = milliseconds(&parked["since"]) * 1000;
    let both = ["campaign", "sale"];
    let [campaign, _] = shares_since(&desk.im, both, since_us, SECOND, 4 * SECOND).await;
    assert!(
        (0.42..0.58).contains(&campaign),
        "the campaign has {campaign:.2}"
    );

    // An urgent job of 500 begins soon, and has 8 of 12 parts beside the two.
    desk.ten_small_jobs().await;
    let (since_us, high) = (now_us(), json!({ "priority": "high" }));
    desk.send("ops", "urgent", "im", 500, &high).await;
    until_sent(&desk.im, "urgent", 1).await;
    let waited = waited_for(&desk.im, "urgent", since_us);
    assert!(waited <= BEGINS, "urgent waits for {waited} messages");
    // Its last slices are fewer than its places. So few messages are twenty turns of half a second
    // at four places: a turn too many or too few of the others shows. Equal jobs would have a third
    // each, and a job that goes before all others nearly everything.
    let urgent = share_until(&desk.im, "urgent", &["campaign", "sale"], 400).await;
    assert!((0.50..0.87).contains(&urgent), "urgent has {urgent:.2}");
    small_jobs_begin_soon(desk).await;
    cast
}

/// However large the others are.
async fn small_jobs_begin_soon(desk: &Desk) {
    let small = desk.jobs.iter().filter(|it| is_small(it));
    for job in small.filter(|it| it.target == "im") {
        until_sent(&desk.im, &job.name, 1).await;
        let record = desk.get(&format!("/v1/jobs/{}", job.id)).await;
        let accepted_us = milliseconds(&record["accepted_at"]) * 1000;
        let waited = waited_for(&desk.im, &job.name, accepted_us);
        assert!(waited <= BEGINS, "{} waits for {waited} messages", job.name);
    }
}

/// The operator pauses one big job and slows the other one down; then takes both back and lets the
/// first one go before.
async fn the_noon(desk: &mut Desk, cast: &Cast) {
    let pause = ["job", "pause", &cast.campaign];
    desk.steer(&pause, "ana", "wrong picture").await;
    let paused_us = desk.heeded("pause").await;
    let rate = ["job", "rate", &cast.sale, "20/s burst 5"];
    desk.steer(&rate, "ben", "the shop is slow").await;
    let slow_us = desk.heeded("rate").await;
    desk.ten_small_jobs().await;
    until("the sale at its rate", BOUND, async || {
        let sent = sent_between(&desk.im, "sale", slow_us, u64::MAX);
        (sent.len() >= 80).then_some(())
    })
    .await;
    let resumed_us = now_us();
    let late = sent_between(&desk.im, "campaign", paused_us, resumed_us);
    assert_eq!(late.len(), 0, "sent while the campaign is paused");
    // Rate, burst, a lease of each worker, and what was a second under way before.
    let slow = sent_between(&desk.im, "sale", slow_us, resumed_us).len();
    let seconds = (resumed_us - slow_us).div_ceil(1_000_000) as usize;
    let most = 20 * (seconds + 1) + 5 + WORKERS;
    assert!(slow <= most, "{slow} of the sale in {seconds} s");

    let rate = ["job", "rate", &cast.sale, "default"];
    desk.steer(&rate, "ben", "the shop is well").await;
    let first = ["job", "priority", &cast.campaign, "--to", "high"];
    desk.steer(&first, "ana", "the campaign is late").await;
    let resumed_us = now_us();
    let resume = ["job", "resume", &cast.campaign];
    desk.steer(&resume, "ana", "right picture").await;
    until("the campaign goes on", BOUND, async || {
        let sent = sent_between(&desk.im, "campaign", resumed_us, u64::MAX);
        (!sent.is_empty()).then_some(())
    })
    .await;
    let waited = waited_for(&desk.im, "campaign", resumed_us);
    assert!(waited <= BEGINS, "the campaign waits for {waited} messages");
    let both = ["campaign", "sale"];
    let [campaign, _] = shares_since(&desk.im, both, resumed_us, 2 * SECOND, 6 * SECOND).await;
    assert!(
        (0.55..0.80).contains(&campaign),
        "the campaign has {campaign:.2} at high priority"
    );
}

/// A worker is killed and the broker dies. The operator cancels all of an app meanwhile, and twice
/// at once redrives the failed of another.
async fn the_afternoon(desk: &mut Desk, cast: &Cast) {
    desk.ten_small_jobs().await;
    let cancel = ["job", "cancel", "--app", "ops", "--yes"];
    desk.site.fall().await;
    let has_server = matches!(desk.site, Site::Servers { .. });
    if has_server {
        desk.steer(&cancel, "cem", "wrong list").await;
    }
    desk.site.rise().await;
    if !has_server {
        desk.steer(&cancel, "cem", "wrong list").await;
    }
    desk.ten_small_jobs().await;
    let mend = json!({ "refuse_prefix": null });
    desk.im.patch_faults(&mend).unwrap();
    let redrive = ["dead", "redrive", "--app", "shop"];
    tokio::join!(desk.command(&redrive), desk.command(&redrive));
    for job in [&cast.audit, &cast.later] {
        desk.completed(job).await;
    }
}

/// The failed recipients that became known last are redriven, and those in doubt are sent to again.
async fn the_evening(desk: &mut Desk, cast: &Cast) {
    desk.im.patch_faults(&json!({ "latency": null })).unwrap();
    let sale = desk.completed(&cast.sale).await;
    let (failed, uncertain) = (number(&sale, "failed"), number(&sale, "uncertain"));
    assert!(failed > 0, "{sale}");
    assert_eq!(number(&sale, "sent") + failed + uncertain, BIG, "{sale}");
    desk.command(&["dead", "redrive", "--app", "shop"]).await;
    let resend = [
        "job",
        "uncertain",
        &cast.sale,
        "--resolve",
        "resend",
        "--all",
    ];
    let resolved = desk.steer(&resend, "ana", "refused meanwhile").await;
    assert_eq!(resolved["changed"], uncertain, "{resolved}");
    let again = JobId::of("shop", "sale~r1").to_string();
    let again = desk.completed(&again).await;
    // What both redrives list is a repeat.
    assert_eq!(number(&again, "sent"), failed + uncertain, "{again}");
}

/// All accounts are exact and agree with the logs of the backends.
async fn all_accounts_are_exact(desk: &Desk) {
    let mut of_im = Vec::new();
    let got = ["im", "cloud"].map(|target| (target, accepted_by(desk.mock(target))));
    for (target, got) in &got {
        let twice: Vec<_> = got.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "{target}: more than once: {twice:?}");
        assert_eq!(desk.mock(target).stats().duplicates, 0, "{target}");
    }
    for job in &desk.jobs {
        let record = desk.completed(&job.id).await;
        let verified = desk.get(&format!("/v1/jobs/{}/verification", job.id)).await;
        assert_eq!(verified["differences"], json!([]), "{verified}");
        assert_eq!(number(&record, "total"), job.recipients, "{record}");
        let listed = list(&job.name, job.recipients);
        let (_, got) = &got[usize::from(job.target == "cloud")];
        let got: BTreeSet<_> = listed.iter().filter(|it| got.contains_key(*it)).collect();
        let (sent, uncertain) = (number(&record, "sent"), number(&record, "uncertain"));
        let cancelled = number(&record, "cancelled");
        // A cancel reaches the jobs of its time.
        let stays = job.app != "ops" || is_small_and_late(job);
        if stays {
            assert_eq!(cancelled, 0, "{record}");
        }
        match (job.target, job.name.as_str()) {
            ("im", "sale") => assert_eq!(got.len(), job.recipients, "{record}"),
            // The backend knows repeats, so only what is cancelled leaves anybody in doubt: all of a
            // small job, if it was in the calls of the killed process.
            ("im", _) if stays => assert_eq!(sent, job.recipients, "{record}"),
            // Who was in a call of the killed process may have the message, as far as it knows.
            _ => assert_eq!(sent + uncertain + cancelled, job.recipients, "{record}"),
        }
        if job.name != "sale" {
            let may_have = sent..=sent + uncertain;
            assert!(
                may_have.contains(&got.len()),
                "{} got it: {record}",
                got.len()
            );
        }
        if job.target == "im" {
            of_im.extend(got.into_iter().cloned());
        }
    }
    assert_once_each(&desk.im, &of_im);
    for port in desk.site.admin_ports() {
        let uri = format!("http://127.0.0.1:{port}/metrics");
        let (_, metrics) = desk.http("GET", &uri, String::new()).await;
        for never in ["fanwise_panics_total", "fanwise_jobs_inconsistent_total"] {
            assert!(metrics.contains(&format!("\n{never} 0\n")), "{never}");
        }
    }
}

/// Each job tells what was done to it, by whom, when, why and from where.
async fn the_trails_tell_the_story(desk: &Desk, cast: &Cast, began_us: u64) {
    let trails = [
        (
            &cast.campaign,
            &[
                ["pause", "", "ana", "wrong picture"],
                ["priority", "high", "ana", "the campaign is late"],
                ["resume", "", "ana", "right picture"],
            ][..],
        ),
        (
            &cast.sale,
            &[
                ["rate", "20/s burst 5", "ben", "the shop is slow"],
                ["rate", "default", "ben", "the shop is well"],
            ][..],
        ),
        (
            &cast.audit,
            &[["cancel", "all of app ops", "cem", "wrong list"]][..],
        ),
        (
            &cast.later,
            &[["cancel", "all of app ops", "cem", "wrong list"]][..],
        ),
    ];
    for (job, told) in trails {
        let record = desk.get(&format!("/v1/jobs/{job}")).await;
        let trail = record["audit_trail"].as_array().unwrap();
        let entry = |it: &Value| {
            let text = |field: &str| it[field].as_str().unwrap_or_default().to_owned();
            ["action", "detail", "author", "reason"].map(text)
        };
        let entries: Vec<_> = trail.iter().map(entry).collect();
        assert_eq!(entries[..told.len()], *told, "{record}");
        let mut before = began_us / 1000;
        for entry in trail {
            assert_eq!(
                (&entry["via"], &entry["caller"], &entry["address"]),
                (&json!("cli"), &json!("administrator"), &json!("127.0.0.1")),
                "{entry}"
            );
            let at = milliseconds(&entry["at"]);
            assert!((before..=now_us() / 1000).contains(&at), "{entry}");
            before = at;
        }
        assert!(trail.len() <= told.len() + 1, "{record}");
    }
    for job in [&cast.audit, &cast.later] {
        let record = desk.get(&format!("/v1/jobs/{job}")).await;
        assert!(number(&record, "cancelled") >= 150, "{record}");
    }
}

async fn the_hour(mut desk: Desk) {
    let began_us = now_us();
    let cast = the_morning(&mut desk).await;
    the_noon(&mut desk, &cast).await;
    the_afternoon(&mut desk, &cast).await;
    the_evening(&mut desk, &cast).await;
    all_accounts_are_exact(&desk).await;
    the_trails_tell_the_story(&desk, &cast, began_us).await;
    desk.site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hour_of_an_operator_embedded() {
    the_hour(Desk::embedded().await).await;
}

/// With a broker of its own, which dies.
mod restart {
    #[tokio::test(flavor = "multi_thread")]
    async fn an_hour_of_an_operator() {
        if let Some(desk) = super::Desk::servers().await {
            super::the_hour(desk).await;
        }
    }
}
