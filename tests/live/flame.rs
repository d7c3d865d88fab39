//! Flame graphs: the stacks weigh as much as what happened.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use netprobe_tests::{
    netns::Cable,
    probe::Probe,
    program::binary,
    skip::{self, has_hooks},
    traffic::{
        Family,
        packet::{Packet, Wire, flags},
    },
    wait_until,
};
use quick_xml::{Reader, events::Event};
use rustix::time::{ClockId, clock_gettime};

const PORT: u16 = 7601;
const PACKETS: u64 = 50;

/// Draws what `traffic` causes in the namespace `netns` into `file`.
fn draw(graph: &[&str], file: &Path, traffic: impl FnOnce()) -> String {
    let file = file.to_str().expect("a path of ours is text");
    let arguments = [&["flame"], graph, &["--duration", "60s", "-o", file]].concat();
    let probe = Probe::start(&arguments);
    traffic();
    probe.stop_without_summary();
    fs::read_to_string(file).expect("read the graph")
}

/// Drops [`PACKETS`] packets in the server's namespace.
fn drop_packets(cable: &Cable) {
    let firewall = cable.server.firewall("input", &format!("tcp dport {PORT}"));
    let packet = Packet::new(Family::V4, flags::SYN, PORT);
    let count = usize::try_from(PACKETS).expect("a few");
    cable.client.run(|| Wire::open().flood(&packet, count));
    wait_until("all were dropped", || firewall.dropped() == PACKETS);
}

/// What this thread has used of a CPU.
fn cpu_time_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let ns = time.tv_sec * 1_000_000_000 + time.tv_nsec;
    u64::try_from(ns).expect("time goes forward")
}

/// The stacks of a folded graph and their weights.
#[track_caller]
fn folded(text: &str) -> Vec<(&str, u64)> {
    let lines = text.lines().map(|line| {
        let (stack, weight) = line.rsplit_once(' ').expect("a stack and its weight");
        (stack, weight.parse().expect("a weight is a number"))
    });
    lines.collect()
}

#[test]
fn folded_drops_weigh_as_many_packets_as_were_dropped() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let folder = tempfile::tempdir().expect("make a folder");
    let cable = Cable::new();
    let netns = cable.server.inum().to_string();
    let graph = ["drops", "--folded", "--netns", &netns];
    let text = draw(&graph, &folder.path().join("drops.folded"), || {
        drop_packets(&cable);
    });
    let stacks = folded(&text);
    let weight: u64 = stacks.iter().map(|(_, weight)| weight).sum();
    assert_eq!(weight, PACKETS, "{text}");
    for (stack, _) in stacks {
        assert!(stack.contains("nf_hook_slow"), "{stack}");
    }
}

#[test]
fn the_picture_of_drops_is_xml_and_names_the_functions() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let folder = tempfile::tempdir().expect("make a folder");
    let cable = Cable::new();
    let netns = cable.server.inum().to_string();
    let graph = ["drops", "--netns", &netns];
    let text = draw(&graph, &folder.path().join("drops.svg"), || {
        drop_packets(&cable);
    });
    assert!(
        text.starts_with("<?xml") || text.starts_with("<svg"),
        "{text:.80}"
    );
    assert!(text.contains("nf_hook_slow"), "no caller of kfree_skb");
    let mut reader = Reader::from_str(&text);
    reader.config_mut().check_end_names = true;
    let mut elements = 0;
    loop {
        match reader.read_event().expect("the picture is well-formed") {
            Event::Eof => break,
            Event::Start(_) | Event::Empty(_) => elements += 1,
            _ => {}
        }
    }
    assert!(elements > 10, "{elements} elements");
}

#[test]
fn folded_retransmits_weigh_as_many_segments_as_the_kernel_counted() {
    if !has_hooks("retransmits", &[]) {
        return;
    }
    let folder = tempfile::tempdir().expect("make a folder");
    let cable = Cable::new();
    let _blackhole = cable.server.firewall("input", &format!("tcp dport {PORT}"));
    let netns = cable.client.inum().to_string();
    let graph = ["retransmits", "--folded", "--netns", &netns];
    let syns = || cable.client.counters().get("TcpExt.TCPSynRetrans");
    let text = draw(&graph, &folder.path().join("retransmits.folded"), || {
        let clients = [(); 5].map(|()| cable.client.run(|| Family::V4.begin(PORT)));
        wait_until("all were sent again", || syns() >= 5);
        drop(clients);
    });
    let weight: u64 = folded(&text).iter().map(|(_, weight)| weight).sum();
    assert_eq!(
        i64::try_from(weight),
        Ok(cable.client.counters().get("Tcp.RetransSegs"))
    );
}

#[test]
fn a_long_search_for_ports_shows_as_time_in_it() {
    if !has_hooks("connects", &[]) {
        return;
    }
    let folder = tempfile::tempdir().expect("make a folder");
    let cable = Cable::new();
    // Every port is looked at, and none may be taken.
    cable
        .client
        .sysctl("net.ipv4.ip_local_reserved_ports", "32768-60999");
    let mut spent = 0;
    let graph = ["port-search", "--folded"];
    let text = draw(&graph, &folder.path().join("search.folded"), || {
        spent = cable.client.run(|| {
            // Always the same one: nothing but the search should take time.
            let socket = Family::V4.socket();
            while cpu_time_ns() < 1_000_000_000 {
                let failed = Family::V4.connect_with(&socket, PORT);
                let failed = failed.expect_err("no port may be taken");
                assert_eq!(failed.raw_os_error(), Some(libc::EADDRNOTAVAIL));
            }
            cpu_time_ns()
        });
    });
    let stacks = folded(&text);
    for (stack, _) in &stacks {
        assert!(stack.contains("hash_connect"), "{stack}");
    }
    let weight: u64 = stacks.iter().map(|(_, weight)| weight).sum();
    assert!(
        weight > spent / 2 && weight < spent * 2,
        "{weight} ns of {spent} ns"
    );
}

#[test]
fn a_graph_that_nobody_reads_any_more_is_not_waited_for() {
    if !skip::is_root() {
        return;
    }
    for graph in ["cpu", "offcpu", "drops"] {
        let mut child = Command::new(binary())
            .args(["flame", graph, "--folded", "--duration", "60s"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("run netprobe");
        drop(child.stdout.take());
        wait_until("it ends", || child.try_wait().expect("ask").is_some());
    }
}
