//! `cargo xtask vm`: boots a kernel of the matrix with netprobe inside and runs a command there.
//!
//! The machine is QEMU with one processor and everything in its initramfs: no disk, no network, no
//! ports, so that any number can run at once. What the command prints comes out as it is.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::kernels::roots::Programs;
use crate::kernels::{self, Kernel};
use crate::{process, workspace};

mod accelerator;
mod cpio;
mod initramfs;
pub(crate) mod libraries;
mod modules;
mod qemu;

/// What is loaded in every machine. Not conntrack: that it is absent at first is tested.
const LOADED: [&str; 5] = ["veth", "inet_diag", "tcp_diag", "sch_netem", "dummy"];
/// The exit status when it is the machine that failed, not the command in it.
const MACHINE_FAILED: u8 = 125;

/// Boot a kernel with netprobe inside and run a command there.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The kernel, such as 6.12 (`cargo xtask kernels --list` names them)
    #[arg(long, value_name = "VERSION")]
    kernel: String,
    /// End the machine after this time, in seconds or as 5m
    #[arg(long, value_name = "TIME", default_value = "300s", value_parser = parse_duration)]
    timeout: Duration,
    /// The memory of the machine
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    memory: String,
    /// The processors of the machine, and those that could be plugged in: 2,maxcpus=128
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    cpus: String,
    /// More words for the kernel's command line
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    append: Option<String>,
    /// Load these kernel modules too
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    modules: Vec<String>,
    /// Put a file into the machine, a program with its libraries [default of GUEST: /bin/NAME]
    #[arg(long, value_name = "HOST[:GUEST]")]
    file: Vec<String>,
    /// Put these programs into the machine: `chroot /bcc tcplife-bpfcc`; they need 2 GiB of memory
    #[arg(long, value_enum)]
    with: Vec<Programs>,
    /// Set a variable for the command
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// Do not build netprobe first: take the release binary that is there, or none
    #[arg(long)]
    no_build: bool,
    /// Show the kernel's log, and all of it if the command fails
    #[arg(short, long)]
    verbose: bool,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// A machine to boot, and the command to run in it.
pub(crate) struct Machine {
    pub(crate) kernel: Kernel,
    pub(crate) timeout: Duration,
    /// In QEMU's notation.
    pub(crate) memory: String,
    /// In QEMU's notation.
    pub(crate) cpus: String,
    pub(crate) append: Option<String>,
    /// The modules to load.
    pub(crate) modules: Vec<String>,
    /// Files of this machine and their paths in the other.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// Programs with a root directory of their own.
    pub(crate) programs: Vec<Programs>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) verbose: bool,
    pub(crate) command: Vec<String>,
}

/// How a command in a machine ended.
pub(crate) struct Outcome {
    /// The exit status of the command.
    pub(crate) status: u8,
    /// From the start until the command ran.
    pub(crate) boot: Duration,
    /// From the start until the command ended.
    pub(crate) total: Duration,
}

impl Machine {
    /// A machine with the usual modules and memory.
    pub(crate) fn new(kernel: Kernel, command: Vec<String>) -> Self {
        Self {
            kernel,
            timeout: Duration::from_mins(5),
            memory: "1G".to_owned(),
            cpus: "1".to_owned(),
            append: None,
            modules: LOADED.map(str::to_owned).into(),
            files: Vec::new(),
            programs: Vec::new(),
            environment: Vec::new(),
            verbose: false,
            command,
        }
    }

    /// Boots, runs the command with its output going to the two writers, and says how it ended.
    pub(crate) fn run(
        &self,
        stdout: impl io::Write + Send,
        stderr: impl io::Write + Send,
    ) -> Result<Outcome> {
        qemu::run(self, stdout, stderr).with_context(|| format!("kernel {}", self.kernel.version))
    }
}

