//! Whose flows fill the connection tracking table, and what is dropped for that.

use std::collections::BTreeMap;

use super::super::super::{
    finding::host,
    places::End,
    window::{Netns, Window, endpoint, ratio},
};
use crate::{
    observe::conntrack::{Entries, Protocol, UDP_STREAM},
    report::diagnosis::{Affected, Finding},
};

/// What has this share of the entries fills the table.
const MOST: f64 = 0.5;
/// A smaller share is not worth a word.
const HEAVY: f64 = 0.2;
/// Where the listed entries are.
const TABLE: &str = "/proc/net/nf_conntrack";

/// Who fills it; and who is refused, or else has most entries.
pub(super) fn heaviest(mut found: Finding, window: &Window, netns: &Netns) -> Finding {
    found.stops = stopped(window, netns);
    let wanted = wanted(window, netns);
    if let Some((address, port)) = wanted {
        found = found.hits([Window::affected_destination(netns, address, port)]);
    }
    let Some(entries) = listed(netns) else {
        return found;
    };
    found = states(found, entries);
    found = sources(found, netns, entries);
    let most = entries.destinations.iter().max_by_key(|(_, count)| **count);
    let Some(((address, port), count)) = most else {
        return found;
    };
    let share = entries.share(*count);
    if wanted.is_none() {
        found = found.hits([Window::affected_destination(netns, *address, *port)]);
    }
    said(
        found,
        &format!("are for {}", endpoint(*address, *port)),
        share,
    )
}

fn listed(netns: &Netns) -> Option<&Entries> {
    let entries = netns.after.conntrack.as_ref();
    entries.filter(|entries| entries.sampled > 0)
}

impl Entries {
    fn share(&self, count: u32) -> f64 {
        ratio(count.into(), self.sampled.into())
    }
}

fn said(found: Finding, what: &str, share: f64) -> Finding {
    let percent = share * 100.0;
    let text = format!("{percent:.0} % of entries {what}");
    found.measured(text, percent, "percent", TABLE)
}

/// What most of them are.
fn states(found: Finding, entries: &Entries) -> Finding {
    let most = entries.states.iter().max_by_key(|(_, count)| **count);
    let Some((state, count)) = most else {
        return found;
    };
    let udp = entries.services.iter();
    let udp = udp.filter(|((protocol, _), _)| *protocol == Protocol::Udp);
    let (ports, all, most) = udp.fold((0, 0, 0), |(ports, all, most), (_, count)| {
        (ports + 1, all + count, most.max(*count))
    });
    let to = if ports > 1 && most * 2 < all {
        format!(", to {ports} ports")
    } else {
        String::new()
    };
    let state = match state.as_str() {
        UDP_STREAM => format!("UDP that goes both ways{to}"),
        "udp" => format!("UDP{to}"),
        state => state.to_uppercase(),
    };
    said(found, &format!("are {state}"), entries.share(*count))
}

/// Whether one address fills it, or many that have an entry each.
fn sources(mut found: Finding, netns: &Netns, entries: &Entries) -> Finding {
    let single = entries.sources.values().filter(|count| **count == 1);
    let single = u32::try_from(single.count()).unwrap_or(u32::MAX);
    let share = entries.share(single);
    if share >= HEAVY && single > 1 {
        let is_open = |state: &str| entries.states.get(state).copied().unwrap_or(0);
        let half_open = entries.share(is_open("SYN_RECV") + is_open("SYN_SENT"));
        let why = if share >= MOST && half_open >= MOST {
            ", and most are of handshakes that nobody finishes: such are the forged addresses of a flood"
        } else {
            ""
        };
        let what = format!("come from {single} addresses with one entry each{why}");
        found = said(found, &what, share);
    }
    let most = entries.sources.iter().max_by_key(|(_, count)| **count);
    let Some((address, count)) = most else {
        return found;
    };
    let share = entries.share(*count);
    if share >= HEAVY {
        found = said(found, &format!("come from {address}"), share);
    }
    if share >= MOST {
        found = found.hits([host("source", *address, netns.inode)]);
    }
    found
}

/// A flow that fills the table need not be in it.
pub(super) fn untrack(found: Finding, window: &Window, netns: &Netns) -> Finding {
    let Some((protocol, port)) = heaviest_service(window, netns) else {
        return found;
    };
    let protocol = protocol.name();
    let enter = netns.enter();
    let rules = ["prerouting", "output"].map(|hook| {
        format!(
            "add chain inet raw {hook} {{ type filter hook {hook} priority raw; }}; add rule inet raw {hook} {protocol} dport \
             {port} notrack; add rule inet raw {hook} {protocol} sport {port} notrack"
        )
    });
    found.command(
        format!(
            "or do not track the heaviest flow, that of {} port {port}: {enter}nft 'add table inet raw; {}'",
            protocol.to_uppercase(),
            rules.join("; ")
        ),
        "rules by connection state, and NAT, do not work for that flow any more",
    )
}

/// Protocol and port that most entries are for: without it there is room. Where they cannot be listed, those that most is
/// dropped of.
fn heaviest_service(window: &Window, netns: &Netns) -> Option<(Protocol, u16)> {
    if let Some(entries) = listed(netns) {
        let most = entries.services.iter().max_by_key(|(_, count)| **count);
        let (service, count) = most?;
        return (service.1 > 0 && entries.share(*count) >= MOST).then_some(*service);
    }
    let (_, port) = wanted(window, netns)?;
    let events = window.events.within("conntrack", netns.inode);
    let mut of_port = events.filter(|event| event.small("dport") == Some(port));
    let protocol = of_port.find_map(|event| Protocol::of(&event.text("protocol")?));
    Some((protocol?, port))
}

/// The service that most of what is dropped is for.
fn wanted(window: &Window, netns: &Netns) -> Option<End> {
    let most = refused(window, netns)
        .into_iter()
        .max_by_key(|(_, count)| *count);
    most.map(|(end, _)| end)
}

/// Destinations of what is dropped, and how often that was seen.
fn refused(window: &Window, netns: &Netns) -> BTreeMap<End, u32> {
    let mut refused = BTreeMap::new();
    for event in window.events.within("conntrack", netns.inode) {
        if let Some(end) = event.ip("daddr").zip(event.small::<u16>("dport")) {
            *refused.entry(end).or_default() += 1;
        }
    }
    refused
}

/// All destinations of what is dropped; where that cannot be seen, those of the entries, whose way leads through the table.
fn stopped(window: &Window, netns: &Netns) -> Vec<Affected> {
    let mut ends: Vec<End> = refused(window, netns).into_keys().collect();
    if ends.is_empty() {
        let entries = listed(netns).into_iter();
        ends.extend(entries.flat_map(|entries| entries.destinations.keys()));
    }
    let ends = ends.into_iter();
    ends.map(|(address, port)| Window::affected_destination(netns, address, port))
        .collect()
}
