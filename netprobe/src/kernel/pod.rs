//! Plain bytes to and from the kernel: wire structs as map keys and values, and what it says of
//! its objects.

use std::os::fd::RawFd;

use netprobe_common::record::Plain;

/// A wire struct that aya may copy to and from map memory.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Wire<T>(pub T);

// SAFETY: `Plain` promises that `T` has no padding and no invalid bit patterns.
unsafe impl<T: Plain> aya::Pod for Wire<T> {}

/// `struct bpf_link_info` up to and with `perf_event.kprobe.missed`.
pub(super) type LinkInfo = [u8; 56];

/// What the kernel says about the link `fd`; `None` if that is less than a [`LinkInfo`].
pub(super) fn link_info(fd: RawFd) -> Option<LinkInfo> {
    /// `BPF_OBJ_GET_INFO_BY_FD`
    const GET_INFO: libc::c_long = 15;
    let mut info: LinkInfo = [0; size_of::<LinkInfo>()];
    let length = u32::try_from(info.len()).ok()?;
    let mut attributes = [0_u8; 16];
    attributes[..4].copy_from_slice(&fd.to_ne_bytes());
    attributes[4..8].copy_from_slice(&length.to_ne_bytes());
    attributes[8..].copy_from_slice(&(info.as_mut_ptr() as u64).to_ne_bytes());
    // SAFETY: `attributes` is as long as it is said to be, and so is `info`, which the kernel fills.
    let status = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            GET_INFO,
            attributes.as_mut_ptr(),
            attributes.len(),
        )
    };
    let filled = u32::from_ne_bytes(attributes[4..8].try_into().ok()?);
    (status == 0 && filled == length).then_some(info)
}
