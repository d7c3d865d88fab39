//! Connections are reset while they are in use, by reason.

use std::collections::BTreeMap;

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, somewhere},
    in_each,
    window::{Netns, Window, endpoint, ratio},
};
use crate::report::{
    Value,
    diagnosis::{Affected, Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "resets",
    title: "connections are reset",
    check,
    explanation: Explanation {
        symptom: "\"Connection reset by peer\", \"connection refused\" or \"broken pipe\" under load.",
        cause: "A reset has a reason: nobody listens at the port (tcp_v4_send_reset()), the application closed with data \
                unread or got data after it closed (tcp_close(), tcp_rcv_state_process()), it closed with SO_LINGER 0, \
                keepalive or tcp_user_timeout gave up, or the kernel did (orphans, memory).",
        recognised: "The resets probe counts them by direction and cause. Deliberate ones (SO_LINGER 0, disconnect) and those \
                     to ports that nobody listens at are only noted, as is what is below one per cent of connections.",
        fixes: &[
            (
                "unread data: have the server read requests to their end before it closes",
                "none",
            ),
            ("refused: start the service, or correct the port", "none"),
            ("timeout: see path-loss and idle-reset", "none"),
        ],
    },
};

const LEAST: u64 = 5;
const MUCH: f64 = 0.01;

/// Causes, how bad they are, and what they mean.
const CAUSES: &[(&str, bool, &str)] = &[
    (
        "unread-data",
        true,
        "the application closed without reading all that had come",
    ),
    (
        "data-after-close",
        true,
        "data came for a connection that the application had closed",
    ),
    (
        "listener-closed",
        true,
        "the listener was closed before it accepted",
    ),
    (
        "timeout",
        true,
        "keepalive or the user timeout had no answer",
    ),
    ("orphan", true, "the kernel gave up a closed connection"),
    (
        "refused",
        true,
        "the peer refused the connection: nobody listens there",
    ),
    (
        "no-listener",
        false,
        "SYNs came for ports that nobody listens at",
    ),
    (
        "no-connection",
        false,
        "packets came that belong to no connection any more",
    ),
    (
        "time-wait",
        false,
        "packets came for connections in TIME_WAIT",
    ),
    (
        "unexpected-ack",
        false,
        "acknowledgements that belong to no handshake",
    ),
    (
        "linger-0",
        false,
        "the application closed with SO_LINGER 0, on purpose",
    ),
    (
        "disconnect",
        false,
        "the application disconnected, on purpose",
    ),
    ("killed", false, "somebody killed the sockets (ss -K)"),
];

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        window.watched_required("resets")?;
        let inode = netns.inode.to_string();
        let opened = netns.grown("Tcp.ActiveOpens")? + netns.grown("Tcp.PassiveOpens")?;
        let mut found = Vec::new();
        for (cause, is_bad, meaning) in CAUSES {
            let group = [("cause", *cause), ("netns", inode.as_str())];
            let count = window.events.count("resets", &group);
            if count < LEAST || ratio(count, opened.max(count)) < MUCH {
                continue;
            }
            let severity = if *is_bad {
                Severity::Warning
            } else {
                Severity::Info
            };
            found.push((
                count,
                describe(window, netns, (cause, meaning), (count, severity)),
            ));
        }
        found.sort_by_key(|(count, finding)| std::cmp::Reverse((finding.severity, *count)));
        // One of them explains the others, as a rule: each reset is sent and received.
        Ok(found
            .into_iter()
            .take(2)
            .map(|(_, finding)| finding)
            .collect())
    })
}

