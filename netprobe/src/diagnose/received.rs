//! Resets that established connections received, by the service that they came from: of busy connections,
//! and of quiet ones.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    dropped,
    events::{Event, Owner, port_of, value_of},
    farewells::is_farewell,
    places::{self, End},
    window::{Gap, Netns, Window},
};
use crate::report::Value;

/// A connection that heard of its peer since was not quiet.
const QUIET_NS: u64 = 1_000_000_000;
/// An answer that crosses the end of the connection comes sooner after that.
const CLOSED_NS: u64 = 500_000_000;
/// Fewer quiet ones are no pattern.
pub(super) const LEAST: usize = 3;
/// So many that were looked at tell what the others were like.
const ENOUGH: u64 = 8;

/// What is known of the other end, where it is in a namespace that was watched, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// Its process closed on purpose (the cause of the reset), so that this end has something to be told of.
    Closed {
        cause: &'static str,
        comm: Option<String>,
    },
    /// It does not know the connection, or a rule of a firewall in between does not.
    Forgot,
}

/// Resets of established connections to one service, as its clients received them.
#[derive(Debug, Default)]
pub(super) struct Received {
    /// Times since the peer was last heard of, of quiet connections, in nanoseconds.
    pub(super) quiet_ns: Vec<u64>,
    /// Times since the peer had closed in order, of connections that were written to all the same, in nanoseconds.
    pub(super) closed_ns: Vec<u64>,
    /// How many connections the peer closed while something was on its way to it.
    pub(super) crossed: usize,
    /// How long these had been without a request when the peer closed, in nanoseconds.
    pub(super) pauses_ns: Vec<u64>,
    /// How many connections were busy.
    pub(super) busy: usize,
    /// How old connections were, where their opening was seen, in nanoseconds.
    pub(super) ages_ns: Vec<u64>,
    /// The process that they belong to.
    pub(super) owner: Option<Owner>,
    /// What is known of the other end.
    pub(super) peers: Vec<Peer>,
}

impl Received {
    /// Whether it was the quiet connections that were reset.
    pub(super) fn is_of_quiet_ones(&self) -> bool {
        self.quiet_ns.len() >= LEAST && self.quiet_ns.len() > self.busy
    }

    /// How many were seen.
    pub(super) fn seen(&self) -> usize {
        self.quiet_ns.len() + self.busy
    }

    /// What is known of the other end of most of them.
    pub(super) fn peer(&self) -> Option<&Peer> {
        let is_forgetful = |peer: &&Peer| **peer == Peer::Forgot;
        let forgetful = self.peers.iter().filter(is_forgetful).count();
        let most = if forgetful * 2 > self.peers.len() {
            self.peers.iter().find(is_forgetful)
        } else {
            self.peers.iter().find(|peer| !is_forgetful(peer))
        };
        most.filter(|_| self.peers.len() * 2 >= self.seen())
    }
}

/// Why an end closes a connection that it knows, without more to be said of it there.
const DELIBERATE: [&str; 2] = ["linger-0", "disconnect"];
/// Why it does so otherwise; that is found at that end, with its reason.
const FOUND_THERE: [&str; 7] = [
    "data-after-close",
    "unread-data",
    "listener-closed",
    "timeout",
    "orphan",
    "killed",
    "refused",
];

/// What the other end of a connection did, by local and remote end as it sees them itself.
fn known_peers(window: &Window) -> HashMap<(End, End), Option<Peer>> {
    let mut known = HashMap::new();
    let sent = window.events.of("resets").iter();
    for event in sent.filter(|event| event.is("direction", "sent")) {
        let Some(ends) = places::ends(event) else {
            continue;
        };
        let is_one_of = |causes: &[&'static str]| {
            let mut causes = causes.iter().copied();
            causes.find(|cause| event.is("cause", cause))
        };
        let peer = if let Some(cause) = is_one_of(&DELIBERATE) {
            Some(Peer::Closed {
                cause,
                comm: event.text("comm"),
            })
        } else if is_one_of(&FOUND_THERE).is_some() {
            None
        } else {
            Some(Peer::Forgot)
        };
        known.insert(ends, peer);
    }
    // A rule that rejects makes the reset up; it drops the packet that came.
    for event in window.events.of("drops") {
        if let (true, Some((local, remote))) = (
            dropped::is_netfilter(|name| event.value(name)),
            places::ends(event),
        ) {
            known.insert((remote, local), Some(Peer::Forgot));
        }
    }
    known
}

