//! Which finding must be fixed first: what stops connections earliest in their life comes first,
//! and what is only its consequence, or will show once it is fixed, stands behind it.

use std::net::IpAddr;

use super::{RULES, window::Window};
use crate::report::diagnosis::{Affected, Checked, Finding, Severity};

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

/// What goes wrong at single services: nothing follows from it at others, however near they are.
const AT_SERVICES: &[&str] = &[
    "firewall-drops",
    "fd-exhaustion",
    "application-not-accepting",
    "accept-queue-overflow",
    "syn-backlog-full",
    "idle-reset",
];

/// What stops nothing until it is critical: before, it is a forecast.
const FORECASTS: &[&str] = &["conntrack-table-full", "fd-exhaustion"];

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
pub(super) fn order(findings: &mut [Finding], window: &Window) {
    for index in 0..findings.len() {
        let behind = cause(&findings[index], findings, window);
        findings[index].behind = behind;
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

/// What all of an effect follows from: the first cause, where there are several.
fn cause(effect: &Finding, findings: &[Finding], window: &Window) -> Option<&'static str> {
    let causes = FOLLOWS.iter().filter(|(_, all)| all.contains(&effect.id));
    let fills = FILLS.iter().filter(|(_, table)| *table == effect.id);
    let ids = fills
        .map(|(reason, _)| *reason)
        .chain(causes.map(|(cause, _)| *cause));
    let possible = |id| {
        findings
            .iter()
            .filter(move |finding| finding.id == id && may_explain(finding, effect))
    };
    let causes: Vec<&Finding> = ids.flat_map(possible).collect();
    let hit: Vec<&Affected> = services(effect).collect();
    if hit.is_empty() {
        let mut meeting = causes.iter().filter(|cause| meet(cause, effect));
        return meeting.next().map(|cause| cause.id);
    }
    let explains = |cause: &Finding, hit: &Affected| {
        if AT_SERVICES.contains(&cause.id) && services(cause).next().is_some() {
            return services(cause).any(|service| is_same(service, hit, window));
        }
        meet(cause, effect)
            || services(cause).any(|service| is_same(service, hit, window))
            || is_in(hit, cause, window)
    };
    let by_hit = hit
        .iter()
        .map(|hit| causes.iter().find(|cause| explains(cause, hit)));
    let by_hit: Option<Vec<_>> = by_hit.collect();
    Some(by_hit?.first()?.id)
}

/// Whether a finding that may be the cause of another is bad enough for that.
fn may_explain(cause: &Finding, effect: &Finding) -> bool {
    let is_filling = |reason: &Finding, table: &Finding| {
        FILLS.contains(&(reason.id, table.id)) && table.severity < Severity::Critical
    };
    let is_filled = FILLS.contains(&(cause.id, effect.id)) && !is_filling(cause, effect);
    let is_forecast = FORECASTS.contains(&cause.id) && cause.severity < Severity::Critical;
    cause.severity >= Severity::Warning && !is_forecast && !is_filled && !is_filling(effect, cause)
}

/// The services that a finding names.
fn services(finding: &Finding) -> impl Iterator<Item = &Affected> {
    finding.affected.iter().filter(|hit| hit.port.is_some())
}

/// Whether two are one service: a listener and a destination of its clients, who may be in another namespace, or twice
/// the same.
fn is_same(one: &Affected, other: &Affected, window: &Window) -> bool {
    if one.port != other.port {
        return false;
    }
    let is_at = |listener: &Affected, address: IpAddr| match listener.address {
        Some(own) if !own.is_unspecified() => {
            own == address && (!own.is_loopback() || listener.netns == other.netns)
        }
        Some(any) if any.is_ipv4() && address.is_ipv6() => false,
        _ => is_local(address, listener.netns, other.netns, window),
    };
    match (one.address, other.address) {
        (_, Some(address)) if !address.is_unspecified() => is_at(one, address),
        (Some(address), _) if !address.is_unspecified() => is_at(other, address),
        _ => one.netns == other.netns,
    }
}

/// Whether a service is one of the namespaces that a cause hits.
fn is_in(service: &Affected, cause: &Finding, window: &Window) -> bool {
    let Some(address) = service.address else {
        return false;
    };
    let mut places = cause.affected.iter().filter(|hit| hit.netns.is_some());
    places.any(|hit| is_local(address, hit.netns, service.netns, window))
}

/// Whether an address that was seen in a namespace is one of namespace `owner`. Where its addresses are not known, it is
/// that which it was seen in.
fn is_local(address: IpAddr, owner: Option<u32>, seen_in: Option<u32>, window: &Window) -> bool {
    let mut all = window.namespaces.iter();
    let known = all.find(|netns| Some(netns.inode) == owner);
    match known.map(|netns| &netns.after.addresses) {
        Some(addresses) if !addresses.is_empty() && !address.is_loopback() => {
            addresses.contains(&address)
        }
        _ => owner == seen_in,
    }
}

/// Whether two findings hit the same namespace, or one of them hits the whole machine.
fn meet(a: &Finding, b: &Finding) -> bool {
    let shares = |x: &Affected| {
        let mut others = b.affected.iter();
        x.netns.is_some() && others.any(|y| x.netns == y.netns)
    };
    a.affected.iter().any(shares)
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
    use std::net::SocketAddr;

    use super::*;
    use crate::{
        diagnose::{
            finding::{finding, named},
            fixtures::quiet,
        },
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
        order(&mut findings, &Window::default());
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

    /// A listener or destination in a namespace.
    fn service(netns: u32, end: &str) -> Affected {
        let end: SocketAddr = end.parse().unwrap();
        Affected {
            address: Some(end.ip()),
            port: Some(end.port()),
            ..named("destination", end.to_string(), Some(netns))
        }
    }

    /// Behind what the last of these findings stands: id, whether it is critical, and the service that is hit. Namespace
    /// 1 is that of 10.9.0.1.
    fn behind(all: &[(&'static str, bool, Affected)]) -> Option<&'static str> {
        let mut window = quiet();
        window.netns().inode = 1;
        window.netns().after.addresses = [[10, 9, 0, 1].into()].into();
        let mut findings: Vec<Finding> = all
            .iter()
            .map(|(id, is_critical, hit)| {
                let severity = [Severity::Warning, Severity::Critical][usize::from(*is_critical)];
                finding(id, severity, Confidence::High, String::new()).hits([hit.clone()])
            })
            .collect();
        order(&mut findings, &window);
        let (last, ..) = all.last().unwrap();
        findings.iter().find(|found| found.id == *last)?.behind
    }

    #[test]
    fn one_service_is_not_behind_what_is_wrong_with_another() {
        let dead = |end| ("syn-retransmits", true, service(2, end));
        let rule = ("firewall-drops", true, service(2, "10.9.0.1:25"));
        assert_eq!(behind(&[rule.clone(), dead("10.9.0.77:5432")]), None);
        assert_eq!(behind(&[rule, dead("10.9.0.1:25")]), Some("firewall-drops"));
        let full = ("accept-queue-overflow", true, service(1, "0.0.0.0:8080"));
        assert_eq!(behind(&[full.clone(), dead("10.9.0.77:8080")]), None);
        assert_eq!(
            behind(&[full.clone(), dead("10.9.0.1:8080")]),
            Some("accept-queue-overflow")
        );
        assert_eq!(behind(&[full, dead("[fd09::1]:8080")]), None);
        let poor = ("fd-exhaustion", true, service(1, "0.0.0.0:9001"));
        let slow = (
            "application-not-accepting",
            true,
            service(1, "0.0.0.0:8002"),
        );
        assert_eq!(behind(&[poor, slow]), None);
    }

    #[test]
    fn an_effect_with_another_service_beside_the_one_that_is_explained_stands_for_itself() {
        let full = finding(
            "accept-queue-overflow",
            Severity::Critical,
            Confidence::High,
            String::new(),
        );
        let mut findings = vec![full.hits([service(1, "10.9.0.1:80")])];
        let silent = finding(
            "syn-retransmits",
            Severity::Critical,
            Confidence::High,
            String::new(),
        );
        findings.push(silent.hits([service(1, "10.9.0.1:80"), service(1, "10.9.0.77:80")]));
        order(&mut findings, &quiet());
        assert!(findings.iter().all(|found| found.behind.is_none()));
    }

    #[test]
    fn a_full_table_stops_those_who_come_from_elsewhere_and_one_that_will_be_full_nobody() {
        for (end, is_full, expected) in [
            ("10.9.0.1:8080", true, Some("conntrack-table-full")),
            ("10.9.0.1:8080", false, None),
            ("10.9.0.77:8080", true, None),
        ] {
            let table = (
                "conntrack-table-full",
                is_full,
                named("netns", "x", Some(1)),
            );
            let silent = ("syn-retransmits", true, service(2, end));
            assert_eq!(behind(&[table, silent]), expected, "{end} {is_full}");
        }
        let table = ("conntrack-table-full", true, named("netns", "x", Some(1)));
        let rule = ("firewall-drops", true, service(1, "10.9.0.1:9000"));
        assert_eq!(behind(&[table, rule]), None);
    }

    #[test]
    fn what_fills_a_table_comes_first_until_the_table_is_full() {
        use Severity::{Critical, Warning};
        let (table, stale) = ("conntrack-table-full", "conntrack-stale-entries");
        for (severity, first, second) in [(Warning, stale, table), (Critical, table, stale)] {
            let mut findings = vec![found(table, severity, 1), found(stale, Warning, 1)];
            order(&mut findings, &Window::default());
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
        let search = [
            ("search_ns", Value::Unsigned(700_000)),
            ("daddr", Value::Ip([10, 0, 0, 2].into())),
            ("dport", Value::Unsigned(9000)),
        ];
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
