//! Keeps one connection to Redis, and replaces it when it breaks.
//!
//! - `dial` opens it: to one server, to the primary that `sentinel` finds, or to a cluster.
//! - `link` is an open connection; `call` a script and one call of it.
//! - `check` says whether the servers are fit to hold a ledger; `fault` why they cannot be used.
//!
//! All calls share the sockets. Every call has a deadline, whatever the servers do. A server that
//! breaks the connection, that answers "I am a replica now" or "I am loading", that does not answer
//! at all, or that the Sentinels no longer call the primary, is left: the next call waits for a new
//! connection, for which names and files are looked up again. An attempt that fails ends all calls
//! that wait for it, with its error; the next attempt comes after a pause.

mod call;
mod check;
mod dial;
mod fault;
mod link;
mod sentinel;

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use redis::cluster_routing::Slot;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, ServerErrorKind, Value};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

pub(super) use call::{Call, Script};
pub use check::{CheckError, Kind, Persistence, Report, ServerReport};
use dial::Dialer;
use fault::{Fault, ledger_error, unreachable};
use link::Link;

use super::Settings;
use crate::domain::ledger_url::{BadLedgerUrl, LedgerUrl};
use crate::ports::LedgerError;

/// The first pause and the longest one between two attempts to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// A connection to a cluster is not replaced sooner: it heals itself, and the nodes that answer
/// still use it.
const CLUSTER_LINK_MIN: Duration = Duration::from_secs(1);

/// How often a Sentinel is asked whether the primary is still the same.
const LOOK: Duration = Duration::from_secs(1);

/// How long replicas may take to have a write that must be on them.
const REPLICAS_WAIT: Duration = Duration::from_secs(1);

pub(super) struct Connection {
    shared: Arc<Connecting>,
    deadline: Duration,
    /// How long to wait for the answer to one command.
    patience: Duration,
    replicas_min: u32,
    clocks: Clocks,
}

