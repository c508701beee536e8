//! The ledger and the limiter on a real Redis: `FANWISE_TEST_REDIS_URL` says where. Each test has its
//! own key prefix; those that disturb the server start one of their own.

use std::collections::{BTreeMap, HashMap};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fanwise::domain::accounts::{Accounts, Audit};
use fanwise::domain::ids::{Fingerprint, Fingerprinter, JobId, Owner, SliceId};
use fanwise::domain::lane::Priority;
use fanwise::domain::limits::{Cost, Grant, Rate, Tat};
use fanwise::domain::message::{Content, Options};
use fanwise::domain::outcome::Outcome;
use fanwise::domain::slice::{Addressed, Head, Shape};
use fanwise::ports::{
    Accepted, Claim, ClaimState, Claimed, JobQuery, JobRecord, JobState, Lease, Ledger,
    LedgerError, Limit, Limiter, Park, ParkReason, Scope, Settle, SliceRef, Standing, Submission,
};
use fanwise::store::{CheckError, Persistence, Settings, Store};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use redis::aio::MultiplexedConnection;

const LEASE: Duration = Duration::from_secs(60);
const ANN: Owner = Owner(0xa);
const BOB: Owner = Owner(0xb);

/// The server to test on, or nothing to test.
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

    /// What a Redis that comes back empty has of this test.
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

/// One job with what is needed to call the ledger about it.
struct Job {
    head: Head,
    shape: Shape,
}

impl Job {
    fn new(buckets: u32) -> Self {
        let client_msg_no = format!("promo-{:016x}", fastrand::u64(..));
        let head = Head {
            id: JobId::of("shop", &client_msg_no),
            app: "shop".to_owned(),
            client_msg_no,
            target: "im".to_owned(),
            priority: Priority::Normal,
            sender: None,
            addressed: Addressed::Users,
            native: None,
            vars: None,
            content: Content::Text("hello".to_owned()),
            options: Options::default(),
            accepted_at_ms: 1_700_000_000_000,
            not_before_ms: None,
            expires_at_ms: None,
            rate: None,
            on_uncertain: None,
            callback_url: None,
            reply_to: None,
        };
        let shape = Shape { buckets };
        Self { head, shape }
    }

    fn id(&self) -> JobId {
        self.head.id
    }

    fn submission(&self, name: &str, entries: u64) -> Submission {
        Submission {
            job: self.id(),
            app: self.head.app.clone(),
            client_msg_no: self.head.client_msg_no.clone(),
            target: self.head.target.clone(),
            content_digest: "d".to_owned(),
            submission: name.to_owned(),
            entries,
            parts: 1,
            shape: self.shape,
            rate: None,
            not_before_ms: None,
            callback_url: None,
            reply_to: None,
            now_ms: self.head.accepted_at_ms,
            warnings: Vec::new(),
            template: None,
        }
    }

    fn slice<'a>(&'a self, id: &'a SliceId, entries: u32) -> SliceRef<'a> {
        SliceRef {
            head: &self.head,
            id,
            entries,
            shape: self.shape,
        }
    }

    fn fingerprints(&self, numbers: impl IntoIterator<Item = u32>) -> Vec<Fingerprint> {
        let fingerprinter = Fingerprinter::new("secret", self.id());
        numbers
            .into_iter()
            .map(|number| fingerprinter.fingerprint(&format!("user-{number}")))
            .collect()
    }
}

async fn newest(store: &Store, most: usize) -> Vec<JobRecord> {
    let query = JobQuery {
        most,
        ..JobQuery::default()
    };
    store.jobs(&query).await.unwrap().jobs
}

async fn claim(
    store: &Store,
    slice: SliceRef<'_>,
    owner: Owner,
    lease: Duration,
    recipients: &[Fingerprint],
) -> Claimed {
    let claim = Claim {
        slice,
        owner,
        lease,
        recipients,
    };
    store.claim(claim).await.unwrap()
}

fn each(claimed: Claimed) -> Vec<ClaimState> {
    match claimed {
        Claimed::Each(states) => states,
        Claimed::SliceDone => panic!("the slice is done"),
    }
}

async fn settle(
    store: &Store,
    slice: SliceRef<'_>,
    owner: Owner,
    outcomes: &[(Fingerprint, Outcome)],
    last: bool,
) -> Standing {
    let settle = Settle {
        slice,
        owner,
        outcomes,
        release: &[],
        last,
    };
    store.settle(settle).await.unwrap()
}

fn all(recipients: &[Fingerprint], outcome: Outcome) -> Vec<(Fingerprint, Outcome)> {
    recipients.iter().map(|at| (*at, outcome)).collect()
}

// ---------------------------------------------------------------------------------------------
// Claims and outcomes
// ---------------------------------------------------------------------------------------------

