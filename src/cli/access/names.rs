//! Which apps and targets there are: a name that does not exist is an error, not an empty list.

use super::{Access, Server};
use crate::domain::fields::suggestion;
use crate::exit::{Exit, Failure};
use crate::service::api::{About, AppAbout, Role};

impl Access {
    /// The apps that the caller may use, by name.
    pub(in crate::cli) async fn apps(&self) -> Result<Vec<AppAbout>, Failure> {
        match self {
            Self::Direct(direct) => {
                let names = crate::app::Names::of(&direct.config)?;
                let apps = direct.facts.apps.iter();
                Ok(apps
                    .map(|(name, limit)| AppAbout {
                        name: name.clone(),
                        default_target: crate::domain::job::Context::default_target(&names, name)
                            .ok(),
                        limit: *limit,
                    })
                    .collect())
            }
            Self::Server(server) => Ok(server.about().await?.apps),
        }
    }

    /// The app that the token belongs to; `None` if it is not that of an app, or nobody answers.
    pub(in crate::cli) async fn own_app(&self) -> Option<String> {
        let server = match self {
            Self::Server(server) if server.has_token() => server,
            Self::Server(_) | Self::Direct(_) => return None,
        };
        // What is wrong with the server, the command itself finds out.
        let about = server.about().await.ok()?;
        let own = (about.role == Role::App).then_some(about.apps)?;
        own.into_iter().next().map(|app| app.name)
    }

    /// The app of what names none: that of the token, else `default`.
    pub(in crate::cli) async fn app_or_own(&self, named: Option<&str>) -> String {
        let own = match named {
            Some(named) => Some(named.to_owned()),
            None => self.own_app().await,
        };
        own.unwrap_or_else(|| "default".to_owned())
    }

    /// Fails if there is no app of this name.
    pub(in crate::cli) async fn knows_app(&self, app: &str) -> Result<(), Failure> {
        let apps = self.apps().await?;
        known("app", app, apps.iter().map(|app| app.name.as_str()))
    }

    /// Fails if there is no target of this name. Only the administrator of a server may know.
    pub(in crate::cli) async fn knows_target(&self, target: &str) -> Result<(), Failure> {
        let targets = match self {
            Self::Direct(direct) => direct.facts.targets.keys().cloned().collect(),
            Self::Server(server) => {
                let about = server.about().await?;
                if about.role != Role::Administrator {
                    return Ok(());
                }
                about.targets
            }
        };
        known("target", target, targets.iter().map(String::as_str))
    }
}

impl Server {
    async fn about(&self) -> Result<About, Failure> {
        self.existing("/v1/about").await
    }
}

/// Fails if `names` has no such name, and suggests the nearest one.
pub(in crate::cli) fn known<'a>(
    what: &str,
    name: &str,
    names: impl Iterator<Item = &'a str> + Clone,
) -> Result<(), Failure> {
    if names.clone().any(|known| known == name) {
        return Ok(());
    }
    let hint = suggestion(name, names.clone()).map_or_else(
        || ".".to_owned(),
        |near| format!("; did you mean {near:?}?"),
    );
    let names: Vec<_> = names.collect();
    let names = match names.as_slice() {
        [] => "none".to_owned(),
        names => names.join(", "),
    };
    let what = format!("there is no {what} {name:?}{hint} There are: {names}");
    Err(Failure::message(Exit::Unavailable, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_what_there_is() {
        let told = |names: &[&str]| {
            let failed = known("target", "imm", names.iter().copied()).unwrap_err();
            failed.error.to_string()
        };
        let near = "there is no target \"imm\"; did you mean \"im\"? There are: hook, im";
        assert_eq!(told(&["hook", "im"]), near);
        assert_eq!(told(&[]), "there is no target \"imm\". There are: none");
        assert!(known("target", "im", ["im"].into_iter()).is_ok());
    }
}
