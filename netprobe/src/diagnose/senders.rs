//! Who sends what is lost, as far as the segments tell that are sent again.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    events::{Event, Owner},
    stalled::is_data,
    window::Window,
};

/// The process that had most sent again to an address, of the events that are meant.
pub(super) fn owner(window: &Window, address: IpAddr, is_meant: impl Fn(&Event) -> bool) -> Owner {
    let mut owners = BTreeMap::<Owner, u32>::new();
    let again = window.events.of("retransmits").iter();
    let again = again.filter(|event| is_data(event) && is_meant(event));
    for event in again.filter(|event| event.ip("daddr") == Some(address)) {
        *owners.entry(event.owner()).or_default() += 1;
    }
    let most = owners.into_iter().max_by_key(|(_, count)| *count);
    most.map(|(owner, _)| owner).unwrap_or_default()
}

/// How it is called in a sentence, if it is known.
pub(super) fn named(owner: &Owner) -> Option<String> {
    match owner {
        (Some(pid), Some(comm)) => Some(format!("{comm} (pid {pid})")),
        (_, comm) => comm.clone(),
    }
}
