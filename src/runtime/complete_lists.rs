//! Remembers the lists in parts of which all parts are accepted.

use std::collections::HashSet;

use parking_lot::Mutex;

use crate::domain::ids::JobId;

/// Most complete lists that are remembered. Forgetting one costs a look-up per slice.
const REMEMBERED_MAX: usize = 1024;

/// Lists that are known to be complete, so that there is a look-up per job and not per slice.
#[derive(Default)]
pub(crate) struct CompleteLists(Mutex<HashSet<(JobId, String)>>);

impl CompleteLists {
    pub(crate) fn knows(&self, job: JobId, list: &str) -> bool {
        let seen = self.0.lock();
        !seen.is_empty() && seen.contains(&(job, list.to_owned()))
    }

    pub(crate) fn remember(&self, job: JobId, list: &str) {
        let mut seen = self.0.lock();
        if seen.len() >= REMEMBERED_MAX {
            seen.clear();
        }
        seen.insert((job, list.to_owned()));
    }
}
