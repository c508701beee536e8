//! Tests the ledger and the limiter on Redis beyond their contract (`contract::ledger`,
//! `contract::limiter`), on the server of `FANWISE_TEST_REDIS_URL`. Each test has its own key
//! prefix; tests that disturb the server start one of their own.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use fanwise::domain::accounts::Accounts;
use fanwise::domain::ids::{Fingerprint, JobId, Owner, SliceId};
use fanwise::domain::lane::SUB_LANES;
use fanwise::domain::limits::{Cost, Grant, Rate, Tat, Weight};
use fanwise::domain::message_id::{KeptId, MessageId, RecallState};
use fanwise::domain::outcome::{Class, Outcome};
use fanwise::domain::slice::Shape;
use fanwise::domain::trail::{Origin, TrailEntry};
use fanwise::ports::Steering as _;
use fanwise::ports::{
    Accepted, Beat, Claim, ClaimState, Claimed, Entry, JobFilter, JobQuery, JobRecord, JobState,
    Ledger, LedgerError, Limiter, Park, ParkReason, Pulse, Reason, Settle, SubLanes as _,
    Submission, Unassigned, Upkeep,
};
use fanwise::store::{CheckError, Kind, Persistence, Settings, Store};
use futures_util::{StreamExt as _, stream};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use tokio::time::timeout;

use crate::contract::ledger::{ANN, BOB, Job, LEASE, all, claim, each, settle};
use crate::contract::limiter::limit;
use crate::support::servers::other_server;

/// The URL of the server; `None` means skip.
fn url() -> Option<String> {
    let url = std::env::var("FANWISE_TEST_REDIS_URL").ok();
    if url.is_none() {
        let required = std::env::var("FANWISE_TEST_REQUIRE").is_ok_and(|value| value == "1");
        assert!(!required, "FANWISE_TEST_REDIS_URL is not set");
        println!("skipped: FANWISE_TEST_REDIS_URL is not set");
    }
    url
}

struct Bench {
    store: Store,
    prefix: String,
    redis: MultiplexedConnection,
}

impl Bench {
    async fn start() -> Option<Self> {
        Some(Self::at(&url()?).await)
    }

    async fn at(url: &str) -> Self {
        let prefix = format!("test-{:016x}", fastrand::u64(..));
        let mut settings = Settings::new(url);
        settings.prefix.clone_from(&prefix);
        let redis = redis::Client::open(url).unwrap();
        Self {
            store: Store::open(&settings).unwrap(),
            prefix,
            redis: redis.get_multiplexed_async_connection().await.unwrap(),
        }
    }

    async fn keys(&mut self) -> Vec<String> {
        redis::cmd("KEYS")
            .arg(format!("{}*", self.prefix))
            .query_async(&mut self.redis)
            .await
            .unwrap()
    }

    /// Every key with its time to live in seconds; -1 means that it does not expire.
    async fn ends(&mut self) -> BTreeMap<String, i64> {
        let mut ends = BTreeMap::new();
        for key in self.keys().await {
            let ttl = redis::cmd("TTL")
                .arg(&key)
                .query_async(&mut self.redis)
                .await
                .unwrap();
            ends.insert(key, ttl);
        }
        ends
    }

    /// The jobs with outlines.
    async fn outlined(&mut self) -> Vec<JobId> {
        let fields: Vec<Vec<u8>> = redis::cmd("HKEYS")
            .arg(format!("{}:outlines", self.prefix))
            .query_async(&mut self.redis)
            .await
            .unwrap();
        let ids = fields.iter().map(|it| HEXLOWER.encode(it).parse().unwrap());
        let mut ids: Vec<JobId> = ids.collect();
        ids.sort();
        ids
    }

    /// Deletes the test's keys, as if Redis came back empty.
    async fn lose_everything(&mut self) {
        for key in self.keys().await {
            let _: () = redis::cmd("DEL")
                .arg(key)
                .query_async(&mut self.redis)
                .await
                .unwrap();
        }
    }
}

async fn newest(store: &Store, most: usize) -> Vec<JobRecord> {
    let query = JobQuery {
        most,
        ..JobQuery::default()
    };
    store.jobs(&query).await.unwrap().jobs
}

// ---------------------------------------------------------------------------------------------
// Claims and outcomes
// ---------------------------------------------------------------------------------------------

/// A fingerprint whose bytes happen to occur across the records of others is not mistaken for one
/// of them.
#[tokio::test]
async fn fingerprints_are_told_from_bytes_that_look_like_them() {
    let Some(bench) = Bench::start().await else {
        return;
    };
    let (store, job) = (&bench.store, Job::new(1));
    store.accept(&job.submission("s", 2)).await.unwrap();
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 2);
    // The last seven bytes of the first and the code of its outcome.
    let first = Fingerprint(u64::from_le_bytes(*b"0abcdefg"));
    let second = Fingerprint(u64::from_le_bytes(*b"abcdefgs"));
    settle(store, slice, ANN, &[(first, Outcome::Sent)], false).await;
    let states = each(claim(store, slice, ANN, LEASE, &[second]).await);
    assert_eq!(states, [ClaimState::Granted]);
    let states = each(claim(store, slice, BOB, LEASE, &[second]).await);
    assert!(matches!(states[0], ClaimState::Held { .. }));
    let standing = settle(store, slice, BOB, &[(second, Outcome::Failed)], true).await;
    assert_eq!((standing.accounts.sent, standing.accounts.failed), (1, 1));
    let record = store.job(job.id()).await.unwrap().unwrap();
    let audit = store.audit(&record).await.unwrap();
    assert_eq!((audit.sent, audit.failed, audit.claimed), (1, 1, 0));
}

// ---------------------------------------------------------------------------------------------
// Jobs
// ---------------------------------------------------------------------------------------------

/// A test message to a few recipients, then the same job to a million: the few are found in the
/// larger job, and owners of claims and slices of the old shape are not affected.
#[tokio::test]
async fn a_job_grows_with_its_submissions() {
    let Some(bench) = Bench::start().await else {
        return;
    };
    let (store, job) = (&bench.store, Job::new(2));
    let people = job.fingerprints(0..60);
    store.accept(&job.submission("few", 40)).await.unwrap();
    let id = SliceId::new("few", 0);
    let few = job.slice(&id, 40);
    claim(store, few, ANN, LEASE, &people[..40]).await;
    settle(store, few, ANN, &all(&people[..20], Outcome::Sent), false).await;

    let many = Job {
        head: job.head.clone(),
        shape: Shape { buckets: 12_500 },
    };
    let shape = many.shape;
    assert_eq!(
        store.accept(&many.submission("many", 60)).await.unwrap(),
        Accepted::Expand {
            shape,
            first: false,
            template: None,
            slice_recipients: Some(500),
        }
    );
    let id = SliceId::new("many", 0);
    let states = each(claim(store, many.slice(&id, 60), BOB, LEASE, &people).await);
    assert_eq!(states[..20], [ClaimState::Settled(Outcome::Sent); 20]);
    assert!(
        states[20..40]
            .iter()
            .all(|state| matches!(state, ClaimState::Held { .. }))
    );
    assert_eq!(states[40..], [ClaimState::Granted; 20]);
    assert!(store.renew(few, ANN, LEASE, &people[20..40]).await.unwrap());
    settle(
        store,
        few,
        ANN,
        &all(&people[20..40], Outcome::Failed),
        true,
    )
    .await;
    assert_eq!(
        claim(store, few, BOB, LEASE, &people[..40]).await,
        Claimed::SliceDone
    );
    let rest = all(&people[40..], Outcome::Sent);
    let standing = settle(store, many.slice(&id, 60), BOB, &rest, true).await;
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!(record.shape, shape);
    let audit = store.audit(&record).await.unwrap();
    assert_eq!((audit.sent, audit.failed, audit.claimed), (40, 20, 0));
    assert!(audit.differences(&standing.accounts).is_empty());
}

