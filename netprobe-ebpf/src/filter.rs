//! What the user asked to see. An unset filter is dead code to the verifier.

use netprobe_common::{
    filter::Setting,
    offsets::Field,
    record::Plain,
    records::{Flow, Owner},
};

use crate::{
    load::Load,
    maps::{CONFIG, frozen},
};

/// Settings of the frozen configuration.
#[derive(Clone, Copy)]
pub(crate) struct Frozen;

impl Setting for Frozen {
    #[inline(always)]
    fn read<T: Plain>(self, setting: &T) -> T {
        frozen(setting)
    }
}

/// Whether `flow` passes every filter of flows that is set.
#[inline(always)]
pub(crate) fn admits(flow: &Flow) -> bool {
    frozen(&CONFIG.tests_flows) == 0 || CONFIG.filter.admits(Frozen, flow)
}

/// Inode number of the network namespace at `net`; 0 for one that has got the number of the one that is wanted.
#[inline(always)]
pub(crate) fn netns<L: Load>(load: L, net: u64) -> u32 {
    let inode = load.field(net, Field::NetInum);
    let cookie = || load.field(net, Field::NetCookie);
    if CONFIG.filter.is_another_netns(Frozen, inode, cookie) {
        return 0;
    }
    inode
}

/// Whether a TCP state is wanted; 0 is unknown.
#[inline(always)]
pub(crate) fn admits_state(state: u8) -> bool {
    CONFIG.filter.admits_state(Frozen, state)
}

/// Whether a drop reason is wanted.
#[inline(always)]
pub(crate) fn admits_reason(reason: u32) -> bool {
    CONFIG.filter.admits_reason(Frozen, reason)
}

/// Whether a process is wanted; `None` is unknown.
#[inline(always)]
pub(crate) fn admits_caller(owner: Option<&Owner>) -> bool {
    let filter = &CONFIG.filter;
    !filter.names_callers(Frozen)
        || owner.is_some_and(|owner| filter.admits_caller(Frozen, owner.pid, &owner.comm))
}

/// Whether an interface is wanted; its name is read only if anybody asks for it.
#[inline(always)]
pub(crate) fn admits_interface(name: impl FnOnce() -> [u8; 16]) -> bool {
    !CONFIG.filter.names_interface(Frozen) || CONFIG.filter.admits_interface(Frozen, &name())
}
