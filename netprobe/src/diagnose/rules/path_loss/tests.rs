use std::net::IpAddr;

use crate::{
    diagnose::{Verdict, events::Events, fixtures::quiet, window::Window},
    observe::{
        diag::{Path, Unanswered},
        interfaces::Qdisc,
    },
    report::{Value, diagnosis::Severity},
};

fn lossy() -> Window {
    let mut window = quiet();
    window.grow(&[("Tcp.RetransSegs", 300), ("Tcp.OutSegs", 9700)]);
    window.total("retransmits", 300, &[("cause", Value::Word("fast"))]);
    let lost = [
        ("cause", Value::Word("fast")),
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(443)),
        ("srtt_us", Value::Unsigned(100_000)),
    ];
    window.event("retransmits", 300, &lost);
    let path = Path {
        connections: 1,
        srtts_us: vec![90_000],
        min_rtt_us: 30_000,
        ..Path::default()
    };
    window.sockets().paths.insert([10, 0, 0, 2].into(), path);
    window
}

#[test]
fn loss_names_the_destination_its_share_and_the_queue() {
    let findings = lossy().findings();
    assert_eq!(findings[0].id, "path-loss");
    assert!(findings[0].summary.contains("10.0.0.2") && findings[0].summary.contains("3.0 %"));
    assert!(
        findings[0]
            .evidence
            .iter()
            .any(|evidence| evidence.text.contains("bufferbloat"))
    );
}

#[test]
fn one_probe_is_told_as_one() {
    let mut window = lossy();
    window.total("retransmits", 1, &[("cause", Value::Word("tlp"))]);
    let found = window.findings().remove(0);
    let mut evidence = found.evidence.iter();
    let told = "300 fast, 0 after a timeout, 1 tail loss probe";
    assert!(
        evidence.any(|said| said.text == told),
        "{:?}",
        found.evidence
    );
}

#[test]
fn what_goes_well_elsewhere_does_not_hide_what_is_lost_to_one_destination() {
    let window = |sent: u64| {
        let mut window = lossy();
        window.grow(&[("Tcp.OutSegs", 990_000)]);
        let path = window.sockets().paths.get_mut(&IpAddr::from([10, 0, 0, 2]));
        path.unwrap().data_segments = sent;
        window
    };
    let findings = window(3000).findings();
    let told = "300 segments (10.0 % of those to it) were sent again";
    assert!(
        findings[0].summary.contains(told),
        "{}",
        findings[0].summary
    );
    // How many were sent there is not known, or far more.
    for sent in [0, 300_000] {
        assert!(!window(sent).ids().contains(&"path-loss"), "{sent}");
    }
    // It is a client, of which there are many more.
    let mut served = window(3000);
    served.listen(443, 128, &[0; 10]);
    let lost = [
        ("cause", Value::Word("fast")),
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("sport", Value::Unsigned(443)),
    ];
    served.events = Events::default();
    served.total("retransmits", 300, &[("cause", Value::Word("fast"))]);
    served.event("retransmits", 300, &lost);
    assert!(!served.ids().contains(&"path-loss"));
}

/// Of 100 segments to each of two destinations, 40 that went out again for the `attempt`th time.
fn to_two(attempt: u64) -> Window {
    let mut window = quiet();
    window.grow(&[("Tcp.RetransSegs", 80), ("Tcp.OutSegs", 120)]);
    window.total("retransmits", 80, &[("cause", Value::Word("rto"))]);
    for host in [2, 3] {
        let lost = [
            ("cause", Value::Word("rto")),
            ("daddr", Value::Ip([10, 0, 0, host].into())),
            ("dport", Value::Unsigned(443)),
            ("attempt", Value::Unsigned(attempt)),
        ];
        window.event("retransmits", 40, &lost);
        let path = Path {
            data_segments: 100,
            ..Path::default()
        };
        let paths = &mut window.sockets().paths;
        paths.insert([10, 0, 0, host].into(), path);
    }
    window
}

