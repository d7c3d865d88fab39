//! What a connection tracking table must have room for: how many connections come each second, how long they stay in it
//! after their end, and those that are open.

use std::collections::HashMap;

use super::super::super::{
    places,
    sizing::spoken,
    window::{Netns, Window, ratio},
};
use crate::observe::conntrack::{Entries, UDP_STREAM};

/// States that an entry stays in for a time, the setting for that, and what the kernel sets itself, in seconds: those of TCP,
/// then those of [`OTHERS`].
const STATES: [(&str, &str, u64); 10] = [
    (
        "TIME_WAIT",
        "net.netfilter.nf_conntrack_tcp_timeout_time_wait",
        120,
    ),
    (
        "SYN_SENT",
        "net.netfilter.nf_conntrack_tcp_timeout_syn_sent",
        120,
    ),
    (
        "SYN_RECV",
        "net.netfilter.nf_conntrack_tcp_timeout_syn_recv",
        60,
    ),
    (
        "FIN_WAIT",
        "net.netfilter.nf_conntrack_tcp_timeout_fin_wait",
        120,
    ),
    (
        "CLOSE_WAIT",
        "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
        60,
    ),
    (
        "LAST_ACK",
        "net.netfilter.nf_conntrack_tcp_timeout_last_ack",
        30,
    ),
    ("CLOSE", "net.netfilter.nf_conntrack_tcp_timeout_close", 10),
    ("udp", "net.netfilter.nf_conntrack_udp_timeout", 30),
    (
        UDP_STREAM,
        "net.netfilter.nf_conntrack_udp_timeout_stream",
        120,
    ),
    ("icmp", "net.netfilter.nf_conntrack_icmp_timeout", 30),
];

/// What has no connections that are opened and accepted: an entry stays for a time after its last packet.
const OTHERS: [&str; 3] = ["udp", UDP_STREAM, "icmp"];

/// What must have room.
pub(super) struct Demand {
    /// New connections per second.
    pub(super) arrivals: f64,
    /// What to say of that number.
    pub(super) how_counted: &'static str,
    /// Entries of connections that are open.
    pub(super) open: f64,
    /// The states that connections end in, those with most entries first.
    ends: Vec<Ends>,
}

/// Entries in one state.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    pub(super) state: &'static str,
    pub(super) setting: &'static str,
    pub(super) entries: f64,
    pub(super) keep_s: f64,
}

impl Ends {
    fn is_other(&self) -> bool {
        OTHERS.contains(&self.state)
    }

    /// How people write it.
    pub(super) fn spelt(&self) -> String {
        match self.state {
            UDP_STREAM => "UDP both ways".to_owned(),
            state => state.to_uppercase(),
        }
    }
}

impl Demand {
    /// Of a table with `count` entries that has turned away `dropped` packets and grows by `growth`.
    pub(super) fn of(
        window: &Window,
        netns: &Netns,
        (count, dropped, growth): (u64, u64, u64),
    ) -> Self {
        let seen = netns.after.conntrack.as_ref();
        let entries = |state: &str| {
            let seen = seen.filter(|seen| seen.sampled > 0);
            seen.map_or(0.0, |seen| {
                let found = seen.states.get(state).copied().unwrap_or(0);
                number(count) * ratio(found.into(), seen.sampled.into())
            })
        };
        let ends = STATES.iter().map(|&(state, setting, default_s)| Ends {
            state,
            setting,
            entries: entries(state),
            keep_s: number(netns.sysctl(setting).unwrap_or(default_s)),
        });
        let mut ends: Vec<Ends> = ends.collect();
        if ends.iter().any(|ends| ends.entries > 0.0) {
            ends.retain(|ends| ends.entries > 0.0);
            ends.sort_by(|a, b| b.entries.total_cmp(&a.entries));
        } else {
            // None has ended so far: most will do so in order.
            ends.truncate(1);
        }
        let others = ends.iter().filter(|ends| ends.is_other());
        let others: f64 = others.map(|ends| ends.entries / ends.keep_s.max(1.0)).sum();
        let (refused, how_counted) = refused(window, netns, dropped);
        let foreign = refused * (1.0 - own(netns, window));
        Self {
            how_counted: if foreign < 0.5 && dropped > 0 {
                KNOWN
            } else {
                how_counted
            },
            // As many as expire come in their place.
            arrivals: (arrivals(window, netns, foreign) + others).max(window.rate(growth)),
            open: entries("ESTABLISHED").round(),
            ends,
        }
    }

    /// How long an entry stays after the end of its connection: in each state there are as many as come into it in
    /// the time that it lasts.
    pub(super) fn keep_s(&self) -> f64 {
        mean_s(&self.ends)
    }

    /// What comes: connections, or with other protocols flows.
    pub(super) fn what(&self) -> &'static str {
        if self.ends.iter().any(Ends::is_other) {
            "flows"
        } else {
            "connections"
        }
    }

    /// Where they stay so long.
    pub(super) fn place(&self) -> String {
        match self.ends.as_slice() {
            [only] if only.is_other() => format!("after the last packet ({})", only.spelt()),
            [only] => format!("in {}", only.state),
            [first, second, ..] => format!(
                "after their {} (most of them {} in {}, {} in {})",
                if self.ends.iter().any(Ends::is_other) {
                    "end or last packet"
                } else {
                    "end"
                },
                spoken(first.keep_s),
                first.spelt(),
                spoken(second.keep_s),
                second.spelt()
            ),
            [] => String::new(),
        }
    }

    /// Entries of connections that have ended.
    pub(super) fn ended(&self) -> f64 {
        self.arrivals * self.keep_s()
    }

    /// Where most entries of ended connections are, if all have room in `max`, and half as many again, once they stay there
    /// for `shorter_s` only.
    pub(super) fn cured_by(&self, shorter_s: f64, max: u64) -> Option<Ends> {
        let first = self.ends.first().filter(|first| first.keep_s > shorter_s)?;
        let shortened = self
            .ends
            .iter()
            .enumerate()
            .map(|(place, ends)| match place {
                0 => Ends {
                    entries: ends.entries * shorter_s / ends.keep_s,
                    keep_s: shorter_s,
                    ..*ends
                },
                _ => *ends,
            });
        let needed = self.arrivals * mean_s(&shortened.collect::<Vec<_>>()) + self.open;
        (first.entries > 0.0 && needed * 1.5 <= number(max)).then_some(*first)
    }
}

