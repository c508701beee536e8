//! The desk of the operator: an address and a token, what runs behind them, and the backends' own logs.

use std::time::Duration;

use fanwise::domain::ids::JobId;
use fanwise::http::client::{Client, ClientSettings};
use fanwise::ports::Request;
use fanwise_mock_im::{MockHandle, NeteaseSettings, Quota, Settings};
use serde_json::{Value, json};
use tokio_util::sync::DropGuard;

use super::{is_small, now_us};
use crate::embedded::Place;
use crate::fairness::{CALLS, LATENCY, list};
use crate::support::mock;
use crate::support::process::{Process, fanwise, run_fanwise};
use crate::support::scratch::Scratch;
use crate::support::servers::{PrivateRabbit, PrivateRedis};
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, Worker, World, free_port};

const TOKEN: &str = "the-token-of-the-operator";
const APPS: [&str; 3] = ["news", "shop", "ops"];
pub(super) const WORKERS: usize = 3;

/// The backend refuses 111 recipients of the sale, until somebody mends that.
const REFUSED: &str = "sale-33";

/// All calls that were under way when the last worker heeded a directive have arrived after this
/// time.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// A second target, which blocks a caller for 3 s with every 26th call within a minute.
async fn start_cloud() -> (String, MockHandle, DropGuard) {
    let batch_quota = Some(Quota {
        calls: 25,
        window: Duration::from_secs(60),
        block: Duration::from_secs(3),
    });
    let netease = NeteaseSettings {
        batch_quota,
        ..NeteaseSettings::default()
    };
    let (address, mock, stop) = mock::start(Settings {
        netease,
        ..Settings::default()
    })
    .await;
    let tables = format!(
        r#"
        [apps.news]
        [apps.shop]
        [apps.ops]
        [targets.cloud]
        type = "netease"
        url = "http://{address}/nimserver"
        sender = "news"
        app_key = "mock-key"
        app_secret = "mock-secret"
        recipients_per_call = 10
        limit = "200/s"
        block = "3s"
        call_timeout = "3s"
        "#
    );
    (tables, mock, stop.drop_guard())
}

/// What runs behind the server.
pub(super) enum Site {
    Servers {
        world: Box<World>,
        rabbit: PrivateRabbit,
        _redis: PrivateRedis,
        workers: Vec<Worker>,
        _gateway: Process,
    },
    Embedded {
        place: Box<Place>,
        serve: Process,
    },
}

impl Site {
    /// A process with deliveries is killed, and so is the broker.
    pub(super) async fn fall(&mut self) {
        match self {
            Self::Servers {
                rabbit, workers, ..
            } => {
                let mut killed = workers.swap_remove(0);
                killed.process.kill();
                rabbit.kill().await;
            }
            Self::Embedded { serve, .. } => drop(serve.kill()),
        }
    }

    pub(super) async fn rise(&mut self) {
        match self {
            Self::Servers {
                world,
                rabbit,
                workers,
                ..
            } => {
                rabbit.start_again().await;
                workers.push(world.worker().await);
            }
            Self::Embedded { place, serve } => *serve = serve_in(place).await,
        }
    }

    /// The admin ports of the processes that deliver.
    pub(super) fn admin_ports(&self) -> Vec<u16> {
        match self {
            Self::Servers { workers, .. } => workers.iter().map(Worker::admin_port).collect(),
            Self::Embedded { place, .. } => vec![place.admin],
        }
    }

    pub(super) async fn end(self) {
        match self {
            Self::Servers { workers, .. } => {
                for worker in workers {
                    worker.drain().await;
                }
            }
            Self::Embedded { mut serve, .. } => {
                serve.terminate();
                let status = serve.wait(Duration::from_secs(30)).await;
                assert_eq!(status.code(), Some(0), "{}", serve.stderr());
            }
        }
    }
}

async fn serve_in(place: &Place) -> Process {
    place.serve_with(&[("FANWISE_GATEWAY__TOKEN", TOKEN)]).await
}

/// A job of the hour.
pub(super) struct Sent {
    pub(super) app: &'static str,
    pub(super) name: String,
    pub(super) target: &'static str,
    pub(super) recipients: usize,
    pub(super) id: String,
}

pub(super) struct Desk {
    pub(super) im: MockHandle,
    pub(super) cloud: MockHandle,
    pub(super) site: Site,
    client: Client,
    server: String,
    scratch: Scratch,
    pub(super) jobs: Vec<Sent>,
    _stop: DropGuard,
}

impl Desk {
    pub(super) async fn servers() -> Option<Self> {
        let (rabbit, redis) = (PrivateRabbit::start().await?, PrivateRedis::start().await?);
        let (tables, cloud, stop) = start_cloud().await;
        let port = free_port();
        let mut plan = Plan::on(rabbit.url(), redis.url());
        plan.target
            .push_str(&format!("\ncalls_in_flight = {}", CALLS / WORKERS));
        plan.more =
            format!("{tables}\n[gateway]\nlisten = \"127.0.0.1:{port}\"\ntoken = \"{TOKEN}\"\n");
        let world = Box::new(plan.start("operator").await);
        let mut workers = Vec::new();
        for _ in 0..WORKERS {
            workers.push(world.worker().await);
        }
        let anywhere = [("FANWISE_ADMIN__LISTEN", "127.0.0.1:0")];
        let mut gateway = fanwise(&["gateway", "--config", world.config()], &anywhere);
        gateway.until_prints("gateway listens", BOUND).await;
        let (im, _redis, _gateway) = (world.mock.clone(), redis, gateway);
        let site = Site::Servers {
            world,
            rabbit,
            _redis,
            workers,
            _gateway,
        };
        Some(Self::new(im, cloud, site, port, stop))
    }

