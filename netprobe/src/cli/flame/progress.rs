//! Waiting for the end of the window, with a line on the terminal that says how far it is.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use rustix::termios::tcgetwinsize;

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
        let line = format!("{left:.0} s left{text}; Ctrl-C draws at once ");
        let size = tcgetwinsize(io::stderr()).ok();
        let line = fitting(&line, size.map_or(0, |size| size.ws_col.into()));
        let _closed = write!(io::stderr(), "\r{line}\x1b[K");
    }
}

/// So much of a line that it leaves a column of a terminal free, where it would begin another row; all where it is not known
/// how many columns there are, 0.
fn fitting(line: &str, columns: usize) -> &str {
    match columns.checked_sub(1) {
        Some(room) => &line[..line.floor_char_boundary(room)],
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_stays_in_its_row() {
        let line = "3 s left, 19 collected; Ctrl-C draws at once ";
        assert_eq!(fitting(line, 40), &line[..39]);
        assert_eq!(fitting(line, 1), "");
        for columns in [0, line.len() + 1, 500] {
            assert_eq!(fitting(line, columns), line);
        }
    }
}
