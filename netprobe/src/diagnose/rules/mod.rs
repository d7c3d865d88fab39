//! The one list of rules, in the order in which they stop connections: what comes first hides what
//! comes later.

use super::Rule;

mod accept_queue_overflow;
mod application_not_accepting;
mod conntrack_table_full;
mod ephemeral_ports_exhausted;

/// Every rule.
pub static RULES: &[&Rule] = &[
    &conntrack_table_full::RULE,
    &application_not_accepting::RULE,
    &accept_queue_overflow::RULE,
    &ephemeral_ports_exhausted::RULE,
];
