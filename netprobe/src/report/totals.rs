//! What `--count` adds up, by group and interval.

use std::time::Duration;

use netprobe_common::counters::Count;

use super::Value;

/// What the events of a group share, as column name and value.
pub type Group = Vec<(&'static str, Value)>;

/// Which group of `--count` it is.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Named {
    /// The kind's name.
    pub kind: &'static str,
    /// What its events share.
    pub group: Group,
}

impl Named {
    /// The group with what was counted of it.
    pub fn total(self, count: Count) -> Total {
        let Self { kind, group } = self;
        Total {
            kind,
            group,
            events: count.events,
            weight: count.weight,
        }
    }
}

/// A group of `--count`.
#[derive(Clone, Debug, PartialEq)]
pub struct Total {
    /// The kind's name.
    pub kind: &'static str,
    /// What its events share.
    pub group: Group,
    /// How many.
    pub events: u64,
    /// Their weight, see [`super::Probe::weight`].
    pub weight: u64,
}

/// What `--count --interval` shows of an interval.
#[derive(Clone, Copy, Debug)]
pub struct Interval<'a> {
    /// Its end, in nanoseconds since the Unix epoch.
    pub unix_ns: i64,
    /// How long it was: the last one ends when the run does.
    pub elapsed: Duration,
    /// What was added, largest first.
    pub totals: &'a [Total],
}
