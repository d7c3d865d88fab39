use std::time::Duration;

use super::RULE;
use crate::{
    diagnose::{
        fixtures::{NETNS, quiet},
        window::Window,
    },
    observe::{descriptors::Peak, processes::Process},
    report::{Value, diagnosis::Severity},
};

#[test]
fn a_server_without_descriptors_comes_before_its_full_queue() {
    let mut window = quiet();
    window.listen(80, 10, &[11; 10]);
    window.grow(&[("TcpExt.ListenOverflows", 50)]);
    let server = window.processes.by_pid.get_mut(&100).unwrap();
    (server.fds, server.fd_limit) = (64, 64);
    let findings = window.findings();
    assert_eq!(
        (findings[0].id, findings[0].severity),
        ("fd-exhaustion", Severity::Critical)
    );
    assert_eq!(findings[0].fixes[0].set[0].1, "4096");
    assert_eq!(findings[1].id, "application-not-accepting");
    assert_eq!(findings[1].behind, Some("fd-exhaustion"));
}

#[test]
fn all_listeners_of_a_server_without_descriptors_where_somebody_waits_stand_behind_it() {
    let mut window = quiet();
    for port in [80, 443, 8080] {
        window.listen(port, 128, &[4, 8, 12, 16]);
        window.waiting(port, 4, 12);
    }
    let server = window.processes.by_pid.get_mut(&100).unwrap();
    (server.fds, server.fd_limit) = (64, 64);
    let expected = [
        ("fd-exhaustion", None),
        ("application-not-accepting", Some("fd-exhaustion")),
    ];
    assert_eq!(window.told(), expected);
}

#[test]
fn a_server_that_turns_clients_away_for_want_of_descriptors_is_critical_and_their_resets_stand_behind()
 {
    let told = |fds: u64, closed: u64| {
        let mut window = quiet();
        window.listen(80, 128, &[0; 10]);
        window.serving(80, 40, 200);
        let group = [
            ("cause", Value::Word("unread-data")),
            ("direction", Value::Word("sent")),
            ("service_port", Value::Unsigned(80)),
        ];
        window.total("resets", closed, &group);
        let server = window.processes.by_pid.get_mut(&100).unwrap();
        (server.fds, server.fd_limit) = (fds, 64);
        let findings = window.findings();
        let told: Vec<_> = findings
            .iter()
            .map(|found| (found.id, found.severity, found.behind))
            .collect();
        (told, findings[0].summary.clone())
    };
    let (found, summary) = told(64, 63);
    let critical = ("fd-exhaustion", Severity::Critical, None);
    let behind = ("resets", Severity::Warning, Some("fd-exhaustion"));
    assert_eq!(found, [critical, behind]);
    assert!(
        summary.contains("it closed 63 connections unserved"),
        "{summary}"
    );
    // With descriptors left they were closed for another reason, and clients that leave are none.
    assert_eq!(
        told(60, 63).0[0],
        ("fd-exhaustion", Severity::Warning, None)
    );
    assert_eq!(told(64, 4).0[0].1, Severity::Warning);
}

#[test]
fn clients_who_wait_for_the_server_to_speak_are_turned_away_without_a_reset() {
    let told = |sent: u64| {
        let mut window = quiet();
        window.listen(80, 128, &[0; 10]);
        window.serving(80, 40, 200);
        let end = |sent| {
            [
                ("role", Value::Word("server")),
                ("sport", Value::Unsigned(80)),
                ("result", Value::Word("fin")),
                ("closer", Value::Word("local")),
                ("bytes_sent", Value::Unsigned(sent)),
            ]
        };
        window.event("lifetimes", 50, &end(sent));
        window.event("lifetimes", 50, &end(900));
        let server = window.processes.by_pid.get_mut(&100).unwrap();
        (server.fds, server.fd_limit) = (64, 64);
        window.findings().remove(0)
    };
    let found = told(0);
    assert_eq!(found.severity, Severity::Critical);
    assert!(
        found.summary.contains("it closed 100 connections unserved"),
        "{}",
        found.summary
    );
    assert_eq!(told(900).severity, Severity::Warning);
}

#[test]
fn a_server_near_its_limit_is_a_warning_with_a_forecast() {
    let mut window = quiet();
    window.listen(80, 128, &[0; 10]);
    window.processes_before = window.processes.clone();
    let server = window.processes.by_pid.get_mut(&100).unwrap();
    server.fds = 1000;
    let findings = window.findings();
    assert_eq!(findings[0].severity, Severity::Warning);
    // 24 are left, and 98 more are taken each second.
    assert!(
        findings[0].summary.contains("for 0 s only: 1000 of 1024"),
        "{}",
        findings[0].summary
    );
}

