//! SYNs and SYN-ACKs that a namespace of this machine threw away itself: neither the other end nor the path is to blame.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use super::super::super::{
    dropped,
    events::Event,
    places::{self, End},
    window::{Netns, Window},
};
use crate::report::{Value, diagnosis::Finding};

const ACK: u8 = 16;
/// Fewer are no reason.
const LEAST: u64 = 3;
/// Functions that decide what becomes of a packet before it is anybody's: who only listens in is not among them.
const DECIDE: [&str; 2] = ["br_", "do_xdp_generic"];
/// Reasons, and such functions, that routes lead to which are missing, or refuse.
const OF_ROUTES: [&str; 5] = [
    "IP_INNOROUTES",
    "IP_OUTNOROUTES",
    "ip_error",
    "ip6_pkt_",
    "dst_discard",
];
/// Those of a next hop that nobody on the link answers for.
const OF_NEIGHBOURS: [&str; 4] = [
    "NEIGH_FAILED",
    "neigh_invalidate",
    "arp_error_report",
    "ndisc_error_report",
];

/// Segments of handshakes with one end that a namespace dropped, for one reason.
pub(super) struct LostHere<'a> {
    netns: &'a Netns,
    /// Whose handshakes.
    end: End,
    /// Whether they are its answers.
    are_answers: bool,
    /// As the kernel names it; on old kernels, the function.
    reason: String,
    interface: Option<String>,
    /// Who sent the first of them, and to whom.
    source: IpAddr,
    destination: IpAddr,
    count: u64,
}

/// Why a packet was dropped; on old kernels, the function that did it.
fn reason(event: &Event) -> Option<String> {
    dropped::reason(event).or_else(|| event.text("location"))
}

fn is_one_of(reason: &str, known: &[&str]) -> bool {
    known.iter().any(|known| reason.starts_with(known))
}

/// Whether a packet was dropped as nobody on the link answers for the address of the next hop.
pub(super) fn has_no_neighbour(event: &Event) -> bool {
    reason(event).is_some_and(|reason| is_one_of(&reason, &OF_NEIGHBOURS))
}

/// Whether a segment of a handshake was lost within this machine. What the firewall drops, has a rule of its own.
pub(super) fn is_lost(window: &Window, event: &Event) -> bool {
    let is_loss = if let Some(reason) = dropped::reason(event) {
        dropped::is_loss(&reason)
    } else {
        // A socket that is given up frees what it has sent, as some devices do once it is on the wire, and TCP a SYN that
        // it has answered before.
        let has_socket = event.text("state").is_some() || event.number("pid").is_some();
        let location = event.text("location");
        let is_of_tcp = location.is_some_and(|function| function.starts_with("tcp_"));
        let is_gone = !has_socket || is_on_its_way(window, event);
        (is_gone && !is_of_tcp) || dropped::is_netfilter(|name| event.value(name))
    };
    dropped::is_of_handshake(event) && is_loss
}

/// Whether a packet between two namespaces of this machine has left that of its sender: it keeps the socket that sent it
/// until IP takes it in at its destination.
fn is_on_its_way(window: &Window, event: &Event) -> bool {
    let netns = event.netns().and_then(|inode| window.namespace(inode));
    let ends = netns.zip(places::ends(event));
    ends.is_some_and(|(netns, (from, to))| {
        !places::is_local(netns, from.0) && !places::homes(window, netns, to.0).is_empty()
    })
}

impl<'a> LostHere<'a> {
    /// What most of the lost segments of handshakes of some clients with an end were lost by, if that is on this machine.
    /// Answers to others, as of a flood, nobody waits for.
    pub(super) fn of(window: &'a Window, end: End, clients: &HashSet<IpAddr>) -> Option<Self> {
        let mut reasons = HashMap::<(u32, String), (u64, &Event)>::new();
        for event in window.events.of("drops") {
            if !is_of(window, event, end, clients)
                || dropped::is_netfilter(|name| event.value(name))
            {
                continue;
            }
            if let (Some(inode), Some(reason)) = (event.netns(), reason(event)) {
                let known = reasons.entry((inode, reason)).or_insert((0, event));
                known.0 += 1;
            }
        }
        let most = reasons.into_iter().max_by_key(|(_, (count, _))| *count)?;
        let ((inode, reason), (count, event)) = most;
        let netns = window.namespace(inode)?;
        // Without a reason, who only listened in looks the same as who lost it.
        let is_known = dropped::reason(event).is_some()
            || is_one_of(&reason, &[&DECIDE[..], &OF_ROUTES, &OF_NEIGHBOURS].concat())
            || places::ends(event).is_some_and(|(_, to)| places::is_local(netns, to.0));
        (count >= LEAST && is_known).then_some(Self {
            netns,
            end,
            are_answers: is_answer(event),
            reason,
            interface: event.text("iface"),
            source: event.ip("saddr")?,
            destination: event.ip("daddr")?,
            count,
        })
    }