#[test]
fn each_of_two_destinations_that_lose_much_is_told() {
    let told = |window: &Window| {
        let findings = window.findings();
        let lossy = findings.iter().filter(|found| found.id == "path-loss");
        let lossy = lossy.map(|found| found.affected[0].address.unwrap());
        lossy.collect::<Vec<_>>()
    };
    let mut window = to_two(1);
    let ends: Vec<IpAddr> = vec![[10, 0, 0, 2].into(), [10, 0, 0, 3].into()];
    assert_eq!(told(&window), ends);
    // Far more goes well to one of them.
    let paths = &mut window.sockets().paths;
    paths.get_mut(&ends[0]).unwrap().data_segments = 10_000;
    assert_eq!(told(&window), ends[1..]);
}

#[test]
fn a_destination_that_no_data_arrives_at_is_critical() {
    let told = |stuck: usize, attempt: u64, unheard_ms: Option<u32>, ended: Option<u64>| {
        let mut window = to_two(attempt);
        let address = IpAddr::from([10, 0, 0, 3]);
        let path = window.sockets().paths.get_mut(&address).unwrap();
        path.stuck_bytes = vec![100; stuck];
        path.unheard_ms = unheard_ms;
        if let Some(bytes) = ended {
            let ended = [
                ("result", Value::Word("fin")),
                ("daddr", Value::Ip(address)),
                ("bytes_sent", Value::Unsigned(bytes)),
            ];
            window.event("lifetimes", 1, &ended);
        }
        let findings = window.findings();
        let critical = findings
            .iter()
            .filter(|found| found.severity == Severity::Critical)
            .map(|found| found.summary.clone());
        critical.collect::<Vec<_>>()
    };
    let said = "no data that is sent to 10.0.0.3 arrives: 40 segments (40.0 % of those to it) were sent again in 10 s; the same \
                segments go out three times and more: the peer or the path is gone, or drops whole trains";
    assert_eq!(told(3, 3, None, None), [said]);
    let told_of = told(3, 3, Some(5000), Some(0));
    assert!(
        told_of[0].ends_with("or the peer has gone since"),
        "{told_of:?}"
    );
    for (stuck, attempt, unheard_ms, ended) in [
        (2, 3, None, None),
        (3, 2, None, None),
        (3, 3, Some(900), None),
        (3, 3, None, Some(1)),
    ] {
        let told = told(stuck, attempt, unheard_ms, ended);
        assert!(told.is_empty(), "{told:?}");
    }
}

#[test]
fn what_had_arrived_and_was_acknowledged_late_is_not_lost() {
    let mut window = lossy();
    window.grow(&[("TcpExt.TCPDSACKRecvSegs", 290)]);
    assert!(!window.ids().contains(&"path-loss"));
    let mut window = lossy();
    window.grow(&[("TcpExt.TCPDSACKRecvSegs", 100)]);
    let findings = window.findings();
    assert!(
        findings[0]
            .summary
            .contains("200 segments (2.0 % of all that was sent)"),
        "{}",
        findings[0].summary
    );
}

#[test]
fn a_firewall_here_that_drops_segments_is_not_denied() {
    let mut window = lossy();
    let advice = |window: &Window| {
        let findings = window.findings();
        let found = findings.iter().find(|found| found.id == "path-loss");
        found.unwrap().fixes[0].text.clone()
    };
    let drop = |flags| {
        [
            ("reason", Value::Word("NETFILTER_DROP")),
            ("flags", Value::TcpFlags(flags)),
        ]
    };
    // SYNs of strangers are none of the lost segments.
    window.event("drops", 30, &drop(2));
    assert!(advice(&window).contains("no setting of this machine"));
    window.event("drops", 30, &drop(0x18));
    assert!(advice(&window).starts_with("rule out the firewall of this machine first"));
}

