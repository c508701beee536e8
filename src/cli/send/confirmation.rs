//! Asks for a confirmation before a job goes to all users of a target, unless they are few.
//!
//! The command asks the target itself for their number, with the target's settings from the
//! configuration. If the target cannot tell, or its settings are on a server, the command asks for
//! the confirmation.

use std::io::IsTerminal as _;

use super::SendArgs;
use crate::app;
use crate::cli::output;
use crate::cli::output::grouped;
use crate::config::Config;
use crate::domain::outcome::{Class, TargetAnswer};
use crate::exit::{Exit, Failure};
use crate::http::client::{Client, ClientSettings};
use crate::runtime::{UserCount, count_users};

/// The question to ask before sending to all users; `None` if they are known to be few.
fn to_confirm(
    target: &str,
    found: Result<UserCount, TargetAnswer>,
    above: u64,
    excluded: usize,
) -> Option<String> {
    let reached = match found {
        Ok(UserCount::Exactly(users)) if users <= above => return None,
        Ok(UserCount::Exactly(users)) => grouped(users),
        Ok(UserCount::AtLeast(users)) => format!("at least {}", grouped(users)),
        Err(answer) => {
            return Some(format!(
                "this reaches all users of target {target}, and their number is not known \
                 ({}: {})",
                answer.code, answer.text
            ));
        }
    };
    let excluded = match excluded {
        0 => String::new(),
        some => format!(", less {some} excluded"),
    };
    Some(format!(
        "this reaches {reached} users of target {target}{excluded}"
    ))
}

/// Asks the target how many users it has, if this machine has its settings.
async fn count(
    name: &str,
    config: Option<&Config>,
) -> Result<Result<UserCount, TargetAnswer>, Failure> {
    let Some((config, settings)) = config.and_then(|it| Some((it, it.targets.get(name)?))) else {
        let what = "only the server can ask the target";
        return Ok(Err(TargetAnswer::new(Class::Config, "not_here", what)));
    };
    let target = app::target(config, name)?;
    let client = Client::new(ClientSettings {
        tls_of: app::own_tls(config),
        ..ClientSettings::defaults()
    });
    Ok(count_users(&*target, &client, settings.call_timeout).await)
}

impl SendArgs {
    /// Asks for a confirmation that all users are meant, unless they are few.
    pub(super) async fn confirm(&self, name: &str, config: Option<&Config>) -> Result<(), Failure> {
        let found = count(name, config).await?;
        let excluded = self.exclude.len();
        let Some(what) = to_confirm(name, found, self.confirm_above, excluded) else {
            return Ok(());
        };
        let refused = |what| Err(Failure::message(Exit::Usage, what));
        if !std::io::stdin().is_terminal() {
            return refused(format!("nothing was sent: {what}; confirm it with --yes"));
        }
        match output::is_meant(&what)? {
            true => Ok(()),
            false => refused("nothing was sent: not confirmed".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_users_and_an_unknown_number_are_to_be_confirmed() {
        let what = |found, excluded| to_confirm("im", found, 100, excluded);
        assert_eq!(what(Ok(UserCount::Exactly(100)), 0), None);
        let many = what(Ok(UserCount::Exactly(1_204_331)), 0).unwrap();
        assert_eq!(many, "this reaches 1,204,331 users of target im");
        let less = what(Ok(UserCount::Exactly(101)), 2).unwrap();
        assert_eq!(less, "this reaches 101 users of target im, less 2 excluded");
        // A first page with fewer users than the threshold says nothing about the rest.
        let some = what(Ok(UserCount::AtLeast(50)), 0).unwrap();
        assert_eq!(some, "this reaches at least 50 users of target im");
        let unknown = what(
            Err(TargetAnswer::new(Class::Config, "401", "token is wrong")),
            0,
        );
        assert_eq!(
            unknown.unwrap(),
            "this reaches all users of target im, and their number is not known (401: token is \
             wrong)"
        );
    }
}
