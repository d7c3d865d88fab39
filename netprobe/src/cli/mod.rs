//! The command line: what can be asked, and the exit code of the answer.

use std::{error::Error, ffi::OsString, io, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use netprobe_common::header::Kind;

use crate::{
    kernel::privileges::{self, CannotRun},
    symbols::client::{COMMAND, NO_DEBUG_INFO},
};

mod absent;
mod bcc;
mod check;
mod culprit;
mod demo;
mod diagnose;
mod explain;
mod filter;
mod flame;
mod generate;
mod later;
mod logging;
mod open;
mod output;
mod reference;
mod sample;
mod schema;
mod signals;
mod stack;
mod stream;
mod usage;
mod vigil;
mod watch;

/// Says why a Linux server's TCP is failing.
///
/// Watches the kernel with eBPF while it drops, retransmits and refuses, and shows which
/// connection, whose, and why. Needs root (or CAP_BPF and CAP_PERFMON) and a kernel from 5.10 on
/// with BTF. Nothing on the machine is changed, and nothing stays behind.
#[derive(Debug, Parser)]
#[command(name = "netprobe", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  netprobe diagnose                       what is wrong, why, and what to change
  netprobe demo accept-queue-overflow     an incident to try it on, in namespaces of its own
  netprobe check                          what this kernel lets us see
  netprobe drops                          every dropped TCP packet, with the kernel's reason
  netprobe listeners --duration 30s       who is being turned away, by which listener
  netprobe retransmits --count            totals by cause, counted in the kernel, until Ctrl-C
  netprobe connects --port 5432 --json    connects to (or from) port 5432 as JSON Lines
  netprobe drops --filter 'dport = :443 and not src 10.0.0.0/8'
  netprobe flame drops -o drops.svg       where in the kernel packets are dropped

Exit codes: 0 normal end (also Ctrl-C), 1 failure, 2 usage, 3 this environment cannot run it,
4 `diagnose --fail-on` found something that severe.";

/// Options that mean the same everywhere.
#[derive(Args, Clone, Debug)]
struct Global {
    /// More about what netprobe itself does (repeat for more).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Nothing on stderr but errors.
    #[arg(short, long, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What is wrong, why, and what to change: watches for a while and gives the verdict.
    ///
    /// Without root it looks into its own network namespace only: others need CAP_SYS_ADMIN and CAP_SYS_PTRACE.
    Diagnose(diagnose::Options),
    /// What a finding means, how it was recognised, the fixes and their risks.
    Explain(explain::Options),
    /// TCP packets that the kernel threw away: reason, place, connection.
    #[command(
        after_help = "Examples:\n  netprobe drops --stack --json\n  netprobe drops --count --duration 10s\n  netprobe drops --filter 'reason != QUEUE_PURGE'   without what queues of closed sockets held (6.6 and later)\n\nACKs that are NOT_SPECIFIED in CLOSE-WAIT are no loss: their client ended its side first.\nTo leave them out, add to the filter: and not (reason = NOT_SPECIFIED and state = CLOSE-WAIT)"
    )]
    Drops(stream::Options),
    /// Segments that TCP sent again, or could not: data, SYN, SYN-ACK and tail loss probes.
    #[command(
        after_help = "Examples:\n  netprobe retransmits --filter 'dst 10.0.0.0/8'\n  netprobe retransmits --count --by daddr --duration 10s"
    )]
    Retransmits(stream::Options),
    /// Outgoing connections: latency, failures by errno, SYN attempts, port search.
    #[command(
        after_help = "Examples:\n  netprobe connects --comm php-fpm\n  netprobe connects --filter 'dst 10.0.0.2 and dport = :5432'\n  netprobe connects --count --by daddr,dport,errno --interval 1s"
    )]
    Connects(stream::Options),
    /// Connections that a listener refused because a queue was full.
    #[command(
        after_help = "Examples:\n  netprobe listeners --port 443\n  netprobe listeners --count --by listener --duration 10s"
    )]
    Listeners(stream::Options),
    /// Connections refused because the conntrack table is full.
    #[command(after_help = "Examples:\n  netprobe conntrack --count --by daddr --duration 10s")]
    Conntrack(stream::Options),
    /// Resets sent and received: why, in which state, after how long an idle time.
    #[command(
        after_help = "Examples:\n  netprobe resets --comm nginx --stack\n  netprobe resets --count --by cause,comm --duration 10s"
    )]
    Resets(stream::Options),
    /// Connections from open to close: duration, bytes, retransmits, who closed first, result.
    #[command(
        after_help = "Examples:\n  netprobe lifetimes --port 443\n  netprobe lifetimes --open --longest"
    )]
    Lifetimes(Lifetimes),
    /// Entries into TIME_WAIT: which connection, whose, on which side, and refusals.
    #[command(
        after_help = "Examples:\n  netprobe time-wait --count --by role,process --duration 10s"
    )]
    TimeWait(stream::Options),
    /// Changes of TCP states: from which to which, after how long, whose.
    #[command(after_help = "Examples:\n  netprobe states --filter 'state = CLOSE-WAIT'")]
    States(stream::Options),
    /// Connections that came in: who accepted them, after how long a wait.
    #[command(
        after_help = "Examples:\n  netprobe accepts --port 443 --columns +netns,cgroup\n  netprobe accepts --count --by service_port,process --interval 1s"
    )]
    Accepts(stream::Options),
    /// Flame graphs: what CPUs do, where tasks wait, where in the kernel it happens.
    Flame(flame::Options),
    #[command(flatten)]
    Bcc(bcc::Command),
    /// What this kernel and these privileges allow, probe by probe.
    Check(check::Options),
    /// Reproduces an incident in network namespaces of its own.
    #[command(after_help = demo::EXAMPLES)]
    Demo(demo::Options),
    /// What a process of a demo does.
    #[command(hide = true)]
    Play(demo::Play),
    /// JSON Schema of what --json writes, for every stream.
    Schema,
    /// Man pages and shell completions.
    #[command(hide = true)]
    Generate(generate::Options),
}

