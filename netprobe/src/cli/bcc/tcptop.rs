//! `netprobe tcptop`: bytes of each connection in each interval.
//!
//! The kernel counts the bytes of every connection anyway. They are asked for at each interval
//! (`sock_diag`), and taken from the socket itself when it closes, so that short connections count
//! and nothing runs for each message that is sent.

use std::{
    cmp::Reverse,
    fs,
    io::{self, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use jiff::Zoned;
use netprobe_common::header::Kind;

use super::{
    super::{Global, check, open, output::Output, signals::Stop, stream},
    Common, NO_LIMIT, RING_KIB,
    meter::{Meter, Spent},
};
use crate::{
    capture::live::LiveRing,
    decode,
    kernel::{keeper::Keeper, names::LiveNames, privileges, session::Session},
    observe::{clock::now_ns, owners::Owners, sockets},
    probes,
    report::{Row, Summary},
};

/// Options of `tcptop`.
#[derive(Args, Clone, Debug)]
pub(in super::super) struct Options {
    #[command(flatten)]
    common: Common,
    /// Do not clear the screen.
    #[arg(short = 'C', long)]
    noclear: bool,
    /// No line with the load average.
    #[arg(short = 'S', long)]
    nosummary: bool,
    /// Only this process.
    #[arg(short, long)]
    pid: Option<u32>,
    /// What the largest is.
    #[arg(short, long, value_enum, default_value_t = Sort::All)]
    sort: Sort,
    /// At most so many connections of each family.
    #[arg(short, long)]
    rows: Option<usize>,
    /// The network namespace at the end.
    #[arg(short = 'x', long)]
    extended: bool,
    /// Seconds between outputs.
    #[arg(default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    interval: u32,
    /// How many outputs.
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// By which bytes connections are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// Sent and received.
    All,
    /// Sent.
    Sent,
    /// Received.
    Received,
}

/// Shows what goes over connections until its time is over or a signal comes.
pub(super) fn run(global: &Global, options: &Options) -> Result<ExitCode> {
    privileges::check()?;
    privileges::lift_memlock();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    runtime.block_on(watch(global, options))
}

/// The running programs and what is known so far.
struct Top<'a> {
    options: &'a Options,
    ring: LiveRing,
    names: LiveNames,
    owners: Owners,
    meter: Meter,
    row: Row,
    decode_errors: u64,
    matcher: crate::filter::matcher::Matcher,
    netns: Option<u32>,
}

async fn watch(global: &Global, options: &Options) -> Result<ExitCode> {
    let mut stop = Stop::listen()?;
    let mut out = Output::open(None)?;
    stop.while_read(out.reader());
    writeln!(
        out,
        "Tracing... Output every {} secs. Hit Ctrl-C to end",
        options.interval
    )?;
    out.flush()?;
    let (session, mut top) = start(global, options)?;
    let hidden = top.netns.is_none().then(open::hidden_namespaces).flatten();
    for error in top.snapshot()?.into_iter().chain(hidden) {
        log::warn!("not seen: {error:#}");
    }
    top.meter.forget_spent();
    log::info!("ready: watching connections, Ctrl-C to stop");

    let started = Instant::now();
    let over = options.common.duration.map(|duration| started + duration);
    let keeper = Keeper::start(session, NO_LIMIT, over);
    let interval = Duration::from_secs(options.interval.into());
    let mut pace = Pace::new(started, interval);
    let mut left = options.count;
    let mut is_over = false;
    while left != Some(0) && !is_over {
        let next = pace.next(Instant::now());
        let end = over.map_or(next, |over| over.min(next));
        is_over = top.until(&mut stop, end).await? || Some(end) == over;
        if !is_over {
            let _refused_as_before = top.snapshot()?;
            show(&mut out, options, &top.meter.take_spent())?;
            left = left.map(|left| left - 1);
        }
    }
    let (mut session, cost) = keeper.finish()?;
    let missed = session.detach();
    if is_over {
        let _refused_as_before = top.snapshot()?;
        show(&mut out, options, &top.meter.take_spent())?;
    }
    let summary = Summary {
        cost: Some(cost),
        elapsed: started.elapsed(),
        probes: check::probes(&session, top.decode_errors, &missed)?,
        totals: Vec::new(),
        connects: None,
        reconciled: Vec::new(),
    };
    stream::account(&summary, global);
    Ok(ExitCode::SUCCESS)
}

/// When intervals end: to list connections makes none longer, unless it takes longer than one.
struct Pace {
    due: Instant,
    interval: Duration,
    has_told: bool,
}

impl Pace {
    const fn new(began: Instant, interval: Duration) -> Self {
        Self {
            due: began,
            interval,
            has_told: false,
        }
    }

    /// The end of the interval that comes after the last one, of which the connections were listed by `now`.
    fn next(&mut self, now: Instant) -> Instant {
        self.due += self.interval;
        if self.due < now {
            if !self.has_told {
                self.has_told = true;
                let listed = now.duration_since(self.due) + self.interval;
                let seconds = listed.as_secs_f64();
                log::warn!("intervals get longer: to list all connections takes {seconds:.1} s");
            }
            self.due = now;
        }
        self.due
    }
}

fn start<'a>(global: &Global, options: &'a Options) -> Result<(Session, Top<'a>)> {
    let spec = probes::of(Kind::Lifetimes);
    let request = stream::base_request(global, spec, RING_KIB, false);
    let filter = options.common.filter(options.pid, &[]);
    let netns = filter.netns()?;
    let (mut session, matcher) = stream::start(&request, filter.plan(spec)?)?;
    stream::require(&session)?;
    let top = Top {
        options,
        ring: LiveRing::new(session.take_ring()?)?,
        names: LiveNames::of(&session, None),
        owners: Owners::default(),
        meter: Meter::default(),
        row: Row::default(),
        decode_errors: 0,
        matcher,
        netns,
    };
    Ok((session, top))
}

