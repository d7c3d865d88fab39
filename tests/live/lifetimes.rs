//! Lifetimes: the connections and bytes are those that the application itself counts.

use std::{
    io::{Read, Write},
    mem::forget,
    net::{Shutdown, TcpListener, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use netprobe_tests::{
    event::{Event, column_of, number, sum, text},
    memory::peak_kib,
    netns::{Cable, Netns},
    probe::{Probe, Run, open_connections},
    process::Actor,
    program::binary,
    skip::{has_hooks, is_root, skip},
    traffic::{CLIENT, Family, SERVER, abort},
    wait_until,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use socket2::{SockRef, Socket, TcpKeepalive};

const PORT: u16 = 7601;
const TIMES: u64 = 5;
const QUESTION: usize = 5_000;
const ANSWER: usize = 70_000;

/// One exchange over a connection, from either end.
fn talk(mut near: &Socket, mut far: &Socket) {
    near.write_all(&[1; QUESTION]).expect("send");
    far.read_exact(&mut [0; QUESTION]).expect("receive");
    far.write_all(&vec![2; ANSWER]).expect("send");
    near.read_exact(&mut vec![0; ANSWER]).expect("receive");
}

/// Both ends of every connection, seen from both namespaces.
fn both(cable: &Cable, work: impl FnOnce()) -> [Run; 2] {
    let probes = [&cable.client, &cable.server].map(|netns| Probe::of(netns, "lifetimes"));
    work();
    cable.client.wait_for_silence();
    cable.server.wait_for_silence();
    probes.map(Probe::stop)
}

/// Listens for each family, on a port of its own.
fn listeners(cable: &Cable) -> [(Family, Socket); 3] {
    let listen = |family: Family| cable.server.run(|| family.listen(family.port(PORT), 8));
    Family::OF_SOCKETS.map(|family| (family, listen(family)))
}

/// What both runs saw of each family.
fn by_family(runs: &[Run; 2]) -> impl Iterator<Item = (Family, [Run; 2])> {
    Family::OF_SOCKETS.into_iter().map(|family| {
        let port = family.port(PORT);
        (family, runs.each_ref().map(|run| run.at_port(port)))
    })
}

#[track_caller]
fn assert_ends(event: &Event, family: Family, is_client: bool) {
    let (mine, other) = if is_client {
        (CLIENT, SERVER)
    } else {
        (SERVER, CLIENT)
    };
    let (role, port) = if is_client {
        ("client", "dport")
    } else {
        ("server", "sport")
    };
    assert_eq!(text(event, "saddr"), family.shown(mine), "{event:?}");
    assert_eq!(text(event, "daddr"), family.shown(other), "{event:?}");
    assert_eq!(text(event, "role"), role, "{event:?}");
    assert_eq!(
        number(event, port),
        u64::from(family.port(PORT)),
        "{event:?}"
    );
}

#[test]
fn connections_and_bytes_equal_those_of_the_application() {
    if !has_hooks("lifetimes", &[]) {
        return;
    }
    let cable = Cable::new();
    let listeners = listeners(&cable);
    let began = Instant::now();
    let runs = both(&cable, || {
        for (family, listener) in &listeners {
            for _ in 0..TIMES {
                let (near, mut far) = family.pair(&cable.client, listener);
                talk(&near, &far);
                near.shutdown(Shutdown::Write).expect("close");
                assert_eq!(far.read(&mut [0]).expect("the end"), 0);
            }
        }
    });
    let took = u64::try_from(began.elapsed().as_nanos()).expect("it was short");
    for (run, netns) in runs.iter().zip([&cable.client, &cable.server]) {
        let again = netns.counters().get("Tcp.RetransSegs");
        assert_eq!(i64::try_from(sum(run.all(), "retransmits")), Ok(again));
    }
    for (family, runs) in by_family(&runs) {
        for (run, is_client) in runs.iter().zip([true, false]) {
            assert_eq!(
                run.all().len() as u64,
                TIMES,
                "{family:?}: {:#?}",
                run.events
            );
            let (sent, received) = exchanged(is_client);
            assert_eq!(sum(run.all(), "bytes_sent"), TIMES * sent);
            assert_eq!(sum(run.all(), "bytes_received"), TIMES * received);
            let (closer, time_wait) = if is_client {
                ("local", "yes")
            } else {
                ("remote", "no")
            };
            for event in run.all() {
                assert_ends(event, family, is_client);
                assert_eq!(text(event, "result"), "fin");
                assert_eq!(text(event, "closer"), closer);
                assert_eq!(text(event, "time_wait"), time_wait);
                assert!(number(event, "duration_ns") < took, "{event:?}");
                assert_ne!(number(event, "srtt_us"), 0);
                assert_eq!(number(event, "pid"), u64::from(std::process::id()));
            }
        }
    }
}

#[test]
fn refused_connects_have_failed() {
    if !has_hooks("lifetimes", &[]) {
        return;
    }
    let cable = Cable::new();
    let runs = both(&cable, || {
        for family in Family::OF_SOCKETS {
            for _ in 0..TIMES {
                let connect = || family.connect(family.port(PORT));
                cable.client.run(connect).expect_err("nobody listens");
            }
        }
    });
    for (family, [client, server]) in by_family(&runs) {
        assert_eq!(
            client.count("result", "failed"),
            TIMES,
            "{family:?}: {:#?}",
            client.events
        );
        assert_eq!(client.count("errno", "ECONNREFUSED"), TIMES);
        assert_eq!(client.count("closer", Value::Null), TIMES);
        assert!(server.all().is_empty(), "{:#?}", server.events);
    }
}

#[test]
fn resets_end_both_ends_and_name_the_first_to_close() {
    if !has_hooks("lifetimes", &[]) {
        return;
    }
    let cable = Cable::new();
    let listeners = listeners(&cable);
    let runs = both(&cable, || {
        for (family, listener) in &listeners {
            for _ in 0..TIMES {
                let (near, far) = family.pair(&cable.client, listener);
                talk(&near, &far);
                abort(near);
                (&far).read(&mut [0]).expect_err("it was reset");
            }
        }
    });
    for (family, runs) in by_family(&runs) {
        for (run, closer) in runs.iter().zip(["local", "remote"]) {
            for (column, value) in [("result", "reset"), ("closer", closer), ("time_wait", "no")] {
                assert_eq!(
                    run.count(column, value),
                    TIMES,
                    "{family:?}: {:#?}",
                    run.events
                );
            }
        }
        assert_eq!(
            sum(runs[1].all(), "bytes_received"),
            TIMES * QUESTION as u64
        );
    }
}

#[test]
fn an_unanswered_peer_ends_in_a_timeout() {
    if !has_hooks("lifetimes", &[]) {
        return;
    }
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 8));
    let (near, _far) = Family::V4.pair(&cable.client, &listener);
    let _blackhole = cable.server.firewall("input", &format!("tcp dport {PORT}"));
    let lifetimes = Probe::of(&cable.client, "lifetimes");
    let resets = Probe::of(&cable.client, "resets");
    let second = Duration::from_secs(1);
    let keepalive = TcpKeepalive::new().with_interval(second).with_retries(1);
    // The idle time comes last: it is over already, and the first probe goes out at once.
    for keepalive in [&keepalive, &TcpKeepalive::new().with_time(second)] {
        let near = SockRef::from(&near);
        near.set_tcp_keepalive(keepalive).expect("keep alive");
    }
    wait_until("the peer was given up", || {
        near.take_error().ok().flatten().is_some()
    });
    let run = lifetimes.stop();
    assert_eq!(run.count("result", "timeout"), 1, "{:#?}", run.events);
    assert_eq!(run.count("errno", "ETIMEDOUT"), 1, "{:#?}", run.events);
    let run = resets.stop();
    assert_eq!(run.count("cause", "timeout"), 1, "{:#?}", run.events);
    assert_eq!(cable.client.counters().get("Tcp.OutRsts"), 1);
    assert_eq!(cable.client.counters().get("TcpExt.TCPKeepAlive"), 1);
}

/// Each attempt counts as if it sent other data.
#[test]
fn what_never_left_this_machine_was_not_sent() {
    if !has_hooks("lifetimes", &[]) {
        return;
    }
    let cable = Cable::new();
    // Namespaces are found by the processes that live in them.
    let mut inhabitant = Actor::start("np-inhabitant", |_| cable.client.enter());
    inhabitant.hear();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 8));
    let (mut near, _far) = Family::V4.pair(&cable.client, &listener);
    near.write_all(&[1; QUESTION]).expect("send");
    wait_until("it was acknowledged", || {
        cable.client.counters().get("Tcp.OutSegs") >= 3
    });
    cable.client.wait_for_silence();
    let lifetimes = Probe::of(&cable.client, "lifetimes");
    let firewall = cable
        .client
        .firewall("output", &format!("tcp dport {PORT}"));
    near.write_all(&[1; QUESTION]).expect("write");
    wait_until("it was tried three times", || firewall.dropped() >= 3);
    let open = open_connections(&cable.client, &[]);
    abort(near);
    let run = lifetimes.stop();
    let sent = |event: &Event| number(event, "bytes_sent");
    let all = run
        .all()
        .iter()
        .chain(&open)
        .filter(|event| event["dport"] == PORT);
    let all: Vec<u64> = all.map(sent).collect();
    assert_eq!(all, [QUESTION as u64; 2], "{:?} {open:?}", run.events);
}

