//! netprobe: says why a Linux server's TCP is failing.

pub mod aggregate;
pub mod capture;
pub mod cli;
pub mod decode;
pub mod demo;
pub mod diagnose;
pub mod filter;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod kernel;
pub mod observe;
pub mod probes;
pub mod render;
pub mod report;
pub mod symbols;
