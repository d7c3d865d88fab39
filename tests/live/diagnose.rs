//! `netprobe diagnose` on every kernel of the matrix: it sees what happens, and finds nothing where nothing
//! does. The incidents are in `tests/scenarios`.

use std::time::{Duration, Instant};

use netprobe_tests::{
    bpf::{RunTime, Statistics},
    netns::{Cable, Netns},
    ready::Diagnosing,
    skip,
    traffic::{Family, accept_queue},
    wait_until,
};
use serde_json::Value;

const PORT: u16 = 7301;

/// What `netprobe diagnose` says of a namespace, in which `happens` once it watches.
fn diagnose(netns: &Netns, happens: impl FnOnce()) -> Value {
    let diagnosing = Diagnosing::start(netns, 2);
    happens();
    diagnosing.verdict()
}

#[test]
fn a_server_that_does_not_accept_is_found_with_its_listener() {
    if !skip::is_root() {
        return;
    }
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 4));
    let begin = |count: usize| {
        cable.client.run(|| {
            let begin = (0..count).map(|_| Family::V4.begin(PORT));
            begin.collect::<Vec<_>>()
        })
    };
    let mut clients = begin(5);
    wait_until("the queue was full", || accept_queue(&listener) == 5);
    let diagnosis = diagnose(&cable.server, || clients.extend(begin(10)));
    let finding = &diagnosis["findings"][0];
    assert_eq!(finding["id"], "application-not-accepting", "{diagnosis:#}");
    assert_eq!(finding["affected"][0]["port"], PORT, "{finding:#}");
    assert_eq!(finding["affected"][0]["pid"], std::process::id());
}

#[test]
fn an_idle_namespace_has_no_finding() {
    if !skip::is_root() {
        return;
    }
    let cable = Cable::new();
    let diagnosis = diagnose(&cable.server, || {});
    assert_eq!(
        diagnosis["findings"],
        Value::Array(Vec::new()),
        "{diagnosis:#}"
    );
    assert_eq!(diagnosis["checked"].as_array().map(Vec::len), Some(26));
}

#[test]
fn its_price_includes_what_its_programs_take_in_the_kernel() {
    const WINDOW: Duration = Duration::from_secs(3);
    const SEEN: Duration = Duration::from_millis(2500);
    if !skip::is_root() {
        return;
    }
    let statistics = Statistics::enable();
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 128));
    let diagnosing = Diagnosing::start(&cable.server, 3);
    let began = Instant::now();
    while began.elapsed() < SEEN {
        drop(Family::V4.pair(&cable.client, &listener));
    }
    let in_kernel = RunTime::of(diagnosing.id()).ns;
    let diagnosis = diagnosing.verdict();
    drop(statistics);
    let cpu_percent = diagnosis["cost"]["cpu_percent"].as_f64();
    let told = WINDOW.mul_f64(cpu_percent.expect("a number") / 100.0);
    assert!(
        told >= Duration::from_nanos(in_kernel / 2),
        "{told:?}, and {in_kernel} ns of programs: {}",
        diagnosis["cost"]
    );
}
