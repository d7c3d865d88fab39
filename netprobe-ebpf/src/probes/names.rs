//! What the kernel calls addresses of its code: user space runs this when it wants to know. It is attached to nothing.

use aya_ebpf::{
    macros::{map, raw_tracepoint},
    maps::Array,
    programs::RawTracePointContext,
};
use netprobe_common::names::Names;

use crate::{load::symbol_of, maps::value};

/// The questions, and room for the answers. Cannot be full.
#[map]
static NAMES: Array<Names> = Array::with_max_entries(1, 0);

#[raw_tracepoint]
pub(crate) fn names(_ctx: RawTracePointContext) -> i32 {
    let Some(names) = value(NAMES.get_ptr_mut(0)) else {
        return 0;
    };
    for name in &mut names.each {
        if name.address == 0 {
            break;
        }
        symbol_of(name.address, &mut name.text);
    }
    0
}
