//! Ending in good order: signals, and a deadline for what still runs.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// What a shell reports for a program that SIGINT ended.
const SECOND_SIGNAL_CODE: i32 = 130;
/// For one line of log.
const LAST_WORD: Duration = Duration::from_millis(100);

/// A token that SIGTERM or SIGINT cancels. A second signal ends the process at once, with code 130.
///
/// Must be called inside a runtime; the watching task lives as long as the runtime.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn signals() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if cancelled.is_cancelled() {
                // Not even a log that takes nothing may hold this up.
                drop(std::thread::spawn(move || warn!(signal = name, "second signal, leaving at once")));
                tokio::time::sleep(LAST_WORD).await;
                std::process::exit(SECOND_SIGNAL_CODE);
            }
            // First the deed, then the word: a log that cannot be written must keep nobody from leaving.
            cancelled.cancel();
            // Beside this, for a pipe that nobody reads blocks, and the next signal has to be heard.
            drop(std::thread::spawn(move || info!(signal = name, "shutting down")));
        }
    });
    Ok(token)
}

/// Waits for the tasks of a tracker, at most until the deadline. Answers whether all have ended.
pub async fn drain(tracker: &TaskTracker, deadline: Duration) -> bool {
    tracker.close();
    let done = tokio::time::timeout(deadline, tracker.wait()).await.is_ok();
    if !done {
        warn!(tasks = tracker.len(), deadline_s = deadline.as_secs_f64(), "tasks still run at the end of the drain");
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_at_its_deadline() {
        let tracker = TaskTracker::new();
        tracker.spawn(tokio::time::sleep(Duration::from_secs(5)));
        assert!(!drain(&tracker, Duration::from_secs(1)).await);
        assert!(drain(&tracker, Duration::from_secs(10)).await);
    }
}
