//! `fanwise worker`: takes jobs and delivers them until it is told to stop.

use std::path::Path;

use super::checked_config;
use crate::app;
use crate::exit::{Exit, Failure, OrExit as _};

pub(super) fn run(file: Option<&Path>) -> Result<Exit, Failure> {
    let config = checked_config(file, |config, findings| config.require_worker(findings))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("fanwise")
        .build()
        .or_exit(Exit::Internal)?;
    let exit = runtime.block_on(Box::pin(app::run_worker(config)));
    // Whatever still runs past the drain deadline is cut off: it is unacked and comes back.
    runtime.shutdown_background();
    exit
}
