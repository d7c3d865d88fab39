//! A connection for each request.

use crate::incident::Incident;

const ID: &str = "short-lived-connections";

#[test]
fn a_connection_for_each_request_is_noticed_and_keep_alive_ends_it() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    // As it is, nothing is wrong: hundreds of connections a second within all limits.
    verdict.is_quiet();
    verdict.first(ID);
    incident.cure();
    incident.assert_gone(ID);
    incident.verdict().is_quiet();
}
