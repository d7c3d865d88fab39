mod after_the_end;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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

#[test]
fn services_that_fail_alike_are_told_apart() {
    let mut window = quiet();
    for (port, reset, ended) in [(8001, 75, 150), (8000, 100, 100)] {
        lives(&mut window, port, "reset", reset);
        lives(&mut window, port, "fin", ended - reset);
        caused(&mut window, "unread-data", port, reset);
    }
    let findings = window.findings();
    let summary = &findings[0].summary;
    assert!(summary.starts_with("100 resets"), "{summary}");
    assert!(summary.ends_with("; 75 more at port 8001"), "{summary}");
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
        ("saddr", Value::Ip(Ipv6Addr::LOCALHOST.into())),
        ("sport", Value::Unsigned(41_000)),
        ("daddr", Value::Ip(Ipv6Addr::LOCALHOST.into())),
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

/// Connections to port 8090 of an address that are refused, of one process.
fn refused_at(window: &mut Window, address: IpAddr, comm: &str, count: usize) {
    refused_of(window, address, (comm, 1), count);
}

fn refused_of(window: &mut Window, address: IpAddr, (comm, pid): (&str, u64), count: usize) {
    caused(window, "refused", 8090, count as u64);
    let ends = [
        ("saddr", Value::Ip(address)),
        ("sport", Value::Unsigned(41_000)),
        ("daddr", Value::Ip(address)),
        ("dport", Value::Unsigned(8090)),
        ("pid", Value::Unsigned(pid)),
        ("comm", Value::Text(comm.into())),
    ];
    let with = |more: [(&'static str, Value); 2]| [ends.to_vec(), more.to_vec()].concat();
    let reset = with([
        ("direction", Value::Word("received")),
        ("cause", Value::Word("refused")),
    ]);
    window.event("resets", count, &reset);
    let connect = with([
        ("outcome", Value::Word("failed")),
        ("errno", Value::Word("ECONNREFUSED")),
    ]);
    window.event("connects", count, &connect);
}

fn listening_at(address: impl Into<IpAddr>) -> Window {
    let mut window = quiet();
    window.listen(8090, 128, &[0; 10]);
    window.sockets().listeners[0].address = address.into();
    let now = window.sockets().clone();
    window.netns().before.sockets = Some(now);
    window
}

#[test]
fn a_wildcard_of_ipv4_refuses_ipv6_and_is_a_note_where_the_same_process_gets_through() {
    let mut window = listening_at(Ipv4Addr::UNSPECIFIED);
    refused_at(&mut window, Ipv6Addr::LOCALHOST.into(), "webapp", 60);
    let found = window.findings().remove(0);
    let is_told = |text: &str| text.contains("server listens at 0.0.0.0:8090, IPv4 only");
    assert!(is_told(&found.summary), "{}", found.summary);
    assert_eq!(found.severity, Severity::Warning);
    assert!(!format!("{found:?}").contains("firewall"), "{found:?}");
    let through = [
        ("outcome", Value::Word("established")),
        ("daddr", Value::Ip(Ipv4Addr::LOCALHOST.into())),
        ("dport", Value::Unsigned(8090)),
        ("comm", Value::Text("webapp".into())),
        ("pid", Value::Unsigned(1)),
    ];
    window.event("connects", 60, &through);
    assert_eq!(window.findings()[0].severity, Severity::Info);
    // Another process that never gets through is none the better for it.
    refused_of(&mut window, Ipv6Addr::LOCALHOST.into(), ("other", 2), 60);
    assert_eq!(window.findings()[0].severity, Severity::Warning);
}

#[test]
fn a_process_that_never_gets_through_is_not_excused_by_one_of_the_same_name() {
    let through = |pid: u64| {
        [
            ("outcome", Value::Word("established")),
            ("daddr", Value::Ip(Ipv4Addr::LOCALHOST.into())),
            ("dport", Value::Unsigned(8090)),
            ("comm", Value::Text("python3".into())),
            ("pid", Value::Unsigned(pid)),
        ]
    };
    let mut window = listening_at(Ipv4Addr::UNSPECIFIED);
    refused_of(&mut window, Ipv6Addr::LOCALHOST.into(), ("python3", 1), 60);
    window.event("connects", 60, &through(2));
    assert_eq!(window.findings()[0].severity, Severity::Warning);
    window.event("connects", 60, &through(1));
    assert_eq!(window.findings()[0].severity, Severity::Info);
    // Of clients that live for a moment, one sees the refusal of this and the connection of that.
    let mut window = listening_at(Ipv4Addr::UNSPECIFIED);
    for pid in 0..60 {
        refused_of(&mut window, Ipv6Addr::LOCALHOST.into(), ("curl", pid), 1);
        window.event(
            "connects",
            1,
            &through(100 + pid).map(|(name, value)| match name {
                "comm" => (name, Value::Text("curl".into())),
                _ => (name, value),
            }),
        );
    }
    assert_eq!(window.findings()[0].severity, Severity::Info);
}

#[test]
fn of_a_host_that_is_not_seen_nobody_knows_whether_it_listens() {
    let mut window = quiet();
    let own = [10, 0, 0, 1].into();
    window.netns().after.addresses = [own].into();
    refused_at(&mut window, [10, 9, 9, 9].into(), "webapp", 60);
    let said = |window: &Window, text: &str| {
        let summary = window.findings()[0].summary.clone();
        assert!(summary.contains(text), "{summary}");
    };
    said(&window, "nobody listens there, or a firewall rejects them");
    // Here it is known.
    let mut window = quiet();
    window.netns().after.addresses = [own].into();
    refused_at(&mut window, own, "webapp", 60);
    assert!(
        window.findings()[0]
            .summary
            .ends_with("nobody listens there")
    );
}

/// A client that is refused at an address that two other namespaces have: 90, in which nobody listens, and 92; and what
/// the kernel of 90 answered meanwhile.
fn with_twins(address: IpAddr, answers: usize) -> Window {
    let mut window = listening_at(Ipv4Addr::UNSPECIFIED);
    let answer = [
        ("direction", Value::Word("sent")),
        ("cause", Value::Word("no-listener")),
        ("saddr", Value::Ip(address)),
        ("sport", Value::Unsigned(8090)),
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(41_000)),
    ];
    window.event("resets", answers, &answer);
    window.relocate(90);
    refused_at(&mut window, address, "webapp", 60);
    let client = quiet().namespaces.remove(0);
    let mut twins = [client.clone(), window.namespaces.remove(0)];
    for (inode, twin) in [90, 92].into_iter().zip(&mut twins) {
        (twin.inode, twin.is_initial) = (inode, false);
        twin.after.addresses = [address].into();
    }
    window.namespaces.push(client);
    window.namespaces.extend(twins);
    window.netns().after.addresses = [[10, 0, 0, 2].into()].into();
    window
}

#[test]
fn of_two_namespaces_with_the_same_address_that_is_meant_which_refuses_or_listens() {
    let said = |window: Window, text: &str| {
        let summary = window.findings()[0].summary.clone();
        assert!(summary.ends_with(text), "{summary}");
    };
    let v6 = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1);
    let beside = "server listens at 0.0.0.0:8090, IPv4 only";
    said(with_twins(v6.into(), 0), beside);
    let unseen = "though server listens there; no firewall of this machine was seen to drop them";
    let v4 = [10, 0, 0, 1].into();
    said(with_twins(v4, 0), unseen);
    said(with_twins(v4, 9), "nobody listens there");
}

#[test]
fn a_wildcard_of_ipv6_takes_ipv4_unless_it_is_told_not_to() {
    let mut window = listening_at(Ipv6Addr::UNSPECIFIED);
    refused_at(&mut window, Ipv4Addr::LOCALHOST.into(), "webapp", 60);
    let said = |window: &Window, text: &str| window.findings()[0].summary.contains(text);
    assert!(said(&window, "though server listens there"));
    window.sockets().listeners[0].is_v6_only = true;
    assert!(said(&window, "server listens at [::]:8090, IPv6 only"));
}

#[test]
fn no_firewall_is_named_where_none_was_seen_to_drop() {
    let mut window = listening_at(Ipv4Addr::UNSPECIFIED);
    refused_at(&mut window, Ipv4Addr::LOCALHOST.into(), "webapp", 60);
    let summary = |window: &Window| window.findings()[0].summary.clone();
    assert!(summary(&window).contains("no firewall of this machine was seen to drop them"));
    let before = window.netns().before.sockets.as_mut();
    before.unwrap().listeners[0].ino += 1;
    let said = summary(&window);
    assert!(
        said.contains("server was restarted meanwhile") && !said.contains("firewall"),
        "{said}"
    );
    let before = window.netns().before.sockets.as_mut();
    before.unwrap().listeners.clear();
    assert!(summary(&window).contains("server began to listen there only meanwhile"));
    let dropped = [
        ("reason", Value::Word("NETFILTER_DROP")),
        ("flags", Value::TcpFlags(2)),
        ("saddr", Value::Ip(Ipv4Addr::LOCALHOST.into())),
        ("sport", Value::Unsigned(41_000)),
        ("daddr", Value::Ip(Ipv4Addr::LOCALHOST.into())),
        ("dport", Value::Unsigned(8090)),
    ];
    window.event("drops", 60, &dropped);
    assert!(summary(&window).contains("a firewall rule of this machine rejects them"));
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

#[test]
fn a_port_that_nobody_listens_at_is_no_listener() {
    let name = |window: &Window| {
        let findings = window.findings();
        let hit = &findings[0].affected[0];
        (hit.kind, hit.name.clone(), findings[0].summary.clone())
    };
    let mut window = quiet();
    resets(&mut window, "no-connection", 500);
    let reset = [
        ("cause", Value::Word("no-connection")),
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(9)),
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(40_000)),
    ];
    window.event("resets", 500, &reset);
    let (kind, hit, summary) = name(&window);
    assert_eq!((kind, hit.as_str()), ("destination", "10.0.0.1:9"));
    assert!(summary.ends_with("belong to no connection"), "{summary}");
    // Somebody did, when the window began.
    window.listen(9, 10, &[0; 10]);
    let listeners = std::mem::take(&mut window.sockets().listeners);
    let before = window.netns().before.sockets.as_mut().unwrap();
    before.listeners = listeners;
    assert_eq!(name(&window).0, "listener");
}

