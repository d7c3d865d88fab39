//! The same load at the same time, as perf(1) and as netprobe sees it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::{Child, Command, Stdio},
};

use netprobe_tests::skip::skip;

use crate::burner::{Burner, build, draw};

/// What perf still keeps up with.
const HERTZ: &str = "499";
/// So long that shares of samples taken at different moments agree within a point.
const SECONDS: u32 = 24;
/// Functions that are compared.
const TOP: usize = 20;
/// Shares may differ by so many points.
const POINTS: f64 = 3.0;

/// In how much of all stacks each function is, in percent.
fn shares(stacks: &[(BTreeSet<String>, u64)]) -> BTreeMap<String, f64> {
    let all: u64 = stacks.iter().map(|(_, weight)| weight).sum();
    let mut shares: BTreeMap<String, f64> = BTreeMap::new();
    for (functions, weight) in stacks {
        #[expect(clippy::cast_precision_loss, reason = "weights are small")]
        let percent = 100.0 * *weight as f64 / all as f64;
        for function in functions {
            *shares.entry(function.clone()).or_default() += percent;
        }
    }
    shares
}

/// What `perf script` prints of each sample: an address and a function per line.
fn parse(script: &str) -> Vec<(BTreeSet<String>, u64)> {
    let samples = script.split("\n\n").map(str::trim);
    let functions = |sample: &str| {
        let frames = sample
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1));
        // What has no name there has another name here.
        let named = frames.filter(|function| !function.starts_with('['));
        named.map(plain).collect()
    };
    let samples = samples.filter(|sample| !sample.is_empty());
    samples.map(|sample| (functions(sample), 1)).collect()
}

/// A name without what tells its aliases apart, of which the C library has many.
fn plain(function: &str) -> String {
    let (function, _version) = function.split_once('@').unwrap_or((function, ""));
    let function = function.trim_start_matches("__GI_").trim_start_matches('_');
    let function = function.strip_prefix("libc_").unwrap_or(function);
    function.trim_end_matches("_impl").to_owned()
}

/// perf at work on a process, to its end.
fn record(pid: u32, data: &Path) -> Child {
    Command::new("perf")
        .args(["record", "-q", "-e", "cpu-clock", "-F", HERTZ])
        .args(["--call-graph", "dwarf", "-p", &pid.to_string(), "-o"])
        .arg(data)
        .spawn()
        .expect("start perf")
}

/// The samples that it took, as text.
fn script(data: &Path) -> String {
    let script = Command::new("perf")
        .args(["script", "--no-inline", "-F", "ip,sym", "-i"])
        .arg(data)
        .output()
        .expect("run perf script");
    String::from_utf8_lossy(&script.stdout).into_owned()
}

#[test]
fn perf_sees_the_same_functions_with_the_same_shares() {
    if Command::new("perf")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        skip("no perf here: its package linux-perf is not installed");
        return;
    }
    let folder = tempfile::tempdir().expect("make a folder");
    // Both have to unwind it by its tables. Without debug information neither sees inlined functions.
    let flags = ["-O2", "-fomit-frame-pointer"];
    let Some(program) = build(folder.path(), "burn-perf", &flags) else {
        return;
    };
    let data = folder.path().join("perf.data");
    let mut perf = None;
    let graph = ["cpu", "-F", HERTZ, "--comm", "burn-perf"];
    let stacks = draw(&graph, || {
        let burner = Burner::start(&program, "sys", SECONDS);
        perf = Some(record(burner.child.id(), &data));
        burner
    });
    // The burner has ended with the graph, and perf with the burner.
    let recorded = perf.expect("it was started").wait().expect("wait for perf");
    assert!(recorded.success(), "perf record: {recorded}");
    let theirs = shares(&parse(&script(&data)));
    let functions = |stack: &str| {
        let frames = stack.split(';').skip(1);
        frames
            .map(|frame| plain(frame.strip_suffix("_[k]").unwrap_or(frame)))
            .collect()
    };
    let ours: Vec<_> = stacks
        .iter()
        .map(|(stack, weight)| (functions(stack), *weight))
        .collect();
    let ours = shares(&ours);
    let mut top: Vec<(&String, f64)> = theirs.iter().map(|(name, share)| (name, *share)).collect();
    top.sort_by(|a, b| b.1.total_cmp(&a.1));
    top.truncate(TOP);
    assert!(top.len() >= 10, "{theirs:#?}");
    for (function, theirs) in top {
        let ours = ours.get(function).copied().unwrap_or_default();
        let difference = (ours - theirs).abs();
        assert!(
            difference <= POINTS,
            "{function}: {ours:.1} % here, {theirs:.1} % there"
        );
    }
}
