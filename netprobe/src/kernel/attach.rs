//! Puts the programs of a probe into the kernel: of several ways, the first that works.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use aya::{
    Btf, Ebpf,
    programs::{Program, ProgramError, fentry::FEntryLink, kprobe::KProbeLink},
};

use super::{privileges, sampler};
use crate::probes::{Attach, Hook, Via};

/// What became of one hook of a probe.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The hook.
    pub hook: &'static Hook,
    /// The way that works, or why none does.
    pub result: Result<&'static [Attach], String>,
    /// Which loading of its module it is attached to, if it is in one.
    pub instance: Option<u64>,
}

impl Attached {
    /// A hook that was not even tried.
    pub const fn refused(hook: &'static Hook, why: String) -> Self {
        Self {
            hook,
            result: Err(why),
            instance: None,
        }
    }

    /// A hook whose work the programs of another probe do, in the same place.
    pub const fn elsewhere(hook: &'static Hook, programs: &'static [Attach]) -> Self {
        Self {
            hook,
            result: Ok(programs),
            instance: None,
        }
    }

    /// The type of program in use, or why there is none.
    pub fn state(&self) -> Result<&'static str, String> {
        match &self.result {
            Ok(way) => Ok(way.first().map_or("", |attach| attach.via.name())),
            Err(why) => Err(why.clone()),
        }
    }

    /// Names of the programs in use.
    pub fn programs(&self) -> impl Iterator<Item = &'static str> {
        self.result
            .iter()
            .flat_map(|way| way.iter().map(|attach| attach.program))
    }
}

/// Which types of program this kernel takes at all, so that it is asked once only.
#[derive(Debug)]
pub struct Ways {
    /// Why function probes by trampoline are refused, if they are.
    trampolines: Option<String>,
    /// Why function probes by breakpoint are refused, if they are.
    breakpoints: Option<String>,
}

impl Ways {
    /// Finds out what can be told without loading a program.
    pub fn detect() -> Self {
        const KPROBES: &str = "/sys/bus/event_source/devices/kprobe/type";
        let breakpoints = (!Path::new(KPROBES).exists())
            .then(|| "this kernel has no kprobes (CONFIG_KPROBE_EVENTS)".to_owned());
        Self {
            trampolines: None,
            breakpoints,
        }
    }

    /// Takes note that a trampoline program could not be attached again: up to 5.12 the kernel forgets where it belongs
    /// once it was detached (`bpf_tracing_prog_attach`, ENOENT). False if they are refused already.
    pub fn take_trampolines_once(&mut self) -> bool {
        let is_news = self.trampolines.is_none();
        self.trampolines = Some("this kernel attaches such programs only once".to_owned());
        is_news
    }

    fn refuses(&self, via: Via) -> Option<&str> {
        match via {
            Via::TpBtf => None,
            Via::Fentry | Via::Fexit => self.trampolines.as_deref(),
            Via::Kprobe | Via::Kretprobe => self.breakpoints.as_deref(),
        }
    }

    /// EPERM for a trampoline, from a kernel that takes typed tracepoints, is about the kernel
    /// and not about our privileges. A breakpoint is a perf event, which may need more of them.
    fn learn(&mut self, via: Via, error: &anyhow::Error) {
        let refused = error.chain().any(|cause| {
            cause
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.raw_os_error() == Some(libc::EPERM))
        });
        if refused && matches!(via, Via::Fentry | Via::Fexit) {
            self.trampolines = Some("this kernel refuses fentry and fexit".to_owned());
        }
        if is_of_perf_events(error) && privileges::is_refused(error) {
            self.breakpoints = Some(privileges::why_no_perf_events());
        }
    }
}

/// Whether perf_event_open(2) failed.
fn is_of_perf_events(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let of_program = cause.downcast_ref::<ProgramError>();
        of_program.is_some_and(
            |error| matches!(error, ProgramError::SyscallError(error) if error.call == "perf_event_open"),
        )
    })
}

