//! Which open connections are the oldest, although the kernel does not keep when one was opened.
//!
//! Where data went one way only the age is known; otherwise only that it is at least so long, and that is short exactly
//! for what is in constant use. But sockets are numbered as they are made: the numbers of inodes rise, in batches for each
//! CPU, so of two sockets the one with the smaller number is the older one, about.

use std::{cmp::Reverse, io, os::unix::net::UnixDatagram, time::Duration};

use super::sockets::OpenConnection;

/// Numbers that other CPUs may be ahead: `LAST_INO_BATCH` of `fs/inode.c`, for as many CPUs as there can be.
const AHEAD: u32 = 1024 * 8192;

/// The number of a socket that is made now.
pub fn newest() -> io::Result<u32> {
    let made = rustix::fs::fstat(&UnixDatagram::unbound()?)?;
    // They are of 32 bits, and begin again after the last.
    Ok(u32::try_from(made.st_ino & u64::from(u32::MAX)).unwrap_or_default())
}

/// Sorts them, the oldest first. Those whose age is not known come where the sockets that were made after them
/// put them.
pub fn oldest_first(connections: &mut Vec<OpenConnection>, newest: u32) {
    let mut aged: Vec<Aged> = connections
        .drain(..)
        .map(|connection| Aged::new(connection, newest))
        .collect();
    aged.sort_by_key(|aged| aged.made);
    let mut younger_are = Duration::ZERO;
    for aged in &mut aged {
        let least = aged.age;
        if aged.made > 0 {
            if !aged.is_known {
                aged.age = least.max(younger_are);
            }
            younger_are = younger_are.max(least);
        }
    }
    aged.sort_by_key(|aged| Reverse((aged.age, aged.made)));
    connections.extend(aged.into_iter().map(|aged| aged.connection));
}

/// How many of them are of unknown age.
pub fn without_age(connections: &[OpenConnection]) -> usize {
    let traffic = connections.iter().filter_map(|known| known.traffic);
    traffic.filter(|traffic| traffic.age.is_none()).count()
}

struct Aged {
    connection: OpenConnection,
    /// Inodes that were made after its socket; 0 where it has none any more.
    made: u32,
    is_known: bool,
    /// At least.
    age: Duration,
}

impl Aged {
    fn new(connection: OpenConnection, newest: u32) -> Self {
        let traffic = connection.traffic;
        let made = match u32::try_from(connection.ino) {
            Ok(0) | Err(_) => 0,
            Ok(ino) => newest.wrapping_add(AHEAD).wrapping_sub(ino),
        };
        Self {
            made,
            is_known: traffic.is_none_or(|traffic| traffic.age.is_some()),
            age: traffic.map_or(Duration::ZERO, |traffic| traffic.least_age),
            connection,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::sockets::Traffic;
    use std::net::{IpAddr, Ipv4Addr};

    fn connection(ino: u64, age_s: Option<u64>, least_ms: u64) -> OpenConnection {
        OpenConnection {
            netns: 1,
            local: (IpAddr::V4(Ipv4Addr::LOCALHOST), 1),
            remote: (IpAddr::V4(Ipv4Addr::LOCALHOST), 2),
            family: "ipv4",
            state: 1,
            ino,
            cgroup: None,
            is_server: false,
            traffic: Some(Traffic {
                age: age_s.map(Duration::from_secs),
                least_age: age_s.map_or(Duration::from_millis(least_ms), Duration::from_secs),
                idle: Duration::ZERO,
                bytes_sent: 1,
                bytes_received: 1,
                retransmits: 0,
                srtt_us: 1,
            }),
        }
    }

    fn order(connections: &[OpenConnection], newest: u32) -> Vec<u64> {
        let mut connections = connections.to_vec();
        oldest_first(&mut connections, newest);
        connections.iter().map(|found| found.ino).collect()
    }

    #[test]
    fn a_busy_connection_stands_before_a_younger_idle_one() {
        let busy = connection(100, None, 28);
        let idle = connection(200, Some(5), 0);
        let busy_and_young = connection(300, None, 3);
        let oldest = connection(50, Some(9), 0);
        let given = [idle, busy_and_young, oldest, busy];
        assert_eq!(order(&given, 400), [50, 100, 200, 300]);
    }

    #[test]
    fn busy_connections_stand_in_the_order_of_their_sockets_not_of_their_pauses() {
        let given = [
            connection(300, None, 900),
            connection(100, None, 5),
            connection(200, None, 20),
        ];
        assert_eq!(order(&given, 400), [100, 200, 300]);
    }

    #[test]
    fn numbers_begin_again() {
        let before = connection(u64::from(u32::MAX) - 5, None, 1);
        let after = connection(7, None, 1);
        let ahead = connection(2000, None, 1);
        let given = [after, ahead, before];
        assert_eq!(order(&given, 100), [u64::from(u32::MAX) - 5, 7, 2000]);
    }

    #[test]
    fn a_known_age_is_believed_whatever_the_number() {
        // Waited in accept() for long: its socket is older than its connection.
        let young = connection(10, Some(1), 0);
        let old = connection(20, Some(8), 0);
        let closed_by_its_application = connection(0, Some(3), 0);
        assert_eq!(
            order(&[young, old, closed_by_its_application], 400),
            [20, 0, 10]
        );
    }

    #[test]
    fn sockets_are_numbered_as_they_are_made() {
        let newest = newest().unwrap();
        assert_ne!(newest, 0);
    }
}
