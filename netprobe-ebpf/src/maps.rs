//! Every map and frozen global. Each map says what happens when it is full.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, StackTrace},
};
use core::arch::asm;
use netprobe_common::{
    config::{CastTypes, Config, LEVEL_ALL, PidNamespace},
    counters::{
        Candidates, Count, CountKey, Counters, GroupKey, PLACES, Place, SAMPLED_PLACES,
        SampledPlace, StackKey,
    },
    filter::Filter,
    header::Kind,
    offsets::Offsets,
    record::Plain,
    records::Owner,
    samples::Sampling,
};

use crate::{
    lives::{Gone, Life},
    probes::connects::Pending,
};

/// Settings of the run; user space overrides it before loading.
#[unsafe(no_mangle)]
pub(crate) static CONFIG: Config = Config {
    detail: 0,
    count: 0,
    stack: 0,
    flame: 0,
    packets: 0,
    by: 0,
    depths: 0,
    log: 0,
    wake_mask: 0,
    tick_ns: 0,
    guarded: 0,
    governed: 0,
    tests_flows: 0,
    stack_interval_ns: 0,
    sparse: 0,
    joined: 0,
    owners_kept_by: 0,
    lives_kept_by: 0,
    pid_namespace: PidNamespace {
        device: 0,
        inode: 0,
    },
    headers: CastTypes {
        ipv4: 0,
        ipv6: 0,
        tcp: 0,
        sock: 0,
    },
    filter: Filter::NONE,
    sampling: Sampling::NONE,
};

/// Where this kernel keeps its fields; user space overrides it before loading.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: Offsets = Offsets::ABSENT;

/// Events for user space. Full: the event is counted as `reserve_failed`.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Accounting, by kind. Cannot be full.
#[map]
pub(crate) static COUNTERS: PerCpuArray<Counters> =
    PerCpuArray::with_max_entries(Kind::ALL.len() as u32, 0);

/// `--count`. Full: the event is counted under `OTHER` of its kind, which always exists.
#[map]
pub(crate) static COUNTS: PerCpuHashMap<CountKey, Count> = PerCpuHashMap::with_max_entries(4096, 0);

/// Not 0 once a map had no room for another group on this CPU, until user space has made some: nobody tries meanwhile.
/// Cannot be full.
#[map]
pub(crate) static FULL: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);

/// Where it is said of `COUNTS` in `FULL`.
pub(crate) const COUNTS_FULL: u32 = 0;

/// Where it is said of `GROUPS`, which keeps its groups to the end of the run.
pub(crate) const GROUPS_FULL: u32 = 1;

/// `--count` without telling ports apart, of what found `COUNTS` full. Full: the event is counted under `OTHER` of its kind
/// there.
#[map]
pub(crate) static REST: PerCpuHashMap<CountKey, Count> = PerCpuHashMap::with_max_entries(512, 0);

/// `--count --by`, where that needs more than `COUNTS`. Full: the event is counted under `OTHER` of
/// its kind, which always exists.
#[map]
pub(crate) static GROUPS: PerCpuHashMap<GroupKey, Count> =
    PerCpuHashMap::with_max_entries(16_384, 0);

/// Busy groups of `--count`, found without a lookup. Taken: the group is counted in `COUNTS`.
#[map]
pub(crate) static BUSY: PerCpuArray<Place> = PerCpuArray::with_max_entries(PLACES, 0);

/// Budgets of stacks, by place and reason. Taken: the older one settles its account and goes.
#[map]
pub(crate) static SAMPLED: PerCpuArray<SampledPlace> =
    PerCpuArray::with_max_entries(SAMPLED_PLACES, 0);

/// Kernel stacks. Full or colliding: counted as `stack_failed`.
#[map]
pub(crate) static STACKS: StackTrace = StackTrace::with_max_entries(4096, 0);

