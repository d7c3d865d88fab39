//! `netprobe flame`: where in the kernel it happens, as a flame graph.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use netprobe_common::{
    config::Config,
    counters::{Count, SAMPLE, StackKey},
    header::Kind,
    record::Plain,
};

use super::{
    Global,
    check::kernel_release,
    filter, parse_duration,
    signals::Stop,
    stream::{require, start},
};
use crate::{
    aggregate::stacks::Folder,
    filter::Error,
    kernel::{
        load::Sizes,
        names::LiveNames,
        privileges, sampler,
        session::{Request, Session},
    },
    probes,
    render::{flamegraph, folded, text},
    report::Flame,
};

/// Options of `flame`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  netprobe flame drops -o drops.svg --duration 10s\n  netprobe flame port-search --folded | less"
)]
pub(super) struct Options {
    /// What the graph shows.
    #[arg(value_enum)]
    graph: Graph,
    /// Stop after this long; Ctrl-C draws what was collected until then.
    #[arg(short, long, value_parser = parse_duration, default_value = "10s")]
    duration: Duration,
    /// File to write, - for stdout.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// Folded stacks (FlameGraph's text format) instead of SVG.
    #[arg(long)]
    folded: bool,
    #[command(flatten)]
    filter: filter::Options,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Graph {
    /// Where TCP packets are dropped, by reason; width is packets.
    Drops,
    /// What makes TCP send again, by cause; width is segments.
    Retransmits,
    /// Time spent looking for a local port in connect(); width is nanoseconds.
    PortSearch,
}

/// A sample of the port search stands for this long (997 per second and CPU).
const PERIOD_NS: u64 = 1_003_009;

/// Functions under which the time of a port search is spent.
const PORT_SEARCH: [&str; 3] = [
    "inet_hash_connect",
    "inet6_hash_connect",
    "__inet_hash_connect",
];

/// Collects, then draws.
pub(super) fn run(global: &Global, options: &Options) -> Result<ExitCode> {
    let plan = plan(options)?;
    privileges::check()?;
    privileges::lift_memlock();
    // The file is opened before the wait: a mistake in its path shows at once.
    let mut out = Output::open(options)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    let flame = runtime.block_on(collect(global, options, plan))?;
    let drawn = if options.folded {
        folded::write(&mut out, &flame).map_err(Into::into)
    } else {
        flamegraph::write(&mut out, &flame)
    };
    drawn.with_context(|| format!("write {}", options.output.display()))?;
    out.finish(options)?;
    Ok(ExitCode::SUCCESS)
}

/// The filter of the graph's probe. Samples are of everything.
fn plan(options: &Options) -> Result<Option<filter::Plan>> {
    let Some(kind) = options.graph.kind() else {
        let expression = options.filter.expression()?;
        expression.each(&mut |test| {
            Err(Error::of(
                test,
                "samples of the port search know no connections",
            ))
        })?;
        return Ok(None);
    };
    let plan = options.filter.plan(probes::of(kind))?;
    plan.must_fit("stacks are added up")?;
    Ok(Some(plan))
}

async fn collect(global: &Global, options: &Options, plan: Option<filter::Plan>) -> Result<Flame> {
    let mut stop = Stop::listen()?;
    let mut config = Config::zeroed();
    config.flame = 1;
    let probes = options.graph.kind().map(probes::of).into_iter().collect();
    let sizes = Sizes {
        stacks: 16_384,
        stack_counts: 8192,
        ..Sizes::NONE
    };
    let request = Request {
        probes,
        config,
        sizes,
        windowed: None,
    };
    let mut session = match plan {
        Some(plan) => start(&request, plan)?.0,
        None => Session::start(&request)?,
    };
    require(&session)?;
    if options.graph == Graph::PortSearch {
        sampler::start(&mut session, PERIOD_NS)?;
    }
    let stacks = session.take_stacks()?;
    let mut names = LiveNames::new(session.drop_reasons().clone(), Some(stacks));
    log::info!(
        "ready: collecting stacks for {:?}, Ctrl-C draws at once",
        options.duration
    );
    let started = Instant::now();
    wait(&mut stop, started, options.duration, global).await;
    stop.second_kills();
    let elapsed = started.elapsed();
    session.detach();
    let counts = session.stack_totals()?;
    Ok(fold(options.graph, &counts, &mut names, elapsed))
}

/// Waits, and says on a terminal how far it is.
async fn wait(stop: &mut Stop, started: Instant, duration: Duration, global: &Global) {
    let shows_progress = io::stderr().is_terminal() && !global.quiet;
    let mut stderr = io::stderr();
    loop {
        let left = duration.saturating_sub(started.elapsed());
        if left.is_zero() {
            break;
        }
        tokio::select! {
            () = stop.wait() => break,
            () = tokio::time::sleep(left.min(Duration::from_millis(500))) => {}
        }
        if shows_progress {
            // Progress is for eyes only; nothing depends on it.
            let _closed = write!(stderr, "\r{:.0} s left ", left.as_secs_f64());
        }
    }
    if shows_progress {
        let _closed = write!(stderr, "\r            \r");
    }
}

fn fold(
    graph: Graph,
    counts: &[(StackKey, Count)],
    names: &mut LiveNames,
    elapsed: Duration,
) -> Flame {
    let mut folder = Folder::default();
    let mut lost = 0;
    for (key, count) in counts {
        let weight = graph.weight(count);
        match frames(key, names) {
            Some(frames) if graph.wants(&frames) => folder.add(frames, weight),
            Some(_) => {}
            None => {
                if key.kind != SAMPLE {
                    lost += count.events;
                    folder.add(
                        vec![root(key, names), Arc::from("[stack not taken]")],
                        weight,
                    );
                }
            }
        }
    }
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let without = if lost > 0 {
        format!(", {lost} without stack")
    } else {
        String::new()
    };
    Flame {
        title: graph.title().to_owned(),
        subtitle: format!(
            "{host}, Linux {}, {:.1} s{without}",
            kernel_release(),
            elapsed.as_secs_f64()
        ),
        unit: graph.unit(),
        stacks: folder.finish(),
    }
}

/// Frames from the root: the reason, cause or task, then the kernel's functions.
fn frames(key: &StackKey, names: &mut LiveNames) -> Option<Vec<Arc<str>>> {
    let innermost_first = names.frames(key.stack)?;
    let kernel = innermost_first
        .iter()
        .rev()
        .map(|name| Arc::from(format!("{name}_[k]")));
    let mut frames = vec![root(key, names)];
    frames.extend(kernel);
    Some(frames)
}

fn root(key: &StackKey, names: &mut LiveNames) -> Arc<str> {
    let kind = u16::try_from(key.kind).ok().and_then(Kind::from_raw);
    let value = match kind {
        Some(kind) => (probes::of(kind).code)(key.code, names),
        None => crate::report::Value::name(key.comm),
    };
    let mut shown = String::new();
    text::push(&mut shown, &value);
    Arc::from(shown)
}

impl Graph {
    const fn kind(self) -> Option<Kind> {
        match self {
            Self::Drops => Some(Kind::Drops),
            Self::Retransmits => Some(Kind::Retransmits),
            Self::PortSearch => None,
        }
    }

