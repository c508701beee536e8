//! A second target for the recipients of a job that the first one refuses.
//!
//! A slice that meets such recipients keeps them apart, with the answers of the first target, and
//! goes on with the others. When nobody else is left, the same slice moves to the second target. So
//! a slice is one message at any time, its entries are counted once, and the ledger sees one claim
//! after the other for each recipient: the rules about crashes are those of any remainder.
//!
//! Only a recipient that certainly did not get the message moves on. One whose call is in doubt
//! never does: it ends uncertain.

use std::sync::Arc;

pub use fanwise_client::{FailureClass, Fallback};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::lane::Lane;
use super::outcome::{Class, TargetAnswer};
use super::slice::{Head, Remark, SLICE_VERSION_FALLBACK, Slice};

/// The classes of answers with which a recipient moves on to the second target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FallsOn {
    permanent: bool,
    transient: bool,
}

impl FallsOn {
    /// None of them without a second target.
    pub fn of(fallback: Option<&Fallback>) -> Self {
        let has = |class| fallback.is_some_and(|it| it.on.contains(&class));
        Self {
            permanent: has(FailureClass::Permanent),
            transient: has(FailureClass::Transient),
        }
    }

    pub fn takes(self, class: Class) -> bool {
        match class {
            Class::Permanent => self.permanent,
            Class::Transient => self.transient,
            _ => false,
        }
    }
}

/// Recipients that the first target refused and that wait for the second one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ForFallback {
    pub recipients: Vec<String>,
    /// Their values for placeholders; left out while no recipient has any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vars: Vec<Option<Box<RawValue>>>,
    /// What the first target said about each of them.
    pub remarks: Vec<Remark>,
}

impl ForFallback {
    pub fn is_empty(&self) -> bool {
        self.recipients.is_empty()
    }

    /// Adds a recipient with the answer about it.
    pub fn push(&mut self, recipient: String, vars: Option<Box<RawValue>>, answer: &TargetAnswer) {
        let position = self.recipients.len() as u32;
        if vars.is_some() || !self.vars.is_empty() {
            self.vars.resize(self.recipients.len(), None);
            self.vars.push(vars);
        }
        self.recipients.push(recipient);
        Remark::add(&mut self.remarks, position, answer);
    }
}

impl Head {
    pub fn has_two_targets(&self) -> bool {
        self.fallback.is_some() || self.fell_from.is_some()
    }

    /// The target to which the job was submitted.
    pub fn first_target(&self) -> &str {
        self.fell_from.as_deref().unwrap_or(&self.target)
    }
}

impl Slice {
    /// Whether only recipients for the second target are left.
    pub fn falls_back(&self) -> bool {
        self.recipients.is_empty() && self.unrecorded.is_empty() && !self.for_fallback.is_empty()
    }

    /// The same slice for the second target, with its first attempts before it. `None` if there is
    /// no second target.
    #[must_use]
    pub fn at_fallback(&self) -> Option<Self> {
        let fallback = self.head.fallback.as_ref()?;
        let head = Head {
            target: fallback.target.clone(),
            fallback: None,
            fell_from: Some(self.head.first_target().to_owned()),
            ..(*self.head).clone()
        };
        let lane = Lane {
            target: fallback.target.clone(),
            class: self.lane.class,
        };
        Some(Self {
            v: SLICE_VERSION_FALLBACK.max(Slice::version(&head, &self.unrecorded)),
            lane,
            remarks: self.for_fallback.remarks.clone(),
            ..self.with_refused(Arc::new(head))
        })
    }

    /// The same slice with the recipients that were refused, to end them where they are.
    #[must_use]
    pub fn without_fallback(&self) -> Self {
        let head = Head {
            fallback: None,
            ..(*self.head).clone()
        };
        self.with_refused(Arc::new(head))
    }

    fn with_refused(&self, head: Arc<Head>) -> Self {
        Self {
            head,
            recipients: self.for_fallback.recipients.clone(),
            vars: self.for_fallback.vars.clone(),
            for_fallback: ForFallback::default(),
            attempts: Vec::new(),
            calls: Vec::new(),
            retries: 0,
            due_at_ms: None,
            due_later: Vec::new(),
            doubts: Vec::new(),
            ..self.clone()
        }
    }
}
