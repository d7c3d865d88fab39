//! Names of functions in processes, looked up by a process of its own.
//!
//! What a process has mapped is under its control: pipes and network drives behind its files, a
//! map of a million entries, debug information made to be slow. So a worker looks at it, which
//! may be killed at any time: [`client`] starts it, asks, and waits only so long ([`found`] is what it learns); [`worker`] is
//! its main loop, with limits of its own; [`background`] keeps asking it while sampling goes on. Between them goes text,
//! see [`protocol`]. [`processes`] are what ran, [`images`] the mapped files ([`paths`] leads to no file that [`mounts`] does not know to be local), [`naming`] finds names in them ([`debug_links`] leads to debug information elsewhere, [`demangle`] as the source has them, [`go_table`] in Go's own tables), and [`perf_map`] in
//! what a JIT compiler wrote down. [`unwind`] follows stacks; [`returns`] tells what can be a caller.

#[cfg(any(test, fuzzing))]
use std::io::Cursor;

#[cfg(any(test, fuzzing))]
use object::read::ReadCache;

pub mod background;
pub mod client;
mod debug_links;
mod demangle;
pub mod found;
mod go_table;
mod images;
mod mounts;
mod naming;
mod paths;
mod perf_map;
mod processes;
mod protocol;
mod returns;
mod segments;
mod table_store;
mod tables;
pub mod unwind;
pub mod worker;

pub use go_table::interrupts;
pub use protocol::{Missing, Names};

/// Everything here that reads what a process or the worker wrote.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_hostile(bytes: &[u8]) {
    let file = ReadCache::new(Cursor::new(bytes));
    let _refused = tables::Tables::parse(&file, bytes.len() as u64);
    for line in bytes.split(|byte| *byte == b'\n') {
        perf_map::parse(line);
        let line = String::from_utf8_lossy(line);
        images::parse(&line);
        protocol::Request::parse(&line);
        protocol::Answer::parse(&line);
    }
}
