//! When scans of `/proc` are due: they are slow on a busy machine, so all of them together may take a small part
//! of the time, which is saved up; and while they do not find what was asked for, they get rare.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Scans that were put off so far because they had cost too much.
static PUT_OFF: AtomicU64 = AtomicU64::new(0);

/// Scans that were put off so far because they had cost too much, in all threads.
pub fn scans_put_off() -> u64 {
    PUT_OFF.load(Ordering::Relaxed)
}

/// When scans are due.
#[derive(Debug)]
pub(super) struct Budget {
    /// The part of one CPU that they may take, and CPU seconds that they did not take until a time.
    share: f64,
    saved_s: f64,
    saved_at: Option<Instant>,
    /// CPU seconds of the last scan of everything.
    scan_s: f64,
    /// Not before this, after scans in vain, and how long it was waited the last time.
    next: Option<Instant>,
    pause: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self::of_share(Self::MOST)
    }
}

impl Budget {
    /// The largest share.
    const MOST: f64 = 0.02;
    /// Of how much time what is not spent may be saved, unless one scan costs more.
    const SAVINGS: Duration = Duration::from_secs(25);
    /// How long is waited after one scan in vain, and at most after many.
    const SHORTEST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(2);

    /// Of this part of one CPU, if that is not more than they may take in any case.
    pub(super) fn of_share(share: f64) -> Self {
        let share = share.min(Self::MOST);
        Self {
            share,
            saved_s: share * Self::SAVINGS.as_secs_f64(),
            saved_at: None,
            scan_s: 0.0,
            next: None,
            pause: Duration::ZERO,
        }
    }

    /// Whether everything may be scanned.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        if self.next.is_some_and(|next| now < next) {
            return false;
        }
        let scan_s = self.scan_s;
        self.has_saved(now, |saved_s| saved_s >= scan_s)
    }

    /// Whether time is left for a few processes, also after a scan in vain.
    pub(super) fn has_time(&mut self, now: Instant) -> bool {
        self.has_saved(now, |saved_s| saved_s >= 0.0)
    }

    fn has_saved(&mut self, now: Instant, is_enough: impl FnOnce(f64) -> bool) -> bool {
        let elapsed = now.saturating_duration_since(*self.saved_at.get_or_insert(now));
        let most = (self.share * Self::SAVINGS.as_secs_f64()).max(self.scan_s);
        self.saved_s = (self.saved_s + self.share * elapsed.as_secs_f64()).min(most);
        self.saved_at = Some(now);
        let is_enough = is_enough(self.saved_s);
        if !is_enough {
            PUT_OFF.fetch_add(1, Ordering::Relaxed);
        }
        is_enough
    }

    /// A scan of everything took this long; the next one may, too.
    pub(super) fn scanned(&mut self, time: Duration) {
        self.scan_s = time.as_secs_f64();
        self.spend(time);
    }

    pub(super) fn spend(&mut self, time: Duration) {
        self.saved_s -= time.as_secs_f64();
    }

    /// What it took to begin is not paid back.
    pub(super) const fn forgive(&mut self) {
        self.saved_s = self.saved_s.max(0.0);
    }

    /// Whether the last scan was of use.
    pub(super) fn has_found(&mut self, is_found: bool, now: Instant) {
        if is_found {
            self.pause = Duration::ZERO;
            self.next = None;
        } else {
            self.pause = (self.pause * 2).clamp(Self::SHORTEST, Self::LONGEST);
            self.next = Some(now + self.pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scans_in_vain_get_rare_and_one_that_finds_is_followed_by_another() {
        let mut budget = Budget::default();
        let begin = Instant::now();
        let mut scans = 0;
        for millisecond in 0..10_000 {
            let now = begin + Duration::from_millis(millisecond);
            if budget.is_due(now) {
                scans += 1;
                budget.has_found(false, now);
            }
        }
        assert_eq!(scans, 10, "50 ms, then twice as long each time, up to 2 s");
        budget.has_found(true, begin);
        assert!(budget.is_due(begin) && budget.is_due(begin));
    }

    /// How often everything is scanned, if it is asked for ten times a second and each scan takes `cost`.
    fn scans(mut budget: Budget, cost: Duration, time: Duration) -> u32 {
        let begin = Instant::now();
        let asked = (0..).map(|asked| Duration::from_millis(100) * asked);
        let mut scans = 0;
        for at in asked.take_while(|at| *at < time) {
            if budget.is_due(begin + at) {
                scans += 1;
                budget.scanned(cost);
            }
        }
        scans
    }

    #[test]
    fn scans_take_no_more_than_their_share_however_slow() {
        const HOUR: Duration = Duration::from_hours(1);
        for (cost, most) in [(10, 7250), (300, 242), (2000, 38)] {
            let cost = Duration::from_millis(cost);
            let scans = scans(Budget::default(), cost, HOUR);
            let is_all_spent = most * 9 / 10..=most;
            assert!(is_all_spent.contains(&scans), "{cost:?}: {scans}");
        }
    }

    #[test]
    fn scans_take_what_they_may_but_never_more_than_others() {
        let second = Duration::from_secs(1);
        let cost = Duration::from_millis(300);
        let in_a_minute = |share| scans(Budget::of_share(share), cost, second * 60);
        assert_eq!(in_a_minute(0.02), 5);
        assert_eq!(in_a_minute(0.01), 2);
        assert_eq!(in_a_minute(1.0), 5);
    }

    #[test]
    fn young_processes_are_looked_at_while_a_scan_is_put_off() {
        let mut budget = Budget::default();
        let begin = Instant::now();
        assert!(budget.is_due(begin));
        budget.scanned(Duration::from_secs(1));
        assert!(!budget.has_time(begin));
        budget.forgive();
        assert!(budget.has_time(begin));
        budget.spend(Duration::from_millis(10));
        assert!(!budget.has_time(begin));
        let later = begin + Duration::from_secs(10);
        let before = scans_put_off();
        assert!(budget.has_time(later) && !budget.is_due(later));
        assert!(scans_put_off() > before);
    }
}
