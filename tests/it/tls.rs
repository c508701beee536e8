//! Tests TLS to RabbitMQ, Redis and targets: a private CA, certificates of the client, a name that
//! differs from the address, files that are renewed, and each way in which it can fail.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fanwise::amqp::{self, Rabbit};
use fanwise::error::chain;
use fanwise::ports::Ledger as _;
use fanwise::store::{Settings, Store};
use fanwise::tls::TlsSettings;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::contract::ledger::Job;
use crate::support::certificates::{Authority, Pair, copy};
use crate::support::scratch::Scratch;
use crate::support::servers::{PrivateRabbit, amqp_url, redis_url};
use crate::support::wait::{until, until_ok};
use crate::support::world::{Plan, users};

const BOUND: Duration = Duration::from_secs(60);

fn settings(ca: Option<PathBuf>, identity: Option<&Pair>) -> TlsSettings {
    TlsSettings {
        ca,
        identity: identity.map(|pair| (pair.certificate.clone(), pair.key.clone())),
        server_name: None,
    }
}

/// A Redis of the test's own that speaks TLS on one port and nothing on the other.
struct Redis {
    child: Child,
    port: u16,
    plain: u16,
    _folder: Scratch,
}

impl Redis {
    async fn start(server: &Pair, ca: &Authority, options: &[&str]) -> Self {
        let mut ports = [0, 0];
        for port in &mut ports {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            *port = listener.local_addr().unwrap().port();
        }
        let [port, plain] = ports;
        let folder = Scratch::new("redis-tls");
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", ""])
            .args(["--port", &plain.to_string()])
            .args(["--tls-port", &port.to_string()])
            .arg("--dir")
            .arg(folder.path())
            .arg("--tls-cert-file")
            .arg(&server.certificate)
            .arg("--tls-key-file")
            .arg(&server.key)
            .arg("--tls-ca-cert-file")
            .arg(ca.file())
            .args(options)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is needed for these tests");
        let redis = Self {
            child,
            port,
            plain,
            _folder: folder,
        };
        until("the server listens", BOUND, async || {
            TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop)
        })
        .await;
        redis
    }

    fn url(&self) -> String {
        format!("rediss://127.0.0.1:{}/0", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn store(url: &str, tls: TlsSettings) -> Store {
    let mut settings = Settings::new(url);
    settings.tls = tls;
    Store::open(&settings).unwrap()
}

/// What the check of a store says.
async fn said(url: &str, tls: TlsSettings) -> String {
    match store(url, tls).check().await {
        Ok(found) => format!("fit: {found}"),
        Err(error) => chain(&error),
    }
}

#[tokio::test]
async fn each_failure_of_tls_to_the_ledger_has_a_sentence() {
    if redis_url().is_none() {
        return;
    }
    let (ca, other) = (Authority::new("own"), Authority::new("other"));
    let server = ca.sign("redis", "IP:127.0.0.1");
    let client = ca.sign("fanwise", "DNS:fanwise");
    let foreign = other.sign("fanwise", "DNS:fanwise");
    let redis = Redis::start(&server, &ca, &[]).await;
    let trusted = || Some(ca.file());
    let url = redis.url();
    for (url, tls, expected) in [
        (&url, settings(trusted(), Some(&client)), "fit: one Redis"),
        (
            &url,
            settings(None, Some(&client)),
            "from a CA that this machine does not trust. Set ledger.ca_file",
        ),
        (
            &url,
            settings(Some(other.file()), Some(&client)),
            "is not from the CA in ledger.ca_file",
        ),
        (
            &url,
            settings(trusted(), None),
            "it asks for a certificate of the client. Set ledger.certificate",
        ),
        (
            &url,
            settings(trusted(), Some(&foreign)),
            "it refuses the certificate in ledger.certificate",
        ),
        (
            &url,
            settings(Some("/nonexistent/ca.pem".into()), None),
            "cannot read ledger.ca_file /nonexistent/ca.pem",
        ),
        (
            &url,
            settings(
                trusted(),
                Some(&Pair {
                    key: foreign.key.clone(),
                    ..client.clone()
                }),
            ),
            "ledger.certificate and ledger.key do not fit together",
        ),
        (
            &format!("rediss://127.0.0.1:{}/0", redis.plain),
            settings(trusted(), None),
            "Check that the port is the one for TLS",
        ),
        (
            &url.replacen("rediss://", "redis://", 1),
            TlsSettings::default(),
            "the port for TLS needs an address that begins with rediss://",
        ),
    ] {
        let said = said(url, tls).await;
        assert!(said.contains(expected), "{expected:?} in {said}");
        assert!(
            said.contains("127.0.0.1:") || said.contains("ledger."),
            "{said}"
        );
    }
    let (expired, named) = (
        ca.sign_expired("redis", "IP:127.0.0.1"),
        ca.sign("redis", "DNS:redis.internal"),
    );
    let redis = Redis::start(&expired, &ca, &["--tls-auth-clients", "no"]).await;
    let text = said(&redis.url(), settings(trusted(), None)).await;
    assert!(text.contains("its certificate has expired"), "{text}");
    let redis = Redis::start(&named, &ca, &["--tls-auth-clients", "no"]).await;
    let text = said(&redis.url(), settings(trusted(), None)).await;
    assert!(
        text.contains("is not for 127.0.0.1. Set ledger.server_name"),
        "{text}"
    );
    let right = TlsSettings {
        server_name: Some("redis.internal".to_owned()),
        ..settings(trusted(), None)
    };
    let text = said(&redis.url(), right).await;
    assert!(text.contains("fit: one Redis"), "{text}");
}

/// A cluster over TLS, with certificates of the client.
#[tokio::test]
async fn a_cluster_is_reached_over_tls() {
    if redis_url().is_none() {
        return;
    }
    let ca = Authority::new("own");
    let (server, client) = (
        ca.sign("redis", "IP:127.0.0.1"),
        ca.sign("fanwise", "DNS:fanwise"),
    );
    let options = ["--cluster-enabled", "yes", "--tls-cluster", "yes"];
    let redis = Redis::start(&server, &ca, &options).await;
    let plain = redis::Client::open(format!("redis://127.0.0.1:{}/", redis.plain)).unwrap();
    let mut plain = plain.get_multiplexed_async_connection().await.unwrap();
    let _: () = redis::cmd("CLUSTER")
        .arg(&["ADDSLOTSRANGE", "0", "16383"])
        .query_async(&mut plain)
        .await
        .unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = format!("rediss+cluster://127.0.0.1:{}", redis.port);
    let store = store(&url, settings(Some(ca.file()), Some(&client)));
    until_ok("the cluster to be whole", BOUND, async || {
        let accepted = store.accept(&Job::new(1).submission("s", 1)).await;
        accepted.map_err(|error| chain(&error))
    })
    .await;
    let text = said(&url, settings(Some(ca.file()), None)).await;
    assert!(
        text.contains("it asks for a certificate of the client"),
        "{text}"
    );
}

/// The server's certificate and its CA are replaced, and the client's as well; the process that
/// uses them goes on.
#[tokio::test]
async fn renewed_files_are_used_without_a_restart() {
    if redis_url().is_none() {
        return;
    }
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let folder = Scratch::new("renewed");
    let ca = folder.path().join("ca.pem");
    let mine = Pair {
        certificate: folder.path().join("fanwise.pem"),
        key: folder.path().join("fanwise.key"),
    };
    copy(&old.file(), &ca);
    old.sign("fanwise", "DNS:fanwise").replace(&mine);
    let server = old.sign("redis", "IP:127.0.0.1");
    let redis = Redis::start(&server, &old, &[]).await;
    let store = store(&redis.url(), settings(Some(ca.clone()), Some(&mine)));
    let job = Job::new(1);
    store.accept(&job.submission("s", 1)).await.unwrap();

    // Redis takes renewed certificates by CONFIG SET, and new connections get them.
    let renewed = new.sign("redis", "IP:127.0.0.1");
    let plain = redis::Client::open(format!("redis://127.0.0.1:{}/", redis.plain)).unwrap();
    let mut plain = plain.get_multiplexed_async_connection().await.unwrap();
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let _: () = redis::cmd("CONFIG")
        .arg("SET")
        .arg(&["tls-cert-file".to_owned(), text(renewed.certificate)])
        .arg(&["tls-key-file".to_owned(), text(renewed.key)])
        .arg(&["tls-ca-cert-file".to_owned(), text(new.file())])
        .query_async(&mut plain)
        .await
        .unwrap();
    let cut = async |plain: &mut redis::aio::MultiplexedConnection| {
        let _: i64 = redis::cmd("CLIENT")
            .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
            .query_async(plain)
            .await
            .unwrap();
    };
    cut(&mut plain).await;
    until("the old files to be of no use", BOUND, async || {
        let error = store.job(job.id()).await.err()?;
        chain(&error).contains("is not from the CA").then_some(())
    })
    .await;
    copy(&new.file(), &ca);
    new.sign("fanwise", "DNS:fanwise").replace(&mine);
    let record = until_ok("the new files", BOUND, async || {
        store.job(job.id()).await.map_err(|error| chain(&error))
    })
    .await;
    assert!(record.is_some());
}

/// Accepts TLS connections from clients with a certificate of this CA, and passes their bytes on.
pub(crate) async fn before(plain: std::net::SocketAddr, server: &Pair, ca: &Authority) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(ca.file()).unwrap())
        .unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_file(&server.certificate).unwrap()],
            PrivateKeyDer::from_pem_file(&server.key).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut client) = acceptor.accept(stream).await else {
                    return;
                };
                let mut server = TcpStream::connect(plain).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}

