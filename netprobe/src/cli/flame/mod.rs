//! `netprobe flame`: where it happens and who does it, as a flame graph.
//!
//! Two kinds of graphs are collected here: [`events`] are counted by the stack in which the kernel
//! saw them, [`tasks`] by what tasks were doing, sampled or blocked. Both end in [`draw`].

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use netprobe_common::header::Kind;

use super::{Global, filter, parse_duration, parse_time, stream::parse_percent};
use crate::{
    kernel::{cost::Meter, privileges, session::Session},
    observe::clock::unix_ns,
    render::text,
    report::Profile,
};

mod complaints;
mod copies;
mod diff;
mod draw;
mod events;
mod graph;
mod held;
mod nameless;
mod naming;
mod progress;
mod room;
mod roots;
mod tasks;
mod wanted;

/// Options of `flame`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  netprobe flame cpu -o cpu.svg --duration 30s\n  netprobe flame offcpu --comm 'php-fpm*' --min-block 1ms -o waits.svg\n  netprobe flame port-search --folded | less\n  netprobe flame diff before.folded after.folded -o diff.svg"
)]
pub(super) struct Options {
    #[command(subcommand)]
    graph: Graph,
}

#[derive(Clone, Debug, Subcommand)]
enum Graph {
    /// What the CPUs are doing, user and kernel; width is samples.
    Cpu(Samples),
    /// Where tasks wait: blocked until they run again; width is microseconds.
    Offcpu(Blocks),
    /// Where TCP packets are dropped, by reason; width is packets.
    Drops(Events),
    /// What makes TCP send again, by cause; width is segments.
    Retransmits(Events),
    /// Who resets connections, by reason; width is resets.
    Resets(Events),
    /// Time spent looking for a local port in connect(); width is nanoseconds.
    PortSearch(PortSearch),
    /// Tasks that wait in accept() for connections; width is microseconds.
    AcceptWait(Blocks),
    /// What has changed between two profiles, folded or pprof.
    Diff(diff::Options),
}

/// Options of every graph that is collected.
#[derive(Args, Clone, Debug)]
#[group(skip)]
struct Common {
    /// Stop after this long; Ctrl-C draws what was collected until then.
    #[arg(short, long, value_parser = parse_duration, default_value = "10s")]
    duration: Duration,
    #[command(flatten)]
    draw: draw::Options,
    #[command(flatten)]
    filter: filter::Options,
}

/// Options of graphs of events.
#[derive(Args, Clone, Debug)]
struct Events {
    /// What netprobe itself may cost, in percent of the machine's CPUs: it takes no more stacks, and events count for the
    /// last stack of their place.
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = parse_percent)]
    max_overhead: f64,
    #[command(flatten)]
    common: Common,
}

/// Options of `cpu`.
#[derive(Args, Clone, Debug)]
#[command(mut_args(wanted::for_tasks))]
struct Samples {
    /// Samples per second and CPU.
    #[arg(short = 'F', long, value_name = "HZ", default_value_t = 99, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    freq: u64,
    #[command(flatten)]
    tasks: wanted::Options,
    #[command(flatten)]
    common: Common,
}

/// Options of `port-search`.
#[derive(Args, Clone, Debug)]
#[command(mut_args(wanted::for_tasks))]
struct PortSearch {
    /// Samples per second and CPU.
    #[arg(short = 'F', long, value_name = "HZ", default_value_t = 997, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    freq: u64,
    #[command(flatten)]
    tasks: wanted::Options,
    #[command(flatten)]
    common: Common,
}

/// Options of graphs of blocked time.
#[derive(Args, Clone, Debug)]
#[command(mut_args(wanted::for_tasks))]
struct Blocks {
    /// Leave out blocks that are shorter.
    #[arg(short = 'm', long, value_name = "TIME", value_parser = parse_block, default_value = "0")]
    min_block: Duration,
    /// Leave out blocks that are longer.
    #[arg(short = 'M', long, value_name = "TIME", value_parser = parse_block, default_value = "1h")]
    max_block: Duration,
    /// What netprobe itself may cost, in percent of the machine's CPUs: it takes fewer stacks, those of waits that are
    /// expected to be long first, and times the rest without one.
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = parse_percent)]
    max_overhead: f64,
    #[command(flatten)]
    tasks: wanted::Options,
    #[command(flatten)]
    common: Common,
}

