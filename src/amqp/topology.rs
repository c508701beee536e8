//! Defines every exchange and queue of Fanwise, as data.
//!
//! [`topology`] is pure: the same settings give the same exchanges, queues, arguments and bindings,
//! each with its purpose. `fanwise topology show` prints them, `declare` creates them. The routing
//! of messages ([`Names`]) is here too, so that publishing and binding cannot differ.
//!
//! Messages that leave the retry ladder go through an exchange of their own, `back`, which leads to
//! the same lanes and jobs. A broker keeps a message that it cannot dead-letter, and 32 of those hold up
//! their rung for all lanes. So messages for which `back` has no lane go to the strays by its
//! alternate exchange. A worker publishes them from there to their lane, or rejects them if the
//! lane still does not exist. The broker does not reject them itself, because a starting broker has
//! its queues before its bindings, and a deleted lane queue is declared again in a moment. The
//! lanes exchange has no alternate exchange on purpose: a publish counts as routed when it takes
//! the alternate way, so a slice to a lane whose queue is gone would be confirmed.
//!
//! Names carry a version (`.v1`): arguments of a queue never change in place, since a queue with
//! other arguments is another queue. The exchange of a rung has the version of its queue. Otherwise
//! an older worker beside this one would bind its own queue to it, and every message would wait,
//! and return, twice. Nothing here is a policy, so that a broker without any policy keeps every
//! promise. Settings that an operator may tune (length limits, replicas) are left to policies.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use strum::IntoStaticStr;

use crate::domain::lane::{Lane, LaneClass, Priority};
use crate::domain::schedule::{RUNGS, duration_text, rung};
use crate::ports::Source;

/// How often the broker hands a job or slice out again before it moves it to the rejected queue.
///
/// It is a safeguard against a message that kills every worker that touches it, not a retry count.
/// Lost connections, drains and (before RabbitMQ 4.3) every requeue also count, even for innocent
/// messages that were only prefetched. So it is far above the 20 that RabbitMQ 4 would choose.
const DELIVERY_LIMIT: i64 = 100;

/// The delivery limit of queues that readers read by taking messages and requeueing them.
///
/// Without a limit RabbitMQ 4 drops a message after 20 readings; -1 means "none" on 4 and "drop at
/// the first return" on 3.10. The largest 32-bit number means never on both, and keeps returned
/// messages in their place on 3.10, which moves them to the tail when there is no limit.
const DELIVERY_LIMIT_NEVER: i64 = i32::MAX as i64;

/// Most copies of rejected messages that wait to be counted.
const COUNTED_MAX: i64 = 1000;
const COUNTED_BYTES_MAX: i64 = 16 * 1024 * 1024;

/// The exchanges and queues that are declared on the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Topology {
    pub exchanges: Vec<Exchange>,
    pub queues: Vec<Queue>,
}

/// A durable exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exchange {
    pub name: String,
    pub kind: Kind,
    /// The exchange for messages that this one cannot route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alternate: Option<String>,
    pub purpose: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Kind {
    Direct,
    Fanout,
    Topic,
}

impl Kind {
    fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A durable quorum queue and its bindings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Queue {
    pub name: String,
    pub purpose: &'static str,
    pub exchange: String,
    /// Another exchange that leads here, by the same routing key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub also: Option<String>,
    pub routing_key: String,
    pub arguments: BTreeMap<&'static str, Value>,
}

/// The value of a queue argument.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Value {
    Text(String),
    Number(i64),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

/// Names every exchange and queue of a namespace.
#[derive(Clone, Debug)]
pub(super) struct Names {
    namespace: String,
}

impl Names {
    pub(super) fn new(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
        }
    }

    pub(super) fn exchange(&self, name: &str) -> String {
        format!("{}.{name}", self.namespace)
    }

    /// The exchange through which those who edit a retained queue say so.
    pub(super) fn edits(&self) -> String {
        self.exchange("edits")
    }

    /// The exchange of the waiting queue of the rung for this delay.
    pub(super) fn retry_exchange(&self, delay: Duration) -> String {
        // Every delay is rounded to a rung, so that none names an exchange that does not exist.
        self.rung(rung(delay))
    }

