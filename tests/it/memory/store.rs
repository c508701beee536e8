//! Implements the other ports of a store in memory: limits, parked targets, directives, messages,
//! quotas, frequency caps, nonces, heartbeats.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fanwise::clock::now_ms;
use fanwise::domain::directive::{Directive, Kind, Subject};
use fanwise::domain::frequency_cap::Units;
use fanwise::domain::ids::JobId;
use fanwise::domain::lane::Priority;
use fanwise::domain::limits::Grant;
use fanwise::domain::permissions::{Asked, Permissions, Used};
use fanwise::limits::Limits;
use fanwise::ports::{
    ALIVE, Beat, Beaten, CapUnits, Charged, Directed, Directives, FrequencyCaps, LedgerError,
    Limit, Limiter, Nonces, Park, Pulse, Quotas, Raised, StoredTemplate, Templates,
};
use tokio::time::Instant;

use super::ledger::Job;
use super::{Way, lock};

#[derive(Clone)]
pub(crate) struct MemoryStore {
    state: Arc<Mutex<State>>,
    way: Way,
}

pub(super) struct State {
    pub(super) jobs: BTreeMap<JobId, Job>,
    /// Quiet jobs that were shown, with the time until which they are not shown again.
    pub(super) shown: BTreeMap<JobId, u64>,
    limits: Limits,
    parks: BTreeMap<String, Park>,
    directives: BTreeMap<(Subject, &'static str), Directive>,
    directed: u64,
    templates: BTreeMap<(String, String), Template>,
    lists: BTreeMap<(String, u64, JobId, String), u64>,
    units: BTreeMap<(String, String, Duration, u64), Units>,
    nonces: BTreeMap<String, Instant>,
    beats: BTreeMap<u64, (Instant, Beat)>,
    pub(super) sub_lanes: BTreeMap<(String, Priority), BTreeMap<JobId, u32>>,
}

#[derive(Default)]
struct Template {
    versions: Vec<StoredTemplate>,
    deleted: bool,
}

impl MemoryStore {
    pub(crate) fn new() -> Self {
        let state = State {
            jobs: BTreeMap::new(),
            shown: BTreeMap::new(),
            limits: Limits::default(),
            parks: BTreeMap::new(),
            directives: BTreeMap::new(),
            directed: 0,
            templates: BTreeMap::new(),
            lists: BTreeMap::new(),
            units: BTreeMap::new(),
            nonces: BTreeMap::new(),
            beats: BTreeMap::new(),
            sub_lanes: BTreeMap::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            way: Way::default(),
        }
    }

    /// The same store, used by another process.
    #[allow(dead_code, reason = "the contract suite has nothing go wrong")]
    pub(crate) fn on(&self, way: Way) -> Self {
        let state = Arc::clone(&self.state);
        Self { state, way }
    }

    pub(super) async fn step<V>(
        &self,
        name: &'static str,
        act: impl FnOnce(&mut State) -> V,
    ) -> Result<V, LedgerError> {
        let stepped = self.way.step(name, || act(&mut lock(&self.state))).await;
        stepped.map_err(|why| LedgerError::Unreachable(Box::new(why)))
    }
}

// ---------------------------------------------------------------------------------------------
// Limits
// ---------------------------------------------------------------------------------------------

impl Limiter for MemoryStore {
    async fn lease(
        &self,
        limit: &Limit<'_>,
        units: u32,
        wait_max: Duration,
    ) -> Result<Grant, LedgerError> {
        let lease = |state: &mut State| state.limits.lease(limit, units, wait_max);
        self.step("lease", lease).await
    }

    async fn refund(&self, limit: &Limit<'_>, units: u32) -> Result<(), LedgerError> {
        let refund = |state: &mut State| state.limits.refund(limit, units);
        self.step("refund", refund).await
    }

    async fn park(&self, target: &str, park: &Park) -> Result<(), LedgerError> {
        let set = |state: &mut State| {
            let standing = state.parks.get(target).map_or(0, |it| it.until_ms);
            if park.until_ms > standing {
                state.parks.insert(target.to_owned(), park.clone());
            }
        };
        self.step("park", set).await
    }

    async fn unpark(&self, target: &str) -> Result<(), LedgerError> {
        self.step("unpark", |state| drop(state.parks.remove(target)))
            .await
    }

