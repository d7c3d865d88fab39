//! What stands first and what behind it: findings that are made up, and the stages of the lab.

use std::net::SocketAddr;

use super::*;
use crate::{
    diagnose::{
        finding::{finding, named},
        fixtures::quiet,
    },
    report::{Value, diagnosis::Confidence},
};

fn found(id: &'static str, severity: Severity, netns: u32) -> Finding {
    finding(id, severity, Confidence::High, String::new()).hits([named("netns", "x", Some(netns))])
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
/// 1 is that of 10.9.0.1, and 2 that of 10.9.0.2.
fn behind(all: &[(&'static str, bool, Affected)]) -> Option<&'static str> {
    let mut window = quiet();
    window.netns().inode = 1;
    window.netns().after.addresses = [[10, 9, 0, 1].into()].into();
    let mut other = window.netns().clone();
    other.inode = 2;
    other.after.addresses = [[10, 9, 0, 2].into()].into();
    window.namespaces.push(other);
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
fn the_very_listener_is_a_cause_before_its_namespace_unless_it_follows_from_that_itself() {
    let slow = ("application-not-accepting", true, service(1, "0.0.0.0:80"));
    let late = ("syn-retransmits", false, service(2, "10.9.0.1:80"));
    let of_netns = |id| (id, true, named("netns", "x", Some(1)));
    for (near, expected) in [
        ("receive-path-drops", "application-not-accepting"),
        ("conntrack-table-full", "conntrack-table-full"),
    ] {
        let all = [of_netns(near), slow.clone(), late.clone()];
        assert_eq!(behind(&all), Some(expected));
    }
}

#[test]
fn what_hits_several_services_stands_behind_the_cause_that_explains_most_of_it() {
    let found = |id, hits: &[&str]| {
        let hits = hits.iter().map(|end| service(1, end));
        finding(id, Severity::Critical, Confidence::High, String::new()).hits(hits)
    };
    let behind = |hits: &[&str]| {
        let mut findings = [
            found("fd-exhaustion", &["0.0.0.0:7301"]),
            found("accept-queue-overflow", &["0.0.0.0:7300", "0.0.0.0:7302"]),
            found("half-open-established", hits),
        ];
        order(&mut findings, &quiet());
        findings[2].behind
    };
    let full = Some("accept-queue-overflow");
    assert_eq!(
        behind(&["0.0.0.0:7301", "0.0.0.0:7300", "0.0.0.0:7302"]),
        full
    );
    assert_eq!(
        behind(&["0.0.0.0:7301", "0.0.0.0:7300"]),
        Some("fd-exhaustion")
    );
    assert_eq!(behind(&["0.0.0.0:7300", "0.0.0.0:7999"]), None);
}

#[test]
fn a_service_that_waits_in_connect_is_behind_what_is_first_wrong_with_that_destination() {
    let told = |awaited: &str| {
        let found =
            |id, hit| finding(id, Severity::Critical, Confidence::High, String::new()).hits([hit]);
        let mut waiting = found("application-not-accepting", service(2, "10.9.0.2:9001"));
        waiting.awaits = Some(service(2, awaited));
        let mut findings = [
            waiting,
            found("syn-retransmits", service(2, "10.9.0.77:5432")),
            found("syn-retransmits", service(2, "10.9.0.1:25")),
            found("firewall-drops", service(2, "10.9.0.1:25")),
        ];
        order(&mut findings, &quiet());
        let waiting = findings.iter().find(|found| found.awaits.is_some());
        waiting.unwrap().behind
    };
    assert_eq!(told("10.9.0.1:25"), Some("firewall-drops"));
    assert_eq!(told("10.9.0.77:5432"), Some("syn-retransmits"));
    assert_eq!(told("10.9.0.78:5432"), None);
}

#[test]
fn a_service_whose_workers_wait_for_what_is_lost_is_behind_what_loses_it() {
    let told = |awaited: &str, others: &[(&'static str, bool)]| {
        let found = |id, is_critical, end| {
            let severity = [Severity::Warning, Severity::Critical][usize::from(is_critical)];
            finding(id, severity, Confidence::High, String::new()).hits([service(2, end)])
        };
        let mut waiting = found("application-not-accepting", true, "10.9.0.2:8081");
        waiting.awaits = Some(service(2, awaited));
        let others = others.iter();
        let others = others.map(|(id, is_critical)| found(id, *is_critical, "10.9.0.1:9001"));
        let mut findings: Vec<Finding> = std::iter::once(waiting).chain(others).collect();
        order(&mut findings, &quiet());
        let waiting = findings.iter().find(|found| found.awaits.is_some());
        waiting.unwrap().behind
    };
    let (loss, late) = (("path-loss", false), ("syn-retransmits", false));
    assert_eq!(told("10.9.0.1:9001", &[loss]), Some("path-loss"));
    assert_eq!(told("10.9.0.1:9001", &[late, loss]), Some("path-loss"));
    // The same way, and another.
    assert_eq!(told("10.9.0.1:9002", &[loss]), Some("path-loss"));
    assert_eq!(told("10.9.0.3:9001", &[loss]), None);
    let rule = ("firewall-drops", true);
    let all = [rule, late, loss];
    assert_eq!(told("10.9.0.1:9001", &all), Some("firewall-drops"));
}

#[test]
fn who_does_not_read_follows_from_memory_that_its_own_connections_hold() {
    let short = ("tcp-memory-pressure", true, service(1, "0.0.0.0:7000"));
    let unread = |end| ("long-held-connections", false, service(1, end));
    let told = behind(&[short.clone(), unread("0.0.0.0:7000")]);
    assert_eq!(told, Some("tcp-memory-pressure"));
    assert_eq!(behind(&[short, unread("0.0.0.0:9000")]), None);
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
fn half_open_connections_follow_from_a_full_queue_and_not_from_a_rule_beside_it() {
    let rule = ("firewall-drops", true, service(1, "10.9.0.1:9104"));
    let full = ("accept-queue-overflow", true, service(1, "0.0.0.0:9102"));
    let half = ("half-open-established", false, named("netns", "x", Some(1)));
    let expected = Some("accept-queue-overflow");
    assert_eq!(behind(&[rule.clone(), full, half.clone()]), expected);
    assert_eq!(behind(&[rule, half]), None);
}

#[test]
fn a_backlog_of_an_unknown_listener_is_not_behind_what_is_wrong_with_a_known_one() {
    let slow = (
        "application-not-accepting",
        true,
        service(1, "0.0.0.0:9003"),
    );
    let unknown = ("syn-backlog-full", false, named("netns", "x", Some(1)));
    assert_eq!(behind(&[slow, unknown]), None);
}

#[test]
fn handshakes_that_are_late_on_a_lossy_path_follow_from_it_and_those_with_others_or_never_answered_do_not()
 {
    let lossy = |netns, end| ("path-loss", false, service(netns, end));
    let late = |is_critical, netns, end| ("syn-retransmits", is_critical, service(netns, end));
    for (cause, effect, expected) in [
        (lossy(2, "10.9.0.1:80"), late(false, 2, "10.9.0.1:80"), true),
        (
            lossy(2, "10.9.0.1:80"),
            late(false, 2, "10.9.0.1:443"),
            true,
        ),
        (lossy(2, "10.9.0.1:80"), late(true, 2, "10.9.0.1:80"), false),
        // Nothing at all arrives there.
        (
            ("path-loss", true, service(2, "10.9.0.1:80")),
            late(true, 2, "10.9.0.1:80"),
            true,
        ),
        (
            lossy(2, "10.9.0.1:80"),
            late(false, 2, "10.9.0.77:80"),
            false,
        ),
        // The answers of 10.9.0.1 are lost on their way to its client.
        (
            lossy(1, "10.9.0.2:40001"),
            late(false, 2, "10.9.0.1:80"),
            true,
        ),
        (
            lossy(1, "10.9.0.3:40001"),
            late(false, 2, "10.9.0.1:80"),
            false,
        ),
    ] {
        let told = behind(&[cause.clone(), effect.clone()]);
        assert_eq!(
            told,
            expected.then_some("path-loss"),
            "{cause:?} {effect:?}"
        );
    }
}

#[test]
fn what_orphans_lose_follows_from_their_limit_unless_the_path_is_seen_to_lose() {
    use Severity::Warning;
    for (effect, netns, confidence, is_behind) in [
        ("path-loss", 1, Confidence::Medium, true),
        ("path-loss", 1, Confidence::High, false),
        ("path-loss", 2, Confidence::Medium, false),
        ("resets", 1, Confidence::High, true),
        ("resets", 2, Confidence::High, false),
    ] {
        let mut findings = vec![
            found("orphan-overflow", Warning, 1),
            found(effect, Warning, netns),
        ];
        findings[1].confidence = confidence;
        order(&mut findings, &Window::default());
        let expected = is_behind.then_some("orphan-overflow");
        assert_eq!(findings[1].behind, expected, "{effect} {netns}");
    }
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
    assert_eq!(
        window.told(),
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

#[test]
fn who_answers_none_is_not_explained_by_what_loses_some() {
    let dead = |is_critical| ("syn-retransmits", is_critical, service(1, "10.9.0.77:9000"));
    for (id, is_critical) in [("egress-queue-drops", false), ("receive-path-drops", true)] {
        let lossy = (id, is_critical, named("netns", "x", Some(1)));
        assert_eq!(behind(&[lossy.clone(), dead(true)]), None);
        assert_eq!(behind(&[lossy, dead(false)]), Some(id));
    }
}

#[test]
fn a_service_that_clients_know_by_another_address_is_one() {
    let told = |connections: u16| {
        let mut window = quiet();
        for port in 40_000..40_000 + connections {
            let packet = |to: [u8; 4], dport: u64| {
                [
                    ("saddr", Value::Ip([10, 1, 0, 1].into())),
                    ("sport", Value::Unsigned(port.into())),
                    ("daddr", Value::Ip(to.into())),
                    ("dport", Value::Unsigned(dport)),
                ]
            };
            window.event("connects", 1, &packet([10, 1, 0, 2], 8080));
            let flags = [("flags", Value::TcpFlags(2))];
            let syn = [&packet([10, 2, 0, 2], 80)[..], &flags].concat();
            window.event("drops", 1, &syn);
        }
        let found = |id, hit: Affected| {
            finding(id, Severity::Critical, Confidence::High, String::new()).hits([hit])
        };
        let mut findings = [
            found("firewall-drops", service(2, "10.2.0.2:80")),
            found("syn-retransmits", service(3, "10.1.0.2:8080")),
        ];
        order(&mut findings, &window);
        findings[1].behind
    };
    assert_eq!(told(5), Some("firewall-drops"));
    assert_eq!(told(0), None);
}