#[test]
fn a_destination_in_use_that_refuses_all_is_critical_and_a_health_check_is_not() {
    let address: IpAddr = [10, 9, 9, 9].into();
    let told = |window: &Window| {
        let found = window.findings();
        let found = found.iter().find(|found| found.id == "resets").unwrap();
        (found.severity, found.summary.clone())
    };
    let through = |to: [u8; 4], pid: u64| {
        [
            ("outcome", Value::Word("established")),
            ("daddr", Value::Ip(to.into())),
            ("dport", Value::Unsigned(8090)),
            ("comm", Value::Text("webapp".into())),
            ("pid", Value::Unsigned(pid)),
        ]
    };
    let mut window = quiet();
    refused_at(&mut window, address, "webapp", 300);
    let (severity, summary) = told(&window);
    assert_eq!(severity, Severity::Critical);
    assert!(
        summary.contains("no connect to it gets through"),
        "{summary}"
    );
    // Others get through at another address.
    window.event("connects", 300, &through([10, 9, 9, 8], 7));
    assert_eq!(told(&window).0, Severity::Critical);
    // It tries another instance itself.
    let mut proxy = window.clone();
    proxy.event("connects", 300, &through([10, 9, 9, 8], 1));
    assert_eq!(told(&proxy).0, Severity::Warning);
    // One of them gets through.
    window.event("connects", 1, &through([10, 9, 9, 9], 1));
    assert_eq!(told(&window).0, Severity::Warning);
    // One instance of many at the same port.
    let mut window = quiet();
    refused_at(&mut window, address, "proxy", 50);
    for instance in 0..40 {
        window.event("connects", 50, &through([10, 9, 8, instance], 1));
    }
    let port = [
        ("role", Value::Word("client")),
        ("result", Value::Word("fin")),
        ("service_port", Value::Unsigned(8090)),
    ];
    window.total("lifetimes", 2000, &port);
    assert_eq!(told(&window).0, Severity::Warning);
    // Five a second are checks, as far as anybody knows.
    let mut window = quiet();
    refused_at(&mut window, address, "haproxy", 50);
    assert_eq!(told(&window).0, Severity::Warning);
}

