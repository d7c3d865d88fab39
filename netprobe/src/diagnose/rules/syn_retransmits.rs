//! SYNs or SYN-ACKs go unanswered and are sent again: connecting takes 1, 3, 7 s, or fails.

use std::collections::BTreeMap;

use super::super::{
    Explanation, Rule, Verdict,
    events::Event,
    finding::{finding, somewhere},
    in_each,
    window::{Netns, Window, endpoint, ratio},
};
use crate::report::{
    Value,
    diagnosis::{Affected, Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "syn-retransmits",
    title: "connection attempts go unanswered",
    check,
    explanation: Explanation {
        symptom: "Connect latency comes in steps of 1, 3, 7, 15 s, or connect() fails with ETIMEDOUT after two minutes.",
        cause: "A SYN without an answer is sent again by tcp_retransmit_timer() after 1 s, then twice as long, up to \
                tcp_syn_retries times; a SYN-ACK likewise. Something between the two ends drops it: the listener, a \
                firewall or conntrack on either machine, or the path.",
        recognised: "TCPSynRetrans grew; events name the destination. Whether a listener, the firewall or conntrack of this \
                     machine is at fault is told by their own findings, which come first. It is said to be the path or the \
                     peer only where no SYN was seen to be dropped in any namespace of this machine (kfree_skb, conntrack), and no \
                     listener or conntrack of those that were watched counted one (ListenDrops, TCPReqQFullDrop, drop).",
        fixes: &[
            (
                "look at the other end (netprobe diagnose there): listener, firewall, conntrack",
                "none",
            ),
            (
                "check that the address is right and answers: a route, a security group",
                "none",
            ),
        ],
    },
};

const LEAST: u64 = 3;
const MUCH: f64 = 0.02;

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let again = netns.grown("TcpExt.TCPSynRetrans")?;
        let opened = netns.grown("Tcp.ActiveOpens")? + netns.grown("Tcp.PassiveOpens")?;
        if again < LEAST || ratio(again, opened + again) < MUCH {
            return Ok(Vec::new());
        }
        Ok(vec![describe(window, netns, again)])
    })
}

/// Who does not answer, the worst first: destinations of SYNs, or listeners whose clients are silent.
fn silent(window: &Window, netns: &Netns, cause: &str) -> Vec<Affected> {
    let mut silent = BTreeMap::<_, (u32, Option<u32>, Option<String>)>::new();
    for event in window.events.within("retransmits", netns.inode) {
        if !event.is("cause", cause) {
            continue;
        }
        let end = if cause == "syn" {
            event.ip("daddr").zip(event.small::<u16>("dport"))
        } else {
            event.ip("saddr").zip(event.small::<u16>("sport"))
        };
        if let Some(end) = end {
            let entry = silent
                .entry(end)
                .or_insert((0, event.small("pid"), event.text("comm")));
            entry.0 += 1;
        }
    }
    let mut silent: Vec<_> = silent.into_iter().collect();
    silent.sort_by_key(|(_, (count, ..))| std::cmp::Reverse(*count));
    let kind = if cause == "syn" {
        "destination"
    } else {
        "listener"
    };
    let hits = silent
        .into_iter()
        .take(4)
        .map(|((address, port), (_, pid, comm))| Affected {
            kind,
            name: endpoint(address, port),
            netns: Some(netns.inode),
            pid,
            comm,
            address: Some(address),
            port: Some(port),
        });
    hits.collect()
}

/// Whether none of what drops SYNs within this machine has dropped any, and all of it was looked at.
fn is_elsewhere(window: &Window) -> bool {
    const SYN: u8 = 2;
    // The other end, or a router, may be in another namespace of this machine.
    let mut dropped = window.events.of("drops").iter().peekable();
    let is_sample = dropped.peek().is_some() || window.events.count("drops", &[]) == 0;
    let is_syn =
        |event: &Event| matches!(event.value("flags"), Value::TcpFlags(flags) if flags & SYN > 0);
    let is_sent = window.watched_required("drops").is_ok()
        && is_sample
        && !dropped.any(is_syn)
        && window.events.count("conntrack", &[]) == 0;
    let counters = [
        "TcpExt.ListenDrops",
        "TcpExt.TCPReqQFullDrop",
        "nf_conntrack.drop",
    ];
    let is_quiet = |netns: &Netns| {
        let quiet = |name| netns.grown_if_any(name) == Ok(0);
        counters.into_iter().all(quiet)
    };
    is_sent && window.namespaces.iter().all(is_quiet) && window.vanished.is_empty()
}

