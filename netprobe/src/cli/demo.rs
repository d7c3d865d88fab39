//! `netprobe demo`: an incident as it happens, without harm to anybody.

use std::{
    io::{self, BufRead, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use super::{diagnose, output::print, parse_duration};
use crate::{
    demo::{
        self, SCENARIOS, Scenario,
        cast::Part,
        incident::{Incident, find_tool},
        needs,
    },
    filter::Error,
    kernel::{cost, privileges::CannotRun},
};

pub(super) const EXAMPLES: &str = "\
Examples:
  netprobe demo --list
  netprobe demo accept-queue-overflow
  netprobe demo port-search-cost --hold        look at it with other tools, too";

/// Options of `demo`.
#[derive(Args, Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub(super) struct Options {
    /// The incident, as --list names it.
    #[arg(value_name = "SCENARIO", required_unless_present = "list")]
    scenario: Option<String>,
    /// List the incidents that can be reproduced.
    #[arg(long, conflicts_with_all = ["scenario", "hold", "duration"])]
    list: bool,
    /// Only reproduce it, until Ctrl-C; Enter applies the cure.
    #[arg(long)]
    hold: bool,
    /// This machine may be harmed: allows incidents that change settings of all of it.
    #[arg(long)]
    disposable: bool,
    /// How long to watch it.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// What a process of a demo is told.
#[derive(Args, Clone, Debug)]
pub(super) struct Play {
    part: String,
}

/// Does what a process of a demo is told to.
pub(super) fn play(play: &Play) -> Result<ExitCode> {
    let part: Part = serde_json::from_str(&play.part).context("read the part to play")?;
    part.play()?;
    Ok(ExitCode::SUCCESS)
}

/// Lists, or reproduces.
pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let Some(id) = &options.scenario else {
        print(|out| list(out, options.json))?;
        return Ok(ExitCode::SUCCESS);
    };
    let Some(scenario) = demo::find(id) else {
        let why = format!("there is no demo of {id:?}: `netprobe demo --list` names all");
        return Err(Error::elsewhere(why).into());
    };
    if !rustix::process::geteuid().is_root() {
        return Err(CannotRun::new("a demo makes network namespaces: run with sudo").into());
    }
    cost::leave_out_children();
    let mut incident = Incident::start(scenario, options.disposable)?;
    incident.wait_until_it_shows()?;
    print(|out| introduce(out, scenario, &incident, options.json))?;
    if options.hold {
        return hold(scenario, incident, options.json);
    }
    let inodes = incident.network().hosts().map(|(_, netns)| netns.inode());
    let only = inodes.collect::<Result<Vec<u32>>>()?;
    let code = diagnose::run(&diagnose::Options::of_demo(
        options.duration,
        options.json,
        only,
    ))?;
    print(|out| fare(out, &incident, options.json))?;
    Ok(code)
}

fn list(out: &mut dyn Write, is_json: bool) -> Result<()> {
    for scenario in SCENARIOS {
        let stage = (scenario.stage)();
        let mut tools = stage.tools();
        tools.retain(|tool| find_tool(tool).is_none());
        let is_harmful = !stage.machine.is_empty();
        let modules = needs::modules(&stage);
        if is_json {
            let line = json!({
                "id": scenario.id,
                "about": scenario.about,
                "cure": scenario.cure,
                "missing": tools,
                "modules": modules,
                "disposable": is_harmful,
            });
            writeln!(out, "{line}")?;
            continue;
        }
        write!(out, "{:<26}{}", scenario.id, scenario.about)?;
        if is_harmful {
            write!(out, " (changes the machine: needs --disposable)")?;
        }
        if !modules.is_empty() {
            write!(out, " (uses {})", modules.join(", "))?;
        }
        if !tools.is_empty() {
            write!(out, " (needs {})", tools.join(", "))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Says what goes on, and where.
fn introduce(
    out: &mut dyn Write,
    scenario: &Scenario,
    incident: &Incident,
    is_json: bool,
) -> Result<()> {
    if is_json {
        let hosts: Vec<_> = incident
            .network()
            .hosts()
            .map(|(host, netns)| {
                Ok(json!({"name": host.name(), "netns": netns.inode()?, "path": netns.path()}))
            })
            .collect::<Result<_>>()?;
        let processes: Vec<_> = incident.actors().iter().map(|actor| {
            json!({"name": actor.process.name, "pid": actor.pid(), "host": actor.process.host.name()})
        }).collect();
        let line = json!({"schema": "netprobe.demo/1", "id": scenario.id, "about": scenario.about, "hosts": hosts, "processes": processes});
        writeln!(out, "{line}")?;
    } else {
        writeln!(out, "{}: {}", scenario.id, scenario.about)?;
        for (host, netns) in incident.network().hosts() {
            write!(out, "  {:<8}netns {}", host.name(), netns.inode()?)?;
            for actor in incident
                .actors()
                .iter()
                .filter(|actor| actor.process.host == host)
            {
                write!(out, "  {} (pid {})", actor.process.name, actor.pid())?;
            }
            writeln!(out)?;
        }
    }
    Ok(())
}

/// What the processes themselves met.
fn fare(out: &mut dyn Write, incident: &Incident, is_json: bool) -> Result<()> {
    for (process, tally) in incident.tallies() {
        if is_json {
            writeln!(out, "{}", json!({"process": process.name, "tally": tally}))?;
        } else {
            write!(
                out,
                "  {}: {} started, {} answered",
                process.name, tally.started, tally.answered
            )?;
            for (errno, count) in &tally.failed {
                write!(
                    out,
                    ", {count} failed: {}",
                    io::Error::from_raw_os_error(*errno)
                )?;
            }
            if tally.gave_up > 0 {
                write!(out, ", {} gave up", tally.gave_up)?;
            }
            writeln!(out, ", slowest {} ms", tally.slowest_ms)?;
        }
    }
    Ok(())
}

/// Lets it go on until standard input ends; each line in it applies the cure.
fn hold(scenario: &Scenario, mut incident: Incident, is_json: bool) -> Result<ExitCode> {
    for (others, line) in io::stdin().lock().lines().enumerate() {
        line.context("read standard input")?;
        print(|out| fare(out, &incident, is_json))?;
        incident.cure(scenario, others)?;
        incident.wait_until_it_shows()?;
        print(|out| introduce(out, scenario, &incident, is_json))?;
    }
    print(|out| fare(out, &incident, is_json))?;
    Ok(ExitCode::SUCCESS)
}
