//! The books balance: in a storm, with a slow reader, with two readers, and nothing stays behind.

use std::{
    io::{self, Read},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use netprobe_tests::{
    accounts::Total,
    bpf,
    netns::{Cable, Firewall, INTERFACE, Netns},
    probe::Probe,
    program::binary,
    ready::await_ready,
    skip::has_hooks,
    traffic::{
        Family,
        packet::{Packet, Wire, flags},
        storm::Storm,
    },
    wait_until,
};
use rustix::process::{Pid, Signal, kill_process};

const PORT: u16 = 7401;
const STORM: Duration = Duration::from_secs(2);

/// Sends packets that the firewall drops, as fast as it goes, and says how many.
#[expect(clippy::print_stdout, reason = "how fast it went is worth knowing")]
fn storm(cable: &Cable, length: Duration) -> u64 {
    let packet = Packet::new(Family::V4, flags::SYN, PORT);
    let began = Instant::now();
    let sent = cable.client.run(|| {
        let wire = Wire::open();
        let mut sent = 0;
        while began.elapsed() < length {
            sent += wire.flood(&packet, 1024);
        }
        sent
    });
    let rate = sent * 1000 / u64::try_from(length.as_millis()).expect("a storm is short");
    println!("storm: {sent} packets, {rate} per second");
    sent
}

/// What the kernel dropped of `sent`: by the firewall, or because the receiver did not keep up.
fn dropped(cable: &Cable, firewall: &Firewall<'_>, sent: u64) -> u64 {
    let late = format!("{INTERFACE}.rx_dropped");
    let late = || u64::try_from(cable.server.counters().get(&late)).expect("a count");
    wait_until("all were dropped", || firewall.dropped() + late() == sent);
    sent
}

#[test]
fn a_storm_is_accounted_for_to_the_packet() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let firewall = cable
        .server
        .firewall("prerouting", &format!("tcp dport {PORT}"));
    let netns = cable.server.inum().to_string();
    let probe = Probe::start_forgetful(&["drops", "--json", "--netns", &netns]);
    let sent = storm(&cable, STORM);
    let dropped = dropped(&cable, &firewall, sent);
    let run = probe.stop();
    let counters = run.account("drops").counters;
    let seen = counters.delivered + counters.sampled_out + counters.reserve_failed;
    assert_eq!(seen, dropped, "{counters:?}");
    let is_whole = counters.delivered == dropped;
    assert_eq!(run.summary.complete, is_whole, "{counters:?}");
    println!("storm: {counters:?}");
}

#[test]
fn a_storm_is_counted_to_the_packet() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let firewall = cable
        .server
        .firewall("prerouting", &format!("tcp dport {PORT}"));
    let probe = Probe::counting(&cable.server, "drops");
    let sent = storm(&cable, STORM);
    let dropped = dropped(&cable, &firewall, sent);
    let run = probe.stop();
    let counted: u64 = run.summary.totals.iter().map(|total| total.events).sum();
    assert_eq!(counted, dropped, "{:#?}", run.summary);
    let weight: u64 = run.summary.totals.iter().map(|total| total.weight).sum();
    assert_eq!(weight, dropped * 40, "{:#?}", run.summary);
    assert!(run.summary.complete, "{:#?}", run.summary);
}

#[test]
fn stopping_in_a_storm_keeps_the_books_balanced() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let _firewall = cable
        .server
        .firewall("prerouting", &format!("tcp dport {PORT}"));
    let netns = cable.server.inum().to_string();
    let arguments = ["drops", "--json", "--netns", &netns, "--duration", "1s"];
    let probe = Probe::start_forgetful(&arguments);
    let sent = storm(&cable, Duration::from_secs(2));
    // Its end has checked the balance.
    let run = probe.finish();
    let counters = run.account("drops").counters;
    assert!(
        counters.delivered + counters.reserve_failed <= sent,
        "{counters:?}"
    );
    assert!(counters.delivered > 0, "{counters:?}");
}

