//! `--count --by`: exact counts by more than what `--count` groups by, as far as was asked for.

use netprobe_common::{
    counters::{
        BY_CGROUP, BY_DADDR, BY_DPORT, BY_FLOW, BY_LISTENER, BY_PROCESS, BY_SADDR, BY_SPORT,
        CountKey, GroupKey, OTHER,
    },
    record::Plain,
    records::{Flow, Owner},
};

use crate::{
    emit::Sighting,
    groups::count_in,
    load::Load,
    maps::{CONFIG, GROUPS, GROUPS_FULL, count, frozen},
    owners,
    sock::Sock,
};

/// Whose event it is.
pub(crate) trait Subject {
    /// Who owns it; nothing known is left as it is.
    fn owner(&self, owner: &mut Owner);

    /// The listener that it is about: where it listens.
    #[inline(always)]
    fn listener(&self) -> Option<([u8; 16], u16)> {
        None
    }
}

/// Nobody's.
impl Subject for () {
    #[inline(always)]
    fn owner(&self, _owner: &mut Owner) {}
}

/// That of a full socket.
impl<L: Load> Subject for Option<Sock<L>> {
    #[inline(always)]
    fn owner(&self, owner: &mut Owner) {
        if let Some(sock) = self {
            owners::of(*sock, owner);
        }
    }
}

/// Counts a sighting in its group, or under `OTHER`; false if there was no room for it. `stack` is the
/// id of its kernel stack, 0 if that was not asked for; without `is_fine` it is told apart by that and what `--count` alone
/// groups by.
#[inline(always)]
pub(crate) fn add<S: Subject>(sighting: &Sighting<'_, S>, stack: i32, is_fine: bool) -> bool {
    let by = frozen(&CONFIG.by);
    let mut key = GroupKey {
        key: sighting.key,
        stack,
        ..GroupKey::zeroed()
    };
    if by & BY_FLOW != 0 && is_fine {
        ends(&mut key, sighting.flow, by);
    }
    if by & BY_LISTENER != 0
        && is_fine
        && let Some((address, family)) = sighting.subject.listener()
    {
        key.listener = address;
        key.listener_family = family;
    }
    if by & (BY_PROCESS | BY_CGROUP) != 0 && is_fine {
        sighting.subject.owner(&mut key.owner);
        narrow(&mut key.owner, by);
    }
    if count_in(&GROUPS, GROUPS_FULL, &key, sighting.weight) {
        return true;
    }
    key = GroupKey {
        key: CountKey {
            kind: sighting.key.kind,
            code: OTHER,
            ..CountKey::zeroed()
        },
        ..GroupKey::zeroed()
    };
    count(&GROUPS, &key, sighting.weight);
    false
}

/// The ends of the connection, as far as groups are to differ in them: each port makes many groups of one.
#[inline(always)]
fn ends(key: &mut GroupKey, flow: &Flow, by: u32) {
    key.family = flow.family;
    if by & BY_SADDR != 0 {
        key.saddr = flow.saddr;
    }
    if by & BY_DADDR != 0 {
        key.daddr = flow.daddr;
    }
    if by & BY_SPORT != 0 {
        key.sport = flow.sport;
    }
    if by & BY_DPORT != 0 {
        key.dport = flow.dport;
    }
}

/// Only what groups are to differ in.
#[inline(always)]
fn narrow(owner: &mut Owner, by: u32) {
    owner.is_open = 0;
    if by & BY_CGROUP == 0 {
        owner.cgroup = 0;
    }
    if by & BY_PROCESS == 0 {
        *owner = Owner {
            cgroup: owner.cgroup,
            ..Owner::zeroed()
        };
    } else if owner.pid != 0 {
        // The process says it already; it may have many sockets.
        owner.ino = 0;
    }
}
