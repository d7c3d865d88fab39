//! One file per kind of event: the programs that see it, under the names that
//! `netprobe/src/probes` attaches.

pub(crate) mod accepts;
pub(crate) mod arguments;
pub(crate) mod connects;
pub(crate) mod conntrack;
pub(crate) mod cpu;
pub(crate) mod drops;
pub(crate) mod lifetimes;
pub(crate) mod listeners;
pub(crate) mod names;
pub(crate) mod offcpu;
pub(crate) mod resets;
pub(crate) mod retransmits;
pub(crate) mod states;
pub(crate) mod time_wait;
