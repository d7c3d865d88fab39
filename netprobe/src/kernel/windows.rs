//! When to count candidate ports: in short windows, because the probe runs for every candidate
//! of every connect. A window that cost much, by what it saw or by its opening and closing, for which the kernel patches
//! its code, is followed by a long pause.

use std::time::Duration;

/// How long a window is open.
pub const OPEN: Duration = Duration::from_millis(100);

/// The shortest pause between windows.
const SHORTEST: Duration = Duration::from_millis(900);
/// The longest, so that a change of load is noticed.
const LONGEST: Duration = Duration::from_secs(30);

/// What one call costs while it is counted; a trampoline is cheaper than a breakpoint.
const CALL: Duration = Duration::from_nanos(60);

/// How long to pause after a window that counted `calls`, and was opened and closed in `own` CPU time, on a machine with
/// `cpus` CPUs, of which counting may take this `share`.
pub fn pause(calls: u64, own: Duration, cpus: u32, share: f64) -> Duration {
    let calls = u32::try_from(calls).unwrap_or(u32::MAX);
    let cost = CALL.saturating_mul(calls).saturating_add(own) / cpus.max(1);
    Duration::try_from_secs_f64(cost.as_secs_f64() / share.max(1e-6))
        .unwrap_or(LONGEST)
        .clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_windows_are_followed_by_long_pauses() {
        assert_eq!(pause(0, Duration::ZERO, 2, 0.01), SHORTEST);
        // 400,000 calls of 60 ns are 24 ms, 12 ms of each of two CPUs: 1 % of 1.2 s.
        assert_eq!(
            pause(400_000, Duration::ZERO, 2, 0.01),
            Duration::from_millis(1200)
        );
        assert_eq!(pause(u64::MAX, Duration::ZERO, 1, 0.01), LONGEST);
    }

    #[test]
    fn slow_machines_open_them_seldom() {
        let own = Duration::from_millis(80);
        assert_eq!(pause(0, own, 1, 0.01), Duration::from_secs(8));
    }
}
