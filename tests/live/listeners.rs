//! Listeners that turn clients away: every refusal is seen at its stage, with its listener.

use netprobe_tests::{
    netns::Cable,
    probe::{Event, Probe, Run, column_of, number, text},
    process::Actor,
    skip::has_hooks,
    traffic::{CLIENT, Family, SERVER, abort, accept_queue, is_connected},
    wait_until,
};
use socket2::Socket;

const PORT: u16 = 7101;
const AT_SYN: &str = "SYNs refused";
const AT_ACK: &str = "handshakes refused at the final ACK";
/// What `listen` is told; the kernel lets one more wait.
const BACKLOG: u8 = 4;
const REFUSED: u64 = 6;

/// Fills the accept queue of `listener`.
fn fill(cable: &Cable, family: Family, listener: &Socket) -> Vec<Socket> {
    let clients = (0..=BACKLOG).map(|_| {
        let client = cable.client.run(|| family.connect(PORT));
        client.expect("there is room")
    });
    let clients = clients.collect();
    wait_until("the accept queue was full", || {
        accept_queue(listener) > u32::from(BACKLOG)
    });
    clients
}

/// Begins `count` connections.
fn begin(cable: &Cable, family: Family, port: u16, count: u64) -> Vec<Socket> {
    cable
        .client
        .run(|| (0..count).map(|_| family.begin(port)).collect())
}

/// How handshakes wait until they are refused at the final ACK.
#[derive(Clone, Copy, Debug)]
pub(super) enum Waiting {
    /// In the SYN backlog.
    AsRequests,
    /// In nothing but a cookie, as the SYN backlog is full.
    AsCookies,
}

impl Waiting {
    /// Connections in the accept queue, and handshakes that wait, so that [`BACKLOG`] are refused.
    fn crowd(self) -> (u64, u64) {
        let backlog = u64::from(BACKLOG);
        match self {
            Self::AsRequests => (backlog, backlog + 1),
            Self::AsCookies => (0, 2 * backlog + 1),
        }
    }
}

/// Has [`BACKLOG`] handshakes refused at the final ACK, each maybe several times.
///
/// `is_seen` may wait for the events, whose owners are looked up while the listener lives.
pub(super) fn overflow_at_final_ack(
    (cable, family): (&Cable, Family),
    port: u16,
    waiting: Waiting,
    is_seen: impl FnOnce(),
) {
    let before = cable.server.counters();
    let (in_queue, in_handshake) = waiting.crowd();
    let listener = cable.server.run(|| family.listen(port, i32::from(BACKLOG)));
    let queued = begin(cable, family, port, in_queue);
    wait_until("some waited for accept", || {
        u64::from(accept_queue(&listener)) == in_queue
    });
    let final_acks = format!("tcp dport {port} tcp flags & (syn | ack) == ack");
    let firewall = cable.server.firewall("input", &final_acks);
    let clients = begin(cable, family, port, in_handshake);
    wait_until("all had been answered", || clients.iter().all(is_connected));
    firewall.open();
    for client in &clients {
        client.send(b"x").expect("there is room to send");
    }
    wait_until("some were refused", || {
        let now = cable.server.counters();
        now.grown(&before, "TcpExt.ListenOverflows") >= u64::from(BACKLOG)
    });
    is_seen();
    clients.into_iter().chain(queued).for_each(abort);
    drop(listener);
    cable.client.wait_for_silence();
    cable.server.wait_for_silence();
}

/// What every refusal of a [`Family::listen`]er must say.
#[track_caller]
fn assert_refusal(event: &Event, cable: &Cable, family: Family, pid: u64) {
    assert_eq!(text(event, "listener"), family.listener_shown());
    assert_eq!(number(event, "listener_port"), u64::from(PORT));
    assert_eq!(text(event, "saddr"), family.shown(CLIENT));
    assert_eq!(text(event, "daddr"), family.shown(SERVER));
    assert_eq!(number(event, "dport"), u64::from(PORT));
    assert_eq!(number(event, "accept_limit"), u64::from(BACKLOG));
    assert_eq!(number(event, "netns"), u64::from(cable.server.inum()));
    assert_eq!(number(event, "pid"), pid);
}

/// Waits for events; their owners are looked up while the listener lives.
#[track_caller]
fn wait_for_refusals(probe: &mut Probe, count: u64) {
    let count = usize::try_from(count).expect("a few");
    probe.wait_for("refusals", |events| events.len() >= count);
}

fn own_pid() -> u64 {
    u64::from(std::process::id())
}

