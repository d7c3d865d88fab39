//! `netprobe diagnose`: watches for a while, then says what is wrong, why, and what to change.

use std::{
    io::Write,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use netprobe_common::{
    config::Config,
    filter::{IS, Number},
    header::Kind,
    record::Plain,
};

use super::{
    culprit::Graph,
    output::{Reader, print},
    parse_duration,
    signals::{self, Stop},
    stream::parse_percent,
    vigil::{Limits, Vigil},
};
use crate::{
    diagnose::SHORTEST,
    filter::Error,
    kernel::{
        load::Sizes,
        privileges::{self, CannotRun},
        session::Request,
    },
    observe::{
        namespaces::{self, Namespace},
        netns,
    },
    probes::{PROBES, ProbeSpec, connects},
    render,
    report::diagnosis::{Diagnosis, Severity},
};

/// Options of `diagnose`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  netprobe diagnose --duration 30s\n  netprobe diagnose --json --fail-on warning\n  \
                  netprobe diagnose --interval 5s         while you apply the fix\n  \
                  netprobe explain accept-queue-overflow"
)]
pub(super) struct Options {
    /// Watch for this long; Ctrl-C gives the verdict at once [default: 10s; with --interval: until
    /// Ctrl-C].
    #[arg(short, long, value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Give a verdict every so often, to see what a fix does.
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration, conflicts_with = "svg")]
    interval: Option<Duration>,
    /// One JSON object (schema netprobe.diagnosis/1) instead of text.
    #[arg(long)]
    json: bool,
    /// Draw the stacks of the first finding as a flame graph into this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// End with exit code 4 if something at least this severe is found, and with 3 if nothing can be told.
    #[arg(long, value_enum, value_name = "SEVERITY")]
    fail_on: Option<FailOn>,
    /// What netprobe itself may cost, in percent of the machine's CPUs: it leaves out events, never
    /// counts. Of connections that go well it looks at a sample of their beginnings and ends, also with 100%, which leaves out no
    /// other event. What it reads once before and after the window is not limited, and told at the
    /// end.
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
            duration: Some(duration),
            interval: None,
            json,
            fail_on: None,
            svg: None,
            max_overhead: 0.01,
            netns: None,
            only,
        }
    }

    /// The namespaces that are there now and that were asked for.
    fn namespaces(&self, inode: Option<u32>) -> Result<Vec<Namespace>> {
        let mut namespaces = match inode {
            Some(inode) => vec![namespaces::find(inode)?],
            None => namespaces::all()?,
        };
        if !self.only.is_empty() {
            namespaces.retain(|namespace| self.only.contains(&namespace.inode));
        }
        Ok(namespaces)
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

/// How long it watches unless it is told.
const WINDOW: Duration = Duration::from_secs(10);

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
    Ok(if runtime.block_on(watch(options, inode))? {
        ExitCode::from(4)
    } else {
        ExitCode::SUCCESS
    })
}

