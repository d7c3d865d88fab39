//! How many bytes went over each connection since it was last looked at: from the kernel's counts
//! of open connections, and from the last counts of those that closed meanwhile.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use netprobe_common::header::Kind;

use super::fields::Fields;
use crate::{
    observe::sockets::OpenConnection,
    render::text,
    report::{Row, Value},
};

/// A connection: family of its socket, namespace, both ends.
type Key = (bool, u32, SocketAddr, SocketAddr);

/// Bytes sent and received since a connection was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bytes {
    sent: u64,
    received: u64,
}

impl Bytes {
    const fn since(self, before: Self) -> Self {
        Self {
            sent: self.sent.saturating_sub(before.sent),
            received: self.received.saturating_sub(before.received),
        }
    }
}

/// What went over a connection in an interval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spent {
    pub(super) is_v6: bool,
    pub(super) netns: u32,
    pub(super) pid: u64,
    pub(super) comm: String,
    pub(super) local: String,
    pub(super) remote: String,
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// Reads the counts, and tells what was added.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// Last counts, and the snapshot that they are of.
    known: HashMap<Key, (Bytes, u64)>,
    snapshot: u64,
    spent: Vec<Spent>,
}

impl Meter {
    /// The counts of an open connection. `owner` is asked only if bytes went over it;
    /// `must_own` leaves it out if it has none.
    pub(super) fn open(
        &mut self,
        connection: &OpenConnection,
        owner: impl FnOnce(u64) -> Option<(u32, [u8; 16])>,
        must_own: bool,
    ) {
        let Some(traffic) = connection.traffic else {
            return;
        };
        let now = Bytes {
            sent: traffic.bytes_sent,
            received: traffic.bytes_received,
        };
        let key = (
            connection.family != "ipv4",
            connection.netns,
            SocketAddr::from(connection.local),
            SocketAddr::from(connection.remote),
        );
        let before = self.known.insert(key, (now, self.snapshot));
        let bytes = now.since(before.map_or(Bytes::default(), |(bytes, _)| bytes));
        if bytes == Bytes::default() {
            return;
        }
        let owner = owner(connection.ino);
        if owner.is_some() || !must_own {
            let pid = owner.map_or(0, |(pid, _)| u64::from(pid));
            let name = owner.map_or(Value::Unknown, |(_, comm)| Value::name(comm));
            let mut comm = String::new();
            text::push(&mut comm, &name);
            self.spend(key, bytes, (pid, comm));
        }
    }

    /// The last counts of a connection that has closed.
    pub(super) fn closed(&mut self, row: &Row) {
        let fields = Fields::of(Kind::Lifetimes);
        let end = |address: &str, port: &str| {
            let Value::Ip(address) = fields.value(row, address) else {
                return None;
            };
            let port = u16::try_from(fields.number(row, port)).ok()?;
            Some(SocketAddr::new(*address, port))
        };
        let ends = end("saddr", "sport").zip(end("daddr", "dport"));
        let Some((local, remote)) = ends else { return };
        let netns = u32::try_from(fields.number(row, "netns")).unwrap_or(0);
        let key = (fields.ip(row) == 6, netns, local, remote);
        let now = Bytes {
            sent: fields.number(row, "bytes_sent"),
            received: fields.number(row, "bytes_received"),
        };
        let before = self.known.remove(&key);
        let bytes = now.since(before.map_or(Bytes::default(), |(bytes, _)| bytes));
        if bytes != Bytes::default() {
            let owner = (fields.number(row, "pid"), fields.text(row, "comm"));
            self.spend(key, bytes, owner);
        }
    }

    /// Forgets connections that the last two snapshots did not have, whatever became of them.
    pub(super) fn end_snapshot(&mut self) {
        let snapshot = self.snapshot;
        self.known.retain(|_, (_, seen)| *seen + 1 >= snapshot);
        self.snapshot += 1;
    }

    /// What went over connections before we came does not count.
    pub(super) fn forget_spent(&mut self) {
        self.spent.clear();
    }

