//! `fanwise completions` and `fanwise man`: what packages install beside the binary.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, output};
use crate::exit::{Exit, Failure, OrExit as _};

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// Shell that reads them
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Folder; it is created if it is missing
    folder: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "fanwise", &mut script);
    output::data(String::from_utf8_lossy(&script).trim_end())?;
    Ok(Exit::Ok)
}

pub(super) fn man(args: &ManArgs) -> Result<Exit, Failure> {
    std::fs::create_dir_all(&args.folder).or_exit(Exit::Unavailable)?;
    clap_mangen::generate_to(Cli::command(), &args.folder).or_exit(Exit::Unavailable)?;
    Ok(Exit::Ok)
}
