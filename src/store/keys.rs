//! Lists every key in Redis: what it holds, how long, which steps write it and which read it.
//!
//! | key | type | holds | expires | written by | read by |
//! |---|---|---|---|---|---|
//! | `P:{JOB}` | hash | header of a job: `app`, `client_msg_no`, `target`, content `digest`, `buckets`, `parts` (of a job in more than one), `submissions`, `expanded`, `total`, one counter per outcome, `accepted_at_ms`, `progress_at_ms`, `completed_at_ms`, `rebuilt`, `priority`, `rate`, `not_before_ms`, `expires_at_ms`, `tags`, the first, third and fourth of these as an operator changed them (`priority_now`, `not_before_now_ms`, `expires_at_now_ms`, 0 for never), `sender`, `window`, `pace_until_ms` (changed: `pace_until_now_ms`, 0 for none), `category`, `fetched` (the version of its last list by reference), `callback_url`, `reply_to`, `fallback` (its second target), `keep_ids` (what a recall needs to know, as JSON), `sent_by_fallback`, `mark` and `mark_before` (its progress some seconds ago), `held` (its keys do not expire), `alive_at_ms` (a slice of it waited then), `lost` (outcomes the ledger lost), `unsure` (the ledger went back before it was ended), `reopened` (how often it was ended and went on), `folded` (of a completed small job: its slices and submissions are here instead of in their keys, as `/<slice id>` and `=<field>`); for a job that no worker has registered, `awaited` instead of `buckets` and the fields that follow from them | window after the job completed | enter, accept, mark_expanded, claim (when lost), settle, waits, abandon, complete, amend, resolve | all of them, job, jobs |
//! | `P:{JOB}:slices` | hash | slice id → entries of it that are counted | with the header | claim, settle | claim, settle |
//! | `P:{JOB}:submissions` | hash | submission → `<entries>:<1 if expanded>`, or `?<entries seen>` of one that is known only from its slices; `cut <submission>` → recipients per slice, of a list of more than one; `list 0 <list>` → how many parts of a list have arrived, `x` when the list was given up, and `list <part> <list>` for each part | with the header | accept, mark_expanded, gather, claim, settle | the same, knows |
//! | `P:{JOB}:owners` | hash | number of an owner (3 bytes; the next number marks the recipients that it holds in doubt) → owner and end of its lease (8 and 6 bytes); owner → number | with the header, or when the job completes | claim, renew, complete | claim, renew, settle, peek |
//! | `P:{JOB}:N` | string | bucket N: one record of 11 bytes per recipient, fingerprint and state | with the header | claim, settle, accept (when a job is reshaped) | the same, renew, peek, audit |
//! | `P:{JOB}:reasons` | hash | fingerprint → why it ended failed or uncertain, as JSON; the first 10,000 | with the header | record_reasons | reasons |
//! | `P:{JOB}:i{N}` | string | of a job that keeps ids: the recipients of bucket N with the ids of their messages, see `message_ids` | with the header | settle, note_recalls, accept | kept_ids, kept_page |
//! | `P:{JOB}:trail` | list | the audit trail, one entry as JSON each, the last 100 | with the header | note | trail |
//! | `P:{JOB}:fence`, `P:{pulse}:beats:fence` | string | a write that replicas must have before an outcome or a heartbeat counts as recorded, where so configured | a second | settle, beat | – |
//! | `P:jobs` | sorted set | job ids by time of acceptance | never; a worker removes members that are no longer known | enter, accept, claim and settle (when rebuilt), quiet | jobs |
//! | `P:outlines` | hash | job id (12 bytes) → its [`outline`](crate::ports::outline()) | never; a worker removes those of jobs that are no longer known | enter, accept, claim and settle (when rebuilt), jobs (when it is missing) | jobs |
//! | `P:packs` | hash | `<from in ms>-<to in ms>-<jobs>` → the places and outlines of all jobs of that time, see `ledger::packs` | never; a worker removes those that no longer count | enter, accept and claim (after some thousands of new jobs), quiet | jobs |
//! | `P:open` | sorted set | ids of jobs that are not completed, by the time of their last activity or look, in ms | never; members when they complete | the same, complete | quiet, each_open |
//! | `P:{pulse}:beats` | hash | process → `<number> <at in ms> <the heartbeat as JSON>` | never; fields a day after the process ended | beat | beat, beats |
//! | `P:{pulse}:went_back` | list | times in ms at which the ledger was found to have gone back to older data, the last 100 | never | beat, raise | job, jobs, quiet |
//! | `P:{pulse}:sequence` | string | a number that rises while outcomes are recorded; the broker keeps the last one too | never | raise | raise |
//! | `P:{limits}:SCOPE:NAME:RATE` | string | theoretical arrival time of a limiter in µs | a second after that time | lease, refund | lease |
//! | `P:{limits}:park:TARGET` | string | `<until in ms> <parking as JSON>` of a parked target | at that time | park, unpark | parked |
//! | `P:{limits}:directives` | hash | `SCOPE:KIND:NAME` → `<until in ms, or 0> <directive as JSON>`, and `version`, which differs after each change | never; expired fields are removed with the next change | direct, lift | directives |
//! | `P:{lanes}:TARGET.PRIORITY` | hash | id of an open job → its sub-lane, for at most some 64 jobs; `version`, how often the hash changed | never; the next assignment removes jobs that are not open | assign | assign |
//! | `P:{templates}:names:APP` | hash | name of a stored message → its last version, below 0 once it is deleted | never | put and delete of templates | all of templates |
//! | `P:{templates}:name:NAME:APP` | hash | version → `<put at, in ms> <message as JSON>`; a version is removed by the first put that comes a window after it was superseded | window after the name was deleted | put and delete of templates | template |
//! | `P:{quota:APP}:DAY` | hash | what an app with a quota used on that UTC day: `used`, list entries; `j<JOB>`, those of one job; `s<JOB>/<submission>`, a list that is counted | two days after the last charge | charge | charge |
//! | `P:{cap:APP:CATEGORY}:PERIOD:B` | hash | the units of a frequency cap with a period of PERIOD ms, of the recipients whose fingerprints begin with the bytes B: fingerprint → 12 bytes per unit, when it was taken in ms (6 bytes) and the beginning of the job's id (6 bytes); '' → when the hash expires, in ms (6 bytes) | one to two periods after the last unit was taken | take_units, give_back_units | take_units |
//! | `P:nonce:NONCE` | string | marks a signed request that was seen, with a number of the caller; NONCE is a digest | when its signature is no longer valid | is_new | is_new |
//!
//! `P` is the prefix of the settings and JOB the 24 digits of a job id. Braces are literal: the
//! text between them decides the slot in Redis Cluster, so all keys of one job are in one slot, and
//! so are those of the limits, those of the sub-lanes, those of the stored messages, those of one quota and those of one cap. NAME has no
//! colon. `scripts/prelude.lua` describes the records of a bucket.
//!
//! The rate is part of a limiter's key, so that a changed rate starts clean; but not that of a pace,
//! which changes all the time.

