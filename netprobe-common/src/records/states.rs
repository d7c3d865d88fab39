//! A socket that went from one TCP state to another.

use super::{Flow, Owner};
use crate::header::Header;
use crate::record;

record! {
    /// A change of state.
    pub struct StateChange {
        /// Common to all events.
        pub header: Header,
        /// Local end first.
        pub flow: Flow,
        /// The task that opened the connection or listens, or else the one that closed it.
        pub owner: Owner,
        /// Address of the socket in the kernel, which tells sockets apart.
        pub socket: u64,
        /// Time in the old state, in nanoseconds; 0 when its beginning was not seen.
        pub in_state_ns: u64,
        /// When the connection was opened, by `CLOCK_MONOTONIC`; 0 when that was not seen.
        pub opened_ns: u64,
        /// User that the socket belongs to.
        pub uid: u32,
        /// Stack id in the stack map, or [`super::NO_STACK`].
        pub stack: i32,
        /// TCP state before.
        pub old: u8,
        /// TCP state after.
        pub new: u8,
        /// A [`super::Role`], raw.
        pub role: u8,
        /// Reserved, zero.
        pub reserved: [u8; 5],
    }
}
