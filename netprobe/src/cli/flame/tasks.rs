//! Graphs of what tasks do: sampled while they run, or timed while they are blocked. The kernel
//! adds up; here is the run around it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use netprobe_common::{
    config::Config,
    record::Plain,
    samples::{LEFT_OUT, Sampling, Tally, TaskStack},
};

use super::{
    super::{
        Global,
        output::Reader,
        signals::{self, Stop},
    },
    complaints::{self, Copying, LeftOut},
    graph::{Graph, Source},
    host, measure,
    naming::Naming,
    profile,
    progress::Window,
    room,
    wanted::Wanted,
};
use crate::{
    aggregate::stacks::Folder,
    kernel::{
        cost::Meter,
        load::{Sizes, most_entries},
        namer::Namer,
        sampler::{Clock, OFF_CPU, Sampler},
        session::{Request, Session},
        symbols::Symbols,
        task_stacks::{self, Collected, TaskStacks},
    },
    observe::clock::now_ns,
    render::summary::price,
    report::{Flame, Profile},
};

/// How often new processes and new CPUs are looked for.
const TICK: Duration = Duration::from_millis(50);

/// What to collect.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) graph: Graph,
    pub(super) wanted: Wanted,
    pub(super) duration: Duration,
    /// What it may cost, as a share of the machine.
    pub(super) max_overhead: f64,
    /// Who must read the graph, if anybody.
    pub(super) reader: Option<Reader>,
}

impl Run {
    /// Whether the programs are told what is not wanted.
    const fn learns(&self) -> bool {
        self.wanted.sampling.learns_tasks != 0 || self.graph.is_of_functions()
    }
}

/// Collects until the time is over or a signal comes.
pub(super) async fn collect(global: &Global, mut run: Run) -> Result<Flame> {
    let mut stop = Stop::listen()?;
    stop.while_read(run.reader.take());
    let mut session = Session::start(&request(&run))?;
    task_stacks::want(&mut session, &run.wanted.keys)?;
    let stacks = TaskStacks::take(&mut session)?;
    let kernel = Symbols::new().asking(namer(&mut session, &run.graph));
    let wants_user = run.wanted.sampling.user != 0;
    let mut naming = Naming::start(stacks, kernel, wants_user, run.graph.counting());
    let mut sampler = attach(&mut session, &run)?;
    log::info!(
        "ready: collecting stacks for {:?}, Ctrl-C draws at once",
        run.duration
    );
    let mut meter = Meter::new(run.max_overhead, &session);
    let mut window = Window::begin(global, run.duration);
    // While the window is open, so that it is done when it closes.
    naming.warm_up();
    let mut early = Early::of(&run);
    window
        .wait(&mut stop, TICK, |is_due| {
            naming.see_new_processes();
            naming.take_copies(&run.wanted, &run.graph);
            follow(sampler.as_mut(), &mut session);
            measure(&mut meter, &mut session);
            if early.is_due() {
                ask_early(&mut naming, &session, &run);
            }
            if is_due {
                progress(&session)
            } else {
                String::new()
            }
        })
        .await;
    signals::one_more_kills();
    let elapsed = window.elapsed();
    let ended = Instant::now();
    let ended_ns = now_ns();
    session.detach();
    log::debug!("detached {:?} after the end", ended.elapsed());
    let collected = task_stacks::collected(&session)?;
    let source = source_of(&run.graph, sampler.as_ref());
    log::debug!("collected {:?} after the end", ended.elapsed());
    let flame = fold(
        &run,
        &collected,
        naming,
        &source,
        Ended {
            elapsed,
            monotonic_ns: ended_ns,
            sample_ns: sample_ns(&run.graph, sampler.as_ref()),
        },
    );
    log::debug!("folded {:?} after the end", ended.elapsed());
    log::info!("{}", price(&meter.finish(&session)));
    Ok(flame)
}

/// When to look at what was collected until then: soon, and again and again, to find what is not wanted, and to ask for the
/// names, so that little is left at the end.
struct Early {
    next: Instant,
    pause: Duration,
    last: Instant,
}

impl Early {
    const EVERY: Duration = Duration::from_secs(4);
    const BEFORE_END: Duration = Duration::from_millis(800);

    fn of(run: &Run) -> Self {
        let now = Instant::now();
        let pause = if run.learns() {
            2 * TICK
        } else {
            Duration::from_secs(1)
        };
        Self {
            next: now + pause,
            pause,
            last: now + run.duration.saturating_sub(Self::BEFORE_END),
        }
    }

    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        if now < self.next {
            return false;
        }
        self.pause = (2 * self.pause).min(Self::EVERY);
        let regular = now + self.pause;
        self.next = if now < self.last {
            regular.min(self.last)
        } else {
            regular
        };
        true
    }
}

fn ask_early(naming: &mut Naming, session: &Session, run: &Run) {
    match task_stacks::stacks(session) {
        Ok(mut stacks) => {
            stacks.retain(|stack| naming.is_drawn(stack, &run.wanted, &run.graph));
            stacks.extend(naming.unwound());
            naming.ask(&stacks);
            naming.check_programs();
        }
        Err(error) => log::debug!("stacks until now: {error:#}"),
    }
}

