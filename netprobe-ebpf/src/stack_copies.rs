//! Copies of user stacks, for user space to unwind: code without frame pointers does not say where
//! its callers are, its unwind tables do.
//!
//! A stack is copied page by page from the stack pointer on, as far as it is in memory, within a budget of bytes
//! per second on each CPU. Who gets no copy is told so, and follows frame pointers instead. Of blocks only the end tells
//! whether they were worth it: half of the budget is kept for those that are not expected to be short.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::map,
    maps::{HashMap, PerCpuArray},
};
use netprobe_common::{
    offsets::{ABSENT, Field},
    record::{bytes_of, bytes_of_mut},
    samples::{
        BlockEnd, COPIED, COPY_PAGES, FRAMED_PAGES, FullCopy, NO_SUCH_STACK, PAGE, StackCopy,
        Tally, TaskStack,
    },
};

use crate::{
    budget,
    emit::{now, task},
    load::{Load, Probed, Typed, copy_user, offset_of},
    maps::{CONFIG, EVENTS, add, frozen, value},
};

/// The copy that is being made, on this CPU. Cannot be full.
#[map]
static COPY: PerCpuArray<FullCopy> = PerCpuArray::with_max_entries(1, 0);

/// When the copies made on this CPU are paid for, in nanoseconds. Cannot be full.
#[map]
static COPY_DUE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Processes whose code keeps frame pointers, as user space has found. Full: they are copied in full.
#[map]
static FRAMED: HashMap<u32, u32> = HashMap::with_max_entries(4096, 0);

/// The reader looks by itself.
const NO_WAKEUP: u64 = 1;

/// Size of a kernel stack (`THREAD_SIZE`); where it is another one, no registers are found at its end.
const KERNEL_STACK: u64 = 16_384;
/// What may lie between the registers and the end (`TOP_OF_KERNEL_STACK_PADDING`).
const PADDINGS: [u64; 2] = [0, 16];
/// Code and stack segments of a 64-bit program, and where they are in the registers.
const USER_CODE: u64 = 0x33;
const USER_DATA: u64 = 0x2b;
const SYSTEM_CALL: usize = 15;
const INSTRUCTION_POINTER: usize = 16;
const CODE_SEGMENT: usize = 17;
const STACK_POINTER: usize = 19;
const STACK_SEGMENT: usize = 20;

/// Sends a copy of the user stack of the running task, of a sample that stands for `ns` or, where that is 0, a block that
/// begins, if that leaves `reserve_ns` of the budget; false if it is to be walked instead. Where `walk` may lead further
/// than the copy, its result goes with that. What blocks calls the kernel: with frame pointers, no caller is missing there.
#[inline(always)]
pub(crate) fn send(
    stack: &TaskStack,
    ns: u64,
    reserve_ns: u64,
    tally: &mut Tally,
    walk: impl FnOnce(&mut Tally) -> i32,
) -> bool {
    if frozen(&CONFIG.sampling.copies) == 0 {
        return false;
    }
    let is_framed = FRAMED.get_ptr(stack.pid).is_some();
    if is_framed && ns == 0 {
        return false;
    }
    let (Some(copy), Some(due)) = (value(COPY.get_ptr_mut(0)), value(COPY_DUE.get_ptr_mut(0)))
    else {
        return false;
    };
    if !registers(&mut copy.head.registers) {
        return false;
    }
    let now = now();
    if !budget::allows(*due, reserve_ns, now) {
        add(&mut tally.not_copied, 1);
        return false;
    }
    let pages = pages(copy, if is_framed { FRAMED_PAGES } else { COPY_PAGES });
    if pages == 0 {
        return false;
    }
    copy.head.walked = if is_framed || pages == COPY_PAGES {
        walk(tally)
    } else {
        NO_SUCH_STACK
    };
    copy.head.stack = *stack;
    copy.head.stack.user = COPIED;
    copy.head.thread = bpf_get_current_pid_tgid() as u32;
    copy.head.pages = pages as u32;
    copy.head.ns = ns;
    let bytes = size_of::<StackCopy>() + pages * PAGE;
    let is_sent = bytes_of(copy)
        .get(..bytes)
        .is_some_and(|bytes| EVENTS.output::<[u8]>(bytes, NO_WAKEUP).is_ok());
    if !is_sent {
        add(&mut tally.not_copied, 1);
        return false;
    }
    add(&mut tally.copied_bytes, bytes as u64);
    let cost = ((bytes as u64) >> 10) * u64::from(frozen(&CONFIG.sampling.copy_ns_per_kib));
    budget::spend(due, cost, now);
    true
}