/// A job in the list whose header has expired is skipped.
#[tokio::test]
async fn a_listed_job_that_is_gone_is_no_error() {
    let Some(mut bench) = Bench::start().await else {
        return;
    };
    let jobs: Vec<_> = (0..5).map(|_| Job::new(1)).collect();
    for (number, job) in jobs.iter().enumerate() {
        let submission = Submission {
            now_ms: job.head.accepted_at_ms + number as u64,
            ..job.submission("s", 1)
        };
        bench.store.accept(&submission).await.unwrap();
    }
    let _: () = redis::cmd("DEL")
        .arg(format!("{}:{{{}}}", bench.prefix, jobs[3].id()))
        .query_async(&mut bench.redis)
        .await
        .unwrap();
    let listed = newest(&bench.store, 3).await;
    let ids: Vec<_> = listed.iter().map(|record| record.job).collect();
    assert_eq!(ids, [jobs[4].id(), jobs[2].id(), jobs[1].id()]);
}

/// A job is kept as long as a part of it runs or waits, and then for the window: none of its keys
/// expires before it completes, all of them expire after that, and none when it is extended again.
#[tokio::test]
async fn a_job_that_waits_is_known_and_a_completed_one_expires() {
    let Some(mut bench) = Bench::start().await else {
        return;
    };
    let job = Job::new(6);
    let people = job.fingerprints(0..101);
    bench.store.accept(&job.submission("s", 101)).await.unwrap();
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 101);
    claim(&bench.store, slice, ANN, LEASE, &people[..30]).await;
    let reason = Reason {
        outcome: Outcome::Failed,
        class: Class::Permanent,
        code: "404".to_owned(),
        text: "no such user".to_owned(),
        attempts: 1,
    };
    let reasons = [(people[0], reason)];
    bench
        .store
        .record_reasons(job.id(), &reasons)
        .await
        .unwrap();
    let entry = TrailEntry {
        at_ms: 1,
        action: "pause".to_owned(),
        detail: None,
        author: None,
        reason: None,
        origin: Origin::default(),
    };
    bench.store.note(&[job.id()], &entry).await.unwrap();
    // Header, slices, submissions, owners, reasons, trail and buckets, and the two lists of jobs.
    let ends = bench.ends().await;
    assert!(ends.len() >= 6 + 6 + 2, "{ends:?}");
    assert!(ends.values().all(|ttl| *ttl == -1), "{ends:?}");

    let kept: Vec<_> = people.iter().map(|it| (*it, kept_id())).collect();
    let settling = Settle {
        outcomes: &all(&people, Outcome::Sent),
        ids: &kept,
        last: Some(slice.entries),
        ..Settle::of(slice, ANN)
    };
    bench.store.settle(settling).await.unwrap();
    let ends = bench.ends().await;
    assert!(ends.len() >= 6 + 6 + 6 + 2, "{ends:?}");
    assert!(ends.values().all(|ttl| *ttl == -1), "{ends:?}");
    bench.store.mark_expanded(job.id(), "s").await.unwrap();
    assert!(bench.store.complete(job.id()).await.unwrap());
    let of_job = |(key, _): &(String, i64)| key.contains('{');
    let ends: Vec<_> = bench.ends().await.into_iter().filter(of_job).collect();
    assert!(ends.len() >= 5 + 6 + 6, "{ends:?}");
    assert!(ends.iter().all(|(_, ttl)| *ttl > 600_000), "{ends:?}");
    // Another delivery of a slice does not change that.
    let done = claim(&bench.store, slice, BOB, LEASE, &people[..1]).await;
    assert_eq!(done, Claimed::SliceDone);
    let ends: Vec<_> = bench.ends().await.into_iter().filter(of_job).collect();
    assert!(ends.iter().all(|(_, ttl)| *ttl > 600_000), "{ends:?}");

    let more = job.submission("t", 1);
    assert!(matches!(
        bench.store.accept(&more).await.unwrap(),
        Accepted::Expand { .. }
    ));
    let ends = bench.ends().await;
    assert!(ends.values().all(|ttl| *ttl == -1), "{ends:?}");
}

/// The id of some message.
fn kept_id() -> KeptId {
    KeptId {
        recipient: "user".to_owned(),
        message: MessageId::new("1", None).unwrap(),
        by_fallback: false,
        recall: RecallState::No,
    }
}

/// A job of an older version, whose keys expire, is kept from the first claim on.
#[tokio::test]
async fn a_job_of_an_older_version_is_kept_while_it_runs() {
    let Some(mut bench) = Bench::start().await else {
        return;
    };
    let job = Job::new(2);
    let people = job.fingerprints(0..20);
    bench.store.accept(&job.submission("s", 20)).await.unwrap();
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 20);
    claim(&bench.store, slice, ANN, LEASE, &people[..10]).await;
    let header = format!("{}:{{{}}}", bench.prefix, job.id());
    let _: () = redis::cmd("HDEL")
        .arg(&header)
        .arg("held")
        .query_async(&mut bench.redis)
        .await
        .unwrap();
    for key in bench.keys().await {
        let _: () = redis::cmd("EXPIRE")
            .arg(key)
            .arg(600)
            .query_async(&mut bench.redis)
            .await
            .unwrap();
    }
    claim(&bench.store, slice, ANN, LEASE, &people[10..]).await;
    let of_job = |(key, _): &(String, i64)| key.contains('{');
    let ends: Vec<_> = bench.ends().await.into_iter().filter(of_job).collect();
    assert!(ends.iter().all(|(_, ttl)| *ttl == -1), "{ends:?}");
}

