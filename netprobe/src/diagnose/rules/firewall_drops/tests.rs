use crate::{
    diagnose::{
        Verdict,
        fixtures::quiet,
        window::{Netns, Window},
    },
    observe::diag::{Destination, Ports, Quietness},
    report::{Value, diagnosis::Severity},
};

fn dropping(window: &mut Window, port: u64, packets: u64) {
    dropping_in(window, port, packets, "nf_hook_slow+0xab");
}

fn dropping_in(window: &mut Window, port: u64, packets: u64, location: &str) {
    let reason = ("reason", Value::Word("NETFILTER_DROP"));
    let location = ("location", Value::Text(location.into()));
    window.total("drops", packets, &[reason.clone(), location.clone()]);
    let packet = [
        reason,
        location,
        ("saddr", Value::Ip([10, 0, 0, 9].into())),
        ("sport", Value::Unsigned(40_000)),
        ("daddr", Value::Ip([10, 0, 0, 1].into())),
        ("dport", Value::Unsigned(port)),
        ("flags", Value::TcpFlags(2)),
    ];
    window.event("drops", 30, &packet);
}

#[test]
fn syns_to_a_listener_that_a_rule_drops_are_critical_and_scans_are_not() {
    let mut window = quiet();
    window.listen(80, 128, &[0; 10]);
    dropping(&mut window, 80, 30);
    let findings = window.findings();
    assert_eq!(
        (findings[0].id, findings[0].severity),
        ("firewall-drops", Severity::Critical)
    );
    assert_eq!(findings[0].affected[0].port, Some(80));
    window.netns().after.addresses = [[10, 0, 0, 1].into()].into();
    let fix = window.findings()[0].fixes[0].text.clone();
    assert!(
        fix.contains("(a chain of hook ingress, prerouting or input)"),
        "{fix}"
    );
    let mut window = quiet();
    dropping(&mut window, 23, 30);
    assert_eq!(window.findings()[0].severity, Severity::Info);
}

#[test]
fn one_connect_that_hangs_is_missed_and_no_stray() {
    let with = |flags: u8, through: bool| {
        let mut window = quiet();
        window.listen(9050, 128, &[0; 10]);
        window.netns().after.addresses = [[10, 0, 0, 1].into(), [10, 0, 0, 9].into()].into();
        if through {
            let clients = window.sockets().clients.entry(9050).or_default();
            clients.sources.insert([10, 0, 0, 7].into());
            clients.established = 1;
        }
        let location = ("location", Value::Text("nft_do_chain+0x1c".into()));
        let reason = ("reason", Value::Word("NETFILTER_DROP"));
        window.total("drops", 2, &[reason.clone(), location.clone()]);
        let packet = [
            reason,
            location,
            ("saddr", Value::Ip([10, 0, 0, 9].into())),
            ("sport", Value::Unsigned(40_000)),
            ("daddr", Value::Ip([10, 0, 0, 1].into())),
            ("dport", Value::Unsigned(9050)),
            ("flags", Value::TcpFlags(flags)),
        ];
        window.event("drops", 2, &packet);
        window.findings().remove(0)
    };
    let found = with(2, false);
    assert_eq!(
        (found.id, found.severity),
        ("firewall-drops", Severity::Warning)
    );
    let text = &found.summary;
    assert!(text.contains("nobody gets through to it"), "{text}");
    assert!(!found.fixes[0].text.contains("the rule is gone"));
    // What is no SYN, or where others get through, is too little to say so.
    let noted = with(16, false);
    assert_eq!(noted.severity, Severity::Info);
    assert!(!noted.summary.contains("have ended"), "{}", noted.summary);
    assert_eq!(with(2, true).severity, Severity::Info);
}

fn full(window: &mut Window, refused: u64) {
    window.set("net.netfilter.nf_conntrack_max", "200");
    window.set("net.netfilter.nf_conntrack_count", "200");
    window.grow(&[("nf_conntrack.drop", refused.cast_signed())]);
}

