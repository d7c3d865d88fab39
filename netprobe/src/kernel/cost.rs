//! What netprobe itself costs: its CPU time, and the run time of its programs. The kernel measures
//! the latter only on request, which costs something too, so it is asked for in short slices.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use aya::sys::{Stats, enable_stats};
use netprobe_common::config::{Config, LEVEL_ALL, LEVEL_RESTING};

use super::{
    governor::{Governor, is_of_a_window},
    session::Session,
};
use crate::{
    observe::{clock::process_cpu, owners::scan_time, stat},
    report::Cost,
};

/// How often the cost is measured.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often at first, and how long that is, where a window of seconds is to cost no more than it may: then what the
/// programs cost decides alone, because to begin costs this process something too.
const FIRST_INTERVAL: Duration = Duration::from_millis(250);
const FIRST: Duration = Duration::from_secs(2);
/// How long the kernel measures each time.
pub const SLICE: Duration = Duration::from_millis(20);
/// So many intervals may pass without a slice while the programs cost nothing to speak of: to begin and to end
/// one, the kernel patches its code, which stops all CPUs for a moment.
const MOST_SKIPPED: u32 = 7;
/// A cost below this part of the limit is nothing to speak of.
const QUIET: f64 = 0.1;

/// So few events a second cost nothing to speak of, whatever is told of them: to look for them may cost much more.
const FEW: u64 = 500;

/// The measurements of a run.
#[derive(Debug)]
pub struct Meter {
    governor: Governor,
    limit: f64,
    cpus: f64,
    /// Whether little time is left to find the right level.
    is_hasty: bool,
    began: Mark,
    last: Mark,
    /// Events until then that the filter wanted.
    events: u64,
    slices: Slices,
    /// The latest slice, which stands for the intervals that are skipped after it.
    latest: Option<Slices>,
    kernel: Weighed,
    /// CPU time of looking for the owners of sockets, which no level avoids.
    scans: Duration,
    /// Intervals to skip after a slice, which grow while it is quiet, and how many are left.
    skips: u32,
    skips_left: u32,
    reduced: [Duration; 4],
}

/// CPU seconds that slices stand for, and the time.
#[derive(Clone, Copy, Debug, Default)]
struct Weighed {
    cpu_s: f64,
    elapsed_s: f64,
}

/// Sums over the slices in which the kernel measured.
#[derive(Clone, Copy, Debug, Default)]
struct Slices {
    measured: Duration,
    run: Duration,
    runs: u64,
}

/// A moment, and the CPU time until then, of this process and of its children.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    cpu: Duration,
}

impl Mark {
    fn now() -> Self {
        Self {
            at: Instant::now(),
            cpu: cpu_until_now(),
        }
    }

    /// CPUs in use since `earlier`.
    fn cpus_since(self, earlier: Self) -> f64 {
        let elapsed = self.at.duration_since(earlier.at).as_secs_f64();
        self.cpu.saturating_sub(earlier.cpu).as_secs_f64() / elapsed.max(1e-9)
    }
}

