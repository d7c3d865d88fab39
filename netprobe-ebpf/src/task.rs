//! The running task. It owns an event only in the task's own system call, never in softirq.

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use netprobe_common::offsets::Field;

use crate::{
    emit,
    load::{Load, Probed},
};

/// A thread of the kernel, `include/linux/sched.h`.
const PF_KTHREAD: u32 = 0x0020_0000;

/// Process id (tgid) of the running task.
#[inline(always)]
pub(crate) fn pid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
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