    fn is_reverse_path(&self) -> bool {
        self.reason == "IP_RPFILTER"
    }

    /// Whether an XDP program did it, as the function tells.
    fn is_of_xdp(&self) -> bool {
        self.reason == "XDP" || self.reason.contains("xdp_")
    }

    /// Whether it is for an address that is not there (`ip_error`, of a host that does not forward).
    pub(super) fn is_misaddressed(&self) -> bool {
        self.reason == "IP_INADDRERRORS"
            || (self.reason.starts_with("ip_error")
                && !self.netns.after.addresses.contains(&self.destination))
    }

    /// Whether a filter did it that somebody has put there.
    pub(super) fn is_deliberate(&self) -> bool {
        const FILTERS: [&str; 5] = ["TC_", "SOCKET_FILTER", "BPF_", "XFRM_", "tcf_"];
        self.is_of_xdp() || FILTERS.iter().any(|filter| self.reason.starts_with(filter))
    }

    fn is_of_bridge(&self) -> bool {
        self.reason.starts_with("br_") || self.reason.starts_with("BRIDGE_")
    }

    /// Whether a namespace did it that is not its sender's.
    pub(super) fn is_beyond(&self, sender: &Netns) -> bool {
        self.netns.inode != sender.inode
    }

    /// Whether there is no route, or one that refuses.
    fn is_of_routes(&self) -> bool {
        is_one_of(&self.reason, &OF_ROUTES)
    }

    fn has_no_neighbour(&self) -> bool {
        is_one_of(&self.reason, &OF_NEIGHBOURS)
    }

    /// What to add to the summary.
    pub(super) fn words(&self) -> String {
        let place = self.netns.place_or_here();
        let why = if self.is_reverse_path() {
            let over = self.over();
            format!(
                "by rp_filter: the route back to {} does not lead over {over}",
                self.source
            )
        } else if self.has_no_neighbour() {
            "as nobody on the link answers for the address of the next hop (ARP, ND)".to_owned()
        } else if self.is_of_routes() {
            let Self {
                destination,
                reason,
                ..
            } = self;
            format!("as there is no route to {destination}, or one that refuses ({reason})")
        } else if self.is_of_xdp() {
            format!("by an XDP program{} ({})", self.at(), self.reason)
        } else if self.is_of_bridge() {
            format!("by the bridge there ({})", self.reason)
        } else {
            let meaning = self.meaning().map_or("", |(meaning, _)| meaning);
            format!("as {}{meaning}", self.reason)
        };
        let what = if self.are_answers { "SYN-ACKs" } else { "SYNs" };
        format!("; {what} are dropped{place}, {why}")
    }

    /// What is wrong with the segments, and what helps, where the reason tells.
    fn meaning(&self) -> Option<(&'static str, &'static str)> {
        let found = match self.reason.as_str() {
            "TCP_MD5NOTFOUND" => (
                ": the listener wants them signed (RFC 2385), and they are not",
                "give the client the same key (TCP_MD5SIG; a BGP session's password), or take it from the listener",
            ),
            "TCP_MD5UNEXPECTED" => (
                ": they are signed (RFC 2385), and the listener has no key for that client",
                "give the listener the same key (TCP_MD5SIG; a BGP session's password), or take it from the client",
            ),
            "TCP_MD5FAILURE" => (
                ": their signature (RFC 2385) is of another key",
                "give both ends the same key (TCP_MD5SIG; a BGP session's password)",
            ),
            "TCP_MINTTL" => (
                ": the client is more hops away than the listener takes (IP_MINTTL, RFC 5082)",
                "have the listener take more hops (IP_MINTTL; BGP: ttl-security hops), or find out why the way has become longer",
            ),
            "IP_INADDRERRORS" => (
                ": they are for an address that it does not have, and it does not forward",
                "give it that address, have it forward (net.ipv4.ip_forward = 1), or correct the route that leads there",
            ),
            "TCP_CSUM" | "IP_CSUM" => (
                ": they arrive damaged",
                "look for what damages them on the way: a device that offloads checksums wrongly (ethtool -K DEVICE tx off at the \
                 sender shows it), a cable, a virtual switch",
            ),
            _ => return None,
        };
        Some(found)
    }

