//! What the programs that look at tasks share: which tasks are wanted, and where their stacks go.

use aya_ebpf::{
    macros::map,
    maps::{HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, Queue, StackTrace},
    programs::tracing::StackIdContext,
};
use netprobe_common::{
    counters::Count,
    offsets::Field,
    record::Plain,
    samples::{
        Blocked, COLLISION, COPIED, NO_SUCH_STACK, NOT_ASKED, SECOND_MAP, Tally, TaskStack, Wanted,
        WantedKey,
    },
};

use crate::{
    emit,
    load::{Load, Probed},
    maps::{CONFIG, STACKS, add, frozen, value},
    stack_copies, task,
};

/// Which tasks are wanted, filled in before the programs are attached.
#[map]
static WANTED: HashMap<WantedKey, u32> = HashMap::with_max_entries(4096, 0);

/// Tasks and kernel stacks that user space has found not to be wanted, see [`TaskStack::of_task`] and
/// [`TaskStack::of_kernel`]. Full: the least used entry goes, and user space finds it out again.
#[map]
static UNWANTED: LruHashMap<TaskStack, u32> = LruHashMap::with_max_entries(4096, 0);

/// Stacks whose place in `STACKS` another one had. Full or colliding: counted as `collisions`.
#[map]
static MORE_STACKS: StackTrace = StackTrace::with_max_entries(4096, 0);

/// Samples and blocks by stack. Full: counted as `map_full`.
#[map]
pub(crate) static TASK_STACKS: PerCpuHashMap<TaskStack, Count> =
    PerCpuHashMap::with_max_entries(8192, 0);

/// Tasks that are blocked or were before, by thread id. Full: counted as `map_full`.
#[map]
pub(crate) static BLOCKED: HashMap<u32, Blocked> = HashMap::with_max_entries(8192, 0);

/// Accounting. Cannot be full.
#[map]
static TALLY: PerCpuArray<Tally> = PerCpuArray::with_max_entries(1, 0);

/// Processes that were seen. Full: the process is not announced, and its symbols are only looked
/// up at the end.
#[map]
static PROCESSES: HashMap<u32, u32> = HashMap::with_max_entries(4096, 0);

/// Processes that were seen and not yet announced to user space. Full: as `PROCESSES`.
#[map]
static SIGHTED: Queue<u32> = Queue::with_max_entries(4096, 0);

/// The accounting of this CPU.
#[inline(always)]
pub(crate) fn tally() -> Option<&'static mut Tally> {
    value(TALLY.get_ptr_mut(0))
}

/// Whether the running task is wanted.
#[inline(always)]
pub(crate) fn admits() -> bool {
    admits_id(Wanted::Pid, || u64::from(task::pid()))
        && admits_id(Wanted::Tid, || u64::from(task::tid()))
        && admits_id(Wanted::Cpu, || u64::from(emit::cpu()))
        && admits_id(Wanted::Cgroup, emit::cgroup)
        && admits_id(Wanted::Netns, || u64::from(netns()))
        && admits_key(Wanted::Comm, || WantedKey::of_name(&task::comm()))
        && (frozen(&CONFIG.sampling.learns_tasks) == 0 || UNWANTED.get_ptr(who(0)).is_none())
}

/// Whether it may be that tasks are wanted that are in this kernel stack.
#[inline(always)]
fn admits_stack(kernel: i32) -> bool {
    frozen(&CONFIG.sampling.learns_stacks) == 0
        || (kernel != NO_SUCH_STACK && UNWANTED.get_ptr(TaskStack::of_kernel(kernel)).is_none())
}

#[inline(always)]
fn admits_id(wanted: Wanted, id: impl FnOnce() -> u64) -> bool {
    admits_key(wanted, || WantedKey::of_id(wanted, id()))
}

#[inline(always)]
fn admits_key(wanted: Wanted, key: impl FnOnce() -> WantedKey) -> bool {
    frozen(&CONFIG.sampling.wanted) & wanted.bit() == 0 || WANTED.get_ptr(key()).is_some()
}

/// The network namespace of the running task; 0 for one that is exiting.
#[inline(always)]
fn netns() -> u32 {
    let task = emit::task();
    let proxy: u64 = Probed.field(task, Field::TaskNsproxy);
    let net: u64 = Probed.field(proxy, Field::NsproxyNet);
    if proxy == 0 || net == 0 {
        return 0;
    }
    Probed.field(net, Field::NetInum)
}

/// Which task runs, without its stack, which is left out or not taken yet.
#[inline(always)]
pub(crate) fn who(stack: i32) -> TaskStack {
    let mut key = TaskStack::zeroed();
    key.kernel = stack;
    key.user = stack;
    key.pid = task::pid();
    if frozen(&CONFIG.sampling.netns) != 0 {
        key.netns = netns();
    }
    key.comm = task::comm();
    key
}

/// Where the running task is, in the kernel and above. A user stack that is [`COPIED`] is in the ring, with the time
/// `ns` that it stands for; it is not if that leaves less than `reserve_ns` of the budget of copies.
#[inline(always)]
pub(crate) fn stack<C: StackIdContext>(
    ctx: &C,
    tally: &mut Tally,
    ns: u64,
    reserve_ns: u64,
) -> TaskStack {
    const BPF_F_USER_STACK: u64 = 1 << 8;
    let mut key = who(NOT_ASKED);
    if frozen(&CONFIG.sampling.kernel) != 0 {
        key.kernel = stack_id(ctx, tally, 0);
    }
    if frozen(&CONFIG.sampling.user) != 0 && admits_stack(key.kernel) {
        announce(key.pid);
        let walk = |tally: &mut Tally| stack_id(ctx, tally, BPF_F_USER_STACK);
        key.user = if stack_copies::send(&key, ns, reserve_ns, tally, walk) {
            COPIED
        } else {
            walk(tally)
        };
    }
    key
}

/// Tells user space of a process when it is first seen, so that it may look at its mappings while
/// they are there.
#[inline(always)]
fn announce(pid: u32) {
    if PROCESSES.get_ptr(pid).is_none() && PROCESSES.insert(pid, 1, 0).is_ok() {
        let _full = SIGHTED.push(pid, 0);
    }
}

/// Keeps a stack. If another one has its place, there is a place in a second map.
#[inline(always)]
fn stack_id<C: StackIdContext>(ctx: &C, tally: &mut Tally, flags: u64) -> i32 {
    let errno = match ctx.get_stackid(&STACKS, flags) {
        Ok(id) => return id as i32,
        Err(errno) => errno,
    };
    if errno != COLLISION {
        return errno;
    }
    match ctx.get_stackid(&MORE_STACKS, flags) {
        Ok(id) => (id as i32) | SECOND_MAP,
        Err(errno) => {
            add(&mut tally.collisions, 1);
            errno
        }
    }
}
