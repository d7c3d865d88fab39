use crate::{
    diagnose::{fixtures::quiet, window::Window},
    observe::interfaces::Interface,
    probes::PROBES,
    report::{
        Row, Total, Value,
        diagnosis::{Finding, Severity},
    },
};

#[test]
fn a_silent_destination_is_named() {
    let mut window = quiet();
    window.grow(&[("TcpExt.TCPSynRetrans", 12), ("Tcp.ActiveOpens", 6)]);
    window.total("retransmits", 12, &[("cause", Value::Word("syn"))]);
    let syn = [
        ("cause", Value::Word("syn")),
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(5432)),
    ];
    window.event("retransmits", 12, &syn);
    let findings = window.findings();
    assert_eq!(findings[0].id, "syn-retransmits");
    assert!(findings[0].summary.ends_with("the path or the peer"));
    assert!(
        findings[0]
            .summary
            .starts_with("10.0.0.2:5432 does not answer")
    );
}

/// A client that sends 12 SYNs again, and `established` of its 20 connects succeed.
fn connecting(established: usize) -> Window {
    let mut window = quiet();
    window.grow(&[("TcpExt.TCPSynRetrans", 12), ("Tcp.ActiveOpens", 20)]);
    window.total("retransmits", 12, &[("cause", Value::Word("syn"))]);
    let end = [
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(5432)),
    ];
    let with = |name, word| [end.to_vec(), vec![(name, Value::Word(word))]].concat();
    window.event("retransmits", 12, &with("cause", "syn"));
    window.event("connects", established, &with("outcome", "established"));
    window.event("connects", 20 - established, &with("outcome", "aborted"));
    window
}

#[test]
fn a_destination_that_takes_no_connect_is_critical_and_one_that_takes_most_is_said_to() {
    for (established, severity, said) in [
        (
            20,
            Severity::Warning,
            "answers late (all 20 connects seen succeed)",
        ),
        (0, Severity::Critical, "all 20 connects seen fail or wait"),
        (1, Severity::Critical, "answers only 1 of 20 connects"),
        (15, Severity::Warning, "answers only 15 of 20 connects"),
    ] {
        let findings = connecting(established).findings();
        assert_eq!(findings[0].severity, severity, "{established}");
        assert!(
            findings[0].summary.contains(said),
            "{}",
            findings[0].summary
        );
    }
}

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
fn nobody_else_is_blamed_where_this_machine_drops_syns_or_was_not_seen() {
    let silent = || {
        let mut window = quiet();
        window.grow(&[("TcpExt.TCPSynRetrans", 12), ("Tcp.ActiveOpens", 6)]);
        window.total("retransmits", 12, &[("cause", Value::Word("syn"))]);
        window
    };
    let blames = |window: &Window| {
        let findings = window.findings();
        let found = findings.iter().find(|found| found.id == "syn-retransmits");
        found.unwrap().summary.contains("the peer")
    };
    assert!(blames(&silent()));
    let mut dropping = silent();
    dropping.total("drops", 12, &[("reason", Value::Word("NETFILTER_DROP"))]);
    dropping.event("drops", 12, &[("flags", Value::TcpFlags(2))]);
    assert!(!blames(&dropping));
    let mut blind = silent();
    blind.blind("drops");
    assert!(!blames(&blind));
    let mut refusing = silent();
    let mut server = refusing.namespaces[0].clone();
    server.inode += 1;
    server.after.counters.insert("TcpExt.ListenDrops", 12);
    refusing.namespaces.push(server);
    assert!(!blames(&refusing));
}

#[test]
fn a_few_among_many_are_the_internet() {
    let mut window = quiet();
    window.grow(&[("TcpExt.TCPSynRetrans", 12), ("Tcp.ActiveOpens", 6000)]);
    assert!(window.ids().is_empty());
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

/// `times` connects from 10.0.0.1 to an end, that end in such a way after so many milliseconds.
fn connects(
    window: &mut Window,
    times: usize,
    to: &str,
    (name, word): (&'static str, &'static str),
    waited_ms: u64,
) {
    let end: std::net::SocketAddr = to.parse().unwrap();
    let connect = [
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(41_000)),
        ("daddr", Value::Ip(end.ip())),
        ("dport", Value::Unsigned(end.port().into())),
        ("latency_ns", Value::Unsigned(waited_ms * 1_000_000)),
        ("comm", Value::Word("app")),
        (name, Value::Word(word)),
    ];
    window.event("connects", times, &connect);
}

