//! `netprobe check`: attaches every probe for a moment and says what works here.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Result;
use clap::Args;
use netprobe_common::{config::Config, counters::Counters, record::Plain};
use serde_json::json;

use crate::{
    kernel::{
        attach::Attached,
        load::Sizes,
        privileges,
        session::{Request, Session},
    },
    probes::{self, PROBES},
    render,
    report::{Hook, Probe},
};

/// Options of `check`.
#[derive(Args, Clone, Debug)]
pub(super) struct Options {
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// Attaches everything, reports, and leaves nothing.
pub(super) fn run(options: &Options) -> Result<ExitCode> {
    privileges::check()?;
    privileges::lift_memlock();
    let request = Request {
        probes: PROBES.to_vec(),
        config: Config::zeroed(),
        sizes: Sizes::NONE,
        windowed: Some(&probes::connects::CANDIDATES),
    };
    let session = Session::start(&request)?;
    let mut probes = probes(&session, 0, &[])?;
    let connects = probes
        .iter_mut()
        .find(|probe| probe.name == probes::connects::SPEC.name());
    if let Some((probe, windowed)) = connects.zip(session.windowed()) {
        probe.hooks.push(hook(windowed));
    }
    let mut out = io::stdout().lock();
    if options.json {
        let report = json!({
            "schema": "netprobe.check/1",
            "netprobe": env!("CARGO_PKG_VERSION"),
            "kernel": crate::kernel::release(),
            "probes": probes.iter().map(render::jsonl::probe).collect::<Vec<_>>(),
        });
        serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        render::check::write(&mut out, &crate::kernel::release(), &probes)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The state of every probe of a session; `missed` is by position, where it is known.
pub(super) fn probes(
    session: &Session,
    decode_errors: u64,
    missed: &[Option<u64>],
) -> Result<Vec<Probe>> {
    let probes = session.probes().iter().enumerate();
    probes
        .map(|(index, (spec, hooks))| {
            Ok(Probe {
                name: spec.name(),
                about: spec.about,
                weight: spec.weight,
                hooks: hooks.iter().map(hook).collect(),
                counters: session.counters(spec).unwrap_or(Counters::ZERO),
                decode_errors,
                filtered_user: 0,
                unwritten: 0,
                missed: missed.get(index).copied().flatten(),
            })
        })
        .collect()
}

fn hook(attached: &Attached) -> Hook {
    Hook {
        sees: attached.hook.sees,
        required: attached.hook.required,
        state: attached.state(),
    }
}
