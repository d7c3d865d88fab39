//! The kernel's clocks: clock_gettime(2).

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` in nanoseconds, which events have as well.
pub fn now_ns() -> u64 {
    nanos(ClockId::Monotonic)
}

/// How long the machine has slept since it was started, in nanoseconds: `CLOCK_MONOTONIC` leaves that out.
pub fn asleep_ns() -> u64 {
    nanos(ClockId::Boottime).saturating_sub(now_ns())
}

/// `CLOCK_REALTIME`, the time of day, in nanoseconds since 1970.
pub fn unix_ns() -> i64 {
    nanos(ClockId::Realtime).cast_signed()
}

/// What to add to `CLOCK_MONOTONIC` for the time of day, in nanoseconds since 1970.
pub fn wall_offset_ns() -> i64 {
    let monotonic = now_ns().cast_signed();
    unix_ns() - monotonic
}

/// CPU time of this thread so far: on a machine under load work takes longer, but not more.
pub fn thread_cpu() -> Duration {
    Duration::from_nanos(nanos(ClockId::ThreadCPUTime))
}

/// CPU time of this process so far, all threads.
pub fn process_cpu() -> Duration {
    Duration::from_nanos(nanos(ClockId::ProcessCPUTime))
}

fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    (time.tv_sec * 1_000_000_000 + time.tv_nsec).cast_unsigned()
}
