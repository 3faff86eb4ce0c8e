//! Signals. The first SIGINT or SIGTERM asks for a graceful end; a second one quits at once and
//! says what is left behind, and who removes it.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::stderr;

/// Exit status after a second signal: as for the first, but nothing was cleaned up.
const IMPATIENT: i32 = 130;

/// For what a process says that quits: its terminal may be stopped.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The token that the first signal cancels; the second one tells `last_words` and ends the process. SIGHUP is
/// ignored: a closed terminal must not end a migration.
///
/// # Errors
/// The handlers can't be installed.
pub fn on_signals(
    last_words: impl Fn() -> String + Send + 'static,
) -> std::io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let mut signals = 0;
        loop {
            tokio::select! {
                name = first_of(&mut interrupt, &mut terminate) => {
                    signals += 1;
                    if signals == 1 {
                        tracing::warn!(signal = name, "stopping; once more quits without cleaning up");
                        cancelled.cancel();
                    } else {
                        tracing::error!("quitting at once: {}", last_words());
                        stderr::flush(LAST_WORDS);
                        std::process::exit(IMPATIENT);
                    }
                }
                _ = hangup.recv() => tracing::info!("the terminal is gone; going on"),
            }
        }
    });
    Ok(token)
}

/// Ends with the first SIGINT or SIGTERM: for what such a signal ends well, and leaves nothing behind.
///
/// # Errors
/// The handlers can't be installed.
pub fn asked_to_end() -> std::io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        first_of(&mut interrupt, &mut terminate).await;
    })
}

async fn first_of(interrupt: &mut Signal, terminate: &mut Signal) -> &'static str {
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    }
}
