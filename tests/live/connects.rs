//! Outgoing connections: outcomes equal what the application itself was told.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use netprobe_tests::{
    event::{Event, column_of, number, sum, text},
    netns::{Cable, INTERFACE, Netns},
    probe::{Probe, Run},
    process::Actor,
    skip::has_hooks,
    traffic::{CLIENT, Family, SERVER, is_connected},
    wait_until,
};
use serde_json::Value;
use socket2::Socket;

const PORT: u16 = 7301;
const TIMES: u64 = 5;
const AT_ONCE: &str = "errno of connects that fail at once";
const SEARCH: &str = "time of the port search";
const CANDIDATES: &str = "candidate ports per connect";

/// Connects [`TIMES`] times as the process `np-client`, and says how that went, by errno (0: well).
fn connect_as_client(cable: &Cable, family: Family, port: u16) -> (Actor, BTreeMap<i32, u64>) {
    let mut actor = Actor::start("np-client", |stage| {
        cable.client.enter();
        for _ in 0..TIMES {
            let errno = match family.connect(port) {
                Ok(_) => 0,
                Err(why) => why.raw_os_error().unwrap_or(-1),
            };
            stage.tell(u8::try_from(errno).unwrap_or(u8::MAX));
        }
    });
    let mut told = BTreeMap::new();
    for _ in 0..TIMES {
        *told.entry(i32::from(actor.hear())).or_default() += 1;
    }
    (actor, told)
}

#[track_caller]
fn assert_ends(event: &Event, cable: &Cable, family: Family) {
    assert_eq!(text(event, "family"), family.name(), "{event:?}");
    assert_eq!(text(event, "daddr"), family.shown(SERVER), "{event:?}");
    assert_eq!(
        number(event, "dport"),
        u64::from(family.port(PORT)),
        "{event:?}"
    );
    assert_eq!(number(event, "netns"), u64::from(cable.client.inum()));
}

/// The search for a port is timed where functions can be probed, and only there.
#[track_caller]
fn assert_search(event: &Event) {
    let is_timed = netprobe_tests::program::check()
        .probe("connects")
        .hooks
        .iter();
    let is_timed = is_timed
        .filter(|hook| hook.sees == SEARCH)
        .all(|hook| hook.via.is_some());
    assert_eq!(
        column_of(event, "search_ns").is_null(),
        !is_timed,
        "{event:?}"
    );
}

/// Connects [`TIMES`] times in each family, which all must end with `errno`, and returns the
/// events, which must be as many, of the process that connected.
#[track_caller]
fn watch_clients(cable: &Cable, errno: i32) -> Run {
    let probe = Probe::of(&cable.client, "connects");
    let clients = Family::OF_SOCKETS.map(|family| {
        let (client, told) = connect_as_client(cable, family, family.port(PORT));
        assert_eq!(told, [(errno, TIMES)].into(), "{family:?}");
        (family, client)
    });
    let run = probe.stop();
    assert_eq!(run.all().len() as u64, 3 * TIMES, "{:?}", run.events);
    for (family, client) in clients {
        let events = run.with("dport", family.port(PORT));
        assert_eq!(events.len() as u64, TIMES, "{family:?}: {events:?}");
        for event in events {
            assert_ends(event, cable, family);
            assert_eq!(number(event, "pid"), client.pid(), "{event:?}");
            assert_eq!(text(event, "comm"), "np-client", "{event:?}");
        }
    }
    run
}

/// A listener for each family, at its port.
fn listen(cable: &Cable) -> [Socket; 3] {
    Family::OF_SOCKETS.map(|family| cable.server.run(|| family.listen(family.port(PORT), 64)))
}

#[test]
fn successes_equal_the_applications_own_count() {
    if !has_hooks("connects", &[]) {
        return;
    }
    let cable = Cable::new();
    let _listeners = listen(&cable);
    let began = Instant::now();
    let run = watch_clients(&cable, 0);
    let took = u64::try_from(began.elapsed().as_nanos()).expect("it was short");
    assert_eq!(run.count("outcome", "established"), 3 * TIMES);
    assert_eq!(run.count("saddr", Family::V4.shown(CLIENT)), 2 * TIMES);
    assert_eq!(run.count("saddr", Family::V6.shown(CLIENT)), TIMES);
    for event in run.all() {
        assert_ne!(number(event, "sport"), 0, "{event:?}");
        assert_eq!(*column_of(event, "errno"), Value::Null, "{event:?}");
        assert_eq!(number(event, "syn_attempts"), 1, "{event:?}");
        assert!(number(event, "latency_ns") < took, "{event:?}");
        assert_search(event);
    }
}

