//! A full conntrack table: every refusal is seen, with its tuple.
//!
//! The limit belongs to the whole machine, so this runs only in a guest without any network.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
};

use netprobe_tests::{
    event::{Event, number, text},
    netns::Netns,
    probe::Probe,
    program::{check, fresh_check},
    skip::{is_root, skip},
    wait_until,
};

const MODULE: &str = "nf_conntrack";
const PORT: u16 = 7501;
const TIMES: u64 = 5;

/// Whether this is the initial namespace of a machine that talks to nobody.
fn is_hermit() -> bool {
    const IFF_UP: u32 = 1;
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let is_up = |name: &str| {
        let flags = fs::read_to_string(format!("/sys/class/net/{name}/flags")).ok();
        let flags = flags
            .and_then(|text| u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok());
        flags.is_none_or(|flags| flags & IFF_UP != 0)
    };
    let interfaces = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let names = interfaces
        .lines()
        .skip(2)
        .filter_map(|line| line.split_once(':'));
    let mut strangers = names.filter(|(name, _)| name.trim() != "lo" && is_up(name.trim()));
    namespace("1") == namespace("self") && strangers.next().is_none()
}

fn modprobe(arguments: &[&str]) -> bool {
    let status = Command::new("modprobe").args(arguments).status();
    status.is_ok_and(|status| status.success())
}

fn is_loaded() -> bool {
    fs::exists(format!("/sys/module/{MODULE}")).unwrap_or(false)
}

/// Unloads it, unless something still needs it.
fn is_unloaded() -> bool {
    if is_loaded() {
        // One of them may be gone already.
        let _complaint = Command::new("rmmod").args(["nft_ct", MODULE]).output();
    }
    !is_loaded()
}

/// Whether the probe can work here; loads the module that it watches.
fn can_run() -> bool {
    if !is_root() {
        return false;
    }
    let cannot = |why: &str| why.contains("kprobes");
    let hook = &check().probe("conntrack").hooks[0];
    if hook.via.is_none() && hook.why.as_deref().is_some_and(cannot) {
        skip(&format!("conntrack: {}", hook.why.as_deref().unwrap_or("")));
        return false;
    }
    if !is_hermit() {
        netprobe_tests::skip::skip_unless_strict(
            "conntrack: net.netfilter.nf_conntrack_max would be changed for the whole machine",
        );
        return false;
    }
    true
}

/// Conntrack at work in this namespace, with a table that is full of connections that must stay.
struct FullTable {
    netns: Netns,
    limit: String,
    _streams: Vec<TcpStream>,
}

const LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

impl FullTable {
    fn new() -> Self {
        let netns = Netns::of_this_thread();
        netns.ip("link set lo up");
        // A rule that asks for the state of a connection sets conntrack to work.
        netns.nft(
            "table inet netprobe_ct {\n\
             chain out { type filter hook output priority 0; ct state new counter; }\n\
             }\n",
        );
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).expect("listen");
        let mut streams = Vec::new();
        for _ in 0..4 {
            let near = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).expect("connect");
            streams.extend([near, listener.accept().expect("accept").0]);
        }
        let limit = fs::read_to_string(LIMIT).expect("read the limit");
        let count = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
        fs::write(LIMIT, count.expect("read the count").trim()).expect("set the limit");
        Self {
            netns,
            limit,
            _streams: streams,
        }
    }

    fn drops(&self) -> u64 {
        u64::try_from(self.netns.counters().get("conntrack.drop")).expect("a count")
    }
}

impl Drop for FullTable {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            fs::write(LIMIT, self.limit.trim()).expect("restore the limit");
            self.netns.nft("delete table inet netprobe_ct");
        }
    }
}

/// Sends datagrams that cannot be tracked, and says how many the kernel refused to send.
fn refused_datagrams(address: IpAddr) -> u64 {
    let mut refused = 0;
    for _ in 0..TIMES {
        let socket = UdpSocket::bind((address, 0)).expect("bind");
        match socket.send_to(b"x", (address, PORT)) {
            Err(why) if why.kind() == ErrorKind::PermissionDenied => refused += 1,
            other => panic!("not refused: {other:?}"),
        }
    }
    refused
}

