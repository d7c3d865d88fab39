//! Closed connections that may not be finished in peace.

use crate::incident::Incident;

const ID: &str = "orphan-overflow";

#[test]
fn too_many_orphans_are_recognised_and_a_higher_limit_helps() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    let found = verdict.first(ID);
    found.is_fixed_by("sysctl", "net.ipv4.tcp_max_orphans");
    incident.cure();
    incident.assert_gone(ID);
}
