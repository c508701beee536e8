use super::*;
use crate::domain::accounts::Accounts;
use crate::domain::directive::{Action, Subject};
use crate::domain::job_limits::LimitKind;
use crate::domain::pace::{Mark, Pace};
use crate::domain::slice::Shape;
use crate::ports::{JobAtWork, ParkReason, UnderWay};
use crate::service::control::SharedLimit;
use crate::service::control::tests::facts;

const NOW: u64 = 1_000_000;

fn record() -> JobRecord {
    JobRecord {
        job: JobId::of("shop", "k"),
        app: "shop".to_owned(),
        client_msg_no: "k".to_owned(),
        target: "im".to_owned(),
        state: JobState::Running,
        accounts: Accounts::default(),
        pending: 1,
        accepted_at_ms: NOW,
        content_digest: None,
        progress_at_ms: None,
        completed_at_ms: None,
        rebuilt: false,
        went_back_at_ms: None,
        lost: 0,
        reopened: 0,
        waited_at_ms: None,
        submissions: 1,
        uncut: 0,
        warnings: Vec::new(),
        sender: None,
        window: None,
        pace_until_ms: None,
        category: None,
        rate: None,
        priority: None,
        not_before_ms: None,
        expires_at_ms: None,
        tags: Vec::new(),
        fetched: None,
        keep_ids: false,
        keeps_ids: None,
        callback_url: None,
        reply_to: None,
        fallback: None,
        sent_by_fallback: 0,
        pace: Pace::default(),
        template: None,
        shape: Shape { buckets: 1 },
    }
}

#[test]
fn a_job_of_a_target_that_was_removed_says_so() {
    let gone = JobRecord {
        target: "gone".to_owned(),
        ..record()
    };
    let found = note(&gone, Vec::new(), None, &[]);
    let [(cause, what)] = found.as_slice() else {
        panic!("{found:?}");
    };
    assert_eq!(*cause, Cause::NoTarget);
    assert!(
        what.starts_with("target gone is not configured here"),
        "{what}"
    );
}

fn directive(subject: Subject, action: Action) -> Directive {
    Directive {
        subject,
        action,
        reason: Some("wrong picture".to_owned()),
        author: Some("ana".to_owned()),
        since_ms: NOW,
        until_ms: None,
    }
}

/// A worker, with calls to the target under way.
fn working(calls: &[(u64, u64)]) -> Vec<Beat> {
    let of = |(calls, oldest_ms): &(u64, u64)| Beat {
        works: true,
        calls: [(
            "im".to_owned(),
            UnderWay {
                calls: *calls,
                oldest_ms: *oldest_ms,
            },
        )]
        .into(),
        ..QUESTION
    };
    calls.iter().map(of).collect()
}

/// The hindrances when this share of each limit is booked and a worker runs.
fn note(
    record: &JobRecord,
    directives: Vec<Directive>,
    park: Option<&Park>,
    booked: &[f64],
) -> Vec<(Cause, String)> {
    told_with(&working(&[(0, 0)]), record, directives, park, booked)
}

fn told_with(
    beats: &[Beat],
    record: &JobRecord,
    directives: Vec<Directive>,
    park: Option<&Park>,
    booked: &[f64],
) -> Vec<(Cause, String)> {
    let situation = Situation {
        board: &Board::new(directives),
        park,
        beats,
        facts: &facts(),
        record,
        reader: Reader::Administrator,
        job: &record.job.to_string(),
        now_ms: NOW,
    };
    let mut found = situation.stops();
    if found.is_empty() {
        found = situation.reached(&situation.limits(), booked);
    }
    if found.is_empty() {
        found.extend(situation.unlimited());
    }
    found.into_iter().map(|it| (it.cause, it.what)).collect()
}

fn as_told<const N: usize>(expected: [(Cause, &str); N]) -> Vec<(Cause, String)> {
    expected
        .map(|(cause, what)| (cause, what.to_owned()))
        .into()
}

#[test]
fn a_job_says_all_that_stops_it() {
    let record = JobRecord {
        not_before_ms: Some(NOW + 60_000),
        rate: Some("5/s".to_owned()),
        ..record()
    };
    let park = Park {
        since_ms: NOW,
        until_ms: NOW + 1000,
        reason: ParkReason::Config,
        code: "401".to_owned(),
        text: "token is wrong".to_owned(),
    };
    let app = directive(Subject::new(Scope::App, "shop"), Action::Pause);
    assert_eq!(
        note(&record, vec![app], Some(&park), &[1.0, 1.0]),
        as_told([
            (Cause::Paused, "app shop paused by ana: wrong picture"),
            (
                Cause::Parked,
                "target im is parked until 1970-01-01T00:16:41Z: config 401: token is wrong",
            ),
            (
                Cause::Scheduled,
                "not to be sent before 1970-01-01T00:17:40Z",
            ),
        ])
    );
}