#[test]
fn connections_from_before_are_reported_without_their_duration() {
    if !has_hooks("lifetimes", &[]) {
        return;
    }
    let cable = Cable::new();
    let listeners = listeners(&cable);
    let pairs = listeners
        .each_ref()
        .map(|(family, listener)| family.pair(&cable.client, listener));
    let runs = both(&cable, || {
        for (near, far) in pairs {
            talk(&near, &far);
            drop(near);
            drop(far);
        }
    });
    for (family, runs) in by_family(&runs) {
        for (run, is_client) in runs.iter().zip([true, false]) {
            assert_eq!(run.all().len(), 1, "{family:?}: {:#?}", run.events);
            let event = &run.all()[0];
            assert_ends(event, family, is_client);
            assert_eq!(*column_of(event, "duration_ns"), Value::Null);
            assert_eq!(number(event, "pid"), u64::from(std::process::id()));
        }
    }
}

#[test]
fn the_owner_outlives_its_process() {
    if !has_hooks("lifetimes", &[]) {
        return;
    }
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 8));
    let probe = Probe::of(&cable.client, "lifetimes");
    let mut client = Actor::start("np-shortlived", |stage| {
        cable.client.enter();
        let connection = Family::V4.connect(PORT).expect("connect");
        stage.tell(b'c');
        stage.await_byte();
        drop(connection);
    });
    client.hear();
    let (far, _) = listener.accept().expect("accept");
    let pid = client.pid();
    // Killed, and gone before the server closes.
    drop(client);
    assert_eq!((&far).read(&mut [0]).expect("the end"), 0);
    drop(far);
    cable.server.wait_for_silence();
    let run = probe.stop();
    assert_eq!(run.all().len(), 1, "{:#?}", run.events);
    assert_eq!(number(&run.all()[0], "pid"), pid);
    assert_eq!(text(&run.all()[0], "comm"), "np-shortlived");
}

