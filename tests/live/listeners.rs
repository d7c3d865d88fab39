//! Listeners that turn clients away: every refusal is seen at its stage, with its listener.

use netprobe_tests::{
    event::{column_of, number, text},
    netns::Cable,
    probe::{Probe, Run},
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
/// `is_seen` may wait for the events when all clients are gone; the listener lives until then.
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
    clients.into_iter().chain(queued).for_each(abort);
    cable.client.wait_for_silence();
    is_seen();
    drop(listener);
    cable.server.wait_for_silence();
}

/// What every refusal of a [`Family::listen`]er of ours must say, however it came about.
#[track_caller]
fn assert_refusals(run: &Run, cable: &Cable, family: Family) {
    let port = family.port(PORT);
    let events = run.with("listener_port", port);
    assert!(!events.is_empty(), "{family:?}: {:?}", run.events);
    for event in events {
        assert_eq!(text(event, "listener"), family.listener_shown());
        assert_eq!(text(event, "family"), family.name());
        assert_eq!(text(event, "saddr"), family.shown(CLIENT));
        assert_eq!(text(event, "daddr"), family.shown(SERVER));
        assert_eq!(number(event, "dport"), u64::from(port));
        assert_eq!(number(event, "netns"), u64::from(cable.server.inum()));
        assert_eq!(number(event, "pid"), u64::from(std::process::id()));
    }
}

/// Waits until no client asks any more and every refusal that was counted has been shown.
///
/// The listeners must live until then: owners are looked up when an event is shown.
#[track_caller]
fn wait_for_all(cable: &Cable, probe: &mut Probe, counters: &[&str]) {
    cable.client.wait_for_silence();
    let now = cable.server.counters();
    let sum: i64 = counters.iter().map(|counter| now.get(counter)).sum();
    let sum = usize::try_from(sum).expect("a few");
    probe.wait_for("all refusals", |events| events.len() >= sum);
}

/// Waits until the kernel has counted `least` in the server's namespace.
#[track_caller]
fn wait_for_count(cable: &Cable, counter: &str, least: u64) {
    let least = i64::try_from(least).expect("a few");
    wait_until("enough were refused", || {
        cable.server.counters().get(counter) >= least
    });
}

#[test]
fn syns_refused_by_a_full_accept_queue_equal_listen_overflows() {
    if !has_hooks("listeners", &[AT_SYN]) {
        return;
    }
    let cable = Cable::new();
    let mut probe = Probe::of(&cable.server, "listeners");
    let crowds = Family::OF_SOCKETS.map(|family| {
        let port = family.port(PORT);
        let listener = cable.server.run(|| family.listen(port, i32::from(BACKLOG)));
        let full = begin(&cable, family, port, u64::from(BACKLOG) + 1);
        wait_until("the accept queue was full", || {
            accept_queue(&listener) > u32::from(BACKLOG)
        });
        (begin(&cable, family, port, REFUSED), full, listener)
    });
    let counter = "TcpExt.ListenOverflows";
    wait_for_count(&cable, counter, 3 * REFUSED);
    let listeners = crowds.map(|(_, _, listener)| listener);
    wait_for_all(&cable, &mut probe, &[counter]);
    let run = probe.stop();
    drop(listeners);
    let overflows = cable.server.counters().get("TcpExt.ListenOverflows");
    assert_eq!(cable.server.counters().get("TcpExt.ListenDrops"), overflows);
    assert_seen(&run, "syn-accept-queue", overflows);
    for event in run.all() {
        assert_eq!(number(event, "accept_queue"), u64::from(BACKLOG) + 1);
        assert_eq!(number(event, "accept_limit"), u64::from(BACKLOG));
    }
    for family in Family::OF_SOCKETS {
        assert_refusals(&run, &cable, family);
    }
}

/// As many refusals at this stage as the kernel counted.
#[track_caller]
fn assert_seen(run: &Run, stage: &str, counted: i64) {
    let seen = run.count("stage", stage);
    assert_eq!(
        i64::try_from(seen),
        Ok(counted),
        "{stage}: {:?}",
        run.events
    );
}

/// What is seen while handshakes are refused at the final ACK, which must be what was counted.
#[track_caller]
fn refuse_at_final_ack(waiting: Waiting) -> Run {
    const COUNTERS: [&str; 2] = ["TcpExt.ListenOverflows", "TcpExt.TCPReqQFullDoCookies"];
    let cable = Cable::new();
    let mut probe = Probe::of(&cable.server, "listeners");
    let stage = "ack-accept-queue";
    for family in Family::OF_SOCKETS {
        overflow_at_final_ack((&cable, family), family.port(PORT), waiting, || {
            wait_for_all(&cable, &mut probe, &COUNTERS);
        });
    }
    let run = probe.stop();
    let counters = cable.server.counters();
    let [overflows, cookies] = COUNTERS.map(|counter| counters.get(counter));
    assert_seen(&run, stage, overflows);
    assert_seen(&run, "syn-cookie", cookies);
    assert_eq!(i64::try_from(run.all().len()), Ok(overflows + cookies));
    for family in Family::OF_SOCKETS {
        assert_refusals(&run, &cable, family);
    }
    for event in run.with("stage", stage) {
        assert_eq!(number(event, "accept_queue"), u64::from(BACKLOG) + 1);
        assert_eq!(number(event, "accept_limit"), u64::from(BACKLOG));
    }
    run
}

