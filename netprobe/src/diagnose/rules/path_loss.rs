//! Segments are lost between this machine and a peer.

use std::{collections::BTreeMap, net::IpAddr};

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, host, somewhere},
    in_each,
    window::{Netns, Window, ratio},
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

pub(super) static RULE: Rule = Rule {
    id: "path-loss",
    title: "the path loses packets",
    check,
    explanation: Explanation {
        symptom: "Throughput sags, retransmits grow, round-trip times swing; this machine has CPU and queues to spare.",
        cause: "A segment whose acknowledgement does not come is sent again: by tcp_fastretrans_alert() when later segments \
                were acknowledged (fast), by a tail loss probe, or by tcp_retransmit_timer() when nothing comes at all \
                (RTO), which also begins anew with a window of one.",
        recognised: "Over one per cent of segments were sent again, and no queue or firewall of this machine dropped them: \
                     those findings would come first. A round-trip time far above its own minimum says that a queue on the \
                     path is full (bufferbloat); without that it is clean loss.",
        fixes: &[
            (
                "look at the path: mtr, the interface counters of the devices on it",
                "none",
            ),
            (
                "a queue on the path: BBR (net.ipv4.tcp_congestion_control) fills it less",
                "other flows on that path may get less",
            ),
        ],
    },
};

const LEAST: u64 = 10;
const MUCH: f64 = 0.01;
/// A round-trip time so many times its minimum is spent in a queue.
const BLOATED: f64 = 3.0;
/// A minimum below this is within a machine, where scheduling alone makes it swing.
const LOCAL_US: u32 = 1000;

/// Retransmissions to one address.
#[derive(Default)]
struct Peer {
    total: u32,
    fast: u32,
    srtt_us: u64,
}

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let again = netns.grown("Tcp.RetransSegs")?;
        let handshakes = netns.grown("TcpExt.TCPSynRetrans")?;
        let sent = netns.grown("Tcp.OutSegs")?;
        let lost = again.saturating_sub(handshakes);
        // OutSegs leaves out what was sent again.
        if lost < LEAST || ratio(lost, sent + again) < MUCH {
            return Ok(Vec::new());
        }
        Ok(vec![describe(window, netns, lost, sent + again)])
    })
}

fn peers(window: &Window, netns: &Netns) -> Vec<((IpAddr, u16), Peer)> {
    let mut peers = BTreeMap::<(IpAddr, u16), Peer>::new();
    for event in window.events.within("retransmits", netns.inode) {
        let is_data = ["rto", "fast", "tlp", "other"]
            .iter()
            .any(|cause| event.is("cause", cause));
        let end = event.ip("daddr").zip(event.small::<u16>("dport"));
        let Some(end) = end.filter(|_| is_data) else {
            continue;
        };
        let peer = peers.entry(end).or_default();
        peer.total += 1;
        peer.fast += u32::from(event.is("cause", "fast"));
        peer.srtt_us = peer.srtt_us.max(event.number("srtt_us").unwrap_or(0));
    }
    let mut peers: Vec<_> = peers.into_iter().collect();
    peers.sort_by_key(|(_, peer)| std::cmp::Reverse(peer.total));
    peers
}

fn describe(window: &Window, netns: &Netns, lost: u64, sent: u64) -> Finding {
    let percent = ratio(lost, sent) * 100.0;
    let inode = netns.inode.to_string();
    let count = |cause| {
        window
            .events
            .count("retransmits", &[("cause", cause), ("netns", &inode)])
    };
    let [rto, fast, tlp] = ["rto", "fast", "tlp"].map(count);
    let peers = peers(window, netns);
    let worst = peers.first();
    let to = worst.map_or(String::new(), |((address, _), _)| format!(" to {address}"));
    let kind = if fast > 0 {
        "acknowledgements still come, so the path lives but drops"
    } else {
        "no later acknowledgements come: the peer or the path is gone, or drops whole trains"
    };
    let found = finding(
        RULE.id,
        Severity::Warning,
        if fast > 0 { Confidence::High } else { Confidence::Medium },
        format!(
            "the path{to}{} loses packets: {lost} segments ({percent:.1} %) were sent again in {:.0} s; {kind}",
            netns.place(),
            window.seconds
        ),
    )
    .measured(
        format!("{lost} of {sent} segments sent again, {percent:.1} %"),
        percent,
        "percent",
        "Tcp.RetransSegs, Tcp.OutSegs",
    )
    .counted(
        format!("{fast} fast, {rto} after a timeout, {tlp} tail loss probes"),
        rto,
        "retransmits",
        "tcp_retransmit_skb",
    );
    let found = match worst {
        Some(((address, _), peer)) => round_trips(found, netns, *address, peer),
        None => found.hits([somewhere(netns)]),
    };
    let hits = peers.iter().take(4).map(|((address, port), _)| {
        let mut affected = host("destination", *address, netns.inode);
        affected.port = Some(*port);
        affected
    });
    let hits: Vec<_> = hits.collect();
    found
        .hits(hits)
        .command(
            "look at the path: mtr, and the counters of the devices on it; no setting of this machine loses these packets",
            "none",
        )
}

