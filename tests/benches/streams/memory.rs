//! Resident memory while many connections are followed, and after all of them have ended.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
};

use netprobe_tests::{
    netns::Netns,
    process::Actor,
    watcher::{Case, Output, Watcher, netprobe},
};

/// Processes that have connections: one may not have as many files open everywhere.
const PROCESSES: u16 = 6;
/// Connections of each, with two ends that are followed.
const CONNECTIONS: u16 = 8_334;
const PORT: u16 = 7900;

const LIFETIMES: Case = netprobe("lifetimes", &["lifetimes", "--json"], Output::Events);

/// Prints what `lifetimes` takes.
pub(crate) fn report() {
    let netns = Netns::new();
    let watcher = Watcher::start(&LIFETIMES);
    let mut actors: Vec<Actor> = (0..PROCESSES)
        .map(|index| {
            Actor::start("np-many", |_| {
                netns.enter();
                // Open to the end of the process.
                std::mem::forget(connect(PORT + index));
            })
        })
        .collect();
    for actor in &mut actors {
        actor.hear();
    }
    let live = resident(watcher.id(), "VmRSS");
    drop(actors);
    netns.wait_for_silence();
    let most = resident(watcher.id(), "VmHWM");
    let shown = watcher.stop().unwrap_or(0);
    println!(
        "\nlifetimes: {live} MiB resident with {} live flows; at most {most} MiB when {shown} had ended (bar: 32 MiB)",
        2 * u32::from(PROCESSES) * u32::from(CONNECTIONS)
    );
}

/// Opens all connections of a process.
fn connect(port: u16) -> Vec<(TcpStream, TcpStream)> {
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    let listener = TcpListener::bind(address).expect("listen");
    (0..CONNECTIONS)
        .map(|_| {
            let near = TcpStream::connect(address).expect("connect");
            let (far, _) = listener.accept().expect("accept");
            (near, far)
        })
        .collect()
}

/// A figure of `/proc/PID/status`, in MiB.
fn resident(pid: u32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    let value = lines.find(|(name, _)| *name == key).map(|(_, value)| value);
    let digits = value.and_then(|value| value.split_whitespace().next());
    let kib: u64 = digits.and_then(|digits| digits.parse().ok()).unwrap_or(0);
    kib.div_ceil(1024)
}
