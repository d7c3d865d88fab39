//! A table that is full, not a firewall that drops.

use crate::incident::Incident;

const ID: &str = "conntrack-table-full";

#[test]
fn a_full_table_is_blamed_and_not_the_firewall_and_a_larger_one_helps() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    verdict.lacks("firewall-drops");
    let found = verdict.first(ID);
    found.is_fixed_by("sysctl", "net.netfilter.nf_conntrack_max");
    incident.cure();
    incident.assert_gone(ID);
}
