//! Resets after a quiet time, not resets by an application.

use serde_json::json;

use crate::{SERVER, SERVER_PORT, incident::Incident};

const ID: &str = "idle-reset";

#[test]
fn a_forgetful_nat_is_recognised_by_the_quiet_time_and_keepalive_helps() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    let found = verdict.first(ID);
    found.hits(
        "destination",
        &[("address", json!(SERVER)), ("port", json!(SERVER_PORT))],
    );
    incident.cure();
    incident.assert_gone(ID);
}