/// Options of `lifetimes`.
#[derive(Args, Clone, Debug)]
struct Lifetimes {
    #[command(flatten)]
    stream: stream::Options,
    /// List the connections that are open now instead, also those from before netprobe.
    #[arg(long, conflicts_with_all = ["duration", "count", "stack"])]
    open: bool,
    /// With --open: the longest open first; unknown ages as high as the numbers of their sockets allow.
    #[arg(long, requires = "open")]
    longest: bool,
}

/// A duration that is not nothing: `10s`, `5m`, `1h30m`, or a bare number of seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    match parse_time(text)? {
        Duration::ZERO => Err("in no time at all there is nothing to see".to_owned()),
        duration => Ok(duration),
    }
}

/// What lasts longer lasts for ever; clocks cannot hold times that are much later.
const LONGEST: Duration = Duration::from_hours(24 * 365 * 100);

fn parse_time(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok();
    if let Some(seconds) = seconds {
        let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
        return Ok(duration.min(LONGEST));
    }
    let duration: jiff::SignedDuration = text
        .parse()
        .map_err(|_error| "expected a duration such as 10s, 5m or 1h30m".to_owned())?;
    let duration = Duration::try_from(duration);
    let duration = duration.map_err(|_error| "a duration cannot be negative".to_owned())?;
    Ok(duration.min(LONGEST))
}

/// Parses the arguments, does what they ask, and returns the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let done = stack::with_room(|| run_all(arguments)).context("start a thread with more stack");
    done.unwrap_or_else(|error| {
        logging::init_for_errors();
        conclude(&error)
    })
}

fn run_all(arguments: Vec<OsString>) -> ExitCode {
    // netprobe itself starts it, each time: knowing all other commands costs more than the start.
    if let [_, command, options @ ..] = &arguments[..]
        && command == COMMAND
    {
        return symbol_worker(options);
    }
    let cli = match parse(bcc::expand(arguments)) {
        Ok(cli) => cli,
        Err(error) => {
            logging::init_for_errors();
            return usage::conclude(&error);
        }
    };
    logging::init(&cli.global);
    signals::survive_file_limits();
    match dispatch(&cli) {
        Ok(code) => code,
        Err(error) => conclude(&error),
    }
}

fn parse(arguments: Vec<OsString>) -> Result<Cli, clap::Error> {
    let mut definition = definition();
    let mut matches = definition.try_get_matches_from_mut(arguments)?;
    let cli = Cli::from_arg_matches_mut(&mut matches);
    cli.map_err(|error| error.format(&mut definition))
}

/// Looks up names of functions for another netprobe.
fn symbol_worker(options: &[OsString]) -> ExitCode {
    let uses_debug_info = !options.iter().any(|option| option == NO_DEBUG_INFO);
    signals::leave_to_parent();
    match crate::symbols::worker::run(uses_debug_info) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => conclude(&error),
    }
}

