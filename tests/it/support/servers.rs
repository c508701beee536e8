//! Provides RabbitMQ and Redis for tests: the shared ones of this run, and private ones that a test
//! may kill. `tests/run` and `tests/servers` start both.
//!
//! All tests use the shared ones at the same time: use names of your own (a virtual host or a
//! prefix), and never restart them. Tests with a private RabbitMQ are in a module named `restart`,
//! so that nextest runs one at a time.

use std::collections::HashMap;
use std::env;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use redis::FromRedisValue;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use super::process::{process_state, send_signal};
use super::scratch::Scratch;
use super::wait::until;

/// The URL of the shared RabbitMQ; `None` means skip.
pub(crate) fn amqp_url() -> Option<String> {
    shared("FANWISE_TEST_AMQP_URL")
}

/// The URL of the shared Redis; `None` means skip.
pub(crate) fn redis_url() -> Option<String> {
    shared("FANWISE_TEST_REDIS_URL")
}

/// The URL of the shared Redis Cluster; `None` means skip. It needs the packages of Redis, which
/// servers from the environment do not bring, so its absence is no failure; `tests/run` starts one.
pub(crate) fn redis_cluster_url() -> Option<String> {
    let url = env::var("FANWISE_TEST_REDIS_CLUSTER_URL").ok();
    if url.is_none() {
        eprintln!("skipped: FANWISE_TEST_REDIS_CLUSTER_URL is not set; tests/run sets it");
    }
    url
}

fn shared(variable: &str) -> Option<String> {
    let url = env::var(variable).ok().filter(|url| !url.is_empty());
    if url.is_none() {
        skip(&format!("{variable} is not set; tests/run sets it"));
    }
    url
}

/// Reports why a test is skipped; fails it if nothing may be skipped.
pub(crate) fn skip(reason: &str) {
    let required = env::var("FANWISE_TEST_REQUIRE").is_ok_and(|value| value == "1");
    assert!(
        !required,
        "cannot be skipped with FANWISE_TEST_REQUIRE=1: {reason}"
    );
    eprintln!("skipped: {reason}");
}

/// A RabbitMQ of one test.
pub(crate) type PrivateRabbit = PrivateServer<Rabbit>;

/// A Redis of one test: append-only file, fsync every second, nothing evicted.
pub(crate) type PrivateRedis = PrivateServer<Redis>;

/// Three Redis primaries with a replica each, as one cluster, of one test.
pub(crate) type PrivateCluster = PrivateServer<RedisCluster>;

/// A Redis primary, a replica and three Sentinels of one test.
pub(crate) type PrivateSentinel = PrivateServer<RedisSentinel>;

/// A server that belongs to one test. Dropping it ends it and deletes its data.
#[derive(Debug)]
pub(crate) struct PrivateServer<S: Service> {
    folder: Scratch,
    /// The values that `tests/servers` prints, such as `REDIS_URL`.
    state: HashMap<String, String>,
    _service: PhantomData<S>,
}

/// The kind of server.
pub(crate) trait Service {
    /// Its name in the commands of `tests/servers`, and, in upper case, the prefix of its keys.
    const NAME: &str;
}

#[derive(Debug)]
pub(crate) struct Rabbit;

#[derive(Debug)]
pub(crate) struct Redis;

impl Service for Rabbit {
    const NAME: &str = "rabbitmq";
}

impl Service for Redis {
    const NAME: &str = "redis";
}

#[derive(Debug)]
pub(crate) struct RedisCluster;

#[derive(Debug)]
pub(crate) struct RedisSentinel;

impl Service for RedisCluster {
    const NAME: &str = "redis-cluster";
}

impl Service for RedisSentinel {
    const NAME: &str = "redis-sentinel";
}

/// A service of several processes.
pub(crate) trait Group: Service {}

impl Group for RedisCluster {}
impl Group for RedisSentinel {}

/// One process of a group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    pub(crate) port: u16,
    pub(crate) pid: u32,
}

impl Member {
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// SIGKILL. It has ended when this returns; its data stay.
    pub(crate) async fn kill(&self) {
        send_signal("KILL", self.pid);
        let pid = self.pid;
        until("the end of a server", Duration::from_secs(10), async || {
            process_state(pid).is_none().then_some(())
        })
        .await;
    }

