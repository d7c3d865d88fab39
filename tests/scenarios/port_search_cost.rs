//! connect() that looks for a port for long, before it fails to find one.

use serde_json::json;

use crate::{SERVER, SERVER_PORT, incident::Incident};

const ID: &str = "port-search-cost";

#[test]
fn a_long_search_is_named_with_its_destination_and_a_wider_range_ends_it() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    verdict.lacks("ephemeral-ports-exhausted");
    let found = verdict.first(ID);
    found.hits(
        "destination",
        &[("address", json!(SERVER)), ("port", json!(SERVER_PORT))],
    );
    incident.cure();
    incident.assert_gone(ID);
}
