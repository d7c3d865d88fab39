//! What netprobe says of itself at the end: what became of every firing, and what was counted.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// Last line of a stream.
#[derive(Clone, Debug, Deserialize)]
pub struct Summary {
    /// `netprobe.summary/1`.
    pub schema: String,
    /// How long it ran.
    pub elapsed_s: f64,
    /// Whether nothing was lost.
    pub complete: bool,
    /// Accounts, probe by probe.
    pub probes: Vec<Account>,
    /// What `--count` counted.
    #[serde(default)]
    pub totals: Vec<Total>,
    /// What the run cost.
    #[serde(default)]
    pub cost: Option<Value>,
    /// What connects add up to, of `connects`.
    #[serde(default)]
    pub connects: Option<Value>,
    /// What the kernel counted itself, beside what was seen.
    #[serde(default)]
    pub reconciled: Vec<Reconciled>,
}

/// A total beside the kernel's counter.
#[derive(Clone, Debug, Deserialize)]
pub struct Reconciled {
    /// What netprobe saw.
    pub seen: u64,
    /// The counter.
    pub counter: String,
    /// By how much it has grown while all programs were attached.
    pub least: u64,
    /// From before the first was until after the last one.
    pub most: u64,
    /// Whether the two agree.
    pub agrees: bool,
}

/// A probe in a summary, or in `netprobe check`.
#[derive(Clone, Debug, Deserialize)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// `attached`, `partial` or `missing`.
    pub state: String,
    /// Where it looks.
    pub hooks: Vec<Hook>,
    /// What became of every firing.
    #[serde(default)]
    pub counters: Counted,
    /// Events that user space did not understand.
    #[serde(default)]
    pub decode_errors: u64,
    /// Events that user space did not want.
    #[serde(default)]
    pub filtered_user: u64,
    /// Events that it showed.
    #[serde(default)]
    pub shown: u64,
    /// Firings that the kernel skipped; unknown is null.
    #[serde(default)]
    pub missed: Option<u64>,
    /// Firings that no counter explains.
    #[serde(default)]
    pub unexplained: i64,
}

/// A place in the kernel.
#[derive(Clone, Debug, Deserialize)]
pub struct Hook {
    /// What is seen there.
    pub sees: String,
    /// Whether the probe is of no use without it.
    pub required: bool,
    /// How it is watched; null where it is not.
    pub via: Option<String>,
    /// Why it is not.
    pub why: Option<String>,
}

/// The counters of a probe, see `netprobe_common::counters::Counters`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented where they are defined")]
pub struct Counted {
    pub fired: u64,
    pub filtered: u64,
    pub aggregated: u64,
    pub delivered: u64,
    pub sampled_out: u64,
    pub reserve_failed: u64,
    pub map_full: u64,
    pub stack_failed: u64,
    #[serde(default)]
    pub stack_sampled_out: u64,
}

/// A group of `--count`.
#[derive(Clone, Debug, Deserialize)]
pub struct Total {
    /// Name of the probe.
    pub kind: String,
    /// What its events share.
    pub group: BTreeMap<String, Value>,
    /// How many they are.
    pub events: u64,
    /// What they weigh.
    pub weight: u64,
}

impl Account {
    /// Every firing has exactly one outcome, and every event was understood.
    #[track_caller]
    pub fn assert_balanced(&self) {
        let Counted {
            fired,
            filtered,
            aggregated,
            delivered,
            sampled_out,
            reserve_failed,
            ..
        } = self.counters;
        let explained = filtered + aggregated + delivered + sampled_out + reserve_failed;
        assert_eq!(fired, explained, "{}: {:?}", self.name, self.counters);
        assert_eq!(self.unexplained, 0, "{}: {:?}", self.name, self.counters);
        let of_user = self.shown + self.filtered_user + self.decode_errors;
        assert_eq!(delivered, of_user, "{}", self.name);
        assert_eq!(self.decode_errors, 0, "{}", self.name);
    }
}
