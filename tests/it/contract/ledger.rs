//! Tests the ledger port.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use fanwise::domain::accounts::{Accounts, Audit, ByOutcome as _};
use fanwise::domain::ids::{Fingerprint, Fingerprinter, JobId, Owner, SliceId};
use fanwise::domain::lane::Priority;
use fanwise::domain::message::{Content, Options};
use fanwise::domain::message_id::KeepsIds;
use fanwise::domain::outcome::{Class, Outcome};
use fanwise::domain::slice::{Addressed, Head, Shape, Together};
use fanwise::ports::{
    Accepted, Beat, Claim, ClaimState, Claimed, Entry, Gathered, JobAtWork, JobFilter, JobPage,
    JobPlace, JobProgress, JobQuery, JobRecord, JobState, Ledger, Pulse, Reason, Settle, SliceRef,
    Submission, UnderWay, Upkeep,
};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{EmbeddedBench, MemoryBench, PATIENCE, RedisBench, StoreBench, TARGET};
use crate::support::wait::{until, until_ok};

on_all! { EmbeddedBench, RedisBench, ClusterBench:
    a_recipient_has_one_owner_and_one_outcome,
    an_expired_claim_is_taken_over_and_a_late_outcome_still_counts,
    a_renewed_claim_is_not_taken_over,
    a_released_claim_is_free_and_in_no_doubt,
    a_claim_released_in_doubt_stays_so,
    a_claim_given_up_unused_keeps_the_doubt_it_was_found_with,
    nobody_missing_is_counted_as_a_duplicate,
    a_slice_ends_once,
    windows_may_be_unsorted_and_large,
    every_step_may_be_repeated,
    reasons_are_kept_and_found,
    a_job_is_accepted_extended_and_completed_once,
    a_job_of_parts_waits_for_all_of_them,
    a_submission_without_recipients_waits_for_its_parts,
    a_list_in_parts_is_there_with_its_last_part,
    a_list_that_was_given_up_stays_so_and_its_job_completes,
    jobs_are_listed_newest_first,
    pages_of_jobs_leave_out_nobody,
    a_job_is_found_behind_many_others,
    the_list_of_open_jobs_follows_every_change,
    jobs_are_found_by_what_is_known_of_them,
    looking_claims_nobody,
    a_record_tells_limit_start_and_pace,
    an_audit_counts_what_stands,
    slices_of_an_unknown_job_rebuild_it,
    a_submission_accepted_after_its_slices_counts_once,
    slices_of_another_shape_find_the_same_recipients,
    many_owners_at_once_never_share_a_recipient,
    a_job_that_was_entered_is_found_at_once,
    an_entered_job_that_is_refused_is_forgotten,
    a_quiet_job_is_ended_and_says_what_is_not_known,
    what_comes_late_takes_the_place_of_a_lost_outcome,
    a_job_that_was_ended_goes_on_when_it_is_submitted_again,
    a_job_that_waits_or_is_worked_on_is_not_ended,
    a_quiet_job_is_shown_again,
    every_open_job_is_shown_once,
    processes_that_are_alive_tell_their_calls,
}

pub(crate) const LEASE: Duration = Duration::from_secs(60);
pub(crate) const ANN: Owner = Owner(0xa);
pub(crate) const BOB: Owner = Owner(0xb);

/// One job with the values that calls of the ledger need.
pub(crate) struct Job {
    pub(crate) head: Head,
    pub(crate) shape: Shape,
}

impl Job {
    pub(crate) fn new(buckets: u32) -> Self {
        Self::named(&format!("promo-{:016x}", fastrand::u64(..)), buckets)
    }

    pub(crate) fn named(client_msg_no: &str, buckets: u32) -> Self {
        let head = Head {
            id: JobId::of("shop", client_msg_no),
            app: "shop".to_owned(),
            client_msg_no: client_msg_no.to_owned(),
            target: TARGET.to_owned(),
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
            window: None,
            pace_until_ms: None,
            category: None,
            on_uncertain: None,
            callback_url: None,
            reply_to: None,
            fallback: None,
            keep_ids: false,
            fell_from: None,
        };
        let shape = Shape { buckets };
        Self { head, shape }
    }

    pub(crate) fn id(&self) -> JobId {
        self.head.id
    }

    pub(crate) fn submission(&self, name: &str, entries: u64) -> Submission {
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
            slice_recipients: 500,
            sender: None,
            window: None,
            pace_until_ms: None,
            category: None,
            rate: None,
            priority: self.head.priority,
            not_before_ms: None,
            expires_at_ms: None,
            tags: Vec::new(),
            fetched: None,
            callback_url: None,
            reply_to: None,
            fallback: self.head.fallback.as_ref().map(|it| it.target.clone()),
            keeps_ids: self.head.keep_ids.then(KeepsIds::default),
            now_ms: self.head.accepted_at_ms,
            warnings: Vec::new(),
            template: None,
            expanded: false,
        }
    }

    pub(crate) fn slice<'a>(&'a self, id: &'a SliceId, entries: u32) -> SliceRef<'a> {
        SliceRef {
            head: &self.head,
            id,
            entries,
            shape: self.shape,
        }
    }

    pub(crate) fn fingerprints(&self, numbers: impl IntoIterator<Item = u32>) -> Vec<Fingerprint> {
        let fingerprinter = Fingerprinter::new("secret", self.id());
        numbers
            .into_iter()
            .map(|number| fingerprinter.fingerprint(&format!("user-{number}")))
            .collect()
    }
}

pub(crate) async fn claim(
    store: &impl Ledger,
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

pub(crate) fn each(claimed: Claimed) -> Vec<ClaimState> {
    match claimed {
        Claimed::Each(states) => states,
        Claimed::SliceDone => panic!("the slice is done"),
    }
}

pub(crate) async fn settle(
    store: &impl Ledger,
    slice: SliceRef<'_>,
    owner: Owner,
    outcomes: &[(Fingerprint, Outcome)],
    last: bool,
) -> JobProgress {
    let settle = Settle {
        outcomes,
        // As if all entries that are not recipients were seen as repeats.
        last: last.then_some(slice.entries),
        ..Settle::of(slice, owner)
    };
    store.settle(settle).await.unwrap().progress.unwrap()
}

async fn release(
    store: &impl Ledger,
    slice: SliceRef<'_>,
    owner: Owner,
    release: &[Fingerprint],
) -> JobProgress {
    let settle = Settle {
        release,
        ..Settle::of(slice, owner)
    };
    store.settle(settle).await.unwrap().progress.unwrap()
}

pub(crate) fn all(recipients: &[Fingerprint], outcome: Outcome) -> Vec<(Fingerprint, Outcome)> {
    recipients.iter().map(|at| (*at, outcome)).collect()
}

async fn until_taken_over(
    store: &impl Ledger,
    slice: SliceRef<'_>,
    owner: Owner,
    people: &[Fingerprint],
) {
    until_ok("the end of a lease", PATIENCE, async || {
        let states = each(claim(store, slice, owner, LEASE, people).await);
        let all = states == vec![ClaimState::TakenOver; people.len()];
        all.then_some(()).ok_or_else(|| format!("{states:?}"))
    })
    .await
}

// ---------------------------------------------------------------------------------------------
// Jobs before and after their work
// ---------------------------------------------------------------------------------------------

fn entry(job: &Job, entries: u64) -> Entry {
    Entry {
        job: job.id(),
        app: job.head.app.clone(),
        client_msg_no: job.head.client_msg_no.clone(),
        target: job.head.target.clone(),
        content_digest: "d".to_owned(),
        entries,
        priority: job.head.priority,
        not_before_ms: Some(5),
        expires_at_ms: None,
        tags: Vec::new(),
        fetched: None,
        now_ms: job.head.accepted_at_ms,
    }
}

async fn record(store: &impl Ledger, job: &Job) -> JobRecord {
    store.job(job.id()).await.unwrap().unwrap()
}

async fn a_job_that_was_entered_is_found_at_once(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(3));
    for _ in 0..2 {
        store.enter(&entry(&job, 30)).await.unwrap();
    }
    let found = record(store, &job).await;
    assert_eq!(found.state, JobState::Accepted);
    assert_eq!((found.accounts.total, found.pending), (30, 30));
    assert_eq!(found.client_msg_no, job.head.client_msg_no);
    assert_eq!(found.not_before_ms, Some(5));
    let query = JobQuery {
        most: 9,
        ..JobQuery::default()
    };
    let listed = store.jobs(&query).await.unwrap().jobs;
    assert!(listed.contains(&found), "{listed:?}");
    assert!(!store.knows(job.id(), &["s".to_owned()]).await.unwrap());
    assert!(!store.complete(job.id()).await.unwrap());
    let people = job.fingerprints(0..1);
    let states = store.peek(&found, &people).await.unwrap();
    assert_eq!(states, [ClaimState::Granted]);
    assert_eq!(store.audit(&found).await.unwrap(), Audit::default());

    // A worker that registers the job finds no submission of it.
    let accepted = store.accept(&job.submission("s", 30)).await.unwrap();
    assert!(matches!(accepted, Accepted::Expand { first: true, .. }));
    store.enter(&entry(&job, 99)).await.unwrap();
    store.withdraw(job.id()).await.unwrap();
    let found = record(store, &job).await;
    assert_eq!((found.state, found.accounts.total), (JobState::Running, 30));
    let listed = store.jobs(&query).await.unwrap().jobs;
    let times = listed.iter().filter(|it| it.job == job.id()).count();
    assert_eq!(times, 1);
}

