//! Windows in which an application does not accept, or hardly.

use super::{
    super::super::accepting::{self, Accepting},
    Case,
};
use crate::{
    diagnose::{fixtures::quiet, window::Window},
    report::{Value, diagnosis::Severity},
};

/// A listener that is always full, whose application holds so many connections and serves 20/s, where 60/s come.
fn busy(held: u32) -> Window {
    let mut window = quiet();
    window.listen(9000, 10, &[11; 10]);
    window.serving(9000, held, 200);
    window.grow(&[("TcpExt.ListenOverflows", 400), ("Tcp.PassiveOpens", 200)]);
    window
}

fn first_fix(window: &Window) -> (Vec<(String, String)>, String) {
    let fix = window.findings()[0].fixes[0].clone();
    (fix.set, fix.text)
}

fn set(name: &str, value: &str) -> Vec<(String, String)> {
    vec![(name.to_owned(), value.to_owned())]
}

#[test]
fn workers_are_sized_by_littles_law() {
    // One process accepts 20/s, so a connection takes 50 ms; 60/s arrive, which keeps 3 busy, so that 4 are
    // busy less than 80 % of the time.
    let window = busy(1);
    let findings = window.findings();
    assert_eq!(findings[0].id, "application-not-accepting");
    assert_eq!(first_fix(&window).0, set("workers", "4"));
    assert!(findings[0].fixes.iter().all(|fix| {
        fix.set
            .iter()
            .all(|(name, _)| !name.contains("somaxconn") && name != "listen_backlog")
    }));
}

#[test]
fn a_process_that_serves_several_at_once_is_not_told_to_be_so_many_processes() {
    // Five threads of one process: 60/s x 250 ms / 0.8.
    let (value, text) = first_fix(&busy(5));
    assert_eq!(value, set("served_at_once", "19"));
    let arithmetic = "x 0.250 s per connection (5 held at once / 20.0 accepted/s) / 0.8";
    assert!(text.contains(arithmetic), "{text}");
    assert!(
        text.contains("= 19 at once; now 5 are served at once by 1 process"),
        "{text}"
    );
}

#[test]
fn what_was_accepted_and_not_read_is_not_served() {
    // An event loop that is blocked has accepted five, and works for one of them.
    let mut window = busy(5);
    let netns = window.netns();
    for seen in [&mut netns.before, &mut netns.after] {
        let sockets = seen.sockets.as_mut().unwrap();
        sockets.clients.get_mut(&9000).unwrap().unread.now = 4;
    }
    assert_eq!(first_fix(&window).0, set("workers", "4"));
}

#[test]
fn a_process_that_has_no_time_is_told_first() {
    let first = |runnable_ns| {
        let mut window = busy(5);
        window.processes_before = window.processes.clone();
        let server = window.processes.by_pid.get_mut(&100).unwrap();
        server.runnable_ns += runnable_ns;
        first_fix(&window).1
    };
    // 9.7 of 10 s.
    let text = first(9_700_000_000);
    let said = "the first thread of pid 100 runs, or waits for a CPU, 97 % of the time";
    assert!(text.starts_with(said), "{text}");
    assert!(first(3_000_000_000).starts_with("let it serve more"));
}

#[test]
fn how_many_are_served_at_once_is_not_guessed() {
    let mut window = busy(5);
    let netns = window.netns();
    for seen in [&mut netns.before, &mut netns.after] {
        let sockets = seen.sockets.as_mut().unwrap();
        sockets.clients.get_mut(&9000).unwrap().held = 0;
    }
    let (value, text) = first_fix(&window);
    assert_eq!(value, []);
    assert!(
        text.contains("3.8 times as many connections at once"),
        "{text}"
    );
}

