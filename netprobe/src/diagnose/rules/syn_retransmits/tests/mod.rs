//! Windows in which SYNs or SYN-ACKs are sent again.

mod destinations;
mod here;
mod listeners;

use crate::{
    diagnose::{fixtures::quiet, window::Window},
    observe::interfaces::Interface,
    probes::PROBES,
    report::{
        Row, Total, Value,
        diagnosis::{Finding, Severity},
    },
};

/// A client that sends 12 SYNs again, and `established` of its 20 connects succeed.
fn connecting(established: usize) -> Window {
    let mut window = quiet();
    window.grow(&[("TcpExt.TCPSynRetrans", 12), ("Tcp.ActiveOpens", 20)]);
    window.total("retransmits", 12, &[("cause", Value::Word("syn"))]);
    let end = [
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(5432)),
    ];
    let with = |name, word| [end.to_vec(), vec![(name, Value::Word(word))]].concat();
    window.event("retransmits", 12, &with("cause", "syn"));
    window.event("connects", established, &with("outcome", "established"));
    window.event("connects", 20 - established, &with("outcome", "aborted"));
    window
}

/// `times` connects from 10.0.0.1 to an end, that end in such a way after so many milliseconds.
fn connects(
    window: &mut Window,
    times: usize,
    to: &str,
    (name, word): (&'static str, &'static str),
    waited_ms: u64,
) {
    let end: std::net::SocketAddr = to.parse().unwrap();
    let connect = [
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(41_000)),
        ("daddr", Value::Ip(end.ip())),
        ("dport", Value::Unsigned(end.port().into())),
        ("latency_ns", Value::Unsigned(waited_ms * 1_000_000)),
        ("comm", Value::Word("app")),
        (name, Value::Word(word)),
    ];
    window.event("connects", times, &connect);
}

/// 10.0.0.1 sends SYNs again to an end.
fn sent_again(window: &mut Window, times: usize, to: &str) {
    let end: std::net::SocketAddr = to.parse().unwrap();
    let syn = [
        ("cause", Value::Word("syn")),
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(41_000)),
        ("daddr", Value::Ip(end.ip())),
        ("dport", Value::Unsigned(end.port().into())),
    ];
    window.event("retransmits", times, &syn);
    let times = times as u64;
    window.total("retransmits", times, &[("cause", Value::Word("syn"))]);
    window.grow(&[("TcpExt.TCPSynRetrans", times.cast_signed())]);
}

/// 10.0.0.1's SYNs to 10.0.0.2:5432 are dropped for a reason.
fn dropped(window: &mut Window, times: usize, reason: &'static str) {
    dropped_as(window, times, reason, &[]);
}

/// As [`dropped`], with more that is known of each.
fn dropped_as(
    window: &mut Window,
    times: usize,
    reason: &'static str,
    more: &[(&'static str, Value)],
) {
    let syn = [
        ("reason", Value::Word(reason)),
        ("flags", Value::TcpFlags(2)),
        ("iface", Value::Word("eth1")),
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(41_000)),
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(5432)),
    ];
    window.event("drops", times, &[&syn, more].concat());
    window.total("drops", times as u64, &[("reason", Value::Word(reason))]);
}

/// What is said of a client whose SYNs are dropped for a reason.
fn silent(reason: &'static str) -> Finding {
    let mut window = quiet();
    sent_again(&mut window, 12, "10.0.0.2:5432");
    dropped(&mut window, 12, reason);
    window.findings()[0].clone()
}

/// A second namespace, with 10.0.0.2 and a listener at 8000, that drops `dropped` SYNs and has `unrouted` packets without a
/// route, while it completes so many handshakes.
fn routeless(window: &mut Window, [dropped, unrouted, completed]: [u64; 3]) {
    let mut server = quiet();
    server.listen(8000, 128, &[0; 10]);
    server.sockets().listeners[0].address = [10, 0, 0, 2].into();
    server.grow(&[
        ("TcpExt.ListenDrops", dropped.cast_signed()),
        ("Ip.OutNoRoutes", unrouted.cast_signed()),
        ("Tcp.PassiveOpens", completed.cast_signed()),
    ]);
    let mut netns = server.namespaces.remove(0);
    netns.inode = 77;
    netns.name = Some("blue".to_owned());
    netns.is_initial = false;
    netns.after.addresses = [[10, 0, 0, 2].into()].into();
    window.namespaces.push(netns);
}