#[test]
fn refused_connects_equal_the_applications_own_count() {
    if !has_hooks("connects", &[]) {
        return;
    }
    let run = watch_clients(&Cable::new(), libc::ECONNREFUSED);
    assert_eq!(run.count("errno", "ECONNREFUSED"), 3 * TIMES);
    for event in run.all() {
        assert_eq!(text(event, "outcome"), "failed", "{event:?}");
        assert_eq!(number(event, "syn_attempts"), 1, "{event:?}");
    }
}

#[test]
fn exhausted_ports_equal_the_applications_own_count() {
    if !has_hooks("connects", &[]) {
        return;
    }
    let cable = Cable::new();
    let range = "net.ipv4.ip_local_port_range";
    cable.client.sysctl(range, "40000 40003");
    let _listeners = listen(&cable);
    let _taken = Family::OF_SOCKETS.map(|family| {
        let connect = || family.connect(family.port(PORT)).expect("a port is left");
        cable.client.run(|| [(); 4].map(|()| connect()))
    });
    let run = watch_clients(&cable, libc::EADDRNOTAVAIL);
    assert_eq!(run.count("errno", "EADDRNOTAVAIL"), 3 * TIMES);
    for event in run.all() {
        assert_eq!(text(event, "outcome"), "failed", "{event:?}");
        assert_eq!(number(event, "sport"), 0, "{event:?}");
        assert_eq!(number(event, "syn_attempts"), 0, "{event:?}");
        assert_search(event);
    }
}

/// A port of the application's own, which another connection to the same place has already.
#[test]
fn a_port_that_is_taken_for_this_destination_is_no_fault_of_the_application() {
    if !has_hooks("connects", &[]) {
        return;
    }
    let cable = Cable::new();
    let _listeners = listen(&cable);
    let from = |family: Family| {
        let socket = family.socket();
        socket.set_reuse_address(true).expect("reuse the address");
        let own = family.wanted(CLIENT, 40_000);
        socket.bind(&own.into()).expect("bind");
        socket
    };
    let probe = Probe::of(&cable.client, "connects");
    cable.client.run(|| {
        for family in [Family::V4, Family::V6] {
            let (first, second) = (from(family), from(family));
            family
                .connect_with(&first, family.port(PORT))
                .expect("connect");
            let refused = family.connect_with(&second, family.port(PORT)).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EADDRNOTAVAIL));
        }
    });
    let run = probe.stop();
    assert_eq!(run.count("errno", "EADDRNOTAVAIL"), 2, "{:?}", run.events);
    for event in run.with("errno", "EADDRNOTAVAIL") {
        assert_eq!(number(event, "syn_attempts"), 0, "{event:?}");
    }
}

#[test]
fn the_kernel_leaves_out_connects_of_other_processes() {
    if !has_hooks("connects", &[]) {
        return;
    }
    let cable = Cable::new();
    let _listeners = listen(&cable);
    let [own, other] = [std::process::id(), 1].map(|pid| pid.to_string());
    let probes = [
        ["--pid", &own],
        ["--pid", &other],
        ["--filter", "comm != np-client"],
    ]
    .map(|[option, wanted]| {
        let inum = cable.client.inum().to_string();
        Probe::start(&["connects", "--json", "--netns", &inum, option, wanted])
    });
    cable.client.run(|| {
        for _ in 0..TIMES {
            Family::V4.connect(PORT).expect("connect");
        }
    });
    let (_client, _told) = connect_as_client(&cable, Family::V4, PORT);
    for (probe, expected) in probes.into_iter().zip([TIMES, 0, TIMES]) {
        let run = probe.stop();
        let account = run.account("connects");
        assert_eq!(run.all().len() as u64, expected, "{:?}", run.events);
        assert_eq!(account.counters.delivered, expected, "{account:?}");
    }
}

#[test]
fn unroutable_connects_equal_the_applications_own_count() {
    if !has_hooks("connects", &[AT_ONCE]) {
        return;
    }
    let cable = Cable::new();
    // Routes go with it.
    cable.client.ip(&format!("link set {INTERFACE} down"));
    let run = watch_clients(&cable, libc::ENETUNREACH);
    assert_eq!(run.count("errno", "ENETUNREACH"), 3 * TIMES);
    assert_eq!(run.count("outcome", "failed"), 3 * TIMES);
}

