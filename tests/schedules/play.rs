//! Runs a schedule: processes that live and die, and the events meanwhile.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fanwise::clock;
use fanwise::domain::breaker::BreakerRule;
use fanwise::domain::codes::ClassByCode;
use fanwise::domain::concurrency::CallsInFlight;
use fanwise::domain::cost::Prices;
use fanwise::domain::directive::{Action, Directive, Scope, Subject};
use fanwise::domain::ids::JobId;
use fanwise::domain::lane::Priority;
use fanwise::domain::retry::RetryPolicy;
use fanwise::domain::schedule::Schedule;
use fanwise::metrics::Metrics;
use fanwise::ports::{
    Broker as _, Directives as _, JobState, Ledger as _, Outgoing, Publisher as _, Route,
    Session as _, Target,
};
use fanwise::runtime::{
    AppRuntime, AtWork, CallLog, CallPlaces, CallsUnderWay, Context, Health, Keyring, Settings,
    TargetRuntime,
};
use fanwise::worker::Worker;
use fastrand::Rng;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::check;
use crate::memory::{Course, Fault, FaultPlan, MemoryBroker, MemoryStore, Way};
use crate::plan::{Order, Plan, Submission};
use crate::system::{Im, Moods, Reaction, SECOND, System, Wire};

pub(crate) const TARGET: &str = "im";
const SECOND_TARGET: &str = "second";
pub(crate) const APP: &str = "default";
pub(crate) const SECRET: &str = "secret";

/// The time at which a schedule begins.
const BEGIN_MS: u64 = 1_700_000_000_000;

/// How long faults occur.
const FAULTS: Duration = Duration::from_secs(4);

/// Long after everything must be at rest.
const REST_MAX: Duration = Duration::from_secs(3600);

const LEASE: Duration = Duration::from_secs(3);
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// Most faults of one schedule, so that it makes progress.
const FAULTS_MAX: u32 = 40;

/// The state that all processes of a schedule share.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) broker: MemoryBroker,
    pub(crate) store: MemoryStore,
    pub(crate) system: System,
    metrics: Arc<Metrics>,
    began: Instant,
    chance: Mutex<Chance>,
    log: Option<Mutex<String>>,
}

struct Chance {
    rng: Rng,
    faults: u32,
    /// A process died, or a step was left in doubt.
    unclean: bool,
    /// A process was stalled for longer than a lease.
    stalled: bool,
}

impl World {
    fn chance(&self) -> MutexGuard<'_, Chance> {
        self.chance.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calm(&self) -> bool {
        self.began.elapsed() > FAULTS
    }

    fn note(&self, line: std::fmt::Arguments<'_>) {
        if let Some(log) = &self.log {
            let at = self.began.elapsed().as_secs_f64();
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = writeln!(log, "{at:9.4} {line}");
        }
    }

    pub(crate) fn id(&self, job: usize) -> JobId {
        JobId::of(APP, &name(job))
    }

    /// The different lists of a job.
    pub(crate) fn lists(&self, job: usize) -> Vec<&Vec<String>> {
        let of_job = self.plan.submissions.iter().filter(|it| it.job == job);
        let mut lists: Vec<&Vec<String>> = of_job.map(|it| &it.users).collect();
        lists.sort();
        lists.dedup();
        lists
    }

    pub(crate) fn is_unclean(&self) -> bool {
        self.chance().unclean
    }

    pub(crate) fn has_stalled(&self) -> bool {
        self.chance().stalled
    }

    fn disturb(&self, line: std::fmt::Arguments<'_>) {
        self.chance().unclean = true;
        self.note(line);
    }
}

impl Moods for World {
    fn reaction(&self) -> (Reaction, Duration) {
        let calm = self.calm();
        let odds = self.plan.odds.answer;
        let rng = &mut self.chance().rng;
        let takes = Duration::from_micros(rng.u64(500..30_000));
        if calm || rng.u32(..1000) >= odds {
            return (Reaction::Answer, takes);
        }
        let reactions = [
            Reaction::Partly,
            Reaction::TooFast,
            Reaction::Unavailable,
            Reaction::Unreachable,
            Reaction::RequestLost,
            Reaction::ReplyLost,
            Reaction::NoReply,
            Reaction::Late,
        ];
        (reactions[rng.usize(..reactions.len())], takes)
    }

