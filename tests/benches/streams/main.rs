//! `cargo xtask bench streams`: what a stream costs per event as a ratio to what bpftrace costs for
//! the same in the same traffic, and its memory with many connections open. The method and results
//! are in `docs/performance.md`.
//!
//! `ROUNDS` is how often each is measured (5), interleaved, because machines drift; a part of the name
//! of a comparison measures only that, and memory.
#![expect(clippy::print_stdout, reason = "the result goes there")]

mod bars;
mod memory;
mod retransmits;

use std::{env, fs, time::Duration};

use bars::{BARS, Bar, Traffic};
use netprobe_tests::{
    bpf::{RunTime, Statistics},
    netns::Netns,
    traffic::storm::Storm,
    watcher::{Case, Watcher},
};
use retransmits::Lossy;

/// Slices in which the kernel measures run time; the median is free of those that were disturbed.
const SLICES: usize = 20;
/// Length of a slice.
const SLICE: Duration = Duration::from_millis(50);

fn main() {
    let rounds = env::var("ROUNDS").ok();
    let rounds = rounds.and_then(|rounds| rounds.parse().ok()).unwrap_or(5);
    println!("| per event | netprobe | bpftrace | ratio | bar |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    let wanted = env::args().skip(1).find(|name| !name.starts_with('-'));
    let is_wanted = |bar: &&Bar| {
        let name = wanted.as_deref();
        name.is_none_or(|name| bar.name.contains(name))
    };
    for bar in BARS.iter().filter(is_wanted) {
        if bar.other.is_installed() {
            compare(bar, rounds);
        } else {
            println!("| {} | | not installed | | {} |", bar.name, bar.most);
        }
    }
    memory::report();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "\nMedians of {rounds} interleaved rounds; load average {}.",
        load.trim()
    );
}

/// Measures both in turn and prints a line.
fn compare(bar: &Bar, rounds: usize) {
    let (mut ours, mut others, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let own = cost(&bar.own, bar.traffic);
        let other = cost(&bar.other, bar.traffic);
        ours.push(own);
        others.push(other);
        ratios.push(own / other);
    }
    let [own, other, ratio] = [&mut ours, &mut others, &mut ratios].map(|all| median(all));
    if other > 0.0 {
        println!(
            "| {} | {own:.0} ns | {other:.0} ns | {ratio:.2} | {} |",
            bar.name, bar.most
        );
    } else {
        println!(
            "| {} | {own:.0} ns | saw nothing | | {} |",
            bar.name, bar.most
        );
    }
}

/// Nanoseconds of one event in the kernel.
fn cost(case: &Case, traffic: Traffic) -> f64 {
    let netns = Netns::new();
    let lossy = matches!(traffic, Traffic::Retransmits).then(Lossy::new);
    let watcher = Watcher::start(case);
    let statistics = Statistics::enable();
    let mut slices: Vec<f64> = (0..SLICES)
        .map(|_| {
            let before = RunTime::of(watcher.id());
            if let Some(lossy) = &lossy {
                lossy.run(SLICE);
            } else {
                let one = Storm {
                    senders: 1,
                    ..Storm::full()
                };
                one.rage(&netns, SLICE);
            }
            RunTime::of(watcher.id()).ns_per_run_since(before)
        })
        .collect();
    drop(statistics);
    watcher.stop();
    median(&mut slices)
}

/// The one in the middle; the greater of two.
fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}
