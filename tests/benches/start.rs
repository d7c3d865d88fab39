//! `cargo xtask bench start`: how long until everything is attached, and how much memory a stream
//! takes. The result is in `docs/performance.md`.
#![expect(clippy::print_stdout, reason = "the result goes there")]

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use netprobe_tests::{
    memory::{maps_kib, resident_kib},
    program::binary,
    ready::await_ready,
};

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
    let _complaints = await_ready(&mut child);
    let ms = began.elapsed().as_secs_f64() * 1000.0;
    let pid = child.id();
    let start = Start {
        ms,
        rss_kib: resident_kib(pid),
        maps_kib: maps_kib(pid),
    };
    child.kill().expect("end netprobe");
    child.wait().expect("it ends");
    start
}
