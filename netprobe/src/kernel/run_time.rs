//! How long the programs ran: of slices the kernel measures it, all firings are counted. A stretch of time costs what the
//! slice did whose firings came at a like rate, for as many firings as there were. Pure: it is told slices and stretches.

use std::time::{Duration, Instant};

use super::cost::LONGEST_PAUSE;

/// So few firings a second say little of how often the programs run, as some run without; what ran then counts by time.
const SELDOM: f64 = 500.0;
/// Rates below this many times another are like it.
const LIKE: f64 = 4.0;

/// What the kernel measured in a slice of time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slice {
    /// When it ended.
    pub(super) at: Instant,
    /// CPUs that the programs used.
    pub(super) cpus: f64,
    /// Runs of them each second.
    pub(super) runs: f64,
    /// Firings that they counted each second.
    pub(super) firings: f64,
}

/// Time between two looks at the counters, and the firings in it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stretch {
    pub(super) time: Duration,
    pub(super) firings: u64,
}

/// What the programs used in the stretches so far.
#[derive(Clone, Debug, Default)]
pub(super) struct RunTime {
    /// The latest of each rate.
    slices: Vec<Slice>,
    /// Those before this one are of programs that did something else.
    changed: Option<Instant>,
    /// Stretches with firings before the first slice that saw a run.
    waiting: Stretch,
    seconds: f64,
    cpu_seconds: f64,
    runs: f64,
}

impl Slice {
    fn is_like(&self, rate: f64) -> bool {
        distance(self.firings, rate) < LIKE.ln()
    }

    /// Both in one, half each: of programs that seldom run, most slices see nothing.
    fn joined(self, later: Self) -> Self {
        Self {
            at: later.at,
            cpus: f64::midpoint(self.cpus, later.cpus),
            runs: f64::midpoint(self.runs, later.runs),
            firings: f64::midpoint(self.firings, later.firings),
        }
    }

    /// For how many seconds of its kind a stretch stands.
    fn seconds_in(&self, stretch: Stretch) -> f64 {
        stretch.time.as_secs_f64() * (stretch.rate() + SELDOM) / (self.firings + SELDOM)
    }
}

impl Stretch {
    /// Firings each second.
    fn rate(self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let firings = self.firings as f64;
        firings / self.time.as_secs_f64().max(1e-9)
    }
}

/// How far two rates are apart, as a logarithm.
fn distance(a: f64, b: f64) -> f64 {
    ((a + SELDOM) / (b + SELDOM)).ln().abs()
}

impl RunTime {
    /// Adds a slice; it takes the place of one of like rate.
    pub(super) fn measured(&mut self, slice: Slice) {
        let mut slices = std::mem::take(&mut self.slices);
        slices.retain(|known| self.is_of_now(known));
        self.slices = slices;
        let mut slices = self.slices.iter_mut();
        match slices.find(|known| known.is_like(slice.firings)) {
            Some(known) => *known = known.joined(slice),
            None => self.slices.push(slice),
        }
        if slice.runs > 0.0 {
            let waiting = std::mem::take(&mut self.waiting);
            self.add(waiting);
        }
    }

    /// Adds a stretch.
    pub(super) fn add(&mut self, stretch: Stretch) {
        let Some(slice) = self.slice_for(stretch) else {
            self.waiting.time += stretch.time;
            self.waiting.firings += stretch.firings;
            return;
        };
        let seconds = slice.seconds_in(stretch);
        self.cpu_seconds += slice.cpus * seconds;
        self.runs += slice.runs * seconds;
        self.seconds += stretch.time.as_secs_f64();
    }

    /// From `now` on the programs do something else.
    pub(super) fn change(&mut self, now: Instant) {
        self.changed = Some(now);
    }

    /// Whether a slice should be taken at once: what a stretch that ends `now` used is not known well, and may be more than
    /// `cpus`.
    pub(super) fn is_in_doubt(&self, stretch: Stretch, cpus: f64, now: Instant) -> bool {
        let Some(slice) = self.slice_for(stretch) else {
            return stretch.rate() > SELDOM;
        };
        let is_old = now.duration_since(slice.at) > LONGEST_PAUSE || !self.is_of_now(&slice);
        let used = slice.cpus * slice.seconds_in(stretch) / stretch.time.as_secs_f64().max(1e-9);
        used > cpus && (is_old || !slice.is_like(stretch.rate()))
    }

    fn is_of_now(&self, slice: &Slice) -> bool {
        self.changed.is_none_or(|changed| slice.at >= changed)
    }

    /// CPU seconds that the programs used until now, as far as it is known.
    pub(super) const fn cpu_seconds(&self) -> f64 {
        self.cpu_seconds
    }

    /// CPUs that the programs used, and nanoseconds of one run if there was any; none if it is not known.
    pub(super) fn total(&self) -> Option<(f64, Option<f64>)> {
        let is_known = self.seconds > 0.0 && self.waiting.firings == 0;
        let ns_per_run = (self.runs > 0.0).then(|| self.cpu_seconds / self.runs * 1e9);
        is_known.then(|| (self.cpu_seconds / self.seconds, ns_per_run))
    }