impl Meter {
    /// Begins to measure the cost of `session`; `limit` is a share of the machine.
    pub fn new(limit: f64, session: &Session) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let now = Mark::now();
        Self {
            governor: Governor::new(limit, session.config()),
            limit,
            cpus: f64::from(u32::try_from(cpus).unwrap_or(u32::MAX)),
            is_hasty: is_of_a_window(session.config()),
            began: now,
            last: now,
            events: 0,
            slices: Slices::default(),
            latest: None,
            kernel: Weighed::default(),
            scans: scan_time(),
            skips: 0,
            skips_left: 0,
            reduced: [Duration::ZERO; 4],
        }
    }

    /// Whether it is time to measure again.
    pub fn is_due(&self) -> bool {
        self.last.at.elapsed() >= self.interval()
    }

    /// How long to wait before measuring again.
    pub fn interval(&self) -> Duration {
        if self.is_first() {
            FIRST_INTERVAL
        } else {
            INTERVAL
        }
    }

    fn is_first(&self) -> bool {
        self.is_hasty && self.began.at.elapsed() < FIRST
    }

    /// Whether something is left out now.
    pub fn is_saving(&self) -> bool {
        self.governor.level() != LEVEL_ALL
    }

    /// Lets the kernel measure while `pause` waits, and tells the programs what to leave out.
    pub fn measure(&mut self, session: &mut Session, pause: impl FnOnce(Duration)) {
        let is_quiet = Mark::now().cpus_since(self.last) / self.cpus < self.limit * QUIET;
        let slice = if self.skips_left > 0 && is_quiet {
            self.skips_left -= 1;
            pause(SLICE);
            self.latest
        } else {
            self.look(session, pause)
        };
        let now = Mark::now();
        let elapsed = now.at.duration_since(self.last.at);
        let own = now.cpus_since(self.last) / self.cpus;
        self.last = now;
        // Without events there is nothing to leave out, however slow the machine.
        let has_few_events = self.has_few_events(session, elapsed);
        let is_idle = has_few_events || slice.is_some_and(|slice| slice.runs == 0);
        let mut in_kernel = 0.0;
        if let Some(slice) = slice {
            self.kernel.cpu_s += slice.cpus() * elapsed.as_secs_f64();
            self.kernel.elapsed_s += elapsed.as_secs_f64();
            in_kernel = slice.cpus() / self.cpus;
        }
        let before = self.governor.level();
        let times_blocks = session.config().sampling.times_blocks();
        let index = index(before).map(|index| if times_blocks { 0 } else { index });
        if let Some(reduced) = index.and_then(|index| self.reduced.get_mut(index)) {
            *reduced += elapsed;
        }
        let scans = scan_time();
        let scanned = scans.saturating_sub(self.scans).as_secs_f64() / elapsed.as_secs_f64();
        self.scans = scans;
        let avoidable = if is_idle {
            0.0
        } else if (session.config().detail == 0 && !times_blocks) || self.is_first() {
            // What is only counted is read at the end.
            in_kernel
        } else {
            (own + in_kernel - scanned / self.cpus).max(0.0)
        };
        let Some(level) = self.governor.note(elapsed, avoidable) else {
            return;
        };
        if let Err(error) = session.set_level(level) {
            log::warn!("the cost cannot be limited: {error:#}");
            return;
        }
        let what = announcement(level, session.config());
        if level < before {
            log::warn!("it costs less by now: {what}");
            return;
        }
        log::warn!(
            "cost {:.1} % of the machine, limit {:.1} %: {what}",
            (own + in_kernel) * 100.0,
            self.limit * 100.0,
        );
    }

    /// Whether so few events came since this was last asked that to leave some out would save nothing.
    fn has_few_events(&mut self, session: &Session, elapsed: Duration) -> bool {
        let before = std::mem::replace(&mut self.events, session.wanted_until_now());
        let came = u128::from(self.events.saturating_sub(before));
        came * 1000 < elapsed.as_millis() * u128::from(FEW)
    }

    /// Lets the kernel measure for a slice, and decides how long that is good for.
    fn look(&mut self, session: &Session, pause: impl FnOnce(Duration)) -> Option<Slices> {
        self.latest = kernel_slice(session, pause);
        let is_quiet = |slice: Slices| slice.cpus() / self.cpus < self.limit * QUIET;
        self.skips = if self.latest.is_some_and(is_quiet) {
            (self.skips * 2 + 1).min(MOST_SKIPPED)
        } else {
            0
        };
        self.skips_left = self.skips;
        if let Some(slice) = self.latest {
            self.slices.measured += slice.measured;
            self.slices.run += slice.run;
            self.slices.runs += slice.runs;
        }
        self.latest
    }

    /// The cost of the run, in which the programs ran `fired` times at least.
    pub fn cost(&self, fired: u64) -> Cost {
        let slices = self.slices;
        // Slices that saw no run say nothing of the runs between them.
        let is_known = self.kernel.elapsed_s > 0.0 && (slices.runs > 0 || fired == 0);
        let kernel_cpus = self.kernel.cpu_s / self.kernel.elapsed_s;
        #[expect(clippy::cast_precision_loss, reason = "a mean")]
        let ns_per_run =
            (slices.runs > 0).then(|| slices.run.as_nanos() as f64 / slices.runs as f64);
        Cost {
            elapsed: self.began.at.elapsed(),
            process_percent: Mark::now().cpus_since(self.began) / self.cpus * 100.0,
            kernel_percent: is_known.then(|| kernel_cpus / self.cpus * 100.0),
            ns_per_run,
            limit_percent: self.limit * 100.0,
            reduced: self.reduced,
        }
    }
}

