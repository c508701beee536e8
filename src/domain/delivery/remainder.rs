//! What a delivery leaves for the next one.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Delivery, Place};
use crate::domain::fallback::ForFallback;
use crate::domain::ids::Owner;
use crate::domain::outcome::TargetAnswer;
use crate::domain::slice::{DueLater, Remark, SLICE_VERSION_FALLBACK, Slice, Unrecorded};

impl Delivery {
    /// The slice for a later delivery: the recipients without an outcome, and the outcomes that the
    /// ledger could not take. `owner`: the owner of this delivery's claims.
    pub fn remainder(
        &self,
        slice: &Slice,
        owner: Owner,
        first_attempt_at_ms: Option<u64>,
    ) -> Slice {
        let unrecorded = self.left_unrecorded(slice, owner);
        let for_fallback = self.left_for_fallback(slice);
        let groups = self.groups();
        let members: Vec<usize> = groups.iter().flatten().copied().collect();
        let attempts: Vec<u32> = members.iter().map(|index| self.attempts[*index]).collect();
        let calls: Vec<u32> = groups.iter().map(|group| group.len() as u32).collect();
        let tried = attempts.iter().any(|spent| *spent > 0);
        let packed = calls.iter().any(|length| *length > 1);
        let vars = |index: &usize| slice.vars_of(*index).map(ToOwned::to_owned);
        Slice {
            v: match for_fallback.is_empty() {
                true => Slice::version(&slice.head, &unrecorded),
                false => SLICE_VERSION_FALLBACK.max(Slice::version(&slice.head, &unrecorded)),
            },
            head: Arc::clone(&slice.head),
            id: slice.id.clone(),
            entries: slice.entries,
            shape: slice.shape,
            lane: slice.lane.clone(),
            first_attempt_at_ms,
            due_at_ms: None,
            due_later: due_later(&self.due, &members),
            enumeration: None,
            together: slice.together.clone(),
            recipients: members
                .iter()
                .map(|index| slice.recipients[*index].clone())
                .collect(),
            vars: if slice.vars.is_empty() {
                Vec::new()
            } else {
                members.iter().map(vars).collect()
            },
            attempts: if tried { attempts } else { Vec::new() },
            calls: if tried && packed { calls } else { Vec::new() },
            retries: self.retries,
            ended: Some(self.ended),
            doubts: remarks_of(&self.doubts, &members),
            remarks: remarks_of(&self.remarks, &members),
            for_fallback,
            unrecorded,
        }
    }

    /// The outcomes and releases that the ledger could not take.
    fn left_unrecorded(&self, slice: &Slice, owner: Owner) -> Unrecorded {
        let name = |index: &usize| slice.recipients[*index].clone();
        let mut left = self.unrecorded.clone();
        for (index, outcome) in &self.known {
            match left.outcomes.iter_mut().find(|(it, _)| it == outcome) {
                Some((_, names)) => names.push(name(index)),
                None => left.outcomes.push((*outcome, vec![name(index)])),
            }
        }
        let ids = self.ids.iter();
        left.ids
            .extend(ids.map(|(index, id)| (name(index), id.clone())));
        let certain = |index: &&usize| !self.doubts.contains_key(index);
        let release: Vec<_> = self.release.iter().filter(certain).map(name).collect();
        if !release.is_empty() {
            left.release.push((owner, release));
        }
        left
    }

    /// The recipients for the second target, of earlier deliveries and of this one.
    fn left_for_fallback(&self, slice: &Slice) -> ForFallback {
        let mut refused = self.refused_before.clone();
        for (index, answer) in &self.refused {
            let vars = slice.vars_of(*index).map(ToOwned::to_owned);
            refused.push(slice.recipients[*index].clone(), vars, answer);
        }
        refused
    }

    /// The recipients without an outcome, in calls.
    fn groups(&self) -> Vec<Vec<usize>> {
        let open = |index: &usize| {
            let place = self.places[*index];
            matches!(place, Place::Left | Place::Todo | Place::Picked)
        };
        let ranges = self.picked.iter().chain(&self.todo);
        let mut groups: Vec<Vec<usize>> = self
            .left
            .iter()
            .cloned()
            .chain(ranges.map(|range| range.clone().collect()))
            .map(|group: Vec<usize>| group.into_iter().filter(open).collect())
            .collect();
        groups.retain(|group| !group.is_empty());
        // If a delivery stops in the middle of a step, the recipients of that step are included.
        let stuck = [Place::Out, Place::Dead];
        for place in stuck {
            groups.extend(self.all(place).map(|index| vec![index]));
        }
        groups
    }
}

/// The remarks about these recipients, by their position among them.
fn remarks_of(remarks: &BTreeMap<usize, TargetAnswer>, members: &[usize]) -> Vec<Remark> {
    let mut found = Vec::new();
    for (position, index) in members.iter().enumerate() {
        if let Some(answer) = remarks.get(index) {
            Remark::add(&mut found, position as u32, answer);
        }
    }
    found
}

/// When the next attempt of these recipients is due, by their position among them.
fn due_later(due: &BTreeMap<usize, u64>, members: &[usize]) -> Vec<DueLater> {
    let mut by_time: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    for (position, index) in members.iter().enumerate() {
        if let Some(at_ms) = due.get(index) {
            by_time.entry(*at_ms).or_default().push(position as u32);
        }
    }
    let each = by_time.into_iter();
    each.map(|(at_ms, recipients)| DueLater { at_ms, recipients })
        .collect()
}
