//! The programs of `diagnose` while they are attached, and the windows in which they are judged:
//! one, or one after the other. What a window shows is what was counted since it was opened.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use netprobe_common::{
    config::Config,
    counters::{Count, CountKey},
    filter::IS_NOT,
};

use super::{
    check,
    culprit::{self, Graph},
    sample::Reader,
    signals::Stop,
    watch::Watch,
};
use crate::{
    aggregate::summary,
    capture::live::LiveRing,
    decode::Names as _,
    diagnose::{self, events::Events},
    filter::KnownReasons,
    kernel::{
        cost::cpu_until_now,
        keeper::{Keeper, Saving},
        names::LiveNames,
        sampler,
        session::{Request, Session},
    },
    observe::{
        clock::{now_ns, unix_ns},
        namespaces::Namespace,
    },
    report::{
        Probe,
        diagnosis::{Cost, Diagnosis, Host},
    },
};

/// How often the ring is looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often counters are read again that programs were just writing.
const TRIES: usize = 8;

/// The verdict on a window; and of its graph, what it shows.
pub(super) type Verdict = (Diagnosis, Option<Result<String>>);

/// What a vigil may take and must look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Share of the machine that netprobe may take.
    pub(super) overhead: f64,
    /// Whether namespaces that were not asked for are not missed.
    pub(super) is_narrowed: bool,
}

/// Attached programs, and what comes from them.
pub(super) struct Vigil {
    programs: Programs,
    ring: LiveRing,
    reader: Reader,
    limits: Limits,
    begin: Option<Begin>,
    /// CPU time that earlier verdicts have told of.
    told_cpu: Duration,
}

/// The programs: in a window, a thread looks after them.
enum Programs {
    Unattended(Box<Session>),
    Kept(Keeper),
    Gone,
}

/// The moment from which on everything counts.
struct Begin {
    at: Instant,
    /// The same in nanoseconds of the monotonic clock.
    at_ns: u64,
    unix_ns: i64,
    before: Tally,
    watch: Watch,
}

/// What the programs have counted so far.
struct Tally {
    totals: HashMap<CountKey, Count>,
    probes: Vec<Probe>,
}

/// Leaves out what the queue of a closed socket still held: nobody misses it, and every clean close drops its FIN so.
fn without_purges(mut config: Config, reasons: &dyn KnownReasons) -> Config {
    let all = reasons.all();
    if let Some((purge, _)) = all.iter().find(|(_, name)| name == "QUEUE_PURGE") {
        let codes = &mut config.filter.reasons;
        codes.list[0] = *purge;
        codes.len = 1;
        codes.mode = IS_NOT;
    }
    config
}

impl Vigil {
    /// Attaches the programs.
    pub(super) fn start(request: &Request, limits: Limits) -> Result<Self> {
        let mut session = Session::start_with(request, |reasons, _has_socket_cgroups| {
            Ok(without_purges(request.config, reasons))
        })?;
        let ring = LiveRing::new(session.take_ring()?)?;
        let wants_stacks = request.config.flame != 0;
        let stacks = wants_stacks.then(|| session.take_stacks());
        let names = LiveNames::of(&session, stacks.transpose()?);
        Ok(Self {
            programs: Programs::Unattended(Box::new(session)),
            ring,
            reader: Reader::new(names),
            limits,
            begin: None,
            told_cpu: Duration::ZERO,
        })
    }

    /// Opens a window onto these namespaces.
    pub(super) fn open(&mut self, namespaces: Vec<Namespace>) -> Result<()> {
        let mut session = self.session()?;
        // What came between two windows belongs to none.
        self.ring.batches().for_each(drop);
        self.reader.events = Events::default();
        self.reader.decode_errors = 0;
        self.reader.names.name_places(false);
        session.set_level(0)?;
        // Ports and namespaces of long ago must not take the room of those of now.
        session.forget_totals()?;
        let before = Tally::of(&session)?;
        let saving = Saving::default();
        let watch = Watch::start(namespaces, self.limits.is_narrowed, saving.clone())?;
        self.begin = Some(Begin {
            at: Instant::now(),
            at_ns: now_ns(),
            unix_ns: unix_ns(),
            before,
            watch,
        });
        let keeper = Keeper::start_with(*session, self.limits.overhead, None, saving);
        self.programs = Programs::Kept(keeper);
        Ok(())
    }

    /// Reads events until the window is over or a signal comes; true if it came.
    pub(super) async fn until(&mut self, stop: &mut Stop, window: Duration) -> bool {
        let deadline = Instant::now() + window;
        loop {
            let tick = (Instant::now() + TICK).min(deadline);
            tokio::select! {
                biased;
                () = stop.wait() => return true,
                () = tokio::time::sleep_until(tick.into()) => self.catch_up(),
            }
            if Instant::now() >= deadline {
                return false;
            }
        }
    }

