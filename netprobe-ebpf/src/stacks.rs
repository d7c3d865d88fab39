//! Kernel stacks. A stack costs more than all the rest of an event, so that in a storm only some
//! of the same place and reason are taken; in flame graphs each counts for those left out.

use aya_ebpf::programs::tracing::StackIdContext;
use aya_log_ebpf::warn;
use netprobe_common::{
    counters::{Count, Counters, SAMPLED_PLACES, SampledPlace, StackKey},
    header::Kind,
    records::NO_STACK,
};

use crate::{
    emit::{Sighting, coarse_now},
    maps::{CONFIG, SAMPLED, STACK_COUNTS, STACKS, add, add_alone, frozen, is_alone, value},
};

/// Stacks that a group may take at once after a calm time.
const BURST: u64 = 256;

/// Takes the stack of an event and adds it to the flame graph, as the configuration and the
/// budget allow; `may_walk` is false when none is to be taken at all. Returns its id, or a negative number.
#[inline(always)]
pub(crate) fn take<C: StackIdContext, S>(
    ctx: &C,
    kind: Kind,
    counters: &mut Counters,
    sighting: &Sighting<'_, S>,
    may_walk: bool,
) -> i32 {
    let mut amount = Count {
        events: 1,
        weight: sighting.weight,
    };
    if !is_alone(kind) || frozen(&CONFIG.stack_interval_ns) == 0 {
        let stack = if may_walk {
            walk(ctx, kind, counters)
        } else {
            add(&mut counters.stack_sampled_out, 1);
            NO_STACK
        };
        add_to_graph(sighting, stack, &amount, counters);
        return stack;
    }
    let Some(place) = place_of(sighting, counters) else {
        return NO_STACK;
    };
    if !may_walk || !is_due(place) {
        add_alone(&mut place.owed.events, 1);
        add_alone(&mut place.owed.weight, sighting.weight);
        add_alone(&mut counters.stack_sampled_out, 1);
        return NO_STACK;
    }
    let stack = walk(ctx, kind, counters);
    place.stack = stack;
    amount.add(&place.owed);
    place.owed = Count::NONE;
    add_to_graph(sighting, stack, &amount, counters);
    stack
}

/// The stack that an event counts for: its own, or the last one that the budget allowed of its place
/// and reason. Returns its id, or a negative number.
#[inline(always)]
pub(crate) fn last<C: StackIdContext, S>(
    ctx: &C,
    kind: Kind,
    counters: &mut Counters,
    sighting: &Sighting<'_, S>,
    may_walk: bool,
) -> i32 {
    if !is_alone(kind) || frozen(&CONFIG.stack_interval_ns) == 0 {
        if may_walk {
            return walk(ctx, kind, counters);
        }
        add(&mut counters.stack_sampled_out, 1);
        return NO_STACK;
    }
    let Some(place) = place_of(sighting, counters) else {
        return NO_STACK;
    };
    if may_walk && is_due(place) {
        place.stack = walk(ctx, kind, counters);
    } else {
        add_alone(&mut counters.stack_sampled_out, 1);
    }
    place.stack
}

#[inline(always)]
fn walk<C: StackIdContext>(ctx: &C, kind: Kind, counters: &mut Counters) -> i32 {
    match ctx.get_stackid(&STACKS, 0) {
        Ok(id) => id as i32,
        Err(errno) => {
            add(&mut counters.stack_failed, 1);
            if frozen(&CONFIG.log) != 0 {
                warn!(
                    ctx,
                    "no stack for an event of kind {}: errno {}", kind as u16, errno
                );
            }
            errno
        }
    }
}

#[inline(always)]
fn add_to_graph<S>(
    sighting: &Sighting<'_, S>,
    stack: i32,
    amount: &Count,
    counters: &mut Counters,
) {
    if frozen(&CONFIG.flame) == 0 {
        return;
    }
    let key = StackKey {
        kind: sighting.key.kind,
        code: sighting.key.code,
        stack,
        reserved: 0,
        comm: sighting.comm,
    };
    if !add_count(&key, amount) {
        add(&mut counters.map_full, amount.events);
    }
}

#[inline(always)]
fn add_count(key: &StackKey, amount: &Count) -> bool {
    crate::maps::add_count(&STACK_COUNTS, key, amount)
}

/// The account of the sighting's place and reason. Whoever had it before settles first.
#[inline(always)]
fn place_of<S>(
    sighting: &Sighting<'_, S>,
    counters: &mut Counters,
) -> Option<&'static mut SampledPlace> {
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let key = &sighting.key;
    let mixed = (key.location ^ u64::from(key.code) << 32).wrapping_mul(SPREAD);
    let index = (mixed >> 32) as u32 & (SAMPLED_PLACES - 1);
    let place = value(SAMPLED.get_ptr_mut(index))?;
    let is_other =
        place.location != key.location || place.code != key.code || place.kind != key.kind;
    if is_other {
        if place.owed.events != 0 && frozen(&CONFIG.flame) != 0 {
            let old = StackKey {
                kind: place.kind,
                code: place.code,
                stack: place.stack,
                reserved: 0,
                comm: [0; 16],
            };
            if !add_count(&old, &place.owed) {
                add(&mut counters.map_full, place.owed.events);
            }
        }
        *place = SampledPlace {
            owed: Count::NONE,
            location: key.location,
            kind: key.kind,
            code: key.code,
            due_ns: 0,
            stack: NO_STACK,
            reserved: 0,
        };
    }
    Some(place)
}

/// Whether the budget allows another stack now: so many per second, and a burst after a calm.
#[inline(always)]
fn is_due(place: &mut SampledPlace) -> bool {
    let interval = u64::from(frozen(&CONFIG.stack_interval_ns));
    // Ticks are exact enough for a budget, and cost less than the clock.
    let now = coarse_now();
    let earliest = now.wrapping_sub(BURST * interval);
    // Of time since boot, which may be shorter than the burst.
    if now >= BURST * interval && place.due_ns < earliest {
        place.due_ns = earliest;
    }
    if place.due_ns > now {
        return false;
    }
    place.due_ns += interval;
    true
}
