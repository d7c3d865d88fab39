//! Local ports that connections hold, by destination: the kernel chooses among the same range for each.

use std::collections::BTreeMap;

use super::{
    events::Event,
    places::End,
    window::{Netns, Window, ratio},
};
use crate::observe::{
    diag::{Destination, Ports},
    sysctls::reserved_ports,
};

/// The ports that the kernel chooses from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    /// The first.
    pub(super) first: u32,
    /// The last.
    pub(super) last: u32,
    /// Those of them that it leaves out.
    pub(super) reserved: u32,
}

impl Range {
    pub(super) fn of(netns: &Netns) -> Option<Self> {
        let words = netns.sysctl_words("net.ipv4.ip_local_port_range");
        let [first, last] = <[u64; 2]>::try_from(words).ok()?;
        let [first, last] = [first, last].map(|port| u32::try_from(port).unwrap_or(0));
        let reserved = netns.after.sysctls.get("net.ipv4.ip_local_reserved_ports");
        Some(Self {
            first,
            last,
            reserved: reserved.map_or(0, |list| reserved_ports(list, first, last)),
        })
    }

    pub(super) const fn usable(&self) -> u32 {
        (self.last + 1)
            .saturating_sub(self.first)
            .saturating_sub(self.reserved)
    }
}

/// The first port that the kernel does not keep for services of the system.
const LOWEST: u32 = 1024;
const HIGHEST: u32 = 65_535;
/// Ranges are rounded up to a multiple of so many ports.
pub(super) const ROUND: u32 = 1000;

impl Range {
    /// The widest that there is.
    pub(super) const fn widest(self) -> Self {
        Self {
            first: LOWEST,
            last: HIGHEST,
            ..self
        }
    }

    /// This one with more ports, so that `needed` are usable: those above it first, where fewer services listen.
    pub(super) fn widened(self, needed: u32) -> Self {
        let size = needed.saturating_add(self.reserved).div_ceil(ROUND) * ROUND;
        let last = (self.first.saturating_add(size) - 1).clamp(self.last, HIGHEST);
        let first = (last + 1)
            .saturating_sub(size)
            .clamp(LOWEST.min(self.first), self.first);
        Self {
            first,
            last,
            ..self
        }
    }
}

/// What a destination holds, in a namespace.
pub(super) struct Place<'a> {
    pub(super) window: &'a Window,
    pub(super) netns: &'a Netns,
    pub(super) range: Range,
    pub(super) destination: Destination,
    pub(super) ports: Ports,
}

impl<'a> Place<'a> {
    /// Every destination, the fullest first.
    pub(super) fn all(
        window: &'a Window,
        netns: &'a Netns,
        range: Range,
    ) -> impl Iterator<Item = Self> {
        let held = held(netns).into_iter();
        held.map(move |(destination, ports)| Self {
            window,
            netns,
            range,
            destination,
            ports,
        })
    }

    /// The share of the range that it holds.
    pub(super) fn share(&self) -> f64 {
        ratio(self.ports.used().into(), self.range.usable().into())
    }

    /// Where its connections go to.
    pub(super) const fn service(&self) -> End {
        (self.destination.remote, self.destination.port)
    }

    /// The connects to it that were seen.
    pub(super) fn connects(&self) -> impl Iterator<Item = &'a Event> {
        let (window, destination) = (self.window, self.destination);
        let events = window.events.within("connects", self.netns.inode);
        events.filter(move |event| {
            event.small("dport") == Some(destination.port)
                && event.ip("daddr") == Some(destination.remote)
        })
    }
}

/// What each destination holds, the more at the beginning or the end of the window counting; the fullest first.
fn held(netns: &Netns) -> Vec<(Destination, Ports)> {
    let tables = [&netns.after, &netns.before].map(|snapshot| snapshot.sockets.as_ref());
    let mut most = BTreeMap::<Destination, Ports>::new();
    for table in tables.into_iter().flatten() {
        for (destination, ports) in &table.ports {
            let known = most.entry(*destination).or_insert(*ports);
            if ports.used() > known.used() {
                *known = *ports;
            }
        }
    }
    let mut all: Vec<_> = most.into_iter().collect();
    all.sort_by_key(|(_, ports)| std::cmp::Reverse(ports.used()));
    all
}

/// The destination that holds most.
pub(super) fn fullest(netns: &Netns) -> Option<(Destination, Ports)> {
    held(netns).into_iter().next()
}

/// Whether connect() may take a port again that has been in TIME_WAIT for a second.
pub(super) fn reuses(netns: &Netns, destination: &Destination) -> bool {
    let is_local = destination.remote.is_loopback();
    let reuse = netns.sysctl("net.ipv4.tcp_tw_reuse").unwrap_or(0);
    let has_timestamps = netns.sysctl("net.ipv4.tcp_timestamps") != Some(0);
    has_timestamps && (reuse == 1 || (reuse == 2 && is_local))
}

/// How many connects there were to a service, and whose they are if it is known of the namespace only.
pub(super) fn connects(window: &Window, netns: &Netns, service: End) -> (u64, &'static str) {
    let inode = netns.inode.to_string();
    let seen = to_service(window, netns, service);
    if seen > 0 && window.watched_required("connects").is_ok() {
        return (seen, "");
    }
    // A search that fails opens nothing.
    let failed = [("errno", "EADDRNOTAVAIL"), ("netns", inode.as_str())];
    let failed = window.events.count("connects", &failed);
    let opened = netns.grown("Tcp.ActiveOpens").unwrap_or(0);
    (opened + failed, " of the whole namespace")
}

/// How many connects to a service were seen: they are counted by port, and single ones tell addresses apart.
pub(super) fn to_service(window: &Window, netns: &Netns, (address, port): End) -> u64 {
    let (inode, service_port) = (netns.inode.to_string(), port.to_string());
    let group = [("dport", service_port.as_str()), ("netns", inode.as_str())];
    let at_port = window.events.count("connects", &group);
    let events = window.events.within("connects", netns.inode);
    let addresses = events.filter(|event| event.small("dport") == Some(port));
    let addresses = addresses.filter_map(|event| event.ip("daddr"));
    let [mut here, mut all] = [0, 0];
    for found in addresses {
        all += 1;
        here += u64::from(found == address);
    }
    (at_port * here).checked_div(all).unwrap_or(at_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_grows_upwards_first_and_never_shrinks() {
        for (range, needed, expected) in [
            ((30_000, 31_999), 10_977, (30_000, 40_999)),
            ((32_768, 60_999), 40_000, (25_536, 65_535)),
            ((32_768, 60_999), 90_000, (1024, 65_535)),
            ((32_768, 60_999), 10, (32_768, 60_999)),
            ((500, 60_999), 90_000, (500, 65_535)),
        ] {
            let (first, last) = range;
            let range = Range {
                first,
                last,
                reserved: 0,
            };
            let widened = range.widened(needed);
            assert_eq!((widened.first, widened.last), expected, "{needed}");
        }
    }
}