    fn refuses(&self, user: &str, second: bool) -> bool {
        let calm = self.calm();
        let odds = self.plan.odds.answer;
        // Some users never exist, others only at times.
        let never = if second { "17" } else { "7" };
        if odds > 0 && user.ends_with(never) {
            return true;
        }
        !calm && self.chance().rng.u32(..3000) < odds
    }

    fn idempotent(&self) -> bool {
        self.plan.idempotent
    }

    fn note(&self, line: std::fmt::Arguments<'_>) {
        Self::note(self, line);
    }
}

/// One process.
struct Process {
    world: Arc<World>,
    name: usize,
    dead: AtomicBool,
    killed: CancellationToken,
}

impl Process {
    fn kill(&self) {
        self.dead.store(true, Ordering::Relaxed);
        self.killed.cancel();
    }
}

impl FaultPlan for Process {
    fn course(&self, step: &'static str) -> Course {
        let (calm, odds) = (self.world.calm(), self.world.plan.odds);
        let mut chance = self.world.chance();
        let rng = &mut chance.rng;
        let mut takes = match rng.u8(..4) {
            0 => Duration::from_micros(rng.u64(100..5_000)),
            _ => Duration::ZERO,
        };
        let mut fault = Fault::Nothing;
        if !calm && chance.faults < FAULTS_MAX {
            let rng = &mut chance.rng;
            if rng.u32(..1000) < odds.stall {
                takes = LEASE + Duration::from_millis(rng.u64(..2_000));
                chance.stalled = true;
            }
            let rng = &mut chance.rng;
            let drawn = rng.u32(..1000);
            let either = |one, other, rng: &mut Rng| if rng.bool() { one } else { other };
            if drawn < odds.death {
                fault = either(Fault::Death, Fault::DeathAfter, rng);
            } else if drawn < odds.death + odds.fault {
                fault = either(Fault::Before, Fault::After, rng);
            }
        }
        if fault != Fault::Nothing {
            chance.faults += 1;
            chance.unclean = true;
        }
        drop(chance);
        if fault != Fault::Nothing || takes >= LEASE {
            let name = self.name;
            self.world
                .note(format_args!("{name}: {step} {fault:?} after {takes:?}"));
        }
        if matches!(fault, Fault::Death | Fault::DeathAfter) {
            let (killed, takes) = (self.killed.clone(), takes);
            tokio::spawn(async move {
                sleep(takes).await;
                killed.cancel();
            });
        }
        Course { takes, fault }
    }

    fn lives(&self) -> bool {
        !self.dead.load(Ordering::Relaxed)
    }
}

fn name(job: usize) -> String {
    format!("job-{job}")
}

pub(crate) fn settings(plan: &Plan) -> Settings {
    Settings {
        slice_recipients: plan.slice_recipients,
        slice_concurrency: 2,
        small_job_concurrency: 2,
        lane_slices_max: 20_000,
        lease: LEASE,
        slice_time_max: Duration::from_secs(5),
        attempts_max: plan.attempts_max,
        retry: Schedule {
            min: Duration::from_millis(500),
            max: Duration::from_secs(2),
            jitter: 0.3,
        },
        fingerprint_secret: SECRET.to_owned(),
        abandoned_after: 2 * REST_MAX,
        progress_interval: Duration::from_secs(2),
        namespace: None,
    }
}

pub(crate) fn target(
    plan: &Plan,
    metrics: &Metrics,
    name: &str,
    target: impl Target,
) -> TargetRuntime {
    let metrics = metrics.target(name);
    TargetRuntime {
        name: name.to_owned(),
        target: Box::new(target),
        call_timeout: CALL_TIMEOUT,
        calls: CallPlaces::new(CallsInFlight::Fixed(16), metrics.in_flight_max.clone()),
        window_calls: plan.window_calls,
        slices: 2,
        limit: plan.limit.map(|limit| limit.parse().unwrap()),
        daily_limit: None,
        sender_limit: None,
        shared_limit: None,
        prices: Prices::default(),
        on_uncertain: plan.on_uncertain,
        retry: RetryPolicy {
            attempts_max: plan.attempts_max,
            schedule: settings(plan).retry,
            budget: plan.retry_budget,
        },
        classes: ClassByCode::default(),
        config_fault_pause: Duration::from_secs(5),
        adapt_interval: Duration::from_secs(1),
        warm_up: None,
        pending_max: None,
        health: Health::new(BreakerRule {
            failures: 5,
            ratio: 0.5,
            window: Duration::from_secs(10),
        }),
        metrics,
        under_way: CallsUnderWay::default(),
        at_work: AtWork::default(),
        call_log: CallLog::default(),
        keyring: Keyring::default(),
        directory_keyring: Keyring::default(),
    }
}