    pub(super) fn queue(&self, source: &Source) -> String {
        match source {
            Source::Jobs(priority) => self.versioned(&format!("jobs.{}", priority.as_str())),
            Source::Lane(lane) => self.versioned(&format!("send.{lane}")),
        }
    }

    pub(super) fn dead_queue(&self) -> String {
        self.versioned("dead")
    }

    pub(super) fn rejected_queue(&self) -> String {
        self.versioned("rejected")
    }

    pub(super) fn stray_queue(&self) -> String {
        self.versioned("stray")
    }

    pub(super) fn moved_queue(&self) -> String {
        self.versioned("moved")
    }

    pub(super) fn ledger_queue(&self) -> String {
        self.versioned("ledger")
    }

    /// Whether a queue holds jobs, and not slices.
    pub(super) fn has_jobs(&self, queue: &str) -> bool {
        queue.starts_with(&self.exchange("jobs."))
    }

    /// The name that the exchange and the waiting queue of a rung share.
    pub(super) fn rung(&self, rung: Duration) -> String {
        format!("{}.retry.{}.v3", self.namespace, rung_name(rung))
    }

    fn versioned(&self, name: &str) -> String {
        format!("{}.{name}.v1", self.namespace)
    }
}

/// The name of a rung: "1s", "20s", "5m".
fn rung_name(rung: Duration) -> String {
    duration_text(rung)
}

/// All exchanges and queues of a namespace with these targets.
pub fn topology<T: AsRef<str>>(namespace: &str, targets: &[T]) -> Topology {
    let names = Names::new(namespace);
    let mut queues = Vec::new();

    for &priority in Priority::ALL {
        queues.push(Queue {
            name: names.queue(&Source::Jobs(priority)),
            purpose: "jobs as producers publish them, until they are cut into slices",
            exchange: names.exchange("jobs"),
            also: Some(names.exchange("back")),
            routing_key: priority.as_str().to_owned(),
            arguments: work_arguments(&names),
        });
    }
    for lane in targets.iter().flat_map(|target| Lane::all(target.as_ref())) {
        queues.push(Queue {
            name: names.queue(&Source::Lane(lane.clone())),
            purpose: match lane.class {
                LaneClass::Notices => "notices of completed jobs, until their receiver has them",
                _ => "slices of one target and class, until every recipient has its outcome",
            },
            exchange: names.exchange("lanes"),
            also: Some(names.exchange("back")),
            routing_key: lane.to_string(),
            arguments: work_arguments(&names),
        });
    }
    for rung in RUNGS {
        queues.push(Queue {
            name: names.rung(rung),
            purpose: "slices that wait, without a consumer; they go back to their lane when their \
                time is over",
            exchange: names.retry_exchange(rung),
            also: None,
            routing_key: String::new(),
            arguments: waiting_arguments(&names, rung),
        });
    }
    queues.push(Queue {
        name: names.stray_queue(),
        purpose: "messages that left the ladder for a lane that did not exist; workers take them \
            back or reject them",
        exchange: names.exchange("stray"),
        also: None,
        routing_key: String::new(),
        arguments: work_arguments(&names),
    });
    queues.push(Queue {
        name: names.dead_queue(),
        purpose: "recipients that ended failed or uncertain, kept until an operator redrives or \
            purges them",
        exchange: names.exchange("dead"),
        also: None,
        routing_key: "#".to_owned(),
        arguments: kept_arguments(),
    });
    queues.push(Queue {
        name: names.moved_queue(),
        purpose: "copies of rejected messages; workers count those that the broker itself put there",
        exchange: names.exchange("rejected"),
        also: None,
        routing_key: String::new(),
        arguments: counted_arguments(),
    });
    queues.push(Queue {
        name: names.rejected_queue(),
        purpose: "messages that are not valid jobs or slices, unchanged, with the reason in a \
            header",
        exchange: names.exchange("rejected"),
        also: None,
        routing_key: String::new(),
        arguments: kept_arguments(),
    });
    queues.push(Queue {
        name: names.ledger_queue(),
        purpose: "the last number of the ledger's sequence: a ledger with a lower one went back to older data",
        exchange: names.exchange("ledger"),
        also: None,
        routing_key: String::new(),
        arguments: last_arguments(),
    });

    Topology {
        exchanges: exchanges(&names),
        queues,
    }
}

