//! TCP has taken all the memory that it may have: windows shrink and packets are dropped.

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, named, somewhere},
    in_each,
    sizing::{PERSIST, SPARED, bytes, roomy},
    window::{Gap, Netns, Window, ratio},
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

pub(super) static RULE: Rule = Rule {
    id: "tcp-memory-pressure",
    title: "TCP is out of memory",
    check,
    explanation: Explanation {
        symptom: "Throughput of all connections collapses, windows are small, some are reset; \"TCP: out of memory\" in dmesg.",
        cause: "All TCP sockets share net.ipv4.tcp_mem (in pages). Above the second value __sk_mem_raise_allocated() calls \
                tcp_enter_memory_pressure(), buffers no longer grow; above the third, packets are dropped (PROTO_MEM) and \
                orphans are killed (tcp_check_oom).",
        recognised: "TCPMemoryPressures grew, or the memory in sockstat is above the second value of tcp_mem, or packets \
                     were dropped with PROTO_MEM (TCPRcvQDrop).",
        fixes: &[
            (
                "raise net.ipv4.tcp_mem",
                "memory that the rest of the machine does not have",
            ),
            (
                "lower tcp_rmem and tcp_wmem maxima, or find the reader that does not read",
                "long fat paths need large buffers",
            ),
        ],
    },
};

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let entered = netns.grown("TcpExt.TCPMemoryPressures")?;
        let used = used(netns);
        let limits = netns.sysctl_words("net.ipv4.tcp_mem");
        if entered > 0 && limits.len() < 3 {
            return Err(Gap("tcp_mem cannot be read".to_owned()));
        }
        let dropped = dropped(window, netns);
        // The memory is that of all namespaces together, so it is told once.
        let teller = window.namespaces.iter().find(|netns| netns.is_initial);
        let teller = teller.or_else(|| window.namespaces.first());
        let is_over = teller.is_some_and(|teller| teller.inode == netns.inode)
            && limits
                .get(1)
                .is_some_and(|limit| *limit > 0 && ratio(used, *limit) >= 1.0);
        let is_hit = entered > 0 || dropped > 0;
        if !is_hit
            && (!is_over
                || window
                    .namespaces
                    .iter()
                    .any(|netns| is_short(window, netns)))
        {
            return Ok(Vec::new());
        }
        Ok(vec![describe(
            window,
            netns,
            (used, &limits),
            (entered, dropped),
        )])
    })
}

/// Packets that were dropped for want of memory. A drop from a receive queue does not tell its namespace on older kernels (6.1), but a counter does: of
/// packets that a socket has no room for, which is for want of memory where that is short.
fn dropped(window: &Window, netns: &Netns) -> u64 {
    let inode = netns.inode.to_string();
    let group = [("reason", "PROTO_MEM"), ("netns", inode.as_str())];
    let seen = window.events.count("drops", &group);
    let is_short = netns
        .sysctl_words("net.ipv4.tcp_mem")
        .get(1)
        .is_some_and(|limit| *limit > 0 && used(netns) >= *limit);
    let counted = netns.grown("TcpExt.TCPRcvQDrop").unwrap_or(0);
    if is_short { seen.max(counted) } else { seen }
}

/// Pages that TCP has taken.
fn used(netns: &Netns) -> u64 {
    netns.gauge("sockstat.TCP.mem").unwrap_or(0)
}

/// Whether connections of a namespace were refused memory.
fn is_short(window: &Window, netns: &Netns) -> bool {
    let entered = netns.grown("TcpExt.TCPMemoryPressures");
    entered.is_ok_and(|entered| entered > 0) || dropped(window, netns) > 0
}

/// How bad it is: above its limits nobody has to be refused anything, as long as nobody asks for more.
const fn weight(entered: u64, dropped: u64) -> (Severity, Confidence) {
    match (dropped, entered) {
        (0, 0) => (Severity::Warning, Confidence::Medium),
        (0, _) => (Severity::Warning, Confidence::High),
        _ => (Severity::Critical, Confidence::High),
    }
}

