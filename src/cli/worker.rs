//! `fanwise worker`, `fanwise gateway` and `fanwise serve`: run until they are stopped.

use std::path::Path;

use super::{daemon_config, not_of_the_gateway};
use crate::app;
use crate::config::Config;
use crate::exit::{Exit, Failure, OrExit as _};

/// Takes jobs from RabbitMQ and delivers them.
pub(super) fn run(file: Option<&Path>) -> Result<Exit, Failure> {
    let config = daemon_config(file, not_of_the_gateway, Config::require_worker)?;
    on_runtime(config, app::run_worker)
}

/// Takes jobs over HTTP and passes them to RabbitMQ.
pub(super) fn gateway(file: Option<&Path>) -> Result<Exit, Failure> {
    // A gateway checks jobs as a worker does, so it needs the same configuration.
    let config = daemon_config(file, |_| true, Config::require_worker)?;
    on_runtime(config, app::run_gateway)
}

/// Gateway and worker in one process.
pub(super) fn serve(file: Option<&Path>) -> Result<Exit, Failure> {
    let config = daemon_config(file, |_| true, Config::require_process)?;
    on_runtime(config, app::run_serve)
}

fn on_runtime<F>(config: Config, run: impl FnOnce(Config) -> F) -> Result<Exit, Failure>
where
    F: Future<Output = Result<Exit, Failure>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("fanwise")
        .build()
        .or_exit(Exit::Internal)?;
    let exit = runtime.block_on(Box::pin(run(config)));
    // Deliveries that still run after the drain deadline are cut off. They are unacked and come
    // back.
    runtime.shutdown_background();
    exit
}
