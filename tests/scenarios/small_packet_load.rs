//! A host that is bound by packets, not by bytes.

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use netprobe_tests::skip::skip;
use serde_json::json;

use crate::incident::Incident;

const ID: &str = "small-packet-load";
/// From here on it is one, as `netprobe explain` says.
const MANY: f64 = 100_000.0;
const SENDER: &str = "demo-telemetry";

/// Packets that the host of the sender has sent.
fn sent(incident: &Incident) -> u64 {
    let path = format!("/proc/{}/net/dev", incident.pid(SENDER));
    let text = fs::read_to_string(path).expect("read the counters of its interfaces");
    let mut lines = text.lines().map(str::trim);
    let counters = lines.find_map(|line| line.strip_prefix("eth0:"));
    let packets = counters.and_then(|line| line.split_whitespace().nth(9)?.parse().ok());
    packets.expect("the tenth number of eth0 is of packets sent")
}

/// Whether this machine, which may be an emulated or a busy one, sends as many as it is asked to.
fn is_fast(incident: &Incident) -> bool {
    let (begun, before) = (Instant::now(), sent(incident));
    sleep(Duration::from_secs(1));
    let packets = u32::try_from(sent(incident) - before).expect("fewer than four billion");
    let rate = f64::from(packets) / begun.elapsed().as_secs_f64();
    if rate < MANY {
        skip(&format!(
            "this machine has time for {rate:.0} packets per second only"
        ));
    }
    rate >= MANY
}

#[test]
fn many_small_packets_are_named_and_larger_ones_help() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    if !is_fast(&incident) {
        return;
    }
    let verdict = incident.verdict_with(ID);
    let found = verdict.finding(ID).expect("waited for it");
    let host = json!(incident.netns("client"));
    let interface = [("netns", host), ("name", json!("eth0"))];
    found
        .hits("interface", &interface)
        .is_fixed_by("application", "keepalive");
    incident.cure();
    incident.assert_gone(ID);
}
