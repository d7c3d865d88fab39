//! How an outgoing connection went.

use super::{Flow, Owner};
use crate::header::Header;
use crate::record;

record! {
    /// One `connect()`, from the call to ESTABLISHED or failure.
    pub struct Connect {
        /// Common to all events; the time is that of the outcome.
        pub header: Header,
        /// Local end first; the local port is 0 when none was found.
        pub flow: Flow,
        /// The task that called `connect`.
        pub owner: Owner,
        /// From the call to the outcome, in nanoseconds; 0 when the call was not seen.
        pub latency_ns: u64,
        /// Time in `inet_hash_connect`, in nanoseconds; 0 when not measured.
        pub search_ns: u64,
        /// Calls of `__inet_check_established`; [`NOT_COUNTED`] outside a counting window.
        pub candidates: u32,
        /// 0, or the negative errno.
        pub errno: i32,
        /// SYNs sent, the first included.
        pub syn_attempts: u32,
        /// Stack id in the stack map, or [`super::NO_STACK`].
        pub stack: i32,
        /// An [`Outcome`], raw.
        pub outcome: u8,
        /// An [`ErrnoSource`], raw.
        pub errno_source: u8,
        /// Reserved, zero.
        pub reserved: [u8; 6],
    }
}

/// `candidates` when they were not counted for this connect.
pub const NOT_COUNTED: u32 = u32::MAX;

/// How a connect ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// The handshake finished.
    Established = 0,
    /// The kernel or the peer refused; `errno` says how.
    Failed = 1,
    /// The application closed the socket before an answer came.
    Aborted = 2,
}

impl Outcome {
    /// Its name; an unknown number reads `failed`.
    pub const fn name_of(raw: u8) -> &'static str {
        match raw {
            0 => "established",
            2 => "aborted",
            _ => "failed",
        }
    }
}

/// Where `errno` was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ErrnoSource {
    /// There is none.
    None = 0,
    /// The return value of the kernel function.
    Return = 1,
    /// `sk_err` of the socket.
    Socket = 2,
    /// Concluded: the socket left SYN_SENT inside `connect` without a local port.
    Inferred = 3,
}