/// Tells that the block of `thread`, whose stack was copied, is over.
#[inline(always)]
pub(crate) fn send_end(thread: u32, blocked_ns: u64) -> bool {
    let end = BlockEnd {
        blocked_ns,
        thread,
        reserved: 0,
    };
    EVENTS.output::<[u8]>(bytes_of(&end), NO_WAKEUP).is_ok()
}

/// The registers with which the running task left user mode, at the end of its kernel stack; false
/// if it has none, or is not a 64-bit program.
#[inline(always)]
fn registers(registers: &mut [u64; 21]) -> bool {
    if offset_of(Field::TaskStack) == ABSENT {
        return false;
    }
    let stack: u64 = Probed.field(task(), Field::TaskStack);
    for padding in PADDINGS {
        let at = stack + KERNEL_STACK - padding - size_of_val(registers) as u64;
        crate::load::copy(at, bytes_of_mut(registers));
        // From 6.9 on there may be more than the segments in these words.
        let segment = |index: usize| registers[index] & 0xffff;
        if segment(CODE_SEGMENT) == USER_CODE && segment(STACK_SEGMENT) == USER_DATA {
            return true;
        }
    }
    false
}

/// A call of a task to the kernel: where it left user mode.
pub(crate) struct Call {
    number: u64,
    instruction: u64,
    stack: u64,
}

impl Call {
    /// The call that `task`, which runs, is in; `None` if it is not a 64-bit program's.
    #[inline(always)]
    pub(crate) fn of(task: u64) -> Option<Self> {
        if offset_of(Field::TaskStack) == ABSENT {
            return None;
        }
        let stack: u64 = Typed.field(task, Field::TaskStack);
        let at = stack + KERNEL_STACK - PADDINGS[1] - size_of::<[u64; 21]>() as u64;
        let words: [u64; STACK_SEGMENT - SYSTEM_CALL + 3] =
            Probed.at(at, (SYSTEM_CALL * size_of::<u64>()) as u64);
        // One read for both paddings, of which the lesser has all two words later.
        let word = |register: usize, skip: usize| words[register - SYSTEM_CALL + skip];
        let is_here = |skip| {
            word(CODE_SEGMENT, skip) & 0xffff == USER_CODE
                && word(STACK_SEGMENT, skip) & 0xffff == USER_DATA
        };
        let skip = if is_here(2) {
            2
        } else if is_here(0) {
            0
        } else {
            return None;
        };
        Some(Self {
            number: word(SYSTEM_CALL, skip),
            instruction: word(INSTRUCTION_POINTER, skip),
            stack: word(STACK_POINTER, skip),
        })
    }

    /// Something that tells the calls of a task apart.
    #[inline(always)]
    pub(crate) fn id(&self) -> u64 {
        self.instruction ^ self.stack.rotate_left(32)
    }

    /// Whether it may wait in `accept(2)`: it is that, or of a worker of `io_uring`, which never was in user mode.
    #[inline(always)]
    pub(crate) fn may_accept(&self) -> bool {
        const ACCEPT: u64 = 43;
        const ACCEPT4: u64 = 288;
        self.number == ACCEPT || self.number == ACCEPT4 || self.stack == 0
    }
}

/// Copies what can be read of the stack, up to `most` pages; returns how many.
#[inline(always)]
fn pages(copy: &mut FullCopy, most: usize) -> usize {
    let pointer = copy.head.registers[STACK_POINTER];
    let inside = pointer as usize & (PAGE - 1);
    let Some(first) = copy.pages[0].get_mut(inside..) else {
        return 0;
    };
    if !copy_user(pointer, first) {
        return 0;
    }
    let begin = pointer - inside as u64;
    let end = end_of_frames(pointer);
    for page in 1..COPY_PAGES {
        let at = begin + (page * PAGE) as u64;
        if page >= most || at >= end || !copy_user(at, &mut copy.pages[page]) {
            return page;
        }
    }
    COPY_PAGES
}

/// Where the frames of the running task end: on the stack that its program began with lie the arguments and the
/// environment beyond them, which may be many pages and are nobody's business.
#[inline(always)]
fn end_of_frames(pointer: u64) -> u64 {
    let mm: u64 = Probed.field(task(), Field::TaskMm);
    let start: u64 = Probed.field(mm, Field::MmStartStack);
    // Stacks of threads lie below the first one, and end where they cannot be read.
    if pointer < start { start } else { u64::MAX }
}