/// A duration that the programs can hold: up to an hour, in microseconds.
fn parse_block(text: &str) -> Result<Duration, String> {
    let duration = match text.strip_suffix("us") {
        Some(number) => number
            .parse()
            .map(Duration::from_micros)
            .map_err(|error| format!("{error}"))?,
        None => parse_time(text)?,
    };
    if duration > Duration::from_hours(1) {
        return Err("blocks are at most an hour long".to_owned());
    }
    Ok(duration)
}

/// Collects, then draws.
pub(super) fn run(global: &Global, options: &Options) -> Result<ExitCode> {
    match &options.graph {
        Graph::Cpu(Samples {
            freq,
            tasks,
            common,
        }) => of_samples(global, graph::cpu, *freq, (tasks, common)),
        Graph::PortSearch(PortSearch {
            freq,
            tasks,
            common,
        }) => of_samples(global, graph::port_search, *freq, (tasks, common)),
        Graph::Offcpu(blocks) => of_blocks(global, graph::offcpu, blocks),
        Graph::AcceptWait(blocks) => of_blocks(global, graph::accept_wait, blocks),
        Graph::Drops(options) => of_events(global, Kind::Drops, options),
        Graph::Retransmits(options) => of_events(global, Kind::Retransmits, options),
        Graph::Resets(options) => of_events(global, Kind::Resets, options),
        Graph::Diff(options) => diff::run(options),
    }
}

/// Samples have their price: the rate that was asked for.
fn of_samples(
    global: &Global,
    graph: fn(graph::Source) -> graph::Graph,
    hertz: u64,
    (tasks, common): (&wanted::Options, &Common),
) -> Result<ExitCode> {
    let graph = graph(graph::Source::Samples { hertz });
    of_tasks(global, graph, 1.0, tasks, common)
}

fn of_blocks(
    global: &Global,
    graph: fn(graph::Source) -> graph::Graph,
    blocks: &Blocks,
) -> Result<ExitCode> {
    let graph = graph(graph::Source::Blocks {
        least: blocks.min_block,
        most: blocks.max_block,
    });
    let limit = blocks.max_overhead;
    of_tasks(global, graph, limit, &blocks.tasks, &blocks.common)
}

fn of_events(global: &Global, kind: Kind, options: &Events) -> Result<ExitCode> {
    let common = &options.common;
    let plan = events::plan(kind, &common.filter)?;
    prepare()?;
    // The file is opened before the wait: a mistake in its path shows at once.
    let out = draw::Output::open(&common.draw)?;
    let flame =
        runtime()?.block_on(events::collect(global, kind, plan, (options, out.reader())))?;
    out.draw(&flame)
}

fn of_tasks(
    global: &Global,
    graph: graph::Graph,
    max_overhead: f64,
    tasks: &wanted::Options,
    common: &Common,
) -> Result<ExitCode> {
    let wanted = tasks.wanted(&common.filter)?;
    graph.check(&wanted.sampling)?;
    tasks.must_be_there(&common.filter)?;
    prepare()?;
    let out = draw::Output::open(&common.draw)?;
    let run = tasks::Run {
        graph,
        wanted,
        duration: common.duration,
        max_overhead,
        reader: out.reader(),
    };
    let flame = runtime()?.block_on(tasks::collect(global, run))?;
    out.draw(&flame)
}

fn prepare() -> Result<()> {
    privileges::check()?;
    privileges::lift_memlock();
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")
}

/// Measures what the run costs, if that is due; it holds the loop up for as long as the kernel measures.
fn measure(meter: &mut Meter, session: &mut Session) {
    if meter.is_due() {
        meter.measure(session, std::thread::sleep);
    }
}

/// Host and kernel, for subtitles.
fn host() -> String {
    let host = rustix::system::uname();
    let host = text::visible(&host.nodename().to_string_lossy());
    format!("{host}, Linux {}", crate::kernel::release())
}

/// What was measured in a window that ends now.
fn profile(name: &'static str, unit: &'static str, elapsed: Duration) -> Profile {
    Profile {
        name,
        unit,
        elapsed,
        unix_ns: unix_ns(),
        period_ns: 0,
    }
}
