//! Packets are lost on the way from the wire to TCP: in the ring of a device, or in the backlog of
//! a CPU; or they arrive damaged.

mod checksums;

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, named},
    sizing::{PERSIST, SPARED, roomy},
    window::{Netns, Window, ratio},
};
use crate::{
    observe::{
        interfaces::Interface,
        softnet::{Cpu, Softnet},
    },
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
                     alone is no sign: it also counts packets that nobody wanted. Or one TCP segment of a thousand or more had a wrong \
                     checksum (tcp_v4_rcv(), Tcp.InCsumErrors).",
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
            (
                "damaged: find the device that offloads checksums wrongly (ethtool -K DEVICE tx off at the sender)",
                "none",
            ),
        ],
    },
};

/// The kernel's own value of `net.core.netdev_max_backlog`: it was small if it was less.
const DEFAULT_BACKLOG: u64 = 1000;
/// A CPU with less of its time to spare cannot do more.
const SPARE: f64 = 0.05;
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
        found.extend(checksums::damaged(window, netns).ok().flatten());
    }
    if found.is_empty() {
        Verdict::Ok
    } else {
        Verdict::Found(found)
    }
}

fn backlog(window: &Window) -> Option<Finding> {
    let sum = |count: fn(&Softnet) -> u32| {
        let cpus = window.softnet.iter();
        cpus.map(|cpu| grown(cpu, count)).sum::<u64>()
    };
    let dropped = of_backlogs(window);
    if dropped == 0 {
        return None;
    }
    let all = sum(|cpu| cpu.processed) + dropped;
    let worst = window
        .softnet
        .iter()
        .max_by_key(|cpu| grown(cpu, |cpu| cpu.dropped))?;
    let squeezed = sum(|cpu| cpu.squeezed);
    let severity = if ratio(dropped, all) >= MANY {
        Severity::Critical
    } else {
        Severity::Warning
    };
    let number = worst.after.cpu;
    let found = finding(
        RULE.id,
        severity,
        Confidence::High,
        format!(
            "{dropped} received packets were dropped in {:.0} s because the backlog of CPU {number} was full",
            window.seconds
        ),
    )
    .counted(
        format!("{dropped} of {all} packets dropped, most of them on CPU {number}"),
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
    .hits([named("cpu", number.to_string(), None)]);
    Some(room(window, found, worst))
}

/// How many packets the backlogs of all CPUs dropped.
pub(super) fn of_backlogs(window: &Window) -> u64 {
    let cpus = window.softnet.iter();
    cpus.map(|cpu| grown(cpu, |cpu| cpu.dropped)).sum()
}

/// By how much a counter of a CPU has grown. They wrap.
fn grown(cpu: &Cpu, count: impl Fn(&Softnet) -> u32) -> u64 {
    count(&cpu.after).wrapping_sub(count(&cpu.before)).into()
}

/// Adds what gives packets room: a longer queue for bursts, or other CPUs where one has no time left.
fn room(window: &Window, found: Finding, worst: &Cpu) -> Finding {
    let number = worst.after.cpu;
    let limit = window
        .initial()
        .and_then(|netns| netns.sysctl("net.core.netdev_max_backlog"))
        .unwrap_or(DEFAULT_BACKLOG);
    let bursts = window.softnet.iter().map(|cpu| cpu.burst);
    let burst = bursts.max().unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "a size")]
    let wanted = roomy((limit + u64::from(burst)) as f64).max(DEFAULT_BACKLOG);
    let is_busy = worst.idle.is_some_and(|idle| idle < SPARE);
    let found = match worst.idle {
        Some(idle) => found.measured(
            format!(
                "CPU {number} had nothing to do for {:.0} % of the time",
                idle * 100.0
            ),
            idle * 100.0,
            "%",
            "/proc/stat idle, iowait",
        ),
        None => found,
    };
    let spread = |found: Finding| {
        let why = if is_busy {
            format!(": CPU {number} has no time left, and a longer queue is only a longer delay")
        } else {
            String::new()
        };
        found.command(
            format!(
                "spread the load over CPUs: more queues of the device (ethtool -L), or RPS \
                 (/sys/class/net/DEV/queues/rx-N/rps_cpus){why}"
            ),
            "interrupts between CPUs cost something themselves",
        )
    };
    let lengthen = |found: Finding| {
        let text = format!(
            "let more packets wait: {limit} now, and {burst} more at most came at once (between two looks), {SPARED} and to no \
             less than {DEFAULT_BACKLOG}, the kernel's own; {PERSIST}"
        );
        let set = [("net.core.netdev_max_backlog", wanted.to_string())];
        found.sysctl(text, &set, "longer queues are longer delays")
    };
    match (is_busy, limit < DEFAULT_BACKLOG) {
        (true, false) => spread(found),
        (true, true) => lengthen(spread(found)),
        (false, _) => spread(lengthen(found)),
    }
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
        observe::{
            interfaces::Interface,
            softnet::{Cpu, Softnet},
        },
        report::diagnosis::{Fix, Severity},
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
        window.softnet = vec![Cpu {
            before: softnet(u32::MAX, u32::MAX - 9, 0),
            after: softnet(9, 90, 4),
            ..Cpu::default()
        }];
        let findings = window.findings();
        assert_eq!(
            (findings[0].id, findings[0].severity),
            ("receive-path-drops", Severity::Critical)
        );
        assert_eq!(findings[0].affected[0].name, "3");
        assert!(findings[0].summary.starts_with("10 received packets"));
    }

    #[test]
    fn bursts_get_a_longer_queue_and_a_cpu_without_time_gets_help() {
        let fixes = |limit: &str, burst, idle| {
            let mut window = quiet();
            window.set("net.core.netdev_max_backlog", limit);
            window.softnet = vec![Cpu {
                before: softnet(0, 0, 0),
                after: softnet(9000, 90_000, 0),
                burst,
                idle: Some(idle),
            }];
            let fixes = window.findings().remove(0).fixes;
            let value = |fix: &Fix| fix.set.first().map(|(_, value)| value.clone());
            fixes.iter().map(value).collect::<Vec<_>>()
        };
        let set = |value: &str| Some(value.to_owned());
        // (1000 + 3000) x 1.5
        assert_eq!(fixes("1000", 3000, 0.6), [set("8192"), None]);
        assert_eq!(fixes("1000", 3000, 0.01), [None]);
        assert_eq!(fixes("3", 90, 0.01), [None, set("1000")]);
        assert_eq!(fixes("3", 90, 0.6), [set("1000"), None]);
    }

    #[test]
    fn squeezed_rounds_and_unwanted_packets_lose_nothing() {
        let mut window = quiet();
        window.softnet = vec![Cpu {
            before: softnet(5, 10, 0),
            after: softnet(5, 100_000, 400),
            ..Cpu::default()
        }];
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
