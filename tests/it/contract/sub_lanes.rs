//! Tests the port that assigns jobs to sub-lanes.

use std::collections::BTreeSet;

use fanwise::domain::ids::SliceId;
use fanwise::domain::lane::{APP_SUB_LANES_MAX, Priority, SUB_LANES};
use fanwise::domain::outcome::Outcome;
use fanwise::ports::{Ledger, SubLanes, Unassigned};

use super::ledger::{ANN, Job, settle};
use super::{StoreBench, TARGET};

on_all! { EmbeddedBench, RedisBench, ClusterBench:
    open_jobs_do_not_stand_in_line_while_a_sub_lane_is_free,
    a_job_stays_where_it_is,
    targets_and_priorities_are_apart,
    what_a_job_has_left_decides,
    a_job_that_ends_makes_room,
    jobs_that_are_assigned_at_once_are_spread,
}

/// Registers a job of so many recipients.
async fn open(store: &impl Ledger, recipients: u64) -> Job {
    let job = Job::new(3);
    store
        .accept(&job.submission("s", recipients))
        .await
        .unwrap();
    job
}

async fn assign(store: &impl SubLanes, job: &Job, recipients: u64) -> u32 {
    let unassigned = Unassigned {
        job: job.id(),
        app: &job.head.app,
        target: &job.head.target,
        priority: job.head.priority,
        recipients,
    };
    store.assign(&unassigned).await.unwrap()
}

async fn open_and_assign(store: &(impl Ledger + SubLanes), recipients: u64) -> (Job, u32) {
    let job = open(store, recipients).await;
    let sub_lane = assign(store, &job, recipients).await;
    (job, sub_lane)
}

async fn open_jobs_do_not_stand_in_line_while_a_sub_lane_is_free(bench: &impl StoreBench) {
    let store = bench.store();
    let mut taken = BTreeSet::new();
    for _ in 0..APP_SUB_LANES_MAX {
        let (_, sub_lane) = open_and_assign(store, 1_000_000).await;
        assert!(sub_lane < SUB_LANES);
        assert!(taken.insert(sub_lane), "{taken:?} {sub_lane}");
    }
}

async fn a_job_stays_where_it_is(bench: &impl StoreBench) {
    let store = bench.store();
    let (first, at) = open_and_assign(store, 50_000).await;
    for _ in 0..3 {
        open_and_assign(store, 50_000).await;
        assert_eq!(assign(store, &first, 50_000).await, at);
        // Its next part is small.
        assert_eq!(assign(store, &first, 200).await, at);
    }
}

async fn targets_and_priorities_are_apart(bench: &impl StoreBench) {
    let store = bench.store();
    let (job, at) = open_and_assign(store, 50_000).await;
    let (target, priority) = (job.head.target.as_str(), job.head.priority);
    let another = |target, priority| Unassigned {
        job: job.id(),
        app: "shop",
        target,
        priority,
        recipients: 50_000,
    };
    assert_eq!((target, priority), (TARGET, Priority::Normal));
    for other in [another("other", priority), another(target, Priority::Bulk)] {
        assert_eq!(store.assign(&other).await.unwrap(), at);
    }
}

async fn what_a_job_has_left_decides(bench: &impl StoreBench) {
    let store = bench.store();
    let mut jobs = Vec::new();
    for _ in 0..APP_SUB_LANES_MAX {
        jobs.push(open_and_assign(store, 20_000).await);
    }
    // Some of the third job's recipients have their outcome.
    let (job, at) = &jobs[2];
    let id = SliceId::new("s", 0);
    let people = job.fingerprints(0..10);
    let sent: Vec<_> = people.iter().map(|it| (*it, Outcome::Sent)).collect();
    settle(store, job.slice(&id, 10), ANN, &sent, false).await;
    assert_eq!(open_and_assign(store, 20_000).await.1, *at);
}

async fn a_job_that_ends_makes_room(bench: &impl StoreBench) {
    let store = bench.store();
    for _ in 0..40 {
        // However many jobs there were: each of them has ended before the next one comes.
        let (job, sub_lane) = open_and_assign(store, 1_000_000).await;
        assert_eq!(sub_lane, 0);
        let id = SliceId::new("s", 0);
        store.mark_expanded(job.id(), "s").await.unwrap();
        // The rest of the entries are repeats.
        let people = job.fingerprints(0..1);
        let sent = [(people[0], Outcome::Sent)];
        settle(store, job.slice(&id, 1_000_000), ANN, &sent, true).await;
        assert!(store.complete(job.id()).await.unwrap());
    }
}

async fn jobs_that_are_assigned_at_once_are_spread(bench: &impl StoreBench) {
    let store = bench.store();
    let mut jobs = Vec::new();
    for _ in 0..APP_SUB_LANES_MAX {
        jobs.push(open(store, 50_000).await);
    }
    let at_once = jobs.iter().map(|job| assign(store, job, 50_000));
    let sub_lanes = futures_util::future::join_all(at_once).await;
    let different: BTreeSet<_> = sub_lanes.iter().collect();
    assert_eq!(different.len(), jobs.len(), "{sub_lanes:?}");
}
