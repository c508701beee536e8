//! Kills a real process with the embedded engine at any moment, again and again: everything that
//! the engine confirmed with `Ok` is still there. The child is this test binary, started with the
//! name of one test and with a folder in the environment. It prints what the engine confirmed.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::time::Duration;

use fanwise::domain::ids::{Owner, SliceId};
use fanwise::domain::outcome::Outcome;
use fanwise::domain::schedule::RUNGS;
use fanwise::embedded::{Engine, OpenError, Settings};
use fanwise::ports::{
    Broker, ClaimState, Claimed, Consumer, Ledger, Limiter, Park, ParkReason, Publisher,
    RetainedQueue, RetainedQueues, Route, Session, Source,
};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::ledger::{Job, LEASE, all, claim, each, settle};
use super::{PATIENCE, TARGET, bulk, dead_letter, express, open, outgoing, settings, slice};
use crate::support::process::Process;
use crate::support::scratch::Scratch;
use crate::support::wait::until;

const CHILD: &str = "FANWISE_TEST_CHILD";

/// Recipients in one claim.
const WINDOW: u32 = 20;

/// The job of the children: more recipients than they can claim.
fn job() -> Job {
    Job::named("crash", 500)
}

fn slice_id() -> SliceId {
    SliceId::new("s", 0)
}

const ENTRIES: u32 = 1_000_000;

/// Starts this test binary as a child that runs one test of this module.
fn start(test: &str, value: &str) -> Process {
    let name = format!("contract::crash::{test}");
    let arguments = [name.as_str(), "--exact", "--nocapture", "--test-threads=1"];
    Process::start(
        &env::current_exe().unwrap(),
        &arguments,
        &[(CHILD, value)],
        b"",
    )
}

/// The child: works until it is killed. Without the environment variable it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_works() {
    let Ok(value) = env::var(CHILD) else { return };
    let (round, folder) = value.split_once(' ').unwrap();
    let round: u32 = round.parse().unwrap();
    let settings = Settings {
        targets: vec![TARGET.to_owned()],
        ..Settings::new(folder)
    };
    let engine = Engine::open(&settings).unwrap();
    println!("open");
    let session = engine.broker().connect().await.unwrap();
    let mut tasks = JoinSet::new();
    for task in 0..3 {
        let publisher = session.publisher();
        tasks.spawn(async move {
            for number in 0.. {
                let name = format!("{round}-{task}-{number}");
                let lane = bulk();
                let rung = RUNGS[0];
                let message = match number % 3 {
                    0 => slice(name.clone()),
                    1 => outgoing(Route::Wait { lane, rung }, name.clone()),
                    _ => dead_letter(name.clone()),
                };
                publisher.publish(vec![message]).await.unwrap();
                println!("published {name}");
            }
        });
    }
    let mut consumer = session.consume(Source::Lane(express()), 4).await.unwrap();
    tasks.spawn(async move {
        // Every other message is held, the others are acked.
        let mut kept = Vec::new();
        while let Some(delivery) = consumer.next().await {
            let name = String::from_utf8(delivery.body.to_vec()).unwrap();
            if name.ends_with(['0', '2', '4', '6', '8']) && kept.len() < 3 {
                println!("taken {name}");
                kept.push(delivery);
                continue;
            }
            println!("acking {name}");
            delivery.ack().await.unwrap();
        }
    });
    let store = engine.store();
    store
        .accept(&job().submission("s", ENTRIES.into()))
        .await
        .unwrap();
    let until_ms = u64::MAX - u64::from(round);
    let park = Park {
        since_ms: 0,
        until_ms,
        reason: ParkReason::Operator,
        code: String::new(),
        text: round.to_string(),
    };
    store.unpark(TARGET).await.unwrap();
    store.park(TARGET, &park).await.unwrap();
    println!("parked {round}");
    for task in 0..3u32 {
        let store = store.clone();
        tasks.spawn(async move {
            let (job, id) = (job(), slice_id());
            let slice = job.slice(&id, ENTRIES);
            for window in 0.. {
                let first = (round * 3 + task) * 10_000 + window * WINDOW;
                let people = job.fingerprints(first..first + WINDOW);
                let owner = Owner(fastrand::u64(..));
                let states = each(claim(&store, slice, owner, LEASE, &people).await);
                assert!(states.iter().all(|state| *state == ClaimState::Granted));
                println!("claimed {first}");
                let outcome = [Outcome::Sent, Outcome::Failed][window as usize % 2];
                let outcomes = all(&people, outcome);
                let progress = settle(&store, slice, owner, &outcomes, false).await;
                println!("settled {first} {}", outcome.as_str());
                assert!(progress.accounts.settled() > 0);
            }
        });
    }
    tasks.join_next().await.unwrap().unwrap();
}

