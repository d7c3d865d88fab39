//! One run's programs in the kernel: loaded, attached, read out, and gone when it is dropped.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use aya::{
    Btf, Ebpf,
    maps::{Array, PerCpuHashMap},
};
use aya_log::EbpfLogger;
use log::Log;
use netprobe_common::{
    config::Config,
    counters::{Count, CountKey, GroupKey, OTHER},
    header::Kind,
    offsets::{Field, Offsets},
    record::Plain,
};

use super::{
    attach::{self, Attached, Link, Ways},
    btf::{self, KernelBtf},
    btf_index,
    casts::{self, Casts},
    drop_reasons::{self, DropReasons},
    keepers::{are_owners_told, host, joined, keepers, keeps_in_vain, relies_on_another},
    load::{self},
    netns, offsets,
    pod::Wire,
    privileges::{self, CannotRun},
    reset_reasons::{self, ResetReasons},
};
use crate::{
    filter::KnownReasons,
    kernel::sampler::OFF_CPU,
    observe::namespaces,
    probes::{self, Hook, PROBES, ProbeSpec},
};

mod modules;
mod readout;
mod request;

pub use self::request::Request;
use self::request::attaches;

/// Where conntrack is built in, this is among the kernel's own functions.
const CONNTRACK_FUNCTION: &str = "nf_conntrack_in";

/// Counts the runs that the kernel's guard against recursion has refused. Where it can be named,
/// typed tracepoints have that guard too (6.1; before, only trampolines had it).
const GUARD_FUNCTION: &str = "bpf_prog_inc_misses_counter";

/// Programs in the kernel.
pub struct Session {
    ebpf: Ebpf,
    config: Config,
    btf: Option<Btf>,
    drop_reasons: DropReasons,
    reset_reasons: ResetReasons,
    has_builtin_conntrack: bool,
    has_socket_cgroups: bool,
    ways: Ways,
    probes: Vec<(&'static ProbeSpec, Vec<Attached>)>,
    windowed: Option<Attached>,
    logger: Option<EbpfLogger<&'static dyn Log>>,
    has_lost_module: bool,
    detached: Option<Detached>,
    stack_depth: usize,
}

/// The moment from which on no program is in the kernel.
struct Detached {
    at: Instant,
    /// Firings that the kernel had skipped, for each probe.
    missed: Vec<Option<u64>>,
}

impl Session {
    /// Loads the object and attaches what the request names; what this kernel lacks is kept as
    /// a reason, not an error. From here on this thread has only the privileges that are still needed, and so have those
    /// that it starts.
    pub fn start(request: &Request) -> Result<Self> {
        Self::start_with(request, |_reasons, _has_socket_cgroups| Ok(request.config))
    }

    /// As [`Session::start`], with settings that depend on the kernel's names of the reasons that
    /// the events of the request have, and on whether it keeps the cgroup of a socket.
    pub fn start_with(
        request: &Request,
        configure: impl FnOnce(&dyn KnownReasons, bool) -> Result<Config>,
    ) -> Result<Self> {
        let started = Instant::now();
        let (kernel, btf) = parse_btf(&btf::Image::read()?, &request.typed_targets())?;
        let offsets = offsets::resolve(&kernel);
        log::debug!("types are read after {:?}", started.elapsed());
        let drop_reasons = DropReasons::read(&kernel);
        let reset_reasons = ResetReasons::read(&kernel);
        let has_resets = request.probes.iter().all(|spec| spec.kind == Kind::Resets);
        let reasons: &dyn KnownReasons = if has_resets {
            &reset_reasons
        } else {
            &drop_reasons
        };
        let config = configure(reasons, offsets::has_socket_cgroups(&offsets))?;
        let can_run = |spec: &&&ProbeSpec| missing(spec, &offsets).is_none();
        let probes: Vec<_> = request.probes.iter().filter(can_run).copied().collect();
        let (lives_kept_by, owners_kept_by) = keepers(&probes, are_owners_told(&config));
        let config = Config {
            guarded: u32::from(kernel.function(GUARD_FUNCTION).is_some()),
            owners_kept_by,
            lives_kept_by,
            joined: joined(&probes),
            pid_namespace: namespaces::own_pid_namespace(),
            filter: netns::only_this(&config.filter),
            ..config
        };
        let casts = Casts::find(&kernel);
        let programs = request.programs();
        let (mut ebpf, stack_depth) =
            load::load(&config, &offsets, casts, request.sizes, &programs, &btf)?;
        reserve_other(&mut ebpf, request)?;
        let logger = open_log(&mut ebpf, &config)?;
        log::debug!("maps are ready after {:?}", started.elapsed());
        let mut session = Self {
            ebpf,
            config,
            btf: Some(btf),
            drop_reasons,
            reset_reasons,
            has_socket_cgroups: offsets::has_socket_cgroups(&offsets),
            has_builtin_conntrack: kernel.function(CONNTRACK_FUNCTION).is_some(),
            ways: Ways::detect(),
            probes: Vec::new(),
            windowed: None,
            logger,
            has_lost_module: false,
            detached: None,
            stack_depth,
        };
        drop(kernel);
        log::debug!("names are ready after {:?}", started.elapsed());
        for spec in &request.probes {
            session.attach_probe(spec, &offsets);
            log::debug!("{} is attached after {:?}", spec.name(), started.elapsed());
        }
        session.windowed = request.windowed.map(|hook| session.prepare(hook));
        // The types are only needed to load; they are most of our memory.
        session.btf = None;
        privileges::reduce();
        Ok(session)
    }

