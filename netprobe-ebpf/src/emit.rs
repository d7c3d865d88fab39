//! From a sighting to user space: exact counts, in-kernel aggregates, and the event itself.

use aya_ebpf::{
    bindings::bpf_pidns_info,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_task, bpf_get_smp_processor_id,
        bpf_ktime_get_ns,
        generated::{bpf_get_ns_current_pid_tgid, bpf_jiffies64},
    },
    programs::tracing::StackIdContext,
};
use aya_log_ebpf::warn;
use netprobe_common::{
    config::{
        LEVEL_COARSE, LEVEL_COUNTERS, LEVEL_NO_STACKS, LEVEL_RESTING, LEVEL_SAMPLED,
        RESTING_SLICES, SAMPLE_OF, SPARSE_EVENTS, SPARSE_SHIFT, TRICKLE_EVENTS,
    },
    counters::{BY_STACK, CountKey},
    header::{Event, Header, Kind},
    records::{Flow, NO_STACK},
};

use crate::{
    groups::count_group,
    maps::{
        CONFIG, EVENTS, FOLLOWED, REMEMBERED, SENT, add, add_alone, counters, frozen, is_alone,
        level, value,
    },
    stacks,
    subgroups::{self, Subject},
};

/// The firing was not an event of the probe's kind, or the filter did not want it.
pub(crate) struct Filtered;

/// What the aggregates need to know of an event.
pub(crate) struct Sighting<'a, S> {
    /// Its group in `--count`.
    pub(crate) key: CountKey,
    /// Its weight in `--count` and flame graphs.
    pub(crate) weight: u64,
    /// The name that roots its stack in a flame graph.
    pub(crate) comm: [u8; 16],
    /// Its connection.
    pub(crate) flow: &'a Flow,
    /// Whose it is.
    pub(crate) subject: S,
}

/// Accounts for one firing of `kind` that a handler has looked at.
#[inline(always)]
pub(crate) fn account(kind: Kind, outcome: Result<(), Filtered>) {
    let Some(counters) = counters(kind) else {
        return;
    };
    tally(kind, &mut counters.fired);
    if outcome.is_err() {
        tally(kind, &mut counters.filtered);
    }
}

/// Counts one, as cheaply as the kind allows.
#[inline(always)]
fn tally(kind: Kind, counter: &mut u64) {
    if is_alone(kind) {
        add_alone(counter, 1);
    } else {
        add(counter, 1);
    }
}

/// Counts an event, aggregates its stack and sends it, as the configuration asks.
///
/// `fill` writes the record over zeroes; it is given the stack id.
#[inline(always)]
pub(crate) fn publish<T: Event, C: StackIdContext>(
    ctx: &C,
    sighting: &Sighting<'_, impl Subject>,
    fill: impl FnOnce(&mut T, i32),
) {
    publish_if(true, ctx, sighting, fill);
}

/// As [`publish`], but sends the event only if it `may_send` it.
#[inline(always)]
pub(crate) fn publish_if<T: Event, C: StackIdContext>(
    may_send: bool,
    ctx: &C,
    sighting: &Sighting<'_, impl Subject>,
    fill: impl FnOnce(&mut T, i32),
) {
    let Some(counters) = counters(T::KIND) else {
        return;
    };
    if frozen(&CONFIG.count) != 0 && !count_group(T::KIND, &sighting.key, sighting.weight) {
        add(&mut counters.map_full, 1);
        if frozen(&CONFIG.log) != 0 {
            warn!(
                ctx,
                "COUNTS is full: an event of kind {} is counted under other",
                T::KIND as u16
            );
        }
    }
    let level = level();
    let may_walk = level < LEVEL_NO_STACKS;
    if frozen(&CONFIG.by) != 0 {
        let is_fine = level < LEVEL_COARSE;
        let has_stack = frozen(&CONFIG.by) & BY_STACK != 0;
        let stack = if has_stack {
            stacks::last(ctx, T::KIND, counters, sighting, may_walk)
        } else {
            0
        };
        let has_place = if has_stack || is_fine {
            subgroups::add(sighting, stack, is_fine)
        } else {
            count_group(T::KIND, &sighting.key, sighting.weight)
        };
        if !has_place {
            add(&mut counters.map_full, 1);
        }
    }
    let mut stack = NO_STACK;
    if frozen(&CONFIG.stack) != 0 || frozen(&CONFIG.flame) != 0 {
        stack = stacks::take(ctx, T::KIND, counters, sighting, may_walk);
    }
    if frozen(&CONFIG.detail) == 0 {
        tally(T::KIND, &mut counters.aggregated);
    } else if !may_send || is_left_out(T::KIND, &sighting.key, level, counters.fired) {
        tally(T::KIND, &mut counters.sampled_out);
    } else if send::<T>(counters.delivered, |record| fill(record, stack)) {
        tally(T::KIND, &mut counters.delivered);
    } else {
        tally(T::KIND, &mut counters.reserve_failed);
    }
}

