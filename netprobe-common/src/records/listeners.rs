//! A connection that a listener refused for want of room.

use super::{Flow, Owner};
use crate::header::Header;
use crate::record;

record! {
    /// A SYN or a final ACK that was dropped because a queue of the listener was full.
    pub struct Refusal {
        /// Common to all events.
        pub header: Header,
        /// Of the packet: the client is the source.
        pub flow: Flow,
        /// Of the listening socket.
        pub owner: Owner,
        /// Address that the socket listens on; IPv4 in the first four bytes.
        pub listener_addr: [u8; 16],
        /// Port that it listens on, host byte order.
        pub listener_port: u16,
        /// Address family of the listening socket.
        pub listener_family: u16,
        /// A [`Stage`], raw.
        pub stage: u32,
        /// Connections in the accept queue (`sk_ack_backlog`).
        pub accept_queue: u32,
        /// Its limit (`sk_max_ack_backlog`): the smaller of `listen()` argument and somaxconn.
        pub accept_limit: u32,
        /// Half-open connections (`icsk_accept_queue.qlen`).
        pub syn_backlog: u32,
        /// `net.ipv4.tcp_max_syn_backlog` of the namespace.
        pub syn_limit: u32,
        /// Stack id in the stack map, or [`super::NO_STACK`].
        pub stack: i32,
        /// Reserved, zero.
        pub reserved: u32,
    }
}

/// Where the connection was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stage {
    /// Accept queue full when the SYN came (`ListenOverflows`).
    SynAcceptQueue = 0,
    /// Accept queue full when the handshake was to complete (`ListenOverflows`).
    AckAcceptQueue = 1,
    /// SYN backlog full, syncookies off (`TCPReqQFullDrop`).
    SynBacklog = 2,
    /// SYN backlog full, answered with a cookie: not a drop (`TCPReqQFullDoCookies`).
    SynCookie = 3,
    /// The last quarter of `tcp_max_syn_backlog` is kept for proven peers, syncookies off.
    SynReserved = 4,
}

impl Stage {
    /// Every stage.
    pub const ALL: &'static [Self] = &[
        Self::SynAcceptQueue,
        Self::AckAcceptQueue,
        Self::SynBacklog,
        Self::SynCookie,
        Self::SynReserved,
    ];

    /// The stage with this wire value; the last one for an unknown value.
    pub const fn from_raw(raw: u32) -> Self {
        match raw {
            0 => Self::SynAcceptQueue,
            1 => Self::AckAcceptQueue,
            2 => Self::SynBacklog,
            3 => Self::SynCookie,
            _ => Self::SynReserved,
        }
    }

    /// Its name; an unknown number reads `unknown`.
    pub const fn name_of(raw: u32) -> &'static str {
        match raw {
            0 => "syn-accept-queue",
            1 => "ack-accept-queue",
            2 => "syn-backlog",
            3 => "syn-cookie",
            4 => "syn-reserved",
            _ => "unknown",
        }
    }
}