#[test]
fn no_size_is_given_where_fewer_come_than_are_served() {
    // A queue of earlier arrivals, of which hardly any come now.
    let mut window = quiet();
    window.listen(9000, 20, &[20, 18, 16, 14, 12, 10, 8, 6, 5, 4]);
    window.serving(9000, 2, 20);
    window.waiting(9000, 20, 4);
    let clients = window.sockets().clients.get_mut(&9000).unwrap();
    clients.waiting_ms = vec![9000, 8000, 7000, 3000];
    (clients.open, clients.held) = (6, 2);
    let before = window.netns().before.sockets.as_mut().unwrap();
    let clients = before.clients.get_mut(&9000).unwrap();
    (clients.open, clients.held) = (22, 2);
    let findings = window.findings();
    assert_eq!(findings[0].id, "application-not-accepting");
    let (value, text) = first_fix(&window);
    assert_eq!(value, []);
    assert!(text.starts_with("no more come than it can serve"), "{text}");
    // A full table may be what keeps clients, or its own connections, away.
    window.set("net.netfilter.nf_conntrack_max", "200");
    window.set("net.netfilter.nf_conntrack_count", "200");
    window.grow(&[("nf_conntrack.drop", 900)]);
    let expected = [
        ("conntrack-table-full", None),
        ("application-not-accepting", Some("conntrack-table-full")),
    ];
    assert_eq!(window.told(), expected);
}

#[test]
fn a_master_that_only_holds_the_listener_is_no_worker() {
    let mut window = busy(2);
    let master = window.processes.by_pid[&100].clone();
    for pid in [101, 102] {
        let worker = crate::observe::processes::Process {
            pid,
            parent: 100,
            ..master.clone()
        };
        window.processes.by_pid.insert(pid, worker);
    }
    // Two hold a connection: 60/s x 100 ms / 0.8.
    let (value, text) = first_fix(&window);
    assert_eq!(value, set("workers", "8"));
    assert!(
        text.contains("now 2 are served at once, and 3 processes hold the listener, one of them the parent of the others"),
        "{text}"
    );
    // By the name that the program has for it.
    for process in window.processes.by_pid.values_mut() {
        process.comm = "php-fpm8.2".to_owned();
    }
    let (value, text) = first_fix(&window);
    assert_eq!(value, set("pm.max_children", "8"), "{text}");
}

#[test]
fn never_as_many_workers_are_wanted_as_are_there() {
    // Four are there, three of them between two connections when they were listed: 60/s x 50 ms / 0.8 = 4.
    let mut window = busy(1);
    let worker = window.processes.by_pid[&100].clone();
    for pid in [101, 102, 103, 104] {
        let parent = 100;
        let worker = crate::observe::processes::Process {
            pid,
            parent,
            ..worker.clone()
        };
        window.processes.by_pid.insert(pid, worker);
    }
    let (value, text) = first_fix(&window);
    assert_eq!(value, set("workers", "5"));
    let told = "rounded up and more than the 4 that are there, = 5 at once; now 1 is served";
    assert!(text.contains(told), "{text}");
}

/// `web` at port 80 serves `held` connections at once and has one each open to `app` at port 9000, which serves two; 20/s
/// come, and 5/s are served.
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

fn summary_of(window: &Window) -> String {
    window.findings()[0].summary.clone()
}

#[test]
fn a_queue_that_only_grows_is_an_outage_long_before_it_is_full() {
    let mut window = quiet();
    window.listen(9000, 4096, &[200, 350, 500, 650, 800]);
    window.grow(&[("Tcp.PassiveOpens", 600)]);
    window.waiting(9000, 200, 600);
    let findings = window.findings();
    assert_eq!(findings[0].id, "application-not-accepting");
    assert_eq!(findings[0].severity, Severity::Critical);
    let summary = &findings[0].summary;
    assert!(summary.contains("accepts no connections"), "{summary}");
    assert!(summary.contains("800 connections wait"), "{summary}");
    // 3296 more at 60/s.
    assert!(summary.contains("full in 55 s"), "{summary}");
    window.processes.by_pid.get_mut(&100).unwrap().state = Some('T');
    let findings = window.findings();
    assert!(findings[0].fixes[0].text.contains("kill -CONT 100"));
}

#[test]
fn who_waits_briefly_or_for_nobody_is_not_an_outage() {
    // Filled when one looked last, and drained all the time.
    let mut window = quiet();
    window.listen(80, 128, &[0, 60, 0, 0, 60, 0, 60]);
    window.grow(&[("Tcp.PassiveOpens", 600)]);
    window.waiting(80, 0, 60);
    window.sockets().clients.get_mut(&80).unwrap().waiting_ms = vec![40; 60];
    assert!(window.ids().is_empty());
    // Connected once, long ago, and nobody comes any more.
    let mut window = quiet();
    window.listen(7000, 128, &[2; 10]);
    window.waiting(7000, 2, 0);
    assert!(window.ids().is_empty());
}

