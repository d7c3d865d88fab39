//! A table that remembers what is over.

use crate::incident::Incident;

const ID: &str = "conntrack-stale-entries";

#[test]
fn entries_without_sockets_are_noticed_and_a_shorter_timeout_helps() {
    let Some(incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    let found = verdict.first(ID);
    found.is_fixed_by(
        "sysctl",
        "net.netfilter.nf_conntrack_tcp_timeout_established",
    );
}
