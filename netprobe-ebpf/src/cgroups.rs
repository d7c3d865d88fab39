//! Control groups (version 2) of sockets: their ids, and whether the filter wants them.

use netprobe_common::{
    filter::{ANY, IS},
    offsets::Field,
};

use crate::{
    filter::Frozen,
    load::{Load, Probed},
    maps::{CGROUPS, CONFIG, frozen, value},
    sock::Sock,
};

/// Groups within groups that are looked at. A static: the compiler would unroll a constant loop.
#[unsafe(no_mangle)]
static DEPTH: u32 = 32;

/// Id of the cgroup at `address`, as its folder has it for an inode number; 0 for none.
#[inline(always)]
pub(crate) fn id(address: u64) -> u64 {
    if address == 0 {
        return 0;
    }
    let node: u64 = Probed.field(address, Field::CgroupKn);
    Probed.field(node, Field::KernfsNodeId)
}

/// Whether the cgroup of a full socket is wanted; none at all is in no group.
#[inline(always)]
pub(crate) fn admits<L: Load>(sock: Option<Sock<L>>) -> bool {
    let mode = frozen(&CONFIG.filter.cgroup.mode);
    if mode == ANY {
        return true;
    }
    let address = sock.map_or(0, Sock::cgroup_address);
    (mode == IS) == is_within(address)
}

/// Whether the cgroup at `address` is the one of the filter, or below it.
#[inline(always)]
fn is_within(address: u64) -> bool {
    let group = id(address);
    if let Some(known) = value(CGROUPS.get_ptr_mut(group)) {
        return *known != 0;
    }
    let wanted = CONFIG.filter.cgroup.wanted(Frozen);
    let found = u64::from(has_ancestor(address, wanted));
    // Full: the map evicts by itself.
    let _evicting = CGROUPS.insert(group, found, 0);
    found != 0
}

#[inline(always)]
fn has_ancestor(address: u64, wanted: u64) -> bool {
    let mut at = address;
    for _ in 0..frozen(&DEPTH) {
        if at == 0 {
            return false;
        }
        if id(at) == wanted {
            return true;
        }
        // The parent's `self`, which a cgroup begins with.
        at = Probed.field(at, Field::CgroupParent);
    }
    false
}
