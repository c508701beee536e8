//! Tests the ledger on several Redis servers: behind Sentinels while the primary changes, and in a
//! cluster while slots and nodes move. Each test has servers of its own.

use std::time::Duration;

use fanwise::domain::ids::{Fingerprint, SliceId};
use fanwise::domain::outcome::Outcome;
use fanwise::error::chain;
use fanwise::ports::{Claim, ClaimState, Ledger, LedgerError, Recorded, Settle, SliceRef};
use fanwise::store::{CheckError, Kind, Settings, Store};

use crate::contract::ledger::{ANN, BOB, Job, LEASE, all, claim, each, settle};
use crate::support::servers::{Member, PrivateCluster, PrivateSentinel};
use crate::support::wait::{until, until_ok};
use crate::support::world::Plan;

/// Longer than a failover takes, on a busy machine too.
const BOUND: Duration = Duration::from_secs(60);

fn open(url: &str) -> Store {
    Store::open(&Settings::new(url)).unwrap()
}

/// Settles recipients as sent, or says why not.
async fn try_settle(
    store: &Store,
    slice: SliceRef<'_>,
    recipients: &[Fingerprint],
) -> Result<Recorded, LedgerError> {
    let outcomes = all(recipients, Outcome::Sent);
    let settling = Settle {
        slice,
        owner: ANN,
        outcomes: &outcomes,
        ids: &[],
        release: &[],
        doubted: &[],
        unused: &[],
        last: None,
    };
    store.settle(settling).await
}

/// The address of the server that the ledger uses.
async fn address(store: &Store) -> String {
    let report = store.check().await.unwrap();
    report.servers[0].address.clone()
}

async fn unfit(url: &str) -> (CheckError, String) {
    let error = open(url).check().await.unwrap_err();
    let text = chain(&error);
    (error, text)
}

mod sentinels {
    use super::*;

    /// The primary, the replica and the Sentinels.
    fn parts(servers: &PrivateSentinel) -> (Member, Member, Vec<Member>) {
        let members = servers.members();
        (members[0], members[1], members[2..].to_vec())
    }

    /// A failover that an operator asks for: the old primary lives on as a replica, and the ledger
    /// moves to the new one although the old one still answers.
    #[tokio::test]
    async fn the_ledger_follows_a_failover_and_leaves_a_server_that_was_demoted() {
        let Some(servers) = PrivateSentinel::start().await else {
            return;
        };
        let (old, new, sentinels) = parts(&servers);
        let store = open(servers.url());
        let report = store.check().await.unwrap();
        let primary = "main".to_owned();
        assert_eq!(report.kind, Kind::Sentinel { primary });
        assert_eq!(report.servers[0].address, old.address());
        assert_eq!(report.servers[0].replicas, 1);

        let job = Job::new(3);
        let people = job.fingerprints(0..30);
        store.accept(&job.submission("s", 30)).await.unwrap();
        let id = SliceId::new("s", 0);
        let slice = job.slice(&id, 30);
        settle(&store, slice, ANN, &all(&people[..9], Outcome::Sent), false).await;
        let _: String = sentinels[0]
            .ask("SENTINEL", &["FAILOVER", "main"])
            .await
            .unwrap();
        until("the new primary", BOUND, async || {
            (address(&store).await == new.address()).then_some(())
        })
        .await;
        // What was replicated is there, and writes go on.
        let claimed = until_ok("a claim at the new primary", BOUND, async || {
            let claim = Claim {
                slice,
                owner: BOB,
                lease: LEASE,
                recipients: &people,
            };
            store.claim(claim).await.map_err(|error| chain(&error))
        })
        .await;
        let states = each(claimed);
        assert_eq!(states[..9], [ClaimState::Settled(Outcome::Sent); 9]);
        assert_eq!(states[9..], [ClaimState::Granted; 21]);
        let role: Vec<redis::Value> = new.ask("ROLE", &[]).await.unwrap();
        assert_eq!(role[0], redis::Value::BulkString(b"master".to_vec()));
        let written: bool = new
            .ask("EXISTS", &[&format!("fanwise:{{{}}}", job.id())])
            .await
            .unwrap();
        assert!(written);
    }

