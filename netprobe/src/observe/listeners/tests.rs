//! Who listened, on a machine that is made up: times are in seconds, all of them later than now.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;
use crate::observe::{owners::tests::Proc, sockets::Listener};

const NETNS: u32 = 4_026_531_840;
const PORT: u16 = 7104;
const SECOND: u64 = 1_000_000_000;
/// The machine began thirty years later than this one.
const BOOT: u64 = 1_000_000_000 * SECOND;
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const AWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));

fn at(second: u64) -> u64 {
    BOOT + second * SECOND
}

fn listener(address: IpAddr, ino: u64) -> Listener {
    Listener {
        netns: NETNS,
        local: (address, PORT),
        ino,
        is_v6_only: false,
        is_bound: false,
        cgroup: None,
    }
}

fn listen(listeners: &mut Listeners, second: u64, now: &[Listener]) {
    listeners.take(&Listing {
        taken_ns: (at(second), at(second) + 1000),
        listeners: now.to_vec(),
    });
}

/// The owner of a connection to `address`, and whether only its name is known.
fn owner(
    listeners: &mut Listeners,
    owners: &mut Owners,
    address: IpAddr,
    opened: Option<u64>,
    event: u64,
) -> Option<(u32, String)> {
    let arrival = Arrival {
        netns: NETNS,
        local: (Some(address), PORT),
        cgroup: 0,
        opened_ns: opened.map(at),
    };
    let (pid, comm) = listeners.owner(&arrival, at(event), owners)?;
    let comm = comm.split(|byte| *byte == 0).next().unwrap();
    Some((pid, String::from_utf8(comm.to_vec()).unwrap()))
}

fn named(pid: u32, comm: &str) -> (u32, String) {
    (pid, comm.to_owned())
}

#[test]
fn listing_counts_as_a_scan_which_no_event_is_left_out_for() {
    let before = crate::observe::owners::scan_time();
    if list().is_none() {
        println!("SKIP sockets are not listed here");
        return;
    }
    assert!(crate::observe::owners::scan_time() > before);
}

#[test]
fn each_address_has_its_own_listener_and_the_others_have_that_of_all() {
    let proc = Proc::new("addresses");
    for (pid, comm) in [(100, "home"), (200, "away"), (300, "all")] {
        proc.process(pid, comm, at(1));
        proc.open(pid, 3, u64::from(pid));
    }
    let (mut listeners, mut owners) = (Listeners::default(), proc.owners());
    let now = [listener(ANY, 300), listener(HOME, 100), listener(AWAY, 200)];
    listen(&mut listeners, 5, &now);
    let mut of = |address| owner(&mut listeners, &mut owners, address, Some(6), 7);
    assert_eq!(of(HOME), Some(named(100, "home")));
    assert_eq!(of(AWAY), Some(named(200, "away")));
    assert_eq!(of(IpAddr::from([10, 77, 0, 3])), Some(named(300, "all")));
    assert_eq!(of(IpAddr::V6(Ipv6Addr::LOCALHOST)), None);
}

#[test]
fn of_several_that_share_a_port_nobody_is_named_unless_all_have_the_name() {
    let proc = Proc::new("reuseport");
    for (pid, comm) in [(100, "nginx"), (200, "nginx"), (300, "other")] {
        proc.process(pid, comm, at(1));
        proc.open(pid, 3, u64::from(pid));
    }
    let workers = [listener(ANY, 100), listener(ANY, 200)];
    let (mut listeners, mut owners) = (Listeners::default(), proc.owners());
    listen(&mut listeners, 5, &workers);
    let found = owner(&mut listeners, &mut owners, HOME, Some(6), 7);
    assert_eq!(found, Some(named(0, "nginx")));
    listen(
        &mut listeners,
        8,
        &[&workers[..], &[listener(ANY, 300)]].concat(),
    );
    let found = owner(&mut listeners, &mut owners, HOME, Some(9), 9);
    assert_eq!(found, None);
}

