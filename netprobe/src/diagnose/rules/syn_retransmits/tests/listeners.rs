//! Listeners whose handshakes are not finished.

use super::*;

#[test]
fn both_ends_of_a_handshake_are_one_finding() {
    let mut window = connecting(0);
    let mut server = quiet().namespaces.remove(0);
    server.inode = 77;
    server.is_initial = false;
    server.after.counters.insert("TcpExt.TCPSynRetrans", 30);
    window.namespaces.push(server);
    let answer = [
        ("cause", Value::Word("syn-ack")),
        ("netns", Value::Unsigned(77)),
    ];
    window.events.totals.push(Total {
        kind: "retransmits",
        group: answer.to_vec(),
        events: 30,
        weight: 0,
    });
    let spec = PROBES.iter().find(|spec| spec.name() == "retransmits");
    let columns = spec.unwrap().columns;
    let listener = [
        ("saddr", Value::Ip([10, 0, 0, 2].into())),
        ("sport", Value::Unsigned(5432)),
    ];
    let values = columns.iter().map(|column| {
        let mut given = answer.iter().chain(&listener);
        let value = given.find(|(name, _)| *name == column.name);
        value.map_or(Value::Unknown, |(_, value)| value.clone())
    });
    let row = Row {
        kind: "retransmits",
        values: values.collect(),
        ..Row::default()
    };
    window.events.add(columns, &row);
    assert_eq!(window.ids(), ["syn-retransmits"]);
    let findings = window.findings();
    assert!(
        findings[0]
            .summary
            .contains("12 SYNs and 30 SYN-ACKs in namespace 77")
    );
    assert_eq!(findings[0].affected.len(), 2);
}

#[test]
fn a_listener_of_this_machine_comes_first() {
    let mut window = quiet();
    window.listen(80, 10, &[11; 10]);
    window.grow(&[("TcpExt.TCPSynRetrans", 12), ("TcpExt.ListenOverflows", 12)]);
    let findings = window.findings();
    assert_eq!(findings[0].id, "application-not-accepting");
    assert_eq!(findings[1].behind, Some("application-not-accepting"));
}

#[test]
fn answers_that_are_lost_are_told_from_segments_that_are_lost_both_ways() {
    let told = |answered: &[u64], link_downs: u32| {
        let mut window = quiet();
        for port in answered {
            let answer = [
                ("cause", Value::Word("syn-ack")),
                ("saddr", Value::Ip([10, 0, 0, 2].into())),
                ("sport", Value::Unsigned(5432)),
                ("daddr", Value::Ip([10, 0, 0, 1].into())),
                ("dport", Value::Unsigned(*port)),
            ];
            window.event("retransmits", 8, &answer);
        }
        window.total("retransmits", 30, &[("cause", Value::Word("syn-ack"))]);
        window.relocate(77);
        let mut server = quiet().namespaces.remove(0);
        server.inode = 77;
        server.is_initial = false;
        server.after.counters.insert("TcpExt.TCPSynRetrans", 30);
        let link = |link_downs| Interface {
            link_downs,
            ..Interface::default()
        };
        let name = || "eth0".to_owned();
        server.before.interfaces.insert(name(), link(0));
        server.after.interfaces.insert(name(), link(link_downs));
        window.namespaces.push(server);
        sent_again(&mut window, 12, "10.0.0.2:5432");
        window.findings()[0].summary.clone()
    };
    let summary = told(&[41_000], 0);
    assert!(
        summary.contains("lose their SYN-ACKs: 12 SYNs and 30 SYN-ACKs in namespace 77"),
        "{summary}"
    );
    assert!(
        summary.contains("the SYNs arrive and are answered (1 of 1"),
        "{summary}"
    );
    let summary = told(&[41_001], 0);
    assert!(
        summary.contains("lose segments") && summary.contains("what lies between"),
        "{summary}"
    );
    // What waited for the link came twice, and was answered as often.
    let summary = told(&[41_000], 1);
    assert!(
        summary.contains("lose segments")
            && summary.ends_with("meanwhile the link of eth0 in namespace 77 went down"),
        "{summary}"
    );
}

#[test]
fn a_listener_without_a_route_back_is_told_without_its_clients() {
    let mut window = quiet();
    window.namespaces.clear();
    routeless(&mut window, [308, 308, 0]);
    let found = window.findings().remove(0);
    let said = "namespace blue has no route back to some of its clients: 308 SYNs to 10.0.0.2:8000 were dropped in 10 s; no \
                handshake completes";
    assert_eq!(
        (found.summary.as_str(), found.severity),
        (said, Severity::Critical)
    );
    assert!(found.fixes[0].text.contains("ip netns exec blue ip route"));
    for (counters, severity) in [
        // Other clients are answered; or nearly all are.
        ([308, 308, 308], Some(Severity::Warning)),
        ([5, 5, 1000], None),
        // SYNs that are dropped for something else, and something else that has no route.
        ([308, 0, 0], None),
        ([0, 308, 0], None),
    ] {
        let mut window = quiet();
        window.namespaces.clear();
        routeless(&mut window, counters);
        let findings = window.findings();
        let told = findings.first().map(|found| found.severity);
        assert_eq!(told, severity, "{counters:?}");
    }
}