async fn an_entered_job_that_is_refused_is_forgotten(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(3));
    store.enter(&entry(&job, 30)).await.unwrap();
    for _ in 0..2 {
        store.withdraw(job.id()).await.unwrap();
        assert_eq!(store.job(job.id()).await.unwrap(), None);
    }
}

/// A job that was running when the ledger lost a part of it: half of its recipients have no
/// outcome, and no slice is left to deliver.
async fn half_done(store: &impl Ledger) -> Job {
    let mut job = Job::new(3);
    // By the current clock: the time without any sign of the job counts.
    job.head.accepted_at_ms = fanwise::clock::now_ms();
    let people = job.fingerprints(0..5);
    store.accept(&job.submission("s", 10)).await.unwrap();
    let id = SliceId::new("s", 0);
    let sent = all(&people, Outcome::Sent);
    settle(store, job.slice(&id, 5), ANN, &sent, true).await;
    job
}

const QUIET: Duration = Duration::from_millis(300);

async fn until_quiet(store: &(impl Ledger + Upkeep), job: &Job) -> JobRecord {
    until("a quiet job", PATIENCE, async || {
        let found = store.quiet(QUIET).await.unwrap();
        found.into_iter().find(|it| it.job == job.id())
    })
    .await
}

async fn a_quiet_job_is_ended_and_says_what_is_not_known(bench: &impl StoreBench) {
    let store = bench.store();
    let job = half_done(store).await;
    assert_eq!(store.abandon(job.id(), QUIET).await.unwrap(), None);
    let found = until_quiet(store, &job).await;
    assert_eq!((found.state, found.pending), (JobState::Running, 5));
    let progress = store.abandon(job.id(), QUIET).await.unwrap().unwrap();
    assert!(progress.finished && !progress.completed);
    assert_eq!(
        (progress.accounts.sent, progress.accounts.uncertain),
        (5, 5)
    );
    let found = record(store, &job).await;
    assert_eq!((found.pending, found.lost), (0, 5));
    let audit = store.audit(&found).await.unwrap();
    assert!(found.differences(&audit).is_empty(), "{audit:?}");
    let unknown = found.unknown();
    assert!(
        unknown[0].starts_with("5 recipients count as uncertain"),
        "{unknown:?}"
    );
    assert!(store.complete(job.id()).await.unwrap());
    assert_eq!(store.abandon(job.id(), QUIET).await.unwrap(), None);
}

async fn what_comes_late_takes_the_place_of_a_lost_outcome(bench: &impl StoreBench) {
    let store = bench.store();
    let job = half_done(store).await;
    until_quiet(store, &job).await;
    store.abandon(job.id(), QUIET).await.unwrap().unwrap();
    let (id, late) = (SliceId::new("s", 1), job.fingerprints(5..8));
    let slice = job.slice(&id, 5);
    let states = each(claim(store, slice, BOB, LEASE, &late).await);
    assert_eq!(states, vec![ClaimState::Granted; 3]);
    let sent = all(&late, Outcome::Sent);
    let progress = settle(store, slice, BOB, &sent, false).await;
    assert_eq!(
        (progress.accounts.sent, progress.accounts.uncertain),
        (8, 2)
    );
    assert_eq!(progress.accounts.settled(), 10);
    assert_eq!(record(store, &job).await.lost, 2);
}

async fn a_job_that_was_ended_goes_on_when_it_is_submitted_again(bench: &impl StoreBench) {
    let store = bench.store();
    let job = half_done(store).await;
    // One of the lost recipients was claimed by a worker that died.
    let (id, claimed) = (SliceId::new("s", 1), job.fingerprints(5..6));
    let short = Duration::from_millis(1);
    claim(store, job.slice(&id, 5), BOB, short, &claimed).await;
    until_quiet(store, &job).await;
    store.abandon(job.id(), QUIET).await.unwrap().unwrap();
    let found = record(store, &job).await;
    let audit = store.audit(&found).await.unwrap();
    assert_eq!((found.lost, audit.claimed), (5, 1));
    assert_eq!(found.differences(&audit), [""; 0]);
    assert!(found.lost_are_unsent());
    assert!(store.complete(job.id()).await.unwrap());

    let again = store.accept(&job.submission("s", 10)).await.unwrap();
    assert!(matches!(again, Accepted::Again { .. }), "{again:?}");
    let found = record(store, &job).await;
    assert_eq!((found.state, found.pending), (JobState::Running, 5));
    assert_eq!((found.lost, found.accounts.sent), (0, 5));
    let done = each(
        claim(
            store,
            job.slice(&id, 5),
            ANN,
            LEASE,
            &job.fingerprints(5..10),
        )
        .await,
    );
    assert_eq!(done[0], ClaimState::TakenOver);
    assert_eq!(done[1..], vec![ClaimState::Granted; 4]);
    let sent = all(&job.fingerprints(5..10), Outcome::Sent);
    let progress = settle(store, job.slice(&id, 5), ANN, &sent, true).await;
    assert_eq!(progress.accounts.sent, 10);
    let finished = store.mark_expanded(job.id(), "s").await.unwrap();
    assert!(finished.finished && !finished.completed);
    assert!(store.complete(job.id()).await.unwrap());
    let settled = store.accept(&job.submission("s", 10)).await.unwrap();
    assert_eq!(settled, Accepted::Settled);
}

async fn a_job_that_waits_or_is_worked_on_is_not_ended(bench: &impl StoreBench) {
    let store = bench.store();
    let (waits, worked_on) = (half_done(store).await, half_done(store).await);
    for job in [&waits, &worked_on] {
        until_quiet(store, job).await;
    }
    store.waits(waits.id()).await.unwrap();
    let long = Duration::from_secs(3600);
    assert_eq!(store.abandon(waits.id(), long).await.unwrap(), None);
    let heard = record(store, &waits).await.heard_at_ms();
    assert!(heard > record(store, &worked_on).await.heard_at_ms());
    let (id, people) = (SliceId::new("s", 1), worked_on.fingerprints(5..8));
    claim(store, worked_on.slice(&id, 5), BOB, LEASE, &people).await;
    assert_eq!(store.abandon(worked_on.id(), QUIET).await.unwrap(), None);
}

/// A job that could not be ended when it was shown is shown again, however often it is asked for.
async fn every_open_job_is_shown_once(bench: &impl StoreBench) {
    let store = bench.store();
    // More than any engine reads at a time.
    let jobs: Vec<_> = (0..250).map(|_| Job::new(1)).collect();
    let accept = async |job: &Job| {
        let submission = job.submission("s", 3);
        store.accept(&submission).await.unwrap();
        store.mark_expanded(job.id(), "s").await.unwrap();
    };
    join_all(jobs.iter().map(accept)).await;
    let entered = Job::new(1);
    store.enter(&entry(&entered, 7)).await.unwrap();
    let done = half_done(store).await;
    until_quiet(store, &done).await;
    store.abandon(done.id(), QUIET).await.unwrap();
    assert!(store.complete(done.id()).await.unwrap());

    let mut shown = Vec::new();
    let visit = |record: &JobRecord| {
        assert_ne!(record.state, JobState::Completed);
        shown.push((record.job, record.pending, record.priority));
    };
    store.each_open(visit).await.unwrap();
    let open = |job: &Job, pending| (job.id(), pending, Some(job.head.priority));
    let mut expected: Vec<_> = jobs.iter().map(|job| open(job, 3)).collect();
    expected.push(open(&entered, 7));
    let known: HashSet<_> = expected.iter().map(|(job, ..)| *job).collect();
    shown.retain(|(job, ..)| known.contains(job) || *job == done.id());
    shown.sort_by_key(|(job, ..)| job.to_string());
    expected.sort_by_key(|(job, ..)| job.to_string());
    assert_eq!(shown, expected);
}

async fn a_quiet_job_is_shown_again(bench: &impl StoreBench) {
    let store = bench.store();
    let job = half_done(store).await;
    for _ in 0..3 {
        until_quiet(store, &job).await;
    }
}

async fn processes_that_are_alive_tell_their_calls(bench: &impl StoreBench) {
    let store = bench.store();
    assert_eq!(store.beats().await.unwrap(), []);
    let calls = UnderWay {
        calls: 256,
        oldest_ms: 6000,
    };
    let job = JobAtWork {
        job: JobId::of("shop", "k"),
        app: "shop".to_owned(),
        places: 3,
        waiting: 4,
    };
    let beat = Beat {
        process: 7,
        number: 0,
        works: true,
        calls: [("im".to_owned(), calls)].into(),
        at_broker: Some(false),
        jobs: [("im".to_owned(), vec![job])].into(),
        pending: [("im".to_owned(), 5)].into(),
    };
    let beaten = store.beat(&beat).await.unwrap();
    assert!(!beaten.went_back);
    let expected = Beat {
        number: beaten.number,
        ..beat
    };
    assert_eq!(store.beats().await.unwrap(), [expected]);
}

// ---------------------------------------------------------------------------------------------
// Claims and outcomes
// ---------------------------------------------------------------------------------------------

