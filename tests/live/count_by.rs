//! `--count --by`: groups that the kernel counts, equal to the drops that were provoked.

use std::collections::BTreeMap;

use netprobe_tests::{
    netns::Cable,
    probe::{Probe, Run},
    skip::has_hooks,
    traffic::{CLIENT, Family, SERVER},
};
use serde_json::{Value, json};

const PORT: u16 = 7661;

/// Drops at closed ports: `times` at each.
fn refused(cable: &Cable, family: Family, times: [u64; 3]) {
    for (port, times) in (PORT..).zip(times) {
        for _ in 0..times {
            let refused = cable.client.run(|| family.connect(port));
            refused.expect_err("nobody listens");
        }
    }
}

fn counting(cable: &Cable, by: &str, top: &str) -> Probe {
    let netns = cable.server.inum().to_string();
    let by = ["drops", "--json", "--count", "--by", by, "--top", top];
    Probe::start(&[&by[..], &["--netns", &netns, "--filter", "not sport 0"]].concat())
}

fn totals(run: &Run) -> Vec<(BTreeMap<String, Value>, u64)> {
    let totals = run.summary.totals.iter().filter(|total| total.events > 0);
    totals
        .map(|total| (total.group.clone(), total.events))
        .collect()
}

fn group(pairs: &[(&str, Value)]) -> BTreeMap<String, Value> {
    let pairs = pairs.iter();
    pairs
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect()
}

#[test]
fn groups_are_joined_to_what_is_asked_for_and_the_rest_is_other() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let probe = counting(&cable, "dport", "2");
    refused(&cable, Family::V4, [3, 7, 5]);
    let run = probe.stop();
    let expected = [
        (group(&[("dport", json!(PORT + 1))]), 7),
        (group(&[("dport", json!(PORT + 2))]), 5),
        (group(&[("other", json!(1))]), 3),
    ];
    assert_eq!(totals(&run), expected, "{:#?}", run.summary.totals);
    assert_eq!(run.account("drops").counters.aggregated, 15);
}

#[test]
fn connections_are_told_apart_in_the_kernel() {
    if !has_hooks("drops", &[]) {
        return;
    }
    for family in Family::OF_PACKETS {
        let cable = Cable::new();
        let probe = counting(&cable, "saddr,daddr,dport", "9");
        refused(&cable, family, [4, 2, 0]);
        let run = probe.stop();
        let key = |port: u16| {
            group(&[
                ("saddr", json!(family.shown(CLIENT))),
                ("daddr", json!(family.shown(SERVER))),
                ("dport", json!(port)),
            ])
        };
        assert_eq!(totals(&run), [(key(PORT), 4), (key(PORT + 1), 2)]);
    }
}

#[test]
fn every_flow_is_its_own_group() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let probe = counting(&cable, "flow", "99");
    refused(&cable, Family::V4, [6, 0, 0]);
    let run = probe.stop();
    // Each connect has a local port of its own.
    assert_eq!(totals(&run).len(), 6, "{:#?}", run.summary.totals);
    assert!(totals(&run).iter().all(|(_, events)| *events == 1));
}

#[test]
fn intervals_add_up_to_the_whole() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let netns = cable.server.inum().to_string();
    let arguments = [
        "drops",
        "--json",
        "--count",
        "--interval",
        "100ms",
        "--netns",
        &netns,
    ];
    let mut probe = Probe::start(&arguments);
    let counted = |events: &[netprobe_tests::probe::Event]| -> u64 {
        let totals = events
            .iter()
            .flat_map(|event| event["totals"].as_array().into_iter().flatten());
        totals.filter_map(|total| total["events"].as_u64()).sum()
    };
    refused(&cable, Family::V4, [3, 0, 0]);
    probe.wait_for("the first", |events| counted(events) == 3);
    refused(&cable, Family::V4, [0, 4, 0]);
    probe.wait_for("the others", |events| counted(events) == 7);
    let run = probe.stop();
    assert_eq!(
        totals(&run).iter().map(|(_, events)| events).sum::<u64>(),
        7
    );
}
