//! The object that `cargo xtask ebpf` built, loaded with the settings of this run.

use std::{collections::HashSet, fs};

use anyhow::{Context, Result};
use aya::{Btf, Ebpf, EbpfLoader};
use netprobe_common::{
    config::Config,
    counters::{Count, GroupKey},
    offsets::Offsets,
    record::bytes_of,
    samples::STACK_DEPTH,
};
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_getres},
};

use super::{
    casts::Casts,
    object,
    privileges::{self, CannotRun},
};
use crate::probes::Keeps;

/// A thousand stacks per second of the same place and reason on a CPU show where a storm comes from,
/// and take less than one percent of it.
const STACK_INTERVAL_NS: u32 = 1_000_000;

/// How large the maps of this run are.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Bytes of the ring buffer, a power of two.
    pub ring_bytes: u32,
    /// Distinct kernel stacks.
    pub stacks: u32,
    /// Groups of `--count`.
    pub counts: u32,
    /// Groups of `--count --by` that need more than `counts`.
    pub groups: u32,
    /// Groups of stacks, for flame graphs.
    pub stack_counts: u32,
    /// Connects under way.
    pub connects: u32,
    /// Sockets whose owner is remembered.
    pub owners: u32,
    /// Groups of samples or blocks, for flame graphs.
    pub task_stacks: u32,
    /// Distinct stacks whose place in the first map was taken.
    pub more_stacks: u32,
    /// Tasks that are blocked at a time.
    pub blocked: u32,
    /// Open connections whose age and owner are remembered.
    pub lives: u32,
    /// Sockets of which it is remembered since when they are in their state.
    pub states: u32,
}

impl Sizes {
    /// Maps that a run does not use. The kernel allocates maps at once, which takes time.
    pub const NONE: Self = Self {
        ring_bytes: 1 << 16,
        stacks: 1,
        counts: 64,
        groups: 1,
        stack_counts: 1,
        connects: 1,
        owners: 1,
        lives: 1,
        states: 1,
        task_stacks: 1,
        more_stacks: 1,
        blocked: 1,
    };

    /// With room for what the programs of a probe remember.
    #[must_use]
    pub const fn with(self, keeps: Keeps) -> Self {
        match keeps {
            Keeps::Nothing => self,
            Keeps::Owners => Self {
                owners: 32_768,
                ..self
            },
            Keeps::Connects => Self {
                connects: 16_384,
                ..self
            },
            Keeps::Lives => Self {
                lives: 131_072,
                ..self
            },
            Keeps::States => Self {
                lives: 131_072,
                states: 65_536,
                ..self
            },
        }
    }
}

/// The most groups of `--count --by`.
pub fn most_groups() -> u32 {
    const MOST: u32 = 65_536;
    most_entries::<GroupKey>(32 << 20, MOST)
}

/// So many entries that count for each CPU, or as many as fit into so many bytes: every entry has a part per CPU,
/// and machines with hundreds of them shall have as much room left as others.
pub fn most_entries<K>(bytes: usize, most: u32) -> u32 {
    /// What the kernel adds to an entry, about.
    const ENTRY: usize = 64;
    let cpus = aya::util::nr_cpus().unwrap_or(1);
    let entry = ENTRY + size_of::<K>() + cpus * size_of::<Count>();
    u32::try_from(bytes / entry).unwrap_or(most).clamp(1, most)
}

/// Frames that the kernel takes of a stack: fewer than the programs want where it is told so.
fn stack_depth() -> Result<usize> {
    const LIMIT: &str = "/proc/sys/kernel/perf_event_max_stack";
    depth_of(fs::read_to_string(LIMIT).ok().as_deref())
}

/// The same by the text of the limit, if it can be read.
fn depth_of(limit: Option<&str>) -> Result<usize> {
    match limit.and_then(|text| text.trim().parse().ok()) {
        Some(0) => Err(CannotRun::new(
            "kernel.perf_event_max_stack is 0, and without stacks no program can be loaded: set it to 127, which is what it \
             begins with",
        )
        .into()),
        Some(limit) => Ok(STACK_DEPTH.min(limit)),
        None => Ok(STACK_DEPTH),
    }
}

