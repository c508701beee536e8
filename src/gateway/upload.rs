//! An uploaded list. It is read once from its file and sorted, so that nothing is accepted of a list
//! with a bad line. The sorted list is read twice: first to check its messages and to count its
//! parts, so that each part can carry their number, then to publish the parts. Memory holds one part
//! at a time.
//!
//! The parts are sent as a whole: if a process is killed between two of them, the parts wait for
//! the rest, which comes when the list is uploaded again; otherwise they are given up.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Seek as _;
use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::problem::{BadLines, Refusal};
use super::sorted::{Sorted, Sorter};
use super::spec::Spec;
use super::spool::full;
use crate::domain::audience::Member;
use crate::domain::fields::Problem;
use crate::domain::ids::{Fingerprinter, JobId, digest_hex};
use crate::domain::job::{ListPart, PARTS_MAX};
use crate::domain::list::{self, Format, Reading};
use crate::domain::slice::Together;

/// A list as it was received.
pub(super) struct Received {
    pub(super) job: JobId,
    pub(super) spec: Spec,
    pub(super) list: ListKind,
    pub(super) file: File,
}

/// A list of which every line was read.
pub(super) struct Upload {
    pub(super) spec: Spec,
    pub(super) list: Sorted,
}

/// How the list is written, see [`Reading`].
pub(super) struct ListKind {
    pub(super) format: Format,
    pub(super) column: Option<String>,
    pub(super) vars: bool,
}

/// The number of a list's parts, and the name of the list.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) of: u32,
    /// Names the list by its contents; the same list, cut in the same way, has the same name.
    pub(super) list: String,
}

impl Parts {
    fn of(submissions: &[String]) -> Self {
        let names: Vec<_> = submissions.iter().map(String::as_bytes).collect();
        Self {
            of: submissions.len() as u32,
            list: digest_hex(&names, 8),
        }
    }

    pub(super) fn part(&self, number: u32) -> Together {
        Together {
            list: self.list.clone(),
            number,
            of: self.of,
        }
    }
}

impl Received {
    /// Reads the whole list and sorts it, in another file of the same folder.
    pub(super) fn sort(self, folder: &Path, secret: &str) -> Result<Upload, Refusal> {
        let Self {
            job,
            spec,
            list,
            mut file,
        } = self;
        let fingerprinter = Fingerprinter::new(secret, job);
        let mut sorter = Sorter::create(folder, fingerprinter).map_err(|error| full(&error))?;
        let mut bad = BadLines::default();
        let mut written = Ok(());
        file.rewind().map_err(|error| full(&error))?;
        let how = Reading {
            format: list.format,
            column: list.column.as_deref(),
            vars: list.vars,
        };
        let read = list::read(file, how, |line, found| {
            match found {
                Ok(member) if bad.is_empty() => written = sorter.push(line, &member),
                Ok(_) => {}
                Err(what) => bad.add(line, what),
            }
            match written {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        let list = read.and(written).and_then(|()| sorter.finish());
        let list = list.map_err(|error| full(&error))?;
        match bad.is_empty() {
            true => Ok(Upload { spec, list }),
            false => Err(Refusal::BadLines(bad)),
        }
    }
}

impl Upload {
    /// Cuts the whole list into messages. `check` reads each message as the worker will, and names its
    /// submission.
    pub(super) fn survey(
        &self,
        mut check: impl FnMut(&[u8]) -> Result<String, Refusal>,
    ) -> Result<(Parts, Vec<String>), Refusal> {
        // Number and name are not known yet; a submission depends on neither.
        let unknown = Parts {
            of: PARTS_MAX,
            list: "?".to_owned(),
        };
        let mut submissions = Vec::new();
        self.for_each_message(&unknown, |message| {
            submissions.push(check(&message)?);
            Ok(())
        })?;
        if submissions.is_empty() {
            let what = "the list is empty; no recipient would get the message";
            return Err(Refusal::BadJob(vec![Problem::new("audience", what)]));
        }
        Ok((Parts::of(&submissions), submissions))
    }

    /// A message with the first recipients of the list, as it was uploaded.
    pub(super) fn first_message(&self, most: usize) -> Result<Bytes, Refusal> {
        let mut first = BTreeMap::new();
        let read = self.list.for_each(|line, member| {
            first.insert(
                line,
                (member.id.to_string(), member.vars.map(RawValue::to_owned)),
            );
            if first.len() > most {
                first.pop_last();
            }
            ControlFlow::Continue(())
        });
        read.map_err(|error| full(&error))?;
        let mut message = self.spec.open();
        for (id, vars) in first.values() {
            message.push(&Member {
                id: id.as_str().into(),
                vars: vars.as_deref(),
            });
        }
        // A part of several may be empty, in case all of them are excluded.
        Ok(message.close(&ListPart {
            number: 1,
            of: 2,
            together: None,
        }))
    }

    /// Calls `each` with the messages that carry the list, in the order of its fingerprints.
    pub(super) fn for_each_message(
        &self,
        parts: &Parts,
        mut each: impl FnMut(Bytes) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let mut number = 0;
        let mut next = || {
            number += 1;
            ListPart {
                number,
                of: parts.of,
                together: (parts.of > 1).then(|| parts.list.clone()),
            }
        };
        let parts_max = self.spec.parts_max();
        let mut message = self.spec.open();
        let mut ended = Ok(());
        let read = self.list.for_each(|line, member| {
            if message.push(member) {
                return ControlFlow::Continue(());
            }
            let part = next();
            if part.number == parts_max {
                let what = format!(
                    "more than {parts_max} messages would be needed, each with the whole job beside its \
                     part of the list; a shorter job, or fewer recipients in one list, would fit"
                );
                ended = Err(Refusal::BadJob(vec![Problem::new("audience", what)]));
                return ControlFlow::Break(());
            }
            ended = each(message.close(&part));
            if ended.is_ok() && !message.push(member) {
                let mut bad = BadLines::default();
                bad.add(line, "too large together with the job".to_owned());
                ended = Err(Refusal::BadLines(bad));
            }
            match ended {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        read.map_err(|error| full(&error))?;
        ended?;
        if message.is_empty() {
            return Ok(());
        }
        each(message.close(&next()))
    }
}