#[test]
fn a_restarted_server_has_what_came_since_it_was_seen_and_none_of_what_came_before() {
    let proc = Proc::new("restarted");
    let (mut listeners, mut owners) = (Listeners::default(), proc.owners());
    proc.process(100, "old", at(1));
    proc.open(100, 3, 100);
    listen(&mut listeners, 5, &[listener(ANY, 100)]);
    let of = |listeners: &mut Listeners, owners: &mut Owners, opened| {
        owner(listeners, owners, HOME, Some(opened), opened + 1)
    };
    assert_eq!(of(&mut listeners, &mut owners, 6), Some(named(100, "old")));
    proc.end(100);
    proc.process(200, "new", at(8));
    proc.open(200, 3, 200);
    assert_eq!(of(&mut listeners, &mut owners, 7), None, "it ended");
    listen(&mut listeners, 10, &[listener(ANY, 200)]);
    assert_eq!(of(&mut listeners, &mut owners, 4), None, "that of the old");
    assert_eq!(of(&mut listeners, &mut owners, 9), None, "of either");
    assert_eq!(of(&mut listeners, &mut owners, 11), Some(named(200, "new")));
}

#[test]
fn a_process_has_nothing_that_came_before_it_began() {
    let proc = Proc::new("before");
    proc.process(200, "server", at(8));
    proc.open(200, 3, 200);
    let (mut listeners, mut owners) = (Listeners::default(), proc.owners());
    listen(&mut listeners, 10, &[listener(ANY, 200)]);
    for (opened, expected) in [(7, None), (9, Some(named(200, "server")))] {
        let found = owner(&mut listeners, &mut owners, HOME, Some(opened), 9);
        assert_eq!(found, expected, "{opened}");
    }
}

#[test]
fn what_came_at_an_unknown_time_is_of_who_listened_all_the_time() {
    let proc = Proc::new("unknown-time");
    let (mut listeners, mut owners) = (Listeners::default(), proc.owners());
    proc.process(100, "first", at(1));
    proc.open(100, 3, 100);
    listen(&mut listeners, 5, &[listener(ANY, 100)]);
    let found = owner(&mut listeners, &mut owners, HOME, None, 9);
    assert_eq!(found, Some(named(100, "first")));
    proc.process(200, "second", at(1));
    proc.open(200, 3, 200);
    listen(&mut listeners, 10, &[listener(ANY, 200)]);
    let found = owner(&mut listeners, &mut owners, HOME, None, 11);
    assert_eq!(found, None);
}

#[test]
fn what_came_at_an_unknown_time_is_of_the_only_one_that_ever_listened() {
    let proc = Proc::new("later");
    let (mut listeners, mut owners) = (Listeners::default(), proc.owners());
    listen(&mut listeners, 5, &[]);
    proc.process(100, "first", at(7));
    proc.open(100, 3, 100);
    listen(&mut listeners, 8, &[listener(ANY, 100)]);
    let found = owner(&mut listeners, &mut owners, HOME, None, 9);
    assert_eq!(found, Some(named(100, "first")));
    proc.process(200, "handed-on", at(10));
    proc.end(100);
    proc.open(200, 3, 100);
    let found = owner(&mut listeners, &mut owners, HOME, None, 11);
    assert_eq!(found, None);
}

#[test]
fn a_connection_has_the_control_group_of_its_listener() {
    let proc = Proc::new("groups");
    for (pid, comm) in [(100, "one"), (200, "two")] {
        proc.process(pid, comm, at(1));
        proc.open(pid, 3, u64::from(pid));
    }
    let (mut listeners, mut owners) = (Listeners::default(), proc.owners());
    let of_group = |ino| Listener {
        cgroup: Some(ino),
        ..listener(ANY, ino)
    };
    listen(&mut listeners, 5, &[of_group(100), of_group(200)]);
    let mut arrival = Arrival {
        netns: NETNS,
        local: (Some(HOME), PORT),
        cgroup: 200,
        opened_ns: Some(at(6)),
    };
    let found = listeners.owner(&arrival, at(7), &mut owners);
    assert_eq!(found.map(|(pid, _)| pid), Some(200));
    arrival.cgroup = 0;
    assert_eq!(listeners.owner(&arrival, at(7), &mut owners), None);
}
