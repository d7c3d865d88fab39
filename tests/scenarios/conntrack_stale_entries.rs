//! A table that remembers what is over.

use crate::incident::Incident;

const ID: &str = "conntrack-stale-entries";

#[test]
fn entries_without_sockets_are_noticed_and_forgetting_them_sooner_helps() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    let found = verdict.first(ID);
    found.is_fixed_by(
        "sysctl",
        "net.netfilter.nf_conntrack_tcp_timeout_established",
    );
    // The timeout alone helps nobody: what is in the table keeps the one that it was made with.
    incident.set_what_helps(found, "server");
    let verdict = incident.verdict();
    verdict.first(ID).is_fixed_by("command", "");
    incident.cure();
    incident.assert_gone(ID);
}
