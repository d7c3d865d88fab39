//! The lab of the incidents: failures that hide one another, told stage by stage as each is cured.

use serde_json::json;

use crate::{SERVER_PORT, incident::Incident};

const APPLICATION_PORT: u16 = 9000;

#[test]
fn each_cure_uncovers_the_next_failure_until_none_is_left() {
    let Some(mut lab) = Incident::provoke("lab") else {
        return;
    };
    let port = |port: u16| [("port", json!(port))];
    // The table is full: nothing gets further.
    let verdict = lab.verdict();
    verdict.first("conntrack-table-full");
    // Too few workers behind both queues.
    lab.cure();
    let verdict = lab.verdict_when("application-not-accepting");
    verdict.lacks("conntrack-table-full");
    verdict.hits_with("application-not-accepting", &port(APPLICATION_PORT));
    // Workers enough, but both queues are too short for bursts.
    lab.cure();
    let verdict = lab.verdict_when("accept-queue-overflow");
    verdict.lacks("application-not-accepting");
    verdict.hits_with("accept-queue-overflow", &port(SERVER_PORT));
    verdict.hits_with("accept-queue-overflow", &port(APPLICATION_PORT));
    // All that is admitted now needs a local port each; what took them stands behind.
    lab.cure();
    let verdict = lab.verdict_when("ephemeral-ports-exhausted");
    verdict.hits_with("ephemeral-ports-exhausted", &port(APPLICATION_PORT));
    verdict.has_behind("time-wait-buildup");
    lab.cure();
    lab.assert_quiet();
}
