//! Decides what is left out, so that netprobe costs no more than it may. Pure: it is told the cost of
//! each slice of time and answers with a level.
//!
//! It saves what it does not spend, up to [`SAVINGS`], so that a short burst is seen in full; streams begin with that much,
//! who looks at a sample in a window of seconds (`diagnose`, `flame offcpu`) with nothing.
//! Once that is spent, it leaves out more with each slice until the cost is below the limit, and
//! less again after a calm that grows each time it proves too short.

use std::time::Duration;

use netprobe_common::{
    config::{
        Config, LEVEL_ALL, LEVEL_COARSE, LEVEL_COUNTERS, LEVEL_NO_STACKS, LEVEL_RESTING,
        LEVEL_SAMPLED,
    },
    counters::BY_STACK,
};

/// How much of the limit may be saved for a burst.
const SAVINGS: Duration = Duration::from_secs(10);
/// The first calm after which less is left out.
const CALM: Duration = Duration::from_secs(5);
/// The longest.
const LONGEST_CALM: Duration = Duration::from_secs(80);
/// A level is left only if the cost is below this part of the limit.
const MARGIN: f64 = 0.5;

/// What is left out, and why.
#[derive(Clone, Copy, Debug)]
pub struct Governor {
    limit: f64,
    saved_s: f64,
    /// What can be left out at all, less first.
    levels: &'static [u32],
    at: usize,
    calm: Duration,
    needed: Duration,
}

impl Governor {
    /// Allows a cost of `limit`, as a share of the machine, for programs with these settings.
    pub fn new(limit: f64, config: &Config) -> Self {
        Self {
            limit,
            saved_s: if is_of_a_window(config) {
                0.0
            } else {
                limit * SAVINGS.as_secs_f64()
            },
            levels: levels(config),
            at: 0,
            calm: Duration::ZERO,
            needed: CALM,
        }
    }

    /// The level now.
    pub fn level(&self) -> u32 {
        self.levels.get(self.at).copied().unwrap_or(LEVEL_ALL)
    }

    /// Takes note that a slice of time cost `share` of the machine; the new level if it changes.
    pub fn note(&mut self, slice: Duration, share: f64) -> Option<u32> {
        let most = self.limit * SAVINGS.as_secs_f64();
        self.saved_s = (self.saved_s + (self.limit - share) * slice.as_secs_f64()).min(most);
        if self.saved_s < 0.0 {
            // It does not pay back what it had to spend before it could act.
            self.saved_s = 0.0;
            self.calm = Duration::ZERO;
            return self.leave_out_more();
        }
        if share > self.limit * MARGIN || self.at == 0 {
            self.calm = Duration::ZERO;
            return None;
        }
        self.calm += slice;
        if self.calm < self.needed {
            return None;
        }
        self.calm = Duration::ZERO;
        self.needed = (self.needed * 2).min(LONGEST_CALM);
        self.at -= 1;
        Some(self.level())
    }

    fn leave_out_more(&mut self) -> Option<u32> {
        if self.at + 1 >= self.levels.len() {
            return None;
        }
        self.at += 1;
        Some(self.level())
    }
}

/// Whether they look for seconds, in which the right level must be found soon.
pub(super) const fn is_of_a_window(config: &Config) -> bool {
    config.sparse != 0 || config.sampling.times_blocks()
}

