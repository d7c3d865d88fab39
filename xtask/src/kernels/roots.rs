//! Programs of Debian that a machine shall have, with all that they need: a root directory of their own for
//! chroot(8), from the suite of its kernel. Fetched and cached as kernels are; nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::{Apt, Kernel, Mirror, find_series, unpack};
use crate::workspace;

/// What a root directory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Programs {
    /// The tools of bcc, with python, clang and the headers of the kernel: they compile when they start
    Bcc,
    /// nginx and php-fpm
    Web,
}

impl Programs {
    /// Its name, which is also that of the directory in a machine.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bcc => "bcc",
            Self::Web => "web",
        }
    }

    /// Where it is in a machine.
    pub(crate) fn guest(self) -> String {
        format!("/{}", self.name())
    }

    const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Bcc => &["bpfcc-tools"],
            Self::Web => &["nginx-light", "php-fpm"],
        }
    }
}

/// What no program reads.
const PARTS: [&str; 3] = [
    "--wildcards",
    "--exclude=./usr/share/*",
    "--exclude=./var/*",
];
/// What a compiler reads for this architecture, and the links that lead there from the release's name.
const HEADERS: [&str; 5] = [
    "--wildcards",
    "./lib/modules",
    "./usr/src/*/include",
    "./usr/src/*/arch/x86",
    "./usr/src/*/.config",
];

/// The root directory for this kernel, from the cache if it is there.
pub(crate) fn root(kernel: &Kernel, programs: Programs) -> Result<PathBuf> {
    let version = kernel.package_version()?;
    let folder = workspace::cache()?.join(programs.name());
    let root = folder.join(&version);
    if root.is_dir() {
        return Ok(root);
    }
    let packages = programs.packages();
    eprintln!(
        "{}: fetching {} for kernel {version}",
        programs.name(),
        packages.join(", ")
    );
    let series = find_series(&kernel.version)?;
    let apt = Apt::new(
        &folder.join("apt"),
        &Mirror::of_this_machine()?.sources(series.suites, series.security),
    )?;
    let work = tempfile::tempdir_in(&folder)
        .with_context(|| format!("create a folder in {}", folder.display()))?;
    let tree = work.path().join("root");
    fs::create_dir(&tree).with_context(|| format!("create {}", tree.display()))?;
    unpack_all(&apt.download_closure(packages)?, &tree, &PARTS)?;
    if programs == Programs::Bcc {
        unpack_headers(kernel, &apt, work.path(), &tree)?;
    }
    // Last: a folder with this name is whole.
    fs::rename(&tree, &root).with_context(|| format!("keep {}", root.display()))?;
    Ok(root)
}

fn unpack_headers(kernel: &Kernel, apt: &Apt, work: &Path, tree: &Path) -> Result<()> {
    let version = kernel.package_version()?;
    let headers = headers(&kernel.release()?, &version);
    let packages = apt.download(&headers, work).with_context(|| {
        format!(
            "fetch the headers of kernel {version}; if the archive has a newer one only, \
             `cargo xtask kernels --refresh {}` fetches that",
            kernel.version
        )
    })?;
    unpack_all(&packages, tree, &HEADERS)
}

/// The packages with the headers of a release, each as `name=version`: those of the architecture, and
/// those that all flavours share.
fn headers(release: &str, version: &str) -> [String; 2] {
    let shared = release.strip_suffix("-amd64").unwrap_or(release);
    [release.to_owned(), format!("{shared}-common")]
        .map(|name| format!("linux-headers-{name}={version}"))
}

fn unpack_all(packages: &[PathBuf], to: &Path, selection: &[&str]) -> Result<()> {
    packages
        .iter()
        .try_for_each(|package| unpack(package, to, selection))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_named_after_the_release() {
        let expected = [
            "linux-headers-6.1.0-56-amd64=6.1.192-2",
            "linux-headers-6.1.0-56-common=6.1.192-2",
        ];
        assert_eq!(headers("6.1.0-56-amd64", "6.1.192-2"), expected);
    }
}