fn request(run: &Run) -> Request {
    let mut config = Config::zeroed();
    config.sampling = run.wanted.sampling;
    config.governed = u32::from(run.max_overhead < 1.0);
    config.sampling.learns_stacks = u32::from(run.graph.is_of_functions());
    config.sampling.accepts = u32::from(run.graph.accepts);
    let stacks = room::stacks(run.graph.source, run.duration);
    let mut sizes = Sizes {
        stacks,
        more_stacks: stacks / 2,
        task_stacks: most_entries::<TaskStack>(room::MOST_COUNTS, stacks),
        ..Sizes::NONE
    };
    if config.sampling.copies != 0 {
        sizes.ring_bytes = room::copy_ring_bytes();
        config.sampling.copy_ns_per_kib = room::copy_ns_per_kib();
    }
    let mut windowed = None;
    if let Source::Blocks { least, most } = run.graph.source {
        let micros = |duration: Duration| u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
        config.sampling = Sampling {
            min_block_us: micros(least),
            max_block_us: micros(most),
            ..config.sampling
        };
        sizes.blocked = 16_384;
        windowed = Some(&OFF_CPU);
    }
    Request {
        probes: Vec::new(),
        config,
        sizes,
        windowed,
    }
}

fn attach(session: &mut Session, run: &Run) -> Result<Option<Sampler>> {
    match run.graph.source {
        Source::Samples { hertz } => Ok(Some(Sampler::start(session, hertz, &run.wanted.cpus)?)),
        Source::Blocks { .. } => {
            session.attach_windowed()?;
            Ok(None)
        }
    }
}

/// Who is asked for names of kernel functions. Blocks begin in our own program, whose way there has names only while it is
/// attached: they need the list.
fn namer(session: &mut Session, graph: &Graph) -> Option<Namer> {
    let Source::Samples { .. } = graph.source else {
        return None;
    };
    let namer = Namer::start(session);
    namer
        .inspect_err(|error| log::debug!("functions of the kernel are listed: {error:#}"))
        .ok()
}

fn follow(sampler: Option<&mut Sampler>, session: &mut Session) {
    if let Some(sampler) = sampler
        && let Err(error) = sampler.follow(session)
    {
        log::debug!("CPUs that came: {error:#}");
    }
}

fn progress(session: &Session) -> String {
    match task_stacks::tally(session) {
        Ok(tally) => format!(", {} collected", collected_until_now(&tally)),
        Err(_) => String::new(),
    }
}

/// Samples or blocks with their stacks, copied ones too.
const fn collected_until_now(tally: &Tally) -> u64 {
    tally.counted + tally.sent
}

/// What took the stacks, for the subtitle.
fn source_of(graph: &Graph, sampler: Option<&Sampler>) -> String {
    match sampler {
        Some(sampler) => format!(
            "{} Hz {} on {} CPUs",
            graph.hertz(),
            sampler.clock().name(),
            sampler.cpus()
        ),
        None => String::from("sched_switch"),
    }
}

/// When the window ended.
#[derive(Clone, Copy, Debug)]
struct Ended {
    elapsed: Duration,
    monotonic_ns: u64,
    sample_ns: Option<u64>,
}

/// How much time a sample stands for, if that is always the same: a CPU that does nothing counts no cycles, but its
/// timer goes on.
fn sample_ns(graph: &Graph, sampler: Option<&Sampler>) -> Option<u64> {
    let is_steady = sampler.is_some_and(|sampler| sampler.clock() == Clock::Cycles);
    is_steady.then(|| 1_000_000_000 / graph.hertz().max(1))
}

/// Blocks that have not ended: they count as long as they have lasted.
fn lasting(run: &Run, collected: &Collected, ended_ns: u64) -> Vec<(u32, TaskStack, u64)> {
    let Source::Blocks { least, most } = run.graph.source else {
        return Vec::new();
    };
    let blocks = collected.lasting.iter().map(|(thread, blocked)| {
        let ns = ended_ns.saturating_sub(blocked.since_ns);
        (*thread, blocked.stack, ns)
    });
    blocks
        .filter(|(_, _, ns)| (least..=most).contains(&Duration::from_nanos(*ns)))
        .collect()
}