async fn a_recipient_has_one_owner_and_one_outcome(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(4));
    let people = job.fingerprints(0..40);
    store.accept(&job.submission("s", 40)).await.unwrap();
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 40);

    let granted = vec![ClaimState::Granted; 40];
    for _ in 0..2 {
        let states = each(claim(store, slice, ANN, LEASE, &people).await);
        assert_eq!(
            states, granted,
            "a repeated claim gets the same answers as the first"
        );
    }
    for state in each(claim(store, slice, BOB, LEASE, &people).await) {
        let ClaimState::Held { left } = state else {
            panic!("{state:?}");
        };
        assert!(left <= LEASE && left > LEASE / 2, "{left:?}");
    }

    let progress = settle(store, slice, ANN, &[(people[7], Outcome::Failed)], false).await;
    assert_eq!(progress.accounts.failed, 1);
    let progress = settle(store, slice, BOB, &[(people[7], Outcome::Sent)], false).await;
    assert_eq!((progress.accounts.failed, progress.accounts.sent), (1, 0));
    let states = each(claim(store, slice, BOB, LEASE, &people).await);
    assert_eq!(states[7], ClaimState::Settled(Outcome::Failed));
    assert!(matches!(states[8], ClaimState::Held { .. }));

    // An owner without a claim may settle, and wins over the owner of the claim: the message was
    // sent.
    let progress = settle(store, slice, BOB, &[(people[8], Outcome::Sent)], false).await;
    assert_eq!(progress.accounts.sent, 1);
    let more = job.fingerprints(100..101);
    let progress = settle(store, slice, BOB, &all(&more, Outcome::Expired), false).await;
    assert_eq!(progress.accounts.expired, 1);
}

async fn an_expired_claim_is_taken_over_and_a_late_outcome_still_counts(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(2));
    let people = job.fingerprints(0..3);
    store.accept(&job.submission("s", 3)).await.unwrap();
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 3);
    let waited = Instant::now();
    claim(store, slice, ANN, Duration::from_millis(80), &people).await;
    until_taken_over(store, slice, BOB, &people).await;
    assert!(waited.elapsed() >= Duration::from_millis(80));
    assert!(!store.renew(slice, ANN, LEASE, &people).await.unwrap());
    assert!(store.renew(slice, BOB, LEASE, &people).await.unwrap());
    assert!(store.renew(slice, BOB, LEASE, &[]).await.unwrap());

    let progress = settle(store, slice, ANN, &[(people[0], Outcome::Sent)], false).await;
    assert_eq!(progress.accounts.sent, 1);
    assert!(!store.renew(slice, BOB, LEASE, &people).await.unwrap());
    let progress = settle(store, slice, BOB, &all(&people, Outcome::Failed), true).await;
    assert_eq!((progress.accounts.sent, progress.accounts.failed), (1, 2));
}

async fn a_renewed_claim_is_not_taken_over(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(2));
    let people = job.fingerprints(0..4);
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 4);
    let (renewed, left) = people.split_at(2);
    // They have owners of their own: a renewal may extend all claims of its owner.
    claim(store, slice, ANN, Duration::from_millis(200), renewed).await;
    claim(store, slice, Owner(77), Duration::from_millis(200), left).await;
    assert!(store.renew(slice, ANN, LEASE, renewed).await.unwrap());
    until_taken_over(store, slice, BOB, left).await;
    for state in each(claim(store, slice, BOB, LEASE, renewed).await) {
        assert!(matches!(state, ClaimState::Held { left } if left > LEASE / 2));
    }
    assert!(!store.renew(slice, ANN, LEASE, &people).await.unwrap());
}

async fn a_released_claim_is_free_and_in_no_doubt(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(3));
    let people = job.fingerprints(0..9);
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 9);
    claim(store, slice, ANN, LEASE, &people).await;
    release(store, slice, BOB, &people).await;
    let states = each(claim(store, slice, BOB, LEASE, &people).await);
    let held = |state: &ClaimState| matches!(state, ClaimState::Held { .. });
    assert!(
        states.iter().all(held),
        "an owner cannot release claims of others"
    );
    for _ in 0..2 {
        let progress = release(store, slice, ANN, &people[..5]).await;
        assert_eq!(progress.accounts.settled(), 0);
    }
    let states = each(claim(store, slice, BOB, LEASE, &people).await);
    assert_eq!(states[..5], [ClaimState::Granted; 5]);
    assert!(states[5..].iter().all(held));
    // In one step, an outcome wins over a release.
    let both = Settle {
        outcomes: &[(people[0], Outcome::Sent), (people[0], Outcome::Failed)],
        release: &people[..2],
        ..Settle::of(slice, BOB)
    };
    let progress = store.settle(both).await.unwrap().progress.unwrap();
    assert_eq!((progress.accounts.sent, progress.accounts.failed), (1, 0));
    let states = each(claim(store, slice, ANN, LEASE, &people[..3]).await);
    assert_eq!(states[0], ClaimState::Settled(Outcome::Sent));
    assert_eq!(states[1], ClaimState::Granted);
    assert!(held(&states[2]));
}

/// Promise 4: an owner that claims a recipient of a call in doubt learns of the doubt, in every
/// slice, until an outcome ends it.
async fn a_claim_released_in_doubt_stays_so(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(2));
    let people = job.fingerprints(0..6);
    store.accept(&job.submission("s", 12)).await.unwrap();
    let (one, two) = (SliceId::new("s", 0), SliceId::new("s", 1));
    let (one, two) = (job.slice(&one, 6), job.slice(&two, 6));
    claim(store, one, ANN, LEASE, &people).await;
    let doubt = |slice, owner, doubted, release| Settle {
        release,
        doubted,
        ..Settle::of(slice, owner)
    };
    // An owner cannot put claims of others in doubt.
    store.settle(doubt(two, BOB, &people, &[])).await.unwrap();
    let states = each(claim(store, two, BOB, LEASE, &people).await);
    let held = |state: &ClaimState| matches!(state, ClaimState::Held { .. });
    assert!(states.iter().all(held), "{states:?}");
    for _ in 0..2 {
        let step = doubt(one, ANN, &people[..4], &people[3..5]);
        store.settle(step).await.unwrap();
    }
    let record = store.job(job.id()).await.unwrap().unwrap();
    let expected = [
        ClaimState::InDoubt,
        ClaimState::InDoubt,
        ClaimState::InDoubt,
        ClaimState::InDoubt,
        ClaimState::Granted,
    ];
    let looked = store.peek(&record, &people).await.unwrap();
    assert_eq!(looked[..5], expected);
    let states = each(claim(store, two, BOB, LEASE, &people).await);
    assert_eq!(states[..5], expected);
    assert!(held(&states[5]));
    // It is an ordinary claim now, and keeps the doubt.
    assert!(
        each(claim(store, one, ANN, LEASE, &people[..4]).await)
            .iter()
            .all(held)
    );
    store
        .settle(doubt(two, BOB, &people[..1], &[]))
        .await
        .unwrap();
    let states = each(claim(store, one, ANN, LEASE, &people[..1]).await);
    assert_eq!(states, [ClaimState::InDoubt]);
    let progress = settle(store, two, BOB, &all(&people[1..3], Outcome::Sent), false).await;
    assert_eq!(progress.accounts.sent, 2);
    let states = each(claim(store, one, ANN, LEASE, &people[1..3]).await);
    assert_eq!(states, [ClaimState::Settled(Outcome::Sent); 2]);
}

/// Promise 4: an owner that gives up claims whose answer it never got removes no doubt, and leaves
/// no doubt where there was none.
async fn a_claim_given_up_unused_keeps_the_doubt_it_was_found_with(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(2));
    let people = job.fingerprints(0..4);
    store.accept(&job.submission("s", 12)).await.unwrap();
    let (one, two) = (SliceId::new("s", 0), SliceId::new("s", 1));
    let (one, two) = (job.slice(&one, 6), job.slice(&two, 6));
    claim(store, one, ANN, LEASE, &people[..1]).await;
    let in_doubt = Settle {
        doubted: &people[..1],
        ..Settle::of(one, ANN)
    };
    store.settle(in_doubt).await.unwrap();
    // The claim of the second expires immediately.
    claim(store, one, Owner(0xc), Duration::ZERO, &people[1..2]).await;
    let expected = [
        ClaimState::InDoubt,
        ClaimState::TakenOver,
        ClaimState::Granted,
        ClaimState::Granted,
    ];
    assert_eq!(each(claim(store, two, BOB, LEASE, &people).await), expected);
    // An owner cannot give up claims of others, and giving up twice has no further effect.
    for owner in [ANN, BOB, BOB] {
        let unused = Settle {
            unused: &people[..3],
            release: &people[..1],
            ..Settle::of(two, owner)
        };
        store.settle(unused).await.unwrap();
    }
    let expected = [
        ClaimState::InDoubt,
        ClaimState::InDoubt,
        ClaimState::Granted,
    ];
    let states = each(claim(store, one, ANN, LEASE, &people).await);
    assert_eq!(states[..3], expected);
    let held = |state: &ClaimState| matches!(state, ClaimState::Held { .. });
    assert!(held(&states[3]), "the others stay claimed");
    // A recipient that was claimed and certainly not sent is free, whatever its state was before.
    release(store, one, ANN, &people[..3]).await;
    let states = each(claim(store, two, BOB, LEASE, &people[..3]).await);
    assert_eq!(states, [ClaimState::Granted; 3]);
}

/// Promise 2: entries that the deliveries of a slice did not see as repeats do not count as
/// duplicates, so a job with a missing recipient does not finish. A redelivery of the slice repairs
/// it.
async fn nobody_missing_is_counted_as_a_duplicate(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(2));
    let people = job.fingerprints(0..5);
    store.accept(&job.submission("s", 8)).await.unwrap();
    store.mark_expanded(job.id(), "s").await.unwrap();
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 8);
    let sent = all(&people[..4], Outcome::Sent);
    let last = |outcomes, repeats| Settle {
        outcomes,
        last: Some(repeats),
        ..Settle::of(slice, ANN)
    };
    claim(store, slice, ANN, LEASE, &people[..4]).await;
    for _ in 0..2 {
        let recorded = store.settle(last(&sent, 3)).await.unwrap();
        assert_eq!(recorded.missing, 1);
        let JobProgress {
            accounts, finished, ..
        } = recorded.progress.unwrap();
        assert_eq!((accounts.sent, accounts.duplicate), (4, 0));
        assert_eq!((accounts.pending(), finished), (4, false));
    }
    assert!(!store.complete(job.id()).await.unwrap());
    let states = each(claim(store, slice, BOB, LEASE, &people).await);
    assert_eq!(states[4], ClaimState::Granted);
    let all = all(&people, Outcome::Sent);
    let recorded = store.settle(last(&all, 3)).await.unwrap();
    assert_eq!((recorded.stood, recorded.missing), (4, 0));
    let progress = recorded.progress.unwrap();
    assert_eq!(progress.accounts.duplicate, 3);
    assert!(progress.finished);
}

