//! What the programs have collected of tasks: stacks by samples or blocked time, and the accounts.

use anyhow::{Context, Result, anyhow};
use aya::maps::{HashMap, MapData, PerCpuArray, Queue, RingBuf, StackTraceMap};
use netprobe_common::{
    counters::Count,
    record::read,
    samples::{
        BlockEnd, Blocked, COLLISION, COPIED, LEFT_OUT, NO_SUCH_STACK, NOT_ASKED, PAGE, SECOND_MAP,
        StackCopy, Tally, TaskStack, WantedKey,
    },
};

use super::{pod::Wire, session::Session};

/// The place of the stack pointer among the registers.
const STACK_POINTER: usize = 19;

/// Everything that a run has collected.
#[derive(Debug)]
pub struct Collected {
    /// Groups of samples or blocks.
    pub stacks: Vec<(TaskStack, Count)>,
    /// Tasks that are still blocked, by thread id.
    pub lasting: Vec<(u32, Blocked)>,
    /// What became of every firing.
    pub tally: Tally,
}

/// A stack that the kernel kept, or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// There is none.
    None,
    /// Innermost first.
    Known {
        /// Instruction pointers.
        ips: Vec<u64>,
        /// The kernel cut it: there were more.
        is_cut: bool,
    },
    /// Other stacks had its places.
    Collision,
    /// It was copied, and nobody knows how long it lasted.
    Unended,
    /// The kernel could not take it, with this errno.
    Failed(i32),
}

/// Says which tasks are wanted; before the programs are attached.
pub fn want(session: &mut Session, keys: &[WantedKey]) -> Result<()> {
    let map = session
        .ebpf()
        .map_mut("WANTED")
        .ok_or_else(|| anyhow!("no map WANTED"))?;
    let mut map: HashMap<_, Wire<WantedKey>, u32> = HashMap::try_from(map)?;
    for key in keys {
        map.insert(Wire(*key), 1, 0)
            .context("too many processes, threads, cgroups or CPUs are wanted")?;
    }
    Ok(())
}

/// The maps that are read while the programs run.
pub struct TaskStacks {
    stacks: StackTraceMap<MapData>,
    more: StackTraceMap<MapData>,
    sighted: Queue<MapData, u32>,
    framed: HashMap<MapData, u32, u32>,
    unwanted: HashMap<MapData, Wire<TaskStack>, u32>,
    ring: RingBuf<MapData>,
    depth: usize,
}

/// What the programs send of user stacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// A copy: whose, and what was on the stack from its pointer on.
    Copy(Box<StackCopy>, Vec<u8>),
    /// The block that began with the last copy of the thread has ended.
    End(BlockEnd),
}

impl Sent {
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() == size_of::<BlockEnd>() {
            return read(bytes).map(Self::End);
        }
        let copy: StackCopy = read(bytes)?;
        let pages = bytes.get(size_of::<StackCopy>()..)?;
        let pointer = usize::try_from(copy.registers[STACK_POINTER]).ok()?;
        let stack = pages.get(pointer & (PAGE - 1)..)?.to_vec();
        Some(Self::Copy(Box::new(copy), stack))
    }
}

impl TaskStacks {
    /// Takes them; can be done once.
    pub fn take(session: &mut Session) -> Result<Self> {
        let stacks = session.take_stacks()?;
        let ring = session.take_ring()?;
        let mut take = |name: &str| {
            let map = session.ebpf().take_map(name);
            map.ok_or_else(|| anyhow!("no map {name}"))
        };
        Ok(Self {
            stacks,
            more: StackTraceMap::try_from(take("MORE_STACKS")?)?,
            sighted: Queue::try_from(take("SIGHTED")?)?,
            framed: HashMap::try_from(take("FRAMED")?)?,
            unwanted: HashMap::try_from(take("UNWANTED")?)?,
            ring,
            depth: session.stack_depth(),
        })
    }

    /// A process that was not seen before, if there is one.
    pub fn sighted(&mut self) -> Option<u32> {
        self.sighted.pop(0).ok()
    }

    /// The next of what the programs have sent, if there is more.
    pub fn sent(&mut self) -> Option<Sent> {
        loop {
            let item = self.ring.next()?;
            match Sent::parse(&item) {
                Some(sent) => return Some(sent),
                None => log::debug!("{} bytes of the ring are no stack", item.len()),
            }
        }
    }

    /// Frames of a stack that the kernel keeps; one that has as many was cut.
    pub const fn depth(&self) -> usize {
        self.depth
    }

    /// Says that stacks of the process need not be copied, or only their top: all its code keeps frame pointers.
    pub fn walk(&mut self, pid: u32) {
        if let Err(error) = self.framed.insert(pid, 1, 0) {
            log::debug!("stacks of process {pid} are copied for nothing: {error}");
        }
    }

    /// Says that a task ([`TaskStack::of_task`]) or a kernel stack ([`TaskStack::of_kernel`]) is not wanted.
    pub fn refuse(&mut self, what: TaskStack) {
        if let Err(error) = self.unwanted.insert(Wire(what), 1, 0) {
            log::debug!("stacks are taken for nothing: {error}");
        }
    }

    /// The stack with this id.
    pub fn read(&self, id: i32) -> Addresses {
        let (map, id) = match id {
            NO_SUCH_STACK | NOT_ASKED | LEFT_OUT => return Addresses::None,
            COLLISION => return Addresses::Collision,
            COPIED => return Addresses::Unended,
            id if id < 0 => return Addresses::Failed(-id),
            id if id & SECOND_MAP != 0 => (&self.more, id & !SECOND_MAP),
            id => (&self.stacks, id),
        };
        let Ok(stack) = map.get(&id.unsigned_abs(), 0) else {
            return Addresses::Failed(libc::ENOENT);
        };
        let ips: Vec<u64> = stack.frames().iter().map(|frame| frame.ip).collect();
        Addresses::Known {
            is_cut: ips.len() >= self.depth,
            ips,
        }
    }
}

/// Reads what was collected, after the programs are detached.
pub fn collected(session: &Session) -> Result<Collected> {
    let stacks = session.counted("TASK_STACKS")?;
    let map: HashMap<_, u32, Wire<Blocked>> = HashMap::try_from(session.map("BLOCKED")?)?;
    let mut lasting = Vec::new();
    for entry in &map {
        let (thread, Wire(blocked)) = entry.context("read BLOCKED")?;
        if blocked.since_ns != 0 {
            lasting.push((thread, blocked));
        }
    }
    let tally = tally(session)?;
    Ok(Collected {
        stacks,
        lasting,
        tally,
    })
}

/// The stacks that were counted until now.
pub fn stacks(session: &Session) -> Result<Vec<TaskStack>> {
    let counted = session.counted::<TaskStack>("TASK_STACKS")?;
    Ok(counted.into_iter().map(|(stack, _)| stack).collect())
}

/// What became of every firing until now.
pub fn tally(session: &Session) -> Result<Tally> {
    let map: PerCpuArray<_, Wire<Tally>> = PerCpuArray::try_from(session.map("TALLY")?)?;
    let mut tally = Tally::ZERO;
    for Wire(one) in map.get(&0, 0).context("read TALLY")?.iter() {
        tally.add(one);
    }
    Ok(tally)
}
