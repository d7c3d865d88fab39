//! Workers held by clients that say nothing.

use crate::incident::Incident;

const ID: &str = "long-held-connections";

#[test]
fn clients_that_hold_workers_are_noticed() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    verdict.first_or_behind(ID, &["application-not-accepting"]);
    incident.cure();
    incident.assert_gone(ID);
}