/// The entries of a slice that are not recipients of their own count as duplicates when it ends.
/// Ending it twice, or delivering it again, changes nothing.
async fn a_slice_ends_once(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(3));
    let people = job.fingerprints(0..10);
    store.accept(&job.submission("s", 24)).await.unwrap();
    let (one, two) = (SliceId::new("s", 0), SliceId::new("s", 1));
    let (one, two) = (job.slice(&one, 12), job.slice(&two, 12));

    for _ in 0..2 {
        let progress = settle(store, one, ANN, &all(&people, Outcome::Sent), true).await;
        assert_eq!(
            progress.accounts,
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

    let progress = settle(store, two, BOB, &[], true).await;
    assert_eq!(progress.accounts.duplicate, 14);
    assert!(!progress.finished, "the submission is not expanded");
    assert!(store.mark_expanded(job.id(), "s").await.unwrap().finished);
}

async fn windows_may_be_unsorted_and_large(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(1));
    let people = job.fingerprints(0..9000);
    store.accept(&job.submission("s", 9000)).await.unwrap();
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 9000);
    claim(store, slice, ANN, LEASE, &people[..4000]).await;
    settle(store, slice, ANN, &[(people[17], Outcome::Expired)], false).await;
    let repeats = [people[5], people[17], people[5], people[17]];
    let states = each(claim(store, slice, ANN, LEASE, &repeats).await);
    let expired = ClaimState::Settled(Outcome::Expired);
    let granted = ClaimState::Granted;
    assert_eq!(states, [granted, expired, granted, expired]);
    let states = each(claim(store, slice, BOB, LEASE, &people).await);
    for (at, state) in states.iter().enumerate() {
        match at {
            17 => assert_eq!(*state, ClaimState::Settled(Outcome::Expired)),
            0..4000 => assert!(matches!(state, ClaimState::Held { .. })),
            _ => assert_eq!(*state, ClaimState::Granted),
        }
    }
    let progress = settle(store, slice, BOB, &all(&people, Outcome::Sent), true).await;
    assert_eq!(
        (progress.accounts.sent, progress.accounts.expired),
        (8999, 1)
    );
}

/// Each step is made twice, as after a lost answer.
async fn every_step_may_be_repeated(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(3));
    let people = job.fingerprints(0..6);
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 7);
    let submission = job.submission("s", 7);
    store.accept(&submission).await.unwrap();
    let again = store.accept(&submission).await.unwrap();
    assert_eq!(
        again,
        Accepted::Again {
            shape: job.shape,
            template: None,
            slice_recipients: Some(500),
        }
    );
    for _ in 0..2 {
        let states = each(claim(store, slice, ANN, LEASE, &people).await);
        assert_eq!(states, [ClaimState::Granted; 6]);
    }
    for _ in 0..2 {
        assert!(store.renew(slice, ANN, LEASE, &people).await.unwrap());
    }
    let step = Settle {
        outcomes: &[
            (people[0], Outcome::Sent),
            (people[1], Outcome::Failed),
            (people[2], Outcome::Uncertain),
            (people[3], Outcome::Expired),
            (people[4], Outcome::Cancelled),
        ],
        release: &people[5..],
        ..Settle::of(slice, ANN)
    };
    let first = store.settle(step).await.unwrap().progress;
    let again = store.settle(step).await.unwrap();
    assert_eq!((again.progress, again.stood), (first, 5));
    assert_eq!(first.unwrap().accounts.settled(), 5);
    let last = Settle {
        outcomes: &[(people[5], Outcome::Sent)],
        release: &[],
        last: Some(1),
        ..step
    };
    let first = store.settle(last).await.unwrap().progress;
    assert_eq!(store.settle(last).await.unwrap().progress, first);
    let accounts = first.unwrap().accounts;
    assert_eq!((accounts.duplicate, accounts.pending()), (1, 0));
    for _ in 0..2 {
        let progress = store.mark_expanded(job.id(), "s").await.unwrap();
        assert!(progress.finished && !progress.completed);
    }
    assert!(store.complete(job.id()).await.unwrap());
    assert!(!store.complete(job.id()).await.unwrap());
    assert_eq!(store.accept(&submission).await.unwrap(), Accepted::Settled);
}

/// Tasks of many owners claim the same recipients at the same time, in slices that overlap: each
/// recipient is granted once.
async fn many_owners_at_once_never_share_a_recipient(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(7));
    let people = job.fingerprints(0..300);
    let owners = (0..20u64).map(|owner| {
        let (job, people) = (&job, &people);
        async move {
            let id = SliceId::new("s", owner as u32);
            let slice = job.slice(&id, 300);
            let mut mine = Vec::new();
            for part in people.chunks(60) {
                let states = each(claim(store, slice, Owner(owner), LEASE, part).await);
                let granted = part.iter().zip(states).filter(|(_, state)| {
                    assert!(!matches!(state, ClaimState::TakenOver));
                    *state == ClaimState::Granted
                });
                mine.extend(granted.map(|(fingerprint, _)| *fingerprint));
            }
            mine
        }
    });
    let mut granted: Vec<_> = join_all(owners).await.concat();
    assert_eq!(granted.len(), 300);
    granted.sort_unstable();
    granted.dedup();
    assert_eq!(granted.len(), 300);
}

// ---------------------------------------------------------------------------------------------
// Jobs
// ---------------------------------------------------------------------------------------------

/// The reasons of outcomes are kept, the latest one for each recipient.
async fn reasons_are_kept_and_found(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(5));
    let people = job.fingerprints(0..3);
    store.accept(&job.submission("one", 3)).await.unwrap();
    let reason = |code: &str| Reason {
        outcome: Outcome::Failed,
        class: Class::Permanent,
        code: code.to_owned(),
        text: "no such user".to_owned(),
        attempts: 1,
    };
    assert_eq!(
        store.reasons(job.id(), &people).await.unwrap(),
        [None, None, None]
    );
    let told = [(people[0], reason("404")), (people[2], reason("410"))];
    store.record_reasons(job.id(), &told).await.unwrap();
    store
        .record_reasons(job.id(), &[(people[2], reason("411"))])
        .await
        .unwrap();
    assert_eq!(
        store.reasons(job.id(), &people).await.unwrap(),
        [Some(reason("404")), None, Some(reason("411"))]
    );
    assert_eq!(
        store.reasons(Job::new(5).id(), &people[..1]).await.unwrap(),
        [None]
    );
    assert_eq!(store.reasons(job.id(), &[]).await.unwrap(), []);
}

/// The life of a job: submitted, submitted again, extended, in conflict, completed, reopened.
async fn a_job_is_accepted_extended_and_completed_once(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(5));
    let shape = job.shape;
    let first = job.submission("one", 2);
    let people = job.fingerprints(0..3);
    assert_eq!(store.job(job.id()).await.unwrap(), None);
    assert!(!store.complete(job.id()).await.unwrap());
    assert_eq!(
        store.mark_expanded(job.id(), "one").await.unwrap(),
        JobProgress::default()
    );

    let accepted = store.accept(&first).await.unwrap();
    assert_eq!(
        accepted,
        Accepted::Expand {
            shape,
            first: true,
            template: None,
            slice_recipients: Some(500),
        }
    );
    let accepted = store.accept(&first).await.unwrap();
    assert_eq!(
        accepted,
        Accepted::Again {
            shape,
            template: None,
            slice_recipients: Some(500),
        }
    );
    // A worker with other settings cuts it as it was cut.
    let cut_anew = Submission {
        slice_recipients: 32,
        ..first.clone()
    };
    assert_eq!(store.accept(&cut_anew).await.unwrap(), accepted);
    let other = Submission {
        content_digest: "other".to_owned(),
        ..first.clone()
    };
    let conflict = Accepted::Conflict { job: job.id() };
    assert_eq!(store.accept(&other).await.unwrap(), conflict);

    for _ in 0..2 {
        let progress = store.mark_expanded(job.id(), "one").await.unwrap();
        assert_eq!((progress.accounts.total, progress.finished), (2, false));
    }
    let id = SliceId::new("one", 0);
    let sent = all(&people[..2], Outcome::Sent);
    let progress = settle(store, job.slice(&id, 2), ANN, &sent, true).await;
    assert!(progress.finished && !progress.completed);
    assert!(store.complete(job.id()).await.unwrap());
    assert!(!store.complete(job.id()).await.unwrap());
    assert_eq!(store.accept(&first).await.unwrap(), Accepted::Settled);
    assert_eq!(store.accept(&other).await.unwrap(), conflict);
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!(record.state, JobState::Completed);
    assert_eq!((record.pending, record.rebuilt), (0, false));
    assert!(record.completed_at_ms >= record.progress_at_ms);
    assert_eq!(record.accepted_at_ms, first.now_ms);
    assert_eq!(
        (
            record.app.as_str(),
            record.target.as_str(),
            record.content_digest.as_deref()
        ),
        ("shop", TARGET, Some("d"))
    );
    let progress = settle(store, job.slice(&id, 2), ANN, &sent, true).await;
    assert!(progress.finished && progress.completed);

    // Further recipients, from a submitter that would have chosen another shape. It is not much
    // larger, since a ledger may choose a new layout for that.
    let second = Submission {
        shape: Shape::of(5_000),
        ..job.submission("two", 3)
    };
    let accepted = store.accept(&second).await.unwrap();
    assert_eq!(
        accepted,
        Accepted::Expand {
            shape,
            first: false,
            template: None,
            slice_recipients: Some(500),
        }
    );
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!(record.state, JobState::Running);
    assert_eq!((record.submissions, record.pending), (2, 3));
    assert!(!store.complete(job.id()).await.unwrap());
    let id = SliceId::new("two", 0);
    let sent = all(&people, Outcome::Sent);
    settle(store, job.slice(&id, 3), ANN, &sent, true).await;
    assert!(!store.complete(job.id()).await.unwrap());
    assert!(store.mark_expanded(job.id(), "two").await.unwrap().finished);
    assert!(store.complete(job.id()).await.unwrap());
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!((record.accounts.sent, record.accounts.duplicate), (3, 2));
}