fn fold(run: &Run, collected: &Collected, mut naming: Naming, source: &str, ended: Ended) -> Flame {
    let graph = &run.graph;
    let mut lasting = lasting(run, collected, ended.monotonic_ns);
    let of_other_length = collected.tally.short + (collected.lasting.len() - lasting.len()) as u64;
    let copied = naming.count_copies(&run.wanted, graph, &mut lasting);
    let counted = collected
        .stacks
        .iter()
        .chain(&copied)
        .map(|(stack, count)| (*stack, count.events, count.weight));
    let lasting = lasting.iter().map(|(_, stack, ns)| (*stack, 1, *ns));
    let mut wanted: Vec<_> = counted
        .chain(lasting)
        .filter(|(stack, _, _)| run.wanted.admits(stack))
        .collect();
    let left_out = left_out(&wanted);
    // Of what is not drawn nobody needs names, nor complaints that there are none.
    if graph.is_of_functions() {
        wanted.retain(|(stack, _, _)| graph.is_within(&naming.kernel_frames(stack)));
    }
    let stacks: Vec<TaskStack> = wanted.iter().map(|(stack, _, _)| *stack).collect();
    naming.resolve(&stacks);
    let mut folder = Folder::default();
    let mut drawn = 0;
    for (stack, events, ns) in &wanted {
        let weight = graph.weight(*events, *ns, ended.sample_ns);
        drawn += events;
        folder.add(naming.frames(stack, weight), weight);
    }
    let tally = &collected.tally;
    let not_kept = graph.weight(tally.map_full, tally.map_full_weight, ended.sample_ns);
    folder.add(vec![Arc::from("[not kept: the map is full]")], not_kept);
    complain(run, &naming, tally.not_copied, left_out);
    let stacks = folder.finish();
    if stacks.is_empty() {
        log::warn!("{}", graph.why_empty(of_other_length));
    }
    let what = match graph.source {
        Source::Samples { .. } => "samples",
        Source::Blocks { .. } => "blocks",
    };
    let lost = tally.map_full + tally.collisions + tally.left_out;
    let lasting = collected.lasting.len() as u64;
    let not_drawn = not_drawn(run, collected, &naming);
    log::debug!("{}", account(tally, lasting, not_drawn));
    Flame {
        title: graph.title.to_owned(),
        subtitle: format!(
            "{}, {:.1} s, {source}, {drawn} {what}, {lost} without stack",
            host(),
            ended.elapsed.as_secs_f64()
        ),
        unit: graph.unit,
        palette: graph.palette,
        profile: profile_of(graph, ended.elapsed),
        stacks,
    }
}

fn complain(run: &Run, naming: &Naming, not_copied: u64, left_out: LeftOut) {
    let copying = Copying {
        is_on: run.wanted.sampling.copies != 0,
        not_copied,
        depth: naming.stack_depth(),
    };
    let of_left_out =
        complaints::of_left_out(left_out, run.graph.is_of_functions(), run.max_overhead);
    for line in naming.complaints(copying).into_iter().chain(of_left_out) {
        log::warn!("{line}");
    }
}

/// What was timed without a stack, of these stacks with their events and nanoseconds.
fn left_out(stacks: &[(TaskStack, u64, u64)]) -> LeftOut {
    let mut sum = LeftOut::default();
    for (stack, events, ns) in stacks {
        sum.all_ns += ns;
        if stack.kernel == LEFT_OUT {
            sum.waits += events;
            sum.ns += ns;
        }
    }
    sum
}

/// What was counted and what was copied though it is not drawn, as only user space knows.
fn not_drawn(run: &Run, collected: &Collected, naming: &Naming) -> (u64, u64) {
    let stacks = collected.stacks.iter();
    let unwanted = stacks.filter(|(stack, _)| !run.wanted.admits(stack));
    let counted = unwanted.map(|(_, count)| count.events).sum();
    (counted, naming.unwanted_copies())
}

/// What became of every firing, in words, with how many that were counted and copied are not drawn: it takes the programs a
/// moment to know which do not belong into the graph, by patterns of names or functions of the kernel.
fn account(tally: &Tally, lasting: u64, (counted, copied): (u64, u64)) -> String {
    format!(
        "{} taken: {} idle, {} not wanted, {} counted, {} sent with a copy, {} without room, {} too short or too long, \
         {lasting} not ended, {} unexplained; not drawn are {counted} counted ones and {copied} copies; {} KiB of user stacks were copied, {} stacks more were not for want of \
         budget or room; {} kernel or user stacks lost by collision, {} left out to stay cheap",
        tally.taken,
        tally.idle,
        tally.filtered,
        tally.counted,
        tally.sent,
        tally.map_full,
        tally.short,
        tally.unexplained(lasting),
        tally.copied_bytes >> 10,
        tally.not_copied,
        tally.collisions,
        tally.left_out,
    )
}

fn profile_of(graph: &Graph, elapsed: Duration) -> Profile {
    let mut profile = match graph.unit {
        "us" => profile("off_cpu", "microseconds", elapsed),
        "ns" => profile("port_search", "nanoseconds", elapsed),
        unit => profile(unit, "count", elapsed),
    };
    if let Source::Samples { hertz } = graph.source {
        profile.period_ns = 1_000_000_000 / hertz;
    }
    profile
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copied_stacks_are_collected_ones() {
        let tally = Tally {
            counted: 2,
            sent: 40,
            ..Tally::ZERO
        };
        assert_eq!(collected_until_now(&tally), 42);
        let account = account(&tally, 1, (7, 8));
        assert!(account.starts_with("0 taken: 0 idle, "), "{account}");
        assert!(account.contains("40 sent with a copy"), "{account}");
        assert!(account.contains("-43 unexplained"), "{account}");
        let not_drawn = "not drawn are 7 counted ones and 8 copies";
        assert!(account.contains(not_drawn), "{account}");
    }
}
