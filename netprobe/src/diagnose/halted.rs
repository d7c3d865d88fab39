//! Processes that run nothing: frozen or stopped by somebody, held by a debugger, or blocked in the kernel.

use super::window::{Queue, Window};
use crate::observe::processes::Process;

/// Why a process runs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    /// By the freezer of its control group.
    Frozen,
    /// By SIGSTOP, or at its terminal.
    Stopped,
    /// By a debugger.
    Traced,
    /// In the kernel, where no signal wakes it.
    Blocked,
}

impl Halt {
    /// Why a process runs nothing, if so.
    pub(super) const fn of(process: &Process) -> Option<Self> {
        if process.cpu_limits.frozen.is_some() {
            return Some(Self::Frozen);
        }
        match process.state {
            Some('T') => Some(Self::Stopped),
            Some('t') => Some(Self::Traced),
            Some('D') => Some(Self::Blocked),
            _ => None,
        }
    }

    /// To be said after what it does not do.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Frozen => " (frozen by its control group)",
            Self::Stopped => " (stopped, state T)",
            Self::Traced => " (held by a debugger, state t)",
            Self::Blocked => " (blocked in the kernel, state D)",
        }
    }

    /// Whether it lasts until somebody ends it.
    pub(super) const fn is_deliberate(self) -> bool {
        matches!(self, Self::Frozen | Self::Stopped)
    }
}

/// Why all processes of a listener run nothing, if so.
pub(super) fn all(window: &Window, queue: &Queue) -> Option<Halt> {
    let mut halts = window.processes.holders(queue.listener.ino).map(Halt::of);
    let first = halts.next()??;
    halts.all(|halt| halt == Some(first)).then_some(first)
}

/// Most processes that are named.
const MOST_NAMED: usize = 4;

/// How to let processes go on that somebody holds; all of them, as each serves its part.
pub(super) fn release(processes: &[&Process]) -> Option<String> {
    let pids = |halt| -> Vec<String> {
        let halted = processes.iter();
        let halted = halted.filter(|process| Halt::of(process) == Some(halt));
        halted.map(|process| process.pid.to_string()).collect()
    };
    let frozen = pids(Halt::Frozen);
    let mut freezers = processes.iter();
    if let Some(freezer) = freezers.find_map(|process| process.cpu_limits.frozen.as_ref()) {
        return Some(format!(
            "{} frozen by a control group, as by docker pause or systemctl freeze: docker unpause, systemctl thaw, or echo {} > {}",
            are(&frozen),
            freezer.thaw,
            freezer.file.display()
        ));
    }
    let stopped = pids(Halt::Stopped);
    (!stopped.is_empty()).then(|| {
        format!(
            "{} stopped (state T): kill -CONT {}, and find out who sent SIGSTOP",
            are(&stopped),
            stopped.join(" ")
        )
    })
}

fn are(pids: &[String]) -> String {
    match pids {
        [pid] => format!("pid {pid} is"),
        pids if pids.len() <= MOST_NAMED => format!("pids {} are", pids.join(", ")),
        pids => format!("{} processes are", pids.len()),
    }
}
