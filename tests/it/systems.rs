//! Tests the IM systems as targets, each with its real behaviour: from a job, through RabbitMQ,
//! Redis and worker processes, to the log of a mock of the system.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use fanwise_mock_im::{MockHandle, MockIm, Settings, Version};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, Worker, World};

/// Users, groups, all users; and the confirmation before a shell command sends to all of them.
mod audiences;
/// Wrong tokens, signatures and permissions: no recipient fails, and the reason is shown.
mod config_faults;
/// One job for every system, with faults in each of them and a killed worker.
mod faults;
/// Features that a target cannot honour: refused, or left out with a warning.
mod mapping;
/// The limits of NetEase's cloud, and its refusals of whole calls.
mod netease;
/// OpenIM's token, its notes of sent messages, and its packed calls.
mod openim;

/// A mock server in addition to the world's own.
struct Im {
    mock: MockHandle,
    address: SocketAddr,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

impl Im {
    async fn start(settings: Settings) -> Self {
        let im = MockIm::bind(settings).await.unwrap();
        let (mock, address, stop) = (im.handle(), im.addr(), CancellationToken::new());
        let served = tokio::spawn(im.run(stop.clone().cancelled_owned()));
        Self {
            mock,
            address,
            stop,
            served,
        }
    }

    /// The same server with other settings and an empty log.
    async fn restart(&mut self, settings: Settings) {
        self.stop.cancel();
        (&mut self.served).await.unwrap();
        let listen = self.address;
        *self = Self::start(Settings { listen, ..settings }).await;
    }
}

impl Drop for Im {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A target of [`Five`], with the values by which the tests check its system.
struct System {
    target: &'static str,
    /// The code of a refused recipient.
    refused: &'static str,
    /// `{"type":"text","text":"Hello"}` on the wire.
    hello: &'static str,
}

const SYSTEMS: [System; 5] = [
    System {
        target: "im",
        refused: "reason_4",
        hello: r#"{"type":1,"content":"Hello"}"#,
    },
    System {
        target: "wukongim2",
        refused: "400",
        hello: r#"{"type":1,"content":"Hello"}"#,
    },
    System {
        target: "openim",
        refused: "err_1004",
        hello: r#"{"content":"Hello"}"#,
    },
    System {
        target: "netease",
        refused: "unregister",
        hello: r#"{"msg":"Hello"}"#,
    },
    System {
        target: "yunxin",
        refused: "102404",
        hello: r#"{"message_type":0,"text":"Hello"}"#,
    },
];

/// One configuration with five targets: WuKongIM v3 is `im`, and a server each for the others.
struct Five {
    world: World,
    others: BTreeMap<&'static str, Im>,
}

impl Five {
    /// `more`: lines for every target.
    async fn start(mut plan: Plan, name: &str, more: &str) -> Self {
        let mut others = BTreeMap::new();
        for System { target, .. } in &SYSTEMS[1..] {
            let settings = Settings {
                wukongim: Version::V2,
                ..Settings::default()
            };
            others.insert(*target, Im::start(settings).await);
        }
        let address = |target: &str| others[target].address;
        let application = "sender = \"news\"\n\
            app_key = \"mock-key\"\napp_secret = \"mock-secret\"\n\
            recipients_per_call = 50\nlimit = \"20/s burst 1\"";
        plan.target.push('\n');
        plan.target.push_str(more);
        let more = format!("call_timeout = \"3s\"\n{more}");
        plan.more = format!(
            r#"
            [apps.default]
            audiences = ["all", "groups"]
            [targets.wukongim2]
            url = "http://{}"
            type = "wukongim"
            version = "v2"
            sender = "news"
            {more}
            [targets.openim]
            url = "http://{}"
            type = "openim"
            secret = "openIM123"
            sender = "news"
            {more}
            [targets.netease]
            url = "http://{}/nimserver"
            type = "netease"
            {application}
            {more}
            [targets.yunxin]
            url = "http://{}"
            type = "yunxin"
            {application}
            {more}
            "#,
            address("wukongim2"),
            address("openim"),
            address("netease"),
            address("yunxin"),
        );
        let world = plan.start(name).await;
        Self { world, others }
    }

    fn mock(&self, target: &str) -> &MockHandle {
        match target {
            "im" => &self.world.mock,
            other => &self.others[other].mock,
        }
    }

    /// Submits a job file to a target, under a key of its own.
    async fn send(&self, file: &str, target: &str, more: &[&str]) -> String {
        let key = format!("campaign-{target}");
        let arguments = [
            &[
                "send",
                "--job",
                file,
                "--target",
                target,
                "--client-msg-no",
                &key,
            ][..],
            more,
        ];
        let answer = self.world.json(&arguments.concat()).await;
        answer["job"].as_str().unwrap().to_owned()
    }

    async fn end(self) {
        self.world.end().await;
    }
}

/// A target as `fanwise target list` shows it.
async fn listed(world: &World, target: &str) -> Value {
    let targets = world.json(&["target", "list"]).await;
    let mut targets = targets.as_array().unwrap().iter();
    targets.find(|it| it["name"] == target).unwrap().clone()
}

/// Waits until a target is parked; returns the reason.
async fn until_parked(world: &World, target: &str) -> Value {
    until(&format!("parking of {target}"), BOUND, async || {
        let park = &listed(world, target).await["parked"];
        park.is_object().then(|| park.clone())
    })
    .await
}

async fn until_accepted(mock: &MockHandle, count: u64) {
    let what = format!("{count} accepted messages");
    until(&what, BOUND, async || {
        (mock.stats().accepted >= count).then_some(())
    })
    .await;
}

async fn gauge(worker: &Worker, name: &str) -> f64 {
    worker
        .metrics()
        .await
        .get(name)
        .copied()
        .unwrap_or(f64::NAN)
}

fn parked_gauge(reason: &str, target: &str) -> String {
    format!("fanwise_target_parked{{reason=\"{reason}\",target=\"{target}\"}}")
}

/// Messages in the rejected queue, when there are this many.
async fn rejected(world: &World, count: usize) -> Vec<Value> {
    until(&format!("{count} rejected messages"), BOUND, async || {
        let rejected = world.json(&["dead", "rejected"]).await;
        let rejected = rejected.as_array()?;
        (rejected.len() == count).then(|| rejected.clone())
    })
    .await
}