#[test]
fn single_round_trips_with_timeouts_in_them_are_no_queue() {
    let mut window = lossy();
    window.events = Events::default();
    window.total("retransmits", 300, &[("cause", Value::Word("fast"))]);
    for (times, srtt_us) in [(280, 35_000), (20, 392_761)] {
        let lost = [
            ("cause", Value::Word("fast")),
            ("daddr", Value::Ip([10, 0, 0, 2].into())),
            ("dport", Value::Unsigned(443)),
            ("srtt_us", Value::Unsigned(srtt_us)),
        ];
        window.event("retransmits", times, &lost);
    }
    let findings = window.findings();
    let said = |text: &str| {
        let mut evidence = findings[0].evidence.iter();
        evidence.any(|evidence| evidence.text.contains(text))
    };
    assert!(said("clean loss") && said("35.0 ms") && !said("bufferbloat"));
}

#[test]
fn a_path_is_gone_where_the_same_data_goes_out_again_and_again_and_each_peer_is_named_once() {
    let told = |attempts: [u64; 4]| {
        let mut window = quiet();
        window.grow(&[("Tcp.RetransSegs", 80), ("Tcp.OutSegs", 3000)]);
        window.total("retransmits", 80, &[("cause", Value::Word("tlp"))]);
        for (port, attempt) in attempts.into_iter().enumerate() {
            let lost = [
                ("cause", Value::Word("tlp")),
                ("daddr", Value::Ip([10, 0, 0, 2].into())),
                ("dport", Value::Unsigned(40_000 + port as u64)),
                ("attempt", Value::Unsigned(attempt)),
            ];
            window.event("retransmits", 20, &lost);
        }
        window.findings().remove(0)
    };
    let single = told([1, 1, 1, 2]);
    assert!(
        single.summary.ends_with("so the path lives but drops"),
        "{}",
        single.summary
    );
    let names: Vec<_> = single
        .affected
        .iter()
        .map(|hit| hit.name.as_str())
        .collect();
    assert_eq!(names, ["10.0.0.2"]);
    let gone = told([1, 2, 3, 4]);
    assert!(
        gone.summary.contains("the peer or the path is gone"),
        "{}",
        gone.summary
    );
}

#[test]
fn a_peer_whose_other_connections_go_well_is_not_gone() {
    let told = |others: usize, address: [u8; 4], (stuck, arriving): (u32, u32)| {
        let mut window = quiet();
        let path = Path {
            stuck_bytes: vec![stuck; 20],
            arriving_bytes: arriving,
            ..Path::default()
        };
        window.sockets().paths.insert([10, 0, 0, 2].into(), path);
        window.grow(&[("Tcp.RetransSegs", 80), ("Tcp.OutSegs", 3000)]);
        window.total("retransmits", 80, &[("cause", Value::Word("rto"))]);
        let lost = [
            ("cause", Value::Word("rto")),
            ("daddr", Value::Ip([10, 0, 0, 2].into())),
            ("dport", Value::Unsigned(40_000)),
            ("attempt", Value::Unsigned(4)),
        ];
        window.event("retransmits", 80, &lost);
        let ended = [
            ("result", Value::Word("fin")),
            ("daddr", Value::Ip(address.into())),
        ];
        window.event("lifetimes", others, &ended);
        window.findings().remove(0)
    };
    let found = told(300, [10, 0, 0, 2], (1448, 120));
    let summary = &found.summary;
    assert!(
        summary.contains("though 300 other connections with it began or ended well"),
        "{summary}"
    );
    assert!(
        summary.contains("large packets") && summary.contains("segments of 1448 bytes"),
        "{summary}"
    );
    assert!(found.fixes[0].text.contains("ping -M do -s 1472 10.0.0.2"));
    // Small ones, and such as arrive elsewhere, are not lost for their size.
    for sizes in [(100, 0), (1448, 1400), (0, 0)] {
        let found = told(300, [10, 0, 0, 2], sizes);
        assert!(
            found.summary.contains("what single connections send"),
            "{}",
            found.summary
        );
        assert!(!found.summary.contains("MTU"), "{}", found.summary);
        assert!(found.fixes.iter().all(|fix| !fix.text.contains("mtu")));
    }
    let large = (1448, 120);
    for found in [
        told(0, [10, 0, 0, 2], large),
        told(300, [10, 0, 0, 3], large),
    ] {
        assert!(
            found
                .summary
                .contains("the peer or the path is gone, or drops"),
            "{}",
            found.summary
        );
    }
}

