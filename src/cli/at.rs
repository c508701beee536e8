//! Where a command works: with the configuration of this machine, or through a server that flags,
//! a profile or the environment name.

mod profiles;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use http::Uri;

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
        let variables = Variables::read();
        if let Some(address) = address(&self.args, &variables)? {
            telemetry::start(&LogFilter::default(), LogFormat::Text);
            return Access::at(address);
        }
        let mut access = Access::of(&checked_config(self.file.as_deref(), require)?)?;
        let wants_server = self.args.token.is_some() || self.args.token_file.is_some();
        match &mut access {
            Access::Server(server) => {
                if let Some(token) = own_token(&self.args)?.or(token_of(&variables)?) {
                    server.use_token(token);
                }
            }
            Access::Direct(_) if wants_server => {
                let what = "a token is for a server, and the configuration names a broker: name the \
                            server with --server or --profile";
                return Err(Failure::message(Exit::Usage, what));
            }
            Access::Direct(_) => {}
        }
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

    /// The configuration of this machine, for what no server does.
    pub(super) fn only_here(&self, what: &str) -> Result<Config, Failure> {
        if self.args.server.is_some() || self.args.profile.is_some() {
            let what = format!("{what}: leave out --server and --profile");
            return Err(Failure::message(Exit::Usage, what));
        }
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
    let what = match text {
        _ if text.trim().is_empty() => "is empty",
        _ if !text.bytes().all(|byte| (0x21..=0x7e).contains(&byte)) => {
            "has characters that a token cannot have, such as spaces"
        }
        _ => return Ok(Secret::new(text)),
    };
    let what = format!("the token in {place} {what}");
    Err(Failure::message(Exit::BadConfig, what))
}

/// The address in front of all paths of a server, without a slash at its end.
fn base(place: &str, url: &str) -> Result<String, Failure> {
    let wrong = |why: &str| {
        let shown = crate::secret::without_credentials(url);
        let what = format!(
            "{place}: {shown:?} {why}; an address such as https://fanwise.example.com or \
             http://127.0.0.1:9700 is expected"
        );
        Failure::message(Exit::Usage, what)
    };
    let url = url.trim_end_matches('/');
    let uri: Uri = url.parse().map_err(|_| wrong("is no address"))?;
    let scheme = uri.scheme_str();
    match uri.authority() {
        _ if !matches!(scheme, Some("http" | "https")) => {
            Err(wrong("begins with neither http:// nor https://"))
        }
        None => Err(wrong("names no host")),
        Some(authority) if authority.as_str().contains('@') => {
            Err(wrong("has a user: give the token with --token-file"))
        }
        Some(_) if uri.query().is_some() => Err(wrong("has a query")),
        Some(_) => Ok(url.to_owned()),
    }
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
    fn an_address_that_cannot_be_meant_is_refused() {
        for (url, why) in [
            ("localhost:9700", "neither http:// nor https://"),
            ("ftp://host", "neither http:// nor https://"),
            ("", "is no address"),
            ("https://", "is expected"),
            ("https://ana:s3cret@host", "has a user"),
            ("https://host?x=1", "has a query"),
        ] {
            let error = base("--server", url).unwrap_err();
            let text = error.error.to_string();
            assert!(text.contains(why) && !text.contains("s3cret"), "{text}");
            assert_eq!(error.exit, Exit::Usage);
        }
        assert_eq!(base("x", "http://[::1]:9700").unwrap(), "http://[::1]:9700");
    }

    #[test]
    fn a_token_is_one_word() {
        for token in ["", " ", "a b", "a\n", "ä"] {
            assert!(secret("--token", token).is_err(), "{token:?}");
        }
        assert_eq!(secret("--token", "a.b-c_d=").unwrap().expose(), "a.b-c_d=");
    }
}
