//! What the doctor says about the servers of the ledger.

use super::Verdict;
use crate::store::{Kind, Persistence, Report, ServerReport};

/// A clock that differs by more makes times in accounts and logs hard to compare.
const CLOCK_DIFFERENCE_MAX_MS: u64 = 1000;

/// Warns when this share of `maxmemory`, in percent, is used.
const MEMORY_WARNING: u64 = 90;

/// What the servers are, and what is doubtful about them.
pub(super) fn findings(report: &Report) -> Vec<(Verdict, String)> {
    let mut findings = vec![(Verdict::Ok, report.to_string())];
    for server in &report.servers {
        let doubts = doubts(&report.kind, server);
        let at = |doubt| (Verdict::Warn, format!("{}: {doubt}", server.address));
        findings.extend(doubts.into_iter().map(at));
    }
    findings
}

fn doubts(kind: &Kind, server: &ServerReport) -> Vec<String> {
    let mut doubts = Vec::new();
    match server.persistence {
        Persistence::None => doubts.push(
            "keeps nothing on disk: a restart loses the dedup window (set appendonly yes)"
                .to_owned(),
        ),
        Persistence::Snapshots => doubts.push(
            "keeps snapshots only: a crash forgets every outcome since the last one (set appendonly \
             yes)"
                .to_owned(),
        ),
        Persistence::AppendOnly { .. } | Persistence::Unknown => {}
    }
    if *kind != Kind::One && server.replicas == 0 {
        doubts.push("no replica is connected: no server can take over".to_owned());
    }
    if *kind != Kind::One && server.replicas > 0 && server.min_replicas_to_write == Some(0) {
        doubts.push(
            "takes writes without replicas: while it is cut off from them, it takes outcomes that a \
             failover forgets (set min-replicas-to-write 1)"
                .to_owned(),
        );
    }
    let difference = server.clock_ahead_ms.unsigned_abs();
    if difference > CLOCK_DIFFERENCE_MAX_MS {
        let side = match server.clock_ahead_ms > 0 {
            true => "ahead of",
            false => "behind",
        };
        doubts.push(format!(
            "its clock is {:.1} s {side} this machine's: synchronise both",
            difference as f64 / 1000.0
        ));
    }
    if let Some(most) = server.maxmemory
        && server.used_memory >= most / 100 * MEMORY_WARNING
    {
        doubts.push(format!(
            "{} of {} MB are used: a full ledger stops all lanes (raise maxmemory)",
            server.used_memory / 1_000_000,
            most / 1_000_000
        ));
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> ServerReport {
        ServerReport {
            address: "redis:6379".to_owned(),
            version: "7.0.15".to_owned(),
            policy: "noeviction".to_owned(),
            persistence: Persistence::AppendOnly {
                fsync: Some("everysec".to_owned()),
            },
            used_memory: 10_000_000,
            maxmemory: None,
            replicas: 0,
            min_replicas_to_write: Some(0),
            clock_ahead_ms: -3,
        }
    }

    fn check(kind: Kind, server: ServerReport, said: &[&str]) {
        let report = Report {
            kind,
            servers: vec![server],
            replicas_min: 0,
        };
        let found = findings(&report);
        assert_eq!(found[0].0, Verdict::Ok);
        assert!(found[0].1.contains("redis:6379"), "{found:?}");
        assert_eq!(found.len() - 1, said.len(), "{found:?}");
        for ((verdict, found), said) in found[1..].iter().zip(said) {
            assert_eq!(*verdict, Verdict::Warn);
            assert!(
                found.contains(said) && found.contains("redis:6379"),
                "{found}"
            );
        }
    }

    #[test]
    fn doubts_name_the_server_and_the_remedy() {
        check(Kind::One, server(), &[]);
        check(Kind::Cluster, server(), &["no server can take over"]);
        let primary = "main".to_owned();
        let replicated = ServerReport {
            replicas: 1,
            ..server()
        };
        check(
            Kind::Sentinel { primary },
            replicated,
            &["min-replicas-to-write 1"],
        );
        let bad = ServerReport {
            persistence: Persistence::Snapshots,
            clock_ahead_ms: 2_500,
            used_memory: 95_000_000,
            maxmemory: Some(100_000_000),
            ..server()
        };
        check(
            Kind::One,
            bad,
            &["since the last one", "2.5 s ahead of", "95 of 100 MB"],
        );
        let none = ServerReport {
            persistence: Persistence::None,
            ..server()
        };
        check(Kind::One, none, &["appendonly yes"]);
    }
}
