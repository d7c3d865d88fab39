//! Tables that are full, and tables that fill.

use crate::{
    diagnose::{Verdict, fixtures::quiet},
    observe::conntrack::Protocol,
    report::{
        Value,
        diagnosis::{Confidence, Severity},
    },
};

fn full() -> crate::diagnose::window::Window {
    let mut window = quiet();
    window.set("net.netfilter.nf_conntrack_max", "200");
    window.set("net.netfilter.nf_conntrack_count", "200");
    window.netns().conntrack_counts = vec![200; 10];
    window.grow(&[("nf_conntrack.drop", 1000)]);
    window
}

#[test]
fn drops_of_a_full_table_are_found_by_counters_and_sure_with_events() {
    let mut window = full();
    assert_eq!(window.findings()[0].confidence, Confidence::Medium);
    let group = [
        ("protocol", Value::Word("tcp")),
        ("dport", Value::Unsigned(80)),
    ];
    window.total("conntrack", 1000, &group);
    let first = &window.findings()[0];
    assert_eq!(
        (first.id, first.severity),
        ("conntrack-table-full", Severity::Critical)
    );
    assert_eq!(first.confidence, Confidence::High);
    // Anything else is printed escaped, and cannot be run.
    assert!(first.fixes.iter().all(|fix| fix.text.is_ascii()));
    // 100 arrivals/s x 120 s = 12,000, and half as much again.
    let (name, value) = &first.fixes[0].set[0];
    assert_eq!(
        (name.as_str(), value.as_str()),
        ("net.netfilter.nf_conntrack_max", "32768")
    );
}

#[test]
fn the_rate_of_clients_that_wait_for_a_full_table_is_no_measure_of_its_size() {
    let mut window = full();
    // 3 attempts/s come through the table of 200; many more wait.
    window.grow(&[("nf_conntrack.drop", -970)]);
    window.set("net.netfilter.nf_conntrack_buckets", "8192");
    let size = |window: &crate::diagnose::window::Window| {
        let fix = window.findings()[0].fixes[0].clone();
        (fix.set[0].1.clone(), fix.text)
    };
    let (value, text) = size(&window);
    assert_eq!(value, "8192", "{text}");
    let said = "3 new connections/s at most (what was sent again counts again; clients that wait for an answer";
    assert!(text.contains(said), "{text}");
    assert!(
        text.contains("= 360, so as many as it has buckets for"),
        "{text}"
    );
    // What is measured to be more than that counts.
    window.set("net.netfilter.nf_conntrack_buckets", "256");
    assert_eq!(size(&window).0, "1024");
}

#[test]
fn a_table_that_fills_with_what_is_forwarded_is_sized_by_its_growth() {
    let mut window = quiet();
    window.set("net.netfilter.nf_conntrack_max", "1000");
    window.set("net.netfilter.nf_conntrack_count", "800");
    window.netns().conntrack_counts = vec![300, 800];
    // 50/s x 120 s = 6000, and half as much again.
    let findings = window.findings();
    assert_eq!(findings[0].fixes[0].set[0].1, "16384");
}

/// A full table with 200 entries of these states, all of connections from 127.0.0.1 to itself.
fn full_of(states: &[(&str, u32)]) -> crate::diagnose::window::Window {
    let mut window = full();
    let loopback = std::net::IpAddr::from([127, 0, 0, 1]);
    let sampled = states.iter().map(|(_, count)| count).sum();
    let mut entries = crate::observe::conntrack::Entries {
        sampled,
        local: sampled,
        ..Default::default()
    };
    let states = states
        .iter()
        .map(|(state, count)| ((*state).to_owned(), *count));
    entries.states.extend(states);
    entries.sources.insert(loopback, sampled);
    entries.destinations.insert((loopback, 8000), sampled);
    entries.services.insert((Protocol::Tcp, 8000), sampled);
    window.netns().after.conntrack = Some(entries);
    window.listen(8000, 128, &[0; 10]);
    window
}

#[test]
fn a_connection_within_the_machine_is_one_entry_and_one_attempt() {
    let mut window = full_of(&[("TIME_WAIT", 200)]);
    // 50/s are opened and 20/s of them accepted; the rest is dropped as it is sent, and sent again.
    window.grow(&[("Tcp.ActiveOpens", 500), ("Tcp.PassiveOpens", 200)]);
    let fix = &window.findings()[0].fixes[0];
    assert!(
        fix.text
            .contains("50 new connections/s (clients that wait for an answer first"),
        "{}",
        fix.text
    );
    // x 120 s = 6000, and half as much again.
    assert_eq!(fix.set[0].1, "16384");
    // Accepted from elsewhere, and opened to elsewhere: an entry each.
    let entries = window.netns().after.conntrack.as_mut().unwrap();
    (entries.local, entries.sources) = (0, [([10, 0, 0, 9].into(), 200)].into());
    let text = &window.findings()[0].fixes[0].text;
    assert!(text.contains("170 new connections/s"), "{text}");
}

