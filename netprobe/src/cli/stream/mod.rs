//! `netprobe drops`, `retransmits`, `connects`, `listeners` and so on: events as they happen.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use clap::{Args, ValueEnum};
use netprobe_common::{config::Config, header::Kind, record::Plain};

use super::{
    Global, filter,
    output::{self, Output},
    parse_duration,
};
use crate::{
    filter::Error,
    kernel::{load::Sizes, session::Request},
    observe::{clock::now_ns, namespaces},
    probes::{self, ProbeSpec},
    render::{
        self,
        csv::Csv,
        format::Format,
        jsonl::Lines,
        table::{self, Table},
        time::{Clock, Style},
    },
    report::{Layout, Summary},
};

mod books;
mod columns;
mod count;
mod pcap;
mod screen;
mod watch;

use count::Counting;
use pcap::Pcap;
pub(super) use watch::{Watch, require, start};

/// Options of a stream.
#[derive(Args, Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of the command line"
)]
pub(super) struct Options {
    /// Stop after this long (10s, 5m, 1h30m); without it, Ctrl-C ends the run.
    #[arg(short, long, value_parser = parse_duration)]
    duration: Option<Duration>,
    /// JSON Lines: one object per event, a summary last; `netprobe schema` describes them.
    #[arg(long)]
    json: bool,
    /// Comma-separated values, of all columns unless --columns picks, and `not_shown`: empty, but in the last line how many events
    /// are missing, if any are.
    #[arg(long, conflicts_with_all = ["json", "count"])]
    csv: bool,
    /// Write to this file instead of standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Only these columns, in this order; `all` is all of them. A list that begins with + adds to the usual ones.
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        conflicts_with = "count"
    )]
    columns: Vec<String>,
    /// How times are written; JSON and CSV have utc unless another one is asked for.
    #[arg(long, value_name = "STYLE")]
    timestamps: Option<Timestamps>,
    /// Only count, in the kernel, and show totals at the end.
    #[arg(short, long)]
    count: bool,
    /// With --count: group by these: reason, dport, netns and so on (see the names in the totals), flow,
    /// process, cgroup, listener, stack. What could not be told apart is `gathered`, and why.
    #[arg(long, value_name = "WHAT", value_delimiter = ',', requires = "count")]
    by: Vec<String>,
    /// With --count: show what was added in each interval too.
    #[arg(long, value_parser = parse_duration, requires = "count")]
    interval: Option<Duration>,
    /// With --count: so many groups, the rest as one, `other` [default: 20; with --json and without --by all].
    #[arg(long, value_name = "N", requires = "count")]
    top: Option<usize>,
    /// Of `drops`: write the headers of the packets to this file, as pcapng, with the reason as comment.
    #[arg(long, value_name = "FILE", conflicts_with = "count")]
    pcap: Option<PathBuf>,
    /// The kernel stack of each event (in JSON, or as lines below the event).
    #[arg(long, conflicts_with = "count")]
    stack: bool,
    #[command(flatten)]
    filter: filter::Options,
    /// Room for events that wait to be shown, in KiB (a power of two).
    #[arg(long, value_name = "KIB", default_value_t = RING_KIB, value_parser = clap::value_parser!(u32).range(64..=1 << 20))]
    ring_kib: u32,
    /// What netprobe itself may cost, in percent of the machine's CPUs: it leaves out stacks, then
    /// events, never counts. 100% leaves out no event; of stacks a thousand a second are taken of one place and reason.
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = parse_percent)]
    max_overhead: f64,
    /// End with exit code 3 if a firing of a probe is not accounted for, or an event missing from the output.
    #[arg(long)]
    strict: bool,
}

/// A share of the machine: `1%`, or `1`.
pub(super) fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').parse::<f64>().ok();
    number
        .filter(|percent| *percent > 0.0 && *percent <= 100.0)
        .map(|percent| percent / 100.0)
        .ok_or_else(|| "expected a percentage above 0 and up to 100, such as 1%".to_owned())
}

/// Room for events unless more is asked for, in KiB.
const RING_KIB: u32 = 4096;

/// How times are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Timestamps {
    /// Time of day, as the wall clock here shows it.
    Wall,
    /// Date and time in UTC, RFC 3339.
    Utc,
    /// Seconds since the machine was started, as dmesg(1) shows them.
    Monotonic,
    /// Seconds since netprobe was started.
    Relative,
}

impl Timestamps {
    fn style(self) -> Style {
        match self {
            Self::Wall => Style::OfDay,
            Self::Utc => Style::Rfc3339,
            Self::Monotonic => Style::Monotonic,
            Self::Relative => Style::Since(now_ns()),
        }
    }
}

impl Options {
    /// Which connections are wanted.
    pub(super) const fn filter(&self) -> &filter::Options {
        &self.filter
    }

    /// Where the output goes.
    pub(super) fn open(&self) -> Result<Output> {
        Output::open(self.output.as_deref())
    }

