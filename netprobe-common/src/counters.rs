//! Accounting and in-kernel aggregates: exact per-CPU totals, also when no event is sent.

use crate::{owner::Owner, record};

record! {
    /// What became of every firing of one probe, on one CPU.
    ///
    /// Always `fired == filtered + aggregated + delivered + sampled_out + reserve_failed`.
    /// The fields below that line count side effects that lost detail, not events.
    pub struct Counters {
        /// The probe's decision point ran.
        pub fired: u64,
        /// Not an event of this kind, or not wanted by the filter.
        pub filtered: u64,
        /// Only counted in the kernel, by request.
        pub aggregated: u64,
        /// Handed to the ring.
        pub delivered: u64,
        /// Not sent, because the budget for detail was spent.
        pub sampled_out: u64,
        /// Not sent, because the ring had no room (or its lock was contended).
        pub reserve_failed: u64,
        /// A new key found its map full and was counted under "other", or was not tracked.
        pub map_full: u64,
        /// No stack could be taken, or another stack had its place in the map.
        pub stack_failed: u64,
        /// No stack was taken, because enough of the same place and reason had been.
        pub stack_sampled_out: u64,
    }
}

impl Counters {
    /// Nothing counted.
    pub const ZERO: Self = Self {
        fired: 0,
        filtered: 0,
        aggregated: 0,
        delivered: 0,
        sampled_out: 0,
        reserve_failed: 0,
        map_full: 0,
        stack_failed: 0,
        stack_sampled_out: 0,
    };

    /// Firings that none of the outcomes explains; anything but 0 is a bug.
    pub const fn unexplained(&self) -> i64 {
        let explained = self.filtered
            + self.aggregated
            + self.delivered
            + self.sampled_out
            + self.reserve_failed;
        self.fired.wrapping_sub(explained).cast_signed()
    }

    /// What was counted since `earlier`.
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            fired: self.fired.saturating_sub(earlier.fired),
            filtered: self.filtered.saturating_sub(earlier.filtered),
            aggregated: self.aggregated.saturating_sub(earlier.aggregated),
            delivered: self.delivered.saturating_sub(earlier.delivered),
            sampled_out: self.sampled_out.saturating_sub(earlier.sampled_out),
            reserve_failed: self.reserve_failed.saturating_sub(earlier.reserve_failed),
            map_full: self.map_full.saturating_sub(earlier.map_full),
            stack_failed: self.stack_failed.saturating_sub(earlier.stack_failed),
            stack_sampled_out: self
                .stack_sampled_out
                .saturating_sub(earlier.stack_sampled_out),
        }
    }

    /// Adds the counts of another CPU.
    pub const fn add(&mut self, other: &Self) {
        self.fired += other.fired;
        self.filtered += other.filtered;
        self.aggregated += other.aggregated;
        self.delivered += other.delivered;
        self.sampled_out += other.sampled_out;
        self.reserve_failed += other.reserve_failed;
        self.map_full += other.map_full;
        self.stack_failed += other.stack_failed;
        self.stack_sampled_out += other.stack_sampled_out;
    }
}

record! {
    /// What `--count` groups by.
    pub struct CountKey {
        /// Event kind, raw.
        pub kind: u32,
        /// Reason, cause, errno or stage, by kind; [`OTHER`] gathers what found the map full.
        pub code: u32,
        /// Network namespace.
        pub netns: u32,
        /// Destination or listener port, network byte order.
        pub port: [u8; 2],
        /// 1 where it gathers the ports that found the map full.
        pub any_port: u16,
        /// Address in the kernel's text, where the kind has one.
        pub location: u64,
    }
}

record! {
    /// What `--count --by` groups by: a group, and whatever else was asked for; the rest is zero.
    pub struct GroupKey {
        /// The group.
        pub key: CountKey,
        /// Source address, IPv4 in the first four bytes. See [`BY_SADDR`] and, for the other parts, [`BY_FLOW`].
        pub saddr: [u8; 16],
        /// Destination address.
        pub daddr: [u8; 16],
        /// Source port, network byte order.
        pub sport: [u8; 2],
        /// Destination port, network byte order.
        pub dport: [u8; 2],
        /// Address family.
        pub family: u16,
        /// Address family of the listener. See [`BY_LISTENER`].
        pub listener_family: u16,
        /// Address that the listener listens on.
        pub listener: [u8; 16],
        /// Who owns the socket, the inode only where the process is not known ([`BY_PROCESS`]), and
        /// its cgroup ([`BY_CGROUP`]).
        pub owner: Owner,
        /// Id of the kernel stack. See [`BY_STACK`].
        pub stack: i32,
        /// Reserved, zero.
        pub reserved: u32,
    }
}