/// Workers of two versions: claims that an owner holds in doubt stay its own, although an owner of
/// an earlier version takes one number and an owner of this version takes two (promise 4).
#[tokio::test]
async fn an_owner_of_an_older_version_has_no_part_in_what_another_holds_in_doubt() {
    let Some(mut bench) = Bench::start().await else {
        return;
    };
    let (older, job) = (Owner(0xc), Job::new(1));
    let people = job.fingerprints(0..3);
    bench.store.accept(&job.submission("s", 3)).await.unwrap();
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 3);
    claim(&bench.store, slice, ANN, Duration::ZERO, &people).await;
    until("a claim that can be taken over", async || {
        let states = each(claim(&bench.store, slice, BOB, LEASE, &people).await);
        states != [ClaimState::Granted; 3] && !matches!(states[0], ClaimState::Held { .. })
    })
    .await;
    let again = each(claim(&bench.store, slice, BOB, LEASE, &people).await);
    assert_eq!(again, [ClaimState::InDoubt; 3]);

    // The way in which an earlier version numbers its owners.
    let header = format!("{}:{{{}}}", bench.prefix, job.id());
    let count: u32 = redis::cmd("HINCRBY")
        .arg(&header)
        .arg("owners")
        .arg(1)
        .query_async(&mut bench.redis)
        .await
        .unwrap();
    let number = &(8_388_608 + count % 8_388_607).to_be_bytes()[1..];
    let lease = [&older.to_bytes()[..], &[0; 6]].concat();
    let _: () = redis::cmd("HSET")
        .arg(format!("{header}:owners"))
        .arg(&older.to_bytes())
        .arg(number)
        .arg(number)
        .arg(lease)
        .query_async(&mut bench.redis)
        .await
        .unwrap();
    let states = each(claim(&bench.store, slice, older, LEASE, &people).await);
    let held = |state: &ClaimState| matches!(state, ClaimState::Held { .. });
    assert!(states.iter().all(held), "{states:?}");
    assert!(bench.store.renew(slice, BOB, LEASE, &people).await.unwrap());
}

/// Keys that belong to no job expire by themselves.
#[tokio::test]
async fn limits_and_parkings_expire() {
    let Some(mut bench) = Bench::start().await else {
        return;
    };
    let limit = limit("10/s", Cost::PerRecipient);
    bench.store.lease(&limit, 3, Duration::ZERO).await.unwrap();
    bench.store.refund(&limit, 1).await.unwrap();
    bench.store.park("im", &park(3_600_000)).await.unwrap();

    let ends = bench.ends().await;
    assert_eq!(ends.len(), 2, "{ends:?}");
    assert!(ends.values().all(|ttl| *ttl >= 0), "{ends:?}");
}

/// The list of jobs drops those that no longer exist, and only those.
#[tokio::test]
async fn the_list_keeps_old_jobs_that_run() {
    let Some(mut bench) = Bench::start().await else {
        return;
    };
    let (running, gone) = (Job::new(1), Job::new(1));
    for job in [&running, &gone] {
        bench.store.accept(&job.submission("s", 1)).await.unwrap();
    }
    let header = format!("{}:{{{}}}", bench.prefix, gone.id());
    let _: () = redis::cmd("DEL")
        .arg(header)
        .query_async(&mut bench.redis)
        .await
        .unwrap();
    // Both were accepted years ago.
    bench.store.quiet(Duration::from_secs(1)).await.unwrap();
    let listed: Vec<String> = redis::cmd("ZRANGE")
        .arg(format!("{}:jobs", bench.prefix))
        .arg(0)
        .arg(-1)
        .query_async(&mut bench.redis)
        .await
        .unwrap();
    assert_eq!(listed, [running.id().to_string()]);
    assert_eq!(bench.outlined().await, [running.id()]);
}

/// A job without an outline, as a crash or an earlier version leaves it, is found all the same, and
/// has one from then on.
#[tokio::test]
async fn a_missing_outline_is_written_by_the_next_listing() {
    let Some(mut bench) = Bench::start().await else {
        return;
    };
    let jobs: [Job; 3] = std::array::from_fn(|_| Job::new(1));
    for (job, tag) in jobs.iter().zip(["may", "june", "may"]) {
        let submission = Submission {
            tags: vec![tag.to_owned()],
            ..job.submission("s", 1)
        };
        bench.store.accept(&submission).await.unwrap();
    }
    let id = |number: usize| jobs[number].id();
    let _: () = redis::cmd("HDEL")
        .arg(format!("{}:outlines", bench.prefix))
        .arg(&id(0).bytes())
        .arg(&id(1).bytes())
        .query_async(&mut bench.redis)
        .await
        .unwrap();
    assert_eq!(bench.outlined().await, [id(2)]);
    let mut expected = vec![id(0), id(2)];
    expected.sort();
    for _ in 0..2 {
        let query = JobQuery {
            filter: JobFilter {
                tag: Some("may".to_owned()),
                ..JobFilter::default()
            },
            most: 9,
            ..JobQuery::default()
        };
        let page = bench.store.jobs(&query).await.unwrap();
        let mut found: Vec<_> = page.jobs.iter().map(|it| it.job).collect();
        found.sort();
        assert_eq!((found, page.next), (expected.clone(), None));
    }
    let mut all = vec![id(0), id(1), id(2)];
    all.sort();
    assert_eq!(bench.outlined().await, all);
}

/// Jobs that a listing only passes by: they are on the list with an outline, and have no record.
async fn list_fillers(bench: &mut Bench, times: impl Iterator<Item = u64>) {
    let mut pipeline = redis::pipe();
    for at_ms in times {
        if pipeline.len() >= 1_000 {
            pipeline.exec_async(&mut bench.redis).await.unwrap();
            pipeline.clear();
        }
        let id = JobId::of("filler", &fastrand::u64(..).to_string());
        let (jobs, outlines) = (
            format!("{}:jobs", bench.prefix),
            format!("{}:outlines", bench.prefix),
        );
        pipeline.zadd(jobs, id.to_string(), at_ms).ignore();
        pipeline.hset(outlines, &id.bytes(), "filler\nim").ignore();
    }
    pipeline.exec_async(&mut bench.redis).await.unwrap();
}

async fn packs(bench: &mut Bench) -> Vec<String> {
    redis::cmd("HKEYS")
        .arg(format!("{}:packs", bench.prefix))
        .query_async(&mut bench.redis)
        .await
        .unwrap()
}

async fn accept_at(store: &Store, job: &Job, at_ms: u64, tag: &str) {
    let submission = Submission {
        now_ms: at_ms,
        tags: vec![tag.to_owned()],
        ..job.submission("s", 1)
    };
    store.accept(&submission).await.unwrap();
}

/// All jobs with a tag, with pages of several sizes and times.
async fn check_tagged(store: &Store, tag: &str, expected: &[(u64, JobId)]) {
    let mut expected = expected.to_vec();
    expected.sort();
    expected.reverse();
    let times: Vec<_> = expected.iter().map(|(at_ms, _)| *at_ms).collect();
    let from = [None, times.get(2).copied()].into_iter();
    for (since_ms, most) in from.flat_map(|since| [1, 1000].map(|most| (since, most))) {
        let until_ms = since_ms.map(|since| since + 2_000_000);
        let filter = JobFilter {
            tag: Some(tag.to_owned()),
            since_ms,
            until_ms,
            ..JobFilter::default()
        };
        let mut query = JobQuery {
            filter,
            after: None,
            most,
        };
        let mut found = Vec::new();
        loop {
            let page = store.jobs(&query).await.unwrap();
            assert!(page.jobs.len() <= most);
            found.extend(page.jobs.iter().map(|it| it.job));
            query.after = page.next;
            if page.next.is_none() {
                break;
            }
        }
        let within = expected.iter().filter(|(at_ms, _)| {
            since_ms.is_none_or(|it| *at_ms >= it) && until_ms.is_none_or(|it| *at_ms < it)
        });
        let within: Vec<_> = within.map(|(_, job)| *job).collect();
        assert_eq!(found, within, "{tag} since {since_ms:?}, {most} a page");
    }
}

