//! IM systems: one folder each, and the mock server that stands in for them in tests.
//!
//! A folder holds everything about its system: settings, how a call is put together, how its reply is
//! read, which code means what. A further system is a folder, its `mod` line and one line in the list
//! at the end of this file. Nothing here waits or retries: adapters are pure functions, sending is
//! [`http`]'s work, and what happens after an answer is the worker's.

use std::fmt;

/// Jobs and replies for the tests of all systems.
#[cfg(test)]
mod fixture;
/// The HTTP client that all targets share.
pub mod http;
/// How calls are put together: JSON and digests without detours.
mod json;
/// What replies of all systems have in common.
mod reading;
/// Any HTTP endpoint.
pub mod webhook;
/// WuKongIM 1.x, 2.x and 3.x.
pub mod wukongim;

use crate::domain::fields::Problem;
use crate::ports::Target;

/// A token or key. It is shown by no formatting.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

macro_rules! systems {
    ($($variant:ident => $folder:ident,)*) => {
        /// Which system a target is an account of, and how to reach it.
        #[derive(Clone, Debug)]
        pub enum TargetSettings {
            $($variant($folder::Settings),)*
        }

        /// The systems by the names that configuration files use.
        pub const SYSTEMS: &[&str] = &[$(stringify!($folder),)*];

        /// Builds the target `name`, or says everything that is wrong with its settings.
        pub fn build(
            name: &str,
            settings: &TargetSettings,
        ) -> Result<Box<dyn Target>, Vec<Problem>> {
            let mut problems = Vec::new();
            let target = match settings {
                $(TargetSettings::$variant(settings) => {
                    $folder::target(settings, &mut problems)
                        .map(|target| Box::new(target) as Box<dyn Target>)
                })*
            };
            match target {
                Some(target) if problems.is_empty() => Ok(target),
                _ => {
                    for problem in &mut problems {
                        problem.field = format!("targets.{name}.{}", problem.field);
                    }
                    Err(problems)
                }
            }
        }
    };
}

systems! {
    Webhook => webhook,
    Wukongim => wukongim,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_of_settings_carry_the_key_of_the_target() {
        let settings = webhook::Settings::new("ftp://x");
        let problems = build("crm", &TargetSettings::Webhook(settings))
            .err()
            .unwrap();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].field, "targets.crm.url");
        assert_eq!(SYSTEMS, ["webhook", "wukongim"]);
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut settings = wukongim::Settings::new("http://im", wukongim::Version::V2);
        settings.token = Some(Secret::new("hunter2"));
        let mut webhook = webhook::Settings::new("http://x");
        webhook.signature = Some(webhook::Signature::new(Secret::new("hunter2")));
        let settings = [
            TargetSettings::Wukongim(settings),
            TargetSettings::Webhook(webhook),
        ];
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
