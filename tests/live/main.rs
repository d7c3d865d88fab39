//! Real traffic in private network namespaces, and totals that equal the kernel's own counters.
//!
//! Needs root. `NETPROBE_BIN` names the program (default: the workspace's, built for release). Run
//! with `--test-threads=1`: the programs of two tests at once would slow each other down.

mod accepts;
mod accounting;
mod bcc;
mod bcc_beside;
mod burner;
mod cgroup_filters;
mod connect_view;
mod connects;
mod conntrack;
mod count_by;
mod diagnose;
mod drops;
mod environments;
mod filters;
mod flame;
mod flame_perf;
mod flame_readers;
mod flame_tasks;
mod flame_unwind;
mod lifetimes;
mod listeners;
mod owners;
mod pcap;
mod resets;
mod retransmits;
mod states;
mod time_wait;
mod tracepoints;
