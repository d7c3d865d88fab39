//! Where on this machine the two ends of a connection are: both may be in namespaces that were watched,
//! also where a packet between them was seen in a third.

use std::{collections::HashSet, net::IpAddr};

use super::window::{Netns, Window};
use crate::observe::diag::Listener;

/// An address and port.
pub(super) type End = (IpAddr, u16);

/// The namespaces that have an address: the one that it was seen in, for its own and for loopback. Otherwise there may
/// be several, as those of two separate networks may have the same.
pub(super) fn homes<'a>(window: &'a Window, seen_in: &'a Netns, address: IpAddr) -> Vec<&'a Netns> {
    if is_local(seen_in, address) {
        return vec![seen_in];
    }
    let all = window.namespaces.iter();
    all.filter(|netns| netns.after.addresses.contains(&address))
        .collect()
}

/// Whether an address that was seen in a namespace is its own, or loopback.
pub(super) fn is_local(netns: &Netns, address: IpAddr) -> bool {
    address.is_loopback() || netns.after.addresses.contains(&address)
}

/// The listener that a packet to `end` comes to, and its namespace.
pub(super) fn listener<'a>(
    window: &'a Window,
    seen_in: &'a Netns,
    end: End,
) -> Option<(&'a Netns, &'a Listener)> {
    let mut homes = homes(window, seen_in, end.0);
    if homes.is_empty() && seen_in.after.addresses.is_empty() {
        // Where addresses could not be read, the port has to do.
        homes.push(seen_in);
    }
    homes.into_iter().find_map(|home| {
        let mut listeners = at_port(home, end.1);
        Some((home, listeners.find(|listener| listener.takes(end.0))?))
    })
}

/// All listeners at a port, whatever their address.
pub(super) fn at_port(netns: &Netns, port: u16) -> impl Iterator<Item = &Listener> {
    let sockets = netns.after.sockets.iter();
    let listeners = sockets.flat_map(|sockets| &sockets.listeners);
    listeners.filter(move |listener| listener.port == port)
}

/// The addresses whose handshakes with a listener were finished in the window or not long before.
pub(super) fn clients(window: &Window, netns: &Netns, port: u16) -> HashSet<IpAddr> {
    let tables = [&netns.before, &netns.after];
    let tables = tables.into_iter().filter_map(|seen| seen.sockets.as_ref());
    let open = tables.filter_map(|table| table.clients.get(&port));
    let ended = window.events.within("lifetimes", netns.inode);
    let ended = ended.filter(|event| {
        event.is("role", "server")
            && event.small("sport") == Some(port)
            && !event.is("result", "failed")
    });
    open.flat_map(|clients| clients.sources.iter().copied())
        .chain(ended.filter_map(|event| event.ip("daddr")))
        .collect()
}

/// Whether an address of a namespace has connections with a service elsewhere, or had in the window.
pub(super) fn is_connected(window: &Window, netns: &Netns, address: IpAddr, service: End) -> bool {
    let tables = [&netns.before, &netns.after];
    let mut tables = tables.into_iter().filter_map(|seen| seen.sockets.as_ref());
    let mut ended = window.events.within("lifetimes", netns.inode);
    tables.any(|table| {
        // Open connections are not told apart by local address: there must be no other.
        let mut ports = table
            .ports
            .keys()
            .filter(|to| (to.remote, to.port) == service);
        table.quietness.contains_key(&service) && ports.all(|to| to.local == address)
    }) || ended.any(|event| {
        let is_same = |(local, remote): (End, End)| local.0 == address && remote == service;
        !event.is("result", "failed") && ends(event).is_some_and(is_same)
    })
}

/// How many connections a service had in the window: those that ended, and those that are open.
pub(super) fn connections(window: &Window, netns: &Netns, port: u16) -> u64 {
    let [inode, number] = [netns.inode.to_string(), port.to_string()];
    let group = [("netns", inode.as_str()), ("service_port", number.as_str())];
    let ended = window.events.count("lifetimes", &group);
    let open = netns.after.sockets.as_ref().map_or(0, |table| {
        let accepted = table
            .clients
            .get(&port)
            .map_or(0, |clients| clients.established);
        let opened = table
            .ports
            .iter()
            .filter(|(service, _)| service.port == port);
        u64::from(accepted) + opened.map(|(_, ports)| u64::from(ports.open)).sum::<u64>()
    });
    ended + open
}

/// Both ends of what an event tells of: source and destination of a packet, or local and remote end of a
/// connection.
pub(super) fn ends(event: &super::events::Event) -> Option<(End, End)> {
    let end = |address, port| event.ip(address).zip(event.small::<u16>(port));
    end("saddr", "sport").zip(end("daddr", "dport"))
}
