//! The running task. It owns an event only in the task's own system call, never in softirq.

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use netprobe_common::offsets::Field;

use crate::{
    emit,
    load::{Load, Probed},
    maps::{CONFIG, frozen},
};

/// A thread of the kernel, `include/linux/sched.h`.
const PF_KTHREAD: u32 = 0x0020_0000;

/// Process id (tgid) of the running task in netprobe's pid namespace; 0 if it is not in that.
#[inline(always)]
pub(crate) fn pid() -> u32 {
    (ids() >> 32) as u32
}

/// Its thread id there.
#[inline(always)]
pub(crate) fn tid() -> u32 {
    ids() as u32
}

#[inline(always)]
fn ids() -> u64 {
    let inode = frozen(&CONFIG.pid_namespace.inode);
    if inode == 0 {
        return bpf_get_current_pid_tgid();
    }
    emit::ids_in(frozen(&CONFIG.pid_namespace.device), inode)
}

/// Name of the running task, a thread, NUL padded.
#[inline(always)]
pub(crate) fn comm() -> [u8; 16] {
    bpf_get_current_comm().unwrap_or([0; 16])
}

/// Name of the running task's process, which is that of its first thread, NUL padded.
#[inline(always)]
pub(crate) fn process_comm() -> [u8; 16] {
    let leader: u64 = Probed.field(emit::task(), Field::TaskGroupLeader);
    Probed.field(leader, Field::TaskComm)
}

/// Whether the running task is a thread of the kernel, which works for others.
#[inline(always)]
pub(crate) fn is_kernel_thread() -> bool {
    Probed.field::<u32>(emit::task(), Field::TaskFlags) & PF_KTHREAD != 0
}
