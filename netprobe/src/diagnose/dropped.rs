//! Whose packets a firewall dropped, and whether anybody misses them: a rule that keeps strangers out
//! while the others get through does its work.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use super::{
    clashes::{self, Clashes},
    events::Event,
    places::{self, End},
    window::{Netns, Window},
};
use crate::report::Value;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Functions that only rules lead to.
const OF_RULES: [&str; 3] = ["nft_do_chain", "ipt_do_table", "ip6t_do_table"];

/// Fewer packets are not worth a verdict.
pub(super) const LEAST: u32 = 3;
/// From public addresses every port is tried now and then: SYNs of strangers per second that are more.
pub(super) const KNOCKS_PER_S: f64 = 2.0;
/// Nobody needs so many ports of one address that nobody listens at.
const SCAN: usize = 10;
/// Drops that are a smaller part of what the same clients got through are noise.
const PART: u32 = 50;

/// Packets between one service and its clients.
#[derive(Debug, Default)]
pub(super) struct Service {
    /// Packets of clients that miss them.
    pub(super) wanted: u32,
    /// Packets of others.
    pub(super) others: u32,
    /// Addresses of clients that miss them.
    pub(super) missing: BTreeSet<IpAddr>,
    /// Whether they are no more than the attempts of one connect of this machine, and nobody gets through.
    pub(super) is_one_connect: bool,
    /// When those packets were dropped.
    pub(super) times: Option<Times>,
    /// Addresses of the others.
    pub(super) strangers: BTreeSet<IpAddr>,
    /// Clients that get through to it.
    pub(super) through: usize,
    /// Of those, the ones that miss nothing.
    pub(super) content: usize,
    /// Whether each of the others gets through to it, too: packets came late, or in the wrong place.
    pub(super) is_stray: bool,
    /// The namespace of the listener, if it is on this machine.
    pub(super) home: Option<u32>,
    /// The process that listens, or opens the connections.
    pub(super) process: Option<String>,
    /// Whether clients were told, rather than left to wait.
    pub(super) is_rejected: bool,
    /// The hook that packets were dropped at, as far as their ends tell.
    pub(super) hook: &'static str,
}

/// When packets were dropped, in nanoseconds of the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) first_ns: u64,
    pub(super) last_ns: u64,
    /// Whether each of them asked for a connection.
    pub(super) are_syns: bool,
}

impl Times {
    /// Of both.
    pub(super) fn and(self, other: Option<Self>) -> Self {
        other.map_or(self, |other| Self {
            first_ns: self.first_ns.min(other.first_ns),
            last_ns: self.last_ns.max(other.last_ns),
            are_syns: self.are_syns && other.are_syns,
        })
    }
}

/// What is freed without being lost: by the socket that sent it, by who only listened in, and of those that are refused.
const NO_LOSS: [&str; 3] = ["QUEUE_PURGE", "OTHERHOST", "NO_SOCKET"];

/// Of what TCP itself drops, what is wrong with the segment: the rest came late, or twice.
const OF_TCP: [&str; 4] = ["TCP_AO", "TCP_CSUM", "TCP_MD5", "TCP_MINTTL"];

/// What shows more of what is dropped.
pub(super) const LOOK: &str = "netprobe drops --count --by reason,location shows where they are dropped, netprobe drops --json each of them";

/// Why the kernel dropped a packet, if it says it.
pub(super) fn reason(event: &Event) -> Option<String> {
    let reason = event.text("reason");
    reason.filter(|reason| reason != "NOT_SPECIFIED")
}

/// Whether what is dropped for a reason is lost by it.
pub(super) fn is_loss(reason: &str) -> bool {
    let is_late = reason.starts_with("TCP_") && !OF_TCP.iter().any(|it| reason.starts_with(it));
    !is_late && !NO_LOSS.contains(&reason)
}

/// One packet that was dropped.
struct Packet {
    service: End,
    client: IpAddr,
    flags: u8,
    has_socket: bool,
    /// Whether its sender was seen to wait for the answer in vain.
    is_sent_again: bool,
    process: Option<String>,
    hook: &'static str,
    at_ns: u64,
}

