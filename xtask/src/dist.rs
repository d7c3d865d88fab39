//! `cargo xtask dist`: what is copied to the machines that need it. One program that needs no library of theirs, so that it
//! runs wherever the kernel does, with its man pages and completions; in `target/dist`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::vm::libraries;
use crate::{process, workspace};

/// The shells that netprobe knows, and what their completions are called.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "netprobe.bash"),
    ("zsh", "_netprobe"),
    ("fish", "netprobe.fish"),
];

/// With the C library in the program, the crate getrandom does not find getrandom(2) in it unless it is told to: it would
/// wait for /dev/random, on a machine that has just booted for ever.
const FLAGS: [&str; 2] = [
    "-Ctarget-feature=+crt-static",
    "--cfg=getrandom_backend=\"linux_getrandom\"",
];

/// Build a netprobe that needs no libraries, with its man pages and completions, in target/dist
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) fn run(_args: &Args) -> Result<ExitCode> {
    let program = make()?;
    let folder = program.parent().unwrap_or(&program);
    println!("{}", folder.display());
    Ok(ExitCode::SUCCESS)
}

/// Makes all of it; where the program is.
pub(crate) fn make() -> Result<PathBuf> {
    let built = build()?;
    let needed = libraries::closure(&[&built])?;
    if let Some(library) = needed.first() {
        bail!("{} needs {}", built.display(), library.display());
    }
    let folder = workspace::target().join("dist");
    let program = folder.join("netprobe");
    let man = folder.join("man");
    fs::create_dir_all(&man).with_context(|| format!("create {}", man.display()))?;
    fs::copy(&built, &program).with_context(|| format!("write {}", program.display()))?;
    process::run(Command::new(&program).args(["generate", "man"]).arg(&man))?;
    for (shell, name) in COMPLETIONS {
        let text =
            process::output(Command::new(&program).args(["generate", "completions", shell]))?;
        write(&folder.join(name), &text)?;
    }
    Ok(program)
}

/// Builds it as it is released, but with the C library in it.
fn build() -> Result<PathBuf> {
    let machine = machine()?;
    process::run(
        Command::new(workspace::cargo())
            .args(["build", "--quiet", "--release", "--package", "netprobe"])
            // With a target, what runs while it is built is not meant.
            .args(["--target", &machine])
            .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"))
            .current_dir(workspace::root()),
    )?;
    Ok(workspace::target().join(machine).join("release/netprobe"))
}

/// The name that rustc has for this machine, such as `x86_64-unknown-linux-gnu`.
fn machine() -> Result<String> {
    let told = process::output(Command::new("rustc").arg("-vV"))?;
    let name = told.lines().find_map(|line| line.strip_prefix("host: "));
    name.map(str::to_owned)
        .context("`rustc -vV` does not name this machine")
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, format!("{text}\n")).with_context(|| format!("write {}", file.display()))
}