/// A recipient belongs to one owner at a time, and its first outcome is its last: two owners ask for
/// the same people.
#[tokio::test]
async fn a_recipient_has_one_owner_and_one_outcome() {
    let Some(bench) = Bench::start().await else {
        return;
    };
    let (store, job) = (&bench.store, Job::new(4));
    let people = job.fingerprints(0..40);
    store.accept(&job.submission("s", 40)).await.unwrap();
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 40);

    let granted = vec![ClaimState::Granted; 40];
    assert_eq!(
        each(claim(store, slice, ANN, LEASE, &people).await),
        granted
    );
    assert_eq!(
        each(claim(store, slice, ANN, LEASE, &people).await),
        granted,
        "an answer that got lost is asked for again"
    );
    for state in each(claim(store, slice, BOB, LEASE, &people).await) {
        let ClaimState::Held { left } = state else {
            panic!("{state:?}");
        };
        assert!(left <= LEASE && left > LEASE / 2, "{left:?}");
    }

    let standing = settle(store, slice, ANN, &[(people[7], Outcome::Failed)], false).await;
    assert_eq!(standing.accounts.failed, 1);
    let standing = settle(store, slice, BOB, &[(people[7], Outcome::Sent)], false).await;
    assert_eq!((standing.accounts.failed, standing.accounts.sent), (1, 0));
    let states = each(claim(store, slice, BOB, LEASE, &people).await);
    assert_eq!(states[7], ClaimState::Settled(Outcome::Failed));
    assert!(matches!(states[8], ClaimState::Held { .. }));

    let release = Settle {
        slice,
        owner: BOB,
        outcomes: &[],
        release: &people,
        last: false,
    };
    store.settle(release).await.unwrap();
    let states = each(claim(store, slice, BOB, LEASE, &people[..7]).await);
    assert!(
        matches!(states[0], ClaimState::Held { .. }),
        "nobody releases the claims of others"
    );
    store
        .settle(Settle {
            owner: ANN,
            ..release
        })
        .await
        .unwrap();
    let states = each(claim(store, slice, BOB, LEASE, &people[..7]).await);
    assert_eq!(states, vec![ClaimState::Granted; 7]);
}

/// Who dies with claims in hand loses them when the lease ends, and whoever takes over is told; a late
/// outcome of the first owner still counts.
#[tokio::test]
async fn an_expired_claim_is_taken_over_and_a_late_outcome_still_counts() {
    let Some(bench) = Bench::start().await else {
        return;
    };
    let (store, job) = (&bench.store, Job::new(2));
    let people = job.fingerprints(0..3);
    store.accept(&job.submission("s", 3)).await.unwrap();
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 3);
    let short = Duration::from_millis(60);
    claim(store, slice, ANN, short, &people).await;
    assert!(
        store
            .renew(slice, ANN, Duration::from_millis(80), &people)
            .await
            .unwrap()
    );

    let waited = Instant::now();
    loop {
        let states = each(claim(store, slice, BOB, LEASE, &people).await);
        if states == vec![ClaimState::TakenOver; 3] {
            break;
        }
        assert!(waited.elapsed() < Duration::from_secs(5), "{states:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(waited.elapsed() >= Duration::from_millis(70));
    assert!(!store.renew(slice, ANN, LEASE, &people).await.unwrap());
    assert!(store.renew(slice, BOB, LEASE, &people).await.unwrap());

    let standing = settle(store, slice, ANN, &[(people[0], Outcome::Sent)], false).await;
    assert_eq!(standing.accounts.sent, 1);
    assert!(!store.renew(slice, BOB, LEASE, &people).await.unwrap());
    let standing = settle(store, slice, BOB, &all(&people, Outcome::Failed), true).await;
    assert_eq!((standing.accounts.sent, standing.accounts.failed), (1, 2));
}

/// The entries of a slice that were no recipients of their own are duplicates once it ends; ending it
/// twice, or delivering it again, changes nothing.
#[tokio::test]
async fn a_slice_ends_once() {
    let Some(bench) = Bench::start().await else {
        return;
    };
    let (store, job) = (&bench.store, Job::new(3));
    let people = job.fingerprints(0..10);
    store.accept(&job.submission("s", 24)).await.unwrap();
    let (one, two) = (SliceId::new("s", 0), SliceId::new("s", 1));
    let (one, two) = (job.slice(&one, 12), job.slice(&two, 12));

    for _ in 0..2 {
        let standing = settle(store, one, ANN, &all(&people, Outcome::Sent), true).await;
        assert_eq!(
            standing.accounts,
            Accounts {
                total: 24,
                sent: 10,
                duplicate: 2,
                ..Accounts::default()
            }
        );
    }
    assert_eq!(
        claim(store, one, BOB, LEASE, &people).await,
        Claimed::SliceDone
    );
    let states = each(claim(store, two, BOB, LEASE, &people).await);
    assert_eq!(states, vec![ClaimState::Settled(Outcome::Sent); 10]);

    let standing = settle(store, two, BOB, &[], true).await;
    assert_eq!(standing.accounts.duplicate, 14);
    assert!(!standing.finished, "the submission is not expanded");
    assert!(store.expanded(job.id(), "s").await.unwrap().finished);
}

/// The recipients of a window may come in any order, be many, and share a fingerprint.
#[tokio::test]
async fn windows_may_be_unsorted_and_large() {
    let Some(bench) = Bench::start().await else {
        return;
    };
    let (store, job) = (&bench.store, Job::new(1));
    let people = job.fingerprints(0..9000);
    store.accept(&job.submission("s", 9000)).await.unwrap();
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 9000);
    claim(store, slice, ANN, LEASE, &people[..4000]).await;
    settle(store, slice, ANN, &[(people[17], Outcome::Expired)], false).await;
    let same = [people[5], people[17], people[5], people[17]];
    let states = each(claim(store, slice, ANN, LEASE, &same).await);
    let sent = ClaimState::Settled(Outcome::Expired);
    assert_eq!(
        states,
        [ClaimState::Granted, sent, ClaimState::Granted, sent]
    );
    let states = each(claim(store, slice, BOB, LEASE, &people).await);
    for (at, state) in states.iter().enumerate() {
        match at {
            17 => assert_eq!(*state, ClaimState::Settled(Outcome::Expired)),
            0..4000 => assert!(matches!(state, ClaimState::Held { .. })),
            _ => assert_eq!(*state, ClaimState::Granted),
        }
    }
    let standing = settle(store, slice, BOB, &all(&people, Outcome::Sent), true).await;
    assert_eq!(
        (standing.accounts.sent, standing.accounts.expired),
        (8999, 1)
    );
}