/// A job announced in parts does not finish before the last of them.
async fn a_job_of_parts_waits_for_all_of_them(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(5));
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
        let progress = store.mark_expanded(job.id(), name).await.unwrap();
        assert_eq!(progress.finished, number == 1);
    }
}

/// A job for all users: the request is a submission without recipients, and its parts say how many
/// there are.
async fn a_submission_without_recipients_waits_for_its_parts(bench: &impl StoreBench) {
    let store = bench.store();
    for last_entries in [1, 0] {
        let job = Job::new(5);
        let people = job.fingerprints(0..2);
        for (number, (name, entries, parts)) in
            [("all", 0, 2), ("part 1", 1, 3), ("part 2", last_entries, 3)]
                .into_iter()
                .enumerate()
        {
            let part = Submission {
                parts,
                ..job.submission(name, entries)
            };
            store.accept(&part).await.unwrap();
            if entries == 1 {
                let id = SliceId::new(name, 0);
                let sent = [(people[number - 1], Outcome::Sent)];
                let progress = settle(store, job.slice(&id, 1), ANN, &sent, true).await;
                assert!(!progress.finished, "{name}");
            }
            for _ in 0..2 {
                let progress = store.mark_expanded(job.id(), name).await.unwrap();
                assert_eq!(progress.finished, number == 2, "{name}");
            }
            assert_eq!(store.complete(job.id()).await.unwrap(), number == 2);
        }
    }
}

fn part_of(list: &str, number: u32, of: u32) -> Together {
    Together {
        list: list.to_owned(),
        number,
        of,
    }
}

/// Parts are counted by name: a repeated part does not count, and neither does a part that the job
/// had before.
async fn a_list_in_parts_is_there_with_its_last_part(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(5));
    let gather = async |list: &str, number| {
        let part = part_of(list, number, 3);
        store.gather(job.id(), &part, false).await.unwrap()
    };
    // For a job that the ledger does not know, it cannot tell, and answers `Complete`.
    assert_eq!(gather("a", 1).await, Gathered::Complete);
    let names = ["test", "one", "two"].map(str::to_owned);
    for name in &names {
        assert!(!store.knows(job.id(), &names).await.unwrap());
        store.accept(&job.submission(name, 1)).await.unwrap();
        store.mark_expanded(job.id(), name).await.unwrap();
    }
    assert!(store.knows(job.id(), &names).await.unwrap());
    for number in [1, 1, 3, 3] {
        assert_eq!(gather("a", number).await, Gathered::Waiting);
    }
    assert_eq!(gather("b", 2).await, Gathered::Waiting);
    assert_eq!(gather("a", 2).await, Gathered::Complete);
    assert_eq!(gather("a", 1).await, Gathered::Complete);
    let complete = part_of("a", 1, 3);
    let late = store.gather(job.id(), &complete, true).await.unwrap();
    assert_eq!(late, Gathered::Complete);
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!((record.submissions, record.accounts.total), (3, 3));
}

async fn a_list_that_was_given_up_stays_so_and_its_job_completes(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(5));
    let submission = |name: &str| Submission {
        parts: 2,
        ..job.submission(name, 1)
    };
    let people = job.fingerprints(0..2);
    let gather = async |number, give_up| {
        let part = part_of("a", number, 2);
        store.gather(job.id(), &part, give_up).await.unwrap()
    };
    for (number, name, finished) in [(1, "one", true), (2, "two", true)] {
        store.accept(&submission(name)).await.unwrap();
        if number == 1 {
            assert_eq!(gather(1, false).await, Gathered::Waiting);
            assert_eq!(gather(1, true).await, Gathered::GivenUp);
        }
        assert_eq!(gather(number, false).await, Gathered::GivenUp);
        store.mark_expanded(job.id(), name).await.unwrap();
        let id = SliceId::new(name, 0);
        let cancelled = [(people[number as usize - 1], Outcome::Cancelled)];
        let progress = settle(store, job.slice(&id, 1), ANN, &cancelled, true).await;
        assert_eq!(progress.finished, finished);
        assert!(store.complete(job.id()).await.unwrap());
    }
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!((record.accounts.cancelled, record.pending), (2, 0));
}

async fn jobs_are_listed_newest_first(bench: &impl StoreBench) {
    let store = bench.store();
    let jobs: Vec<_> = (0..5).map(|_| Job::new(1)).collect();
    for (number, job) in jobs.iter().enumerate() {
        let submission = Submission {
            now_ms: job.head.accepted_at_ms + number as u64,
            ..job.submission("s", 1)
        };
        store.accept(&submission).await.unwrap();
    }
    // A further use does not change the place.
    let again = Submission {
        now_ms: jobs[0].head.accepted_at_ms + 100,
        ..jobs[0].submission("t", 1)
    };
    store.accept(&again).await.unwrap();
    let mut ids: Vec<_> = jobs.iter().map(Job::id).collect();
    ids.reverse();
    assert_eq!(list(store, JobFilter::default(), 100).await, ids);
    let page = store.jobs(&query(JobFilter::default(), 3)).await.unwrap();
    assert_eq!(ids_of(&page), ids[..3]);
    assert!(page.next.is_some());
    let none = store.jobs(&query(JobFilter::default(), 0)).await.unwrap();
    assert!(none.jobs.is_empty());
}

fn query(filter: JobFilter, most: usize) -> JobQuery {
    JobQuery {
        filter,
        after: None,
        most,
    }
}

fn ids_of(page: &JobPage) -> Vec<JobId> {
    page.jobs.iter().map(|record| record.job).collect()
}

/// All jobs that match, page by page.
async fn list(store: &impl Ledger, filter: JobFilter, most: usize) -> Vec<JobId> {
    let mut query = query(filter, most);
    let mut ids = Vec::new();
    loop {
        let page = store.jobs(&query).await.unwrap();
        assert!(page.jobs.len() <= most);
        ids.extend(ids_of(&page));
        if page.next.is_none() {
            return ids;
        }
        query.after = page.next;
    }
}

/// Pages of any size show every job once, although many were accepted in one millisecond and others
/// arrive meanwhile. A job is found behind any number of jobs that do not match.
async fn pages_of_jobs_leave_out_nobody(bench: &impl StoreBench) {
    let store = bench.store();
    let base = Job::new(1).head.accepted_at_ms;
    let accept = async |at_ms: u64| {
        let job = Job::new(1);
        let submission = Submission {
            now_ms: at_ms,
            ..job.submission("s", 1)
        };
        store.accept(&submission).await.unwrap();
        JobPlace {
            at_ms,
            job: job.id(),
        }
    };
    let oldest = accept(base - 1).await;
    let times = (0..2_300).map(|number| base + if number < 2_250 { 0 } else { number });
    // Many at a time, and not all: they share one client.
    let accepting = stream::iter(times.map(accept)).buffered(256);
    let mut places: Vec<_> = accepting.collect().await;
    places.push(oldest);
    places.sort();
    places.reverse();
    let expected: Vec<_> = places.iter().map(|place| place.job).collect();
    for most in [70, 1000, 5000] {
        assert!(
            list(store, JobFilter::default(), most).await == expected,
            "{most}"
        );
    }
    let record = store.job(oldest.job).await.unwrap().unwrap();
    let named = JobFilter {
        client_msg_no: Some(record.client_msg_no),
        ..JobFilter::default()
    };
    assert_eq!(list(store, named, 3).await, [oldest.job]);

    let first = store.jobs(&query(JobFilter::default(), 10)).await.unwrap();
    accept(base + 10_000).await;
    accept(base + 10_000).await;
    let second = JobQuery {
        after: first.next,
        ..query(JobFilter::default(), 10)
    };
    let second = store.jobs(&second).await.unwrap();
    assert_eq!([ids_of(&first), ids_of(&second)].concat(), expected[..20]);
}

