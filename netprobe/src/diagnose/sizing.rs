//! The arithmetic of the fixes: what must have room, from what was measured.

/// What [`roomy`] does, in words.
pub(super) const SPARED: &str = "and half as much again, rounded up to a power of two";

/// What a table or limit should be for `needed` now: half as much again, as a round number.
pub(super) fn roomy(needed: f64) -> u64 {
    let wanted = (needed * 1.5).ceil().max(1.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a bounded positive number"
    )]
    let wanted = wanted.min(1e15) as u64;
    wanted.next_power_of_two()
}

/// Seconds until something is full, at this rate; `None` if it does not fill.
pub(super) fn seconds_left(used: u64, limit: u64, per_second: f64) -> Option<f64> {
    if per_second <= 0.0 || used >= limit {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "a forecast")]
    let room = (limit - used) as f64;
    Some(room / per_second)
}

/// A number of things: one of them has no `s`.
pub(super) fn counted(number: u64, what: &str) -> String {
    several(number, what, &format!("{what}s"))
}

/// A number of things, in the word for one or for several.
pub(super) fn several(count: u64, one: &str, more: &str) -> String {
    let word = if count == 1 { one } else { more };
    format!("{count} {word}")
}

/// Connections that wait.
pub(super) fn waiting(connections: u32) -> String {
    let waits = if connections == 1 { "waits" } else { "wait" };
    format!("{} {waits}", counted(connections.into(), "connection"))
}

/// The value that half of them have or exceed.
pub(super) fn median<T: Copy + Ord>(values: &[T]) -> Option<T> {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

/// A time as people say it.
pub(super) fn spoken(seconds: f64) -> String {
    if seconds < 120.0 {
        format!("{seconds:.0} s")
    } else if seconds < 7200.0 {
        format!("{:.0} min", seconds / 60.0)
    } else {
        format!("{:.0} h", seconds / 3600.0)
    }
}

/// A short time as people say it, from microseconds.
pub(super) fn lasting(micros: u64) -> String {
    match micros {
        0..1000 => format!("{micros} us"),
        1000..10_000 => format!("{:.1} ms", millis(micros)),
        _ => format!("{:.0} ms", millis(micros)),
    }
}

/// Microseconds in milliseconds.
#[expect(clippy::cast_precision_loss, reason = "a time for people")]
pub(super) fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// A number of bytes as people say it.
pub(super) fn bytes(count: u64) -> String {
    const MIB: u64 = 1 << 20;
    match count {
        0..MIB => format!("{} KiB", count / 1024),
        // A whole number would make two that differ the same.
        _ if count < 10 * MIB && !count.is_multiple_of(MIB) => {
            format!("{}.{} MiB", count / MIB, count % MIB * 10 / MIB)
        }
        _ => format!("{} MiB", count / MIB),
    }
}

/// Where a setting of the kernel is kept over a reboot.
pub(super) const PERSIST: &str = "to keep it, put it into /etc/sysctl.d/90-netprobe.conf";

/// The same for a namespace that is not the initial one.
pub(super) const PERSIST_ELSEWHERE: &str = "to keep it, have what makes that namespace set it (docker run --sysctl, a pod's securityContext)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_are_powers_of_two_with_half_as_much_to_spare() {
        for (needed, expected) in [(0.0, 1), (10.0, 16), (1000.0, 2048), (60_000.0, 131_072)] {
            assert_eq!(roomy(needed), expected, "{needed}");
        }
    }

    #[test]
    fn times_are_said_in_the_unit_that_fits() {
        for (micros, expected) in [(400, "400 us"), (5600, "5.6 ms"), (603_901, "604 ms")] {
            assert_eq!(lasting(micros), expected);
        }
    }

    #[test]
    fn amounts_of_memory_that_differ_are_told_apart() {
        for (pages, expected) in [
            (100, "400 KiB"),
            (256, "1 MiB"),
            (450, "1.7 MiB"),
            (517, "2.0 MiB"),
            (20_424, "79 MiB"),
        ] {
            assert_eq!(bytes(pages * 4096), expected, "{pages}");
        }
    }

    #[test]
    fn a_table_fills_when_its_rate_says_so() {
        // The victims of a table of 16,384 at 1,000 new connections/s observed 16 s.
        assert_eq!(seconds_left(0, 16_384, 1000.0), Some(16.384));
        assert_eq!(seconds_left(5, 4, 1.0), None);
        assert_eq!(seconds_left(0, 4, 0.0), None);
        assert_eq!(seconds_left(0, 4, -3.0), None);
    }
}
