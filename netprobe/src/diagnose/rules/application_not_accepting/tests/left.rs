//! Listeners that nobody accepts from, whether anybody comes or not.

use super::*;

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
