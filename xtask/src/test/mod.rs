//! `cargo xtask test`: every test that there is, in tiers from quick to thorough.
//!
//! A tier that fails does not stop the others. The last line of the output sums all of them up.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::kernels::roots::Programs;
use crate::{check, dist, ebpf, kernels, process, setup, vm, workspace};
use tally::Tally;

mod cargo;
mod matrix;
mod shown;
mod tally;

/// There is a kprobe event source where the kernel was built with kprobes.
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe";

const SLOW_BCC: &str = "bcc compiles for a quarter of an hour where virtual machines have no \
    acceleration; `cargo xtask test bcc` does it all the same";

/// Run the tests, by tier.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The tiers to run, in this order [default: all of them]
    #[arg(value_enum, value_name = "TIER")]
    tiers: Vec<Tier>,
    #[command(flatten)]
    options: Options,
}

/// What the tiers themselves need to know.
#[derive(clap::Args)]
struct Options {
    /// Run the matrix on these kernels only, such as 6.12, and the scenarios on them
    #[arg(long = "kernel", value_name = "VERSION")]
    kernels: Vec<String>,
    /// Arguments for the test programs of the tiers cli, replay, live, scenarios and matrix, such as a name
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Tier {
    /// Install what the other tiers need
    Setup,
    /// Formatting, lints, layering, and whether the committed eBPF object belongs to its sources
    Check,
    /// The unit tests of every crate, beside the code
    Unit,
    /// The command line: help, errors, exit codes
    Cli,
    /// Recorded events through every output format, compared with stored results
    Replay,
    /// Real traffic through real probes on this kernel; needs root
    Live,
    /// The live tests inside each kernel of the matrix, in virtual machines
    Matrix,
    /// The commands under the names of bcc beside the tools of bcc, in a virtual machine
    Bcc,
    /// nginx and php-fpm of Debian with all local ports taken, in a virtual machine
    Web,
    /// Incidents reproduced, recognised and cured: on this kernel, or in machines with --kernel
    Scenarios,
    /// What is copied to other machines, on the oldest kernel
    Dist,
}

impl Tier {
    fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Runs it, by name or among all the others.
    fn run(self, options: &Options, is_named: bool) -> Result<Tally> {
        match self {
            Self::Bcc if !is_named && vm::is_emulated()? => Ok(Tally::skip(SLOW_BCC)),
            Self::Setup => Ok(of_status(setup::run(&setup::Args {})?, "setup")),
            Self::Check => Ok(check()),
            Self::Unit => cargo::unit(),
            Self::Cli => target("cli", options),
            Self::Replay => target("replay", options),
            Self::Live => as_root("live", options),
            Self::Matrix => matrix::run("live", options),
            Self::Bcc => matrix::beside(Programs::Bcc, options),
            Self::Web => matrix::beside(Programs::Web, options),
            Self::Scenarios if options.kernels.is_empty() => as_root("scenarios", options),
            Self::Scenarios => matrix::run("scenarios", options),
            Self::Dist => dist(),
        }
    }
}

/// How a tier went.
struct Done {
    name: String,
    tally: Tally,
    time: Duration,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> ExitCode {
    let tiers = match args.tiers.as_slice() {
        [] => Tier::value_variants(),
        some => some,
    };
    let is_named = !args.tiers.is_empty();
    let mut done = Vec::new();
    for tier in tiers {
        let name = tier.name();
        println!("\n== {name}");
        let start = Instant::now();
        let tally = tier.run(&args.options, is_named).unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            Tally::failure(format!("{error:#}"))
        });
        let time = start.elapsed();
        done.push(Done { name, tally, time });
    }
    summarize(done)
}

