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

use crate::{
    kernel::task_stacks::Sent,
    symbols::{
        background::Followed,
        unwind::{CopiedStack, Unwound},
    },
};

/// Bytes of stacks that wait for the worker, and of those whose blocks have not ended.
const MOST_BYTES: usize = 16 << 20;
/// Bytes that are worth waking the worker for.
const WORTH: usize = 512 << 10;
/// How long a stack waits for others.
const PATIENCE: Duration = Duration::from_millis(500);

/// Ids from here on are of unwound stacks, in the order in which they were first seen.
const FIRST: i32 = i32::MIN;
/// The stack was copied and not unwound.
pub(super) const NOT_UNWOUND: i32 = -1002;

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
    /// Blocks that have not ended, by thread.
    blocked: HashMap<u32, (TaskStack, CopiedStack)>,
    blocked_bytes: usize,
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
            blocked: HashMap::new(),
            blocked_bytes: 0,
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

    /// Takes what the programs have sent.
    pub(super) fn take(&mut self, sent: Sent) {
        match sent {
            Sent::Copy(copy, bytes) => self.begin(&copy, bytes),
            Sent::End(end) => {
                // That of a thread that is not wanted has no beginning here.
                self.end(end.thread, end.blocked_ns);
            }
        }
    }

    fn begin(&mut self, copy: &StackCopy, bytes: Vec<u8>) {
        let copied = CopiedStack {
            registers: copy.registers,
            bytes,
        };
        match self.counting {
            Counting::Samples => self.queue(copy.stack, copied, copy.ns),
            Counting::Blocks => {
                self.blocked_bytes += copied.bytes.len();
                let before = self.blocked.insert(copy.thread, (copy.stack, copied));
                if let Some((_, before)) = before {
                    self.blocked_bytes -= before.bytes.len();
                }
                self.forget_some();
            }
        }
    }

    /// Gives up the bytes of blocks when there are too many of them; who they are of stays.
    fn forget_some(&mut self) {
        if self.blocked_bytes > MOST_BYTES {
            for (_, copied) in self.blocked.values_mut() {
                copied.bytes = Vec::new();
            }
            self.blocked_bytes = 0;
        }
    }

    /// A block of the thread has lasted so long; false if its stack was not copied.
    pub(super) fn end(&mut self, thread: u32, blocked_ns: u64) -> bool {
        let Some((stack, copied)) = self.blocked.remove(&thread) else {
            return false;
        };
        self.blocked_bytes -= copied.bytes.len();
        self.queue(stack, copied, blocked_ns);
        true
    }

    fn queue(&mut self, stack: TaskStack, copied: CopiedStack, weight: u64) {
        let count = Count { events: 1, weight };
        let bytes = copied.bytes.len();
        if bytes == 0 || self.asked_bytes + bytes > MOST_BYTES {
            self.count(stack, NOT_UNWOUND, &count);
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
