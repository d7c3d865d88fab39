//! Times as text. Formatting a whole date per event is slow, so the part that stays the same for
//! a second is kept.

use std::fmt::Write;

use jiff::{Timestamp, tz::TimeZone};

/// How a time is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `15:04:05.123456`, local time.
    OfDay,
    /// `2026-11-21T15:04:05.123456789Z`, RFC 3339.
    Rfc3339,
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
    /// A clock in the machine's time zone.
    pub fn new(style: Style) -> Self {
        let zone = match style {
            Style::OfDay => TimeZone::system(),
            Style::Rfc3339 => TimeZone::UTC,
        };
        Self {
            style,
            zone,
            second: i64::MIN,
            prefix: 0,
            text: String::new(),
        }
    }

    /// The text of a time given in nanoseconds since the Unix epoch.
    pub fn format(&mut self, unix_ns: i64) -> &str {
        let second = unix_ns.div_euclid(1_000_000_000);
        let fraction = unix_ns.rem_euclid(1_000_000_000);
        if second != self.second {
            self.second = second;
            self.text.clear();
            let format = match self.style {
                Style::OfDay => "%H:%M:%S",
                Style::Rfc3339 => "%Y-%m-%dT%H:%M:%S",
            };
            let time = Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH);
            let date = time
                .to_zoned(self.zone.clone())
                .strftime(format)
                .to_string();
            self.text.push_str(&date);
            self.prefix = self.text.len();
        }
        self.text.truncate(self.prefix);
        let written = match self.style {
            Style::OfDay => write!(self.text, ".{:06}", fraction / 1000),
            Style::Rfc3339 => write!(self.text, ".{fraction:09}Z"),
        };
        debug_assert!(written.is_ok(), "writing to a string does not fail");
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_within_and_across_seconds() {
        let mut clock = Clock::new(Style::Rfc3339);
        assert_eq!(
            clock.format(1_000_000_007),
            "1970-01-01T00:00:01.000000007Z"
        );
        assert_eq!(
            clock.format(1_900_000_000),
            "1970-01-01T00:00:01.900000000Z"
        );
        assert_eq!(
            clock.format(62_000_000_000),
            "1970-01-01T00:01:02.000000000Z"
        );
        assert_eq!(clock.format(-1), "1969-12-31T23:59:59.999999999Z");
    }
}