#[test]
fn a_busy_neighbour_does_not_accept_for_a_hung_listener() {
    let mut window = quiet();
    window.listen(80, 511, &[0; 10]);
    window.listen(9000, 50, &[51; 10]);
    window.grow(&[("TcpExt.ListenOverflows", 737), ("Tcp.PassiveOpens", 815)]);
    window.waiting(9000, 51, 0);
    let summary = summary_of(&window);
    assert!(
        summary.contains("port 9000 accepts no connections"),
        "{summary}"
    );
    // Where the sockets cannot be listed nobody knows whose the connections were.
    window.sockets().clients.clear();
    let found = &window.findings()[0];
    assert!(found.summary.contains("too slowly"), "{}", found.summary);
    assert!(found.fixes.iter().all(|fix| fix.set.is_empty()));
    let whose = &found.evidence[2].text;
    assert!(whose.contains("all queues of this namespace"), "{whose}");
}

#[test]
fn two_hung_listeners_do_not_each_claim_what_both_turned_away() {
    let mut window = quiet();
    window.listen(9000, 20, &[21; 10]);
    window.listen(9001, 20, &[21; 10]);
    window.grow(&[("TcpExt.ListenOverflows", 781)]);
    let findings = window.findings();
    assert_eq!(findings.len(), 2);
    for found in findings {
        let summary = found.summary;
        let together = "781 attempts were turned away by it and another full queue";
        assert!(summary.contains(together), "{summary}");
    }
}

#[test]
fn a_client_that_tries_again_is_one_arrival() {
    let mut window = quiet();
    window.listen(8080, 10, &[11; 10]);
    window.serving(8080, 1, 100);
    window.grow(&[("TcpExt.ListenOverflows", 1450), ("Tcp.PassiveOpens", 100)]);
    let group = [
        ("role", Value::Word("client")),
        ("service_port", Value::Unsigned(8080)),
    ];
    window.total("lifetimes", 500, &group);
    let set = |window: &Window| window.findings()[0].fixes[0].set[0].1.clone();
    // 50/s x 0.1 s / 0.8.
    assert_eq!(set(&window), "7");
    // Who has begun and not ended has arrived as well: 60/s.
    let before = window.netns().before.sockets.as_mut().unwrap();
    before.outgoing.insert(8080, 20);
    window.sockets().outgoing.insert(8080, 120);
    assert_eq!(set(&window), "8");
    window.events.totals.clear();
    window.sockets().outgoing.clear();
    window.sockets().clients.clear();
    assert!(window.findings()[0].fixes[0].text.contains("at most"));
}

#[test]
fn a_client_that_is_let_in_at_its_second_attempt_is_one_arrival() {
    let mut window = quiet();
    window.listen(9000, 10, &[11; 10]);
    window.serving(9000, 1, 200);
    window.grow(&[("TcpExt.ListenOverflows", 400), ("Tcp.PassiveOpens", 200)]);
    let end = |client: u64, [from, to]: [&'static str; 2]| {
        [
            (from, Value::Ip([10, 0, 0, 9].into())),
            (to, Value::Unsigned(client)),
        ]
    };
    // 200 clients are turned away twice each, and 160 of the 200 that are let in are of them: 24/s come.
    let stage = ("stage", Value::Word("syn-accept-queue"));
    let port = ("listener_port", Value::Unsigned(9000));
    window.total("listeners", 400, &[stage.clone(), port.clone()]);
    for client in 1..=200 {
        let refused = [
            &end(client, ["saddr", "sport"])[..],
            &[stage.clone(), port.clone()],
        ];
        window.event("listeners", 2, &refused.concat());
    }
    let at_most =
        "at most (who is turned away first and let in later counts twice) 40.0 arrivals/s";
    let (_, text) = first_fix(&window);
    assert!(text.contains(at_most), "{text}");
    let served = [
        ("role", Value::Word("server")),
        ("sport", Value::Unsigned(9000)),
        ("duration_ns", Value::Unsigned(50_000_000)),
    ];
    for client in 41..=240 {
        let served = [&end(client, ["daddr", "dport"])[..], &served].concat();
        window.event("lifetimes", 1, &served);
    }
    let (_, text) = first_fix(&window);
    assert!(text.contains(": 24.0 arrivals/s"), "{text}");
    // By what its clients on this machine say.
    let group = [
        ("role", Value::Word("client")),
        ("service_port", Value::Unsigned(9000)),
    ];
    window.total("lifetimes", 230, &group);
    let (_, text) = first_fix(&window);
    assert!(text.contains(": 23.0 arrivals/s"), "{text}");
}

