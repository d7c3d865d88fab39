//! `--count --by`: groups that the kernel counts, equal to the events that were provoked.

use std::{collections::BTreeMap, time::Duration};

use netprobe_tests::{
    cgroup::Cgroup,
    netns::{Cable, Netns},
    probe::{Probe, Run},
    process::Actor,
    skip::has_hooks,
    traffic::{
        CLIENT, Family, SERVER, accept_queue,
        packet::{Packet, Wire, flags},
        storm::Storm,
    },
    wait_until,
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
    let counted = |events: &[netprobe_tests::event::Event]| -> u64 {
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

#[test]
fn what_came_after_the_last_whole_interval_is_in_one_that_ends_with_the_run() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let netns = cable.server.inum().to_string();
    let options = ["--count", "--interval", "1h", "--netns", &netns];
    let probe = Probe::start(&[&["drops", "--json"][..], &options].concat());
    refused(&cable, Family::V4, [3, 4, 0]);
    let run = probe.stop();
    let [last] = run.all() else {
        panic!("not one interval: {:#?}", run.all());
    };
    let counted = last["totals"].as_array().into_iter().flatten();
    let counted: u64 = counted.filter_map(|total| total["events"].as_u64()).sum();
    assert_eq!(counted, 7);
    assert!(last["elapsed_s"].as_f64().is_some_and(|s| s < 3600.0));
}

/// Opens and closes connections in the client's namespace.
fn visit(cable: &Cable, name: &str, times: usize, group: Option<&Cgroup>) -> Actor {
    let mut visitor = Actor::start(name, |_| {
        cable.client.enter();
        if let Some(group) = group {
            group.enter();
        }
        for _ in 0..times {
            drop(Family::V4.connect(PORT).expect("connect"));
        }
    });
    visitor.hear();
    visitor
}

#[test]
fn processes_and_cgroups_are_told_apart() {
    if !has_hooks("lifetimes", &[]) {
        return;
    }
    let Some(group) = Cgroup::new() else {
        return;
    };
    let cable = Cable::new();
    let netns = cable.client.inum().to_string();
    let options = ["--count", "--by", "process,cgroup", "--netns", &netns];
    let probe = Probe::start(&[&["lifetimes", "--json"], &options[..]].concat());
    let listener = cable.server.run(|| Family::V4.listen(PORT, 64));
    // An emulated machine takes long over what it runs for the first time: an interrupt in it, in which more connections
    // end, is what the kernel's guard against recursion skips.
    let first = visit(&cable, "np-first", 1, None);
    drop((listener.accept().expect("accept"), first));
    cable.client.wait_for_silence();
    let outside = visit(&cable, "np-outside", 3, None);
    let inside = visit(&cable, "np-inside", 5, Some(&group));
    let others = (0..8).map(|_| listener.accept().expect("accept"));
    drop(others.collect::<Vec<_>>());
    cable.client.wait_for_silence();
    let run = probe.stop();
    let mut found = totals(&run);
    found.retain(|(group, _)| group["comm"] != "np-first");
    for (actor, name, times) in [(&outside, "np-outside", 3), (&inside, "np-inside", 5)] {
        let mine = found.iter().find(|(group, _)| group["comm"] == name);
        let (group, events) = mine.unwrap_or_else(|| panic!("{name}: {found:#?}"));
        assert_eq!(group["pid"], actor.pid(), "{name}");
        assert_eq!(*events, times, "{name}");
    }
    assert_eq!(found.len(), 2, "{found:#?}");
    let within = found.iter().filter(|(of, _)| of["cgroup"] == group.path());
    assert_eq!(within.map(|(_, events)| events).sum::<u64>(), 5);
    assert!(run.summary.cost.is_some(), "{:#?}", run.summary);
    assert!(
        run.complaints.contains("netprobe: cost "),
        "{}",
        run.complaints
    );
    drop((outside, inside));
}

#[test]
fn a_storm_is_counted_to_the_packet_by_stack_and_by_more_flows_than_there_is_room_for() {
    /// More than one map holds.
    const FLOWS: u32 = 200_000;
    if !has_hooks("drops", &[]) {
        return;
    }
    let netns = Netns::new();
    let inum = netns.inum().to_string();
    let count = |by| {
        let options = ["--json", "--strict", "--count", "--by", by, "--top", "4"];
        Probe::start(&[&["drops"], &options[..], &["--netns", &inum]].concat())
    };
    let probes = ["stack,process", "flow"].map(count);
    let storm = Storm {
        flows: FLOWS,
        ..Storm::full()
    };
    let sent = storm.rage(&netns, Duration::from_millis(400));
    let [stacks, flows] = probes.map(Probe::stop);
    for run in [&stacks, &flows] {
        let counters = run.account("drops").counters;
        assert_eq!(counters.aggregated, sent, "{counters:?}");
        let counted: u64 = totals(run).iter().map(|(_, events)| events).sum();
        assert_eq!(counted, sent, "{:#?}", run.summary.totals);
    }
    assert_eq!(stacks.account("drops").counters.map_full, 0);
    for (group, events) in totals(&stacks) {
        let frames = group["stack"].as_array();
        let is_known = |frames: &Vec<Value>| frames.iter().any(|frame| frame == "tcp_v4_rcv");
        assert!(frames.is_some_and(is_known), "{events} of {group:?}");
    }
    let others = totals(&flows)
        .into_iter()
        .find(|(group, _)| group.contains_key("other"));
    assert!(others.is_some(), "{:#?}", flows.summary.totals);
}

#[test]
fn listeners_are_told_apart_with_their_processes() {
    if !has_hooks("listeners", &["SYNs refused"]) {
        return;
    }
    let cable = Cable::new();
    let netns = cable.server.inum().to_string();
    let options = ["--count", "--by", "listener,process", "--netns", &netns];
    let probe = Probe::start(&[&["listeners", "--json", "--strict"], &options[..]].concat());
    let crowds = [Family::V4, Family::Mapped].map(|family| {
        let port = family.port(PORT);
        let listener = cable.server.run(|| family.listen(port, 1));
        let begin = |count: u32| -> Vec<_> {
            cable
                .client
                .run(|| (0..count).map(|_| family.begin(port)).collect())
        };
        let full = begin(2);
        wait_until("the accept queue was full", || accept_queue(&listener) > 1);
        (begin(3), full, listener)
    });
    wait_until("they were refused", || {
        cable.server.counters().get("TcpExt.ListenOverflows") >= 6
    });
    let listeners = crowds.map(|(_, _, listener)| listener);
    cable.client.wait_for_silence();
    let refused = cable.server.counters().get("TcpExt.ListenOverflows");
    let run = probe.stop();
    let found = totals(&run);
    for family in [Family::V4, Family::Mapped] {
        let expected = group(&[
            ("listener", json!(family.listener_shown())),
            ("listener_port", json!(family.port(PORT))),
            ("pid", json!(std::process::id())),
        ]);
        let is_same = |(group, _): &&(BTreeMap<String, Value>, u64)| {
            expected
                .iter()
                .all(|(name, value)| group.get(name) == Some(value))
        };
        assert_eq!(found.iter().filter(is_same).count(), 1, "{found:#?}");
    }
    let counted: u64 = found.iter().map(|(_, events)| events).sum();
    assert_eq!(i64::try_from(counted), Ok(refused), "{found:#?}");
    drop(listeners);
}

#[test]
fn ports_that_find_no_room_are_not_told_apart_but_everything_else_is() {
    const PORTS: u16 = 5000;
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let _firewall = cable.server.firewall("input", "tcp flags syn");
    let probe = Probe::counting(&cable.server, "drops");
    cable.client.run(|| {
        let wire = Wire::open();
        for port in 1..=PORTS {
            wire.send(&Packet::new(Family::V4, flags::SYN, port));
        }
    });
    let run = probe.stop();
    let (rest, ports): (Vec<_>, Vec<_>) = totals(&run)
        .into_iter()
        .partition(|(group, _)| group["dport"].is_null());
    let [(group, rest)] = &rest[..] else {
        panic!("{rest:?}");
    };
    assert_eq!(group["netns"], cable.server.inum());
    assert!(group["location"].is_string(), "{group:?}");
    assert!(ports.iter().all(|(_, events)| *events == 1), "{ports:?}");
    assert_eq!(ports.len() as u64 + rest, u64::from(PORTS));
    assert!(!run.summary.complete);
}
