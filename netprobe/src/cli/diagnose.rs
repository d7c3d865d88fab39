//! `netprobe diagnose`: watches for a while, then says what is wrong, why, and what to change.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use netprobe_common::{
    config::Config,
    filter::{IS, Number},
    record::Plain,
};

use super::{check, culprit, parse_duration, signals::Stop, stream::parse_percent, watch::Watch};
use crate::{
    aggregate::summary,
    capture::live::{Batch, LiveRing},
    decode,
    diagnose::{self, events::Events},
    filter::Error,
    kernel::{
        keeper::Keeper,
        load::Sizes,
        names::LiveNames,
        privileges,
        session::{Request, Session},
    },
    observe::{
        namespaces::{self, Namespace},
        netns,
    },
    probes::{self, PROBES},
    render,
    report::{
        Row,
        diagnosis::{Cost, Diagnosis, Host, Severity},
    },
};

/// Options of `diagnose`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  netprobe diagnose --duration 30s\n  netprobe diagnose --json --fail-on warning\n  \
                  netprobe explain accept-queue-overflow"
)]
pub(super) struct Options {
    /// Watch for this long; Ctrl-C gives the verdict at once.
    #[arg(short, long, value_parser = parse_duration, default_value = "10s")]
    duration: Duration,
    /// One JSON object (schema netprobe.diagnosis/1) instead of text.
    #[arg(long)]
    json: bool,
    /// Draw the stacks of the first finding as a flame graph into this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// End with exit code 4 if something at least this severe is found.
    #[arg(long, value_enum, value_name = "SEVERITY")]
    fail_on: Option<FailOn>,
    /// What netprobe itself may cost, in percent of the machine's CPUs: it leaves out events, never
    /// counts. 100% leaves out nothing.
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = parse_percent)]
    max_overhead: f64,
    /// Only this network namespace: inode number, process id, path or name.
    #[arg(long, value_name = "NETNS")]
    netns: Option<String>,
    /// Only these network namespaces, by inode number: those of a demo.
    #[arg(skip)]
    only: Vec<u32>,
}

