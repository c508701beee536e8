//! The version of this build, and the commit that it was made from.

use std::sync::LazyLock;

/// The commit, as the build names it in `FANWISE_COMMIT`. `deploy/packages/stage` does so.
pub const COMMIT: Option<&str> = match option_env!("FANWISE_COMMIT") {
    Some(commit) if !commit.is_empty() => Some(commit),
    _ => None,
};

/// `0.1.0 (a1b2c3d)`, or `0.1.0` if the build names no commit.
pub fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let commit = COMMIT.map(|commit| format!(" ({commit})"));
        env!("CARGO_PKG_VERSION").to_owned() + &commit.unwrap_or_default()
    });
    &TEXT
}
