//! Contains one folder per IM system: an adapter that calls it, and its drop-in endpoint.
//!
//! A folder holds everything about its system: settings, how to build a call, how to read the
//! reply, the meaning of each code, and how to read requests of existing callers and answer them
//! ([`ingress`]). Adapters do not wait and do not retry: they are pure functions,
//! [`crate::http::client`] sends their requests, and the worker decides what follows from an
//! answer.
//!
//! A further system needs:
//! - a folder and its `mod` line here,
//! - a line in `systems!` and, if it has a drop-in endpoint, one in [`ingresses`], both at the end
//!   of this file,
//! - in `config::targets`: a `Kind` with its name, the function that reads its keys, and, if the
//!   backend limits calls per application, an arm in `check_applications`,
//! - what its codes are about (an unknown recipient, a sender without permission, the call) in its
//!   `refusal_kind`,
//! - its part of `docs/targets.md`, `docs/drop-in.md` and `deploy/fanwise.example.toml`;
//!   `fanwise schema` regenerates `schemas/mapping.md`.
//!
//! `fanwise-mock-im` simulates the systems in tests. It is a separate crate and does not use the
//! adapters. A further system needs a simulation there, and its row in `tests/it/systems.rs`.

/// Joins an account's base URL and the path of a call.
pub(crate) mod address;
/// Tells statuses from other codes, and how each system writes its codes.
pub(crate) mod code;
/// Provides jobs and replies for the tests of all systems.
#[cfg(test)]
mod fixture;
/// Reads requests of existing callers and writes the answers that they expect.
pub mod ingress;
/// Builds JSON and digests for calls.
mod json;
/// Shows what each target makes of each feature of a job.
pub mod mapping;
pub mod netease;
pub mod openim;
/// Reads the parts that replies of all systems have in common.
mod reading;
pub mod webhook;
pub mod wukongim;
pub mod yunxin;

use crate::domain::fields::Problem;
use crate::ports::Target;

macro_rules! systems {
    ($($variant:ident => $folder:ident,)*) => {
        /// The system that a target is an account of, with the settings to reach it.
        #[derive(Clone, Debug)]
        pub enum TargetSettings {
            $($variant($folder::Settings),)*
        }

        impl TargetSettings {
            /// The system's name in configuration files.
            pub fn system(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => stringify!($folder),)*
                }
            }

            /// Whether calls are encrypted.
            pub fn is_https(&self) -> bool {
                let url = match self {
                    $(Self::$variant(settings) => &settings.url,)*
                };
                let scheme = url.get(..6);
                scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
            }

            /// Host and port of the account, or `None` if its URL does not contain them in a
            /// readable form.
            pub fn address(&self) -> Option<(String, u16)> {
                let url = match self {
                    $(Self::$variant(settings) => &settings.url,)*
                };
                address_of(url)
            }
        }

        /// The names of the systems, as configuration files use them.
        pub const SYSTEMS: &[&str] = &[$(stringify!($folder),)*];

        /// One target for each kind that honours other features, with the name of the kind.
        pub(crate) fn samples() -> Vec<(&'static str, Box<dyn Target>)> {
            let mut samples = Vec::new();
            $(
                for (name, settings) in $folder::Settings::samples() {
                    // The settings of a sample are valid. A test would miss a sample that is not.
                    samples.extend(
                        build(name, &TargetSettings::$variant(settings)).ok().map(|it| (name, it)),
                    );
                }
            )*
            samples
        }

        /// Builds the target `name`, or returns every problem of its settings.
        pub fn build(
            name: &str,
            settings: &TargetSettings,
        ) -> Result<Box<dyn Target>, Vec<Problem>> {
            let mut problems = Vec::new();
            let target: Option<Box<dyn Target>> = match settings {
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

impl TargetSettings {
    /// How the system writes the codes that a target may give another class. A webhook gives
    /// classes to statuses instead.
    pub(crate) fn code_forms(&self) -> Option<&'static code::CodeForms> {
        match self {
            Self::Webhook(_) => None,
            Self::Wukongim(_) => Some(&wukongim::code::FORMS),
            Self::Openim(_) => Some(&openim::code::FORMS),
            Self::Netease(_) => Some(&netease::code::FORMS),
            Self::Yunxin(_) => Some(&yunxin::code::FORMS),
        }
    }

    /// Host and port of every server of the account.
    pub fn addresses(&self) -> Vec<(String, u16)> {
        let more = match self {
            Self::Wukongim(settings) => settings.manager_url.as_deref().and_then(address_of),
            Self::Webhook(_) | Self::Openim(_) | Self::Netease(_) | Self::Yunxin(_) => None,
        };
        self.address().into_iter().chain(more).collect()
    }
}

fn address_of(url: &str) -> Option<(String, u16)> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let authority: http::uri::Authority = authority.parse().ok()?;
    let default = if scheme == "https" { 443 } else { 80 };
    Some((
        authority.host().to_owned(),
        authority.port_u16().unwrap_or(default),
    ))
}

/// The drop-in endpoints, with the names of their systems.
pub fn ingresses() -> Vec<(&'static str, Box<dyn ingress::Ingress>)> {
    vec![
        ("netease", Box::new(netease::ingress::NetEaseIngress)),
        ("openim", Box::new(openim::ingress::OpenImIngress)),
        ("wukongim", Box::new(wukongim::ingress::WukongImIngress)),
        ("yunxin", Box::new(yunxin::ingress::YunxinIngress)),
    ]
}

systems! {
    Webhook => webhook,
    Wukongim => wukongim,
    Openim => openim,
    Netease => netease,
    Yunxin => yunxin,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn problems_of_settings_carry_the_key_of_the_target() {
        let settings = webhook::Settings::new("ftp://x");
        let problems = build("crm", &TargetSettings::Webhook(settings))
            .err()
            .unwrap();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].field, "targets.crm.url");
        assert_eq!(
            SYSTEMS,
            ["webhook", "wukongim", "openim", "netease", "yunxin"]
        );
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut settings = wukongim::Settings::new("http://im", wukongim::Version::V2);
        settings.token = Some(Secret::new("hunter2"));
        let mut webhook = webhook::Settings::new("http://x");
        webhook.signature = Some(webhook::Signature::new(Secret::new("hunter2")));
        let mut openim = openim::Settings::new("http://im");
        openim.secret = Some(Secret::new("hunter2"));
        openim.token = Some(Secret::new("hunter2"));
        let settings = [
            TargetSettings::Wukongim(settings),
            TargetSettings::Openim(openim),
            TargetSettings::Webhook(webhook),
            TargetSettings::Netease(netease::Settings::new(
                "http://x",
                "key",
                Secret::new("hunter2"),
            )),
            TargetSettings::Yunxin(yunxin::Settings::new(
                "http://x",
                "key",
                Secret::new("hunter2"),
            )),
        ];
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
