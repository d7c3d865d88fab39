//! Windows in which an application does not accept, or hardly.

use crate::{
    diagnose::fixtures::quiet,
    report::{Value, diagnosis::Severity},
};

#[test]
fn workers_are_sized_by_littles_law() {
    let mut window = quiet();
    window.listen(9000, 10, &[11, 10, 11, 11, 11, 11, 11, 11, 11, 11]);
    // One process accepts 20/s, so a connection takes 50 ms; 60/s arrive, which keeps 3 busy, so that 4 are
    // busy less than 80 % of the time.
    window.grow(&[("TcpExt.ListenOverflows", 400), ("Tcp.PassiveOpens", 200)]);
    let findings = window.findings();
    assert_eq!(findings[0].id, "application-not-accepting");
    assert_eq!(
        findings[0].fixes[0].set,
        [("workers".to_owned(), "4".to_owned())]
    );
    assert!(findings[0].fixes.iter().all(|fix| {
        fix.set
            .iter()
            .all(|(name, _)| !name.contains("somaxconn") && name != "listen_backlog")
    }));
}

#[test]
fn a_master_that_only_holds_the_listener_is_no_worker() {
    let mut window = quiet();
    window.listen(9000, 10, &[11; 10]);
    window.grow(&[("TcpExt.ListenOverflows", 400), ("Tcp.PassiveOpens", 200)]);
    let master = window.processes.by_pid[&100].clone();
    for pid in [101, 102] {
        let worker = crate::observe::processes::Process {
            pid,
            parent: 100,
            ..master.clone()
        };
        window.processes.by_pid.insert(pid, worker);
    }
    let end = |pid| {
        [
            ("role", Value::Word("server")),
            ("sport", Value::Unsigned(9000)),
            ("pid", Value::Unsigned(pid)),
        ]
    };
    let workers = |window: &crate::diagnose::window::Window| {
        let fix = window.findings()[0].fixes[0].clone();
        (fix.set[0].1.clone(), fix.text)
    };
    // Nobody knows whose the connections were: 60/s x 3 / 20/s / 0.8.
    assert_eq!(workers(&window).0, "12");
    window.event("lifetimes", 20, &end(101));
    let (wanted, text) = workers(&window);
    assert_eq!(wanted, "8");
    assert!(
        text.contains("where 2 processes now accept from it"),
        "{text}"
    );
    // One that accepts beside its children is a worker.
    window.event("lifetimes", 1, &end(100));
    assert_eq!(workers(&window).0, "12");
}

fn summary_of(window: &crate::diagnose::window::Window) -> String {
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
    window.listen(7000, 128, &[4; 10]);
    window.waiting(7000, 4, 0);
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
    window.grow(&[("TcpExt.ListenOverflows", 1450), ("Tcp.PassiveOpens", 100)]);
    let group = [
        ("role", Value::Word("client")),
        ("service_port", Value::Unsigned(8080)),
    ];
    window.total("lifetimes", 500, &group);
    let set =
        |window: &crate::diagnose::window::Window| window.findings()[0].fixes[0].set[0].1.clone();
    // 50/s x 0.1 s / 0.8.
    assert_eq!(set(&window), "7");
    // Who has begun and not ended has arrived as well: 60/s.
    let before = window.netns().before.sockets.as_mut().unwrap();
    before.outgoing.insert(8080, 20);
    window.sockets().outgoing.insert(8080, 120);
    assert_eq!(set(&window), "8");
    window.events.totals.clear();
    window.sockets().outgoing.clear();
    assert!(window.findings()[0].fixes[0].text.contains("at most"));
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
    clients.open = 58;
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
