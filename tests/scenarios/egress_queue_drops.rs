//! Packets dropped by the queue in front of a slow link.

use serde_json::json;

use crate::incident::Incident;

const ID: &str = "egress-queue-drops";

#[test]
fn the_interface_with_the_full_queue_is_named() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    let found = verdict.first(ID);
    found.hits(
        "interface",
        &[
            ("netns", json!(incident.netns("server"))),
            ("name", json!("eth0")),
        ],
    );
    incident.cure();
    incident.assert_gone(ID);
}
