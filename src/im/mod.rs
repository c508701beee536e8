//! IM systems: one folder each.
//!
//! A folder holds everything about its system: settings, how a call is put together, how its reply is
//! read, which code means what, and how its existing callers speak ([`ingress`]). A further system is a
//! folder, its `mod` line, one line in each list at the end of this file, and a reader of its keys in
//! `config::targets`. Nothing here waits or retries: adapters are pure functions, [`crate::http::client`] sends, and the
//! worker decides what follows from an answer.
//!
//! `fanwise-mock-im` plays the systems in tests; it is a crate of its own that does not know the adapters.

/// Where calls go: a base URL and the path of a call behind it.
pub(crate) mod address;
/// Jobs and replies for the tests of all systems.
#[cfg(test)]
mod fixture;
/// What existing callers of the systems say, and what they hear.
pub mod ingress;
/// How calls are put together: JSON, URLs and digests without detours.
mod json;
/// The table of what each target makes of a job.
pub mod mapping;
pub mod netease;
pub mod openim;
/// What replies of all systems have in common.
mod reading;
pub mod webhook;
pub mod wukongim;
pub mod yunxin;

use crate::domain::fields::Problem;
use crate::ports::Target;

macro_rules! systems {
    ($($variant:ident => $folder:ident,)*) => {
        /// Which system a target is an account of, and how to reach it.
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

            /// Whether its calls are encrypted.
            pub fn is_https(&self) -> bool {
                let url = match self {
                    $(Self::$variant(settings) => &settings.url,)*
                };
                let scheme = url.get(..6);
                scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
            }

            /// Host and port of the account, where its URL names them plainly.
            pub fn address(&self) -> Option<(String, u16)> {
                let url = match self {
                    $(Self::$variant(settings) => &settings.url,)*
                };
                address_of(url)
            }
        }

        /// The systems by the names that configuration files use.
        pub const SYSTEMS: &[&str] = &[$(stringify!($folder),)*];

        /// A target of every kind that differs in what it can honour, with the name of the kind.
        pub(crate) fn samples() -> Vec<(&'static str, Box<dyn Target>)> {
            let mut samples = Vec::new();
            $(
                for (name, settings) in $folder::Settings::samples() {
                    // A sample has nothing wrong with it; one that had would be missing in a test.
                    samples.extend(
                        build(name, &TargetSettings::$variant(settings)).ok().map(|it| (name, it)),
                    );
                }
            )*
            samples
        }

        /// Builds the target `name`, or says everything that is wrong with its settings.
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

/// The drop-in endpoints, by the names of their systems.
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