#[test]
fn drops_of_a_full_conntrack_table_are_not_those_of_a_rule() {
    let mut window = quiet();
    window.listen(80, 128, &[0; 10]);
    // Programs are read one after the other: one packet more is nobody's rule.
    dropping(&mut window, 80, 301);
    full(&mut window, 300);
    window.total("conntrack", 300, &[("protocol", Value::Word("tcp"))]);
    assert_eq!(window.verdict("firewall-drops"), Verdict::Ok);
    assert_eq!(window.ids(), ["conntrack-table-full"]);
    // Without function probes the counter tells.
    window
        .events
        .totals
        .retain(|total| total.kind != "conntrack");
    window.blind("conntrack");
    assert_eq!(window.verdict("firewall-drops"), Verdict::Ok);
    // What is lost of other protocols is no excuse for a rule.
    full(&mut window, 5000);
    dropping_in(&mut window, 80, 20, "nft_do_chain+0x1c [nf_tables]");
    let Verdict::Found(found) = window.verdict("firewall-drops") else {
        panic!("the place says that a rule did");
    };
    assert!(found[0].summary.contains("dropped 20 packets"), "{found:?}");
}

#[test]
fn a_rule_beside_a_full_table_is_found_by_what_the_table_does_not_explain() {
    let mut window = quiet();
    window.listen(80, 128, &[0; 10]);
    dropping(&mut window, 80, 400);
    full(&mut window, 300);
    window.total("conntrack", 300, &[("protocol", Value::Word("tcp"))]);
    assert_eq!(window.ids(), ["conntrack-table-full", "firewall-drops"]);
}

#[test]
fn where_every_event_was_lost_the_totals_tell_the_listener_or_nobody_is_named() {
    let lost = |port| {
        let mut window = quiet();
        window.listen(80, 128, &[0; 10]);
        let reason = ("reason", Value::Word("NETFILTER_DROP"));
        window.total("drops", 30, &[reason, ("dport", Value::Unsigned(port))]);
        window
    };
    let findings = lost(80).findings();
    assert_eq!(findings[0].severity, Severity::Critical);
    assert_eq!(findings[0].affected[0].port, Some(80));
    let verdict = lost(23).verdict("firewall-drops");
    assert!(matches!(verdict, Verdict::NotEnoughData(_)), "{verdict:?}");
}

/// Packets that a rule drops, from and to these ends.
fn syns(window: &mut Window, from: [u8; 4], to: ([u8; 4], u64), packets: usize) {
    let reason = ("reason", Value::Word("NETFILTER_DROP"));
    window.total("drops", packets as u64, std::slice::from_ref(&reason));
    let packet = [
        reason,
        ("saddr", Value::Ip(from.into())),
        ("sport", Value::Unsigned(40_000)),
        ("daddr", Value::Ip(to.0.into())),
        ("dport", Value::Unsigned(to.1)),
        ("flags", Value::TcpFlags(2)),
    ];
    window.event("drops", packets, &packet);
}

fn client_of(window: &mut Window, port: u16, client: [u8; 4]) {
    let clients = window.sockets().clients.entry(port).or_default();
    clients.sources.insert(client.into());
}

#[test]
fn strangers_that_are_kept_out_while_others_get_through_are_named_and_no_incident() {
    const APP: [u8; 4] = [10, 0, 0, 7];
    const SCANNER: [u8; 4] = [10, 99, 9, 9];
    let mut window = quiet();
    window.listen(5432, 128, &[0; 10]);
    syns(&mut window, SCANNER, ([10, 0, 0, 1], 5432), 27);
    // As long as nobody gets through, it may be a client.
    assert_eq!(window.findings()[0].severity, Severity::Critical);
    client_of(&mut window, 5432, APP);
    let findings = window.findings();
    assert_eq!(findings[0].severity, Severity::Info);
    let summary = &findings[0].summary;
    assert!(
        summary.contains("10.99.9.9") && summary.contains("10.0.0.1:5432 (server)"),
        "{summary}"
    );
    // Nor is it one because another address of its machine has connections.
    window.netns().after.addresses = [[10, 0, 0, 1].into(), APP.into(), SCANNER.into()].into();
    let service = ([10, 0, 0, 1].into(), 5432);
    window
        .sockets()
        .quietness
        .insert(service, Quietness::default());
    for local in [APP, SCANNER] {
        let to = Destination {
            local: local.into(),
            remote: service.0,
            port: service.1,
        };
        window.sockets().ports.insert(to, Ports::default());
    }
    assert_eq!(window.findings()[0].severity, Severity::Info);
    // One that has connections is no stranger.
    syns(&mut window, APP, ([10, 0, 0, 1], 5432), 27);
    let findings = window.findings();
    assert_eq!(findings[0].severity, Severity::Critical);
    let summary = &findings[0].summary;
    assert!(
        summary.contains("27 packets") && summary.contains("from 10.0.0.7"),
        "{summary}"
    );
}

