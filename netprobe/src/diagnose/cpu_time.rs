//! CPU time that the processes of a service lack, and why: a control group throttles them, others run on their CPUs, or a
//! thread uses one up.

use super::{
    window::{Window, ratio},
    workers::BUSY,
};
use crate::{
    observe::{cpu_limits::Bandwidth, processes::Process},
    report::diagnosis::Finding,
};

/// A group is throttled that used up its time in this share of the periods, or more.
const THROTTLED: f64 = 0.2;

/// What a process lacks.
pub(super) enum Lack<'a> {
    /// Its control group has used up its time in this share of the periods.
    Throttled(&'a Bandwidth, f64),
    /// Its first thread waits for a CPU for this share of the window, and runs for that.
    Crowded(&'a Process, [f64; 2]),
    /// Its first thread runs for this share of the window.
    Busy(&'a Process, f64),
}

impl<'a> Lack<'a> {
    /// What the processes of a listener lack, the worst first; `ino` is the inode number of its socket.
    pub(super) fn of(window: &'a Window, ino: u64) -> Option<Self> {
        let mut holders = window.processes.holders(ino);
        if let Some(throttled) = holders.find_map(|process| throttled(window, process)) {
            return Some(throttled);
        }
        let mut holders = window.processes.holders(ino);
        let busy = holders.find(|process| running(window, process) >= BUSY)?;
        let waits = share(window, busy, |process| process.waited_ns);
        let runs = running(window, busy) - waits;
        Some(if waits > runs {
            Self::Crowded(busy, [waits, runs])
        } else {
            Self::Busy(busy, running(window, busy))
        })
    }

    /// Whether its control group is what withholds it.
    pub(super) const fn is_throttled(&self) -> bool {
        matches!(self, Self::Throttled(..))
    }

    /// What to say of it beside the cause.
    pub(super) const fn words(&self) -> &'static str {
        match self {
            Self::Throttled(..) => "; its control group is throttled",
            Self::Crowded(..) => "; it waits for a CPU most of the time",
            Self::Busy(..) => "",
        }
    }

    /// Adds what was measured of it.
    pub(super) fn measured(&self, found: Finding) -> Finding {
        match self {
            Self::Throttled(bandwidth, share) => found.measured(
                format!(
                    "its control group may use {:.2} CPUs, and was throttled in {:.0} % of the periods",
                    bandwidth.cpus(),
                    share * 100.0
                ),
                share * 100.0,
                "percent",
                "cpu.stat",
            ),
            Self::Crowded(process, [waits, runs]) => found.measured(
                format!(
                    "the first thread of pid {} waited for a CPU {:.0} % of the time, and ran {:.0} %",
                    process.pid,
                    waits * 100.0,
                    runs * 100.0
                ),
                waits * 100.0,
                "percent",
                "/proc/PID/schedstat",
            ),
            Self::Busy(..) => found,
        }
    }

    /// Adds what helps, where so many times as much is to be served, if that is known; whether that is all that does.
    pub(super) fn advise(&self, found: Finding, times: Option<f64>) -> (Finding, bool) {
        match self {
            Self::Throttled(bandwidth, share) => (raise(found, bandwidth, *share, times), true),
            Self::Crowded(process, [waits, _]) => {
                let text = format!(
                    "the first thread of pid {} waits for a CPU {:.0} % of the time: see what else runs on the CPUs that it may use \
                     (top, netprobe flame cpu), stop or renice that (nice, cpu.weight), or give it CPUs of its own; more processes \
                     would wait as well",
                    process.pid,
                    waits * 100.0
                );
                (found.command(text, "none"), true)
            }
            Self::Busy(process, runs) => {
                let text = format!(
                    "the first thread of pid {} runs, or waits for a CPU, {:.0} % of the time: it cannot serve more at once, but less \
                     work for each connection, more processes, or more CPUs help",
                    process.pid,
                    (runs * 100.0).min(100.0),
                );
                (found.command(text, "none"), false)
            }
        }
    }
}

/// Adds the limit that a group should have.
fn raise(found: Finding, bandwidth: &Bandwidth, share: f64, times: Option<f64>) -> Finding {
    const WAYS: &str = "docker update --cpus, CPUQuota= of systemd, limits.cpu of Kubernetes";
    let (cpus, file) = (bandwidth.cpus(), bandwidth.file.display());
    let throttled = format!("it was throttled in {:.0} % of the periods", share * 100.0);
    let risk = "what else runs on this machine has less";
    let Some(times) = times else {
        let text = format!(
            "raise what its control group may use, {cpus:.2} CPUs ({WAYS}; {file}): {throttled}"
        );
        return found.application(text, &[], risk);
    };
    let quota_us = whole_ms(cpus * times / BUSY, bandwidth.period_us);
    let name = bandwidth.file.file_name().unwrap_or_default();
    let name = name.to_string_lossy();
    let value = if name == "cpu.max" {
        format!("{quota_us} {}", bandwidth.period_us)
    } else {
        quota_us.to_string()
    };
    let text = format!(
        "raise what its control group may use: {cpus:.2} CPUs x {times:.2} times as many arrivals as it accepts / {BUSY} = {:.2} CPUs \
         ({WAYS}; {file}): {throttled}, and more workers would share the same",
        cpus * times / BUSY
    );
    found.application(text, &[(&name, value)], risk)
}

/// The microseconds that so many CPUs are of a period, rounded up to milliseconds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a bounded positive number"
)]
fn whole_ms(cpus: f64, period_us: u64) -> u64 {
    let ms = (cpus * period_us as f64 / 1000.0).ceil();
    ms.clamp(1.0, 1e9) as u64 * 1000
}

/// Whether the group of a process has used up its time.
fn throttled<'a>(window: &'a Window, process: &'a Process) -> Option<Lack<'a>> {
    let now = process.cpu_limits.bandwidth.as_ref()?;
    let before = window.processes_before.by_pid.get(&process.pid)?;
    let before = before.cpu_limits.bandwidth.as_ref()?;
    let periods = now.periods.checked_sub(before.periods)?;
    let share = ratio(now.throttled.checked_sub(before.throttled)?, periods);
    (share >= THROTTLED && now.file == before.file).then_some(Lack::Throttled(now, share))
}

/// The share of the window in which the first thread of a process ran, or waited for a CPU.
pub(super) fn running(window: &Window, process: &Process) -> f64 {
    share(window, process, |process| process.runnable_ns)
}

/// By how much a time of a process grew, as a share of the window.
fn share(window: &Window, process: &Process, of: impl Fn(&Process) -> u64) -> f64 {
    let before = window.processes_before.by_pid.get(&process.pid);
    let grown = before.map_or(0, |before| of(process).saturating_sub(of(before)));
    window.rate(grown) / 1e9
}