#[test]
fn a_worker_that_hangs_serves_nobody() {
    let fixes = |silent, silent_ms: u32| {
        let mut window = busy(3);
        let clients = window.sockets().clients.entry(9000).or_default();
        clients.silent_ms = vec![silent_ms; silent];
        clients.waiting_ms = (0..11).map(|number| number * 200).collect();
        let fixes = window.findings().remove(0).fixes;
        fixes.into_iter().map(|fix| fix.text).collect::<Vec<_>>()
    };
    let told = fixes(1, 14_000);
    assert!(
        told[0].starts_with("1 connection that it has accepted is silent"),
        "{told:?}"
    );
    let arithmetic = "x 0.100 s per connection (2 held at once / 20.0 accepted/s) / 0.8";
    assert!(told[1].contains(arithmetic), "{told:?}");
    assert!(
        told[1].contains(" at once, and 1 for those that hang;"),
        "{told:?}"
    );
    // Most are silent: that is how it serves.
    let all = "x 0.150 s per connection (3 held at once / 20.0 accepted/s)";
    for silent in [0, 2, 3] {
        let told = fixes(silent, 14_000);
        assert!(told[0].contains(all), "{told:?}");
    }
    // That is for how long it waited in the queue.
    assert!(fixes(1, 11_000)[0].contains(all));
}

#[test]
fn as_many_come_by_the_first_line_as_by_the_fix() {
    let mut window = busy(1);
    // One more waits at the end, so that 201 came into the queue.
    window.netns().queues[0].depths[0] = 10;
    let (_, text) = first_fix(&window);
    assert!(
        text.contains("at most (who tried again is counted again) 60.1 arrivals/s"),
        "{text}"
    );
    let summary = summary_of(&window);
    assert!(
        summary.contains("accepts no more than 20.0 connections/s:"),
        "{summary}"
    );
    let group = [
        ("role", Value::Word("client")),
        ("service_port", Value::Unsigned(9000)),
    ];
    window.total("lifetimes", 400, &group);
    let (_, text) = first_fix(&window);
    assert!(text.contains(": 40.0 arrivals/s x"), "{text}");
    let summary = summary_of(&window);
    assert!(
        summary.contains("accepts 20.0 connections/s where 40.0 come:"),
        "{summary}"
    );
}

#[test]
fn who_stopped_in_the_middle_of_the_window_needs_no_more_workers() {
    // 20/s were accepted at once for 6 s, and none since.
    let mut window = quiet();
    window.listen(8080, 4096, &[0, 0, 0, 0, 0, 1, 20, 40, 60, 80]);
    window.waiting(8080, 0, 0);
    let clients = window.sockets().clients.get_mut(&8080).unwrap();
    clients.waiting_ms = (0..80).map(|number| number * 50).collect();
    clients.open = 80;
    let group = [
        ("role", Value::Word("server")),
        ("service_port", Value::Unsigned(8080)),
    ];
    window.total("lifetimes", 120, &group);
    window.processes.by_pid.get_mut(&100).unwrap().state = Some('T');
    let found = &window.findings()[0];
    assert_eq!(found.id, "application-not-accepting");
    assert_eq!(found.severity, Severity::Critical);
    let said = "has not accepted for 4 s (stopped, state T): 80 connections wait";
    assert!(found.summary.contains(said), "{}", found.summary);
    assert!(found.fixes[0].text.contains("kill -CONT 100"));
    assert!(found.fixes.iter().all(|fix| fix.set.is_empty()));
    // A short queue is full by then, and still not too short.
    let queue = &mut window.netns().queues[0];
    queue.depths = vec![0, 0, 0, 0, 0, 1, 11, 11, 11, 11];
    (queue.listener.limit, queue.listener.queue) = (10, 11);
    let clients = window.sockets().clients.get_mut(&8080).unwrap();
    clients.waiting_ms = (70..81).map(|number| number * 50).collect();
    clients.open = 11;
    window.grow(&[("TcpExt.ListenOverflows", 69)]);
    assert_eq!(window.ids(), ["application-not-accepting"]);
    assert!(summary_of(&window).contains("has not accepted for 4 s"));
}

