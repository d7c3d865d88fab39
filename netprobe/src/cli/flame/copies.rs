//! Copied user stacks on their way: from the ring to the worker that unwinds them, and back as
//! groups of equal stacks. How many are on the way is bounded; what does not fit is counted without
//! its user stack.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use netprobe_common::{
    counters::Count,
    samples::{StackCopy, TaskStack},
};

use super::held::Held;
use crate::{
    kernel::task_stacks::Sent,
    observe::clock::now_ns,
    symbols::{
        background::Followed,
        unwind::{CopiedStack, Taken, Unwound},
    },
};

/// Bytes of stacks that wait for the worker.
const MOST_BYTES: usize = 16 << 20;
/// Bytes that are worth waking the worker for.
const WORTH: usize = 512 << 10;
/// How long a stack waits for others.
const PATIENCE: Duration = Duration::from_millis(500);

/// Ids from here on are of unwound stacks, in the order in which they were first seen.
const FIRST: i32 = i32::MIN;
/// The stack was copied, and the worker did not get to it, or failed.
pub(super) const NOT_UNWOUND: i32 = -1002;
/// The copy was given up for those of later blocks.
pub(super) const NOT_HELD: i32 = -1003;

/// When a copy counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counting {
    /// At once: it is a sample.
    Samples,
    /// When the block is over that began with it.
    Blocks,
}

/// A copy that was handed to the worker.
#[derive(Debug)]
struct Asked {
    stack: TaskStack,
    count: Count,
    bytes: usize,
}

/// Copies, from when they were read to when they are counted.
#[derive(Debug)]
pub(super) struct Copies {
    counting: Counting,
    /// When the last reading of the ring began, and this one.
    read_ns: [u64; 2],
    /// Of blocks that have not ended.
    held: Held,
    ready: Vec<(u32, CopiedStack)>,
    ready_bytes: usize,
    since: Instant,
    asked: VecDeque<Asked>,
    asked_bytes: usize,
    ids: HashMap<Arc<Unwound>, i32>,
    by_id: Vec<Arc<Unwound>>,
    counts: HashMap<TaskStack, Count>,
}

impl Copies {
    pub(super) fn new(counting: Counting) -> Self {
        Self {
            counting,
            read_ns: [0, 0],
            held: Held::default(),
            ready: Vec::new(),
            ready_bytes: 0,
            since: Instant::now(),
            asked: VecDeque::new(),
            asked_bytes: 0,
            ids: HashMap::new(),
            by_id: Vec::new(),
            counts: HashMap::new(),
        }
    }

    /// What is taken from now on was sent since the last time.
    pub(super) const fn begin_reading(&mut self, now_ns: u64) {
        self.read_ns = [self.read_ns[1], now_ns];
    }

    /// Takes what the programs have sent; a copy with the same stack as the kernel has `walked` it.
    pub(super) fn take(&mut self, sent: Sent, walked: Vec<u64>) {
        match sent {
            Sent::Copy(copy, bytes) => self.begin(&copy, bytes, walked),
            Sent::End(end) => {
                // That of a thread that is not wanted has no beginning here.
                self.end(end.thread, end.blocked_ns);
            }
        }
    }

    fn begin(&mut self, copy: &StackCopy, bytes: Vec<u8>, walked: Vec<u64>) {
        let taken = Taken {
            after_ns: self.read_ns[0],
            before_ns: now_ns(),
        };
        let copied = CopiedStack {
            registers: copy.registers,
            bytes,
            walked,
            taken,
        };
        match self.counting {
            Counting::Samples => self.queue(copy.stack, copied, copy.ns),
            Counting::Blocks => self.held.begin(copy.thread, copy.stack, copied),
        }
    }

    /// The thread blocks in a way that is not wanted.
    pub(super) fn forget(&mut self, thread: u32) {
        self.held.forget(thread);
    }

    /// A block of the thread has lasted so long; false if its stack was not copied.
    fn end(&mut self, thread: u32, blocked_ns: u64) -> bool {
        let ended = self.held.end(thread);
        self.queue_ended(ended, blocked_ns)
    }

    /// The thread is blocked in `stack`, for so long until now; false if that was not copied, but perhaps an earlier
    /// block of the thread.
    pub(super) fn lasting(&mut self, thread: u32, stack: &TaskStack, blocked_ns: u64) -> bool {
        let lasting = self.held.lasting(thread, stack);
        self.queue_ended(lasting, blocked_ns)
    }

    fn queue_ended(&mut self, block: Option<(TaskStack, CopiedStack)>, blocked_ns: u64) -> bool {
        let Some((stack, copied)) = block else {
            return false;
        };
        self.queue(stack, copied, blocked_ns);
        true
    }

