//! `--count`: totals that the kernel counts, at the end or while they grow.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use netprobe_common::counters::{BY_CGROUP, BY_PROCESS, BY_STACK, Count, CountKey, GroupKey};

use super::{
    super::{
        Global, check, filter, is_closed_pipe,
        output::Output,
        signals::{self, Stop},
    },
    Options, account,
    books::{self, Books},
    end_line, require, start,
    watch::announce,
};
use crate::{
    aggregate::{
        groups::{self, By},
        summary,
    },
    filter::Error,
    kernel::{
        keeper::Keeper,
        load,
        names::LiveNames,
        privileges::{self, CannotRun},
        sampler,
        session::{Request, Session},
        totals::Tally,
    },
    observe::clock::{thread_cpu, unix_ns},
    probes::ProbeSpec,
    render,
    report::{Interval, Probe, Summary, Total},
};

/// Different stacks that are told apart.
const STACKS: u32 = 16_384;

/// Groups of `--count --by` that are told apart no more, to keep the cost low.
const COARSE: u32 = 1024;

/// Groups that are shown unless it is said.
const TOP: usize = 20;

/// How often it is looked who listens, and which control groups there are, where these are told apart.
const LOOK: Duration = Duration::from_secs(1);

/// A run that counts.
pub(super) struct Counting<'a> {
    spec: &'static ProbeSpec,
    options: &'a Options,
    request: Request,
    by: By,
}

impl<'a> Counting<'a> {
    /// Counts what `options` ask for.
    pub(super) fn new(
        spec: &'static ProbeSpec,
        options: &'a Options,
        mut request: Request,
    ) -> Result<Self> {
        let by = if options.by.is_empty() {
            By::usual(spec.kind)
        } else {
            By::new(spec.kind, &options.by).map_err(|unknown| {
                let known = unknown.known.join(", ");
                let words = options.by.join(",");
                Error::elsewhere(format!(
                    "--by {words}: `{}` is counted by {known}",
                    spec.name()
                ))
            })?
        };
        let bits = by.bits();
        if bits != 0 {
            request.config.count = 0;
            request.config.by = bits;
            // For those that are told apart no more.
            request.sizes.counts = COARSE;
            request.sizes.groups = load::most_groups();
        }
        if bits & BY_STACK != 0 {
            request.sizes.stacks = STACKS;
        }
        Ok(Self {
            spec,
            options,
            request,
            by,
        })
    }

    /// Counts until its time is over or a signal comes; says what it came to.
    pub(super) fn run(self, global: &Global, plan: filter::Plan) -> Result<Summary> {
        privileges::check()?;
        privileges::lift_memlock();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the event loop")?;
        runtime.block_on(self.watch(global, plan))
    }

    async fn watch(mut self, global: &Global, plan: filter::Plan) -> Result<Summary> {
        // Before signals are listened to: it may wait for a reader.
        let out = self.options.open()?;
        let mut stop = Stop::listen()?;
        stop.while_read(out.reader());
        let mut books = Books::open(&mut self.request, &plan);
        let (mut session, rest) = start(&self.request, plan)?;
        if !rest.is_empty() {
            let why = "this kernel does not keep the cgroup of a socket, so it cannot count by it";
            return Err(CannotRun::new(why.to_owned()).into());
        }
        require(&session)?;
        let bits = self.by.bits();
        let stacks = (bits & BY_STACK != 0).then(|| session.take_stacks());
        let mut board = Board {
            spec: self.spec,
            options: self.options,
            names: LiveNames::of(&session, stacks.transpose()?),
            tally: session.take_tally()?,
            by: self.by,
            out,
            shown: Reading::default(),
            shown_at: Instant::now(),
        };
        announce(&session, self.spec);
        if let Some(books) = &mut books {
            books.read();
        }
        board.names.learn_owners(self.options.max_overhead);
        let started = Instant::now();
        board.shown_at = started;
        let deadline = self.options.duration.map(|duration| started + duration);
        let keeper = Keeper::start(session, self.options.max_overhead, deadline);
        let ended = board.until(&mut stop, deadline).await;
        signals::second_kills();
        let (mut session, cost) = keeper.finish()?;
        let missed = books::detach(&mut session, &mut books);
        let reading = board.read()?;
        let shown = ended.and_then(|()| match self.options.interval {
            Some(_) => board.show(&reading),
            None => Ok(()),
        });
        let reconciled = books.map(|books| books.compare(&session, &reading.usual()));
        let mut summary =
            board.summarize(&session, &reading, session.watched_since(started), &missed)?;
        summary.cost = Some(cost);
        summary.reconciled = reconciled.unwrap_or_default();
        let written = shown.and_then(|()| board.end(&summary));
        if !matches!(&written, Err(error) if is_closed_pipe(error)) {
            if written.is_err() {
                // Nowhere else are they any more.
                let _closed = render::summary::totals(&mut anstream::stderr(), &summary);
            }
            board.account(&summary, global);
        }
        written?;
        Ok(summary)
    }
}

