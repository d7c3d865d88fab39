//! Every incident that can be reproduced: one file each, and one line in [`SCENARIOS`].

use std::net::SocketAddrV4;

use super::{
    Scenario,
    network::{Host, SERVER},
    stage::Process,
    workload::Workload,
};

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
mod idle_reset;
mod lab;
mod long_held_connections;
mod neighbour_table_full;
mod orphan_overflow;
mod path_loss;
mod port_search_cost;
mod receive_path_drops;
mod resets;
mod short_lived_connections;
mod slow_start_after_idle;
mod small_packet_load;
mod syn_backlog_full;
mod syn_retransmits;
mod tcp_memory_pressure;
mod time_wait_buildup;
mod time_wait_overflow;

/// All of them, worst first.
pub const SCENARIOS: &[Scenario] = &[
    neighbour_table_full::SCENARIO,
    conntrack_table_full::SCENARIO,
    accept_queue_overflow::SCENARIO,
    application_not_accepting::SCENARIO,
    syn_backlog_full::SCENARIO,
    half_open_established::SCENARIO,
    ephemeral_ports_exhausted::SCENARIO,
    port_search_cost::SCENARIO,
    time_wait_buildup::SCENARIO,
    time_wait_overflow::SCENARIO,
    syn_retransmits::SCENARIO,
    receive_path_drops::SCENARIO,
    path_loss::SCENARIO,
    egress_queue_drops::SCENARIO,
    short_lived_connections::SCENARIO,
    idle_reset::SCENARIO,
    resets::SCENARIO,
    fd_exhaustion::SCENARIO,
    tcp_memory_pressure::SCENARIO,
    orphan_overflow::SCENARIO,
    long_held_connections::SCENARIO,
    conntrack_stale_entries::SCENARIO,
    slow_start_after_idle::SCENARIO,
    small_packet_load::SCENARIO,
    firewall_drops::SCENARIO,
    lab::SCENARIO,
    healthy::SCENARIO,
];

/// Where the servers of all demos listen.
const PORT: u16 = 8080;
const TARGET: SocketAddrV4 = SocketAddrV4::new(SERVER, PORT);

const fn process(host: Host, name: &'static str, workload: Workload) -> Process {
    Process {
        host,
        name,
        workload,
    }
}
