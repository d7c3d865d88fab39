//! What the programs have counted and cost, read out of their maps and descriptors.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    os::fd::AsFd,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use aya::maps::{Map, MapData, PerCpuArray, RingBuf, StackTraceMap};
use netprobe_common::{
    counters::{Candidates, Count, CountKey, Counters, StackKey},
    record::Plain,
    samples,
};

use super::{
    super::{
        attach::Attached,
        fdinfo::FdInfo,
        link_info,
        pod::Wire,
        sampler, task_stacks,
        totals::{self, Tally},
    },
    Session,
};
use crate::probes::ProbeSpec;

impl Session {
    /// The ring that events arrive in; can be taken once.
    pub fn take_ring(&mut self) -> Result<RingBuf<MapData>> {
        let map = self
            .ebpf
            .take_map("EVENTS")
            .ok_or_else(|| anyhow!("the ring is taken"))?;
        RingBuf::try_from(map).context("map the ring buffer")
    }

    /// The map of kernel stacks; can be taken once.
    pub fn take_stacks(&mut self) -> Result<StackTraceMap<MapData>> {
        let map = self
            .ebpf
            .take_map("STACKS")
            .ok_or_else(|| anyhow!("the stacks are taken"))?;
        StackTraceMap::try_from(map).context("open the stack map")
    }

    /// The accounting of a probe, summed over CPUs.
    pub fn counters(&self, spec: &ProbeSpec) -> Result<Counters> {
        let map: PerCpuArray<_, Wire<Counters>> = PerCpuArray::try_from(self.map("COUNTERS")?)?;
        let mut sum = Counters::ZERO;
        for Wire(counters) in map
            .get(&(spec.kind as u32), 0)
            .context("read COUNTERS")?
            .iter()
        {
            sum.add(counters);
        }
        Ok(sum)
    }

    /// The accounting of all probes together; what cannot be read is not in it.
    pub fn all_counters(&self) -> Counters {
        let mut sum = Counters::ZERO;
        for counters in self
            .probes
            .iter()
            .filter_map(|(spec, _)| self.counters(spec).ok())
        {
            sum.add(&counters);
        }
        sum
    }

    /// Events, samples and blocks until now that the filter wanted; what cannot be read is not among them.
    pub fn wanted_until_now(&self) -> u64 {
        let (fired, filtered) = self.fired_and_filtered();
        fired.saturating_sub(filtered)
    }

    /// As [`Session::wanted_until_now`], and what the filter did not want.
    pub fn firings(&self) -> u64 {
        self.fired_and_filtered().0
    }

    fn fired_and_filtered(&self) -> (u64, u64) {
        let counters = self.all_counters();
        let tally = task_stacks::tally(self).unwrap_or(samples::Tally::ZERO);
        (
            counters.fired + tally.taken,
            counters.filtered + tally.filtered,
        )
    }

    /// The totals of `--count`, summed over CPUs.
    pub fn totals(&self) -> Result<Vec<(CountKey, Count)>> {
        totals::groups(&self.ebpf)
    }

    /// What `--count` counts, to be read while somebody else has the session; can be taken once.
    pub fn take_tally(&mut self) -> Result<Tally> {
        Tally::take(&mut self.ebpf)
    }

    /// A map of the object, by name.
    pub(in super::super) fn map(&self, name: &str) -> Result<&Map> {
        totals::find(&self.ebpf, name)
    }

    /// Makes room for other groups in the totals of `--count`, between two windows.
    pub fn forget_totals(&mut self) -> Result<()> {
        totals::forget_groups(&mut self.ebpf)
    }

    /// The stacks counted in the kernel, summed over CPUs.
    pub fn stack_totals(&self) -> Result<Vec<(StackKey, Count)>> {
        totals::stacks(&self.ebpf)
    }

    /// A map of counts, summed over CPUs.
    pub(in super::super) fn counted<K: Plain + Eq + Hash>(
        &self,
        name: &str,
    ) -> Result<Vec<(K, Count)>> {
        totals::counted(&self.ebpf, name)
    }

    /// How long the attached programs have run while the kernel measured, and how often; `None`
    /// where it does not say.
    pub fn run_time(&self) -> Option<(Duration, u64)> {
        let attached = self.probes.iter().flat_map(|(_, hooks)| hooks);
        let programs = attached.chain(&self.windowed).flat_map(Attached::programs);
        // The sampler is loaded for graphs of what the CPUs do only; and a program may work for several hooks.
        let programs: HashSet<_> = programs.chain([sampler::PROGRAM]).collect();
        let fds = programs
            .into_iter()
            .filter_map(|name| self.ebpf.program(name)?.fd().ok());
        let mut sum = (Duration::ZERO, 0);
        for fd in fds {
            let info = FdInfo::read(fd.as_fd()).ok()?;
            sum.0 += Duration::from_nanos(info.run_time_ns?);
            sum.1 += info.run_cnt?;
        }
        Some(sum)
    }

    /// Calls of the port check since the start, over all CPUs.
    pub fn candidate_calls(&self) -> Result<u64> {
        let map: PerCpuArray<_, Wire<Candidates>> = PerCpuArray::try_from(self.map("CANDIDATES")?)?;
        let values = map.get(&0, 0).context("read CANDIDATES")?;
        Ok(values.iter().map(|Wire(candidates)| candidates.calls).sum())
    }

    /// For each probe, firings of the programs that see its events that the kernel skipped because one was running on
    /// that CPU already, or a kprobe was; `None` where the kernel does not say.
    pub fn missed(&self) -> Vec<Option<u64>> {
        let of_links = link_info::missed();
        let probes = self.probes.iter();
        let missed = probes.map(|(_, hooks)| self.missed_by(hooks, &of_links));
        missed.collect()
    }

    fn missed_by(&self, hooks: &[Attached], of_links: &HashMap<u32, u64>) -> Option<u64> {
        let mut sum = Some(0);
        let hooks = hooks.iter().filter(|hook| !hook.hook.only_remembers);
        for program in hooks.flat_map(Attached::programs) {
            let Some(program) = self.ebpf.program(program) else {
                continue;
            };
            let Ok(fd) = program.fd() else { continue };
            let info = FdInfo::read(fd.as_fd()).unwrap_or_default();
            let of_link = info.id.and_then(|id| of_links.get(&id)).unwrap_or(&0);
            let missed = info.recursion_misses.map(|missed| missed + of_link);
            sum = sum.zip(missed).map(|(a, b)| a + b);
        }
        sum
    }
}