/// SYNs of a process of this machine that are sent again.
fn unanswered(window: &mut Window, from: [u8; 4], to: ([u8; 4], u64), count: usize) {
    let ends = [
        ("cause", Value::Word("syn")),
        ("saddr", Value::Ip(from.into())),
        ("sport", Value::Unsigned(40_000)),
        ("daddr", Value::Ip(to.0.into())),
        ("dport", Value::Unsigned(to.1)),
    ];
    window.event("retransmits", count, &ends);
    window.total("retransmits", count as u64, &ends[..1]);
    let count = i64::try_from(count).unwrap();
    window.grow(&[("TcpExt.TCPSynRetrans", count), ("Tcp.ActiveOpens", count)]);
}

#[test]
fn one_client_of_this_machine_that_is_kept_out_is_the_verdict_though_others_get_through() {
    const BANNED: [u8; 4] = [10, 0, 0, 13];
    let mut window = quiet();
    window.listen(80, 128, &[0; 10]);
    window.netns().after.addresses = [[10, 0, 0, 1].into(), BANNED.into()].into();
    client_of(&mut window, 80, [10, 0, 0, 7]);
    syns(&mut window, BANNED, ([10, 0, 0, 1], 80), 62);
    assert_eq!(window.findings()[0].severity, Severity::Info);
    unanswered(&mut window, BANNED, ([10, 0, 0, 1], 80), 30);
    let findings = window.findings();
    assert_eq!(
        window.told(),
        [
            ("firewall-drops", None),
            ("syn-retransmits", Some("firewall-drops"))
        ]
    );
    assert_eq!(findings[0].severity, Severity::Critical);
    let summary = &findings[0].summary;
    assert!(
        summary.ends_with("10.0.0.1:80 (server) from 10.0.0.13; others get through to it"),
        "{summary}"
    );
}

#[test]
fn a_scan_from_this_machine_that_a_policy_drops_is_the_firewall_at_its_work() {
    const SCANNER: [u8; 4] = [10, 0, 0, 13];
    let scanned = |ports: std::ops::Range<u64>| {
        let mut window = quiet();
        window.listen(80, 128, &[0; 10]);
        window.netns().after.addresses = [[10, 0, 0, 1].into(), SCANNER.into()].into();
        for port in ports {
            syns(&mut window, SCANNER, ([10, 0, 0, 1], port), 4);
            unanswered(&mut window, SCANNER, ([10, 0, 0, 1], port), 3);
        }
        window
    };
    let window = scanned(1000..1040);
    assert_eq!(window.ids(), ["firewall-drops"]);
    let findings = window.findings();
    assert_eq!(findings[0].severity, Severity::Info);
    assert!(findings[0].summary.contains("nobody listens at"));
    // A service that somebody needs is none.
    let first = scanned(1000..1001).findings().remove(0);
    assert_eq!(
        (first.id, first.severity),
        ("firewall-drops", Severity::Critical)
    );
    // Nor is what goes elsewhere unanswered part of the scan.
    let mut window = scanned(1000..1040);
    unanswered(&mut window, [10, 0, 0, 1], ([10, 5, 5, 5], 5432), 300);
    let findings = window.findings();
    assert_eq!(findings[0].id, "syn-retransmits");
    assert!(findings[0].summary.starts_with("10.5.5.5:5432"));
}

#[test]
fn what_went_to_a_listener_is_told_from_what_went_elsewhere() {
    let mut window = quiet();
    window.listen(22, 128, &[0; 10]);
    syns(&mut window, [203, 0, 113, 5], ([10, 0, 0, 1], 22), 10);
    for port in 0..90 {
        syns(
            &mut window,
            [203, 0, 113, 5],
            ([10, 0, 0, 1], 3000 + port),
            1,
        );
    }
    let summary = window.findings().remove(0).summary;
    assert!(
        summary.contains("dropped 100 packets in 10 s, 10 of them to 10.0.0.1:22")
            && summary.ends_with("the rest to other ports"),
        "{summary}"
    );
}

