//! What a listing knows of a job before it reads the job's record.

use std::collections::HashMap;

use super::JobFilter;
use crate::domain::ids::JobId;

/// What filters ask for and what stays the same as long as a job is known: its app, its target and
/// its tags, one a line. Engines keep it beside their lists of jobs. A listing goes through them, and
/// reads the records of those jobs only that may match.
pub fn outline(app: &str, target: &str, tags: &[String]) -> String {
    // No name and no tag has a control character.
    let mut lines = vec![app, target];
    lines.extend(tags.iter().map(String::as_str));
    lines.join("\n")
}

/// Tells by their outlines which jobs may match a filter.
pub struct Sieve<'a> {
    filter: &'a JobFilter,
    /// The id of the job that has the wanted `client_msg_no`, for each app that was met.
    named: HashMap<String, JobId>,
}

impl<'a> Sieve<'a> {
    pub fn new(filter: &'a JobFilter) -> Self {
        Self {
            filter,
            named: HashMap::new(),
        }
    }

    /// Whether the filter asks for nothing that is in an outline.
    pub fn takes_all(&self) -> bool {
        let JobFilter {
            app,
            target,
            client_msg_no,
            tag,
            ..
        } = self.filter;
        [app, target, client_msg_no, tag]
            .iter()
            .all(|it| it.is_none())
    }

    pub fn takes(&mut self, job: JobId, outline: &str) -> bool {
        self.takes_outline(outline) && self.is_named(job, outline)
    }

    /// Whether a job with this outline may match, whatever its id is.
    pub fn takes_outline(&self, outline: &str) -> bool {
        let mut lines = outline.split('\n');
        let mut is = |wanted: &Option<String>| {
            let line = lines.next().unwrap_or_default();
            wanted.as_ref().is_none_or(|it| it == line)
        };
        let (is_app, is_target) = (is(&self.filter.app), is(&self.filter.target));
        let has_tag = |tag: &String| lines.any(|line| line == tag);
        is_app && is_target && self.filter.tag.as_ref().is_none_or(has_tag)
    }

    fn is_named(&mut self, job: JobId, outline: &str) -> bool {
        let Some(name) = &self.filter.client_msg_no else {
            return true;
        };
        let app = outline.split('\n').next().unwrap_or_default();
        if let Some(named) = self.named.get(app) {
            return job == *named;
        }
        let named = JobId::of(app, name);
        self.named.insert(app.to_owned(), named);
        job == named
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outline_tells_what_may_match() {
        let tags = ["may".to_owned(), "sale".to_owned()];
        let tagged = outline("shop", "im", &tags);
        let plain = outline("shop", "im", &[]);
        let job = JobId::of("shop", "promo");
        let set = |set: fn(&mut JobFilter, Option<String>), to: &str| {
            let mut filter = JobFilter::default();
            set(&mut filter, Some(to.to_owned()));
            filter
        };
        let check = |filter: &JobFilter, expected: [bool; 2]| {
            let mut sieve = Sieve::new(filter);
            assert_eq!(sieve.takes_all(), *filter == JobFilter::default());
            for _ in 0..2 {
                let takes = [&tagged, &plain].map(|it| sieve.takes(job, it));
                assert_eq!(takes, expected, "{filter:?}");
            }
        };
        check(&JobFilter::default(), [true, true]);
        for (app, takes) in [("shop", true), ("im", false), ("sho", false), ("", false)] {
            check(&set(|it, app| it.app = app, app), [takes; 2]);
        }
        for (target, takes) in [("im", true), ("may", false), ("", false)] {
            check(&set(|it, target| it.target = target, target), [takes; 2]);
        }
        for (tag, takes) in [("may", true), ("sale", true), ("im", false), ("", false)] {
            check(&set(|it, tag| it.tag = tag, tag), [takes, false]);
        }
        for (name, takes) in [("promo", true), ("other", false)] {
            check(&set(|it, name| it.client_msg_no = name, name), [takes; 2]);
        }
    }
}
