//! Every incident with real traffic: it is recognised, laid at the right door, and gone when its fix
//! is applied. One file each, called as the finding.
//!
//! `netprobe demo` provokes it, `netprobe diagnose --interval` judges it, each as a user would call it. Needs
//! root. `NETPROBE_BIN` names the program (default: the workspace's, built for release). Run with
//! `--test-threads=1`: the load of one incident would be a symptom in another.

mod accept_queue_overflow;
mod application_not_accepting;
mod conntrack_stale_entries;
mod conntrack_table_full;
mod egress_queue_drops;
mod ephemeral_ports_exhausted;
mod fd_exhaustion;
mod firewall_drops;
mod half_open_established;
mod healthy;
mod idle;
mod idle_reset;
mod incident;
mod lab;
mod long_held_connections;
mod neighbour_table_full;
mod neighbours;
mod orphan_overflow;
mod path_loss;
mod port_search_cost;
mod receive_path_drops;
mod resets;
mod route_cache_full;
mod short_lived_connections;
mod slow_start_after_idle;
mod small_packet_load;
mod syn_backlog_full;
mod syn_retransmits;
mod tcp_memory_pressure;
mod time_wait_buildup;
mod time_wait_overflow;
mod verdict;
mod watcher;
mod web_server;

/// Where the servers of all demos listen.
const SERVER_PORT: u16 = 8080;
/// Their address.
const SERVER: &str = "10.77.1.2";