#[test]
fn counters_that_no_event_confirms_are_no_loss() {
    // Two files, read one after the other, while SYNs are sent again.
    let mut window = quiet();
    window.grow(&[
        ("Tcp.RetransSegs", 692),
        ("TcpExt.TCPSynRetrans", 650),
        ("Tcp.OutSegs", 10),
    ]);
    window.total("retransmits", 690, &[("cause", Value::Word("syn"))]);
    assert_eq!(window.verdict("path-loss"), Verdict::Ok);
    window.blind("retransmits");
    assert_ne!(window.verdict("path-loss"), Verdict::Ok);
}

#[test]
fn a_queue_that_loses_nothing_is_seen_where_it_lasts() {
    let path = |filling| Path {
        connections: 4,
        active: 4,
        swollen: 4,
        filling,
        srtts_us: vec![122_000],
        min_rtt_us: 30_000,
        ..Path::default()
    };
    let window = |before, after| {
        let mut window = quiet();
        window
            .sockets()
            .paths
            .insert([10, 0, 0, 2].into(), path(after));
        let before = (IpAddr::from([10, 0, 0, 2]), path(before));
        let table = window.netns().before.sockets.as_mut().unwrap();
        table.paths.extend([before]);
        window
    };
    let findings = window(2, 2).findings();
    assert_eq!(
        (findings[0].id, findings[0].severity),
        ("path-loss", Severity::Warning)
    );
    assert!(findings[0].summary.contains("122 ms, at best 30 ms"));
    assert!(window(0, 2).ids().is_empty() && window(2, 0).ids().is_empty());
    let mut many = window(2, 2);
    let others = Path {
        active: 100,
        min_rtt_us: 20_000,
        ..Path::default()
    };
    many.sockets().paths.insert([10, 0, 0, 3].into(), others);
    assert_eq!(many.findings()[0].severity, Severity::Info);
}

#[test]
fn a_listener_of_this_machine_that_ignores_segments_is_no_path() {
    let mut window = lossy();
    window.listen(443, 10, &[11; 10]);
    window.netns().queues[0].listener.address = [0, 0, 0, 0].into();
    window.grow(&[("TcpExt.ListenOverflows", 300)]);
    assert_eq!(window.verdict("path-loss"), Verdict::Ok);
}

/// A server with a full listener at 9000 and one at 8000 with a queue of 2, which `clients` of this namespace send the same
/// data to in vain; the server has to send some again, too.
fn stalled(clients: u64, is_lossy: bool) -> Window {
    let mut window = quiet();
    if is_lossy {
        let own = [
            ("cause", Value::Word("rto")),
            ("sport", Value::Unsigned(8000)),
        ];
        window.event("retransmits", 1, &own);
    }
    window.relocate(77);
    let mut server = quiet();
    server.listen(9000, 64, &[65; 10]);
    server.listen(8000, 2, &[0; 10]);
    server.grow(&[("TcpExt.ListenOverflows", 180)]);
    let mut netns = server.namespaces.remove(0);
    netns.inode = 77;
    netns.is_initial = false;
    netns.after.addresses = [[10, 0, 0, 1].into()].into();
    for (port, attempt) in (0..clients).flat_map(|port| [(port, 3), (port, 4)]) {
        let again = [
            ("cause", Value::Word("rto")),
            ("attempt", Value::Unsigned(attempt)),
            ("saddr", Value::Ip([10, 0, 0, 9].into())),
            ("sport", Value::Unsigned(40_000 + port)),
            ("daddr", Value::Ip([10, 0, 0, 1].into())),
            ("dport", Value::Unsigned(8000)),
        ];
        window.event("retransmits", 1, &again);
    }
    window.namespaces.push(netns);
    window.total("retransmits", clients * 2, &[("cause", Value::Word("rto"))]);
    window.grow(&[("Tcp.RetransSegs", 60), ("Tcp.OutSegs", 440)]);
    window
}

