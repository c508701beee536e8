//! A limit holds when something stood still and goes on: calls that waited meanwhile do not all
//! leave at once.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fanwise::domain::fields::Problem;
use fanwise::domain::mapping::{Feature, Mapping};
use fanwise::domain::outcome::{OnUncertain, TargetAnswer, Verdict};
use fanwise::domain::slice::Head;
use fanwise::ports::{
    Calls, Credential, HttpReply, JobState, Ledger as _, Login, Profile, Request, SendError,
    Target, Transport,
};
use fanwise::runtime::Context;
use fanwise::secret::Secret;
use fanwise::worker::Worker;
use futures_util::future::{join, join_all};
use http::{HeaderMap, Method};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::memory::{Course, Fault, FaultPlan, MemoryBroker, MemoryStore, Way};
use crate::plan::{Odds, Plan, Submission};
use crate::play::{METRICS, TARGET, apps, in_paused_time, publish_list, settings, target};

const WORKERS: usize = 2;

/// 50 ms of the limit.
const BLOCK: usize = 10;

/// Most calls of one second: the rate, the burst, and one block of each worker.
const MOST: usize = 200 + 10 + WORKERS * BLOCK;

const RECIPIENTS: usize = 1000;

/// What stands still from the second second on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Still {
    Nothing,
    /// The ledger answers no step for 2.5 s, and then all of them.
    Ledger,
    /// The ledger always takes longer than units may be used.
    SlowLedger,
    /// The IM system answers nothing for 0.9 s, so that calls wait for places.
    System,
    /// The IM system gives out no credential for 0.9 s.
    Credential,
}

impl Still {
    fn lasts(self) -> Duration {
        match self {
            Self::Ledger => Duration::from_millis(2500),
            _ => Duration::from_millis(900),
        }
    }
}

struct Scene {
    still: Still,
    began: Instant,
    sent: Mutex<Vec<Instant>>,
}

impl Scene {
    /// How long it stands still from now on.
    fn rest(&self) -> Duration {
        let from = self.began + Duration::from_secs(2);
        let now = Instant::now();
        match now < from {
            true => Duration::ZERO,
            false => (from + self.still.lasts()).saturating_duration_since(now),
        }
    }
}

impl FaultPlan for Scene {
    fn course(&self, _: &'static str) -> Course {
        let takes = match self.still {
            Still::Ledger => self.rest() + Duration::from_millis(1),
            Still::SlowLedger => Duration::from_millis(150),
            _ => Duration::from_millis(1),
        };
        let fault = Fault::Nothing;
        Course { takes, fault }
    }

    fn lives(&self) -> bool {
        true
    }
}

#[derive(Clone)]
struct Line(Arc<Scene>);

impl Transport for Line {
    async fn send(&self, request: Request, _: Duration) -> Result<HttpReply, SendError> {
        let scene = &self.0;
        let login = request.uri.path() == "/login";
        if !login {
            scene.sent.lock().unwrap().push(Instant::now());
        }
        let waits = match scene.still {
            Still::System => scene.rest(),
            Still::Credential if login => scene.rest(),
            _ => Duration::ZERO,
        };
        sleep(waits + Duration::from_millis(20)).await;
        Ok(HttpReply {
            status: 200,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        })
    }
}

fn request(uri: &'static str) -> Request {
    Request {
        method: Method::POST,
        uri: uri.parse().unwrap(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
    }
}

/// A target whose credential lives for a second.
#[derive(Default)]
struct Im(Profile);

impl Target for Im {
    fn profile(&self) -> &Profile {
        &self.0
    }

    fn maps(&self, _: Feature) -> Mapping {
        Mapping::Exact("text")
    }

    fn check(&self, _: &Head) -> Vec<Problem> {
        Vec::new()
    }

    fn open(&self, _: &Arc<Head>) -> Box<dyn Calls> {
        Box::new(Texts)
    }

    fn login(&self) -> Option<&dyn Login> {
        Some(&Texts)
    }
}

struct Texts;

impl Calls for Texts {
    fn request(&self, _: &[&str]) -> Request {
        request("http://im/send")
    }

    fn read_reply(&self, _: &[&str], _: &HttpReply) -> Verdict {
        Verdict::All(TargetAnswer::done())
    }
}

impl Login for Texts {
    fn request(&self) -> Request {
        request("http://im/login")
    }

    fn read_credential(&self, _: &HttpReply) -> Result<Credential, TargetAnswer> {
        let (secret, lives) = (Secret::new("token".to_owned()), Duration::from_secs(1));
        Ok(Credential { secret, lives })
    }

    fn apply(&self, _: &mut Request, _: &str) {}
}

fn plan() -> Plan {
    let users = (0..RECIPIENTS).map(|number| format!("u{number}"));
    Plan {
        workers: WORKERS,
        slice_recipients: 100,
        per_call: 1,
        // More places for calls in the slices in work than at the target.
        window_calls: 16,
        idempotent: true,
        on_uncertain: OnUncertain::Hold,
        attempts_max: 3,
        retry_budget: None,
        limit: Some("200/s burst 10"),
        fallback: false,
        submissions: vec![Submission {
            at: Duration::ZERO,
            job: 0,
            users: users.collect(),
            times: 1,
        }],
        orders: Vec::new(),
        odds: Odds::default(),
    }
}

/// Sends a list while something stands still. Returns the times of the calls.
async fn send(still: Still) -> Vec<Instant> {
    let plan = plan();
    let broker = MemoryBroker::new(&[TARGET]);
    let store = MemoryStore::new();
    let scene = Arc::new(Scene {
        still,
        began: Instant::now(),
        sent: Mutex::default(),
    });
    let metrics = METRICS.with(Arc::clone);
    let end = CancellationToken::new();
    let workers = (0..WORKERS).map(|_| {
        let way = Way::with(Arc::clone(&scene) as Arc<dyn FaultPlan>);
        let context = Context::new(
            store.on(way),
            Line(Arc::clone(&scene)),
            vec![target(&plan, &metrics, TARGET, Im::default())],
            apps(),
            settings(&plan),
            Arc::clone(&metrics),
        );
        Worker::new(broker.clone(), Arc::new(context)).run(end.clone())
    });
    let completed = async {
        let id = publish_list(&broker, &plan.submissions[0], false).await;
        loop {
            sleep_until(Instant::now() + Duration::from_millis(250)).await;
            let job = store.job(id).await.unwrap();
            if job.is_some_and(|job| job.state == JobState::Completed) {
                end.cancel();
                return;
            }
            let elapsed = scene.began.elapsed();
            assert!(elapsed < Duration::from_secs(60), "{still:?}: {elapsed:?}");
        }
    };
    join(join_all(workers), completed).await;
    std::mem::take(&mut scene.sent.lock().unwrap())
}

#[test]
fn no_second_exceeds_a_limit_after_a_standstill() {
    for still in [
        Still::Nothing,
        Still::Ledger,
        Still::SlowLedger,
        Still::System,
        Still::Credential,
    ] {
        for seed in 0..8 {
            let sent = in_paused_time(seed, send(still));
            assert_eq!(sent.len(), RECIPIENTS, "{still:?}");
            let second = |first: &Instant| {
                let from = sent.iter().skip_while(|it| *it < first);
                from.take_while(|it| **it < *first + Duration::from_secs(1))
                    .count()
            };
            let worst = sent.iter().map(second).max().unwrap();
            let took = sent[RECIPIENTS - 1] - sent[0];
            println!("{still:?}: {worst} calls in a second, {took:?} for all");
            assert!(worst <= MOST, "{still:?}, {seed}: {worst} of {MOST}");
        }
    }
}
