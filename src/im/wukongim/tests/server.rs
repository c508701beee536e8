//! Tests the adapter against the mock, which was written from the server's sources and does not
//! know the adapter.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Version, build_it, settings};
use crate::domain::outcome::Class;
use crate::domain::slice::{Addressed, Head};
use crate::http::client::{Client, ClientSettings};
use crate::im::fixture::head;
use crate::im::wukongim::{Manager, Settings};
use crate::ports::{HttpReply, Probed, Request, Target};
use crate::secret::Secret;
use fanwise_mock_im::{self as mock, MockIm};

/// Longer than an answer takes on a busy machine.
const BOUND: Duration = Duration::from_secs(20);

/// A mock of one version; it runs as long as this value lives.
struct Server {
    url: String,
    client: Client,
    stop: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Server {
    async fn start(version: Version) -> Self {
        Self::with(version, mock::Settings::default()).await
    }

    async fn with(version: Version, settings: mock::Settings) -> Self {
        let mock = MockIm::bind(mock::Settings {
            wukongim: match version {
                Version::V1 => mock::Version::V1,
                Version::V2 => mock::Version::V2,
                Version::V3 => mock::Version::V3,
            },
            ..settings
        });
        let mock = mock.await.unwrap();
        let url = format!("http://{}", mock.addr());
        let stop = CancellationToken::new();
        tokio::spawn(mock.run(stop.clone().cancelled_owned()));
        Self {
            url,
            client: Client::new(ClientSettings::defaults()),
            stop,
        }
    }

    /// An account on this server, with a change of its settings.
    fn target(&self, version: Version, change: impl FnOnce(&mut Settings)) -> Box<dyn Target> {
        let mut settings = Settings {
            url: self.url.clone(),
            sender: Some("news".into()),
            ..settings(version)
        };
        change(&mut settings);
        build_it(settings)
    }

    async fn ask(&self, request: Request) -> HttpReply {
        self.client.send(request, BOUND).await.unwrap()
    }

    /// The class of the answer to each of these recipients.
    async fn send(&self, target: &dyn Target, head: &Head, recipients: &[&str]) -> Vec<Class> {
        let calls = target.open(&Arc::new(head.clone()));
        let reply = self.ask(calls.request(recipients)).await;
        let verdict = calls.read_reply(recipients, &reply);
        (0..recipients.len())
            .map(|index| verdict.of(index).class)
            .collect()
    }
}

const VERSIONS: [Version; 3] = [Version::V1, Version::V2, Version::V3];

#[tokio::test]
async fn users_and_groups_of_every_version() {
    for version in VERSIONS {
        let server = Server::start(version).await;
        let target = server.target(version, |_| {});
        let mut head = head();
        assert_eq!(server.send(&*target, &head, &["u1"]).await, [Class::Done]);
        head.options.sync_once = Some(true);
        head.options.expire_seconds = Some(60);
        assert_eq!(server.send(&*target, &head, &["u2"]).await, [Class::Done]);
        head.options.sync_once = None;
        head.addressed = Addressed::Groups(2);
        assert_eq!(server.send(&*target, &head, &["g1"]).await, [Class::Done]);
        let illegal = server.send(&*target, &head, &["g@1"]).await;
        assert_eq!(illegal, [Class::Permanent], "{version:?}");
    }
}

#[tokio::test]
async fn calls_for_many() {
    for version in VERSIONS {
        let server = Server::start(version).await;
        let commands = server.target(version, |settings| settings.subscribers = true);
        let mut command = head();
        command.options.sync_once = Some(true);
        let taken = server.send(&*commands, &command, &["u1", "u2"]).await;
        assert_eq!(taken, [Class::Done; 2], "{version:?}");
        if version == Version::V3 {
            continue;
        }
        let packed = server.target(version, |settings| settings.packed = true);
        let taken = server.send(&*packed, &head(), &["u1", "u@2", "u3"]).await;
        assert_eq!(taken, [Class::Done, Class::Permanent, Class::Done]);
    }
}

#[tokio::test]
async fn a_message_that_was_sent_is_found() {
    let server = Server::start(Version::V2).await;
    let target = server.target(Version::V2, |settings| settings.probe = true);
    let mut head = head();
    let mut group = head.clone();
    group.addressed = Addressed::Groups(2);
    let plain = head.clone();
    head.options.sync_once = Some(true);
    for (head, recipient) in [(&plain, "u1"), (&head, "u2"), (&group, "g1")] {
        let calls = target.open(&Arc::new(head.clone()));
        let look = async || {
            let reply = server.ask(calls.probe(&[recipient]).unwrap()).await;
            calls.read_probe(&[recipient], &reply)
        };
        assert_eq!(look().await, Probed::Unknown);
        assert_eq!(
            server.send(&*target, head, &[recipient]).await,
            [Class::Done]
        );
        assert_eq!(look().await, Probed::Sent(None), "{recipient}");
    }
}

#[tokio::test]
async fn a_server_of_another_version_is_told() {
    for version in VERSIONS {
        let server = Server::start(version).await;
        for set in VERSIONS {
            let target = server.target(set, |_| {});
            let reply = server.ask(target.identify().unwrap()).await;
            let is_v3 = |version| version == Version::V3;
            let right = is_v3(version) == is_v3(set);
            let found = target.read_identity(&reply);
            assert_eq!(found.is_ok(), right, "{set:?} at {version:?}: {found:?}");
        }
    }
}

#[tokio::test]
async fn every_user_is_listed_once() {
    const USERS: usize = 2_345;
    for version in [Version::V2, Version::V3] {
        let login = mock::Login {
            user: "admin".into(),
            password: "p".into(),
        };
        let rules = mock::Settings {
            users: USERS as u64,
            token: Some("s3cret".into()),
            wukongim_manager: Some(login),
            ..mock::Settings::default()
        };
        let server = Server::with(version, rules).await;
        let target = server.target(version, |settings| {
            settings.manager_url = Some(server.url.clone());
            match version {
                Version::V1 | Version::V2 => settings.token = Some(Secret::new("s3cret")),
                Version::V3 => {
                    settings.manager = Some(Manager {
                        user: "admin".into(),
                        password: Secret::new("p"),
                    });
                }
            }
        });
        let directory = target.directory().unwrap();
        let credential = match directory.login() {
            Some(login) => Some(
                login
                    .read_credential(&server.ask(login.request()).await)
                    .unwrap(),
            ),
            None => None,
        };
        let mut users = Vec::new();
        let mut cursor = None;
        loop {
            let mut request = directory.page(cursor.as_deref());
            if let (Some(login), Some(credential)) = (directory.login(), &credential) {
                let refused =
                    directory.read_page(cursor.as_deref(), &server.ask(request.clone()).await);
                assert!(refused.unwrap_err().stale, "nobody is let in without it");
                login.apply(&mut request, credential.secret.expose());
            }
            let reply = server.ask(request).await;
            let page = directory.read_page(cursor.as_deref(), &reply).unwrap();
            users.extend(page.users);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(users.len(), USERS, "{version:?}");
        users.sort_unstable();
        users.dedup();
        assert_eq!(users.len(), USERS, "{version:?}");
    }
}
