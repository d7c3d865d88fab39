//! Services that wait for one another, or in connect().

use super::*;

/// `web` at port 80 serves `held` connections at once and has one each open to `app` at port 9000, which serves two; 20/s
/// come from this machine, and 5/s are served.
fn two_tiers(held: u32) -> Window {
    let mut window = quiet();
    window.listen(80, 20, &[21; 10]);
    window.serving(80, held, 50);
    window.grow(&[("TcpExt.ListenOverflows", 150), ("Tcp.PassiveOpens", 100)]);
    let group = [
        ("stage", Value::Word("syn-accept-queue")),
        ("listener_port", Value::Unsigned(80)),
    ];
    window.total("listeners", 150, &group);
    let group = [
        ("role", Value::Word("client")),
        ("service_port", Value::Unsigned(80)),
    ];
    window.total("lifetimes", 200, &group);
    window.netns().after.addresses = [[10, 0, 0, 1].into()].into();
    window.listen(9000, 10, &[6; 10]);
    window.serving(9000, 2, 50);
    let application = crate::observe::processes::Process {
        pid: 200,
        comm: "app".to_owned(),
        sockets: vec![79_000],
        ..window.processes.by_pid[&100].clone()
    };
    window.processes.by_pid.insert(200, application);
    let web = window.processes.by_pid.get_mut(&100).unwrap();
    (web.comm, web.sockets) = ("web".to_owned(), vec![70_080]);
    let to = crate::observe::diag::Destination {
        local: [10, 0, 0, 1].into(),
        remote: [10, 0, 0, 1].into(),
        port: 9000,
    };
    let ports = crate::observe::diag::Ports {
        open: held,
        ..Default::default()
    };
    window.sockets().ports.insert(to, ports);
    window.total("connects", 50, &[("dport", Value::Unsigned(9000))]);
    let connect = [
        ("pid", Value::Unsigned(100)),
        ("daddr", Value::Ip([10, 0, 0, 1].into())),
        ("dport", Value::Unsigned(9000)),
    ];
    window.event("connects", 50, &connect);
    window
}

fn services(window: &Window) -> Vec<(Option<u16>, Option<&'static str>)> {
    let findings = window.findings();
    let told = findings
        .iter()
        .filter(|found| found.id == "application-not-accepting");
    told.map(|found| (found.affected[0].port, found.behind))
        .collect()
}

#[test]
fn a_service_that_waits_for_another_stands_behind_it() {
    let expected = vec![
        (Some(9000), None),
        (Some(80), Some("application-not-accepting")),
    ];
    for held in [8, 40] {
        let window = two_tiers(held);
        assert_eq!(services(&window), expected);
        let findings = window.findings();
        let (first, second) = (&findings[0], &findings[1]);
        assert_eq!(first.severity, Severity::Critical);
        assert!(
            first.summary.contains("port 80 of web waits for it"),
            "{}",
            first.summary
        );
        // What comes to the first: 20/s x 0.4 s / 0.8.
        let text = &first.fixes[0].text;
        assert!(text.contains("20.0 arrivals/s at port 80 of web"), "{text}");
        assert_eq!(first.fixes[0].set[0].1, "10");
        assert!(second.fixes.iter().all(|fix| fix.set.is_empty()));
    }
}

#[test]
fn a_service_beside_another_does_not_wait_for_it() {
    let alone = vec![(Some(80), None)];
    // Others have these connections.
    let mut window = two_tiers(8);
    window.events.forget("connects");
    assert_eq!(services(&window), alone);
    // It has too few connections to it.
    let mut window = two_tiers(8);
    let ports = &mut window.sockets().ports;
    for ports in ports.values_mut() {
        ports.open = 3;
    }
    assert_eq!(services(&window), alone);
    // Nobody waits there: it takes time, but has enough workers.
    let mut window = two_tiers(8);
    window.netns().queues[1].depths = vec![0, 0, 1, 0, 0, 0, 1, 0, 0, 0];
    assert_eq!(services(&window), alone);
    let fixes = window.findings()[0].fixes.clone();
    assert!(
        fixes[1]
            .text
            .contains("see whether 10.0.0.1:9000 (app) is what is slow")
    );
}

#[test]
fn what_comes_to_the_first_of_three_comes_to_the_last() {
    let mut window = two_tiers(8);
    // `app` serves two at once as it waits for `db`, which serves two as well.
    window.listen(5432, 128, &[1; 10]);
    window.serving(5432, 2, 50);
    let web = window.processes.by_pid.get_mut(&100).unwrap();
    web.sockets = vec![70_080];
    let database = crate::observe::processes::Process {
        pid: 300,
        comm: "db".to_owned(),
        sockets: vec![75_432],
        ..web.clone()
    };
    window.processes.by_pid.insert(300, database);
    let to = crate::observe::diag::Destination {
        local: [10, 0, 0, 1].into(),
        remote: [10, 0, 0, 1].into(),
        port: 5432,
    };
    let ports = crate::observe::diag::Ports {
        open: 2,
        ..Default::default()
    };
    window.sockets().ports.insert(to, ports);
    window.total("connects", 50, &[("dport", Value::Unsigned(5432))]);
    let connect = [
        ("pid", Value::Unsigned(200)),
        ("daddr", Value::Ip([10, 0, 0, 1].into())),
        ("dport", Value::Unsigned(5432)),
    ];
    window.event("connects", 50, &connect);
    let behind = Some("application-not-accepting");
    let told = services(&window);
    assert_eq!(told[0], (Some(5432), None));
    assert!(
        told[1..].iter().all(|(_, found)| *found == behind),
        "{told:?}"
    );
    let (value, text) = first_fix(&window);
    assert!(
        text.contains("20.0 arrivals/s at port 9000 of app"),
        "{text}"
    );
    assert_eq!(value[0].1, "10");
}

