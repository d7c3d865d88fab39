//! The running task. It owns an event only in the task's own system call, never in softirq.

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};

/// Process id (tgid) of the running task.
#[inline(always)]
pub(crate) fn pid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Name of the running task, NUL padded.
#[inline(always)]
pub(crate) fn comm() -> [u8; 16] {
    bpf_get_current_comm().unwrap_or([0; 16])
}
