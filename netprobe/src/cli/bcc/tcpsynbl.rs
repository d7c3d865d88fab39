//! `netprobe tcpsynbl`: how full accept queues are when handshakes come to their end, as one
//! histogram per limit, counted in the kernel.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use jiff::Zoned;
use netprobe_common::{
    counters::{Count, CountKey, DEPTHS},
    header::Kind,
};

use super::super::{Global, check, stream};
use super::{
    super::{output::Output, signals::Stop},
    Common, RING_KIB,
};
use crate::{
    kernel::{names::LiveNames, privileges, session::Session},
    probes, render,
    report::{Summary, Total},
};

/// Options of `tcpsynbl`.
#[derive(Args, Clone, Debug)]
pub(in super::super) struct Options {
    #[command(flatten)]
    common: Common,
    /// The time of day before each output.
    #[arg(short = 'T', long)]
    timestamp: bool,
    /// Seconds between outputs; without it there is one, at the end.
    interval: Option<u64>,
    /// How many outputs.
    #[arg(requires = "interval")]
    count: Option<u64>,
    /// Also which listeners turned connections away, and why.
    #[arg(short = 'x', long)]
    extended: bool,
}

/// Counts until its time is over or a signal comes.
pub(super) fn run(global: &Global, options: &Options) -> Result<ExitCode> {
    privileges::check()?;
    privileges::lift_memlock();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    runtime.block_on(collect(global, options))
}

async fn collect(global: &Global, options: &Options) -> Result<ExitCode> {
    let spec = probes::of(Kind::Listeners);
    let mut stop = Stop::listen()?;
    let mut request = stream::base_request(global, spec, RING_KIB, false);
    request.config.detail = 0;
    request.config.count = 1;
    request.config.depths = 1;
    request.sizes.counts = 4096;
    let plan = options.common.filter(None, &[]).plan(spec)?;
    let (mut session, _everything) = stream::start(&request, plan)?;
    stream::require(&session)?;
    let mut out = Output::open(None)?;
    stop.while_read(out.reader());
    writeln!(out, "Tracing SYN backlog size. Ctrl-C to end.")?;
    out.flush()?;
    log::info!("ready: watching accept queues, Ctrl-C to stop");

    let started = Instant::now();
    let mut shown = BTreeMap::new();
    let mut left = options.count;
    while left != Some(0) && wait(&mut stop, options, started).await {
        let depths = depths(&session.totals()?);
        write(&mut out, options, &since(&depths, &shown))?;
        shown = depths;
        left = left.map(|left| left - 1);
    }
    let missed = session.detach();
    if left != Some(0) {
        writeln!(out)?;
        write(
            &mut out,
            options,
            &since(&depths(&session.totals()?), &shown),
        )?;
    }
    finish(
        &session,
        options,
        &mut out,
        started.elapsed(),
        &missed,
        global,
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Waits for the end of an interval; false if the run is over.
async fn wait(stop: &mut Stop, options: &Options, started: Instant) -> bool {
    let interval = options
        .interval
        .map(|seconds| Duration::from_secs(seconds.max(1)));
    let over = options.common.duration.map(|duration| started + duration);
    let pause = async {
        match interval {
            Some(interval) => tokio::time::sleep(interval).await,
            None => std::future::pending().await,
        }
    };
    let end = async {
        match over {
            Some(over) => tokio::time::sleep_until(over.into()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = stop.wait() => false,
        () = end => false,
        () = pause => true,
    }
}

fn finish(
    session: &Session,
    options: &Options,
    out: &mut Output,
    elapsed: Duration,
    missed: &[Option<u64>],
    global: &Global,
) -> Result<()> {
    let mut names = LiveNames::of(session, None);
    let totals: Vec<Total> = crate::aggregate::summary::totals(session.totals()?, &mut names);
    let summary = Summary {
        cost: None,
        elapsed,
        probes: check::probes(session, 0, missed)?,
        totals,
        connects: None,
        reconciled: Vec::new(),
    };
    if options.extended {
        writeln!(out, "\nturned away:")?;
        render::summary::totals(out, &summary)?;
    }
    out.flush()?;
    stream::account(&summary, global);
    Ok(())
}

/// Limit of the queue, and how often it had a depth of so many bits.
type Depths = BTreeMap<u32, BTreeMap<u64, u64>>;

fn depths(totals: &[(CountKey, Count)]) -> Depths {
    let mut depths = Depths::new();
    for (key, count) in totals.iter().filter(|(key, _)| key.kind == DEPTHS) {
        // bcc has 0 and 1 in one row.
        let slot = key.location.max(1);
        *depths.entry(key.code).or_default().entry(slot).or_default() += count.events;
    }
    depths
}

fn since(now: &Depths, before: &Depths) -> Depths {
    let mut left = Depths::new();
    for (limit, slots) in now {
        for (slot, count) in slots {
            let known = before.get(limit).and_then(|slots| slots.get(slot));
            let new = count - known.unwrap_or(&0);
            if new > 0 {
                left.entry(*limit).or_default().insert(*slot, new);
            }
        }
    }
    left
}

fn write(out: &mut dyn Write, options: &Options, depths: &Depths) -> io::Result<()> {
    if options.timestamp {
        writeln!(out, "{}", Zoned::now().strftime("%H:%M:%S"))?;
    }
    for (limit, slots) in depths {
        histogram(out, *limit, slots)?;
    }
    out.flush()
}

/// A histogram in powers of two, as bcc draws it.
fn histogram(out: &mut dyn Write, limit: u32, slots: &BTreeMap<u64, u64>) -> io::Result<()> {
    const WIDTH: u64 = 40;
    writeln!(out, "\nbacklog_max = {limit}")?;
    writeln!(out, "     {:<19} : count     distribution", "backlog")?;
    let most = slots.values().copied().max().unwrap_or(1);
    let last = slots.keys().copied().max().unwrap_or(0);
    for slot in 1..=last {
        let high = (1_u64 << slot) - 1;
        let low = if slot == 1 { 0 } else { 1 << (slot - 1) };
        let count = slots.get(&slot).copied().unwrap_or(0);
        let stars = "*".repeat(usize::try_from(WIDTH * count / most).unwrap_or(0));
        writeln!(out, "{low:>10} -> {high:<10} : {count:<8} |{stars:<40}|")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use netprobe_common::record::Plain;

    fn key(limit: u32, bits: u64) -> CountKey {
        CountKey {
            kind: DEPTHS,
            code: limit,
            location: bits,
            ..CountKey::zeroed()
        }
    }

    #[test]
    fn a_histogram_reads_like_that_of_bcc() {
        let count = |events| Count { events, weight: 0 };
        let totals = [
            (key(128, 0), count(3)),
            (key(128, 1), count(1)),
            (key(128, 3), count(2)),
        ];
        let mut out = Vec::new();
        histogram(&mut out, 128, &depths(&totals)[&128]).unwrap();
        let expected = "\nbacklog_max = 128\n     backlog             : count     distribution\n         0 -> 1          : 4        |****************************************|\n         2 -> 3          : 0        |                                        |\n         4 -> 7          : 2        |********************                    |\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn an_interval_shows_only_what_is_new() {
        let count = |events| Count { events, weight: 0 };
        let before = depths(&[(key(5, 1), count(3))]);
        let now = depths(&[(key(5, 1), count(3)), (key(5, 2), count(7))]);
        assert_eq!(since(&now, &before), depths(&[(key(5, 2), count(7))]));
        assert!(since(&now, &now).is_empty());
    }
}
