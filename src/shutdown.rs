//! Signals: the first SIGTERM or SIGINT drains, the second ends the process at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::exit::Exit;

/// Cancels the token at the first signal. The process dies at the second one, with what is in work
/// unacked: that is safe, merely slower to resume.
#[allow(clippy::exit, reason = "a second signal asks for exactly that")]
pub fn drain_on_signal() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let drain = CancellationToken::new();
    let token = drain.clone();
    tokio::spawn(async move {
        either(&mut terminate, &mut interrupt).await;
        tracing::info!("draining; a second signal ends the process at once");
        token.cancel();
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