/// Few jobs are found among many by packs of outlines. A pack stands for the list only as long as it
/// agrees with it: a job that is listed late is found, and so is one that was refused and comes again
/// with another tag.
#[tokio::test]
async fn rare_jobs_are_found_by_packs_that_agree_with_the_list() {
    let Some(mut bench) = Bench::start().await else {
        return;
    };
    let store = bench.store.clone();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let begin = now.as_millis() as u64 - 4 * 3_600_000;
    // Two packs, and some that are too few for a third one. Several jobs share each millisecond.
    list_fillers(
        &mut bench,
        (0..11_000).map(|number| begin + number / 3 * 3_000),
    )
    .await;
    let end = begin + 11_000_000;
    let jobs: [Job; 8] = std::array::from_fn(|_| Job::new(1));
    let mut rare = Vec::new();
    for (number, job) in jobs.iter().enumerate().take(5) {
        let at_ms = begin + 2_500_000 * number as u64;
        accept_at(&store, job, at_ms, "rare").await;
        rare.push((at_ms, job.id()));
    }
    check_tagged(&store, "rare", &rare).await;
    assert!(packs(&mut bench).await.is_empty());
    store.quiet(Duration::from_secs(3_600)).await.unwrap();
    let packed = packs(&mut bench).await;
    assert_eq!(packed.len(), 2, "{packed:?}");
    check_tagged(&store, "rare", &rare).await;

    // The packs are what is read: the outlines of their jobs are not.
    let outlines = format!("{}:outlines", bench.prefix);
    for (at_ms, job) in &rare[..3] {
        assert!(*at_ms < begin + 9_000_000);
        let () = bench
            .redis
            .hset(&outlines, &job.bytes(), "shop\nim")
            .await
            .unwrap();
    }
    check_tagged(&store, "rare", &rare).await;
    for (_, job) in &rare[..3] {
        let () = bench
            .redis
            .hset(&outlines, &job.bytes(), "shop\nim\nrare")
            .await
            .unwrap();
    }

    // Listed late, in a span that is packed.
    let late = begin + 1_000;
    accept_at(&store, &jobs[5], late, "rare").await;
    rare.push((late, jobs[5].id()));
    check_tagged(&store, "rare", &rare).await;
    store.quiet(Duration::from_secs(3_600)).await.unwrap();
    let again = packs(&mut bench).await;
    assert_eq!(again.len(), 2, "{again:?}");
    assert_eq!(again.iter().filter(|it| packed.contains(it)).count(), 1);
    check_tagged(&store, "rare", &rare).await;

    // Refused, and submitted once more with another tag.
    let entry = |tag: &str| Entry {
        job: jobs[6].id(),
        app: jobs[6].head.app.clone(),
        client_msg_no: jobs[6].head.client_msg_no.clone(),
        target: jobs[6].head.target.clone(),
        content_digest: "d".to_owned(),
        entries: 1,
        now_ms: late + 1,
        not_before_ms: None,
        priority: jobs[6].head.priority,
        expires_at_ms: None,
        tags: vec![tag.to_owned()],
        fetched: None,
    };
    store.enter(&entry("rare")).await.unwrap();
    store.quiet(Duration::from_secs(3_600)).await.unwrap();
    store.withdraw(jobs[6].id()).await.unwrap();
    check_tagged(&store, "rare", &rare).await;
    check_tagged(&store, "rarer", &[]).await;
    accept_at(&store, &jobs[6], end, "rarer").await;
    check_tagged(&store, "rare", &rare).await;
    let rarer = JobQuery {
        filter: JobFilter {
            tag: Some("rarer".to_owned()),
            ..JobFilter::default()
        },
        after: None,
        most: 10,
    };
    let page = store.jobs(&rarer).await.unwrap();
    let found: Vec<_> = page.jobs.iter().map(|it| it.job).collect();
    assert_eq!(found, [jobs[6].id()]);

    // Damage is passed by.
    let key = format!("{}:packs", bench.prefix);
    for field in packs(&mut bench).await {
        let () = bench.redis.hset(&key, field, "damaged").await.unwrap();
    }
    check_tagged(&store, "rare", &rare).await;
}