    fn queue(&mut self, stack: TaskStack, copied: CopiedStack, weight: u64) {
        let count = Count { events: 1, weight };
        let bytes = copied.bytes.len();
        if bytes == 0 || self.asked_bytes + bytes > MOST_BYTES {
            let why = if bytes == 0 { NOT_HELD } else { NOT_UNWOUND };
            self.count(stack, why, &count);
            return;
        }
        if self.ready.is_empty() {
            self.since = Instant::now();
        }
        self.ready.push((stack.pid, copied));
        self.ready_bytes += bytes;
        self.asked_bytes += bytes;
        self.asked.push_back(Asked {
            stack,
            count,
            bytes,
        });
    }

    /// What is to be unwound now, if it is worth it; everything if `is_last`.
    pub(super) fn due(&mut self, is_last: bool) -> Option<Vec<(u32, CopiedStack)>> {
        let is_worth = self.ready_bytes >= WORTH || self.since.elapsed() >= PATIENCE;
        if self.ready.is_empty() || !(is_last || is_worth) {
            return None;
        }
        self.ready_bytes = 0;
        Some(mem::take(&mut self.ready))
    }

    /// Counts the stack that was the first to be handed over; returns its process if that needs no
    /// copies.
    pub(super) fn unwound(&mut self, followed: Followed) -> Option<u32> {
        let asked = self.asked.pop_front()?;
        self.asked_bytes -= asked.bytes;
        let Some((unwound, needs_copies)) = followed else {
            self.count(asked.stack, NOT_UNWOUND, &asked.count);
            return None;
        };
        let id = self.id(unwound);
        self.count(asked.stack, id, &asked.count);
        (!needs_copies).then_some(asked.stack.pid)
    }

    fn count(&mut self, stack: TaskStack, user: i32, count: &Count) {
        let key = TaskStack { user, ..stack };
        self.counts.entry(key).or_insert(Count::NONE).add(count);
    }

    fn id(&mut self, unwound: Unwound) -> i32 {
        if let Some(id) = self.ids.get(&unwound) {
            return *id;
        }
        let id = FIRST + i32::try_from(self.by_id.len()).unwrap_or_default();
        let unwound = Arc::new(unwound);
        self.by_id.push(unwound.clone());
        self.ids.insert(unwound, id);
        id
    }

    /// The stack with this id, if it is the id of an unwound one.
    pub(super) fn stack(&self, id: i32) -> Option<&Arc<Unwound>> {
        self.by_id
            .get(usize::try_from(id.wrapping_sub(FIRST)).ok()?)
    }

    /// Counts those that nobody has unwound.
    pub(super) fn give_up(&mut self) {
        while !self.asked.is_empty() {
            self.unwound(None);
        }
    }

    /// All stacks and what they were counted for, until now.
    pub(super) fn counts(&self) -> impl Iterator<Item = (TaskStack, Count)> {
        self.counts.iter().map(|(stack, count)| (*stack, *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netprobe_common::{
        record::Plain,
        samples::{BlockEnd, COPIED},
    };

    fn copy(thread: u32, kernel: i32) -> Sent {
        let mut copy = StackCopy::zeroed();
        copy.thread = thread;
        copy.stack.kernel = kernel;
        copy.stack.user = COPIED;
        Sent::Copy(Box::new(copy), vec![0; 8])
    }

    #[test]
    fn the_copy_of_a_short_block_is_not_that_of_the_next() {
        let mut copies = Copies::new(Counting::Blocks);
        copies.take(copy(5, 1), Vec::new());
        // Too short to be told of. The next one is followed by frame pointers, and lasts.
        let mut next = TaskStack::zeroed();
        next.user = 77;
        next.kernel = 2;
        assert!(!copies.lasting(5, &next, 1_000_000));
        assert_eq!(copies.counts().count(), 0);
        assert!(copies.due(true).is_none());
    }

    #[test]
    fn a_copy_that_was_given_up_is_not_said_to_have_been_late() {
        let mut copies = Copies::new(Counting::Blocks);
        for thread in 0..3 {
            let Sent::Copy(copy, _) = copy(thread, 1) else {
                unreachable!();
            };
            copies.take(Sent::Copy(copy, vec![0; 7 << 20]), Vec::new());
        }
        let end = BlockEnd {
            blocked_ns: 9,
            thread: 0,
            reserved: 0,
        };
        copies.take(Sent::End(end), Vec::new());
        let counted: Vec<_> = copies.counts().collect();
        assert_eq!(counted[0].0.user, NOT_HELD);
        assert_eq!(counted[0].1.weight, 9);
    }
}
