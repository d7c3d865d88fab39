use crate::{
    diagnose::{fixtures::quiet, window::Window},
    report::{Value, diagnosis::Severity},
};

#[test]
fn load_and_floods_are_told_apart_by_what_completes() {
    let mut window = quiet();
    window.listen(80, 10, &[0; 10]);
    window.grow(&[("TcpExt.TCPReqQFullDrop", 100), ("Tcp.PassiveOpens", 900)]);
    let findings = window.findings();
    assert_eq!(
        (findings[0].id, findings[0].severity),
        ("syn-backlog-full", Severity::Critical)
    );
    assert!(findings[0].summary.contains("too many at once"));
    let mut window = quiet();
    window.grow(&[
        ("TcpExt.TCPReqQFullDoCookies", 1000),
        ("Tcp.PassiveOpens", 3),
    ]);
    let findings = window.findings();
    assert_eq!(findings[0].severity, Severity::Warning);
    assert!(findings[0].summary.contains("flood"));
    assert!(findings[0].fixes.iter().all(|fix| fix.set.is_empty()));
}

fn sets(window: &Window) -> Vec<(String, String)> {
    let findings = window.findings();
    let found = findings.iter().find(|found| found.id == "syn-backlog-full");
    let fixes = found.unwrap().fixes.iter();
    fixes.flat_map(|fix| fix.set.clone()).collect()
}

fn set(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[test]
fn the_room_follows_the_rate_and_not_the_time_that_one_looked() {
    for seconds in [2_u32, 8, 60] {
        let mut window = quiet();
        window.seconds = f64::from(seconds);
        window.listen(80, 8, &[0; 10]);
        let seconds = i64::from(seconds);
        // 40/s fit, 110/s come back with a cookie.
        window.grow(&[
            ("TcpExt.TCPReqQFullDoCookies", 110 * seconds),
            ("TcpExt.SyncookiesSent", 110 * seconds),
            ("TcpExt.SyncookiesRecv", 110 * seconds),
            ("Tcp.PassiveOpens", 150 * seconds),
        ]);
        // 30, half as much again: 45. somaxconn is 4096 and remains so.
        assert_eq!(sets(&window), [set("listen_backlog", "64")]);
    }
}

/// A service whose `refused` SYNs found the backlog full, of a client here that gives up; nothing is completed.
fn unanswered(refused: i64) -> Window {
    let mut window = quiet();
    window.listen(80, 128, &[0; 10]);
    window.grow(&[
        ("TcpExt.TCPReqQFullDoCookies", refused),
        ("TcpExt.SyncookiesSent", refused),
        ("TcpExt.TCPSynRetrans", 200),
    ]);
    let client = [10, 0, 0, 7].into();
    let clients = window.sockets().clients.entry(80).or_default();
    clients.half_open = 128;
    clients.half_open_sources.insert(client);
    window.total("retransmits", 200, &[("cause", Value::Word("syn-ack"))]);
    let answer = [
        ("cause", Value::Word("syn-ack")),
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(80)),
    ];
    window.event("retransmits", 200, &answer);
    window
}

#[test]
fn answers_that_are_lost_are_neither_a_load_nor_a_flood_and_more_room_is_no_cure() {
    // Who they are is not known: nothing is said to be completed, and no size follows.
    for (refused, said) in [
        (12, "the answers do not arrive, or nobody waits"),
        (120, "a flood"),
    ] {
        let window = unanswered(refused);
        let findings = window.findings();
        assert_eq!(findings[0].id, "syn-backlog-full");
        let summary = &findings[0].summary;
        assert!(
            summary.contains(said) && !summary.contains("complete:"),
            "{summary}"
        );
        assert!(sets(&window).is_empty());
    }
    // A client on this machine that gives up.
    for refused in [12, 120] {
        let mut window = unanswered(refused);
        let mut there = window.netns().clone();
        there.inode = 77;
        there.after.addresses = [[10, 0, 0, 7].into()].into();
        there.after.counters.clear();
        there.before.counters.clear();
        window.namespaces.push(there);
        let connect = [
            ("outcome", Value::Word("aborted")),
            ("saddr", Value::Ip([10, 0, 0, 7].into())),
            ("sport", Value::Unsigned(41_000)),
            ("daddr", Value::Ip([10, 0, 0, 1].into())),
            ("dport", Value::Unsigned(80)),
            ("latency_ns", Value::Unsigned(300_000_000)),
        ];
        let answers = window.events.clone();
        window.events = crate::diagnose::events::Events::default();
        window.event("connects", 60, &connect);
        window.relocate(77);
        window.events.totals.extend(answers.totals.clone());
        for event in answers.of("retransmits") {
            window.events.keep("retransmits", event.clone());
        }
        let findings = window.findings();
        assert_eq!(findings[0].id, "syn-retransmits");
        assert_eq!(
            (findings[0].severity, findings[0].behind),
            (Severity::Critical, None)
        );
        let found = findings.iter().find(|found| found.id == "syn-backlog-full");
        assert_eq!(found.map(|found| found.severity), Some(Severity::Info));
        assert!(sets(&window).is_empty());
    }
}

