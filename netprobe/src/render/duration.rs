//! Durations as people read them: three digits and a unit, from a minute on two units.

use std::fmt::Write as _;

const US: u64 = 1_000;
const MS: u64 = 1_000 * US;
const S: u64 = 1_000 * MS;
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Nanoseconds of one of a value, if it is a duration: its name ends in the unit, as in `latency_ns`.
pub(super) fn unit_ns(name: &str) -> Option<u64> {
    match name.rsplit_once('_')?.1 {
        "ns" => Some(1),
        "us" => Some(US),
        _ => None,
    }
}

/// Appends so many nanoseconds.
pub(super) fn push(out: &mut String, ns: u64) {
    let seconds = ns.saturating_add(S / 2) / S;
    let written = match ns {
        0..US => write!(out, "{ns}ns"),
        US..999_500 => digits(out, ns, US, "us"),
        999_500..999_500_000 => digits(out, ns, MS, "ms"),
        999_500_000..59_950_000_000 => digits(out, ns, S, "s"),
        _ if seconds < HOUR => write!(out, "{}m{:02}s", seconds / MINUTE, seconds % MINUTE),
        _ if seconds < DAY => write!(out, "{}h{:02}m", seconds / HOUR, seconds % HOUR / MINUTE),
        _ => write!(out, "{}d{:02}h", seconds / DAY, seconds % DAY / HOUR),
    };
    debug_assert!(written.is_ok(), "writing to a string does not fail");
}

/// Three digits, rounded.
fn digits(out: &mut String, ns: u64, unit: u64, name: &str) -> std::fmt::Result {
    let hundredths = (ns + unit / 200) / (unit / 100);
    let tenths = (ns + unit / 20) / (unit / 10);
    if hundredths < 1_000 {
        write!(out, "{}.{:02}{name}", hundredths / 100, hundredths % 100)
    } else if tenths < 1_000 {
        write!(out, "{}.{}{name}", tenths / 10, tenths % 10)
    } else {
        write!(out, "{}{name}", (ns + unit / 2) / unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_never_a_thousand_of_a_unit() {
        for (ns, expected) in [
            (0, "0ns"),
            (999, "999ns"),
            (1_000, "1.00us"),
            (9_994, "9.99us"),
            (9_995, "10.0us"),
            (99_949, "99.9us"),
            (99_950, "100us"),
            (999_499, "999us"),
            (999_500, "1.00ms"),
            (1_004_567_000, "1.00s"),
            (3_021_000_000, "3.02s"),
            (59_949_999_999, "59.9s"),
            (59_950_000_000, "1m00s"),
            (61_000_000_000, "1m01s"),
            (3_599_499_999_999, "59m59s"),
            (3_599_500_000_000, "1h00m"),
            (11_520_000_000_000, "3h12m"),
            (360_000_000_000_000, "4d04h"),
            (u64::MAX, "213503d23h"),
        ] {
            let mut out = String::new();
            push(&mut out, ns);
            assert_eq!(out, expected, "{ns}");
        }
    }

    #[test]
    fn the_unit_is_in_the_name() {
        assert_eq!(unit_ns("latency_ns"), Some(1));
        assert_eq!(unit_ns("srtt_us"), Some(1_000));
        assert_eq!(unit_ns("netns"), None);
        assert_eq!(unit_ns("pid"), None);
    }
}