/// Packs are written while jobs come, so that a listing needs no round of the upkeep before it.
#[tokio::test]
async fn new_jobs_are_packed_as_they_come() {
    let Some(mut bench) = Bench::start().await else {
        return;
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let begin = now.as_millis() as u64 - 3_600_000;
    list_fillers(&mut bench, (0..4_000).map(|number| begin + number)).await;
    let accepting = stream::iter(0..2_500_u64).map(|number| {
        let store = bench.store.clone();
        async move { accept_at(&store, &Job::new(1), begin + 10_000 + number, "new").await }
    });
    accepting.buffer_unordered(100).collect::<()>().await;
    assert_eq!(packs(&mut bench).await.len(), 1);
}

// ---------------------------------------------------------------------------------------------
// Completed small jobs
// ---------------------------------------------------------------------------------------------

/// The parts of a job's keys after its header, those of buckets left out.
async fn parts_of(bench: &mut Bench, job: &Job) -> Vec<String> {
    let header = format!("{}:{{{}}}:", bench.prefix, job.id());
    let keys = bench.keys().await;
    let parts = keys.iter().filter_map(|key| key.strip_prefix(&header));
    let mut parts: Vec<_> = parts
        .filter(|part| part.parse::<u32>().is_err())
        .map(str::to_owned)
        .collect();
    parts.sort();
    parts
}

/// The times to live of the job's keys.
async fn ends_of(bench: &mut Bench, job: &Job) -> Vec<i64> {
    let id = job.id().to_string();
    let ends = bench.ends().await.into_iter();
    ends.filter(|(key, _)| key.contains(&id))
        .map(|(_, ttl)| ttl)
        .collect()
}

async fn finish(store: &Store, job: &Job, submission: &str, entries: u32) {
    let id = SliceId::new(submission, 0);
    let people = job.fingerprints(0..entries);
    let sent = all(&people, Outcome::Sent);
    settle(store, job.slice(&id, entries), ANN, &sent, true).await;
    store.mark_expanded(job.id(), submission).await.unwrap();
    assert!(store.complete(job.id()).await.unwrap());
}

async fn knows(store: &Store, job: &Job, submissions: &[&str]) -> bool {
    let names: Vec<_> = submissions.iter().map(|name| (*name).to_owned()).collect();
    store.knows(job.id(), &names).await.unwrap()
}

/// A completed small job keeps its slices and submissions in its header. Whoever asks, repeats or
/// extends it notices nothing of that.
#[tokio::test]
async fn a_completed_small_job_takes_few_keys() {
    let Some(mut bench) = Bench::start().await else {
        return;
    };
    let store = bench.store.clone();
    for (entries, expected) in [(1, &[][..]), (100, &[]), (101, &["slices", "submissions"])] {
        let job = Job::new(1);
        let first = job.submission("one", u64::from(entries));
        store.accept(&first).await.unwrap();
        let id = SliceId::new("one", 0);
        let people = job.fingerprints(0..entries);
        for people in people.chunks(64) {
            claim(&store, job.slice(&id, entries), ANN, LEASE, people).await;
        }
        finish(&store, &job, "one", entries).await;
        assert_eq!(parts_of(&mut bench, &job).await, expected, "{entries}");
        let header = format!("{}:{{{}}}", bench.prefix, job.id());
        let records: u64 = redis::cmd("MEMORY")
            .arg(&["USAGE", &format!("{header}:0")])
            .query_async(&mut bench.redis)
            .await
            .unwrap();
        // It grew in two steps, and kept no room for a third.
        if entries <= 100 {
            assert!(records <= 11 * u64::from(entries) + 300, "{records} bytes");
        }
        // A hash table would take more than the keys.
        let encoding: String = bench.redis.object_encoding(&header).await.unwrap();
        assert!(["listpack", "ziplist"].contains(&&*encoding), "{encoding}");
        assert!(ends_of(&mut bench, &job).await.iter().all(|ttl| *ttl > 0));

        // A slice that is delivered once more.
        let again = claim(&store, job.slice(&id, entries), BOB, LEASE, &people).await;
        assert!(matches!(again, Claimed::SliceDone));
        assert!(ends_of(&mut bench, &job).await.iter().all(|ttl| *ttl > 0));
        let record = store.job(job.id()).await.unwrap().unwrap();
        assert_eq!(record.accounts.sent, u64::from(entries));
        assert!(!record.rebuilt);
    }
}

/// Each step that a completed small job can still meet finds its submissions.
#[tokio::test]
async fn a_completed_small_job_knows_its_submissions() {
    let Some(mut bench) = Bench::start().await else {
        return;
    };
    let store = bench.store.clone();
    let completed = async || {
        let job = Job::new(1);
        store.accept(&job.submission("one", 2)).await.unwrap();
        finish(&store, &job, "one", 2).await;
        job
    };
    let job = completed().await;
    assert!(knows(&store, &job, &["one"]).await);
    assert!(!knows(&store, &job, &["one", "two"]).await);
    let job = completed().await;
    let again = store.accept(&job.submission("one", 2)).await.unwrap();
    assert_eq!(again, Accepted::Settled);
    let job = completed().await;
    let progress = store.mark_expanded(job.id(), "one").await.unwrap();
    assert!(progress.completed);
    assert_eq!(store.job(job.id()).await.unwrap().unwrap().uncut, 0);

    // Extended, it is completed and folded once more.
    let job = completed().await;
    store.accept(&job.submission("two", 3)).await.unwrap();
    assert!(ends_of(&mut bench, &job).await.iter().all(|ttl| *ttl == -1));
    finish(&store, &job, "two", 3).await;
    assert_eq!(parts_of(&mut bench, &job).await, [""; 0]);
    assert!(knows(&store, &job, &["one", "two"]).await);
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!((record.accounts.sent, record.accounts.duplicate), (3, 2));
}

/// A cluster may break off the completion of a job while its slot moves. The next step goes on,
/// whether it is a repetition or another one.
#[tokio::test]
async fn a_completion_that_was_broken_off_loses_no_submission() {
    let Some(mut bench) = Bench::start().await else {
        return;
    };
    let store = bench.store.clone();
    for repeated in [true, false] {
        let job = Job::new(1);
        store.accept(&job.submission("one", 2)).await.unwrap();
        finish(&store, &job, "one", 2).await;
        // As it was before the last two steps of the script.
        let header = format!("{}:{{{}}}", bench.prefix, job.id());
        let () = bench.redis.hdel(&header, "completed_at_ms").await.unwrap();
        let () = bench.redis.hset(&header, "held", 1).await.unwrap();
        if repeated {
            assert!(store.complete(job.id()).await.unwrap());
        }
        let again = store.accept(&job.submission("one", 2)).await.unwrap();
        assert_eq!(again, Accepted::Settled);
        assert!(knows(&store, &job, &["one"]).await);
        let record = store.job(job.id()).await.unwrap().unwrap();
        assert_eq!((record.accounts.total, record.accounts.sent), (2, 2));
    }
}

// ---------------------------------------------------------------------------------------------
// A Redis that went back
// ---------------------------------------------------------------------------------------------

fn beat(number: u64) -> Beat {
    Beat {
        process: 7,
        number,
        works: true,
        calls: BTreeMap::new(),
        at_broker: Some(true),
        jobs: BTreeMap::new(),
        pending: BTreeMap::new(),
    }
}

/// If a heartbeat that was answered is missing, the ledger has lost data that it had accepted. Jobs
/// that ran at that time are marked; those completed before or accepted later are not.
#[tokio::test]
async fn a_ledger_that_went_back_is_noticed_and_marks_what_ran() {
    let Some(mut bench) = Bench::start().await else {
        return;
    };
    let (before, during) = (Job::new(1), Job::new(1));
    for job in [&before, &during] {
        bench.store.accept(&job.submission("s", 1)).await.unwrap();
    }
    let people = before.fingerprints(0..1);
    let id = SliceId::new("s", 0);
    let sent = all(&people, Outcome::Sent);
    settle(&bench.store, before.slice(&id, 1), ANN, &sent, true).await;
    bench.store.mark_expanded(before.id(), "s").await.unwrap();
    assert!(bench.store.complete(before.id()).await.unwrap());

    let mut number = 0;
    for _ in 0..3 {
        let beaten = bench.store.beat(&beat(number)).await.unwrap();
        assert!(!beaten.went_back && beaten.number > number);
        number = beaten.number;
    }
    // A lost answer, and a heartbeat that a frozen server handles late.
    let repeated = bench.store.beat(&beat(number - 1)).await.unwrap();
    assert!(!repeated.went_back && repeated.number > number);
    number = repeated.number;
    let older = format!("1 0 {}", serde_json::to_string(&beat(1)).unwrap());
    let _: () = redis::cmd("HSET")
        .arg(format!("{}:{{pulse}}:beats", bench.prefix))
        .arg(format!("{:016x}", 7))
        .arg(older)
        .query_async(&mut bench.redis)
        .await
        .unwrap();
    let beaten = bench.store.beat(&beat(number)).await.unwrap();
    assert!(beaten.went_back, "{beaten:?}");
    let beaten = bench.store.beat(&beat(beaten.number)).await.unwrap();
    assert!(!beaten.went_back, "reported only once");

    let mut after = Job::new(1);
    after.head.accepted_at_ms = u64::MAX / 2;
    bench.store.accept(&after.submission("s", 1)).await.unwrap();
    let marked = async |job: &Job| {
        let record = bench.store.job(job.id()).await.unwrap().unwrap();
        (record.went_back_at_ms.is_some(), record.unknown().len())
    };
    assert_eq!(marked(&before).await, (false, 0));
    assert_eq!(marked(&during).await, (true, 1));
    assert_eq!(marked(&after).await, (false, 0));
}

/// If no process remembers a heartbeat, a sequence number below the one kept outside the ledger
/// shows the same.
#[tokio::test]
async fn a_ledger_behind_the_number_that_the_broker_keeps_went_back() {
    let Some(mut bench) = Bench::start().await else {
        return;
    };
    let job = Job::new(1);
    bench.store.accept(&job.submission("s", 1)).await.unwrap();
    let first = bench.store.raise(0).await.unwrap();
    let second = bench.store.raise(first.number).await.unwrap();
    assert!(!first.went_back && !second.went_back);
    assert!(second.number > first.number);
    let known = bench.store.job(job.id()).await.unwrap().unwrap();
    assert_eq!(known.went_back_at_ms, None);

    let _: () = redis::cmd("SET")
        .arg(format!("{}:{{pulse}}:sequence", bench.prefix))
        .arg(first.number)
        .query_async(&mut bench.redis)
        .await
        .unwrap();
    let third = bench.store.raise(second.number).await.unwrap();
    assert!(third.went_back && third.number > second.number);
    let fourth = bench.store.raise(second.number).await.unwrap();
    assert!(!fourth.went_back, "reported only once");
    let known = bench.store.job(job.id()).await.unwrap().unwrap();
    assert!(known.went_back_at_ms.is_some());
}

/// A full server or a replica refuses heartbeats, although it answers reads.
#[tokio::test]
async fn a_heartbeat_is_refused_where_a_claim_would_be() {
    if url().is_none() {
        return;
    }
    let server = Server::start(&[]).await;
    let mut bench = Bench::at(&server.url()).await;
    bench.store.beat(&beat(0)).await.unwrap();
    let mut tell = async |command: &str, arguments: &[&str]| {
        let _: () = redis::cmd(command)
            .arg(arguments)
            .query_async(&mut bench.redis)
            .await
            .unwrap();
    };
    tell("CONFIG", &["SET", "maxmemory", "1mb"]).await;
    let error = bench.store.beat(&beat(1)).await.unwrap_err();
    assert!(matches!(error, LedgerError::Full(_)), "{error:?}");
    assert_eq!(bench.store.job(Job::new(1).id()).await.unwrap(), None);
    tell("CONFIG", &["SET", "maxmemory", "0"]).await;
    tell("REPLICAOF", &["127.0.0.1", "1"]).await;
    let error = bench.store.beat(&beat(1)).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unreachable(_)), "{error:?}");
    let text = fanwise::error::chain(&error);
    assert!(text.contains("read-only replica"), "{text}");
    tell("REPLICAOF", &["NO", "ONE"]).await;
    bench.store.beat(&beat(1)).await.unwrap();
}