#[test]
fn clients_that_give_up_before_a_syn_is_sent_again_are_unanswered_too() {
    const ABORTED: (&str, &str) = ("outcome", "aborted");
    let mut window = quiet();
    connects(&mut window, 20, "10.0.0.2:5432", ABORTED, 300);
    let findings = window.findings();
    assert_eq!(
        (findings[0].id, findings[0].severity),
        ("syn-retransmits", Severity::Critical)
    );
    let summary = "10.0.0.2:5432 takes no connection: 20 of 20 connects seen in 10 s were given up without an answer, within \
                   300 ms; nobody on this machine was seen to drop them: the path or the peer";
    assert_eq!(findings[0].summary, summary);
    // Who closes at once does not wait; a few are none; others get through.
    for (times, established, waited_ms) in [(20, 0, 100), (4, 0, 300), (20, 5, 300)] {
        let mut window = quiet();
        connects(&mut window, times, "10.0.0.2:5432", ABORTED, waited_ms);
        connects(
            &mut window,
            established,
            "10.0.0.2:5432",
            ("outcome", "established"),
            1,
        );
        assert!(window.ids().is_empty(), "{times} {established} {waited_ms}");
    }
    // Happy eyeballs: IPv6 is slow here, and nobody minds.
    let mut window = quiet();
    connects(&mut window, 20, "[fd00::2]:443", ABORTED, 300);
    connects(
        &mut window,
        20,
        "10.0.0.2:443",
        ("outcome", "established"),
        1,
    );
    assert_eq!(window.findings()[0].severity, Severity::Info);
}

#[test]
fn a_host_that_cannot_be_reached_is_named_with_what_is_known_of_why() {
    let mut window = quiet();
    connects(
        &mut window,
        20,
        "10.0.0.77:9004",
        ("errno", "EHOSTUNREACH"),
        3000,
    );
    let summary = |window: &Window| window.findings()[0].summary.clone();
    let said = "10.0.0.77:9004 takes no connection: 20 of 20 connects seen in 10 s failed with EHOSTUNREACH";
    assert_eq!(summary(&window), said);
    let dropped = [
        ("reason", Value::Word("NEIGH_FAILED")),
        ("flags", Value::TcpFlags(2)),
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(41_000)),
        ("daddr", Value::Ip([10, 0, 0, 77].into())),
        ("dport", Value::Unsigned(9004)),
    ];
    window.event("drops", 20, &dropped);
    assert!(summary(&window).contains("nobody on the link answers"));
}

/// 10.0.0.1 sends SYNs again to an end.
fn sent_again(window: &mut Window, times: usize, to: &str) {
    let end: std::net::SocketAddr = to.parse().unwrap();
    let syn = [
        ("cause", Value::Word("syn")),
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(41_000)),
        ("daddr", Value::Ip(end.ip())),
        ("dport", Value::Unsigned(end.port().into())),
    ];
    window.event("retransmits", times, &syn);
    let times = times as u64;
    window.total("retransmits", times, &[("cause", Value::Word("syn"))]);
    window.grow(&[("TcpExt.TCPSynRetrans", times.cast_signed())]);
}

/// 10.0.0.1's SYNs to 10.0.0.2:5432 are dropped for a reason.
fn dropped(window: &mut Window, times: usize, reason: &'static str) {
    let syn = [
        ("reason", Value::Word(reason)),
        ("flags", Value::TcpFlags(2)),
        ("iface", Value::Word("eth1")),
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(41_000)),
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(5432)),
    ];
    window.event("drops", times, &syn);
    window.total("drops", times as u64, &[("reason", Value::Word(reason))]);
}

/// What is said of a client whose SYNs are dropped for a reason.
fn silent(reason: &'static str) -> Finding {
    let mut window = quiet();
    sent_again(&mut window, 12, "10.0.0.2:5432");
    dropped(&mut window, 12, reason);
    window.findings()[0].clone()
}