impl Packet {
    const fn time(&self) -> Times {
        Times {
            first_ns: self.at_ns,
            last_ns: self.at_ns,
            are_syns: self.flags & SYN != 0,
        }
    }

    /// Whether it opens a connection, or is of one that its socket knows, here or where it was sent. Others came late,
    /// or belong to connections that conntrack has forgotten.
    const fn is_useful(&self) -> bool {
        self.flags & (FIN | RST) == 0
            && (self.flags & SYN != 0 || self.has_socket || self.is_sent_again)
    }
}

/// What one client sent to, or got from, one service.
#[derive(Default)]
struct Client {
    packets: u32,
    /// Of those, ones that open a connection or carry it on.
    useful: u32,
    has_socket: bool,
    times: Option<Times>,
}

/// Sorts the packets that netfilter dropped in a namespace by the service that they belong to; the one
/// that is missed most comes first.
pub(super) fn services(window: &Window, netns: &Netns) -> Vec<(End, Service)> {
    let mut found = BTreeMap::<End, (Service, BTreeMap<IpAddr, Client>)>::new();
    let scans = scans(window);
    let has_clashes = Clashes::of(window, netns).is_ok_and(|clashes| clashes.is_some());
    let is_clash = |event: &&Event| has_clashes && clashes::is_clash(netns, event);
    let events = window.events.within("drops", netns.inode);
    let dropped = events.filter(|event| is_netfilter(|name| event.value(name)) && !is_clash(event));
    for packet in dropped.filter_map(|event| packet(window, netns, event)) {
        let (service, clients) = found.entry(packet.service).or_default();
        service.hook = packet.hook;
        let client = clients.entry(packet.client).or_default();
        client.packets += 1;
        client.useful += u32::from(packet.is_useful());
        client.has_socket |= packet.has_socket;
        client.times = Some(packet.time().and(client.times));
        service.process = service.process.take().or(packet.process);
    }
    let weighed = found.into_iter().map(|(end, (mut service, clients))| {
        weigh(window, netns, (end, &scans), &mut service, clients);
        (end, service)
    });
    let mut services: Vec<_> = weighed.collect();
    services.sort_by_key(|(_, service)| std::cmp::Reverse((service.wanted, service.others)));
    services
}

fn packet(window: &Window, netns: &Netns, event: &Event) -> Option<Packet> {
    let (source, destination) = places::ends(event)?;
    let flags = match event.value("flags") {
        Value::TcpFlags(flags) => *flags,
        _ => 0,
    };
    let state = event.text("state");
    let is_over = state.is_some_and(|state| ["TIME-WAIT", "CLOSE", "UNCONN"].contains(&&*state));
    let has_socket = !is_over && (event.text("state").is_some() || event.number("pid").is_some());
    let is_served = |end| places::listener(window, netns, end).is_some();
    let is_local = |address| places::is_local(netns, address);
    let is_incoming = is_local(destination.0) && !is_local(source.0);
    let is_answer = flags & (SYN | ACK) == SYN | ACK
        || (is_served(source) && !is_served(destination))
        || (has_socket && is_incoming && !is_served(destination));
    let (service, client) = if is_answer {
        (source, destination.0)
    } else {
        (destination, source.0)
    };
    let hook = match (is_local(source.0), is_local(destination.0)) {
        (_, true) => "ingress, prerouting or input",
        (true, false) => "output, postrouting or egress",
        _ if netns.after.addresses.is_empty() => "",
        _ => "forward",
    };
    Some(Packet {
        service,
        client,
        flags,
        has_socket,
        is_sent_again: is_sent_again(window, source, (!is_answer, destination)),
        process: event.text("comm"),
        hook,
        at_ns: event.at_ns,
    })
}

/// Whether what one end sends to another was sent again, and that in vain, in whichever namespace: once may be a packet
/// that is dropped for its own sake. The address that a client sends to may be translated on its way.
fn is_sent_again(window: &Window, source: End, (is_client, destination): (bool, End)) -> bool {
    window.events.of("retransmits").iter().any(|event| {
        event.number("attempt") >= Some(2)
            && places::ends(event).is_some_and(|(local, remote)| {
                local == source && (remote == destination || is_client)
            })
    })
}