    /// The slice whose rate is nearest. One that saw no run says nothing of firings.
    fn slice_for(&self, stretch: Stretch) -> Option<Slice> {
        let rate = stretch.rate();
        let tells = |slice: &&Slice| slice.runs > 0.0 || stretch.firings == 0;
        let apart = |slice: &Slice| distance(slice.firings, rate);
        let slices = self.slices.iter().filter(tells);
        slices.min_by(|a, b| apart(a).total_cmp(&apart(b))).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Of a program that runs once for each firing.
    fn slice(at: Instant, firings: f64, ns_per_run: f64) -> Slice {
        Slice {
            at,
            cpus: firings * ns_per_run / 1e9,
            runs: firings,
            firings,
        }
    }

    fn stretch(time: Duration, firings: u64) -> Stretch {
        Stretch { time, firings }
    }

    fn is_about(told: f64, expected: f64) -> bool {
        (told - expected).abs() < expected / 10.0
    }

    #[test]
    fn a_burst_between_slices_costs_what_its_firings_do() {
        let now = Instant::now();
        let mut run_time = RunTime::default();
        run_time.measured(slice(now, 50.0, 1500.0));
        run_time.measured(slice(now, 300_000.0, 150.0));
        for _ in 0..4 {
            run_time.add(stretch(SECOND / 5, 60_000));
            run_time.add(stretch(SECOND * 2, 100));
        }
        let (cpus, ns_per_run) = run_time.total().unwrap();
        assert!(is_about(cpus * 8.8, 240_000.0 * 150e-9), "{cpus}");
        assert!(is_about(ns_per_run.unwrap(), 150.0), "{ns_per_run:?}");
    }

    #[test]
    fn share_and_time_of_a_run_agree_however_long_nobody_looked() {
        let now = Instant::now();
        let mut run_time = RunTime::default();
        run_time.measured(slice(now, 130_000.0, 567.0));
        run_time.add(stretch(SECOND, 0));
        run_time.add(stretch(SECOND * 5, 900_000));
        run_time.add(stretch(SECOND * 2, 263_000));
        let (cpus, ns_per_run) = run_time.total().unwrap();
        let told = 1_163_000.0 * ns_per_run.unwrap() / 1e9;
        assert!(is_about(cpus * 8.0, told), "{cpus} {ns_per_run:?}");
    }

    #[test]
    fn programs_that_run_without_firing_count_by_time() {
        let mut run_time = RunTime::default();
        run_time.measured(Slice {
            at: Instant::now(),
            cpus: 0.02,
            runs: 20_000.0,
            firings: 0.0,
        });
        run_time.add(stretch(SECOND * 9, 0));
        run_time.add(stretch(SECOND, 20));
        let (cpus, ns_per_run) = run_time.total().unwrap();
        assert!(is_about(cpus, 0.02), "{cpus}");
        assert!(is_about(ns_per_run.unwrap(), 1000.0), "{ns_per_run:?}");
    }

    #[test]
    fn firings_wait_for_a_slice_that_sees_runs() {
        let now = Instant::now();
        let mut run_time = RunTime::default();
        run_time.add(stretch(SECOND / 5, 60_000));
        assert_eq!(run_time.total(), None);
        run_time.measured(slice(now, 0.0, 0.0));
        run_time.add(stretch(SECOND, 0));
        assert_eq!(run_time.total(), None);
        run_time.measured(slice(now, 300_000.0, 150.0));
        let (cpus, _) = run_time.total().unwrap();
        assert!(is_about(cpus * 1.2, 60_000.0 * 150e-9), "{cpus}");
    }

    #[test]
    fn what_is_not_known_well_is_looked_at_once_it_matters() {
        let now = Instant::now();
        let mut run_time = RunTime::default();
        let burst = stretch(SECOND / 10, 30_000);
        assert!(!run_time.is_in_doubt(stretch(SECOND / 10, 3), 0.002, now));
        assert!(run_time.is_in_doubt(burst, 0.002, now));
        run_time.measured(slice(now, 50.0, 1500.0));
        assert!(run_time.is_in_doubt(burst, 0.002, now));
        assert!(!run_time.is_in_doubt(stretch(SECOND / 10, 60), 0.002, now));
        run_time.measured(slice(now, 300_000.0, 150.0));
        assert!(!run_time.is_in_doubt(burst, 0.002, now));
        assert!(run_time.is_in_doubt(burst, 0.002, now + LONGEST_PAUSE * 2));
    }

    #[test]
    fn programs_that_leave_something_out_are_measured_anew() {
        let now = Instant::now();
        let mut run_time = RunTime::default();
        let storm = stretch(SECOND / 10, 30_000);
        run_time.measured(slice(now, 300_000.0, 700.0));
        run_time.change(now + SECOND);
        assert!(run_time.is_in_doubt(storm, 0.002, now + SECOND));
        run_time.measured(slice(now + SECOND, 300_000.0, 100.0));
        assert!(!run_time.is_in_doubt(storm, 0.002, now + SECOND));
        run_time.add(storm);
        let (_, ns_per_run) = run_time.total().unwrap();
        assert!(is_about(ns_per_run.unwrap(), 100.0), "{ns_per_run:?}");
    }
}