#[test]
fn a_service_that_closes_at_once_is_one_finding_whatever_was_first() {
    let mut window = quiet();
    window.listen(6379, 100, &[0; 10]);
    for (cause, count, pid) in [
        ("data-after-close", 53, None),
        ("unread-data", 48, Some(16)),
    ] {
        caused(&mut window, cause, 6379, count);
        let mut event = vec![
            ("cause", Value::Word(cause)),
            ("direction", Value::Word("sent")),
            ("saddr", Value::Ip([10, 0, 0, 1].into())),
            ("sport", Value::Unsigned(6379)),
            ("daddr", Value::Ip([10, 0, 0, 2].into())),
            ("dport", Value::Unsigned(41_000)),
        ];
        event.extend(pid.map(|pid| ("pid", Value::Unsigned(pid))));
        window.event("resets", 20, &event);
    }
    window.grow(&[("Tcp.PassiveOpens", 106)]);
    let life = [
        ("role", Value::Word("server")),
        ("result", Value::Word("reset")),
        ("sport", Value::Unsigned(6379)),
        ("duration_ns", Value::Unsigned(300_000)),
    ];
    window.event("lifetimes", 50, &life);
    let findings = window.findings();
    assert_eq!(window.ids(), ["resets"]);
    let found = &findings[0];
    let said = "data came for a connection that the application had closed; 48 more: the application closed without reading";
    assert!(found.summary.contains(said), "{}", found.summary);
    assert_eq!(found.affected.len(), 1);
    assert_eq!(found.affected[0].pid, Some(16));
    let last = &found.evidence.last().unwrap().text;
    assert!(
        last.contains("closed as soon as they were accepted"),
        "{last}"
    );
    assert!(found.fixes[0].text.contains("turns clients away"));
    assert_eq!(found.severity, Severity::Critical);
    // Three of four are served.
    let mut served = life.clone();
    served[1].1 = Value::Word("fin");
    window.event("lifetimes", 150, &served);
    assert_eq!(window.findings()[0].severity, Severity::Warning);
}

