//! Which blocks are expected to be short: those of a thread whose last ones from the same call were. Their stacks are left
//! out first where there is not the budget for all.

use aya_ebpf::{macros::map, maps::Array};

use crate::maps::value;

/// How many of a thread's last blocks from a call were short, in a row. The place is by a hash of both, and others may
/// share it, which costs stacks only. Cannot be full.
#[map]
static SHORTS: Array<u32> = Array::with_max_entries(PLACES, 0);
const PLACES: u32 = 4096;

/// So many short blocks in a row, and the next one is expected to be short too.
const TELL: u32 = 4;
/// A block is short below this, or below what is asked for.
const SHORT_NS: u64 = 1_000_000;

/// The place of a thread in a call.
#[inline(always)]
pub(crate) fn place(thread: u32, call: u64) -> u32 {
    // By the golden ratio, whose upper bits are well mixed.
    let mixed = (u64::from(thread) ^ call).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 40) as u32 % PLACES
}

/// Remembers how long a block was that began at a place.
#[inline(always)]
pub(crate) fn learn(place: u32, blocked_ns: u64, least_ns: u64) {
    let Some(shorts) = value(SHORTS.get_ptr_mut(place)) else {
        return;
    };
    *shorts = if blocked_ns < least_ns || blocked_ns < SHORT_NS {
        shorts.saturating_add(1)
    } else {
        0
    };
}

/// Whether the last blocks that began at a place were short.
#[inline(always)]
pub(crate) fn is_expected(place: u32) -> bool {
    value(SHORTS.get_ptr_mut(place)).is_some_and(|shorts| *shorts >= TELL)
}
