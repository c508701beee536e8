//! Runs the one thread that writes: steps that wait at the same time share a commit.
//!
//! A step is a closure over the tables of the current transaction. It sees the changes of the steps
//! before it, and is answered when the commit that holds it is synced to disk. A commit waits a
//! little for as many steps as each of the last two had: callers that were answered together tend
//! to come back together. A caller that is alone once more does not wait.
//!
//! Nobody waits for an ack: it goes into the next commit, or into one of its own when none comes
//! within [`OWED_WAIT`]. A message whose ack a crash takes away is delivered again. Nor does a step
//! need a commit of its own if a crash that takes it away makes its caller take it again
//! ([`Handle::write_ahead`]).
//!
//! After an error of the disk all steps of the commit are refused and the store is opened again.
//! What is owed to callers that already got `Ok` is kept and written as soon as the disk works.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use redb::ReadableTable as _;
use tokio::sync::{Semaphore, oneshot};

use super::claims::Claims;
use super::damage::sheltered;
use super::deliveries::{Change, Deliveries, Out, Place};
use super::disk::{Disk, FolderLock, StorageError};
use super::sweep;
use super::tables::{Queues, Tables};
use super::transaction::Transaction;
use crate::clock::now_ms;

/// Callers that may wait for the writer at a time; further callers wait before they hand anything
/// over.
const WAITING_MAX: usize = 1024;

/// Most bytes of bodies in one commit, so that large ones do not pile up in memory.
const COMMIT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Most steps that are answered ahead of their commit: each further one applies them once more.
const AHEAD_MAX: usize = 8;

/// The pause between attempts to write to a disk that fails. Each opens the store again.
const RETRY: Duration = Duration::from_millis(100);

/// Longest time that an ack, or a step that was answered ahead, waits for a commit of other steps.
const OWED_WAIT: Duration = Duration::from_millis(100);

/// The state that the steps of one transaction work with.
pub(super) struct WriteContext<'t> {
    pub(super) tables: Tables<'t>,
    pub(super) claims: &'t mut Claims,
    pub(super) queues: &'t Queues,
    pub(super) now_ms: u64,
    pub(super) now: Instant,
    pub(super) window: Duration,
    next_seq: &'t mut u64,
    next_life: &'t mut u64,
    numbered: bool,
    /// By queue.
    changes: BTreeMap<u32, Change>,
}

impl WriteContext<'_> {
    /// A number for a message, above all numbers given before.
    pub(super) fn new_seq(&mut self) -> u64 {
        self.numbered = true;
        *self.next_seq += 1;
        *self.next_seq - 1
    }

    pub(super) fn new_life(&mut self) -> u64 {
        self.numbered = true;
        *self.next_life += 1;
        *self.next_life - 1
    }

    pub(super) fn change(&mut self, queue: u32) -> &mut Change {
        self.changes.entry(queue).or_default()
    }

    /// Removes a message from its queue, unless it is gone already.
    pub(super) fn delete(&mut self, queue: u32, place: Place) -> Result<(), StorageError> {
        let was_there = match place {
            Place::Ready(seq) => {
                let there = self.tables.ready.open()?.remove((queue, seq))?.is_some();
                self.change(queue).ready -= i64::from(there);
                there
            }
            Place::Waiting { due_ms, seq } => {
                let key = (queue, due_ms, seq);
                let there = self.tables.waiting.open()?.remove(key)?.is_some();
                let change = self.change(queue);
                change.waiting -= i64::from(there);
                change.gone.push(place);
                there
            }
        };
        if !was_there {
            tracing::debug!(queue = self.queues.names[queue as usize], "acked twice");
        }
        Ok(())
    }

    /// Writes the counts and numbers that the steps have in common.
    fn finish(&mut self, deliveries: &Deliveries) -> Result<(), StorageError> {
        for (queue, change) in &self.changes {
            let counts = self.tables.counts.open()?;
            let (ready, waiting, handed) = counts.get(queue)?.map_or((0, 0, 0), |row| row.value());
            let counted = (
                ready.saturating_add_signed(change.ready),
                waiting.saturating_add_signed(change.waiting),
                handed.max(deliveries.handed(*queue)),
            );
            counts.insert(queue, counted)?;
        }
        if self.numbered {
            self.tables.keep_next(*self.next_seq, *self.next_life)?;
        }
        Ok(())
    }
}

/// When a step has to be on disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// It changes nothing there.
    Never,
    /// Within [`OWED_WAIT`].
    Soon,
    /// With the next commit, ahead of the steps that come later.
    Next,
    /// Before its caller has its answer.
    Now,
}