/// A query reads the records of those jobs that may match, and not of all others first.
async fn a_job_is_found_behind_many_others(bench: &impl StoreBench) {
    let store = bench.store();
    let mut open = Job::new(1);
    open.head.app = "rare".to_owned();
    open.head.target = "rare-im".to_owned();
    open.head.id = JobId::of("rare", &open.head.client_msg_no);
    let begun = Submission {
        tags: vec!["first".to_owned(), "rare".to_owned()],
        ..open.submission("s", 1)
    };
    store.accept(&begun).await.unwrap();
    let id = SliceId::new("s", 0);
    let completed = |number: u64| {
        let id = &id;
        let begun = &begun;
        async move {
            let job = Job::new(1);
            let submission = Submission {
                now_ms: begun.now_ms + 1 + number,
                expanded: true,
                ..job.submission("s", 1)
            };
            store.accept(&submission).await.unwrap();
            let sent = all(&job.fingerprints(0..1), Outcome::Sent);
            let progress = settle(store, job.slice(id, 1), ANN, &sent, true).await;
            assert!(progress.finished, "it needs no further mark");
            assert!(store.complete(job.id()).await.unwrap());
        }
    };
    stream::iter((0..COMPLETED).map(completed))
        .buffer_unordered(200)
        .collect::<()>()
        .await;
    let running = JobFilter {
        state: Some(JobState::Running),
        ..JobFilter::default()
    };
    let any = JobFilter::default;
    let text = |text: &str| Some(text.to_owned());
    let named = |tag: &str| JobFilter {
        tag: text(tag),
        ..any()
    };
    let filters = [
        running.clone(),
        JobFilter {
            app: text("rare"),
            ..any()
        },
        JobFilter {
            target: text("rare-im"),
            ..any()
        },
        named("first"),
        named("rare"),
        JobFilter {
            client_msg_no: Some(open.head.client_msg_no.clone()),
            ..any()
        },
        JobFilter {
            app: text("rare"),
            ..running.clone()
        },
    ];
    for filter in filters {
        let page = store.jobs(&query(filter.clone(), 10)).await.unwrap();
        let found = (ids_of(&page), page.next);
        assert_eq!(found, (vec![open.id()], None), "{filter:?}");
        for completed in [JobState::Completed, JobState::Accepted] {
            let none = JobFilter {
                state: Some(completed),
                ..filter.clone()
            };
            let expected = match filter == running && completed == JobState::Completed {
                true => 10,
                false => 0,
            };
            let page = store.jobs(&query(none, 10)).await.unwrap();
            assert_eq!(page.jobs.len(), expected, "{filter:?}");
            assert_eq!(page.next.is_some(), expected > 0, "{filter:?}");
        }
    }
    for nobody in [named("ra"), named("rare-im"), named("")] {
        let page = store.jobs(&query(nobody, 10)).await.unwrap();
        assert_eq!((page.jobs.len(), page.next), (0, None));
    }
    let since = JobFilter {
        since_ms: Some(begun.now_ms + 1),
        ..running
    };
    assert!(list(store, since, 10).await.is_empty());
}

/// Also after it was asked for, so that nothing that an engine remembers of it is old.
async fn the_list_of_open_jobs_follows_every_change(bench: &impl StoreBench) {
    let store = bench.store();
    let jobs: Vec<_> = (0..4u64)
        .map(|number| {
            let mut job = Job::new(1);
            job.head.accepted_at_ms += number;
            job
        })
        .collect();
    let listed = async |state: JobState, expected: &[usize]| {
        let open = JobFilter {
            state: Some(state),
            ..JobFilter::default()
        };
        let expected: Vec<_> = expected.iter().map(|number| jobs[*number].id()).collect();
        for most in [1, 9] {
            assert_eq!(list(store, open.clone(), most).await, expected, "{state:?}");
        }
    };
    let (accepted, running) = (JobState::Accepted, JobState::Running);
    let accept = async |job: &Job, name: &str| {
        let submission = Submission {
            now_ms: job.head.accepted_at_ms,
            expanded: true,
            ..job.submission(name, 1)
        };
        store.accept(&submission).await.unwrap();
    };
    let end = async |job: &Job, name: &str, people: Range<u32>| {
        let id = SliceId::new(name, 0);
        let sent = all(&job.fingerprints(people), Outcome::Sent);
        settle(store, job.slice(&id, 1), ANN, &sent, true).await;
        assert!(store.complete(job.id()).await.unwrap());
    };
    listed(running, &[]).await;
    store.enter(&entry(&jobs[0], 1)).await.unwrap();
    store.enter(&entry(&jobs[1], 1)).await.unwrap();
    listed(accepted, &[1, 0]).await;
    store.withdraw(jobs[1].id()).await.unwrap();
    accept(&jobs[0], "s").await;
    accept(&jobs[2], "s").await;
    listed(accepted, &[]).await;
    listed(running, &[2, 0]).await;
    end(&jobs[2], "s", 0..1).await;
    end(&jobs[0], "s", 0..1).await;
    listed(running, &[]).await;
    // Further recipients, and a slice of a job that is not known.
    accept(&jobs[2], "t").await;
    listed(running, &[2]).await;
    let id = SliceId::new("s", 0);
    let people = jobs[3].fingerprints(0..1);
    let lease = Duration::from_secs(60);
    claim(store, jobs[3].slice(&id, 2), ANN, lease, &people).await;
    listed(running, &[3, 2]).await;
    end(&jobs[2], "t", 1..2).await;
    listed(running, &[3]).await;
    let mut open = Vec::new();
    store.each_open(|job| open.push(job.job)).await.unwrap();
    assert_eq!(open, [jobs[3].id()]);
}

/// More than the records that a query reads.
const COMPLETED: u64 = 2_100;

async fn jobs_are_found_by_what_is_known_of_them(bench: &impl StoreBench) {
    let store = bench.store();
    let base = Job::new(1).head.accepted_at_ms;
    let mut jobs = Vec::new();
    for number in 0..6u64 {
        let mut job = Job::new(1);
        job.head.app = if number < 3 { "shop" } else { "bank" }.to_owned();
        job.head.target = if number % 2 == 0 { "im" } else { "hook" }.to_owned();
        job.head.id = JobId::of(&job.head.app, &job.head.client_msg_no);
        let submission = Submission {
            now_ms: base + number,
            ..job.submission("s", 1)
        };
        store.accept(&submission).await.unwrap();
        jobs.push(job);
    }
    let slice = SliceId::new("s", 0);
    let people = jobs[1].fingerprints(0..1);
    let sent = all(&people, Outcome::Sent);
    settle(store, jobs[1].slice(&slice, 1), ANN, &sent, true).await;
    store.mark_expanded(jobs[1].id(), "s").await.unwrap();
    assert!(store.complete(jobs[1].id()).await.unwrap());

    let check = async |filter: JobFilter, expected: &[usize]| {
        let expected: Vec<_> = expected.iter().map(|number| jobs[*number].id()).collect();
        assert_eq!(list(store, filter.clone(), 2).await, expected, "{filter:?}");
    };
    let every = JobFilter::default;
    let text = |text: &str| Some(text.to_owned());
    check(
        JobFilter {
            app: text("bank"),
            ..every()
        },
        &[5, 4, 3],
    )
    .await;
    check(
        JobFilter {
            target: text("im"),
            ..every()
        },
        &[4, 2, 0],
    )
    .await;
    let both = JobFilter {
        app: text("shop"),
        target: text("hook"),
        ..every()
    };
    check(both, &[1]).await;
    let named = JobFilter {
        client_msg_no: Some(jobs[4].head.client_msg_no.clone()),
        ..every()
    };
    check(named, &[4]).await;
    check(
        JobFilter {
            state: Some(JobState::Completed),
            ..every()
        },
        &[1],
    )
    .await;
    check(
        JobFilter {
            state: Some(JobState::Running),
            ..every()
        },
        &[5, 4, 3, 2, 0],
    )
    .await;
    let between = JobFilter {
        since_ms: Some(base + 1),
        until_ms: Some(base + 4),
        ..every()
    };
    check(between, &[3, 2, 1]).await;
    check(
        JobFilter {
            since_ms: Some(base + 9),
            ..every()
        },
        &[],
    )
    .await;
}

/// A look returns the states that a claim by a new owner would get, and claims nothing.
async fn looking_claims_nobody(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(4));
    let people = job.fingerprints(0..8);
    store.accept(&job.submission("s", 8)).await.unwrap();
    let record = store.job(job.id()).await.unwrap().unwrap();
    let slice = SliceId::new("s", 0);
    let slice = job.slice(&slice, 8);
    let unseen = vec![ClaimState::Granted; 8];
    for _ in 0..2 {
        assert_eq!(store.peek(&record, &people).await.unwrap(), unseen);
    }
    claim(store, slice, ANN, LEASE, &people[..4]).await;
    let outcomes = [(people[0], Outcome::Sent), (people[1], Outcome::Failed)];
    settle(store, slice, ANN, &outcomes, false).await;
    release(store, slice, ANN, &people[2..3]).await;
    claim(store, slice, BOB, Duration::ZERO, &people[4..5]).await;
    let found = until_ok("the end of a lease", PATIENCE, async || {
        let found = store.peek(&record, &people).await.unwrap();
        let over = found[4] == ClaimState::TakenOver;
        over.then_some(()).ok_or_else(|| format!("{found:?}"))?;
        Ok::<_, String>(found)
    })
    .await;
    assert_eq!(found[0], ClaimState::Settled(Outcome::Sent));
    assert_eq!(found[1], ClaimState::Settled(Outcome::Failed));
    assert_eq!(found[2], ClaimState::Granted);
    assert!(matches!(found[3], ClaimState::Held { left } if left > LEASE / 2));
    assert_eq!(found[5..], unseen[..3]);
    // The order of the request counts, and a recipient named twice is answered twice.
    let mixed = [people[3], people[0], people[5], people[0]];
    let mixed = store.peek(&record, &mixed).await.unwrap();
    assert!(matches!(mixed[0], ClaimState::Held { .. }));
    assert_eq!(
        mixed[1..],
        [found[0], ClaimState::Granted, found[0]],
        "{mixed:?}"
    );
    let others = Job::new(1);
    let unknown = JobRecord {
        job: others.id(),
        ..record
    };
    let nobody = store.peek(&unknown, &people[..1]).await.unwrap();
    assert_eq!(nobody, [ClaimState::Granted]);
    let states = each(claim(store, slice, Owner(0xc), LEASE, &people[5..]).await);
    assert_eq!(states, vec![ClaimState::Granted; 3]);
}

