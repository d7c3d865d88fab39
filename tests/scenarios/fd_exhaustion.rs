//! A server that cannot accept because it may open no more files.

use serde_json::json;

use crate::incident::Incident;

const ID: &str = "fd-exhaustion";

#[test]
fn the_process_without_descriptors_is_named_and_a_higher_limit_helps() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    let found = verdict.first(ID);
    found.hits(
        "process",
        &[
            ("pid", json!(incident.pid("demo-server"))),
            ("comm", json!("demo-server")),
        ],
    );
    incident.cure();
    incident.assert_gone(ID);
}
