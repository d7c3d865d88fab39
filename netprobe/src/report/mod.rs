//! What renderers see: rows of events, totals, and how complete they are. Nothing else.

use std::{net::IpAddr, sync::Arc, time::Duration};

use netprobe_common::counters::{Count, Counters};

pub mod diagnosis;

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

/// One value of a row.
#[derive(Clone, Debug, PartialEq, Hash)]
pub enum Value {
    /// Unknown, or not applicable; shown as `-` and `null`.
    Unknown,
    /// A count or size.
    Unsigned(u64),
    /// A number that may be negative.
    Signed(i64),
    /// An address.
    Ip(IpAddr),
    /// A word of a fixed vocabulary.
    Word(&'static str),
    /// Text that was looked up.
    Text(Arc<str>),
    /// A task or interface name: bytes that anybody chose.
    Name([u8; 16]),
    /// The flags byte of a TCP header.
    TcpFlags(u8),
    /// Function names, innermost first.
    Stack(Arc<[Arc<str>]>),
}

impl Value {
    /// A name, or unknown if it is empty.
    pub const fn name(bytes: [u8; 16]) -> Self {
        if bytes[0] == 0 {
            Self::Unknown
        } else {
            Self::Name(bytes)
        }
    }

    /// A number, or unknown if it is zero.
    pub fn nonzero(number: impl Into<u64>) -> Self {
        match number.into() {
            0 => Self::Unknown,
            number => Self::Unsigned(number),
        }
    }
}

/// The bytes of a NUL-padded name up to its end.
pub fn name_bytes(name: &[u8; 16]) -> &[u8] {
    let end = name
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(name.len());
    &name[..end]
}

/// How a column is aligned in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// What the values of a column are, beside unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A whole number.
    Number,
    /// Text.
    Text,
    /// Names of functions.
    Stack,
}

/// When a table shows a column; other formats always have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Always.
    Always,
    /// On wide terminals.
    Wide,
    /// Only where asked for.
    Never,
}

/// A column of a kind of event: its name everywhere, and how a table shows it.
#[derive(Debug)]
pub struct Column {
    /// Its key in JSON and CSV, with the unit (`latency_ns`).
    pub name: &'static str,
    /// Its heading in a table.
    pub title: &'static str,
    /// What it says.
    pub about: &'static str,
    /// Its width in a table.
    pub width: usize,
    /// Its alignment in a table.
    pub align: Align,
    /// When a table shows it.
    pub shown: Shown,
}

impl Column {
    /// A text column that tables always show.
    pub const fn text(
        name: &'static str,
        title: &'static str,
        width: usize,
        about: &'static str,
    ) -> Self {
        Self {
            name,
            title,
            about,
            width,
            align: Align::Left,
            shown: Shown::Always,
        }
    }

    /// A number column that tables always show.
    pub const fn number(
        name: &'static str,
        title: &'static str,
        width: usize,
        about: &'static str,
    ) -> Self {
        Self {
            name,
            title,
            about,
            width,
            align: Align::Right,
            shown: Shown::Always,
        }
    }

    /// What its values are.
    pub fn kind(&self) -> Type {
        match self.align {
            Align::Right => Type::Number,
            Align::Left if self.name == "stack" => Type::Stack,
            Align::Left => Type::Text,
        }
    }

    /// Whether its values are addresses.
    pub fn is_address(&self) -> bool {
        matches!(self.name, "saddr" | "daddr" | "listener")
    }

    /// The same, only on wide terminals.
    #[must_use]
    pub const fn wide(self) -> Self {
        Self {
            shown: Shown::Wide,
            ..self
        }
    }

    /// The same, never in a table unless asked for.
    #[must_use]
    pub const fn hidden(self) -> Self {
        Self {
            shown: Shown::Never,
            ..self
        }
    }
}

/// One event.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// When, in nanoseconds since the Unix epoch.
    pub unix_ns: i64,
    /// The same, in nanoseconds of the monotonic clock; 0 where that is not known.
    pub monotonic_ns: u64,
    /// The kind's name.
    pub kind: &'static str,
    /// One value per column of the kind.
    pub values: Vec<Value>,
    /// The headers of the packet, from its IP header on, where they were asked for.
    pub packet: Vec<u8>,
}

