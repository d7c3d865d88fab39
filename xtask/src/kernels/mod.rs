//! `cargo xtask kernels`: the kernels that netprobe is tested on, fetched from Debian and cached.
//!
//! A kernel is looked up in the suites below with an apt configuration of the harness's own, so
//! nothing is installed here. What is cached is used without asking anyone; `--refresh` looks for
//! newer point releases. A cached kernel is one folder: `vmlinuz`, `release` and `modules/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::{process, workspace};
use apt::Apt;
use sources::Mirror;

mod apt;
pub(crate) mod roots;
mod sources;
mod version;

/// A kernel series, and the suites of Debian that have it.
struct Series {
    version: &'static str,
    suites: &'static [&'static str],
    /// The suite in the security archive, if the series gets its updates there.
    security: Option<&'static str>,
}

/// The matrix. Point releases are never pinned: the newest in the suites is taken.
const SERIES: [Series; 5] = [
    Series {
        version: "5.10",
        suites: &["bullseye"],
        security: Some("bullseye-security"),
    },
    Series {
        version: "6.1",
        suites: &["bookworm"],
        security: Some("bookworm-security"),
    },
    Series {
        version: "6.12",
        suites: &["trixie"],
        security: Some("trixie-security"),
    },
    Series {
        version: "6.18",
        suites: &["trixie-backports"],
        security: None,
    },
    Series {
        version: "7.2",
        suites: &["sid"],
        security: None,
    },
];

/// What of a package is kept: the modules that networking can need are few among thousands.
const KEPT: [&str; 11] = [
    "--wildcards",
    "*/boot/vmlinuz-*",
    "*/modules/*/vmlinuz",
    "*/modules/*/modules.builtin",
    "*/modules/*/modules.builtin.modinfo",
    "*/modules/*/kernel/arch/*",
    "*/modules/*/kernel/crypto/*",
    "*/modules/*/kernel/lib/*",
    "*/modules/*/kernel/net/*",
    "*/modules/*/kernel/drivers/net/*.ko*",
    "*/modules/*/kernel/drivers/char/*.ko*",
];

/// Fetch the kernels of the test matrix into the cache.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print the series and what is cached of each, and fetch nothing
    #[arg(long)]
    list: bool,
    /// Look for a newer point release of what is cached
    #[arg(long, conflicts_with = "list")]
    refresh: bool,
    /// Only these series, such as 6.12 [default: all]
    #[arg(value_name = "VERSION")]
    versions: Vec<String>,
}

/// A kernel in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// The series, such as `6.12`.
    pub(crate) version: String,
    /// The folder in the cache.
    dir: PathBuf,
}

impl Kernel {
    /// The bootable image.
    pub(crate) fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The folder that holds `kernel/` and `modules.builtin`.
    pub(crate) fn modules(&self) -> PathBuf {
        self.dir.join("modules")
    }

    /// The version of the Debian package.
    fn package_version(&self) -> Result<String> {
        let name = self.dir.file_name().context("a kernel without a folder")?;
        Ok(name.to_string_lossy().into_owned())
    }

