//! A connection, or an attempt at one, that ended with a reset.

use super::{Flow, Owner};
use crate::header::Header;
use crate::record;

record! {
    /// A RST that this machine sent, or one that a socket of it received.
    pub struct Reset {
        /// Common to all events.
        pub header: Header,
        /// Our end first, in both directions.
        pub flow: Flow,
        /// Of the socket, where there is one.
        pub owner: Owner,
        /// Since the connection was opened, in nanoseconds; 0 when that was not seen.
        pub age_ns: u64,
        /// Since data was last sent or received, or (of received resets) since the peer was last
        /// heard of, in nanoseconds; [`NO_IDLE`] is unknown.
        pub idle_ns: u64,
        /// Since data was last received, in nanoseconds (`lastrcv` of ss(8)); [`NO_IDLE`] is unknown.
        pub lastrcv_ns: u64,
        /// Since the latest data of ours that was acknowledged had been sent, in nanoseconds (`tcp_sock.rack.mstamp`); [`NO_IDLE`] is unknown.
        pub acked_ns: u64,
        /// `enum sk_rst_reason`, raw; [`NO_REASON`] where this kernel gives none.
        pub reason: u32,
        /// Stack id in the stack map, or [`super::NO_STACK`].
        pub stack: i32,
        /// A [`Direction`], raw.
        pub direction: u8,
        /// A [`Cause`], raw.
        pub cause: u8,
        /// TCP state of the socket before the reset; 0 where there was none.
        pub state: u8,
        /// Reserved, zero.
        pub reserved: u8,
        /// Bytes of data that are lost: of the packet that it answers, those that the application has not read where it answers
        /// none, and of received resets those that were written and not acknowledged.
        pub data: u32,
    }
}

/// `reason` on kernels whose `tcp_send_reset` tracepoint carries none.
pub const NO_REASON: u32 = u32::MAX;

/// `idle_ns`, `lastrcv_ns` and `acked_ns` where no socket keeps the time.
pub const NO_IDLE: u64 = u64::MAX;

/// Who sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// This machine.
    Sent = 0,
    /// The peer.
    Received = 1,
}

impl Direction {
    /// Its name; an unknown number reads `received`.
    pub const fn name_of(raw: u8) -> &'static str {
        match raw {
            0 => "sent",
            _ => "received",
        }
    }
}

/// Why, as far as it follows from the socket and the packet on any kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// It does not follow.
    Unknown = 0,
    /// A SYN came for a port that nobody listens at.
    NoListener = 1,
    /// A packet came that belongs to no connection (any more).
    NoConnection = 2,
    /// A packet without data came for a connection in TIME_WAIT.
    TimeWait = 3,
    /// An ACK came that does not belong to the handshake.
    UnexpectedAck = 4,
    /// Data came for a connection that the application had closed.
    DataAfterClose = 5,
    /// The application closed without reading all data.
    UnreadData = 6,
    /// The application closed with `SO_LINGER` of zero seconds.
    Linger = 7,
    /// The application disconnected (`connect` with `AF_UNSPEC`).
    Disconnect = 8,
    /// The listener was closed before it accepted.
    ListenerClosed = 9,
    /// Keepalive, or `TCP_USER_TIMEOUT`, had no answer.
    Timeout = 10,
    /// The kernel gave up on a connection that the application had closed.
    Orphan = 11,
    /// Somebody killed the socket (`ss -K`).
    Killed = 12,
    /// The peer refused to open the connection.
    Refused = 13,
}

impl Cause {
    /// Its name; `None` where there is nothing to say.
    pub const fn name_of(raw: u8) -> Option<&'static str> {
        Some(match raw {
            1 => "no-listener",
            2 => "no-connection",
            3 => "time-wait",
            4 => "unexpected-ack",
            5 => "data-after-close",
            6 => "unread-data",
            7 => "linger-0",
            8 => "disconnect",
            9 => "listener-closed",
            10 => "timeout",
            11 => "orphan",
            12 => "killed",
            13 => "refused",
            _ => return None,
        })
    }
}
