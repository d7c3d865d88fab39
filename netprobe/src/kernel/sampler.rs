//! Samples what every CPU is doing, by a timer of its own.

use anyhow::{Context, Result, anyhow};
use aya::{
    programs::{
        PerfEvent,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
    util::online_cpus,
};

use super::session::Session;

/// Attaches the sampler to all CPUs that are online; each sample stands for `period_ns`.
pub fn start(session: &mut Session, period_ns: u64) -> Result<usize> {
    let program: &mut PerfEvent = session
        .ebpf()
        .program_mut("cpu")
        .ok_or_else(|| anyhow!("the object has no program cpu"))?
        .try_into()?;
    program.load().context("load the sampler")?;
    let cpus = online_cpus().map_err(|(path, error)| anyhow!("{path}: {error}"))?;
    for cpu in &cpus {
        program
            .attach(
                PerfEventConfig::Software(SoftwareEvent::CpuClock),
                PerfEventScope::AllProcessesOneCpu { cpu: *cpu },
                SamplePolicy::Period(period_ns),
                true,
            )
            .with_context(|| format!("sample CPU {cpu} (needs CAP_PERFMON)"))?;
    }
    Ok(cpus.len())
}
