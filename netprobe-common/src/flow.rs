//! The two ends of a connection: part of every record.

use crate::record;

record! {
    /// The two ends of a connection or packet, as the kernel holds them (network byte order).
    pub struct Flow {
        /// Source address; IPv4 in the first four bytes, the rest zero.
        pub saddr: [u8; 16],
        /// Destination address; IPv4 in the first four bytes, the rest zero.
        pub daddr: [u8; 16],
        /// Source port, network byte order.
        pub sport: [u8; 2],
        /// Destination port, network byte order.
        pub dport: [u8; 2],
        /// `AF_INET` (2) or `AF_INET6` (10); 0 is unknown.
        pub family: u16,
        /// IP protocol number.
        pub protocol: u16,
        /// Inode number of the network namespace (`/proc/PID/ns/net`); 0 is unknown.
        pub netns: u32,
        /// Interface index in that namespace; 0 is unknown.
        pub ifindex: u32,
    }
}