/// Certificates that do not fit, and a port of the other kind, at a broker.
#[tokio::test]
async fn each_failure_of_tls_to_the_broker_has_a_sentence() {
    let Some(amqp) = amqp_url() else { return };
    let (_, place) = amqp.rsplit_once('@').unwrap();
    let plain = place.split('/').next().unwrap();
    let plain = tokio::net::lookup_host(plain)
        .await
        .unwrap()
        .next()
        .unwrap();
    let login = amqp.strip_suffix(place).unwrap();
    let (ca, other) = (Authority::new("own"), Authority::new("other"));
    let client = ca.sign("fanwise", "DNS:fanwise");
    let right = before(plain, &ca.sign("rabbit", "IP:127.0.0.1"), &ca).await;
    let expired = before(plain, &ca.sign_expired("rabbit", "IP:127.0.0.1"), &ca).await;
    let named = before(plain, &ca.sign("rabbit", "DNS:rabbit.internal"), &ca).await;
    let encrypted = login.replacen("amqp://", "amqps://", 1);
    for (login, port, authority, expected) in [
        (&*encrypted, expired, &ca, "its certificate has expired"),
        (
            &encrypted,
            named,
            &ca,
            "is not for 127.0.0.1. Set broker.server_name",
        ),
        (
            &encrypted,
            right,
            &other,
            "is not from the CA in broker.ca_file",
        ),
        (
            login,
            right,
            &ca,
            "the port for TLS needs an address that begins with amqps://",
        ),
    ] {
        let mut settings = amqp::Settings::new(format!("{login}127.0.0.1:{port}/%2f"));
        settings.tls = self::settings(Some(authority.file()), Some(&client));
        let error = Rabbit::new(settings).unwrap().depths().await.unwrap_err();
        let said = chain(&error);
        assert!(said.contains(expected), "{expected:?} in {said}");
        assert!(said.contains(&format!("127.0.0.1:{port}")), "{said}");
    }
}