#[test]
fn now_and_then_a_knock_from_the_internet_is_missed_by_nobody() {
    let knocked = |packets| {
        let mut window = quiet();
        window.listen(22, 128, &[0; 10]);
        syns(&mut window, [203, 0, 113, 5], ([10, 0, 0, 1], 22), packets);
        window.findings()[0].severity
    };
    assert_eq!(knocked(10), Severity::Info);
    assert_eq!(knocked(100), Severity::Critical);
}

const ROUTER: u32 = 77;

/// A namespace between others, with what the first has.
fn router(window: &mut Window) -> Netns {
    Netns {
        inode: ROUTER,
        name: Some("router".to_owned()),
        is_initial: false,
        ..window.netns().clone()
    }
}

#[test]
fn what_a_router_drops_is_missed_by_the_ends_in_other_namespaces() {
    let mut window = quiet();
    let mut router = router(&mut window);
    router.after.addresses = [[10, 0, 0, 254].into()].into();
    window.namespaces.push(router);
    syns(&mut window, [10, 0, 0, 1], ([10, 9, 9, 9], 443), 30);
    // It happened there.
    window.relocate(ROUTER);
    assert_eq!(window.findings()[0].severity, Severity::Info);
    assert!(
        window.findings()[0]
            .summary
            .contains("between other machines")
    );
    // The client is in another namespace.
    window.netns().after.addresses = [[10, 0, 0, 1].into()].into();
    let findings = window.findings();
    assert_eq!(findings[0].severity, Severity::Critical);
    assert_eq!(findings[0].affected[0].kind, "destination");
    let fix = &findings[0].fixes[0].text;
    assert!(
        fix.contains("ip netns exec router nft list ruleset") && fix.contains("hook forward"),
        "{fix}"
    );
    // Or the listener is.
    window.netns().after.addresses = [[10, 9, 9, 9].into()].into();
    window.listen(443, 128, &[0; 10]);
    window.sockets().listeners[0].address = [0, 0, 0, 0].into();
    let findings = window.findings();
    assert_eq!(
        (findings[0].severity, findings[0].affected[0].kind),
        (Severity::Critical, "listener")
    );
}

/// A router between 10.0.0.1, a client here, and 10.9.9.9:443, a service here, that drops data of theirs.
fn between_ours() -> Window {
    let mut window = quiet();
    let mut router = router(&mut window);
    let mut server = Netns {
        inode: 78,
        ..router.clone()
    };
    router.after.addresses = [[10, 0, 0, 254].into()].into();
    window.listen(443, 128, &[0; 10]);
    window.sockets().listeners[0].address = [0, 0, 0, 0].into();
    client_of(&mut window, 443, [10, 0, 0, 1]);
    server.after = std::mem::replace(&mut window.netns().after, server.after);
    server.after.addresses = [[10, 9, 9, 9].into()].into();
    window.netns().after.addresses = [[10, 0, 0, 1].into()].into();
    let reason = ("reason", Value::Word("NETFILTER_DROP"));
    window.total("drops", 30, std::slice::from_ref(&reason));
    let packet = [
        reason,
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(40_000)),
        ("daddr", Value::Ip([10, 9, 9, 9].into())),
        ("dport", Value::Unsigned(443)),
        // PSH and ACK: no socket is known of what a router hands on.
        ("flags", Value::TcpFlags(0x18)),
    ];
    window.event("drops", 30, &packet);
    window.relocate(ROUTER);
    window.namespaces.extend([router, server]);
    window
}

/// Data of the client that goes out again, for the n-th time.
fn data_again(window: &mut Window, attempt: u64) {
    let again = [
        ("cause", Value::Word("rto")),
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(40_000)),
        ("daddr", Value::Ip([10, 9, 9, 9].into())),
        ("dport", Value::Unsigned(443)),
        ("attempt", Value::Unsigned(attempt)),
    ];
    window.event("retransmits", 20, &again);
    window.total("retransmits", 20, &again[..1]);
    window.grow(&[("Tcp.RetransSegs", 20)]);
}

#[test]
fn data_that_a_router_drops_is_missed_by_who_sends_it_again() {
    let mut window = between_ours();
    // Packets that came late are missed by nobody, nor is what was lost once.
    assert_eq!(window.findings()[0].severity, Severity::Info);
    data_again(&mut window, 1);
    let findings = window.findings();
    let rule = findings.iter().find(|found| found.id == "firewall-drops");
    assert_eq!(rule.unwrap().severity, Severity::Info);
    data_again(&mut window, 2);
    assert_eq!(
        window.told(),
        [
            ("firewall-drops", None),
            ("path-loss", Some("firewall-drops"))
        ]
    );
    let found = &window.findings()[0];
    assert_eq!(found.severity, Severity::Critical);
    let told = "to the listener 10.9.9.9:443 (server) from 10.0.0.1";
    assert!(found.summary.contains(told), "{}", found.summary);
}

