//! Finds what builds the eBPF object: a Rust compiler with its library sources, and the linker.
//!
//! Candidates in order: `NETPROBE_BPF_TOOLCHAIN` (a directory that has `bin/cargo` and `bin/rustc`),
//! rustup's nightlies, the distribution's pair under `/usr`. The first that can do it is taken; why
//! the others cannot is kept for the error message.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{process, workspace};

/// The linker's version: newer ones want an LLVM that no distribution has.
pub(crate) const LINKER_VERSION: &str = "0.13.0";
/// The LLVM that the linker is built with; it cannot read what a newer compiler writes.
pub(crate) const LLVM: u32 = 22;
/// Names the directory of a toolchain to use instead of looking for one.
const OVERRIDE: &str = "NETPROBE_BPF_TOOLCHAIN";
/// Where distributions put cargo and rustc: below `bin` in here.
const DISTRIBUTION: &str = "/usr";

/// A compiler that can build for the BPF target.
pub(crate) struct Toolchain {
    /// The directory that has `bin/cargo` and `bin/rustc`.
    prefix: PathBuf,
    /// `rustc --version`.
    pub(crate) rustc: String,
    /// The sources of `core`, every symbolic link resolved or not, as the compiler may name either.
    pub(crate) library: Vec<PathBuf>,
}

/// The programs that turn the compiler's output into the object.
pub(crate) struct Linker {
    /// The directory of `bpf-linker`.
    pub(crate) dir: PathBuf,
    /// `bpf-linker --version`.
    pub(crate) version: String,
    /// `llvm-strip`.
    pub(crate) strip: PathBuf,
    /// The version of `llvm-strip`.
    pub(crate) strip_version: String,
}

impl Toolchain {
    /// The first candidate that can build the object.
    pub(crate) fn find() -> Result<Self> {
        let mut refused = Vec::new();
        for prefix in candidates() {
            match Self::at(&prefix) {
                Ok(found) => return Ok(found),
                Err(why) => refused.push(format!("  {}: {why:#}", prefix.display())),
            }
        }
        bail!(
            "no Rust toolchain here can build for BPF; run `cargo xtask setup`\n{}",
            refused.join("\n")
        );
    }

    fn at(prefix: &Path) -> Result<Self> {
        let rustc = prefix.join("bin/rustc");
        for program in [&rustc, &prefix.join("bin/cargo")] {
            if !program.is_file() {
                bail!("no {}", program.display());
            }
        }
        let verbose = process::output(Command::new(&rustc).arg("-vV"))?;
        let llvm = llvm_major(&verbose).context("`rustc -vV` names no LLVM version")?;
        if llvm > LLVM {
            bail!("its LLVM {llvm} is newer than the linker's LLVM {LLVM}");
        }
        let sysroot = process::output(Command::new(&rustc).args(["--print", "sysroot"]))?;
        let library = Path::new(&sysroot).join("lib/rustlib/src/rust/library");
        if !library.join("core/src/lib.rs").is_file() {
            bail!("no rust-src ({} is missing)", library.display());
        }
        let resolved = library
            .canonicalize()
            .with_context(|| format!("resolve {}", library.display()))?;
        Ok(Self {
            prefix: prefix.to_owned(),
            rustc: verbose.lines().next().unwrap_or_default().to_owned(),
            library: vec![library, resolved],
        })
    }

    /// A cargo command that uses this compiler, free of what an outer cargo left in the environment.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = Command::new(self.prefix.join("bin/cargo"));
        cargo
            .env("RUSTC", self.prefix.join("bin/rustc"))
            // Lets a compiler of the stable channel accept -Z.
            .env("RUSTC_BOOTSTRAP", "1");
        for name in ["CARGO", "RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "RUSTFLAGS"] {
            cargo.env_remove(name);
        }
        cargo
    }

    /// Whether `cargo clippy` is there.
    pub(crate) fn has_clippy(&self) -> bool {
        ["bin/cargo-clippy", "bin/clippy-driver"]
            .iter()
            .all(|program| self.prefix.join(program).is_file())
    }

    /// The directory of the toolchain's programs.
    pub(crate) fn bin(&self) -> PathBuf {
        self.prefix.join("bin")
    }
}

impl Linker {
    /// The linker in the tool cache, else on `PATH`.
    pub(crate) fn find() -> Result<Self> {
        let cached = workspace::tools()?.join("bin/bpf-linker");
        let linker = Some(cached)
            .filter(|file| file.is_file())
            .or_else(|| process::find("bpf-linker"))
            .context("no bpf-linker; run `cargo xtask setup`")?;
        let strip = strip()?;
        Ok(Self {
            version: process::output(Command::new(&linker).arg("--version"))?,
            dir: linker.parent().map(Path::to_owned).unwrap_or_default(),
            strip_version: version_line(&process::output(Command::new(&strip).arg("--version"))?),
            strip,
        })
    }
}

fn strip() -> Result<PathBuf> {
    let suffixed = format!("llvm-strip-{LLVM}");
    let packaged = PathBuf::from(format!("{DISTRIBUTION}/lib/llvm-{LLVM}/bin/llvm-strip"));
    Some(packaged)
        .filter(|file| file.is_file())
        .or_else(|| process::find(&suffixed))
        .or_else(|| process::find("llvm-strip"))
        .context("no llvm-strip; run `cargo xtask setup`")
}

fn candidates() -> Vec<PathBuf> {
    if let Some(prefix) = env::var_os(OVERRIDE) {
        return vec![PathBuf::from(prefix)];
    }
    let mut found = nightlies().unwrap_or_default();
    found.push(PathBuf::from(DISTRIBUTION));
    found
}

/// The directories of rustup's nightly toolchains; none without rustup.
fn nightlies() -> Result<Vec<PathBuf>> {
    let rustup = process::find("rustup").context("no rustup")?;
    let list = process::output(Command::new(&rustup).args(["toolchain", "list"]))?;
    let names = list.lines().filter_map(|line| line.split(' ').next());
    let mut prefixes = Vec::new();
    for name in names.filter(|name| name.starts_with("nightly")) {
        let rustc =
            process::output(Command::new(&rustup).args(["which", "--toolchain", name, "rustc"]))?;
        prefixes.extend(Path::new(&rustc).ancestors().nth(2).map(Path::to_owned));
    }
    Ok(prefixes)
}

fn llvm_major(verbose: &str) -> Option<u32> {
    let version = verbose
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// The line that has the version in what an LLVM tool says about itself.
fn version_line(text: &str) -> String {
    let line = text.lines().find(|line| line.contains("version"));
    line.unwrap_or(text).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_version_is_read_from_rustc() {
        let text = "rustc 1.96.0 (ac68faa20 2026-05-25)\nrelease: 1.96.0\nLLVM version: 22.1.8";
        assert_eq!(llvm_major(text), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0"), None);
    }

    #[test]
    fn strip_version_is_one_line() {
        let text = "llvm-strip, compatible with GNU strip\nDebian LLVM version 22.1.8\n  Optimized";
        assert_eq!(version_line(text), "Debian LLVM version 22.1.8");
    }
}