/// Tries the ways of `hook` in order and keeps the first that works.
pub fn attach(
    ebpf: &mut Ebpf,
    btf: Option<&Btf>,
    ways: &mut Ways,
    hook: &'static Hook,
) -> Attached {
    first_way(ebpf, ways, hook, |ebpf, attach| {
        load(ebpf, btf, attach)?;
        link(ebpf, attach)
    })
}

/// Loads the programs of a hook that is to be attached for short whiles later.
pub fn prepare(
    ebpf: &mut Ebpf,
    btf: Option<&Btf>,
    ways: &mut Ways,
    hook: &'static Hook,
) -> Attached {
    first_way(ebpf, ways, hook, |ebpf, attach| load(ebpf, btf, attach))
}

/// A link that ends when it is dropped.
#[derive(Debug)]
pub enum Link {
    /// Of an fentry program.
    Fentry(FEntryLink),
    /// Of a kprobe.
    Kprobe(KProbeLink),
}

/// Attaches function entry programs that were prepared, for as long as the links are kept.
pub fn open(ebpf: &mut Ebpf, way: &[Attach]) -> Result<Vec<Link>> {
    way.iter().map(|attach| open_one(ebpf, attach)).collect()
}

/// Attaches programs that were prepared, for as long as they are loaded.
pub fn link_all(ebpf: &mut Ebpf, way: &[Attach]) -> Result<()> {
    way.iter().try_for_each(|attach| link(ebpf, attach))
}

fn open_one(ebpf: &mut Ebpf, attach: &Attach) -> Result<Link> {
    Ok(match program(ebpf, attach)? {
        Program::FEntry(program) => {
            let id = program.attach().context("attach")?;
            Link::Fentry(program.take_link(id)?)
        }
        Program::KProbe(program) => {
            let id = program.attach(attach.target, 0).context("attach")?;
            Link::Kprobe(program.take_link(id)?)
        }
        _ => bail!("program {} does not see function entries", attach.program),
    })
}

/// Takes the programs of every way of `hook` out of the kernel.
pub fn unload(ebpf: &mut Ebpf, hook: &'static Hook) {
    for attach in hook.ways.iter().flat_map(|way| way.iter()) {
        unload_one(ebpf, attach);
    }
}

/// Does `each` for all programs of the first way for which that works.
fn first_way(
    ebpf: &mut Ebpf,
    ways: &mut Ways,
    hook: &'static Hook,
    mut each: impl FnMut(&mut Ebpf, &Attach) -> Result<()>,
) -> Attached {
    let mut reasons = Vec::new();
    for way in hook.ways {
        match whole_way(ebpf, ways, way, &mut each) {
            Ok(()) => {
                return Attached {
                    hook,
                    result: Ok(way),
                    instance: None,
                };
            }
            Err(error) => reasons.push(format!("{error:#}")),
        }
    }
    Attached {
        hook,
        result: Err(reasons.join("; ")),
        instance: None,
    }
}

/// Does `each` for all programs of one way, or for none of them.
fn whole_way(
    ebpf: &mut Ebpf,
    ways: &mut Ways,
    way: &[Attach],
    each: &mut impl FnMut(&mut Ebpf, &Attach) -> Result<()>,
) -> Result<()> {
    for (index, attach) in way.iter().enumerate() {
        if let Some(why) = ways.refuses(attach.via) {
            bail!("{why}");
        }
        if let Err(error) = each(ebpf, attach) {
            ways.learn(attach.via, &error);
            for undo in &way[..=index] {
                unload_one(ebpf, undo);
            }
            if let Some(why) = ways.refuses(attach.via) {
                bail!("{why}");
            }
            return Err(error.context(format!("{} {}", attach.via.name(), attach.target)));
        }
    }
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, attach: &Attach) -> Result<&'a mut Program> {
    ebpf.program_mut(attach.program)
        .ok_or_else(|| anyhow!("the object has no program {}", attach.program))
}

