//! Destinations that do not answer.

use super::*;

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
fn a_few_among_many_are_the_internet() {
    let mut window = quiet();
    window.grow(&[("TcpExt.TCPSynRetrans", 12), ("Tcp.ActiveOpens", 6000)]);
    assert!(window.ids().is_empty());
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
    let told = said(window.clone());
    assert!(told.contains("all 20 connects seen succeed"), "{told}");
    assert!(told.contains("before this window"), "{told}");
    // The attempt before was made in it.
    let ends = [
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(4712)),
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(5432)),
    ];
    let with = |name, word| [&ends[..], &[(name, Value::Word(word))]].concat();
    window.event("connects", 1, &with("outcome", "established"));
    window.event("retransmits", 1, &with("cause", "syn"));
    let told = said(window.clone());
    assert!(told.contains("before this window"), "{told}");
    window.events.date_last("retransmits", 12_000_000_000);
    let told = said(window);
    assert!(!told.contains("before this window"), "{told}");
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

#[test]
fn connects_without_a_route_are_told_by_their_number_where_none_can_be_seen() {
    const V4: &str = "10.0.0.1";
    const V6: &str = "fd00::1";
    let severity = |addresses: &[&str], [v4, v6, opened]: [i64; 3], is_blind: bool| {
        let mut window = quiet();
        let addresses = addresses.iter().map(|address| address.parse().unwrap());
        window.netns().after.addresses = addresses.collect();
        window.grow(&[
            ("Ip.OutNoRoutes", v4),
            ("Ip6OutNoRoutes", v6),
            ("Tcp.ActiveOpens", opened),
        ]);
        if is_blind {
            let mut probes = window.probes.iter_mut();
            let connects = probes.find(|probe| probe.name == "connects").unwrap();
            connects.hooks.push(crate::report::Hook {
                sees: "errno of connects that fail at once",
                required: false,
                state: Err("no kprobes".to_owned()),
            });
        }
        let findings = window.findings();
        findings.first().map(|found| {
            assert_eq!((findings.len(), found.id), (1, "syn-retransmits"));
            assert_eq!(found.confidence, crate::report::diagnosis::Confidence::Low);
            found.severity
        })
    };
    for (addresses, counts, expected) in [
        (&[V4, V6][..], [50, 0, 0], Some(Severity::Warning)),
        (&[V4, V6], [50, 40, 2], Some(Severity::Warning)),
        (&[V6], [0, 50, 0], Some(Severity::Warning)),
        // Others find a route; more of them do.
        (&[V4], [50, 0, 40], Some(Severity::Info)),
        (&[V4], [50, 0, 60], None),
        // Who falls back on IPv4 fails with nothing.
        (&[V4, V6], [0, 50, 0], Some(Severity::Info)),
        (&[V4, "fe80::1"], [0, 50, 0], None),
        (&["fe80::1"], [50, 50, 0], None),
        // One that nobody misses.
        (&[V4], [9, 0, 0], None),
        (&[V4], [12, 0, 0], None),
    ] {
        assert_eq!(
            severity(addresses, counts, true),
            expected,
            "{addresses:?} {counts:?}"
        );
        // Where connects are seen, they tell.
        assert_eq!(severity(addresses, counts, false), None);
    }
}
