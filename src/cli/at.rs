//! Where a command works: with the configuration of this machine, or through a server that flags,
//! a profile or the environment name.

mod profiles;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use fanwise_client::http::{base_of, check_token};

use super::access::{Access, ServerAddress};
use super::checked_config;
use crate::config::{Config, Findings};
use crate::exit::{Exit, Failure};
use crate::secret::Secret;
use crate::telemetry::{self, LogFilter, LogFormat};

/// Which server to use, and the token to show it.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Server")]
pub(super) struct ServerArgs {
    #[allow(rustdoc::bare_urls, reason = "the text is also the help of the option")]
    /// Work through this server, such as https://fanwise.example.com, without the configuration of
    /// this machine [env: FANWISE_SERVER]
    #[arg(long, value_name = "URL", global = true, conflicts_with = "profile")]
    server: Option<String>,
    /// Work through the server of this profile in ~/.config/fanwise/profiles.toml
    /// [env: FANWISE_PROFILE]
    #[arg(long, value_name = "NAME", global = true)]
    profile: Option<String>,
    /// The server's token, or the app's; other users of this machine can see it while the command
    /// runs [env: FANWISE_TOKEN]
    #[arg(
        long,
        value_name = "TOKEN",
        global = true,
        conflicts_with = "token_file"
    )]
    token: Option<String>,
    /// Read the token from this file [env: FANWISE_TOKEN_FILE]
    #[arg(long, value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
    /// Certificates of the CAs to trust for https, PEM [default: those that the system trusts]
    /// [env: FANWISE_CA_FILE]
    #[arg(long, value_name = "FILE", global = true)]
    ca_file: Option<PathBuf>,
}

/// The commands of a group that also work through a server.
#[derive(Debug, Args)]
pub(super) struct ThroughServer<C: Subcommand> {
    #[command(subcommand)]
    pub(super) command: C,
    #[command(flatten)]
    pub(super) server: ServerArgs,
}

/// Where a command works.
#[derive(Debug)]
pub(super) struct At {
    file: Option<PathBuf>,
    args: ServerArgs,
}

/// The variables that name a server. Each has one word: those with `__` are settings.
#[derive(Debug, Default)]
struct Variables {
    server: Option<String>,
    profile: Option<String>,
    token: Option<String>,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

impl Variables {
    #[expect(
        clippy::disallowed_methods,
        reason = "they are options of the command line, not of the configuration"
    )]
    fn read() -> Self {
        let text = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        Self {
            server: text("FANWISE_SERVER"),
            profile: text("FANWISE_PROFILE"),
            token: text("FANWISE_TOKEN"),
            token_file: text("FANWISE_TOKEN_FILE").map(PathBuf::from),
            ca_file: text("FANWISE_CA_FILE").map(PathBuf::from),
        }
    }
}

impl At {
    pub(super) fn new(file: Option<PathBuf>, args: ServerArgs) -> Self {
        Self { file, args }
    }

    /// Connects to the server that is named, or as the configuration says. `require` reports
    /// settings that the command needs of a configuration.
    pub(super) fn open(&self, require: impl Fn(&Config, &mut Findings)) -> Result<Access, Failure> {
        if let Some(access) = self.named_server()? {
            return Ok(access);
        }
        let variables = Variables::read();
        let access = Access::of(&checked_config(self.file.as_deref(), require)?)?;
        let wants_server = self.args.token.is_some() || self.args.token_file.is_some();
        let access = match access {
            Access::Server(server) => match own_token(&self.args)?.or(token_of(&variables)?) {
                Some(token) => Access::Server(server.with_token(&token)?),
                None => Access::Server(server),
            },
            Access::Direct(_) if wants_server => {
                let what = "a token is for a server, and the configuration names a broker: name the \
                            server with --server or --profile";
                return Err(Failure::message(Exit::Usage, what));
            }
            direct @ Access::Direct(_) => direct,
        };
        if self.args.ca_file.is_some() {
            let what = "--ca-file is for a server: name it with --server";
            return Err(Failure::message(Exit::Usage, what));
        }
        Ok(access)
    }

    /// The same for commands that need the ledger where they use the broker themselves.
    pub(super) fn open_with_ledger(&self) -> Result<Access, Failure> {
        self.open(|config, findings| {
            if config.broker.url.is_some() {
                config.require_ledger(findings);
            }
        })
    }

    /// The server that flags, a profile or the environment name; `None` if they name none.
    pub(super) fn named_server(&self) -> Result<Option<Access>, Failure> {
        let Some(address) = address(&self.args, &Variables::read())? else {
            return Ok(None);
        };
        telemetry::start(&LogFilter::default(), LogFormat::Text);
        Access::at(address).map(Some)
    }

