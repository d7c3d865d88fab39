//! Everything that is read of a network namespace at one moment, and what is sampled in between.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    time::Instant,
};

use super::{
    conntrack::{self, Entries},
    counters::{self, Counters},
    diag::{self, Late, Listener, SocketTable},
    interfaces::{self, Interface, Qdisc},
    sysctls::{self, Sysctls},
};

/// A namespace at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What the kernel has counted, and gauges.
    pub counters: Counters,
    /// Settings.
    pub sysctls: Sysctls,
    /// Interfaces by name.
    pub interfaces: BTreeMap<String, Interface>,
    /// Addresses of those, loopback aside.
    pub addresses: HashSet<IpAddr>,
    /// Queues in front of interfaces.
    pub qdiscs: Vec<Qdisc>,
    /// When its sockets were listed.
    pub listed: Option<Instant>,
    /// Sockets, where the kernel lists them.
    pub sockets: Option<SocketTable>,
    /// A sample of the conntrack table, where it can be read.
    pub conntrack: Option<Entries>,
}

/// What is read often: cheap, and gone when one looks later.
#[derive(Clone, Debug)]
pub struct Glance {
    /// When.
    pub at: Instant,
    /// Listeners with their queues.
    pub listeners: Vec<Listener>,
    /// Entries in the conntrack table.
    pub conntrack_count: Option<i64>,
    /// Connections that came into accept queues so far.
    pub passive_opens: Option<i64>,
    /// Connection attempts that full accept queues turned away so far.
    pub listen_overflows: Option<i64>,
    /// Services that read requests late, if that was looked at.
    pub late: Option<Vec<Late>>,
}

/// Reads everything of the namespace that this thread is in.
pub fn of_this_thread() -> Snapshot {
    let counters = counters::of_this_thread();
    let listed = Some(Instant::now());
    // To list nothing takes long as well: the kernel looks through the sockets of all namespaces.
    let sockets = if has_no_sockets(&counters) {
        Some(SocketTable::default())
    } else {
        let table = diag::table();
        table
            .inspect_err(|error| log::debug!("sockets are not listed: {error:#}"))
            .ok()
    };
    let sysctls = sysctls::of_this_thread();
    let count = sysctls.get("net.netfilter.nf_conntrack_count");
    let tracks_nothing = count.is_some_and(|count| count == "0");
    Snapshot {
        counters,
        sysctls,
        interfaces: interfaces::of_this_thread(),
        addresses: interfaces::addresses().unwrap_or_default(),
        qdiscs: interfaces::qdiscs().unwrap_or_default(),
        listed,
        sockets,
        conntrack: conntrack::of_this_thread(tracks_nothing),
    }
}

/// Whether the kernel counts no TCP socket, be it open or in TIME_WAIT. One that is half open has a listener.
fn has_no_sockets(counters: &Counters) -> bool {
    let count = |name| counters.get(name).copied();
    count("sockstat.TCP.inuse") == Some(0)
        && count("sockstat.TCP.tw") == Some(0)
        // A kernel without IPv6 does not count it.
        && count("sockstat6.TCP6.inuse").unwrap_or(0) == 0
}

/// Reads the counters and settings of the namespace that this thread is in, and nothing long.
pub fn of_the_machine() -> Snapshot {
    Snapshot {
        counters: counters::of_this_thread(),
        sysctls: sysctls::of_this_thread(),
        ..Snapshot::default()
    }
}

/// Looks at the namespace that this thread is in for a moment; also at its connections, which takes longer, if told so.
pub fn glance(looks_at_connections: bool) -> Glance {
    let listeners = diag::listeners().unwrap_or_default();
    let at = Instant::now();
    // Where nobody listens nothing comes in.
    let queues = if listeners.is_empty() {
        [None; 3]
    } else {
        counters::queues()
    };
    let [passive_opens, listen_overflows, established] = queues;
    // To list none takes long as well.
    let has_some = established != Some(0) && !listeners.is_empty();
    let late = if looks_at_connections && has_some {
        let ports: HashSet<u16> = listeners.iter().map(|listener| listener.port).collect();
        diag::late(|port| ports.contains(&port)).ok()
    } else {
        None
    };
    Glance {
        at,
        late,
        listeners,
        conntrack_count: sysctls::read("net.netfilter.nf_conntrack_count")
            .and_then(|count| count.parse().ok()),
        passive_opens,
        listen_overflows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_namespace_whose_counts_are_all_zero_has_no_sockets() {
        let none = [("sockstat.TCP.inuse", 0), ("sockstat.TCP.tw", 0)];
        assert!(has_no_sockets(&none.into()));
        for (name, count) in [
            ("sockstat.TCP.inuse", 1),
            ("sockstat.TCP.tw", 1),
            ("sockstat6.TCP6.inuse", 1),
        ] {
            let mut counters = Counters::from(none);
            counters.insert(name, count);
            assert!(!has_no_sockets(&counters), "{name}");
        }
        assert!(!has_no_sockets(&Counters::new()));
    }
}
