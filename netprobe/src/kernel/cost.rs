//! What netprobe itself costs: its CPU time, and the run time of its programs. The kernel measures
//! the latter only on request, which costs something too, so it is asked for in short slices, also soon after the
//! firings, which are always counted, have jumped.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use aya::sys::{Stats, enable_stats};
use netprobe_common::config::{Config, LEVEL_ALL, LEVEL_RESTING};

use super::{
    governor::{Governor, is_of_a_window},
    run_time::{RunTime, Slice, Stretch},
    sampler,
    session::Session,
};
use crate::{
    observe::{
        clock::process_cpu,
        owners::{scan_time, scans_put_off},
        stat,
    },
    report::Cost,
};

/// How often to [measure](Meter::measure), which looks at the counters: a burst is seen while it lasts.
pub const LOOKS: Duration = Duration::from_millis(100);
/// How often the cost is weighed.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often at first, and how long that is, where a window of seconds is to cost no more than it may: then what the
/// programs cost decides alone, because to begin costs this process something too.
const FIRST_INTERVAL: Duration = Duration::from_millis(250);
const FIRST: Duration = Duration::from_secs(2);
/// How long the kernel measures each time.
pub const SLICE: Duration = Duration::from_millis(20);
/// How long after one slice the next begins, however the firings jump, and at most while the programs cost nothing to speak
/// of: to begin and to end one, the kernel patches its code, which stops all CPUs for a moment.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(8);
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
    /// When the cost was weighed last, and CPU seconds in the kernel until then.
    last: Mark,
    last_in_kernel: f64,
    /// Whether it was nothing to speak of then.
    is_quiet: bool,
    /// Events until then that the filter wanted.
    events: u64,
    /// When the counters were looked at last, and the firings until then.
    looked: Instant,
    firings: u64,
    run_time: RunTime,
    /// When the last slice ended, and how long to pause after it while it is quiet.
    sliced: Instant,
    pause: Duration,
    /// CPU time of looking for the owners of sockets until the run began, and until the cost was weighed last. No level
    /// avoids it: that has a limit of its own.
    scans_before: Duration,
    scans: Duration,
    /// How often that was put off until then.
    put_off: u64,
    reduced: [Duration; 5],
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
        let now = Mark::now();
        Self {
            governor: Governor::new(limit, session.config()),
            limit,
            cpus: f64::from(sampler::online()),
            is_hasty: is_of_a_window(session.config()),
            began: now,
            last: now,
            last_in_kernel: 0.0,
            is_quiet: true,
            events: 0,
            looked: now.at,
            firings: session.firings(),
            run_time: RunTime::default(),
            sliced: now.at,
            pause: INTERVAL,
            scans_before: scan_time(),
            scans: scan_time(),
            put_off: scans_put_off(),
            reduced: [Duration::ZERO; 5],
        }
    }

    /// Whether it is time to measure again.
    pub fn is_due(&self) -> bool {
        self.looked.elapsed() >= LOOKS
    }

    fn is_first(&self) -> bool {
        self.is_hasty && self.began.at.elapsed() < FIRST
    }

    /// Whether something is left out now.
    pub fn is_saving(&self) -> bool {
        self.governor.level() != LEVEL_ALL
    }

    /// Looks at the counters, lets the kernel measure while `pause` waits if that is due, and now and then tells the programs
    /// what to leave out.
    pub fn measure(&mut self, session: &mut Session, pause: impl FnOnce(Duration)) {
        let stretch = self.look(session);
        if self.is_slice_due(stretch) {
            self.take_slice(session, pause);
        }
        self.run_time.add(stretch);
        let interval = if self.is_first() {
            FIRST_INTERVAL
        } else {
            INTERVAL
        };
        if self.last.at.elapsed() >= interval {
            self.weigh(session);
        }
    }

    /// What the programs have counted since the last look.
    fn look(&mut self, session: &Session) -> Stretch {
        let now = Instant::now();
        let firings = session.firings();
        let stretch = Stretch {
            time: now.duration_since(self.looked),
            firings: firings.saturating_sub(self.firings),
        };
        (self.looked, self.firings) = (now, firings);
        stretch
    }

    fn is_slice_due(&self, stretch: Stretch) -> bool {
        let pause = match (self.is_first(), self.is_quiet) {
            (true, _) => FIRST_INTERVAL,
            (false, true) => self.pause,
            (false, false) => INTERVAL,
        };
        let since = self.sliced.elapsed();
        let matters = self.limit * QUIET * self.cpus;
        let is_in_doubt = || self.run_time.is_in_doubt(stretch, matters, self.looked);
        since >= pause || (since >= SHORTEST_PAUSE && is_in_doubt())
    }

    /// Lets the kernel measure for a slice, and decides how long that is good for.
    fn take_slice(&mut self, session: &Session, pause: impl FnOnce(Duration)) {
        let slice = kernel_slice(session, pause);
        self.sliced = Instant::now();
        let is_quiet = slice.is_some_and(|slice| slice.cpus / self.cpus < self.limit * QUIET);
        self.pause = if is_quiet {
            (self.pause * 2).min(LONGEST_PAUSE)
        } else {
            INTERVAL
        };
        if let Some(slice) = slice {
            self.run_time.measured(slice);
        }
    }

    /// Weighs what all has cost since that was last done, and leaves out more or less.
    fn weigh(&mut self, session: &mut Session) {
        let now = Mark::now();
        let elapsed = now.at.duration_since(self.last.at);
        let own = now.cpus_since(self.last) / self.cpus;
        self.last = now;
        let until_now = self.run_time.cpu_seconds();
        let before = std::mem::replace(&mut self.last_in_kernel, until_now);
        let in_kernel = (until_now - before) / elapsed.as_secs_f64() / self.cpus;
        self.is_quiet = own < self.limit * QUIET && in_kernel < self.limit * QUIET;
        // Without events there is nothing to leave out, however slow the machine.
        let is_idle = self.has_few_events(session, elapsed);
        let before = self.governor.level();
        let times_blocks = session.config().sampling.times_blocks();
        let index = index(before).map(|index| if times_blocks { 0 } else { index });
        if let Some(reduced) = index.and_then(|index| self.reduced.get_mut(index)) {
            *reduced += elapsed;
        }
        self.note_owners(elapsed);
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
        self.run_time.change(Instant::now());
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

    /// Takes note whether owners of sockets were looked for less often, and says so once.
    fn note_owners(&mut self, elapsed: Duration) {
        let put_off = scans_put_off();
        if std::mem::replace(&mut self.put_off, put_off) == put_off {
            return;
        }
        let [.., reduced] = &mut self.reduced;
        if reduced.is_zero() {
            log::warn!(
                "owners of sockets are looked for less often, some may be missing: that costs more than \
                 --max-overhead allows"
            );
        }
        *reduced += elapsed;
    }

    /// Whether so few events came since this was last asked that to leave some out would save nothing.
    fn has_few_events(&mut self, session: &Session, elapsed: Duration) -> bool {
        let before = std::mem::replace(&mut self.events, session.wanted_until_now());
        let came = u128::from(self.events.saturating_sub(before));
        came * 1000 < elapsed.as_millis() * u128::from(FEW)
    }

    /// The cost of the run, which ends now.
    pub fn finish(&mut self, session: &Session) -> Cost {
        let rest = self.look(session);
        self.run_time.add(rest);
        let in_kernel = self.run_time.total();
        let elapsed = self.began.at.elapsed();
        let owners = scan_time().saturating_sub(self.scans_before);
        Cost {
            elapsed,
            owners_percent: owners.as_secs_f64() / elapsed.as_secs_f64() / self.cpus * 100.0,
            process_percent: Mark::now().cpus_since(self.began) / self.cpus * 100.0,
            kernel_percent: in_kernel.map(|(cpus, _)| cpus / self.cpus * 100.0),
            ns_per_run: in_kernel.and_then(|(_, ns_per_run)| ns_per_run),
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

/// What the programs used of one slice; `None` where the kernel does not tell us.
fn kernel_slice(session: &Session, pause: impl FnOnce(Duration)) -> Option<Slice> {
    let statistics = match enable_stats(Stats::RunTime) {
        Ok(statistics) => statistics,
        Err(error) => {
            log::debug!("run time is not measured: {error}");
            return None;
        }
    };
    let read = || {
        let began = Instant::now();
        Some((
            began,
            session.run_time()?,
            session.firings(),
            Instant::now(),
        ))
    };
    let earlier = read()?;
    pause(SLICE);
    let later = read()?;
    drop(statistics);
    slice_between(earlier, later)
}

/// When reading began, how long the programs had run and how often, how often they had fired, and when reading ended.
type Reading = (Instant, (Duration, u64), u64, Instant);

/// What the programs used between two readings; `None` where this process was held up while it read, so that they do not
/// belong together.
fn slice_between(earlier: Reading, later: Reading) -> Option<Slice> {
    let reading = earlier.3.duration_since(earlier.0) + later.3.duration_since(later.0);
    let measured = later.3.duration_since(earlier.3);
    if reading > measured / 2 {
        return None;
    }
    let seconds = measured.as_secs_f64().max(1e-9);
    #[expect(clippy::cast_precision_loss, reason = "rates")]
    let rate = |from: u64, to: u64| to.saturating_sub(from) as f64 / seconds;
    Some(Slice {
        at: later.3,
        cpus: later.1.0.saturating_sub(earlier.1.0).as_secs_f64() / seconds,
        runs: rate(earlier.1.1, later.1.1),
        firings: rate(earlier.2, later.2),
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
    fn a_slice_in_which_reading_was_held_up_tells_nothing() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let earlier = (at(0), (Duration::ZERO, 0), 0, at(1));
        let later = |ms| (at(21), (Duration::from_millis(2), 20_000), 10_000, at(ms));
        let slice = slice_between(earlier, later(22)).unwrap();
        assert!((slice.runs / slice.firings - 2.0).abs() < 0.01);
        assert!((slice.cpus - 2.0 / 21.0).abs() < 0.001);
        assert!(slice_between(earlier, later(117)).is_none());
    }

    #[test]
    fn children_are_counted_whatever_our_name_is() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 100 200 30 4 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat, [16, 17]), 34);
        assert_eq!(ticks("", [16, 17]), 0);
    }
}
