//! Packets are lost on the way from the wire to TCP: in the ring of a device, or in the backlog of
//! a CPU.

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, named},
    sizing::{PERSIST, roomy},
    window::{Netns, Window, ratio},
};
use crate::{
    observe::interfaces::Interface,
    report::diagnosis::{Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "receive-path-drops",
    title: "packets are lost before TCP sees them",
    check,
    explanation: Explanation {
        symptom: "A host with many packets per second loses some of them; one CPU is busy in softirq.",
        cause: "The device writes into its ring and drops when it is full (rx_missed, rx_fifo). With RPS, or from a \
                veth, enqueue_to_backlog() drops when a CPU's backlog has net.core.netdev_max_backlog packets \
                (softnet_stat, CPU_BACKLOG). net_rx_action() stops after netdev_budget packets (time_squeeze), \
                which delays but loses nothing.",
        recognised: "softnet_stat counted drops on a CPU, or a device counted packets that it missed. rx_dropped \
                     alone is no sign: it also counts packets that nobody wanted.",
        fixes: &[
            (
                "spread the load: more queues (RSS), RPS to other CPUs",
                "RPS costs interrupts between CPUs",
            ),
            (
                "raise net.core.netdev_max_backlog",
                "longer queues are longer delays",
            ),
            (
                "raise the ring: ethtool -G DEV rx N",
                "the link is down for a moment",
            ),
        ],
    },
};

/// The kernel's own value of `net.core.netdev_max_backlog`: it was small if it was less.
const DEFAULT_BACKLOG: u64 = 1000;
/// Fewer than this share of packets is a warning, not the end.
const MANY: f64 = 0.01;

fn check(window: &Window) -> Verdict {
    let mut found: Vec<Finding> = backlog(window).into_iter().collect();
    for netns in &window.namespaces {
        for (name, after) in &netns.after.interfaces {
            if let Some(before) = netns.before.interfaces.get(name) {
                found.extend(device(window, netns, (name, before, after)));
            }
        }
    }
    if found.is_empty() {
        Verdict::Ok
    } else {
        Verdict::Found(found)
    }
}

#[expect(
    clippy::too_many_lines,
    reason = "a straight list of evidence and fixes"
)]
fn backlog(window: &Window) -> Option<Finding> {
    let drops = window.softnet.iter().map(|(before, after)| {
        (
            after.cpu,
            u64::from(after.dropped.wrapping_sub(before.dropped)),
            u64::from(after.processed.wrapping_sub(before.processed)),
            u64::from(after.squeezed.wrapping_sub(before.squeezed)),
        )
    });
    let drops: Vec<_> = drops.collect();
    let dropped: u64 = drops.iter().map(|(_, dropped, ..)| dropped).sum();
    let worst = drops.iter().max_by_key(|(_, dropped, ..)| *dropped)?;
    if dropped == 0 {
        return None;
    }
    let processed: u64 = drops.iter().map(|(_, _, processed, _)| processed).sum();
    let squeezed: u64 = drops.iter().map(|(.., squeezed)| squeezed).sum();
    let severity = if ratio(dropped, processed + dropped) >= MANY {
        Severity::Critical
    } else {
        Severity::Warning
    };
    let initial = window.initial();
    let limit = initial
        .and_then(|netns| netns.sysctl("net.core.netdev_max_backlog"))
        .unwrap_or(DEFAULT_BACKLOG);
    #[expect(clippy::cast_precision_loss, reason = "a size")]
    let wanted = roomy((limit * 2) as f64).max(DEFAULT_BACKLOG);
    let found = finding(
        RULE.id,
        severity,
        Confidence::High,
        format!(
            "{dropped} received packets were dropped in {:.0} s because the backlog of CPU {} was full",
            window.seconds, worst.0
        ),
    )
    .counted(
        format!("{dropped} of {} packets dropped, most of them on CPU {}", processed + dropped, worst.0),
        dropped,
        "packets",
        "/proc/net/softnet_stat dropped",
    )
    .counted(
        format!("{squeezed} rounds ended with work left"),
        squeezed,
        "rounds",
        "/proc/net/softnet_stat time_squeeze",
    )
    .hits([named("cpu", worst.0.to_string(), None)]);
    Some(
        found
            .command(
                "spread the load over CPUs: more queues of the device (ethtool -L), or RPS \
                 (/sys/class/net/DEV/queues/rx-N/rps_cpus)",
                "interrupts between CPUs cost something themselves",
            )
            .sysctl(
                format!("or let more packets wait: {limit} now; {PERSIST}"),
                &[("net.core.netdev_max_backlog", wanted.to_string())],
                "longer queues are longer delays",
            ),
    )
}

