//! The netprobe command.

use std::process::ExitCode;

fn main() -> ExitCode {
    netprobe::cli::run(std::env::args_os())
}
