//! `netprobe drops`, `retransmits`, `connects`, `listeners`, `conntrack`: events as they happen.

use std::{
    io::{self, BufWriter, IsTerminal, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use netprobe_common::{config::Config, header::Kind, record::Plain};

use super::{Global, filter, parse_duration, signals::Stop};
use crate::{
    aggregate::summary,
    capture::live::{Batch, LiveRing},
    decode,
    filter::matcher::Matcher,
    kernel::{
        keeper::Keeper,
        load::Sizes,
        names::LiveNames,
        privileges::{self, CannotRun},
        session::{Request, Session},
    },
    probes::{self, ProbeSpec},
    render,
    render::time::{Clock, Style},
    report::{Layout, Row, Summary},
};

/// Options of a stream.
#[derive(Args, Clone, Debug)]
pub(super) struct Options {
    /// Stop after this long (10s, 5m, 1h30m); without it, Ctrl-C ends the run.
    #[arg(short, long, value_parser = parse_duration)]
    duration: Option<Duration>,
    /// JSON Lines: one object per event, a summary last.
    #[arg(long)]
    json: bool,
    /// Only count, in the kernel, and show totals at the end.
    #[arg(short, long)]
    count: bool,
    /// The kernel stack of each event (in JSON, or as lines below the event).
    #[arg(long, conflicts_with = "count")]
    stack: bool,
    #[command(flatten)]
    filter: filter::Options,
    /// Room for events that wait to be shown, in KiB (a power of two).
    #[arg(long, value_name = "KIB", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(64..=1 << 20))]
    ring_kib: u32,
    /// What netprobe itself may cost, in percent of the machine's CPUs: it leaves out stacks, then
    /// events, never counts. 100% leaves out nothing.
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = parse_percent)]
    max_overhead: f64,
    /// End with exit code 3 if a firing of a probe is not accounted for.
    #[arg(long)]
    strict: bool,
}

/// A share of the machine: `1%`, or `1`.
fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').parse::<f64>().ok();
    number
        .filter(|percent| *percent > 0.0 && *percent <= 100.0)
        .map(|percent| percent / 100.0)
        .ok_or_else(|| "expected a percentage above 0 and up to 100, such as 1%".to_owned())
}

impl Options {
    /// Which connections are wanted.
    pub(super) const fn filter(&self) -> &filter::Options {
        &self.filter
    }

    /// Whether the output is JSON Lines.
    pub(super) const fn is_json(&self) -> bool {
        self.json
    }
}

/// Runs a stream until its time is over or a signal comes.
pub(super) fn run(global: &Global, kind: Kind, options: &Options) -> Result<ExitCode> {
    let plan = options.filter.plan(probes::of(kind))?;
    if options.count {
        plan.must_fit("--count adds up")?;
    }
    privileges::check()?;
    privileges::lift_memlock();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    runtime.block_on(watch(global, probes::of(kind), options, plan))
}

