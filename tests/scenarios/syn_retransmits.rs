//! A destination that answers nothing, and nobody on this machine who dropped anything.

use serde_json::json;

use crate::incident::Incident;

const ID: &str = "syn-retransmits";

#[test]
fn a_silent_destination_is_named() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    let found = verdict.first(ID);
    found.hits("destination", &[("address", json!("10.78.0.9"))]);
    incident.cure();
    incident.assert_gone(ID);
}