/// Whether the children of this process do something else than help it.
static CHILDREN_ARE_APART: AtomicBool = AtomicBool::new(false);

/// Leaves out what the children cost, as those of `demo`, which are the incident.
pub fn leave_out_children() {
    CHILDREN_ARE_APART.store(true, Ordering::Relaxed);
}

/// CPU time of this process, and of its children.
pub fn cpu_until_now() -> Duration {
    if CHILDREN_ARE_APART.load(Ordering::Relaxed) {
        return process_cpu();
    }
    process_cpu() + cpu_of_children()
}

/// CPU time of the children: of those that were waited for, `cutime` and `cstime` of `/proc/self/stat`, and `utime` and
/// `stime` of the others. These are children of the thread that has started them, the main one.
fn cpu_of_children() -> Duration {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let process = rustix::process::getpid().as_raw_nonzero();
    let living = read(&format!("/proc/self/task/{process}/children"));
    let living = living.split_whitespace().map(|pid| {
        let stat = read(&format!("/proc/{pid}/stat"));
        ticks(&stat, [14, 15])
    });
    let ticks = ticks(&read("/proc/self/stat"), [16, 17]) + living.sum::<u64>();
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_millis(ticks * 1000 / per_second)
}

/// Clock ticks in two fields of `/proc/PID/stat`.
fn ticks(stat: &str, fields: [usize; 2]) -> u64 {
    let times = fields.map(|number| stat::field(stat, number)?.parse::<u64>().ok());
    times.into_iter().flatten().sum()
}

impl Slices {
    /// CPUs that the programs used.
    fn cpus(self) -> f64 {
        self.run.as_secs_f64() / self.measured.as_secs_f64().max(1e-9)
    }
}

/// What the programs used of one slice; `None` where the kernel does not tell us.
fn kernel_slice(session: &Session, pause: impl FnOnce(Duration)) -> Option<Slices> {
    let statistics = match enable_stats(Stats::RunTime) {
        Ok(statistics) => statistics,
        Err(error) => {
            log::debug!("run time is not measured: {error}");
            pause(SLICE);
            return None;
        }
    };
    let began = Instant::now();
    let earlier = session.run_time()?;
    pause(SLICE);
    let later = session.run_time()?;
    let measured = began.elapsed();
    drop(statistics);
    Some(Slices {
        measured,
        run: later.0.saturating_sub(earlier.0),
        runs: later.1.saturating_sub(earlier.1),
    })
}

fn index(level: u32) -> Option<usize> {
    usize::try_from(level.checked_sub(LEVEL_ALL + 1)?).ok()
}

fn announcement(level: u32, config: &Config) -> &'static str {
    match level {
        0 if config.detail != 0 => "everything is shown again",
        0 if config.by != 0 => "everything is told apart again",
        0 => "stacks are taken again",
        2 if config.sparse != 0 => {
            "a few events of each kind are looked at from now on, all are counted"
        }
        1 if config.sampling.times_blocks() => {
            "of waits that are mostly short few stacks are taken from now on, all are timed"
        }
        2 if config.sampling.times_blocks() => {
            "few stacks of waits are taken from now on, all are timed"
        }
        1 => "no stacks from now on",
        2 => "one event of 61 is shown from now on, all are counted",
        LEVEL_RESTING => {
            "connections are followed an eighth of the time from now on, all are counted"
        }
        4 => "flows and owners are not told apart from now on, all are counted",
        _ => "no events are shown from now on, all are counted",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netprobe_common::{counters::BY_FLOW, record::Plain as _};

    #[test]
    fn only_what_is_shown_is_shown_again() {
        let announced = |detail, by| {
            let config = Config {
                detail,
                by,
                ..Config::zeroed()
            };
            announcement(0, &config)
        };
        assert_eq!(announced(1, 0), "everything is shown again");
        assert_eq!(announced(0, BY_FLOW), "everything is told apart again");
        assert_eq!(announced(0, 0), "stacks are taken again");
    }

    #[test]
    fn children_are_counted_whatever_our_name_is() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 100 200 30 4 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat, [16, 17]), 34);
        assert_eq!(ticks("", [16, 17]), 0);
    }
}
