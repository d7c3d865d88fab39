//! A run of one probe: attached, shown as it happens, detached, accounted for.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netprobe_common::{config::Config, header::Kind};

use super::{
    super::{
        Global, check, filter, is_closed_pipe,
        output::Output,
        signals::{self, Stop},
    },
    books::{self, Books},
    count::{self, at},
    pcap::Pcap,
    screen::Screen,
};
use crate::{
    aggregate::summary,
    capture::live::LiveRing,
    filter::{KnownReasons as _, matcher::Matcher},
    kernel::{
        keeper::Keeper,
        names::LiveNames,
        privileges::{self, CannotRun},
        session::{Request, Session},
    },
    probes::{self, ProbeSpec},
    render::format::Format,
    report::Summary,
};

/// Room for the groups of connects: outcomes, errnos and ports.
const GROUPS: u32 = 4096;

/// What to run.
pub(in super::super) struct Watch {
    /// The probe.
    pub(in super::super) spec: &'static ProbeSpec,
    /// What is asked of the kernel.
    pub(in super::super) request: Request,
    /// Which events are wanted.
    pub(in super::super) plan: filter::Plan,
    /// How long; until a signal comes if it is not said.
    pub(in super::super) duration: Option<Duration>,
    /// What it may cost, as a share of the machine.
    pub(in super::super) max_overhead: f64,
    /// Whether the frames of stacks are shown with their offsets.
    pub(in super::super) shows_offsets: bool,
    /// How events are written.
    pub(in super::super) format: Box<dyn Format>,
    /// Where to.
    pub(in super::super) out: Output,
    /// Where packets go, if they are wanted.
    pub(in super::super) packets: Option<Pcap>,
}

impl Watch {
    /// Runs it on an event loop of its own; says what it came to.
    pub(in super::super) fn run(self, global: &Global) -> Result<Summary> {
        privileges::check()?;
        privileges::lift_memlock();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the event loop")?;
        runtime.block_on(self.watch(global))
    }

    async fn watch(mut self, global: &Global) -> Result<Summary> {
        let mut stop = Stop::listen()?;
        stop.while_read(self.out.reader());
        // A view of all connects is wanted, also where not all are shown.
        if self.spec.kind == Kind::Connects {
            self.request.config.count = 1;
            self.request.sizes.counts = GROUPS;
        }
        let mut books = Books::open(&mut self.request, &self.plan);
        let (mut session, matcher) = start(&self.request, self.plan)?;
        require(&session)?;
        let mut ring = LiveRing::new(session.take_ring()?)?;
        let has_stacks = self.request.config.stack != 0;
        let stacks = has_stacks.then(|| session.take_stacks()).transpose()?;
        let names = LiveNames::of(&session, stacks).with_offsets(self.shows_offsets);
        let mut screen = Screen::new(self.spec, names, matcher, self.format, self.out)
            .with_packets(self.packets);
        screen.begin()?;
        announce(&session, self.spec);
        if let Some(books) = &mut books {
            books.read();
        }
        screen.names.learn_owners(self.max_overhead);

        let started = Instant::now();
        let deadline = self.duration.map(|duration| started + duration);
        let keeper = Keeper::start(session, self.max_overhead, deadline);
        let ended = until(&mut stop, deadline, &mut ring, &mut screen).await;
        signals::second_kills();

        let (mut session, cost) = keeper.finish()?;
        let missed = books::detach(&mut session, &mut books);
        // A write error ends the run, but what was seen is still accounted for.
        let elapsed = session.watched_since(started);
        let drained = ended.and_then(|()| screen.drain(&mut ring));
        let counted = session.totals()?;
        let mut summary = summarize(&session, &screen, elapsed, &missed)?;
        // No groups are shown here, nor ports of what the kernel counts.
        count::forgive(&mut summary.probes, &counted);
        summary.cost = Some(cost);
        if let Some(books) = &books {
            summary.reconciled = books.compare(&session, &counted);
        }
        if drained.is_err() {
            for probe in &mut summary.probes {
                probe.unwritten = probe.shown().saturating_sub(screen.written());
            }
        }
        let wants_all = screen.wants_all();
        let counted = wants_all.then(|| summary::totals(counted, &mut screen.names));
        summary.connects = screen.connects(&summary.probes[0], counted.as_deref());
        let written = drained.and_then(|()| screen.end(&summary));
        if !matches!(&written, Err(error) if is_closed_pipe(error)) {
            screen.account(&summary, global);
        }
        written?;
        Ok(summary)
    }
}

/// Starts the programs with the part of the filter that they test; the other part is for us.
pub(in super::super) fn start(request: &Request, plan: filter::Plan) -> Result<(Session, Matcher)> {
    let mut rest = None;
    let session = Session::start_with(request, |reasons, has_socket_cgroups| {
        let (kernel, matcher) = plan.resolve(reasons, has_socket_cgroups)?;
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
        tokio::select! {
            biased;
            () = stop.wait() => return Ok(()),
            () = at(deadline) => return Ok(()),
            batch = ring.next() => screen.show(&batch?)?,
        }
    }
}

/// A probe that was asked for by name must be there, or wait for a module.
pub(in super::super) fn require(session: &Session) -> Result<(), CannotRun> {
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

pub(super) fn announce(session: &Session, spec: &ProbeSpec) {
    for (_, hooks) in session.probes() {
        for attached in hooks {
            if let Err(why) = &attached.result {
                log::warn!("not seen: {} ({why})", attached.hook.sees);
            }
        }
    }
    if spec.kind == Kind::Drops && session.drop_reasons().all().is_empty() {
        log::warn!("not seen: reasons (this kernel gives none, as those from 5.17 on do)");
    }
    if let Some(Err(why)) = session.windowed().map(|attached| &attached.result) {
        log::warn!("not seen: {} ({why})", probes::connects::CANDIDATES.sees);
    }
    log::info!("ready: watching {}, Ctrl-C to stop", spec.name());
}

fn summarize(
    session: &Session,
    screen: &Screen,
    elapsed: Duration,
    missed: &[Option<u64>],
) -> Result<Summary> {
    let mut probes = check::probes(session, screen.decode_errors, missed)?;
    for probe in &mut probes {
        probe.filtered_user = screen.filtered;
    }
    Ok(Summary {
        elapsed,
        probes,
        totals: Vec::new(),
        connects: None,
        cost: None,
        reconciled: Vec::new(),
    })
}