/// Flame graphs. Full: counted as `map_full`.
#[map]
pub(crate) static STACK_COUNTS: PerCpuHashMap<StackKey, Count> =
    PerCpuHashMap::with_max_entries(8192, 0);

/// Who called `connect` or `listen`, or else closed the socket, by its address. Full: the least used
/// entry goes, and its socket's owner is looked up by inode in user space instead.
#[map]
pub(crate) static OWNERS: LruHashMap<u64, Owner> = LruHashMap::with_max_entries(16384, 0);

/// Connects under way, by socket address. Full: counted as `map_full`; the outcome is still
/// reported, without its latency.
#[map]
pub(crate) static CONNECTS: HashMap<u64, Pending> = HashMap::with_max_entries(16384, 0);

/// TCP connections from SYN to destruction, by socket address. Full: counted as `map_full`; the
/// connection is still reported, without its age.
#[map]
pub(crate) static LIVES: HashMap<u64, Life> = HashMap::with_max_entries(131_072, 0);

/// What was known of the connection whose socket was destroyed last, on this CPU. Cannot be full.
#[map]
pub(crate) static GONE: PerCpuArray<Gone> = PerCpuArray::with_max_entries(1, 0);

/// Whether a cgroup is one that the filter wants, by id. Full: the least used entry goes, and is
/// found out again.
#[map]
pub(crate) static CGROUPS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(1024, 0);

/// When each socket came to the state it is in, by socket address. Full: the least used entry
/// goes, and the time in that state is unknown.
#[map]
pub(crate) static STATES: LruHashMap<u64, u64> = LruHashMap::with_max_entries(65_536, 0);

/// Arguments of functions that a kretprobe waits for, by stack pointer. Full: the stalest entry
/// goes, which is of a call whose return was missed.
#[map]
pub(crate) static CALLS: LruHashMap<u64, [u64; 4]> = LruHashMap::with_max_entries(4096, 0);

/// What the return of `inet_csk_accept` has reported, by task, until its file is made. Full: the stalest entry goes, which
/// is of a call whose end was missed.
#[map]
pub(crate) static ACCEPTED: LruHashMap<u64, u64> = LruHashMap::with_max_entries(4096, 0);

/// Calls of the port check, on this CPU. Cannot be full.
#[map]
pub(crate) static CANDIDATES: PerCpuArray<Candidates> = PerCpuArray::with_max_entries(1, 0);

/// Number of the open counting window, 0 while none is. Cannot be full.
#[map]
pub(crate) static WINDOW: Array<u64> = Array::with_max_entries(1, 0);

/// Events of a kind that were sent on this CPU in a slice of time, where only a sample is; and after them, connections
/// that were remembered, and connects that were followed. Cannot be full.
#[map]
pub(crate) static SENT: PerCpuArray<u64> = PerCpuArray::with_max_entries(FOLLOWED + 1, 0);

/// Where connections that were remembered are in `SENT`.
pub(crate) const REMEMBERED: u32 = Kind::ALL.len() as u32;

/// Where connects that were followed are in `SENT`.
pub(crate) const FOLLOWED: u32 = REMEMBERED + 1;

/// What is left out to keep the cost low, see `netprobe_common::config`. Cannot be full.
#[map]
pub(crate) static LEVEL: Array<u32> = Array::with_max_entries(1, 0);

/// A SYN whose fate is only known when the function returns, on this CPU. Cannot be full.
#[map]
pub(crate) static SYN_CHECKS: PerCpuArray<crate::probes::listeners::SynCheck> =
    PerCpuArray::with_max_entries(1, 0);

/// A value of a frozen global, read so that the compiler does not fold its initial value.
#[inline(always)]
pub(crate) fn frozen<T: Plain>(value: &T) -> T {
    // SAFETY: a reference is valid for reads.
    unsafe { core::ptr::from_ref(value).read_volatile() }
}

