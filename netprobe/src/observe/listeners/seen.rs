//! Which listeners a connection may have come through, by their addresses and by when they were seen.

use std::net::IpAddr;

use super::super::sockets::Listener;
use crate::decode::Arrival;

/// What listened, and when it was asked: begin and end.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) taken_ns: (u64, u64),
    pub(super) listeners: Vec<Listener>,
}

/// A listener, and when it was seen.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) listener: Listener,
    /// It began after this,
    pub(super) unborn_ns: u64,
    /// and not after this.
    pub(super) born_ns: u64,
    /// It was there then,
    pub(super) listed_ns: u64,
    /// and not any more then; `u64::MAX` if it is.
    pub(super) gone_ns: u64,
}

impl Seen {
    pub(super) const fn is_there(&self) -> bool {
        self.gone_ns == u64::MAX
    }

    const fn may_be_there(&self, from_ns: u64, until_ns: u64) -> bool {
        self.unborn_ns < until_ns && from_ns < self.gone_ns
    }

    const fn must_be_there(&self, from_ns: u64, until_ns: u64) -> bool {
        self.born_ns <= from_ns && (self.is_there() || until_ns <= self.listed_ns)
    }

    /// Whether the address alone decides for it, where it listens.
    fn takes_all_of(&self, address: IpAddr) -> bool {
        self.listener.local.0 == address && !address.is_unspecified() && !self.listener.is_bound
    }

    fn takes(&self, arrival: &Arrival) -> bool {
        let listener = &self.listener;
        let has_group = match listener.cgroup {
            Some(cgroup) => arrival.cgroup == 0 || cgroup == arrival.cgroup,
            None => true,
        };
        let has_address = match (arrival.local.0, listener.local.0) {
            (None, _) => true,
            (Some(IpAddr::V4(_)), IpAddr::V6(any)) => any.is_unspecified() && !listener.is_v6_only,
            (Some(IpAddr::V6(_)), IpAddr::V4(_)) => false,
            (Some(address), at) => at == address || at.is_unspecified(),
        };
        has_group && has_address
    }
}

/// Those of one port that a connection may have come through, which opened at some time in between.
pub(super) fn candidates<'a>(
    slot: &'a [Seen],
    arrival: &Arrival,
    from_ns: u64,
    until_ns: u64,
) -> Vec<&'a Seen> {
    let mut found: Vec<&Seen> = slot
        .iter()
        .filter(|seen| seen.takes(arrival) && seen.may_be_there(from_ns, until_ns))
        .collect();
    // The kernel asks those that listen at the address before those that listen at all.
    if let Some(address) = arrival.local.0 {
        let is_first =
            |seen: &&Seen| seen.takes_all_of(address) && seen.must_be_there(from_ns, until_ns);
        if found.iter().any(is_first) {
            found.retain(|seen| seen.listener.local.0 == address);
        }
    }
    found
}
