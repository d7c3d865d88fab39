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

/// A package of a kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// The packages that have the image and the modules in newer series, where this one has nothing,
    /// each as `name=version`.
    parts: Vec<String>,
}

impl Package {
    /// What a kernel consists of, each as `name=version`.
    pub(super) fn files(&self) -> Vec<String> {
        let mut files = vec![format!("{}={}", self.name, self.version)];
        files.extend(self.parts.iter().cloned());
        files
    }
}

impl Apt {
    /// Prepares a folder that uses these sources and fetches their lists.
    pub(super) fn new(dir: &Path, sources: &str) -> Result<Self> {
        for folder in ["lists/partial", "archives/partial"] {
            let folder = dir.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let configuration = configuration(dir);
        for (name, text) in [
            ("apt.conf", configuration.as_str()),
            ("sources.list", sources),
            ("status", ""),
        ] {
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

    /// Downloads packages, each given as `name=version`, into `to` and returns the files.
    pub(super) fn download(&self, packages: &[String], to: &Path) -> Result<Vec<PathBuf>> {
        process::output(
            self.command("apt-get")
                .arg("download")
                .args(packages)
                .current_dir(to),
        )?;
        package_files(to)
    }

    /// Downloads packages and everything that they depend on, down to the C library, and returns the
    /// files.
    pub(super) fn download_closure(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        // Of the packages that an earlier call left here some may be outdated.
        process::output(self.command("apt-get").arg("clean"))?;
        process::output(
            self.command("apt-get")
                .args([
                    "install",
                    "--download-only",
                    "--yes",
                    "--no-install-recommends",
                ])
                .args(packages),
        )?;
        package_files(&self.dir.join("archives"))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("-c")
            .arg(self.dir.join("apt.conf"))
            .env("LC_ALL", "C");
        command
    }
}

/// The packages in a folder.
fn package_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    Ok(entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| file.extension().is_some_and(|suffix| suffix == "deb"))
        .collect())
}

/// What differs from the configuration of this machine, whose proxies and the like still hold.
fn configuration(dir: &Path) -> String {
    let path = |name: &str| dir.join(name).display().to_string();
    let options = [
        ("Dir::State", path("")),
        ("Dir::State::lists", path("lists")),
        ("Dir::State::status", path("status")),
        ("Dir::Cache", path("")),
        ("Dir::Cache::archives", path("archives")),
        ("Dir::Etc::sourcelist", path("sources.list")),
        ("Dir::Etc::sourceparts", "/dev/null".to_owned()),
        ("Dir::Etc::preferences", "/dev/null".to_owned()),
        ("Dir::Etc::preferencesparts", "/dev/null".to_owned()),
        ("APT::Architecture", "amd64".to_owned()),
        ("APT::Architectures", "amd64".to_owned()),
        // The cache may be in a home directory, which apt's own user cannot enter.
        ("APT::Sandbox::User", "root".to_owned()),
        ("Acquire::Languages", "none".to_owned()),
        ("Acquire::Retries", "3".to_owned()),
        // An archived suite is not signed anew; its signature is checked all the same.
        ("Acquire::Check-Valid-Until", "false".to_owned()),
    ];
    let lines = options.map(|(name, value)| format!("{name} \"{value}\";\n"));
    lines.concat()
}

/// The flavour for ordinary machines: no debug symbols, not unsigned, not for clouds or real time.
fn is_generic(name: &str) -> bool {
    let other = ["-cloud-", "-rt-", "-dbg", "-unsigned"];
    name.ends_with("-amd64") && !other.iter().any(|part| name.contains(part))
}

/// Reads `Package:`, `Version:` and the parts of the kernel in `Depends:`.
fn parse_packages(text: &str) -> Vec<Package> {
    let stanzas = text.split("\n\n").filter(|stanza| !stanza.is_empty());
    stanzas.map(parse_package).collect()
}

fn parse_package(stanza: &str) -> Package {
    let mut package = Package::default();
    for line in stanza.lines() {
        match line.split_once(": ") {
            Some(("Package", value)) => value.clone_into(&mut package.name),
            Some(("Version", value)) => value.clone_into(&mut package.version),
            Some(("Depends", value)) => package.parts = parts(value),
            _ => {}
        }
    }
    package
}

/// The dependencies on an exact version, if the modules are among them.
fn parts(depends: &str) -> Vec<String> {
    let exact = |dependency: &str| {
        let (name, rest) = dependency.trim().split_once(" (= ")?;
        let version = rest.strip_suffix(')')?;
        Some(format!("{name}={version}"))
    };
    if !depends.contains("linux-modules-") {
        return Vec::new();
    }
    depends.split(',').filter_map(exact).collect()
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
        let text = "Package: a\nVersion: 1-1\nDepends: kmod, linux-base-a (= 1-1)\n\n\
                    Package: b\nVersion: 2-1\n\
                    Depends: a | c, linux-binary-b (= 2-1), linux-modules-b (= 2-2)\n";
        let expected = [
            package("a", "1-1", &[]),
            package("b", "2-1", &["linux-binary-b=2-1", "linux-modules-b=2-2"]),
        ];
        assert_eq!(parse_packages(text), expected);
    }

    fn package(name: &str, version: &str, parts: &[&str]) -> Package {
        Package {
            name: name.into(),
            version: version.into(),
            parts: parts.iter().map(|&part| part.into()).collect(),
        }
    }
}