impl Top<'_> {
    /// Takes in connections that close until then; true if a signal came.
    async fn until(&mut self, stop: &mut Stop, end: Instant) -> Result<bool> {
        loop {
            tokio::select! {
                biased;
                () = stop.wait() => return Ok(true),
                () = tokio::time::sleep_until(end.into()) => return Ok(false),
                batch = self.ring.next() => self.take(&batch?),
            }
        }
    }

    fn take(&mut self, batch: &crate::capture::live::Batch) {
        for record in batch.records() {
            if decode::decode(record, &mut self.names, &mut self.row).is_err() {
                self.decode_errors += 1;
            } else if self.matcher.admits(&self.row) {
                self.meter.closed(&self.row);
            }
        }
    }

    fn drain(&mut self) -> Result<()> {
        loop {
            let batch = self.ring.drain();
            if batch.is_empty() {
                return Ok(());
            }
            self.take(&batch);
        }
    }

    /// Takes in the counts of open connections; says which namespaces could not be asked.
    fn snapshot(&mut self) -> Result<Vec<anyhow::Error>> {
        self.drain()?;
        let listed = sockets::open_connections(self.netns);
        let (connections, refused) = listed.context("list connections")?;
        let wants_v4 = !self.options.common.ipv6;
        let wants_v6 = !self.options.common.ipv4;
        for connection in &connections {
            let is_v4 = connection.family == "ipv4";
            let is_wanted = if is_v4 { wants_v4 } else { wants_v6 };
            if is_wanted {
                let owners = &mut self.owners;
                let pid = self.options.pid;
                self.meter.open(
                    connection,
                    |ino| {
                        let first = owners.of(ino, now_ns())?;
                        let Some(pid) = pid else {
                            return Some(first);
                        };
                        let holder = owners.last(ino).iter().find(|holder| holder.pid == pid);
                        holder.map(|holder| (holder.pid, holder.comm))
                    },
                    pid.is_some(),
                );
            }
        }
        self.meter.end_snapshot();
        Ok(refused)
    }
}

fn show(out: &mut dyn Write, options: &Options, spent: &[Spent]) -> io::Result<()> {
    if options.noclear {
        writeln!(out)?;
    } else {
        // Home, and erase what is below: what clear(1) writes.
        write!(out, "\x1b[H\x1b[2J")?;
    }
    if !options.nosummary {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let now = Zoned::now();
        writeln!(
            out,
            "{:<8} loadavg: {load}",
            now.strftime("%H:%M:%S").to_string()
        )?;
    }
    for (is_v6, width) in [(false, 21), (true, 32)] {
        let family = spent.iter().filter(|spent| spent.is_v6 == is_v6);
        block(out, options, family.collect(), width)?;
    }
    out.flush()
}

/// The connections of one family, the largest first.
fn block(
    out: &mut dyn Write,
    options: &Options,
    mut spent: Vec<&Spent>,
    width: usize,
) -> io::Result<()> {
    spent.sort_by_key(|spent| {
        Reverse(match options.sort {
            Sort::All => spent.sent + spent.received,
            Sort::Sent => spent.sent,
            Sort::Received => spent.received,
        })
    });
    spent.truncate(options.rows.unwrap_or(usize::MAX));
    let Some(first) = spent.first() else {
        return Ok(());
    };
    let (local, remote) = if first.is_v6 {
        writeln!(out)?;
        ("LADDR6", "RADDR6")
    } else {
        ("LADDR", "RADDR")
    };
    let extra = if options.extended { " NETNS" } else { "" };
    writeln!(
        out,
        "{:<7} {:<12} {local:<width$} {remote:<width$} {:>6} {:>6}{extra}",
        "PID", "COMM", "RX_KB", "TX_KB"
    )?;
    for line in spent {
        write!(
            out,
            "{:<7} {:<12} {:<width$} {:<width$} {:>6} {:>6}",
            line.pid,
            line.comm,
            line.local,
            line.remote,
            line.received / 1024,
            line.sent / 1024
        )?;
        if options.extended {
            write!(out, " {}", line.netns)?;
        }
        writeln!(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_list_connections_makes_no_interval_longer_unless_it_takes_longer_than_one() {
        let (began, ms) = (Instant::now(), Duration::from_millis);
        let mut pace = Pace::new(began, ms(1000));
        for (listed_ms, end_ms) in [
            (0, 1000),
            (1400, 2000),
            (2300, 3000),
            (4200, 4200),
            (4500, 5200),
        ] {
            let end = pace.next(began + ms(listed_ms));
            assert_eq!(end, began + ms(end_ms), "{listed_ms}");
        }
        assert!(pace.has_told);
    }
}
