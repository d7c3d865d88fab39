//! Samples what every CPU is doing, at a steady rate, also on CPUs that come later; and where the
//! blocks of tasks are seen.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use aya::{
    programs::{
        PerfEvent, ProgramError,
        perf_event::{HardwareEvent, PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
    util::online_cpus,
};

use super::{
    privileges::{self, CannotRun},
    session::Session,
};
use crate::probes::{Hook, Via};

/// The program that takes samples.
pub(super) const PROGRAM: &str = "cpu";

/// How many CPUs are online now, whatever a control group lets this process use of them.
pub fn online() -> u32 {
    online_cpus().map_or(1, |cpus| u32::try_from(cpus.len()).unwrap_or(u32::MAX))
}

/// Which CPUs are online now.
pub fn online_list() -> Result<Vec<u32>> {
    online_cpus().map_err(|(path, error)| anyhow!("{path}: {error}"))
}

/// Tasks that leave a CPU and come back.
pub static OFF_CPU: Hook = Hook {
    sees: "tasks that block",
    required: true,
    only_remembers: false,
    module: None,
    ways: &[&[Via::TpBtf.on("sched_switch", "off_cpu")]],
};

/// What makes a CPU take a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The cycle counter of the CPU, which also sees code that has interrupts off.
    Cycles,
    /// A timer, where there is no such counter.
    CpuClock,
}

impl Clock {
    /// Its name in the subtitle, as perf(1) calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cycles => "cycles",
            Self::CpuClock => "cpu-clock",
        }
    }
}

/// A running sampler. It ends with the session's programs.
#[derive(Debug)]
pub struct Sampler {
    clock: Clock,
    hertz: u64,
    only: Vec<u32>,
    sampled: BTreeSet<u32>,
    looked: Instant,
}

/// How often CPUs that came are looked for.
const EVERY: Duration = Duration::from_millis(250);

impl Sampler {
    /// Samples all CPUs that are online, or those of `only` if it names any.
    pub fn start(session: &mut Session, hertz: u64, only: &[u32]) -> Result<Self> {
        program(session)?.load().context("load the sampler")?;
        let mut sampler = Self {
            clock: Clock::Cycles,
            hertz,
            only: only.to_vec(),
            sampled: BTreeSet::new(),
            looked: Instant::now(),
        };
        let cpus = sampler.wanted_cpus()?;
        let first = *cpus
            .first()
            .context("none of the CPUs of --cpu is online")?;
        if let Err(error) = sampler.attach(session, first) {
            log::debug!("no hardware cycles: {error}");
            sampler.clock = Clock::CpuClock;
            let attached = sampler.attach(session, first).map_err(explain);
            attached.with_context(|| format!("sample CPU {first}"))?;
        }
        sampler.sampled.insert(first);
        sampler.take_all(session)?;
        Ok(sampler)
    }

    /// What makes a CPU take a sample.
    pub const fn clock(&self) -> Clock {
        self.clock
    }

    /// CPUs that are being sampled.
    pub fn cpus(&self) -> usize {
        self.sampled.len()
    }

    /// Samples the CPUs that have come, if it was not looked for them just now; those that went have lost their timer.
    pub fn follow(&mut self, session: &mut Session) -> Result<()> {
        if self.looked.elapsed() < EVERY {
            return Ok(());
        }
        self.looked = Instant::now();
        self.take_all(session)
    }

    fn take_all(&mut self, session: &mut Session) -> Result<()> {
        let online = self.wanted_cpus()?;
        self.sampled.retain(|cpu| online.contains(cpu));
        for cpu in online {
            if self.sampled.contains(&cpu) {
                continue;
            }
            match self.attach(session, cpu) {
                Ok(()) => {
                    self.sampled.insert(cpu);
                }
                // It may have gone again; it is tried the next time.
                Err(error) => log::debug!("CPU {cpu} is not sampled: {error}"),
            }
        }
        Ok(())
    }

    fn wanted_cpus(&self) -> Result<Vec<u32>> {
        let mut cpus = online_list()?;
        cpus.retain(|cpu| self.only.is_empty() || self.only.contains(cpu));
        Ok(cpus)
    }

    fn attach(&self, session: &mut Session, cpu: u32) -> Result<()> {
        let (event, policy) = match self.clock {
            Clock::Cycles => (
                PerfEventConfig::Hardware(HardwareEvent::CpuCycles),
                SamplePolicy::Frequency(self.hertz),
            ),
            Clock::CpuClock => (
                PerfEventConfig::Software(SoftwareEvent::CpuClock),
                SamplePolicy::Period(1_000_000_000 / self.hertz),
            ),
        };
        let scope = PerfEventScope::AllProcessesOneCpu { cpu };
        program(session)?.attach(event, scope, policy, false)?;
        Ok(())
    }
}

/// Adds why the kernel does not let us sample, if it does not: we would not be here without `CAP_PERFMON`.
fn explain(error: anyhow::Error) -> anyhow::Error {
    if !privileges::is_refused(&error) {
        return error;
    }
    error.context(CannotRun::new(privileges::why_no_perf_events()))
}

fn program(session: &mut Session) -> Result<&mut PerfEvent> {
    let program = session
        .ebpf()
        .program_mut(PROGRAM)
        .ok_or_else(|| anyhow!("the object has no program cpu"))?;
    program
        .try_into()
        .map_err(|error: ProgramError| anyhow!(error))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn only_a_refusal_is_explained() {
        let error = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(explain(error.into()).is::<CannotRun>());
        let error = io::Error::from(io::ErrorKind::NotFound);
        assert!(!explain(error.into()).is::<CannotRun>());
    }
}
