//! A connection from its opening to its end.

use super::{Flow, Owner};
use crate::header::Header;
use crate::record;

record! {
    /// A TCP connection that has ended.
    pub struct Lifetime {
        /// Common to all events; the time is that of the end.
        pub header: Header,
        /// Local end first.
        pub flow: Flow,
        /// The task that opened it, or else the one that closed it.
        pub owner: Owner,
        /// From SYN (or the end of the handshake, for accepted ones) to the end; 0 is unknown.
        pub duration_ns: u64,
        /// Bytes of data sent, each counted once.
        pub bytes_sent: u64,
        /// Bytes of data received in order.
        pub bytes_received: u64,
        /// Segments sent.
        pub segs_out: u32,
        /// Segments received.
        pub segs_in: u32,
        /// Segments sent again.
        pub retransmits: u32,
        /// Smoothed round-trip time in microseconds; 0 is unknown.
        pub srtt_us: u32,
        /// 0, or the negative errno that the socket was left with.
        pub errno: i32,
        /// Stack id in the stack map, or [`super::NO_STACK`].
        pub stack: i32,
        /// A [`super::Role`], raw.
        pub role: u8,
        /// A [`Closer`], raw.
        pub closer: u8,
        /// An [`Ending`], raw.
        pub ending: u8,
        /// 1 if this end goes to TIME_WAIT.
        pub time_wait: u8,
        /// TCP state before the end.
        pub state: u8,
        /// Reserved, zero.
        pub reserved: [u8; 3],
    }
}

/// Which end was the first to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Closer {
    /// Neither: it was never open, or timers gave it up before anybody closed.
    Neither = 0,
    /// This one.
    Local = 1,
    /// The peer.
    Remote = 2,
}

impl Closer {
    /// Its name; `None` for neither.
    pub const fn name_of(raw: u8) -> Option<&'static str> {
        match raw {
            1 => Some("local"),
            2 => Some("remote"),
            _ => None,
        }
    }
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ending {
    /// Both ends closed in order.
    Fin = 0,
    /// One end reset it.
    Reset = 1,
    /// The peer did not answer any more.
    Timeout = 2,
    /// It was never established.
    Failed = 3,
}

impl Ending {
    /// Its name; an unknown number reads `failed`.
    pub const fn name_of(raw: u32) -> &'static str {
        match raw {
            0 => "fin",
            1 => "reset",
            2 => "timeout",
            _ => "failed",
        }
    }
}