#[test]
fn clients_that_a_short_queue_here_does_not_take_are_not_lost_on_the_path() {
    let window = stalled(30, false);
    assert_eq!(window.verdict("path-loss"), Verdict::Ok);
    let findings = window.findings();
    let mut short = findings
        .iter()
        .filter(|found| found.id == "accept-queue-overflow");
    let found = short.next().unwrap();
    assert_eq!(found.affected[0].port, Some(8000));
    let said = "30 clients that believe to be connected send";
    assert!(found.evidence[0].text.starts_with(said), "{found:?}");
    // As many as it takes at once; or the server's segments are lost, too.
    for (clients, is_lossy) in [(2, false), (30, true)] {
        let mut window = stalled(clients, is_lossy);
        window.total("retransmits", 60, &[("cause", Value::Word("rto"))]);
        assert!(window.ids().contains(&"path-loss"), "{clients} {is_lossy}");
    }
}

#[test]
fn loopback_is_no_path() {
    let mut window = lossy();
    window.events = Events::default();
    window.total("retransmits", 300, &[("cause", Value::Word("rto"))]);
    let lost = [
        ("cause", Value::Word("rto")),
        ("daddr", Value::Ip([127, 0, 0, 1].into())),
        ("dport", Value::Unsigned(8080)),
    ];
    window.event("retransmits", 300, &lost);
    assert_eq!(window.verdict("path-loss"), Verdict::Ok);
}

#[test]
fn loss_in_a_local_queue_comes_first() {
    let mut window = lossy();
    let qdisc = |drops| Qdisc {
        interface: "eth0".to_owned(),
        kind: "tbf".to_owned(),
        handle: 1,
        drops,
        queued: 0,
        backlog_bytes: 0,
        bytes: 0,
    };
    window.netns().before.qdiscs.push(qdisc(0));
    window.netns().after.qdiscs.push(qdisc(300));
    let findings = window.findings();
    assert_eq!(findings[0].id, "egress-queue-drops");
    assert_eq!(findings[1].behind, Some("egress-queue-drops"));
}

#[test]
fn handshakes_and_traces_of_loss_are_not() {
    let mut window = quiet();
    window.grow(&[
        ("Tcp.RetransSegs", 300),
        ("TcpExt.TCPSynRetrans", 300),
        ("Tcp.OutSegs", 300),
    ]);
    assert!(!window.ids().contains(&"path-loss"));
    let mut window = quiet();
    window.grow(&[("Tcp.RetransSegs", 30), ("Tcp.OutSegs", 9700)]);
    assert!(window.ids().is_empty());
}