pub(crate) fn apps() -> BTreeMap<String, AppRuntime> {
    let app = AppRuntime {
        default_target: Some(TARGET.to_owned()),
        ..AppRuntime::default()
    };
    BTreeMap::from([(APP.to_owned(), app)])
}

fn context(world: &Arc<World>, way: &Way) -> Context<MemoryStore, Wire> {
    let plan = &world.plan;
    let im = |suffix| Im::new(plan.per_call, plan.idempotent, suffix);
    let of = |name, suffix| target(plan, &world.metrics, name, im(suffix));
    let wire = Wire {
        system: world.system.clone(),
        moods: Arc::clone(world) as Arc<dyn Moods>,
        way: way.clone(),
    };
    Context::new(
        world.store.on(way.clone()),
        wire,
        vec![of(TARGET, ""), of(SECOND_TARGET, SECOND)],
        apps(),
        settings(plan),
        Arc::clone(&world.metrics),
    )
}

/// Runs processes one after the other, until the end.
struct Place {
    process: Mutex<Option<(Arc<Process>, CancellationToken)>>,
}

impl Place {
    fn now(&self) -> Option<(Arc<Process>, CancellationToken)> {
        self.process.lock().unwrap().clone()
    }

    async fn run(&self, world: &Arc<World>, name: usize, end: &CancellationToken) {
        while !end.is_cancelled() {
            let process = Arc::new(Process {
                world: Arc::clone(world),
                name,
                dead: AtomicBool::new(false),
                killed: CancellationToken::new(),
            });
            let drain = end.child_token();
            *self.process.lock().unwrap() = Some((Arc::clone(&process), drain.clone()));
            let way = Way::with(Arc::clone(&process) as Arc<dyn FaultPlan>);
            let context = Arc::new(context(world, &way));
            let worker = Worker::new(world.broker.on(way), context);
            world.note(format_args!("{name}: starts"));
            tokio::select! {
                biased;
                () = process.killed.cancelled() => world.note(format_args!("{name}: dies")),
                () = worker.run(drain) => world.note(format_args!("{name}: ends")),
            }
            process.kill();
            let pause = Duration::from_millis(world.chance().rng.u64(..1500));
            end.run_until_cancelled(sleep(pause)).await;
        }
    }
}

async fn publish(world: &Arc<World>, submission: &Submission) {
    sleep_until(world.began + submission.at).await;
    publish_list(&world.broker, submission, world.plan.fallback).await;
}

pub(crate) async fn publish_list(
    broker: &MemoryBroker,
    submission: &Submission,
    fallback: bool,
) -> JobId {
    let users: Vec<_> = submission
        .users
        .iter()
        .map(|it| format!("{it:?}"))
        .collect();
    let name = name(submission.job);
    let fallback = match fallback {
        true => r#","fallback":{"target":"second","on":["permanent","transient"]}"#,
        false => "",
    };
    let body = format!(
        r#"{{"v":1,"client_msg_no":"{name}","audience":{{"users":[{}]}},"message":{{"type":"text","text":"hello"}}{fallback}}}"#,
        users.join(",")
    );
    let session = broker.connect().await.unwrap();
    for _ in 0..submission.times {
        let message = Outgoing {
            route: Route::Job(Priority::Normal),
            body: Bytes::from(body.clone()),
            message_id: name.clone(),
            traceparent: None,
        };
        // If the session is lost meanwhile, publishes again, as a producer would.
        if session
            .publisher()
            .publish(vec![message.clone()])
            .await
            .is_err()
        {
            let again = broker.connect().await.unwrap();
            again.publisher().publish(vec![message]).await.unwrap();
        }
    }
    JobId::of(APP, &name)
}

