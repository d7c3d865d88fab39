//! Queues that are long, grow, or are not emptied for a while.

use super::*;
use crate::observe::cpu_limits::Freezer;

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
fn a_frozen_control_group_is_thawed() {
    let mut window = busy(1);
    let server = window.processes.by_pid.get_mut(&100).unwrap();
    server.state = Some('D');
    server.cpu_limits.frozen = Some(Freezer {
        file: "/sys/fs/cgroup/app/cgroup.freeze".into(),
        thaw: "0",
    });
    window.serving(9000, 0, 0);
    window.events.totals.clear();
    window.netns().after.counters.remove("Tcp.PassiveOpens");
    let found = window.findings().remove(0);
    assert!(
        found.fixes[0]
            .text
            .contains("echo 0 > /sys/fs/cgroup/app/cgroup.freeze"),
        "{:?}",
        found.fixes
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
