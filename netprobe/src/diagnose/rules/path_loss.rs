//! Segments are lost between this machine and a peer.

use std::{collections::BTreeMap, net::IpAddr};

use super::super::{
    Explanation, Rule, Verdict,
    bufferbloat::delayed,
    events::Event,
    finding::{finding, host, somewhere},
    in_each,
    sizing::{median, millis},
    window::{Netns, Window, ratio},
};
use crate::{
    observe::diag::{LOCAL_US, SWOLLEN},
    report::diagnosis::{Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "path-loss",
    title: "the path loses or delays packets",
    check,
    explanation: Explanation {
        symptom: "Throughput sags, retransmits grow, round-trip times swing; this machine has CPU and queues to spare.",
        cause: "A segment whose acknowledgement does not come is sent again: by tcp_fastretrans_alert() when later segments \
                were acknowledged (fast), by a tail loss probe, or by tcp_retransmit_timer() when nothing comes at all \
                (RTO), which also begins anew with a window of one.",
        recognised: "Over one per cent of segments were sent again, by the counters and by the events, to addresses outside of the \
                     namespace, and no queue or firewall of this machine dropped them: those findings would come first. A \
                     median round-trip time of three times its own minimum or more says that a queue on the path is full \
                     (bufferbloat); without that it is clean loss. A queue that loses nothing is told by active connections with ten \
                     segments or more in flight, whose round trip takes three times its minimum and 50 ms more, at the \
                     beginning of the window and at its end; a note, unless half of the active connections suffer.",
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
/// Causes of retransmissions of data.
const CAUSES: [&str; 4] = ["rto", "fast", "tlp", "other"];

/// Retransmissions to one address and port.
#[derive(Default)]
struct Peer {
    total: u32,
    /// Round-trip times when segments were sent again, in microseconds.
    srtt_us: Vec<u64>,
}

/// Segments that were sent again.
struct Loss {
    lost: u64,
    sent: u64,
    rto: u64,
    fast: u64,
    tlp: u64,
}

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let again = netns.grown("Tcp.RetransSegs")?;
        let handshakes = netns.grown("TcpExt.TCPSynRetrans")?;
        // OutSegs leaves out what was sent again.
        let sent = netns.grown("Tcp.OutSegs")? + again;
        let counted = again.saturating_sub(handshakes);
        let is_much = |lost| lost >= LEAST && ratio(lost, sent) >= MUCH;
        if !is_much(counted) {
            return Ok(delayed(RULE.id, window, netns).into_iter().collect());
        }
        let loss = Loss::of(window, netns, (counted, sent));
        if !is_much(loss.lost) {
            return Ok(delayed(RULE.id, window, netns).into_iter().collect());
        }
        Ok(vec![describe(window, netns, &loss)])
    })
}

impl Loss {
    /// The two counters lie in two files, read one after the other, so their difference may be
    /// handshakes only; and what stays within the machine crosses no path. Both are told by the
    /// events, where they are seen.
    fn of(window: &Window, netns: &Netns, (counted, sent): (u64, u64)) -> Self {
        let inode = netns.inode.to_string();
        let [rto, fast, tlp, other] = CAUSES.map(|cause| {
            let group = [("cause", cause), ("netns", inode.as_str())];
            window.events.count("retransmits", &group)
        });
        let seen = rto + fast + tlp + other;
        let lost = if window.watched_required("retransmits").is_ok() {
            counted.min(seen)
        } else {
            counted
        };
        let events = window.events.within("retransmits", netns.inode);
        let (mut away, mut all) = (0_u64, 0_u64);
        for event in events.filter(|event| is_data(event)) {
            all += 1;
            away += u64::from(is_away(window, netns, event));
        }
        let lost = (lost * away).checked_div(all).unwrap_or(lost);
        Self {
            lost,
            sent,
            rto,
            fast,
            tlp,
        }
    }
}

fn is_data(event: &Event) -> bool {
    CAUSES.iter().any(|cause| event.is("cause", cause))
}

/// Whether the path is to blame for a segment, rather than this machine.
fn is_away(window: &Window, netns: &Netns, event: &Event) -> bool {
    !is_within(netns, event) && !is_refused(window, event)
}

/// Whether a segment stays within its namespace: to itself, by whatever address.
fn is_within(netns: &Netns, event: &Event) -> bool {
    let Some(remote) = event.ip("daddr") else {
        return false;
    };
    let sockets = netns.after.sockets.as_ref();
    let mut listeners = sockets.into_iter().flat_map(|table| &table.listeners);
    remote.is_loopback()
        || event.ip("saddr") == Some(remote)
        || listeners.any(|listener| listener.address == remote)
}

/// Whether it goes to a listener of this machine that ignores it, as its accept queue is full.
fn is_refused(window: &Window, event: &Event) -> bool {
    let Some(port) = event.small::<u16>("dport") else {
        return false;
    };
    window.namespaces.iter().any(|netns| {
        let remote = event.ip("daddr");
        let is_it = |address: IpAddr| address.is_unspecified() || Some(address) == remote;
        let mut queues = netns.queues.iter();
        netns
            .grown("TcpExt.ListenOverflows")
            .is_ok_and(|count| count > 0)
            && queues.any(|queue| {
                let listener = &queue.listener;
                listener.port == port && is_it(listener.address) && queue.full_share() > 0.0
            })
    })
}

fn peers(window: &Window, netns: &Netns) -> Vec<((IpAddr, u16), Peer)> {
    let mut peers = BTreeMap::<(IpAddr, u16), Peer>::new();
    for event in window.events.within("retransmits", netns.inode) {
        let end = event.ip("daddr").zip(event.small::<u16>("dport"));
        let Some(end) = end.filter(|_| is_data(event) && is_away(window, netns, event)) else {
            continue;
        };
        let peer = peers.entry(end).or_default();
        peer.total += 1;
        peer.srtt_us
            .extend(event.number("srtt_us").filter(|srtt| *srtt > 0));
    }
    let mut peers: Vec<_> = peers.into_iter().collect();
    peers.sort_by_key(|(_, peer)| std::cmp::Reverse(peer.total));
    peers
}

