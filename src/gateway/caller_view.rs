//! Limits what an app's caller learns about the configuration: nothing about other apps, and
//! nothing about targets that it did not name.

use super::access::Caller;
use crate::domain::job;
use crate::domain::permissions::Permissions;
use crate::ports::{Store, Target, Transport};
use crate::runtime::Context;
use crate::service::admission::Rules;

/// The context for reading a caller's jobs.
pub(super) struct CallerView<'a, S, T> {
    context: &'a Context<S, T>,
    caller: &'a Caller,
}

impl<'a, S: Store, T> CallerView<'a, S, T> {
    pub(super) fn new(context: &'a Context<S, T>, caller: &'a Caller) -> Self {
        Self { context, caller }
    }

    /// The full explanation for the administrator, which lists names; a shorter one for other
    /// callers.
    fn told(&self, all: String, less: impl FnOnce() -> String) -> String {
        match self.caller {
            Caller::Admin => all,
            Caller::App(_) | Caller::Nobody => less(),
        }
    }
}

impl<S: Store, T> job::Context for CallerView<'_, S, T> {
    fn default_target(&self, app: &str) -> Result<String, String> {
        let found = self.context.default_target(app);
        let less = || match self.context.apps.contains_key(app) {
            true => format!("app {app:?} has no default target, and the job names none"),
            false => format!("there is no app {app:?}"),
        };
        found.map_err(|all| self.told(all, less))
    }

    fn check_target(&self, target: &str) -> Result<(), String> {
        let checked = self.context.check_target(target);
        let less = || format!("there is no target {target:?}");
        checked.map_err(|all| self.told(all, less))
    }

    fn folds_case(&self, target: &str) -> bool {
        self.context.folds_case(target)
    }

    fn check_category(&self, app: &str, category: &str) -> Result<(), String> {
        self.context.check_category(app, category)
    }

    fn check_callback(&self, app: &str, url: &str) -> Result<(), String> {
        self.context.check_callback(app, url)
    }

    fn check_reply_to(&self, app: &str, queue: &str) -> Result<(), String> {
        self.context.check_reply_to(app, queue)
    }
}

impl<S: Store, T: Transport> Rules for CallerView<'_, S, T> {
    fn permissions(&self, app: &str) -> Option<&Permissions> {
        self.context.permissions(app)
    }

    fn target(&self, name: &str) -> Option<&dyn Target> {
        self.context.target(name)
    }
}