/// How long entries in these states stay, on average over those that come.
fn mean_s(ends: &[Ends]) -> f64 {
    let rate: f64 = ends
        .iter()
        .map(|ends| ends.entries / ends.keep_s.max(1.0))
        .sum();
    let entries: f64 = ends.iter().map(|ends| ends.entries).sum();
    if rate > 0.0 {
        return entries / rate;
    }
    ends.first().map_or(0.0, |ends| ends.keep_s)
}

/// All of them are known.
const KNOWN: &str = " (clients that wait for an answer first may open more once there is room)";
/// What was refused and is told apart.
const ONCE: &str = " (each once, however often it was sent again; clients that wait for an answer first may open more once \
                    there is room)";
/// What was refused and cannot be told apart.
const AT_MOST: &str = " at most (what was sent again counts again; clients that wait for an answer first may open more once \
                       there is room)";
/// So much of what was refused must have been looked at to tell flows apart.
const NEARLY_ALL: f64 = 0.98;
/// Fewer that are new give no rate.
const LEAST_NEW: usize = 5;

/// Flows per second that were refused, of so many packets, and what to say of that number. A packet of a flow that was
/// refused before is sent again within seconds: new is what comes in the later half of the time and did not in the earlier.
fn refused(window: &Window, netns: &Netns, dropped: u64) -> (f64, &'static str) {
    if dropped == 0 {
        return (0.0, "");
    }
    let inode = netns.inode.to_string();
    let counted = window.events.count("conntrack", &[("netns", &inode)]);
    let mut first = HashMap::new();
    let (mut seen, mut last_ns) = (0, 0);
    for event in window.events.within("conntrack", netns.inode) {
        let flow = ["saddr", "sport", "daddr", "dport", "protocol"];
        let flow = flow.map(|part| format!("{:?}", event.value(part)));
        let at = first.entry(flow).or_insert(event.at_ns);
        *at = event.at_ns.min(*at);
        last_ns = event.at_ns.max(last_ns);
        seen += 1;
    }
    let first_ns = first.values().copied().min().unwrap_or(0);
    let middle_ns = u64::midpoint(first_ns, last_ns);
    let new = first.values().filter(|at| **at > middle_ns).count();
    if ratio(seen, counted.max(dropped)) < NEARLY_ALL || new < LEAST_NEW {
        // Of a sample the same flow is less often seen again: no more than this.
        let flows = ratio(first.len() as u64, seen);
        let flows = if seen == 0 { 1.0 } else { flows };
        return (window.rate(dropped) * flows, AT_MOST);
    }
    let half_s = number(last_ns - middle_ns) / 1e9;
    (number(new as u64) / half_s, ONCE)
}

/// TCP connections per second that take an entry, or would, and all flows that are refused. One within this machine is
/// opened and accepted here, and has one entry; what is refused of those that are opened here has been counted as they were
/// opened.
fn arrivals(window: &Window, netns: &Netns, foreign: f64) -> f64 {
    let grown = |name| number(netns.grown(name).unwrap_or(0));
    let (active, passive) = (grown("Tcp.ActiveOpens"), grown("Tcp.PassiveOpens"));
    let seen = netns.after.conntrack.as_ref();
    let within = seen.map_or(0.0, |seen| {
        let local = u64::from(seen.local);
        ratio(local, served(netns, seen).max(local))
    });
    let opened = active + passive * (1.0 - within);
    opened / window.seconds.max(0.001) + foreign
}

/// How many entries are of connections that listeners of this namespace accept.
fn served(netns: &Netns, entries: &Entries) -> u64 {
    let is_here = |address| netns.after.addresses.is_empty() || places::is_local(netns, address);
    let served = entries.destinations.iter().filter(|((address, port), _)| {
        is_here(*address) && places::at_port(netns, *port).next().is_some()
    });
    served.map(|(_, count)| u64::from(*count)).sum()
}

/// The part of what is dropped that comes from this namespace itself: of what was seen, or else as of the entries.
fn own(netns: &Netns, window: &Window) -> f64 {
    let events = window.events.within("conntrack", netns.inode);
    let (mut here, mut all) = (0, 0);
    for source in events.filter_map(|event| event.ip("saddr")) {
        here += u64::from(places::is_local(netns, source));
        all += 1;
    }
    if all == 0 {
        let sources = netns.after.conntrack.iter().flat_map(|seen| &seen.sources);
        for (source, count) in sources {
            here += u64::from(places::is_local(netns, *source)) * u64::from(*count);
            all += u64::from(*count);
        }
    }
    ratio(here, all)
}

#[expect(clippy::cast_precision_loss, reason = "a size")]
const fn number(count: u64) -> f64 {
    count as f64
}