/// A step to write, with the channel to the caller that waits for it.
trait Step: Send {
    /// May be called again, in another transaction, if the first one failed.
    fn apply(&mut self, work: &mut WriteContext<'_>) -> Result<(), StorageError>;
    /// Answers the caller, unless it has its answer.
    fn answer(&mut self, result: Result<(), StorageError>);
    /// Whether the caller has its answer.
    fn is_answered(&self) -> bool;
    fn bytes(&self) -> usize;
    fn due(&self) -> Due;
}

struct Asked<T, F> {
    act: F,
    value: Option<T>,
    bytes: usize,
    due: Due,
    done: Option<oneshot::Sender<Result<T, StorageError>>>,
}

impl<T: Send, F> Step for Asked<T, F>
where
    F: FnMut(&mut WriteContext<'_>) -> Result<T, StorageError> + Send,
{
    fn apply(&mut self, work: &mut WriteContext<'_>) -> Result<(), StorageError> {
        self.value = Some((self.act)(work)?);
        Ok(())
    }

    fn answer(&mut self, result: Result<(), StorageError>) {
        let Some(done) = self.done.take() else { return };
        let result = result.and_then(|()| self.value.take().ok_or(StorageError::Stopped));
        // A caller that does not wait any more needs no answer.
        let _ = done.send(result);
    }

    fn is_answered(&self) -> bool {
        self.done.is_none()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn due(&self) -> Due {
        self.due
    }
}

/// A message to delete. Its caller already got `Ok`, so the delete must happen.
#[derive(Clone, Copy)]
struct Ack {
    queue: u32,
    place: Place,
}

impl Step for Ack {
    fn apply(&mut self, work: &mut WriteContext<'_>) -> Result<(), StorageError> {
        work.delete(self.queue, self.place)
    }

    fn answer(&mut self, _: Result<(), StorageError>) {}

    fn is_answered(&self) -> bool {
        true
    }

    fn bytes(&self) -> usize {
        0
    }

    fn due(&self) -> Due {
        Due::Soon
    }
}

enum WriterCommand {
    Step(Box<dyn Step>),
    Ack(Ack),
    /// Commits what was answered ahead.
    CatchUp(oneshot::Sender<()>),
    Stop(oneshot::Sender<()>),
}

/// The way to the writer. The writer ends when the last handle is dropped.
pub(super) struct Handle {
    commands: mpsc::Sender<WriterCommand>,
    waiting: Arc<Semaphore>,
    is_behind: Arc<AtomicBool>,
}

impl Handle {
    /// Runs a step; `Ok` when it is on disk.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        bytes: usize,
        act: impl FnMut(&mut WriteContext<'_>) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        self.ask(bytes, Due::Now, act).await
    }

    /// Runs a step; `Ok` before it is on disk. It goes into the next commit, ahead of the steps that
    /// come later, so it is there as soon as anything is that the caller does next. If a crash takes
    /// it away, the caller must take it again: for instance since the message that it works on is
    /// delivered again. It must change neither queues nor claims.
    pub(super) async fn write_ahead<T: Send + 'static>(
        &self,
        act: impl FnMut(&mut WriteContext<'_>) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        self.ask(0, Due::Next, act).await
    }

    /// Waits until what is committed has every step that was answered. If the disk fails, it goes on
    /// without those.
    pub(super) async fn catch_up(&self) {
        if self.is_behind.load(Ordering::Acquire) {
            let (done, caught_up) = oneshot::channel();
            // If the writer has ended, everything is on disk that ever will be.
            let _ = self.commands.send(WriterCommand::CatchUp(done));
            let _ = caught_up.await;
        }
    }

    /// Runs a step that changes nothing on disk.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        act: impl FnMut(&mut WriteContext<'_>) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        self.ask(0, Due::Never, act).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        bytes: usize,
        due: Due,
        act: impl FnMut(&mut WriteContext<'_>) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        // Held until the answer arrives, which bounds the channel.
        let _waiting = self
            .waiting
            .acquire()
            .await
            .map_err(|_| StorageError::Stopped)?;
        let (done, answer) = oneshot::channel();
        let step = Asked {
            act,
            value: None,
            bytes,
            due,
            done: Some(done),
        };
        self.commands
            .send(WriterCommand::Step(Box::new(step)))
            .map_err(|_| StorageError::Stopped)?;
        answer.await.unwrap_or(Err(StorageError::Stopped))
    }

    /// Has a message deleted soon. There are never more acks than deliveries.
    pub(super) fn ack(&self, out: &Out) -> Result<(), StorageError> {
        let ack = Ack {
            queue: out.queue,
            place: out.place,
        };
        self.commands
            .send(WriterCommand::Ack(ack))
            .map_err(|_| StorageError::Stopped)
    }

    pub(super) fn stop(&self, done: oneshot::Sender<()>) {
        // If the writer has ended, `done` is dropped, which tells the caller.
        let _ = self.commands.send(WriterCommand::Stop(done));
    }
}

/// The parts that the writer owns, from start to end.
pub(super) struct Parts {
    pub(super) disk: Arc<Disk>,
    pub(super) deliveries: Arc<Deliveries>,
    pub(super) queues: Arc<Queues>,
    pub(super) claims: Claims,
    pub(super) next_seq: u64,
    pub(super) next_life: u64,
    pub(super) dedup_window: Duration,
    pub(super) wait_max: Duration,
    pub(super) steps_max: usize,
    pub(super) dispatcher: JoinHandle<()>,
    pub(super) lock: FolderLock,
}

/// How many steps the last two commits had.
#[derive(Default)]
struct Joined([usize; 2]);

impl Joined {
    fn note(&mut self, steps: usize) {
        let Self([last, before]) = self;
        *before = std::mem::replace(last, steps);
    }

    /// The steps that the next commit waits for. A single commit with several steps says little: of
    /// a small job, two steps meet once, and one of them has no successor.
    fn expected(&self) -> usize {
        let Self([last, before]) = self;
        *last.min(before)
    }
}

pub(super) struct Writer {
    parts: Parts,
    commands: mpsc::Receiver<WriterCommand>,
    joined: Joined,
    /// Acks that are not written yet.
    acks: Vec<Box<dyn Step>>,
    /// Steps that are not written yet, and whose callers have their answers. Later steps see them.
    ahead: Vec<Box<dyn Step>>,
    /// There are such steps.
    is_behind: Arc<AtomicBool>,
    /// When acks and these steps are written at the latest.
    owed_until: Instant,
    /// Why the store could not be opened again, or not be read.
    failed: Option<StorageError>,
    /// The last commit that the disk refused, and why, as long as none was made since.
    refused: Option<(Instant, StorageError)>,
    sweep: sweep::Round,
    sweep_at: Instant,
}

impl Writer {
    pub(super) fn start(parts: Parts) -> io::Result<Handle> {
        let (sender, commands) = mpsc::channel();
        let sweep_at = Instant::now() + sweep::pause(parts.dedup_window);
        let is_behind = Arc::<AtomicBool>::default();
        let writer = Self {
            parts,
            commands,
            joined: Joined::default(),
            acks: Vec::new(),
            ahead: Vec::new(),
            is_behind: Arc::clone(&is_behind),
            owed_until: sweep_at,
            failed: None,
            refused: None,
            sweep: sweep::Round::default(),
            sweep_at,
        };
        thread::Builder::new()
            .name("fanwise-write".to_owned())
            .spawn(move || writer.run())?;
        Ok(Handle {
            commands: sender,
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            is_behind,
        })
    }

    fn run(mut self) {
        // However the thread ends, the sessions end with it.
        struct Stop(Arc<Deliveries>);
        impl Drop for Stop {
            fn drop(&mut self) {
                self.0.stop();
            }
        }
        let stop = Stop(Arc::clone(&self.parts.deliveries));
        let mut asked_to_stop = None;
        while asked_to_stop.is_none() {
            let mut wait = self.sweep_at.saturating_duration_since(Instant::now());
            if self.owes() {
                let left = self.owed_until.saturating_duration_since(Instant::now());
                wait = wait.min(left);
            }
            match self.commands.recv_timeout(wait) {
                Ok(WriterCommand::Step(first)) => {
                    let (group, stopping) = self.collect(first);
                    if self.must_commit(&group) {
                        self.joined.note(group.len());
                    }
                    asked_to_stop = stopping;
                    self.commit(group);
                }
                Ok(WriterCommand::Ack(ack)) => self.owe(Box::new(ack)),
                Ok(WriterCommand::CatchUp(done)) => self.catch_up(done),
                Ok(WriterCommand::Stop(done)) => asked_to_stop = Some(done),
                Err(mpsc::RecvTimeoutError::Timeout) => self.idle(),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        if self.owes() {
            // The last chance, however soon after a failure.
            self.refused = None;
            self.commit(Vec::new());
        }
        // The dispatcher ends first, then the store is closed, then the folder is free for others.
        drop(stop);
        let Self {
            parts, commands, ..
        } = self;
        let _ = parts.dispatcher.join();
        parts.disk.close();
        drop(parts.lock);
        // Callers that handed over a step meanwhile get an error.
        drop(commands);
        if let Some(done) = asked_to_stop {
            let _ = done.send(());
        }
    }

    /// Takes the steps that wait, and waits a little for those that are about to arrive.
    fn collect(
        &mut self,
        first: Box<dyn Step>,
    ) -> (Vec<Box<dyn Step>>, Option<oneshot::Sender<()>>) {
        let deadline = Instant::now() + self.parts.wait_max;
        let expected = self.joined.expected();
        let mut bytes = first.bytes();
        let mut group = vec![first];
        while group.len() < self.parts.steps_max && bytes < COMMIT_BYTES_MAX {
            let command = match self.commands.try_recv() {
                Err(mpsc::TryRecvError::Empty)
                    if group.len() < expected && self.must_commit(&group) =>
                {
                    let left = deadline.saturating_duration_since(Instant::now());
                    self.commands.recv_timeout(left).ok()
                }
                command => command.ok(),
            };
            match command {
                Some(WriterCommand::Step(step)) => {
                    bytes += step.bytes();
                    group.push(step);
                }
                Some(WriterCommand::Ack(ack)) => self.owe(Box::new(ack)),
                Some(WriterCommand::CatchUp(done)) => self.catch_up(done),
                Some(WriterCommand::Stop(done)) => return (group, Some(done)),
                None => break,
            }
        }
        (group, None)
    }

    fn owes(&self) -> bool {
        !self.acks.is_empty() || !self.ahead.is_empty()
    }

    /// Keeps a step whose caller has its answer.
    fn owe(&mut self, step: Box<dyn Step>) {
        if !self.owes() {
            self.owed_until = Instant::now() + OWED_WAIT;
        }
        match step.due() {
            Due::Soon => self.acks.push(step),
            _ => self.ahead.push(step),
        }
    }

    fn catch_up(&mut self, done: oneshot::Sender<()>) {
        if !self.ahead.is_empty() {
            self.commit(Vec::new());
        }
        // A caller that does not wait any more needs no answer.
        let _ = done.send(());
    }

    /// Whether these steps have to be on disk before they are answered. While the disk fails, none
    /// is answered ahead.
    fn must_commit(&self, group: &[Box<dyn Step>]) -> bool {
        let fits = self.ahead.len() + group.len() <= AHEAD_MAX;
        let now = match fits && !self.parts.disk.is_blocked() {
            true => Due::Now,
            false => Due::Next,
        };
        group.is_empty() || group.iter().any(|step| step.due() >= now)
    }

    /// Makes one commit of these steps and of what is owed, and answers the steps. If no step needs
    /// a commit, they are only applied, and answered: what they write is owed.
    fn commit(&mut self, mut group: Vec<Box<dyn Step>>) {
        let commits = self.must_commit(&group);
        group.splice(..0, std::mem::take(&mut self.ahead));
        if commits {
            group.append(&mut self.acks);
        }
        if let Some(error) = self.pause(commits) {
            return self.refuse(group, &error);
        }
        while !group.is_empty() {
            match self.try_commit(&mut group, commits) {
                Ok(()) => {
                    self.answer(group, commits);
                    if self.parts.disk.has_failed() {
                        self.recover();
                    }
                    return;
                }
                // Only this step is at fault: the others are committed without it.
                Err((Some(at), error @ StorageError::Broken(_))) => {
                    tracing::error!(%error, "a step is refused");
                    group.remove(at).answer(Err(error));
                    self.reload();
                }
                Err((_, error)) => {
                    self.refuse(group, &error);
                    self.refused = Some((Instant::now(), error));
                    return self.recover();
                }
            }
        }
    }

    /// The error of steps that come so soon after one that the disk refused that it is not tried.
    fn pause(&self, commits: bool) -> Option<StorageError> {
        let (at, error) = self.refused.as_ref()?;
        let touches = commits || self.failed.is_some();
        (touches && at.elapsed() < RETRY).then(|| error.clone())
    }

    /// Answers steps that the disk refused, and keeps those whose callers have their answers.
    fn refuse(&mut self, group: Vec<Box<dyn Step>>, error: &StorageError) {
        self.parts.disk.note(Some(error));
        for mut step in group {
            match step.is_answered() {
                true => self.owe(step),
                false => step.answer(Err(error.clone())),
            }
        }
        self.owed_until = Instant::now() + RETRY;
    }

    /// Answers steps that were applied, and keeps those that are not committed.
    fn answer(&mut self, group: Vec<Box<dyn Step>>, committed: bool) {
        // Steps that write nothing do not show whether the disk is full.
        if committed {
            self.refused = None;
            self.parts.disk.note(None);
        }
        let is_owed = |due: Due| !committed && due == Due::Next;
        // Whoever gets an answer sees what it stands for.
        let is_behind = group.iter().any(|step| is_owed(step.due()));
        self.is_behind.store(is_behind, Ordering::Release);
        for mut step in group {
            step.answer(Ok(()));
            if is_owed(step.due()) {
                self.owe(step);
            }
        }
    }

    /// Applies and, if asked to, commits; an error names the step at fault, if it is one of them.
    fn try_commit(
        &mut self,
        group: &mut [Box<dyn Step>],
        commits: bool,
    ) -> Result<(), (Option<usize>, StorageError)> {
        if self.failed.is_some() {
            self.recover();
        }
        if let Some(error) = &self.failed {
            return Err((None, error.clone()));
        }
        let disk = Arc::clone(&self.parts.disk);
        let mut at = None;
        let committed = disk.guarded(|| {
            let transaction = disk.begin_write()?;
            let changes = self.apply(&transaction, group, &mut at)?;
            if !commits {
                return Ok(BTreeMap::new());
            }
            disk.commit(transaction)?;
            Ok(changes)
        });
        let changes = committed.map_err(|error| (at, error))?;
        self.parts.deliveries.committed(changes);
        Ok(())
    }

    /// `step`: the step that is being applied.
    fn apply(
        &mut self,
        transaction: &Transaction,
        group: &mut [Box<dyn Step>],
        step: &mut Option<usize>,
    ) -> Result<BTreeMap<u32, Change>, StorageError> {
        let parts = &mut self.parts;
        let mut work = WriteContext {
            tables: Tables::new(transaction),
            claims: &mut parts.claims,
            queues: &parts.queues,
            now_ms: now_ms(),
            now: Instant::now(),
            window: parts.dedup_window,
            next_seq: &mut parts.next_seq,
            next_life: &mut parts.next_life,
            numbered: false,
            changes: BTreeMap::new(),
        };
        for (at, asked) in group.iter_mut().enumerate() {
            *step = Some(at);
            // A bug in a step ends here, and the transaction is aborted in order.
            sheltered(|| asked.apply(&mut work))?;
        }
        *step = None;
        work.finish(&parts.deliveries)?;
        Ok(work.changes)
    }

    /// After an error of the disk: the store is opened again, now or with a later step.
    fn recover(&mut self) {
        match self.parts.disk.reopen() {
            Ok(()) => {
                self.failed = None;
                self.reload();
            }
            Err(error) => self.failed = Some(error),
        }
    }

    /// Reads again what a failed transaction has changed in memory.
    fn reload(&mut self) {
        let Parts { disk, claims, .. } = &mut self.parts;
        let reloaded = disk.guarded(|| claims.reload(&disk.begin_read()?));
        if let Err(error) = reloaded {
            // Nothing is written until the claims are known.
            self.failed = Some(error);
        }
    }

    fn idle(&mut self) {
        if self.owes() && Instant::now() >= self.owed_until {
            self.commit(Vec::new());
        }
        if Instant::now() < self.sweep_at {
            return;
        }
        self.sweep_at = Instant::now() + sweep::pause(self.parts.dedup_window);
        let disk = &self.parts.disk;
        let window = self.parts.dedup_window;
        let sweep = &mut self.sweep;
        let looked = disk.guarded(|| sweep.look(&disk.begin_read()?, window, now_ms()));
        let Ok(Some(task)) = looked else { return };
        // Soon again, while there is something to sweep.
        self.sweep_at = Instant::now() + sweep::BREATH;
        let (done, _) = oneshot::channel();
        self.commit(vec![Box::new(Asked {
            act: move |work: &mut WriteContext<'_>| sweep::sweep(work, &task),
            value: None,
            bytes: 0,
            due: Due::Now,
            done: Some(done),
        })]);
    }
}

#[cfg(test)]
mod tests {
    use super::Joined;

    /// What each commit waits for, after the commits before it had these steps.
    fn expected(commits: &[usize]) -> Vec<usize> {
        let mut joined = Joined::default();
        let after = |steps: &usize| {
            joined.note(*steps);
            joined.expected()
        };
        commits.iter().map(after).collect()
    }

    #[test]
    fn a_commit_waits_for_those_that_come_together_again_and_again() {
        // A small job on an idle engine: nobody waits.
        assert_eq!(expected(&[1, 2, 1, 1, 2, 1]), [0, 1, 1, 1, 1, 1]);
        assert_eq!(expected(&[1, 8, 8, 8, 3, 8]), [0, 1, 8, 8, 3, 3]);
    }
}
