//! Everything that is read of a network namespace at one moment, and what is sampled in between.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    time::Instant,
};

use super::{
    conntrack::{self, Entries},
    counters::{self, Counters},
    diag::{self, Listener, SocketTable},
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
}

/// Reads everything of the namespace that this thread is in.
pub fn of_this_thread() -> Snapshot {
    Snapshot {
        counters: counters::of_this_thread(),
        sysctls: sysctls::of_this_thread(),
        interfaces: interfaces::of_this_thread(),
        addresses: interfaces::addresses().unwrap_or_default(),
        qdiscs: interfaces::qdiscs().unwrap_or_default(),
        listed: Some(Instant::now()),
        sockets: diag::table()
            .inspect_err(|error| log::debug!("sockets are not listed: {error:#}"))
            .ok(),
        conntrack: conntrack::of_this_thread(),
    }
}

/// Reads the counters and settings of the namespace that this thread is in, and nothing long.
pub fn of_the_machine() -> Snapshot {
    Snapshot {
        counters: counters::of_this_thread(),
        sysctls: sysctls::of_this_thread(),
        ..Snapshot::default()
    }
}

/// Looks at the namespace that this thread is in for a moment.
pub fn glance() -> Glance {
    let listeners = diag::listeners().unwrap_or_default();
    let at = Instant::now();
    // Where nobody listens nothing comes in.
    let queues = if listeners.is_empty() {
        [None; 2]
    } else {
        counters::queues()
    };
    Glance {
        at,
        listeners,
        conntrack_count: sysctls::read("net.netfilter.nf_conntrack_count")
            .and_then(|count| count.parse().ok()),
        passive_opens: queues[0],
        listen_overflows: queues[1],
    }
}
