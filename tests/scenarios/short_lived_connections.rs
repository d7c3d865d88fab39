//! A connection for each request.

use crate::incident::Incident;

const ID: &str = "short-lived-connections";

#[test]
fn a_connection_for_each_request_is_noticed_and_keep_alive_ends_it() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    verdict.first(ID);
    incident.cure();
    incident.assert_gone(ID);
}
