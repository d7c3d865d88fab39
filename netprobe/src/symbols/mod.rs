//! Names of functions in processes, looked up by a process of its own.
//!
//! What a process has mapped is under its control: pipes and network drives behind its files, a
//! map of a million entries, debug information made to be slow. So a worker looks at it, which
//! may be killed at any time: [`client`] starts it, asks, and waits only so long; [`worker`] is
//! its main loop, with limits of its own; [`background`] keeps asking it while sampling goes on. Between them goes text, see [`protocol`]. [`images`]
//! are the mapped files, [`naming`] finds names in them, and [`perf_map`] in what a JIT compiler
//! wrote down.

pub mod background;
pub mod client;
mod images;
mod naming;
mod perf_map;
mod protocol;
mod table_store;
mod tables;
pub mod unwind;
pub mod worker;

pub use protocol::{Missing, Names};