#[test]
fn the_same_address_in_another_network_does_not_hide_who_misses_what_a_router_drops() {
    let mut window = between_ours();
    data_again(&mut window, 2);
    let mut twins = [window.namespaces[0].clone(), window.namespaces[2].clone()];
    for (inode, twin) in (90..).zip(&mut twins) {
        twin.inode = inode;
        twin.after.sockets = quiet().netns().after.sockets.clone();
    }
    window.namespaces.splice(0..0, twins);
    let found = &window.findings()[0];
    assert_eq!(
        (found.id, found.severity),
        ("firewall-drops", Severity::Critical)
    );
    let told = "to the listener 10.9.9.9:443 (server) from 10.0.0.1";
    assert!(found.summary.contains(told), "{}", found.summary);
}

#[test]
fn refused_clients_tell_that_a_rule_rejects() {
    let mut window = quiet();
    window.listen(6379, 128, &[0; 10]);
    syns(&mut window, [10, 0, 0, 9], ([10, 0, 0, 1], 6379), 30);
    assert!(window.findings()[0].summary.contains("dropped"));
    window.total("resets", 30, &[("cause", Value::Word("refused"))]);
    let refused = [
        ("direction", Value::Word("received")),
        ("cause", Value::Word("refused")),
        ("saddr", Value::Ip([10, 0, 0, 9].into())),
        ("sport", Value::Unsigned(40_000)),
        ("daddr", Value::Ip([10, 0, 0, 1].into())),
        ("dport", Value::Unsigned(6379)),
    ];
    window.event("resets", 30, &refused);
    let findings = window.findings();
    assert!(
        findings[0].summary.contains("rejected 30 packets"),
        "{}",
        findings[0].summary
    );
    assert_eq!(
        window.told(),
        [("firewall-drops", None), ("resets", Some("firewall-drops"))]
    );
    assert!(
        findings[1].summary.contains("though server listens there"),
        "{}",
        findings[1].summary
    );
}

#[test]
fn a_counter_that_went_backwards_is_no_verdict_on_rules() {
    let mut window = quiet();
    window.blind("conntrack");
    dropping(&mut window, 80, 30);
    window.grow(&[("nf_conntrack.drop", -5)]);
    let verdict = window.verdict("firewall-drops");
    assert!(matches!(verdict, Verdict::NotEnoughData(_)), "{verdict:?}");
}

#[test]
fn other_drops_are_not_the_firewalls() {
    let mut window = quiet();
    window.total("drops", 30, &[("reason", Value::Word("NO_SOCKET"))]);
    assert!(window.ids().is_empty());
}

#[test]
fn a_firewall_is_not_at_its_work_where_packets_to_a_listener_were_not_looked_at() {
    let window = |packets| {
        let mut window = quiet();
        window.listen(80, 128, &[0; 10]);
        dropping(&mut window, 23, 3000);
        let reason = ("reason", Value::Word("NETFILTER_DROP"));
        window.total("drops", packets, &[reason, ("dport", Value::Unsigned(80))]);
        window
    };
    let verdict = window(30).verdict("firewall-drops");
    assert!(matches!(verdict, Verdict::NotEnoughData(_)), "{verdict:?}");
    // Two packets are nothing that somebody misses.
    assert_eq!(window(2).findings()[0].severity, Severity::Info);
}

const SECOND: u64 = 1_000_000_000;

/// A rule that dropped SYNs of a client from second 2 to 4 of 10.
fn for_a_while() -> Window {
    let mut window = quiet();
    window.began_ns = 100 * SECOND;
    window.listen(80, 128, &[0; 10]);
    dropping(&mut window, 80, 30);
    window.events.date("drops", 102 * SECOND);
    window.events.date_last("drops", 104 * SECOND);
    window
}

/// Lets the client get through, with a connection that ends at this time.
fn serve(window: &mut Window, at_ns: u64) {
    let end = [
        ("role", Value::Word("server")),
        ("result", Value::Word("fin")),
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(80)),
        ("daddr", Value::Ip([10, 0, 0, 9].into())),
        ("dport", Value::Unsigned(40_001)),
        ("duration_ns", Value::Unsigned(SECOND)),
    ];
    window.event("lifetimes", 1, &end);
    window.events.date_last("lifetimes", at_ns);
}