/// What the kernel has counted.
#[derive(Default)]
struct Reading {
    counts: Vec<(CountKey, Count)>,
    groups: Vec<(GroupKey, Count)>,
}

impl Reading {
    /// All of it, told apart at least by what `--count` alone groups by.
    fn usual(&self) -> Vec<(CountKey, Count)> {
        let groups = self.groups.iter().map(|(group, count)| (group.key, *count));
        self.counts.iter().copied().chain(groups).collect()
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            counts: groups::since(&self.counts, &before.counts),
            groups: groups::since(&self.groups, &before.groups),
        }
    }
}

/// Where totals are shown.
struct Board<'a> {
    spec: &'static ProbeSpec,
    options: &'a Options,
    names: LiveNames,
    tally: Tally,
    by: By,
    out: Output,
    /// What the intervals have shown so far, and until when.
    shown: Reading,
    shown_at: Instant,
}

impl Board<'_> {
    /// Shows what each whole interval has added, until the time is over or a signal comes.
    async fn until(&mut self, stop: &mut Stop, deadline: Option<Instant>) -> Result<()> {
        let mut next = self
            .options
            .interval
            .map(|interval| self.shown_at + interval);
        let has_names = self.by.bits() & (BY_PROCESS | BY_CGROUP) != 0;
        let mut purse = Purse::new(self.options.max_overhead);
        let mut not_before = Instant::now();
        loop {
            let look = has_names.then(|| not_before.max(Instant::now() + LOOK));
            tokio::select! {
                biased;
                () = stop.wait() => return Ok(()),
                () = at(deadline) => return Ok(()),
                () = at(next) => {}
                () = at(look) => {
                    let begin = thread_cpu();
                    self.look();
                    not_before = purse.spend(thread_cpu().saturating_sub(begin));
                    continue;
                }
            }
            let begin = thread_cpu();
            let reading = self.read()?;
            self.show(&reading)?;
            self.shown = reading;
            let spent = thread_cpu().saturating_sub(begin);
            not_before = purse.spend(spent);
            next = next.zip(self.options.interval).map(|(due, interval)| {
                let next = after(due, interval, not_before.max(Instant::now()));
                if next > Instant::now() + interval * 2 && !purse.has_told {
                    purse.has_told = true;
                    log::warn!(
                        "intervals get longer: to read and show the totals takes {:.1} ms of CPU time, and --max-overhead allows less",
                        spent.as_secs_f64() * 1e3
                    );
                }
                next
            });
        }
    }

    /// Learns names that may be gone at the end.
    fn look(&mut self) {
        if self.by.bits() & BY_PROCESS != 0 {
            self.names.refresh_listeners();
        }
        if self.by.bits() & BY_CGROUP != 0 {
            self.names.refresh_cgroups();
        }
    }

    fn read(&self) -> Result<Reading> {
        let (counts, groups) = if self.by.bits() != 0 {
            (Vec::new(), self.tally.groups()?)
        } else {
            (self.tally.counts()?, Vec::new())
        };
        Ok(Reading { counts, groups })
    }

    fn totals(&mut self, reading: &Reading) -> Vec<Total> {
        let (by, names) = (&self.by, &mut self.names);
        let shows_all = self.options.json && self.options.by.is_empty();
        let usual = if shows_all { usize::MAX } else { TOP };
        let top = self.options.top.unwrap_or(usual);
        if by.bits() == 0 {
            by.join(&reading.counts, top, |key| {
                summary::name(&by.narrow(key), names)
            })
        } else {
            by.join(&reading.groups, top, |key| {
                let usual = by.narrow(&key.key);
                groups::name(&GroupKey { key: usual, ..*key }, by.bits(), names)
            })
        }
    }

    /// Shows what was added since this was last called.
    fn show(&mut self, reading: &Reading) -> Result<()> {
        let totals = self.totals(&reading.since(&self.shown));
        let elapsed = self.shown_at.elapsed();
        self.shown_at += elapsed;
        let interval = Interval {
            unix_ns: unix_ns(),
            elapsed,
            totals: &totals,
        };
        if self.options.json {
            render::jsonl::interval(&mut self.out, &interval)?;
        } else {
            render::summary::interval(&mut self.out, self.spec.weight, &interval)?;
        }
        Ok(self.out.flush()?)
    }

    fn summarize(
        &mut self,
        session: &Session,
        reading: &Reading,
        elapsed: Duration,
        missed: &[Option<u64>],
    ) -> Result<Summary> {
        let mut probes = check::probes(session, 0, missed)?;
        if !self.by.has_port() {
            forgive(&mut probes, &reading.counts);
        }
        Ok(Summary {
            elapsed,
            probes,
            totals: self.totals(reading),
            connects: None,
            cost: None,
            reconciled: Vec::new(),
        })
    }

    fn end(&mut self, summary: &Summary) -> Result<()> {
        if self.options.json {
            render::jsonl::summary(&mut self.out, summary)?;
        } else {
            if self.options.interval.is_some() {
                writeln!(self.out, "all of the run")?;
            }
            render::summary::totals(&mut self.out, summary)?;
        }
        Ok(self.out.flush()?)
    }

    /// Writes the accounting to standard error.
    fn account(&self, summary: &Summary, global: &Global) {
        end_line(&self.out, global);
        account(summary, global);
    }
}