fn set_by(window: &crate::diagnose::window::Window) -> Vec<String> {
    let fixes = window.findings()[0].fixes.clone();
    let set = fixes.into_iter().flat_map(|fix| fix.set);
    set.map(|(name, _)| name.replace("net.netfilter.nf_conntrack_", ""))
        .collect()
}

#[test]
fn what_a_table_is_full_of_decides_its_size_and_what_else_helps() {
    // Open ones stay, and are followed by 120 s in TIME_WAIT: 200 + 50 x 120.
    let mut window = full_of(&[("ESTABLISHED", 200)]);
    window.grow(&[("Tcp.ActiveOpens", 500)]);
    let fix = window.findings()[0].fixes[0].clone();
    assert!(
        fix.text.contains("= 6000, and 200 that are open"),
        "{}",
        fix.text
    );
    assert_eq!(set_by(&window), ["max"]);
    // As many end in CLOSE (10 s) as in TIME_WAIT (120 s).
    let closing = [("TIME_WAIT", 180), ("CLOSE", 15), ("ESTABLISHED", 5)];
    let mut window = full_of(&closing);
    window.grow(&[("Tcp.ActiveOpens", 50)]);
    let fix = window.findings()[0].fixes[0].clone();
    assert!(
        fix.text.contains("5 new connections/s") && fix.text.contains("x 65 s"),
        "{}",
        fix.text
    );
    assert_eq!(set_by(&window), ["max", "tcp_timeout_time_wait"]);
    // Where more come than a shorter time has room for, it is no cure.
    window.grow(&[("Tcp.ActiveOpens", 450)]);
    assert_eq!(set_by(&window), ["max"]);
    let mut window = full_of(&[("SYN_SENT", 200)]);
    window.grow(&[("Tcp.ActiveOpens", 40)]);
    assert_eq!(set_by(&window), ["max", "tcp_timeout_syn_sent"]);
    window.set("net.netfilter.nf_conntrack_tcp_timeout_syn_sent", "20");
    assert_eq!(set_by(&window), ["max"]);
}

#[test]
fn the_flow_that_need_not_be_tracked_is_named() {
    let texts = |window: &crate::diagnose::window::Window| -> Vec<String> {
        let fixes = window.findings()[0].fixes.clone();
        fixes.into_iter().map(|fix| fix.text).collect()
    };
    let all = texts(&full_of(&[("TIME_WAIT", 200)]));
    let text = all.iter().find(|text| text.contains("notrack")).unwrap();
    assert!(
        text.contains("tcp dport 8000 notrack") && !text.contains("PORT"),
        "{text}"
    );
    assert!(texts(&full()).iter().all(|text| !text.contains("notrack")));
}

#[test]
fn a_table_that_is_full_of_datagrams_is_told_by_their_protocol_and_time() {
    let mut window = full_of(&[("udp", 194), ("CLOSE_WAIT", 6)]);
    let entries = window.netns().after.conntrack.as_mut().unwrap();
    (entries.local, entries.sources) = (0, [([10, 0, 0, 9].into(), 200)].into());
    entries.services = [((Protocol::Udp, 53), 194), ((Protocol::Tcp, 80), 6)].into();
    let found = window.findings().remove(0);
    let evidence = found.evidence.iter();
    assert!(
        evidence
            .into_iter()
            .any(|said| said.text == "97 % of entries are UDP")
    );
    // 100/s are turned away, and 194 / 30 s expire: 106/s x 30 s.
    let fix = &found.fixes[0];
    assert!(fix.text.contains("106 new flows/s"), "{}", fix.text);
    assert!(
        fix.text.contains("30 s in UDP, 60 s in CLOSE_WAIT"),
        "{}",
        fix.text
    );
    assert_eq!(fix.set[0].1, "8192");
    let untracked = found.fixes.iter().find(|fix| fix.text.contains("notrack"));
    let text = &untracked.unwrap().text;
    assert!(text.contains("udp dport 53 notrack"), "{text}");
    assert!(!text.contains("tcp "), "{text}");
}

