//! What user space tells the programs before they are loaded.
//!
//! It lives in a frozen map, so that the verifier sees constants: a filter that is not set and a
//! mode that is off cost nothing.

use crate::record;

record! {
    /// Settings of one run; all zero means: no filter, nothing sent.
    pub struct Config {
        /// 1: send an event for every match.
        pub detail: u32,
        /// 1: count by key in the kernel.
        pub count: u32,
        /// 1: attach the kernel stack to each event.
        pub stack: u32,
        /// 1: aggregate kernel stacks in the kernel (flame graphs).
        pub flame: u32,
        /// 1: kernel-side log of rare errors.
        pub log: u32,
        /// Wake the reader once this many bytes wait in the ring.
        pub wake_bytes: u32,
        /// Length of a jiffy in nanoseconds.
        pub tick_ns: u32,
        /// Only this address family; 0 is any.
        pub family: u32,
        /// Only this network namespace (inode number); 0 is any.
        pub netns: u32,
        /// Only flows with this port on either side, network byte order; 0 is any.
        pub port: [u8; 2],
        /// Reserved, zero.
        pub reserved: [u8; 2],
    }
}