    fn catch_up(&mut self) {
        for batch in self.ring.batches() {
            self.reader.take(&batch);
        }
    }

    /// Closes the window, reads everything out, and asks the rules. After the last one, the
    /// programs are gone. With the verdict comes what a graph shows, or why it could not be drawn.
    pub(super) fn close(&mut self, is_last: bool, graph: Option<Graph<'_>>) -> Result<Verdict> {
        let begin = self
            .begin
            .take()
            .ok_or_else(|| anyhow!("no window is open"))?;
        let ended = Instant::now();
        let Programs::Kept(keeper) = std::mem::replace(&mut self.programs, Programs::Gone) else {
            return Err(anyhow!("nobody looks after the programs"));
        };
        let (mut session, spent) = keeper.finish()?;
        // As near to the kernel's counters as can be: rules compare the two.
        let totals = session.totals()?;
        let (mut window, gaps) = begin.watch.finish(ended - begin.at)?;
        window.began_ns = begin.at_ns;
        let after = if is_last {
            let missed = session.detach();
            check::probes(&session, 0, &missed)?
        } else {
            steady(&session)?
        };
        self.catch_up();
        let names = &mut self.reader.names;
        names.name_places(true);
        let place = |address| names.symbol(address);
        self.reader.events.translate("location", place);
        let totals = begin.before.grown(totals);
        self.reader.events.totals = summary::totals(totals, &mut self.reader.names);
        window.events = std::mem::take(&mut self.reader.events);
        window.probes = begin.before.since(after, self.reader.decode_errors);
        let (findings, checked) = diagnose::diagnose(&window);
        let host = host();
        let cpu_until_now = cpu_until_now();
        let cpu_time = cpu_until_now.saturating_sub(self.told_cpu);
        self.told_cpu = cpu_until_now;
        let diagnosis = Diagnosis {
            cost: Cost {
                cpu_percent: spent.percent() * f64::from(host.cpus),
                limit_percent: spent.limit_percent * f64::from(host.cpus),
                cpu_time,
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
        let drawn = graph.map(|graph| {
            let seen = culprit::Seen {
                diagnosis: &diagnosis,
                processes: &window.processes,
                stacks: &session.stack_totals()?,
            };
            culprit::draw(graph, &seen, &mut self.reader.names)
        });
        self.programs = Programs::Unattended(Box::new(session));
        Ok((diagnosis, drawn))
    }

    fn session(&mut self) -> Result<Box<Session>> {
        match std::mem::replace(&mut self.programs, Programs::Gone) {
            Programs::Unattended(session) => Ok(session),
            Programs::Kept(_) | Programs::Gone => Err(anyhow!("a window is open already")),
        }
    }
}

impl Tally {
    fn of(session: &Session) -> Result<Self> {
        let probes = steady(session)?;
        Ok(Self {
            totals: session.totals()?.into_iter().collect(),
            probes,
        })
    }

    /// What totals have grown by since.
    fn grown(&self, totals: Vec<(CountKey, Count)>) -> Vec<(CountKey, Count)> {
        let grown = totals.into_iter().map(|(key, count)| {
            let before = self.totals.get(&key).unwrap_or(&Count::NONE);
            (key, count.since(before))
        });
        grown.filter(|(_, since)| since.events > 0).collect()
    }

    /// Probes with what they have counted since.
    fn since(&self, mut probes: Vec<Probe>, decode_errors: u64) -> Vec<Probe> {
        for (probe, before) in probes.iter_mut().zip(&self.probes) {
            probe.counters = probe.counters.since(&before.counters);
            probe.decode_errors = decode_errors;
            let missed = probe.missed.zip(before.missed);
            probe.missed = missed.map(|(now, then)| now.saturating_sub(then));
        }
        probes
    }
}

/// The probes with counters that add up, although programs go on counting.
fn steady(session: &Session) -> Result<Vec<Probe>> {
    let missed = session.missed();
    let mut probes = check::probes(session, 0, &missed)?;
    for _ in 1..TRIES {
        let adds_up = |probe: &Probe| probe.counters.unexplained() == 0;
        if probes.iter().all(adds_up) {
            break;
        }
        let again = check::probes(session, 0, &missed)?;
        for (probe, again) in probes.iter_mut().zip(again) {
            if !adds_up(probe) {
                *probe = again;
            }
        }
    }
    Ok(probes)
}

fn host() -> Host {
    let uname = rustix::system::uname();
    Host {
        name: uname.nodename().to_string_lossy().into_owned(),
        kernel: crate::kernel::release(),
        cpus: sampler::online(),
    }
}

/// `VmHWM` of `/proc/self/status`.
fn largest_rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let value = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    value.unwrap_or(0)
}
