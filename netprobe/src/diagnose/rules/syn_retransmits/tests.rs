use crate::{
    diagnose::{fixtures::quiet, window::Window},
    probes::PROBES,
    report::{Row, Total, Value, diagnosis::Severity},
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