#[test]
fn what_a_stopped_reader_misses_is_counted() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let firewall = cable
        .server
        .firewall("prerouting", &format!("tcp dport {PORT}"));
    let netns = cable.server.inum().to_string();
    let arguments = ["drops", "--json", "--netns", &netns, "--ring-kib", "64"];
    let probe = Probe::start_forgetful(&arguments);
    probe.signal(Signal::STOP);
    let packet = Packet::new(Family::V4, flags::SYN, PORT);
    let sent = cable.client.run(|| Wire::open().flood(&packet, 4000));
    let dropped = dropped(&cable, &firewall, sent);
    probe.signal(Signal::CONT);
    let run = probe.stop();
    let counters = run.account("drops").counters;
    assert_eq!(
        counters.delivered + counters.reserve_failed,
        dropped,
        "{counters:?}"
    );
    assert!(counters.reserve_failed > 0, "{counters:?}");
    assert!(!run.summary.complete, "{:#?}", run.summary);
    let lost = counters.reserve_failed.to_string();
    assert!(
        run.complaints.contains(&lost),
        "{lost} of: {}",
        run.complaints
    );
}

#[test]
fn two_at_once_are_both_exact() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let firewall = cable.server.firewall("input", &format!("tcp dport {PORT}"));
    let probes = [(); 2].map(|()| Probe::of(&cable.server, "drops"));
    let packet = Packet::new(Family::V6, flags::SYN, PORT);
    let sent = cable.client.run(|| Wire::open().flood(&packet, 1000));
    let dropped = dropped(&cable, &firewall, sent);
    for run in probes.map(Probe::stop) {
        assert_eq!(run.all().len() as u64, dropped);
    }
}

/// A `netprobe drops` that waits for a reader of its output who reads nothing.
fn unread(cable: &Cable, arguments: &[&str]) -> Child {
    let mut netprobe = Command::new(binary())
        .args(["drops", "--json", "--netns"])
        .arg(cable.server.inum().to_string())
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start netprobe");
    let mut complaints = await_ready(&mut netprobe);
    let _firewall = cable.server.firewall("input", &format!("tcp dport {PORT}"));
    let packet = Packet::new(Family::V4, flags::SYN, PORT);
    cable.client.run(|| Wire::open().flood(&packet, 2000));
    thread::spawn(move || io::copy(&mut complaints, &mut io::stderr()));
    netprobe
}

#[test]
fn a_reader_that_reads_nothing_does_not_hold_up_a_signal() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let mut netprobe = unread(&Cable::new(), &[]);
    thread::sleep(Duration::from_millis(500));
    kill_process(Pid::from_child(&netprobe), Signal::INT).expect("it is there");
    let asked = Instant::now();
    let output = netprobe.stdout.take();
    let status = netprobe.wait().expect("it ends");
    assert!(asked.elapsed() < Duration::from_secs(5), "{asked:?}");
    assert_eq!(status.code(), Some(1));
    drop(output);
}

#[test]
fn a_reader_that_reads_nothing_does_not_keep_the_programs_there() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let mut netprobe = unread(&Cable::new(), &["--duration", "1s"]);
    let held = bpf::held_by(netprobe.id());
    let programs = || held.iter().filter(|object| object.is_program());
    assert!(programs().count() > 0);
    wait_until("the programs were gone", || {
        !programs().any(|program| program.exists())
    });
    let is_there = netprobe.try_wait().expect("it can be waited for").is_none();
    assert!(is_there, "it waits for its reader");
    // Who reads in the end gets everything.
    let mut text = String::new();
    let output = netprobe.stdout.take();
    let read = output.expect("it is a pipe").read_to_string(&mut text);
    read.expect("it is text");
    assert!(netprobe.wait().expect("it ends").success());
    let summary = text.lines().last().expect("a summary");
    let shown = text
        .lines()
        .filter(|line| line.starts_with("{\"kind\":\"drops\""));
    assert!(summary.contains("\"kind\":\"summary\""), "{summary}");
    assert_eq!(shown.count(), 2000, "{summary}");
}