/// As [`two_tiers`], but `web` reaches `app` through `proxy` at port 8000, in whose queue nobody waits. The proxy holds
/// `held` connections, `web` has `open` to it, and it has `proxied` to `app`.
fn through_a_proxy(held: u32, open: u32, proxied: u32) -> Window {
    let mut window = two_tiers(8);
    window.listen(8000, 511, &[0; 10]);
    window.serving(8000, held, 50);
    let proxy = crate::observe::processes::Process {
        pid: 300,
        comm: "proxy".to_owned(),
        sockets: vec![78_000],
        ..window.processes.by_pid[&100].clone()
    };
    window.processes.by_pid.insert(300, proxy);
    let web = window.processes.by_pid.get_mut(&100).unwrap();
    web.sockets = vec![70_080];
    window.events.forget("connects");
    for (port, pid, open) in [(8000, 100, open), (9000, 300, proxied)] {
        let local = [10, 0, 0, 1].into();
        let to = crate::observe::diag::Destination {
            local,
            remote: local,
            port,
        };
        let ports = crate::observe::diag::Ports {
            open,
            ..Default::default()
        };
        window.sockets().ports.insert(to, ports);
        let connect = [
            ("pid", Value::Unsigned(pid)),
            ("daddr", Value::Ip(local)),
            ("dport", Value::Unsigned(port.into())),
        ];
        window.event("connects", 50, &connect);
    }
    window.total("connects", 50, &[("dport", Value::Unsigned(8000))]);
    window
}

#[test]
fn a_service_that_waits_for_another_through_a_proxy_stands_behind_it() {
    let window = through_a_proxy(8, 8, 8);
    let expected = vec![
        (Some(9000), None),
        (Some(80), Some("application-not-accepting")),
    ];
    assert_eq!(services(&window), expected);
    let findings = window.findings();
    let (first, second) = (&findings[0], &findings[1]);
    // 20/s come to the outermost: x 0.4 s / 0.8.
    let text = &first.fixes[0].text;
    assert!(
        text.contains("20.0 arrivals/s at port 80 of web x"),
        "{text}"
    );
    assert_eq!(first.fixes[0].set[0].1, "10");
    let told = "it waits for 10.0.0.1:9000 (app) through 10.0.0.1:8000 (proxy)";
    assert!(second.summary.ends_with(told), "{}", second.summary);
    assert!(second.fixes.iter().all(|fix| fix.set.is_empty()));
    // The proxy waits for others, as a rule.
    assert_eq!(services(&through_a_proxy(8, 8, 3)), [(Some(80), None)]);
    // Half of the connections to the proxy are idle; or half of what it holds is of others.
    assert_eq!(services(&through_a_proxy(16, 16, 8)), expected);
    assert_eq!(services(&through_a_proxy(16, 8, 8)), [(Some(80), None)]);
}

#[test]
fn who_tries_again_at_the_last_tier_is_counted_once_before_the_first() {
    let mut window = through_a_proxy(8, 8, 8);
    let group = [
        ("stage", Value::Word("syn-accept-queue")),
        ("listener_port", Value::Unsigned(9000)),
    ];
    window.total("listeners", 900, &group);
    window.grow(&[("TcpExt.ListenOverflows", 900)]);
    window.netns().queues[1].depths = vec![11; 10];
    window.netns().queues[1].listener.queue = 11;
    let (_, text) = first_fix(&window);
    assert!(
        text.contains("20.0 arrivals/s at port 80 of web x"),
        "{text}"
    );
}

/// A service that serves 8, and has as many connections to a database that takes none; so many wait in `connect()`.
fn dead_upstream(trying: u64) -> Window {
    let mut window = busy(8);
    window.hold_ports(5432, 0, 8, 0);
    window.sockets().states[2] = trying;
    let connect = [
        ("pid", Value::Unsigned(100)),
        ("outcome", Value::Word("failed")),
        ("errno", Value::Word("EHOSTUNREACH")),
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(5432)),
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(40_000)),
    ];
    window.event("connects", 20, &connect);
    window
}

