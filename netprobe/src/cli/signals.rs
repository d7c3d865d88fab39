//! Ctrl-C: the first ends the run in order, the second at once.

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What the shell expects of a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Waits for SIGINT or SIGTERM.
pub(super) struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    /// From here on the signals do not kill.
    pub(super) fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
        })
    }

    /// Returns when the first signal comes; can be waited for again.
    pub(super) async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// From here on the next signal ends the program at once.
    pub(super) fn second_kills(mut self) {
        tokio::spawn(async move {
            self.wait().await;
            std::process::exit(INTERRUPTED);
        });
    }
}