    /// Samples are of everything; the port search is what lies under its function.
    fn wants(self, frames: &[Arc<str>]) -> bool {
        self != Self::PortSearch
            || frames.iter().any(|frame| {
                let function = frame.strip_suffix("_[k]").unwrap_or(frame);
                PORT_SEARCH.contains(&function)
            })
    }

    /// The width of a frame.
    const fn weight(self, count: &Count) -> u64 {
        match self {
            Self::Drops => count.events,
            Self::Retransmits => count.weight,
            Self::PortSearch => count.events * PERIOD_NS,
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Drops => "Packet Drop Stacks",
            Self::Retransmits => "TCP Retransmit Stacks",
            Self::PortSearch => "connect() Port-Search Cost",
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Self::Drops => "packets",
            Self::Retransmits => "segments",
            Self::PortSearch => "ns",
        }
    }
}

/// Where the graph goes. A file appears under its name only when it is whole.
enum Output {
    Stdout(BufWriter<io::Stdout>),
    File(BufWriter<File>),
}

impl Output {
    fn open(options: &Options) -> Result<Self> {
        if options.output.as_os_str() == "-" {
            return Ok(Self::Stdout(BufWriter::new(io::stdout())));
        }
        let file = File::create(&options.output)
            .with_context(|| format!("create {}", options.output.display()))?;
        Ok(Self::File(BufWriter::new(file)))
    }

    fn finish(&mut self, options: &Options) -> Result<()> {
        let written = format!("write {}", options.output.display());
        self.flush().context(written)?;
        if matches!(self, Self::File(_)) {
            log::info!("wrote {}", options.output.display());
        }
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(out) => out.write(bytes),
            Self::File(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush(),
            Self::File(out) => out.flush(),
        }
    }
}
