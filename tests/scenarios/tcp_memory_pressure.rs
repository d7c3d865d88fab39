//! Data that nobody reads.

use crate::incident::Incident;

const ID: &str = "tcp-memory-pressure";

#[test]
fn a_lack_of_memory_is_recognised_and_more_of_it_helps() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    let found = verdict.first(ID);
    found.is_fixed_by("sysctl", "net.ipv4.tcp_mem");
    incident.cure();
    incident.assert_gone(ID);
}
