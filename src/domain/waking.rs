//! Names the slices and jobs on the retry ladder that are to be looked at now, because a directive
//! about them changed.

use std::borrow::Cow;
use std::collections::HashSet;

use serde::Deserialize;

use super::directive::{Action, Board, Directive, Kind, Scope, Subject};
use super::ids::JobId;

/// Jobs, apps and targets whose waiting slices are to be looked at now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waking {
    /// By scope.
    names: [HashSet<String>; Scope::ALL.len()],
}

/// What a message says of the subjects that it belongs to: a slice in its head, a job in its own
/// fields.
#[derive(Deserialize)]
struct Waiting<'a> {
    #[serde(borrow, default)]
    head: Option<Owners<'a>>,
    #[serde(borrow, default)]
    client_msg_no: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    app: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    target: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Owners<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    app: Cow<'a, str>,
    #[serde(borrow)]
    target: Cow<'a, str>,
}

impl Waking {
    /// The slices of these jobs.
    pub fn of_jobs(jobs: impl IntoIterator<Item = JobId>) -> Self {
        let mut waking = Self::default();
        for job in jobs {
            waking.add(&Subject::new(Scope::Job, job.to_string()));
        }
        waking
    }

    /// What must be looked at after the directives changed: slices that may end, start, or go on.
    pub fn between(before: &Board, after: &Board, now_ms: u64) -> Self {
        let is_new = |it: &&Directive| !same(before, it, now_ms);
        let ended = |it: &&Directive| {
            let Subject { scope, name } = &it.subject;
            after.find(*scope, name, it.action.kind(), now_ms).is_none()
        };
        let came = after.all(now_ms).filter(is_new);
        let came = came.filter(|it| match it.action {
            Action::Cancel
            | Action::Schedule { .. }
            | Action::Deadline { .. }
            | Action::Pace { .. } => true,
            // The limits of targets hold their slices on their lanes.
            Action::Rate { .. } | Action::DailyRate { .. } => {
                !matches!(it.subject.scope, Scope::Target | Scope::Shared)
            }
            Action::SenderRate { .. } => true,
            _ => false,
        });
        let went = before.all(now_ms).filter(ended);
        let went = went.filter(|it| {
            matches!(
                it.action.kind(),
                Kind::Pause
                    | Kind::Park
                    | Kind::Rate
                    | Kind::DailyRate
                    | Kind::SenderRate
                    | Kind::Schedule
            )
        });
        let mut waking = Self::default();
        for directive in came.chain(went) {
            waking.add(&directive.subject);
        }
        waking
    }

    pub fn add(&mut self, subject: &Subject) {
        self.names[subject.scope as usize].insert(subject.name.clone());
    }

    pub fn merge(&mut self, other: Self) {
        for (here, there) in self.names.iter_mut().zip(other.names) {
            here.extend(there);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.names.iter().all(HashSet::is_empty)
    }

    /// Whether a message on the retry ladder is such a slice or job. A job that leaves its target
    /// to the configuration may belong to any.
    pub fn takes(&self, body: &[u8]) -> bool {
        let Ok(waiting) = serde_json::from_slice::<Waiting<'_>>(body) else {
            return false;
        };
        let [targets, apps, jobs, _] = &self.names;
        if let Some(head) = waiting.head {
            return jobs.contains(&*head.id)
                || apps.contains(&*head.app)
                || targets.contains(&*head.target);
        }
        let Some(key) = waiting.client_msg_no else {
            return false;
        };
        let app = waiting.app.as_deref().unwrap_or("default");
        let target_is_named = match waiting.target {
            Some(target) => targets.contains(&*target),
            None => !targets.is_empty(),
        };
        target_is_named || apps.contains(app) || jobs.contains(&JobId::of(app, &key).to_string())
    }
}