/// The services that it hits, the worst first.
fn services(window: &Window, netns: &Netns, cause: &str) -> Vec<Affected> {
    let mut services = BTreeMap::<_, (u32, Option<u32>, Option<String>)>::new();
    for event in window.events.within("resets", netns.inode) {
        if !event.is("cause", cause) {
            continue;
        }
        let local = event.ip("saddr").zip(event.small::<u16>("sport"));
        let remote = event.ip("daddr").zip(event.small::<u16>("dport"));
        let Some((local, remote)) = local.zip(remote) else {
            continue;
        };
        let is_server = local.1 < remote.1;
        let (kind, end) = if is_server {
            ("listener", local)
        } else {
            ("destination", remote)
        };
        let entry =
            services
                .entry((end, kind))
                .or_insert((0, event.small("pid"), event.text("comm")));
        entry.0 += 1;
    }
    let mut services: Vec<_> = services.into_iter().collect();
    services.sort_by_key(|(_, (count, ..))| std::cmp::Reverse(*count));
    let hits = services
        .into_iter()
        .take(3)
        .map(|(((address, port), kind), (_, pid, comm))| Affected {
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

fn describe(
    window: &Window,
    netns: &Netns,
    (cause, meaning): (&str, &str),
    (count, severity): (u64, Severity),
) -> Finding {
    let mut hits = services(window, netns, cause);
    let place = hits
        .first()
        .map_or(String::new(), |hit| format!(" ({} {})", hit.kind, hit.name));
    if hits.is_empty() {
        hits.push(somewhere(netns));
    }
    let inode = netns.inode.to_string();
    let group = [("cause", cause), ("netns", inode.as_str())];
    let reasons: Vec<String> = window
        .events
        .groups("resets", &group)
        .filter_map(|total| {
            total.group.iter().find_map(|(name, value)| match value {
                Value::Text(reason) if *name == "reason" => Some(reason.to_string()),
                _ => None,
            })
        })
        .take(3)
        .collect();
    let found = finding(
        RULE.id,
        severity,
        Confidence::High,
        format!(
            "{count} resets{}{place} in {:.0} s: {meaning}",
            netns.place(),
            window.seconds
        ),
    )
    .counted(
        format!("{count} resets with cause {cause}"),
        count,
        "resets",
        "resets",
    );
    let found = if reasons.is_empty() {
        found
    } else {
        found.counted(
            format!("the kernel's reason: {}", reasons.join(", ")),
            count,
            "resets",
            "tcp_send_reset",
        )
    };
    let advice = match cause {
        "unread-data" => "have the application read to the end before it closes",
        "data-after-close" => {
            "have the application wait for the peer's end (shutdown, then read) before it closes"
        }
        "refused" => "start the service, or correct address and port",
        "timeout" => "the peer is gone: see whether path-loss is found too",
        _ => "netprobe resets shows each of them with its process",
    };
    found.hits(hits).command(advice, "none")
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::{fixtures::quiet, window::Window},
        report::{Value, diagnosis::Severity},
    };

    fn resets(window: &mut Window, cause: &'static str, count: u64) {
        window.total("resets", count, &[("cause", Value::Word(cause))]);
    }

    #[test]
    fn bad_causes_are_warnings_and_deliberate_ones_notes() {
        for (cause, severity) in [
            ("unread-data", Severity::Warning),
            ("refused", Severity::Warning),
            ("linger-0", Severity::Info),
            ("no-listener", Severity::Info),
        ] {
            let mut window = quiet();
            resets(&mut window, cause, 50);
            let findings = window.findings();
            assert_eq!(
                (findings[0].id, findings[0].severity),
                ("resets", severity),
                "{cause}"
            );
        }
    }

    #[test]
    fn a_few_among_many_connections_are_nothing() {
        let mut window = quiet();
        resets(&mut window, "unread-data", 50);
        window.grow(&[("Tcp.PassiveOpens", 50_000)]);
        assert!(window.ids().is_empty());
    }

    #[test]
    fn every_cause_of_the_probe_is_known_here() {
        use super::CAUSES;
        for raw in 1..=u8::MAX {
            let Some(name) = crate::probes::resets::cause_name(raw) else {
                break;
            };
            assert!(CAUSES.iter().any(|(cause, ..)| *cause == name), "{name}");
        }
    }
}