/// Decides for each client of a service whether it misses what was dropped.
fn weigh(
    window: &Window,
    netns: &Netns,
    (end, scans): (End, &HashSet<(IpAddr, IpAddr)>),
    service: &mut Service,
    clients: BTreeMap<IpAddr, Client>,
) {
    let listener = places::listener(window, netns, end);
    let through = listener.map(|(home, _)| places::clients(window, home, end.1));
    if let Some((home, listener)) = listener {
        service.home = Some(home.inode);
        let holder = window.holder(listener);
        service.process = holder
            .map(|process| process.comm.clone())
            .or(service.process.take());
    }
    service.through = through.as_ref().map_or(0, HashSet::len);
    service.is_stray = true;
    for (address, client) in clients {
        let homes = places::homes(window, netns, address);
        // A process of this namespace sent it, or was to get it, and the rule is in its way.
        let is_own =
            client.has_socket && listener.is_none_or(|(home, _)| home.inode != netns.inode);
        // Behind a NAT the listener knows it by another address.
        let is_known = through
            .as_ref()
            .is_some_and(|through| through.contains(&address))
            || homes
                .iter()
                .any(|home| places::is_connected(window, home, address, end));
        let is_missed = client.useful > 0
            && match (&through, listener) {
                _ if is_own => true,
                (Some(_), Some((home, _))) if is_known => {
                    let all = places::connections(window, home, end.1);
                    u64::from(client.useful) * u64::from(PART) >= all
                }
                _ if scans.contains(&(address, end.0)) => false,
                // Others get through: it is a stranger, unless a process of this machine is seen to fail.
                (Some(through), _) if !through.is_empty() => homes
                    .iter()
                    .any(|home| failures(window, home, (address, end)) >= LEAST as usize),
                (Some(_), _) => is_pressing(window, address, client.useful),
                (None, _) => !homes.is_empty(),
            };
        if is_missed {
            service.wanted += client.packets;
            service.missing.insert(address);
            service.times = client.times.map(|times| times.and(service.times));
        } else {
            service.others += client.packets;
            service.is_stray &= is_known;
            service.strangers.insert(address);
        }
    }
    settle(window, netns, service);
    service.content = through.map_or(0, |through| {
        let misses = |address: &&IpAddr| service.missing.contains(*address);
        through.len() - through.iter().filter(misses).count()
    });
    service.is_rejected = is_rejected(window, end);
    if service.home.is_none() && service.process.is_none() {
        service.process = opener(window, end);
    }
}

/// Decides whether what is missed of a service is enough for a verdict.
fn settle(window: &Window, netns: &Netns, service: &mut Service) {
    let is_ours = |address: &IpAddr| !places::homes(window, netns, *address).is_empty();
    // A SYN that was sent again in vain is a connect that hangs.
    service.is_one_connect = (2..LEAST).contains(&service.wanted)
        && service.through == 0
        && service.times.is_some_and(|times| times.are_syns)
        && service.missing.iter().any(is_ours);
    if service.wanted < LEAST && !service.is_one_connect {
        service.others += std::mem::take(&mut service.wanted);
        service.is_stray &= service.missing.is_empty();
        service.strangers.append(&mut service.missing);
        service.times = None;
    }
}

/// How often a client in a namespace was seen not to get an answer of a service, or to be refused.
fn failures(window: &Window, home: &Netns, (client, end): (IpAddr, End)) -> usize {
    let failed = |kind, cause: &'static str| {
        let events = window.events.within(kind, home.inode);
        events.filter(move |event| {
            event.is("cause", cause)
                && places::ends(event)
                    .is_some_and(|(local, remote)| local.0 == client && remote == end)
        })
    };
    failed("retransmits", "syn").count() + failed("resets", "refused").count()
}

