//! What the programs have collected of tasks: stacks by samples or blocked time, and the accounts.

use anyhow::{Context, Result, anyhow};
use aya::maps::{HashMap, MapData, PerCpuArray, Queue, StackTraceMap};
use netprobe_common::{
    counters::Count,
    samples::{
        Blocked, COLLISION, NO_SUCH_STACK, NOT_ASKED, SECOND_MAP, STACK_DEPTH, Tally, TaskStack,
        WantedKey,
    },
};

use super::{pod::Wire, session::Session};

/// Everything that a run has collected.
#[derive(Debug)]
pub struct Collected {
    /// Groups of samples or blocks.
    pub stacks: Vec<(TaskStack, Count)>,
    /// Tasks that are still blocked.
    pub lasting: Vec<Blocked>,
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
}

impl TaskStacks {
    /// Takes them; can be done once.
    pub fn take(session: &mut Session) -> Result<Self> {
        let stacks = session.take_stacks()?;
        let mut take = |name: &str| {
            let map = session.ebpf().take_map(name);
            map.ok_or_else(|| anyhow!("no map {name}"))
        };
        Ok(Self {
            stacks,
            more: StackTraceMap::try_from(take("MORE_STACKS")?)?,
            sighted: Queue::try_from(take("SIGHTED")?)?,
        })
    }

    /// A process that was not seen before, if there is one.
    pub fn sighted(&mut self) -> Option<u32> {
        self.sighted.pop(0).ok()
    }

    /// The stack with this id.
    pub fn read(&self, id: i32) -> Addresses {
        let (map, id) = match id {
            NO_SUCH_STACK | NOT_ASKED => return Addresses::None,
            COLLISION => return Addresses::Collision,
            id if id < 0 => return Addresses::Failed(-id),
            id if id & SECOND_MAP != 0 => (&self.more, id & !SECOND_MAP),
            id => (&self.stacks, id),
        };
        let Ok(stack) = map.get(&id.unsigned_abs(), 0) else {
            return Addresses::Failed(libc::ENOENT);
        };
        let ips: Vec<u64> = stack.frames().iter().map(|frame| frame.ip).collect();
        Addresses::Known {
            is_cut: ips.len() >= STACK_DEPTH,
            ips,
        }
    }
}

/// Reads what was collected, after the programs are detached.
pub fn collected(session: &mut Session) -> Result<Collected> {
    let stacks = session.counted("TASK_STACKS")?;
    let ebpf = session.ebpf();
    let map = ebpf
        .map("BLOCKED")
        .ok_or_else(|| anyhow!("no map BLOCKED"))?;
    let map: HashMap<_, u32, Wire<Blocked>> = HashMap::try_from(map)?;
    let mut lasting = Vec::new();
    for entry in &map {
        let (_thread, Wire(blocked)) = entry.context("read BLOCKED")?;
        lasting.push(blocked);
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
pub fn tally(session: &mut Session) -> Result<Tally> {
    let map = session
        .ebpf()
        .map("TALLY")
        .ok_or_else(|| anyhow!("no map TALLY"))?;
    let map: PerCpuArray<_, Wire<Tally>> = PerCpuArray::try_from(map)?;
    let mut tally = Tally::ZERO;
    for Wire(one) in map.get(&0, 0).context("read TALLY")?.iter() {
        tally.add(one);
    }
    Ok(tally)
}
