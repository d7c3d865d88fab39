//! Clients that believe they are connected when the listener has dropped their last ACK.

use crate::incident::Incident;

const ID: &str = "half-open-established";

#[test]
fn clients_that_only_believe_they_are_connected_are_explained_by_the_queue() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict_with(ID);
    verdict.first_or_behind(ID, &["accept-queue-overflow", "syn-backlog-full"]);
    incident.cure();
    incident.assert_gone(ID);
}
