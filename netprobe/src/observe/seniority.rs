//! Which open connections are the oldest, although the kernel does not keep when one was opened.
//!
//! Where data went one way only the age is known; otherwise only that it is at least so long, and that is short exactly
//! for what is in constant use. But sockets are numbered as they are made: the numbers of inodes rise, in batches for each
//! CPU, so a socket is older than those whose numbers are larger, and may be older than those whose numbers are a few
//! batches smaller.

use std::{
    cmp::Reverse, io, mem, num::NonZero, os::unix::net::UnixDatagram, thread, time::Duration,
};

use super::sockets::OpenConnection;

/// Numbers of a batch, of which each CPU takes one: `LAST_INO_BATCH` of `fs/inode.c`.
const BATCH: u32 = 1024;
/// Most CPUs there can be.
const CPUS: usize = 8192;
/// Numbers that other CPUs may be ahead.
const AHEAD: u32 = BATCH * 8192;

/// How inodes are numbered at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    newest: u32,
    /// So much smaller may the number of a younger socket be that another CPU made.
    blur: u32,
}

impl Numbers {
    /// Those of now.
    pub fn now() -> io::Result<Self> {
        let made = rustix::fs::fstat(&UnixDatagram::unbound()?)?;
        let cpus = thread::available_parallelism().map_or(1, NonZero::get);
        let cpus = u32::try_from(cpus.min(CPUS)).unwrap_or_default();
        Ok(Self {
            // They are of 32 bits, and begin again after the last.
            newest: u32::try_from(made.st_ino & u64::from(u32::MAX)).unwrap_or_default(),
            blur: 2 * BATCH * cpus,
        })
    }
}

/// Sorts them, the oldest first. Those whose age is not known stand as high as the numbers of their sockets allow.
pub fn oldest_first(connections: &mut [OpenConnection], numbers: Numbers) {
    let mut aged: Vec<Aged> = connections
        .iter()
        .enumerate()
        .map(|(index, connection)| Aged::new(index, connection, numbers.newest))
        .collect();
    aged.sort_by_key(|aged| aged.made);
    let sockets: Vec<(u32, Duration)> = aged.iter().map(|aged| (aged.made, aged.age)).collect();
    let mut younger = sockets.iter().filter(|(made, _)| *made > 0).peekable();
    let mut younger_are = Duration::ZERO;
    for aged in aged.iter_mut().filter(|aged| aged.made > 0) {
        let end = aged.made.saturating_add(numbers.blur);
        while let Some((_, age)) = younger.next_if(|(made, _)| *made <= end) {
            younger_are = younger_are.max(*age);
        }
        if !aged.is_known {
            aged.age = aged.age.max(younger_are);
        }
    }
    aged.sort_by_key(|aged| Reverse((aged.age, !aged.is_known, aged.made)));
    reorder(
        connections,
        aged.into_iter().map(|aged| aged.index).collect(),
    );
}

/// Puts at each place what `order` names for it, without a second list: there may be very many.
fn reorder(connections: &mut [OpenConnection], mut order: Vec<usize>) {
    for start in 0..order.len() {
        let mut place = start;
        loop {
            let from = mem::replace(&mut order[place], place);
            if from == start {
                break;
            }
            connections.swap(place, from);
            place = from;
        }
    }
}

/// How many of them are of unknown age.
pub fn without_age(connections: &[&OpenConnection]) -> usize {
    let traffic = connections.iter().filter_map(|known| known.traffic);
    traffic.filter(|traffic| traffic.age.is_none()).count()
}

struct Aged {
    /// Where its connection is.
    index: usize,
    /// Inodes that were made after its socket; 0 where it has none any more.
    made: u32,
    is_known: bool,
    /// At least.
    age: Duration,
}

impl Aged {
    fn new(index: usize, connection: &OpenConnection, newest: u32) -> Self {
        let traffic = connection.traffic;
        let made = match u32::try_from(connection.ino) {
            Ok(0) | Err(_) => 0,
            Ok(ino) => newest.wrapping_add(AHEAD).wrapping_sub(ino),
        };
        Self {
            made,
            is_known: traffic.is_none_or(|traffic| traffic.age.is_some()),
            age: traffic.map_or(Duration::ZERO, |traffic| traffic.least_age),
            index,
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
            is_server: None,
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
        order_with(connections, Numbers { newest, blur: 0 })
    }

    fn order_with(connections: &[OpenConnection], numbers: Numbers) -> Vec<u64> {
        let mut connections = connections.to_vec();
        oldest_first(&mut connections, numbers);
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
    fn what_another_cpu_made_may_be_older_than_its_number_says() {
        // Opened a second before the others, where the numbers were a batch ahead.
        let busy = connection(1900, None, 36);
        let idle = connection(800, Some(5), 0);
        let busy_and_later = connection(790, None, 40);
        let just_now = connection(100_000, None, 20);
        let given = [idle, busy_and_later, busy, just_now];
        let numbers = Numbers {
            newest: 100_100,
            blur: 2048,
        };
        assert_eq!(order_with(&given, numbers), [790, 1900, 800, 100_000]);
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
        let numbers = Numbers::now().unwrap();
        assert!(numbers.newest != 0 && numbers.blur >= 2 * BATCH);
    }
}
