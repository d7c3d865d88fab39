//! `cargo xtask bench`: runs the benchmarks, all or one by name.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::{process, workspace};

/// Run the benchmarks.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the benchmark of this name: storm and streams (root; beside bpftrace if that is
    /// installed; streams ends with render), bounds (root), start (root), victim (root), flame (root;
    /// beside perf if that is installed), render
    name: Option<String>,
    /// For the benchmark itself, such as a part of the name of a case
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut cargo = Command::new(workspace::cargo());
    cargo.current_dir(workspace::root()).arg("bench");
    if let Some(name) = &args.name {
        cargo.args(["--bench", name]);
        if name == "streams" {
            // How fast records are rendered is one of its bars.
            cargo.args(["--bench", "render"]);
        }
    }
    if !args.arguments.is_empty() {
        cargo.arg("--").args(&args.arguments);
    }
    process::run(&mut cargo)?;
    Ok(ExitCode::SUCCESS)
}
