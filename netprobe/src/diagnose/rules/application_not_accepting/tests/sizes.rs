//! How many should be served at once.

use super::*;
use crate::observe::{
    cpu_limits::{Bandwidth, CpuLimits},
    diag::Silent,
};

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
fn a_throttled_control_group_gets_more_time_and_no_workers() {
    let mut window = busy(5);
    let limits = |periods, throttled| CpuLimits {
        bandwidth: Some(Bandwidth {
            file: "/sys/fs/cgroup/app/cpu.max".into(),
            quota_us: 5000,
            period_us: 100_000,
            periods,
            throttled,
        }),
        frozen: None,
    };
    let server = window.processes.by_pid.get_mut(&100).unwrap();
    server.cpu_limits = limits(50, 40);
    window.processes_before = window.processes.clone();
    let server = window.processes.by_pid.get_mut(&100).unwrap();
    server.cpu_limits = limits(150, 138);
    let (value, text) = first_fix(&window);
    let said = "0.05 CPUs x 3.00 times as many arrivals as it accepts / 0.8 = 0.19 CPUs";
    assert!(
        text.contains(said) && text.contains("98 % of the periods"),
        "{text}"
    );
    assert_eq!(value, set("cpu.max", "19000 100000"));
    let found = window.findings().remove(0);
    assert!(
        found.summary.contains("its control group is throttled"),
        "{}",
        found.summary
    );
    assert!(
        !found
            .fixes
            .iter()
            .any(|fix| fix.text.contains("serve more")),
        "{:?}",
        found.fixes
    );
    // Now and then is no reason.
    let server = window.processes.by_pid.get_mut(&100).unwrap();
    server.cpu_limits = limits(150, 50);
    assert!(first_fix(&window).1.starts_with("let it serve more"));
}

#[test]
fn who_waits_for_a_cpu_is_not_told_to_be_more() {
    let mut window = busy(5);
    window.processes_before = window.processes.clone();
    let server = window.processes.by_pid.get_mut(&100).unwrap();
    (server.runnable_ns, server.waited_ns) = (9_700_000_000, 9_500_000_000);
    let (value, text) = first_fix(&window);
    assert!(
        text.starts_with("the first thread of pid 100 waits for a CPU 95 % of the time"),
        "{text}"
    );
    assert_eq!(value, []);
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
    let (_, text) = first_fix(&window);
    assert!(text.contains("at least about"), "{text}");
}

#[test]
fn clients_elsewhere_that_try_again_are_not_counted_again() {
    // 8/s come that give up after 5 s, and 4/s are served, by two that take 0.5 s each: 5 would do.
    let mut window = quiet();
    window.listen(9101, 8, &[9; 10]);
    window.serving(9101, 2, 40);
    window.grow(&[("TcpExt.ListenOverflows", 269), ("Tcp.PassiveOpens", 40)]);
    let (value, text) = first_fix(&window);
    let arithmetic = "at least about 6.5 arrivals/s (30.9 attempts/s / 4.8 of each client, as 87 % are turned away and it sends \
                      up to 7 SYNs) x 0.500 s per connection";
    assert!(text.contains(arithmetic), "{text}");
    assert_eq!(value, set("served_at_once", "5"));
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
    let (_, text) = first_fix(&window);
    assert!(text.contains("at least about 21.3 arrivals/s"), "{text}");
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
    let fixes = |silent: u64, silent_ms: u32| {
        let mut window = busy(3);
        let clients = window.sockets().clients.entry(9000).or_default();
        let silent = (900..900 + silent).map(|ino| Silent { ms: silent_ms, ino });
        clients.silent = silent.collect();
        clients.waiting_ms = (0..11).map(|number| number * 200).collect();
        let worker = window.processes.by_pid.values_mut().next().unwrap();
        worker.sockets.push(900);
        let fixes = window.findings().remove(0).fixes;
        fixes.into_iter().map(|fix| fix.text).collect::<Vec<_>>()
    };
    let told = fixes(1, 14_000);
    assert!(
        told[0].starts_with("1 connection that it has accepted is silent")
            && told[0].contains("look where pid 100 is (netprobe flame offcpu --pid 100, "),
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
    let mut window = busy_from_elsewhere(1);
    // One more waits at the end, so that 201 came into the queue.
    window.netns().queues[0].depths[0] = 10;
    let (_, text) = first_fix(&window);
    assert!(text.contains("at least about 21.4 arrivals/s"), "{text}");
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
