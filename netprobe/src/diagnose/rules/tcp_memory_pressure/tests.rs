//! TCP memory: its limits, who is refused, and who holds it.

use crate::{
    diagnose::fixtures::quiet,
    report::{
        Value,
        diagnosis::{Confidence, Severity},
    },
};

#[test]
fn pressure_is_a_warning_and_drops_are_critical() {
    let mut window = quiet();
    window.grow(&[
        ("TcpExt.TCPMemoryPressures", 1),
        ("sockstat.TCP.mem", 160_000),
    ]);
    assert_eq!(window.findings()[0].severity, Severity::Warning);
    // Above the last limit, but nobody is refused.
    window.grow(&[
        ("TcpExt.TCPMemoryPressures", -1),
        ("sockstat.TCP.mem", 50_000),
    ]);
    let found = &window.findings()[0];
    assert_eq!(
        (found.severity, found.confidence),
        (Severity::Warning, Confidence::Medium)
    );
    let said = "210000 pages (820 MiB) in use; pressure from 150000 (585 MiB), none beyond 200000 (781 MiB)";
    assert_eq!(found.evidence[0].text, said);
    // Where the drop does not tell the namespace, its counter does, unless there is memory.
    window.grow(&[("TcpExt.TCPRcvQDrop", 9)]);
    let found = &window.findings()[0];
    assert_eq!(found.severity, Severity::Critical);
    assert!(
        found.summary.contains("9 packets were dropped for it"),
        "{}",
        found.summary
    );
    window.grow(&[("sockstat.TCP.mem", -150_000)]);
    assert!(window.ids().is_empty());
    window.grow(&[("TcpExt.TCPRcvQDrop", -9), ("sockstat.TCP.mem", 100_000)]);
    window.total("drops", 4, &[("reason", Value::Word("PROTO_MEM"))]);
    let findings = window.findings();
    assert_eq!(
        (findings[0].id, findings[0].severity),
        ("tcp-memory-pressure", Severity::Critical)
    );
    assert_eq!(findings[0].fixes[0].set[0].1, "200000 300000 400000");
    // It is that of all namespaces: told where packets were dropped.
    let mut there = window.netns().clone();
    (there.inode, there.is_initial) = (7, false);
    window.namespaces.push(there);
    window.relocate(7);
    let places = window.findings();
    let places: Vec<_> = places.iter().map(|found| found.affected[1].netns).collect();
    assert_eq!(places, [Some(7)]);
}

/// A machine with 217,888 pages for buffers, on which all that TCP may have is taken.
fn short(limits: &str) -> crate::diagnose::window::Window {
    let mut window = quiet();
    window.buffer_pages = Some(217_888);
    window.set("net.ipv4.tcp_mem", limits);
    window.grow(&[("sockstat.TCP.mem", 517), ("TcpExt.TCPRcvQDrop", 792)]);
    window
}

#[test]
fn limits_that_somebody_lowered_are_put_back_to_those_of_the_kernel() {
    let found = short("150 300 450").findings().remove(0);
    assert_eq!(found.fixes[0].set[0].1, "10212 13618 20424");
    let told = "TCP is short of memory on this machine: 2.0 MiB are in use, where 1.7 MiB are allowed, and 792 packets were \
                dropped for it in 10 s";
    assert_eq!(found.summary, told);
    assert_eq!(found.affected[0].name, "TCP memory");
    // Those are the kernel's: twice as much.
    let mut window = short("10212 13618 20424");
    window.grow(&[("sockstat.TCP.mem", 20_000)]);
    let found = window.findings().remove(0);
    assert_eq!(found.fixes[0].set[0].1, "20517 30774 41034");
    // Half of the machine is not for TCP.
    let mut window = short("30000 40000 60000");
    window.grow(&[("sockstat.TCP.mem", 60_000)]);
    let found = window.findings().remove(0);
    assert!(
        found.fixes.iter().all(|fix| fix.set.is_empty()),
        "{:?}",
        found.fixes
    );
}

#[test]
fn the_reader_that_does_not_read_is_named() {
    let mut window = short("150 300 450");
    window.listen(7000, 128, &[0; 10]);
    let reader = crate::observe::diag::Queued {
        connections: 40,
        received: 1_200_000,
        sent: 0,
        most: 40_000,
        ino: 77_000,
    };
    let sender = crate::observe::diag::Queued {
        connections: 2,
        received: 0,
        sent: 1_600_000,
        most: 200_000,
        ino: 1,
    };
    window.sockets().queued = [((true, 7000), reader), ((false, 80), sender)].into();
    let found = window.findings().remove(0);
    let said = "40 connections at port 7000 hold the memory: have server (pid 100) read what comes over them";
    assert!(found.fixes[1].text.starts_with(said), "{:?}", found.fixes);
    let hit = found.affected.last().unwrap();
    assert_eq!((hit.port, hit.pid), (Some(7000), Some(100)));
    // The sender of that may be here, too, and have more in its queue.
    assert_eq!(window.told()[0], ("tcp-memory-pressure", None));
    // Nearly all may wait in the sender's queues.
    let few = crate::observe::diag::Queued {
        received: 1000,
        ..reader
    };
    let sender_of_it = crate::observe::diag::Queued {
        connections: 40,
        ..sender
    };
    let queued = window.sockets().queued.clone();
    window.sockets().queued = [((true, 7000), few), ((false, 7000), sender_of_it)].into();
    let found = window.findings().remove(0);
    assert!(found.fixes[1].text.starts_with(said), "{:?}", found.fixes);
    // Or the reader is elsewhere.
    window.sockets().queued.remove(&(true, 7000));
    let found = window.findings().remove(0);
    let sent =
        "40 connections to port 7000 hold the memory, as the other end does not take what was sent";
    assert!(found.fixes[1].text.starts_with(sent), "{:?}", found.fixes);
    window.sockets().queued = queued;
    // Where nobody has most of it, nobody is named.
    window.sockets().queued.insert((true, 7001), reader);
    window.sockets().queued.insert((true, 7002), reader);
    window.sockets().queued.get_mut(&(false, 80)).unwrap().sent = 200_000;
    let found = window.findings().remove(0);
    assert!(found.fixes[1].text.contains("ss -tm"), "{:?}", found.fixes);
}
