//! Graphs of what the kernel does to packets and connections: counted there, by reason and stack.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use netprobe_common::{
    config::Config,
    counters::{Count, StackKey},
    header::Kind,
    record::Plain,
};

use super::{
    super::{
        Global, filter,
        output::Reader,
        signals::{self, Stop},
        stream::{require, start},
    },
    Events as Options, host, measure, profile,
    progress::Window,
};
use crate::{
    aggregate::stacks::Folder,
    filter::Error,
    kernel::{
        cost::{LOOKS, Meter},
        load::Sizes,
        names::LiveNames,
        session::Request,
    },
    probes,
    render::{summary::price, text},
    report::{Flame, Palette},
};

/// The filter of the graph's probe.
pub(super) fn plan(kind: Kind, options: &filter::Options) -> Result<filter::Plan, Error> {
    let plan = options.plan(probes::of(kind))?;
    plan.must_fit("stacks are added up")?;
    Ok(plan)
}

/// Counts events until the time is over or a signal comes.
pub(super) async fn collect(
    global: &Global,
    kind: Kind,
    plan: filter::Plan,
    (options, reader): (&Options, Option<Reader>),
) -> Result<Flame> {
    let duration = options.common.duration;
    let mut stop = Stop::listen()?;
    stop.while_read(reader);
    let mut config = Config::zeroed();
    config.flame = 1;
    config.governed = u32::from(options.max_overhead < 1.0);
    let request = Request {
        probes: vec![probes::of(kind)],
        config,
        sizes: Sizes {
            stacks: 16_384,
            stack_counts: 8192,
            lives: if kind == Kind::Resets { 131_072 } else { 1 },
            ..Sizes::NONE
        },
        windowed: None,
    };
    let (mut session, _matcher) = start(&request, plan)?;
    require(&session)?;
    let stacks = session.take_stacks()?;
    let mut names = LiveNames::of(&session, Some(stacks));
    log::info!("ready: collecting stacks for {duration:?}, Ctrl-C draws at once");
    let mut meter = Meter::new(options.max_overhead, &session);
    let mut window = Window::begin(global, duration);
    // While the programs are there to be named, whose frames are left out.
    names.learn_symbols();
    window
        .wait(&mut stop, LOOKS, |_is_due| {
            measure(&mut meter, &mut session);
            String::new()
        })
        .await;
    signals::one_more_kills();
    let elapsed = window.elapsed();
    session.detach();
    let counts = session.stack_totals()?;
    let map_full = session.counters(probes::of(kind))?.map_full;
    let flame = fold(kind, &counts, &mut names, elapsed, map_full);
    log::info!("{}", price(&meter.finish(&session)));
    Ok(flame)
}

fn fold(
    kind: Kind,
    counts: &[(StackKey, Count)],
    names: &mut LiveNames,
    elapsed: Duration,
    map_full: u64,
) -> Flame {
    let mut folder = Folder::default();
    let mut events = map_full;
    let mut lost = map_full;
    folder.add(vec![Arc::from("[not kept: the map is full]")], map_full);
    for (key, count) in counts {
        events += count.events;
        let root = root(key, names);
        let mut frames = vec![root];
        if let Some(kernel) = names.drawn_frames(key.stack) {
            frames.extend(
                kernel
                    .iter()
                    .rev()
                    .map(|name| Arc::from(format!("{name}_[k]"))),
            );
        } else {
            lost += count.events;
            frames.push(Arc::from("[stack not taken]"));
        }
        folder.add(frames, weight(kind, count));
    }
    let lost = if lost > 0 {
        format!(", {lost} without stack")
    } else {
        String::new()
    };
    Flame {
        title: title(kind).to_owned(),
        subtitle: format!(
            "{}, {:.1} s, {events} events{lost}",
            host(),
            elapsed.as_secs_f64()
        ),
        unit: unit(kind),
        palette: Palette::Hot,
        profile: profile(unit(kind), "count", elapsed),
        stacks: folder.finish(),
    }
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

/// The width of a frame.
fn weight(kind: Kind, count: &Count) -> u64 {
    match kind {
        Kind::Retransmits => count.weight,
        _ => count.events,
    }
}

fn title(kind: Kind) -> &'static str {
    match kind {
        Kind::Retransmits => "TCP Retransmit Stacks",
        Kind::Resets => "TCP Reset Stacks",
        _ => "Packet Drop Stacks",
    }
}

fn unit(kind: Kind) -> &'static str {
    match kind {
        Kind::Retransmits => "segments",
        Kind::Resets => "resets",
        _ => "packets",
    }
}