/// The URL of the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("ledger.url: {0}")]
pub struct OpenError(#[from] BadLedgerUrl);

impl Connection {
    pub(super) fn open(settings: &Settings) -> Result<Self, OpenError> {
        let url: LedgerUrl = settings.url.parse()?;
        Ok(Self {
            shared: Arc::new(Connecting {
                dialer: Dialer::new(settings, url),
                state: Mutex::new(State::default()),
            }),
            deadline: settings.deadline,
            patience: settings.response_timeout.min(settings.deadline),
            replicas_min: settings.replicas_min,
            clocks: Clocks::default(),
        })
    }

    /// Until when to wait for the answer to this call if it is sent now, in ms of its server's
    /// clock; 0 while that clock is not known. It is never too late, since the last known time was
    /// already past when it arrived.
    pub(super) fn answer_due_ms(&self, call: &Call<'_>) -> u64 {
        let now = self.clocks.now_ms(self.clock_of(call));
        now.map_or(0, |ms| ms + self.patience.as_millis() as u64)
    }

    /// Notes a time that the server of this call has just sent.
    pub(super) fn note_time(&self, call: &Call<'_>, ms: u64) {
        self.clocks.note(self.clock_of(call), ms);
    }

    /// Each slot of a cluster may be on a server with a clock of its own.
    fn clock_of(&self, call: &Call<'_>) -> Option<Slot> {
        self.shared.dialer.is_cluster().then(|| call.slot())
    }

    /// Runs a script, with its source if the server does not know it.
    pub(super) async fn call(&self, call: &Call<'_>) -> Result<Value, LedgerError> {
        self.run(async |link| match link.command(&call.cmd).await {
            Err(error) if is_no_script(&error) => link.command(&call.with_source()).await,
            answer => answer,
        })
        .await
    }

    /// Runs a script, and waits until as many replicas as configured have what it wrote.
    pub(super) async fn call_recorded(&self, call: &Call<'_>) -> Result<Value, LedgerError> {
        if self.replicas_min == 0 {
            return self.call(call).await;
        }
        let (address, mut replies) = self
            .run(async |link| {
                let mut replies = link
                    .on_one_socket(&self.fenced(call, &call.cmd), call)
                    .await?;
                let unknown = replies.first().cloned().map(Value::extract_error);
                if unknown.is_some_and(|it| it.is_err_and(|error| is_no_script(&error))) {
                    let pipeline = self.fenced(call, &call.with_source());
                    replies = link.on_one_socket(&pipeline, call).await?;
                }
                for reply in &mut replies {
                    *reply = std::mem::replace(reply, Value::Nil).extract_error()?;
                }
                Ok((link.address().to_owned(), replies))
            })
            .await?;
        let has = match replies.pop() {
            Some(Value::Int(has)) => has,
            other => return Err(broken(format!("WAIT says {other:?}"))),
        };
        if has < i64::from(self.replicas_min) {
            return Err(unreachable(Fault::TooFewReplicas {
                address,
                has,
                wanted: self.replicas_min,
            }));
        }
        replies
            .into_iter()
            .next()
            .ok_or_else(|| broken("a reply is missing"))
    }

    /// A call and a wait for the replicas. The write in between is for a call that repeats an
    /// earlier one over a new connection and writes nothing: the server waits only for what this
    /// connection wrote.
    fn fenced(&self, call: &Call<'_>, cmd: &Cmd) -> Pipeline {
        let mut fence = call.key().to_vec();
        fence.extend_from_slice(b":fence");
        let mut pipeline = redis::pipe();
        pipeline.add_command(cmd.clone());
        pipeline.cmd("SET").arg(fence).arg(1).arg("PX").arg(1000);
        pipeline
            .cmd("WAIT")
            .arg(self.replicas_min)
            .arg(REPLICAS_WAIT.as_millis() as u64);
        pipeline
    }

    pub(super) async fn command(&self, cmd: &Cmd) -> Result<Value, LedgerError> {
        self.run(async |link| link.command(cmd).await).await
    }

    /// Runs commands in one round trip, not as one step, and in a cluster in no order.
    pub(super) async fn pipeline(&self, pipeline: &Pipeline) -> Result<Vec<Value>, LedgerError> {
        self.run(async |link| link.together(pipeline).await).await
    }

    /// Runs commands one after the other, not as one step.
    pub(super) async fn in_order(&self, pipeline: &Pipeline) -> Result<Vec<Value>, LedgerError> {
        self.run(async |link| link.in_order(pipeline).await).await
    }

    async fn run<T>(
        &self,
        call: impl AsyncFnOnce(&mut Link) -> Result<T, RedisError>,
    ) -> Result<T, LedgerError> {
        let (generation, dialing) = self.shared.link();
        let answer = timeout(self.deadline, async {
            let mut link = dialing.await.map_err(unreachable)?;
            call(&mut link).await.map_err(|error| {
                if outlived(&error) {
                    self.shared.replace(generation, link.is_cluster());
                }
                ledger_error(link.address(), error)
            })
        });
        answer.await.unwrap_or_else(|_| {
            // It is still connecting, or the server hangs: in both cases the connection stays.
            Err(unreachable(Fault::NoAnswer {
                address: self.shared.dialer.url.to_string(),
                patience: self.deadline,
            }))
        })
    }

    pub(super) async fn check(&self) -> Result<Report, CheckError> {
        let looking = check::look(&self.shared.dialer, self.replicas_min);
        match timeout(self.deadline * 2, looking).await {
            Ok(found) => found,
            Err(_) => Err(unreachable(Fault::NoAnswer {
                address: self.shared.dialer.url.to_string(),
                patience: self.deadline * 2,
            })
            .into()),
        }
    }
}

/// The connection in use, or the attempt to open one.
struct Connecting {
    dialer: Dialer,
    state: Mutex<State>,
}

/// The generation keeps late errors of an old connection from replacing a new one.
#[derive(Default)]
struct State {
    generation: u64,
    /// Attempts that failed one after the other.
    failures: u32,
    link: Option<Dialing>,
    opened: Option<Instant>,
}

type Dialing = Shared<BoxFuture<'static, Result<Link, Arc<Fault>>>>;

impl Connecting {
    /// The current connection; if there is none, starts to open one. That goes on when a caller
    /// gives up.
    fn link(self: &Arc<Self>) -> (u64, Dialing) {
        let mut state = self.state.lock();
        let generation = state.generation;
        if let Some(dialing) = &state.link {
            return (generation, dialing.clone());
        }
        let dialing = Arc::clone(self).dial(generation, pause_after(state.failures));
        #[expect(
            clippy::disallowed_methods,
            reason = "all callers wait for it, and see its end"
        )]
        let dialing = AbortOnDropHandle::new(tokio::spawn(dialing));
        let dialing = dialing.map(|ended| ended.unwrap_or_else(|_| Err(Fault::GivenUp.into())));
        let dialing = dialing.boxed().shared();
        state.link = Some(dialing.clone());
        (generation, dialing)
    }

    async fn dial(self: Arc<Self>, generation: u64, pause: Duration) -> Result<Link, Arc<Fault>> {
        sleep(pause).await;
        let opened = self.dialer.open().await;
        let mut state = self.state.lock();
        match opened {
            Ok(link) => {
                state.failures = 0;
                state.opened = Some(Instant::now());
                Ok(self.watched(generation, link))
            }
            Err(fault) => {
                // The next call tries again.
                state.failures = state.failures.saturating_add(1);
                state.next(generation);
                Err(fault.into())
            }
        }
    }

    /// Leaves the connection of this generation, unless another caller did already.
    fn replace(&self, generation: u64, is_cluster: bool) {
        let mut state = self.state.lock();
        let young = state
            .opened
            .is_none_or(|at| at.elapsed() < CLUSTER_LINK_MIN);
        if !(is_cluster && young) {
            state.next(generation);
        }
    }

    /// Where there are Sentinels, leaves the connection when they name another primary, even if
    /// the old one still answers.
    fn watched(self: &Arc<Self>, generation: u64, mut link: Link) -> Link {
        if self.dialer.sentinels().is_some() {
            let address = link.address().to_owned();
            let watching = watch(Arc::downgrade(self), generation, address);
            #[expect(
                clippy::disallowed_methods,
                reason = "it ends with the connection that it watches"
            )]
            let watching = tokio::spawn(watching);
            link.watch(AbortOnDropHandle::new(watching));
        }
        link
    }
}