fn dispatch(cli: &Cli) -> Result<ExitCode> {
    let global = &cli.global;
    match &cli.command {
        Command::Diagnose(options) => diagnose::run(options),
        Command::Explain(options) => explain::run(options),
        Command::Drops(options) => stream::run(global, Kind::Drops, options),
        Command::Retransmits(options) => stream::run(global, Kind::Retransmits, options),
        Command::Connects(options) => stream::run(global, Kind::Connects, options),
        Command::Listeners(options) => stream::run(global, Kind::Listeners, options),
        Command::Conntrack(options) => stream::run(global, Kind::Conntrack, options),
        Command::Resets(options) => stream::run(global, Kind::Resets, options),
        Command::Lifetimes(options) if options.open => open::run(&options.stream, options.longest),
        Command::Lifetimes(options) => stream::run(global, Kind::Lifetimes, &options.stream),
        Command::TimeWait(options) => stream::run(global, Kind::TimeWait, options),
        Command::States(options) => stream::run(global, Kind::States, options),
        Command::Accepts(options) => stream::run(global, Kind::Accepts, options),
        Command::Flame(options) => flame::run(global, options),
        Command::Bcc(command) => bcc::run(global, command),
        Command::Check(options) => check::run(options),
        Command::Demo(options) => demo::run(options),
        Command::Play(part) => demo::play(part),
        Command::Schema => schema::run(),
        Command::Generate(options) => generate::run(options),
    }
}

/// Whether whoever read along has seen enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// An error with its causes; those that the text before them has already are not said twice.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Says what went wrong, in one line, and chooses the exit code.
fn conclude(error: &anyhow::Error) -> ExitCode {
    if is_closed_pipe(error) {
        return ExitCode::SUCCESS;
    }
    if let Some(why) = privileges::out_of_files(error) {
        log::debug!("{}", sentence(error));
        return conclude(&why.into());
    }
    log::error!("{}", sentence(error));
    let cannot_run = error.is::<CannotRun>() || error.chain().any(<dyn Error>::is::<CannotRun>);
    let is_usage = error.chain().any(<dyn Error>::is::<crate::filter::Error>);
    ExitCode::from(match (cannot_run, is_usage) {
        (true, _) => 3,
        (_, true) => 2,
        (false, false) => 1,
    })
}

/// The command line definition.
fn definition() -> clap::Command {
    reference::complete(Cli::command())
}

/// Colour on the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shell {
    /// bash(1)
    Bash,
    /// zsh(1)
    Zsh,
    /// fish(1)
    Fish,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        definition().debug_assert();
    }

    /// The words of an example. What comes after three spaces explains it, and the shell does the rest.
    fn words(line: &str) -> Vec<String> {
        let ends = ["   ", " > ", " | "]
            .iter()
            .filter_map(|end| line.find(end));
        let line = &line[..ends.min().unwrap_or(line.len())];
        let parts = line.split('\'').enumerate();
        parts
            .flat_map(|(index, part)| match index % 2 {
                0 => part.split_whitespace().map(str::to_owned).collect(),
                _ => vec![part.to_owned()],
            })
            .collect()
    }

    #[test]
    fn the_examples_of_the_help_are_taken() {
        let mut count = 0;
        for command in definition().get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            let lines = help.lines().map(str::trim_start);
            for line in lines.filter(|line| line.starts_with("netprobe ")) {
                let taken = definition().try_get_matches_from(words(line));
                assert!(taken.is_ok(), "{line}: {}", taken.unwrap_err());
                count += 1;
            }
        }
        assert!(count > 30, "{count}");
    }

    #[test]
    fn no_cause_is_said_twice() {
        let error = anyhow::anyhow!("no memory");
        let error = error.context("create `X`").context("map error: create `X`");
        let error = error.context("load");
        let expected = "load: map error: create `X`: no memory";
        assert_eq!(sentence(&error), expected);
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        let cases = [
            ("10", Duration::from_secs(10)),
            ("0.5", Duration::from_millis(500)),
            ("10s", Duration::from_secs(10)),
            ("250ms", Duration::from_millis(250)),
            ("5m", Duration::from_mins(5)),
            ("1h30m", Duration::from_mins(90)),
            ("18e18", LONGEST),
            ("999999999999h", LONGEST),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_duration(text), Ok(expected), "{text}");
        }
        for wrong in ["", "ten", "-5", "-5s", "5 parsecs", "0", "0s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