#[test]
fn the_time_in_which_nobody_came_is_not_work() {
    // Idle at first; then 20/s come, and 10/s are accepted, each of which takes 100 ms.
    let mut window = quiet();
    window.listen(8080, 4096, &[0, 0, 0, 0, 8, 18, 28, 38, 48, 58]);
    window.waiting(8080, 0, 0);
    let clients = window.sockets().clients.get_mut(&8080).unwrap();
    clients.waiting_ms = (0..58).map(|number| number * 60).collect();
    (clients.open, clients.held) = (59, 1);
    let group = [
        ("role", Value::Word("server")),
        ("service_port", Value::Unsigned(8080)),
    ];
    window.total("lifetimes", 60, &group);
    let found = &window.findings()[0];
    let text = &found.fixes[0].text;
    // 28 waited 3 s ago, and all of them have been accepted in the 3.4 s since the first came.
    assert!(text.contains("arrivals/s x 0.1"), "{text}");
    assert!(!text.contains("x 0.167 s"), "{text}");
}

#[test]
fn few_looks_are_not_all_the_time() {
    let mut window = quiet();
    window.listen(9000, 10, &[11, 11]);
    window.grow(&[("TcpExt.ListenOverflows", 4)]);
    assert_eq!(window.ids(), ["accept-queue-overflow"]);
}

#[test]
fn who_has_just_come_does_not_wait_for_0_s() {
    let said = |waiting_ms: u32| {
        let mut window = quiet();
        window.listen(8080, 10, &[5; 10]);
        window.waiting(8080, 5, 0);
        window.sockets().clients.get_mut(&8080).unwrap().waiting_ms = vec![waiting_ms; 5];
        let netns = &window.namespaces[0];
        let queue = &netns.queues[0];
        let accepting = Accepting {
            accepted: Some(100),
            is_left: false,
            ..accepting::of(&window, netns, queue)
        };
        Case::new(&window, netns, queue, accepting, None).summary()
    };
    assert!(
        said(20).ends_with("5 connections wait in its queue of 10"),
        "{}",
        said(20)
    );
    assert!(
        said(300).ends_with(", the first for 0.3 s"),
        "{}",
        said(300)
    );
    assert!(
        said(12_400).ends_with(", the first for 12 s"),
        "{}",
        said(12_400)
    );
}

/// 60 come each second to a queue of 511 that is looked at ten times a second for 8 s, and is taken whole at the looks that
/// `accepts`.
fn pausing(accepts: impl Fn(usize) -> bool) -> Window {
    let mut window = quiet();
    window.seconds = 8.0;
    let mut depth = 0;
    let depths = (0..80).map(|look| {
        depth = if accepts(look) { 0 } else { depth + 6 };
        depth
    });
    let depths: Vec<u32> = depths.collect();
    window.listen(3000, 511, &depths);
    window.netns().passive_opens = (0..80).map(|look| look * 6).collect();
    window.grow(&[("Tcp.PassiveOpens", 480)]);
    window
}

#[test]
fn an_application_that_pauses_again_and_again_is_told_though_its_queue_has_room() {
    let window = pausing(|look| look % 26 == 0);
    let found = window.findings().remove(0);
    assert_eq!(
        (found.id, found.severity),
        ("application-not-accepting", Severity::Warning)
    );
    let said = "server at port 3000 does not accept for up to 2.4 s in one piece, again and again: up to 150 connections";
    assert!(found.summary.contains(said), "{}", found.summary);
    // Once is a note, and so is what has just begun.
    for (window, said) in [
        (
            pausing(|look| !(10..27).contains(&look)),
            "did not accept for 1.6 s in one piece",
        ),
        (
            pausing(|look| look < 65),
            "has not accepted for 1.4 s so far",
        ),
    ] {
        let found = window.findings().remove(0);
        assert_eq!(found.severity, Severity::Info);
        assert!(found.summary.contains(said), "{}", found.summary);
    }
    // Taken whole every half second.
    assert_eq!(pausing(|look| look % 5 == 0).ids(), [""; 0]);
}