/// A record shows a job's own limit and start, its receiver of notices, and its pace.
async fn a_record_tells_limit_start_and_pace(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(4));
    let first = Submission {
        rate: Some("50/s burst 5".to_owned()),
        sender: Some("news".to_owned()),
        window: Some("09:00-21:00 Asia/Shanghai".to_owned()),
        pace_until_ms: Some(1_700_000_900_000),
        category: Some("marketing".to_owned()),
        not_before_ms: Some(1_700_000_100_000),
        reply_to: Some("done".to_owned()),
        ..job.submission("s", 1000)
    };
    store.accept(&first).await.unwrap();
    let second = Submission {
        callback_url: Some("https://example.com/done".to_owned()),
        reply_to: Some("elsewhere".to_owned()),
        ..job.submission("t", 1)
    };
    store.accept(&second).await.unwrap();
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!(record.reply_to.as_deref(), Some("done"));
    let callback = record.callback_url.as_deref();
    assert_eq!(callback, Some("https://example.com/done"));
    assert_eq!(record.rate.as_deref(), Some("50/s burst 5"));
    let window = record.window.as_deref();
    assert_eq!(window, Some("09:00-21:00 Asia/Shanghai"));
    assert_eq!(record.category.as_deref(), Some("marketing"));
    assert_eq!(record.sender.as_deref(), Some("news"));
    assert_eq!(record.pace_until_ms, Some(1_700_000_900_000));
    assert_eq!(record.not_before_ms, Some(1_700_000_100_000));
    assert_eq!(record.per_second(record.accepted_at_ms), None);

    let people = job.fingerprints(0..1000);
    let slice = SliceId::new("s", 0);
    let slice = job.slice(&slice, 1000);
    let started = Instant::now();
    let mut settled = 0;
    for people in people.chunks(100) {
        settle(store, slice, ANN, &all(people, Outcome::Sent), false).await;
        settled += 100;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let upper = f64::from(settled) / (started.elapsed().as_secs_f64() - 0.2);
    let record = store.job(job.id()).await.unwrap().unwrap();
    let progress = record.progress_at_ms.unwrap();
    let rate = record.per_second(progress).unwrap();
    assert!((100.0..upper).contains(&rate), "{rate}, at most {upper}");
    assert_eq!(record.per_second(progress + 60_000), Some(0.0));
}

async fn an_audit_counts_what_stands(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(200));
    let people = job.fingerprints(0..2000);
    store.accept(&job.submission("s", 2000)).await.unwrap();
    let id = SliceId::new("s", 0);
    let slice = job.slice(&id, 2000);
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!(store.audit(&record).await.unwrap(), Audit::default());
    claim(store, slice, ANN, LEASE, &people[..900]).await;
    let outcomes: Vec<_> = people[..800]
        .iter()
        .zip(
            [
                Outcome::Sent,
                Outcome::Failed,
                Outcome::Uncertain,
                Outcome::Cancelled,
            ]
            .iter()
            .cycle(),
        )
        .map(|(person, outcome)| (*person, *outcome))
        .collect();
    let progress = settle(store, slice, ANN, &outcomes, false).await;
    let audit = store.audit(&record).await.unwrap();
    assert_eq!(
        audit,
        Audit {
            sent: 200,
            failed: 200,
            uncertain: 200,
            expired: 0,
            cancelled: 200,
            capped: 0,
            claimed: 100,
        }
    );
    assert!(audit.differences(&progress.accounts).is_empty());
    assert!(!store.complete(job.id()).await.unwrap(), "1200 are pending");
}

// ---------------------------------------------------------------------------------------------
// Slices that know more than the ledger
// ---------------------------------------------------------------------------------------------

/// Slices of a job that the ledger has lost or forgotten rebuild it: the job finishes and reports
/// that its accounts begin in the middle.
async fn slices_of_an_unknown_job_rebuild_it(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(3));
    let people = job.fingerprints(0..20);
    let ids = [SliceId::new("s", 1), SliceId::new("s", 2)];
    let [one, two] = [job.slice(&ids[0], 10), job.slice(&ids[1], 10)];
    let sent = all(&people[..10], Outcome::Sent);
    let progress = settle(store, one, ANN, &sent, true).await;
    assert_eq!((progress.accounts.total, progress.accounts.sent), (10, 10));
    assert!(progress.finished, "no other recipient is known yet");
    assert!(store.complete(job.id()).await.unwrap());

    let states = each(claim(store, two, BOB, LEASE, &people[10..]).await);
    assert_eq!(states, vec![ClaimState::Granted; 10]);
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert!(record.rebuilt);
    assert_eq!((record.state, record.pending), (JobState::Running, 10));
    assert_eq!(record.client_msg_no, job.head.client_msg_no);
    assert_eq!(record.accepted_at_ms, job.head.accepted_at_ms);
    let listed = store.jobs(&query(JobFilter::default(), 9)).await.unwrap();
    assert_eq!(listed.jobs, [record]);
    let sent = all(&people[10..], Outcome::Sent);
    let progress = settle(store, two, BOB, &sent, true).await;
    assert!(progress.finished);
    assert!(store.complete(job.id()).await.unwrap());

    // The first submission after the rebuild decides the job's content.
    let submission = job.submission("t", 1);
    let shape = job.shape;
    let accepted = store.accept(&submission).await.unwrap();
    assert_eq!(
        accepted,
        Accepted::Expand {
            shape,
            first: false,
            template: None,
            slice_recipients: Some(500),
        }
    );
    let other = Submission {
        content_digest: "other".to_owned(),
        ..submission
    };
    let conflict = Accepted::Conflict { job: job.id() };
    assert_eq!(store.accept(&other).await.unwrap(), conflict);
}

/// An intake that expands a submission again meets the slices that came before it: each recipient
/// counts once.
async fn a_submission_accepted_after_its_slices_counts_once(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(3));
    let people = job.fingerprints(0..20);
    let ids = [SliceId::new("s", 0), SliceId::new("s", 1)];
    let [one, two] = [job.slice(&ids[0], 10), job.slice(&ids[1], 10)];
    claim(store, one, ANN, LEASE, &people[..10]).await;
    let accepted = store.accept(&job.submission("s", 20)).await.unwrap();
    assert_eq!(
        accepted,
        Accepted::Again {
            shape: job.shape,
            template: None,
            slice_recipients: Some(500),
        }
    );
    let sent = all(&people[..10], Outcome::Sent);
    let progress = settle(store, one, ANN, &sent, true).await;
    assert_eq!(progress.accounts.total, 20);
    assert!(!progress.finished);
    let sent = all(&people[10..], Outcome::Sent);
    settle(store, two, ANN, &sent, true).await;
    let progress = store.mark_expanded(job.id(), "s").await.unwrap();
    assert_eq!((progress.accounts.sent, progress.finished), (20, true));
}

/// Another submission came first and chose another shape: slices cut in the old shape are looked up
/// where the new ones are, so each recipient still counts once.
async fn slices_of_another_shape_find_the_same_recipients(bench: &impl StoreBench) {
    let (store, mut job) = (bench.store(), Job::new(3));
    let people = job.fingerprints(0..50);
    store.accept(&job.submission("new", 50)).await.unwrap();
    let id = SliceId::new("new", 0);
    let new = job.slice(&id, 50);
    let sent = all(&people[..20], Outcome::Sent);
    settle(store, new, ANN, &sent, false).await;
    claim(store, new, ANN, LEASE, &people[20..]).await;

    let shape = job.shape;
    job.shape = Shape::of(40_000);
    let id = SliceId::new("old", 0);
    let old = job.slice(&id, 50);
    let states = each(claim(store, old, BOB, LEASE, &people).await);
    assert_eq!(states[..20], [ClaimState::Settled(Outcome::Sent); 20]);
    assert!(matches!(states[20], ClaimState::Held { .. }));
    assert!(store.renew(old, ANN, LEASE, &people[20..]).await.unwrap());
    let progress = settle(store, old, BOB, &all(&people, Outcome::Sent), true).await;
    assert_eq!((progress.accounts.total, progress.accounts.sent), (100, 50));
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!(record.shape, shape);
    assert_eq!(store.audit(&record).await.unwrap().sent, 50);
}

// ---------------------------------------------------------------------------------------------
// Against a model
// ---------------------------------------------------------------------------------------------

/// Slices of the model: their recipients, which overlap, and their number of entries.
const SLICES: [(Range<usize>, u32); 3] = [(0..8, 8), (4..12, 9), (0..12, 15)];

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
        doubted: Vec<usize>,
        unused: Vec<usize>,
        last: Option<u32>,
        /// What the owner claims in the same step.
        then: Option<Vec<usize>>,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop::sample::select(Outcome::ALL.to_vec());
    let some = || prop::collection::vec(0..12usize, 0..6);
    let step = prop_oneof![
        (0..3usize, 0..3u64, some()).prop_map(
            // A lease may belong to the owner as a whole, so all claims of an owner expire or none
            // does.
            |(slice, owner, recipients)| Step::Claim {
                expires: owner % 2 == 1,
                slice,
                owner,
                recipients,
            }
        ),
        (0..3usize, 0..3u64, some()).prop_map(|(slice, owner, recipients)| {
            Step::Renew {
                expires: owner % 2 == 1,
                slice,
                owner,
                recipients,
            }
        }),
        (
            0..3usize,
            0..3u64,
            prop::collection::vec((0..12usize, outcome), 0..5),
            some(),
            some(),
            some(),
            prop::option::weighted(0.1, 0..10u32),
            prop::option::of(some()),
        )
            .prop_map(
                |(slice, owner, outcomes, release, doubted, unused, last, then)| {
                    Step::Settle {
                        slice,
                        owner,
                        outcomes,
                        release,
                        doubted,
                        unused,
                        last,
                        then,
                    }
                }
            ),
    ];
    prop::collection::vec(step, 1..60)
}