/// What is known of the open jobs of a lane serves for 100 ms, once there are more of them than
/// sub-lanes.
#[tokio::test]
async fn the_open_jobs_of_a_lane_are_not_read_for_each_job() {
    const JOBS: u64 = 60;
    if url().is_none() {
        return;
    }
    let server = Server::start(&[]).await;
    let mut bench = Bench::at(&server.url()).await;
    let jobs: Vec<_> = (0..JOBS).map(|_| Job::new(3)).collect();
    for job in &jobs {
        bench.store.accept(&job.submission("s", 500)).await.unwrap();
    }
    let _: () = redis::cmd("CONFIG")
        .arg("RESETSTAT")
        .query_async(&mut bench.redis)
        .await
        .unwrap();
    let began = Instant::now();
    for job in &jobs {
        let unassigned = Unassigned {
            job: job.id(),
            app: &job.head.app,
            target: &job.head.target,
            priority: job.head.priority,
            recipients: 500,
        };
        bench.store.assign(&unassigned).await.unwrap();
    }
    let readings = began.elapsed().as_millis() as u64 / 100 + 1;
    let stats: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(&mut bench.redis)
        .await
        .unwrap();
    let read = stats
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_hmget:calls="))
        .and_then(|rest| rest.split(',').next()?.parse::<u64>().ok());
    let each_time = u64::from(SUB_LANES) * (u64::from(SUB_LANES) + 1) / 2;
    let most = each_time + readings * JOBS;
    assert!(read.is_some_and(|read| read <= most), "{read:?} of {most}");
}

/// An error about a server contains the address, the cause and the remedy, without a password.
#[tokio::test]
async fn a_server_that_cannot_be_used_says_why_and_what_to_do() {
    if url().is_none() {
        return;
    }
    let server = Server::start(&[]).await;
    let mut bench = Bench::at(&server.url()).await;
    let _: () = redis::cmd("CONFIG")
        .arg(&["SET", "requirepass", "right"])
        .query_async(&mut bench.redis)
        .await
        .unwrap();
    let address = server
        .url()
        .trim_start_matches("redis://")
        .trim_end_matches('/')
        .to_owned();
    let check = async |url: String| {
        let store = Store::open(&Settings::new(url)).unwrap();
        fanwise::error::chain(&store.check().await.unwrap_err())
    };
    for (url, said) in [
        (format!("redis://:wr0ng@{address}/0"), "user and password"),
        (format!("redis://{address}/0"), "user and password"),
        (
            format!("redis://:right@{address}/99"),
            "number of the database",
        ),
        (
            "redis://:wr0ng@127.0.0.1:1/0".to_owned(),
            "whether Redis runs there",
        ),
        (
            "redis://no-such-host.invalid:6379/0".to_owned(),
            "Check the host in ledger.url",
        ),
        // Another server has this port.
        (
            format!("redis://:wr0ng@{}/0", other_server().await),
            "whether Redis runs there",
        ),
    ] {
        let text = check(url.clone()).await;
        assert!(text.contains(said), "{url}: {text}");
        let host = url.rsplit(['@', '/']).nth(1).unwrap();
        assert!(text.contains(host), "{url}: {text}");
        assert!(!text.contains("wr0ng") && !text.contains("right"), "{text}");
    }
    let node = Server::start(&["--cluster-enabled", "yes"]).await;
    let store = Store::open(&Settings::new(node.url())).unwrap();
    let error = store.check().await.unwrap_err();
    assert!(matches!(error, CheckError::ClusterNode { .. }), "{error:?}");
    assert!(error.is_unfit());
}

// ---------------------------------------------------------------------------------------------
// A Redis that lost everything
// ---------------------------------------------------------------------------------------------