async fn watch(
    global: &Global,
    spec: &'static ProbeSpec,
    options: &Options,
    plan: filter::Plan,
) -> Result<ExitCode> {
    let mut stop = Stop::listen()?;
    let (mut session, matcher) = start(&request(global, spec, options), plan)?;
    require(&session)?;
    let mut ring = LiveRing::new(session.take_ring()?)?;
    let stacks = options.stack.then(|| session.take_stacks()).transpose()?;
    let names = LiveNames::new(session.drop_reasons().clone(), stacks)
        .with_reset_reasons(session.reset_reasons().clone());
    let mut screen = Screen::new(spec, options, names, matcher);
    screen.begin()?;
    announce(&session, spec);

    let started = Instant::now();
    let keeper = Keeper::start(session, options.max_overhead);
    let deadline = options.duration.map(|duration| started + duration);
    let ended = until(&mut stop, deadline, &mut ring, &mut screen).await;
    stop.second_kills();

    let (mut session, cost) = keeper.finish()?;
    let missed = session.detach();
    // A write error ends the run, but what was seen is still accounted for.
    let drained = ended.and_then(|()| screen.drain(&mut ring));
    let mut summary = summarize(&session, &mut screen, started.elapsed(), &missed)?;
    summary.cost = Some(cost);
    drained?;
    screen.end(&summary, global)?;
    if options.strict && !summary.is_explained() {
        return Ok(ExitCode::from(3));
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts the programs with the part of the filter that they test; the other part is for us.
pub(super) fn start(request: &Request, plan: filter::Plan) -> Result<(Session, Matcher)> {
    let mut rest = None;
    let session = Session::start_with(request, |reasons| {
        let (kernel, matcher) = plan.resolve(reasons)?;
        rest = Some(matcher);
        Ok(Config {
            filter: kernel,
            ..request.config
        })
    })?;
    let rest = rest.context("the filter was not looked up")?;
    Ok((session, rest))
}

/// Shows events until the time is over or a signal comes.
async fn until(
    stop: &mut Stop,
    deadline: Option<Instant>,
    ring: &mut LiveRing,
    screen: &mut Screen,
) -> Result<()> {
    loop {
        let over = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.wait() => return Ok(()),
            () = over => return Ok(()),
            batch = ring.next() => screen.show(&batch?)?,
        }
    }
}

fn request(global: &Global, spec: &'static ProbeSpec, options: &Options) -> Request {
    let ring_bytes = options.ring_kib.next_power_of_two() * 1024;
    let mut config = Config::zeroed();
    config.detail = u32::from(!options.count);
    config.count = u32::from(options.count);
    config.stack = u32::from(options.stack);
    config.governed = u32::from(options.max_overhead < 1.0);
    config.log = u32::from(global.verbose > 0);
    config.wake_mask = wake_mask(ring_bytes, spec.kind);
    let sizes = Sizes {
        ring_bytes,
        stacks: if options.stack { 16_384 } else { 1 },
        counts: if options.count { 4096 } else { 64 },
        connects: if spec.kind == Kind::Connects {
            16_384
        } else {
            1
        },
        lives: if remembers_connections(spec.kind) {
            131_072
        } else {
            1
        },
        ..Sizes::NONE
    };
    let counts_candidates = spec.kind == Kind::Connects && !options.count;
    Request {
        probes: vec![spec],
        config,
        sizes,
        windowed: counts_candidates.then_some(&probes::connects::CANDIDATES),
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

/// Whether the probe keeps something for each open connection.
fn remembers_connections(kind: Kind) -> bool {
    matches!(kind, Kind::Resets | Kind::Lifetimes | Kind::TimeWait)
}

/// A probe that was asked for by name must be there, or wait for a module.
pub(super) fn require(session: &Session) -> Result<(), CannotRun> {
    for (spec, hooks) in session.probes() {
        for attached in hooks {
            let waits = attached.hook.module.is_some_and(|module| {
                matches!(&attached.result, Err(why) if why.contains(module) && why.contains("not loaded"))
            });
            if let (true, false, Err(why)) = (attached.hook.required, waits, &attached.result) {
                return Err(CannotRun::new(format!(
                    "cannot watch {} ({}): {why}; `netprobe check` lists what works here",
                    spec.name(),
                    attached.hook.sees,
                )));
            }
        }
    }
    Ok(())
}

fn announce(session: &Session, spec: &ProbeSpec) {
    for (_, hooks) in session.probes() {
        for attached in hooks {
            if let Err(why) = &attached.result {
                log::warn!("not seen: {} ({why})", attached.hook.sees);
            }
        }
    }
    if let Some(Err(why)) = session.windowed().map(|attached| &attached.result) {
        log::warn!("not seen: {} ({why})", probes::connects::CANDIDATES.sees);
    }
    log::info!("ready: watching {}, Ctrl-C to stop", spec.name());
}

fn summarize(
    session: &Session,
    screen: &mut Screen,
    elapsed: Duration,
    missed: &[Option<u64>],
) -> Result<Summary> {
    let mut probes = super::check::probes(session, screen.decode_errors, missed)?;
    for probe in &mut probes {
        probe.filtered_user = screen.filtered;
    }
    let totals = summary::totals(session.totals()?, &mut screen.names);
    Ok(Summary {
        elapsed,
        probes,
        totals,
        cost: None,
    })
}

/// Where events go: the format, and the bytes on their way to stdout.
struct Screen {
    spec: &'static ProbeSpec,
    is_json: bool,
    is_count: bool,
    is_terminal: bool,
    table: render::table::Table,
    clock: Clock,
    names: LiveNames,
    row: Row,
    matcher: Option<Matcher>,
    decode_errors: u64,
    filtered: u64,
    out: BufWriter<io::Stdout>,
}

impl Screen {
    fn new(
        spec: &'static ProbeSpec,
        options: &Options,
        names: LiveNames,
        matcher: Matcher,
    ) -> Self {
        let out = io::stdout();
        let is_terminal = out.is_terminal();
        let width = is_terminal
            .then(|| rustix::termios::tcgetwinsize(&out).ok())
            .flatten()
            .map(|size| usize::from(size.ws_col));
        let style = if options.json {
            Style::Rfc3339
        } else {
            Style::OfDay
        };
        let mut table = render::table::Table::new(layout(spec), width);
        table.show_stacks(layout(spec), options.stack);
        Self {
            spec,
            is_json: options.json,
            is_count: options.count,
            is_terminal,
            table,
            clock: Clock::new(style),
            names,
            row: Row {
                unix_ns: 0,
                kind: "",
                values: Vec::new(),
            },
            matcher: Some(matcher).filter(|matcher| !matcher.is_empty()),
            decode_errors: 0,
            filtered: 0,
            out: BufWriter::with_capacity(1 << 16, out),
        }
    }

    fn begin(&mut self) -> Result<()> {
        if !self.is_json && !self.is_count {
            self.table.heading(&mut self.out)?;
        }
        Ok(self.out.flush()?)
    }

    fn show(&mut self, batch: &Batch) -> Result<()> {
        if batch.is_empty() {
            self.names.refresh_clock();
        }
        for record in batch.records() {
            if let Err(error) = decode::decode(record, &mut self.names, &mut self.row) {
                self.decode_errors += 1;
                log::debug!("{error}");
                continue;
            }
            let matcher = self.matcher.as_ref();
            if matcher.is_some_and(|matcher| !matcher.admits(&self.row)) {
                self.filtered += 1;
                continue;
            }
            let time = self.clock.format(self.row.unix_ns);
            if self.is_json {
                render::jsonl::row(&mut self.out, layout(self.spec), &self.row, time)?;
            } else {
                self.table.row(&mut self.out, &self.row, time)?;
            }
        }
        // Whoever reads along wants whole lines, and soon; the ring makes us wait long enough.
        Ok(self.out.flush()?)
    }

    /// Shows what was still in the ring when the programs were detached.
    fn drain(&mut self, ring: &mut LiveRing) -> Result<()> {
        loop {
            let batch = ring.drain();
            if batch.is_empty() {
                return Ok(());
            }
            self.show(&batch)?;
        }
    }

    fn end(&mut self, summary: &Summary, global: &Global) -> Result<()> {
        if self.is_json {
            render::jsonl::summary(&mut self.out, summary)?;
        } else if self.is_count {
            render::summary::totals(&mut self.out, summary)?;
        }
        self.out.flush()?;
        if !global.quiet {
            if self.is_terminal {
                // The terminal shows ^C at the end of a line of its own.
                let _closed = writeln!(io::stderr());
            }
            render::summary::footer(&mut anstream::stderr(), summary)?;
        }
        Ok(())
    }
}

/// The columns of a probe, as renderers see them.
fn layout(spec: &ProbeSpec) -> Layout {
    Layout {
        kind: spec.name(),
        columns: spec.columns,
    }
}