/// A recipient whose fingerprint happens to stand across the records of others is not taken for one
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
    // The seven last bytes of the first and the code of its outcome.
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

/// The life of a job: submitted, submitted again, extended, in conflict, completed, reopened.
#[tokio::test]
async fn a_job_is_accepted_extended_and_completed_once() {
    let Some(bench) = Bench::start().await else {
        return;
    };
    let (store, job) = (&bench.store, Job::new(5));
    let shape = job.shape;
    let first = job.submission("one", 2);
    let people = job.fingerprints(0..3);
    assert_eq!(store.job(job.id()).await.unwrap(), None);
    assert!(!store.complete(job.id()).await.unwrap());
    assert_eq!(
        store.expanded(job.id(), "one").await.unwrap(),
        Standing::default()
    );

    assert_eq!(
        store.accept(&first).await.unwrap(),
        Accepted::Expand {
            shape,
            first: true,
            template: None
        }
    );
    assert_eq!(
        store.accept(&first).await.unwrap(),
        Accepted::Again {
            shape,
            template: None
        }
    );
    let other = Submission {
        content_digest: "other".to_owned(),
        ..first.clone()
    };
    assert_eq!(
        store.accept(&other).await.unwrap(),
        Accepted::Conflict { job: job.id() }
    );

    for _ in 0..2 {
        let standing = store.expanded(job.id(), "one").await.unwrap();
        assert_eq!((standing.accounts.total, standing.finished), (2, false));
    }
    let id = SliceId::new("one", 0);
    let standing = settle(
        store,
        job.slice(&id, 2),
        ANN,
        &all(&people[..2], Outcome::Sent),
        true,
    )
    .await;
    assert!(standing.finished && !standing.completed);
    assert!(store.complete(job.id()).await.unwrap());
    assert!(!store.complete(job.id()).await.unwrap());
    assert_eq!(store.accept(&first).await.unwrap(), Accepted::Settled);
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!(record.state, JobState::Completed);
    assert_eq!((record.pending, record.rebuilt), (0, false));
    assert!(record.completed_at_ms >= record.progress_at_ms);

    // Further recipients, from somebody who would have chosen another shape, if not by far.
    let second = Submission {
        shape: Shape {
            buckets: 7 * shape.buckets,
        },
        ..job.submission("two", 3)
    };
    assert_eq!(
        store.accept(&second).await.unwrap(),
        Accepted::Expand {
            shape,
            first: false,
            template: None
        }
    );
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!(record.state, JobState::Running);
    assert_eq!((record.submissions, record.pending), (2, 3));
    assert!(!store.complete(job.id()).await.unwrap());
    let id = SliceId::new("two", 0);
    settle(
        store,
        job.slice(&id, 3),
        ANN,
        &all(&people, Outcome::Sent),
        true,
    )
    .await;
    assert!(!store.complete(job.id()).await.unwrap());
    assert!(store.expanded(job.id(), "two").await.unwrap().finished);
    assert!(store.complete(job.id()).await.unwrap());
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!(
        (record.accounts.sent, record.accounts.duplicate),
        (3, 2),
        "{record:?}"
    );
}

/// A test message to a few, then the same job to a million: the few find their place in the larger
/// job, and who holds claims and slices of the old shape notices nothing.
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
            template: None
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

/// A job that is announced in parts is not finished before the last of them.
#[tokio::test]
async fn a_job_of_parts_waits_for_all_of_them() {
    let Some(bench) = Bench::start().await else {
        return;
    };
    let (store, job) = (&bench.store, Job::new(5));
    let people = job.fingerprints(0..2);
    for (number, name) in ["one", "two"].into_iter().enumerate() {
        let part = Submission {
            parts: 2,
            ..job.submission(name, 1)
        };
        store.accept(&part).await.unwrap();
        let id = SliceId::new(name, 0);
        let sent = [(people[number], Outcome::Sent)];
        settle(store, job.slice(&id, 1), ANN, &sent, true).await;
        let standing = store.expanded(job.id(), name).await.unwrap();
        assert_eq!(standing.finished, number == 1);
    }
}