/// Slices of a job that the ledger does not know rebuild it: all remaining recipients get the
/// message once, the job finishes, and reports that its accounts begin in the middle.
#[tokio::test]
async fn a_lost_redis_loses_the_dedup_window_never_recipients() {
    let Some(mut bench) = Bench::start().await else {
        return;
    };
    let job = Job::new(3);
    let people = job.fingerprints(0..30);
    bench.store.accept(&job.submission("s", 30)).await.unwrap();
    bench.store.mark_expanded(job.id(), "s").await.unwrap();
    let ids: Vec<_> = (0..3).map(|index| SliceId::new("s", index)).collect();
    let slices: Vec<_> = ids.iter().map(|id| job.slice(id, 10)).collect();
    let (gone, rest) = people.split_at(10);
    settle(
        &bench.store,
        slices[0],
        ANN,
        &all(gone, Outcome::Sent),
        true,
    )
    .await;
    claim(&bench.store, slices[1], ANN, LEASE, &rest[..10]).await;

    bench.lose_everything().await;
    let standing = settle(
        &bench.store,
        slices[1],
        ANN,
        &all(&rest[..10], Outcome::Sent),
        true,
    )
    .await;
    assert_eq!(
        standing.accounts,
        Accounts {
            total: 10,
            sent: 10,
            ..Accounts::default()
        }
    );
    assert!(standing.finished, "no other recipient is known yet");
    assert!(bench.store.complete(job.id()).await.unwrap());

    let states = each(claim(&bench.store, slices[2], BOB, LEASE, &rest[10..]).await);
    assert_eq!(states, vec![ClaimState::Granted; 10]);
    let record = bench.store.job(job.id()).await.unwrap().unwrap();
    assert!(record.rebuilt);
    assert_eq!((record.state, record.pending), (JobState::Running, 10));
    assert_eq!(record.client_msg_no, job.head.client_msg_no);
    assert_eq!(newest(&bench.store, 9).await, [record]);
    let standing = settle(
        &bench.store,
        slices[2],
        BOB,
        &all(&rest[10..], Outcome::Sent),
        true,
    )
    .await;
    assert!(standing.finished);
    assert!(bench.store.complete(job.id()).await.unwrap());
}

// ---------------------------------------------------------------------------------------------
// The limiter
// ---------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
struct Asked {
    rate: Rate,
    /// The TAT at the time of the request, in µs from now.
    ahead_us: i64,
    units: u32,
    wait_max: Duration,
}

fn asked() -> impl Strategy<Value = Asked> {
    let period = prop::sample::select(vec![1, 60, 3600]);
    let rate = (1u32..20_000, period, 1u32..500).prop_map(|(units, period, burst)| Rate {
        units,
        period: Duration::from_secs(period),
        burst,
        cost: None,
    });
    let ahead_us = prop_oneof![-1_000_000..10_000_000i64, -1_000_000..90_000_000i64];
    (rate, ahead_us, 1u32..400, 0u64..3000).prop_map(|(rate, ahead_us, units, wait_ms)| Asked {
        rate,
        ahead_us,
        units,
        wait_max: Duration::from_millis(wait_ms),
    })
}

/// The script equals `Tat`, bit by bit: a limiter is set to any state, both get the same request at
/// the same time of the server's clock, and grant, wait and new state are compared.
#[test]
fn the_lease_script_is_the_arithmetic_of_the_domain() {
    let Some(url) = url() else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let bench = runtime.block_on(Bench::at(&url));
    let config = Config {
        cases: 600,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&asked(), |asked| {
            runtime.block_on(compare(&bench, &asked));
            Ok(())
        })
        .unwrap();
}

async fn compare(bench: &Bench, asked: &Asked) {
    let script = redis::Script::new(include_str!("../../src/store/scripts/lease.lua"));
    let redis = &mut bench.redis.clone();
    let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(redis).await.unwrap();
    let server_us = (seconds * 1_000_000 + micros) as i64;
    let key = format!("{}:{{limits}}:one", bench.prefix);
    let mut tat = Tat((server_us + asked.ahead_us) as f64);
    let _: () = redis::cmd("SET")
        .arg(&key)
        .arg(tat.0.to_string())
        .query_async(redis)
        .await
        .unwrap();
    let mut call = script.key(&key);
    call.arg(asked.units)
        .arg(asked.wait_max.as_micros() as u64)
        .arg(asked.rate.interval_us())
        .arg(asked.rate.burst)
        .arg(Weight::ONE.further_ahead_us(&asked.rate));
    let (units, after, now): (u64, u64, u64) = call.invoke_async(redis).await.unwrap();
    let after = Duration::from_micros(after);
    let grant = match units as u32 {
        0 => Grant::Later { after },
        units => Grant::Units { units, after },
    };
    assert_eq!(
        grant,
        tat.lease(&asked.rate, now, asked.units, asked.wait_max)
    );
    let stored: f64 = redis::cmd("GET").arg(key).query_async(redis).await.unwrap();
    assert_eq!(stored.to_bits(), tat.0.to_bits(), "{stored} and {}", tat.0);
}

fn park(in_ms: u64) -> Park {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Park {
        since_ms: now.as_millis() as u64,
        until_ms: now.as_millis() as u64 + in_ms,
        reason: ParkReason::Throttled,
        code: "416".to_owned(),
        text: "blocked by the vendor".to_owned(),
    }
}

// ---------------------------------------------------------------------------------------------
// Servers in trouble
// ---------------------------------------------------------------------------------------------

/// A Redis of the test's own, which the test may damage.
struct Server {
    child: Child,
    port: u16,
    dir: PathBuf,
}

impl Server {
    async fn start(options: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let dir = std::env::temp_dir().join(format!("fanwise-redis-{port}"));
        std::fs::create_dir_all(&dir).unwrap();
        let mut server = Self {
            child: Self::spawn(port, &dir, options),
            port,
            dir,
        };
        server.ready().await;
        server
    }

