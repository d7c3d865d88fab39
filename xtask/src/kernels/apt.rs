//! apt with lists, sources and cache of its own: it looks up and downloads, and installs nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::version;
use crate::process;

/// A folder with a configuration for apt.
pub(super) struct Apt {
    dir: PathBuf,
}

/// A package and its version.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
}

impl Apt {
    /// Prepares a folder that uses these sources and fetches their lists.
    pub(super) fn new(dir: &Path, sources: &str) -> Result<Self> {
        for folder in ["lists/partial", "archives/partial"] {
            let folder = dir.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        }
        for (name, text) in [("sources.list", sources), ("status", "")] {
            let file = dir.join(name);
            fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        }
        let apt = Self {
            dir: dir.to_owned(),
        };
        process::output(apt.command("apt-get").arg("update"))
            .context("fetch the package lists of the kernels")?;
        Ok(apt)
    }

    /// The newest generic kernel package of a series.
    pub(super) fn newest_kernel(&self, series: &str) -> Result<Package> {
        let prefix = format!("linux-image-{series}.");
        let names = process::output(self.command("apt-cache").args(["pkgnames", &prefix]))?;
        let names: Vec<_> = names.lines().filter(|name| is_generic(name)).collect();
        let text = process::output(
            self.command("apt-cache")
                .args(["show", "--no-all-versions"])
                .args(&names),
        )
        .with_context(|| format!("find a package {prefix}*"))?;
        parse_packages(&text)
            .into_iter()
            .max_by(|a, b| version::compare(&a.version, &b.version))
            .with_context(|| format!("no package {prefix}* in {}", self.dir.display()))
    }

    /// Downloads a package into `to` and returns its file.
    pub(super) fn download(&self, package: &Package, to: &Path) -> Result<PathBuf> {
        let exact = format!("{}={}", package.name, package.version);
        process::output(
            self.command("apt-get")
                .args(["download", &exact])
                .current_dir(to),
        )?;
        let entries = fs::read_dir(to).with_context(|| format!("list {}", to.display()))?;
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|file| file.extension().is_some_and(|suffix| suffix == "deb"))
            .with_context(|| format!("apt-get downloaded no file for {exact}"))
    }

    fn command(&self, program: &str) -> Command {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let options = [
            format!("Dir::State={}", self.dir.display()),
            format!("Dir::State::lists={}", path("lists")),
            format!("Dir::State::status={}", path("status")),
            format!("Dir::Cache={}", self.dir.display()),
            format!("Dir::Cache::archives={}", path("archives")),
            format!("Dir::Etc::sourcelist={}", path("sources.list")),
            "Dir::Etc::sourceparts=-".to_owned(),
            "Dir::Etc::preferences=-".to_owned(),
            "Dir::Etc::preferencesparts=-".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            // The cache may be in a home directory, which apt's own user cannot enter.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            // An archived suite is not signed anew; its signature is checked all the same.
            "Acquire::Check-Valid-Until=false".to_owned(),
        ];
        let mut command = Command::new(program);
        for option in options {
            command.args(["-o", &option]);
        }
        command.env("LC_ALL", "C");
        command
    }
}

/// The flavour for ordinary machines: no debug symbols, not unsigned, not for clouds or real time.
fn is_generic(name: &str) -> bool {
    let other = ["-cloud-", "-rt-", "-dbg", "-unsigned"];
    name.ends_with("-amd64") && !other.iter().any(|part| name.contains(part))
}

/// Reads `Package:` and `Version:` of stanzas.
fn parse_packages(text: &str) -> Vec<Package> {
    let mut packages = Vec::new();
    let mut name = "";
    for line in text.lines() {
        if let Some(value) = line.strip_prefix("Package: ") {
            name = value;
        } else if let Some(value) = line.strip_prefix("Version: ") {
            packages.push(Package {
                name: name.to_owned(),
                version: value.to_owned(),
            });
        }
    }
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generic_flavour_is_told_from_the_others() {
        let cases = [
            ("linux-image-6.12.107+deb13-amd64", true),
            ("linux-image-5.10.0-32-amd64", true),
            ("linux-image-6.12.107+deb13-cloud-amd64", false),
            ("linux-image-6.12.107+deb13-rt-amd64", false),
            ("linux-image-6.12.107+deb13-amd64-dbg", false),
            ("linux-image-6.12.107+deb13-amd64-unsigned", false),
            ("linux-image-6.12.107+deb13-arm64", false),
        ];
        for (name, expected) in cases {
            assert_eq!(is_generic(name), expected, "{name}");
        }
    }

    #[test]
    fn packages_are_read_from_stanzas() {
        let text = "Package: a\nVersion: 1-1\nSection: kernel\n\nPackage: b\nVersion: 2-1\n";
        let found: Vec<_> = parse_packages(text)
            .into_iter()
            .map(|package| (package.name, package.version))
            .collect();
        let expected = [("a", "1-1"), ("b", "2-1")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(found, expected);
    }
}
