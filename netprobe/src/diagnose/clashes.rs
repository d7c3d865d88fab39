//! SYNs whose flow conntrack could not put into its table although that has room, as another flow is there with the same
//! ends: the translation of their source (SNAT, masquerade) found no free port, or took one that another flow took at the
//! same moment.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::{
    dropped,
    events::{Event, value_of},
    places::{self, End},
    window::{Gap, Netns, Window},
};
use crate::report::Value;

/// Packets that were dropped as their flow was in the table already.
pub(super) const INSERT_FAILED: &str = "nf_conntrack.insert_failed";
/// Fewer are no reason.
const LEAST: u64 = 3;

/// What is turned away in a namespace.
#[derive(Debug)]
pub(super) struct Clashes {
    /// SYNs, as often as they were sent.
    pub(super) syns: u64,
    /// How many different ones were looked at.
    pub(super) looked_at: usize,
    /// Of those, the ones that were turned away twice or more.
    pub(super) again: usize,
    /// Where they were going, that which most were going to first.
    pub(super) services: Vec<End>,
    /// The address that the source of most was translated to, and the ports that were tried.
    pub(super) source: IpAddr,
    pub(super) tried: BTreeSet<u16>,
}

impl Clashes {
    /// In this namespace, where there are some.
    pub(super) fn of(window: &Window, netns: &Netns) -> Result<Option<Self>, Gap> {
        let failed = netns.grown_if_any(INSERT_FAILED)?;
        if failed < LEAST {
            return Ok(None);
        }
        let events = window.events.within("drops", netns.inode);
        let clashes: Vec<_> = events.filter(|event| is_clash(netns, event)).collect();
        let mut services = BTreeMap::<End, usize>::new();
        let mut sources = BTreeMap::<IpAddr, BTreeSet<u16>>::new();
        let mut sent = HashMap::<(End, Option<u64>), usize>::new();
        for event in clashes {
            if let Some((source, service)) = places::ends(event) {
                *services.entry(service).or_default() += 1;
                sources.entry(source.0).or_default().insert(source.1);
                // What is sent again is translated anew, and has the number that it had.
                *sent.entry((service, event.number("seq"))).or_default() += 1;
            }
        }
        let most = sources.into_iter().max_by_key(|(_, ports)| ports.len());
        Ok(most.map(|(source, tried)| {
            let mut services: Vec<_> = services.into_iter().collect();
            services.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            Self {
                syns: failed.min(by_hooks(window, netns)),
                looked_at: sent.len(),
                again: sent.values().filter(|times| **times > 1).count(),
                services: services.into_iter().map(|(service, _)| service).collect(),
                source,
                tried,
            }
        }))
    }
}

/// Whether a packet may be one of them: no rule is seen to have dropped it, and its source is one that sources are
/// translated to.
pub(super) fn is_clash(netns: &Netns, event: &Event) -> bool {
    let Some((source, service)) = places::ends(event) else {
        return false;
    };
    let has_socket = event.text("state").is_some() || event.number("pid").is_some();
    let translated = netns.after.conntrack.as_ref();
    let is_taken = translated.is_some_and(|entries| {
        let ports = entries.translated.get(&(source.0, service));
        ports.is_some_and(|ports| ports.contains(&source.1))
    });
    dropped::is_syn(event)
        && is_by_hook(|name| event.value(name))
        && (is_taken || !has_socket && netns.after.addresses.contains(&source.0))
}

/// Whether netfilter dropped it, and no rule is seen to have.
fn is_by_hook<'a>(value: impl Fn(&str) -> &'a Value) -> bool {
    dropped::is_netfilter(&value) && !dropped::is_of_rules(value("location"))
}

/// How many such packets there were, of all kinds.
fn by_hooks(window: &Window, netns: &Netns) -> u64 {
    let inode = netns.inode.to_string();
    let group = [("netns", inode.as_str())];
    let groups = window.events.groups("drops", &group);
    let groups = groups.filter(|total| is_by_hook(|name| value_of(total, name)));
    groups.map(|total| total.events).sum()
}
