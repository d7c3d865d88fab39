//! Stacks of tasks, by samples or by the time that they were blocked: settings, keys and accounts.
//!
//! The programs aggregate by [`TaskStack`] and keep one [`Tally`] per CPU; nothing is sent.

use crate::record;

record! {
    /// Settings of one run, part of the frozen configuration.
    pub struct Sampling {
        /// 1: take kernel stacks.
        pub kernel: u32,
        /// 1: take user stacks.
        pub user: u32,
        /// Bit `n` is set: the task must be wanted by the [`Wanted`] with number `n`.
        pub wanted: u32,
        /// 1: group by network namespace too.
        pub netns: u32,
        /// Shorter blocks are not counted, in microseconds.
        pub min_block_us: u32,
        /// Longer ones neither.
        pub max_block_us: u32,
        /// 1: user stacks are copied, to be unwound in user space, unless the process is in `FRAMED`.
        pub copies: u32,
        /// What a copied KiB costs of each CPU's budget, in nanoseconds: the inverse of a rate.
        pub copy_ns_per_kib: u32,
        /// 1: user space finds out which tasks are not wanted, and tells of them in `UNWANTED`.
        pub learns_tasks: u32,
        /// 1: the same of kernel stacks, with which no user stack is taken then.
        pub learns_stacks: u32,
        /// 1: only blocks in `accept(2)` are wanted.
        pub accepts: u32,
    }
}

impl Sampling {
    /// No stacks of tasks.
    pub const NONE: Self = Self {
        kernel: 0,
        user: 0,
        wanted: 0,
        netns: 0,
        min_block_us: 0,
        max_block_us: 0,
        copies: 0,
        copy_ns_per_kib: 0,
        learns_tasks: 0,
        learns_stacks: 0,
        accepts: 0,
    };

    /// Whether blocks are timed.
    pub const fn times_blocks(&self) -> bool {
        self.max_block_us != 0
    }
}

/// What a task can be wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Wanted {
    /// Process id (tgid).
    Pid = 0,
    /// Thread id.
    Tid = 1,
    /// Id of its cgroup.
    Cgroup = 2,
    /// Inode number of its network namespace.
    Netns = 3,
    /// The CPU it runs on.
    Cpu = 4,
    /// Name of the thread; see [`WantedKey::of_name`].
    Comm = 5,
}

impl Wanted {
    /// Its bit in [`Sampling::wanted`].
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }
}

record! {
    /// Something that is wanted.
    pub struct WantedKey {
        /// The id, or the first half of a name.
        pub id: u64,
        /// The second half of a name.
        pub rest: u64,
        /// The [`Wanted`], raw.
        pub kind: u32,
        /// Reserved, zero.
        pub reserved: u32,
    }
}

impl WantedKey {
    /// The key of an id.
    #[inline]
    pub const fn of_id(kind: Wanted, id: u64) -> Self {
        Self {
            id,
            rest: 0,
            kind: kind as u32,
            reserved: 0,
        }
    }

    /// The key of the name of a thread, NUL padded.
    #[inline]
    pub fn of_name(name: &[u8; 16]) -> Self {
        let (halves, _none) = name.as_chunks::<8>();
        Self {
            id: u64::from_ne_bytes(halves[0]),
            rest: u64::from_ne_bytes(halves[1]),
            kind: Wanted::Comm as u32,
            reserved: 0,
        }
    }
}

record! {
    /// What samples and blocks are grouped by.
    pub struct TaskStack {
        /// Id of the kernel stack, or one of the negative numbers below.
        pub kernel: i32,
        /// Id of the user stack, or one of the negative numbers below.
        pub user: i32,
        /// Process id (tgid).
        pub pid: u32,
        /// Network namespace; 0 where it was not asked for.
        pub netns: u32,
        /// Name of the thread, NUL padded.
        pub comm: [u8; 16],
    }
}

impl TaskStack {
    /// All stacks of a task.
    #[inline]
    #[must_use]
    pub const fn of_task(&self) -> Self {
        Self {
            kernel: 0,
            user: 0,
            ..*self
        }
    }

    /// A kernel stack of all tasks.
    #[inline]
    pub const fn of_kernel(kernel: i32) -> Self {
        Self {
            kernel,
            user: 0,
            pid: 0,
            netns: 0,
            comm: [0; 16],
        }
    }
}

/// Ids from here on are of the map that takes stacks whose place was taken.
pub const SECOND_MAP: i32 = 1 << 24;
/// There is no such stack: a thread of the kernel, or the task was not in the kernel (`-EFAULT`).
pub const NO_SUCH_STACK: i32 = -14;
/// Other stacks had its place in both maps (`-EEXIST`).
pub const COLLISION: i32 = -17;
/// Stacks of this kind were not asked for.
pub const NOT_ASKED: i32 = -1000;

/// The stack was left out, to keep the cost low.
pub const LEFT_OUT: i32 = -1010;
/// The stack was copied: it is in the ring, under the id of the thread.
pub const COPIED: i32 = -1001;