/// Counts an event in its group and sends nothing of it.
#[inline(always)]
pub(crate) fn count_only(kind: Kind, key: &CountKey, weight: u64) {
    let Some(counters) = counters(kind) else {
        return;
    };
    if !count_group(kind, key, weight) {
        add(&mut counters.map_full, 1);
    }
    tally(kind, &mut counters.sampled_out);
}

/// Whether an event is not sent at this level, after `before` firings on this CPU.
#[inline(always)]
fn is_left_out(kind: Kind, key: &CountKey, level: u32, before: u64) -> bool {
    let is_sampled = level >= LEVEL_SAMPLED;
    if frozen(&CONFIG.sparse) == 0 {
        return is_sampled && (level >= LEVEL_COUNTERS || !before.is_multiple_of(SAMPLE_OF));
    }
    if is_sampled {
        return is_enough(kind as u32, TRICKLE_EVENTS);
    }
    // Connects that fail are looked at one by one.
    let is_failure = matches!(kind, Kind::Connects) && key.code != 0;
    is_sparse(kind) && !is_failure && is_enough(kind as u32, SPARSE_EVENTS)
}

/// Whether only a sample of a kind is sent, however little it costs.
#[inline(always)]
pub(crate) fn is_sparse(kind: Kind) -> bool {
    frozen(&CONFIG.sparse) & (1 << kind as u32) != 0
}

/// Whether as many connections were remembered in this slice of time on this CPU as their ends are sent.
#[inline(always)]
pub(crate) fn is_enough_remembered() -> bool {
    let most = if level() >= LEVEL_SAMPLED {
        TRICKLE_EVENTS
    } else {
        SPARSE_EVENTS
    };
    is_enough(REMEMBERED, most)
}

/// Whether so few connects are sent, because cost is to be kept low, that most need not be followed to their end.
#[inline(always)]
pub(crate) fn follows_few() -> bool {
    is_sparse(Kind::Connects) && level() >= LEVEL_SAMPLED
}

/// Whether of the connects that begin in this slice of time on this CPU enough are followed: as many as may be sent.
#[inline(always)]
pub(crate) fn is_enough_followed() -> bool {
    follows_few() && is_enough(FOLLOWED, TRICKLE_EVENTS)
}

/// Whether connections that begin in this slice of time are not followed, because even to follow few costs too much.
#[inline(always)]
pub(crate) fn is_resting() -> bool {
    frozen(&CONFIG.sparse) != 0
        && frozen(&CONFIG.flame) == 0
        && level() >= LEVEL_RESTING
        && slice() & (RESTING_SLICES - 1) != 0
}

/// Number of the slice of time.
#[inline(always)]
fn slice() -> u64 {
    coarse_now() >> SPARSE_SHIFT
}

/// Room for the events of a slice of time.
const SPARSE_BITS: u32 = 24;