#[test]
fn a_client_that_ends_is_a_note_and_one_that_goes_on_closing_early_a_warning() {
    let mut window = quiet();
    resets(&mut window, "unread-data", 50);
    let reset = |pid: u64| {
        [
            ("cause", Value::Word("unread-data")),
            ("direction", Value::Word("sent")),
            ("saddr", Value::Ip([10, 0, 0, 1].into())),
            ("sport", Value::Unsigned(40_000)),
            ("daddr", Value::Ip([10, 9, 9, 9].into())),
            ("dport", Value::Unsigned(8000)),
            ("comm", Value::Text("wrk".into())),
            ("pid", Value::Unsigned(pid)),
        ]
    };
    window.event("resets", 50, &reset(7));
    let told = |window: &Window| window.findings()[0].clone();
    assert_eq!(told(&window).severity, Severity::Warning);
    window.events.date("resets", 1_000_000_000);
    let ended = told(&window);
    assert_eq!(ended.severity, Severity::Info, "{}", ended.summary);
    assert!(
        ended.summary.ends_with("as where wrk ends"),
        "{}",
        ended.summary
    );
    let mut two = window.clone();
    two.event("resets", 1, &reset(8));
    two.events.date("resets", 1_000_000_000);
    assert_eq!(told(&two).severity, Severity::Warning);
    let mut on_and_on = window;
    on_and_on.event("resets", 1, &reset(7));
    on_and_on.events.date_last("resets", 3_000_000_000);
    assert_eq!(told(&on_and_on).severity, Severity::Warning);
}

#[test]
fn resets_of_connections_in_use_are_a_part_of_those_that_were_looked_at() {
    let mut window = quiet();
    received(&mut window, ([10, 0, 0, 2], 8000), 1);
    window.total(
        "resets",
        179,
        &[
            ("direction", Value::Word("received")),
            ("service_port", Value::Unsigned(8000)),
        ],
    );
    let other = [
        ("direction", Value::Word("received")),
        ("state", Value::Word("FIN-WAIT-2")),
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(41_000)),
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(8000)),
    ];
    window.event("resets", 59, &other);
    lives(&mut window, 8000, "reset", 180);
    assert!(window.ids().is_empty());
}

#[test]
fn who_is_away_for_moments_elsewhere_is_told_from_who_is_not_there() {
    let service: IpAddr = [10, 9, 9, 9].into();
    let mut window = quiet();
    refused_of(&mut window, service, ("client", 7), 40);
    window.grow(&[("Tcp.ActiveOpens", 100)]);
    let summary = |window: &Window| window.findings()[0].summary.clone();
    let said = "nobody listens there, or a firewall rejects them: that end cannot be seen here";
    assert!(summary(&window).contains(said), "{}", summary(&window));
    let through = [
        ("outcome", Value::Word("established")),
        ("daddr", Value::Ip(service)),
        ("dport", Value::Unsigned(8090)),
    ];
    window.event("connects", 60, &through);
    let said = "others get through: nobody listens there for moments (a restart)";
    assert!(summary(&window).contains(said), "{}", summary(&window));
}
