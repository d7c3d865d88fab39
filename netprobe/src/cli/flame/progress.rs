//! Waiting for the end of the window, with a line on the terminal that says how far it is.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use super::super::{Global, signals::Stop};

/// How often the line changes.
const LINE: Duration = Duration::from_millis(500);

/// A window of time.
pub(super) struct Window {
    started: Instant,
    duration: Duration,
    shows: bool,
    next_line: Instant,
}

impl Window {
    /// Begins now.
    pub(super) fn begin(global: &Global, duration: Duration) -> Self {
        Self {
            started: Instant::now(),
            duration,
            shows: io::stderr().is_terminal() && !global.quiet,
            next_line: Instant::now(),
        }
    }

    /// How long it has been.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits until the end or a signal, calling `look` each `tick`; what it returns is shown.
    pub(super) async fn wait(
        &mut self,
        stop: &mut Stop,
        tick: Duration,
        mut look: impl FnMut(bool) -> String,
    ) {
        loop {
            let left = self.duration.saturating_sub(self.elapsed());
            if left.is_zero() {
                break;
            }
            tokio::select! {
                () = stop.wait() => break,
                () = tokio::time::sleep(left.min(tick)) => {}
            }
            let is_due = self.shows && Instant::now() >= self.next_line;
            let text = look(is_due);
            if is_due {
                self.next_line = Instant::now() + LINE;
                self.show(&text);
            }
        }
        if self.shows {
            // Progress is for eyes only; nothing depends on it.
            let _closed = write!(io::stderr(), "\r\x1b[K");
        }
    }

    fn show(&self, text: &str) {
        let left = self.duration.saturating_sub(self.elapsed()).as_secs_f64();
        let _closed = write!(
            io::stderr(),
            "\r{left:.0} s left{text}; Ctrl-C draws at once \x1b[K"
        );
    }
}