    /// A primary that dies, and one that hangs and wakes up after the failover, believing that it
    /// is still the primary.
    #[tokio::test]
    async fn a_primary_that_dies_or_hangs_is_replaced_within_seconds() {
        let Some(mut servers) = PrivateSentinel::start().await else {
            return;
        };
        let (first, second, _) = parts(&servers);
        let store = open(servers.url());
        let job = Job::new(3);
        let people = job.fingerprints(0..30);
        store.accept(&job.submission("s", 30)).await.unwrap();
        let id = SliceId::new("s", 0);
        let slice = job.slice(&id, 30);
        claim(&store, slice, ANN, LEASE, &people).await;

        first.kill().await;
        let error = try_settle(&store, slice, &people[..10]).await.unwrap_err();
        assert!(matches!(error, LedgerError::Unreachable(_)), "{error:?}");
        until_ok("outcomes at the replica", BOUND, async || {
            let settled = try_settle(&store, slice, &people[..10]).await;
            settled.map_err(|error| chain(&error))
        })
        .await;
        assert_eq!(address(&store).await, second.address());

        servers.start_again().await;
        let (first, second, _) = parts(&servers);
        until("the old primary as a replica", BOUND, async || {
            let report = store.check().await.unwrap();
            (report.servers[0].replicas == 1).then_some(())
        })
        .await;
        second.freeze();
        until_ok("outcomes at the first server", BOUND, async || {
            let settled = try_settle(&store, slice, &people[10..20]).await;
            settled.map_err(|error| chain(&error))
        })
        .await;
        assert_eq!(address(&store).await, first.address());
        second.resume();
        let recorded = settle(&store, slice, ANN, &all(&people[20..], Outcome::Sent), true).await;
        assert_eq!(recorded.accounts.sent, 30);
        assert_eq!(address(&store).await, first.address());
    }

    /// `replicas_min`: what no replica has does not count as recorded.
    #[tokio::test]
    async fn an_outcome_counts_once_enough_replicas_have_it() {
        let Some(servers) = PrivateSentinel::start().await else {
            return;
        };
        let (_, replica, _) = parts(&servers);
        let mut settings = Settings::new(servers.url());
        settings.replicas_min = 1;
        let store = Store::open(&settings).unwrap();
        let job = Job::new(3);
        let people = job.fingerprints(0..30);
        store.accept(&job.submission("s", 30)).await.unwrap();
        let id = SliceId::new("s", 0);
        let slice = job.slice(&id, 30);
        try_settle(&store, slice, &people[..10]).await.unwrap();
        let report = store.check().await.unwrap();
        assert_eq!(report.replicas_min, 1);

        replica.freeze();
        let error = try_settle(&store, slice, &people[10..20])
            .await
            .unwrap_err();
        let text = chain(&error);
        assert!(text.contains("0 of 1 replicas"), "{text}");
        assert!(text.contains("ledger.replicas_min"), "{text}");
        // A call that finds it written already waits as well, over any connection.
        let again = Store::open(&settings).unwrap();
        let error = try_settle(&again, slice, &people[10..20])
            .await
            .unwrap_err();
        assert!(chain(&error).contains("0 of 1 replicas"), "{error:?}");
        replica.resume();
        until_ok("an outcome on the replica", BOUND, async || {
            let settled = try_settle(&again, slice, &people[10..20]).await;
            settled.map_err(|error| chain(&error))
        })
        .await;

        settings.replicas_min = 2;
        let store = Store::open(&settings).unwrap();
        let error = store.check().await.unwrap_err();
        assert!(!error.is_unfit(), "a replica may come back: {error:?}");
        assert!(error.to_string().contains("has 1 replicas"), "{error}");
    }

