//! SYNs dropped by a rule, not by conntrack and not on the way.

use serde_json::json;

use crate::{SERVER_PORT, incident::Incident, watcher::drawing};

const ID: &str = "firewall-drops";

#[test]
fn a_local_firewall_is_blamed_and_not_the_path() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    verdict.lacks("conntrack-table-full");
    let found = verdict.first(ID);
    found.hits("listener", &[("port", json!(SERVER_PORT))]);
    // Its flame graph shows the hook at which they were dropped.
    let drawing = drawing();
    for word in [ID, "nf_hook_slow", "ip_local_deliver"] {
        assert!(drawing.contains(word), "no {word} in {drawing}");
    }
    incident.cure();
    incident.assert_gone(ID);
}