/// Gives a verdict for each window, until the time is over or a signal comes; true if one of them
/// is as severe as `--fail-on` says.
async fn watch(options: &Options, inode: Option<u32>) -> Result<bool> {
    if let Some(inode) = inode {
        // Says that there is no such namespace before anything is loaded.
        namespaces::find(inode)?;
    }
    // Before signals are listened to: it may wait for a reader.
    let mut graph = options.svg.as_deref().map(Graph::open).transpose()?;
    let mut stop = Stop::listen()?;
    if graph.is_none() {
        stop.while_read(Reader::of_stdout());
    }
    let mut vigil = Vigil::start(
        &request(inode, options),
        Limits {
            overhead: options.max_overhead,
            is_narrowed: inode.is_some() || !options.only.is_empty(),
        },
    )?;
    let window = options.interval.or(options.duration).unwrap_or(WINDOW);
    let ends = options.interval.and(options.duration);
    let ends = ends.map(|duration| Instant::now() + duration);
    let mut is_hit = false;
    let mut undecided = None;
    let mut is_decided = false;
    for number in 0_u32.. {
        vigil.open(options.namespaces(inode)?)?;
        let left = ends.map(|ends| ends.saturating_duration_since(Instant::now()));
        let window = left.map_or(window, |left| shortened(window, left, number == 0));
        if number == 0 {
            log::info!("ready: watching for {window:?}, Ctrl-C gives the verdict at once");
        }
        let is_over = vigil.until(&mut stop, window).await
            || options.interval.is_none()
            || ends.is_some_and(|ends| Instant::now() >= ends);
        if is_over {
            // The next signal does not wait for the verdict.
            signals::second_kills();
        }
        let (diagnosis, drawn) = vigil.close(is_over, graph.take())?;
        is_hit |= options.fail_on.is_some_and(|fail_on| {
            let mut findings = diagnosis.findings.iter();
            findings.any(|finding| finding.severity >= fail_on.severity())
        });
        let why = options
            .fail_on
            .and_then(|fail_on| diagnosis.undecided(fail_on.severity()));
        // That a signal cut the last one short takes nothing from the others.
        if !(diagnosis.is_short() && is_decided) {
            undecided = why.or(undecided);
        }
        is_decided |= why.is_none();
        write(options, &diagnosis)?;
        if let Some(drawn) = drawn {
            say(options, &drawn?)?;
        }
        if is_over {
            break;
        }
    }
    match undecided.filter(|_| !is_hit) {
        Some(why) => Err(CannotRun::new(format!("--fail-on cannot be answered: {why}")).into()),
        None => Ok(is_hit),
    }
}

/// A window of several that ends with the time that is left, if that is enough for a verdict.
fn shortened(window: Duration, left: Duration, is_first: bool) -> Duration {
    let left = if is_first { left } else { left.max(SHORTEST) };
    window.min(left)
}

fn write(options: &Options, diagnosis: &Diagnosis) -> Result<()> {
    print(|out| {
        if options.json {
            render::diagnosis_json::write(out, diagnosis)?;
        } else {
            let width = out.width();
            render::diagnosis::write(out, diagnosis, width)?;
            if options.interval.is_some() {
                writeln!(out)?;
            }
        }
        Ok(())
    })
}

/// Says what the graph shows: beside JSON, of which there is one object, in the log.
fn say(options: &Options, drawn: &str) -> Result<()> {
    if options.json {
        log::info!("flame graph: {drawn}");
        return Ok(());
    }
    print(|out| Ok(writeln!(out, "flame graph: {drawn}")?))
}

/// What the rules ask for. They say nothing about states and accepted connections, of which there are many; and what
/// goes to TIME_WAIT, the ends of connections tell, so that it is watched for a graph only.
fn probes(has_graph: bool) -> Vec<&'static ProbeSpec> {
    let is_asked = |kind| match kind {
        Kind::States | Kind::Accepts => false,
        Kind::TimeWait => has_graph,
        _ => true,
    };
    let asked = PROBES.iter().filter(|spec| is_asked(spec.kind));
    asked.copied().collect()
}

fn request(netns: Option<u32>, options: &Options) -> Request {
    const RING: u32 = 1 << 20;
    let mut config = Config::zeroed();
    config.detail = 1;
    config.count = 1;
    // Of connections that go well there are many, and a sample tells how long they live.
    config.sparse = [Kind::Connects, Kind::Lifetimes, Kind::TimeWait]
        .iter()
        .fold(0, |kinds, kind| kinds | 1 << *kind as u32);
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
        probes: probes(options.svg.is_some()),
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
        windowed: Some(&connects::CANDIDATES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_end_with_the_duration() {
        let [second, half] = [1, 2].map(|part| Duration::from_secs(1) / part);
        let interval = second * 5;
        assert_eq!(shortened(interval, second * 2, true), second * 2);
        assert_eq!(shortened(interval, half, true), half);
        assert_eq!(shortened(interval, second * 60, false), interval);
        assert_eq!(shortened(interval, second * 4, false), second * 4);
        // The last one is long enough to say that all is well.
        assert_eq!(shortened(interval, half, false), second);
        assert_eq!(shortened(half, second * 2, false), half);
    }
}
