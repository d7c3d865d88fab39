//! An interface carries very many very small packets: the host is bound by packets, not by bytes.

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, named},
    in_each,
    window::{Netns, Window, ratio},
};
use crate::{
    observe::interfaces::Interface,
    report::diagnosis::{Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "small-packet-load",
    title: "very many very small packets",
    check,
    explanation: Explanation {
        symptom: "Hundreds of thousands of packets per second, interrupts and softirq high, bandwidth low.",
        cause: "Each packet costs the same on its way through napi_poll(), ip_rcv() and tcp_v4_rcv(), however small it is. \
                Connections that are opened for each request consist of such packets; GRO cannot merge them.",
        recognised: "An interface carried over 100,000 packets per second of under 128 bytes on average. It is a warning only \
                     when a CPU left work undone (time_squeeze).",
        fixes: &[
            (
                "keep-alive: handshakes are nothing but small packets",
                "none",
            ),
            (
                "interrupt coalescing and GRO (ethtool -C, -K)",
                "some latency",
            ),
        ],
    },
};

const MANY: f64 = 100_000.0;
const SMALL: f64 = 128.0;

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let found = netns.after.interfaces.iter().filter_map(|(name, after)| {
            let before = netns.before.interfaces.get(name)?;
            describe(window, netns, (name, before, after))
        });
        Ok(found.collect())
    })
}

fn describe(
    window: &Window,
    netns: &Netns,
    (name, before, after): (&str, &Interface, &Interface),
) -> Option<Finding> {
    let received = after.rx_packets.checked_sub(before.rx_packets)?;
    let sent = after.tx_packets.checked_sub(before.tx_packets)?;
    let bytes = after.rx_bytes.checked_sub(before.rx_bytes)?
        + after.tx_bytes.checked_sub(before.tx_bytes)?;
    let rate = window.rate(received + sent);
    let mean = ratio(bytes, received + sent);
    if rate < MANY || mean >= SMALL {
        return None;
    }
    let squeezed: u64 = window
        .softnet
        .iter()
        .map(|cpu| u64::from(cpu.after.squeezed.wrapping_sub(cpu.before.squeezed)))
        .sum();
    let severity = if squeezed > 0 {
        Severity::Warning
    } else {
        Severity::Info
    };
    let opened =
        netns.grown("Tcp.ActiveOpens").unwrap_or(0) + netns.grown("Tcp.PassiveOpens").unwrap_or(0);
    Some(
        finding(
            RULE.id,
            severity,
            Confidence::Medium,
            format!(
                "interface {name}{} carries {rate:.0} packets/s of {mean:.0} bytes: the host is bound by packets, not by bytes",
                netns.place()
            ),
        )
        .measured(format!("{rate:.0} packets/s"), rate, "packets/s", "interface counters")
        .measured(format!("{mean:.0} bytes each"), mean, "bytes", "interface counters")
        .counted(
            format!("{opened} connections were opened meanwhile: each is at least 7 small packets"),
            opened,
            "connections",
            "Tcp.ActiveOpens, Tcp.PassiveOpens",
        )
        .counted(format!("{squeezed} rounds ended with work left"), squeezed, "rounds", "softnet_stat time_squeeze")
        .hits([named("interface", name, Some(netns.inode))])
        .application(
            "keep connections open, send larger writes",
            &[("keepalive", "on".to_owned())],
            "none",
        )
        .command(
            format!("let the device gather packets: ethtool -K {name} gro on; ethtool -C {name} adaptive-rx on"),
            "some latency",
        ),
    )
}

#[cfg(test)]
mod tests {
    use crate::{diagnose::fixtures::quiet, observe::interfaces::Interface};

    #[test]
    fn packets_must_be_many_and_small() {
        for (packets, bytes, expected) in [
            (3_000_000, 200_000_000, true),
            (3_000_000, 3_000_000_000, false),
            (3000, 200_000, false),
        ] {
            let mut window = quiet();
            let interface = Interface {
                rx_packets: packets,
                rx_bytes: bytes,
                ..Interface::default()
            };
            let netns = window.netns();
            netns
                .before
                .interfaces
                .insert("eth0".to_owned(), Interface::default());
            netns.after.interfaces.insert("eth0".to_owned(), interface);
            let found = window.ids().contains(&"small-packet-load");
            assert_eq!(found, expected, "{packets} {bytes}");
        }
    }
}