#[test]
fn drops_of_a_table_with_room_have_another_reason() {
    let mut window = full();
    window.set("net.netfilter.nf_conntrack_max", "100000");
    assert_eq!(window.verdict("conntrack-table-full"), Verdict::Ok);
}

#[test]
fn a_full_table_without_its_counter_is_not_a_verdict() {
    let mut window = full();
    window
        .netns()
        .after
        .counters
        .insert("nf_conntrack.drop", -1);
    let verdict = window.verdict("conntrack-table-full");
    assert!(matches!(verdict, Verdict::NotEnoughData(_)), "{verdict:?}");
}

#[test]
fn a_table_that_fills_is_forecast() {
    let mut window = quiet();
    window.set("net.netfilter.nf_conntrack_max", "1000");
    window.set("net.netfilter.nf_conntrack_count", "800");
    window.netns().conntrack_counts = vec![700, 750, 800];
    let first = &window.findings()[0];
    assert_eq!(first.severity, Severity::Warning);
    assert!(first.summary.contains("full in 20 s"), "{}", first.summary);
}

/// Lets a packet of a client at this port be refused at this instant.
fn refuse(window: &mut crate::diagnose::window::Window, port: u64, at_ms: u64) {
    let spec = crate::probes::PROBES.iter();
    let spec = spec
        .into_iter()
        .find(|spec| spec.name() == "conntrack")
        .unwrap();
    let value = |name| match name {
        "protocol" => Value::Word("tcp"),
        "saddr" => Value::Ip([10, 0, 0, 9].into()),
        "sport" => Value::Unsigned(port),
        "daddr" => Value::Ip([10, 0, 0, 1].into()),
        "dport" => Value::Unsigned(8000),
        "netns" => Value::Unsigned(crate::diagnose::fixtures::NETNS.into()),
        _ => Value::Unknown,
    };
    let row = crate::report::Row {
        kind: "conntrack",
        monotonic_ns: 1_000_000_000 + at_ms * 1_000_000,
        values: spec
            .columns
            .iter()
            .map(|column| value(column.name))
            .collect(),
        ..Default::default()
    };
    window.events.add(spec.columns, &row);
}

#[test]
fn a_syn_that_is_sent_again_is_no_new_connection() {
    let mut window = full();
    window.grow(&[("nf_conntrack.drop", -1000)]);
    // 20 clients come each second, from 4 s before the window on, and try again after 1 and 3 s.
    let tries = (0..280).flat_map(|client| {
        let first = client * 50;
        [0, 1000, 3000].map(|later| (client, first + later))
    });
    let mut tries: Vec<_> = tries
        .filter(|(_, at_ms)| (4000..14_000).contains(at_ms))
        .collect();
    tries.sort_by_key(|(_, at_ms)| *at_ms);
    for (client, at_ms) in &tries {
        refuse(&mut window, 20_000 + client, *at_ms);
    }
    let count = tries.len() as u64;
    window.grow(&[("nf_conntrack.drop", count.cast_signed())]);
    let group = [
        ("protocol", Value::Word("tcp")),
        ("dport", Value::Unsigned(8000)),
    ];
    window.total("conntrack", count, &group);
    let fix = window.findings()[0].fixes[0].clone();
    let once = "20 new connections/s (each once, however often it was sent again;";
    assert!(fix.text.contains(once), "{count}: {}", fix.text);
    // x 120 s = 2400, and half as much again.
    assert_eq!(fix.set[0].1, "4096");
    // Most of them nobody looked at.
    window.grow(&[("nf_conntrack.drop", 4 * count.cast_signed())]);
    window.total("conntrack", 4 * count, &group);
    let text = &window.findings()[0].fixes[0].text;
    assert!(text.contains("at most (what was sent again"), "{text}");
}

/// What is said of a table with these entries: its evidence, fixes and sources that are named.
fn said_of(
    change: impl Fn(&mut crate::observe::conntrack::Entries),
) -> (String, String, Vec<String>) {
    let mut window = full_of(&[("TIME_WAIT", 200)]);
    let entries = window.netns().after.conntrack.as_mut().unwrap();
    (entries.local, entries.sources) = (0, [([10, 0, 0, 9].into(), 200)].into());
    change(entries);
    let found = window.findings().remove(0);
    let evidence: Vec<_> = found
        .evidence
        .iter()
        .map(|said| said.text.clone())
        .collect();
    let fixes: Vec<_> = found.fixes.iter().map(|fix| fix.text.clone()).collect();
    let sources = found.affected.iter().filter(|hit| hit.kind == "source");
    (
        evidence.join("\n"),
        fixes.join("\n"),
        sources.map(|hit| hit.name.clone()).collect(),
    )
}

