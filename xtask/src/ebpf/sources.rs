//! The digest of everything that determines the eBPF object besides the toolchain.
//!
//! That is: the files of the two crates, the locked versions of what they depend on, what they take
//! from the workspace's manifest, and the compiler flags.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use toml::Table;

/// The package that becomes the object.
pub(super) const PACKAGE: &str = "netprobe-ebpf";
/// The folders whose files go into the object.
const FOLDERS: [&str; 2] = ["netprobe-common", "netprobe-ebpf"];

#[derive(Deserialize)]
struct Lock {
    package: Vec<LockedPackage>,
}

#[derive(Deserialize)]
struct LockedPackage {
    name: String,
    version: String,
    checksum: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

/// The digest, in hexadecimal, of the sources below `root` when built with `flags`.
pub(super) fn digest(root: &Path, flags: &[String]) -> Result<String> {
    let mut sum = Sha256::new();
    for folder in FOLDERS {
        for file in files_below(&root.join(folder))? {
            let relative = file.strip_prefix(root).unwrap_or(&file);
            let bytes = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
            add(&mut sum, relative.to_string_lossy().as_bytes());
            add(&mut sum, &bytes);
        }
    }
    let lock: Lock = read_toml(&root.join("Cargo.lock"))?;
    let locked = closure(&lock.package);
    for line in locked.values() {
        add(&mut sum, line.as_bytes());
    }
    let manifest: Table = read_toml(&root.join("Cargo.toml"))?;
    for line in inherited(&manifest, &locked) {
        add(&mut sum, line.as_bytes());
    }
    for flag in flags {
        add(&mut sum, flag.as_bytes());
    }
    Ok(hex(&sum.finalize()))
}

/// The digest, in hexadecimal, of some bytes.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lengths keep two neighbours apart: "ab","c" must not equal "a","bc".
fn add(sum: &mut Sha256, bytes: &[u8]) {
    sum.update(bytes.len().to_le_bytes());
    sum.update(bytes);
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn read_toml<T: for<'de> Deserialize<'de>>(file: &Path) -> Result<T> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    toml::from_str(&text).with_context(|| format!("parse {}", file.display()))
}

fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("list {}", dir.display()))?
            .path();
        if path.is_dir() {
            found.extend(files_below(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// What the package is built from, by name, each as one line.
fn closure(packages: &[LockedPackage]) -> BTreeMap<String, String> {
    let mut open = vec![PACKAGE.to_owned()];
    let mut seen = BTreeSet::new();
    let mut lines = BTreeMap::new();
    while let Some(want) = open.pop() {
        if !seen.insert(want.clone()) {
            continue;
        }
        // Cargo writes "name", or "name version" where a name alone is ambiguous.
        let (name, version) = want.split_once(' ').unwrap_or((&want, ""));
        let matches = |package: &&LockedPackage| {
            package.name == name && (version.is_empty() || package.version == version)
        };
        for package in packages.iter().filter(matches) {
            let checksum = package.checksum.as_deref().unwrap_or("in this workspace");
            let line = format!("{name} {} {checksum}", package.version);
            lines
                .entry(package.name.clone())
                .and_modify(|lines: &mut String| lines.push_str(&line))
                .or_insert(line);
            open.extend(package.dependencies.iter().cloned());
        }
    }
    lines
}

/// What the crates inherit from the workspace's manifest: the edition, and requirements with features.
fn inherited(manifest: &Table, locked: &BTreeMap<String, String>) -> Vec<String> {
    let workspace = manifest.get("workspace");
    let edition = workspace.and_then(|table| table.get("package")?.get("edition"));
    let requirements = workspace.and_then(|table| table.get("dependencies"));
    let mut lines = vec![format!("edition {edition:?}")];
    for name in locked.keys() {
        if let Some(requirement) = requirements.and_then(|table| table.get(name)) {
            lines.push(format!("{name} {requirement}"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"
        [[package]]
        name = "aya-ebpf"
        version = "0.2.1"
        checksum = "aa"
        dependencies = ["bits 1.0.0"]
        [[package]]
        name = "bits"
        version = "1.0.0"
        checksum = "b1"
        [[package]]
        name = "bits"
        version = "2.0.0"
        checksum = "b2"
        [[package]]
        name = "netprobe-ebpf"
        version = "0.1.0"
        dependencies = ["aya-ebpf"]
    "#;

    #[test]
    fn closure_has_what_the_package_needs_and_nothing_else() {
        let lock: Lock = toml::from_str(LOCK).expect("a lock file");
        let lines: Vec<_> = closure(&lock.package).into_values().collect();
        let expected = [
            "aya-ebpf 0.2.1 aa",
            "bits 1.0.0 b1",
            "netprobe-ebpf 0.1.0 in this workspace",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn digest_changes_with_a_source_and_not_with_the_place() {
        let one = checkout("fn a() {}");
        let two = checkout("fn a() {}");
        let three = checkout("fn b() {}");
        let sum = |dir: &tempfile::TempDir| digest(dir.path(), &[]).expect("a digest");
        assert_eq!(sum(&one), sum(&two));
        assert_ne!(sum(&one), sum(&three));
    }

    fn checkout(source: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for folder in FOLDERS {
            let src = dir.path().join(folder).join("src");
            fs::create_dir_all(&src).expect("a folder");
            fs::write(src.join("lib.rs"), source).expect("a file");
        }
        fs::write(dir.path().join("Cargo.lock"), LOCK).expect("a lock file");
        fs::write(dir.path().join("Cargo.toml"), "[workspace]\n").expect("a manifest");
        dir
    }
}