fn describe(
    window: &Window,
    netns: &Netns,
    (used, limits): (u64, &[u64]),
    (entered, dropped): (u64, u64),
) -> Finding {
    let (severity, confidence) = weight(entered, dropped);
    let [pressure, limit] = [1, 2].map(|place| limits.get(place).copied().unwrap_or(0));
    let pages = |count: u64| bytes(count * window.page_bytes);
    #[expect(clippy::cast_precision_loss, reason = "a size")]
    let wanted = roomy(used.max(limit) as f64);
    finding(
        RULE.id,
        severity,
        confidence,
        format!(
            "TCP{} is short of memory: {} of {} are in use, {dropped} packets were dropped for it in {:.0} s",
            netns.place(),
            pages(used),
            pages(limit),
            window.seconds
        ),
    )
    .counted(
        format!(
            "{used} pages ({}) in use; pressure from {pressure} ({}), none beyond {limit} ({})",
            pages(used),
            pages(pressure),
            pages(limit)
        ),
        used,
        "pages",
        "/proc/net/sockstat mem, net.ipv4.tcp_mem",
    )
    .counted(
        format!("TCP came under pressure {entered} times"),
        entered,
        "times",
        "TcpExt.TCPMemoryPressures",
    )
    .counted(
        format!("{dropped} packets dropped for want of memory"),
        dropped,
        "packets",
        "kfree_skb PROTO_MEM, TcpExt.TCPRcvQDrop",
    )
    // Where nobody in particular was refused, it is everybody's.
    .hits([if entered == 0 && dropped == 0 {
        named("table", "TCP memory", None)
    } else {
        somewhere(netns)
    }])
    .sysctl(
        format!(
            "allow {} (of {used} pages now and {limit} allowed the more, {SPARED}); {PERSIST}",
            pages(wanted)
        ),
        &[(
            "net.ipv4.tcp_mem",
            format!("{} {} {wanted}", wanted / 2, wanted / 4 * 3),
        )],
        "memory that the rest of the machine does not have",
    )
    .command(
        "see whose it is: ss -tm shows the memory of each connection; a reader that does not read fills its buffer",
        "none",
    )
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::fixtures::quiet,
        report::{
            Value,
            diagnosis::{Confidence, Severity},
        },
    };

    #[test]
    fn pressure_is_a_warning_and_drops_are_critical() {
        let mut window = quiet();
        window.grow(&[
            ("TcpExt.TCPMemoryPressures", 1),
            ("sockstat.TCP.mem", 160_000),
        ]);
        assert_eq!(window.findings()[0].severity, Severity::Warning);
        // Above the last limit, but nobody is refused.
        window.grow(&[
            ("TcpExt.TCPMemoryPressures", -1),
            ("sockstat.TCP.mem", 50_000),
        ]);
        let found = &window.findings()[0];
        assert_eq!(
            (found.severity, found.confidence),
            (Severity::Warning, Confidence::Medium)
        );
        let said = "210000 pages (820 MiB) in use; pressure from 150000 (585 MiB), none beyond 200000 (781 MiB)";
        assert_eq!(found.evidence[0].text, said);
        // Where the drop does not tell the namespace, its counter does, unless there is memory.
        window.grow(&[("TcpExt.TCPRcvQDrop", 9)]);
        let found = &window.findings()[0];
        assert_eq!(found.severity, Severity::Critical);
        assert!(
            found.summary.contains("9 packets were dropped"),
            "{}",
            found.summary
        );
        window.grow(&[("sockstat.TCP.mem", -150_000)]);
        assert!(window.ids().is_empty());
        window.grow(&[("TcpExt.TCPRcvQDrop", -9), ("sockstat.TCP.mem", 100_000)]);
        window.total("drops", 4, &[("reason", Value::Word("PROTO_MEM"))]);
        let findings = window.findings();
        assert_eq!(
            (findings[0].id, findings[0].severity),
            ("tcp-memory-pressure", Severity::Critical)
        );
        assert_eq!(findings[0].fixes[0].set[0].1, "262144 393216 524288");
        // It is that of all namespaces: told where packets were dropped.
        let mut there = window.netns().clone();
        (there.inode, there.is_initial) = (7, false);
        window.namespaces.push(there);
        window.relocate(7);
        let places = window.findings();
        let places: Vec<_> = places.iter().map(|found| found.affected[0].netns).collect();
        assert_eq!(places, [Some(7)]);
    }
}