use std::fmt::Write as _;

use crate::domain::ids::{JobId, digest_hex};
use crate::domain::lane::Priority;
use crate::domain::limits::Cost;
use crate::ports::{CapUnits, Limit};

pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    pub(super) fn job(&self, job: JobId) -> JobKeys {
        JobKeys {
            header: format!("{}:{{{job}}}", self.prefix),
        }
    }

    pub(super) fn jobs(&self) -> String {
        format!("{}:jobs", self.prefix)
    }

    pub(super) fn outlines(&self) -> String {
        format!("{}:outlines", self.prefix)
    }

    pub(super) fn packs(&self) -> String {
        format!("{}:packs", self.prefix)
    }

    pub(super) fn open_jobs(&self) -> String {
        format!("{}:open", self.prefix)
    }

    pub(super) fn beats(&self) -> String {
        format!("{}:{{pulse}}:beats", self.prefix)
    }

    pub(super) fn went_back(&self) -> String {
        format!("{}:{{pulse}}:went_back", self.prefix)
    }

    pub(super) fn sequence(&self) -> String {
        format!("{}:{{pulse}}:sequence", self.prefix)
    }

    pub(super) fn limit(&self, limit: &Limit<'_>) -> String {
        let rate = &limit.rate;
        let cost = match limit.cost {
            Cost::PerCall => "call",
            Cost::PerRecipient => "recipient",
        };
        let scope = limit.scope.as_str();
        if !limit.scope.starts_clean() {
            return format!("{}:{{limits}}:{scope}:{}", self.prefix, limit.name);
        }
        format!(
            "{}:{{limits}}:{scope}:{}:{}/{}us:{}:{cost}",
            self.prefix,
            limit.name,
            rate.units,
            rate.period.as_micros(),
            rate.burst,
        )
    }

    pub(super) fn park(&self, target: &str) -> String {
        format!("{}:{{limits}}:park:{target}", self.prefix)
    }

    pub(super) fn sub_lanes(&self, target: &str, priority: Priority) -> String {
        let priority = priority.as_str();
        format!("{}:{{lanes}}:{target}.{priority}", self.prefix)
    }

    pub(super) fn template_names(&self, app: &str) -> String {
        format!("{}:{{templates}}:names:{app}", self.prefix)
    }

    pub(super) fn template_versions(&self, app: &str, name: &str) -> String {
        format!("{}:{{templates}}:name:{name}:{app}", self.prefix)
    }

    pub(super) fn quota(&self, app: &str, day: u64) -> String {
        format!("{}:{{quota:{app}}}:{day}", self.prefix)
    }

    /// The beginning of the names of all hashes of a cap.
    pub(super) fn cap(&self, units: &CapUnits<'_>) -> String {
        let CapUnits { app, category, .. } = units;
        let period = units.cap.period_ms();
        format!("{}:{{cap:{app}:{category}}}:{period}", self.prefix)
    }

    pub(super) fn nonce(&self, nonce: &str) -> String {
        format!(
            "{}:nonce:{}",
            self.prefix,
            digest_hex(&[nonce.as_bytes()], 16)
        )
    }

    pub(super) fn directives(&self) -> String {
        format!("{}:{{limits}}:directives", self.prefix)
    }
}

