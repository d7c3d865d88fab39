//! `cargo xtask bench start`: how long until everything is attached, and how much memory a stream
//! takes. The result is in `docs/performance.md`.
#![expect(clippy::print_stdout, reason = "the result goes there")]

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Instant,
};

use netprobe_tests::probe::binary;

const STREAMS: &[&str] = &["drops", "retransmits", "connects", "resets", "lifetimes"];
const ROUNDS: usize = 11;

fn main() {
    println!("| stream | attached after | RSS | BPF maps |");
    println!("| --- | ---: | ---: | ---: |");
    for stream in STREAMS {
        let mut rounds: Vec<Start> = (0..ROUNDS).map(|_| start(stream)).collect();
        rounds.sort_by(|a, b| a.ms.total_cmp(&b.ms));
        let Start {
            ms,
            rss_kib,
            maps_kib,
        } = rounds[ROUNDS / 2];
        println!(
            "| {stream} | {ms:.0} ms | {} MiB | {} MiB |",
            mib(rss_kib),
            mib(maps_kib)
        );
    }
}

fn mib(kib: u64) -> u64 {
    kib.div_ceil(1024)
}

struct Start {
    ms: f64,
    rss_kib: u64,
    maps_kib: u64,
}

fn start(stream: &str) -> Start {
    let began = Instant::now();
    let mut child = Command::new(binary())
        .args([stream, "--json"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start netprobe");
    let stderr = child.stderr.take().expect("standard error is a pipe");
    let mut lines = BufReader::new(stderr).lines();
    let is_ready = lines.any(|line| line.is_ok_and(|line| line.contains("ready")));
    let ms = began.elapsed().as_secs_f64() * 1000.0;
    assert!(is_ready, "netprobe {stream} did not get ready");
    let pid = child.id();
    let start = Start {
        ms,
        rss_kib: number(&format!("/proc/{pid}/status"), "VmRSS"),
        maps_kib: maps(pid) / 1024,
    };
    child.kill().expect("end netprobe");
    child.wait().expect("it ends");
    start
}

/// Memory of the maps that a process holds, in bytes.
fn maps(pid: u32) -> u64 {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("its files");
    let paths = entries
        .flatten()
        .map(|entry| entry.path().display().to_string());
    let is_map = |path: &String| fs::read_to_string(path).is_ok_and(|text| text.contains("map_id"));
    paths
        .filter(is_map)
        .map(|path| number(&path, "memlock"))
        .sum()
}

/// The number after `key:` in a file.
fn number(path: &str, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let value = lines.find(|(name, _)| *name == key).map(|(_, value)| value);
    let digits = value.and_then(|value| value.split_whitespace().next());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