#[test]
fn a_slow_service_whose_queue_shrinks_does_not_pause() {
    // A burst of 20 at the beginning, of which 2 are accepted each second.
    let mut window = quiet();
    window.seconds = 8.0;
    let depths: Vec<u32> = (0..80).map(|look| 20 - look / 5).collect();
    window.listen(3000, 511, &depths);
    window.netns().passive_opens = vec![20; 80];
    window.grow(&[("Tcp.PassiveOpens", 20)]);
    assert_eq!(window.ids(), [""; 0]);
}

#[test]
fn all_stopped_workers_are_let_go_on() {
    let mut window = busy(1);
    let server = window.processes.by_pid[&100].clone();
    for pid in [101, 102] {
        let mut worker = server.clone();
        (worker.pid, worker.parent, worker.state) = (pid, 100, Some('T'));
        window.processes.by_pid.insert(pid, worker);
    }
    window.serving(9000, 0, 0);
    window.events.totals.clear();
    window.netns().after.counters.remove("Tcp.PassiveOpens");
    let mut fixes = window.findings()[0].fixes.clone().into_iter();
    let told = "pids 101, 102 are stopped (state T): kill -CONT 101 102,";
    assert!(
        fixes.any(|fix| fix.text.contains(told)),
        "{:?}",
        window.findings()[0].fixes
    );
}

#[test]
fn who_shares_the_port_and_accepts_is_told() {
    let mut window = quiet();
    for ino in 1..4 {
        window.listen(80, 64, &[0; 10]);
        window.sockets().listeners.last_mut().unwrap().ino = ino;
        window.netns().queues.last_mut().unwrap().listener.ino = ino;
    }
    window.listen(80, 64, &[65; 10]);
    window.grow(&[("TcpExt.ListenOverflows", 70), ("Tcp.PassiveOpens", 800)]);
    window.waiting(80, 65, 0);
    let told = "; of the 4 queues that share the port (SO_REUSEPORT), 3 are emptied in time";
    let summary = window.findings()[0].summary.clone();
    assert!(summary.ends_with(told), "{summary}");
    // The other family is no share, and of those that are none is emptied.
    for queue in &mut window.netns().queues {
        queue.depths = vec![65; 10];
        queue.listener.queue = 65;
    }
    let summary = window.findings()[0].summary.clone();
    assert!(!summary.contains("SO_REUSEPORT"), "{summary}");
}

#[test]
fn a_queue_that_is_nearly_full_now_and_then_is_not_always_full() {
    let summary = |depths: &[u32]| {
        let mut window = busy(1);
        window.netns().queues[0].depths = depths.to_vec();
        window.findings()[0].summary.clone()
    };
    let told = summary(&[11, 11, 9, 11, 9, 11, 9, 11, 11, 11]);
    assert!(told.contains("is always full or nearly so and"), "{told}");
    let told = summary(&[11; 10]);
    assert!(told.contains("is always full and"), "{told}");
}

#[test]
fn a_queue_that_nobody_empties_is_told_though_nobody_knocks() {
    let left_of = |limit: u32, depth: u32, waited_ms: u32| {
        let mut window = quiet();
        window.listen(7000, limit, &[depth; 10]);
        window.waiting(7000, depth, 0);
        let clients = window.sockets().clients.get_mut(&7000).unwrap();
        clients.waiting_ms = vec![waited_ms; depth as usize];
        window.findings()
    };
    let left = |depth, waited_ms| left_of(8, depth, waited_ms);
    let full = left(9, 240_000);
    assert_eq!(full[0].id, "application-not-accepting");
    assert_eq!(full[0].severity, Severity::Warning);
    let text = &full[0].summary;
    assert!(
        text.contains(
            "accepts no connections: 9 connections wait in its queue of 8, the first for 4 min"
        ),
        "{text}"
    );
    assert!(text.contains("whoever does is turned away"), "{text}");
    // There is room for whoever comes.
    let some = left(5, 240_000);
    assert_eq!(some[0].severity, Severity::Info);
    assert!(!some[0].summary.contains("turned away"), "{:?}", some[0]);
    // One who knocked, where there is room for no more.
    assert_eq!(left_of(0, 1, 240_000)[0].severity, Severity::Info);
    // They came a moment ago.
    assert_ne!(
        left(5, 2_000).first().map(|found| found.severity),
        Some(Severity::Info)
    );
}