fn describe(window: &Window, netns: &Netns, loss: &Loss) -> Finding {
    let Loss {
        lost,
        sent,
        rto,
        fast,
        tlp,
    } = *loss;
    let percent = ratio(lost, sent) * 100.0;
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

/// Whether the loss comes with a full queue on the path. Half of the round-trip times lie below the
/// one that counts: single ones contain timeouts.
fn round_trips(found: Finding, netns: &Netns, address: IpAddr, peer: &Peer) -> Finding {
    let sockets = netns.after.sockets.as_ref();
    let path = sockets.and_then(|sockets| sockets.paths.get(&address));
    let Some(path) = path.filter(|path| path.min_rtt_us > 0) else {
        return found;
    };
    let Some(srtt) = median(&peer.srtt_us).or_else(|| median(&path.srtts_us).map(u64::from)) else {
        return found;
    };
    let swell = ratio(srtt, path.min_rtt_us.into());
    let verdict = if swell >= f64::from(SWOLLEN) && path.min_rtt_us >= LOCAL_US {
        "a queue on the path is full (bufferbloat)"
    } else {
        "no queue builds up: clean loss"
    };
    found.measured(
        format!(
            "round trip {:.1} ms, at best {:.1} ms: {verdict}",
            millis(srtt),
            millis(path.min_rtt_us.into())
        ),
        swell,
        "times",
        "tcp_info srtt (median), min_rtt",
    )
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use crate::{
        diagnose::{Verdict, events::Events, fixtures::quiet},
        observe::{diag::Path, interfaces::Qdisc},
        report::{Value, diagnosis::Severity},
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
            srtts_us: vec![90_000],
            min_rtt_us: 30_000,
            ..Path::default()
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
    fn single_round_trips_with_timeouts_in_them_are_no_queue() {
        let mut window = lossy();
        window.events = Events::default();
        window.total("retransmits", 300, &[("cause", Value::Word("fast"))]);
        for (times, srtt_us) in [(280, 38_000), (20, 392_761)] {
            let lost = [
                ("cause", Value::Word("fast")),
                ("daddr", Value::Ip([10, 0, 0, 2].into())),
                ("dport", Value::Unsigned(443)),
                ("srtt_us", Value::Unsigned(srtt_us)),
            ];
            window.event("retransmits", times, &lost);
        }
        let findings = window.findings();
        let said = |text: &str| {
            let mut evidence = findings[0].evidence.iter();
            evidence.any(|evidence| evidence.text.contains(text))
        };
        assert!(said("clean loss") && said("38.0 ms") && !said("bufferbloat"));
    }

    #[test]
    fn counters_that_no_event_confirms_are_no_loss() {
        // Two files, read one after the other, while SYNs are sent again.
        let mut window = quiet();
        window.grow(&[
            ("Tcp.RetransSegs", 692),
            ("TcpExt.TCPSynRetrans", 650),
            ("Tcp.OutSegs", 10),
        ]);
        window.total("retransmits", 690, &[("cause", Value::Word("syn"))]);
        assert_eq!(window.verdict("path-loss"), Verdict::Ok);
        window.blind("retransmits");
        assert_ne!(window.verdict("path-loss"), Verdict::Ok);
    }

    #[test]
    fn a_queue_that_loses_nothing_is_seen_where_it_lasts() {
        let path = |filling| Path {
            connections: 4,
            active: 4,
            swollen: 4,
            filling,
            srtts_us: vec![122_000],
            min_rtt_us: 30_000,
        };
        let window = |before, after| {
            let mut window = quiet();
            window
                .sockets()
                .paths
                .insert([10, 0, 0, 2].into(), path(after));
            let before = (IpAddr::from([10, 0, 0, 2]), path(before));
            let table = window.netns().before.sockets.as_mut().unwrap();
            table.paths.extend([before]);
            window
        };
        let findings = window(2, 2).findings();
        assert_eq!(
            (findings[0].id, findings[0].severity),
            ("path-loss", Severity::Warning)
        );
        assert!(findings[0].summary.contains("122 ms, at best 30 ms"));
        assert!(window(0, 2).ids().is_empty() && window(2, 0).ids().is_empty());
        let mut many = window(2, 2);
        let others = Path {
            active: 100,
            min_rtt_us: 20_000,
            ..Path::default()
        };
        many.sockets().paths.insert([10, 0, 0, 3].into(), others);
        assert_eq!(many.findings()[0].severity, Severity::Info);
    }

    #[test]
    fn a_listener_of_this_machine_that_ignores_segments_is_no_path() {
        let mut window = lossy();
        window.listen(443, 10, &[11; 10]);
        window.netns().queues[0].listener.address = [0, 0, 0, 0].into();
        window.grow(&[("TcpExt.ListenOverflows", 300)]);
        assert_eq!(window.verdict("path-loss"), Verdict::Ok);
    }

    #[test]
    fn loopback_is_no_path() {
        let mut window = lossy();
        window.events = Events::default();
        window.total("retransmits", 300, &[("cause", Value::Word("rto"))]);
        let lost = [
            ("cause", Value::Word("rto")),
            ("daddr", Value::Ip([127, 0, 0, 1].into())),
            ("dport", Value::Unsigned(8080)),
        ];
        window.event("retransmits", 300, &lost);
        assert_eq!(window.verdict("path-loss"), Verdict::Ok);
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
