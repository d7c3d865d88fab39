//! What ends each run: what became of every firing, what the kernel counted itself, and what it cost.

use std::time::Duration;

use netprobe_common::counters::Counters;

use super::{ConnectView, Total};

/// A setting of a network namespace by which a counter counts something else as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name, with points.
    pub name: &'static str,
    /// Its value.
    pub value: &'static str,
    /// What the kernel counts there.
    pub about: &'static str,
}

/// What became of one probe in this run.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Its name.
    pub name: &'static str,
    /// What it tells, in one line.
    pub about: &'static str,
    /// What a weight of 1 is, e.g. `segs`, or the column that is added up, e.g. `sum(latency_ns)`.
    pub weight: &'static str,
    /// Its places in the kernel.
    pub hooks: Vec<Hook>,
    /// What became of its firings.
    pub counters: Counters,
    /// Records that could not be decoded.
    pub decode_errors: u64,
    /// Delivered, but not wanted by the part of the filter that only user space can test.
    pub filtered_user: u64,
    /// Events that were to be shown, when the output could not be written any more.
    pub unwritten: u64,
    /// Firings that the kernel skipped, where it says (`recursion_misses`, `nmissed`).
    pub missed: Option<u64>,
}

/// What is not seen whatever is attached, of this kernel or with these privileges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What is not seen.
    pub what: &'static str,
    /// Why, or what it needs.
    pub why: String,
}

/// A place in the kernel that a probe watches, or would like to.
#[derive(Clone, Debug)]
pub struct Hook {
    /// What is seen there.
    pub sees: &'static str,
    /// Whether the probe is of no use without it.
    pub required: bool,
    /// The type of program that is attached, or why there is none.
    pub state: Result<&'static str, String>,
}

impl Probe {
    /// `attached`, `partial` (some of what it sees is missing) or `missing`.
    pub fn state(&self) -> &'static str {
        let is_missing = |hook: &Hook| hook.state.is_err();
        if self
            .hooks
            .iter()
            .any(|hook| hook.required && is_missing(hook))
        {
            "missing"
        } else if self.hooks.iter().any(is_missing) {
            "partial"
        } else {
            "attached"
        }
    }

    /// Events that were shown: delivered, decoded and wanted.
    pub const fn shown(&self) -> u64 {
        self.counters
            .delivered
            .saturating_sub(self.decode_errors + self.filtered_user + self.unwritten)
    }

    /// Whether all that it sees was watched, and nothing was lost or left out.
    pub fn is_complete(&self) -> bool {
        self.state() == "attached"
            && self.not_shown() == 0
            && self.counters.map_full == 0
            && self.counters.unexplained() == 0
    }

    /// Events that the output lacks: lost or left out, and firings that the kernel skipped, which may have been some.
    pub fn not_shown(&self) -> u64 {
        self.lost() + self.counters.sampled_out + self.missed.unwrap_or(0)
    }

    /// Events that were seen but whose detail was not delivered.
    pub const fn lost(&self) -> u64 {
        self.counters.reserve_failed + self.decode_errors + self.unwritten
    }
}

/// What netprobe itself cost while it ran, in shares of the whole machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// How long it ran.
    pub elapsed: Duration,
    /// CPU time of its own process, in percent.
    pub process_percent: f64,
    /// Of that, looking for the owners of sockets, in percent.
    pub owners_percent: f64,
    /// Run time of its programs in the kernel, in percent; unknown where the kernel did not say.
    pub kernel_percent: Option<f64>,
    /// Nanoseconds of one run of its programs; unknown where none ran while it was measured.
    pub ns_per_run: Option<f64>,
    /// What it may cost, in percent.
    pub limit_percent: f64,
    /// How long stacks, part of the events, all events, and flows and owners in totals were left out to stay below
    /// that, and owners of sockets looked for less often.
    pub reduced: [Duration; 5],
}

impl Cost {
    /// All of it that is known, in percent.
    pub fn percent(&self) -> f64 {
        self.process_percent + self.kernel_percent.unwrap_or(0.0)
    }
}

/// The end of a run.
#[derive(Clone, Debug)]
pub struct Summary {
    /// How long it watched.
    pub elapsed: Duration,
    /// Every probe that was asked for.
    pub probes: Vec<Probe>,
    /// In-kernel totals, largest first.
    pub totals: Vec<Total>,
    /// What it cost, where it was measured.
    pub cost: Option<Cost>,
    /// What the connects add up to, for `connects`.
    pub connects: Option<ConnectView>,
    /// What was seen beside what the kernel counted, where it counts the same.
    pub reconciled: Vec<Reconciled>,
}

/// A total beside the kernel's own counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconciled {
    /// What is counted, in the plural.
    pub unit: &'static str,
    /// The counter, as nstat(8) names it.
    pub counter: String,
    /// What the programs saw.
    pub seen: u64,
    /// What the counter has grown by while all programs were attached.
    pub least: u64,
    /// And from before the first was until after the last one.
    pub most: u64,
    /// Seen in namespaces whose counters could not be read, as of containers that have ended.
    pub elsewhere: u64,
    /// Namespaces that are left out, as the counter counts something else as well there.
    pub not_compared: u64,
    /// By which setting.
    pub not_where: Option<Setting>,
}

impl Reconciled {
    /// Whether the two agree.
    pub fn agrees(&self) -> bool {
        (self.least..=self.most).contains(&self.seen)
    }
}

impl Summary {
    /// Whether every firing is accounted for: none skipped by the kernel, none without an outcome, and as many as the
    /// kernel counted itself.
    pub fn is_explained(&self) -> bool {
        self.reconciled.iter().all(Reconciled::agrees)
            && self.probes.iter().all(|probe| {
                probe.counters.unexplained() == 0
                    && probe.decode_errors == 0
                    && probe.missed.unwrap_or(0) == 0
            })
    }

    /// Events that the output lacks.
    pub fn not_shown(&self) -> u64 {
        self.probes.iter().map(Probe::not_shown).sum()
    }

    /// Whether everything asked for was watched, and nothing was lost or left out.
    pub fn is_complete(&self) -> bool {
        let tells_groups_apart = self.cost.is_none_or(|cost| cost.reduced[3].is_zero());
        tells_groups_apart
            && self.reconciled.iter().all(Reconciled::agrees)
            && self.probes.iter().all(Probe::is_complete)
    }
}

/// The end of a run whose output lacks so many events.
#[cfg(test)]
pub(crate) fn lacking(events: u64) -> Summary {
    let probe = Probe {
        name: "drops",
        about: "",
        weight: "bytes",
        hooks: Vec::new(),
        counters: Counters {
            fired: events + 1,
            delivered: 1,
            sampled_out: events,
            ..Counters::ZERO
        },
        decode_errors: 0,
        filtered_user: 0,
        unwritten: 0,
        missed: None,
    };
    Summary {
        elapsed: Duration::from_secs(1),
        probes: vec![probe],
        totals: Vec::new(),
        cost: None,
        connects: None,
        reconciled: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_left_out_or_skipped_is_not_shown() {
        assert!(lacking(0).is_complete());
        let mut summary = lacking(7);
        assert!(summary.is_explained() && !summary.is_complete());
        assert_eq!(summary.not_shown(), 7);
        let probe = &mut summary.probes[0];
        probe.counters.reserve_failed = 20;
        probe.missed = Some(300);
        probe.decode_errors = 4000;
        assert_eq!(summary.not_shown(), 4327);
    }
}