#[test]
fn a_leak_is_forecast_and_a_busy_moment_is_not() {
    let of = |before: u64, now: u64| {
        let mut window = quiet();
        window.listen(80, 128, &[0; 10]);
        let server = window.processes.by_pid.get_mut(&100).unwrap();
        (server.fds, server.fd_limit) = (before, 200);
        window.processes_before = window.processes.clone();
        window.processes.by_pid.get_mut(&100).unwrap().fds = now;
        window.findings()
    };
    // 8 more each second; 49 are left.
    let found = of(71, 151).remove(0);
    assert_eq!(found.severity, Severity::Warning);
    let summary = &found.summary;
    assert!(
        summary.contains("for 6 s only: 151 of 200 are open, 8.0 more each second"),
        "{summary}"
    );
    assert!(
        found
            .fixes
            .iter()
            .any(|fix| fix.text.contains("closes what it opens"))
    );
    assert_eq!(of(25, 105)[0].id, "fd-exhaustion");
    assert_eq!(of(146, 151), []);
    assert_eq!(of(96, 110), []);
    assert_eq!(of(151, 71), []);
    assert_eq!(of(15, 95), []);
}

#[test]
fn a_limit_that_a_process_has_lowered_itself_is_not_raised_in_its_unit() {
    let mut window = quiet();
    window.listen(80, 128, &[0; 10]);
    let worker = window.processes.by_pid.get_mut(&100).unwrap();
    (worker.fds, worker.fd_limit) = (30, 30);
    (worker.comm, worker.parent) = ("nginx".to_owned(), 99);
    let fix = |window: &Window| window.findings()[0].fixes[0].clone();
    assert_eq!(fix(&window).set[0].0, "LimitNOFILE");
    let mut memcached = window.clone();
    let process = memcached.processes.by_pid.get_mut(&100).unwrap();
    process.comm = "memcached".to_owned();
    assert_eq!(fix(&memcached).set[0].0, "-c");
    let fixes = memcached.findings()[0].fixes.clone();
    assert!(!fixes.iter().any(|fix| fix.text.contains("prlimit")));
    window
        .processes
        .by_pid
        .get_mut(&100)
        .unwrap()
        .parent_fd_limit = Some(65_536);
    let told = fix(&window);
    assert_eq!(told.set[0].0, "worker_rlimit_nofile");
    assert!(
        told.text
            .contains("it is 30 by that, where its parent (pid 99) has 65536")
    );
    assert!(!told.text.contains("LimitNOFILE"), "{}", told.text);
    // Nobody can raise it above what he was given.
    window
        .processes
        .by_pid
        .get_mut(&100)
        .unwrap()
        .parent_fd_limit = Some(1024);
    assert!(
        fix(&window)
            .text
            .starts_with("give it 4096 where it is started (LimitNOFILE= of a unit, docker run --ulimit nofile=4096, ulimit -n), and then")
    );
}

#[test]
fn preforked_workers_are_one_service() {
    let mut window = quiet();
    window.listen(2525, 64, &[65; 10]);
    window.grow(&[("TcpExt.ListenOverflows", 500)]);
    let worker = window.processes.by_pid[&100].clone();
    for pid in [100, 101, 102, 103] {
        let mut worker = worker.clone();
        (worker.pid, worker.fds, worker.fd_limit) = (pid, 64, 64);
        window.processes.by_pid.insert(pid, worker);
    }
    let findings = window.findings();
    let found = findings.iter().filter(|found| found.id == "fd-exhaustion");
    assert_eq!(found.count(), 1);
    let summary = &findings[0].summary;
    assert!(
        summary.starts_with("4 processes of server at port 2525"),
        "{summary}"
    );
    assert!(findings[0].fixes[1].text.contains("--pid 103"));
}

fn client(window: &mut Window) -> &mut Process {
    window.processes.by_pid.entry(300).or_insert(Process {
        pid: 300,
        comm: "poolapp".to_owned(),
        fds: 64,
        fd_limit: 64,
        fd_hard_limit: 64,
        netns: Some(NETNS),
        has_tcp: true,
        ..Process::default()
    })
}

