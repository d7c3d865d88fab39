//! `cargo xtask check`: what can be said of the source without running it.
//!
//! Formatting, clippy for this machine and for BPF, and the layering rules. Clippy runs twice because
//! the kernel side is an empty program on any other target than BPF.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::ebpf::{self, Linker, Toolchain};
use crate::{process, workspace};

mod layering;
mod tokens;

/// Check formatting, lints and layering.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// A check by the name that messages call it.
type Check = (&'static str, fn() -> Result<()>);

const CHECKS: [Check; 4] = [
    ("formatting", formatting),
    ("layering", layering),
    ("clippy", clippy),
    ("clippy for BPF", clippy_for_bpf),
];

/// Runs the command.
pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    let mut failed = Vec::new();
    for (name, result) in each() {
        if let Err(error) = result {
            eprintln!("error: {name}: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs every check, and says which it is.
pub(crate) fn each() -> impl Iterator<Item = (&'static str, Result<()>)> {
    CHECKS.into_iter().map(|(name, check)| {
        eprintln!("check: {name}");
        (name, check())
    })
}

fn formatting() -> Result<()> {
    process::run(cargo().args(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    let targets = [
        "clippy",
        "--quiet",
        "--keep-going",
        "--workspace",
        "--all-targets",
    ];
    process::run(cargo().args(targets).args(["--", "-Dwarnings"]))
}

fn clippy_for_bpf() -> Result<()> {
    let toolchain = Toolchain::find()?;
    let linker = Linker::find()?;
    if toolchain.has_clippy() {
        let mut clippy = ebpf::cargo(&toolchain, &linker, "clippy", &[])?;
        return process::run(clippy.args(["--quiet", "--", "-Dwarnings"]));
    }
    eprintln!(
        "check: {} has no clippy; `cargo xtask setup` installs it",
        toolchain.rustc
    );
    eprintln!("check: compiling for BPF without warnings instead");
    let mut check = ebpf::cargo(&toolchain, &linker, "check", &["-Dwarnings"])?;
    process::run(check.arg("--quiet"))
}

fn layering() -> Result<()> {
    let violations = layering::violations(&workspace::root())?;
    if !violations.is_empty() {
        bail!("\n{}", violations.join("\n"));
    }
    Ok(())
}

fn cargo() -> Command {
    let mut cargo = Command::new(workspace::cargo());
    cargo.current_dir(workspace::root());
    cargo
}