/// The columns of a kind, for renderers.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The kind's name.
    pub kind: &'static str,
    /// Its columns.
    pub columns: &'static [Column],
}

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
    /// Their weight, see [`Probe::weight`].
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
            && self.lost() == 0
            && self.counters.sampled_out == 0
            && self.counters.map_full == 0
            && self.counters.unexplained() == 0
            && self.missed.unwrap_or(0) == 0
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
    /// Run time of its programs in the kernel, in percent; unknown where the kernel did not say.
    pub kernel_percent: Option<f64>,
    /// Nanoseconds of one run of its programs; unknown where none ran while it was measured.
    pub ns_per_run: Option<f64>,
    /// What it may cost, in percent.
    pub limit_percent: f64,
    /// How long stacks, part of the events, all events, and flows and owners in totals were left out to stay below
    /// that.
    pub reduced: [Duration; 4],
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

/// What a run of `connects` adds up to. Pairs are a name or number and how many connects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectView {
    /// Connects that were established.
    pub established: u64,
    /// Those that were not, by errno, or `closed` if the application did not wait.
    pub failed: Vec<(String, u64)>,
    /// Whether these are all that there were, and not only those that were shown.
    pub are_all: bool,
    /// How many were shown; all that follows is of these.
    pub shown: u64,
    /// Established ones by the power of two of microseconds that they took less than.
    pub latency: Vec<(u32, u64)>,
    /// By the number of SYNs that were sent.
    pub attempts: Vec<(u64, u64)>,
    /// Established ones that waited so many whole seconds for a SYN to be sent again.
    pub steps: Vec<(u64, u64)>,
    /// Destinations, those in trouble first.
    pub destinations: Vec<Destination>,
    /// All other destinations together.
    pub other: Destination,
    /// Whether they are of several network namespaces.
    pub has_many_netns: bool,
}

/// How connects to a destination went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// Network namespace of the connects, as the same address may be another machine in another one; none for several
    /// together.
    pub netns: Option<u64>,
    /// Address and port; none for several together.
    pub end: Option<(IpAddr, u64)>,
    /// Connects.
    pub connects: u64,
    /// Those that were not established.
    pub failed: u64,
    /// Those that nobody answered (ETIMEDOUT).
    pub unanswered: u64,
    /// SYNs that were sent again.
    pub sent_again: u64,
    /// The longest time to an outcome that is known; none of those that began before netprobe.
    pub worst_ns: Option<u64>,
}

impl Destination {
    /// Adds another destination's sums.
    pub fn add(&mut self, other: &Self) {
        self.connects += other.connects;
        self.failed += other.failed;
        self.unanswered += other.unanswered;
        self.sent_again += other.sent_again;
        self.worst_ns = self.worst_ns.max(other.worst_ns);
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

    /// Whether everything asked for was watched, and nothing was lost or left out.
    pub fn is_complete(&self) -> bool {
        let tells_groups_apart = self.cost.is_none_or(|cost| cost.reduced[3].is_zero());
        tells_groups_apart
            && self.reconciled.iter().all(Reconciled::agrees)
            && self.probes.iter().all(Probe::is_complete)
    }
}

/// A stack with its weight, ready to draw: frames from the root to the leaf.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Folded {
    /// Frames, outermost first.
    pub frames: Vec<Arc<str>>,
    /// How many units.
    pub weight: u64,
}

/// A flame graph to be drawn.
#[derive(Clone, Debug)]
pub struct Flame {
    /// Its title.
    pub title: String,
    /// Host, kernel, window, samples and what was lost.
    pub subtitle: String,
    /// What one unit of weight is.
    pub unit: &'static str,
    /// How its frames are coloured, unless somebody wants it otherwise.
    pub palette: Palette,
    /// What formats for programs say of the numbers.
    pub profile: Profile,
    /// Its stacks.
    pub stacks: Vec<Folded>,
}

/// Colours of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Palette {
    /// Red to yellow.
    #[default]
    Hot,
    /// Green.
    Mem,
    /// Blue.
    Io,
    /// By suffix: kernel orange, inlined aqua, compiled at run time green, the rest red and yellow.
    Java,
    /// Red.
    Red,
    /// Green to blue.
    Aqua,
    /// By layer of the TCP path.
    Tcp,
}

/// What the numbers of a profile are, and when they were collected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// What is measured.
    pub name: &'static str,
    /// Its unit, as pprof knows it.
    pub unit: &'static str,
    /// How long.
    pub elapsed: Duration,
    /// End of the window in nanoseconds since the Unix epoch.
    pub unix_ns: i64,
    /// Time between samples; 0 where nothing is sampled.
    pub period_ns: u64,
}
