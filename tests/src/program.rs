//! The program under test, and what it says that it can do here.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
    sync::OnceLock,
};

use serde::Deserialize;
use serde_json::Value;

use crate::accounts::Account;

/// What `netprobe check` says.
#[derive(Clone, Debug, Deserialize)]
pub struct Check {
    /// `netprobe.check/1`.
    pub schema: String,
    /// Release of the running kernel.
    pub kernel: String,
    /// What each probe could attach to.
    pub probes: Vec<Account>,
}

impl Check {
    /// What it says of one probe.
    #[track_caller]
    pub fn probe(&self, name: &str) -> &Account {
        let found = self.probes.iter().find(|probe| probe.name == name);
        found.unwrap_or_else(|| panic!("netprobe check does not know {name}"))
    }

    /// Version of the kernel, major and minor.
    pub fn version(&self) -> (u32, u32) {
        let mut numbers = self.kernel.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next().and_then(|number| number.parse().ok());
        (
            next().expect("a major version"),
            next().expect("a minor version"),
        )
    }
}

/// Path of the binary: `NETPROBE_BIN`, or the workspace's own, built first.
pub fn binary() -> &'static PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match env::var_os("NETPROBE_BIN") {
        Some(path) => path.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--package", "netprobe"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .expect("run cargo; NETPROBE_BIN spares it");
    assert!(built.status.success(), "cargo could not build netprobe");
    let executable = String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    executable.expect("cargo says where the program is")
}

/// What `netprobe check --json` says here, asked once.
pub fn check() -> &'static Check {
    static CHECK: OnceLock<Check> = OnceLock::new();
    CHECK.get_or_init(fresh_check)
}

/// What `netprobe check --json` says now.
#[track_caller]
pub fn fresh_check() -> Check {
    let output = Command::new(binary())
        .args(["check", "--json"])
        .output()
        .expect("run netprobe check");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|why| {
        let complaint = String::from_utf8_lossy(&output.stderr);
        panic!("netprobe check --json: {why}; {complaint}")
    })
}
