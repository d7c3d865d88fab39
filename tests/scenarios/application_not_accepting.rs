//! An application that is too slow, not a queue that is too short.

use serde_json::json;

use crate::{SERVER_PORT, incident::Incident};

const ID: &str = "application-not-accepting";

#[test]
fn busy_workers_are_named_and_more_of_them_help() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    verdict.lacks("accept-queue-overflow");
    let found = verdict.first(ID);
    found
        .hits(
            "listener",
            &[
                ("netns", json!(incident.netns("server"))),
                ("port", json!(SERVER_PORT)),
                ("pid", json!(incident.pid("demo-server"))),
                ("comm", json!("demo-server")),
            ],
        )
        .is_fixed_by("application", "");
    incident.cure();
    incident.assert_gone(ID);
}