/// A target with a private CA that asks for a certificate: a job reaches it, the doctor says so,
/// and a wrong file parks the target instead of failing recipients.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_is_reached_with_certificates_of_its_own() {
    let (Some(amqp), Some(redis)) = (amqp_url(), redis_url()) else {
        return;
    };
    let (ca, other) = (Authority::new("own"), Authority::new("other"));
    let server = ca.sign("im", "DNS:im.internal");
    let client = ca.sign("fanwise", "DNS:fanwise");
    let mut plan = Plan::on(&amqp, &redis);
    plan.own_url = true;
    plan.target += "\nurl = \"http://{address}\"";
    let world = plan.start("target-tls").await;
    let port = before(world.address, &server, &ca).await;
    let url = format!("https://127.0.0.1:{port}");
    let file = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let (right, wrong) = (file(&ca.file()), file(&other.file()));
    let (certificate, key) = (file(&client.certificate), file(&client.key));
    let all = |ca: &str| {
        [
            ("FANWISE_TARGETS__IM__URL", url.clone()),
            ("FANWISE_TARGETS__IM__CA_FILE", ca.to_owned()),
            ("FANWISE_TARGETS__IM__CERTIFICATE", certificate.clone()),
            ("FANWISE_TARGETS__IM__KEY", key.clone()),
            ("FANWISE_TARGETS__IM__SERVER_NAME", "im.internal".to_owned()),
        ]
    };
    let recipients = users(40);
    let job = world.send("over-tls", &recipients, &[]).await;
    let settings = all(&wrong);
    let settings: Vec<_> = settings
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .collect();
    let mut worker = world.worker_with(&settings).await;
    worker
        .process
        .until_prints("is not from the CA in targets.im.ca_file", BOUND)
        .await;
    drop(worker);
    let settings = all(&right);
    let settings: Vec<_> = settings
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .collect();
    let doctor = world.run_with_environment(&["doctor"], &settings).await;
    assert!(doctor.stdout.contains("ok    target"), "{}", doctor.stdout);
    let worker = world.worker_with(&settings).await;
    let _ = world.run(&["target", "unpark", "im"]).await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 40, "{record}");
    world.assert_once_each(&recipients);
    worker.drain().await;
}

