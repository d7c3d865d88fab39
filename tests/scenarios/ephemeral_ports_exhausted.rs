//! No local port left towards one destination: not a refused connection.

use serde_json::json;

use crate::{SERVER, SERVER_PORT, incident::Incident};

const ID: &str = "ephemeral-ports-exhausted";

#[test]
fn exhausted_ports_are_named_with_their_destination_and_a_wider_range_helps() {
    let Some(incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    let found = verdict.first(ID);
    found
        .hits(
            "destination",
            &[("address", json!(SERVER)), ("port", json!(SERVER_PORT))],
        )
        .is_fixed_by("sysctl", "net.ipv4.ip_local_port_range");
    incident.set_what_helps(found, "client");
    incident.assert_gone(ID);
}
