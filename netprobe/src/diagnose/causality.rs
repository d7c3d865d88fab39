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
        &["syn-retransmits", "path-loss", "half-open-established"],
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
        let cause = FOLLOWS.iter().find_map(|(cause, effects)| {
            let may_follow = effects.contains(&effect.id);
            let cause = findings.iter().find(|finding| {
                finding.id == *cause
                    && finding.severity >= Severity::Warning
                    && meet(finding, effect)
            });
            cause.filter(|_| may_follow).map(|cause| cause.id)
        });
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
    fn every_id_of_the_tables_is_a_rule() {
        let causes = FOLLOWS.iter().map(|(cause, _)| *cause);
        let effects = FOLLOWS
            .iter()
            .flat_map(|(_, effects)| effects.iter().copied());
        for id in causes.chain(effects).chain(GATES.iter().copied()) {
            assert!(super::super::rule(id).is_some(), "{id}");
        }
    }
}