#[test]
fn segments_that_a_namespace_of_this_machine_drops_are_not_lost_on_a_path() {
    let mut window = quiet();
    window.grow(&[("Tcp.RetransSegs", 100), ("Tcp.OutSegs", 900)]);
    window.total("retransmits", 100, &[("cause", Value::Word("rto"))]);
    let ends = [
        ("saddr", Value::Ip([127, 0, 0, 1].into())),
        ("sport", Value::Unsigned(80)),
        ("daddr", Value::Ip([10, 9, 9, 9].into())),
        ("dport", Value::Unsigned(40_000)),
    ];
    let again = [&ends[..], &[("cause", Value::Word("rto"))]].concat();
    window.event("retransmits", 100, &again);
    let told = |window: &Window| {
        let found = window.findings();
        let found = found.iter().find(|found| found.id == "path-loss").unwrap();
        (found.summary.clone(), found.fixes.clone())
    };
    assert!(!told(&window).0.contains("no path elsewhere"));
    let too_big = [
        &ends[..],
        &[
            ("flags", Value::TcpFlags(16)),
            ("reason", Value::Text("PKT_TOO_BIG".into())),
        ],
    ];
    window.event("drops", 20, &too_big.concat());
    let (summary, fixes) = told(&window);
    assert!(summary.contains("larger than the MTU"), "{summary}");
    assert!(
        fixes[1].set[0].0 == "net.ipv4.tcp_mtu_probing",
        "{fixes:#?}"
    );
}

/// A server that sends 5 segments again to each of `gone` clients that it has not heard of for longer and longer, and has
/// heard of `others` just now.
fn vanished(gone: u8, others: u32) -> Window {
    let mut window = quiet();
    window.began_ns = 1_000_000_000;
    window.listen(443, 128, &[0; 10]);
    let again = u64::from(gone) * 5;
    let counted = i64::try_from(again).unwrap();
    window.grow(&[("Tcp.RetransSegs", counted), ("Tcp.OutSegs", 3000)]);
    window.total("retransmits", again, &[("cause", Value::Word("rto"))]);
    for host in 0..gone {
        let address = IpAddr::from([10, 0, 1, host]);
        let lost = [
            ("cause", Value::Word("rto")),
            ("daddr", Value::Ip(address)),
            ("sport", Value::Unsigned(443)),
            ("dport", Value::Unsigned(40_000)),
            ("attempt", Value::Unsigned(3)),
        ];
        window.event("retransmits", 5, &lost);
        let path = Path {
            connections: 1,
            waiting: 1,
            waiting_ms: 9000,
            stuck_bytes: vec![100],
            unheard_ms: Some(9500 + 20 * u32::from(host)),
            ..Path::default()
        };
        window.sockets().paths.insert(address, path);
    }
    window.events.date("retransmits", 9_000_000_000);
    let path = Path {
        connections: others,
        unheard_ms: Some(40),
        ..Path::default()
    };
    let living = IpAddr::from([10, 0, 2, 1]);
    window.sockets().paths.insert(living, path);
    window
}

/// 15 of them, one each second, and how many connections with others.
fn one_after_the_other(others: u32) -> Window {
    let mut window = vanished(15, others);
    let paths = window.sockets().paths.values_mut();
    let gone = paths.filter(|path| path.waiting > 0);
    for (second, path) in (0..).step_by(1000).zip(gone) {
        (path.waiting_ms, path.unheard_ms) = (second, Some(second + 500));
    }
    window
}

#[test]
fn clients_that_vanish_beside_others_are_a_note_and_no_path() {
    let mut window = one_after_the_other(60);
    let findings = window.findings();
    let [found] = &findings[..] else {
        panic!("{findings:?}");
    };
    assert_eq!(found.severity, Severity::Info);
    let said = "15 connections of port 443 with 10.0.1.0 and 14 more had nothing acknowledged for up to 14 s, while others are \
                heard of: these peers have gone, as phones do";
    assert_eq!(found.summary, said);
    assert!(found.fixes[0].text.contains("TCP_USER_TIMEOUT"));
    assert_eq!(
        one_after_the_other(0).findings()[0].severity,
        Severity::Info
    );
    // Two addresses, whatever is behind them, or a few of very many.
    for (gone, others) in [(2, 60), (15, 300)] {
        let found = &vanished(gone, others).findings()[0];
        assert_eq!(found.severity, Severity::Info, "{gone}");
    }
    // Those that connections were opened to are missed.
    for host in 0..15 {
        let connection = ([10, 0, 1, host].into(), 443, 40_000);
        let unanswered = &mut window.sockets().unanswered;
        unanswered.insert(connection, Unanswered::default());
    }
    assert_eq!(window.findings()[0].severity, Severity::Warning);
    // All at once: it is the way to them.
    let findings = vanished(15, 60).findings();
    assert_eq!(findings[0].severity, Severity::Warning);
    let said = "the path to 15 hosts loses packets: 75 segments (2.4 % of all that was sent) were sent again in 10 s, 5 of \
                them to 10.0.1.0; the same segments go out three times and more: the peer or the path is gone, or drops whole \
                trains";
    assert_eq!(findings[0].summary, said);
    let mut evidence = findings[0].evidence.iter();
    assert!(evidence.all(|evidence| !evidence.text.contains("round trip")));
}

