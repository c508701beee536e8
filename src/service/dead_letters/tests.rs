//! Redrives on the embedded engine: the published jobs, the letters that stay, and the effect of
//! the ledger.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::domain::fields::Problem;
use crate::domain::ids::{JobId, Owner, SliceId};
use crate::domain::job::{self, Job};
use crate::domain::lane::Priority;
use crate::domain::mapping::{Feature, Mapping};
use crate::domain::permissions::Permissions;
use crate::domain::slice::{Head, Shape};
use crate::embedded::{EmbeddedBroker, EmbeddedStore, Engine, Settings};
use crate::ports::{
    Broker as _, Calls, Consumer as _, HttpReply, Outgoing, Profile, Publisher as _, Request,
    Route, SendError, Session as _, Settle, SliceRef, Source, Submission, Target, Transport,
};
use crate::service::BeforeAccept;
use crate::service::admission::Admission;

/// A target that accepts every message.
#[derive(Default)]
struct Anything(Profile);

impl Target for Anything {
    fn profile(&self) -> &Profile {
        &self.0
    }

    fn maps(&self, _: Feature) -> Mapping {
        Mapping::Exact("")
    }

    fn check(&self, _: &Head) -> Vec<Problem> {
        Vec::new()
    }

    fn open(&self, _: &Arc<Head>) -> Box<dyn Calls> {
        unreachable!("nothing is sent here")
    }
}

/// An app with its rules, and a target.
#[derive(Default)]
struct Shop {
    permissions: Permissions,
    target: Anything,
}

impl job::Context for Shop {
    fn default_target(&self, _: &str) -> Result<String, String> {
        Ok("im".to_owned())
    }

    fn check_target(&self, target: &str) -> Result<(), String> {
        match target {
            "gone" => Err("there is no target \"gone\"".to_owned()),
            _ => Ok(()),
        }
    }

    fn folds_case(&self, _: &str) -> bool {
        false
    }

    fn check_category(&self, app: &str, category: &str) -> Result<(), String> {
        job::known_category::<()>(app, category, None)
    }

    fn check_callback(&self, app: &str, url: &str) -> Result<(), String> {
        job::check_callback(app, None, url)
    }

    fn check_reply_to(&self, _: &str, _: &str) -> Result<(), String> {
        Ok(())
    }
}

impl Rules for Shop {
    fn permissions(&self, app: &str) -> Option<&Permissions> {
        (app == "shop").then_some(&self.permissions)
    }

    fn target(&self, name: &str) -> Option<&dyn Target> {
        (name == "im").then_some(&self.target)
    }
}

