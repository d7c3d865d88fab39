//! `PROVENANCE.toml`, beside the committed object: what it was made from and with.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

const HEADER: &str = "\
# Written by `cargo xtask ebpf`, compared by `cargo xtask ebpf --check`. Do not edit.
# The same toolchain and sources give the same object, byte for byte, in any directory.
";

/// What the committed object was made from and with.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Provenance {
    /// The object.
    pub(super) object: Object,
    /// The programs that made it.
    pub(super) toolchain: Versions,
}

/// The object, the sources it belongs to and the flags it was built with.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Object {
    /// The file's name.
    pub(super) file: String,
    /// The digest of the file.
    pub(super) sha256: String,
    /// The digest of the sources.
    pub(super) sources_sha256: String,
    /// The compiler's flags.
    pub(super) flags: Vec<String>,
}

/// The versions of the programs that decide the object's bytes.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Versions {
    /// `rustc --version`; the library sources are of the same release.
    pub(super) rustc: String,
    /// The digest of the library sources' list of packages and versions.
    pub(super) rust_src: String,
    /// `bpf-linker --version`.
    pub(super) bpf_linker: String,
    /// The version of `llvm-strip`.
    pub(super) llvm_strip: String,
}

impl Provenance {
    /// Reads the file.
    pub(super) fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        toml::from_str(&text).with_context(|| format!("parse {}", file.display()))
    }

    /// Writes the file.
    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let text = toml::to_string(self).context("write provenance as TOML")?;
        fs::write(file, format!("{HEADER}{text}"))
            .with_context(|| format!("write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provenance_survives_a_round_trip() {
        let before = Provenance {
            object: Object {
                file: "x.bpf.o".into(),
                sha256: "aa".into(),
                sources_sha256: "bb".into(),
                flags: vec!["--cfg=bpf_target_arch=\"x86_64\"".into()],
            },
            toolchain: Versions {
                rustc: "rustc 1.96.0".into(),
                rust_src: "cc".into(),
                bpf_linker: "bpf-linker 0.13.0".into(),
                llvm_strip: "LLVM version 22".into(),
            },
        };
        let file = tempfile::NamedTempFile::new().expect("a file");
        before.write(file.path()).expect("written");
        assert_eq!(Provenance::read(file.path()).expect("read"), before);
    }
}
