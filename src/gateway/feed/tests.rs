use super::*;
use crate::domain::accounts::Accounts;
use crate::domain::pace::Pace;
use crate::domain::slice::Shape;
use crate::ports::JobState;

/// A job that was accepted at 5,000 and completed then, if it was.
fn record(key: &str, sent: u64, completed_at_ms: Option<u64>) -> JobRecord {
    JobRecord {
        job: JobId::of("shop", key),
        app: "shop".to_owned(),
        client_msg_no: key.to_owned(),
        target: "im".to_owned(),
        state: match completed_at_ms {
            Some(_) => JobState::Completed,
            None => JobState::Running,
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
        completed_at_ms,
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
    let mut take = |sent, completed_at_ms| {
        let news = known.take(record("a", sent, completed_at_ms));
        news.map(|news| news.kind)
    };
    assert_eq!(take(0, None), Some(EventKind::Accepted));
    assert_eq!(take(0, None), None);
    assert_eq!(take(4, None), Some(EventKind::Progress));
    assert_eq!(take(10, Some(6000)), Some(EventKind::Completed));
    assert_eq!(take(10, Some(6000)), None);
    // Extended after its end, and completed before the next look.
    assert_eq!(take(12, Some(7000)), Some(EventKind::Completed));
    // Extended once more.
    assert_eq!(take(12, None), Some(EventKind::Progress));
    assert_eq!(take(12, Some(8000)), Some(EventKind::Completed));
    assert_eq!(take(12, Some(8000)), None);
}

/// Wherever the reader finds a job first: among the new ones, or on its way through the list.
#[test]
fn the_end_of_a_job_that_was_never_seen_running_is_told_if_it_is_new() {
    let latest = vec![record("a", 10, Some(6000)), record("b", 3, None)];
    let mut known = Known::of(latest);
    assert!(known.take(record("a", 10, Some(6000))).is_none());
    // A job of earlier days.
    assert!(known.take(record("c", 10, Some(5999))).is_none());
    let mut ends = |key, at_ms| known.take(record(key, 10, Some(at_ms))).is_some();
    assert!(ends("d", 6000), "within the same millisecond");
    assert!(!ends("d", 6000), "once");
    assert!(ends("b", 6001), "it was running");
    assert!(ends("c", 7000), "it was extended");
}

#[test]
fn ends_that_gave_way_to_later_ones_are_not_told_again() {
    let mut known = Known::default();
    let mut told = 0;
    let ends = 2 * ENDED_MAX as u64;
    for _ in 0..2 {
        for number in 0..ends {
            let job = record(&format!("k{number}"), 10, Some(6000 + number));
            told += u64::from(known.take(job).is_some());
        }
    }
    assert_eq!(told, ends);
    assert_eq!(
        (known.ended.len(), known.found.len()),
        (ENDED_MAX, ENDED_MAX)
    );
}

#[tokio::test]
async fn a_stream_begins_with_the_unfinished_jobs_and_shows_only_what_is_asked_for() {
    let following = Following {
        news: broadcast::Sender::new(8),
        known: Mutex::default(),
    };
    following.tell(record("a", 3, None));
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
    following.tell(record("a", 10, Some(6000)));
    drop(following);
    // The first event of each stream says when to come back.
    assert_eq!(own.count().await, 3);
    assert_eq!(other.count().await, 1);
}