#[test]
fn handshakes_refused_at_the_final_ack_equal_listen_overflows() {
    if !has_hooks("listeners", &[AT_SYN, AT_ACK]) {
        return;
    }
    let run = refuse_at_final_ack(Waiting::AsRequests);
    assert_eq!(run.count("stage", "syn-cookie"), 0, "{:?}", run.events);
}

#[test]
fn handshakes_with_cookies_are_refused_at_the_final_ack_like_others() {
    if !has_hooks("listeners", &[AT_SYN, AT_ACK]) {
        return;
    }
    let run = refuse_at_final_ack(Waiting::AsCookies);
    assert!(run.count("stage", "syn-cookie") > 0, "{:?}", run.events);
}

/// Leaves handshakes half open until the backlog of each family has refused `least`.
fn overflow_backlogs(cable: &Cable, backlog: i32, counter: &str, least: u64) -> Run {
    let mut probe = Probe::of(&cable.server, "listeners");
    // The client never learns that it was answered.
    let answers = "tcp sport 7101-7103 tcp flags & (syn | ack) == (syn | ack)";
    let _firewall = cable.client.firewall("input", answers);
    let crowds = Family::OF_SOCKETS.map(|family| {
        let port = family.port(PORT);
        let listener = cable.server.run(|| family.listen(port, backlog));
        (begin(cable, family, port, 12), listener)
    });
    wait_for_count(cable, counter, 3 * least);
    let listeners = crowds.map(|(_, listener)| listener);
    wait_for_all(cable, &mut probe, &[counter]);
    let run = probe.stop();
    drop(listeners);
    for family in Family::OF_SOCKETS {
        assert_refusals(&run, cable, family);
    }
    run
}

#[test]
fn a_full_backlog_without_cookies_equals_reqq_full_drop() {
    if !has_hooks("listeners", &[AT_SYN]) {
        return;
    }
    let cable = Cable::new();
    cable.server.sysctl("net.ipv4.tcp_syncookies", 0);
    let counter = "TcpExt.TCPReqQFullDrop";
    let run = overflow_backlogs(&cable, i32::from(BACKLOG), counter, 7);
    let drops = cable.server.counters().get(counter);
    assert_seen(&run, "syn-backlog", drops);
    assert_eq!(i64::try_from(run.all().len()), Ok(drops));
    for event in run.all() {
        assert!(
            number(event, "syn_backlog") >= u64::from(BACKLOG),
            "{event:?}"
        );
        assert_eq!(number(event, "accept_limit"), u64::from(BACKLOG));
        assert_eq!(number(event, "accept_queue"), 0);
    }
}

#[test]
fn a_full_backlog_with_cookies_equals_reqq_full_do_cookies() {
    if !has_hooks("listeners", &[AT_SYN]) {
        return;
    }
    let cable = Cable::new();
    cable.server.sysctl("net.ipv4.tcp_syncookies", 1);
    let counter = "TcpExt.TCPReqQFullDoCookies";
    let run = overflow_backlogs(&cable, i32::from(BACKLOG), counter, 7);
    let cookies = cable.server.counters().get(counter);
    assert_seen(&run, "syn-cookie", cookies);
    assert_eq!(i64::try_from(run.all().len()), Ok(cookies));
}

/// No counter is theirs alone: they are what `ListenDrops` has beyond the other stages.
#[test]
fn syns_refused_by_the_reserve_equal_the_rest_of_listen_drops() {
    if !has_hooks("listeners", &[AT_SYN]) {
        return;
    }
    let cable = Cable::new();
    cable.server.sysctl("net.ipv4.tcp_syncookies", 0);
    cable.server.sysctl("net.ipv4.tcp_max_syn_backlog", 8);
    let run = overflow_backlogs(&cable, 64, "TcpExt.ListenDrops", 5);
    let counters = cable.server.counters();
    assert_eq!(counters.get("TcpExt.ListenOverflows"), 0);
    assert_eq!(counters.get("TcpExt.TCPReqQFullDrop"), 0);
    let drops = counters.get("TcpExt.ListenDrops");
    assert_seen(&run, "syn-reserved", drops);
    assert_eq!(i64::try_from(run.all().len()), Ok(drops));
    for event in run.all() {
        assert_eq!(number(event, "syn_limit"), 8);
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