/// The confirmations that children got, over all rounds.
#[derive(Default)]
struct Told {
    published: BTreeSet<String>,
    /// Acks in progress; the broker may or may not have removed the message.
    acking: BTreeSet<String>,
    claimed: BTreeSet<u32>,
    settled: BTreeMap<u32, String>,
    parked: Option<u32>,
}

impl Told {
    fn parse(&mut self, output: &str) {
        // The last line may be incomplete.
        let whole = output.rfind('\n').map_or("", |end| &output[..end]);
        for line in whole.lines() {
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["published", name] => drop(self.published.insert(name.to_owned())),
                ["acking", name] => drop(self.acking.insert(name.to_owned())),
                ["claimed", first] => drop(self.claimed.insert(first.parse().unwrap())),
                ["settled", first, outcome] => {
                    let outcome = outcome.to_owned();
                    self.settled.insert(first.parse().unwrap(), outcome);
                }
                ["parked", round] => self.parked = Some(round.parse().unwrap()),
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn whatever_was_confirmed_survives_a_kill() {
    let folder = Scratch::new("crash");
    let data = folder.path().join("data").display().to_string();
    let mut told = Told::default();
    for round in 0..4 {
        let mut child = start("child_that_works", &format!("{round} {data}"));
        child.until_prints("settled", PATIENCE).await;
        // The child is killed somewhere in the middle of its work.
        let some = fastrand::usize(15..60);
        until("some work of the child", PATIENCE, async || {
            let told = child.stdout();
            let has = |what: &str| told.matches(what).count() >= some;
            (has("published ") && has("settled ")).then_some(())
        })
        .await;
        child.kill();
        told.parse(&child.stdout());

        let engine = open(&folder);
        check_ledger(&engine, &mut told).await;
        check_messages(&engine, &told).await;
        engine.close().await;
    }
    assert!(told.published.len() > 50 && told.settled.len() > 20);
}

/// Every published message is in its queue or in its retained queue once, unless it was acked.
async fn check_messages(engine: &Engine, told: &Told) {
    let broker = engine.broker();
    let mut found = BTreeSet::new();
    let mut find = |body: &[u8]| {
        let name = String::from_utf8(body.to_vec()).unwrap();
        assert!(found.insert(name.clone()), "{name} is there twice");
    };
    let letters = broker.read(RetainedQueue::Dead, |message| {
        find(&message.body);
        std::ops::ControlFlow::Continue(())
    });
    letters.await.unwrap();
    let session = broker.connect().await.unwrap();
    // Nothing is acked, so all messages come back in the next round.
    for source in [Source::Lane(express()), Source::Lane(bulk())] {
        let mut consumer = session.consume(source, 0).await.unwrap();
        let moment = RUNGS[0] + Duration::from_secs(1);
        while let Ok(delivery) = timeout(moment, consumer.next()).await {
            find(&delivery.unwrap().body);
        }
    }
    session.close().await;
    for name in &told.published {
        assert!(
            found.contains(name) || told.acking.contains(name),
            "{name} was published and is lost"
        );
    }
}

/// Every outcome is kept, every recipient that is claimed and not settled is in doubt, and the
/// accounts are exact.
async fn check_ledger(engine: &Engine, told: &mut Told) {
    let (store, job, id) = (engine.store(), job(), slice_id());
    let slice = job.slice(&id, ENTRIES);
    let owner = Owner(fastrand::u64(..));
    for first in std::mem::take(&mut told.claimed) {
        let people = job.fingerprints(first..first + WINDOW);
        let states = each(claim(&store, slice, owner, LEASE, &people).await);
        let expected = match told.settled.get(&first) {
            Some(outcome) => {
                let outcome = *Outcome::ALL
                    .iter()
                    .find(|it| it.as_str() == outcome)
                    .unwrap();
                ClaimState::Settled(outcome)
            }
            None => match states[0] {
                // It was settled, and the child was killed before the confirmation.
                settled @ ClaimState::Settled(_) => settled,
                _ => ClaimState::TakenOver,
            },
        };
        assert_eq!(states, vec![expected; WINDOW as usize], "from {first} on");
        if expected == ClaimState::TakenOver {
            let outcomes = all(&people, Outcome::Uncertain);
            settle(&store, slice, owner, &outcomes, false).await;
            told.settled
                .insert(first, Outcome::Uncertain.as_str().to_owned());
        } else if let ClaimState::Settled(outcome) = expected {
            told.settled.insert(first, outcome.as_str().to_owned());
        }
        told.claimed.insert(first);
    }
    let record = store.job(job.id()).await.unwrap().unwrap();
    let audit = store.audit(&record).await.unwrap();
    assert_eq!(audit.differences(&record.accounts), Vec::<String>::new());
    let windows = record.accounts.settled() / u64::from(WINDOW);
    assert!(
        windows >= told.settled.len() as u64,
        "{:?}",
        record.accounts
    );
    let parked = store.parked(&[TARGET.to_owned()]).await.unwrap();
    assert_eq!(parked[0].1.text, told.parked.unwrap().to_string());
}

/// The child: prints the result of opening a folder.
#[test]
fn child_that_opens() {
    let Ok(folder) = env::var(CHILD) else { return };
    match Engine::open(&Settings::new(folder)) {
        Ok(_) => println!("opened"),
        Err(error) => {
            let in_use = matches!(error, OpenError::InUse { .. });
            println!("in use: {in_use}; {error}");
        }
    }
    println!("done");
}

/// A second process gets an error that names the folder, the process that has it and the remedy. It
/// does no harm, and may open the folder once the first is gone.
#[tokio::test]
async fn a_second_process_is_told_who_has_the_folder() {
    let folder = Scratch::new("locked");
    let data = folder.path().join("data").display().to_string();
    let engine = open(&folder);
    let mut child = start("child_that_opens", &data);
    child.until_prints("done", PATIENCE).await;
    let output = child.stdout();
    assert!(output.contains("in use: true"), "{output}");
    assert!(output.contains(&data), "{output}");
    let process = format!("(process {})", std::process::id());
    assert!(output.contains(&process), "{output}");
    assert!(output.contains("stop that process"), "{output}");
    let again = Engine::open(&settings(&folder));
    assert!(matches!(again, Err(OpenError::InUse { .. })));

    let session = engine.broker().connect().await.unwrap();
    session.publisher().publish(vec![slice("a")]).await.unwrap();
    engine.close().await;
    let mut child = start("child_that_opens", &data);
    child.until_prints("opened", PATIENCE).await;
    until("the end of the child", PATIENCE, async || {
        (!child.is_running()).then_some(())
    })
    .await;
    let engine = open(&folder);
    let session = engine.broker().connect().await.unwrap();
    let mut consumer = session.consume(Source::Lane(express()), 1).await.unwrap();
    let delivery = timeout(PATIENCE, consumer.next()).await.unwrap().unwrap();
    assert_eq!(delivery.body, "a");
    engine.close().await;
    assert!(matches!(delivery.ack().await, Err(fanwise::ports::Lost)));
}

/// Claims of a process that is gone are in doubt immediately, whatever their lease; its deliveries
/// that were not ended come again and are marked as redelivered.
#[tokio::test]
async fn what_a_gone_process_held_is_free_at_once() {
    let folder = Scratch::new("gone");
    let engine = open(&folder);
    let (job, id) = (job(), slice_id());
    let people = job.fingerprints(0..4);
    let slice_of_job = job.slice(&id, ENTRIES);
    let ann = Owner(1);
    claim(&engine.store(), slice_of_job, ann, LEASE, &people).await;
    let sent = all(&people[..1], Outcome::Sent);
    settle(&engine.store(), slice_of_job, ann, &sent, false).await;
    let session = engine.broker().connect().await.unwrap();
    let names = ["a", "b", "c"].map(slice);
    session.publisher().publish(names.to_vec()).await.unwrap();
    let mut consumer = session.consume(Source::Lane(express()), 1).await.unwrap();
    timeout(PATIENCE, consumer.next())
        .await
        .unwrap()
        .unwrap()
        .ack()
        .await
        .unwrap();
    let _held = timeout(PATIENCE, consumer.next()).await.unwrap().unwrap();
    // Also records how far deliveries went.
    session.publisher().publish(vec![slice("d")]).await.unwrap();
    engine.close().await;

    let engine = open(&folder);
    let claimed = claim(&engine.store(), slice_of_job, ann, LEASE, &people).await;
    let mut expected = vec![ClaimState::TakenOver; 4];
    expected[0] = ClaimState::Settled(Outcome::Sent);
    assert_eq!(claimed, Claimed::Each(expected));
    let session = engine.broker().connect().await.unwrap();
    let mut consumer = session.consume(Source::Lane(express()), 9).await.unwrap();
    for (name, redelivered) in [("b", true), ("c", false), ("d", false)] {
        let delivery = timeout(PATIENCE, consumer.next()).await.unwrap().unwrap();
        assert_eq!(
            (delivery.body, delivery.redelivered),
            (name.into(), redelivered)
        );
    }
    engine.close().await;
}
