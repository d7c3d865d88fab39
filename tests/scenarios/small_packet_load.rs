//! A host that is bound by packets, not by bytes.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use netprobe_tests::skip::skip;
use serde_json::json;

use crate::incident::Incident;

const ID: &str = "small-packet-load";
const SAMPLE: u32 = 2_000;
/// Where a packet takes longer, a hundred thousand of them per second leave no time for anything else.
const AFFORDABLE: Duration = Duration::from_micros(4);

/// Whether this machine, which may be an emulated one, sends packets fast enough.
fn is_fast() -> bool {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind a socket");
    let to = socket.local_addr().expect("its address");
    let begun = Instant::now();
    for _ in 0..SAMPLE {
        socket.send_to(&[0; 16], to).expect("send a datagram");
    }
    let each = begun.elapsed() / SAMPLE;
    if each > AFFORDABLE {
        skip(&format!("100,000 packets per second are too many where one takes {each:?}"));
    }
    each <= AFFORDABLE
}

#[test]
fn many_small_packets_are_named_and_larger_ones_help() {
    if !is_fast() {
        return;
    }
    let Some(mut incident) = Incident::provoke(ID) else {
        return;
    };
    let verdict = incident.verdict_with(ID);
    let found = verdict.finding(ID).expect("waited for it");
    for host in ["client", "server"] {
        found.hits(
            "interface",
            &[("netns", json!(incident.netns(host))), ("name", json!("eth0"))],
        );
    }
    found.is_fixed_by("application", "keepalive");
    incident.cure();
    incident.assert_gone(ID);
}