impl Options {
    /// Watches the namespaces of a demo.
    pub(super) fn of_demo(duration: Duration, json: bool, only: Vec<u32>) -> Self {
        Self {
            duration,
            json,
            fail_on: None,
            svg: None,
            max_overhead: 0.01,
            netns: None,
            only,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FailOn {
    /// Anything at all.
    Info,
    /// What costs time or data, or will soon stop connections.
    Warning,
    /// What stops connections now.
    Critical,
}

impl FailOn {
    const fn severity(self) -> Severity {
        match self {
            Self::Info => Severity::Info,
            Self::Warning => Severity::Warning,
            Self::Critical => Severity::Critical,
        }
    }
}

/// Records that are decoded in one go; beyond that a sample is enough, as totals are exact.
const DECODED: usize = 1024;
/// How often the ring is looked at.
const TICK: Duration = Duration::from_millis(100);

/// Watches, then gives the verdict.
pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let inode = options.netns.as_deref().map(|text| {
        netns::inode(text).map_err(|why| Error::elsewhere(format!("--netns {text}: {why}")))
    });
    let inode = inode.transpose()?;
    privileges::check()?;
    privileges::lift_memlock();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    let diagnosis = runtime.block_on(watch(options, inode))?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    if options.json {
        render::diagnosis_json::write(&mut out, &diagnosis)?;
    } else {
        render::diagnosis::write(&mut out, &diagnosis)?;
    }
    out.flush()?;
    let is_hit = options.fail_on.is_some_and(|fail_on| {
        let mut findings = diagnosis.findings.iter();
        findings.any(|finding| finding.severity >= fail_on.severity())
    });
    Ok(if is_hit {
        ExitCode::from(4)
    } else {
        ExitCode::SUCCESS
    })
}

async fn watch(options: &Options, inode: Option<u32>) -> Result<Diagnosis> {
    let mut stop = Stop::listen()?;
    let mut namespaces = match inode {
        Some(inode) => vec![namespaces::find(inode)?],
        None => namespaces::all()?,
    };
    if !options.only.is_empty() {
        namespaces.retain(|namespace| options.only.contains(&namespace.inode));
    }
    let mut session = Session::start(&request(inode, options))?;
    let mut ring = LiveRing::new(session.take_ring()?)?;
    let stacks = options.svg.as_ref().map(|_| session.take_stacks());
    let names = LiveNames::of(&session, stacks.transpose()?);
    let mut reader = Reader::new(names);
    let is_narrowed = inode.is_some() || !options.only.is_empty();
    let begin = Begin::now(namespaces, is_narrowed)?;
    log::info!(
        "ready: watching for {:?}, Ctrl-C gives the verdict at once",
        options.duration
    );
    let keeper = Keeper::start(session, options.max_overhead);
    until(
        &mut stop,
        begin.at + options.duration,
        &mut ring,
        &mut reader,
    )
    .await;
    stop.second_kills();
    let run = Run {
        keeper,
        ring,
        reader,
        begin,
    };
    run.finish(options)
}

/// A run whose window has just ended.
struct Run {
    keeper: Keeper,
    ring: LiveRing,
    reader: Reader,
    begin: Begin,
}

impl Run {
    /// Takes everything down, reads it out, and asks the rules.
    fn finish(self, options: &Options) -> Result<Diagnosis> {
        let Self {
            keeper,
            mut ring,
            mut reader,
            begin,
        } = self;
        let ended = Instant::now();
        let (mut window, gaps) = begin.watch.finish(ended - begin.at)?;
        let (mut session, spent) = keeper.finish()?;
        let missed = session.detach();
        reader.take(&ring.drain());
        window.probes = check::probes(&session, reader.decode_errors, &missed)?;
        reader.events.totals = summary::totals(session.totals()?, &mut reader.names);
        window.events = reader.events;
        let stacks = session.stack_totals()?;
        drop(session);
        let (findings, checked) = diagnose::diagnose(&window);
        let host = host();
        log::debug!("{} detail records were left aside", reader.skipped);
        let diagnosis = Diagnosis {
            cost: Cost {
                cpu_percent: spent.percent()
                    * f64::from(u32::try_from(host.cpus).unwrap_or(u32::MAX)),
                rss_kib: largest_rss_kib(),
                verdict: ended.elapsed(),
            },
            host,
            started_unix_ns: begin.unix_ns,
            window: ended - begin.at,
            namespaces: window.namespaces.len(),
            probes: window.probes,
            gaps,
            findings,
            checked,
        };
        if let Some(path) = &options.svg {
            culprit::draw(path, &diagnosis, &stacks, &mut reader.names)?;
        }
        Ok(diagnosis)
    }
}

/// The moment from which on everything counts.
struct Begin {
    at: Instant,
    unix_ns: i64,
    watch: Watch,
}

impl Begin {
    fn now(namespaces: Vec<Namespace>, is_narrowed: bool) -> Result<Self> {
        let watch = Watch::start(namespaces, is_narrowed)?;
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Self {
            at: Instant::now(),
            unix_ns: unix.map_or(0, |unix| i64::try_from(unix.as_nanos()).unwrap_or(i64::MAX)),
            watch,
        })
    }
}

fn request(netns: Option<u32>, options: &Options) -> Request {
    const RING: u32 = 1 << 20;
    let mut config = Config::zeroed();
    config.detail = 1;
    config.count = 1;
    config.governed = u32::from(options.max_overhead < 1.0);
    config.flame = u32::from(options.svg.is_some());
    // The ring is looked at by the clock; nobody has to be woken.
    config.wake_mask = u32::MAX;
    if let Some(netns) = netns {
        config.filter.netns = Number {
            value: netns,
            mode: IS,
        };
    }
    Request {
        probes: PROBES.to_vec(),
        config,
        sizes: Sizes {
            stacks: if options.svg.is_some() { 8192 } else { 1 },
            stack_counts: if options.svg.is_some() { 8192 } else { 1 },
            ring_bytes: RING,
            counts: 4096,
            connects: 16_384,
            owners: 16_384,
            lives: 65_536,
            ..Sizes::NONE
        },
        windowed: Some(&probes::connects::CANDIDATES),
    }
}

/// Reads events until the time is over or a signal comes.
async fn until(stop: &mut Stop, deadline: Instant, ring: &mut LiveRing, reader: &mut Reader) {
    loop {
        let tick = (Instant::now() + TICK).min(deadline);
        tokio::select! {
            biased;
            () = stop.wait() => return,
            () = tokio::time::sleep_until(tick.into()) => reader.take(&ring.drain()),
        }
        if Instant::now() >= deadline {
            return;
        }
    }
}

/// Turns records into a sample of events.
struct Reader {
    names: LiveNames,
    events: Events,
    row: Row,
    decode_errors: u64,
    skipped: u64,
}

impl Reader {
    fn new(names: LiveNames) -> Self {
        Self {
            names,
            events: Events::default(),
            row: Row::default(),
            decode_errors: 0,
            skipped: 0,
        }
    }

    fn take(&mut self, batch: &Batch) {
        for (index, record) in batch.records().enumerate() {
            if index >= DECODED {
                self.skipped += 1;
                continue;
            }
            let decoded = decode::kind(record).and_then(|kind| {
                decode::decode(record, &mut self.names, &mut self.row).map(|()| kind)
            });
            match decoded {
                Ok(kind) => self.events.add(probes::of(kind).columns, &self.row),
                Err(error) => {
                    self.decode_errors += 1;
                    log::debug!("{error}");
                }
            }
        }
    }
}

fn host() -> Host {
    let uname = rustix::system::uname();
    Host {
        name: uname.nodename().to_string_lossy().into_owned(),
        kernel: uname.release().to_string_lossy().into_owned(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// `VmHWM` of `/proc/self/status`.
fn largest_rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let value = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    value.unwrap_or(0)
}
