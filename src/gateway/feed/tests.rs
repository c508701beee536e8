use super::*;
use crate::domain::accounts::Accounts;
use crate::domain::pace::Pace;
use crate::domain::slice::Shape;

fn record(key: &str, sent: u64, completed: bool) -> JobRecord {
    JobRecord {
        job: JobId::of("shop", key),
        app: "shop".to_owned(),
        client_msg_no: key.to_owned(),
        target: "im".to_owned(),
        state: match completed {
            true => JobState::Completed,
            false => JobState::Running,
        },
        accounts: Accounts {
            total: 10,
            sent,
            ..Accounts::default()
        },
        pending: 10u64.saturating_sub(sent),
        accepted_at_ms: 5000,
        content_digest: None,
        progress_at_ms: None,
        completed_at_ms: None,
        rebuilt: false,
        went_back_at_ms: None,
        lost: 0,
        reopened: 0,
        submissions: 1,
        uncut: 0,
        shape: Shape { buckets: 1 },
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
        waited_at_ms: None,
        template: None,
    }
}

#[test]
fn each_step_of_a_job_is_told_once_and_its_end_too() {
    let mut known = Known::default();
    let mut take = |sent, completed, is_new| {
        let news = known.take(record("a", sent, completed), is_new);
        news.map(|news| news.kind)
    };
    assert_eq!(take(0, false, true), Some(EventKind::Accepted));
    assert_eq!(take(0, false, true), None);
    assert_eq!(take(4, false, false), Some(EventKind::Progress));
    assert_eq!(take(10, true, false), Some(EventKind::Completed));
    assert_eq!(take(10, true, true), None);
    // Extended after its end, and completed before the next look.
    assert_eq!(take(12, true, false), Some(EventKind::Completed));
    // Extended once more.
    assert_eq!(take(12, false, false), Some(EventKind::Progress));
    assert_eq!(take(12, true, false), Some(EventKind::Completed));
    assert_eq!(take(12, true, true), None);
}

#[test]
fn the_end_of_a_job_that_was_never_seen_running_is_told_if_it_is_new() {
    let mut known = Known::default();
    let news = known.take(record("a", 10, true), true);
    assert_eq!(news.unwrap().kind, EventKind::Completed);
    assert!(known.take(record("a", 10, true), true).is_none());
    // A job of earlier days, found on the way through the list.
    assert!(known.take(record("b", 10, true), false).is_none());
    assert!(
        known.take(record("b", 11, true), false).is_some(),
        "it was extended"
    );
}

#[tokio::test]
async fn a_stream_begins_with_the_unfinished_jobs_and_shows_only_what_is_asked_for() {
    let following = Following {
        news: broadcast::Sender::new(8),
        known: Mutex::default(),
    };
    following.tell(record("a", 3, false), false);
    let (live, news) = following.join();
    let wanted = |app: &str| JobFilter {
        app: Some(app.to_owned()),
        ..JobFilter::default()
    };
    let closing = CancellationToken::new();
    let own = streamed(live.clone(), news, wanted("shop"), closing.clone());
    let other = streamed(
        live,
        following.news.subscribe(),
        wanted("bank"),
        closing.clone(),
    );
    following.tell(record("a", 10, true), false);
    drop(following);
    // The first event of each stream says when to come back.
    assert_eq!(own.count().await, 3);
    assert_eq!(other.count().await, 1);
}