#[test]
fn a_job_that_moves_says_which_limits_it_has_reached() {
    let record = JobRecord {
        not_before_ms: Some(NOW),
        rate: Some("5/s".to_owned()),
        ..record()
    };
    let target = (Cause::TargetLimit, "target im has the limit 100/s burst 20");
    let job = (Cause::JobLimit, "job has the limit 5/s burst 1");
    let reached = |booked: &[f64]| note(&record, Vec::new(), None, booked);
    assert_eq!(reached(&[0.5, 1.0]), as_told([target, job]));
    assert_eq!(reached(&[0.4, 1.0]), as_told([job]));
    // A rate that was set replaces the configured one.
    let rate = Action::Rate {
        rate: "7/s".parse().unwrap(),
    };
    let set = directive(Subject::new(Scope::Job, record.job.to_string()), rate);
    let what = "job rate set to 7/s burst 1 by ana: wrong picture";
    let found = note(&record, vec![set], None, &[0.0, 1.0]);
    assert_eq!(found, as_told([(Cause::JobLimit, what)]));
}

#[test]
fn a_job_that_goes_at_its_limit_has_reached_it_whatever_is_booked() {
    let mark = |at_ms, settled| Some(Mark { at_ms, settled });
    let going = |settled: u64| JobRecord {
        rate: Some("100/s".to_owned()),
        progress_at_ms: Some(NOW),
        accounts: Accounts {
            total: 1000,
            sent: settled,
            ..Accounts::default()
        },
        pace: Pace {
            last: mark(NOW - 5_000, 0),
            before: None,
        },
        ..record()
    };
    let causes = |record: &JobRecord| -> Vec<_> {
        let found = note(record, Vec::new(), None, &[0.0, 0.0]).into_iter();
        found.map(|(cause, _)| cause).collect()
    };
    // 90 in a second is nine tenths of both limits.
    assert_eq!(causes(&going(450)), [Cause::TargetLimit, Cause::JobLimit]);
    assert_eq!(causes(&going(440)), [Cause::Target]);
    assert_eq!(causes(&record()), [], "nothing is said at once");
    let waiting = JobRecord {
        accepted_at_ms: NOW - PATIENCE_MS,
        ..record()
    };
    assert_eq!(causes(&waiting), [Cause::Waiting]);
}

#[test]
fn a_job_that_stands_still_says_what_is_known_of_workers_and_calls() {
    let note =
        |beats: &[Beat], record: &JobRecord| told_with(beats, record, Vec::new(), None, &[0.0]);
    let none = (
        Cause::NoWorker,
        "no worker is running: start `fanwise worker` or `fanwise serve`",
    );
    assert_eq!(note(&[], &record()), as_told([none]));
    // A gateway delivers nothing.
    assert_eq!(note(&[QUESTION], &record()), as_told([none]));
    let hangs = (Cause::Target, "256 calls wait for im, the oldest for 6 s");
    let working = working(&[(200, 6100), (56, 2000)]);
    assert_eq!(note(&working, &record()), as_told([hangs]));
    let accepted = JobRecord {
        state: JobState::Accepted,
        ..record()
    };
    let waits = "accepted, and no worker has taken it yet: other jobs are before it";
    assert_eq!(
        note(&working, &accepted),
        as_told([(Cause::Waiting, waits)])
    );
}

/// A worker with these jobs: app, key, places and waiting slices.
fn at_work(jobs: &[(&str, &str, u64, u64)]) -> Beat {
    let of = |(app, key, places, waiting): &(&str, &str, u64, u64)| JobAtWork {
        job: JobId::of(app, key),
        app: (*app).to_owned(),
        places: *places,
        waiting: *waiting,
    };
    Beat {
        works: true,
        at_broker: Some(true),
        jobs: [("im".to_owned(), jobs.iter().map(of).collect())].into(),
        ..QUESTION
    }
}