    /// The interface, if it is known.
    fn at(&self) -> String {
        let interface = self.interface.as_ref();
        interface.map_or(String::new(), |interface| format!(" at {interface}"))
    }

    fn over(&self) -> &str {
        self.interface
            .as_deref()
            .unwrap_or("the interface they came in by")
    }

    /// Adds the number that it rests on, and what helps.
    pub(super) fn add(&self, found: Finding, window: &Window) -> Finding {
        let Self {
            netns,
            reason,
            source,
            count,
            ..
        } = self;
        let found = found.counted(
            format!(
                "{count} segments of its handshakes dropped{}, first from {source}: {reason}",
                netns.place()
            ),
            *count,
            "segments",
            "kfree_skb",
        );
        let mut hits = found.affected.iter();
        let is_named = hits.any(|hit| hit.kind == "listener" && hit.port == Some(self.end.1));
        let listener = places::listener(window, netns, self.end).filter(|_| !is_named);
        let found =
            found.hits(listener.map(|(home, listener)| window.affected_listener(home, listener)));
        if self.is_reverse_path() {
            return self.loosen(found);
        }
        let found = match self.meaning() {
            Some((_, helps)) => found.application(helps, &[], "none"),
            None => found,
        };
        found.command(self.look(), "none")
    }

    /// What shows more.
    fn look(&self) -> String {
        let enter = self.netns.enter();
        if self.has_no_neighbour() {
            format!(
                "see whether that host is up and the address right: `{enter}ip neigh` shows who does not answer"
            )
        } else if self.is_of_routes() {
            format!(
                "give it a route, or correct the one that refuses: `{enter}ip route get {}` shows what it has; one made by \
                 hand is gone after a reboot",
                self.destination
            )
        } else if self.is_of_xdp() {
            let interface = self.interface.as_ref();
            let device = interface.map_or(String::new(), |interface| format!(" dev {interface}"));
            format!(
                "`{enter}ip link show{device}` names the program, `bpftool prog` tells who loaded it"
            )
        } else if self.is_of_bridge() {
            format!(
                "`{enter}bridge -d link` shows which ports are isolated or blocking, `{enter}bridge vlan` and `{enter}bridge fdb` \
                 what else it goes by"
            )
        } else {
            dropped::LOOK.to_owned()
        }
    }

    /// Lets answers and SYNs take different ways.
    fn loosen(&self, found: Finding) -> Finding {
        let Self { netns, source, .. } = self;
        let found = found.command(
            format!(
                "give{} a route back to {source} over {}: `{}ip route get {source}` shows the present one",
                netns.place(),
                self.over(),
                netns.enter()
            ),
            "none",
        );
        match &self.interface {
            Some(interface) => {
                let name = format!("net.ipv4.conf.{interface}.rp_filter");
                found.sysctl_in(
                    netns,
                    format!(
                        "or have{} accept what could have come by any interface (loose)",
                        netns.place()
                    ),
                    &[(name.as_str(), "2".to_owned())],
                    "forged source addresses get further",
                )
            }
            None => found,
        }
    }
}

/// Whether it is a SYN-ACK.
pub(super) fn is_answer(event: &Event) -> bool {
    matches!(event.value("flags"), Value::TcpFlags(flags) if flags & ACK > 0)
}

/// Whether it is a lost SYN of one of these clients to an end, or its answer.
fn is_of(window: &Window, event: &Event, end: End, clients: &HashSet<IpAddr>) -> bool {
    let is_its = |(from, to): (End, End)| {
        let (service, client) = if is_answer(event) {
            (from, to)
        } else {
            (to, from)
        };
        service == end && clients.contains(&client.0)
    };
    is_lost(window, event) && places::ends(event).is_some_and(is_its)
}
