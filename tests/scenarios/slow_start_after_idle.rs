//! Bursts that each begin slowly.

use crate::incident::Incident;

const ID: &str = "slow-start-after-idle";

#[test]
fn bursts_that_begin_slowly_are_noticed_and_the_sysctl_helps() {
    let Some(incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict();
    let found = verdict.finding(ID).expect("it is found");
    found.is_fixed_by("sysctl", "net.ipv4.tcp_slow_start_after_idle");
    incident.set_what_helps(found, "server");
    incident.assert_gone(ID);
}