    /// The configuration of this machine.
    pub(super) fn config(&self) -> Result<Config, Failure> {
        checked_config(self.file.as_deref(), |_, _| {})
    }
}

/// The server that is named; `None` if none is. A flag beats a variable, and a token goes only to
/// the server that it was given for: that of a profile gets the token of the profile, unless a flag
/// gives another one.
fn address(args: &ServerArgs, variables: &Variables) -> Result<Option<ServerAddress>, Failure> {
    let profile = match (&args.profile, &args.server, &variables.server) {
        (Some(profile), ..) => Some(profile),
        (None, None, None) => variables.profile.as_ref(),
        _ => None,
    };
    if let Some(name) = profile {
        let profile = profiles::find(name)?;
        let kept = profile.token()?;
        let token = match own_token(args)? {
            Some(token) => Some(token),
            None if kept.is_some() => kept,
            None => token_of(variables)?,
        };
        return Ok(Some(ServerAddress {
            base: base(&format!("server of profile {name:?}"), &profile.server)?,
            token,
            ca_file: args.ca_file.clone().or(profile.ca_file),
        }));
    }
    let (what, url) = match (&args.server, &variables.server) {
        (Some(url), _) => ("--server", url),
        (None, Some(url)) => ("FANWISE_SERVER", url),
        (None, None) => return Ok(None),
    };
    let token = match own_token(args)? {
        Some(token) => Some(token),
        None => token_of(variables)?,
    };
    Ok(Some(ServerAddress {
        base: base(what, url)?,
        token,
        ca_file: args.ca_file.clone().or_else(|| variables.ca_file.clone()),
    }))
}

/// The token that flags give.
fn own_token(args: &ServerArgs) -> Result<Option<Secret>, Failure> {
    match (&args.token, &args.token_file) {
        (Some(token), _) => secret("--token", token).map(Some),
        (None, Some(file)) => token_in(file).map(Some),
        (None, None) => Ok(None),
    }
}

/// The token that the environment gives.
fn token_of(variables: &Variables) -> Result<Option<Secret>, Failure> {
    match (&variables.token, &variables.token_file) {
        (Some(token), _) => secret("FANWISE_TOKEN", token).map(Some),
        (None, Some(file)) => token_in(file).map(Some),
        (None, None) => Ok(None),
    }
}

fn token_in(file: &Path) -> Result<Secret, Failure> {
    let place = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|error| {
        Failure::message(
            Exit::BadConfig,
            format!("cannot read the token in {place}: {error}"),
        )
    })?;
    secret(&place, text.trim_end())
}

fn secret(place: &str, text: &str) -> Result<Secret, Failure> {
    check_token(text).map_err(|what| {
        Failure::message(Exit::BadConfig, format!("the token in {place} {what}"))
    })?;
    Ok(Secret::new(text))
}

/// The address in front of all paths of a server, without a slash at its end.
fn base(place: &str, url: &str) -> Result<String, Failure> {
    base_of(url).map_err(|what| {
        let shown = crate::secret::without_credentials(url);
        Failure::message(Exit::Usage, format!("{place}: {shown:?} {what}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(server: Option<&str>, token: Option<&str>) -> ServerArgs {
        ServerArgs {
            server: server.map(ToOwned::to_owned),
            token: token.map(ToOwned::to_owned),
            ..ServerArgs::default()
        }
    }

    #[test]
    fn a_flag_beats_a_variable_and_no_name_means_no_server() {
        let variables = Variables {
            server: Some("http://a:9700/".to_owned()),
            token: Some("from-the-environment".to_owned()),
            ..Variables::default()
        };
        let found = |args: &ServerArgs, variables: &Variables| {
            let found = address(args, variables).unwrap();
            found.map(|it| {
                let token = it.token.map(|token| token.expose().to_owned());
                (it.base, token.unwrap_or_default())
            })
        };
        let told = |base: &str, token: &str| Some((base.to_owned(), token.to_owned()));
        let none = args(None, None);
        let expected = told("http://a:9700", "from-the-environment");
        assert_eq!(found(&none, &variables), expected);
        let both = args(Some("https://b/fanwise/"), Some("t"));
        assert_eq!(found(&both, &variables), told("https://b/fanwise", "t"));
        assert_eq!(found(&none, &Variables::default()), None);
    }

    #[test]
    fn an_address_or_a_token_that_cannot_be_meant_is_refused_with_its_place() {
        let error = base("--server", "https://ana:s3cret@host").unwrap_err();
        let text = error.error.to_string();
        let expected = "--server: \"https://(secret)@host\" has a user";
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(error.exit, Exit::Usage);
        let error = secret("--token", "a b").unwrap_err();
        let text = error.error.to_string();
        assert!(
            text.starts_with("the token in --token has characters"),
            "{text}"
        );
        assert_eq!(error.exit, Exit::BadConfig);
    }
}
