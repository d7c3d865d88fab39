//! Reading kernel memory, in the two ways that program types allow.
//!
//! `tp_btf` and `fentry` programs get typed pointers that the verifier lets them read directly;
//! kprobes get bare numbers and must ask a helper. A handler is written once over [`Load`].

use core::{arch::asm, ffi::c_void, mem::MaybeUninit};

use aya_ebpf::helpers::{
    bpf_probe_read_kernel_buf, bpf_probe_read_user_buf,
    generated::{self, bpf_skc_to_tcp_sock},
};
use netprobe_common::{
    config::CAST_MARK,
    names::NAME_BYTES,
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

    /// What is at `address`, to be read as the kernel's type of that id; `None` where only a
    /// helper can read there.
    fn cast(self, address: u64, kernel_type: u32) -> Option<u64>;
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

    #[inline(always)]
    fn cast(self, address: u64, kernel_type: u32) -> Option<u64> {
        if kernel_type == 0 {
            return None;
        }
        let typed: u64;
        // SAFETY: `bpf_rdonly_cast` has no effect and keeps to the calling convention; the
        // verifier makes each load from its result read as zero if it faults.
        unsafe {
            asm!(
                "call {mark}",
                mark = const CAST_MARK,
                inlateout("r1") address => _,
                inlateout("r2") u64::from(kernel_type) => _,
                lateout("r0") typed,
                lateout("r3") _,
                lateout("r4") _,
                lateout("r5") _,
                options(nostack),
            );
        }
        Some(typed)
    }
}

/// `bpf_probe_read_kernel`; a fault reads as zero.
#[derive(Clone, Copy)]
pub(crate) struct Probed;

impl Load for Probed {
    #[inline(always)]
    fn at<T: Plain>(self, address: u64, offset: u64) -> T {
        let mut read = MaybeUninit::<T>::uninit();
        let pointer = (address as *const c_void).wrapping_byte_add(offset as usize);
        // VERIFIER: the result is not looked at, which would double the paths at every read.
        // SAFETY: the helper checks the address, whatever it is.
        let _unreadable = unsafe {
            generated::bpf_probe_read_kernel(
                read.as_mut_ptr().cast(),
                size_of::<T>() as u32,
                pointer,
            )
        };
        // SAFETY: the helper has filled all of it, with zeroes if it could not read; every pattern of bits is
        // a `Plain` value.
        unsafe { read.assume_init() }
    }

    #[inline(always)]
    fn tcp_sock(self, sk: u64) -> Option<u64> {
        Some(sk)
    }

    #[inline(always)]
    fn cast(self, _address: u64, _kernel_type: u32) -> Option<u64> {
        None
    }
}

/// Copies kernel memory to `to`; zeroes if it is not readable.
#[inline(always)]
pub(crate) fn copy(address: u64, to: &mut [u8]) {
    // SAFETY: the helper checks the address, whatever it is, and zeroes `to` if it has to.
    let _unreadable = unsafe { bpf_probe_read_kernel_buf(address as *const u8, to) };
}

/// Copies memory of the running process to `to`; false if not all of it is readable.
#[inline(always)]
pub(crate) fn copy_user(address: u64, to: &mut [u8]) -> bool {
    // SAFETY: the helper checks the address, whatever it is, and does not wait for a page.
    unsafe { bpf_probe_read_user_buf(address as *const u8, to) }.is_ok()
}

/// Function, offset, size, module.
#[unsafe(no_mangle)]
static NAME_FORMAT: [u8; 4] = *b"%pS\0";

/// Writes what the kernel calls the code at `address` to `text`, ended by a zero.
#[inline(always)]
pub(crate) fn symbol_of(address: u64, text: &mut [u8; NAME_BYTES]) {
    // SAFETY: the helper writes no more than there is room for, and reads one number.
    let _length = unsafe {
        generated::bpf_snprintf(
            text.as_mut_ptr().cast(),
            NAME_BYTES as u32,
            NAME_FORMAT.as_ptr().cast(),
            (&raw const address).cast_mut().cast(),
            size_of::<u64>() as u32,
        )
    };
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
