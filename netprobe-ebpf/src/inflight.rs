//! Arguments kept from a kprobe to the kretprobe of the same call.
//!
//! The key is the stack pointer, which is unique among live calls whatever context they run in,
//! also when a softirq interrupts a task inside the same function.

use aya_ebpf::programs::{ProbeContext, RetProbeContext};

use crate::maps::CALLS;

/// On x86-64 the call pushed the return address, which the return has popped again.
#[cfg(bpf_target_arch = "x86_64")]
const RETURN_ADDRESS: u64 = 8;
#[cfg(not(bpf_target_arch = "x86_64"))]
const RETURN_ADDRESS: u64 = 0;

/// Keeps the first four arguments of the call that is being entered.
#[inline(always)]
pub(crate) fn enter(ctx: &ProbeContext) {
    let arguments: [u64; 4] = [
        ctx.arg(0).unwrap_or(0),
        ctx.arg(1).unwrap_or(0),
        ctx.arg(2).unwrap_or(0),
        ctx.arg(3).unwrap_or(0),
    ];
    let _full = CALLS.insert(stack_pointer(ctx.regs) + RETURN_ADDRESS, arguments, 0);
}

/// Takes back the arguments of the call that is returning.
#[inline(always)]
pub(crate) fn leave(ctx: &RetProbeContext) -> Option<[u64; 4]> {
    let key = stack_pointer(ctx.regs);
    let arguments = crate::maps::value(CALLS.get_ptr_mut(key)).copied();
    let _gone = CALLS.remove(key);
    arguments
}

#[inline(always)]
fn stack_pointer(regs: *mut aya_ebpf::bindings::pt_regs) -> u64 {
    crate::load::stack_pointer(regs)
}