/// The retry ladders of earlier versions, to be deleted with the rest. The first led to the lanes
/// exchange, and messages that it could not route stayed on it. The second had no delivery limit,
/// so that messages that were read and returned lost their place.
pub(super) fn retired(namespace: &str) -> Topology {
    let names = Names::new(namespace);
    let name = |rung| names.exchange(&format!("retry.{}", rung_name(rung)));
    let first = RUNGS.map(|rung| (name(rung), format!("{}.v1", name(rung))));
    let second = RUNGS.map(|rung| format!("{}.v2", name(rung)));
    let all = first.into_iter().chain(second.map(|it| (it.clone(), it)));
    let mut retired = Topology {
        exchanges: Vec::new(),
        queues: Vec::new(),
    };
    for (exchange, queue) in all {
        retired.exchanges.push(Exchange {
            name: exchange.clone(),
            kind: Kind::Fanout,
            alternate: None,
            purpose: "",
        });
        retired.queues.push(Queue {
            name: queue,
            purpose: "",
            exchange,
            also: None,
            routing_key: String::new(),
            arguments: BTreeMap::new(),
        });
    }
    retired
}

fn exchanges(names: &Names) -> Vec<Exchange> {
    let exchange = |name: String, kind, purpose| Exchange {
        name,
        kind,
        alternate: None,
        purpose,
    };
    let mut all = vec![
        exchange(
            names.exchange("jobs"),
            Kind::Direct,
            "where producers publish; the routing key is the priority: high, normal or bulk",
        ),
        exchange(
            names.exchange("lanes"),
            Kind::Direct,
            "slices; the routing key is the lane, <target>.<class>",
        ),
    ];
    // Fanout, because the routing key is in use: it stays the lane, for the way back.
    all.extend(RUNGS.map(|rung| {
        exchange(
            names.retry_exchange(rung),
            Kind::Fanout,
            "into the waiting queue of this delay; the routing key stays the lane",
        )
    }));
    all.extend([
        exchange(
            names.exchange("stray"),
            Kind::Fanout,
            "messages that leave the ladder for a lane that does not exist",
        ),
        Exchange {
            alternate: Some(names.exchange("stray")),
            ..exchange(
                names.exchange("back"),
                Kind::Direct,
                "from the ladder back to the lanes and jobs; the routing key is the lane or the priority",
            )
        },
        exchange(
            names.exchange("dead"),
            Kind::Topic,
            "dead letters; the routing key is <app>.<target>, bind your own queue for a copy",
        ),
        exchange(
            names.exchange("rejected"),
            Kind::Fanout,
            "messages that cannot be understood or that kill their reader",
        ),
        exchange(
            names.edits(),
            Kind::Direct,
            "tells gateways that a queue is going to be edited; the routing key is the queue",
        ),
        exchange(
            names.exchange("ledger"),
            Kind::Direct,
            "numbers of the ledger's sequence",
        ),
        exchange(
            names.exchange("events"),
            Kind::Topic,
            "job events; the routing key is <app>.<event>, fanwise binds no queue: bind your own",
        ),
    ]);
    all
}

/// Arguments of queues that workers consume: jobs, lanes and strays.
fn work_arguments(names: &Names) -> BTreeMap<&'static str, Value> {
    let mut arguments = dead_letter_arguments(names.exchange("rejected"));
    arguments.insert("x-delivery-limit", Value::Number(DELIVERY_LIMIT));
    arguments
}

