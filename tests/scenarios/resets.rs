//! Resets by an application, not after a quiet time.

use crate::incident::Incident;

const ID: &str = "resets";

#[test]
fn resets_are_laid_to_the_server_that_sends_them() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    verdict.lacks("idle-reset");
    verdict.first(ID);
    incident.cure();
    incident.assert_gone(ID);
}