/// As many listeners of one process as `queues` says; the clients of so many of those that wait in each have closed.
fn nobody_accepts(queues: &[[u32; 2]], hung_up: u32) -> Window {
    let mut window = quiet();
    for (port, [before, after]) in (7100..).zip(queues) {
        let depths: Vec<u32> = (0..10)
            .map(|look| if look < 5 { *before } else { *after })
            .collect();
        window.listen(port, 128, &depths);
    }
    for (port, [before, after]) in (7100..).zip(queues) {
        window.waiting(port, *before, after - before);
        window.sockets().clients.get_mut(&port).unwrap().hung_up = hung_up;
    }
    let listeners = window.sockets().listeners.clone();
    let before = window.netns().before.sockets.as_mut().unwrap();
    for (listener, [depth, _]) in before.listeners.iter_mut().zip(queues) {
        listener.queue = *depth;
        before.clients.entry(listener.port).or_default().waiting_ms = vec![5000; *depth as usize];
        before.clients.entry(listener.port).or_default().open = *depth;
    }
    assert_eq!(listeners.len(), queues.len());
    window
}

#[test]
fn listeners_of_one_process_that_nobody_accepts_from_are_one_finding() {
    let mut window = nobody_accepts(&[[3, 3]; 20], 0);
    let findings = window.findings();
    assert_eq!(findings.len(), 1);
    let text = &findings[0].summary;
    assert!(
        text.ends_with("; likewise at 19 more listeners of pid 100"),
        "{text}"
    );
    assert_eq!(findings[0].affected.len(), 20);
    let others = &findings[0].evidence.last().unwrap().text;
    let told = "57 connections in the queues of the others, at ports 7101, 7102,";
    assert!(others.starts_with(told), "{others}");
    // Those of another process are its own.
    let mut other = window.processes.by_pid[&100].clone();
    other.pid = 101;
    let server = window.processes.by_pid.get_mut(&100).unwrap();
    other.sockets = server.sockets.split_off(10);
    window.processes.by_pid.insert(101, other);
    let told: Vec<_> = window
        .findings()
        .into_iter()
        .map(|found| found.affected.len())
        .collect();
    assert_eq!(told, [10, 10]);
}

#[test]
fn the_worst_of_several_that_nobody_accepts_from_stands_for_all() {
    let window = nobody_accepts(&[[30, 30], [4, 14]], 0);
    let findings = window.findings();
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].severity, Severity::Critical);
    let text = &findings[0].summary;
    assert!(
        text.contains("at port 7101 accepts no connections: 14 connections wait"),
        "{text}"
    );
    assert!(
        text.ends_with("; likewise at 1 more listener of pid 100"),
        "{text}"
    );
}

#[test]
fn clients_that_have_hung_up_do_not_wait_and_a_few_arrivals_are_no_rate() {
    let said = |queue: [u32; 2], hung_up| {
        let found = nobody_accepts(&[queue], hung_up).findings().remove(0);
        (found.severity, found.summary)
    };
    // Three port scans.
    let (severity, text) = said([2, 3], 3);
    assert_eq!(severity, Severity::Info);
    let told = "its queue of 128 holds 3 connections of clients that have closed, the first for 15 s; only 1 came in 10 s";
    assert!(text.ends_with(told), "{text}");
    let (_, text) = said([3, 3], 3);
    assert!(text.ends_with("; nobody tried to connect since"), "{text}");
    // They wait all the same, or go on coming.
    let (severity, text) = said([2, 3], 0);
    assert_eq!(severity, Severity::Critical);
    assert!(
        text.ends_with("3 connections wait in its queue of 128, the first for 15 s"),
        "{text}"
    );
    let (severity, text) = said([2, 12], 12);
    assert_eq!(severity, Severity::Critical);
    assert!(text.ends_with("; full in 116 s at this rate"), "{text}");
    // A health check now and then, of one that hangs.
    let (severity, text) = said([20, 21], 21);
    assert_eq!(severity, Severity::Critical);
    assert!(
        text.ends_with("of clients that have closed, the first for 15 s"),
        "{text}"
    );
    let (_, text) = said([2, 12], 7);
    assert!(
        text.contains(
            "12 connections wait in its queue of 128, the first for 15 s (7 of them of clients that have closed)"
        ),
        "{text}"
    );
}