/// Creates the maps and reads the programs that are wanted, by name; none of them runs yet. Returns
/// how deep stacks are kept, too.
pub(super) fn load(
    config: &Config,
    offsets: &Offsets,
    casts: Casts,
    sizes: Sizes,
    programs: &HashSet<&str>,
    btf: &Btf,
) -> Result<(Ebpf, usize)> {
    let stack_depth = stack_depth()?;
    let mut object = object::unpack()?;
    object::keep_frames(&mut object, u32::try_from(stack_depth)?)?;
    casts.write_into(&mut object);
    object::keep_only(&mut object, programs)?;
    let config = Config {
        tick_ns: tick_ns(),
        headers: casts.types(),
        stack_interval_ns: STACK_INTERVAL_NS,
        tests_flows: u32::from(config.filter.tests_flows()),
        ..*config
    };
    let unused = object::unused_maps(&object)?;
    let mut loader = loader()?;
    loader
        // aya asks for a log only once a program was rejected. Without a level the kernel refuses
        // that second question, and the reason stays hidden behind EINVAL.
        .verifier_log_level(aya::VerifierLogLevel::DEBUG)
        .btf(Some(btf))
        .override_global("CONFIG", bytes_of(&config), true)
        .override_global("OFFSETS", bytes_of(offsets), true)
        .map_max_entries("EVENTS", sizes.ring_bytes)
        .map_max_entries("STACKS", sizes.stacks)
        .map_max_entries("COUNTS", sizes.counts)
        .map_max_entries("GROUPS", sizes.groups)
        .map_max_entries("STACK_COUNTS", sizes.stack_counts)
        .map_max_entries("CONNECTS", sizes.connects)
        .map_max_entries("OWNERS", sizes.owners)
        .map_max_entries("LIVES", sizes.lives)
        .map_max_entries("TASK_STACKS", sizes.task_stacks)
        .map_max_entries("MORE_STACKS", sizes.more_stacks)
        .map_max_entries("BLOCKED", sizes.blocked)
        .map_max_entries("STATES", sizes.states);
    for map in unused {
        loader.map_max_entries(map, 1);
    }
    let ebpf = loader
        .load(&object)
        .map_err(|error| privileges::explain(error.into()))
        .context("create the BPF maps")?;
    Ok((ebpf, stack_depth))
}

/// aya reads all of the kernel's types when a loader is made, also one that is then given those that are needed: at
/// start that would take longer than all else. It does without them if they cannot be opened, and for
/// the moment nothing can.
fn loader<'a>() -> Result<EbpfLoader<'a>> {
    let limit = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(0),
        ..limit
    };
    setrlimit(Resource::Nofile, none).context("lower the limit of open files")?;
    let loader = EbpfLoader::new();
    setrlimit(Resource::Nofile, limit).context("restore the limit of open files")?;
    Ok(loader)
}

/// Length of a jiffy, which is how coarse the coarse clock is.
fn tick_ns() -> u32 {
    let resolution = clock_getres(ClockId::MonotonicCoarse);
    u32::try_from(resolution.tv_nsec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jiffy_is_one_of_the_lengths_that_kernels_are_built_with() {
        let tick_ns = tick_ns();
        assert!((1_000_000..=10_000_000).contains(&tick_ns), "{tick_ns}");
    }

    #[test]
    fn stacks_are_as_deep_as_the_kernel_allows() {
        assert_eq!(depth_of(Some("127\n")).unwrap(), 127);
        assert_eq!(depth_of(Some("1024\n")).unwrap(), 127);
        assert_eq!(depth_of(Some("16\n")).unwrap(), 16);
        assert_eq!(depth_of(None).unwrap(), 127);
        let refused = depth_of(Some("0\n")).unwrap_err();
        assert!(refused.is::<CannotRun>());
        assert!(refused.to_string().contains("perf_event_max_stack"));
    }
}