impl State {
    fn next(&mut self, generation: u64) {
        if self.generation == generation {
            self.generation += 1;
            self.link = None;
            self.opened = None;
        }
    }
}

/// Asks a Sentinel every second who the primary is, until it is another server than this one.
async fn watch(connecting: Weak<Connecting>, generation: u64, address: String) {
    let mut asked = None;
    loop {
        sleep(LOOK).await;
        let Some(connecting) = connecting.upgrade() else {
            return;
        };
        let Some(sentinels) = connecting.dialer.sentinels() else {
            return;
        };
        let named = match &mut asked {
            Some(wire) => sentinels.look_up(wire).await.ok().flatten(),
            None => match sentinels.ask(&connecting.dialer).await {
                Ok((named, wire)) => {
                    asked = Some(wire);
                    Some(named)
                }
                Err(_) => None,
            },
        };
        match named {
            None => asked = None,
            Some(named) if named.to_string() == address => {}
            Some(named) => {
                let primary = &sentinels.primary;
                tracing::info!("the primary of {primary} is {named} now");
                connecting.replace(generation, false);
                return;
            }
        }
    }
}

/// The pause before an attempt, after this many failed in a row.
fn pause_after(failures: u32) -> Duration {
    let (first, longest) = PAUSES;
    match failures {
        0 => Duration::ZERO,
        _ => (first * 2_u32.saturating_pow(failures - 1).min(1000))
            .min(longest)
            .mul_f64(0.5 + fastrand::f64() / 2.0),
    }
}

/// The clocks of the servers: the last time that each sent, and when it arrived. Without a cluster
/// there is one clock.
#[derive(Default)]
struct Clocks(Mutex<HashMap<Option<Slot>, (u64, Instant)>>);

impl Clocks {
    fn now_ms(&self, of: Option<Slot>) -> Option<u64> {
        let (ms, heard) = self.0.lock().get(&of).copied()?;
        Some(ms + heard.elapsed().as_millis() as u64)
    }

    fn note(&self, of: Option<Slot>, ms: u64) {
        self.0.lock().insert(of, (ms, Instant::now()));
    }
}

fn is_no_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// The connection is of no use any more: it broke, another server is the primary now, this one is
/// not ready, or it is gone and the kernel has not noticed.
fn outlived(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_unrecoverable_error()
        || error.code() == Some("UNBLOCKED")
        || matches!(
            error.kind(),
            ErrorKind::Server(
                ServerErrorKind::ReadOnly
                    | ServerErrorKind::BusyLoading
                    | ServerErrorKind::MasterDown
            )
        )
}

pub(super) fn broken(error: impl std::fmt::Display) -> LedgerError {
    LedgerError::Broken(error.to_string())
}

pub(super) fn text(value: Value) -> Result<String, LedgerError> {
    redis::from_redis_value(value).map_err(broken)
}

/// A record as it is stored.
pub(super) fn json(record: &impl serde::Serialize) -> Result<String, LedgerError> {
    serde_json::to_string(record).map_err(broken)
}
