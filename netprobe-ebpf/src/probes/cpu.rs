//! What the CPUs are doing: stacks sampled at a steady rate, for flame graphs.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{map, perf_event},
    maps::PerCpuArray,
    programs::PerfEventContext,
};

use netprobe_common::samples::COPIED;

use crate::{
    emit::now,
    maps::{add, count, value},
    sampling::{TASK_STACKS, admits, stack, tally},
};

/// When this CPU took its last sample. Cannot be full.
#[map]
static LAST_SAMPLE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

#[perf_event]
pub(crate) fn cpu(ctx: PerfEventContext) -> i32 {
    let Some(tally) = tally() else {
        return 0;
    };
    add(&mut tally.taken, 1);
    let ns = since_last();
    if bpf_get_current_pid_tgid() == 0 {
        add(&mut tally.idle, 1);
        return 0;
    }
    if !admits() {
        add(&mut tally.filtered, 1);
        return 0;
    }
    let key = stack(&ctx, tally, ns, 0);
    if key.user == COPIED {
        add(&mut tally.sent, 1);
    } else if count(&TASK_STACKS, &key, ns) {
        add(&mut tally.counted, 1);
    } else {
        add(&mut tally.map_full, 1);
        add(&mut tally.map_full_weight, ns);
    }
    0
}

/// The time that this sample stands for, which is longer than a period where the timer was late, as in a virtual
/// machine that had to wait for its CPU. Nothing for the first.
#[inline(always)]
fn since_last() -> u64 {
    let Some(last) = value(LAST_SAMPLE.get_ptr_mut(0)) else {
        return 0;
    };
    let now = now();
    let begin = if *last == 0 { now } else { *last };
    *last = now;
    now.saturating_sub(begin)
}
