//! A flood of SYNs, not a crowd of clients.

use serde_json::json;

use crate::{SERVER_PORT, incident::Incident};

const ID: &str = "syn-backlog-full";

#[test]
fn a_flood_is_named_with_the_listener_and_cookies_let_clients_through() {
    let Some(incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    let found = verdict.first(ID);
    found
        .hits(
            "listener",
            &[
                ("netns", json!(incident.netns("server"))),
                ("port", json!(SERVER_PORT)),
            ],
        )
        .is_fixed_by("sysctl", "net.ipv4.tcp_syncookies");
    incident.set_what_helps(found, "server");
    incident.assert_not_critical(ID);
}