/// The keys of one job.
pub(super) struct JobKeys {
    pub(super) header: String,
}

impl JobKeys {
    pub(super) fn slices(&self) -> String {
        format!("{}:slices", self.header)
    }

    pub(super) fn submissions(&self) -> String {
        format!("{}:submissions", self.header)
    }

    pub(super) fn reasons(&self) -> String {
        format!("{}:reasons", self.header)
    }

    pub(super) fn trail(&self) -> String {
        format!("{}:trail", self.header)
    }

    /// The ids of messages beside a bucket.
    pub(super) fn ids(&self, bucket: u32) -> String {
        format!("{}:i{bucket}", self.header)
    }

    pub(super) fn owners(&self) -> String {
        format!("{}:owners", self.header)
    }

    /// The key of a bucket, in a buffer that is used again.
    pub(super) fn write_bucket(&self, number: u32, key: &mut String) {
        key.clear();
        key.push_str(&self.header);
        let _ = write!(key, ":{number}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::limits::{LimitScope, Weight};

    #[test]
    fn keys_of_one_job_share_a_hash_tag() {
        let job = JobId::of("shop", "promo");
        let keys = Keys::new("p").job(job);
        let tag = format!("p:{{{job}}}");
        assert_eq!(keys.header, tag);
        assert_eq!(keys.slices(), format!("{tag}:slices"));
        assert_eq!(keys.submissions(), format!("{tag}:submissions"));
        assert_eq!(keys.owners(), format!("{tag}:owners"));
        let mut bucket = String::from("used before");
        keys.write_bucket(120, &mut bucket);
        assert_eq!(bucket, format!("{tag}:120"));
    }

    #[test]
    fn another_rate_is_another_limiter() {
        let key = |text: &str| {
            Keys::new("p").limit(&Limit {
                scope: LimitScope::App,
                name: "shop",
                rate: text.parse().unwrap(),
                cost: Cost::PerCall,
                weight: Weight::ONE,
            })
        };
        assert_eq!(
            key("10/s burst 5"),
            "p:{limits}:app:shop:10/1000000us:5:call"
        );
        assert_ne!(key("10/s burst 5"), key("10/s burst 6"));
        assert_ne!(key("60/s burst 5"), key("60/min burst 5"));
    }

    #[test]
    fn a_pace_has_one_limiter_however_it_changes() {
        let key = |text: &str| {
            Keys::new("p").limit(&Limit {
                scope: LimitScope::Pace,
                name: "j1",
                rate: text.parse().unwrap(),
                cost: Cost::PerRecipient,
                weight: Weight::ONE,
            })
        };
        assert_eq!(key("10/s burst 5"), "p:{limits}:pace:j1");
        assert_eq!(key("7/h"), key("10/s burst 5"));
    }
}
