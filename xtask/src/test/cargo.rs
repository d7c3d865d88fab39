//! Runs `cargo test`, shows its output and counts what it did.

use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{shown::Shown, tally::Tally};
use crate::{process, workspace};

/// The package that has the tests of the whole program.
const TESTS: &str = "netprobe-tests";

/// The unit tests of every crate, with those in documentation.
pub(super) fn unit() -> Result<Tally> {
    let mut all = cargo(&["test", "--workspace", "--no-fail-fast"]);
    all.args(["--exclude", TESTS, "--exclude", "netprobe-ebpf"]);
    let mut tally = run(&mut all, "unit tests")?;
    let mut shared = cargo(&["test", "--package", TESTS, "--lib"]);
    tally += run(&mut shared, "unit tests of the test crate")?;
    Ok(tally)
}

/// A test target of the test crate, with the variables and arguments given.
pub(super) fn target(
    name: &str,
    environment: &[(&str, String)],
    arguments: &[String],
) -> Result<Tally> {
    let mut command = cargo(&["test", "--package", TESTS, "--test", name]);
    command.args(["--", "--show-output"]).args(arguments);
    for (variable, value) in environment {
        command.env(variable, value);
    }
    run(&mut command, name)
}

/// Builds a test target and returns its program.
pub(super) fn build(name: &str) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
    }
    let mut command = cargo(&["test", "--package", TESTS, "--test", name, "--no-run"]);
    command.args(["--quiet", "--message-format=json-render-diagnostics"]);
    let output = process::output(&mut command)?;
    let messages = output
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok());
    // The last program is the test; one before it may be a binary that it uses.
    messages
        .filter_map(|message| message.executable)
        .next_back()
        .with_context(|| format!("cargo built no test program for {name}"))
}

/// Runs a command whose output is that of tests, showing what did not pass and counting. All of it goes to a file.
fn run(command: &mut Command, what: &str) -> Result<Tally> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", process::show(command)))?;
    let pipe = child.stdout.take().context("read the output of tests")?;
    let is_watched = std::io::stdout().is_terminal();
    let mut shown = Shown::default();
    let mut text = String::new();
    for line in BufReader::new(pipe).split(b'\n') {
        let line = line.context("read the output of tests")?;
        let line = String::from_utf8_lossy(&line);
        if shown.next(&line) || is_watched {
            println!("{line}");
        }
        text.push_str(&line);
        text.push('\n');
    }
    std::io::stdout().flush().context("write to stdout")?;
    let status = child.wait().context("wait for tests")?;
    let log = super::logs()?.join(format!("{}.log", what.replace(' ', "-")));
    fs::write(&log, &text).with_context(|| format!("write {}", log.display()))?;
    let mut tally = Tally::read(&text);
    if !status.success() && tally.is_good() {
        tally += Tally::failure(format!("{what}: {} ({status})", process::show(command)));
    }
    Ok(tally)
}

fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(workspace::cargo());
    cargo.current_dir(workspace::root()).args(arguments);
    cargo
}