    /// Stops it (SIGSTOP) until `resume`: it keeps its sockets and answers nothing.
    pub(crate) fn freeze(&self) {
        send_signal("STOP", self.pid);
    }

    pub(crate) fn resume(&self) {
        send_signal("CONT", self.pid);
    }

    /// Sends it a command.
    pub(crate) async fn ask<T: FromRedisValue>(
        &self,
        command: &str,
        arguments: &[&str],
    ) -> redis::RedisResult<T> {
        let client = redis::Client::open(format!("redis://{}/", self.address()))?;
        let patience = Some(Duration::from_secs(10));
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(patience)
            .set_response_timeout(patience);
        let mut connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let mut command = redis::cmd(command);
        command.arg(arguments).query_async(&mut connection).await
    }
}

impl<S: Group> PrivateServer<S> {
    /// Its processes, in the order in which `tests/servers` lists them.
    pub(crate) fn members(&self) -> Vec<Member> {
        let members = self.key("NODES").split(' ').map(|member| {
            let mut parts = member.split(':');
            let mut number = || -> u32 { parts.next().unwrap().parse().unwrap() };
            let (port, pid) = (number(), number());
            Member {
                port: port as u16,
                pid,
            }
        });
        members.collect()
    }
}

impl<S: Service> PrivateServer<S> {
    /// Starts it and waits until it answers. `None` means skip: it is not installed.
    pub(crate) async fn start() -> Option<PrivateServer<S>> {
        Self::start_with(&[]).await
    }

    /// The same, with further arguments of `tests/servers`.
    pub(crate) async fn start_with(arguments: &[&str]) -> Option<PrivateServer<S>> {
        if env::var("FANWISE_TEST_PRIVATE").is_ok_and(|value| value == "0") {
            eprintln!("skipped: this run has no {} that may be killed", S::NAME);
            return None;
        }
        if !command(&["have"])
            .status()
            .is_ok_and(|status| status.success())
        {
            skip("RabbitMQ and Redis are not installed; `tests/servers need` installs them");
            return None;
        }
        // Booting a broker uses a core for seconds. Even if such tests run in parallel, they at
        // least do not boot at the same moment.
        static BOOTING: Mutex<()> = Mutex::const_new(());
        let _alone = BOOTING.lock().await;
        let folder = Scratch::new(S::NAME);
        let mut server = PrivateServer {
            folder,
            state: HashMap::new(),
            _service: PhantomData,
        };
        // If this process is killed, the server still ends and its data are deleted.
        let owner = std::process::id().to_string();
        let arguments = [&["--owner", &owner], arguments].concat();
        server.state = parse(&server.run("start", &arguments).await);
        Some(server)
    }

    /// The same as long as it lives.
    pub(crate) fn url(&self) -> &str {
        self.key("URL")
    }

    /// Its address with TLS.
    pub(crate) fn tls_url(&self) -> &str {
        self.key("TLS_URL")
    }

    /// The id of its process, which changes with each start.
    pub(crate) fn pid(&self) -> u32 {
        self.key("PID").parse().expect("a process id")
    }

    /// SIGKILL. It has ended when this returns; its data stay.
    pub(crate) async fn kill(&self) {
        self.run("kill", &[]).await;
    }

    /// Stops it normally; its data stay.
    pub(crate) async fn stop(&self) {
        self.run("stop", &[]).await;
    }

    /// Starts it again, on the same port and data, and waits until it answers. Quorum queues may
    /// take some seconds more to elect their leaders.
    pub(crate) async fn start_again(&mut self) {
        self.state = parse(&self.run("start", &[]).await);
    }

    /// Stops it (SIGSTOP) until `resume`: it keeps its sockets and answers nothing.
    pub(crate) fn freeze(&self) {
        send_signal("STOP", self.pid());
    }

    pub(crate) fn resume(&self) {
        send_signal("CONT", self.pid());
    }

    fn key(&self, name: &str) -> &str {
        let prefix = S::NAME.to_uppercase().replace('-', "_");
        &self.state[&format!("{prefix}_{name}")]
    }

