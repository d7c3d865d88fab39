//! The kernel side of netprobe: programs that see TCP fail and say so through one ring buffer.
//!
//! Each file in [`probes`] handles one kind of event; everything they share is beside it. On any
//! other target than BPF this is an empty program, so that the workspace checks on the host.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![cfg(target_arch = "bpf")]

mod emit;
mod filter;
mod inflight;
mod lives;
mod load;
mod maps;
mod packet;
mod probes;
mod sock;
mod task;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