    fn attach_probe(&mut self, spec: &'static ProbeSpec, offsets: &Offsets) {
        let missing = missing(spec, offsets);
        let relies = relies_on_another(spec, &self.config);
        let is_vain = keeps_in_vain(spec, &self.config);
        let attach = |hook: &'static Hook| {
            if let Some(field) = missing {
                let why = format!("this kernel has no {:?}", field.source());
                return Attached::refused(hook, why);
            }
            if hook.only_remembers && relies {
                return Attached::elsewhere(hook, hook.ways[0]);
            }
            match host(hook, &self.probes) {
                Some(programs) => Attached::elsewhere(hook, programs),
                None => self.attach(hook),
            }
        };
        let attached = spec
            .hooks
            .iter()
            .filter(|hook| !(hook.only_remembers && is_vain))
            .map(attach)
            .collect();
        self.probes.push((spec, attached));
    }

    fn prepare(&mut self, hook: &'static Hook) -> Attached {
        attach::prepare(&mut self.ebpf, self.btf.as_ref(), &mut self.ways, hook)
    }

    /// Passes on what the programs have logged about rare errors.
    pub fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// The hook that is attached only in windows, if it was asked for: loaded, or why not.
    pub const fn windowed(&self) -> Option<&Attached> {
        self.windowed.as_ref()
    }

    /// Attaches the windowed hook for as long as the links are kept.
    pub fn open_windowed(&mut self) -> Result<Vec<Link>> {
        let (hook, way) = match self.windowed.as_ref() {
            Some(Attached {
                hook,
                result: Ok(way),
                ..
            }) => (*hook, *way),
            Some(Attached {
                result: Err(why), ..
            }) => return Err(anyhow!("{why}")),
            None => return Err(anyhow!("not asked for")),
        };
        match attach::open(&mut self.ebpf, way) {
            Err(error) if self.ways.take_trampolines_once() => {
                log::debug!("{error:#}: another way is tried");
                attach::unload(&mut self.ebpf, hook);
                self.windowed = Some(self.prepare(hook));
                self.open_windowed()
            }
            opened => opened,
        }
    }

    /// Attaches the windowed hook for the rest of the run.
    pub fn attach_windowed(&mut self) -> Result<()> {
        match self.windowed.as_ref().map(|attached| &attached.result) {
            Some(Ok(way)) => attach::link_all(&mut self.ebpf, way),
            Some(Err(why)) => Err(anyhow!("{why}")),
            None => Err(anyhow!("not asked for")),
        }
    }

