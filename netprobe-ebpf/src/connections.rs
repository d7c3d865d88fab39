//! The kernel's table of connections, to which a small socket is put in the place of a full one that goes to TIME_WAIT.
//!
//! It tells an entry into TIME_WAIT from a reset: both leave the full socket in the same condition.

use netprobe_common::offsets::Field;

use crate::{
    load::{Load, Probed, Typed, has, offset_of},
    maps::{CONFIG, frozen},
    sock::{Sock, TCP_TIME_WAIT},
};

/// Connections of one bucket that are looked at; the kernel sizes the table for about one.
const CHAIN: u32 = 24;

/// Whether there was room in TIME_WAIT, and yet `sock`, which is closed now, has no small socket there. Where ends are only
/// sampled that is not looked for: resets are told by themselves there.
#[inline(always)]
pub(crate) fn is_gone(sock: Sock<Typed>) -> bool {
    if !has(Field::NetHashinfo) || frozen(&CONFIG.sparse) != 0 {
        return false;
    }
    let net = sock.net();
    !is_nearly_full(net) && lacks_successor(net, sock.load.field(sock.address, Field::SkcHash))
}

/// Whether an eighth or less of the places in TIME_WAIT is free: then one may have been refused.
#[inline(always)]
fn is_nearly_full(net: u64) -> bool {
    let count = if has(Field::NetTimeWaitRefs) {
        Field::NetTimeWaitRefs
    } else {
        Field::NetTimeWaitCount
    };
    let count: u32 = Probed.field(net, count);
    let most: u32 = Probed.field(net, Field::NetMaxTimeWait);
    u64::from(count) + u64::from(most / 8) >= u64::from(most)
}

/// Whether no connection of `hash`, which is that of its ends and namespace, is in TIME_WAIT; false if that cannot be told.
#[inline(always)]
fn lacks_successor(net: u64, hash: u32) -> bool {
    let table: u64 = Probed.field(net, Field::NetHashinfo);
    let buckets: u64 = Probed.field(table, Field::HashinfoEhash);
    let mask: u32 = Probed.field(table, Field::HashinfoEhashMask);
    let bucket = u64::from(hash & mask);
    let mut node: u64 = Probed.at(buckets, bucket * 8);
    for _ in 0..CHAIN {
        // The end of a chain is an odd number that says which one: another than ours, and we have strayed.
        if node & 1 != 0 {
            return node >> 1 == bucket;
        }
        let other = node.wrapping_sub(u64::from(offset_of(Field::SkcNullsNode)));
        if Probed.field::<u32>(other, Field::SkcHash) == hash
            && Probed.field::<u8>(other, Field::SkcState) == TCP_TIME_WAIT
        {
            return false;
        }
        node = Probed.at(node, 0);
    }
    false
}