/// Jobs are listed newest first, and one that nobody remembers is no error.
#[tokio::test]
async fn jobs_are_listed_newest_first() {
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

/// Whatever is written expires: no key is left behind for good.
#[tokio::test]
async fn every_key_expires() {
    let Some(mut bench) = Bench::start().await else {
        return;
    };
    let job = Job::new(6);
    let people = job.fingerprints(0..60);
    bench.store.accept(&job.submission("s", 60)).await.unwrap();
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 60);
    claim(&bench.store, slice, ANN, LEASE, &people[..30]).await;
    settle(&bench.store, slice, ANN, &all(&people, Outcome::Sent), true).await;
    bench.store.expanded(job.id(), "s").await.unwrap();
    bench.store.complete(job.id()).await.unwrap();
    let lost = Job::new(1);
    let id = SliceId::new("s", 0);
    settle(&bench.store, lost.slice(&id, 9), ANN, &[], false).await;
    let limit = limit("10/s", Cost::PerRecipient);
    lease(&bench.store, &[limit], 3, 1, Duration::ZERO).await;
    bench.store.refund(&[limit], 1, 1).await.unwrap();
    bench.store.park("im", &park(3_600_000)).await.unwrap();

    let keys = bench.keys().await;
    assert!(keys.len() >= 6 + 3 + 3 + 3, "{keys:?}");
    for key in keys {
        let ttl: i64 = redis::cmd("TTL")
            .arg(&key)
            .query_async(&mut bench.redis)
            .await
            .unwrap();
        assert!(ttl >= 0, "{key}: {ttl}");
    }
}

// ---------------------------------------------------------------------------------------------
// A Redis that lost everything
// ---------------------------------------------------------------------------------------------

