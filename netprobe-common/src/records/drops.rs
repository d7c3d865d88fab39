//! A packet that the kernel threw away.

use super::{Flow, Owner};
use crate::header::{Event, Header, Kind};
use crate::record;

record! {
    /// A dropped TCP packet, with its own addresses also where no socket was found.
    pub struct Drop {
        /// Common to all events.
        pub header: Header,
        /// From the packet's own headers, in packet direction.
        pub flow: Flow,
        /// Of the socket that the packet belonged to.
        pub owner: Owner,
        /// Address in the kernel's text where it was dropped.
        pub location: u64,
        /// `enum skb_drop_reason`, raw; [`NO_REASON`] where this kernel gives none.
        pub reason: u32,
        /// Bytes of the packet from its IP header on, or from where the kernel has got to in it.
        pub len: u32,
        /// TCP sequence number.
        pub seq: u32,
        /// Stack id in the stack map, or [`super::NO_STACK`].
        pub stack: i32,
        /// TCP flags byte of the header.
        pub tcp_flags: u8,
        /// TCP state of the socket; 0 where there was none.
        pub state: u8,
        /// 1 of a fragment that is not the first, which has no TCP header: ports, `seq` and flags are zero.
        pub is_later: u8,
        /// Reserved, zero.
        pub reserved: [u8; 5],
        /// Interface name, NUL padded; empty is unknown.
        pub iface: [u8; 16],
    }
}

record! {
    /// A dropped packet with the beginning of it.
    pub struct DropPacket {
        /// What it is without it.
        pub drop: Drop,
        /// The packet from its IP header on.
        pub head: [u8; HEAD],
    }
}

impl Event for DropPacket {
    const KIND: Kind = Kind::Drops;
}

/// Bytes that are kept of a packet: the longest headers of IPv4 and TCP.
pub const HEAD: usize = 120;

/// `reason` on kernels whose `kfree_skb` tracepoint carries none.
pub const NO_REASON: u32 = u32::MAX;
