//! Puts the programs of a probe into the kernel: of several ways, the first that loads.

use anyhow::{Context, Result, anyhow, bail};
use aya::{
    Btf, Ebpf,
    programs::{Program, ProgramError},
};

use crate::probes::{Attach, Hook, Via};

/// What became of one hook of a probe.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The hook.
    pub hook: &'static Hook,
    /// How it was attached, or why it was not.
    pub result: std::result::Result<Via, String>,
}

/// Tries the ways of `hook` in order and keeps the first that works.
pub fn attach(ebpf: &mut Ebpf, btf: &Btf, hook: &'static Hook) -> Attached {
    let mut reasons = Vec::new();
    for way in hook.ways {
        match attach_all(ebpf, btf, way) {
            Ok(via) => {
                return Attached {
                    hook,
                    result: Ok(via),
                };
            }
            Err(error) => reasons.push(format!("{error:#}")),
        }
    }
    Attached {
        hook,
        result: Err(reasons.join("; ")),
    }
}

/// Attaches all programs of one way, or none of them.
fn attach_all(ebpf: &mut Ebpf, btf: &Btf, way: &[Attach]) -> Result<Via> {
    let Some(first) = way.first() else {
        bail!("a way without programs")
    };
    for (index, attach) in way.iter().enumerate() {
        let attached = attach_one(ebpf, btf, attach)
            .with_context(|| format!("{} {}", attach.via.name(), attach.target));
        if let Err(error) = attached {
            for undo in &way[..=index] {
                unload(ebpf, undo);
            }
            return Err(error);
        }
    }
    Ok(first.via)
}

fn attach_one(ebpf: &mut Ebpf, btf: &Btf, attach: &Attach) -> Result<()> {
    let program = ebpf
        .program_mut(attach.program)
        .ok_or_else(|| anyhow!("the object has no program {}", attach.program))?;
    let loaded = program.fd().is_ok();
    match (program, attach.via) {
        (Program::BtfTracePoint(program), Via::TpBtf) => {
            program.load(attach.target, btf).map_err(explain)?;
            program.attach().map_err(explain)?;
        }
        (Program::FEntry(program), Via::Fentry) => {
            program.load(attach.target, btf).map_err(explain)?;
            program.attach().map_err(explain)?;
        }
        (Program::FExit(program), Via::Fexit) => {
            program.load(attach.target, btf).map_err(explain)?;
            program.attach().map_err(explain)?;
        }
        (Program::KProbe(program), Via::Kprobe | Via::Kretprobe) => {
            if !loaded {
                program.load().map_err(explain)?;
            }
            program.attach(attach.target, 0).map_err(explain)?;
        }
        _ => bail!("program {} is not of this type", attach.program),
    }
    Ok(())
}

/// Takes a program out again; that it was never in is fine.
fn unload(ebpf: &mut Ebpf, attach: &Attach) {
    let Some(program) = ebpf.program_mut(attach.program) else {
        return;
    };
    if let Err(error) = program.unload_any() {
        log::debug!("unload {}: {error}", attach.program);
    }
}

trait UnloadAny {
    fn unload_any(&mut self) -> std::result::Result<(), ProgramError>;
}

impl UnloadAny for Program {
    fn unload_any(&mut self) -> std::result::Result<(), ProgramError> {
        match self {
            Self::BtfTracePoint(program) => program.unload(),
            Self::FEntry(program) => program.unload(),
            Self::FExit(program) => program.unload(),
            Self::KProbe(program) => program.unload(),
            _ => Ok(()),
        }
    }
}

/// Adds the end of the verifier's log to a rejection; the rest goes to the debug log.
fn explain(error: ProgramError) -> anyhow::Error {
    if let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = &error
    {
        let log = verifier_log.to_string();
        log::debug!("verifier: {log}");
        let lines: Vec<&str> = log
            .lines()
            .filter(|line| !line.starts_with("processed "))
            .collect();
        let tail = lines.len().saturating_sub(14);
        return anyhow!("{io_error}: {}", lines[tail..].join(" | "));
    }
    anyhow::Error::new(error)
}