async fn carry_out(world: &Arc<World>, places: &[Place], order: Order) {
    let directive = |job, action, lasts: Option<Duration>| Directive {
        subject: Subject::new(Scope::Job, world.id(job).to_string()),
        action,
        reason: None,
        author: None,
        since_ms: clock::now_ms(),
        until_ms: lasts.map(|lasts| clock::now_ms() + lasts.as_millis() as u64),
    };
    world.note(format_args!("{order:?}"));
    match order {
        Order::LoseSessions => {
            world.disturb(format_args!("sessions are lost"));
            world.broker.lose_sessions();
        }
        Order::Kill(place) => {
            if let Some((process, _)) = places[place].now() {
                world.disturb(format_args!("{place}: is killed"));
                process.kill();
            }
        }
        Order::Drain(place) => {
            if let Some((_, drain)) = places[place].now() {
                drain.cancel();
            }
        }
        Order::Pause(job, lasts) => {
            let pause = directive(job, Action::Pause, Some(lasts));
            world.store.direct(&pause).await.unwrap();
        }
        Order::Cancel(job) => {
            let cancel = directive(job, Action::Cancel, None);
            world.store.direct(&cancel).await.unwrap();
        }
    }
}

/// Whether no message is in flight any more, and every job is completed.
async fn at_rest(world: &World) -> bool {
    if !world.broker.is_empty() {
        return false;
    }
    for job in 0..world.plan.jobs() {
        let record = world.store.job(world.id(job)).await.unwrap();
        if record.is_none_or(|record| record.state != JobState::Completed) {
            return false;
        }
    }
    true
}

async fn run(world: &Arc<World>) {
    let places: Vec<_> = (0..world.plan.workers)
        .map(|_| Place {
            process: Mutex::new(None),
        })
        .collect();
    let end = CancellationToken::new();
    let working = places
        .iter()
        .enumerate()
        .map(|(name, place)| place.run(world, name, &end));
    let publishing = world.plan.submissions.iter().map(|it| publish(world, it));
    let ordering = async {
        for (at, order) in &world.plan.orders {
            sleep_until(world.began + *at).await;
            carry_out(world, &places, *order).await;
        }
    };
    let resting = async {
        futures_util::future::join(futures_util::future::join_all(publishing), ordering).await;
        loop {
            sleep(Duration::from_millis(250)).await;
            if at_rest(world).await {
                break;
            }
            if world.began.elapsed() > REST_MAX {
                world.note(format_args!("no rest"));
                break;
            }
        }
        end.cancel();
    };
    futures_util::future::join(futures_util::future::join_all(working), resting).await;
}

thread_local! {
    /// Creating them takes longer than a schedule.
    pub(crate) static METRICS: Arc<Metrics> = Arc::new(Metrics::new());
}

/// Runs in paused time. A number always leads to the same run.
pub(crate) fn in_paused_time<V>(seed: u64, run: impl Future<Output = V>) -> V {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true);
    // Decides which of several waiting tasks wakes first.
    runtime.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_be_bytes()));
    runtime.build().unwrap().block_on(async {
        // For all random numbers that the product draws.
        fastrand::seed(seed);
        clock::play(BEGIN_MS);
        run.await
    })
}

/// Plays a schedule and checks it; panics on any fault. Returns a log of the events, if `told`.
pub(crate) fn play(seed: u64, told: bool) -> String {
    in_paused_time(seed, async {
        let mut rng = Rng::with_seed(seed);
        let plan = Plan::of(&mut rng);
        let world = Arc::new(World {
            broker: MemoryBroker::new(&[TARGET, SECOND_TARGET]),
            store: MemoryStore::new(),
            system: System::default(),
            metrics: METRICS.with(Arc::clone),
            began: Instant::now(),
            chance: Mutex::new(Chance {
                rng,
                faults: 0,
                unclean: false,
                stalled: false,
            }),
            log: told.then(Mutex::default),
            plan,
        });
        world.note(format_args!("{:#?}", world.plan));
        run(&world).await;
        // Waits for calls that the system handles late.
        sleep(3 * CALL_TIMEOUT).await;
        let wrong = check::check(&world).await;
        let log = world.log.as_ref().map(|log| log.lock().unwrap().clone());
        let log = log.unwrap_or_default();
        if !wrong.is_empty() {
            print!("{log}");
            panic!("{}", wrong.join("\n    "));
        }
        log
    })
}