/// Whether the loss comes with a full queue on the path.
fn round_trips(found: Finding, netns: &Netns, address: IpAddr, peer: &Peer) -> Finding {
    let path = netns
        .after
        .sockets
        .as_ref()
        .and_then(|sockets| sockets.paths.get(&address));
    let Some(path) = path.filter(|path| path.min_rtt_us != u32::MAX && path.min_rtt_us > 0) else {
        return found;
    };
    let srtt = peer.srtt_us.max(path.srtt_us.into());
    let swell = ratio(srtt, path.min_rtt_us.into());
    let verdict = if swell >= BLOATED && path.min_rtt_us >= LOCAL_US {
        "a queue on the path is full (bufferbloat)"
    } else {
        "no queue builds up: clean loss"
    };
    found.measured(
        format!(
            "round trip {srtt} us, at best {} us: {verdict}",
            path.min_rtt_us
        ),
        swell,
        "times",
        "tcp_info srtt, min_rtt",
    )
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::fixtures::quiet,
        observe::{diag::Path, interfaces::Qdisc},
        report::Value,
    };

    fn lossy() -> crate::diagnose::window::Window {
        let mut window = quiet();
        window.grow(&[("Tcp.RetransSegs", 300), ("Tcp.OutSegs", 9700)]);
        window.total("retransmits", 300, &[("cause", Value::Word("fast"))]);
        let lost = [
            ("cause", Value::Word("fast")),
            ("daddr", Value::Ip([10, 0, 0, 2].into())),
            ("dport", Value::Unsigned(443)),
            ("srtt_us", Value::Unsigned(100_000)),
        ];
        window.event("retransmits", 300, &lost);
        let path = Path {
            connections: 1,
            srtt_us: 90_000,
            min_rtt_us: 30_000,
        };
        window.sockets().paths.insert([10, 0, 0, 2].into(), path);
        window
    }

    #[test]
    fn loss_names_the_destination_its_share_and_the_queue() {
        let findings = lossy().findings();
        assert_eq!(findings[0].id, "path-loss");
        assert!(findings[0].summary.contains("10.0.0.2") && findings[0].summary.contains("3.0 %"));
        assert!(
            findings[0]
                .evidence
                .iter()
                .any(|evidence| evidence.text.contains("bufferbloat"))
        );
    }

    #[test]
    fn loss_in_a_local_queue_comes_first() {
        let mut window = lossy();
        let qdisc = |drops| Qdisc {
            interface: "eth0".to_owned(),
            kind: "tbf".to_owned(),
            handle: 1,
            drops,
            queued: 0,
            backlog_bytes: 0,
            bytes: 0,
        };
        window.netns().before.qdiscs.push(qdisc(0));
        window.netns().after.qdiscs.push(qdisc(300));
        let findings = window.findings();
        assert_eq!(findings[0].id, "egress-queue-drops");
        assert_eq!(findings[1].behind, Some("egress-queue-drops"));
    }

    #[test]
    fn handshakes_and_traces_of_loss_are_not() {
        let mut window = quiet();
        window.grow(&[
            ("Tcp.RetransSegs", 300),
            ("TcpExt.TCPSynRetrans", 300),
            ("Tcp.OutSegs", 300),
        ]);
        assert!(!window.ids().contains(&"path-loss"));
        let mut window = quiet();
        window.grow(&[("Tcp.RetransSegs", 30), ("Tcp.OutSegs", 9700)]);
        assert!(window.ids().is_empty());
    }
}
