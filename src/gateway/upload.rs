//! An uploaded list, read twice from its file. The first reading checks all of it, so that nothing
//! is accepted of a list with a bad line, and counts its parts, so that each part can carry their
//! number. The second reading publishes the parts. Memory holds one part at a time.
//!
//! The parts are sent as a whole: if a process is killed between two of them, the parts wait for
//! the rest, which comes when the list is uploaded again; otherwise they are given up.

use std::fs::File;
use std::io::Seek as _;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::problem::{BadLines, Refusal};
use super::spec::Spec;
use super::spool::full;
use crate::domain::fields::Problem;
use crate::domain::ids::digest_hex;
use crate::domain::job::{ListPart, PARTS_MAX};
use crate::domain::list::{self, Format, Reading};

pub(super) struct Upload {
    pub(super) spec: Spec,
    pub(super) list: ListKind,
    pub(super) file: File,
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
}

impl Upload {
    /// Reads the whole list. `check` reads each message as the worker will, and names its
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

    /// Calls `each` with the messages that carry the list, in order.
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
        let mut bad = BadLines::default();
        let mut ended = Ok(());
        let mut file = &self.file;
        file.rewind().map_err(|error| full(&error))?;
        let how = Reading {
            format: self.list.format,
            column: self.list.column.as_deref(),
            vars: self.list.vars,
        };
        let read = list::read(file, how, |line, found| {
            let member = match found {
                Ok(member) if bad.is_empty() => member,
                Ok(_) => return ControlFlow::Continue(()),
                Err(what) => {
                    bad.add(line, what);
                    return ControlFlow::Continue(());
                }
            };
            if message.push(&member) {
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
            if ended.is_ok() && !message.push(&member) {
                bad.add(line, "too large together with the job".to_owned());
            }
            match ended {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        read.map_err(|error| full(&error))?;
        ended?;
        if !bad.is_empty() {
            return Err(Refusal::BadLines(bad));
        }
        if message.is_empty() {
            return Ok(());
        }
        each(message.close(&next()))
    }
}