#[test]
fn a_job_that_others_hold_up_says_whose_they_are() {
    let silent = JobRecord {
        accepted_at_ms: NOW - 9_000,
        ..record()
    };
    let note = |beats: &[Beat]| told_with(beats, &silent, Vec::new(), None, &[0.0]);
    let [one, other] = [JobId::of("shop", "one"), JobId::of("news", "other")];
    let beats = [
        at_work(&[
            ("news", "other", 3, 0),
            ("shop", "one", 1, 5),
            ("shop", "k", 0, 2),
        ]),
        at_work(&[("news", "other", 4, 9)]),
    ];
    let what = format!(
        "no outcome for 9 s: its slices wait for a place; job {other} of app news has 7 places, \
         job {one} of app shop has 1 place"
    );
    assert_eq!(note(&beats), as_told([(Cause::OtherJobs, what.as_str())]));
    // Its slices are at no worker.
    let elsewhere = [at_work(&[("news", "other", 4, 0)])];
    let what = format!(
        "no outcome for 9 s: retries wait for their time, or other jobs are before it on its \
         lane; job {other} of app news has 4 places"
    );
    assert_eq!(note(&elsewhere), as_told([(Cause::Waiting, what.as_str())]));
    let what = "no outcome for 9 s: retries wait for their time";
    assert_eq!(note(&[at_work(&[])]), as_told([(Cause::Waiting, what)]));
    let away = Beat {
        at_broker: Some(false),
        ..at_work(&[])
    };
    let what = "no worker has a session with the broker: see their logs, or run `fanwise doctor`";
    assert_eq!(
        note(std::slice::from_ref(&away)),
        as_told([(Cause::Broker, what)])
    );
    let what = "no outcome for 9 s: retries wait for their time";
    let one_of_two = [away, at_work(&[])];
    assert_eq!(note(&one_of_two), as_told([(Cause::Waiting, what)]));
}

/// An app does not learn which jobs others have.
#[test]
fn an_app_learns_only_of_its_own_jobs() {
    let beats = [at_work(&[
        ("news", "other", 7, 0),
        ("shop", "one", 1, 5),
        ("shop", "k", 0, 2),
    ])];
    let (record, board) = (record(), Board::new(Vec::new()));
    let situation = Situation {
        board: &board,
        park: None,
        beats: &beats,
        facts: &facts(),
        record: &record,
        reader: Reader::App,
        job: "",
        now_ms: NOW,
    };
    let told = Work::of(&situation).others().to_string();
    let one = JobId::of("shop", "one");
    assert_eq!(
        told,
        format!("job {one} of app shop has 1 place, jobs of other apps have 7 places")
    );
}

#[test]
fn a_job_that_shares_the_target_says_with_whom() {
    let mark = |at_ms, settled| Some(Mark { at_ms, settled });
    let going = JobRecord {
        progress_at_ms: Some(NOW),
        accounts: Accounts {
            total: 1000,
            sent: 100,
            ..Accounts::default()
        },
        pace: Pace {
            last: mark(NOW - 5_000, 0),
            before: None,
        },
        ..record()
    };
    let note = |beats: &[Beat]| told_with(beats, &going, Vec::new(), None, &[0.0]);
    let one = JobId::of("shop", "one");
    let beats = [at_work(&[("shop", "one", 2, 5), ("shop", "k", 2, 3)])];
    let what = format!(
        "it shares the target with other jobs and has 2 of 4 places; job {one} of app shop has 2 \
         places"
    );
    assert_eq!(note(&beats), as_told([(Cause::OtherJobs, what.as_str())]));
    // All its slices have places: others take nothing from it.
    let beats = [at_work(&[("shop", "one", 2, 5), ("shop", "k", 2, 0)])];
    assert_eq!(note(&beats)[0].0, Cause::Target);
}

#[test]
fn limits_of_senders_days_and_accounts_are_told_apart() {
    let rate = |text: &str| Some(text.parse().unwrap());
    let mut facts = facts();
    let im = facts.targets.get_mut("im").unwrap();
    (im.limit, im.daily_limit) = (None, rate("9/day"));
    (im.sender_limit, im.sender) = (rate("5/h"), Some("news".to_owned()));
    im.shared_limit = Some(SharedLimit {
        name: "cloud".to_owned(),
        rate: "7/s".parse().unwrap(),
    });
    let told = |record: &JobRecord, directives: Vec<Directive>| {
        let situation = Situation {
            board: &Board::new(directives),
            park: None,
            beats: &working(&[(0, 0)]),
            facts: &facts,
            record,
            reader: Reader::Administrator,
            job: "",
            now_ms: NOW,
        };
        let limits = situation.limits();
        let names: Vec<_> = limits.iter().map(|it| it.limiter.to_string()).collect();
        let told = situation.reached(&limits, &vec![1.0; limits.len()]);
        let told: Vec<_> = told.into_iter().map(|it| (it.cause, it.what)).collect();
        (names, told)
    };
    let (names, found) = told(&record(), Vec::new());
    let shared = "all targets that share the limit cloud";
    assert_eq!(
        found,
        as_told([
            (Cause::TargetLimit, "target im has the limit 9/day"),
            (
                Cause::SenderLimit,
                "sender news at target im has the limit 5/h"
            ),
            (Cause::SharedLimit, &format!("{shared}: 7/s")),
        ])
    );
    // The limiter is that of the sender, whether the job names it or the target does.
    let named = |sender: &str| JobRecord {
        sender: Some(sender.to_owned()),
        ..record()
    };
    assert_eq!(told(&named("news"), Vec::new()).0, names);
    let (others, found) = told(&named("alerts"), Vec::new());
    assert_ne!(others[1], names[1]);
    assert!(found[1].1.starts_with("sender alerts at "), "{found:?}");
    let set = |scope, name, kind| {
        let rate = "3/day".parse().unwrap();
        directive(Subject::new(scope, name), Action::limit(kind, rate))
    };
    let (_, found) = told(
        &record(),
        vec![
            set(Scope::Shared, "cloud", LimitKind::Main),
            set(Scope::Target, "im", LimitKind::Sender),
            set(Scope::App, "shop", LimitKind::Daily),
        ],
    );
    let set = "set to 3/day burst 1 by ana: wrong picture";
    assert_eq!(
        found[1..],
        as_told([
            (Cause::AppLimit, &*format!("app shop daily limit {set}")),
            (
                Cause::SenderLimit,
                &format!("sender news at target im limit of each sender {set}")
            ),
            (Cause::SharedLimit, &format!("{shared} rate {set}")),
        ])
    );
}