    /// Each way in which the address can be wrong has a sentence of its own.
    #[tokio::test]
    async fn a_wrong_address_is_told_with_the_right_one() {
        let Some(servers) = PrivateSentinel::start().await else {
            return;
        };
        let (primary, _, sentinels) = parts(&servers);
        let (sentinel, dead) = (sentinels[0].address(), "127.0.0.1:1");
        // Some Sentinels may be away.
        let some = format!("redis+sentinel://{dead},{sentinel}/main/0");
        assert_eq!(address(&open(&some)).await, primary.address());

        let (error, text) = unfit(&format!("redis://{sentinel}/2")).await;
        assert!(text.contains(&sentinel), "{text}");
        assert!(!error.is_unfit(), "a Sentinel refuses SELECT: {text}");
        let (error, text) = unfit(&format!("redis://{sentinel}/0")).await;
        assert!(error.is_unfit(), "{error:?}");
        let right = format!("redis+sentinel://{sentinel}/main/0");
        assert!(text.contains(&right), "{text}");
        let (_, text) = unfit(&format!("redis+sentinel://{sentinel}/mian/0")).await;
        assert!(text.contains("no primary with the name mian"), "{text}");
        assert!(text.contains("it knows main"), "{text}");
        let (_, text) = unfit(&format!("redis+sentinel://{}/main/0", primary.address())).await;
        assert!(text.contains("this server is no Sentinel"), "{text}");
        let (_, text) = unfit(&format!("redis+sentinel://{dead}/main/0")).await;
        assert!(text.contains("no Sentinel answers"), "{text}");
        assert!(text.contains(dead), "{text}");
    }
}

mod cluster {
    use super::*;

    /// The slot of a job.
    async fn slot(members: &[Member], job: &Job) -> u16 {
        let key = format!("fanwise:{{{}}}", job.id());
        members[0].ask("CLUSTER", &["KEYSLOT", &key]).await.unwrap()
    }

    /// The member that has the slot now, as a member that answers knows it.
    async fn owner(members: &[Member], slot: u16) -> Member {
        for member in members {
            let Ok(nodes) = member.ask::<String>("CLUSTER", &["NODES"]).await else {
                continue;
            };
            let found = nodes.lines().find(|line| has_slot(line, slot));
            let Some(line) = found else { continue };
            let address = line.split(' ').nth(1).unwrap();
            let port = address.split(['@', ',']).next().unwrap();
            let port: u16 = port.rsplit(':').next().unwrap().parse().unwrap();
            return *members.iter().find(|member| member.port == port).unwrap();
        }
        panic!("nobody has slot {slot}");
    }