/// Bit of `Config::by`: by the source address.
pub const BY_SADDR: u32 = 1;
/// By the process that owns the socket.
pub const BY_PROCESS: u32 = 2;
/// By the address that the listener listens on.
pub const BY_LISTENER: u32 = 4;
/// By kernel stack: the event's own, or the last one taken of the same place and reason.
pub const BY_STACK: u32 = 8;
/// By the cgroup of the socket.
pub const BY_CGROUP: u32 = 16;
/// By the source port.
pub const BY_SPORT: u32 = 32;
/// By the destination address.
pub const BY_DADDR: u32 = 64;
/// By the destination port.
pub const BY_DPORT: u32 = 128;
/// By any of the ends of the connection.
pub const BY_FLOW: u32 = BY_SADDR | BY_SPORT | BY_DADDR | BY_DPORT;

/// [`CountKey::code`] of the row that gathers what found the map full.
pub const OTHER: u32 = 0xffff_fffe;

/// [`CountKey::kind`] of the depths of accept queues: `code` is the limit, `location` the power of
/// two that the depth was at least, plus one; 0 is an empty queue.
pub const DEPTHS: u32 = 0xfffe;

record! {
    /// A count and its weight.
    pub struct Count {
        /// Events.
        pub events: u64,
        /// Segments for retransmits, bytes for drops, nanoseconds for connects; else events.
        pub weight: u64,
    }
}

impl Count {
    /// Nothing counted.
    pub const NONE: Self = Self {
        events: 0,
        weight: 0,
    };

    /// What was counted since `earlier`.
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            events: self.events.saturating_sub(earlier.events),
            weight: self.weight.saturating_sub(earlier.weight),
        }
    }

    /// Adds the counts of another CPU or place.
    pub const fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.weight += other.weight;
    }
}

/// Places for busy groups of `--count`, per CPU; a power of two.
pub const PLACES: u32 = 256;

record! {
    /// A group of `--count` in a place of its own on one CPU, which is found without a lookup.
    ///
    /// Free while it has no events. The count is first, and written last: whoever reads the
    /// words in order finds no events or the whole key.
    pub struct Place {
        /// Its count.
        pub count: Count,
        /// The group that has it.
        pub key: CountKey,
    }
}

/// Places for which stacks are sampled, per CPU; a power of two.
pub const SAMPLED_PLACES: u32 = 64;

record! {
    /// Events of one place and reason on one CPU, whose stacks are taken within a budget.
    pub struct SampledPlace {
        /// Events since the last stack; they count for it.
        pub owed: Count,
        /// Where in the kernel's text.
        pub location: u64,
        /// Event kind, raw.
        pub kind: u32,
        /// Reason, cause, errno or stage, by kind.
        pub code: u32,
        /// Until when the stacks taken so far use up the budget, in the time of the kernel's ticks.
        pub due_ns: u64,
        /// Id of the last stack, or a negative errno.
        pub stack: i32,
        /// Reserved, zero.
        pub reserved: u32,
    }
}

record! {
    /// What kernel stacks are grouped by.
    pub struct StackKey {
        /// Event kind, raw; [`SAMPLE`] for the CPU sampler.
        pub kind: u32,
        /// Reason, cause, errno or stage, by kind.
        pub code: u32,
        /// Stack id in the stack map, or a negative errno when none could be taken.
        pub stack: i32,
        /// Reserved, zero.
        pub reserved: u32,
        /// The running task for samples, the socket's owner otherwise; NUL padded.
        pub comm: [u8; 16],
    }
}

/// [`StackKey::kind`] of the CPU sampler.
pub const SAMPLE: u32 = 0xffff;

record! {
    /// How many candidates the port search examined on one CPU.
    pub struct Candidates {
        /// Calls of `__inet_check_established` seen while a window was open.
        pub calls: u64,
        /// Port searches begun on this CPU.
        pub searches: u64,
    }
}