#[test]
fn a_namespace_that_drops_the_syns_itself_is_named_with_the_reason() {
    let found = silent("IP_RPFILTER");
    let summary = &found.summary;
    let said =
        "; SYNs are dropped here, by rp_filter: the route back to 10.0.0.1 does not lead over eth1";
    assert!(summary.ends_with(said), "{summary}");
    let set = &found.fixes[1].set[0];
    assert_eq!(
        (set.0.as_str(), set.1.as_str()),
        ("net.ipv4.conf.eth1.rp_filter", "2")
    );
    assert!(
        found
            .fixes
            .iter()
            .all(|fix| !fix.text.contains("other end"))
    );
    let summary = silent("XFRM_POLICY").summary;
    assert!(
        summary.ends_with("; SYNs are dropped here, as XFRM_POLICY"),
        "{summary}"
    );
    let summary = silent("NEIGH_FAILED").summary;
    assert!(summary.contains("nobody on the link answers"), "{summary}");
}

#[test]
fn what_nobody_waits_for_and_what_comes_twice_is_not_lost() {
    // Those of others may be forged: nobody waits for them.
    let mut window = quiet();
    sent_again(&mut window, 12, "10.0.0.2:5432");
    let forged = [
        ("reason", Value::Word("IP_INADDRERRORS")),
        ("flags", Value::TcpFlags(0x12)),
        ("saddr", Value::Ip([10, 0, 0, 2].into())),
        ("sport", Value::Unsigned(5432)),
        ("daddr", Value::Ip([192, 0, 2, 1].into())),
        ("dport", Value::Unsigned(41_000)),
    ];
    window.event("drops", 12, &forged);
    let summary = window.findings()[0].summary.clone();
    assert!(!summary.contains("dropped here"), "{summary}");
    // What is freed with its socket is not lost, nor what somebody only listened in to.
    for reason in ["QUEUE_PURGE", "OTHERHOST", "TCP_INVALID_SYN"] {
        let summary = silent(reason).summary;
        assert!(summary.ends_with("the path or the peer"), "{summary}");
    }
    // A SYN that comes again is answered again and freed.
    let mut window = quiet();
    sent_again(&mut window, 12, "10.0.0.2:5432");
    for (function, is_lost) in [("tcp_v4_rcv+0x1", false), ("ip_rcv_finish_core+0x1", true)] {
        let again = [
            ("reason", Value::Word("NOT_SPECIFIED")),
            ("location", Value::Text(function.into())),
            ("flags", Value::TcpFlags(2)),
        ];
        window.event("drops", 12, &again);
        window.total("drops", 12, &[("reason", Value::Word("NOT_SPECIFIED"))]);
        let blames = window.findings()[0]
            .summary
            .contains("the path or the peer");
        assert_eq!(blames, !is_lost, "{function}");
    }
}

/// What is said where SYNs to 10.0.0.2 are dropped, without a reason but with their sender's socket, in the namespace that
/// has the first of these addresses; another one has the other.
fn dropped_between(addresses: [[u8; 4]; 2], location: &'static str) -> String {
    let mut window = quiet();
    let syn = [
        ("reason", Value::Word("NOT_SPECIFIED")),
        ("location", Value::Text(location.into())),
        ("state", Value::Word("SYN-SENT")),
        ("flags", Value::TcpFlags(2)),
        ("iface", Value::Word("eth1")),
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(41_000)),
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(5432)),
    ];
    window.event("drops", 12, &syn);
    window.total("drops", 12, &[("reason", Value::Word("NOT_SPECIFIED"))]);
    window.relocate(77);
    for (inode, address) in [77, 78].into_iter().zip(addresses) {
        let mut other = quiet().namespaces.remove(0);
        other.inode = inode;
        other.is_initial = false;
        other.after.addresses = [address.into()].into();
        window.namespaces.push(other);
    }
    sent_again(&mut window, 12, "10.0.0.2:5432");
    window.findings()[0].summary.clone()
}

