//! Handles signals: the first SIGTERM, SIGINT or SIGHUP starts the drain, a further SIGTERM or
//! SIGINT ends the process at once. SIGHUP arrives when the terminal or session closes, or together
//! with SIGTERM from a service manager. If the process was started with SIGHUP ignored, as under
//! `nohup`, it stays ignored.

use std::fs;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::exit::Exit;

/// Cancels the token at the first signal. At the second one the process exits and leaves its
/// deliveries unacked. That is safe, but the work resumes later.
#[allow(clippy::exit, reason = "a second signal asks for exactly that")]
pub fn drain_on_signal() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = match hangup_is_ignored() {
        true => None,
        false => Some(signal(SignalKind::hangup())?),
    };
    let drain = CancellationToken::new();
    let token = drain.clone();
    #[expect(
        clippy::disallowed_methods,
        reason = "it waits for signals as long as the process lives"
    )]
    tokio::spawn(async move {
        tokio::select! {
            () = either(&mut terminate, &mut interrupt) => {}
            () = next(&mut hangup) => {}
        }
        tracing::info!("draining; a second signal ends the process at once");
        token.cancel();
        // SIGHUP often follows the first signal and does not ask for a faster end.
        either(&mut terminate, &mut interrupt).await;
        tracing::warn!("second signal, ending without draining");
        std::process::exit(Exit::Interrupted as i32);
    });
    Ok(drain)
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Waits for ever if there is no signal to wait for.
async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Whether this process was started with SIGHUP ignored, as far as the system tells.
fn hangup_is_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignores(&status, SignalKind::hangup())
}

/// Reads the mask of ignored signals, whose lowest bit is signal 1.
fn ignores(status: &str, kind: SignalKind) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.unwrap_or_default() >> (kind.as_raw_value() - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_what_it_was_told_to_ignore() {
        let ignores = |mask: &str| {
            let status = format!("Name:\tfanwise\nSigIgn:\t{mask}\nSigCgt:\t0000000000000001\n");
            ignores(&status, SignalKind::hangup())
        };
        assert!(ignores("0000000000000001"));
        assert!(ignores("ffffffffffffffff"));
        assert!(!ignores("0000000000001000"));
        assert!(!ignores("0000000000000000"));
        assert!(!ignores(""), "where the system does not tell");
    }
}