/// Arguments of the waiting queues of the retry ladder.
fn waiting_arguments(names: &Names, rung: Duration) -> BTreeMap<&'static str, Value> {
    let mut arguments = dead_letter_arguments(names.exchange("back"));
    arguments.insert("x-delivery-limit", Value::Number(DELIVERY_LIMIT_NEVER));
    let rung_ms = i64::try_from(rung.as_millis()).unwrap_or(i64::MAX);
    arguments.insert("x-message-ttl", Value::Number(rung_ms));
    arguments
}

/// Arguments of the retained queues.
fn kept_arguments() -> BTreeMap<&'static str, Value> {
    BTreeMap::from([
        ("x-queue-type", Value::Text("quorum".to_owned())),
        ("x-delivery-limit", Value::Number(DELIVERY_LIMIT_NEVER)),
    ])
}

/// Arguments of the queue of copies that are only counted: beyond the bound the oldest are dropped.
fn counted_arguments() -> BTreeMap<&'static str, Value> {
    BTreeMap::from([
        ("x-queue-type", Value::Text("quorum".to_owned())),
        ("x-delivery-limit", Value::Number(DELIVERY_LIMIT)),
        ("x-max-length", Value::Number(COUNTED_MAX)),
        ("x-max-length-bytes", Value::Number(COUNTED_BYTES_MAX)),
    ])
}

/// Arguments of the queue that keeps only the last message. It is read by taking the message and
/// requeueing it.
fn last_arguments() -> BTreeMap<&'static str, Value> {
    let mut arguments = kept_arguments();
    arguments.insert("x-max-length", Value::Number(1));
    arguments
}

fn dead_letter_arguments(exchange: String) -> BTreeMap<&'static str, Value> {
    BTreeMap::from([
        ("x-queue-type", Value::Text("quorum".to_owned())),
        ("x-dead-letter-exchange", Value::Text(exchange)),
        (
            "x-dead-letter-strategy",
            Value::Text("at-least-once".to_owned()),
        ),
        ("x-overflow", Value::Text("reject-publish".to_owned())),
    ])
}

/// Why a queue has an argument; the legend of `fanwise topology show`.
fn why(argument: &str) -> &'static str {
    match argument {
        "x-queue-type" => "replicated, on disk before it is confirmed",
        "x-delivery-limit" => {
            "safeguard against messages that kill their reader; no limit where messages are only \
             read"
        }
        "x-dead-letter-exchange" => {
            "where messages go past the delivery limit or the waiting time; the routing key is kept"
        }
        "x-dead-letter-strategy" => "a message moves with a confirm; the default may lose it",
        "x-overflow" => {
            "a full queue refuses new messages and keeps the old ones; at-least-once needs it"
        }
        "x-max-length" | "x-max-length-bytes" => {
            "copies to be counted, or the last number of the ledger: beyond this the oldest are \
             dropped"
        }
        "x-message-ttl" => {
            "the waiting time in ms, one for the whole queue, since only its head expires"
        }
        _ => "",
    }
}

/// The text of `fanwise topology show`.
impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "EXCHANGES (durable)")?;
        for exchange in &self.exchanges {
            write!(f, "{} ({})", exchange.name, exchange.kind.as_str())?;
            if let Some(alternate) = &exchange.alternate {
                write!(f, " alternate-exchange={alternate}")?;
            }
            writeln!(f)?;
            writeln!(f, "    {}", exchange.purpose)?;
        }
        writeln!(f, "\nQUEUES (durable)")?;
        for queue in &self.queues {
            write!(f, "{} <- {}", queue.name, queue.exchange)?;
            if let Some(also) = &queue.also {
                write!(f, ", {also}")?;
            }
            if !queue.routing_key.is_empty() {
                write!(f, " [{}]", queue.routing_key)?;
            }
            writeln!(f, "\n    {}", queue.purpose)?;
            let arguments: Vec<_> = queue
                .arguments
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            writeln!(f, "    {}", arguments.join(" "))?;
        }
        writeln!(f, "\nARGUMENTS")?;
        let arguments: BTreeMap<_, _> = self.queues.iter().flat_map(|q| &q.arguments).collect();
        for argument in arguments.into_keys() {
            writeln!(f, "{argument}\n    {}", why(argument))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