/// Who tries the ports of an address one after the other, and is kept out by a firewall: pairs of client
/// and address with SYNs that netfilter dropped, to many ports that nobody listens at.
pub(super) fn scans(window: &Window) -> HashSet<(IpAddr, IpAddr)> {
    let mut tried = HashMap::<(IpAddr, IpAddr), BTreeSet<u16>>::new();
    for netns in &window.namespaces {
        let events = window.events.within("drops", netns.inode);
        let dropped =
            events.filter(|event| is_syn(event) && is_netfilter(|name| event.value(name)));
        for (source, destination) in dropped.filter_map(places::ends) {
            // Only of what is at home here is it known what listens.
            let homes = places::homes(window, netns, destination.0);
            let is_closed = !homes.is_empty()
                && homes.iter().all(|home| home.after.sockets.is_some())
                && places::listener(window, netns, destination).is_none();
            if is_closed {
                let ports = tried.entry((source.0, destination.0)).or_default();
                ports.insert(destination.1);
            }
        }
    }
    tried.retain(|_, ports| ports.len() >= SCAN);
    tried.into_keys().collect()
}

/// Whether a packet asks for a connection.
pub(super) fn is_syn(event: &Event) -> bool {
    matches!(event.value("flags"), Value::TcpFlags(flags) if flags & (SYN | ACK) == SYN)
}

/// Whether a packet is a SYN or its answer.
pub(super) fn is_of_handshake(event: &Event) -> bool {
    matches!(event.value("flags"), Value::TcpFlags(flags) if flags & SYN > 0)
}

/// Whether netfilter was seen to drop what is no request for a connection, in any namespace.
pub(super) fn are_segments_dropped(window: &Window) -> bool {
    let mut drops = window.events.of("drops").iter();
    drops.any(|event| is_netfilter(|name| event.value(name)) && !is_syn(event))
}

/// Whether nobody would knock so often who is not meant to come in.
fn is_pressing(window: &Window, address: IpAddr, packets: u32) -> bool {
    is_private(address) || window.rate(packets.into()) >= KNOCKS_PER_S
}

/// Whether an address is of no public network.
pub(super) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            // 100.64.0.0/10 is that of carriers and overlays.
            v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// What a connect fails with whose SYN is answered by RST, by unreachable (ICMP type 3, `icmp_err_convert`), or by what ICMPv6
/// says is prohibited.
const REFUSALS: [&str; 4] = ["ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "EACCES"];

/// Whether clients of this machine were refused there meanwhile.
fn is_rejected(window: &Window, end: End) -> bool {
    let is_there = |event: &Event| places::ends(event).is_some_and(|(_, remote)| remote == end);
    let mut resets = window.events.of("resets").iter();
    let mut connects = window.events.of("connects").iter();
    resets.any(|event| event.is("cause", "refused") && is_there(event))
        || connects
            .any(|event| REFUSALS.iter().any(|errno| event.is("errno", errno)) && is_there(event))
}

/// A process of this machine that wanted to go there.
fn opener(window: &Window, end: End) -> Option<String> {
    let events = ["retransmits", "connects"].map(|kind| window.events.of(kind));
    let mut events = events.into_iter().flatten();
    events.find_map(|event| {
        let (_, remote) = places::ends(event)?;
        (remote == end).then(|| event.text("comm")).flatten()
    })
}

/// Whether a rule did it, by the place of the drop.
pub(super) fn is_of_rules(location: &Value) -> bool {
    matches!(location, Value::Text(function) if OF_RULES.iter().any(|name| function.starts_with(name)))
}

/// Whether netfilter dropped it. Kernels without drop reasons name the function.
pub(super) fn is_netfilter<'a>(value: impl Fn(&str) -> &'a Value) -> bool {
    match (value("reason"), value("location")) {
        (Value::Text(reason), _) => **reason == *"NETFILTER_DROP",
        (Value::Word(reason), _) => *reason == "NETFILTER_DROP",
        (Value::Unknown, location @ Value::Text(function)) => {
            function.starts_with("nf_hook_slow") || is_of_rules(location)
        }
        _ => false,
    }
}
