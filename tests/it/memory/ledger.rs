//! Implements the ledger in memory: each job with its recipients, in plain maps.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry::{Occupied, Vacant};
use std::time::Duration;

use fanwise::clock::now_ms;
use fanwise::domain::accounts::{Accounts, Audit, ByOutcome as _, Remaining};
use fanwise::domain::directive::Action;
use fanwise::domain::ids::{Fingerprint, JobId, Owner};
use fanwise::domain::lane::{ASSIGNED_MAX, Assigned, least_open};
use fanwise::domain::message_id::KeptId;
use fanwise::domain::outcome::Outcome;
use fanwise::domain::pace::{Mark, Pace};
use fanwise::domain::slice::{Shape, Together};
use fanwise::domain::trail::TrailEntry;
use fanwise::ports::{
    Accepted, Claim, ClaimState, Claimed, Entry, Gathered, JobPage, JobPlace, JobProgress,
    JobQuery, JobRecord, JobState, Ledger, LedgerError, REASONS_MAX, Reason, Recorded, Settle,
    SliceRef, SubLanes, Submission, Unassigned, Upkeep,
};
use tokio::time::Instant;

use super::store::{MemoryStore, State};

/// A job.
#[derive(Default)]
pub(super) struct Job {
    /// The record, except for values that the other fields hold.
    record: Option<JobRecord>,
    pub(super) trail: Vec<TrailEntry>,
    /// Values that an operator changed, as the record shows them.
    pub(super) amended: Vec<Action>,
    /// No worker has registered it yet.
    entered: bool,
    listed_at_ms: u64,
    parts: u32,
    expanded: u64,
    /// Entries counted as repeats; may be too many for a moment.
    duplicate: i64,
    submissions: BTreeMap<String, (u64, Heard)>,
    /// Recipients per slice of each submission.
    cuts: BTreeMap<String, u32>,
    /// Entries of each slice that have their outcome.
    counted: BTreeMap<String, u32>,
    pub(super) recipients: BTreeMap<Fingerprint, Held>,
    reasons: BTreeMap<Fingerprint, Reason>,
    pub(super) ids: BTreeMap<Fingerprint, KeptId>,
    lists: BTreeMap<String, List>,
}

/// The state of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// Known only from its slices.
    OfSlices,
    Accepted,
    Expanded,
}

#[derive(Clone, Copy)]
pub(super) enum Held {
    /// `in_doubt`: taken over, or released in doubt before.
    Claimed {
        owner: Owner,
        ends: Instant,
        in_doubt: bool,
    },
    InDoubt,
    Settled(Outcome),
}

/// A list submitted in parts.
#[derive(Default)]
struct List {
    parts: std::collections::BTreeSet<u32>,
    given_up: bool,
}

impl Job {
    fn record(&self) -> &JobRecord {
        self.record.as_ref().expect("made with one")
    }

    pub(super) fn record_mut(&mut self) -> &mut JobRecord {
        self.record.as_mut().expect("made with one")
    }

    fn accounts(&self) -> Accounts {
        let record = self.record();
        Accounts {
            duplicate: u64::try_from(self.duplicate).expect("no step leaves too many"),
            uncertain: record.accounts.uncertain + record.lost,
            ..record.accounts
        }
    }

    fn progress(&self) -> JobProgress {
        let (record, accounts) = (self.record(), self.accounts());
        // The number of parts of a rebuilt job is unknown: those seen so far count.
        let needed = match record.rebuilt {
            true => record.submissions,
            false => record.submissions.max(self.parts.into()),
        };
        let settled = (needed > 0 || accounts.total > 0) && accounts.pending() == 0;
        JobProgress {
            accounts,
            finished: settled && self.expanded >= needed,
            completed: record.completed_at_ms.is_some(),
        }
    }

