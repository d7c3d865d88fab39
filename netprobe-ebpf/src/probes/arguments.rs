//! Tracepoint arguments whose position differs between kernels.

use aya_ebpf::programs::BtfTracePointContext;
use netprobe_common::offsets::Field;

use crate::load::offset_of;

/// The argument that user space found for `field`; 0 if there is none.
///
/// VERIFIER: 5.10 "dereference of modified ctx ptr": the position must be a literal in each load,
/// so it is chosen by a branch on a constant. The barriers keep LLVM from merging the loads.
#[inline(always)]
pub(crate) fn argument(ctx: &BtfTracePointContext, field: Field) -> u64 {
    match offset_of(field) {
        1 => core::hint::black_box(ctx.arg::<u64>(1)),
        2 => core::hint::black_box(ctx.arg::<u64>(2)),
        3 => core::hint::black_box(ctx.arg::<u64>(3)),
        4 => core::hint::black_box(ctx.arg::<u64>(4)),
        _ => 0,
    }
}
