//! What netprobe says about itself, on stderr, one line each.

use std::io::Write;

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

fn set(level: LevelFilter) {
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(level);
    }
}
