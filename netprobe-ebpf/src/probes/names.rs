//! What the kernel calls addresses of its code: user space runs this when it wants to know. It is attached to nothing.

use aya_ebpf::{
    helpers::generated::bpf_snprintf,
    macros::{map, raw_tracepoint},
    maps::Array,
    programs::RawTracePointContext,
};
use netprobe_common::names::{NAME_BYTES, Names};

use crate::maps::value;

/// The questions, and room for the answers. Cannot be full.
#[map]
static NAMES: Array<Names> = Array::with_max_entries(1, 0);

/// Function, offset, size, module.
#[unsafe(no_mangle)]
static NAME_FORMAT: [u8; 4] = *b"%pS\0";

#[raw_tracepoint]
pub(crate) fn names(_ctx: RawTracePointContext) -> i32 {
    let Some(names) = value(NAMES.get_ptr_mut(0)) else {
        return 0;
    };
    for name in &mut names.each {
        if name.address == 0 {
            break;
        }
        let mut address = name.address;
        // SAFETY: the helper writes no more than there is room for, and reads one number.
        let _length = unsafe {
            bpf_snprintf(
                name.text.as_mut_ptr().cast(),
                NAME_BYTES as u32,
                NAME_FORMAT.as_ptr().cast(),
                (&raw mut address).cast(),
                size_of::<u64>() as u32,
            )
        };
    }
    0
}