/// Adds to a counter that only this CPU writes, safe against interruption by itself.
#[inline(always)]
pub(crate) fn add(counter: &mut u64, amount: u64) {
    let counter = core::ptr::from_mut(counter);
    // SAFETY: an atomic add (BPF_STX | BPF_XADD, in every kernel) to a valid, aligned place.
    unsafe {
        asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) amount, options(nostack));
    }
}

/// Adds to a counter that only one program writes, which the kernel does not run while it runs.
#[inline(always)]
pub(crate) fn add_alone(counter: &mut u64, amount: u64) {
    let counter = core::ptr::from_mut(counter);
    // SAFETY: a valid, aligned place.
    let before = unsafe { counter.read_volatile() };
    // SAFETY: as above.
    unsafe { counter.write_volatile(before + amount) };
}

/// Whether `kind` has one program only, and this kernel never runs that while it is running: then
/// its per-CPU values have one writer at any time.
#[inline(always)]
pub(crate) fn is_alone(kind: Kind) -> bool {
    matches!(kind, Kind::Drops) && frozen(&CONFIG.guarded) != 0
}

/// What is left out now.
#[inline(always)]
pub(crate) fn level() -> u32 {
    if frozen(&CONFIG.governed) == 0 {
        return LEVEL_ALL;
    }
    value(LEVEL.get_ptr_mut(0)).map_or(LEVEL_ALL, |level| *level)
}

/// The accounting of `kind` on this CPU.
#[inline(always)]
pub(crate) fn counters(kind: Kind) -> Option<&'static mut Counters> {
    let slot = COUNTERS.get_ptr_mut(kind as u32)?;
    // SAFETY: a map value lives as long as the map, and its fields are only added to.
    unsafe { slot.as_mut() }
}

/// Words of a [`CountKey`].
const WORDS: usize = size_of::<CountKey>() / 8;

/// The words of a key.
#[inline(always)]
pub(crate) fn words(key: &CountKey) -> &[u64; WORDS] {
    const { assert!(size_of::<CountKey>().is_multiple_of(8)) };
    const { assert!(align_of::<CountKey>() == 8) };
    // SAFETY: a key has no padding, and as many aligned words as that.
    unsafe { &*core::ptr::from_ref(key).cast() }
}

/// The value behind a pointer that a map lookup returned.
#[inline(always)]
pub(crate) fn value<T: Plain>(slot: Option<*mut T>) -> Option<&'static mut T> {
    // SAFETY: the pointer came from a lookup, so it is null or a live, aligned map value.
    unsafe { slot?.as_mut() }
}

/// Adds one event of `weight` to `key`; false if there is no room for a new key.
#[inline(always)]
pub(crate) fn count<K: Plain>(map: &PerCpuHashMap<K, Count>, key: &K, weight: u64) -> bool {
    add_count(map, key, &Count { events: 1, weight })
}

/// Adds `amount` to `key`; false if there is no room for a new key.
#[inline(always)]
pub(crate) fn add_count<K: Plain>(map: &PerCpuHashMap<K, Count>, key: &K, amount: &Count) -> bool {
    add_known(map, key, amount) || (make_room(map, key) && add_known(map, key, amount))
}

/// Gives `key` a count of nothing; false if the map is full.
#[inline(always)]
pub(crate) fn make_room<K: Plain>(map: &PerCpuHashMap<K, Count>, key: &K) -> bool {
    const E2BIG: i32 = -7;
    // BPF_NOEXIST (1): another CPU may have been first, and its count must not be reset.
    map.insert(key, Count::NONE, 1) != Err(E2BIG)
}

/// Adds `amount` to `key` if that is there.
#[inline(always)]
pub(crate) fn add_known<K: Plain>(map: &PerCpuHashMap<K, Count>, key: &K, amount: &Count) -> bool {
    let Some(count) = value(map.get_ptr_mut(key)) else {
        return false;
    };
    add(&mut count.events, amount.events);
    add(&mut count.weight, amount.weight);
    true
}
