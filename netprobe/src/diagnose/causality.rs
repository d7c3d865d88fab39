//! Which finding must be fixed first: what stops connections earliest in their life comes first,
//! and what is only its consequence, or will show once it is fixed, stands behind it.

use super::RULES;
use crate::report::diagnosis::{Checked, Finding, Severity};

/// Causes, and what follows from each where it hits the same namespace or port.
const FOLLOWS: &[(&str, &[&str])] = &[
    (
        "neighbour-table-full",
        &["syn-retransmits", "path-loss", "resets"],
    ),
    ("route-cache-full", &["syn-retransmits", "path-loss"]),
    (
        "conntrack-table-full",
        &[
            "conntrack-stale-entries",
            "firewall-drops",
            "syn-retransmits",
            "path-loss",
            "half-open-established",
        ],
    ),
    (
        "firewall-drops",
        &[
            "syn-retransmits",
            "path-loss",
            "half-open-established",
            "resets",
        ],
    ),
    (
        "receive-path-drops",
        &["path-loss", "syn-retransmits", "small-packet-load"],
    ),
    (
        "fd-exhaustion",
        &[
            "application-not-accepting",
            "accept-queue-overflow",
            "half-open-established",
            "syn-backlog-full",
            "syn-retransmits",
            "path-loss",
            "resets",
        ],
    ),
    (
        "application-not-accepting",
        &[
            "accept-queue-overflow",
            "half-open-established",
            "syn-backlog-full",
            "syn-retransmits",
            "path-loss",
            "long-held-connections",
            "resets",
        ],
    ),
    (
        "accept-queue-overflow",
        &[
            "half-open-established",
            "syn-backlog-full",
            "syn-retransmits",
            "path-loss",
            "resets",
        ],
    ),
    (
        "syn-backlog-full",
        &["syn-retransmits", "half-open-established"],
    ),
    (
        "ephemeral-ports-exhausted",
        &[
            "port-search-cost",
            "time-wait-buildup",
            "short-lived-connections",
        ],
    ),
    (
        "port-search-cost",
        &["time-wait-buildup", "short-lived-connections"],
    ),
    ("time-wait-overflow", &["time-wait-buildup"]),
    ("time-wait-buildup", &["short-lived-connections"]),
    (
        "tcp-memory-pressure",
        &["orphan-overflow", "resets", "path-loss"],
    ),
    ("egress-queue-drops", &["path-loss", "syn-retransmits"]),
    ("idle-reset", &["resets"]),
];

/// What fills a table, and the table: until it is full and stops connections itself, the reason comes first.
const FILLS: &[(&str, &str)] = &[("conntrack-stale-entries", "conntrack-table-full")];

/// What follows only for the same service: a rule for one port resets no connections of another.
const AT_ONE_PORT: &[(&str, &str)] = &[("firewall-drops", "resets")];

/// What keeps connections from getting further, so that what comes later shows nothing.
const GATES: &[&str] = &[
    "neighbour-table-full",
    "route-cache-full",
    "conntrack-table-full",
    "fd-exhaustion",
    "application-not-accepting",
    "accept-queue-overflow",
    "ephemeral-ports-exhausted",
];

/// Sorts findings and marks those that stand behind another.
pub(super) fn order(findings: &mut [Finding]) {
    for index in 0..findings.len() {
        let effect = &findings[index];
        let causes = FOLLOWS.iter().flat_map(|(cause, effects)| {
            let effects = effects.iter();
            effects.map(move |effect| (*cause, *effect))
        });
        let mut causes = FILLS
            .iter()
            .copied()
            .chain(causes)
            .filter(|(_, id)| *id == effect.id);
        let cause = causes.find_map(|(cause, _)| {
            let mut findings = findings.iter().filter(|finding| finding.id == cause);
            findings.find(|cause| explains(cause, effect))
        });
        let cause = cause.map(|cause| cause.id);
        findings[index].behind = cause;
    }
    findings.sort_by_key(|finding| {
        (
            finding.severity < Severity::Warning,
            finding.behind.is_some(),
            std::cmp::Reverse(finding.severity),
            rank(finding.id),
        )
    });
}