    /// What went over connections since this was last called.
    pub(super) fn take_spent(&mut self) -> Vec<Spent> {
        std::mem::take(&mut self.spent)
    }

    fn spend(&mut self, key: Key, bytes: Bytes, (pid, comm): (u64, String)) {
        let (is_v6, netns, local, remote) = key;
        self.spent.push(Spent {
            is_v6,
            netns,
            pid,
            comm: comm.chars().take(12).collect(),
            local: end(is_v6, local),
            remote: end(is_v6, remote),
            sent: bytes.sent,
            received: bytes.received,
        });
    }
}

/// `ADDRESS:PORT`, without brackets, as bcc writes it.
fn end(is_v6: bool, end: SocketAddr) -> String {
    match end.ip() {
        IpAddr::V4(address) if is_v6 => format!("{}:{}", address.to_ipv6_mapped(), end.port()),
        address => format!("{address}:{}", end.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{observe::sockets::Traffic, probes};
    use std::{net::Ipv4Addr, time::Duration};

    const LOCAL: (IpAddr, u16) = (IpAddr::V4(Ipv4Addr::LOCALHOST), 4000);
    const REMOTE: (IpAddr, u16) = (IpAddr::V4(Ipv4Addr::LOCALHOST), 80);

    fn connection(sent: u64, received: u64) -> OpenConnection {
        OpenConnection {
            netns: 7,
            local: LOCAL,
            remote: REMOTE,
            family: "ipv4",
            state: 1,
            ino: 9,
            cgroup: None,
            is_server: None,
            traffic: Some(Traffic {
                age: None,
                least_age: Duration::ZERO,
                idle: Duration::ZERO,
                bytes_sent: sent,
                bytes_received: received,
                retransmits: 0,
                srtt_us: 0,
            }),
        }
    }

    fn closed(sent: u64, received: u64) -> Row {
        let columns = probes::of(Kind::Lifetimes).columns;
        let values = columns.iter().map(|column| match column.name {
            "saddr" => Value::Ip(LOCAL.0),
            "sport" => Value::Unsigned(u64::from(LOCAL.1)),
            "daddr" => Value::Ip(REMOTE.0),
            "dport" => Value::Unsigned(u64::from(REMOTE.1)),
            "netns" => Value::Unsigned(7),
            "family" => Value::Word("ipv4"),
            "bytes_sent" => Value::Unsigned(sent),
            "bytes_received" => Value::Unsigned(received),
            _ => Value::Unknown,
        });
        Row {
            values: values.collect(),
            ..Row::default()
        }
    }

    fn spent(meter: &mut Meter) -> Vec<(u64, u64)> {
        let spent = meter.take_spent();
        spent
            .iter()
            .map(|spent| (spent.sent, spent.received))
            .collect()
    }

    #[test]
    fn every_byte_is_told_once_until_the_connection_closes() {
        let mut meter = Meter::default();
        meter.open(&connection(100, 10), |_| None, false);
        meter.end_snapshot();
        meter.forget_spent();
        meter.open(&connection(150, 10), |_| None, false);
        meter.end_snapshot();
        assert_eq!(spent(&mut meter), [(50, 0)]);
        meter.closed(&closed(160, 30));
        assert_eq!(spent(&mut meter), [(10, 20)]);
        // The same ends again: another connection, which counts from zero.
        meter.open(&connection(5, 0), |_| None, false);
        assert_eq!(spent(&mut meter), [(5, 0)]);
    }

    #[test]
    fn connections_that_came_and_went_between_two_looks_count() {
        let mut meter = Meter::default();
        meter.end_snapshot();
        meter.closed(&closed(3, 4));
        assert_eq!(spent(&mut meter), [(3, 4)]);
    }

    #[test]
    fn what_was_not_seen_to_close_is_forgotten() {
        let mut meter = Meter::default();
        meter.open(&connection(100, 0), |_| None, false);
        for _ in 0..3 {
            meter.end_snapshot();
        }
        assert!(meter.known.is_empty());
    }
}