fn device(
    window: &Window,
    netns: &Netns,
    (name, before, after): (&str, &Interface, &Interface),
) -> Option<Finding> {
    let missed = after.rx_missed.checked_sub(before.rx_missed)?;
    let received = after.rx_packets.checked_sub(before.rx_packets)?;
    if missed == 0 {
        return None;
    }
    let severity = if ratio(missed, received + missed) >= MANY {
        Severity::Critical
    } else {
        Severity::Warning
    };
    Some(
        finding(
            RULE.id,
            severity,
            Confidence::High,
            format!(
                "interface {name}{} missed {missed} packets in {:.0} s: its receive ring is full",
                netns.place(),
                window.seconds
            ),
        )
        .counted(
            format!("{missed} of {} packets missed", received + missed),
            missed,
            "packets",
            "rx_missed_errors, rx_fifo_errors, rx_over_errors",
        )
        .hits([named("interface", name, Some(netns.inode))])
        .command(
            format!("make its ring larger: ethtool -g {name} shows how large it may be, ethtool -G {name} rx N sets it"),
            "the link is down for a moment",
        )
        .command(
            format!("spread its packets over more CPUs: ethtool -L {name} combined N"),
            "the link is down for a moment",
        ),
    )
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::fixtures::quiet,
        observe::{interfaces::Interface, softnet::Softnet},
        report::diagnosis::Severity,
    };

    fn softnet(dropped: u32, processed: u32, squeezed: u32) -> Softnet {
        Softnet {
            cpu: 3,
            processed,
            dropped,
            squeezed,
        }
    }

    #[test]
    fn drops_of_a_backlog_name_the_cpu_and_survive_wrapping() {
        let mut window = quiet();
        window.softnet = vec![(softnet(u32::MAX, u32::MAX - 9, 0), softnet(9, 90, 4))];
        let findings = window.findings();
        assert_eq!(
            (findings[0].id, findings[0].severity),
            ("receive-path-drops", Severity::Critical)
        );
        assert_eq!(findings[0].affected[0].name, "3");
        assert!(findings[0].summary.starts_with("10 received packets"));
    }

    #[test]
    fn squeezed_rounds_and_unwanted_packets_lose_nothing() {
        let mut window = quiet();
        window.softnet = vec![(softnet(5, 10, 0), softnet(5, 100_000, 400))];
        let interface = |rx_dropped, rx_missed| Interface {
            rx_packets: 1000 * (1 + rx_dropped),
            rx_dropped,
            rx_missed,
            ..Interface::default()
        };
        let [before, after] = [interface(0, 0), interface(500, 0)];
        window
            .netns()
            .before
            .interfaces
            .insert("eth0".to_owned(), before);
        window
            .netns()
            .after
            .interfaces
            .insert("eth0".to_owned(), after);
        assert!(window.ids().is_empty());
        let missed = interface(500, 40);
        window
            .netns()
            .after
            .interfaces
            .insert("eth0".to_owned(), missed);
        let findings = window.findings();
        assert_eq!(findings[0].severity, Severity::Warning);
        assert_eq!(findings[0].affected[0].name, "eth0");
    }
}