#[test]
fn the_victim_of_datagrams_to_many_ports_is_not_what_fills_the_table() {
    let (evidence, fixes, _) = said_of(|entries| {
        entries.states = [("udp".to_owned(), 152), ("TIME_WAIT".to_owned(), 48)].into();
        entries.services = (0..152)
            .map(|port| ((Protocol::Udp, 1000 + port), 1))
            .collect();
        entries.services.insert((Protocol::Tcp, 8000), 48);
    });
    let lines: Vec<&str> = evidence.lines().collect();
    assert_eq!(
        lines[2], "76 % of entries are UDP, to 152 ports",
        "{evidence}"
    );
    assert!(!fixes.contains("notrack"), "{fixes}");
}

#[test]
fn addresses_with_one_entry_each_are_told_and_a_real_client_is_not_blamed_for_them() {
    let (evidence, _, sources) = said_of(|entries| {
        entries.states = [("SYN_RECV".to_owned(), 138), ("TIME_WAIT".to_owned(), 62)].into();
        entries.sources = (0..138)
            .map(|number| (std::net::IpAddr::from([172, 16, 0, number]), 1))
            .collect();
        entries.sources.insert([10, 0, 0, 9].into(), 62);
    });
    let flood = "69 % of entries come from 138 addresses with one entry each, and most are of handshakes that nobody finishes";
    assert!(evidence.contains(flood), "{evidence}");
    assert!(
        evidence.contains("31 % of entries come from 10.0.0.9"),
        "{evidence}"
    );
    assert!(sources.is_empty(), "{sources:?}");
}

#[test]
fn a_table_that_will_be_full_in_a_moment_is_forecast_long_before() {
    let forecast = |counts: &[i64], max: &str| {
        let mut window = quiet();
        window.seconds = 5.0;
        window.set("net.netfilter.nf_conntrack_max", max);
        let last = counts.last().unwrap().to_string();
        window.set("net.netfilter.nf_conntrack_count", &last);
        window.netns().conntrack_counts = counts.to_vec();
        let findings = window.findings();
        findings.first().map(|found| found.summary.clone())
    };
    let rising = [200, 220, 240, 260, 280, 300];
    let summary = forecast(&rising, "500").unwrap();
    assert!(summary.contains("full in 10 s (300 of 500"), "{summary}");
    // A burst that is over; and what lasts for minutes.
    assert_eq!(forecast(&[200, 300, 300, 300, 300, 300], "500"), None);
    assert_eq!(forecast(&[300, 301, 302, 303, 304, 305], "500"), None);
}

#[test]
fn all_destinations_beyond_a_router_whose_table_is_full_stand_behind_it() {
    let ends = [([10, 9, 0, 1], 7500), ([10, 9, 0, 1], 7501)];
    let packet = |(address, port): ([u8; 4], u64)| {
        [
            ("saddr", Value::Ip([10, 8, 0, 1].into())),
            ("sport", Value::Unsigned(40_000)),
            ("daddr", Value::Ip(address.into())),
            ("dport", Value::Unsigned(port)),
        ]
    };
    // `refused` of the two are seen to be, and so many have entries in the table.
    let told = |refused: usize, listed: usize| {
        let mut window = quiet();
        for end in ends {
            let syn = [&packet(end)[..], &[("cause", Value::Word("syn"))]].concat();
            window.event("retransmits", 20, &syn);
        }
        window.total("retransmits", 40, &[("cause", Value::Word("syn"))]);
        window.grow(&[("TcpExt.TCPSynRetrans", 40)]);
        window.relocate(77);
        let mut client = window.namespaces.remove(0);
        client.inode = 77;
        client.is_initial = false;
        window.namespaces = full().namespaces;
        window.namespaces.push(client);
        for end in ends.into_iter().take(refused) {
            window.event("conntrack", 20, &packet(end));
        }
        let entries = window.netns().after.conntrack.get_or_insert_default();
        for (address, port) in ends.into_iter().take(listed) {
            entries.sampled += 20;
            let port = u16::try_from(port).unwrap();
            entries.destinations.insert((address.into(), port), 20);
        }
        let told = window.told();
        let behind = told.iter().filter(|(id, _)| *id == "syn-retransmits");
        behind.map(|(_, behind)| *behind).collect::<Vec<_>>()
    };
    let table = Some("conntrack-table-full");
    assert_eq!(told(2, 0), [table]);
    assert_eq!(told(0, 2), [table]);
    // What is seen to be refused says more than what is in the table.
    assert_eq!(told(1, 2), [None]);
}