#[test]
fn what_is_dropped_on_its_way_between_two_namespaces_is_lost_also_without_a_reason() {
    const CLIENT: [u8; 4] = [10, 0, 0, 1];
    const SERVER: [u8; 4] = [10, 0, 0, 2];
    const BRIDGE: [u8; 4] = [10, 0, 0, 9];
    let summary = dropped_between([SERVER, CLIENT], "do_xdp_generic+0x284");
    let said =
        "; SYNs are dropped in namespace 77, by an XDP program at eth1 (do_xdp_generic+0x284)";
    assert!(summary.ends_with(said), "{summary}");
    let summary = dropped_between([BRIDGE, SERVER], "br_handle_frame_finish+0x380");
    let said =
        "; SYNs are dropped in namespace 77, by the bridge there (br_handle_frame_finish+0x380)";
    assert!(summary.ends_with(said), "{summary}");
    // Who only listens in, and devices that free what they have sent: here, or on to another machine.
    for (addresses, location) in [
        ([BRIDGE, SERVER], "ip_rcv_core+0x1"),
        ([CLIENT, SERVER], "dev_kfree_skb_any_reason+0x1"),
        ([BRIDGE, CLIENT], "dev_kfree_skb_any_reason+0x1"),
    ] {
        let summary = dropped_between(addresses, location);
        assert!(!summary.contains("dropped in"), "{location}: {summary}");
    }
}

