//! What the CPUs are doing: stacks sampled at a steady rate, for flame graphs.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::perf_event, programs::PerfEventContext};

use netprobe_common::samples::COPIED;

use crate::{
    maps::{add, count},
    sampling::{TASK_STACKS, admits, stack, tally},
};

#[perf_event]
pub(crate) fn cpu(ctx: PerfEventContext) -> i32 {
    let Some(tally) = tally() else {
        return 0;
    };
    add(&mut tally.taken, 1);
    if bpf_get_current_pid_tgid() == 0 {
        add(&mut tally.idle, 1);
        return 0;
    }
    if !admits() {
        add(&mut tally.filtered, 1);
        return 0;
    }
    let key = stack(&ctx, tally);
    if key.user == COPIED {
        add(&mut tally.sent, 1);
    } else if count(&TASK_STACKS, &key, 1) {
        add(&mut tally.counted, 1);
    } else {
        add(&mut tally.map_full, 1);
        add(&mut tally.map_full_weight, 1);
    }
    0
}