/// Whether the board has this very directive.
fn same(board: &Board, directive: &Directive, now_ms: u64) -> bool {
    let Subject { scope, name } = &directive.subject;
    board.about(*scope, name, now_ms).any(|it| it == directive)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn board(directives: &[(Scope, &str, Action)]) -> Board {
        Board::new(directives.iter().map(|(scope, name, action)| Directive {
            subject: Subject::new(*scope, *name),
            action: action.clone(),
            reason: None,
            author: None,
            since_ms: NOW,
            until_ms: None,
        }))
    }

    fn slice(job: &str, app: &str, target: &str) -> Vec<u8> {
        serde_json::json!({
            "v": 1, "head": {"id": job, "app": app, "target": target, "text": "\u{1f600}"},
            "recipients": ["u1"],
        })
        .to_string()
        .into_bytes()
    }

    #[test]
    fn what_ends_starts_or_goes_on_is_looked_at() {
        let (none, pause) = (board(&[]), board(&[(Scope::App, "shop", Action::Pause)]));
        assert!(Waking::between(&none, &pause, NOW).is_empty());
        let resumed = Waking::between(&pause, &none, NOW);
        assert!(resumed.takes(&slice("j1", "shop", "im")));
        assert!(!resumed.takes(&slice("j1", "bank", "im")));
        for action in [
            Action::Cancel,
            Action::Schedule { not_before_ms: 1 },
            Action::Pace {
                pace_until_ms: Some(1),
            },
            Action::Deadline {
                expires_at_ms: None,
            },
        ] {
            let after = board(&[(Scope::Job, "j1", action)]);
            let waking = Waking::between(&none, &after, NOW);
            assert!(waking.takes(&slice("j1", "shop", "im")), "{after:?}");
            assert!(!waking.takes(&slice("j2", "shop", "im")), "{after:?}");
            assert!(Waking::between(&after, &after, NOW).is_empty(), "{after:?}");
        }
    }

    #[test]
    fn the_slices_of_a_job_are_those_of_no_other() {
        let (one, other) = (JobId::of("shop", "one"), JobId::of("shop", "other"));
        let waking = Waking::of_jobs([one]);
        assert!(waking.takes(&slice(&one.to_string(), "shop", "im")));
        assert!(!waking.takes(&slice(&other.to_string(), "shop", "im")));
    }

    #[test]
    fn a_job_that_waits_is_known_by_its_own_fields() {
        let of = |subject: Subject| {
            let mut waking = Waking::default();
            waking.add(&subject);
            waking
        };
        let job = |text: &str| text.as_bytes().to_vec();
        let full =
            job(r#"{"client_msg_no":"m","app":"shop","target":"im","audience":{"users":["a"]}}"#);
        let short = job(r#"{"client_msg_no":"m"}"#);
        let id = |app: &str| JobId::of(app, "m").to_string();
        for (subject, takes_full, takes_short) in [
            (Subject::new(Scope::Target, "im"), true, true),
            (Subject::new(Scope::Target, "other"), false, true),
            (Subject::new(Scope::App, "shop"), true, false),
            (Subject::new(Scope::App, "default"), false, true),
            (Subject::new(Scope::Job, id("shop")), true, false),
            (Subject::new(Scope::Job, id("default")), false, true),
        ] {
            let waking = of(subject);
            assert_eq!(waking.takes(&full), takes_full, "{waking:?}");
            assert_eq!(waking.takes(&short), takes_short, "{waking:?}");
        }
    }

    #[test]
    fn what_is_no_slice_is_left_alone() {
        let mut waking = Waking::default();
        waking.add(&Subject::new(Scope::Target, "im"));
        let notice = br#"{"v":1,"id":"n","app":"shop","url":"u","lane":"im.notices"}"#;
        for body in [&b""[..], b"{}", b"null", br#"{"head":{"id":1}}"#, notice] {
            assert!(!waking.takes(body));
        }
        assert!(waking.takes(&slice("j1", "shop", "im")));
    }
}