/// Slices of a job the ledger knows nothing of rebuild it: everybody left is sent to once, the job
/// finishes, and says that its accounts begin in the middle.
#[tokio::test]
async fn a_lost_redis_loses_the_dedup_window_never_recipients() {
    let Some(mut bench) = Bench::start().await else {
        return;
    };
    let job = Job::new(3);
    let people = job.fingerprints(0..30);
    bench.store.accept(&job.submission("s", 30)).await.unwrap();
    bench.store.expanded(job.id(), "s").await.unwrap();
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
    assert!(standing.finished, "nobody else is heard of yet");
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

/// The intake that expands a submission again after the loss meets the slices that came before it:
/// nobody is counted twice.
#[tokio::test]
async fn a_submission_accepted_after_the_loss_counts_once() {
    let Some(mut bench) = Bench::start().await else {
        return;
    };
    let job = Job::new(3);
    let people = job.fingerprints(0..20);
    bench.store.accept(&job.submission("s", 20)).await.unwrap();
    bench.lose_everything().await;

    let (one, two) = (SliceId::new("s", 0), SliceId::new("s", 1));
    let (one, two) = (job.slice(&one, 10), job.slice(&two, 10));
    claim(&bench.store, one, ANN, LEASE, &people[..10]).await;
    assert_eq!(
        bench.store.accept(&job.submission("s", 20)).await.unwrap(),
        Accepted::Again {
            shape: job.shape,
            template: None
        }
    );
    let standing = settle(
        &bench.store,
        one,
        ANN,
        &all(&people[..10], Outcome::Sent),
        true,
    )
    .await;
    assert_eq!(standing.accounts.total, 20);
    assert!(!standing.finished);
    settle(
        &bench.store,
        two,
        ANN,
        &all(&people[10..], Outcome::Sent),
        true,
    )
    .await;
    let standing = bench.store.expanded(job.id(), "s").await.unwrap();
    assert_eq!((standing.accounts.sent, standing.finished), (20, true));
}

/// After the loss another submission came first and chose another shape: slices cut in the old one
/// are looked up where the new ones are, so nobody falls between the two.
#[tokio::test]
async fn slices_of_another_shape_find_the_same_recipients() {
    let Some(bench) = Bench::start().await else {
        return;
    };
    let mut job = Job::new(3);
    let people = job.fingerprints(0..50);
    bench
        .store
        .accept(&job.submission("new", 50))
        .await
        .unwrap();
    let id = SliceId::new("new", 0);
    let new = job.slice(&id, 50);
    settle(
        &bench.store,
        new,
        ANN,
        &all(&people[..20], Outcome::Sent),
        false,
    )
    .await;
    claim(&bench.store, new, ANN, LEASE, &people[20..]).await;

    let shape = job.shape;
    job.shape.buckets = 500;
    let id = SliceId::new("old", 0);
    let old = job.slice(&id, 50);
    let states = each(claim(&bench.store, old, BOB, LEASE, &people).await);
    assert_eq!(states[..20], [ClaimState::Settled(Outcome::Sent); 20]);
    assert!(matches!(states[20], ClaimState::Held { .. }));
    assert!(
        bench
            .store
            .renew(old, ANN, LEASE, &people[20..])
            .await
            .unwrap()
    );
    let standing = settle(&bench.store, old, BOB, &all(&people, Outcome::Sent), true).await;
    assert_eq!((standing.accounts.total, standing.accounts.sent), (100, 50));
    let record = bench.store.job(job.id()).await.unwrap().unwrap();
    assert_eq!(record.shape, shape);
    assert_eq!(bench.store.audit(&record).await.unwrap().sent, 50);
}

// ---------------------------------------------------------------------------------------------
// The ledger against a model
// ---------------------------------------------------------------------------------------------

/// Slices of the model: recipients of each, overlapping, and how many entries they stand for.
const SLICES: [(std::ops::Range<usize>, u32); 3] = [(0..8, 8), (4..12, 9), (0..12, 15)];

#[derive(Clone, Debug)]
enum Step {
    Claim {
        slice: usize,
        owner: u64,
        recipients: Vec<usize>,
        expires: bool,
    },
    Renew {
        slice: usize,
        owner: u64,
        recipients: Vec<usize>,
        expires: bool,
    },
    Settle {
        slice: usize,
        owner: u64,
        outcomes: Vec<(usize, Outcome)>,
        release: Vec<usize>,
        last: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop::sample::select(Outcome::ALL.to_vec());
    let some = || prop::collection::vec(0..12usize, 0..6);
    let step = prop_oneof![
        (0..3usize, 0..3u64, some(), any::<bool>()).prop_map(
            |(slice, owner, recipients, expires)| Step::Claim {
                slice,
                owner,
                recipients,
                expires
            }
        ),
        (0..3usize, 0..3u64, some(), any::<bool>()).prop_map(
            |(slice, owner, recipients, expires)| Step::Renew {
                slice,
                owner,
                recipients,
                expires
            }
        ),
        (
            0..3usize,
            0..3u64,
            prop::collection::vec((0..12usize, outcome), 0..5),
            some(),
            prop::bool::weighted(0.1),
        )
            .prop_map(|(slice, owner, outcomes, release, last)| Step::Settle {
                slice,
                owner,
                outcomes,
                release,
                last
            }),
    ];
    prop::collection::vec(step, 1..60)
}

#[derive(Clone, Copy, Debug)]
enum Held {
    Claimed { owner: u64 },
    Settled(Outcome),
}

/// What the ledger is to do, in as few words as possible.
#[derive(Default)]
struct Model {
    held: HashMap<usize, Held>,
    /// Owners whose last lease was over at once.
    expired: [bool; 3],
    counted: [u32; 3],
    accounts: Accounts,
}

impl Model {
    /// `None` is a slice that is done; a wait is any wait.
    fn claim(
        &mut self,
        slice: usize,
        owner: u64,
        recipients: &[usize],
        expired: bool,
    ) -> Option<Vec<ClaimState>> {
        if self.counted[slice] >= SLICES[slice].1 {
            return None;
        }
        let before = self.held.clone();
        let state = |recipient: &usize| match before.get(recipient) {
            None => ClaimState::Granted,
            Some(Held::Settled(outcome)) => ClaimState::Settled(*outcome),
            Some(Held::Claimed { owner: other }) if *other == owner => ClaimState::Granted,
            Some(Held::Claimed { owner }) if self.expired[*owner as usize] => ClaimState::TakenOver,
            Some(Held::Claimed { .. }) => ClaimState::Held {
                left: Duration::ZERO,
            },
        };
        let states: Vec<_> = recipients.iter().map(state).collect();
        for (recipient, state) in recipients.iter().zip(&states) {
            if matches!(state, ClaimState::Granted | ClaimState::TakenOver) {
                self.held.insert(*recipient, Held::Claimed { owner });
                self.expired[owner as usize] = expired;
            }
        }
        Some(states)
    }

    fn is_own(&self, recipient: usize, me: u64) -> bool {
        matches!(self.held.get(&recipient), Some(Held::Claimed { owner }) if *owner == me)
    }

    fn renew(&mut self, owner: u64, recipients: &[usize], expired: bool) -> bool {
        let mut whole = true;
        for recipient in recipients {
            if self.is_own(*recipient, owner) {
                self.expired[owner as usize] = expired;
            } else {
                whole = false;
            }
        }
        whole
    }

    fn settle(
        &mut self,
        slice: usize,
        owner: u64,
        outcomes: &[(usize, Outcome)],
        release: &[usize],
        last: bool,
    ) {
        let entries = SLICES[slice].1;
        for (recipient, outcome) in outcomes {
            if *outcome != Outcome::Duplicate
                && !matches!(self.held.get(recipient), Some(Held::Settled(_)))
            {
                self.held.insert(*recipient, Held::Settled(*outcome));
                *self.accounts.of_mut(*outcome) += 1;
                if self.counted[slice] < entries {
                    self.counted[slice] += 1;
                } else {
                    self.accounts.duplicate -= 1;
                }
            }
        }
        for recipient in release {
            if self.is_own(*recipient, owner) {
                self.held.remove(recipient);
            }
        }
        if last {
            self.accounts.duplicate += u64::from(entries - self.counted[slice]);
            self.counted[slice] = entries;
        }
    }

    fn audit(&self) -> Audit {
        let mut audit = Audit::default();
        for held in self.held.values() {
            *match held {
                Held::Claimed { .. } => &mut audit.claimed,
                Held::Settled(Outcome::Sent) => &mut audit.sent,
                Held::Settled(Outcome::Failed) => &mut audit.failed,
                Held::Settled(Outcome::Uncertain) => &mut audit.uncertain,
                Held::Settled(Outcome::Expired) => &mut audit.expired,
                Held::Settled(Outcome::Cancelled) => &mut audit.cancelled,
                Held::Settled(Outcome::Duplicate) => unreachable!("never written"),
            } += 1;
        }
        audit
    }
}

/// Promise 2 on the ledger: whatever owners claim, renew, release and settle in whatever order, in
/// slices that overlap, the accounts and the states are those of the model, and in the end they are
/// exact.
#[test]
fn accounts_are_exact_whatever_happens() {
    let Some(url) = url() else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let bench = runtime.block_on(Bench::at(&url));
    let config = Config {
        cases: 200,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&steps(), |steps| {
            runtime.block_on(play(&bench.store, steps));
            Ok(())
        })
        .unwrap();
}

async fn play(store: &Store, steps: Vec<Step>) {
    let job = Job::new(3);
    let people = job.fingerprints(0..12);
    let entries: u32 = SLICES.iter().map(|(_, entries)| entries).sum();
    let submission = job.submission("s", entries.into());
    store.accept(&submission).await.unwrap();
    let ids: Vec<_> = (0..3).map(|index| SliceId::new("s", index)).collect();
    let slice = |index: usize| job.slice(&ids[index], SLICES[index].1);
    // A step may only speak of recipients of its slice.
    let of = |slice: usize, recipients: Vec<usize>| -> Vec<usize> {
        let range = SLICES[slice].0.clone();
        recipients
            .into_iter()
            .filter(|at| range.contains(at))
            .collect()
    };
    let named = |recipients: &[usize]| -> Vec<Fingerprint> {
        recipients.iter().map(|at| people[*at]).collect()
    };
    let lease = |expires: bool| if expires { Duration::ZERO } else { LEASE };
    let mut model = Model {
        accounts: Accounts {
            total: entries.into(),
            ..Accounts::default()
        },
        ..Model::default()
    };

    for step in steps {
        match step {
            Step::Claim {
                slice: index,
                owner,
                recipients,
                expires,
            } => {
                let recipients = of(index, recipients);
                let expected = model.claim(index, owner, &recipients, expires);
                let asked = named(&recipients);
                let claimed =
                    claim(store, slice(index), Owner(owner), lease(expires), &asked).await;
                let found = match claimed {
                    Claimed::SliceDone => None,
                    Claimed::Each(states) => Some(states.into_iter().map(any_wait).collect()),
                };
                assert_eq!(found, expected);
            }
            Step::Renew {
                slice: index,
                owner,
                recipients,
                expires,
            } => {
                let recipients = of(index, recipients);
                let expected = model.renew(owner, &recipients, expires);
                let renewed = store
                    .renew(
                        slice(index),
                        Owner(owner),
                        lease(expires),
                        &named(&recipients),
                    )
                    .await;
                assert_eq!(renewed.unwrap(), expected);
            }
            Step::Settle {
                slice: index,
                owner,
                outcomes,
                release,
                last,
            } => {
                let range = SLICES[index].0.clone();
                // One recipient with two outcomes in one call has the first of them.
                let mut once: BTreeMap<usize, Outcome> = BTreeMap::new();
                for (at, outcome) in &outcomes {
                    if range.contains(at) && *outcome != Outcome::Duplicate {
                        once.entry(*at).or_insert(*outcome);
                    }
                }
                let release = of(index, release);
                let kept: Vec<_> = outcomes
                    .into_iter()
                    .filter(|(at, _)| range.contains(at))
                    .collect();
                let once: Vec<_> = once.into_iter().collect();
                let settled: Vec<_> = kept
                    .iter()
                    .map(|(at, outcome)| (people[*at], *outcome))
                    .collect();
                let released = named(&release);
                let settle = Settle {
                    slice: slice(index),
                    owner: Owner(owner),
                    outcomes: &settled,
                    release: &released,
                    last,
                };
                model.settle(index, owner, &once, &release, last);
                // Twice: a repetition counts nothing.
                for _ in 0..2 {
                    let standing = store.settle(settle).await.unwrap();
                    assert_eq!(standing.accounts, model.accounts);
                }
            }
        }
    }
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!(store.audit(&record).await.unwrap(), model.audit());

    // Then every slice is delivered to its end.
    for (index, (range, _)) in SLICES.iter().enumerate() {
        let sent: Vec<_> = range
            .clone()
            .map(|at| (people[at], Outcome::Sent))
            .collect();
        settle(store, slice(index), BOB, &sent, true).await;
    }
    let standing = store.expanded(job.id(), "s").await.unwrap();
    assert_eq!(standing.accounts.settled(), standing.accounts.total);
    assert!(standing.finished);
    let audit = store.audit(&record).await.unwrap();
    assert_eq!(audit.differences(&standing.accounts), Vec::<String>::new());
}

fn any_wait(state: ClaimState) -> ClaimState {
    match state {
        ClaimState::Held { .. } => ClaimState::Held {
            left: Duration::ZERO,
        },
        other => other,
    }
}

// ---------------------------------------------------------------------------------------------
// The limiter
// ---------------------------------------------------------------------------------------------

fn limit(rate: &str, cost: Cost) -> Limit<'static> {
    Limit {
        scope: Scope::Target,
        name: "im",
        rate: rate.parse().unwrap(),
        cost,
    }
}

async fn lease(
    store: &Store,
    limits: &[Limit<'_>],
    recipients: u32,
    per_call: u32,
    wait_max: Duration,
) -> (Grant, Option<Scope>) {
    let lease = Lease {
        limits,
        recipients,
        per_call,
        wait_max,
    };
    let leased = store.lease(&lease).await.unwrap();
    (leased.grant, leased.binding)
}

fn at_once(units: u32) -> Grant {
    Grant::Units {
        units,
        after: Duration::ZERO,
    }
}

/// Nothing is booked unless all limits agree, the least of them is granted, calls and recipients are
/// each counted in their own units, and what is given back can be had again.
#[tokio::test]
async fn limits_agree_or_nothing_is_booked() {
    let Some(bench) = Bench::start().await else {
        return;
    };
    let store = &bench.store;
    // Slow enough that nothing refills while the test runs.
    let target = limit("10/h burst 4", Cost::PerCall);
    let app = Limit {
        scope: Scope::App,
        name: "shop",
        ..limit("100/h burst 250", Cost::PerRecipient)
    };
    let both = [target, app];
    let now = Duration::ZERO;
    assert_eq!(lease(store, &[], 7, 1, now).await, (at_once(7), None));
    assert_eq!(
        lease(store, &both, 150, 100, now).await,
        (at_once(150), None)
    );
    assert_eq!(
        lease(store, &both, 150, 100, now).await,
        (at_once(100), Some(Scope::App)),
        "two calls are left of four, and 100 recipients of 250"
    );
    let (grant, binding) = lease(store, &both, 1, 100, now).await;
    assert!(
        matches!(grant, Grant::Later { after } if after > Duration::from_secs(30)),
        "{grant:?}"
    );
    assert_eq!(binding, Some(Scope::App));
    assert_eq!(
        lease(store, &[target], 500, 100, now).await,
        (at_once(100), Some(Scope::Target)),
        "the refused lease took none of the calls"
    );
    store.refund(&both, 60, 2).await.unwrap();
    assert_eq!(
        lease(store, &both, 150, 50, now).await,
        (at_once(60), Some(Scope::App))
    );
    let faster = Limit {
        rate: "20/h burst 4".parse().unwrap(),
        ..target
    };
    assert_eq!(
        lease(store, &[faster], 4, 1, now).await,
        (at_once(4), None),
        "another rate starts clean"
    );
}

/// A lease that may wait is booked ahead, in the order of asking.
#[tokio::test]
async fn a_lease_may_wait() {
    let Some(bench) = Bench::start().await else {
        return;
    };
    let slow = limit("60/min burst 1", Cost::PerRecipient);
    let second = Duration::from_secs(1);
    assert_eq!(
        lease(&bench.store, &[slow], 1, 1, second * 5).await.0,
        at_once(1)
    );
    let mut before = Duration::ZERO;
    for _ in 0..3 {
        let (grant, binding) = lease(&bench.store, &[slow], 1, 1, second * 5).await;
        let Grant::Units { units: 1, after } = grant else {
            panic!("{grant:?}");
        };
        assert!(after > before && after <= before + second, "{after:?}");
        assert_eq!(binding, Some(Scope::Target));
        before = after;
    }
}

#[derive(Clone, Debug)]
struct Asked {
    rate: Rate,
    per_call: bool,
    /// Where the TAT stands when asked, in µs from now.
    ahead_us: i64,
}

fn asked(ahead_us: std::ops::Range<i64>) -> impl Strategy<Value = Asked> {
    let period = prop::sample::select(vec![1, 60, 3600]);
    (1u32..20_000, period, 1u32..500, any::<bool>(), ahead_us).prop_map(
        |(units, period, burst, per_call, ahead_us)| Asked {
            rate: Rate {
                units,
                period: Duration::from_secs(period),
                burst,
                cost: None,
            },
            per_call,
            ahead_us,
        },
    )
}

/// What the script is to do, made of single limiters: the least of what they grant, after the
/// longest of their waits.
fn expected(tats: &mut [Tat], asked: &[Asked], now: u64, ask: Ask) -> (u64, Duration) {
    let units = |limit: &Asked, recipients: u32| match limit.per_call {
        true => recipients.div_ceil(ask.per_call),
        false => recipients,
    };
    let mut granted = ask.recipients;
    let mut later = None;
    for (tat, limit) in tats.iter().zip(asked) {
        let want = units(limit, ask.recipients);
        match tat.clone().lease(&limit.rate, now, want, ask.wait_max) {
            Grant::Units { units, .. } => {
                let each = if limit.per_call { ask.per_call } else { 1 };
                granted = granted.min(units * each);
            }
            Grant::Later { after } => later = later.max(Some(after)),
        }
    }
    if let Some(after) = later {
        return (0, after);
    }
    let mut wait = Duration::ZERO;
    for (tat, limit) in tats.iter_mut().zip(asked) {
        let want = units(limit, granted);
        let grant = tat.lease(&limit.rate, now, want, ask.wait_max);
        let Grant::Units { units, after } = grant else {
            panic!("{grant:?}");
        };
        assert_eq!(units, want);
        wait = wait.max(after);
    }
    (granted.into(), wait)
}

#[derive(Clone, Copy, Debug)]
struct Ask {
    recipients: u32,
    per_call: u32,
    wait_max: Duration,
}

/// The script is `Tat`, bit by bit: one or several limiters are set to any state, both are asked the
/// same at the same time of the server's clock, and grant, wait and new state are compared.
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
    let ask = || {
        (1u32..400, 1u32..120, 0u64..3000).prop_map(|(recipients, per_call, wait_ms)| Ask {
            recipients,
            per_call,
            wait_max: Duration::from_millis(wait_ms),
        })
    };
    let one = prop::collection::vec(asked(-1_000_000..90_000_000), 1..2);
    let several = prop::collection::vec(asked(-1_000_000..10_000_000), 2..4);
    for limits in [one.boxed(), several.boxed()] {
        let config = Config {
            cases: 300,
            failure_persistence: None,
            ..Config::default()
        };
        TestRunner::new(config)
            .run(&(limits, ask()), |(limits, ask)| {
                runtime.block_on(compare(&bench, &limits, ask));
                Ok(())
            })
            .unwrap();
    }
}

async fn compare(bench: &Bench, asked: &[Asked], ask: Ask) {
    let script = redis::Script::new(include_str!("../../src/store/scripts/lease.lua"));
    let redis = &mut bench.redis.clone();
    let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(redis).await.unwrap();
    let server_us = (seconds * 1_000_000 + micros) as i64;
    let mut call = script.prepare_invoke();
    let mut tats = Vec::new();
    let mut keys = Vec::new();
    for (index, limit) in asked.iter().enumerate() {
        let key = format!("{}:{{limits}}:{index}", bench.prefix);
        let tat = (server_us + limit.ahead_us) as f64;
        tats.push(Tat(tat));
        let _: () = redis::cmd("SET")
            .arg(&key)
            .arg(tat.to_string())
            .query_async(redis)
            .await
            .unwrap();
        call.key(&key);
        keys.push(key);
    }
    call.arg(ask.recipients)
        .arg(ask.per_call)
        .arg(ask.wait_max.as_micros() as u64);
    for limit in asked {
        call.arg(limit.rate.interval_us())
            .arg(limit.rate.burst)
            .arg(if limit.per_call { "call" } else { "recipient" });
    }
    let (granted, after, _, now): (u64, u64, usize, u64) = call.invoke_async(redis).await.unwrap();

    let expected = expected(&mut tats, asked, now, ask);
    assert_eq!((granted, Duration::from_micros(after)), expected);
    for (key, tat) in keys.iter().zip(tats) {
        let stored: f64 = redis::cmd("GET").arg(key).query_async(redis).await.unwrap();
        assert_eq!(stored.to_bits(), tat.0.to_bits(), "{stored} and {}", tat.0);
    }
}

fn park(in_ms: u64) -> Park {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    Park {
        since_ms: now.as_millis() as u64,
        until_ms: now.as_millis() as u64 + in_ms,
        reason: ParkReason::Throttled,
        code: "416".to_owned(),
        text: "blocked by the vendor".to_owned(),
    }
}

/// Of two parkings the one that ends later counts, until somebody ends it.
#[tokio::test]
async fn a_target_is_parked_until_the_later_end() {
    let Some(bench) = Bench::start().await else {
        return;
    };
    let store = &bench.store;
    let targets = ["a".to_owned(), "im".to_owned()];
    let (short, long) = (park(60_000), park(120_000));
    store.park("im", &short).await.unwrap();
    store.park("im", &long).await.unwrap();
    store.park("im", &short).await.unwrap();
    assert_eq!(
        store.parked(&targets).await.unwrap(),
        [("im".to_owned(), long)]
    );
    store.unpark("im").await.unwrap();
    assert!(store.parked(&targets).await.unwrap().is_empty());
    let over = Park {
        until_ms: 1000,
        ..short
    };
    store.park("im", &over).await.unwrap();
    assert!(store.parked(&targets).await.unwrap().is_empty());
}

// ---------------------------------------------------------------------------------------------
// Servers in trouble
// ---------------------------------------------------------------------------------------------

/// A Redis of the test's own, to be hurt.
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

/// Waits until something holds, ten seconds at most.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < Duration::from_secs(10), "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What was counted is still counted after a crash with an append-only file, and the scripts that the
/// new server does not know are loaded again. While it is away, nobody hangs.
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
    let asked = Instant::now();
    let error = store.job(job.id()).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unreachable(_)), "{error:?}");
    assert!(asked.elapsed() < Duration::from_secs(4));

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

