//! The queue in front of an interface is full: packets are dropped before they leave.

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, named},
    in_each,
    window::{Netns, Window, ratio},
};
use crate::{
    observe::interfaces::Qdisc,
    report::diagnosis::{Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "egress-queue-drops",
    title: "an output queue drops packets",
    check,
    explanation: Explanation {
        symptom: "A link is saturated: throughput is flat, retransmits and latency grow, the receiver is not at fault.",
        cause: "__dev_queue_xmit() hands a packet to the queueing discipline of the interface, which drops it \
                (QDISC_DROP) when it is full, or (fq_codel, codel) when packets wait too long in it.",
        recognised: "The qdisc's own counter of drops grew by more than one packet in a thousand. netem is left out: it \
                     imitates a path. Loss further on shows as path-loss without these drops.",
        fixes: &[
            (
                "send less or get a faster link; shape at the bottleneck",
                "none",
            ),
            (
                "fq or fq_codel instead of pfifo_fast: short queues, and one flow does not hurt the others",
                "a change of qdisc empties the queue",
            ),
            (
                "a longer queue (txqueuelen, limit)",
                "latency: queues that are always full are only delay",
            ),
        ],
    },
};

const MUCH: f64 = 0.001;
const LEAST: u64 = 5;

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let found = netns.after.qdiscs.iter().filter_map(|after| {
            let before = netns.before.qdiscs.iter().find(|before| {
                (&before.interface, before.handle, &before.kind)
                    == (&after.interface, after.handle, &after.kind)
            })?;
            describe(window, netns, before, after)
        });
        Ok(found.collect())
    })
}

#[expect(
    clippy::too_many_lines,
    reason = "a straight list of evidence and fixes"
)]
fn describe(window: &Window, netns: &Netns, before: &Qdisc, after: &Qdisc) -> Option<Finding> {
    let drops = u64::from(after.drops.wrapping_sub(before.drops));
    let name = after.interface.as_str();
    let interface = netns.after.interfaces.get(name);
    let sent = interface
        .zip(netns.before.interfaces.get(name))
        .map_or(0, |(after, before)| {
            after.tx_packets.saturating_sub(before.tx_packets)
        });
    if after.kind == "netem" || drops < LEAST || ratio(drops, sent + drops) < MUCH {
        return None;
    }
    // A counter that was set back looks like a huge number.
    if drops > u64::from(u32::MAX / 2) {
        return None;
    }
    let rate = window.rate(after.bytes.saturating_sub(before.bytes)) * 8.0 / 1e6;
    let percent = ratio(drops, sent + drops) * 100.0;
    let inode = netns.inode.to_string();
    let events = window
        .events
        .count("drops", &[("reason", "QDISC_DROP"), ("netns", &inode)]);
    let found = finding(
        RULE.id,
        Severity::Warning,
        Confidence::High,
        format!(
            "the output queue ({}) of interface {name}{} dropped {drops} packets in {:.0} s, {percent:.1} % of what was to \
             be sent",
            after.kind,
            netns.place(),
            window.seconds
        ),
    )
    .counted(
        format!("{drops} packets dropped, {events} of them seen as TCP"),
        drops,
        "packets",
        "qdisc drops, kfree_skb QDISC_DROP",
    )
    .measured(format!("it sends {rate:.1} Mbit/s"), rate, "Mbit/s", "qdisc bytes")
    .counted(
        format!("{} packets ({} bytes) wait in it now", after.queued, after.backlog_bytes),
        after.queued.into(),
        "packets",
        "qdisc qlen",
    )
    .hits([named("interface", name, Some(netns.inode))]);
    let found = if after.kind.starts_with("fq") {
        found
    } else {
        found.command(
            format!("share it fairly: tc qdisc replace dev {name} root fq_codel"),
            "a change of qdisc empties the queue",
        )
    };
    Some(found.command(
        format!(
            "it is full at {rate:.1} Mbit/s: send less, or raise the rate that limits it (tc -s qdisc show dev {name}); a \
             longer queue is only more delay"
        ),
        "none",
    ))
}

#[cfg(test)]
mod tests {
    use crate::{diagnose::fixtures::quiet, observe::interfaces::Qdisc};

    #[test]
    fn drops_of_a_queue_name_its_interface_and_those_of_netem_do_not() {
        for (kind, drops, expected) in [("tbf", 50, true), ("netem", 50, false), ("tbf", 2, false)]
        {
            let mut window = quiet();
            let qdisc = |drops: u32| Qdisc {
                interface: "eth0".to_owned(),
                kind: kind.to_owned(),
                handle: 1,
                drops,
                queued: 9,
                backlog_bytes: 9000,
                bytes: 0,
            };
            window.netns().before.qdiscs.push(qdisc(u32::MAX - 9));
            window
                .netns()
                .after
                .qdiscs
                .push(qdisc((u32::MAX - 9).wrapping_add(drops)));
            let findings = window.findings();
            assert_eq!(!findings.is_empty(), expected, "{kind} {drops}");
            if expected {
                assert_eq!(findings[0].affected[0].name, "eth0");
                assert!(
                    findings[0].summary.contains("dropped 50"),
                    "{}",
                    findings[0].summary
                );
            }
        }
    }
}
