//! Programs that spend known shares of their time in known functions, and the graphs drawn of them.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
};

use netprobe_tests::{probe::Probe, skip::skip};

const IN_C: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/live/programs/burner.c");
const IN_C_WITHOUT_LIBRARY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/live/programs/leaf.c");
const SPIN_IN_C: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/live/programs/spin.c");
const LEAF_IN_GO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/live/programs/leaf.go");
const HASH_IN_GO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/live/programs/hash.go");
const IN_RUST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/live/programs/burner.rs");
/// Enough for shares that are known to a point.
pub(crate) const OFTEN: &str = "997";

/// A burner in C, built with `flags` under the name `name`; none where there is no compiler.
pub(crate) fn build(folder: &Path, name: &str, flags: &[&str]) -> Option<PathBuf> {
    compile("gcc", folder, name, flags, IN_C)
}

/// The same in Rust.
pub(crate) fn build_rust(folder: &Path, name: &str, flags: &[&str]) -> Option<PathBuf> {
    let flags = [&["--edition", "2024", "-O", "-g"], flags].concat();
    compile("rustc", folder, name, &flags, IN_RUST)
}

/// Builds a program that keeps no frame pointers, nor anything else in their register.
pub(crate) fn build_spin(folder: &Path) -> Option<PathBuf> {
    let flags = ["-O2", "-fomit-frame-pointer", "-static-pie"];
    compile("gcc", folder, "spin", &flags, SPIN_IN_C)
}

/// Builds a program without a C library, whose code all keeps frame pointers but for a function that calls no other.
pub(crate) fn build_leaf(folder: &Path) -> Option<PathBuf> {
    let flags = "-O1 -fno-omit-frame-pointer -static-pie -nostdlib -fPIE -Wl,--eh-frame-hdr";
    let flags: Vec<&str> = flags.split(' ').collect();
    compile("gcc", folder, "leaf-fp", &flags, IN_C_WITHOUT_LIBRARY)
}

/// The same in Go.
pub(crate) fn build_leaf_go(folder: &Path) -> Option<PathBuf> {
    build_go(folder, "leaf-go", LEAF_IN_GO)
}

/// A hash under two callers, in Go.
pub(crate) fn build_hash_go(folder: &Path) -> Option<PathBuf> {
    build_go(folder, "hash-go", HASH_IN_GO)
}

/// Builds a program of Go without symbols.
fn build_go(folder: &Path, name: &str, source: &str) -> Option<PathBuf> {
    let program = folder.join(name);
    let built = Command::new("go")
        .args(["build", "-ldflags", "-s -w", "-o"])
        .args([&program, Path::new(source)])
        .env("GOCACHE", folder.join("cache"))
        .status();
    is_built("go", built).then_some(program)
}

fn compile(
    compiler: &str,
    folder: &Path,
    name: &str,
    flags: &[&str],
    source: &str,
) -> Option<PathBuf> {
    let program = folder.join(name);
    let built = Command::new(compiler)
        .args(flags)
        .arg("-o")
        .args([&program, Path::new(source)])
        .status();
    is_built(compiler, built).then_some(program)
}

/// Whether a compiler has done its work; false where there is none.
fn is_built(compiler: &str, built: io::Result<ExitStatus>) -> bool {
    match built {
        Ok(status) if status.success() => true,
        Ok(status) => panic!("{compiler}: {status}"),
        Err(why) => {
            skip(&format!("no {compiler} here ({why})"));
            false
        }
    }
}

/// A running burner.
pub(crate) struct Burner {
    pub(crate) child: Child,
    output: ChildStdout,
}

impl Burner {
    pub(crate) fn start(program: &Path, mode: &str, seconds: u32) -> Self {
        let mut command = Command::new(program);
        command.args([mode, &seconds.to_string()]);
        Self::spawn(&mut command)
    }

    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the burner");
        let output = child.stdout.take().expect("its output is a pipe");
        Self { child, output }
    }

    /// Waits until its time is spent.
    pub(crate) fn wait(&mut self) {
        let mut byte = [0];
        self.output.read_exact(&mut byte).expect("the burner lives");
    }

    pub(crate) fn map(&self) -> PathBuf {
        format!("/tmp/perf-{}.map", self.child.id()).into()
    }
}

impl Drop for Burner {
    fn drop(&mut self) {
        // It may have ended by itself, and not all write a map.
        self.child.kill().ok();
        self.child.wait().ok();
        fs::remove_file(self.map()).ok();
    }
}

/// Stacks of `comm` and their weights, drawn while a burner runs.
pub(crate) fn draw(graph: &[&str], burner: impl FnOnce() -> Burner) -> Vec<(String, u64)> {
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("graph.folded");
    let path = file.to_str().expect("a path of ours is text");
    let common = ["--folded", "--duration", "60s", "-o", path];
    let probe = Probe::start(&[&["flame"], graph, &common].concat());
    let mut burner = burner();
    burner.wait();
    probe.stop_without_summary();
    let text = fs::read_to_string(&file).expect("read the graph");
    let stacks = text.lines().map(|line| {
        let (stack, weight) = line.rsplit_once(' ').expect("a stack and its weight");
        (
            stack.to_owned(),
            weight.parse().expect("a weight is a number"),
        )
    });
    stacks.collect()
}

/// The share of the stacks with `frame`, of those with any of its kind, in percent.
pub(crate) fn share(stacks: &[(String, u64)], frame: &str, kind: &str) -> f64 {
    let weight = |name: &str| -> u64 {
        let has = |stack: &str| stack.split(';').any(|one| one.starts_with(name));
        let those = stacks.iter().filter(|(stack, _)| has(stack));
        those.map(|(_, weight)| weight).sum()
    };
    let all = weight(kind);
    assert!(all > 0, "no {kind}: {stacks:?}");
    #[expect(clippy::cast_precision_loss, reason = "weights are small")]
    let percent = 100.0 * weight(frame) as f64 / all as f64;
    percent
}

/// The functions of `kind` have their shares, within 3 points.
#[track_caller]
pub(crate) fn assert_shares(stacks: &[(String, u64)], kind: &str) {
    for (name, expected) in [("fifty", 50.0), ("thirty", 30.0), ("twenty", 20.0)] {
        let share = share(stacks, &format!("{kind}{name}"), kind);
        assert!(
            (share - expected).abs() <= 3.0,
            "{kind}{name}: {share:.1} % of {expected} %: {stacks:#?}"
        );
    }
}