/// Whether `most` events of a kind were sent in this slice of time on this CPU.
#[inline(always)]
fn is_enough(kind: u32, most: u64) -> bool {
    let Some(sent) = value(SENT.get_ptr_mut(kind)) else {
        return false;
    };
    // The slice in the upper bits, what was sent in it in the lower ones.
    let slice = slice() << SPARSE_BITS;
    if *sent < slice {
        *sent = slice;
    }
    *sent += 1;
    *sent - slice > most
}

/// Reserves, zeroes, fills and submits a record; false if the ring had no room. `sent` were sent
/// by this CPU before.
#[inline(always)]
fn send<T: Event>(sent: u64, fill: impl FnOnce(&mut T)) -> bool {
    let Some(mut entry) = EVENTS.reserve::<T>(0) else {
        return false;
    };
    let record = entry.write(T::zeroed());
    fill(record);
    let header = Header {
        ts_ns: now(),
        kind: T::KIND as u16,
        len: size_of::<T>() as u16,
        cpu: cpu(),
    };
    // SAFETY: every event begins with a header, at an aligned address.
    unsafe { core::ptr::from_mut(record).cast::<Header>().write(header) };
    entry.submit(wake_flags(sent));
    true
}

/// Wakes the reader when enough may wait for it. It also looks by itself every few milliseconds,
/// so that a record that wakes nobody is late at most; waking it for each would cost much.
#[inline(always)]
fn wake_flags(sent: u64) -> u64 {
    const BPF_RB_NO_WAKEUP: u64 = 1;
    const BPF_RB_FORCE_WAKEUP: u64 = 2;
    let mask = u64::from(frozen(&CONFIG.wake_mask));
    if sent & mask == mask {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: no arguments, no effects.
    unsafe { bpf_ktime_get_ns() }
}

/// The kernel's count of clock ticks.
#[inline(always)]
pub(crate) fn ticks() -> u64 {
    // SAFETY: no arguments, no effects.
    unsafe { bpf_jiffies64() }
}

/// Nanoseconds of a clock that goes on with every tick, and costs a load.
#[inline(always)]
pub(crate) fn coarse_now() -> u64 {
    ticks() * u64::from(frozen(&CONFIG.tick_ns))
}

/// Nanoseconds since `jiffies`, the lower half of the kernel's count of clock ticks.
#[inline(always)]
pub(crate) fn since(jiffies: u32) -> u64 {
    let now = ticks() as u32;
    let ticks = now.wrapping_sub(jiffies);
    // Another CPU may have noted a tick that is not here yet.
    let ticks = if ticks > u32::MAX - 1000 { 0 } else { ticks };
    u64::from(ticks) * u64::from(frozen(&CONFIG.tick_ns))
}

/// Id of the running task's cgroup.
#[inline(always)]
pub(crate) fn cgroup() -> u64 {
    // SAFETY: no arguments, no effects.
    unsafe { bpf_get_current_cgroup_id() }
}

/// Address of the running task.
#[inline(always)]
pub(crate) fn task() -> u64 {
    // SAFETY: no arguments, no effects.
    unsafe { bpf_get_current_task() }
}

/// Ids of the running task in a pid namespace: of its process in the upper half, its own in the lower; 0 if it is not
/// in that.
#[inline(always)]
pub(crate) fn ids_in(device: u32, inode: u32) -> u64 {
    let mut ids = bpf_pidns_info { pid: 0, tgid: 0 };
    let size = size_of::<bpf_pidns_info>() as u32;
    // SAFETY: the helper writes no more than `size` bytes to `ids`.
    let _elsewhere =
        unsafe { bpf_get_ns_current_pid_tgid(device.into(), inode.into(), &raw mut ids, size) };
    u64::from(ids.tgid) << 32 | u64::from(ids.pid)
}

/// The CPU that runs this.
#[inline(always)]
pub(crate) fn cpu() -> u32 {
    // SAFETY: no arguments, no effects.
    unsafe { bpf_get_smp_processor_id() }
}