/// A server that hangs costs each caller its deadline and no more, and is used again when it wakes.
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
        let asked = Instant::now();
        let error = bench.store.job(id).await.unwrap_err();
        assert!(matches!(error, LedgerError::Unreachable(_)), "{error:?}");
        let took = asked.elapsed();
        assert!(took < Duration::from_millis(3500), "{took:?}");
    }
    server.signal("-CONT");
    until("the store answers again", async || {
        bench.store.job(id).await.is_ok()
    })
    .await;
}

/// A full server claims nobody else (promise 6), and still records what was sent.
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

/// A primary that becomes a replica under our feet refuses; when it is one again, or another server
/// answers at its address, work goes on without anybody's help.
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
    replicate(["NO", "ONE"]).await;
    bench.store.accept(&job.submission("s", 1)).await.unwrap();
}

/// The check at start tells what it found, and what to do about a server that would evict the ledger.
#[tokio::test]
async fn a_server_that_evicts_is_refused() {
    if url().is_none() {
        return;
    }
    let server = Server::start(&["--appendonly", "yes", "--maxmemory", "64mb"]).await;
    let mut bench = Bench::at(&server.url()).await;
    let report = bench.store.check().await.unwrap();
    assert_eq!(report.policy, "noeviction");
    assert_eq!(report.maxmemory, Some(64 << 20));
    assert!(report.used_memory > 0 && !report.cluster);
    let fsync = Some("everysec".to_owned());
    assert_eq!(report.persistence, Persistence::AppendOnly { fsync });

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
    // Where CONFIG is forbidden, INFO tells.
    let _: () = redis::cmd("ACL")
        .arg(&["SETUSER", "default", "-config"])
        .query_async(&mut bench.redis)
        .await
        .unwrap();
    let error = bench.store.check().await.unwrap_err();
    assert!(matches!(error, CheckError::Evicts { .. }), "{error:?}");
}