#[track_caller]
fn assert_tuple(event: &Event, address: IpAddr, netns: &Netns) {
    assert_eq!(text(event, "saddr"), address.to_string());
    assert_eq!(text(event, "daddr"), address.to_string());
    assert_eq!(number(event, "dport"), u64::from(PORT));
    assert_ne!(number(event, "sport"), 0);
    assert_eq!(number(event, "netns"), u64::from(netns.inum()));
    assert_eq!(text(event, "errno"), "ENOMEM");
}

/// Named so that it comes first: rules of the other tests load the module for good.
#[test]
fn a_module_that_is_loaded_again_is_watched_again() {
    if !can_run() {
        return;
    }
    assert!(is_loaded() || modprobe(&[MODULE]), "cannot load {MODULE}");
    let netns = Netns::of_this_thread();
    let mut probe = Probe::of(&netns, "conntrack");
    let address = Ipv4Addr::LOCALHOST.into();
    let table = FullTable::new();
    let before = refused_datagrams(address);
    drop(table);
    wait_until("the module was unloaded", is_unloaded);
    assert!(modprobe(&[MODULE]), "cannot load {MODULE}");
    assert!(
        probe.has_said("its probes are attached"),
        "the module was not noticed"
    );
    let table = FullTable::new();
    let after = refused_datagrams(address);
    let run = probe.stop();
    assert_eq!(table.drops(), after);
    assert_eq!(run.all().len() as u64, before + after, "{:?}", run.events);
}

/// Named so that it comes second.
#[test]
fn a_module_that_is_loaded_later_is_watched_from_then_on() {
    if !can_run() {
        return;
    }
    wait_until("the module was unloaded", is_unloaded);
    let netns = Netns::of_this_thread();
    let mut probe = Probe::of(&netns, "conntrack");
    assert!(modprobe(&[MODULE]), "cannot load {MODULE}");
    assert!(
        probe.has_said("a module was loaded"),
        "the module was not noticed"
    );
    let table = FullTable::new();
    let before = table.drops();
    let refused = refused_datagrams(Ipv4Addr::LOCALHOST.into());
    let run = probe.stop();
    assert_eq!(table.drops() - before, refused);
    assert_eq!(run.all().len() as u64, refused, "{:?}", run.events);
    for event in run.all() {
        assert_tuple(event, Ipv4Addr::LOCALHOST.into(), &netns);
    }
}

#[test]
fn refusals_equal_the_drops_of_the_conntrack_statistics() {
    if !can_run() {
        return;
    }
    assert!(is_loaded() || modprobe(&[MODULE]), "cannot load {MODULE}");
    assert_eq!(fresh_check().probe("conntrack").state, "attached");
    let table = FullTable::new();
    let probe = Probe::of(&table.netns, "conntrack");
    let before = table.drops();
    let (v4, v6) = (
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    );
    let mut refused = 0;
    for address in [v4, v6] {
        refused += refused_datagrams(address);
    }
    let streams = begin_streams(&[v4, v6]);
    wait_until("all were refused", || {
        table.drops() - before >= refused + streams.len() as u64
    });
    drop(streams);
    table.netns.wait_for_silence();
    let run = probe.stop();
    assert_eq!(
        run.all().len() as u64,
        table.drops() - before,
        "{:?}",
        run.events
    );
    assert_eq!(run.count("protocol", "udp"), refused);
    for (family, address) in [("ipv4", v4), ("ipv6", v6)] {
        let events = run.with("family", family);
        assert!(events.len() as u64 >= 2 * TIMES, "{events:?}");
        for event in events {
            assert_tuple(event, address, &table.netns);
        }
    }
}

/// Connections whose SYN cannot be tracked.
fn begin_streams(addresses: &[IpAddr]) -> Vec<socket2::Socket> {
    let mut streams = Vec::new();
    for &address in addresses {
        for _ in 0..TIMES {
            let domain = socket2::Domain::for_address((address, PORT).into());
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None);
            let socket = socket.expect("make a socket");
            socket.set_nonblocking(true).expect("do not block");
            let begun = socket.connect(&SocketAddr::new(address, PORT).into());
            assert!(begun.is_err(), "connected through a full table");
            streams.push(socket);
        }
    }
    streams
}