/// An endpoint that always gives the same answer.
struct Hook(&'static str);

impl Transport for Hook {
    async fn send(&self, _: Request, _: Duration) -> Result<HttpReply, SendError> {
        Ok(HttpReply {
            status: 200,
            headers: http::HeaderMap::new(),
            body: self.0.into(),
        })
    }
}

struct Bench {
    engine: Engine,
    broker: EmbeddedBroker,
    store: EmbeddedStore,
    folder: PathBuf,
    shop: Shop,
    hook: Option<(BeforeAccept, Hook)>,
}

impl Admission for Bench {
    type Rules = Shop;
    type Store = EmbeddedStore;
    type Transport = Hook;

    fn rules(&self) -> &Shop {
        &self.shop
    }

    fn store(&self) -> &EmbeddedStore {
        &self.store
    }

    fn transport(&self) -> &Hook {
        &self.hook.as_ref().unwrap().1
    }

    fn before_accept(&self, _: &str) -> Option<&BeforeAccept> {
        Some(&self.hook.as_ref()?.0)
    }
}

/// Job, target, and recipients with their outcomes.
type Letter<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

const SECRET: &str = "s";

impl Bench {
    /// A bench whose retained queue has these letters.
    async fn with(letters: &[Letter<'_>]) -> Self {
        let name = format!(
            "fanwise-dead-{}-{:x}",
            std::process::id(),
            fastrand::u64(..)
        );
        let folder = std::env::temp_dir().join(name);
        let engine = Engine::open(&Settings {
            targets: vec!["im".to_owned()],
            ..Settings::new(&folder)
        })
        .unwrap();
        let (broker, store) = (engine.broker(), engine.store());
        let session = broker.connect().await.unwrap();
        for (number, (key, target, recipients)) in letters.iter().enumerate() {
            let letter = letter(key, target, recipients, number);
            session.publisher().publish(vec![letter]).await.unwrap();
        }
        session.close().await;
        Self {
            engine,
            broker,
            store,
            folder,
            shop: Shop::default(),
            hook: None,
        }
    }

    /// A job in the ledger, with those of its recipients settled that have an outcome.
    async fn sent(&self, key: &str, text: &str, recipients: &[(&str, Option<Outcome>)]) -> JobId {
        let users: Vec<_> = recipients.iter().map(|(user, _)| user).collect();
        let body = json!({
            "v": 1, "app": "shop", "client_msg_no": key, "audience": {"users": users},
            "message": {"type": "text", "text": text},
        });
        self.accept(body.to_string().as_bytes(), recipients, 1_700_000_000_000)
            .await
    }

    /// Works on a job as the intake and the deliveries do.
    async fn accept(
        &self,
        body: &[u8],
        recipients: &[(&str, Option<Outcome>)],
        now_ms: u64,
    ) -> JobId {
        let priority = Some(Priority::Normal);
        let job = Job::parse(body, priority, &self.shop, jiff::Timestamp::now()).unwrap();
        let shape = Shape { buckets: 4 };
        let submission = Submission {
            job: job.head.id,
            app: job.head.app.clone(),
            client_msg_no: job.head.client_msg_no.clone(),
            target: job.head.target.clone(),
            content_digest: job.content_digest.clone(),
            submission: job.submission.clone(),
            entries: job.entries as u64,
            parts: 1,
            slice_recipients: 500,
            shape,
            sender: None,
            window: None,
            pace_until_ms: None,
            category: None,
            rate: None,
            priority: Priority::Normal,
            not_before_ms: None,
            expires_at_ms: None,
            tags: Vec::new(),
            fetched: None,
            callback_url: None,
            reply_to: None,
            fallback: None,
            keeps_ids: None,
            now_ms,
            warnings: Vec::new(),
            template: None,
            expanded: false,
        };
        self.store.accept(&submission).await.unwrap();
        let expanded = self.store.mark_expanded(job.head.id, &job.submission);
        expanded.await.unwrap();
        let fingerprinter = Fingerprinter::new(SECRET, job.head.id);
        let outcomes: Vec<_> = recipients
            .iter()
            .filter_map(|(user, outcome)| Some((fingerprinter.fingerprint(user), (*outcome)?)))
            .collect();
        let slice = SliceRef {
            head: &job.head,
            id: &SliceId::new(&job.submission, 0),
            entries: job.entries as u32,
            shape,
        };
        let settle = Settle {
            outcomes: &outcomes,
            last: (outcomes.len() == job.entries).then_some(0),
            ..Settle::of(slice, Owner(1))
        };
        self.store.settle(settle).await.unwrap();
        job.head.id
    }

    async fn redrive(&self, redrive: &Redrive) -> Redriven {
        let session = self.broker.connect().await.unwrap();
        let publisher = session.publisher();
        let done = super::redrive(&self.broker, &publisher, self, SECRET, redrive).await;
        session.close().await;
        done.unwrap()
    }

    /// Redrives while an intake accepts the published jobs.
    async fn redrive_and_accept(&self, redrive: &Redrive, jobs: usize) -> Redriven {
        let accepting = async {
            let session = self.broker.connect().await.unwrap();
            let source = Source::Jobs(Priority::Normal);
            let mut consumer = session.consume(source, 100).await.unwrap();
            for _ in 0..jobs {
                let delivery = consumer.next().await.unwrap();
                self.accept(&delivery.body, &[], 1).await;
                delivery.ack().await.unwrap();
            }
            session.close().await;
        };
        tokio::join!(self.redrive(redrive), accepting).0
    }

    /// Key and recipients of every job that was published, in order.
    async fn published(&self, count: usize) -> Vec<(String, Vec<String>)> {
        let session = self.broker.connect().await.unwrap();
        let source = Source::Jobs(Priority::Normal);
        let mut consumer = session.consume(source, 100).await.unwrap();
        let mut jobs = Vec::new();
        for _ in 0..count {
            let delivery = consumer.next().await.unwrap();
            let job: Value = serde_json::from_slice(&delivery.body).unwrap();
            delivery.ack().await.unwrap();
            let users = serde_json::from_value(job["audience"]["users"].clone()).unwrap();
            jobs.push((job["client_msg_no"].as_str().unwrap().to_owned(), users));
        }
        jobs
    }

    async fn listed(&self) -> Vec<(String, Outcome)> {
        let view = LedgerView {
            store: &self.store,
            secret: SECRET,
        };
        let wanted = LetterFilter::default();
        let mut window = Window::new(None, 100);
        let visit = |message: RetainedMessage| {
            let letter = read_letter(&message.body).unwrap();
            for dead in &letter.recipients {
                put(&mut window, &letter, dead, &wanted, false);
            }
            ControlFlow::Continue(())
        };
        let read = self.broker.read(RetainedQueue::Dead, visit).await;
        read.unwrap();
        let rows = page(&view, window, &wanted).await;
        let rows = rows.unwrap().0.into_iter();
        rows.map(|row| (row.recipient, row.outcome)).collect()
    }

    /// The recipients of the letters in the retained queue, without the ledger's view.
    async fn left(&self) -> Vec<String> {
        let rows = all(&self.broker, &LetterFilter::default(), false)
            .await
            .unwrap();
        let mut left: Vec<_> = rows.into_iter().map(|row| row.recipient).collect();
        left.sort();
        left
    }

    async fn end(self) {
        self.engine.close().await;
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn letter(key: &str, target: &str, recipients: &[(&str, &str)], number: usize) -> Outgoing {
    let dead = recipients.iter().map(|(recipient, outcome)| {
        json!({
            "recipient": recipient, "outcome": outcome, "class": "permanent", "code": "c",
            "text": "t", "attempts": 1,
        })
    });
    let letter = json!({
        "v": 1, "job": JobId::of("shop", key), "app": "shop", "client_msg_no": key,
        "target": target, "slice": "s", "message": {"type": "text", "text": "hello"}, "options": {},
        "first_attempt_at": "2027-01-01T10:00:00Z",
        "last_attempt_at": format!("2027-01-01T10:00:{number:02}Z"),
        "recipients": dead.collect::<Vec<_>>(),
    });
    Outgoing {
        route: Route::Dead {
            app: "shop".to_owned(),
            target: target.to_owned(),
        },
        body: letter.to_string().into(),
        message_id: number.to_string(),
        traceparent: None,
    }
}

fn failed() -> Redrive {
    Redrive {
        wanted: LetterFilter::default(),
        uncertain: false,
        dry_run: false,
        purge: false,
        accept_within: Duration::from_secs(60),
        priority: Priority::Normal,
    }
}

fn purging() -> Redrive {
    Redrive {
        purge: true,
        ..failed()
    }
}

/// Of several letters for one recipient the last counts: if it is uncertain, the recipient is not
/// sent to unless the redrive asks for uncertain recipients.
#[tokio::test(flavor = "multi_thread")]
async fn uncertain_recipients_are_left_alone_unless_asked_for() {
    let bench = Bench::with(&[
        (
            "a",
            "im",
            &[("ann", "failed"), ("bob", "failed"), ("cat", "uncertain")],
        ),
        ("a", "im", &[("bob", "uncertain"), ("cat", "failed")]),
    ])
    .await;
    let done = bench.redrive(&failed()).await;
    assert_eq!((done.recipients, done.jobs_total), (2, 1));
    assert_eq!(done.uncertain_left_out, 2);
    let both = Redrive {
        uncertain: true,
        ..failed()
    };
    assert_eq!(bench.redrive(&both).await.recipients, 3);
    let dry = Redrive {
        dry_run: true,
        ..both.clone()
    };
    assert_eq!(bench.redrive(&dry).await.recipients, 3);
    let list = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
    let key = || "a~r1".to_owned();
    assert_eq!(
        bench.published(2).await,
        [
            (key(), list(&["ann", "cat"])),
            (key(), list(&["ann", "bob", "cat"]))
        ]
    );
    bench.end().await;
}

/// Redriven letters can be purged; the others stay, and a refused job is reported.
#[tokio::test(flavor = "multi_thread")]
async fn only_letters_that_were_redriven_are_purged() {
    let bench = Bench::with(&[
        ("a", "im", &[("ann", "failed"), ("bob", "uncertain")]),
        ("b", "gone", &[("cat", "failed")]),
        ("c", "im", &[("dan", "failed"), ("eve", "failed")]),
    ])
    .await;
    let done = bench.redrive_and_accept(&purging(), 2).await;
    assert_eq!((done.recipients, done.jobs_total, done.purged), (3, 2, 3));
    assert_eq!(done.refused.len(), 1);
    assert!(
        done.refused[0].reason.contains("there is no target"),
        "{done:?}"
    );
    assert_eq!(bench.left().await, ["bob", "cat"]);
    bench.end().await;
}

/// A redrive reports a new job, which can be found before a worker has registered it. A dry run
/// enters nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_redriven_job_is_found_at_once() {
    let bench = Bench::with(&[("a", "im", &[("ann", "failed"), ("bob", "failed")])]).await;
    let job = JobId::of("shop", "a~r1");
    let dry = Redrive {
        dry_run: true,
        ..failed()
    };
    bench.redrive(&dry).await;
    assert_eq!(bench.store.job(job).await.unwrap(), None);
    let done = bench.redrive(&failed()).await;
    assert_eq!(done.jobs[0].job, job.to_string());
    let record = bench.store.job(job).await.unwrap().unwrap();
    assert_eq!(record.state, JobState::Accepted);
    assert_eq!(record.accounts.total, 2);
    bench.end().await;
}

/// A job that no intake has accepted may still be refused, so its letters are not purged before.
/// When they are redriven again, they are purged, and nothing is sent again.
#[tokio::test(flavor = "multi_thread")]
async fn letters_stay_until_their_new_job_is_accepted() {
    let bench = Bench::with(&[("a", "im", &[("ann", "failed"), ("bob", "failed")])]).await;
    let at_once = Redrive {
        accept_within: Duration::ZERO,
        ..purging()
    };
    let done = bench.redrive(&at_once).await;
    assert_eq!(
        (done.recipients, done.purged, done.not_purged),
        (2, 0, 2),
        "{done:?}"
    );
    assert_eq!(bench.left().await, ["ann", "bob"]);
    let published = &bench.published(1).await[0];
    assert_eq!(published.0, "a~r1");
    bench
        .sent(
            "a~r1",
            "hello",
            &[("ann", None), ("bob", Some(Outcome::Sent))],
        )
        .await;
    let done = bench.redrive(&at_once).await;
    assert_eq!((done.recipients, done.redriven_before), (1, 1), "{done:?}");
    bench.end().await;
}

/// The rules that refuse a job of the same app also refuse a redriven one, and letters that are not
/// sent again stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_keeps_the_rules_of_every_job_and_loses_no_letter() {
    let letters: [Letter<'_>; 1] = [("a", "im", &[("ann", "failed"), ("bob", "failed")])];
    let with = |permissions| Shop {
        permissions,
        ..Shop::default()
    };
    let daily = with(Permissions {
        daily_recipients: Some(1),
        ..Permissions::default()
    });
    let one_job = with(Permissions {
        recipients_max: Some(1),
        ..Permissions::default()
    });
    let elsewhere = with(Permissions {
        targets: vec!["other".to_owned()],
        ..Permissions::default()
    });
    let somebody = with(Permissions {
        senders: vec!["news".to_owned()],
        ..Permissions::default()
    });
    let cases = [
        (daily, None, "has 1 of 1 left"),
        (one_job, None, "at most 1 with one job"),
        (elsewhere, None, "\"im\" is not allowed"),
        (somebody, None, "sender: missing"),
        (
            Shop::default(),
            Some(r#"{"decision":"deny","code":"7","text":"spam"}"#),
            "before_accept refused it: 7 spam",
        ),
    ];
    for (shop, answer, reason) in cases {
        let mut bench = Bench::with(&letters).await;
        bench.shop = shop;
        let url = BeforeAccept {
            url: "http://localhost/".parse().unwrap(),
            signer: None,
            timeout: Duration::from_secs(1),
            allow_on_failure: false,
        };
        bench.hook = answer.map(|answer| (url, Hook(answer)));
        let done = bench.redrive(&purging()).await;
        assert_eq!((done.recipients, done.purged), (0, 0), "{done:?}");
        assert!(done.refused[0].reason.contains(reason), "{done:?}");
        assert_eq!(bench.left().await, ["ann", "bob"]);
        bench.end().await;
    }
}

/// A redriven job has the message that `before_accept` sets, and its key belongs to that message.
#[tokio::test(flavor = "multi_thread")]
async fn before_accept_changes_a_redriven_job_too() {
    let mut bench = Bench::with(&[("a", "im", &[("ann", "failed")])]).await;
    let change = r#"{"decision":"change","message":{"type":"text","text":"other"}}"#;
    let url = BeforeAccept {
        url: "http://localhost/".parse().unwrap(),
        signer: None,
        timeout: Duration::from_secs(1),
        allow_on_failure: false,
    };
    bench.hook = Some((url, Hook(change)));
    let done = bench.redrive_and_accept(&purging(), 1).await;
    assert_eq!((done.recipients, done.purged), (1, 1), "{done:?}");
    let job = JobId::of("shop", "a~r1");
    let as_changed = bench.sent("a~r1", "other", &[("ann", None)]).await;
    assert_eq!(as_changed, job);
    bench.end().await;
}

/// The key of a redrive may belong to a producer's job: that job is not taken for the redrive, and
/// the letters stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_stands_for_another_message_is_no_redrive() {
    let bench = Bench::with(&[("a", "im", &[("ann", "failed")])]).await;
    let other = [("ann", Some(Outcome::Sent))];
    bench.sent("a~r1", "something else", &other).await;
    let done = bench.redrive(&purging()).await;
    assert_eq!(
        (done.recipients, done.redriven_before, done.purged),
        (0, 0, 0)
    );
    assert!(
        done.refused[0].reason.contains("another message"),
        "{done:?}"
    );
    assert_eq!(bench.left().await, ["ann"]);
    bench.end().await;
}

/// A letter may be stored without its confirm, and the next delivery may succeed. A recipient that
/// got the message, or whose job ended before, is neither shown as dead nor sent to again.
#[tokio::test(flavor = "multi_thread")]
async fn letters_that_the_ledger_contradicts_are_not_believed() {
    let bench = Bench::with(&[(
        "a",
        "im",
        &[
            ("ann", "failed"),
            ("bob", "failed"),
            ("cat", "uncertain"),
            ("dan", "failed"),
            ("eve", "uncertain"),
            ("fay", "failed"),
            ("gus", "failed"),
        ],
    )])
    .await;
    let ledger = [
        ("ann", Some(Outcome::Sent)),
        ("bob", Some(Outcome::Failed)),
        ("cat", Some(Outcome::Sent)),
        ("dan", Some(Outcome::Uncertain)),
        ("eve", Some(Outcome::Cancelled)),
        ("fay", Some(Outcome::Cancelled)),
        ("gus", None),
    ];
    bench.sent("a", "hello", &ledger).await;
    let row = |name: &str, outcome| (name.to_owned(), outcome);
    let expected = [
        row("bob", Outcome::Failed),
        row("dan", Outcome::Uncertain),
        // A doubt remains until the ledger knows that the message was sent.
        row("eve", Outcome::Uncertain),
        // It has no outcome yet.
        row("gus", Outcome::Failed),
    ];
    assert_eq!(bench.listed().await, expected);
    let done = bench.redrive_and_accept(&purging(), 1).await;
    assert_eq!(done.recipients, 1, "{done:?}");
    assert_eq!((done.contradicted, done.under_way), (2, 1), "{done:?}");
    assert_eq!(done.uncertain_left_out, 3, "{done:?}");
    assert_eq!(bench.left().await, ["cat", "dan", "eve", "gus"]);
    bench.end().await;
}

/// A ledger that has forgotten the job contradicts nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_job_is_as_its_letters_say() {
    let bench = Bench::with(&[("a", "im", &[("ann", "failed"), ("bob", "uncertain")])]).await;
    let row = |name: &str, outcome| (name.to_owned(), outcome);
    let expected = [row("ann", Outcome::Failed), row("bob", Outcome::Uncertain)];
    assert_eq!(bench.listed().await, expected);
    bench.end().await;
}

/// A key can be used again after the dedup window; its new ledger does not overrule older letters.
#[tokio::test(flavor = "multi_thread")]
async fn letters_of_an_earlier_job_under_the_same_key_stand() {
    let bench = Bench::with(&[("a", "im", &[("ann", "failed")])]).await;
    let body = json!({
        "v": 1, "app": "shop", "client_msg_no": "a", "audience": {"users": ["ann"]},
        "message": {"type": "text", "text": "hello"},
    });
    let sent = [("ann", Some(Outcome::Sent))];
    let in_2033 = 2_000_000_000_000;
    bench
        .accept(body.to_string().as_bytes(), &sent, in_2033)
        .await;
    assert_eq!(bench.listed().await, [("ann".to_owned(), Outcome::Failed)]);
    bench.end().await;
}

/// Redriving twice sends once, and the second redrive reports that.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_redrive_sends_to_nobody_and_says_so() {
    let bench = Bench::with(&[("a", "im", &[("ann", "failed"), ("bob", "failed")])]).await;
    let done = bench.redrive_and_accept(&failed(), 1).await;
    assert_eq!((done.recipients, done.redriven_before), (2, 0));
    for redrive in [failed(), purging()] {
        let done = bench.redrive(&redrive).await;
        assert_eq!((done.recipients, done.redriven_before), (0, 2), "{done:?}");
        let job = &done.jobs[0];
        assert_eq!((job.recipients, job.redriven_before), (0, 2));
        assert_eq!(job.client_msg_no, "a~r1");
        assert_eq!(done.purged, if redrive.purge { 2 } else { 0 });
    }
    assert!(bench.left().await.is_empty());
    bench.end().await;
}

/// A typing error in a filter is distinguished from having no dead letters.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_told() {
    let bench = Bench::with(&[]).await;
    bench.sent("known", "hello", &[("ann", None)]).await;
    let said = async |fields: &[(&str, &str)]| {
        let mut filter = crate::domain::letters::DeadFilter::default();
        for (name, value) in fields {
            *filter.field(name).unwrap() = Some((*value).to_owned());
        }
        let wanted = filter.check(0).unwrap();
        let said = unknown(&bench.shop, Some(&bench.store), &wanted).await;
        said.unwrap()
    };
    assert_eq!(said(&[("job", "known"), ("app", "shop")]).await, None);
    let id = JobId::of("shop", "known").to_string();
    assert_eq!(said(&[("job", &id)]).await, None);
    assert_eq!(said(&[("target", "im"), ("code", "7")]).await, None);
    for (field, value) in [("job", "knwon"), ("app", "shpo"), ("target", "imm")] {
        let told = said(&[(field, value)]).await.unwrap();
        assert!(
            told.starts_with(&format!("there is no {field} {value:?}")),
            "{told}"
        );
    }
    bench.end().await;
}
