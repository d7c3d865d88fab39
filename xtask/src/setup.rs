//! `cargo xtask setup`: installs what building the eBPF object and running every test need.
//!
//! On Debian as root it installs; anywhere else it names each missing thing with the command that
//! installs it. When nothing is missing it only looks, asking neither apt nor the network.

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::ebpf::{LINKER_VERSION, LLVM, Linker, Toolchain};
use crate::{process, workspace};

/// Install what building the eBPF object and running the tests need.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// A thing that must be on this machine.
struct Need {
    /// The program that shows that it is there.
    program: &'static str,
    /// The package that has it in Debian.
    package: &'static str,
    why: &'static str,
}

const NEEDS: [Need; 12] = [
    need("apt-get", "apt", "fetches the kernels"),
    need(
        "busybox",
        "busybox-static",
        "is the userland of the test machines",
    ),
    need("cc", "gcc", "links programs"),
    need("dash", "dash", "is the shell of the test machines"),
    need("dpkg-deb", "dpkg", "unpacks the kernels"),
    need("ip", "iproute2", "makes the networks of the tests"),
    need("nft", "nftables", "drops packets for the tests"),
    need(
        "qemu-system-x86_64",
        "qemu-system-x86",
        "runs the test machines",
    ),
    need(
        "setpriv",
        "util-linux",
        "ends a test machine with its owner",
    ),
    need("tar", "tar", "unpacks the kernels"),
    need("xz", "xz-utils", "decompresses kernel modules"),
    need("zstd", "zstd", "decompresses kernel modules"),
];

/// What else Debian needs: headers that have no program, and signatures of newer releases.
const LIBRARIES: [&str; 5] = [
    "debian-archive-keyring",
    "g++",
    "libc6-dev",
    "libzstd-dev",
    "zlib1g-dev",
];

/// Debian's Rust for BPF: a compiler, its library sources and its linter, all of one version.
const RUST: [&str; 4] = ["cargo-web", "rust-web-clippy", "rust-web-src", "rustc-web"];

const fn need(program: &'static str, package: &'static str, why: &'static str) -> Need {
    Need {
        program,
        package,
        why,
    }
}

/// Runs the command.
pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    if is_debian() && process::is_root()? {
        install()?;
        return Ok(ExitCode::SUCCESS);
    }
    let missing = missing()?;
    if missing.is_empty() {
        eprintln!("setup: nothing is missing");
        return Ok(ExitCode::SUCCESS);
    }
    for line in missing {
        eprintln!("missing: {line}");
    }
    Ok(ExitCode::FAILURE)
}

fn is_debian() -> bool {
    fs::read_to_string("/etc/os-release")
        .is_ok_and(|text| text.lines().any(|line| line == "ID=debian"))
}

/// Installs what is missing, on Debian as root.
fn install() -> Result<()> {
    let packages = missing_packages()?;
    if !packages.is_empty() {
        eprintln!("setup: installing {}", packages.join(" "));
        apt_get(&["update", "--quiet", "--quiet"])?;
        let mut arguments = vec!["install", "--quiet", "--yes", "--no-install-recommends"];
        arguments.extend(packages.iter().map(String::as_str));
        apt_get(&arguments)?;
    }
    if !has_linker() {
        eprintln!("setup: building bpf-linker {LINKER_VERSION}");
        let prefix = process::output(Command::new(llvm_config()).arg("--prefix"))?;
        let mut build = Command::new(workspace::cargo());
        build.args(linker_install()?).env("LLVM_PREFIX", prefix);
        process::run(&mut build)?;
    }
    Toolchain::find()?;
    Linker::find()?;
    eprintln!("setup: everything is there");
    Ok(())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(arguments)
        // No progress bars in the log of CI.
        .args(["-o", "Dpkg::Use-Pty=0"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    // What apt says belongs to our messages, not to our output.
    process::run(command.stdout(std::io::stderr()))
}

/// The packages of Debian that are not installed.
fn missing_packages() -> Result<Vec<String>> {
    let llvm = format!("llvm-{LLVM}-dev");
    let mut wanted: Vec<_> = NEEDS.iter().map(|need| need.package).collect();
    wanted.extend(LIBRARIES);
    wanted.push(&llvm);
    if !Toolchain::find().is_ok_and(|found| found.has_clippy()) {
        wanted.extend(RUST);
    }
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Abbrev}\n"])
        .args(&wanted)
        .output()
        .context("start dpkg-query")?;
    // It fails when it knows nothing of a package, and lists the others all the same.
    let installed = parse_installed(&String::from_utf8_lossy(&output.stdout));
    wanted.retain(|package| !installed.iter().any(|name| name == package));
    Ok(wanted.into_iter().map(str::to_owned).collect())
}

/// Reads lines of a package's name and status, of which `ii` is installed.
fn parse_installed(text: &str) -> Vec<String> {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs
        .filter(|(_, status)| status.trim() == "ii")
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// What is missing, each with the command that installs it.
fn missing() -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for need in NEEDS
        .iter()
        .filter(|need| process::find(need.program).is_none())
    {
        lines.push(format!(
            "{} ({}): {}",
            need.program,
            need.why,
            package_command(need.package)
        ));
    }
    if Toolchain::find().is_err() {
        let debian = package_command(&RUST.join(" "));
        lines.push(format!(
            "a Rust that builds for BPF: rustup toolchain install nightly --component rust-src \
             --component clippy (its LLVM must not be newer than {LLVM}); on Debian 12 {debian}"
        ));
    }
    if Linker::find().is_err() {
        let llvm = package_command(&format!("llvm-{LLVM}-dev"));
        lines.push(format!(
            "bpf-linker and llvm-strip: {llvm}, then LLVM_PREFIX=$({} --prefix) cargo {}",
            llvm_config(),
            linker_install()?.join(" ")
        ));
    }
    Ok(lines)
}

fn package_command(packages: &str) -> String {
    if is_debian() {
        format!("sudo apt-get install {packages}")
    } else {
        format!("install what Debian calls {packages}")
    }
}

fn has_linker() -> bool {
    Linker::find().is_ok_and(|linker| linker.version.ends_with(LINKER_VERSION))
}

fn llvm_config() -> String {
    format!("llvm-config-{LLVM}")
}

/// The arguments of cargo that install the linker into the tool cache.
fn linker_install() -> Result<Vec<String>> {
    let root = workspace::tools()?;
    let Some(root) = root.to_str() else {
        bail!("{} is not valid UTF-8; set NETPROBE_CACHE", root.display());
    };
    let feature = format!("llvm-{LLVM}");
    let words = [
        "install",
        "bpf-linker",
        "--version",
        LINKER_VERSION,
        "--locked",
        "--no-default-features",
        "--features",
        &feature,
        "--root",
        root,
    ];
    Ok(words.map(str::to_owned).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_packages_do_not_count_as_installed() {
        let text = "gcc ii \nnftables rc \nzstd ii \n";
        assert_eq!(parse_installed(text), ["gcc", "zstd"]);
    }

    #[test]
    fn linker_is_pinned_with_its_llvm() {
        let words = linker_install().expect("words").join(" ");
        assert!(
            words.contains("bpf-linker --version 0.13.0 --locked"),
            "{words}"
        );
        assert!(words.contains("--features llvm-22"), "{words}");
    }
}