/// Loads a program, unless it is already there for another target.
fn load(ebpf: &mut Ebpf, btf: Option<&Btf>, attach: &Attach) -> Result<()> {
    let program = program(ebpf, attach)?;
    if program.fd().is_ok() {
        return Ok(());
    }
    if attach.via == Via::Kprobe || attach.via == Via::Kretprobe {
        let Program::KProbe(program) = program else {
            bail!("program {} is not of this type", attach.program);
        };
        return program.load().map_err(explain);
    }
    let btf = btf.ok_or_else(|| anyhow!("the kernel's types are not at hand any more"))?;
    match (program, attach.via) {
        (Program::BtfTracePoint(program), Via::TpBtf) => program.load(attach.target, btf),
        (Program::FEntry(program), Via::Fentry) => program.load(attach.target, btf),
        (Program::FExit(program), Via::Fexit) => program.load(attach.target, btf),
        _ => bail!("program {} is not of this type", attach.program),
    }
    .map_err(explain)
}

/// Attaches a loaded program; the link lives as long as the program, or until it is closed.
fn link(ebpf: &mut Ebpf, attach: &Attach) -> Result<()> {
    match program(ebpf, attach)? {
        Program::BtfTracePoint(program) => program.attach().map(drop),
        Program::FEntry(program) => program.attach().map(drop),
        Program::FExit(program) => program.attach().map(drop),
        Program::KProbe(program) => program.attach(attach.target, 0).map(drop),
        _ => bail!("program {} is not of this type", attach.program),
    }
    .context("attach")
}

/// Takes a program out again; that it was never in is fine.
fn unload_one(ebpf: &mut Ebpf, attach: &Attach) {
    let unloaded = match ebpf.program_mut(attach.program) {
        Some(Program::BtfTracePoint(program)) => program.unload(),
        Some(Program::FEntry(program)) => program.unload(),
        Some(Program::FExit(program)) => program.unload(),
        Some(Program::KProbe(program)) => program.unload(),
        _ => Ok(()),
    };
    match unloaded {
        Ok(()) | Err(ProgramError::NotLoaded) => {}
        Err(error) => log::debug!("unload {}: {error}", attach.program),
    }
}

/// Takes the CPU sampler out, if it was in.
pub fn unload_sampler(ebpf: &mut Ebpf) {
    if let Some(Program::PerfEvent(program)) = ebpf.program_mut(sampler::PROGRAM)
        && let Err(error) = program.unload()
        && !matches!(error, ProgramError::NotLoaded)
    {
        log::debug!("unload cpu: {error}");
    }
}

/// Adds the end of the verifier's log to a rejection; the rest goes to the debug log.
fn explain(error: ProgramError) -> anyhow::Error {
    if let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    {
        let log = verifier_log.to_string();
        log::debug!("verifier: {log}");
        let last = log.lines().rev().find(|line| {
            !line.is_empty()
                && !["processed ", "verification time", "stack depth"]
                    .iter()
                    .any(|noise| line.starts_with(noise))
        });
        let verdict = last.map_or_else(|| "load".to_owned(), |last| format!("load: {last}"));
        return anyhow::Error::new(io_error).context(verdict);
    }
    anyhow::Error::new(error)
}

#[cfg(test)]
mod tests {
    use std::io;

    use aya::sys::SyscallError;

    use super::*;

    #[test]
    fn a_breakpoint_that_is_refused_is_told_with_what_it_needs_and_not_tried_again() {
        let failed = |call, errno| {
            let io_error = io::Error::from_raw_os_error(errno);
            let error = ProgramError::SyscallError(SyscallError { call, io_error });
            anyhow::Error::new(error).context("attach")
        };
        for (call, errno, is_told) in [
            ("perf_event_open", libc::EACCES, true),
            ("perf_event_open", libc::ENOENT, false),
            ("bpf_prog_load", libc::EACCES, false),
        ] {
            let mut ways = Ways {
                trampolines: None,
                breakpoints: None,
            };
            ways.learn(Via::Kprobe, &failed(call, errno));
            let why = ways.refuses(Via::Kretprobe);
            let is_so = why.is_some_and(|why| why.contains("perf_event"));
            assert_eq!(is_so, is_told, "{call} {errno}");
            assert_eq!(ways.refuses(Via::Fentry), None);
        }
    }
}