#[test]
fn workers_that_wait_in_connect_stand_behind_what_is_wrong_with_its_destination() {
    let window = dead_upstream(8);
    assert_eq!(
        window.told(),
        [
            ("syn-retransmits", None),
            ("application-not-accepting", Some("syn-retransmits")),
        ]
    );
    let found = &window.findings()[1];
    assert!(
        found
            .summary
            .ends_with("it waits in connect() for 10.0.0.2:5432"),
        "{}",
        found.summary
    );
    assert!(found.fixes.iter().all(|fix| fix.set.is_empty()));
    let mut evidence = found.evidence.iter();
    let told = "while it serves 8 connections, 8 connections wait in connect() for 10.0.0.2:5432 (SYN-SENT)";
    assert!(evidence.any(|line| line.text == told), "{found:?}");
}

#[test]
fn workers_that_wait_for_an_answer_over_open_connections_do_not_wait_in_connect() {
    let window = dead_upstream(2);
    let findings = window.findings();
    let mut evidence = findings.iter().flat_map(|found| &found.evidence);
    let told =
        "6 connections are open to 10.0.0.2:5432, and 2 connections wait in connect() (SYN-SENT)";
    assert!(evidence.any(|line| line.text.ends_with(told)));
    let found = findings
        .iter()
        .find(|found| found.id == "application-not-accepting");
    assert_eq!(found.unwrap().behind, None);
}

#[test]
fn one_that_is_just_being_connected_to_is_no_reason_where_most_connects_succeed() {
    let mut window = dead_upstream(8);
    let connect = [
        ("pid", Value::Unsigned(100)),
        ("outcome", Value::Word("established")),
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(5432)),
    ];
    window.event("connects", 80, &connect);
    let found = &window.findings()[0];
    assert_eq!(found.id, "application-not-accepting");
    assert!(!found.summary.contains("connect()"), "{}", found.summary);
}

#[test]
fn a_destination_that_no_connect_to_has_ended_yet_is_known_by_its_syns() {
    let mut window = dead_upstream(8);
    window.events.forget("connects");
    let again = [
        ("pid", Value::Unsigned(100)),
        ("cause", Value::Word("syn")),
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(5432)),
    ];
    window.event("retransmits", 20, &again);
    window.grow(&[("TcpExt.TCPSynRetrans", 20)]);
    let behind = ("application-not-accepting", Some("syn-retransmits"));
    assert!(window.told().contains(&behind), "{:?}", window.told());
}

/// As [`dead_upstream`], but that answers, and so much that is sent to it is sent again in each of 10 s.
fn lossy_upstream(timeouts: u64) -> Window {
    let mut window = dead_upstream(2);
    window.events.forget("connects");
    let to = [
        ("pid", Value::Unsigned(100)),
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(5432)),
    ];
    let established = [("outcome", Value::Word("established"))];
    window.event("connects", 80, &[&to[..], &established].concat());
    for number in 0..timeouts {
        let again = [
            ("sport", Value::Unsigned(40_000 + number)),
            ("cause", Value::Word("syn")),
            ("state", Value::Word("SYN-SENT")),
        ];
        window.event("retransmits", 1, &[&to[..], &again].concat());
    }
    let timeouts = timeouts.try_into().unwrap();
    window.grow(&[("TcpExt.TCPSynRetrans", timeouts)]);
    window
}

#[test]
fn workers_that_wait_for_what_is_lost_stand_behind_what_loses_it() {
    // 50 of the 80 s of eight workers.
    let window = lossy_upstream(50);
    assert_eq!(
        window.told(),
        [
            ("syn-retransmits", None),
            ("application-not-accepting", Some("syn-retransmits")),
        ]
    );
    let found = &window.findings()[1];
    let said = "; it waits for 10.0.0.2:5432, to which packets are lost";
    assert!(found.summary.ends_with(said), "{}", found.summary);
    assert!(found.fixes.iter().all(|fix| fix.set.is_empty()));
    let first = &found.fixes[0].text;
    assert!(
        first.starts_with("mend the way to 10.0.0.2:5432 first: its workers wait for it"),
        "{first}"
    );
    let mut evidence = found.evidence.iter();
    let told = "for at least 50.0 of 80.0 s of theirs, they waited until what they had sent to 10.0.0.2:5432 was sent again";
    assert!(evidence.any(|line| line.text == told), "{found:?}");
    // They wait for something else, most of the time.
    let window = lossy_upstream(30);
    let findings = window.findings();
    let found = findings
        .iter()
        .find(|found| found.id == "application-not-accepting");
    let found = found.unwrap();
    assert_eq!(found.behind, None);
    assert!(!found.fixes[0].set.is_empty(), "{:?}", found.fixes);
}

#[test]
fn two_that_wait_for_each_other_are_not_both_behind() {
    let mut window = two_tiers(8);
    let to = crate::observe::diag::Destination {
        local: [10, 0, 0, 1].into(),
        remote: [10, 0, 0, 1].into(),
        port: 80,
    };
    let ports = crate::observe::diag::Ports {
        open: 8,
        ..Default::default()
    };
    window.sockets().ports.insert(to, ports);
    let connect = [
        ("pid", Value::Unsigned(200)),
        ("daddr", Value::Ip([10, 0, 0, 1].into())),
        ("dport", Value::Unsigned(80)),
    ];
    window.event("connects", 50, &connect);
    let told = services(&window);
    let first = told.iter().filter(|(_, behind)| behind.is_none()).count();
    assert_eq!((told.len(), first), (2, 1));
}