#[test]
fn nothing_is_left_of_a_killed_netprobe() {
    if !netprobe_tests::skip::is_root() {
        return;
    }
    let events = bpf::trace_events();
    for probe in &netprobe_tests::program::check().probes {
        let why = probe.hooks[0].why.as_deref().unwrap_or("");
        // What waits for a module runs and holds what it will need.
        if probe.state == "missing" && !why.contains("not loaded") {
            netprobe_tests::skip::skip(&format!("{}: {why}", probe.name));
            continue;
        }
        let netprobe = Probe::start(&[&probe.name, "--json"]);
        let held = bpf::held_by(netprobe.id());
        assert!(held.len() > 2, "{}: {held:?}", probe.name);
        assert!(held.iter().all(|object| object.exists()), "{held:?}");
        netprobe.kill();
        wait_until("programs, maps and links were gone", || {
            !held.iter().any(|object| object.exists())
        });
    }
    assert_eq!(bpf::trace_events(), events);
}

#[test]
fn kills_at_random_instants_leave_nothing() {
    if !netprobe_tests::skip::is_root() {
        return;
    }
    let netns = Netns::new();
    let inum = netns.inum().to_string();
    let runs: &[&[&str]] = &[
        &["drops", "--json", "--netns", &inum],
        &["connects", "--count", "--netns", &inum],
        &["lifetimes", "--netns", &inum],
        &["flame", "cpu", "-o", "/dev/null"],
        &["diagnose", "--netns", &inum],
    ];
    // A start takes some 50 ms, in a machine without acceleration a second.
    let (kills, longest) = if netprobe_tests::skip::is_disposable() {
        (5, 1500)
    } else {
        (30, 100)
    };
    // More than a test has time for were tried as well.
    let asked = std::env::var("NETPROBE_KILLS");
    let kills = asked.map_or(kills, |asked| asked.parse().expect("a number"));
    let (before, events) = (bpf::all(), bpf::trace_events());
    for (number, run) in (1_u64..=kills).zip(runs.iter().cycle()) {
        let mut child = Command::new(binary())
            .args(*run)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start netprobe");
        // Multiples of the golden ratio are spread evenly.
        let instant = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        thread::sleep(Duration::from_millis(instant % longest));
        child.kill().expect("kill it");
        child.wait().expect("it ends");
    }
    wait_until("all programs, maps and links were gone", || {
        bpf::all().is_subset(&before)
    });
    assert_eq!(bpf::trace_events(), events);
}

/// Storms in a namespace until the probe has said something; how many packets were sent.
fn rage_until_said(probe: &mut Probe, netns: &Netns, words: &str) -> u64 {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let storm = scope.spawn(|| {
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                sent += Storm::full().rage(netns, Duration::from_millis(50));
            }
            sent
        });
        let is_said = probe.has_said(words);
        done.store(true, Ordering::Relaxed);
        assert!(is_said, "{words}");
        storm.join().expect("the storm was over")
    })
}

#[test]
fn flows_that_cost_too_much_are_not_told_apart_any_more_and_all_are_counted() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let netns = Netns::new();
    let inum = netns.inum().to_string();
    let options = ["--by", "flow", "--netns", &inum, "--max-overhead", "0.1"];
    let mut probe = Probe::start(&[&["drops", "--json", "--count"], &options[..]].concat());
    let announcement = "flows and owners are not told apart from now on, all are counted";
    let sent = rage_until_said(&mut probe, &netns, announcement);
    let more = Storm::full().rage(&netns, Duration::from_millis(50));
    let run = probe.stop();
    let counters = run.account("drops").counters;
    assert_eq!(counters.aggregated, sent + more, "{counters:?}");
    let totals = &run.summary.totals;
    let events = |total: &Total| total.events;
    assert_eq!(totals.iter().map(events).sum::<u64>(), sent + more);
    let without_flow = totals.iter().filter(|total| total.group["saddr"].is_null());
    assert!(without_flow.map(events).sum::<u64>() >= more, "{totals:#?}");
}

