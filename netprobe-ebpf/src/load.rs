//! Reading kernel memory, in the two ways that program types allow.
//!
//! `tp_btf` and `fentry` programs get typed pointers that the verifier lets them read directly;
//! kprobes get bare numbers and must ask a helper. A handler is written once over [`Load`].

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated::bpf_skc_to_tcp_sock};
use netprobe_common::{
    offsets::{ABSENT, Field},
    record::Plain,
};

use crate::maps::{OFFSETS, frozen};

/// A way to read a kernel object.
pub(crate) trait Load: Copy {
    /// Reads a `T` at `address + offset`; zeroes if that is not readable.
    fn at<T: Plain>(self, address: u64, offset: u64) -> T;

    /// Reads `field` of the object at `address`; zeroes if this kernel lacks it.
    #[inline(always)]
    fn field<T: Plain>(self, address: u64, field: Field) -> T {
        match offset_of(field) {
            ABSENT => T::zeroed(),
            offset => self.at(address, u64::from(offset)),
        }
    }

    /// The `tcp_sock` that `sk` is the beginning of, if it is one in full.
    fn tcp_sock(self, sk: u64) -> Option<u64>;
}

/// Direct loads through BTF pointers; a fault reads as zero.
#[derive(Clone, Copy)]
pub(crate) struct Typed;

impl Load for Typed {
    #[inline(always)]
    fn at<T: Plain>(self, address: u64, offset: u64) -> T {
        let pointer = (address as *const u8).wrapping_add(offset as usize);
        // SAFETY: the verifier admits this load only for a field of the pointer's BTF type.
        unsafe { pointer.cast::<T>().read_volatile() }
    }

    #[inline(always)]
    fn tcp_sock(self, sk: u64) -> Option<u64> {
        // SAFETY: the verifier admits only a pointer to a socket; the helper checks its kind.
        let tcp = unsafe { bpf_skc_to_tcp_sock(sk as *mut _) };
        if tcp.is_null() {
            None
        } else {
            Some(tcp as u64)
        }
    }
}

/// `bpf_probe_read_kernel`; a fault reads as zero.
#[derive(Clone, Copy)]
pub(crate) struct Probed;

impl Load for Probed {
    #[inline(always)]
    fn at<T: Plain>(self, address: u64, offset: u64) -> T {
        let pointer = (address as *const u8).wrapping_add(offset as usize);
        // SAFETY: the helper checks the address and copies, whatever it is.
        unsafe { bpf_probe_read_kernel(pointer.cast::<T>()) }.unwrap_or(T::zeroed())
    }

    #[inline(always)]
    fn tcp_sock(self, sk: u64) -> Option<u64> {
        Some(sk)
    }
}

/// The offset of `field` on this kernel, a constant to the verifier.
#[inline(always)]
pub(crate) fn offset_of(field: Field) -> u16 {
    frozen(&OFFSETS.at[field as usize])
}

/// Whether this kernel has `field`.
#[inline(always)]
pub(crate) fn has(field: Field) -> bool {
    offset_of(field) != ABSENT
}

/// The stack pointer in the registers of a kprobe or kretprobe.
#[inline(always)]
pub(crate) fn stack_pointer(regs: *mut aya_ebpf::bindings::pt_regs) -> u64 {
    // SAFETY: the context of a kprobe is a valid `pt_regs`.
    let regs = unsafe { &*regs };
    #[cfg(bpf_target_arch = "x86_64")]
    return regs.rsp;
    #[cfg(bpf_target_arch = "aarch64")]
    return regs.sp;
}
