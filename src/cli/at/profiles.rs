//! Profiles: servers that commands call by a name. Their file is
//! `$XDG_CONFIG_HOME/fanwise/profiles.toml`, else `~/.config/fanwise/profiles.toml`:
//!
//! ```toml
//! [staging]
//! server = "https://fanwise.staging.example.com"
//! token_file = "staging.token"
//! ca_file = "staging-ca.pem"
//! ```

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{secret, token_in};
use crate::domain::fields::suggestion;
use crate::exit::{Exit, Failure};
use crate::secret::Secret;

/// The bits of a mode that let others read, write or list.
const OTHERS: u32 = 0o077;

/// One table of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Profile {
    pub(super) server: String,
    token: Option<String>,
    /// Relative to the folder of the file, as `ca_file` is.
    token_file: Option<PathBuf>,
    pub(super) ca_file: Option<PathBuf>,
}

impl Profile {
    /// Its token, if it has one.
    pub(super) fn token(&self) -> Result<Option<Secret>, Failure> {
        match (&self.token, &self.token_file) {
            (Some(token), _) => secret("the profile", token).map(Some),
            (None, Some(file)) => token_in(file).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// The profile of this name.
pub(super) fn find(name: &str) -> Result<Profile, Failure> {
    let file = place().ok_or_else(|| {
        wrong("profiles need a home: set HOME or XDG_CONFIG_HOME, or use --server".to_owned())
    })?;
    in_file(&file, name)
}

/// The file of the user who runs the command.
fn place() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).filter(|it| !it.is_empty());
    let configs = folder("XDG_CONFIG_HOME").map(PathBuf::from);
    let configs = configs.or_else(|| Some(Path::new(&folder("HOME")?).join(".config")));
    Some(configs?.join("fanwise").join("profiles.toml"))
}

fn wrong(what: String) -> Failure {
    Failure::message(Exit::BadConfig, what)
}

fn in_file(file: &Path, name: &str) -> Result<Profile, Failure> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| {
        wrong(format!(
            "profile {name:?}: cannot read {shown}: {error}. It has a table for each profile: [{name}] \
             with server, and token_file or token"
        ))
    })?;
    let mut profiles: BTreeMap<String, Profile> =
        toml::from_str(&text).map_err(|error| wrong(format!("{shown}: {error}")))?;
    if profiles.values().any(|profile| profile.token.is_some()) {
        check_mode(file)?;
    }
    let Some(mut profile) = profiles.remove(name) else {
        let names = || profiles.keys().map(String::as_str);
        let hint = match suggestion(name, names()) {
            Some(near) => format!("did you mean {near:?}?"),
            None if profiles.is_empty() => "it has none".to_owned(),
            None => format!("there are: {}", names().collect::<Vec<_>>().join(", ")),
        };
        return Err(wrong(format!(
            "there is no profile {name:?} in {shown}; {hint}"
        )));
    };
    if profile.token.is_some() && profile.token_file.is_some() {
        let what = format!("{shown}: profile {name:?} has a token and a token_file: keep one");
        return Err(wrong(what));
    }
    let folder = file.parent().unwrap_or(Path::new(""));
    for path in [&mut profile.token_file, &mut profile.ca_file] {
        *path = path.take().map(|path| folder.join(path));
    }
    Ok(profile)
}

/// Refuses a file that holds a token and that others can read.
fn check_mode(file: &Path) -> Result<(), Failure> {
    let shown = file.display();
    let found = std::fs::metadata(file).map_err(|error| wrong(format!("{shown}: {error}")))?;
    let mode = found.permissions().mode() & 0o777;
    match mode & OTHERS {
        0 => Ok(()),
        _ => Err(wrong(format!(
            "{shown} holds a token, and others may use it (mode {mode:03o}): run chmod 600 {shown}, or keep \
             the token in a token_file"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};

    use super::*;

    /// What a profile of this file is, as `server token ca_file`, or the error.
    fn found(text: &str, mode: u32, name: &str) -> Result<String, String> {
        let folder = std::env::temp_dir().join(format!("fanwise-profiles-{}", fastrand::u64(..)));
        std::fs::create_dir(&folder).unwrap();
        let file = folder.join("profiles.toml");
        write(&file, text).unwrap();
        write(folder.join("its.token"), "from-a-file\n").unwrap();
        set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        let found = in_file(&file, name).and_then(|profile| {
            let token = profile.token()?;
            let token = token.map_or("none".to_owned(), |it| it.expose().to_owned());
            let ca = profile.ca_file.is_some_and(|ca| ca.starts_with(&folder));
            Ok(format!("{} {token} {ca}", profile.server))
        });
        std::fs::remove_dir_all(&folder).unwrap();
        found.map_err(|failure| {
            assert_eq!(failure.exit, Exit::BadConfig);
            failure.error.to_string()
        })
    }

    #[test]
    fn a_profile_has_a_server_a_token_and_a_ca() {
        let text = "[a]\nserver = \"http://a\"\ntoken_file = \"its.token\"\nca_file = \"ca.pem\"\n\
                    [b]\nserver = \"http://b\"\n";
        assert_eq!(
            found(text, 0o644, "a").unwrap(),
            "http://a from-a-file true"
        );
        assert_eq!(found(text, 0o644, "b").unwrap(), "http://b none false");
        let own = "[a]\nserver = \"http://a\"\ntoken = \"its-own\"\n";
        assert_eq!(found(own, 0o600, "a").unwrap(), "http://a its-own false");
    }

    #[test]
    fn what_is_wrong_with_profiles_is_said() {
        let two = "[staging]\nserver = \"http://a\"\n[live]\nserver = \"http://b\"\n";
        let token = "[a]\nserver = \"http://a\"\ntoken = \"t\"\n";
        for (text, mode, name, said) in [
            (two, 0o644, "stagin", "did you mean \"staging\"?"),
            (two, 0o644, "x", "there are: live, staging"),
            ("", 0o644, "x", "it has none"),
            (token, 0o644, "a", "chmod 600"),
            (token, 0o640, "a", "mode 640"),
            ("[a]\nserve = \"x\"", 0o644, "a", "unknown field `serve`"),
            (
                "[a]\ntoken_file = \"x\"",
                0o644,
                "a",
                "missing field `server`",
            ),
            (
                "[a]\nserver = \"http://a\"\ntoken = \"t\"\ntoken_file = \"its.token\"",
                0o600,
                "a",
                "keep one",
            ),
        ] {
            let error = found(text, mode, name).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