    /// The probes asked for and what became of their hooks.
    pub fn probes(&self) -> &[(&'static ProbeSpec, Vec<Attached>)] {
        &self.probes
    }

    /// Names of this kernel's drop reasons.
    pub const fn drop_reasons(&self) -> &DropReasons {
        &self.drop_reasons
    }

    /// Names of this kernel's reset reasons.
    pub const fn reset_reasons(&self) -> &ResetReasons {
        &self.reset_reasons
    }

    /// For aya-log and the CPU sampler, which aya hands programs and maps itself.
    pub const fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Whether this kernel keeps the cgroup of a socket.
    pub const fn has_socket_cgroups(&self) -> bool {
        self.has_socket_cgroups
    }

    /// Opens (a number above 0) or closes (0) a window in which port candidates are counted.
    pub fn set_window(&mut self, number: u64) -> Result<()> {
        self.set("WINDOW", number)
    }

    /// The settings of the programs.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Tells the programs what to leave out, see `netprobe_common::config`.
    pub fn set_level(&mut self, level: u32) -> Result<()> {
        self.set("LEVEL", level)
    }

    /// Sets the only value of a map that the programs look at as they run.
    fn set(&mut self, name: &str, value: impl aya::Pod) -> Result<()> {
        let map = self
            .ebpf
            .map_mut(name)
            .ok_or_else(|| anyhow!("no map {name}"))?;
        let mut map = Array::try_from(map)?;
        map.set(0, value, 0)
            .with_context(|| format!("write {name}"))
    }

    /// Takes every program out of the kernel, if they are not out already, so that the maps hold still. Returns for
    /// each probe the firings that the kernel skipped.
    pub fn detach(&mut self) -> Vec<Option<u64>> {
        if let Some(detached) = &self.detached {
            return detached.missed.clone();
        }
        let missed = self.missed();
        for (spec, _) in &self.probes {
            for hook in spec.hooks {
                attach::unload(&mut self.ebpf, hook);
            }
        }
        if let Some(windowed) = &self.windowed {
            attach::unload(&mut self.ebpf, windowed.hook);
        }
        attach::unload_sampler(&mut self.ebpf);
        self.detached = Some(Detached {
            at: Instant::now(),
            missed: missed.clone(),
        });
        missed
    }

    /// Whether a module was unloaded meanwhile, with what it had counted and the programs in it.
    pub const fn has_lost_module(&self) -> bool {
        self.has_lost_module
    }

    /// Frames that the kernel takes of a stack.
    pub const fn stack_depth(&self) -> usize {
        self.stack_depth
    }

    /// Whether its programs are out of the kernel already.
    pub const fn is_detached(&self) -> bool {
        self.detached.is_some()
    }

    /// How long its programs were in the kernel since `started`.
    pub fn watched_since(&self, started: Instant) -> Duration {
        let ended = self.detached.as_ref().map(|detached| detached.at);
        ended.unwrap_or_else(Instant::now).duration_since(started)
    }
}

/// Parses the kernel's types: whole for us, thinned for aya, which only needs to find hooks.
fn parse_btf(image: &btf::Image, targets: &HashSet<String>) -> Result<(KernelBtf, Btf)> {
    let index = btf_index::find(image.bytes(), &names())
        .ok_or_else(|| {
            CannotRun::new(
                "the kernel's types (/sys/kernel/btf/vmlinux) are damaged, or of a format not known here: see what is \
                 mounted there, or take a newer netprobe",
            )
        })?;
    let aya = btf_index::thin(&index, targets).context("thin the BTF")?;
    Ok((KernelBtf::new(image, index)?, aya))
}

/// What a probe needs and this kernel does not have.
fn missing(spec: &ProbeSpec, offsets: &Offsets) -> Option<Field> {
    let needs = spec.needs.iter().copied();
    let mut missing = needs.filter(|field| offsets.get(*field).is_none());
    missing.next()
}

/// Everything that is asked of the kernel's BTF, by name.
fn names() -> HashSet<String> {
    let extra = [&probes::connects::CANDIDATES, &OFF_CPU];
    let hooks = PROBES.iter().flat_map(|spec| spec.hooks).chain(extra);
    let targets = attaches(hooks).map(|attach| {
        let type_name = attach.type_name();
        type_name.unwrap_or_else(|| attach.target.to_owned())
    });
    let types = offsets::names()
        .chain(drop_reasons::names())
        .chain(reset_reasons::names())
        .chain(casts::names())
        .chain([CONNTRACK_FUNCTION, GUARD_FUNCTION]);
    types.map(str::to_owned).chain(targets).collect()
}

/// Opens the log of the programs, if they were told to write one.
fn open_log(ebpf: &mut Ebpf, config: &Config) -> Result<Option<EbpfLogger<&'static dyn Log>>> {
    if config.log == 0 {
        return Ok(None);
    }
    Ok(Some(
        EbpfLogger::init(ebpf).context("open the log of the programs")?,
    ))
}

/// Makes sure that the rows which gather overflow have their place.
fn reserve_other(ebpf: &mut Ebpf, request: &Request) -> Result<()> {
    for spec in &request.probes {
        let key = CountKey {
            kind: spec.kind as u32,
            code: OTHER,
            ..CountKey::zeroed()
        };
        reserve(ebpf, "COUNTS", key)?;
        let key = GroupKey {
            key,
            ..GroupKey::zeroed()
        };
        if request.config.by != 0 {
            reserve(ebpf, "GROUPS", key)?;
        }
    }
    Ok(())
}

fn reserve<K: Plain>(ebpf: &mut Ebpf, name: &str, key: K) -> Result<()> {
    let map = ebpf.map_mut(name).ok_or_else(|| anyhow!("no map {name}"))?;
    let mut map: PerCpuHashMap<_, Wire<K>, Wire<Count>> = PerCpuHashMap::try_from(map)?;
    let cpus = aya::util::nr_cpus().map_err(|(path, error)| anyhow!("{path}: {error}"))?;
    let none = Count {
        events: 0,
        weight: 0,
    };
    let zeroes = aya::maps::PerCpuValues::try_from(vec![Wire(none); cpus])?;
    map.insert(Wire(key), zeroes, 0)
        .with_context(|| format!("write {name}"))
}
