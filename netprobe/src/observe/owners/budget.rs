//! When scans of `/proc` are due: they are slow on a busy machine, so all of them together may take a small part
//! of the time, after an allowance; and while they do not find what was asked for, they get rare.

use std::time::{Duration, Instant};

/// When scans are due.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// When the first scan began, and how long all of them took.
    first: Option<Instant>,
    spent: Duration,
    /// Not before this, after scans in vain, and how long it was waited the last time.
    next: Option<Instant>,
    pause: Duration,
}

impl Budget {
    /// Scans may take this long at any time,
    const ALLOWANCE: Duration = Duration::from_millis(500);
    /// and beyond that one part in so many of the time that passes.
    const SHARE: u32 = 50;
    /// How long is waited after one scan in vain, and at most after many.
    const SHORTEST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(2);

    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        self.has_time(now) && self.next.is_none_or(|next| now >= next)
    }

    /// Whether time is left, also after a scan in vain.
    pub(super) fn has_time(&mut self, now: Instant) -> bool {
        let first = *self.first.get_or_insert(now);
        self.spent <= Self::ALLOWANCE + now.duration_since(first) / Self::SHARE
    }

    pub(super) fn spend(&mut self, time: Duration) {
        self.spent += time;
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

    #[test]
    fn scans_take_no_more_than_their_share() {
        let mut budget = Budget::default();
        let begin = Instant::now();
        assert!(budget.is_due(begin));
        budget.spend(Duration::from_secs(1));
        assert!(!budget.is_due(begin + Duration::from_secs(24)));
        assert!(budget.is_due(begin + Duration::from_secs(26)));
    }
}