    fn shown(&self) -> JobRecord {
        let (record, accounts) = (self.record(), self.accounts());
        JobRecord {
            state: match record.completed_at_ms {
                Some(_) => JobState::Completed,
                None if self.entered => JobState::Accepted,
                None => JobState::Running,
            },
            accounts,
            pending: accounts.pending(),
            priority: self
                .amended
                .iter()
                .rev()
                .find_map(|it| match it {
                    Action::Priority { priority } => Some(*priority),
                    _ => None,
                })
                .or(record.priority),
            not_before_ms: self
                .amended
                .iter()
                .rev()
                .find_map(|it| match it {
                    Action::Schedule { not_before_ms } => Some(*not_before_ms),
                    _ => None,
                })
                .or(record.not_before_ms),
            expires_at_ms: self
                .amended
                .iter()
                .rev()
                .find_map(|it| match it {
                    Action::Deadline { expires_at_ms } => Some(*expires_at_ms),
                    _ => None,
                })
                .unwrap_or(record.expires_at_ms),
            pace_until_ms: self
                .amended
                .iter()
                .rev()
                .find_map(|it| match it {
                    Action::Pace { pace_until_ms } => Some(*pace_until_ms),
                    _ => None,
                })
                .unwrap_or(record.pace_until_ms),
            keep_ids: record.keeps_ids.is_some() || !self.ids.is_empty(),
            submissions: match self.entered {
                true => 1,
                false => record.submissions,
            },
            uncut: match self.entered {
                true => 0,
                false => record.submissions.saturating_sub(self.expanded),
            },
            ..record.clone()
        }
    }

    fn state(&self, recipient: Fingerprint, asker: Option<Owner>, now: Instant) -> ClaimState {
        match self.recipients.get(&recipient) {
            None => ClaimState::Granted,
            Some(Held::Settled(outcome)) => ClaimState::Settled(*outcome),
            Some(Held::InDoubt) => ClaimState::InDoubt,
            Some(Held::Claimed {
                owner, in_doubt, ..
            }) if Some(*owner) == asker => match in_doubt {
                true => ClaimState::InDoubt,
                false => ClaimState::Granted,
            },
            Some(Held::Claimed { ends, .. }) if *ends <= now => ClaimState::TakenOver,
            Some(Held::Claimed { ends, .. }) => ClaimState::Held {
                left: ends.duration_since(now),
            },
        }
    }

    fn is_own(&self, recipient: Fingerprint, me: Owner) -> bool {
        let held = self.recipients.get(&recipient);
        matches!(held, Some(Held::Claimed { owner, .. }) if *owner == me)
    }

    fn is_quiet(&self, quiet: Duration) -> bool {
        let record = self.record();
        let silent = now_ms().saturating_sub(record.heard_at_ms());
        record.completed_at_ms.is_none() && u128::from(silent) >= quiet.as_millis()
    }
}