/// Claims that a step gives up, by the way in which it does.
struct GivenUp {
    release: Vec<usize>,
    doubted: Vec<usize>,
    unused: Vec<usize>,
}

#[derive(Clone, Copy, Debug)]
enum Held {
    Claimed {
        owner: u64,
        expired: bool,
        in_doubt: bool,
    },
    InDoubt,
    Settled(Outcome),
}

/// The expected behaviour of the ledger, as simply as possible.
#[derive(Default)]
struct Model {
    held: HashMap<usize, Held>,
    counted: [u32; 3],
    accounts: Accounts,
}

impl Model {
    /// `None` means that the slice is done; any wait equals any other.
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
            Some(Held::InDoubt) => ClaimState::InDoubt,
            // The claim is repeated, perhaps because the answer was lost, so the doubt is reported
            // again.
            Some(Held::Claimed {
                owner: other,
                in_doubt,
                ..
            }) if *other == owner => match in_doubt {
                true => ClaimState::InDoubt,
                false => ClaimState::Granted,
            },
            Some(Held::Claimed { expired: true, .. }) => ClaimState::TakenOver,
            Some(Held::Claimed { .. }) => ClaimState::Held {
                left: Duration::ZERO,
            },
        };
        let states: Vec<_> = recipients.iter().map(state).collect();
        for (recipient, state) in recipients.iter().zip(&states) {
            if !matches!(state, ClaimState::Held { .. } | ClaimState::Settled(_)) {
                let mine = Held::Claimed {
                    owner,
                    expired,
                    in_doubt: *state != ClaimState::Granted,
                };
                self.held.insert(*recipient, mine);
            }
        }
        Some(states)
    }

    fn is_own(&self, recipient: usize, me: u64) -> bool {
        matches!(self.held.get(&recipient), Some(Held::Claimed { owner, .. }) if *owner == me)
    }

    fn renew(&mut self, owner: u64, recipients: &[usize], expired: bool) -> bool {
        let mut whole = true;
        for recipient in recipients {
            match self.held.get_mut(recipient) {
                Some(Held::Claimed {
                    owner: holder,
                    expired: old,
                    ..
                }) if *holder == owner => *old = expired,
                _ => whole = false,
            }
        }
        whole
    }

    fn settle(
        &mut self,
        slice: usize,
        owner: u64,
        outcomes: &[(usize, Outcome)],
        given_up: &GivenUp,
        last: Option<u32>,
    ) {
        let GivenUp {
            release,
            doubted,
            unused,
        } = given_up;
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
        // Of several ways to give up a claim, doubt wins.
        for recipient in doubted {
            if self.is_own(*recipient, owner) {
                self.held.insert(*recipient, Held::InDoubt);
            }
        }
        for recipient in unused {
            match self.held.get(recipient) {
                Some(Held::Claimed { in_doubt, .. }) if self.is_own(*recipient, owner) => {
                    if *in_doubt {
                        self.held.insert(*recipient, Held::InDoubt);
                    } else {
                        self.held.remove(recipient);
                    }
                }
                _ => {}
            }
        }
        for recipient in release {
            if self.is_own(*recipient, owner) {
                self.held.remove(recipient);
            }
        }
        if last.is_some_and(|repeats| entries - self.counted[slice] <= repeats) {
            self.accounts.duplicate += u64::from(entries - self.counted[slice]);
            self.counted[slice] = entries;
        }
    }

    fn audit(&self) -> Audit {
        let mut audit = Audit::default();
        for held in self.held.values() {
            match held {
                Held::Claimed { .. } | Held::InDoubt => audit.claimed += 1,
                Held::Settled(outcome) => audit.count(*outcome),
            }
        }
        audit
    }
}

/// Promise 2 on the ledger: whatever owners claim, renew, release and settle, in any order and in
/// slices that overlap, the accounts and the states are those of the model, and at the end they are
/// exact.
fn accounts_are_exact<T: StoreBench>(start: impl AsyncFn() -> Option<T>, finish: impl AsyncFn(T)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let Some(bench) = runtime.block_on(start()) else {
        return;
    };
    let config = Config {
        cases: 10,
        failure_persistence: None,
        ..Config::default()
    };
    // Ten jobs at a time: each waits for the disk after each step, and they wait together.
    TestRunner::new(config)
        .run(&prop::collection::vec(steps(), 10), |jobs| {
            let jobs = jobs.into_iter().map(|steps| play(bench.store(), steps));
            runtime.block_on(join_all(jobs));
            Ok(())
        })
        .unwrap();
    runtime.block_on(finish(bench));
}

#[test]
fn accounts_are_exact_whatever_happens_on_the_embedded_engine() {
    accounts_are_exact(
        async || Some(EmbeddedBench::start().await),
        async |bench| bench.finish().await,
    );
}

#[test]
fn accounts_are_exact_whatever_happens_in_memory() {
    accounts_are_exact(async || Some(MemoryBench::start()), async |_| {});
}

#[test]
fn accounts_are_exact_whatever_happens_on_servers() {
    accounts_are_exact(RedisBench::start, async |bench| bench.finish().await);
}

async fn play(store: &impl Ledger, steps: Vec<Step>) {
    let job = Job::new(3);
    let people = job.fingerprints(0..12);
    let entries: u32 = SLICES.iter().map(|(_, entries)| entries).sum();
    let submission = job.submission("s", entries.into());
    store.accept(&submission).await.unwrap();
    let ids: Vec<_> = (0..3).map(|index| SliceId::new("s", index)).collect();
    let slice = |index: usize| job.slice(&ids[index], SLICES[index].1);
    // A step may only name recipients of its slice.
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
                assert_eq!(states(claimed), expected);
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
                doubted,
                unused,
                last,
                then,
            } => {
                let range = SLICES[index].0.clone();
                // For a recipient with two outcomes in one call the first counts.
                let mut once: BTreeMap<usize, Outcome> = BTreeMap::new();
                for (at, outcome) in &outcomes {
                    if range.contains(at) && *outcome != Outcome::Duplicate {
                        once.entry(*at).or_insert(*outcome);
                    }
                }
                let release = of(index, release);
                let doubted = of(index, doubted);
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
                let doubts = named(&doubted);
                let unused = of(index, unused);
                let kept = named(&unused);
                let given_up = GivenUp {
                    release,
                    doubted,
                    unused,
                };
                let settle = Settle {
                    outcomes: &settled,
                    release: &released,
                    doubted: &doubts,
                    unused: &kept,
                    last,
                    ..Settle::of(slice(index), Owner(owner))
                };
                model.settle(index, owner, &once, &given_up, last);
                let Some(then) = then else {
                    // Twice: the repeated step counts nothing.
                    for _ in 0..2 {
                        let recorded = store.settle(settle).await.unwrap();
                        assert_eq!(recorded.progress.unwrap().accounts, model.accounts);
                    }
                    continue;
                };
                let (then, expires) = (of(index, then), owner % 2 == 1);
                let asked = named(&then);
                let claim = Claim {
                    slice: slice(index),
                    owner: Owner(owner),
                    lease: lease(expires),
                    recipients: &asked,
                };
                let expected = model.claim(index, owner, &then, expires);
                let (recorded, claimed) = store.settle_and_claim(settle, claim).await.unwrap();
                let claimed = states(claimed);
                let granted = |state: &ClaimState| {
                    use ClaimState::{Granted, InDoubt, TakenOver};
                    matches!(state, Granted | InDoubt | TakenOver)
                };
                let goes_on = claimed.iter().flatten().any(granted);
                match recorded.progress {
                    Some(progress) => assert_eq!(progress.accounts, model.accounts),
                    None => assert!(goes_on, "{claimed:?}"),
                }
                assert_eq!(claimed, expected);
            }
        }
    }
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!(store.audit(&record).await.unwrap(), model.audit());

    // After that, every slice is delivered to its end.
    for (index, (range, _)) in SLICES.iter().enumerate() {
        let sent: Vec<_> = range
            .clone()
            .map(|at| (people[at], Outcome::Sent))
            .collect();
        settle(store, slice(index), BOB, &sent, true).await;
    }
    let progress = store.mark_expanded(job.id(), "s").await.unwrap();
    assert_eq!(progress.accounts.settled(), progress.accounts.total);
    assert!(progress.finished);
    let audit = store.audit(&record).await.unwrap();
    assert_eq!(audit.differences(&progress.accounts), Vec::<String>::new());
}

/// Any wait equals any other. `None`: the slice is done.
fn states(claimed: Claimed) -> Option<Vec<ClaimState>> {
    match claimed {
        Claimed::SliceDone => None,
        Claimed::Each(states) => Some(states.into_iter().map(any_wait).collect()),
    }
}

fn any_wait(state: ClaimState) -> ClaimState {
    match state {
        ClaimState::Held { .. } => ClaimState::Held {
            left: Duration::ZERO,
        },
        other => other,
    }
}
