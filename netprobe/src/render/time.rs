//! Times as text. Formatting a whole date per event is slow, so the part that stays the same for
//! a second is kept.

use jiff::{Timestamp, tz::TimeZone};

use crate::report::Row;

/// How a time is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `15:04:05.123456`, local time.
    OfDay,
    /// `2026-11-21T15:04:05.123456789Z`, RFC 3339.
    Rfc3339,
    /// Seconds of the monotonic clock, as in dmesg(1).
    Monotonic,
    /// Seconds since this reading of the monotonic clock, in nanoseconds.
    Since(u64),
}

impl Style {
    /// Width of a time in a table.
    pub const fn width(self) -> usize {
        match self {
            Self::Rfc3339 => 30,
            Self::OfDay | Self::Monotonic | Self::Since(_) => 15,
        }
    }
}

/// The time of day, in whole seconds, in the time zone of `TZ` or of the machine; it is given in nanoseconds since the Unix
/// epoch.
pub fn of_day(unix_ns: i64) -> String {
    let time = Timestamp::from_second(unix_ns.div_euclid(1_000_000_000));
    let time = time.unwrap_or(Timestamp::UNIX_EPOCH);
    time.to_zoned(TimeZone::system())
        .strftime("%H:%M:%S")
        .to_string()
}

/// Writes times in one style.
#[derive(Debug)]
pub struct Clock {
    style: Style,
    zone: TimeZone,
    second: i64,
    prefix: usize,
    text: String,
}

impl Clock {
    /// A clock in the time zone of `TZ`, or of the machine.
    pub fn new(style: Style) -> Self {
        let zone = match style {
            Style::OfDay => TimeZone::system(),
            Style::Rfc3339 | Style::Monotonic | Style::Since(_) => TimeZone::UTC,
        };
        Self {
            style,
            zone,
            second: i64::MIN,
            prefix: 0,
            text: String::new(),
        }
    }

    /// How it writes.
    pub const fn style(&self) -> Style {
        self.style
    }

    /// The text of the time of an event.
    pub fn format(&mut self, row: &Row) -> &str {
        match self.style {
            Style::OfDay => self.date(row.unix_ns, "%H:%M:%S"),
            Style::Rfc3339 => self.date(row.unix_ns, "%Y-%m-%dT%H:%M:%S"),
            Style::Monotonic => self.seconds(row.monotonic_ns.cast_signed()),
            Style::Since(origin) => {
                self.seconds(row.monotonic_ns.wrapping_sub(origin).cast_signed())
            }
        }
    }

    /// The text of a time given in nanoseconds since the Unix epoch.
    fn date(&mut self, unix_ns: i64, format: &str) -> &str {
        let second = unix_ns.div_euclid(1_000_000_000);
        let fraction = unix_ns.rem_euclid(1_000_000_000);
        if second != self.second {
            self.second = second;
            self.text.clear();
            let time = Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH);
            let date = time
                .to_zoned(self.zone.clone())
                .strftime(format)
                .to_string();
            self.text.push_str(&date);
            self.prefix = self.text.len();
        }
        self.text.truncate(self.prefix);
        match self.style {
            Style::OfDay => self.fraction(fraction / 1000, 6),
            Style::Rfc3339 | Style::Monotonic | Style::Since(_) => {
                self.fraction(fraction, 9);
                self.text.push('Z');
            }
        }
        &self.text
    }

    /// Appends so many digits, without the machinery of formatting.
    fn fraction(&mut self, mut fraction: i64, digits: usize) {
        let mut text = [b'0'; 10];
        text[0] = b'.';
        for place in text[1..=digits].iter_mut().rev() {
            *place += u8::try_from(fraction % 10).unwrap_or_default();
            fraction /= 10;
        }
        let text = str::from_utf8(&text[..=digits]).unwrap_or_default();
        self.text.push_str(text);
    }

    fn seconds(&mut self, ns: i64) -> &str {
        let sign = if ns < 0 { "-" } else { "" };
        let ns = ns.unsigned_abs();
        let (second, micros) = (ns / 1_000_000_000, ns % 1_000_000_000 / 1000);
        self.text = format!("{:>15}", format!("{sign}{second}.{micros:06}"));
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{env, path::Path, process::Command};

    /// Set for the test that runs itself in another time zone.
    const SHOWS: &str = "NETPROBE_TEST_TIME_ZONE";

    #[test]
    fn the_time_of_day_is_that_of_the_zone_asked_for() {
        if env::var_os(SHOWS).is_some() {
            println!("shown {}", shown(Style::OfDay, 0, 0));
            return;
        }
        if !Path::new("/usr/share/zoneinfo/Asia/Tokyo").exists() {
            println!("SKIP no zoneinfo");
            return;
        }
        for (zone, expected) in [
            ("Asia/Tokyo", "09:00:00"),
            ("XYZ-2", "02:00:00"),
            ("UTC", "00:00:00"),
        ] {
            let name = "the_time_of_day_is_that_of_the_zone_asked_for";
            let itself = Command::new(env::current_exe().unwrap())
                .args(["--nocapture", name])
                .env("TZ", zone)
                .env(SHOWS, "1")
                .output()
                .unwrap();
            let out = String::from_utf8_lossy(&itself.stdout);
            assert!(out.contains(&format!("shown {expected}.")), "{zone}: {out}");
        }
    }

    fn shown(style: Style, unix_ns: i64, monotonic_ns: u64) -> String {
        let row = Row {
            unix_ns,
            monotonic_ns,
            ..Row::default()
        };
        Clock::new(style).format(&row).to_owned()
    }

    #[test]
    fn times_within_and_across_seconds() {
        let mut clock = Clock::new(Style::Rfc3339);
        for (unix_ns, expected) in [
            (1_000_000_007, "1970-01-01T00:00:01.000000007Z"),
            (1_900_000_000, "1970-01-01T00:00:01.900000000Z"),
            (62_000_000_000, "1970-01-01T00:01:02.000000000Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
        ] {
            let row = Row {
                unix_ns,
                ..Row::default()
            };
            assert_eq!(clock.format(&row), expected);
        }
    }

    #[test]
    fn seconds_of_the_monotonic_clock_and_since_the_start() {
        assert_eq!(
            shown(Style::Monotonic, 0, 12_345_678_901),
            "      12.345678"
        );
        let since = Style::Since(2_000_000_000);
        assert_eq!(shown(since, 0, 2_000_001_000), "       0.000001");
        assert_eq!(shown(since, 0, 1_500_000_000), "      -0.500000");
    }
}
