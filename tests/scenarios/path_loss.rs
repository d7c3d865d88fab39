//! Packets lost on the way, not at an end.

use crate::incident::Incident;

const ID: &str = "path-loss";

#[test]
fn loss_is_measured_and_laid_to_the_path() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    verdict.first_or_behind(ID, &["egress-queue-drops"]);
    incident.cure();
    incident.assert_gone(ID);
}