#[test]
fn a_flood_without_cookies_shows_in_the_drops_that_have_no_other_counter() {
    let flood = |half_open| {
        let mut window = quiet();
        window.set("net.ipv4.tcp_syncookies", "0");
        window.set("net.ipv4.tcp_max_syn_backlog", "256");
        window.listen(80, 256, &[0; 10]);
        window.sockets().clients.entry(80).or_default().half_open = half_open;
        window.grow(&[("TcpExt.ListenDrops", 12_506), ("Tcp.PassiveOpens", 80)]);
        window
    };
    let findings = flood(193).findings();
    assert_eq!(findings[0].id, "syn-backlog-full");
    assert!(findings[0].summary.contains("12506 SYNs were dropped"));
    assert!(findings[0].summary.contains("flood"));
    assert!(!flood(20).ids().contains(&"syn-backlog-full"));
}

#[test]
fn another_busy_port_does_not_make_a_flood_a_load() {
    let mut window = quiet();
    window.listen(80, 511, &[0; 10]);
    window.listen(8443, 128, &[0; 10]);
    window.sockets().clients.entry(8443).or_default().half_open = 128;
    window.grow(&[
        ("TcpExt.TCPReqQFullDoCookies", 3339),
        ("TcpExt.SyncookiesSent", 3339),
        ("Tcp.PassiveOpens", 800),
    ]);
    let served = [
        ("service_port", Value::Unsigned(80)),
        ("role", Value::Word("server")),
    ];
    window.total("lifetimes", 800, &served);
    let findings = window.findings();
    assert!(findings[0].summary.contains("port 8443") && findings[0].summary.contains("flood"));
    assert!(sets(&window).is_empty());
}

#[test]
fn a_full_accept_queue_makes_neither_a_flood_nor_a_load_and_cookies_are_those_sent() {
    let mut window = quiet();
    window.listen(8080, 10, &[11, 11, 10, 11]);
    window.sockets().clients.entry(8080).or_default().half_open = 10;
    window.grow(&[
        ("TcpExt.ListenOverflows", 900),
        ("TcpExt.TCPReqQFullDoCookies", 677),
        ("TcpExt.SyncookiesSent", 81),
        ("Tcp.PassiveOpens", 80),
    ]);
    let findings = window.findings();
    let found = findings.iter().find(|found| found.id == "syn-backlog-full");
    let found = found.unwrap();
    assert!(found.behind.is_some());
    assert!(found.summary.contains("81 SYNs were answered with cookies"));
    assert!(!found.summary.contains("flood") && !found.summary.contains("too many"));
    assert!(sets(&window).is_empty());
}

#[test]
fn cookies_for_everybody_say_nothing() {
    let mut window = quiet();
    window.set("net.ipv4.tcp_syncookies", "2");
    window.grow(&[
        ("TcpExt.TCPReqQFullDoCookies", 1000),
        ("TcpExt.SyncookiesSent", 1000),
        ("Tcp.PassiveOpens", 1000),
    ]);
    assert!(window.ids().is_empty());
}

#[test]
fn a_full_accept_queue_comes_first() {
    let mut window = quiet();
    window.listen(80, 10, &[11; 10]);
    window.grow(&[
        ("TcpExt.TCPReqQFullDrop", 100),
        ("TcpExt.ListenOverflows", 100),
    ]);
    let findings = window.findings();
    assert_eq!(findings[0].id, "application-not-accepting");
    assert_eq!(findings[1].behind, Some("application-not-accepting"));
}
