//! What user space tells the programs before they are loaded.
//!
//! It lives in a frozen map, so that the verifier sees constants: a filter that is not set and a
//! mode that is off cost nothing.

use crate::{filter::Filter, record};

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
        /// 1: count by connection too.
        pub flows: u32,
        /// 1: count how full accept queues are when connections come.
        pub depths: u32,
        /// 1: kernel-side log of rare errors.
        pub log: u32,
        /// Wake the reader once this many bytes wait in the ring.
        pub wake_bytes: u32,
        /// Length of a jiffy in nanoseconds.
        pub tick_ns: u32,
        /// Which events are wanted.
        pub filter: Filter,
    }
}
