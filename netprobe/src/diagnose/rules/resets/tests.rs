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

/// Connections of a service that ended, by how.
fn lives(window: &mut Window, port: u64, result: &'static str, count: u64) {
    let group = [
        ("role", Value::Word("client")),
        ("result", Value::Word(result)),
        ("service_port", Value::Unsigned(port)),
    ];
    window.total("lifetimes", count, &group);
}

fn caused(window: &mut Window, cause: &'static str, port: u64, count: u64) {
    let group = [
        ("cause", Value::Word(cause)),
        ("service_port", Value::Unsigned(port)),
    ];
    window.total("resets", count, &group);
}

#[test]
fn clients_that_leave_are_a_note_and_a_failing_service_is_not_hidden_by_a_busy_one() {
    let told = |ports: &[(u64, u64, u64)]| {
        let mut window = quiet();
        for (port, ended, reset) in ports {
            lives(&mut window, *port, "fin", ended - reset);
            lives(&mut window, *port, "reset", *reset);
            caused(&mut window, "unread-data", *port, *reset);
        }
        window.grow(&[("Tcp.PassiveOpens", 100_000)]);
        let findings = window.findings();
        findings.first().map(|found| (found.id, found.severity))
    };
    assert_eq!(told(&[(80, 600, 18)]), Some(("resets", Severity::Info)));
    assert_eq!(told(&[(80, 10_000, 18)]), None);
    let both = [(80, 90_000, 50), (8080, 100, 60)];
    assert_eq!(told(&both), Some(("resets", Severity::Warning)));
}

fn received(window: &mut Window, from: ([u8; 4], u64), count: usize) {
    let total = [
        ("direction", Value::Word("received")),
        ("service_port", Value::Unsigned(from.1)),
    ];
    window.total("resets", count as u64, &total);
    let event = [
        ("direction", Value::Word("received")),
        ("state", Value::Word("ESTAB")),
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(41_000)),
        ("daddr", Value::Ip(from.0.into())),
        ("dport", Value::Unsigned(from.1)),
        ("idle_ns", Value::Unsigned(1_000_000)),
        ("age_ns", Value::Unsigned(3_000_000)),
        ("comm", Value::Text("client".into())),
    ];
    window.event("resets", count, &event);
}

#[test]
fn connections_in_use_that_a_peer_resets_are_a_warning_that_names_it() {
    let mut window = quiet();
    received(&mut window, ([10, 0, 0, 2], 8000), 300);
    lives(&mut window, 8000, "reset", 300);
    let findings = window.findings();
    assert_eq!(
        (findings[0].id, findings[0].severity),
        ("resets", Severity::Warning)
    );
    let summary = &findings[0].summary;
    for words in [
        "300 connections of client to 10.0.0.2:8000",
        "100 %",
        "established",
        "within 3 ms",
    ] {
        assert!(summary.contains(words), "{summary}");
    }
    assert_eq!(findings[0].affected[0].kind, "destination");
    // A few of many.
    lives(&mut window, 8000, "fin", 20_000);
    assert_eq!(window.findings()[0].severity, Severity::Info);
}

#[test]
fn clients_that_reset_a_server_here_are_no_incident_of_it() {
    let mut window = quiet();
    window.listen(41_000, 128, &[0; 10]);
    received(&mut window, ([10, 0, 0, 2], 50_000), 300);
    assert!(window.ids().is_empty());
}

#[test]
fn what_the_sender_here_gives_a_reason_for_is_told_once() {
    let mut window = quiet();
    received(&mut window, ([10, 0, 0, 2], 8000), 300);
    let sent = [
        ("direction", Value::Word("sent")),
        ("cause", Value::Word("unread-data")),
        ("service_port", Value::Unsigned(8000)),
    ];
    window.total("resets", 300, &sent);
    assert_eq!(window.ids(), ["resets"]);
    assert!(window.findings()[0].summary.contains("without reading"));
}

#[test]
fn one_address_of_two_that_refuses_is_a_note_if_the_other_answers() {
    let mut window = quiet();
    window.listen(6379, 128, &[0; 10]);
    window.sockets().listeners[0].address = [127, 0, 0, 1].into();
    caused(&mut window, "refused", 6379, 50);
    let event = [
        ("direction", Value::Word("received")),
        ("cause", Value::Word("refused")),
        ("saddr", Value::Ip(std::net::Ipv6Addr::LOCALHOST.into())),
        ("sport", Value::Unsigned(41_000)),
        ("daddr", Value::Ip(std::net::Ipv6Addr::LOCALHOST.into())),
        ("dport", Value::Unsigned(6379)),
    ];
    window.event("resets", 50, &event);
    let findings = window.findings();
    assert_eq!(findings[0].severity, Severity::Warning);
    assert!(
        findings[0].summary.contains("127.0.0.1:6379 only"),
        "{}",
        findings[0].summary
    );
    let through = [
        ("outcome", Value::Word("established")),
        ("dport", Value::Unsigned(6379)),
    ];
    window.total("connects", 50, &through);
    assert_eq!(window.findings()[0].severity, Severity::Info);
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
