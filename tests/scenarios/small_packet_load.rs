//! A host that is bound by packets, not by bytes.

use std::{fs, time::Instant};

use netprobe_tests::skip::skip;
use serde_json::json;

use crate::{incident::Incident, verdict::Verdict};

const ID: &str = "small-packet-load";
/// From here on it is one, as `netprobe explain` says.
const MANY: f64 = 100_000.0;
/// As many on average are enough at every moment.
const PLENTY: f64 = 1.2 * MANY;
/// It may be busy for a moment.
const TIMES: usize = 4;
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

/// Its finding. None where this machine, which may be an emulated or a busy one, does not send as many as it is asked to
/// while netprobe looks.
fn found(incident: &Incident) -> Option<Verdict> {
    let mut fastest = 0.0_f64;
    for _ in 0..TIMES {
        let (begun, before) = (Instant::now(), sent(incident));
        let verdict = incident.verdict();
        let packets = u32::try_from(sent(incident) - before).expect("fewer than four billion");
        let rate = f64::from(packets) / begun.elapsed().as_secs_f64();
        if verdict.finding(ID).is_some() {
            return Some(verdict);
        }
        assert!(
            rate < PLENTY,
            "{rate:.0} packets/s, but {}",
            verdict.story()
        );
        fastest = fastest.max(rate);
    }
    skip(&format!(
        "this machine has time for {fastest:.0} packets per second only"
    ));
    None
}

#[test]
fn many_small_packets_are_named_and_larger_ones_help() {
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let Some(verdict) = found(&incident) else {
        return;
    };
    let found = verdict.finding(ID).expect("looked for it");
    let host = json!(incident.netns("client"));
    let interface = [("netns", host), ("name", json!("eth0"))];
    found
        .hits("interface", &interface)
        .is_fixed_by("application", "keepalive");
    incident.cure();
    incident.assert_gone(ID);
}