#[expect(
    clippy::too_many_lines,
    reason = "a straight list of evidence and fixes"
)]
fn describe(window: &Window, netns: &Netns, again: u64) -> Finding {
    let inode = netns.inode.to_string();
    let count = |cause| {
        window
            .events
            .count("retransmits", &[("cause", cause), ("netns", &inode)])
    };
    let [syns, answers] = ["syn", "syn-ack"].map(count);
    let timed_out = window
        .events
        .count("connects", &[("errno", "ETIMEDOUT"), ("netns", &inode)]);
    let mut hits = silent(
        window,
        netns,
        if answers > syns { "syn-ack" } else { "syn" },
    );
    let who = hits.first().map_or(String::new(), |hit| hit.name.clone());
    let summary = if answers > syns {
        format!(
            "clients of {who}{} do not answer: {answers} SYN-ACKs were sent again in {:.0} s; they, or the way back to \
             them, are at fault",
            netns.place(),
            window.seconds
        )
    } else {
        format!(
            "{}{} does not answer: {again} {} were sent again in {:.0} s{}{}",
            if who.is_empty() {
                "a destination"
            } else {
                &who
            },
            netns.place(),
            // Counted, but not seen as they happened.
            if syns == 0 {
                "SYNs or SYN-ACKs"
            } else {
                "SYNs"
            },
            window.seconds,
            if timed_out > 0 {
                format!(", {timed_out} connects timed out")
            } else {
                String::new()
            },
            if is_elsewhere(window) {
                "; nobody on this machine was seen to drop them: the path or the peer"
            } else {
                ""
            }
        )
    };
    let confidence = if hits.is_empty() {
        hits.push(somewhere(netns));
        Confidence::Low
    } else {
        Confidence::High
    };
    finding(RULE.id, Severity::Warning, confidence, summary)
        .counted(
            format!("{again} SYNs and SYN-ACKs sent again"),
            again,
            "segments",
            "TcpExt.TCPSynRetrans",
        )
        .counted(
            format!("{syns} of them SYNs, {answers} SYN-ACKs"),
            syns,
            "SYNs",
            "tcp_retransmit_skb, tcp_retransmit_synack",
        )
        .since(window, netns, "TcpExt.TCPSynRetrans")
        .hits(hits)
        .command(
            "look at the other end: netprobe diagnose there tells whether its listener, firewall or conntrack drops them; if \
             none does, it is the path (tcptraceroute, security groups)",
            "none",
        )
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::{fixtures::quiet, window::Window},
        report::Value,
    };

    #[test]
    fn a_silent_destination_is_named() {
        let mut window = quiet();
        window.grow(&[("TcpExt.TCPSynRetrans", 12), ("Tcp.ActiveOpens", 6)]);
        window.total("retransmits", 12, &[("cause", Value::Word("syn"))]);
        let syn = [
            ("cause", Value::Word("syn")),
            ("daddr", Value::Ip([10, 0, 0, 2].into())),
            ("dport", Value::Unsigned(5432)),
        ];
        window.event("retransmits", 12, &syn);
        let findings = window.findings();
        assert_eq!(findings[0].id, "syn-retransmits");
        assert!(findings[0].summary.ends_with("the path or the peer"));
        assert!(
            findings[0]
                .summary
                .starts_with("10.0.0.2:5432 does not answer")
        );
    }

    #[test]
    fn nobody_else_is_blamed_where_this_machine_drops_syns_or_was_not_seen() {
        let silent = || {
            let mut window = quiet();
            window.grow(&[("TcpExt.TCPSynRetrans", 12), ("Tcp.ActiveOpens", 6)]);
            window.total("retransmits", 12, &[("cause", Value::Word("syn"))]);
            window
        };
        let blames = |window: &Window| {
            let findings = window.findings();
            let found = findings.iter().find(|found| found.id == "syn-retransmits");
            found.unwrap().summary.contains("the peer")
        };
        assert!(blames(&silent()));
        let mut dropping = silent();
        dropping.total("drops", 12, &[("reason", Value::Word("NETFILTER_DROP"))]);
        dropping.event("drops", 12, &[("flags", Value::TcpFlags(2))]);
        assert!(!blames(&dropping));
        let mut blind = silent();
        blind.blind("drops");
        assert!(!blames(&blind));
        let mut refusing = silent();
        let mut server = refusing.namespaces[0].clone();
        server.inode += 1;
        server.after.counters.insert("TcpExt.ListenDrops", 12);
        refusing.namespaces.push(server);
        assert!(!blames(&refusing));
    }

    #[test]
    fn a_few_among_many_are_the_internet() {
        let mut window = quiet();
        window.grow(&[("TcpExt.TCPSynRetrans", 12), ("Tcp.ActiveOpens", 6000)]);
        assert!(window.ids().is_empty());
    }

    #[test]
    fn a_listener_of_this_machine_comes_first() {
        let mut window = quiet();
        window.listen(80, 10, &[11; 10]);
        window.grow(&[("TcpExt.TCPSynRetrans", 12), ("TcpExt.ListenOverflows", 12)]);
        let findings = window.findings();
        assert_eq!(findings[0].id, "application-not-accepting");
        assert_eq!(findings[1].behind, Some("application-not-accepting"));
    }
}