#[test]
fn syns_refused_by_a_full_accept_queue_equal_listen_overflows() {
    if !has_hooks("listeners", &[AT_SYN]) {
        return;
    }
    for family in Family::OF_SOCKETS {
        let cable = Cable::new();
        let before = cable.server.counters();
        let mut probe = Probe::of(&cable.server, "listeners");
        let listener = cable.server.run(|| family.listen(PORT, i32::from(BACKLOG)));
        let full = fill(&cable, family, &listener);
        let refused = begin(&cable, family, PORT, REFUSED);
        wait_for_refusals(&mut probe, REFUSED);
        drop((refused, full, listener));
        cable.client.wait_for_silence();
        let run = probe.stop();
        let now = cable.server.counters();
        let overflows = now.grown(&before, "TcpExt.ListenOverflows");
        assert_eq!(now.grown(&before, "TcpExt.ListenDrops"), overflows);
        assert_eq!(
            run.count("stage", "syn-accept-queue"),
            overflows,
            "{family:?}"
        );
        assert_eq!(
            run.all().len() as u64,
            overflows,
            "{family:?}: {:?}",
            run.events
        );
        for event in run.all() {
            assert_refusal(event, &cable, family, own_pid());
            assert_eq!(number(event, "accept_queue"), u64::from(BACKLOG) + 1);
        }
    }
}

/// What is seen while handshakes are refused at the final ACK, which must be what was counted.
#[track_caller]
fn refuse_at_final_ack(family: Family, waiting: Waiting) -> Run {
    let cable = Cable::new();
    let before = cable.server.counters();
    let mut probe = Probe::of(&cable.server, "listeners");
    let stage = "ack-accept-queue";
    overflow_at_final_ack((&cable, family), PORT, waiting, || {
        let is_refused = |event: &&Event| event["stage"] == stage;
        probe.wait_for("refusals", |events| {
            events.iter().filter(is_refused).count() >= usize::from(BACKLOG)
        });
    });
    let run = probe.stop();
    let now = cable.server.counters();
    let overflows = now.grown(&before, "TcpExt.ListenOverflows");
    let cookies = now.grown(&before, "TcpExt.TCPReqQFullDoCookies");
    assert_eq!(
        run.count("stage", stage),
        overflows,
        "{family:?}: {:?}",
        run.events
    );
    assert_eq!(
        run.count("stage", "syn-cookie"),
        cookies,
        "{family:?}: {:?}",
        run.events
    );
    assert_eq!(
        run.all().len() as u64,
        overflows + cookies,
        "{family:?}: {:?}",
        run.events
    );
    for event in run.with("stage", stage) {
        assert_refusal(event, &cable, family, own_pid());
        assert_eq!(number(event, "accept_queue"), u64::from(BACKLOG) + 1);
    }
    run
}

#[test]
fn handshakes_refused_at_the_final_ack_equal_listen_overflows() {
    if !has_hooks("listeners", &[AT_SYN, AT_ACK]) {
        return;
    }
    for family in Family::OF_SOCKETS {
        let run = refuse_at_final_ack(family, Waiting::AsRequests);
        assert_eq!(
            run.count("stage", "syn-cookie"),
            0,
            "{family:?}: {:?}",
            run.events
        );
    }
}

#[test]
fn handshakes_with_cookies_are_refused_at_the_final_ack_like_others() {
    if !has_hooks("listeners", &[AT_SYN, AT_ACK]) {
        return;
    }
    for family in Family::OF_SOCKETS {
        let run = refuse_at_final_ack(family, Waiting::AsCookies);
        assert!(
            run.count("stage", "syn-cookie") > 0,
            "{family:?}: {:?}",
            run.events
        );
    }
}

/// Leaves handshakes half open until the backlog overflows, and returns what was seen.
fn overflow_backlog(cable: &Cable, family: Family, backlog: i32, least: u64) -> Run {
    let mut probe = Probe::of(&cable.server, "listeners");
    let listener = cable.server.run(|| family.listen(PORT, backlog));
    // The client never learns that it was answered.
    let answers = format!("tcp sport {PORT} tcp flags & (syn | ack) == (syn | ack)");
    let firewall = cable.client.firewall("input", &answers);
    let clients = begin(cable, family, PORT, 12);
    wait_for_refusals(&mut probe, least);
    drop((clients, listener, firewall));
    cable.client.wait_for_silence();
    cable.server.wait_for_silence();
    probe.stop()
}

