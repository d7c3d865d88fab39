//! Nothing is wrong, and nothing is said to be.

use crate::incident::Incident;

#[test]
fn load_within_limits_is_no_incident() {
    let Some(incident) = Incident::provoke("healthy") else {
        return;
    };
    incident.verdict().is_quiet();
}
