//! One file per probe: the record that it sends. Shared parts ([`Flow`], [`Owner`]) live here.

use crate::record;

pub mod connects;
pub mod conntrack;
pub mod drops;
pub mod lifetimes;
pub mod listeners;
pub mod resets;
pub mod retransmits;
pub mod time_wait;

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

record! {
    /// Who owns a socket: never the task that a softirq happened to interrupt.
    pub struct Owner {
        /// Inode number of the socket (`socket:[N]` in `/proc/PID/fd`); 0 is unknown.
        pub ino: u64,
        /// Process id (tgid) that called `connect` or `listen`; 0 is unknown.
        pub pid: u32,
        /// Reserved, zero.
        pub reserved: u32,
        /// Name of that process's thread, NUL padded.
        pub comm: [u8; 16],
    }
}

/// `stack` of a record that carries none.
pub const NO_STACK: i32 = -1;

/// Which end of a connection this machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// It opened the connection (`connect`).
    Client = 1,
    /// It accepted the connection.
    Server = 2,
}

impl Role {
    /// Its name; `None` for an unknown number.
    pub const fn name_of(raw: u8) -> Option<&'static str> {
        match raw {
            1 => Some("client"),
            2 => Some("server"),
            _ => None,
        }
    }
}
