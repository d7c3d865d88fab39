//! Clients that believe they are connected when the listener has dropped their last ACK.

use crate::incident::Incident;

const ID: &str = "half-open-established";

#[test]
fn clients_that_only_believe_they_are_connected_are_explained_by_the_queue() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict_with(ID);
    // On a slow machine the server itself is what keeps the queue full.
    let queues = [
        "accept-queue-overflow",
        "application-not-accepting",
        "syn-backlog-full",
    ];
    verdict.first_or_behind(ID, &queues);
    incident.cure();
    incident.assert_gone(ID);
}
