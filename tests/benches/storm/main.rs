//! `cargo xtask bench storm`: what watching drops costs and what arrives, in the same storm for
//! netprobe and bpftrace. The method and results are in `docs/performance.md`.
//!
//! `ROUNDS` is how often each is measured (5), interleaved, because machines drift; a name, or
//! a part of one, measures only what has it.
#![expect(clippy::print_stdout, reason = "the result goes there")]

mod cases;
mod figures;

use std::{env, time::Duration};

use cases::CASES;
use figures::{Figures, median};
use netprobe_tests::{
    bpf::{RunTime, Statistics},
    netns::Netns,
    traffic::storm::Storm,
    watcher::{Case, Watcher},
};

/// How long each storm rages.
const STORM: Duration = Duration::from_secs(1);
/// Slices in which the kernel measures run time; the median is free of those that were disturbed.
const SLICES: usize = 20;
/// Length of a slice.
const SLICE: Duration = Duration::from_millis(50);
/// The rate at which nearly everything has to arrive.
const RATE: u64 = 500_000;

fn main() {
    let wanted = env::args().skip(1).find(|name| !name.starts_with('-'));
    let rounds = env::var("ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok());
    let is_wanted = |case: &&Case| {
        let is_named = wanted
            .as_deref()
            .is_none_or(|name| case.name.contains(name));
        is_named && case.is_installed()
    };
    let cases: Vec<&Case> = CASES.iter().filter(is_wanted).collect();
    let netns = Netns::new();
    let mut all = vec![Vec::new(); cases.len()];
    for _ in 0..rounds.unwrap_or(5) {
        for (case, figures) in cases.iter().zip(&mut all) {
            let calm = rate(Storm::full().rage(&netns, STORM), STORM);
            figures.push(measure(case, &netns, calm));
        }
    }
    figures::heading();
    for (case, figures) in cases.iter().zip(&all) {
        figures::row(case.name, figures);
    }
    println!(
        "\nMedians of {} interleaved rounds.",
        all.first().map_or(0, Vec::len)
    );
}

/// Watches a storm in one way. `calm` is how many packets per second are sent unwatched.
fn measure(case: &Case, netns: &Netns, calm: f64) -> Figures {
    let watcher = Watcher::start(case);
    let statistics = Statistics::enable();
    let one = Storm {
        senders: 1,
        ..Storm::full()
    };
    let mut slices: Vec<f64> = (0..SLICES)
        .map(|_| {
            let before = RunTime::of(watcher.id());
            one.rage(netns, SLICE);
            RunTime::of(watcher.id()).ns_per_run_since(before)
        })
        .collect();
    drop(statistics);
    watcher.stop();

    let (full, sent, cpus) = share(case, netns, Storm::full());
    let paced = Storm {
        rate: Some(RATE),
        ..Storm::full()
    };
    let (paced, _, _) = share(case, netns, paced);
    Figures {
        ns: median(&mut slices),
        slower: 1.0 - sent / calm,
        paced,
        full,
        cpus,
    }
}

/// Which share of a storm arrives, how many packets per second were sent, and how many CPUs the
/// watcher used meanwhile.
fn share(case: &Case, netns: &Netns, storm: Storm) -> (Option<f64>, f64, f64) {
    let watcher = Watcher::start(case);
    let before = watcher.cpu_time();
    let sent = storm.rage(netns, STORM);
    let cpus = watcher.cpu_time().saturating_sub(before).as_secs_f64() / STORM.as_secs_f64();
    let shown = watcher.stop();
    let share = shown.map(|shown| ratio(shown, sent));
    (share, rate(sent, STORM), cpus)
}

fn rate(count: u64, time: Duration) -> f64 {
    ratio(count, 1) / time.as_secs_f64()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a storm has fewer packets than 2^52"
)]
fn ratio(count: u64, of: u64) -> f64 {
    count as f64 / of as f64
}
