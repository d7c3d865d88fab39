//! A queue that is too short, not an application that is too slow.

use serde_json::json;

use crate::{SERVER_PORT, incident::Incident};

const ID: &str = "accept-queue-overflow";

#[test]
fn a_short_queue_is_named_with_its_listener_and_a_longer_one_helps() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    verdict.lacks("application-not-accepting");
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