/// Whether a finding that may be the cause of another is so here.
fn explains(cause: &Finding, effect: &Finding) -> bool {
    let is_filling = |reason: &Finding, table: &Finding| {
        FILLS.contains(&(reason.id, table.id)) && table.severity < Severity::Critical
    };
    let is_filled = FILLS.contains(&(cause.id, effect.id)) && !is_filling(cause, effect);
    cause.severity >= Severity::Warning
        && meet(cause, effect)
        && (!AT_ONE_PORT.contains(&(cause.id, effect.id)) || share_port(cause, effect))
        && !is_filled
        && !is_filling(effect, cause)
}

/// Whether two findings hit the same namespace or port.
fn meet(a: &Finding, b: &Finding) -> bool {
    let shares = |x: &crate::report::diagnosis::Affected| {
        b.affected.iter().any(|y| {
            (x.netns.is_some() && x.netns == y.netns) || (x.port.is_some() && x.port == y.port)
        })
    };
    a.affected.iter().any(shares)
        || a.affected.is_empty()
        || b.affected.is_empty()
        || a.affected.iter().all(|x| x.netns.is_none())
}

/// Whether two findings hit the same service.
fn share_port(a: &Finding, b: &Finding) -> bool {
    let ports = |finding: &Finding| -> Vec<u16> {
        finding.affected.iter().filter_map(|hit| hit.port).collect()
    };
    let others = ports(b);
    ports(a).iter().any(|port| others.contains(port))
}

/// The place in the list of rules, which is the order in which connections are stopped.
fn rank(id: &str) -> usize {
    RULES
        .iter()
        .position(|rule| rule.id == id)
        .unwrap_or(RULES.len())
}

