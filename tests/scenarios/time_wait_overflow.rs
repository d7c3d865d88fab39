//! Connections that end without TIME_WAIT because there may be no more of them.

use crate::incident::Incident;

const ID: &str = "time-wait-overflow";

#[test]
fn too_few_buckets_are_named_and_more_of_them_help() {
    let Some(incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    let found = verdict.first(ID);
    found.is_fixed_by("sysctl", "net.ipv4.tcp_max_tw_buckets");
    incident.set_what_helps(found, "client");
    incident.assert_gone(ID);
}