#[test]
fn a_full_backlog_without_cookies_equals_reqq_full_drop() {
    if !has_hooks("listeners", &[AT_SYN]) {
        return;
    }
    for family in Family::OF_SOCKETS {
        let cable = Cable::new();
        cable.server.sysctl("net.ipv4.tcp_syncookies", 0);
        let counter = "TcpExt.TCPReqQFullDrop";
        let run = overflow_backlog(&cable, family, i32::from(BACKLOG), 9);
        let drops = u64::try_from(cable.server.counters().get(counter)).expect("it grew");
        assert_eq!(run.count("stage", "syn-backlog"), drops, "{family:?}");
        assert_eq!(run.all().len() as u64, drops, "{family:?}");
        for event in run.all() {
            assert_refusal(event, &cable, family, own_pid());
            assert!(
                number(event, "syn_backlog") >= u64::from(BACKLOG),
                "{event:?}"
            );
            assert_eq!(number(event, "accept_queue"), 0);
        }
    }
}

#[test]
fn a_full_backlog_with_cookies_equals_reqq_full_do_cookies() {
    if !has_hooks("listeners", &[AT_SYN]) {
        return;
    }
    for family in Family::OF_SOCKETS {
        let cable = Cable::new();
        cable.server.sysctl("net.ipv4.tcp_syncookies", 1);
        let counter = "TcpExt.TCPReqQFullDoCookies";
        let run = overflow_backlog(&cable, family, i32::from(BACKLOG), 9);
        let cookies = u64::try_from(cable.server.counters().get(counter)).expect("it grew");
        assert_eq!(run.count("stage", "syn-cookie"), cookies, "{family:?}");
        assert_eq!(run.all().len() as u64, cookies, "{family:?}");
    }
}

/// No counter is theirs alone: they are what `ListenDrops` has beyond the other stages.
#[test]
fn syns_refused_by_the_reserve_equal_the_rest_of_listen_drops() {
    if !has_hooks("listeners", &[AT_SYN]) {
        return;
    }
    for family in Family::OF_SOCKETS {
        let cable = Cable::new();
        cable.server.sysctl("net.ipv4.tcp_syncookies", 0);
        cable.server.sysctl("net.ipv4.tcp_max_syn_backlog", 8);
        let run = overflow_backlog(&cable, family, 64, 5);
        let counters = cable.server.counters();
        let drops = counters.get("TcpExt.ListenDrops");
        assert_eq!(counters.get("TcpExt.ListenOverflows"), 0);
        assert_eq!(counters.get("TcpExt.TCPReqQFullDrop"), 0);
        let seen = run.count("stage", "syn-reserved");
        assert_eq!(i64::try_from(seen), Ok(drops), "{family:?}");
        assert_eq!(run.all().len() as u64, seen, "{family:?}");
        for event in run.all() {
            assert_eq!(number(event, "syn_limit"), 8);
        }
    }
}

/// A process of its own that listens and never accepts.
fn deaf_server(cable: &Cable, name: &str) -> Actor {
    let mut actor = Actor::start(name, |stage| {
        cable.server.enter();
        let listener = Family::V4.listen(PORT, i32::from(BACKLOG));
        stage.tell(b'l');
        // Its cue comes when the test is over.
        stage.await_byte();
        drop(listener);
    });
    actor.hear();
    actor
}

/// The owner that refusals of a listener name.
#[track_caller]
fn owner_seen(cable: &Cable, probe: Probe) -> (u64, String) {
    let before = cable.server.counters();
    let clients = begin(cable, Family::V4, PORT, u64::from(BACKLOG) + 1);
    wait_until("the accept queue was full", || {
        clients.iter().all(is_connected)
    });
    let refused = begin(cable, Family::V4, PORT, REFUSED);
    wait_until("all were refused", || {
        let now = cable.server.counters();
        now.grown(&before, "TcpExt.ListenOverflows") >= REFUSED
    });
    let run = probe.stop();
    drop((clients, refused));
    let first = run.all().first().expect("refusals were seen");
    for event in run.all() {
        assert_eq!(column_of(event, "pid"), column_of(first, "pid"));
        assert_ne!(number(event, "ino"), 0);
    }
    (number(first, "pid"), text(first, "comm").into())
}

#[test]
fn the_owner_is_the_process_that_listens() {
    if !has_hooks("listeners", &[AT_SYN]) {
        return;
    }
    let cable = Cable::new();
    let probe = Probe::of(&cable.server, "listeners");
    let server = deaf_server(&cable, "np-deaf-new");
    assert_eq!(
        owner_seen(&cable, probe),
        (server.pid(), "np-deaf-new".into())
    );
}

#[test]
fn the_owner_is_known_though_it_listened_before_netprobe_came() {
    if !has_hooks("listeners", &[AT_SYN]) {
        return;
    }
    let cable = Cable::new();
    let server = deaf_server(&cable, "np-deaf-old");
    let probe = Probe::of(&cable.server, "listeners");
    assert_eq!(
        owner_seen(&cable, probe),
        (server.pid(), "np-deaf-old".into())
    );
}