/// A limit with a small burst holds the next unit up as soon as any is booked.
#[test]
fn a_slow_limit_is_reached_between_two_units() {
    let slow = JobRecord {
        rate: Some("6/h".to_owned()),
        ..record()
    };
    let what = (Cause::JobLimit, "job has the limit 6/h burst 1");
    assert_eq!(note(&slow, Vec::new(), None, &[0.0, 0.1]), as_told([what]));
    assert_eq!(note(&slow, Vec::new(), None, &[0.0, 0.0]), []);
}

#[test]
fn a_job_that_is_spread_over_a_time_says_so() {
    let paced = JobRecord {
        pace_until_ms: Some(NOW + 600_000),
        pending: 10,
        progress_at_ms: Some(NOW - 50_000),
        accounts: Accounts {
            total: 20,
            sent: 10,
            ..Accounts::default()
        },
        ..record()
    };
    let what = "spread evenly until 1970-01-01T00:26:40Z: 10 recipient(s) are left, 1.0/min";
    let found = |record: &JobRecord, directives| note(record, directives, None, &[0.0, 0.0]);
    assert_eq!(found(&paced, vec![]), as_told([(Cause::Pace, what)]));
    // Two more are due and did not come, so something else holds it up.
    let late = JobRecord {
        progress_at_ms: Some(NOW - 130_000),
        ..paced.clone()
    };
    assert_eq!(found(&late, vec![])[0].0, Cause::Waiting);
    let past = JobRecord {
        pace_until_ms: Some(NOW),
        ..paced.clone()
    };
    assert_eq!(found(&past, vec![])[0].0, Cause::Waiting);
    // A rate that was set applies instead.
    let subject = Subject::new(Scope::Job, paced.job.to_string());
    let rate = Action::Rate {
        rate: "7/s".parse().unwrap(),
    };
    let set = directive(subject, rate);
    assert_eq!(found(&paced, vec![set])[0].0, Cause::Waiting);
}

#[test]
fn a_job_of_recipients_with_hours_of_their_own_is_not_outside_of_its_hours() {
    let own = JobRecord {
        window: Some("01:00-02:00 vars.tz or UTC".to_owned()),
        accepted_at_ms: NOW - 9_000,
        ..record()
    };
    let what = "recipients wait for their own sending hours (01:00-02:00 vars.tz or UTC), or for \
                the next attempt";
    let found = note(&own, Vec::new(), None, &[0.0]);
    assert_eq!(found, as_told([(Cause::SendingHours, what)]));
    let beats = [at_work(&[("shop", "k", 1, 0)])];
    let found = told_with(&beats, &own, Vec::new(), None, &[0.0]);
    assert_eq!(found[0].0, Cause::Waiting, "it has a place: {found:?}");
}

#[test]
fn a_job_outside_its_hours_says_when_they_begin() {
    // It is 00:16:40.
    let closed = JobRecord {
        window: Some("01:00-02:00 UTC".to_owned()),
        ..record()
    };
    let what = "sending hours of the job (01:00-02:00 UTC): opens at 1970-01-01T01:00:00Z";
    let found = note(&closed, Vec::new(), None, &[]);
    assert_eq!(found, as_told([(Cause::SendingHours, what)]));
    let open = JobRecord {
        app: "night".to_owned(),
        ..record()
    };
    assert_eq!(note(&open, Vec::new(), None, &[0.0]), []);
}

#[test]
fn a_cancelled_job_says_only_that() {
    let record = record();
    let job = Subject::new(Scope::Job, record.job.to_string());
    let directives = vec![
        directive(job.clone(), Action::Cancel),
        directive(job, Action::Pause),
    ];
    let found = note(&record, directives, None, &[1.0]);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, Cause::Cancelled);
}