#[test]
fn a_client_without_descriptors_is_found_where_it_speaks_tcp() {
    let mut window = quiet();
    client(&mut window);
    let findings = window.findings();
    let [found] = findings.as_slice() else {
        panic!("{findings:?}");
    };
    assert_eq!(
        (found.id, found.severity),
        ("fd-exhaustion", Severity::Warning)
    );
    let summary = &found.summary;
    assert!(
        summary.contains("poolapp (pid 300) has no file descriptors left (64 of 64 are open)"),
        "{summary}"
    );
    assert_eq!(found.affected[0].netns, Some(NETNS));
    let evidence = found.evidence.iter();
    assert!(!evidence.into_iter().any(|said| said.text.contains("queue")));

    // What it holds is no socket, but it was seen to connect.
    client(&mut window).has_tcp = false;
    assert_eq!(window.ids(), [""; 0]);
    window.event("connects", 1, &[("pid", Value::Unsigned(300))]);
    assert_eq!(window.ids(), ["fd-exhaustion"]);
}

#[test]
fn a_client_that_can_open_nothing_all_the_time_is_critical_and_explains_nothing_else() {
    let severity = |change: &dyn Fn(&mut Window)| {
        let mut window = quiet();
        client(&mut window);
        window.processes_before = window.processes.clone();
        client(&mut window).threads_ns = 1_000_000;
        change(&mut window);
        window.findings()[0].severity
    };
    assert_eq!(severity(&|_| ()), Severity::Critical);
    // It sleeps: nothing shows that it wants more.
    let asleep = |window: &mut Window| client(window).threads_ns = 0;
    assert_eq!(severity(&asleep), Severity::Warning);
    // It got full only meanwhile.
    let lately = |window: &mut Window| {
        let before = &mut window.processes_before.by_pid;
        before.get_mut(&300).unwrap().fds = 63;
    };
    assert_eq!(severity(&lately), Severity::Warning);
    // It closes some, and then gets through.
    let through = |window: &mut Window| {
        let values = [
            ("pid", Value::Unsigned(300)),
            ("outcome", Value::Word("established")),
        ];
        window.event("connects", 1, &values);
    };
    assert_eq!(severity(&through), Severity::Warning);
    // Its neighbours' losses are not of it.
    let mut window = quiet();
    client(&mut window);
    window.processes_before = window.processes.clone();
    client(&mut window).threads_ns = 1_000_000;
    window.total("resets", 50, &[("cause", Value::Word("unread-data"))]);
    let told = window.told();
    assert_eq!(told, [("fd-exhaustion", None), ("resets", None)]);
}

#[test]
fn a_client_with_a_descriptor_left_or_elsewhere_is_in_order() {
    let mut window = quiet();
    client(&mut window).fds = 63;
    assert_eq!(window.ids(), [""; 0]);
    client(&mut window).fds = 64;
    client(&mut window).netns = Some(7);
    assert_eq!(window.ids(), [""; 0]);
}

#[test]
fn a_machine_without_files_is_found() {
    let mut window = quiet();
    window.files = Some((99_000, 100_000));
    assert_eq!(window.ids(), ["fd-exhaustion"]);
}

#[test]
fn a_server_that_had_no_descriptors_left_for_some_seconds_is_told_after_it() {
    let told = |most: u64, full_ms: u64, now: u64| {
        let mut window = quiet();
        window.listen(80, 128, &[0, 83, 60, 0]);
        let server = window.processes.by_pid.get_mut(&100).unwrap();
        (server.fds, server.fd_limit) = (now, 64);
        let peak = Peak {
            most,
            full: Duration::from_millis(full_ms),
        };
        window.peaks.insert(100, peak);
        window.findings().into_iter().next()
    };
    let found = told(64, 9500, 12).unwrap();
    assert_eq!(
        (found.id, found.severity),
        ("fd-exhaustion", Severity::Warning)
    );
    let said = "had no file descriptors left for 9.5 s of 10 (64 of 64 were open, 12 are now); meanwhile up to 83 connections \
                waited";
    assert!(found.summary.contains(said), "{}", found.summary);
    assert_eq!(found.fixes[0].set[0].1, "4096");
    assert_ne!(told(64, 100, 12).map(|found| found.id), Some(RULE.id));
    assert_ne!(told(60, 9500, 12).map(|found| found.id), Some(RULE.id));
    // None is left now either.
    let still = told(64, 9500, 64).unwrap();
    assert!(
        still.summary.contains("has no file descriptors left"),
        "{}",
        still.summary
    );
}
