//! `fanwise config init`: writes a small configuration to begin with.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use clap::ValueEnum;

use crate::cli::output;
use crate::config::DEFAULT_FILE;
use crate::exit::{Exit, Failure};

/// The IM system that the configuration is for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(in crate::cli) enum System {
    /// A backend of your own, called over HTTP
    Webhook,
    Wukongim,
    Openim,
    /// NetEase Yunxin, interface v1
    Netease,
    /// NetEase Yunxin, interface v2
    Yunxin,
}

impl System {
    fn text(self) -> &'static str {
        match self {
            Self::Webhook => include_str!("../../../deploy/init/webhook.toml"),
            Self::Wukongim => include_str!("../../../deploy/init/wukongim.toml"),
            Self::Openim => include_str!("../../../deploy/init/openim.toml"),
            Self::Netease => include_str!("../../../deploy/init/netease.toml"),
            Self::Yunxin => include_str!("../../../deploy/init/yunxin.toml"),
        }
    }
}

/// Writes the file, unless there is one already, or prints it.
pub(in crate::cli) fn init(
    system: System,
    print: bool,
    file: Option<&Path>,
) -> Result<Exit, Failure> {
    if print {
        output::data(system.text().trim_end())?;
        return Ok(Exit::Ok);
    }
    let file = file.unwrap_or(Path::new(DEFAULT_FILE));
    let shown = file.display();
    let failed = |error: std::io::Error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                "; it stays as it is: name another one with --config, or use --print"
            }
            _ => "",
        };
        let what = format!("cannot write {shown}: {error}{hint}");
        Failure::message(Exit::Unavailable, what)
    };
    // It will hold secrets.
    let mut opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(failed)?;
    opened.write_all(system.text().as_bytes()).map_err(failed)?;
    output::line(format!(
        "wrote {shown}; edit it, then:\n  fanwise config check   every problem with its key\n  fanwise \
         doctor         whether the target answers and takes the credentials\n  fanwise serve          \
         run it; `fanwise send --help` shows how to submit a job"
    ))?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    #[test]
    fn each_configuration_to_begin_with_is_sound() {
        for &system in System::value_variants() {
            let name = format!("fanwise-init-{}-{}", std::process::id(), fastrand::u64(..));
            let file = std::env::temp_dir().join(name);
            init(system, false, Some(&file)).unwrap();
            let again = init(system, false, Some(&file)).unwrap_err();
            assert!(again.error.to_string().contains("--print"), "{system:?}");
            let loaded = load(Some(&file), std::iter::empty()).unwrap();
            std::fs::remove_file(&file).unwrap();
            assert!(
                loaded.findings.problems.is_empty(),
                "{system:?}: {:?}",
                loaded.findings.problems
            );
            assert_eq!(loaded.config.targets.len(), 1, "{system:?}");
            // What the user must put in is named, with its line.
            let written = system.text().lines().zip(1..);
            let to_replace: Vec<_> = written
                .filter(|(line, _)| line.contains("REPLACE-WITH-"))
                .map(|(_, number)| Some(number))
                .collect();
            let findings = &loaded.findings;
            let warnings = findings.warnings.iter().map(|it| &it.field);
            let named = warnings.filter(|key| findings.is_placeholder(key));
            let lines: Vec<_> = named.map(|key| loaded.lines.find(key)).collect();
            assert_eq!(lines, to_replace, "{system:?}");
        }
    }
}
