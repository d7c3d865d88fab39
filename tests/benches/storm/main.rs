//! What an event costs in the kernel, and what arrives, in a storm of drops; beside bpftrace.
//!
//! `cargo xtask bench storm`. The method is in `docs/performance.md`.

mod watcher;

use std::{thread::sleep, time::Duration};

use netprobe_tests::{
    bpf::{RunTime, Statistics},
    netns::Netns,
    traffic::storm::Storm,
};
use watcher::Watcher;

fn main() {
    let rounds: usize = std::env::var("ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(3);
    let only = std::env::args().nth(1).filter(|a| !a.starts_with("--"));
    let netns = Netns::new();
    for round in 0..rounds {
        for case in watcher::CASES {
            if only.as_ref().is_some_and(|only| !case.name.contains(only.as_str())) {
                continue;
            }
            let watcher = Watcher::start(case);
            let storm = Storm { senders: std::env::var("SENDERS").ok().and_then(|r| r.parse().ok()).unwrap_or(1), rate: std::env::var("RATE").ok().and_then(|r| r.parse().ok()), flows: 1 };
            storm.rage(&netns, Duration::from_millis(200));
            let statistics = Statistics::enable();
            let mut figures = Vec::new();
            let (mut total, mut runs) = (0, 0);
            for _ in 0..20 {
                let before = RunTime::of(watcher.id());
                total += storm.rage(&netns, Duration::from_millis(50));
                let after = RunTime::of(watcher.id());
                figures.push(after.ns_per_run_since(before));
                runs += after.runs - before.runs;
            }
            drop(statistics);
            figures.sort_by(f64::total_cmp);
            println!(
                "{round} {:24} min {:7.1} q1 {:7.1} med {:7.1} ns/event  {} sent {} runs",
                case.name, figures[0], figures[5], figures[10], total, runs
            );
            watcher.stop();
            sleep(Duration::from_millis(100));
        }
    }
}
