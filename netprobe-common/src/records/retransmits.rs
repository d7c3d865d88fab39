//! A segment that TCP sent again.

use super::{Flow, Owner};
use crate::header::Header;
use crate::record;

record! {
    /// A retransmission: data, SYN or SYN-ACK.
    pub struct Retransmit {
        /// Common to all events.
        pub header: Header,
        /// Local end first.
        pub flow: Flow,
        /// Of the sending socket.
        pub owner: Owner,
        /// First sequence number sent again.
        pub seq: u32,
        /// Segments sent again (what `RetransSegs` counts).
        pub segs: u32,
        /// 0, or the negative errno of the attempt (kernels that report it).
        pub err: i32,
        /// Which attempt this is for the same data, from 1.
        pub attempt: u32,
        /// Smoothed round-trip time in microseconds; 0 is unknown.
        pub srtt_us: u32,
        /// Congestion window in segments.
        pub cwnd: u32,
        /// Stack id in the stack map, or [`super::NO_STACK`].
        pub stack: i32,
        /// TCP state of the socket.
        pub state: u8,
        /// Why: a [`Cause`], raw.
        pub cause: u8,
        /// Reserved, zero.
        pub reserved: [u8; 2],
    }
}

/// Why a segment was sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// None of the below: the path MTU became smaller, or the peer did not take the data of a Fast Open
    /// (`tcp_simple_retransmit`).
    Other = 0,
    /// Retransmission timeout, and the recovery that follows it (`TCP_CA_Loss`).
    Rto = 1,
    /// Fast retransmit (`TCP_CA_Recovery`).
    Fast = 2,
    /// Tail loss probe.
    Tlp = 3,
    /// A SYN was not answered.
    Syn = 4,
    /// A SYN-ACK was not answered.
    SynAck = 5,
}

impl Cause {
    /// Every cause.
    pub const ALL: &'static [Self] = &[
        Self::Other,
        Self::Rto,
        Self::Fast,
        Self::Tlp,
        Self::Syn,
        Self::SynAck,
    ];

    /// Its name; an unknown number reads `other`.
    pub const fn name_of(raw: u32) -> &'static str {
        match raw {
            1 => "rto",
            2 => "fast",
            3 => "tlp",
            4 => "syn",
            5 => "syn-ack",
            _ => "other",
        }
    }
}
