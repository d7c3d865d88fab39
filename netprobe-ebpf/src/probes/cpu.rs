//! What the CPUs are doing: kernel stacks sampled by a timer, for flame graphs.

use aya_ebpf::{
    helpers::bpf_get_current_comm, macros::perf_event, programs::PerfEventContext,
    programs::tracing::StackIdContext,
};
use netprobe_common::counters::{SAMPLE, StackKey};

use crate::maps::{STACK_COUNTS, STACKS, count};

#[perf_event]
pub(crate) fn cpu(ctx: PerfEventContext) -> i32 {
    let stack = match ctx.get_stackid(&STACKS, 0) {
        Ok(id) => id as i32,
        Err(errno) => errno,
    };
    let key = StackKey {
        kind: SAMPLE,
        code: 0,
        stack,
        reserved: 0,
        comm: bpf_get_current_comm().unwrap_or([0; 16]),
    };
    // The reader compares the sum with the samples it asked for.
    let _full = count(&STACK_COUNTS, &key, 1);
    0
}
