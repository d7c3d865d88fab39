//! `cargo xtask ebpf`: builds the kernel side of netprobe into the object that is committed.
//!
//! The object is bit-reproducible: paths are remapped and everything else that decides its bytes is
//! recorded in `PROVENANCE.toml` beside it. `--check` builds it anew and compares.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::{process, workspace};
use provenance::{Object, Provenance, Versions};
pub(crate) use toolchain::{LINKER_VERSION, LLVM, Linker, Toolchain};

mod calls;
mod provenance;
mod sources;
mod toolchain;

/// The target that the kernel's BPF is called by rustc, little-endian.
const TARGET: &str = "bpfel-unknown-none";
/// The architecture whose kernels load the object: handlers read registers by name.
const ARCH: &str = "x86_64";
/// Where the committed object is.
const PREBUILT: &str = "netprobe/prebuilt";

/// Build the eBPF object from netprobe-ebpf.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build anew and fail if the committed object does not belong to the sources
    #[arg(long, conflicts_with = "out")]
    check: bool,
    /// Write the object here, and no provenance [default: netprobe/prebuilt/]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.check {
        check_committed()?;
        return Ok(ExitCode::SUCCESS);
    }
    let (object, made) = make()?;
    if let Some(out) = &args.out {
        copy(&object, out)?;
    } else {
        copy(&object, &committed())?;
        made.write(&provenance_file())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the object from the sources as they are and describes it.
fn make() -> Result<(PathBuf, Provenance)> {
    let toolchain = Toolchain::find()?;
    let linker = Linker::find()?;
    eprintln!("building with {}, {}", toolchain.rustc, linker.version);
    let object = build(&toolchain, &linker)?;
    let made = describe(&object, &toolchain, &linker)?;
    Ok((object, made))
}

/// The committed object.
fn committed() -> PathBuf {
    workspace::root().join(PREBUILT).join(file_name())
}

fn provenance_file() -> PathBuf {
    workspace::root().join(PREBUILT).join("PROVENANCE.toml")
}

fn file_name() -> String {
    format!("netprobe.{ARCH}.bpf.o")
}

/// The flags that decide what the object is. The linker has no path here: it is found through `PATH`.
fn flags() -> Vec<String> {
    vec![
        format!("--cfg=bpf_target_arch=\"{ARCH}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clinker=bpf-linker".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Otherwise memset is a call of a byte loop, slow to run and slow to verify.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
        // No program may call a function: see `calls`.
        "-Clink-arg=--llvm-args=-inline-threshold=1000000".to_owned(),
    ]
}

/// The flags that make every directory of this machine look the same in the object.
fn remaps(toolchain: &Toolchain) -> Result<Vec<String>> {
    let registry = workspace::cargo_home()?.join("registry/src");
    let mut pairs = vec![(workspace::root(), "/src"), (registry, "/cargo")];
    for library in &toolchain.library {
        pairs.push((library.clone(), "/rust/library"));
    }
    let remap =
        |(from, to): (PathBuf, &str)| format!("--remap-path-prefix={}={to}", from.display());
    Ok(pairs.into_iter().map(remap).collect())
}

/// A cargo command for the BPF target; `verb` is build, check or clippy.
pub(crate) fn cargo(
    toolchain: &Toolchain,
    linker: &Linker,
    verb: &str,
    more_flags: &[&str],
) -> Result<Command> {
    let mut rustflags = flags();
    rustflags.extend(more_flags.iter().map(|&flag| flag.to_owned()));
    rustflags.extend(remaps(toolchain)?);
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = [linker.dir.clone(), toolchain.bin()];
    let path = env::join_paths(dirs.into_iter().chain(env::split_paths(&path)))
        .context("put the linker on PATH")?;
    let mut cargo = toolchain.cargo();
    cargo
        .current_dir(workspace::root())
        .args([verb, "--package", sources::PACKAGE, "--release"])
        .args(["--target", TARGET, "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(workspace::target().join("bpf"))
        .env("PATH", path)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\u{1f}"))
        .envs(profile());
    Ok(cargo)
}

/// The release profile of the object: that of the workspace is made for the program on the host.
fn profile() -> [(&'static str, &'static str); 6] {
    [
        ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
        ("CARGO_PROFILE_RELEASE_DEBUG", "2"),
        ("CARGO_PROFILE_RELEASE_LTO", "off"),
        ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
        ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
        // The loader needs the symbols; debug information goes below, after BTF was made from it.
        ("CARGO_PROFILE_RELEASE_STRIP", "none"),
    ]
}

fn build(toolchain: &Toolchain, linker: &Linker) -> Result<PathBuf> {
    process::run(cargo(toolchain, linker, "build", &[])?.arg("--quiet"))
        .context("build the eBPF object")?;
    let built = workspace::target().join(format!("bpf/{TARGET}/release"));
    let stripped = built.join(file_name());
    process::run(
        Command::new(&linker.strip)
            .arg("--strip-debug")
            // Lines of source, for the verifier's log alone.
            .args(["--remove-section=.BTF.ext", "--remove-section=.rel.BTF.ext"])
            .arg("-o")
            .arg(&stripped)
            .arg(built.join(sources::PACKAGE)),
    )
    .context("strip debug information from the eBPF object")?;
    let bytes = fs::read(&stripped).with_context(|| format!("read {}", stripped.display()))?;
    calls::refuse(&bytes)?;
    Ok(stripped)
}

fn describe(object: &Path, toolchain: &Toolchain, linker: &Linker) -> Result<Provenance> {
    let bytes = fs::read(object).with_context(|| format!("read {}", object.display()))?;
    let mut decided = flags();
    decided.extend(profile().map(|(name, value)| format!("{name}={value}")));
    Ok(Provenance {
        object: Object {
            file: file_name(),
            sha256: sources::sha256(&bytes),
            sources_sha256: sources::digest(&workspace::root(), &decided)?,
            flags: decided,
        },
        toolchain: Versions {
            rustc: toolchain.rustc.clone(),
            rust_src: library_version(toolchain)?,
            bpf_linker: linker.version.clone(),
            llvm_strip: linker.strip_version.clone(),
        },
    })
}

/// Names the library sources by the digest of their lock file, as they carry no version.
fn library_version(toolchain: &Toolchain) -> Result<String> {
    let library = toolchain.library.first().context("no library sources")?;
    let lock = library.join("Cargo.lock");
    let bytes = fs::read(&lock).with_context(|| format!("read {}", lock.display()))?;
    Ok(format!("Cargo.lock sha256 {}", sources::sha256(&bytes)))
}

/// Fails if the committed object does not belong to the sources.
pub(crate) fn check_committed() -> Result<()> {
    let file = committed();
    let bytes = fs::read(&file)
        .with_context(|| format!("read {}; run `cargo xtask ebpf`", file.display()))?;
    let noted = Provenance::read(&provenance_file())?;
    let (_, made) = make()?;
    let verdict = compare(&made, &noted, &sources::sha256(&bytes))?;
    eprintln!("{}: {verdict}", file.display());
    Ok(())
}

/// Judges the committed object by what was made here, what was noted with it, and its own digest.
fn compare(made: &Provenance, noted: &Provenance, committed: &str) -> Result<String> {
    if noted.object.sha256 != committed {
        bail!(
            "the committed eBPF object is not the one that PROVENANCE.toml describes; run `cargo xtask ebpf`"
        );
    }
    if noted.object.sources_sha256 != made.object.sources_sha256 {
        bail!(
            "the committed eBPF object was not built from these sources; run `cargo xtask ebpf` and commit netprobe/prebuilt"
        );
    }
    if noted.toolchain != made.toolchain {
        return Ok(format!(
            "belongs to the sources; bytes not compared, as it was made with {:?} and this machine has {:?}",
            noted.toolchain, made.toolchain
        ));
    }
    if noted.object.sha256 != made.object.sha256 {
        bail!(
            "the same sources and toolchain gave other bytes than the committed eBPF object has: the build is not reproducible, or the object was not made by `cargo xtask ebpf`"
        );
    }
    Ok("belongs to the sources, byte for byte".to_owned())
}

fn copy(object: &Path, to: &Path) -> Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let size = fs::copy(object, to).with_context(|| format!("write {}", to.display()))?;
    eprintln!("{}: {size} bytes", to.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance(object: &str, sources: &str, rustc: &str) -> Provenance {
        Provenance {
            object: Object {
                file: file_name(),
                sha256: object.into(),
                sources_sha256: sources.into(),
                flags: flags(),
            },
            toolchain: Versions {
                rustc: rustc.into(),
                rust_src: "src".into(),
                bpf_linker: "linker".into(),
                llvm_strip: "strip".into(),
            },
        }
    }

    #[test]
    fn an_object_of_these_sources_passes() {
        let same = provenance("o", "s", "1.96");
        assert!(compare(&same, &same, "o").is_ok());
        let other_toolchain = provenance("p", "s", "1.97");
        let verdict = compare(&other_toolchain, &same, "o").expect("a verdict");
        assert!(verdict.contains("bytes not compared"), "{verdict}");
    }

    #[test]
    fn an_object_of_other_sources_fails() {
        let noted = provenance("o", "s", "1.96");
        assert!(compare(&provenance("o", "t", "1.96"), &noted, "o").is_err());
        assert!(compare(&provenance("p", "s", "1.96"), &noted, "o").is_err());
        assert!(compare(&noted, &noted, "p").is_err());
    }
}