    async fn booked(&self, limits: &[Limit<'_>]) -> Result<Vec<f64>, LedgerError> {
        self.step("booked", |state| state.limits.booked(limits))
            .await
    }

    async fn parked(&self, targets: &[String]) -> Result<Vec<(String, Park)>, LedgerError> {
        let parked = |state: &mut State| {
            let now = now_ms();
            let park = |name: &String| {
                let park = state.parks.get(name).filter(|it| it.until_ms > now)?;
                Some((name.clone(), park.clone()))
            };
            targets.iter().filter_map(park).collect()
        };
        self.step("parked", parked).await
    }
}

// ---------------------------------------------------------------------------------------------
// Directives
// ---------------------------------------------------------------------------------------------

impl State {
    fn change(&mut self, subject: &Subject, kind: Kind, directive: Option<&Directive>) -> bool {
        let now = now_ms();
        self.directives.retain(|_, it| it.in_force(now));
        self.directed += 1;
        let key = (subject.clone(), kind.as_str());
        match directive {
            Some(directive) => self.directives.insert(key, directive.clone()).is_some(),
            None => self.directives.remove(&key).is_some(),
        }
    }
}

impl Directives for MemoryStore {
    async fn direct_all(&self, directives: &[Directive]) -> Result<(), LedgerError> {
        let put = |state: &mut State| {
            for it in directives {
                state.change(&it.subject, it.action.kind(), Some(it));
            }
        };
        self.step("direct", put).await
    }

    async fn lift_all(&self, directives: &[(Subject, Kind)]) -> Result<u64, LedgerError> {
        let lift = |state: &mut State| {
            let lifted = directives.iter();
            let lifted = lifted.filter(|(subject, kind)| state.change(subject, *kind, None));
            lifted.count() as u64
        };
        self.step("lift", lift).await
    }

    async fn directives(&self, known: u64) -> Result<Option<Directed>, LedgerError> {
        let directives = |state: &mut State| {
            (state.directed != known).then(|| Directed {
                version: state.directed,
                all: state.directives.values().cloned().collect(),
            })
        };
        self.step("directives", directives).await
    }
}

// ---------------------------------------------------------------------------------------------
// Messages, quotas, nonces, heartbeats
// ---------------------------------------------------------------------------------------------

impl Templates for MemoryStore {
    async fn put_template(
        &self,
        app: &str,
        name: &str,
        message: &str,
    ) -> Result<StoredTemplate, LedgerError> {
        let put = |state: &mut State| {
            let key = (app.to_owned(), name.to_owned());
            let template = state.templates.entry(key).or_default();
            let stored = StoredTemplate {
                version: template.versions.len() as u32 + 1,
                put_at_ms: now_ms(),
                message: message.to_owned(),
            };
            template.versions.push(stored.clone());
            template.deleted = false;
            stored
        };
        self.step("put_template", put).await
    }

    async fn template(
        &self,
        app: &str,
        name: &str,
        version: Option<u32>,
    ) -> Result<Option<StoredTemplate>, LedgerError> {
        let get = |state: &mut State| {
            let key = (app.to_owned(), name.to_owned());
            let template = state.templates.get(&key)?;
            let newest = template.versions.last().filter(|_| !template.deleted);
            let Some(version) = version else {
                return newest.cloned();
            };
            let mut versions = template.versions.iter();
            versions.find(|it| it.version == version).cloned()
        };
        self.step("template", get).await
    }

    async fn templates(&self, app: &str) -> Result<Vec<(String, u32)>, LedgerError> {
        let list = |state: &mut State| {
            let all = state.templates.iter();
            let here = all.filter(|((of, _), it)| of == app && !it.deleted);
            here.map(|((_, name), it)| (name.clone(), it.versions.len() as u32))
                .collect()
        };
        self.step("templates", list).await
    }

    async fn delete_template(&self, app: &str, name: &str) -> Result<bool, LedgerError> {
        let delete = |state: &mut State| {
            let key = (app.to_owned(), name.to_owned());
            let template = state.templates.get_mut(&key);
            template.is_some_and(|it| !std::mem::replace(&mut it.deleted, true))
        };
        self.step("delete_template", delete).await
    }
}

impl State {
    /// The number counted: lists of an app, by day, job and name.
    fn used(&self, app: &str, takes: impl Fn(u64, JobId) -> bool) -> u64 {
        let lists = self.lists.iter();
        lists
            .filter(|((of, day, job, _), _)| of == app && takes(*day, *job))
            .map(|(_, entries)| entries)
            .sum()
    }

