//! More neighbours than may be remembered.

use crate::incident::Incident;

const ID: &str = "neighbour-table-full";

#[test]
fn a_full_table_is_recognised_and_a_larger_one_helps() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    let found = verdict.first(ID);
    found.is_fixed_by("sysctl", "net.ipv4.neigh.default.gc_thresh3");
    incident.cure();
    incident.assert_gone(ID);
}