#[test]
fn what_is_left_out_to_keep_the_cost_low_is_announced_and_counted() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let netns = Netns::new();
    let inum = netns.inum().to_string();
    let arguments = ["drops", "--json", "--netns", &inum, "--max-overhead", "0.1"];
    let mut probe = Probe::start_forgetful(&arguments);
    let announcement = "no events are shown from now on, all are counted";
    let sent = rage_until_said(&mut probe, &netns, announcement);
    // Whatever is sent from here on is left out.
    let sent = sent + Storm::full().rage(&netns, Duration::from_millis(50));
    let run = probe.stop();
    let counters = run.account("drops").counters;
    let seen = counters.delivered + counters.sampled_out + counters.reserve_failed;
    assert_eq!(seen, sent, "{counters:?}");
    assert!(counters.sampled_out > 0, "{counters:?}");
    assert!(!run.summary.complete, "{:#?}", run.summary);
    assert!(
        run.complaints.contains("to keep to 0.1 %"),
        "{}",
        run.complaints
    );
}

/// Whether every thread of the process has only these capabilities, and can get no others.
fn keeps_only(process: u32, kept: u64) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
    tasks.into_iter().all(|task| {
        let path = task.expect("a thread").path().join("status");
        // One that has ended has nothing left to give up.
        let Ok(status) = std::fs::read_to_string(path) else {
            return true;
        };
        let number = |field: &str, radix| {
            let mut lines = status.lines().filter_map(|line| line.split_once(":\t"));
            let (_, value) = lines.find(|(name, _)| *name == field).expect(field);
            u64::from_str_radix(value, radix).expect("a number")
        };
        let exceeds = |set| number(set, 16) & !kept != 0;
        !exceeds("CapPrm") && !exceeds("CapEff") && number("NoNewPrivs", 10) == 1
    })
}

#[test]
fn privileges_that_are_not_needed_any_more_are_given_up() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let bits = |bits: &[u32]| bits.iter().map(|bit| 1_u64 << bit).sum::<u64>();
    // BPF, PERFMON, SYS_ADMIN, SYS_PTRACE, DAC_READ_SEARCH, SYSLOG, NET_ADMIN, CHECKPOINT_RESTORE; see capability.h.
    let kept = bits(&[39, 38, 21, 19, 2, 34, 12, 40]);
    // SYS_PTRACE, DAC_READ_SEARCH, CHECKPOINT_RESTORE.
    let of_worker = bits(&[19, 2, 40]);
    let minute = ["--duration", "60s"];
    for (arguments, has_worker) in [
        (["drops", "--json"], false),
        (["diagnose", "--json"], false),
        (["flame", "drops"], false),
        (["flame", "cpu"], true),
    ] {
        let is_flame = arguments[0] == "flame";
        let folded: &[&str] = if is_flame { &["--folded"] } else { &[] };
        let probe = Probe::start(&[&arguments, &minute[..], folded].concat());
        let what = format!("{arguments:?} has given up what it does not need");
        wait_until(&what, || keeps_only(probe.id(), kept));
        if has_worker {
            let children = format!("/proc/{}/task", probe.id());
            wait_until("its worker has given up more", || {
                let tasks = std::fs::read_dir(&children).expect("its threads");
                let of_task = |task: io::Result<std::fs::DirEntry>| {
                    std::fs::read_to_string(task.ok()?.path().join("children")).ok()
                };
                let all: String = tasks.filter_map(of_task).collect();
                let worker = all.split_whitespace().next().map(str::parse);
                worker.is_some_and(|worker| keeps_only(worker.expect("an id"), of_worker))
            });
        }
        probe.kill();
    }
}
