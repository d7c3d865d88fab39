//! Groups of `--count`. The busy ones have a place that is found without a lookup: in a storm
//! nearly all events belong to a few groups, and the lookup would cost most of counting them.

use aya_ebpf::maps::PerCpuHashMap;
use netprobe_common::{
    counters::{Count, CountKey, OTHER, PLACES, Place},
    header::Kind,
    record::Plain,
};

use crate::maps::{
    BUSY, COUNTS, COUNTS_FULL, FULL, REST, add_alone, add_known, count, is_alone, make_room, value,
    words,
};

/// Adds an event of `weight` to its group; false if that had to be one of all ports, or even "other".
#[inline(always)]
pub(crate) fn count_group(kind: Kind, key: &CountKey, weight: u64) -> bool {
    if count_in_place(kind, key, weight) || count_in(&COUNTS, COUNTS_FULL, key, weight) {
        return true;
    }
    let rest = CountKey {
        port: [0; 2],
        any_port: 1,
        ..*key
    };
    if count_in_place(kind, &rest, weight) || count(&REST, &rest, weight) {
        return false;
    }
    let other = CountKey {
        kind: key.kind,
        code: OTHER,
        ..CountKey::zeroed()
    };
    count(&COUNTS, &other, weight);
    false
}

/// Adds to a busy group; false if it is none.
#[inline(always)]
fn count_in_place(kind: Kind, key: &CountKey, weight: u64) -> bool {
    if !is_alone(kind) {
        return false;
    }
    let Some(place) = place_of(key) else {
        return false;
    };
    add_alone(&mut place.count.weight, weight);
    add_alone(&mut place.count.events, 1);
    true
}

/// Adds to a group of a map; false if there is no room for it, which is looked for until there was none once.
#[inline(always)]
pub(crate) fn count_in<K: Plain>(
    map: &PerCpuHashMap<K, Count>,
    full: u32,
    key: &K,
    weight: u64,
) -> bool {
    let amount = Count { events: 1, weight };
    if add_known(map, key, &amount) {
        return true;
    }
    let Some(full) = value(FULL.get_ptr_mut(full)) else {
        return false;
    };
    if *full != 0 {
        return false;
    }
    if !make_room(map, key) {
        *full = 1;
        return false;
    }
    add_known(map, key, &amount)
}

/// The place of `key`: it keeps the one that it finds free, to the end of the run.
#[inline(always)]
fn place_of(key: &CountKey) -> Option<&'static mut Place> {
    let place = value(BUSY.get_ptr_mut(index_of(key)))?;
    if place.count.events == 0 {
        place.key = *key;
        return Some(place);
    }
    if difference(&place.key, key) == 0 {
        return Some(place);
    }
    None
}

/// Not 0 if the keys differ.
#[inline(always)]
fn difference(a: &CountKey, b: &CountKey) -> u64 {
    let mut bits = 0;
    for (a, b) in words(a).iter().zip(words(b)) {
        bits |= a ^ b;
    }
    bits
}

/// Spreads keys over the places.
#[inline(always)]
fn index_of(key: &CountKey) -> u32 {
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut mixed = 0_u64;
    for word in words(key) {
        mixed = mixed.rotate_left(7) ^ word;
    }
    (mixed.wrapping_mul(SPREAD) >> 32) as u32 & (PLACES - 1)
}
