//! Plain bytes to and from the kernel: wire structs as map keys and values, and what it says of
//! its objects.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use memmap2::{Mmap, MmapMut};
use netprobe_common::record::Plain;

/// A wire struct that aya may copy to and from map memory.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Wire<T>(pub T);

// SAFETY: `Plain` promises that `T` has no padding and no invalid bit patterns.
unsafe impl<T: Plain> aya::Pod for Wire<T> {}

/// A file that only this process has, as memory.
pub(super) fn map_private(file: &File) -> io::Result<MmapMut> {
    // SAFETY: nobody else has the file, and nobody shortens it.
    unsafe { MmapMut::map_mut(file) }
}

/// A file of the kernel whose content and length never change, as memory.
pub(super) fn map_constant(file: &File) -> io::Result<Mmap> {
    // SAFETY: nobody can write or shorten it.
    unsafe { Mmap::map(file) }
}

/// `struct bpf_link_info` up to and with `perf_event.kprobe.missed`.
pub(super) type LinkInfo = [u8; 56];

/// What the kernel says about the link `fd`; `None` if that is less than a [`LinkInfo`].
pub(super) fn link_info(fd: RawFd) -> Option<LinkInfo> {
    let mut info: LinkInfo = [0; size_of::<LinkInfo>()];
    let filled = object_info(fd, &mut info)?;
    (filled == info.len()).then_some(info)
}

/// The types that the kernel reads first, which are its own, as an open file. `None` without
/// `CAP_SYS_ADMIN`, before 5.11, and until something has made the kernel read them.
pub(super) fn first_btf() -> Option<OwnedFd> {
    /// `BPF_BTF_GET_FD_BY_ID` and `BPF_BTF_GET_NEXT_ID`
    const GET_FD: libc::c_long = 19;
    const GET_NEXT: libc::c_long = 23;
    let mut next = [0; 12];
    bpf(GET_NEXT, &mut next)?;
    let mut of_id = [0; 12];
    of_id[..4].copy_from_slice(&next[4..8]);
    let fd = RawFd::try_from(bpf(GET_FD, &mut of_id)?).ok()?;
    // SAFETY: the kernel has just opened it for us, and nobody else knows of it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Length of the types behind `fd`, of which as much is copied as fits into `bytes`; `None` if they are not
/// those of the kernel itself.
pub(super) fn kernel_btf(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> Option<usize> {
    const NAME: &[u8; 8] = b"vmlinux\0";
    let mut name = [0_u8; NAME.len()];
    // `struct bpf_btf_info`
    let mut info = [0_u8; 32];
    info[..8].copy_from_slice(&(bytes.as_mut_ptr() as u64).to_ne_bytes());
    let room = u32::try_from(bytes.len()).ok()?;
    info[8..12].copy_from_slice(&room.to_ne_bytes());
    info[16..24].copy_from_slice(&(name.as_mut_ptr() as u64).to_ne_bytes());
    info[24..28].copy_from_slice(&u32::try_from(name.len()).ok()?.to_ne_bytes());
    object_info(fd.as_raw_fd(), &mut info)?;
    let is_kernel = u32::from_ne_bytes(info[28..32].try_into().ok()?) != 0;
    let length = u32::from_ne_bytes(info[8..12].try_into().ok()?);
    (is_kernel && name == *NAME).then_some(length as usize)
}

/// The cookie of the network namespace that a socket is in: not 0, and never given to another one. `None` before 5.14.
pub(super) fn netns_cookie(socket: BorrowedFd<'_>) -> Option<u64> {
    let mut cookie = [0_u8; 8];
    let mut length = libc::socklen_t::try_from(cookie.len()).ok()?;
    // SAFETY: the option is written where there is as much room as is said.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            cookie.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (status == 0 && length as usize == cookie.len()).then(|| u64::from_ne_bytes(cookie))
}

/// Runs a raw tracepoint program once, without arguments; `None` if the kernel does not (before 5.10), or not for us.
pub(super) fn run_once(program: BorrowedFd<'_>) -> Option<()> {
    /// `BPF_PROG_TEST_RUN`, whose attributes are all 0 but for the program.
    const TEST_RUN: libc::c_long = 10;
    let mut attributes = [0_u8; 72];
    attributes[..4].copy_from_slice(&program.as_raw_fd().to_ne_bytes());
    bpf(TEST_RUN, &mut attributes).map(|_status| ())
}

/// Fills `info` with what the kernel says about one of its BPF objects; the number of bytes that it knows.
fn object_info(fd: RawFd, info: &mut [u8]) -> Option<usize> {
    /// `BPF_OBJ_GET_INFO_BY_FD`
    const GET_INFO: libc::c_long = 15;
    let length = u32::try_from(info.len()).ok()?;
    let mut attributes = [0_u8; 16];
    attributes[..4].copy_from_slice(&fd.to_ne_bytes());
    attributes[4..8].copy_from_slice(&length.to_ne_bytes());
    attributes[8..].copy_from_slice(&(info.as_mut_ptr() as u64).to_ne_bytes());
    bpf(GET_INFO, &mut attributes)?;
    let filled = u32::from_ne_bytes(attributes[4..8].try_into().ok()?);
    Some(filled as usize)
}

/// bpf(2); `None` if it failed.
fn bpf(command: libc::c_long, attributes: &mut [u8]) -> Option<libc::c_long> {
    // SAFETY: the attributes are as long as they are said to be, and those who call this point in them only to
    // memory of theirs with the length beside it.
    let status = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_mut_ptr(),
            attributes.len(),
        )
    };
    (status >= 0).then_some(status)
}