/// Says of rules that found nothing when an earlier failure may keep them from seeing anything.
pub(super) fn mark_hidden(findings: &[Finding], checked: &mut [Checked]) {
    let gate = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Critical)
        .filter(|finding| GATES.contains(&finding.id))
        .min_by_key(|finding| rank(finding.id));
    let Some(gate) = gate else { return };
    for check in checked {
        let is_later = rank(check.id) > rank(gate.id);
        if check.verdict == "ok" && check.why.is_empty() && is_later {
            check.why = format!(
                "not seen; may still show once {} is fixed, which stops connections earlier",
                gate.id
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        diagnose::finding::{finding, named},
        report::diagnosis::Confidence,
    };

    fn found(id: &'static str, severity: Severity, netns: u32) -> Finding {
        finding(id, severity, Confidence::High, String::new()).hits([named(
            "netns",
            "x",
            Some(netns),
        )])
    }

    #[test]
    fn what_stops_connections_first_comes_first_and_the_rest_stands_behind_it() {
        use Severity::{Critical, Info, Warning};
        let mut findings = vec![
            found("short-lived-connections", Info, 1),
            found("syn-retransmits", Critical, 1),
            found("accept-queue-overflow", Critical, 1),
            found("time-wait-buildup", Warning, 2),
            found("conntrack-table-full", Critical, 1),
            found("path-loss", Warning, 3),
        ];
        order(&mut findings);
        let shown: Vec<_> = findings
            .iter()
            .map(|finding| (finding.id, finding.behind))
            .collect();
        assert_eq!(
            shown,
            [
                ("conntrack-table-full", None),
                ("accept-queue-overflow", None),
                ("time-wait-buildup", None),
                ("path-loss", None),
                ("syn-retransmits", Some("conntrack-table-full")),
                ("short-lived-connections", None),
            ]
        );
    }

    #[test]
    fn what_fills_a_table_comes_first_until_the_table_is_full() {
        use Severity::{Critical, Warning};
        let (table, stale) = ("conntrack-table-full", "conntrack-stale-entries");
        for (severity, first, second) in [(Warning, stale, table), (Critical, table, stale)] {
            let mut findings = vec![found(table, severity, 1), found(stale, Warning, 1)];
            order(&mut findings);
            assert_eq!(findings[0].id, first);
            assert_eq!(findings[0].behind, None);
            assert_eq!(findings[1].id, second);
            assert_eq!(findings[1].behind, Some(first));
        }
    }

    #[test]
    fn every_id_of_the_tables_is_a_rule() {
        let causes = FOLLOWS.iter().map(|(cause, _)| *cause);
        let effects = FOLLOWS
            .iter()
            .flat_map(|(_, effects)| effects.iter().copied());
        let fills = FILLS.iter().flat_map(|(reason, table)| [*reason, *table]);
        let gates = GATES.iter().copied();
        for id in causes.chain(effects).chain(fills).chain(gates) {
            assert!(super::super::rule(id).is_some(), "{id}");
        }
    }

    /// The lab of the incidents: each fix uncovers the next failure, and what is still hidden is
    /// said to be.
    #[test]
    #[expect(clippy::too_many_lines, reason = "one story, stage by stage")]
    fn the_chain_of_the_lab_is_told_stage_by_stage() {
        use crate::{
            diagnose::{diagnose, events::Events, fixtures::quiet},
            report::Value,
        };
        let mut window = quiet();
        window.listen(80, 10, &[0, 11, 0, 3, 11, 0, 0, 11, 0, 0]);
        window.listen(9000, 10, &[11; 10]);
        // Stage 1: the table is full; nothing gets further.
        window.set("net.netfilter.nf_conntrack_max", "200");
        window.set("net.netfilter.nf_conntrack_count", "200");
        window.grow(&[("nf_conntrack.drop", 900), ("TcpExt.TCPSynRetrans", 300)]);
        let (findings, checked) = diagnose(&window);
        assert_eq!(findings[0].id, "conntrack-table-full");
        assert_eq!(findings[1].behind, Some("conntrack-table-full"));
        let accept = checked
            .iter()
            .find(|check| check.id == "accept-queue-overflow");
        assert!(accept.is_some_and(|check| check.why.contains("once conntrack-table-full")));
        // Stage 2: the table has room; both queues overflow, one because nobody accepts.
        window.set("net.netfilter.nf_conntrack_max", "262144");
        window.grow(&[("nf_conntrack.drop", -900)]);
        window.grow(&[("TcpExt.ListenOverflows", 800)]);
        for (port, events) in [(80, 300), (9000, 500)] {
            let group = [
                ("stage", Value::Word("syn-accept-queue")),
                ("listener_port", Value::Unsigned(port)),
            ];
            window.total("listeners", events, &group);
        }
        let stage2 = window.ids();
        assert_eq!(
            stage2,
            [
                "application-not-accepting",
                "accept-queue-overflow",
                "syn-retransmits"
            ]
        );
        // Stage 3: queues and workers are larger; nginx finds no port to its upstream.
        window.grow(&[
            ("TcpExt.ListenOverflows", -800),
            ("TcpExt.TCPSynRetrans", -300),
        ]);
        window.events = Events::default();
        window.set("net.ipv4.ip_local_port_range", "20000 20050");
        window.set("net.ipv4.tcp_tw_reuse", "0");
        window.hold_ports(9000, 50, 1, 25);
        let group = [
            ("errno", Value::Word("EADDRNOTAVAIL")),
            ("dport", Value::Unsigned(9000)),
        ];
        window.total("connects", 400, &group);
        let search = [("search_ns", Value::Unsigned(700_000))];
        window.event("connects", 40, &search);
        let findings = window.findings();
        let told: Vec<_> = findings
            .iter()
            .map(|found| (found.id, found.behind))
            .collect();
        assert_eq!(
            told,
            [
                ("ephemeral-ports-exhausted", None),
                ("port-search-cost", Some("ephemeral-ports-exhausted")),
                ("time-wait-buildup", Some("ephemeral-ports-exhausted")),
            ]
        );
        // Stage 4: nothing fails any more.
        window.sockets().ports.clear();
        window.events = Events::default();
        assert!(window.ids().is_empty());
    }
}
