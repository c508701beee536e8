//! The configuration that parsing a job needs: known apps and targets, defaults, allowed
//! destinations.

use std::collections::BTreeMap;

use crate::domain::notice::CallbackRules;

/// The configuration that reading a job needs: default targets, known names, allowed destinations.
pub trait Context {
    /// The default target of an app; an error text if there is no such app or no default.
    fn default_target(&self, app: &str) -> Result<String, String>;
    /// An error text if there is no such app. An implementation that knows no apps accepts every
    /// app.
    fn check_app(&self, _app: &str) -> Result<(), String> {
        Ok(())
    }
    /// An error text if there is no such target.
    fn check_target(&self, target: &str) -> Result<(), String>;
    /// Whether the target treats `Ana` and `ana` as the same user.
    fn folds_case(&self, target: &str) -> bool;
    /// An error text if the app has no such category of messages.
    fn check_category(&self, app: &str, category: &str) -> Result<(), String>;
    /// An error text if jobs of this app may not send their accounts to this URL.
    fn check_callback(&self, app: &str, url: &str) -> Result<(), String>;
    /// An error text if jobs of this app may not publish their accounts to this queue.
    fn check_reply_to(&self, app: &str, queue: &str) -> Result<(), String>;
}

/// The target for an app's jobs without one: its default, or the only target of the configuration.
pub fn default_target<A, T>(
    app: &str,
    targets: &BTreeMap<String, T>,
    apps: &BTreeMap<String, A>,
    default: impl Fn(&A) -> Option<&String>,
) -> Result<String, String> {
    known_app(app, apps)?;
    let found = apps.get(app);
    let mut all = targets.keys();
    match (found.and_then(default), all.next(), all.next()) {
        (Some(target), ..) => Ok(target.clone()),
        (None, Some(only), None) => Ok(only.clone()),
        (None, None, _) => {
            Err("no target is configured: the configuration needs a [targets.NAME]".to_owned())
        }
        (None, Some(_), Some(_)) => Err(format!(
            "app {app:?} has no default target, and the job names none of {}",
            names(targets)
        )),
    }
}

/// An error text if there is no such app.
pub fn known_app<A>(app: &str, apps: &BTreeMap<String, A>) -> Result<(), String> {
    match apps.contains_key(app) {
        true => Ok(()),
        false => Err(format!(
            "there is no app {app:?}; there are: {}",
            names(apps)
        )),
    }
}

/// An error text if there is no such target.
pub fn known_target<T>(target: &str, targets: &BTreeMap<String, T>) -> Result<(), String> {
    if targets.contains_key(target) {
        return Ok(());
    }
    Err(format!(
        "there is no target {target:?}; there are: {}",
        names(targets)
    ))
}

/// An error text if the app has no such category of messages.
pub fn known_category<C>(
    app: &str,
    category: &str,
    categories: Option<&BTreeMap<String, C>>,
) -> Result<(), String> {
    let none = BTreeMap::new();
    let categories = categories.unwrap_or(&none);
    match categories.contains_key(category) {
        true => Ok(()),
        false => Err(format!(
            "app {app:?} has no category {category:?}; its configuration names these in \
             [apps.{app}.frequency_caps]: {}",
            names(categories)
        )),
    }
}

fn names<T>(things: &BTreeMap<String, T>) -> String {
    let names: Vec<_> = things.keys().map(String::as_str).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// An error text if jobs of an app with these rules, or without rules, may not name this URL.
pub fn check_callback(app: &str, rules: Option<&CallbackRules>, url: &str) -> Result<(), String> {
    match rules {
        Some(rules) => rules.check(url),
        None => Err(format!(
            "app {app:?} sends no callbacks: its configuration has no [apps.{app}.callbacks]"
        )),
    }
}
