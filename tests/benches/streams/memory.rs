//! Resident memory while many connections are followed, and after all of them have ended.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
};

use netprobe_tests::{
    netns::Netns,
    watcher::{Case, Output, Watcher, netprobe},
};
use rustix::process::{Resource, Rlimit, setrlimit};

/// Connections, each with two ends that are followed.
const CONNECTIONS: u16 = 50_000;
/// A listener for so many, so that local ports last.
const PER_LISTENER: u16 = 10_000;
const PORT: u16 = 7900;

const LIFETIMES: Case = netprobe("lifetimes", &["lifetimes", "--json"], Output::Events);

/// Prints what `lifetimes` takes.
pub(crate) fn report() {
    let files = Some(4 * u64::from(CONNECTIONS));
    let limit = Rlimit {
        current: files,
        maximum: files,
    };
    if let Err(why) = setrlimit(Resource::Nofile, limit) {
        println!("\nmemory: not measured, too few open files are allowed ({why})");
        return;
    }
    let netns = Netns::new();
    let watcher = Watcher::start(&LIFETIMES);
    let open: Vec<(TcpStream, TcpStream)> = netns.run(connect);
    let live = resident(watcher.id(), "VmRSS");
    drop(open);
    netns.wait_for_silence();
    let most = resident(watcher.id(), "VmHWM");
    watcher.stop();
    println!(
        "\nlifetimes: {live} MiB resident with {} live flows, at most {most} MiB when all had ended (bar: 32 MiB)",
        2 * u32::from(CONNECTIONS)
    );
}

/// Opens all connections, over listeners of their own.
fn connect() -> Vec<(TcpStream, TcpStream)> {
    let mut open = Vec::new();
    for index in 0..CONNECTIONS / PER_LISTENER {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORT + index);
        let listener = TcpListener::bind(address).expect("listen");
        for _ in 0..PER_LISTENER {
            let near = TcpStream::connect(address).expect("connect");
            let (far, _) = listener.accept().expect("accept");
            open.push((near, far));
        }
    }
    open
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
