//! Installs the allocator settings and the crypto provider, parses the arguments, runs the command
//! and returns its exit code.

use std::process::ExitCode;

use clap::Parser as _;
use fanwise::allocator;
use fanwise::cli::Cli;
use fanwise::domain::printable::printable;
use fanwise::error::chain;
use fanwise::exit::Exit;

#[allow(
    clippy::print_stderr,
    reason = "the last word of a command that failed"
)]
fn main() -> ExitCode {
    allocator::return_freed_memory();
    // AMQP, Redis and HTTP share one provider. A second install, as in tests, changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                Exit::Usage.into()
            } else {
                Exit::Ok.into()
            };
        }
    };
    match cli.run() {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if failure.exit != Exit::Ok {
                // The error may contain text of a backend or a producer.
                eprintln!("fanwise: {}", printable(&chain(&*failure.error)));
            }
            failure.exit.into()
        }
    }
}
