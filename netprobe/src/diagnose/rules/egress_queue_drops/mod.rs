//! The queue in front of an interface, or its own, is full: packets are dropped before they leave.

mod device;

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
                (QDISC_DROP) when it is full, or (fq_codel, codel) when packets wait too long in it. A tun interface has a queue of its own behind that \
                (tun_net_xmit(), FULL_RING), which the program reads that made it; a veth that of its other end; a device its ring.",
        recognised: "The qdisc's own counter of drops grew by more than one packet in a thousand. netem is left out: it \
                     imitates a path. Or tx_dropped of an interface that was up all the time grew by so much: of a tun, a veth (but for \
                     what the backlogs of CPUs dropped) or a device; of others, such as vlan and vxlan, it counts what the interface \
                     below drops. Fewer than 50 have to be seen as TCP (kfree_skb). Loss further on shows as path-loss without these drops.",
        fixes: &[
            (
                "send less or get a faster link; shape at the bottleneck",
                "none",
            ),
            (
                "a shaper (tbf, htb): raise its rate, or put fq_codel below it; to replace it removes the limit",
                "the limit may protect something behind it",
            ),
            (
                "fq or fq_codel instead of pfifo_fast: short queues, and one flow does not hurt the others",
                "a change of qdisc empties the queue",
            ),
            (
                "a tun: what makes its program faster (kernel WireGuard, OpenVPN DCO, more CPU, several queues)",
                "none",
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
        Ok(found.chain(device::all(window, netns)).collect())
    })
}

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
    Some(fixes(found, netns, after, rate))
}

/// What keeps a rate on purpose: to replace it is to remove that limit.
const SHAPERS: &[&str] = &["tbf", "htb", "hfsc", "cbq", "cake", "taprio", "ets", "cbs"];

/// What helps, for a queue that is full at a rate in Mbit/s.
fn fixes(found: Finding, netns: &Netns, queue: &Qdisc, rate: f64) -> Finding {
    let (name, kind, enter) = (plain(&queue.interface), &queue.kind, netns.enter());
    let handle = queue.handle >> 16;
    let show = format!("{enter}tc -s -d qdisc show dev {name}");
    if SHAPERS.contains(&kind.as_str()) {
        let found = found.command(
            format!(
                "{kind} keeps a limit that somebody set ({show}): it is reached at {rate:.1} Mbit/s; raise its rate if the \
                 link has more, or send less"
            ),
            "the limit may protect something behind it: ask who set it",
        );
        return if kind == "tbf" {
            found.command(
                format!(
                    "or keep the limit and share what it lets through: {enter}tc qdisc add dev {name} parent {handle:x}:1 \
                     fq_codel (in place of its single queue)"
                ),
                "empties the queue; needs sch_fq_codel in this kernel; to replace the root instead would remove the limit",
            )
        } else {
            found
        };
    }
    let found = if kind.starts_with("fq") {
        found
    } else {
        found.command(
            format!("share it fairly: {enter}tc qdisc replace dev {name} root fq_codel"),
            "empties the queue; needs sch_fq_codel in this kernel; removes whatever else is set up at the root of that \
             interface (look first: tc qdisc show)",
        )
    };
    found.command(
        format!(
            "it is full at {rate:.1} Mbit/s: send less, or get a faster link ({show}); a longer queue is only more delay"
        ),
        "none",
    )
}

/// The name of an interface, as far as a shell takes it as it is.
fn plain(name: &str) -> &str {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    if name.chars().all(is_plain) {
        name
    } else {
        "NAME"
    }
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

    #[test]
    fn a_limit_that_was_set_is_not_taken_away() {
        for (kind, handle, kept) in [("tbf", 0x8001_0000, true), ("pfifo_fast", 0, false)] {
            let mut window = quiet();
            let qdisc = |drops: u32| Qdisc {
                interface: "eth0".to_owned(),
                kind: kind.to_owned(),
                handle,
                drops,
                queued: 9,
                backlog_bytes: 9000,
                bytes: 0,
            };
            window.netns().name = Some("web".to_owned());
            window.netns().is_initial = false;
            window.netns().before.qdiscs.push(qdisc(0));
            window.netns().after.qdiscs.push(qdisc(50));
            let findings = window.findings();
            let says = |text: &str| findings[0].fixes.iter().any(|fix| fix.text.contains(text));
            assert_eq!(says("root fq_codel"), !kept, "{kind}");
            assert_eq!(
                says("ip netns exec web tc qdisc add dev eth0 parent 8001:1 fq_codel"),
                kept,
                "{kind}"
            );
        }
    }
}