#[test]
fn a_client_here_of_a_listener_without_a_route_back_is_told_with_it() {
    let mut window = quiet();
    sent_again(&mut window, 12, "10.0.0.2:8000");
    routeless(&mut window, [12, 12, 0]);
    let findings = window.findings();
    let [found] = findings.as_slice() else {
        panic!("{findings:?}");
    };
    let said =
        "; they arrive, but namespace blue has no route back to 10.0.0.1: the listener drops them";
    assert!(found.summary.ends_with(said), "{}", found.summary);
    let fix = &found.fixes[0].text;
    assert!(
        fix.contains("ip netns exec blue ip route get 10.0.0.1"),
        "{fix}"
    );
    assert_eq!(found.fixes.len(), 1);
}

/// A listener at 8000 with so many connections, which sends three SYN-ACKs again to each of these clients; at the last of
/// them another one does.
fn unfinished_of(connections: u64, clients: &[&str], last: u64) -> Finding {
    let mut window = quiet();
    window.listen(8000, 128, &[0; 10]);
    for (place, client) in clients.iter().enumerate() {
        let end: std::net::SocketAddr = client.parse().unwrap();
        let port = if place + 1 == clients.len() {
            last
        } else {
            8000
        };
        let attempt = if end.port() < 60_000 { 1 } else { 4 };
        let answer = [
            ("cause", Value::Word("syn-ack")),
            ("attempt", Value::Unsigned(attempt)),
            ("saddr", Value::Ip([10, 0, 0, 1].into())),
            ("sport", Value::Unsigned(port)),
            ("daddr", Value::Ip(end.ip())),
            ("dport", Value::Unsigned(end.port().into())),
        ];
        window.event("retransmits", 3, &answer);
    }
    let again = clients.len() as u64 * 3;
    window.total("retransmits", again, &[("cause", Value::Word("syn-ack"))]);
    let opened = [
        ("role", Value::Word("server")),
        ("service_port", Value::Unsigned(8000)),
    ];
    window.total("lifetimes", connections, &opened);
    window.grow(&[
        ("TcpExt.TCPSynRetrans", again.cast_signed()),
        ("Tcp.PassiveOpens", connections.cast_signed()),
    ]);
    window.findings().remove(0)
}

fn unfinished(connections: u64, clients: &[&str]) -> Finding {
    unfinished_of(connections, clients, 8000)
}

#[test]
fn a_few_strangers_that_finish_no_handshake_are_a_note() {
    let strangers = ["8.1.2.3:1024", "9.4.5.6:2048", "99.7.8.9:4096"];
    let found = unfinished(30, &strangers);
    let said = "3 handshakes with 10.0.0.1:8000 were not finished in 10 s, each of a stranger that finished none, beside 30 \
                connections: forged addresses or a scan, as every public service gets";
    assert_eq!(
        (found.summary.as_str(), found.severity),
        (said, Severity::Info)
    );
    for (connections, clients) in [
        // Nobody else gets through; one tries again; they are of this network.
        (0, strangers),
        (30, ["8.1.2.3:1024", "8.1.2.3:1025", "9.4.5.6:2048"]),
        (30, ["10.0.0.7:1024", "9.4.5.6:2048", "99.7.8.9:4096"]),
    ] {
        let found = unfinished(connections, &clients);
        assert_eq!(
            found.severity,
            Severity::Warning,
            "{connections} {clients:?}"
        );
        let fix = &found.fixes[0].text;
        assert!(fix.contains(clients[0].split_once(':').unwrap().0), "{fix}");
    }
    // Those that began before the window are not more of them.
    let older: Vec<String> = (0..40)
        .map(|place| format!("7.0.0.{place}:60000"))
        .collect();
    let all: Vec<&str> = strangers
        .into_iter()
        .chain(older.iter().map(String::as_str))
        .collect();
    let found = unfinished(30, &all);
    assert_eq!(found.severity, Severity::Info, "{}", found.summary);
    // At another listener nobody gets through.
    let found = unfinished_of(30, &strangers, 9000);
    assert_eq!(found.severity, Severity::Warning);
}

#[test]
fn who_connects_and_says_nothing_is_no_matter_where_the_listener_waits_for_data() {
    for (thrown_away, attempts, is_found) in [
        (0, 1, true),
        (400, 1, true),
        (440, 1, false),
        (440, 2, true),
        (560, 2, false),
    ] {
        let mut window = quiet();
        window.listen(8310, 128, &[0; 10]);
        window.grow(&[
            ("TcpExt.TCPSynRetrans", 120),
            ("Tcp.PassiveOpens", 440),
            ("TcpExt.TCPDeferAcceptDrop", thrown_away),
        ]);
        window.total("retransmits", 120, &[("cause", Value::Word("syn-ack"))]);
        let ended = [
            ("role", Value::Word("server")),
            ("result", Value::Word("fin")),
            ("service_port", Value::Unsigned(8310)),
        ];
        window.total("lifetimes", 440, &ended);
        let answer = [
            ("cause", Value::Word("syn-ack")),
            ("saddr", Value::Ip([10, 0, 0, 1].into())),
            ("sport", Value::Unsigned(8310)),
            ("daddr", Value::Ip([10, 0, 0, 2].into())),
            ("dport", Value::Unsigned(40_000)),
            ("attempt", Value::Unsigned(attempts)),
        ];
        window.event("retransmits", 120, &answer);
        let found = window.ids().contains(&"syn-retransmits");
        assert_eq!(found, is_found, "{thrown_away}");
    }
}