/// An empty record, to be completed with the job's values.
fn record(job: JobId, app: &str, client_msg_no: &str, target: &str, at_ms: u64) -> JobRecord {
    JobRecord {
        job,
        app: app.to_owned(),
        client_msg_no: client_msg_no.to_owned(),
        target: target.to_owned(),
        state: JobState::Running,
        accounts: Accounts::default(),
        pending: 0,
        accepted_at_ms: at_ms,
        content_digest: None,
        progress_at_ms: None,
        completed_at_ms: None,
        rebuilt: false,
        went_back_at_ms: None,
        lost: 0,
        reopened: 0,
        submissions: 0,
        uncut: 0,
        shape: Shape { buckets: 0 },
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

impl State {
    fn running(&mut self, job: JobId) -> Option<&mut Job> {
        self.jobs.get_mut(&job).filter(|job| !job.entered)
    }

    /// Begins a job, in place of one that was only entered.
    fn begin(&mut self, record: JobRecord) -> &mut Job {
        let id = record.job;
        let entered = self.jobs.remove(&id);
        let listed_at_ms = entered
            .as_ref()
            .map_or(record.accepted_at_ms, |it| it.listed_at_ms);
        let (trail, amended) = entered.map(|it| (it.trail, it.amended)).unwrap_or_default();
        self.jobs.entry(id).or_insert(Job {
            record: Some(record),
            trail,
            amended,
            listed_at_ms,
            ..Job::default()
        })
    }

    fn enter(&mut self, entry: &Entry) {
        if self.jobs.contains_key(&entry.job) {
            return;
        }
        let Entry {
            job,
            app,
            client_msg_no,
            target,
            now_ms,
            ..
        } = entry;
        let mut record = record(*job, app, client_msg_no, target, *now_ms);
        record.content_digest = Some(entry.content_digest.clone());
        record.accounts.total = entry.entries;
        record.priority = Some(entry.priority);
        record.not_before_ms = entry.not_before_ms;
        record.expires_at_ms = entry.expires_at_ms;
        record.tags.clone_from(&entry.tags);
        record.fetched.clone_from(&entry.fetched);
        self.begin(record).entered = true;
    }

    fn accept(&mut self, submission: &Submission) -> Accepted {
        let first = self.running(submission.job).is_none();
        if first {
            let Submission {
                job,
                app,
                client_msg_no,
                target,
                now_ms,
                ..
            } = submission;
            let mut record = record(*job, app, client_msg_no, target, *now_ms);
            record.content_digest = Some(submission.content_digest.clone());
            record.shape = submission.shape;
            record.warnings.clone_from(&submission.warnings);
            record.template = submission.template;
            record.rate.clone_from(&submission.rate);
            record.sender.clone_from(&submission.sender);
            record.window.clone_from(&submission.window);
            record.pace_until_ms = submission.pace_until_ms;
            record.category.clone_from(&submission.category);
            record.priority = Some(submission.priority);
            record.not_before_ms = submission.not_before_ms;
            record.expires_at_ms = submission.expires_at_ms;
            record.tags.clone_from(&submission.tags);
            record.fallback.clone_from(&submission.fallback);
            self.begin(record);
        }
        let job = self.jobs.get_mut(&submission.job).expect("is there now");
        let record = job.record_mut();
        // A job that was rebuilt from slices has no digest; it takes the first one.
        let digest = &submission.content_digest;
        if record.content_digest.get_or_insert_with(|| digest.clone()) != digest {
            return Accepted::Conflict {
                job: submission.job,
            };
        }
        let callback_url = submission.callback_url.clone();
        record.callback_url = record.callback_url.take().or(callback_url);
        let keeps_ids = submission.keeps_ids.clone();
        record.keeps_ids = record.keeps_ids.take().or(keeps_ids);
        let reply_to = submission.reply_to.clone();
        record.reply_to = record.reply_to.take().or(reply_to);
        let (shape, template) = (record.shape, record.template);
        job.parts = job.parts.max(submission.parts);
        let known = job.submissions.get(&submission.submission).copied();
        let is_known = matches!(known, Some((_, Heard::Expanded | Heard::Accepted)));
        let record = job.record_mut();
        if is_known && !record.rebuilt && std::mem::take(&mut record.lost) > 0 {
            // Lost recipients are pending as before.
            record.completed_at_ms = None;
            record.reopened += 1;
        }
        let seen = match known {
            Some((_, Heard::Expanded)) if job.accounts().pending() == 0 => {
                return Accepted::Settled;
            }
            Some((_, Heard::Expanded | Heard::Accepted)) => {
                return Accepted::Again {
                    shape,
                    template,
                    slice_recipients: job.cuts.get(&submission.submission).copied(),
                };
            }
            Some((seen, Heard::OfSlices)) => seen,
            None => 0,
        };
        let heard = match submission.expanded {
            true => Heard::Expanded,
            false => Heard::Accepted,
        };
        job.expanded += u64::from(submission.expanded);
        let heard = (submission.entries, heard);
        job.submissions.insert(submission.submission.clone(), heard);
        let slice_recipients = Some(submission.slice_recipients);
        job.cuts
            .insert(submission.submission.clone(), submission.slice_recipients);
        let record = job.record_mut();
        if submission.fetched.is_some() {
            record.fetched.clone_from(&submission.fetched);
        }
        // Slices that came before have already raised the total by theirs.
        record.accounts.total += submission.entries.saturating_sub(seen);
        record.submissions += 1;
        record.completed_at_ms = None;
        match known {
            Some(_) => Accepted::Again {
                shape,
                template,
                slice_recipients,
            },
            None => Accepted::Expand {
                shape,
                first,
                template,
                slice_recipients,
            },
        }
    }

    fn assign(&mut self, job: &Unassigned<'_>) -> u32 {
        let class = (job.target.to_owned(), job.priority);
        let mut assigned = self.sub_lanes.remove(&class).unwrap_or_default();
        let open = |job: &JobId| {
            let job = self.jobs.get(job)?;
            (job.record().completed_at_ms.is_none()).then_some(job)
        };
        assigned.retain(|job, _| open(job).is_some());
        let chosen = assigned.get(&job.job).copied().unwrap_or_else(|| {
            let jobs = assigned.iter().filter_map(|(id, sub_lane)| {
                let job = open(id)?;
                Some(Assigned {
                    app: &job.record().app,
                    sub_lane: *sub_lane,
                    pending: job.accounts().pending(),
                })
            });
            let jobs: Vec<_> = jobs.collect();
            least_open(&jobs, job.job, job.app, job.recipients)
        });
        if assigned.len() < ASSIGNED_MAX {
            assigned.insert(job.job, chosen);
        }
        self.sub_lanes.insert(class, assigned);
        chosen
    }

    fn gather(&mut self, job: JobId, part: &Together, give_up: bool) -> Gathered {
        let known = self.running(job).filter(|job| !job.record().rebuilt);
        let Some(job) = known else {
            return Gathered::Complete;
        };
        let list = job.lists.entry(part.list.clone()).or_default();
        if list.given_up {
            return Gathered::GivenUp;
        }
        list.parts.insert(part.number);
        if list.parts.len() >= part.of as usize {
            return Gathered::Complete;
        }
        if !give_up {
            return Gathered::Waiting;
        }
        list.given_up = true;
        job.parts = job.record().submissions as u32;
        Gathered::GivenUp
    }

    /// The job of a slice. If the ledger has forgotten it, or does not know its submission, it is
    /// rebuilt from the slice.
    fn locate(&mut self, slice: SliceRef<'_>) -> &mut Job {
        let head = slice.head;
        if self.running(head.id).is_none() {
            let (app, no) = (&head.app, &head.client_msg_no);
            let mut record = record(head.id, app, no, head.first_target(), head.accepted_at_ms);
            record.shape = slice.shape;
            self.begin(record);
        }
        let job = self.jobs.get_mut(&head.id).expect("is there now");
        if job.counted.contains_key(&slice.id.0) {
            return job;
        }
        job.counted.insert(slice.id.0.clone(), 0);
        let submission = slice.id.submission().to_owned();
        let (seen, heard) = job
            .submissions
            .entry(submission)
            .or_insert((0, Heard::OfSlices));
        if *heard == Heard::OfSlices {
            let entries = u64::from(slice.entries);
            *seen += entries;
            let record = job.record_mut();
            record.accounts.total += entries;
            record.rebuilt = true;
            record.completed_at_ms = None;
        }
        job
    }

    fn claim(&mut self, claim: Claim<'_>) -> Claimed {
        let slice = claim.slice;
        let job = self.locate(slice);
        if job.counted[&slice.id.0] >= slice.entries {
            return Claimed::SliceDone;
        }
        let now = Instant::now();
        let recipients = claim.recipients.iter();
        let states: Vec<_> = recipients
            .map(|it| job.state(*it, Some(claim.owner), now))
            .collect();
        for (recipient, state) in claim.recipients.iter().zip(&states) {
            if !matches!(state, ClaimState::Held { .. } | ClaimState::Settled(_)) {
                let mine = Held::Claimed {
                    owner: claim.owner,
                    ends: now + claim.lease,
                    in_doubt: *state != ClaimState::Granted,
                };
                job.recipients.insert(*recipient, mine);
            }
        }
        Claimed::Each(states)
    }

    fn renew(&mut self, job: JobId, owner: Owner, lease: Duration, held: &[Fingerprint]) -> bool {
        let Some(job) = self.jobs.get_mut(&job) else {
            return held.is_empty();
        };
        let ends = Instant::now() + lease;
        let mut all = true;
        for recipient in held {
            match job.recipients.get_mut(recipient) {
                Some(Held::Claimed {
                    owner: holder,
                    ends: old,
                    ..
                }) if *holder == owner => *old = ends,
                _ => all = false,
            }
        }
        all
    }

    fn settle(&mut self, settle: Settle<'_>) -> Recorded {
        let (slice, owner) = (settle.slice, settle.owner);
        let job = self.locate(slice);
        let (mut settled, mut stood) = (0, 0);
        // For a recipient that is named twice the first outcome counts, and only once.
        let mut named = std::collections::BTreeSet::new();
        let outcomes = settle.outcomes.iter();
        for (recipient, outcome) in outcomes.filter(|(_, it)| *it != Outcome::Duplicate) {
            if !named.insert(*recipient) {
                continue;
            }
            if let Some(Held::Settled(_)) = job.recipients.get(recipient) {
                stood += 1;
                continue;
            }
            let id = settle.ids.iter().find(|(it, _)| it == recipient);
            job.ids.extend(id.cloned());
            // A late outcome wins over a claim of any owner: the message was sent.
            job.recipients.insert(*recipient, Held::Settled(*outcome));
            let record = job.record_mut();
            *record.accounts.of_mut(*outcome) += 1;
            if *outcome == Outcome::Sent && slice.head.fell_from.is_some() {
                record.sent_by_fallback += 1;
            }
            settled += 1;
        }
        // Of several ways to give up a claim, doubt wins.
        for recipient in settle.doubted {
            if job.is_own(*recipient, owner) {
                job.recipients.insert(*recipient, Held::InDoubt);
            }
        }
        for recipient in settle.unused {
            match job.recipients.get(recipient) {
                Some(Held::Claimed { in_doubt, .. }) if job.is_own(*recipient, owner) => {
                    if *in_doubt {
                        job.recipients.insert(*recipient, Held::InDoubt);
                    } else {
                        job.recipients.remove(recipient);
                    }
                }
                _ => {}
            }
        }
        for recipient in settle.release {
            if job.is_own(*recipient, owner) {
                job.recipients.remove(recipient);
            }
        }
        let outcomes = job.counted[&slice.id.0] + settled;
        let rebuilt = job.record().rebuilt;
        let remaining = Remaining::of(slice.entries, outcomes, settle.last, rebuilt);
        if settled > 0 || remaining.duplicate != 0 {
            job.duplicate += remaining.duplicate;
            job.counted.insert(slice.id.0.clone(), remaining.counted);
            // Recipients counted as lost too early were not lost.
            let accounts = job.accounts();
            let over = accounts.settled().saturating_sub(accounts.total);
            let record = job.record_mut();
            record.lost -= record.lost.min(over);
            let at_ms = now_ms();
            record.progress_at_ms = Some(at_ms);
            let settled = accounts.settled() - over;
            record.pace.note(Mark { at_ms, settled });
        }
        Recorded {
            progress: Some(job.progress()),
            stood,
            missing: remaining.missing,
        }
    }

    fn audit(&self, job: JobId) -> Audit {
        let mut audit = Audit::default();
        let recipients = self.jobs.get(&job).map(|job| job.recipients.values());
        for held in recipients.into_iter().flatten() {
            match held {
                Held::Claimed { .. } | Held::InDoubt => audit.claimed += 1,
                Held::Settled(outcome) => audit.count(*outcome),
            }
        }
        audit
    }

    fn page(&self, query: &JobQuery) -> JobPage {
        let mut jobs: Vec<_> = self.jobs.values().collect();
        let place = |job: &Job| JobPlace {
            at_ms: job.listed_at_ms,
            job: job.record().job,
        };
        jobs.sort_by_key(|job| std::cmp::Reverse(place(job)));
        let mut page = JobPage::default();
        let mut last = query.after;
        for job in jobs {
            let (here, filter) = (place(job), &query.filter);
            let before = match query.after {
                Some(after) => here < after,
                None => filter.until_ms.is_none_or(|until| here.at_ms < until),
            };
            if !before || filter.since_ms.is_some_and(|since| here.at_ms < since) {
                continue;
            }
            if page.jobs.len() >= query.most {
                page.next = last;
                break;
            }
            last = Some(here);
            let shown = job.shown();
            page.jobs.extend(Some(shown).filter(|it| filter.takes(it)));
        }
        page
    }
}

impl SubLanes for MemoryStore {
    async fn assign(&self, job: &Unassigned<'_>) -> Result<u32, LedgerError> {
        self.step("assign", |state| state.assign(job)).await
    }
}

impl Ledger for MemoryStore {
    async fn accept(&self, submission: &Submission) -> Result<Accepted, LedgerError> {
        self.step("accept", |state| state.accept(submission)).await
    }

    async fn enter(&self, entry: &Entry) -> Result<(), LedgerError> {
        self.step("enter", |state| state.enter(entry)).await
    }

    async fn withdraw(&self, job: JobId) -> Result<(), LedgerError> {
        let withdraw = |state: &mut State| {
            if state.jobs.get(&job).is_some_and(|job| job.entered) {
                state.jobs.remove(&job);
            }
        };
        self.step("withdraw", withdraw).await
    }

    async fn mark_expanded(
        &self,
        job: JobId,
        submission: &str,
    ) -> Result<JobProgress, LedgerError> {
        let expanded = |state: &mut State| {
            let Some(job) = state.jobs.get_mut(&job) else {
                return JobProgress::default();
            };
            let known = job.submissions.get_mut(submission);
            if let Some((_, heard @ Heard::Accepted)) = known {
                *heard = Heard::Expanded;
                job.expanded += 1;
            }
            job.progress()
        };
        self.step("expanded", expanded).await
    }

    async fn gather(
        &self,
        job: JobId,
        part: &Together,
        give_up: bool,
    ) -> Result<Gathered, LedgerError> {
        self.step("gather", |state| state.gather(job, part, give_up))
            .await
    }

    async fn knows(&self, job: JobId, submissions: &[String]) -> Result<bool, LedgerError> {
        let knows = |state: &mut State| {
            state.jobs.get(&job).is_some_and(|job| {
                let heard = |name: &String| job.submissions.get(name).copied();
                submissions.iter().all(|name| {
                    matches!(
                        heard(name),
                        Some((_, Heard::Expanded) | (1.., Heard::Accepted))
                    )
                })
            })
        };
        self.step("knows", knows).await
    }

    async fn claim(&self, claim: Claim<'_>) -> Result<Claimed, LedgerError> {
        self.step("claim", |state| state.claim(claim)).await
    }

    async fn renew(
        &self,
        slice: SliceRef<'_>,
        owner: Owner,
        lease: Duration,
        held: &[Fingerprint],
    ) -> Result<bool, LedgerError> {
        let job = slice.head.id;
        self.step("renew", |state| state.renew(job, owner, lease, held))
            .await
    }

    async fn settle(&self, settle: Settle<'_>) -> Result<Recorded, LedgerError> {
        self.step("settle", |state| state.settle(settle)).await
    }

    async fn complete(&self, job: JobId) -> Result<bool, LedgerError> {
        let complete = |state: &mut State| {
            let Some(job) = state.running(job) else {
                return false;
            };
            let progress = job.progress();
            let first = progress.finished && !progress.completed;
            if first {
                job.record_mut().completed_at_ms = Some(now_ms());
            }
            first
        };
        self.step("complete", complete).await
    }

    async fn job(&self, job: JobId) -> Result<Option<JobRecord>, LedgerError> {
        self.step("job", |state| state.jobs.get(&job).map(Job::shown))
            .await
    }

    async fn jobs(&self, query: &JobQuery) -> Result<JobPage, LedgerError> {
        self.step("jobs", |state| state.page(query)).await
    }

    async fn peek(
        &self,
        job: &JobRecord,
        recipients: &[Fingerprint],
    ) -> Result<Vec<ClaimState>, LedgerError> {
        let look = |state: &mut State| {
            let (now, job) = (Instant::now(), state.jobs.get(&job.job));
            let look = |it: &Fingerprint| match job {
                Some(job) => job.state(*it, None, now),
                None => ClaimState::Granted,
            };
            recipients.iter().map(look).collect()
        };
        self.step("look", look).await
    }

    async fn record_reasons(
        &self,
        job: JobId,
        reasons: &[(Fingerprint, Reason)],
    ) -> Result<(), LedgerError> {
        let record_reasons = |state: &mut State| {
            if let Some(job) = state.jobs.get_mut(&job) {
                let room = (REASONS_MAX as usize).saturating_sub(job.reasons.len());
                job.reasons.extend(reasons.iter().take(room).cloned());
            }
        };
        self.step("explain", record_reasons).await
    }

    async fn reasons(
        &self,
        job: JobId,
        recipients: &[Fingerprint],
    ) -> Result<Vec<Option<Reason>>, LedgerError> {
        let reasons = |state: &mut State| {
            let job = state.jobs.get(&job);
            let reason = |it| job.and_then(|job| job.reasons.get(it)).cloned();
            recipients.iter().map(reason).collect()
        };
        self.step("reasons", reasons).await
    }

    async fn audit(&self, job: &JobRecord) -> Result<Audit, LedgerError> {
        self.step("audit", |state| state.audit(job.job)).await
    }
}

impl Upkeep for MemoryStore {
    async fn waits(&self, job: JobId) -> Result<(), LedgerError> {
        let waits = |state: &mut State| {
            let job = state.running(job);
            if let Some(job) = job.filter(|it| it.record().completed_at_ms.is_none()) {
                job.record_mut().waited_at_ms = Some(now_ms());
            }
        };
        self.step("waits", waits).await
    }

    async fn quiet(&self, quiet: Duration) -> Result<Vec<JobRecord>, LedgerError> {
        let find = |state: &mut State| {
            let now = now_ms();
            state.shown.retain(|_, until| *until > now);
            let again = now + (quiet / 4).as_millis() as u64;
            let jobs = state.jobs.values().filter(|job| job.is_quiet(quiet));
            // A job that was shown keeps its time, so that frequent requests do not delay the next
            // showing.
            let is_new = |job: &&Job| match state.shown.entry(job.record().job) {
                Occupied(_) => false,
                Vacant(new) => {
                    new.insert(again);
                    true
                }
            };
            jobs.filter(is_new).map(Job::shown).collect()
        };
        self.step("quiet", find).await
    }

    async fn each_open(&self, mut visit: impl FnMut(&JobRecord) + Send) -> Result<(), LedgerError> {
        let open = |state: &mut State| {
            let records = state.jobs.values().map(Job::shown);
            let open = records.filter(|record| record.state != JobState::Completed);
            open.collect::<Vec<_>>()
        };
        self.step("open", open).await?.iter().for_each(&mut visit);
        Ok(())
    }

    async fn abandon(
        &self,
        job: JobId,
        quiet: Duration,
    ) -> Result<Option<JobProgress>, LedgerError> {
        let abandon = |state: &mut State| {
            let job = state.running(job).filter(|job| job.is_quiet(quiet))?;
            let now = Instant::now();
            let held = |it: &Held| matches!(it, Held::Claimed { ends, .. } if *ends > now);
            if job.recipients.values().any(held) {
                return None;
            }
            let pending = job.accounts().pending();
            // No worker expands its submissions either.
            job.expanded = job.record().submissions.max(job.parts.into());
            let record = job.record_mut();
            record.lost += pending;
            record.progress_at_ms = Some(now_ms());
            Some(job.progress())
        };
        self.step("abandon", abandon).await
    }
}