    async fn run(&self, verb: &str, arguments: &[&str]) -> String {
        let verb = format!("{verb}-{}", S::NAME);
        run(&[
            &[verb.as_str(), &self.folder.path().display().to_string()],
            arguments,
        ]
        .concat())
        .await
    }
}

impl PrivateServer<Rabbit> {
    /// Runs `rabbitmqctl` on it and returns the output.
    pub(crate) async fn ctl(&self, arguments: &[&str]) -> String {
        run(&[
            &["ctl", &self.folder.path().display().to_string()],
            arguments,
        ]
        .concat())
        .await
    }
}

impl<S: Service> Drop for PrivateServer<S> {
    fn drop(&mut self) {
        let folder = self.folder.path().display().to_string();
        let output = command(&["remove", &folder]).output();
        if !output.is_ok_and(|output| output.status.success()) {
            eprintln!("a private {} may still run; see {folder}", S::NAME);
        }
    }
}

/// The address of a server that is neither RabbitMQ nor Redis: it refuses what is no HTTP.
pub(crate) async fn other_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = [0; 8];
            stream.read_exact(&mut asked).await.unwrap();
            let refused = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
            stream.write_all(refused).await.unwrap();
        }
    });
    address
}

fn command(arguments: &[&str]) -> Command {
    let program = env::var_os("FANWISE_TEST_SERVERS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers"),
        PathBuf::from,
    );
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Runs `tests/servers` without blocking other tasks of the test: a start takes seconds.
async fn run(arguments: &[&str]) -> String {
    let mut command = command(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    let output = output
        .expect("wait for tests/servers")
        .expect("start tests/servers");
    assert!(
        output.status.success(),
        "tests/servers {}: {}\n{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("UTF-8 from tests/servers")
}

fn parse(output: &str) -> HashMap<String, String> {
    let pairs = output.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Tests the private servers themselves: they keep their data over a kill, and they end with the
/// test.
mod restart {
    use std::time::Duration;

    use lapin::options::{
        BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    };
    use lapin::types::{AMQPValue, FieldTable};
    use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
    use redis::AsyncCommands as _;

    use super::super::process::{Process, process_state};
    use super::super::relay::Relay;
    use super::super::wait::{until, until_ok};
    use super::*;

    const BOUND: Duration = Duration::from_secs(60);
    /// A quorum queue younger than about a second loses confirmed messages in a SIGKILL, on every
    /// version of the broker. Here the age itself is the condition, and it cannot be observed from
    /// outside.
    const QUEUE_AGE_BEFORE_KILL: Duration = Duration::from_secs(4);

    async fn channel(url: &str) -> (Connection, Channel) {
        until_ok("a channel", BOUND, async || -> Result<_, lapin::Error> {
            let connection = Connection::connect(url, ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            Ok((connection, channel))
        })
        .await
    }

    async fn publish_confirmed(channel: &Channel, queue: &str, body: &[u8]) {
        let properties = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions {
            mandatory: true,
            ..Default::default()
        };
        let published = channel
            .basic_publish("".into(), queue.into(), options, body, properties)
            .await;
        assert!(published.unwrap().await.unwrap().is_ack());
    }

    #[tokio::test]
    async fn a_killed_rabbitmq_comes_back_with_its_data() {
        let Some(mut rabbit) = PrivateRabbit::start().await else {
            return;
        };
        let url = rabbit.url().to_owned();
        let (_connection, publisher) = channel(&url).await;
        let mut arguments = FieldTable::default();
        arguments.insert(
            "x-queue-type".into(),
            AMQPValue::LongString("quorum".into()),
        );
        let options = QueueDeclareOptions {
            durable: true,
            ..Default::default()
        };
        publisher
            .queue_declare("kept".into(), options, arguments)
            .await
            .unwrap();
        publisher
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .unwrap();
        tokio::time::sleep(QUEUE_AGE_BEFORE_KILL).await;
        publish_confirmed(&publisher, "kept", b"still here").await;
        assert!(rabbit.ctl(&["list_queues", "name"]).await.contains("kept"));

        let pid = rabbit.pid();
        rabbit.kill().await;
        assert_eq!(process_state(pid), None);
        rabbit.start_again().await;
        assert_eq!(rabbit.url(), url);
        assert_ne!(rabbit.pid(), pid);

        let body = until_ok("the message", BOUND, async || {
            let (_connection, channel) = channel(&url).await;
            let options = BasicGetOptions { no_ack: true };
            match channel.basic_get("kept".into(), options).await {
                Ok(Some(message)) => Ok(message.delivery.data),
                Ok(None) => Err("the queue is empty".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
        assert_eq!(body, b"still here");

        rabbit.freeze();
        let pid = rabbit.pid();
        until("the stop", BOUND, async || {
            (process_state(pid) == Some('T')).then_some(())
        })
        .await;
        rabbit.resume();
        rabbit.stop().await;
        assert_eq!(process_state(pid), None);
        let folder = rabbit.folder.path().to_owned();
        drop(rabbit);
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn a_killed_redis_comes_back_with_its_data() {
        let Some(mut redis) = PrivateRedis::start().await else {
            return;
        };
        let url = redis.url().to_owned();
        let client = redis::Client::open(url.as_str()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let _: () = connection.set("kept", "still here").await.unwrap();
        // After one fsync the write is on disk, whatever happens to the machine. If only the
        // process is killed, even data in the kernel survive.
        redis.kill().await;
        assert!(client.get_multiplexed_async_connection().await.is_err());
        redis.start_again().await;
        assert_eq!(redis.url(), url);
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let kept: String = connection.get("kept").await.unwrap();
        assert_eq!(kept, "still here");

        redis.stop().await;
        redis.start_again().await;
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        assert_eq!(
            connection.get::<_, String>("kept").await.unwrap(),
            "still here"
        );
    }

    #[tokio::test]
    async fn a_frozen_redis_is_silent_and_then_answers() {
        let Some(redis) = PrivateRedis::start().await else {
            return;
        };
        let client = redis::Client::open(redis.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        redis.freeze();
        let pid = redis.pid();
        until("the stop", BOUND, async || {
            (process_state(pid) == Some('T')).then_some(())
        })
        .await;
        let pinging = connection.ping::<()>();
        let silent = tokio::time::timeout(Duration::from_millis(100), pinging).await;
        assert!(silent.is_err());
        redis.resume();
        let again = async || match client.get_multiplexed_async_connection().await {
            Ok(mut connection) => connection.ping::<String>().await,
            Err(error) => Err(error),
        };
        assert_eq!(until_ok("an answer", BOUND, again).await, "PONG");
    }

    #[tokio::test]
    async fn servers_go_when_their_owner_is_killed() {
        let Some(spared) = PrivateRedis::start().await else {
            return;
        };
        let scratch = Scratch::new("orphan");
        let owner = Process::start(Path::new("/bin/sleep"), &["600"], &[], b"");
        let folder = scratch.path().join("servers");
        let (path, owner_pid) = (folder.display().to_string(), owner.pid().to_string());
        let state = parse(&run(&["start-redis", &path, "--owner", &owner_pid]).await);
        let pid: u32 = state["REDIS_PID"].parse().unwrap();
        assert!(process_state(pid).is_some());
        drop(owner);
        until("the end of the orphan", BOUND, async || {
            (process_state(pid).is_none() && !folder.exists()).then_some(())
        })
        .await;
        assert!(process_state(spared.pid()).is_some());
    }

    #[tokio::test]
    async fn the_shared_servers_answer_through_a_relay() {
        let (Some(amqp), Some(redis)) = (amqp_url(), redis_url()) else {
            return;
        };
        let (link, through) = Relay::before(&amqp).await;
        let (connection, _channel) = channel(&through).await;
        link.cut().await;
        until("the loss of the connection", BOUND, async || {
            (!connection.status().connected()).then_some(())
        })
        .await;
        link.restore();
        let (_connection, _channel) = channel(&through).await;

        let (link, through) = Relay::before(&redis).await;
        let client = redis::Client::open(through).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        assert_eq!(connection.ping::<String>().await.unwrap(), "PONG");
        link.cut().await;
        assert!(connection.ping::<String>().await.is_err());
    }
}