/// Whether machines run without acceleration here, many times slower.
pub(crate) fn is_emulated() -> Result<bool> {
    Ok(accelerator::Accelerator::of_this_machine()? == accelerator::Accelerator::Tcg)
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let mut machine = Machine::new(kernels::get(&args.kernel)?, args.command);
    machine.timeout = args.timeout;
    machine.memory = args.memory;
    machine.cpus = args.cpus;
    machine.append = args.append;
    machine.modules.extend(args.modules);
    machine.programs = args.with;
    machine.environment = args.env;
    machine.verbose = args.verbose;
    if let Some(netprobe) = netprobe(args.no_build)? {
        machine.files.push((netprobe, "/bin/netprobe".to_owned()));
    }
    for file in &args.file {
        machine.files.push(parse_file(file)?);
    }
    match machine.run(io::stdout(), io::stderr()) {
        Ok(outcome) => {
            if args.verbose {
                let (boot, total) = (outcome.boot, outcome.total);
                eprintln!("command started after {boot:.1?}, ended after {total:.1?}");
            }
            Ok(ExitCode::from(outcome.status))
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            Ok(ExitCode::from(MACHINE_FAILED))
        }
    }
}

/// The release binary of netprobe, built unless that is not wanted.
fn netprobe(no_build: bool) -> Result<Option<PathBuf>> {
    if !no_build {
        return build_netprobe().map(Some);
    }
    let binary = workspace::target().join("release/netprobe");
    Ok(Some(binary).filter(|file| file.is_file()))
}

/// Builds netprobe as it is released.
pub(crate) fn build_netprobe() -> Result<PathBuf> {
    process::run(
        Command::new(workspace::cargo())
            .args(["build", "--quiet", "--release", "--package", "netprobe"])
            .current_dir(workspace::root()),
    )?;
    Ok(workspace::target().join("release/netprobe"))
}

/// Reads `HOST[:GUEST]`.
fn parse_file(text: &str) -> Result<(PathBuf, String)> {
    let (host, guest) = match text.split_once(':') {
        Some((host, guest)) => (host, Some(guest)),
        None => (text, None),
    };
    let path = Path::new(host);
    if !path.is_file() {
        bail!("--file {text}: no file {host}");
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let guest = guest.map_or_else(|| format!("/bin/{name}"), str::to_owned);
    if !guest.starts_with('/') {
        bail!("--file {text}: the path in the machine must begin with a slash");
    }
    Ok((path.to_owned(), guest))
}

/// Reads `300`, `300s` or `5m`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(number) => (number, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    match number.parse::<u64>() {
        Ok(number) if number > 0 => Ok(Duration::from_secs(number.saturating_mul(unit))),
        _ => Err("expected seconds, or minutes as 5m".to_owned()),
    }
}

/// Reads `NAME=VALUE`.
fn parse_variable(text: &str) -> Result<(String, String), String> {
    let letter = |byte: u8| byte == b'_' || byte.is_ascii_alphanumeric();
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && name.bytes().all(letter) => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        let cases = [
            ("300s", Some(300)),
            ("5m", Some(300)),
            ("7", Some(7)),
            ("0", None),
            ("x", None),
        ];
        for (text, seconds) in cases {
            assert_eq!(
                parse_duration(text).ok(),
                seconds.map(Duration::from_secs),
                "{text}"
            );
        }
    }

    #[test]
    fn variables_are_read() {
        let expected = ("A_1".to_owned(), "b=c d".to_owned());
        assert_eq!(parse_variable("A_1=b=c d"), Ok(expected));
        assert!(parse_variable("A").is_err());
        assert!(parse_variable("$(x)=1").is_err());
    }

    #[test]
    fn files_get_a_place_in_the_machine() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let host = file.path().display().to_string();
        let (_, guest) = parse_file(&format!("{host}:/opt/x")).expect("a pair");
        assert_eq!(guest, "/opt/x");
        let (_, guest) = parse_file(&host).expect("a pair");
        assert!(guest.starts_with("/bin/"), "{guest}");
        assert!(parse_file("/nonexistent").is_err());
        assert!(parse_file(&format!("{host}:x")).is_err());
    }
}
