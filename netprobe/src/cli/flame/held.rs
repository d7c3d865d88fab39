//! Copies of the stacks of tasks that are blocked, until their blocks end. How many bytes they take is bounded: the
//! oldest are given up for newer ones.

use std::collections::{BTreeMap, HashMap};

use netprobe_common::samples::TaskStack;

use crate::symbols::unwind::CopiedStack;

/// Bytes of all copies.
const MOST_BYTES: usize = 16 << 20;
/// Threads that are remembered: more than can be blocked at once in the kernel's map.
const MOST_THREADS: usize = 65_536;

/// The copy of one block.
#[derive(Debug)]
struct Copy {
    stack: TaskStack,
    /// Nothing if the bytes were given up.
    copied: CopiedStack,
    /// Its place in the order in which they came.
    number: u64,
}

/// The last copy of each thread.
#[derive(Debug, Default)]
pub(super) struct Held {
    copies: HashMap<u32, Copy>,
    /// Threads by the age of their copies, those without bytes too.
    by_age: BTreeMap<u64, u32>,
    /// Copies up to this one have no bytes.
    emptied: u64,
    next: u64,
    bytes: usize,
}

impl Held {
    /// A block of the thread begins; whatever was held of it is over.
    pub(super) fn begin(&mut self, thread: u32, stack: TaskStack, copied: CopiedStack) {
        self.forget(thread);
        self.bytes += copied.bytes.len();
        self.next += 1;
        let number = self.next;
        self.by_age.insert(number, thread);
        let copy = Copy {
            stack,
            copied,
            number,
        };
        self.copies.insert(thread, copy);
        self.give_up_oldest();
    }

    /// The copy of the block of the thread that has ended.
    pub(super) fn end(&mut self, thread: u32) -> Option<(TaskStack, CopiedStack)> {
        let copy = self.copies.remove(&thread)?;
        self.by_age.remove(&copy.number);
        self.bytes -= copy.copied.bytes.len();
        Some((copy.stack, copy.copied))
    }

    /// The same if the thread is still blocked in `stack`, for which the copy has to be that of this very block.
    pub(super) fn lasting(
        &mut self,
        thread: u32,
        stack: &TaskStack,
    ) -> Option<(TaskStack, CopiedStack)> {
        let is_its = self.copies.get(&thread)?.stack == *stack;
        is_its.then(|| self.end(thread)).flatten()
    }

    /// The thread blocks again, and nothing is to be kept of that.
    pub(super) fn forget(&mut self, thread: u32) {
        self.end(thread);
    }

    fn give_up_oldest(&mut self) {
        while self.bytes > MOST_BYTES {
            let Some((number, thread)) = self.by_age.range(self.emptied + 1..).next() else {
                break;
            };
            self.emptied = *number;
            if let Some(copy) = self.copies.get_mut(thread) {
                self.bytes -= copy.copied.bytes.len();
                copy.copied.bytes = Vec::new();
            }
        }
        if self.copies.len() > MOST_THREADS
            && let Some((_, thread)) = self.by_age.pop_first()
            && let Some(copy) = self.copies.remove(&thread)
        {
            self.bytes -= copy.copied.bytes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::unwind::Taken;
    use netprobe_common::samples::COPIED;

    fn stack(kernel: i32) -> TaskStack {
        TaskStack {
            kernel,
            user: COPIED,
            pid: 7,
            netns: 0,
            comm: *b"wrk\0\0\0\0\0\0\0\0\0\0\0\0\0",
        }
    }

    fn copied(bytes: usize) -> CopiedStack {
        CopiedStack {
            registers: [0; 21],
            bytes: vec![1; bytes],
            walked: Vec::new(),
            taken: Taken::default(),
        }
    }

    #[test]
    fn a_lasting_block_has_its_own_copy_or_none() {
        let mut held = Held::default();
        held.begin(9, stack(1), copied(8));
        // The poll that this copy is of was too short to be told of; the thread now waits elsewhere.
        assert_eq!(held.lasting(9, &stack(2)), None);
        let walked = TaskStack {
            user: 5,
            ..stack(1)
        };
        assert_eq!(held.lasting(9, &walked), None);
        assert!(held.lasting(9, &stack(1)).is_some());
        assert_eq!(held.lasting(9, &stack(1)), None);
    }

    #[test]
    fn the_oldest_copies_are_given_up_and_their_owners_are_not() {
        let mut held = Held::default();
        for thread in 0..5 {
            held.begin(thread, stack(1), copied(MOST_BYTES / 4));
        }
        let bytes = |held: &mut Held, thread| held.end(thread).unwrap().1.bytes.len();
        assert_eq!(bytes(&mut held, 0), 0);
        for thread in 1..5 {
            assert_eq!(bytes(&mut held, thread), MOST_BYTES / 4);
        }
        assert_eq!(held.bytes, 0);
    }
}