    fn spawn(port: u16, dir: &PathBuf, options: &[&str]) -> Child {
        Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--dir"])
            .arg(dir)
            .args(options)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is needed for these tests")
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    async fn ready(&mut self) {
        let client = redis::Client::open(self.url()).unwrap();
        until("the server answers", async || {
            match client.get_multiplexed_async_connection().await {
                Ok(mut redis) => redis::cmd("PING")
                    .query_async::<String>(&mut redis)
                    .await
                    .is_ok(),
                Err(_) => false,
            }
        })
        .await;
    }

    /// Starts it again after `kill`, on the same port and directory.
    async fn restart(&mut self, options: &[&str]) {
        self.child = Self::spawn(self.port, &self.dir, options);
        self.ready().await;
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Longer than any deadline of the store.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until a condition holds, ten seconds at most.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < Duration::from_secs(10), "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// After a crash with an append-only file the accounts are unchanged, and the scripts, which the
/// new server does not know, are loaded again. While the server is away, no caller hangs.
#[tokio::test]
async fn a_server_that_crashes_comes_back_with_its_accounts() {
    if url().is_none() {
        return;
    }
    let options = ["--appendonly", "yes"];
    let mut server = Server::start(&options).await;
    let bench = Bench::at(&server.url()).await;
    let (store, job) = (&bench.store, Job::new(3));
    let people = job.fingerprints(0..30);
    store.accept(&job.submission("s", 30)).await.unwrap();
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 30);
    settle(store, slice, ANN, &all(&people[..9], Outcome::Sent), false).await;
    claim(store, slice, ANN, LEASE, &people).await;

    server.kill();
    let answer = timeout(PATIENCE, store.job(job.id())).await.unwrap();
    let error = answer.unwrap_err();
    assert!(matches!(error, LedgerError::Unreachable(_)), "{error:?}");

    server.restart(&options).await;
    until("the store finds the server again", async || {
        store.job(job.id()).await.is_ok()
    })
    .await;
    let states = each(claim(store, slice, BOB, LEASE, &people).await);
    assert_eq!(states[..9], [ClaimState::Settled(Outcome::Sent); 9]);
    assert!(matches!(states[9], ClaimState::Held { .. }));
    let standing = settle(store, slice, ANN, &all(&people, Outcome::Sent), true).await;
    assert_eq!(standing.accounts.sent, 30);
}

/// A server that hangs costs each caller its deadline and no more, and is used again afterwards.
#[tokio::test]
async fn a_server_that_hangs_does_not_hang_its_callers() {
    if url().is_none() {
        return;
    }
    let server = Server::start(&[]).await;
    let bench = Bench::at(&server.url()).await;
    let id = Job::new(1).id();
    assert_eq!(bench.store.job(id).await.unwrap(), None);
    server.signal("-STOP");
    for _ in 0..2 {
        let answer = timeout(PATIENCE, bench.store.job(id)).await.unwrap();
        let error = answer.unwrap_err();
        assert!(matches!(error, LedgerError::Unreachable(_)), "{error:?}");
    }
    server.signal("-CONT");
    until("the store answers again", async || {
        bench.store.job(id).await.is_ok()
    })
    .await;
}

/// A server that was frozen finds claims whose callers have given up. It must not carry them out:
/// no worker could send to their recipients, which would end in doubt (promise 4).
#[tokio::test]
async fn a_claim_that_comes_late_is_not_carried_out() {
    if url().is_none() {
        return;
    }
    let server = Server::start(&[]).await;
    let bench = Bench::at(&server.url()).await;
    let job = Job::new(3);
    let people = job.fingerprints(0..20);
    bench.store.accept(&job.submission("s", 20)).await.unwrap();
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 20);
    claim(&bench.store, slice, ANN, LEASE, &people[..10]).await;
    server.signal("-STOP");
    let late = Claim {
        slice,
        owner: ANN,
        lease: LEASE,
        recipients: &people[10..],
    };
    let error = bench.store.claim(late).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unreachable(_)), "{error:?}");
    server.signal("-CONT");
    until("the store answers again", async || {
        bench.store.job(job.id()).await.is_ok()
    })
    .await;
    let states = each(claim(&bench.store, slice, BOB, LEASE, &people).await);
    let held = |state: &ClaimState| matches!(state, ClaimState::Held { .. });
    assert!(states[..10].iter().all(held), "{states:?}");
    assert_eq!(states[10..], [ClaimState::Granted; 10]);
}

/// A full server grants no further claims (promise 6), and still records outcomes.
#[tokio::test]
async fn a_full_server_refuses_claims_and_takes_outcomes() {
    if url().is_none() {
        return;
    }
    let server = Server::start(&[]).await;
    let mut bench = Bench::at(&server.url()).await;
    let job = Job::new(3);
    let people = job.fingerprints(0..20);
    bench.store.accept(&job.submission("s", 20)).await.unwrap();
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 20);
    claim(&bench.store, slice, ANN, LEASE, &people[..10]).await;
    let _: () = redis::cmd("CONFIG")
        .arg(&["SET", "maxmemory", "1mb"])
        .query_async(&mut bench.redis)
        .await
        .unwrap();

    let more = Claim {
        slice,
        owner: ANN,
        lease: LEASE,
        recipients: &people[10..],
    };
    let error = bench.store.claim(more).await.unwrap_err();
    assert!(matches!(error, LedgerError::Full(_)), "{error:?}");
    let error = bench
        .store
        .accept(&job.submission("t", 1))
        .await
        .unwrap_err();
    assert!(matches!(error, LedgerError::Full(_)), "{error:?}");
    let sent = all(&people[..10], Outcome::Sent);
    let standing = settle(&bench.store, slice, ANN, &sent, false).await;
    assert_eq!((standing.accounts.total, standing.accounts.sent), (20, 10));
}

/// A primary that becomes a replica refuses writes. When it is a primary again, or another server
/// answers at its address, work continues by itself.
#[tokio::test]
async fn a_demoted_server_is_left_and_found_again() {
    if url().is_none() {
        return;
    }
    let server = Server::start(&[]).await;
    let mut bench = Bench::at(&server.url()).await;
    let job = Job::new(1);
    bench.store.check().await.unwrap();
    let mut replicate = async |of: [&str; 2]| {
        let _: () = redis::cmd("REPLICAOF")
            .arg(&of)
            .query_async(&mut bench.redis)
            .await
            .unwrap();
    };
    replicate(["127.0.0.1", "1"]).await;
    let error = bench
        .store
        .accept(&job.submission("s", 1))
        .await
        .unwrap_err();
    assert!(matches!(error, LedgerError::Unreachable(_)), "{error:?}");
    let error = bench.store.check().await.unwrap_err();
    assert!(matches!(error, CheckError::Replica { .. }), "{error:?}");
    let primary = "Set ledger.url = \"redis://127.0.0.1:1\"";
    assert!(error.to_string().contains(primary), "{error}");
    replicate(["NO", "ONE"]).await;
    bench.store.accept(&job.submission("s", 1)).await.unwrap();
}

/// The check at the start reports its findings, and the remedy for a server that would evict the
/// ledger.
#[tokio::test]
async fn a_server_that_evicts_is_refused() {
    if url().is_none() {
        return;
    }
    let server = Server::start(&["--appendonly", "yes", "--maxmemory", "64mb"]).await;
    let mut bench = Bench::at(&server.url()).await;
    let report = bench.store.check().await.unwrap();
    assert_eq!(report.kind, Kind::One);
    let [found] = &report.servers[..] else {
        panic!("{report:?}");
    };
    assert_eq!(found.policy, "noeviction");
    assert_eq!(found.maxmemory, Some(64 << 20));
    assert!(found.used_memory > 0);
    assert!(found.clock_ahead_ms.abs() < 1000, "{found:?}");
    let fsync = Some("everysec".to_owned());
    assert_eq!(found.persistence, Persistence::AppendOnly { fsync });

    let _: () = redis::cmd("CONFIG")
        .arg(&["SET", "maxmemory-policy", "allkeys-lru"])
        .query_async(&mut bench.redis)
        .await
        .unwrap();
    let error = bench.store.check().await.unwrap_err();
    assert!(matches!(error, CheckError::Evicts { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("allkeys-lru"), "{text}");
    assert!(
        text.contains("CONFIG SET maxmemory-policy noeviction"),
        "{text}"
    );
    // If CONFIG is forbidden, INFO is used.
    let _: () = redis::cmd("ACL")
        .arg(&["SETUSER", "default", "-config"])
        .query_async(&mut bench.redis)
        .await
        .unwrap();
    let error = bench.store.check().await.unwrap_err();
    assert!(matches!(error, CheckError::Evicts { .. }), "{error:?}");
}