/// The certificate of the client is its login at RabbitMQ: this broker takes no password.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_the_login_at_the_broker() {
    let Some(redis) = redis_url() else { return };
    let ca = Authority::new("own");
    let files = Scratch::new("rabbit-tls");
    copy(&ca.file(), &files.path().join("ca.pem"));
    let server = ca.sign("rabbit", "IP:127.0.0.1");
    copy(&server.certificate, &files.path().join("server.pem"));
    copy(&server.key, &files.path().join("server.key"));
    let folder = files.path().to_str().unwrap();
    let Some(rabbit) = PrivateRabbit::start_with(&["--tls", folder]).await else {
        return;
    };
    // The only user of a new broker, and somebody who is none.
    let (user, stranger) = (ca.sign("guest", "DNS:fanwise"), ca.sign("eve", "DNS:eve"));
    let file = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let login = |pair: &Pair| {
        [
            ("FANWISE_BROKER__CA_FILE", file(&ca.file())),
            ("FANWISE_BROKER__CERTIFICATE", file(&pair.certificate)),
            ("FANWISE_BROKER__KEY", file(&pair.key)),
        ]
    };
    let (user, stranger) = (login(&user), login(&stranger));
    let user = user.each_ref().map(|(key, value)| (*key, value.as_str()));
    let stranger = stranger
        .each_ref()
        .map(|(key, value)| (*key, value.as_str()));
    let world = Plan::on(rabbit.tls_url(), &redis).start("external").await;
    let refused = world.run_with_environment(&["doctor"], &stranger).await;
    assert_eq!(refused.code, Some(69), "{}", refused.stdout);
    let expected = "Check that the broker knows the user of broker.certificate";
    assert!(refused.stdout.contains(expected), "{}", refused.stdout);
    let worker = world.worker_with(&user).await;
    let send = [
        "send",
        "--client-msg-no",
        "k",
        "--text",
        "hello",
        "ann",
        "bob",
    ];
    let sent = world.run_with_environment(&send, &user).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let record = world.completed("k").await;
    assert_eq!(record["accounts"]["sent"], 2, "{record}");
    worker.drain().await;
}