/// Resets that established connections of a namespace received, by the service at their other end.
pub(super) fn by_service(window: &Window, netns: &Netns) -> BTreeMap<End, Received> {
    let known = known_peers(window);
    let mut services = BTreeMap::<End, Received>::new();
    for event in window.events.within("resets", netns.inode) {
        let (is_stale, is_crossed) = (is_of_closed(event), is_of_closing(event));
        let is_told = is_stale || is_crossed || is_of_established(event);
        let Some((local, remote)) = places::ends(event).filter(|_| is_told) else {
            continue;
        };
        // A client that leaves is no incident of its server.
        if places::at_port(netns, local.1).next().is_some() || local.1 < remote.1 {
            continue;
        }
        let peer = known.get(&(remote, local));
        if peer == Some(&None) && !is_stale && !is_crossed {
            continue;
        }
        let received = services.entry(remote).or_default();
        if received.owner.is_none() && event.text("comm").is_some() {
            received.owner = Some(event.owner());
        }
        if is_stale {
            received.closed_ns.extend(event.number("idle_ns"));
            continue;
        }
        if is_crossed {
            received.crossed += 1;
            let times = event.number("acked_ns").zip(event.number("idle_ns"));
            received
                .pauses_ns
                .extend(times.map(|(acked, idle)| acked.saturating_sub(idle)));
            continue;
        }
        received.peers.extend(peer.cloned().flatten());
        received.ages_ns.extend(event.number("age_ns"));
        match event.number("idle_ns") {
            Some(idle_ns) if idle_ns >= QUIET_NS => received.quiet_ns.push(idle_ns),
            _ => received.busy += 1,
        }
    }
    services
}

/// Whether the peer had closed in order long before, and was written to.
fn is_of_closed(event: &Event) -> bool {
    is_lost(event) && event.is("state", "CLOSE-WAIT") && event.number("idle_ns") >= Some(CLOSED_NS)
}

/// Whether the peer closed in order while something was on its way to it; this end may have closed since, too.
fn is_of_closing(event: &Event) -> bool {
    let has_closed = ["CLOSE-WAIT", "LAST-ACK"].map(|state| event.is("state", state));
    is_lost(event) && has_closed.contains(&true) && event.number("idle_ns") < Some(CLOSED_NS)
}

/// Whether more than a farewell was lost with a reset that was received.
fn is_lost(event: &Event) -> bool {
    event.is("direction", "received") && event.number("data") > Some(0) && !is_farewell(event)
}

/// In CLOSE-WAIT the peer had closed in order before: an answer that came too late.
fn is_of_established(event: &Event) -> bool {
    event.is("direction", "received") && event.is("state", "ESTAB")
}

/// How many resets without a cause were received of services at a port, exactly.
pub(super) fn counted(window: &Window, netns: &Netns, port: u16) -> u64 {
    let [inode, number] = [netns.inode.to_string(), port.to_string()];
    let group = [
        ("netns", inode.as_str()),
        ("service_port", number.as_str()),
        ("direction", "received"),
    ];
    let groups = window.events.groups("resets", &group);
    let without_cause = groups.filter(|total| *value_of(total, "cause") == Value::Unknown);
    without_cause.map(|total| total.events).sum()
}

/// How many of those were looked at, whatever their connections did.
pub(super) fn looked_at(window: &Window, netns: &Netns, port: u16) -> u64 {
    let received = window.events.within("resets", netns.inode).filter(|event| {
        event.is("direction", "received")
            && event.value("cause") == &Value::Unknown
            && ["sport", "dport"]
                .map(|end| event.small(end))
                .contains(&Some(port))
    });
    received.count() as u64
}

/// Whether too few of the resets of services at a port were looked at to say what the others were like.
pub(super) fn is_unseen(window: &Window, netns: &Netns, port: u16) -> bool {
    let counted = counted(window, netns, port);
    let seen = looked_at(window, netns, port);
    seen < ENOUGH && seen * 2 < counted && counted - seen >= LEAST as u64
}

/// The port of a service whose connections from here were reset, too few of them looked at.
pub(super) fn check_seen(window: &Window, netns: &Netns) -> Result<(), Gap> {
    let inode = netns.inode.to_string();
    let group = [("netns", inode.as_str()), ("direction", "received")];
    let groups = window.events.groups("resets", &group);
    let ports: BTreeSet<u16> = groups
        .filter_map(|total| port_of(total, "service_port"))
        .collect();
    // What clients of a listener here send is no incident of theirs.
    let mut ports = ports.into_iter().filter(|port| {
        places::at_port(netns, *port).next().is_none() || is_client_of(netns, *port)
    });
    ports
        .find(|port| is_unseen(window, netns, *port))
        .map_or(Ok(()), |port| {
            Err(Gap(format!(
                "{} connections with port {port} were reset, but too few of them were looked at, as there was too much else",
                counted(window, netns, port)
            )))
        })
}

/// Whether connections to services at a port were opened here.
fn is_client_of(netns: &Netns, port: u16) -> bool {
    let tables = [&netns.before, &netns.after];
    let tables = tables.into_iter().filter_map(|seen| seen.sockets.as_ref());
    let mut services = tables.flat_map(|table| table.ports.keys());
    services.any(|service| service.port == port)
}