#[test]
fn what_a_firewall_here_rejects_stands_behind_it_also_beside_another_dead_host() {
    let mut window = quiet();
    sent_again(&mut window, 24, "10.0.0.2:5432");
    sent_again(&mut window, 6, "10.0.0.77:9004");
    dropped(&mut window, 30, "NETFILTER_DROP");
    window.netns().after.addresses = [[10, 0, 0, 1].into()].into();
    let findings = window.findings();
    let told: Vec<_> = findings
        .iter()
        .map(|found| (found.id, found.affected[0].port, found.behind))
        .collect();
    let expected = [
        ("firewall-drops", Some(5432), None),
        ("syn-retransmits", Some(9004), None),
        ("syn-retransmits", Some(5432), Some("firewall-drops")),
    ];
    assert_eq!(told, expected);
    let [other, own] = [1, 2].map(|place: usize| findings[place].evidence[0].value);
    assert_eq!((other, own), (Some(6.0), Some(24.0)));
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

/// A second namespace, with 10.0.0.2 and a listener at 8000, that drops `dropped` SYNs and has `unrouted` packets without a
/// route, while it completes so many handshakes.
fn routeless(window: &mut Window, [dropped, unrouted, completed]: [u64; 3]) {
    let mut server = quiet();
    server.listen(8000, 128, &[0; 10]);
    server.sockets().listeners[0].address = [10, 0, 0, 2].into();
    server.grow(&[
        ("TcpExt.ListenDrops", dropped.cast_signed()),
        ("Ip.OutNoRoutes", unrouted.cast_signed()),
        ("Tcp.PassiveOpens", completed.cast_signed()),
    ]);
    let mut netns = server.namespaces.remove(0);
    netns.inode = 77;
    netns.name = Some("blue".to_owned());
    netns.is_initial = false;
    netns.after.addresses = [[10, 0, 0, 2].into()].into();
    window.namespaces.push(netns);
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
fn what_was_lost_before_the_window_is_not_said_to_be_lost_by_others() {
    let summary = |attempts_each: usize, drops: usize| {
        let mut window = quiet();
        connects(
            &mut window,
            20,
            "10.0.0.2:5432",
            ("outcome", "established"),
            900,
        );
        sent_again(&mut window, attempts_each, "10.0.0.2:5432");
        // More than the counter had when it was read.
        window.total("retransmits", 12, &[("cause", Value::Word("syn"))]);
        window.grow(&[("TcpExt.TCPSynRetrans", 8)]);
        dropped(&mut window, drops, "QDISC_DROP");
        let found = window.findings().remove(0);
        let [all, syns] = [0, 1].map(|place: usize| found.evidence[place].value);
        assert_eq!(all, syns);
        found.summary
    };
    assert!(summary(1, 0).ends_with("they may have been lost before this window"));
    assert!(
        summary(2, 0)
            .ends_with("nobody on this machine was seen to drop them: the path or the peer")
    );
    // Nor where it was seen to be lost.
    let said = summary(1, 8);
    let told = "sent again in 10 s; SYNs are dropped here, as QDISC_DROP";
    assert!(said.ends_with(told), "{said}");
}

#[test]
fn the_other_end_is_not_to_be_looked_at_where_it_is_watched() {
    let mut window = quiet();
    sent_again(&mut window, 12, "10.0.0.2:8000");
    let fix = |window: &Window| window.findings()[0].fixes[0].text.clone();
    assert!(fix(&window).starts_with("look at the other end"));
    routeless(&mut window, [0, 0, 0]);
    assert!(fix(&window).starts_with("look at what lies between the two namespaces"));
}

/// SYNs to a listener of this namespace, each client's sent again, that are dropped for a reason.
fn dropped_before_the_listener(reason: &'static str, tries: u64) -> Window {
    dropped_of([10, 0, 0, 9], reason, tries)
}

fn dropped_of(client: [u8; 4], reason: &'static str, tries: u64) -> Window {
    let mut window = quiet();
    window.listen(8080, 128, &[0; 10]);
    for port in 0..4 {
        for _ in 0..tries {
            let syn = [
                ("saddr", Value::Ip(client.into())),
                ("sport", Value::Unsigned(40_000 + port)),
                ("daddr", Value::Ip([10, 0, 0, 1].into())),
                ("dport", Value::Unsigned(8080)),
                ("flags", Value::TcpFlags(2)),
                ("reason", Value::Text(reason.into())),
            ];
            window.event("drops", 1, &syn);
        }
    }
    window
}

#[test]
fn where_a_listeners_own_namespace_drops_syns_it_is_told_without_their_clients() {
    let findings = dropped_before_the_listener("TCP_MD5NOTFOUND", 2).findings();
    assert_eq!(findings[0].id, "syn-retransmits", "{findings:#?}");
    assert_eq!(findings[0].severity, Severity::Critical);
    assert!(
        findings[0].summary.contains("is not reached by 10.0.0.9"),
        "{}",
        findings[0].summary
    );
    assert!(findings[0].summary.contains("wants them signed"));
    // Nobody tries again who only forges addresses.
    let findings = dropped_before_the_listener("IP_RPFILTER", 1).findings();
    assert!(findings.is_empty(), "{findings:#?}");
    // Strangers try every port of a public address now and then.
    let findings = dropped_of([45, 1, 2, 3], "TCP_MD5NOTFOUND", 2).findings();
    assert!(findings.is_empty(), "{findings:#?}");
    // A filter that lets others through does its work.
    let mut window = dropped_before_the_listener("TC_INGRESS", 2);
    assert_eq!(window.findings()[0].severity, Severity::Critical);
    let other = [
        ("role", Value::Word("server")),
        ("result", Value::Word("fin")),
        ("sport", Value::Unsigned(8080)),
        ("daddr", Value::Ip([10, 0, 0, 8].into())),
    ];
    window.event("lifetimes", 5, &other);
    assert!(window.findings().is_empty(), "{:#?}", window.findings());
    // Late segments are no loss.
    let findings = dropped_before_the_listener("TCP_OLD_SEQUENCE", 2).findings();
    assert!(findings.is_empty(), "{findings:#?}");
}

#[test]
fn a_destination_that_routes_here_refuses_is_critical_in_the_words_of_the_kernel() {
    for (errno, why) in [
        ("ENETUNREACH", "there is no route to it"),
        ("EACCES", "a route here prohibits it"),
        ("EINVAL", "a route here is a black hole"),
    ] {
        let mut window = quiet();
        let connect = [
            ("saddr", Value::Ip([10, 0, 0, 1].into())),
            ("sport", Value::Unsigned(0)),
            ("daddr", Value::Ip([10, 9, 9, 1].into())),
            ("dport", Value::Unsigned(80)),
            ("outcome", Value::Word("failed")),
            ("errno", Value::Word(errno)),
        ];
        window.event("connects", 20, &connect);
        let findings = window.findings();
        assert_eq!(findings[0].severity, Severity::Critical, "{errno}");
        let summary = &findings[0].summary;
        assert!(
            summary.contains(errno) && summary.contains(why),
            "{summary}"
        );
    }
}

#[test]
fn connects_of_before_the_window_do_not_count_against_who_answers_now() {
    let mut window = connecting(20);
    window.began_ns = 10_000_000_000;
    let given_up = [
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(5432)),
        ("sport", Value::Unsigned(4711)),
        ("latency_ns", Value::Unsigned(2_000_000_000)),
        ("outcome", Value::Word("aborted")),
    ];
    window.event("connects", 3, &given_up);
    let said = |window: Window| window.findings()[0].summary.clone();
    assert!(said(window.clone()).contains("only 20 of 23"));
    window.events.date("connects", 11_000_000_000);
    let told = said(window);
    assert!(told.contains("all 20 connects seen succeed"), "{told}");
    assert!(told.contains("before this window"), "{told}");
}

/// Beside 50,000 connections that went well, so many connects to an address that were given up after two SYNs again.
fn beside_much(attempts: &[(u8, u64)]) -> Vec<Finding> {
    let mut window = quiet();
    let again: u64 = attempts.iter().map(|(_, connects)| connects * 2).sum();
    let grown = i64::try_from(again).unwrap();
    window.grow(&[("TcpExt.TCPSynRetrans", grown), ("Tcp.ActiveOpens", 50_000)]);
    window.total("retransmits", again, &[("cause", Value::Word("syn"))]);
    for (address, connects) in attempts {
        for port in 40_000..40_000 + connects {
            let ends = [
                ("saddr", Value::Ip([10, 0, 0, 1].into())),
                ("sport", Value::Unsigned(port)),
                ("daddr", Value::Ip([10, 0, 0, *address].into())),
                ("dport", Value::Unsigned(5432)),
            ];
            let with = |name, word| [ends.to_vec(), vec![(name, Value::Word(word))]].concat();
            window.event("retransmits", 2, &with("cause", "syn"));
            window.event("connects", 1, &with("outcome", "aborted"));
        }
    }
    window.findings()
}

#[test]
fn a_dead_destination_is_told_however_much_goes_well_beside() {
    let found = beside_much(&[(2, 6)]);
    assert_eq!(found[0].severity, Severity::Critical, "{found:?}");
    let summary = &found[0].summary;
    assert!(
        summary.starts_with("10.0.0.2:5432 does not answer"),
        "{summary}"
    );
    // A client or two, that may be one's own optional backend.
    let found = beside_much(&[(2, 2)]);
    assert_eq!(found[0].severity, Severity::Info, "{found:?}");
    assert!(beside_much(&[(2, 1)]).is_empty());
}

#[test]
fn dead_destinations_are_told_apart() {
    let found = beside_much(&[(2, 6), (3, 10)]);
    let ends: Vec<_> = found
        .iter()
        .map(|found| found.affected[0].name.clone())
        .collect();
    assert_eq!(ends, ["10.0.0.3:5432", "10.0.0.2:5432"], "{found:?}");
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

#[test]
fn many_destinations_that_were_tried_once_are_not_one() {
    let told = |opened: i64| {
        let mut window = quiet();
        window.grow(&[("TcpExt.TCPSynRetrans", 32), ("Tcp.ActiveOpens", opened)]);
        window.total("retransmits", 32, &[("cause", Value::Word("syn"))]);
        for host in 1..=16 {
            let syn = [
                ("cause", Value::Word("syn")),
                ("saddr", Value::Ip([10, 0, 0, 9].into())),
                ("sport", Value::Unsigned(40_000 + u64::from(host))),
                ("daddr", Value::Ip([10, 97, 1, host].into())),
                ("dport", Value::Unsigned(80)),
            ];
            window.event("retransmits", 2, &syn);
        }
        let found = window.findings().remove(0);
        (found.severity, found.summary)
    };
    let (severity, text) = told(900);
    assert_eq!(severity, Severity::Info);
    let expected = "16 destinations do not answer, each of which was tried once or twice: 32 SYNs were sent again in 10 s";
    assert!(text.starts_with(expected), "{text}");
    // Not a few of all.
    assert_eq!(told(40).0, Severity::Warning);
}
