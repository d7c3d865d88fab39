//! What user space tells the programs before they are loaded.
//!
//! It lives in a frozen map, so that the verifier sees constants: a filter that is not set and a
//! mode that is off cost nothing.

use crate::{filter::Filter, record, samples::Sampling};

/// Everything is done that was asked for.
pub const LEVEL_ALL: u32 = 0;
/// No stacks are taken; in flame graphs events count for the last stack of their place.
pub const LEVEL_NO_STACKS: u32 = 1;
/// One event of [`SAMPLE_OF`] is sent on each CPU.
pub const LEVEL_SAMPLED: u32 = 2;
/// Events are counted, in their groups, and none is sent.
pub const LEVEL_COUNTERS: u32 = 3;
/// Groups differ in nothing but what `--count` alone groups by: ends, owners and listeners are not told apart.
pub const LEVEL_COARSE: u32 = 4;
/// Of the connections that begin, only those are followed that do so in one slice of time of [`RESTING_SLICES`]; all are
/// counted, in their groups.
pub const LEVEL_RESTING: u32 = 5;

/// Of so many events one is sent at [`LEVEL_SAMPLED`]; a prime, because events alternate: of both ends of a connection
/// on one machine a power of two would always show the same.
pub const SAMPLE_OF: u64 = 61;

/// Of a kind that is sent sparsely, so many events are sent on a CPU in each slice of time: a run of them, because the
/// two ends of a connection on one machine close one shortly after the other.
pub const SPARSE_EVENTS: u64 = 32;
/// The same of every kind at [`LEVEL_SAMPLED`], where some kind is sent sparsely: a flood of one kind does not hide the few
/// events of another.
pub const TRICKLE_EVENTS: u64 = 8;
/// The slice: `1 << SPARSE_SHIFT` nanoseconds, 67 ms.
pub const SPARSE_SHIFT: u32 = 26;
/// In one slice of so many, connections are followed at [`LEVEL_RESTING`]; a power of two.
pub const RESTING_SLICES: u64 = 8;

/// Stands in the object where `bpf_rdonly_cast` is to be called: a helper that does not exist.
/// User space puts the kernel's own number there, or a plain move where the kernel has none.
pub const CAST_MARK: i32 = 0x6e70_0001;

record! {
    /// Ids of the kernel's types of packet headers; all 0 where an address cannot be given a type.
    pub struct CastTypes {
        /// `struct iphdr`
        pub ipv4: u32,
        /// `struct ipv6hdr`
        pub ipv6: u32,
        /// `struct tcphdr`
        pub tcp: u32,
        /// `struct sock`
        pub sock: u32,
    }
}

record! {
    /// A pid namespace, by its file in `/proc/PID/ns`.
    pub struct PidNamespace {
        /// Device of that file.
        pub device: u32,
        /// Its inode number; 0 is the initial namespace, whose ids are the kernel's own.
        pub inode: u32,
    }
}

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
        /// 1: send the headers of dropped packets too.
        pub packets: u32,
        /// What is counted by beyond `count`, bits of `counters::BY_FLOW` and so on; 0 is nothing.
        pub by: u32,
        /// 1: count how full accept queues are when connections come.
        pub depths: u32,
        /// 1: kernel-side log of rare errors.
        pub log: u32,
        /// Wake the reader whenever a CPU has sent this many records, less one; a power of two.
        pub wake_mask: u32,
        /// Length of a jiffy in nanoseconds.
        pub tick_ns: u32,
        /// 1: this kernel does not run a program of a typed tracepoint on a CPU where it is
        /// running already, so that its counters need no atomic additions.
        pub guarded: u32,
        /// 1: the level of `LEVEL` is obeyed, which user space changes to keep the cost low.
        pub governed: u32,
        /// 1: the filter tests flows.
        pub tests_flows: u32,
        /// Shortest mean time between two stacks of a group on a CPU, in nanoseconds; 0 is no
        /// limit.
        pub stack_interval_ns: u32,
        /// Kinds of which only a sample is sent, a bit for each: [`SPARSE_EVENTS`] in each slice of time
        /// on each CPU, and [`TRICKLE_EVENTS`] of every kind where cost is to be kept low.
        pub sparse: u32,
        /// Kinds whose events the program of another kind finds, which sees the same place anyway: a bit for each.
        pub joined: u32,
        /// The kind whose programs note who owns a socket, raw; those of others rely on it.
        pub owners_kept_by: u32,
        /// The kind whose programs note the life of a connection, raw; those of others rely on it.
        pub lives_kept_by: u32,
        /// Whose ids of processes are told; those that are not in it have none.
        pub pid_namespace: PidNamespace,
        /// How packets are read without asking a helper.
        pub headers: CastTypes,
        /// Which events are wanted.
        pub filter: Filter,
        /// What is wanted of tasks, for flame graphs.
        pub sampling: Sampling,
    }
}
