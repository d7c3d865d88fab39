//! netprobe: says why a Linux server's TCP is failing.

pub mod decode;
pub mod kernel;
pub mod probes;
pub mod report;
