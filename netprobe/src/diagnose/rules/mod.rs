//! The one list of rules, in the order in which they stop connections: what comes first hides what
//! comes later.

use super::Rule;

mod accept_queue_overflow;
mod application_not_accepting;
mod conntrack_stale_entries;
mod conntrack_table_full;
mod egress_queue_drops;
mod ephemeral_ports_exhausted;
mod fd_exhaustion;
mod firewall_drops;
mod half_open_established;
mod idle_reset;
mod long_held_connections;
mod neighbour_table_full;
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

/// Every rule.
pub static RULES: &[&Rule] = &[
    &neighbour_table_full::RULE,
    &route_cache_full::RULE,
    &conntrack_table_full::RULE,
    &conntrack_stale_entries::RULE,
    &firewall_drops::RULE,
    &receive_path_drops::RULE,
    &fd_exhaustion::RULE,
    &application_not_accepting::RULE,
    &accept_queue_overflow::RULE,
    &syn_backlog_full::RULE,
    &half_open_established::RULE,
    &ephemeral_ports_exhausted::RULE,
    &port_search_cost::RULE,
    &time_wait_overflow::RULE,
    &time_wait_buildup::RULE,
    &tcp_memory_pressure::RULE,
    &orphan_overflow::RULE,
    &egress_queue_drops::RULE,
    &syn_retransmits::RULE,
    &path_loss::RULE,
    &idle_reset::RULE,
    &resets::RULE,
    &long_held_connections::RULE,
    &short_lived_connections::RULE,
    &small_packet_load::RULE,
    &slow_start_after_idle::RULE,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_everything_is_explained() {
        for (index, rule) in RULES.iter().enumerate() {
            let twice = RULES[..index].iter().any(|other| other.id == rule.id);
            assert!(!twice, "{} twice", rule.id);
            let explained = rule.explained();
            for part in [
                explained.title,
                explained.symptom,
                explained.cause,
                explained.recognised,
            ] {
                assert!(!part.is_empty(), "{}", rule.id);
            }
            assert!(!explained.fixes.is_empty(), "{}", rule.id);
        }
        assert_eq!(RULES.len(), 26);
    }
}