    fn has_slot(line: &str, slot: u16) -> bool {
        let fields: Vec<_> = line.split(' ').collect();
        fields[2].contains("master")
            && !fields[2].contains("fail")
            && fields[8..].iter().any(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                matches!((first.parse(), last.parse()), (Ok(first), Ok(last)) if (first..=last).contains(&slot))
            })
    }

    async fn id_of(member: &Member) -> String {
        member.ask("CLUSTER", &["MYID"]).await.unwrap()
    }

    async fn accepted(store: &Store, job: &Job) {
        store.accept(&job.submission("s", 30)).await.unwrap();
    }

    /// One step of moving a slot: from the source to the destination.
    async fn begin_move(source: &Member, destination: &Member, slot: u16) {
        let (slot, from, to) = (
            slot.to_string(),
            id_of(source).await,
            id_of(destination).await,
        );
        let set = ["SETSLOT", &slot, "IMPORTING", &from];
        let _: () = destination.ask("CLUSTER", &set).await.unwrap();
        let set = ["SETSLOT", &slot, "MIGRATING", &to];
        let _: () = source.ask("CLUSTER", &set).await.unwrap();
    }

    async fn move_keys(source: &Member, destination: &Member, slot: u16) {
        let asked = ["GETKEYSINSLOT", &slot.to_string(), "1000"];
        let keys: Vec<String> = source.ask("CLUSTER", &asked).await.unwrap();
        let port = destination.port.to_string();
        let mut arguments = vec!["127.0.0.1", &port, "", "0", "5000", "KEYS"];
        arguments.extend(keys.iter().map(String::as_str));
        let _: String = source.ask("MIGRATE", &arguments).await.unwrap();
    }

    async fn end_move(members: &[Member], destination: &Member, slot: u16) {
        let to = id_of(destination).await;
        let set = ["SETSLOT", &slot.to_string(), "NODE", &to];
        let _: () = destination.ask("CLUSTER", &set).await.unwrap();
        for member in members {
            // A replica refuses it, and learns it from its primary.
            let _ = member.ask::<()>("CLUSTER", &set).await;
        }
    }

    /// Slots move between nodes while jobs run: claims and outcomes follow them, and no state is
    /// lost or counted twice.
    #[tokio::test]
    async fn jobs_go_on_while_their_slots_move() {
        let Some(servers) = PrivateCluster::start().await else {
            return;
        };
        let members = servers.members();
        let store = open(servers.url());
        let job = Job::new(3);
        let people = job.fingerprints(0..30);
        accepted(&store, &job).await;
        let id = SliceId::new("s", 0);
        let slice = job.slice(&id, 30);
        claim(&store, slice, ANN, LEASE, &people[..20]).await;
        settle(&store, slice, ANN, &all(&people[..5], Outcome::Sent), false).await;

        let slot = slot(&members, &job).await;
        let source = owner(&members, slot).await;
        let other = |member: &&Member| member.port != source.port;
        let mut primaries = Vec::new();
        for member in members.iter().filter(other) {
            let role: Vec<redis::Value> = member.ask("ROLE", &[]).await.unwrap();
            if role[0] == redis::Value::BulkString(b"master".to_vec()) {
                primaries.push(*member);
            }
        }
        let destination = primaries[0];
        begin_move(&source, &destination, slot).await;
        // All keys are still at the source.
        settle(
            &store,
            slice,
            ANN,
            &all(&people[5..10], Outcome::Sent),
            false,
        )
        .await;
        move_keys(&source, &destination, slot).await;
        // All keys are at the destination, which is asked because the source says so.
        settle(
            &store,
            slice,
            ANN,
            &all(&people[10..15], Outcome::Sent),
            false,
        )
        .await;
        end_move(&members, &destination, slot).await;
        let states = each(claim(&store, slice, BOB, LEASE, &people).await);
        assert_eq!(states[..15], [ClaimState::Settled(Outcome::Sent); 15]);
        assert!(matches!(states[15], ClaimState::Held { .. }));
        let recorded = settle(&store, slice, ANN, &all(&people, Outcome::Sent), true).await;
        assert_eq!(recorded.accounts.sent, 30);
        assert_eq!(owner(&members, slot).await.port, destination.port);
    }

    /// A primary dies and its replica takes over; then that one hangs, and the first one, back as
    /// its replica, takes over again. Jobs of other nodes never stop.
    #[tokio::test]
    async fn jobs_go_on_when_a_primary_dies_or_hangs() {
        let Some(mut servers) = PrivateCluster::start().await else {
            return;
        };
        let members = servers.members();
        let store = open(servers.url());
        // One job on the node that dies, and one elsewhere.
        let job = Job::new(3);
        let victim_slot = slot(&members, &job).await;
        let victim = owner(&members, victim_slot).await;
        let elsewhere = loop {
            let job = Job::new(3);
            let slot = slot(&members, &job).await;
            if owner(&members, slot).await.port != victim.port {
                break job;
            }
        };
        let people = job.fingerprints(0..30);
        let id = SliceId::new("s", 0);
        for job in [&job, &elsewhere] {
            let key = format!("fanwise:{{{}}}", job.id());
            accepted(&store, job).await;
            claim(&store, job.slice(&id, 30), ANN, LEASE, &people[..20]).await;
            // Replication is not waited for otherwise.
            let slot = slot(&members, job).await;
            let at = owner(&members, slot).await;
            until("the replica has it", BOUND, async || {
                let reached: i64 = at.ask("WAIT", &["1", "1000"]).await.unwrap();
                let there: bool = at.ask("EXISTS", &[&key]).await.unwrap();
                (reached == 1 && there).then_some(())
            })
            .await;
        }
        victim.kill().await;
        let recorded = try_settle(&store, elsewhere.slice(&id, 30), &people[..10]).await;
        assert_eq!(recorded.unwrap().progress.unwrap().accounts.sent, 10);
        until_ok("outcomes at the replica", BOUND, async || {
            let settled = try_settle(&store, job.slice(&id, 30), &people[..10]).await;
            settled.map_err(|error| chain(&error))
        })
        .await;

        servers.start_again().await;
        let members = servers.members();
        let second = owner(&members, victim_slot).await;
        assert_ne!(second.port, victim.port);
        until("a replica again", BOUND, async || {
            let report = store.check().await.ok()?;
            let found = report
                .servers
                .iter()
                .find(|it| it.address == second.address());
            (found?.replicas == 1).then_some(())
        })
        .await;
        second.freeze();
        until_ok("outcomes at the first node", BOUND, async || {
            let settled = try_settle(&store, job.slice(&id, 30), &people[10..20]).await;
            settled.map_err(|error| chain(&error))
        })
        .await;
        second.resume();
        let slice = job.slice(&id, 30);
        let states = each(claim(&store, slice, BOB, LEASE, &people).await);
        assert_eq!(states[..20], [ClaimState::Settled(Outcome::Sent); 20]);
    }

    #[tokio::test]
    async fn a_wrong_address_is_told_with_the_right_one() {
        let (Some(servers), Some(single)) = (
            PrivateCluster::start().await,
            PrivateSentinel::start().await,
        ) else {
            return;
        };
        let members = servers.members();
        let store = open(servers.url());
        let report = until("each primary has its replica", BOUND, async || {
            let report = store.check().await.ok()?;
            let complete = report.servers.iter().all(|server| server.replicas == 1);
            complete.then_some(report)
        })
        .await;
        assert_eq!(report.kind, Kind::Cluster);
        assert_eq!(report.servers.len(), 3);

        // The address of one node is enough; of a node that is away, not.
        let one = format!("redis+cluster://127.0.0.1:1,{}", members[5].address());
        assert_eq!(open(&one).check().await.unwrap().servers.len(), 3);
        let none = open("redis+cluster://127.0.0.1:1");
        let text = chain(&none.check().await.unwrap_err());
        assert!(text.contains("127.0.0.1:1"), "{text}");
        let text = chain(&none.job(Job::new(1).id()).await.unwrap_err());
        assert!(text.contains("Connection refused"), "{text}");

        let (error, text) = unfit(&format!("redis://{}/0", members[0].address())).await;
        assert!(error.is_unfit(), "{error:?}");
        assert!(text.contains("redis+cluster://127.0.0.1:"), "{text}");
        for member in &members[..3] {
            assert!(text.contains(&member.address()), "{text}");
        }
        let plain = single.members()[0].address();
        let (error, text) = unfit(&format!("redis+cluster://{plain}")).await;
        assert!(error.is_unfit(), "{error:?}");
        assert!(text.contains(&format!("redis://{plain}")), "{text}");
    }

    /// A worker that is started with the address of one node says which address it needs.
    #[tokio::test]
    async fn a_node_with_a_plain_address_is_refused_at_the_start() {
        let Some(servers) = PrivateCluster::start().await else {
            return;
        };
        let node = servers.members()[0].address();
        let plan = Plan::on("amqp://127.0.0.1:1", &format!("redis://{node}/0"));
        let world = plan.start("plain-address").await;
        for (command, code) in [("worker", 78), ("gateway", 78), ("doctor", 69)] {
            let ended = world.run(&[command]).await;
            assert_eq!(ended.code, Some(code), "{}{}", ended.stdout, ended.stderr);
            let said = ended.stdout + &ended.stderr;
            assert!(said.contains("ledger.url = \"redis+cluster://"), "{said}");
        }
    }
}
