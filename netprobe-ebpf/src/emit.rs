//! From a sighting to user space: exact counts, in-kernel aggregates, and the event itself.

use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns, generated::bpf_jiffies64},
    programs::tracing::StackIdContext,
};
use aya_log_ebpf::warn;
use netprobe_common::{
    counters::{CountKey, OTHER, StackKey},
    header::{Event, Header, Kind},
    record::Plain,
    records::{Flow, NO_STACK},
};

use crate::{
    flows,
    maps::{CONFIG, COUNTS, EVENTS, STACK_COUNTS, STACKS, add, count, counters, frozen},
};

/// The firing was not an event of the probe's kind, or the filter did not want it.
pub(crate) struct Filtered;

/// What the aggregates need to know of an event.
pub(crate) struct Sighting<'a> {
    /// Its group in `--count`.
    pub(crate) key: CountKey,
    /// Its weight in `--count` and flame graphs.
    pub(crate) weight: u64,
    /// The name that roots its stack in a flame graph.
    pub(crate) comm: [u8; 16],
    /// Its connection.
    pub(crate) flow: &'a Flow,
}

/// Accounts for one firing of `kind` that a handler has looked at.
#[inline(always)]
pub(crate) fn account(kind: Kind, outcome: Result<(), Filtered>) {
    let Some(counters) = counters(kind) else {
        return;
    };
    add(&mut counters.fired, 1);
    if outcome.is_err() {
        add(&mut counters.filtered, 1);
    }
}

/// Counts an event, aggregates its stack and sends it, as the configuration asks.
///
/// `fill` writes the record over zeroes; it is given the stack id.
#[inline(always)]
pub(crate) fn publish<T: Event, C: StackIdContext>(
    ctx: &C,
    sighting: &Sighting<'_>,
    fill: impl FnOnce(&mut T, i32),
) {
    let Some(counters) = counters(T::KIND) else {
        return;
    };
    if frozen(&CONFIG.count) != 0 && !count(&COUNTS, &sighting.key, sighting.weight) {
        add(&mut counters.map_full, 1);
        if frozen(&CONFIG.log) != 0 {
            warn!(
                ctx,
                "COUNTS is full: an event of kind {} is counted under other",
                T::KIND as u16
            );
        }
        let other = CountKey {
            code: OTHER,
            ..CountKey::zeroed()
        };
        let other = CountKey {
            kind: sighting.key.kind,
            ..other
        };
        count(&COUNTS, &other, sighting.weight);
    }
    if frozen(&CONFIG.flows) != 0 && !flows::count(sighting) {
        add(&mut counters.map_full, 1);
    }
    let mut stack = NO_STACK;
    if frozen(&CONFIG.stack) != 0 || frozen(&CONFIG.flame) != 0 {
        stack = match ctx.get_stackid(&STACKS, 0) {
            Ok(id) => id as i32,
            Err(errno) => {
                add(&mut counters.stack_failed, 1);
                if frozen(&CONFIG.log) != 0 {
                    warn!(
                        ctx,
                        "no stack for an event of kind {}: errno {}",
                        T::KIND as u16,
                        errno
                    );
                }
                errno
            }
        };
    }
    if frozen(&CONFIG.flame) != 0 {
        let key = StackKey {
            kind: sighting.key.kind,
            code: sighting.key.code,
            stack,
            reserved: 0,
            comm: sighting.comm,
        };
        if !count(&STACK_COUNTS, &key, sighting.weight) {
            add(&mut counters.map_full, 1);
        }
    }
    if frozen(&CONFIG.detail) == 0 {
        add(&mut counters.aggregated, 1);
    } else if send::<T>(|record| fill(record, stack)) {
        add(&mut counters.delivered, 1);
    } else {
        add(&mut counters.reserve_failed, 1);
    }
}

/// Reserves, zeroes, fills and submits a record; false if the ring had no room.
#[inline(always)]
fn send<T: Event>(fill: impl FnOnce(&mut T)) -> bool {
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
    entry.submit(wake_flags(size_of::<T>() as u64));
    true
}

/// Wakes the reader when this record made enough wait for it. It also looks by itself every few
/// milliseconds, so a wake-up that is missed here costs little; one per event would cost much.
#[inline(always)]
fn wake_flags(size: u64) -> u64 {
    const BPF_RB_AVAIL_DATA: u64 = 0;
    const BPF_RB_NO_WAKEUP: u64 = 1;
    const BPF_RB_FORCE_WAKEUP: u64 = 2;
    /// `BPF_RINGBUF_HDR_SZ`
    const HEADER: u64 = 8;
    let threshold = u64::from(frozen(&CONFIG.wake_bytes));
    let waiting = EVENTS.query(BPF_RB_AVAIL_DATA);
    if waiting >= threshold && waiting < threshold + size + HEADER {
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

/// Nanoseconds since `jiffies`, the lower half of the kernel's count of clock ticks.
#[inline(always)]
pub(crate) fn since(jiffies: u32) -> u64 {
    // SAFETY: no arguments, no effects.
    let now = unsafe { bpf_jiffies64() } as u32;
    let ticks = now.wrapping_sub(jiffies);
    // Another CPU may have noted a tick that is not here yet.
    let ticks = if ticks > u32::MAX - 1000 { 0 } else { ticks };
    u64::from(ticks) * u64::from(frozen(&CONFIG.tick_ns))
}

/// The CPU that runs this.
#[inline(always)]
pub(crate) fn cpu() -> u32 {
    // SAFETY: no arguments, no effects.
    unsafe { bpf_get_smp_processor_id() }
}
