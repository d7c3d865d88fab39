//! `netprobe check`: attaches every probe for a moment and says what works here.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Result;
use caps::Capability;
use clap::Args;
use netprobe_common::{config::Config, counters::Counters, record::Plain};
use serde_json::json;

use super::{output::print, watch::READS_HOLDERS};
use crate::{
    filter::KnownReasons as _,
    kernel::{
        attach::Attached,
        load::Sizes,
        privileges,
        session::{Request, Session},
        symbols::Symbols,
    },
    probes::{self, PROBES},
    render,
    report::{Hook, Limit, Probe},
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
    let checked = check(options);
    // Whoever reads JSON learns it there, too.
    if let Err(error) = checked.as_ref().map_err(super::sentence)
        && options.json
    {
        let report = json!({ "probes": [], "limits": [], "cannot_run": error });
        print(|out| write_json(out, report))?;
    }
    checked
}

fn check(options: &Options) -> Result<ExitCode> {
    privileges::check()?;
    privileges::lift_memlock();
    let request = Request {
        probes: PROBES.to_vec(),
        // As commands ask for them: of what is not asked for the kernel checks, and refuses, nothing.
        config: Config {
            detail: 1,
            count: 1,
            ..Config::zeroed()
        },
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
    let limits = limits(&session);
    print(|out| show(out, options, &probes, &limits))?;
    Ok(ExitCode::SUCCESS)
}

fn show(out: &mut dyn Write, options: &Options, probes: &[Probe], limits: &[Limit]) -> Result<()> {
    if options.json {
        let limits = limits.iter();
        let report = json!({
            "probes": probes.iter().map(render::jsonl::probe).collect::<Vec<_>>(),
            "limits": limits.map(|Limit { what, why }| json!({ "what": what, "why": why })).collect::<Vec<_>>(),
        });
        write_json(out, report)?;
    } else {
        render::check::write(out, &crate::kernel::release(), probes, limits)?;
    }
    Ok(())
}

fn write_json(out: &mut dyn Write, mut report: serde_json::Value) -> Result<()> {
    report["schema"] = "netprobe.check/1".into();
    report["netprobe"] = env!("CARGO_PKG_VERSION").into();
    report["kernel"] = crate::kernel::release().into();
    serde_json::to_writer_pretty(&mut *out, &report).map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

/// What no probe sees of this kernel or with these privileges.
fn limits(session: &Session) -> Vec<Limit> {
    let mut limits = Vec::new();
    let mut add = |what, why: Option<String>| {
        limits.extend(why.map(|why| Limit { what, why }));
    };
    let needs = |capabilities: &[Capability]| {
        let lacking = privileges::lacking(capabilities)?;
        Some(format!("needs {lacking}"))
    };
    let restricted = "the kernel hides their addresses (kernel.kptr_restrict)".to_owned();
    add(
        "names of kernel functions (LOCATION, stacks)",
        Symbols::are_hidden().then(|| needs(&[Capability::CAP_SYSLOG]).unwrap_or(restricted)),
    );
    add(
        "processes of other users that hold a socket",
        needs(&READS_HOLDERS),
    );
    add(
        "other network namespaces' counters and listeners",
        needs(&[Capability::CAP_SYS_ADMIN]),
    );
    let without = |is_there: bool, why: &str| (!is_there).then(|| why.to_owned());
    add(
        "why packets are dropped (REASON of drops)",
        without(
            !session.drop_reasons().all().is_empty(),
            "this kernel does not say, as those from 5.17 on do; LOCATION is the function",
        ),
    );
    add(
        "why connections are reset (REASON of resets)",
        without(
            !session.reset_reasons().all().is_empty(),
            "this kernel does not say, as those from 6.10 on do",
        ),
    );
    add(
        "the control group of a socket",
        without(
            session.has_socket_cgroups(),
            "this kernel does not keep it: that of the process is shown",
        ),
    );
    limits
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
