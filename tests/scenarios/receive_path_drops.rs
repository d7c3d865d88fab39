//! Packets lost before TCP sees them.

use crate::incident::Incident;

const ID: &str = "receive-path-drops";

#[test]
fn a_full_receive_queue_is_blamed_and_not_the_path() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    let found = verdict.first(ID);
    found.is_fixed_by("sysctl", "net.core.netdev_max_backlog");
    incident.cure();
    incident.assert_gone(ID);
}