/// Frames of a stack that the kernel keeps; a stack that has as many was cut.
pub const STACK_DEPTH: usize = 127;

record! {
    /// A task that is blocked, or was.
    pub struct Blocked {
        /// Since when, in nanoseconds of `CLOCK_MONOTONIC`; 0 of one that is not any more.
        pub since_ns: u64,
        /// Where.
        pub stack: TaskStack,
        /// The place of its thread and call among those whose blocks may be expected to be short.
        pub place: u32,
        /// Reserved, zero.
        pub reserved: u32,
    }
}

/// Bytes of a page of a user stack.
pub const PAGE: usize = 4096;
/// Pages of a user stack that are copied at most; with the rest of the record they have to be less
/// than the 32 KiB that the kernel allows a per-CPU value.
pub const COPY_PAGES: usize = 7;

/// Pages of a stack whose code keeps frame pointers, that are copied: they tell the caller of what has no frame.
pub const FRAMED_PAGES: usize = 2;

record! {
    /// The beginning of a copied user stack; as many pages as were readable follow.
    pub struct StackCopy {
        /// Whose it is, its user stack being [`COPIED`].
        pub stack: TaskStack,
        /// Thread id.
        pub thread: u32,
        /// Pages that follow.
        pub pages: u32,
        /// Id of the same stack as the kernel has found it by frame pointers, where that may lead further than the copy;
        /// below 0 for none.
        pub walked: i32,
        /// Always 0.
        pub reserved: u32,
        /// Nanoseconds that the sample stands for; 0 of a block, whose length is told at its end.
        pub ns: u64,
        /// The registers with which it left user mode, as the kernel keeps them (`pt_regs`).
        pub registers: [u64; 21],
    }
}

record! {
    /// What the program puts together and sends: not all of the pages.
    pub struct FullCopy {
        /// The beginning.
        pub head: StackCopy,
        /// From the page on in which the stack pointer is; what is below that is not of the stack.
        pub pages: [[u8; PAGE]; COPY_PAGES],
    }
}

record! {
    /// The end of a block whose user stack was copied when it began.
    pub struct BlockEnd {
        /// How long it lasted.
        pub blocked_ns: u64,
        /// Thread id.
        pub thread: u32,
        /// Reserved, zero.
        pub reserved: u32,
    }
}

record! {
    /// What became of every sample, or of every block, on one CPU.
    ///
    /// For samples `taken == idle + filtered + counted + sent + map_full`; for blocks
    /// `taken == filtered + counted + sent + map_full + short + (those that last)`.
    pub struct Tally {
        /// Samples taken, or blocks begun.
        pub taken: u64,
        /// The CPU was idle.
        pub idle: u64,
        /// Not wanted.
        pub filtered: u64,
        /// In the map of stacks.
        pub counted: u64,
        /// The map of stacks (or of blocked tasks) had no room.
        pub map_full: u64,
        /// What those weigh: samples, or nanoseconds.
        pub map_full_weight: u64,
        /// Blocks that were shorter or longer than asked for.
        pub short: u64,
        /// Stacks whose places were both taken, counted under a frame of their own.
        pub collisions: u64,
        /// Sent to user space, with a copy of the user stack.
        pub sent: u64,
        /// User stacks that would have been copied, but for the budget or for room in the ring.
        pub not_copied: u64,
        /// Bytes that were copied.
        pub copied_bytes: u64,
        /// Blocks whose stacks were left out to keep the cost low; they are `counted`, or `short`.
        pub left_out: u64,
    }
}

impl Tally {
    /// Nothing counted.
    pub const ZERO: Self = Self {
        taken: 0,
        idle: 0,
        filtered: 0,
        counted: 0,
        map_full: 0,
        map_full_weight: 0,
        short: 0,
        collisions: 0,
        sent: 0,
        not_copied: 0,
        copied_bytes: 0,
        left_out: 0,
    };

    /// Adds the counts of another CPU.
    pub const fn add(&mut self, other: &Self) {
        self.taken += other.taken;
        self.idle += other.idle;
        self.filtered += other.filtered;
        self.counted += other.counted;
        self.map_full += other.map_full;
        self.map_full_weight += other.map_full_weight;
        self.short += other.short;
        self.collisions += other.collisions;
        self.sent += other.sent;
        self.not_copied += other.not_copied;
        self.copied_bytes += other.copied_bytes;
        self.left_out += other.left_out;
    }

    /// Firings that none of the outcomes explains, with `lasting` blocks that have not ended.
    pub const fn unexplained(&self, lasting: u64) -> i64 {
        let counted = self.counted + self.sent + self.map_full;
        let explained = self.idle + self.filtered + counted + self.short + lasting;
        self.taken.wrapping_sub(explained).cast_signed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_outcome_explains_is_found() {
        let tally = Tally {
            taken: 10,
            idle: 1,
            filtered: 2,
            counted: 3,
            short: 1,
            ..Tally::ZERO
        };
        assert_eq!(tally.unexplained(1), 2);
        assert_eq!(tally.unexplained(3), 0);
    }
}
