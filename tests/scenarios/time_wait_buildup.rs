//! Ports held by TIME_WAIT, before they are exhausted.

use serde_json::json;

use crate::{SERVER, SERVER_PORT, incident::Incident};

const ID: &str = "time-wait-buildup";

#[test]
fn the_side_that_closes_first_is_named() {
    let Some(incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    let found = verdict.first_or_behind(ID, &["port-search-cost"]);
    found.hits(
        "destination",
        &[("address", json!(SERVER)), ("port", json!(SERVER_PORT))],
    );
}