#[test]
fn timeouts_equal_the_applications_own_count() {
    if !has_hooks("connects", &[]) {
        return;
    }
    let cable = Cable::new();
    cable.client.sysctl("net.ipv4.tcp_syn_retries", 1);
    let blackhole = cable.server.firewall("input", "tcp dport 7301-7303");
    let probe = Probe::of(&cable.client, "connects");
    let began = Instant::now();
    let mut clients: Vec<Socket> = Vec::new();
    for family in Family::OF_SOCKETS {
        clients.extend((0..TIMES).map(|_| cable.client.run(|| family.begin(family.port(PORT)))));
    }
    let mut errors = Vec::new();
    wait_until("all had timed out", || {
        let told = clients
            .iter()
            .filter_map(|client| client.take_error().expect("ask"));
        errors.extend(told.map(|why| why.raw_os_error()));
        errors.len() == clients.len()
    });
    let took = u64::try_from(began.elapsed().as_nanos()).expect("it was short");
    let run = probe.stop();
    assert!(
        errors.iter().all(|errno| *errno == Some(libc::ETIMEDOUT)),
        "{errors:?}"
    );
    assert_eq!(run.count("errno", "ETIMEDOUT"), errors.len() as u64);
    assert_eq!(run.all().len(), errors.len(), "{:?}", run.events);
    assert_eq!(sum(run.all(), "syn_attempts"), blackhole.dropped());
    for family in Family::OF_SOCKETS {
        let events = run.with("family", family.name());
        assert_eq!(events.len() as u64, TIMES, "{family:?}");
        for event in events {
            assert_ends(event, &cable, family);
            assert_eq!(text(event, "outcome"), "failed");
            assert!(number(event, "syn_attempts") >= 2, "{event:?}");
            let latency = number(event, "latency_ns");
            assert!((1_900_000_000..took).contains(&latency), "{event:?}");
        }
    }
}

#[test]
fn a_lost_syn_shows_in_latency_and_attempts() {
    if !has_hooks("connects", &[]) {
        return;
    }
    let cable = Cable::new();
    let _listener = cable.server.run(|| Family::Mapped.listen(PORT, 64));
    let firewall = cable.server.firewall("input", &format!("tcp dport {PORT}"));
    let probe = Probe::of(&cable.client, "connects");
    let began = Instant::now();
    let clients = Family::OF_SOCKETS.map(|family| cable.client.run(|| family.begin(PORT)));
    wait_until("the first SYNs were lost", || firewall.dropped() >= 3);
    firewall.open();
    wait_until("the second SYNs were answered", || {
        clients.iter().all(is_connected)
    });
    let took = u64::try_from(began.elapsed().as_nanos()).expect("it was short");
    let run = probe.stop();
    assert_eq!(run.count("outcome", "established"), 3, "{:?}", run.events);
    assert_eq!(run.all().len(), 3, "{:?}", run.events);
    for event in run.all() {
        assert!(number(event, "syn_attempts") >= 2, "{event:?}");
        // The first timeout is a second, as the timer wheel rounds it.
        let latency = number(event, "latency_ns");
        assert!((950_000_000..took).contains(&latency), "{event:?}");
    }
}

/// A SYN that crosses another (RFC 9293, 3.5), which a socket that connects to itself sends too.
#[test]
fn a_socket_that_connects_to_itself_is_one_connect_and_leaves_nothing_to_others() {
    if !has_hooks("connects", &[]) {
        return;
    }
    let netns = Netns::new();
    let probe = Probe::of(&netns, "connects");
    netns.run(|| {
        for _ in 0..TIMES {
            let socket = Family::V4.socket();
            let itself = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
            socket.set_reuse_address(true).expect("take the port again");
            // No TIME_WAIT, so that the next one has the same port.
            socket.set_linger(Some(Duration::ZERO)).expect("reset");
            socket.bind(&itself.into()).expect("bind");
            socket.connect(&itself.into()).expect("connect to itself");
        }
        for _ in 0..4 * TIMES {
            let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT + 1));
            let socket = Family::V4.socket();
            socket.connect(&nobody.into()).expect_err("nobody listens");
        }
    });
    let run = probe.stop();
    let ended = |port, outcome| run.at_port(port).count("outcome", outcome);
    assert_eq!(ended(PORT, "established"), TIMES, "{:?}", run.events);
    assert_eq!(ended(PORT + 1, "failed"), 4 * TIMES, "{:?}", run.events);
    assert_eq!(run.all().len() as u64, 5 * TIMES, "{:?}", run.events);
}

