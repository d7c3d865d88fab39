//! `--count` with `--by` or `--interval`: totals that the kernel counted, in other groups, or
//! while they grow.

use std::{
    io::Write,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use netprobe_common::{
    counters::{Count, CountKey, FlowKey},
    record::bytes_of,
};

use super::{
    super::{Global, check, filter, output::Output, signals::Stop},
    Options, require, start,
};
use crate::{
    aggregate::{
        groups::{self, By},
        summary,
    },
    filter::Error,
    kernel::{
        names::LiveNames,
        privileges,
        session::{Request, Session},
    },
    probes::ProbeSpec,
    render,
    report::{Summary, Total},
};

/// How often modules are looked for when there is no interval.
const LOOK: Duration = Duration::from_secs(1);

/// Counts until its time is over or a signal comes.
pub(super) fn run(
    global: &Global,
    spec: &'static ProbeSpec,
    options: &Options,
    plan: filter::Plan,
    mut request: Request,
) -> Result<ExitCode> {
    let by = (!options.by.is_empty())
        .then(|| By::new(spec.kind, &options.by))
        .transpose()
        .map_err(|unknown| {
            let known = unknown.known.join(", ");
            let words = options.by.join(",");
            Error::elsewhere(format!(
                "--by {words}: `{}` is counted by {known}",
                spec.name()
            ))
        })?;
    let has_flows = by.as_ref().is_some_and(|by| by.needs_flows(spec.kind));
    if has_flows {
        request.config.count = 0;
        request.config.flows = 1;
        request.sizes.flow_counts = 65_536;
    }
    privileges::check()?;
    privileges::lift_memlock();
    let counting = Counting {
        spec,
        options,
        by,
        has_flows,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    runtime.block_on(counting.watch(global, &request, plan))?;
    Ok(ExitCode::SUCCESS)
}

struct Counting<'a> {
    spec: &'static ProbeSpec,
    options: &'a Options,
    by: Option<By>,
    has_flows: bool,
}

/// What the kernel has counted.
#[derive(Default)]
struct Reading {
    groups: Vec<(CountKey, Count)>,
    flows: Vec<(FlowKey, Count)>,
}

impl Reading {
    fn since(&self, before: &Self) -> Self {
        Self {
            groups: groups::since(&self.groups, &before.groups, |key| bytes_of(key).to_vec()),
            flows: groups::since(&self.flows, &before.flows, |key| bytes_of(key).to_vec()),
        }
    }
}

impl Counting<'_> {
    async fn watch(&self, global: &Global, request: &Request, plan: filter::Plan) -> Result<()> {
        let mut stop = Stop::listen()?;
        let mut out = self.options.open()?;
        let (mut session, _nothing_left) = start(request, plan)?;
        require(&session)?;
        super::watch::announce(&session, self.spec);
        let mut names = LiveNames::new(session.drop_reasons().clone(), None)
            .with_reset_reasons(session.reset_reasons().clone());
        let started = Instant::now();
        let mut shown = Reading::default();
        let mut next = self.options.interval.map(|interval| started + interval);
        while self.wait(&mut stop, started, next).await {
            session.flush_log();
            session.attach_modules();
            if let Some(at) = next.filter(|at| *at <= Instant::now()) {
                let reading = self.read(&session)?;
                let totals = self.totals(reading.since(&shown), &mut names);
                self.show(&mut out, &totals)?;
                shown = reading;
                next = self.options.interval.map(|interval| at + interval);
            }
        }
        stop.second_kills();
        let missed = session.detach();
        let reading = self.read(&session)?;
        let summary = Summary {
            elapsed: started.elapsed(),
            probes: check::probes(&session, 0, &missed)?,
            totals: self.totals(reading, &mut names),
            connects: None,
            cost: None,
        };
        self.end(&mut out, &summary, global)
    }

    fn read(&self, session: &Session) -> Result<Reading> {
        Ok(if self.has_flows {
            Reading {
                flows: session.flow_totals()?,
                groups: Vec::new(),
            }
        } else {
            Reading {
                groups: session.totals()?,
                flows: Vec::new(),
            }
        })
    }

    fn totals(&self, reading: Reading, names: &mut LiveNames) -> Vec<Total> {
        let totals = if self.has_flows {
            groups::flows(reading.flows, names)
        } else {
            summary::totals(reading.groups, names)
        };
        match &self.by {
            Some(by) => by.join(totals, self.options.top),
            None => totals,
        }
    }

    fn show(&self, out: &mut Output, totals: &[Total]) -> Result<()> {
        let now = super::super::open::now();
        if self.options.json {
            render::jsonl::interval(out, now, totals)?;
        } else {
            render::summary::interval(out, now, self.spec.weight, totals)?;
        }
        Ok(out.flush()?)
    }

    fn end(&self, out: &mut Output, summary: &Summary, global: &Global) -> Result<()> {
        if self.options.json {
            render::jsonl::summary(out, summary)?;
        } else {
            if self.options.interval.is_some() {
                writeln!(out, "all of the run")?;
            }
            render::summary::totals(out, summary)?;
        }
        out.flush()?;
        if !global.quiet {
            render::summary::footer(&mut anstream::stderr(), summary)?;
        }
        Ok(())
    }

    /// Waits for the end of an interval, or a while; false if the run is over.
    async fn wait(&self, stop: &mut Stop, started: Instant, next: Option<Instant>) -> bool {
        let end = self.options.duration.map(|duration| started + duration);
        let look = Instant::now() + LOOK;
        let wake = next.map_or(look, |next| next.min(look));
        let wake = end.map_or(wake, |end| end.min(wake));
        tokio::select! {
            biased;
            () = stop.wait() => false,
            () = tokio::time::sleep_until(wake.into()) => end.is_none_or(|end| Instant::now() < end),
        }
    }
}