    /// What `uname -r` says.
    pub(crate) fn release(&self) -> Result<String> {
        let file = self.dir.join("release");
        fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let wanted: Vec<_> = match args.versions.as_slice() {
        [] => SERIES.iter().collect(),
        versions => versions
            .iter()
            .map(|version| find_series(version))
            .collect::<Result<_>>()?,
    };
    for series in wanted {
        let cached = cached(series)?;
        match cached {
            cached if args.list => list(series, cached.as_ref())?,
            Some(kernel) if !args.refresh => list(series, Some(&kernel))?,
            _ => list(series, Some(&fetch(series)?))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(series: &Series, kernel: Option<&Kernel>) -> Result<()> {
    let what = match kernel {
        Some(kernel) => kernel.release()?,
        None => "not cached".to_owned(),
    };
    println!("{:<6}{what}", series.version);
    Ok(())
}

/// The versions of the matrix, oldest first.
pub(crate) fn versions() -> impl Iterator<Item = &'static str> {
    SERIES.iter().map(|series| series.version)
}

/// The kernel of this series, from the cache if it is there.
pub(crate) fn get(version: &str) -> Result<Kernel> {
    let series = find_series(version)?;
    match cached(series)? {
        Some(kernel) => Ok(kernel),
        None => fetch(series),
    }
}

fn find_series(version: &str) -> Result<&'static Series> {
    let found = SERIES.iter().find(|series| series.version == version);
    found.with_context(|| {
        let known: Vec<_> = versions().collect();
        format!("no kernel {version} here: choose of {}", known.join(", "))
    })
}

fn folder(series: &Series) -> Result<PathBuf> {
    Ok(workspace::cache()?.join("kernels").join(series.version))
}

/// The newest cached kernel of a series.
fn cached(series: &Series) -> Result<Option<Kernel>> {
    let folder = folder(series)?;
    let Ok(entries) = fs::read_dir(&folder) else {
        return Ok(None);
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", folder.display()))?;
        // A folder gets this file last: without it the fetch was cut short.
        if entry.path().join("release").is_file() {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    let newest = found.into_iter().max_by(|a, b| version::compare(a, b));
    Ok(newest.map(|full| at(series, &folder, &full)))
}

fn at(series: &Series, folder: &Path, full: &str) -> Kernel {
    Kernel {
        version: series.version.to_owned(),
        dir: folder.join(full),
    }
}

fn fetch(series: &Series) -> Result<Kernel> {
    let mirror = Mirror::of_this_machine()?;
    let apt = Apt::new(
        &workspace::cache()?.join("apt").join(series.version),
        &mirror.sources(series.suites, series.security),
    )?;
    eprintln!("kernel {}: looking for the newest package", series.version);
    let package = apt.newest_kernel(series.version)?;
    let folder = folder(series)?;
    let kernel = at(series, &folder, &package.version);
    if kernel.dir.join("release").is_file() {
        return Ok(kernel);
    }
    eprintln!("kernel {}: fetching {}", series.version, package.name);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let work = tempfile::tempdir_in(&folder)
        .with_context(|| format!("create a folder in {}", folder.display()))?;
    for file in apt.download(&package.files(), work.path())? {
        unpack(&file, work.path(), &KEPT)?;
    }
    keep(work.path(), &kernel.dir)?;
    Ok(kernel)
}

/// Unpacks below `dir` what the arguments for tar(1) select of a package.
fn unpack(package: &Path, dir: &Path, selection: &[&str]) -> Result<()> {
    let mut contents = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("start dpkg-deb")?;
    let tar = contents.stdout.take().context("read from dpkg-deb")?;
    // A package has some of the patterns, never all: which is decided by what `keep` finds.
    Command::new("tar")
        .args(["--extract", "--no-same-owner", "--directory"])
        .arg(dir)
        .args(selection)
        .stdin(tar)
        .stderr(Stdio::null())
        .status()
        .context("start tar")?;
    let status = contents.wait().context("wait for dpkg-deb")?;
    if !status.success() {
        bail!("dpkg-deb cannot read {} ({status})", package.display());
    }
    Ok(())
}

/// Moves what was unpacked in `work` to where the cache has it.
fn keep(work: &Path, to: &Path) -> Result<()> {
    let modules = ["usr/lib/modules", "lib/modules"]
        .iter()
        .find_map(|dir| fs::read_dir(work.join(dir)).ok()?.next()?.ok())
        .context("the package has no modules")?;
    let release = modules.file_name().to_string_lossy().into_owned();
    let modules = modules.path();
    let image = find(work, "vmlinuz").context("the package has no kernel image")?;
    decompress(&modules)?;
    fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    for (from, name) in [(&image, "vmlinuz"), (&modules, "modules")] {
        fs::rename(from, to.join(name)).with_context(|| format!("keep {}", from.display()))?;
    }
    let file = to.join("release");
    fs::write(&file, release).with_context(|| format!("write {}", file.display()))
}

/// Decompresses modules once, here, so that no start of a machine has to.
fn decompress(dir: &Path) -> Result<()> {
    for (suffix, program) in [("xz", "xz"), ("zst", "zstd")] {
        let files: Vec<_> = walk(dir)?
            .into_iter()
            .filter(|file| file.extension().is_some_and(|found| found == suffix))
            .collect();
        for some in files.chunks(200) {
            let mut command = Command::new(program);
            command.args(["--decompress", "--quiet"]).args(some);
            if program == "zstd" {
                command.arg("--rm");
            }
            process::run(&mut command).context("decompress kernel modules")?;
        }
    }
    Ok(())
}

/// Every file below `dir`, symbolic links not followed.
pub(crate) fn walk(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let entries = fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("list {}", dir.display()))?;
            let kind = entry
                .file_type()
                .with_context(|| format!("look at {}", entry.path().display()))?;
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

fn find(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let starts = |file: &PathBuf| {
        file.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    };
    walk(dir).ok()?.into_iter().find(starts)
}
