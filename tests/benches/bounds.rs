//! `cargo xtask bench bounds`: how much memory netprobe takes after one and after ten million
//! different connections. The result is in `docs/performance.md`.
#![expect(clippy::print_stdout, reason = "the result goes there")]

use std::time::Duration;

use netprobe_tests::{
    memory::{maps_kib, peak_kib},
    netns::Netns,
    ready::{end, start_unheard},
    traffic::storm::Storm,
};

/// What is run; all of it sees every packet.
const CASES: &[&[&str]] = &[
    &["drops", "--json"],
    &["drops", "--json", "--stack"],
    &["drops", "--count"],
    &["drops", "--count", "--by", "flow"],
    &["resets", "--json"],
    &["flame", "drops", "--folded"],
    &["diagnose", "--json"],
];
const FEW: u64 = 1_000_000;
const MANY: u64 = 10_000_000;
/// How long a storm blows before its packets are counted again.
const GUST: Duration = Duration::from_millis(500);

fn main() {
    println!("| command | RSS after 1 M | after 10 M | BPF maps |");
    println!("| --- | ---: | ---: | ---: |");
    let netns = Netns::new();
    for arguments in CASES {
        let child = start_unheard(arguments);
        let pid = child.id();
        let mut sent = blow(&netns, 0, FEW);
        let few = peak_kib(pid);
        sent = blow(&netns, sent, MANY);
        let (many, maps) = (peak_kib(pid), maps_kib(pid));
        println!(
            "| {} ({} M packets) | {} MiB | {} MiB | {} MiB |",
            arguments.join(" "),
            sent / 1_000_000,
            few.div_ceil(1024),
            many.div_ceil(1024),
            maps.div_ceil(1024)
        );
        end(child);
    }
}

/// Sends until `wanted` packets, each of another connection, were sent in all.
fn blow(netns: &Netns, mut sent: u64, wanted: u64) -> u64 {
    while sent < wanted {
        let storm = Storm {
            flows: u32::try_from(MANY).expect("ten million"),
            first: u32::try_from(sent % MANY).expect("less than ten million"),
            ..Storm::full()
        };
        sent += storm.rage(netns, GUST);
    }
    sent
}