#[test]
fn counts_are_grouped_by_result_and_service() {
    if !has_hooks("lifetimes", &[]) {
        return;
    }
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 8));
    let probe = Probe::counting(&cable.client, "lifetimes");
    for _ in 0..TIMES {
        let (near, far) = Family::V4.pair(&cable.client, &listener);
        talk(&near, &far);
    }
    cable.client.wait_for_silence();
    cable.server.wait_for_silence();
    let run = probe.stop();
    let totals: Vec<_> = run
        .summary
        .totals
        .iter()
        .filter(|total| total.events > 0)
        .collect();
    assert_eq!(totals.len(), 1, "{totals:#?}");
    assert_eq!(totals[0].events, TIMES);
    assert_eq!(totals[0].weight, TIMES * (QUESTION + ANSWER) as u64);
    assert_eq!(totals[0].group["result"], "fin");
    assert_eq!(totals[0].group["role"], "client");
    assert_eq!(totals[0].group["service_port"], PORT);
}

/// What `netprobe lifetimes --open` lists of one namespace.
fn open(cable: &Cable, is_client: bool) -> Vec<Event> {
    let netns = if is_client {
        &cable.client
    } else {
        &cable.server
    };
    open_connections(netns, &["--longest"])
}

#[test]
fn open_connections_are_listed_with_age_idle_time_and_owner() {
    if !is_root() {
        return;
    }
    let cable = Cable::new();
    // Namespaces are found by the processes that live in them.
    let _inhabitants = [&cable.client, &cable.server]
        .map(|netns| Actor::start("np-inhabitant", |_| netns.enter()))
        .map(|mut inhabitant| (inhabitant.hear(), inhabitant));
    let listeners = listeners(&cable);
    let began = Instant::now();
    let older = listeners
        .each_ref()
        .map(|(family, listener)| family.pair(&cable.client, listener));
    let opened = Instant::now();
    wait_until("they are older", || {
        opened.elapsed() > Duration::from_millis(100)
    });
    let between = opened.elapsed();
    let younger = listeners.each_ref().map(|(family, listener)| {
        let pair = family.pair(&cable.client, listener);
        talk(&pair.0, &pair.1);
        pair
    });
    for is_client in [true, false] {
        let listed = open(&cable, is_client);
        let most = u64::try_from(began.elapsed().as_nanos()).expect("it was short");
        assert_eq!(listed.len(), 6, "{listed:#?}");
        for family in Family::OF_SOCKETS {
            let port = if is_client { "dport" } else { "sport" };
            let is_of_family = |event: &&Event| number(event, port) == u64::from(family.port(PORT));
            let mut listed: Vec<&Event> = listed.iter().filter(is_of_family).collect();
            assert_eq!(listed.len(), 2, "{family:?}: {listed:#?}");
            // Where the kernel does not tell the age, the order is an estimate.
            listed.sort_by_key(|event| column_of(event, "age_ns").is_null());
            for event in &listed {
                assert_ends(event, family, is_client);
                assert_eq!(text(event, "state"), "ESTAB");
                assert_eq!(number(event, "pid"), u64::from(std::process::id()));
            }
            // The kernel tells milliseconds, of a clock that ticks every ten at worst.
            let coarse = 20_000_000;
            let age = number(listed[0], "age_ns");
            assert!(age + coarse >= u64::try_from(between.as_nanos()).expect("short"));
            assert!(age <= most + coarse, "{age} {most}");
            assert_eq!(number(listed[0], "idle_ns"), age);
            assert_eq!(*column_of(listed[1], "age_ns"), Value::Null);
            let (sent, received) = exchanged(is_client);
            assert_eq!(number(listed[1], "bytes_sent"), sent);
            assert_eq!(number(listed[1], "bytes_received"), received);
        }
    }
    drop((older, younger));
}