/// What programs with these settings can leave out.
const fn levels(config: &Config) -> &'static [u32] {
    let has_stacks = config.stack != 0 || config.flame != 0 || config.by & BY_STACK != 0;
    if config.governed != 0 && config.sampling.times_blocks() {
        return &[LEVEL_ALL, LEVEL_NO_STACKS, LEVEL_SAMPLED];
    }
    // Where a few events of each kind are still sent at that level, to send none would save nothing: most of what is left
    // goes into following connections.
    if config.governed != 0 && config.sparse != 0 {
        return if has_stacks {
            &[LEVEL_ALL, LEVEL_NO_STACKS, LEVEL_SAMPLED, LEVEL_RESTING]
        } else {
            &[LEVEL_ALL, LEVEL_SAMPLED, LEVEL_RESTING]
        };
    }
    if config.governed == 0 {
        return &[LEVEL_ALL];
    }
    let has_groups = config.by & !BY_STACK != 0;
    match (has_stacks, config.detail != 0, has_groups) {
        (true, true, _) => &[LEVEL_ALL, LEVEL_NO_STACKS, LEVEL_SAMPLED, LEVEL_COUNTERS],
        (false, true, _) => &[LEVEL_ALL, LEVEL_SAMPLED, LEVEL_COUNTERS],
        (true, false, true) => &[LEVEL_ALL, LEVEL_NO_STACKS, LEVEL_COARSE],
        (true, false, false) => &[LEVEL_ALL, LEVEL_NO_STACKS],
        (false, false, true) => &[LEVEL_ALL, LEVEL_COARSE],
        (false, false, false) => &[LEVEL_ALL],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netprobe_common::{counters::BY_FLOW, record::Plain};

    const SECOND: Duration = Duration::from_secs(1);

    fn governor() -> Governor {
        let config = Config {
            governed: 1,
            detail: 1,
            stack: 1,
            ..Config::zeroed()
        };
        Governor::new(0.01, &config)
    }

    #[test]
    fn counting_alone_leaves_nothing_out() {
        let config = Config {
            governed: 1,
            count: 1,
            ..Config::zeroed()
        };
        let mut governor = Governor::new(0.01, &config);
        for _ in 0..100 {
            assert_eq!(governor.note(SECOND, 1.0), None);
        }
    }

    #[test]
    fn counting_by_flow_leaves_out_flows_after_stacks() {
        for (by, expected) in [
            (BY_FLOW, &[LEVEL_COARSE][..]),
            (BY_FLOW | BY_STACK, &[LEVEL_NO_STACKS, LEVEL_COARSE]),
            (BY_STACK, &[LEVEL_NO_STACKS]),
        ] {
            let config = Config {
                governed: 1,
                by,
                ..Config::zeroed()
            };
            let mut governor = Governor::new(0.01, &config);
            let levels: Vec<u32> = (0..6).filter_map(|_| governor.note(SECOND, 0.5)).collect();
            assert_eq!(levels, expected, "{by}");
        }
    }

    #[test]
    fn blocks_are_timed_without_stacks() {
        let mut config = Config {
            governed: 1,
            ..Config::zeroed()
        };
        config.sampling.max_block_us = 1;
        let mut governor = Governor::new(0.01, &config);
        let levels: Vec<u32> = (0..6).filter_map(|_| governor.note(SECOND, 0.5)).collect();
        assert_eq!(levels, [LEVEL_NO_STACKS, LEVEL_SAMPLED]);
    }

    #[test]
    fn who_looks_at_a_sample_keeps_it() {
        let config = Config {
            governed: 1,
            detail: 1,
            sparse: 1,
            ..Config::zeroed()
        };
        let mut governor = Governor::new(0.01, &config);
        assert_eq!(governor.note(SECOND, 0.011), Some(LEVEL_SAMPLED));
        for _ in 0..100 {
            governor.note(SECOND, 1.0);
        }
        assert_eq!(governor.level(), LEVEL_RESTING);
    }

    #[test]
    fn a_short_burst_is_seen_in_full() {
        let mut governor = governor();
        assert_eq!(governor.note(SECOND, 0.1), None);
        for _ in 0..60 {
            assert_eq!(governor.note(SECOND, 0.001), None);
        }
        assert_eq!(governor.note(SECOND, 0.1), None);
    }

    #[test]
    fn a_storm_takes_one_level_after_the_other() {
        let mut governor = governor();
        let levels: Vec<u32> = (0..6).filter_map(|_| governor.note(SECOND, 0.5)).collect();
        assert_eq!(levels, [1, 2, 3]);
        assert_eq!(governor.level(), LEVEL_COUNTERS);
    }

    #[test]
    fn a_level_that_is_cheap_enough_is_kept() {
        let mut governor = governor();
        assert_eq!(governor.note(SECOND, 0.5), Some(1));
        for _ in 0..1000 {
            assert_eq!(governor.note(SECOND, 0.009), None);
        }
    }

    #[test]
    fn the_calm_before_the_way_back_grows() {
        let mut governor = governor();
        let mut waited = Vec::new();
        for _ in 0..3 {
            while governor.note(SECOND, 1.0) != Some(1) {}
            let calm = (1..100).find(|_| governor.note(SECOND, 0.0).is_some());
            waited.extend(calm);
            assert_eq!(governor.level(), LEVEL_ALL);
        }
        assert_eq!(waited, [5, 10, 20]);
    }
}