/// Prints what failed, what was skipped, a line for each tier, and the sum.
fn summarize(done: Vec<Done>) -> ExitCode {
    println!("\n== summary");
    let mut sum = Tally::default();
    for Done { name, tally, time } in done {
        let seconds = time.as_secs_f64();
        println!("{name:<10}{:<40}{seconds:7.1} s", tally.to_string());
        sum += tally.of(&name);
    }
    for reason in &sum.reasons {
        println!("skipped: {reason}");
    }
    for test in &sum.unsteady {
        println!("unsteady: {test} failed, and passed when run again");
    }
    for failure in &sum.failures {
        println!("failed: {failure}");
    }
    println!("{sum}");
    if sum.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Where all that tests print is kept.
fn logs() -> Result<PathBuf> {
    let logs = workspace::target().join("tests");
    fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
    Ok(logs)
}

fn check() -> Tally {
    let mut sum = Tally::default();
    let object = std::iter::once_with(|| ("eBPF object", ebpf::check_committed()));
    for (name, result) in check::each().chain(object) {
        sum += match result {
            Ok(()) => Tally::pass(),
            Err(error) => {
                eprintln!("error: {name}: {error:#}");
                Tally::failure(name)
            }
        };
    }
    sum
}

/// A target of the test crate that needs the program under test.
fn target(name: &str, options: &Options) -> Result<Tally> {
    cargo::target(name, &[binary()?], &options.arguments)
}

/// A target of the test crate that counts what the machine does, and so runs alone.
fn as_root(name: &str, options: &Options) -> Result<Tally> {
    if !process::is_root()? {
        return Ok(Tally::skip(format!("the tests {name} need root")));
    }
    let mut environment = vec![binary()?];
    // Without kprobes some tests must skip; where nothing is missing a skip would hide a fault.
    if Path::new(KPROBES).exists() {
        environment.push(("NETPROBE_REQUIRE_LIVE", "1".to_owned()));
    }
    let mut arguments = vec!["--test-threads=1".to_owned()];
    arguments.extend(options.arguments.iter().cloned());
    let tally = cargo::target(name, &environment, &arguments)?;
    let Some(failed) = tally.worth_repeating() else {
        return Ok(tally);
    };
    println!("\n== {name}, again what failed");
    let mut arguments = vec!["--test-threads=1".to_owned(), "--exact".to_owned()];
    arguments.extend(failed.iter().cloned());
    let again = cargo::target(name, &environment, &arguments)?;
    Ok(tally.repeated(again))
}

/// The variable that names the program under test.
fn binary() -> Result<(&'static str, String)> {
    let file = vm::build_netprobe()?;
    Ok(("NETPROBE_BIN", file.display().to_string()))
}

/// Makes what is copied to other machines, and has the program look at the oldest kernel, and draw what it does.
fn dist() -> Result<Tally> {
    let program = dist::make()?;
    let oldest = kernels::versions().next().context("there are no kernels")?;
    let script = "/bin/netprobe diagnose --duration 2s &&
        timeout 60 /bin/netprobe flame cpu --duration 1s -o /tmp/cpu.svg && cat /tmp/cpu.svg";
    let command = ["/bin/sh", "-c", script].map(str::to_owned);
    let mut machine = vm::Machine::new(kernels::get(oldest)?, command.into());
    machine.files.push((program, "/bin/netprobe".to_owned()));
    let mut told = Vec::new();
    let outcome = machine.run(&mut told, io::stderr())?;
    let told = String::from_utf8_lossy(&told);
    let is_good = outcome.status == 0
        && ["nothing wrong found", "</svg>"]
            .iter()
            .all(|part| told.contains(part));
    Ok(if is_good {
        Tally::pass()
    } else {
        eprintln!("{told}");
        Tally::failure(format!("on {oldest} it ended with {}", outcome.status))
    })
}

fn of_status(status: ExitCode, name: &str) -> Tally {
    if status == ExitCode::SUCCESS {
        Tally::pass()
    } else {
        Tally::failure(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tier_is_named_with_a_sentence() {
        for tier in Tier::value_variants() {
            let value = tier.to_possible_value().expect("a name");
            assert!(value.get_help().is_some(), "{}", value.get_name());
        }
    }
}
