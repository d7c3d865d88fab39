//! How long sockets have been in `TIME_WAIT`: how many came there in each part of the last minute.

/// `TCP_TIMEWAIT_LEN`, in milliseconds.
const TIME_WAIT_MS: u32 = 60_000;
const STEP_MS: u32 = 5000;
const STEPS: usize = 12;

/// How many came in each step before now, the latest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ages([u32; STEPS]);

impl Ages {
    /// Adds one that stays for so much longer.
    pub fn add(&mut self, left_ms: u32) {
        let age = TIME_WAIT_MS.saturating_sub(left_ms) / STEP_MS;
        let step = usize::try_from(age).unwrap_or(STEPS).min(STEPS - 1);
        self.0[step] += 1;
    }

    /// How many came per second, in those ten seconds in which most did.
    pub fn most_per_second(&self) -> f64 {
        let pairs = self.0.windows(2).map(|pair| pair.iter().sum::<u32>());
        f64::from(pairs.max().unwrap_or(0)) * 1000.0 / f64::from(2 * STEP_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_ten_seconds_tell_how_many_come() {
        let mut ages = Ages::default();
        // 100/s for 20 s, 30 s ago, and few since.
        for number in 0..2000 {
            ages.add(TIME_WAIT_MS - 30_000 - number * 10);
        }
        for left_ms in [59_000, 40_000, 70_000, 0] {
            ages.add(left_ms);
        }
        assert!((ages.most_per_second() - 100.0).abs() < 0.01, "{ages:?}");
    }
}