/// Bytes that [`talk`] sends and receives.
const fn exchanged(is_client: bool) -> (u64, u64) {
    if is_client {
        (QUESTION as u64, ANSWER as u64)
    } else {
        (ANSWER as u64, QUESTION as u64)
    }
}

/// Kilobytes that a socket of its own takes, with all that the kernel says of it, were too many.
#[test]
fn very_many_open_connections_take_little_memory() {
    const PAIRS: usize = 8000;
    const MOST_KIB: u64 = 24 << 10;
    if !is_root() {
        return;
    }
    let limit = getrlimit(Resource::Nofile);
    if limit
        .maximum
        .is_some_and(|most| most < 2 * PAIRS as u64 + 100)
    {
        skip("too few files may be open");
        return;
    }
    let netns = Netns::new();
    let mut holder = Actor::start("holder", |stage| {
        netns.enter();
        let limit = Rlimit {
            current: limit.maximum,
            ..limit
        };
        setrlimit(Resource::Nofile, limit).expect("open many files");
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address");
        for _ in 0..PAIRS {
            let near = TcpStream::connect(address).expect("connect");
            forget((near, listener.accept().expect("accept")));
        }
        stage.tell(b'r');
    });
    assert_eq!(holder.hear(), b'r');
    let netns = netns.inum().to_string();
    let mut list = Command::new(binary())
        .args(["lifetimes", "--open", "--netns", &netns])
        .stdout(Stdio::piped())
        .spawn()
        .expect("run netprobe");
    // Then it has them all, and waits for us to take more.
    let mut out = list.stdout.take().expect("a pipe");
    out.read_exact(&mut [0]).expect("its first lines");
    let peak = peak_kib(list.id());
    drop(out);
    list.wait().expect("its end");
    assert!(peak > 0 && peak < MOST_KIB, "{peak} KiB");
}