#[test]
fn the_name_is_that_of_the_process_whatever_its_threads_are_called() {
    if !has_hooks("connects", &[]) {
        return;
    }
    let cable = Cable::new();
    let probe = Probe::of(&cable.client, "connects");
    let mut actor = Actor::start("np-process", |stage| {
        cable.client.enter();
        let thread = thread::Builder::new().name("np-thread".into());
        let connect = thread.spawn(|| Family::V4.connect(PORT).is_err());
        assert!(connect.expect("start it").join().expect("it ends"));
        stage.tell(b'c');
    });
    actor.hear();
    let run = probe.stop();
    assert_eq!(run.count("comm", "np-process"), 1, "{:?}", run.events);
    assert_eq!(number(&run.all()[0], "pid"), actor.pid());
}

#[test]
fn closing_while_it_waits_is_aborted_not_failed() {
    if !has_hooks("connects", &[]) {
        return;
    }
    let cable = Cable::new();
    let _blackhole = cable.server.firewall("input", "tcp dport 7301-7303");
    let probe = Probe::of(&cable.client, "connects");
    for family in Family::OF_SOCKETS {
        cable
            .client
            .run(|| drop([(); 5].map(|()| family.begin(family.port(PORT)))));
    }
    let run = probe.stop();
    assert_eq!(run.count("outcome", "aborted"), 15, "{:?}", run.events);
    assert_eq!(run.all().len(), 15, "{:?}", run.events);
    for family in Family::OF_SOCKETS {
        let events = run.with("dport", family.port(PORT));
        assert_eq!(events.len(), 5, "{family:?}: {events:?}");
        for event in events {
            assert_ends(event, &cable, family);
            assert_eq!(*column_of(event, "errno"), Value::Null, "{event:?}");
            assert_eq!(number(event, "syn_attempts"), 1, "{event:?}");
        }
    }
}

#[test]
fn connects_from_before_are_seen_when_they_end() {
    if !has_hooks("connects", &[]) {
        return;
    }
    let cable = Cable::new();
    let _listener = cable.server.run(|| Family::V4.listen(PORT, 64));
    let firewall = cable.server.firewall("input", &format!("tcp dport {PORT}"));
    let client = cable.client.run(|| Family::V4.begin(PORT));
    let mut probe = Probe::of(&cable.client, "connects");
    firewall.open();
    probe.wait_for("its end", |events| !events.is_empty());
    let run = probe.stop();
    drop(client);
    assert_eq!(run.count("outcome", "established"), 1);
    let event = &run.all()[0];
    assert_ends(event, &cable, Family::V4);
    assert_eq!(*column_of(event, "latency_ns"), Value::Null);
    assert_eq!(number(event, "pid"), u64::from(std::process::id()));
}

#[test]
fn counted_connects_equal_the_applications_own_counts() {
    if !has_hooks("connects", &[]) {
        return;
    }
    let cable = Cable::new();
    let _listener = cable.server.run(|| Family::V4.listen(PORT, 64));
    let probe = Probe::counting(&cable.client, "connects");
    let (_one, well) = connect_as_client(&cable, Family::V4, PORT);
    let (_two, badly) = connect_as_client(&cable, Family::V4, PORT + 1);
    let run = probe.stop();
    assert_eq!(well, [(0, TIMES)].into());
    assert_eq!(badly, [(libc::ECONNREFUSED, TIMES)].into());
    let mut counts = BTreeMap::new();
    for total in &run.summary.totals {
        let outcome = total.group["outcome"]
            .as_str()
            .expect("an outcome is a word");
        counts.insert((outcome, total.group["dport"].as_u64()), total.events);
    }
    let expected = [
        (("established", Some(u64::from(PORT))), TIMES),
        (("failed", Some(u64::from(PORT) + 1)), TIMES),
    ];
    assert_eq!(counts, expected.into());
}

/// In how many stretches of events candidate ports were counted.
fn windows(events: &[Event]) -> usize {
    let is_counted = |event: &Event| column_of(event, "candidates").is_number();
    let stretches = events.chunk_by(|one, next| is_counted(one) == is_counted(next));
    stretches.filter(|stretch| is_counted(&stretch[0])).count()
}

#[test]
fn candidate_ports_are_counted_in_one_window_after_the_other() {
    if !has_hooks("connects", &[CANDIDATES]) {
        return;
    }
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 64));
    let mut probe = Probe::of(&cable.client, "connects");
    probe.wait_for("a second window", |events| {
        let connected = cable.client.run(|| Family::V4.connect(PORT));
        connected.expect("somebody listens");
        listener.accept().expect("accept");
        windows(events) > 1
    });
    probe.stop();
}