/// Takes from what found the map full that of which nothing but the port was not told apart, where nobody asked for it.
pub(super) fn forgive(probes: &mut [Probe], counts: &[(CountKey, Count)]) {
    if let [probe] = probes {
        let full = &mut probe.counters.map_full;
        *full = full.saturating_sub(summary::without_port(counts));
    }
}

/// When the interval ends that comes after the one that was due: what it takes to show one makes the others no longer.
/// Those that are over by `not_before` are not told apart.
fn after(due: Instant, interval: Duration, not_before: Instant) -> Instant {
    let next = due + interval;
    let Some(late) = not_before.checked_duration_since(next) else {
        return next;
    };
    let begun = late.as_nanos().checked_rem(interval.as_nanos());
    let begun = begun.and_then(|ns| u64::try_from(ns).ok()).unwrap_or(0);
    next + late.saturating_sub(Duration::from_nanos(begun)) + interval
}

/// CPU time for showing intervals: a share of the machine, of which some may be spent before it has come.
struct Purse {
    began: Instant,
    spent: Duration,
    /// CPUs that may be in use.
    cpus: f64,
    has_told: bool,
}

impl Purse {
    /// As much may be spent at once as comes in this time.
    const ADVANCE: Duration = Duration::from_secs(10);

    fn new(share: f64) -> Self {
        Self {
            began: Instant::now(),
            spent: Duration::ZERO,
            cpus: f64::from(sampler::online()) * share,
            has_told: false,
        }
    }

    /// Takes out `time`; when as much may be spent again.
    fn spend(&mut self, time: Duration) -> Instant {
        self.spent += time;
        let needed = (self.spent + time).as_secs_f64() / self.cpus;
        let needed = Duration::try_from_secs_f64(needed).unwrap_or(Duration::MAX);
        let until = needed.saturating_sub(Self::ADVANCE);
        self.began.checked_add(until).unwrap_or(self.began)
    }
}

/// Waits for a moment; for ever if there is none.
pub(super) async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_that_cost_too_much_get_longer_once_what_was_saved_is_spent() {
        let mut purse = Purse::new(0.01);
        // A tenth of a CPU, whatever the machine.
        purse.cpus = 0.1;
        let began = purse.began;
        let mut shown = 0;
        let mut next = began + Duration::from_secs(1);
        while next < began + Duration::from_secs(100) {
            let not_before = purse.spend(Duration::from_millis(500));
            next = after(next, Duration::from_secs(1), not_before);
            shown += 1;
        }
        assert_eq!(shown, 2 + 19);
        let mut free = Purse::new(0.01);
        assert!(free.spend(Duration::from_micros(200)) <= free.began);
    }

    #[test]
    fn intervals_keep_time_however_long_it_takes_to_show_one() {
        let (begin, ms) = (Instant::now(), Duration::from_millis);
        let second = ms(1000);
        let next = |late: u64| after(begin + second, second, begin + second + ms(late));
        for (late, seconds) in [(0, 2), (80, 2), (999, 2), (1_000, 3), (2_500, 4)] {
            assert_eq!(next(late), begin + second * seconds, "{late}");
        }
        // However short they are, too.
        let (ns, hour) = (Duration::from_nanos(1), ms(3_600_000));
        assert_eq!(after(begin, ns, begin + hour), begin + hour + ns);
    }
}