    /// Columns that tables have however narrow the terminal: the namespace where there are several, in which the same
    /// address may be of different machines, and where nothing is narrow the interface.
    fn needed(&self, width: Option<usize>) -> Vec<&'static str> {
        let are_several = || {
            let all = namespaces::all();
            all.map_or(true, |all| all.len() > 1) || namespaces::are_hidden()
        };
        let netns = (!self.filter.is_of_one_netns() && are_several()).then_some("netns");
        let iface = width.is_none().then_some("iface");
        netns.into_iter().chain(iface).collect()
    }

    /// The format of rows of `layout`.
    pub(super) fn format(&self, layout: Layout, width: Option<usize>) -> Result<Box<dyn Format>> {
        let is_data = self.json || self.csv;
        let usual = if is_data {
            Timestamps::Utc
        } else {
            Timestamps::Wall
        };
        let clock = Clock::new(self.timestamps.unwrap_or(usual).style());
        let usual = if is_data {
            (0..layout.columns.len()).collect()
        } else {
            table::fitting(layout, width, &clock, &self.needed(width))
        };
        let columns = columns::pick(layout, &usual, &self.columns)?;
        Ok(if self.json {
            Box::new(Lines::new(layout, &columns, clock))
        } else if self.csv {
            Box::new(Csv::new(layout, &columns, clock))
        } else if self.stack {
            Box::new(Table::new(layout, &columns, clock).with_stacks(layout))
        } else {
            Box::new(Table::new(layout, &columns, clock))
        })
    }
}

/// Runs a stream until its time is over or a signal comes.
pub(super) fn run(global: &Global, kind: Kind, options: &Options) -> Result<ExitCode> {
    let spec = probes::of(kind);
    let plan = options.filter.plan(spec)?;
    if options.pcap.is_some() && kind != Kind::Drops {
        let name = kind.name();
        return Err(Error::elsewhere(format!("--pcap: `{name}` has no packets")).into());
    }
    let is_out = |path: Option<&Path>| path == Some(Path::new("-"));
    if is_out(options.pcap.as_deref())
        && (options.output.is_none() || is_out(options.output.as_deref()))
    {
        let why = "--pcap - needs -o FILE: standard output is where the events are shown";
        return Err(Error::elsewhere(why).into());
    }
    if let Some((pcap, output)) = options.pcap.as_deref().zip(options.output.as_deref())
        && output::is_same_file(pcap, output)
    {
        let why = format!("--pcap and -o name the same file: {}", pcap.display());
        return Err(Error::elsewhere(why).into());
    }
    if options.count {
        plan.must_fit("--count adds up")?;
    }
    let request = request(global, spec, options);
    let summary = if options.count {
        Counting::new(spec, options, request)?.run(global, plan)?
    } else {
        show(global, spec, options, plan, request)?
    };
    if options.strict && !(summary.is_explained() && summary.not_shown() == 0) {
        return Ok(ExitCode::from(3));
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows every event.
fn show(
    global: &Global,
    spec: &'static ProbeSpec,
    options: &Options,
    plan: filter::Plan,
    request: Request,
) -> Result<Summary> {
    let layout = layout(spec);
    let out = options.open()?;
    let format = options.format(layout, out.width())?;
    let pcap = options.pcap.as_deref();
    let packets = pcap.map(|path| Pcap::create(path, layout)).transpose()?;
    let watch = Watch {
        spec,
        request,
        plan,
        duration: options.duration,
        max_overhead: options.max_overhead,
        shows_offsets: false,
        format,
        out,
        packets,
    };
    watch.run(global)
}

fn request(global: &Global, spec: &'static ProbeSpec, options: &Options) -> Request {
    let mut request = base_request(global, spec, options.ring_kib, options.stack);
    request.config.governed = u32::from(options.max_overhead < 1.0);
    request.config.packets = u32::from(options.pcap.is_some());
    if options.count {
        request.config.detail = 0;
        request.config.count = 1;
        request.sizes.counts = 4096;
        request.windowed = None;
    }
    request
}

/// A request for every event of a probe.
pub(super) fn base_request(
    global: &Global,
    spec: &'static ProbeSpec,
    ring_kib: u32,
    has_stacks: bool,
) -> Request {
    let ring_bytes = ring_kib.next_power_of_two() * 1024;
    let mut config = Config::zeroed();
    config.detail = 1;
    config.stack = u32::from(has_stacks);
    config.log = u32::from(global.verbose > 0);
    config.wake_mask = wake_mask(ring_bytes, spec.kind);
    let sizes = Sizes {
        ring_bytes,
        stacks: if has_stacks { 16_384 } else { 1 },
        ..Sizes::NONE
    };
    Request {
        probes: vec![spec],
        config,
        sizes: sizes.with(spec.keeps),
        windowed: (spec.kind == Kind::Connects).then_some(&probes::connects::CANDIDATES),
    }
}

/// Wakes the reader often enough that the ring is an eighth full by then, if one CPU fills it.
fn wake_mask(ring_bytes: u32, kind: Kind) -> u32 {
    /// `BPF_RINGBUF_HDR_SZ`
    const HEADER: usize = 8;
    let size = u32::try_from(kind.size() + HEADER).unwrap_or(u32::MAX);
    let records = (ring_bytes / 8 / size).max(1);
    (1 << records.ilog2()) - 1
}

/// The columns of a probe, as renderers see them.
pub(super) fn layout(spec: &ProbeSpec) -> Layout {
    Layout {
        kind: spec.name(),
        columns: spec.columns,
    }
}

/// The terminal shows ^C at the end of a line of its own.
fn end_line(out: &Output, global: &Global) {
    if out.is_terminal() && !global.quiet {
        let _closed = writeln!(io::stderr());
    }
}

/// Writes to standard error what became of all events; of the quiet, what was lost.
pub(super) fn account(summary: &Summary, global: &Global) {
    if global.quiet {
        for loss in render::summary::losses(summary) {
            log::error!("{loss}");
        }
        return;
    }
    // Nobody is left to tell when the terminal is gone.
    let _closed = render::summary::footer(&mut anstream::stderr(), summary);
}