#[test]
fn what_was_acknowledged_after_all_was_lost_on_the_path() {
    let mut window = vanished(15, 60);
    // Before they were heard of last.
    window.events.date("retransmits", 1_100_000_000);
    assert_eq!(window.findings()[0].severity, Severity::Warning);
    // Other connections with them go well.
    let mut window = vanished(15, 60);
    for host in 0..15 {
        let ended = [
            ("result", Value::Word("fin")),
            ("daddr", Value::Ip([10, 0, 1, host].into())),
        ];
        window.event("lifetimes", 1, &ended);
    }
    assert_eq!(window.findings()[0].severity, Severity::Warning);
}

/// Segments lost to bulk of iperf3 with a round trip of so many microseconds, and of 40 ms at best.
fn bulk(srtt_us: u64, in_flight: u32) -> Window {
    let mut window = lossy();
    window.events = Events::default();
    window.total("retransmits", 300, &[("cause", Value::Word("fast"))]);
    let lost = [
        ("cause", Value::Word("fast")),
        ("comm", Value::Text("iperf3".into())),
        ("pid", Value::Unsigned(7)),
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(5201)),
        ("srtt_us", Value::Unsigned(srtt_us)),
    ];
    window.event("retransmits", 300, &lost);
    let path = Path {
        in_flight,
        arrived_bytes: 25_000_000,
        min_rtt_us: 40_000,
        ..Path::default()
    };
    window.sockets().paths.insert([10, 0, 0, 2].into(), path);
    window
}

#[test]
fn bulk_that_nearly_doubles_the_round_trip_fills_a_queue() {
    let told = |srtt_us, in_flight| {
        let found = bulk(srtt_us, in_flight).findings().remove(0);
        let said = found.evidence.iter().map(|evidence| &evidence.text);
        let said = said.cloned().collect::<Vec<_>>().join("; ");
        (found.summary, said, found.fixes[0].text.clone())
    };
    let (summary, said, fix) = told(79_000, 60);
    let end = "; a queue on the way to 10.0.0.2 is full and drops the rest (a round trip takes 79 ms, at best 40 ms): iperf3 \
               (pid 7) fills it";
    assert!(summary.ends_with(end), "{summary}");
    assert!(said.contains("bufferbloat"), "{said}");
    assert!(said.contains("20.0 Mbit/s arrive at 10.0.0.2"), "{said}");
    let limit = "limit what iperf3 (pid 7) sends to 10.0.0.2, below the 20.0 Mbit/s";
    assert!(fix.starts_with(limit), "{fix}");
    // Others may fill it, or it is not full.
    for (srtt_us, in_flight) in [(79_000, 3), (60_000, 60)] {
        let (summary, said, fix) = told(srtt_us, in_flight);
        assert!(!summary.contains("queue"), "{summary}");
        assert!(
            !said.contains("clean") && !said.contains("bufferbloat"),
            "{said}"
        );
        assert!(fix.contains("mtr"), "{fix}");
    }
    assert!(told(45_000, 60).1.contains("clean loss"));
}