    pub(super) async fn embedded() -> Self {
        let (tables, cloud, stop) = start_cloud().await;
        let more = format!("calls_in_flight = {CALLS}\n{tables}");
        let place = Box::new(Place::with("operator", &more).await);
        let serve = serve_in(&place).await;
        let (im, port) = (place.mock.clone(), place.gateway);
        Self::new(im, cloud, Site::Embedded { place, serve }, port, stop)
    }

    fn new(im: MockHandle, cloud: MockHandle, site: Site, port: u16, stop: DropGuard) -> Self {
        let faults = json!({ "latency": LATENCY, "refuse_prefix": REFUSED });
        im.patch_faults(&faults).unwrap();
        let scratch = Scratch::new("desk");
        scratch.write("token", TOKEN);
        Self {
            im,
            cloud,
            site,
            // Each request has its own connection: the servers are killed meanwhile.
            client: Client::new(ClientSettings {
                idle_max: 0,
                ..ClientSettings::defaults()
            }),
            server: format!("http://127.0.0.1:{port}"),
            scratch,
            jobs: Vec::new(),
            _stop: stop,
        }
    }

    pub(super) async fn http(&self, method: &str, uri: &str, body: String) -> (u16, String) {
        let mut headers = http::HeaderMap::new();
        let authorization = format!("Bearer {TOKEN}").parse().unwrap();
        headers.insert(http::header::AUTHORIZATION, authorization);
        let request = Request {
            method: method.parse().unwrap(),
            uri: uri.parse().unwrap(),
            headers,
            body: body.into(),
        };
        let reply = self.client.send(request, BOUND).await.unwrap();
        let text = String::from_utf8(reply.body.to_vec()).unwrap();
        (reply.status, text)
    }

    pub(super) async fn get(&self, path: &str) -> Value {
        let uri = format!("{}{path}", self.server);
        let (status, answer) = self.http("GET", &uri, String::new()).await;
        assert_eq!(status, 200, "{path}: {answer}");
        serde_json::from_str(&answer).unwrap()
    }

    /// An app submits a job to `<name>-0`, `<name>-1`, …; `more`: further fields of the job.
    pub(super) async fn send(
        &mut self,
        app: &'static str,
        name: &str,
        target: &'static str,
        recipients: usize,
        more: &Value,
    ) -> String {
        let mut job = json!({
            "v": 1, "app": app, "client_msg_no": name, "target": target,
            "audience": {"users": list(name, recipients)},
            "message": {"type": "text", "text": name},
        });
        for (key, value) in more.as_object().unwrap() {
            job[key] = value.clone();
        }
        let uri = format!("{}/v1/jobs", self.server);
        until("acceptance of a job", BOUND, async || {
            let (status, answer) = self.http("POST", &uri, job.to_string()).await;
            // As the answer says: not possible now, try again.
            assert!(matches!(status, 202 | 503), "{status}: {answer}");
            (status == 202).then_some(())
        })
        .await;
        let id = JobId::of(app, name).to_string();
        self.jobs.push(Sent {
            app,
            name: name.to_owned(),
            target,
            recipients,
            id: id.clone(),
        });
        id
    }

    /// Ten small jobs of all apps and priorities to both targets, of sizes on both sides of what
    /// counts as small.
    pub(super) async fn ten_small_jobs(&mut self) {
        let first = self.jobs.iter().filter(|it| is_small(it)).count();
        for number in first..first + 10 {
            let app = APPS[number % 3];
            let target = if number % 4 == 3 { "cloud" } else { "im" };
            let priority = ["high", "normal", "bulk"][number / 3 % 3];
            let recipients = match number % 10 {
                8 => 100,
                9 => 101,
                few => few + 1,
            };
            let more = json!({ "priority": priority });
            let name = format!("small{number}");
            self.send(app, &name, target, recipients, &more).await;
        }
    }

    /// A command of the operator, elsewhere.
    pub(super) async fn command(&self, arguments: &[&str]) -> Value {
        let token = self.scratch.path().join("token");
        let server = [
            "--server",
            &self.server,
            "--token-file",
            token.to_str().unwrap(),
            "--json",
        ];
        let arguments = [arguments, &server].concat();
        let finished = run_fanwise(&arguments, &[], b"", BOUND).await;
        assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.stderr);
        serde_json::from_str(&finished.stdout).unwrap()
    }

    pub(super) async fn steer(&self, arguments: &[&str], author: &str, reason: &str) -> Value {
        let note = ["--author", author, "--reason", reason];
        self.command(&[arguments, &note].concat()).await
    }

    /// Waits until every worker heeds one directive of this kind about a job, and until the calls
    /// that were under way have arrived. Returns that time.
    pub(super) async fn heeded(&self, action: &str) -> u64 {
        let line = format!("\nfanwise_directives{{action=\"{action}\",scope=\"job\"}} 1\n");
        for port in self.site.admin_ports() {
            let uri = format!("http://127.0.0.1:{port}/metrics");
            until("a worker that heeds a directive", BOUND, async || {
                let (_, metrics) = self.http("GET", &uri, String::new()).await;
                metrics.contains(&line).then_some(())
            })
            .await;
        }
        let heeded_us = now_us() + UNDER_WAY.as_micros() as u64;
        until("calls that were under way", BOUND, async || {
            (now_us() > heeded_us).then_some(())
        })
        .await;
        heeded_us
    }

    pub(super) async fn completed(&self, id: &str) -> Value {
        until(&format!("completion of job {id}"), BOUND, async || {
            let record = self.get(&format!("/v1/jobs/{id}")).await;
            (record["state"] == "completed").then_some(record)
        })
        .await
    }

    pub(super) fn mock(&self, target: &str) -> &MockHandle {
        match target {
            "im" => &self.im,
            _ => &self.cloud,
        }
    }
}
