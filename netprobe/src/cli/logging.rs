//! What netprobe says about itself, on stderr, one line each.

use std::{io::Write, panic};

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::Global;

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries are of interest only to who asks for more: our errors tell the rest.
        let is_ours = metadata.target().starts_with("netprobe");
        let of_others = match log::max_level() {
            LevelFilter::Trace => Level::Trace,
            LevelFilter::Debug => Level::Warn,
            _ => Level::Error,
        };
        metadata.level() <= log::max_level() && (is_ours || metadata.level() <= of_others)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // Nobody is left to tell when stderr is closed.
            let _closed = writeln!(anstream::stderr(), "netprobe: {}", record.args());
        }
    }

    fn flush(&self) {}
}

/// Sends errors to stderr, of a command line that is not understood.
pub(super) fn init_for_errors() {
    set(LevelFilter::Error);
}

/// Sends log lines to stderr: progress by default, errors only with `--quiet`.
pub(super) fn init(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => LevelFilter::Error,
        (false, 0) => LevelFilter::Info,
        (false, 1) => LevelFilter::Debug,
        (false, _) => LevelFilter::Trace,
    };
    set(level);
}

/// A mistake of ours that ends the program is told in one line, as everything else.
fn tell_panics() {
    panic::set_hook(Box::new(|info| {
        let what = info.payload_as_str().unwrap_or("no more is known");
        let place = info.location().map(ToString::to_string);
        let place = place.unwrap_or_default();
        let what = what.replace('\n', " ");
        log::error!("this is a mistake of netprobe, please report it: {what} ({place})");
    }));
}

fn set(level: LevelFilter) {
    tell_panics();
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(level);
    }
}