#[test]
fn a_rule_that_is_gone_is_a_warning_that_tells_since_when() {
    let mut window = for_a_while();
    serve(&mut window, 107 * SECOND);
    let found = &window.findings()[0];
    assert_eq!(
        (found.id, found.severity),
        ("firewall-drops", Severity::Warning)
    );
    let told = "dropped 30 packets within 2.0 s, the last one 6 s ago, to the listener 10.0.0.1:80 (server) from 10.0.0.9; \
                they get through since";
    assert!(found.summary.contains(told), "{}", found.summary);
    let mut evidence = found.evidence.iter();
    let told = "dropped 2.0 s into the window, the last 4.0 s";
    assert!(evidence.any(|evidence| evidence.text.ends_with(told)));
}

#[test]
fn a_rule_whose_clients_do_not_come_back_may_be_there_still() {
    let found = for_a_while().findings().remove(0);
    assert_eq!(found.severity, Severity::Critical);
    let told = "the last one 6 s ago, to the listener 10.0.0.1:80 (server) from 10.0.0.9; none of them was seen to get \
                through since";
    assert!(found.summary.contains(told), "{}", found.summary);
    // A connection of before says nothing.
    let mut window = for_a_while();
    serve(&mut window, 104 * SECOND + SECOND / 2);
    let found = &window.findings()[0];
    assert_eq!(found.severity, Severity::Critical, "{}", found.summary);
}

#[test]
fn a_rule_is_there_where_a_packet_was_dropped_lately_or_not_all_were_looked_at() {
    let is_told_as_ever = |window: &Window| {
        let found = window.findings().remove(0);
        assert_eq!(found.severity, Severity::Critical, "{}", found.summary);
        found.summary.contains("packets in 10 s, to the listener")
    };
    let mut window = for_a_while();
    serve(&mut window, 107 * SECOND);
    let mut lately = window.clone();
    lately.events.date_last("drops", 108 * SECOND);
    assert!(is_told_as_ever(&lately));
    let drops = window.probes.iter_mut().find(|probe| probe.name == "drops");
    drops.unwrap().counters.sampled_out = 1;
    // All of these were looked at; then one more is dropped.
    assert_eq!(window.findings()[0].severity, Severity::Warning);
    window.total("drops", 1, &[("reason", Value::Word("NETFILTER_DROP"))]);
    assert!(is_told_as_ever(&window));
}

#[test]
fn one_client_that_gets_through_does_not_speak_for_one_that_waits_longer_each_time() {
    let mut window = for_a_while();
    let other = [
        ("reason", Value::Word("NETFILTER_DROP")),
        ("saddr", Value::Ip([10, 0, 0, 8].into())),
        ("sport", Value::Unsigned(40_000)),
        ("daddr", Value::Ip([10, 0, 0, 1].into())),
        ("dport", Value::Unsigned(80)),
        ("flags", Value::TcpFlags(2)),
    ];
    window.event("drops", 3, &other);
    window.events.date_last("drops", 107 * SECOND);
    let clients = window.sockets().clients.entry(80).or_default();
    clients.sources = [[10, 0, 0, 8].into(), [10, 0, 0, 9].into()].into();
    serve(&mut window, 109 * SECOND);
    let found = &window.findings()[0];
    assert_eq!(found.severity, Severity::Critical, "{}", found.summary);
}

#[test]
fn who_is_told_by_icmp_is_rejected_too() {
    let mut window = quiet();
    window.listen(6379, 128, &[0; 10]);
    syns(&mut window, [10, 0, 0, 9], ([10, 0, 0, 1], 6379), 30);
    let prohibited = [
        ("errno", Value::Word("EHOSTUNREACH")),
        ("saddr", Value::Ip([10, 0, 0, 9].into())),
        ("sport", Value::Unsigned(40_000)),
        ("daddr", Value::Ip([10, 0, 0, 1].into())),
        ("dport", Value::Unsigned(6379)),
    ];
    window.event("connects", 30, &prohibited);
    let findings = window.findings();
    assert!(
        findings[0].summary.contains("rejected 30 packets"),
        "{}",
        findings[0].summary
    );
}