    fn charge(&mut self, asked: &[Asked], permissions: &Permissions, day: u64) -> Charged {
        let Some(Asked { app, .. }) = asked.first() else {
            return Charged::Counted;
        };
        let days = day.saturating_sub(1)..=day;
        self.lists.retain(|(_, day, ..), _| days.contains(day));
        let mut new: BTreeMap<(String, u64, JobId, String), u64> = BTreeMap::new();
        let mut jobs: Vec<(JobId, u64)> = Vec::new();
        for asked in asked {
            for (list, entries) in &asked.lists {
                let key = |day| (app.clone(), day, asked.job, list.clone());
                let known = days.clone().any(|day| self.lists.contains_key(&key(day)));
                if known || new.insert(key(day), *entries).is_some() {
                    continue;
                }
                match jobs.iter_mut().find(|(job, _)| *job == asked.job) {
                    Some((_, more)) => *more += entries,
                    None => jobs.push((asked.job, *entries)),
                }
            }
        }
        let Some((first, _)) = jobs.first() else {
            return Charged::Counted;
        };
        let of_day = self.used(app, |at, _| at == day);
        let of_job = |job: JobId| self.used(app, |_, it| it == job);
        let over = |job: JobId| {
            let used = Used {
                job: of_job(job),
                day: of_day,
            };
            Charged::Over { job, used }
        };
        let too_much = |(job, more): &&(JobId, u64)| {
            let most = permissions.recipients_max;
            most.is_some_and(|most| of_job(*job) + more > most)
        };
        if let Some((job, _)) = jobs.iter().find(too_much) {
            return over(*job);
        }
        let all: u64 = jobs.iter().map(|(_, more)| more).sum();
        let most = permissions.daily_recipients;
        if most.is_some_and(|most| of_day + all > most) {
            return over(*first);
        }
        self.lists.append(&mut new);
        Charged::Counted
    }
}

impl Quotas for MemoryStore {
    async fn charge(
        &self,
        asked: &[Asked],
        permissions: &Permissions,
        day: u64,
    ) -> Result<Charged, LedgerError> {
        self.step("charge", |state| state.charge(asked, permissions, day))
            .await
    }
}

impl FrequencyCaps for MemoryStore {
    async fn take_units(&self, units: CapUnits<'_>) -> Result<Vec<bool>, LedgerError> {
        let take = |held: &mut Units| held.take(units.job.into(), &units.cap, now_ms());
        self.step("take_units", |state| state.of_units(units, take))
            .await
    }

    async fn give_back_units(&self, units: CapUnits<'_>) -> Result<(), LedgerError> {
        let give_back = |held: &mut Units| held.give_back(units.job.into());
        self.step("give_back_units", |state| state.of_units(units, give_back))
            .await
            .map(|_| ())
    }
}

impl State {
    fn of_units(&mut self, units: CapUnits<'_>, each: impl Fn(&mut Units) -> bool) -> Vec<bool> {
        let CapUnits { app, category, .. } = units;
        let held = units.recipients.iter().map(|it| {
            let key = (app.to_owned(), category.to_owned(), units.cap.period, it.0);
            each(self.units.entry(key).or_default())
        });
        held.collect()
    }
}

impl Nonces for MemoryStore {
    async fn is_new(&self, nonce: &str, lives: Duration) -> Result<bool, LedgerError> {
        let is_new = |state: &mut State| {
            let now = Instant::now();
            state.nonces.retain(|_, until| *until > now);
            let until = now + lives;
            match state.nonces.contains_key(nonce) {
                true => false,
                false => state.nonces.insert(nonce.to_owned(), until).is_none(),
            }
        };
        self.step("is_new", is_new).await
    }

    async fn release(&self, nonce: &str) -> Result<(), LedgerError> {
        let forget = |state: &mut State| state.nonces.remove(nonce);
        self.step("give_back_nonce", forget).await.map(|_| ())
    }
}

impl Pulse for MemoryStore {
    async fn beat(&self, beat: &Beat) -> Result<Beaten, LedgerError> {
        let beaten = |state: &mut State| {
            let number = beat.number + 1;
            let beat = Beat {
                number,
                ..beat.clone()
            };
            let now = Instant::now();
            state.beats.insert(beat.process, (now, beat));
            Beaten {
                number,
                went_back: false,
            }
        };
        self.step("beat", beaten).await
    }

    /// Ledger and messages are in the same memory.
    async fn raise(&self, _seen: u64) -> Result<Raised, LedgerError> {
        let raised = |_: &mut State| Raised {
            number: 0,
            went_back: false,
        };
        self.step("raise", raised).await
    }

    async fn beats(&self) -> Result<Vec<Beat>, LedgerError> {
        let alive = |state: &mut State| {
            state.beats.retain(|_, (at, _)| at.elapsed() < ALIVE);
            state.beats.values().map(|(_, beat)| beat.clone()).collect()
        };
        self.step("beats", alive).await
    }
}
