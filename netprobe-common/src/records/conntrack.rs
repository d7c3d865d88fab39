//! A connection that a full conntrack table refused.

use super::Flow;
use crate::header::Header;
use crate::record;

record! {
    /// A conntrack entry that could not be allocated; its packet is dropped.
    pub struct TableFull {
        /// Common to all events.
        pub header: Header,
        /// The original tuple. For ICMP the ports are id and type/code.
        pub flow: Flow,
        /// Negative errno of `__nf_conntrack_alloc`.
        pub errno: i32,
        /// Stack id in the stack map, or [`super::NO_STACK`].
        pub stack: i32,
    }
}
