//! `cargo xtask`: everything that a developer or CI does with this repository, one file per command.
//!
//! Each command prints what it does to stderr; stdout carries only what was asked for, such as the
//! output of a program inside a virtual machine. The exit status is the command's verdict.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "talks to a person at a terminal"
)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod check;
mod dist;
mod ebpf;
mod kernels;
mod process;
mod setup;
mod test;
mod vm;
mod workspace;

/// Builds, checks and tests netprobe.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Bench(bench::Args),
    Check(check::Args),
    Dist(dist::Args),
    Ebpf(ebpf::Args),
    Kernels(kernels::Args),
    Setup(setup::Args),
    Test(test::Args),
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Dist(args) => dist::run(&args),
        Command::Ebpf(args) => ebpf::run(&args),
        Command::Kernels(args) => kernels::run(&args),
        Command::Setup(args) => setup::run(&args),
        Command::Test(args) => Ok(test::run(&args)),
        Command::Vm(args) => vm::run(args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
