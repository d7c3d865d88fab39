//! Who a socket belongs to: part of most records.

use crate::record;

record! {
    /// Who owns a socket: never the task that a softirq happened to interrupt.
    pub struct Owner {
        /// Inode number of the socket (`socket:[N]` in `/proc/PID/fd`); 0 is unknown.
        pub ino: u64,
        /// Process id (tgid) that called `connect` or `listen`; 0 is unknown.
        pub pid: u32,
        /// 1: a process has a file descriptor of the socket, if not this one then one that was handed it.
        pub is_open: u32,
        /// Name of that process, NUL padded.
        pub comm: [u8; 16],
        /// Id of the cgroup (version 2) that the socket was made in; 0 is unknown.
        pub cgroup: u64,
    }
}
