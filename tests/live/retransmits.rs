//! Retransmissions: the segments add up to the kernel's counters, by cause.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
};

use netprobe_tests::{
    counters::Counters,
    event::{Event, column_of, number, sum, text},
    netns::{Cable, Netns},
    probe::{Probe, Run},
    skip::has_hooks,
    traffic::{CLIENT, Family, SERVER, abort, port_of},
    wait_until,
};
use serde_json::Value;
use socket2::Socket;

const PORT: u16 = 7201;
const SYNS: u64 = 4;

/// The segments that were sent again in `netns`, which must be as many as the kernel counted.
#[track_caller]
fn assert_totals(run: &Run, netns: &Netns) {
    let counters = netns.counters();
    assert_eq!(segments(run.all()), counters.get("Tcp.RetransSegs"));
    let syns = run.count("cause", "syn") + run.count("cause", "syn-ack");
    assert_eq!(
        i64::try_from(syns),
        Ok(counters.get("TcpExt.TCPSynRetrans"))
    );
    for event in run.all() {
        assert_eq!(number(event, "netns"), u64::from(netns.inum()));
    }
}

/// How many segments they sent: an attempt that failed sent none.
#[track_caller]
#[expect(single_use_lifetimes, reason = "`impl Trait` cannot elide it yet")]
fn segments<'a>(events: impl IntoIterator<Item = &'a Event>) -> i64 {
    let sent = events.into_iter().filter(|event| event["err"].is_null());
    i64::try_from(sum(sent, "segs")).expect("a count is small")
}

#[track_caller]
fn assert_client_to_server(event: &Event, family: Family) {
    assert_eq!(text(event, "family"), family.name());
    assert_eq!(text(event, "saddr"), family.shown(CLIENT));
    assert_eq!(text(event, "daddr"), family.shown(SERVER));
    assert_eq!(number(event, "dport"), u64::from(family.port(PORT)));
}

#[test]
fn unanswered_syns_equal_tcp_syn_retrans() {
    if !has_hooks("retransmits", &[]) {
        return;
    }
    let cable = Cable::new();
    let _blackhole = cable.server.firewall("input", "tcp dport 7201-7203");
    let mut probe = Probe::of(&cable.client, "retransmits");
    let mut clients = Vec::new();
    for family in Family::OF_SOCKETS {
        clients.extend(cable.client.run(|| {
            (0..SYNS)
                .map(|_| family.begin(family.port(PORT)))
                .collect::<Vec<_>>()
        }));
    }
    let ports: Vec<u64> = clients
        .iter()
        .map(|client| port_of(client).into())
        .collect();
    // Owners are looked up while their sockets live.
    probe.wait_for("every SYN sent again", |events| events.len() >= ports.len());
    drop(clients);
    cable.client.wait_for_silence();
    let run = probe.stop();
    assert_totals(&run, &cable.client);
    for family in Family::OF_SOCKETS {
        let events = run.with("family", family.name());
        assert!(events.len() as u64 >= SYNS, "{family:?}: {events:?}");
        for event in events {
            assert_client_to_server(event, family);
            assert_eq!(text(event, "cause"), "syn");
            assert_eq!(text(event, "state"), "SYN-SENT");
            assert_eq!(number(event, "segs"), 1);
            assert!(ports.contains(&number(event, "sport")), "{event:?}");
            assert_eq!(number(event, "pid"), u64::from(std::process::id()));
        }
    }
}

#[test]
fn what_was_seen_is_compared_with_what_the_kernel_counted() {
    if !has_hooks("retransmits", &["SYN-ACK"]) {
        return;
    }
    let cable = Cable::new();
    let _blackhole = cable.server.firewall("input", &format!("tcp dport {PORT}"));
    // Namespaces are found through their processes.
    let resident = cable.client.run(|| Command::new("sleep").arg("60").spawn());
    let mut resident = resident.expect("start sleep(1)");
    let mut probe = Probe::start(&["retransmits", "--json", "--strict"]);
    let only = Probe::of(&cable.client, "retransmits");
    let clients = cable.client.run(|| {
        let begin = (0..SYNS).map(|_| Family::V4.begin(PORT));
        begin.collect::<Vec<_>>()
    });
    let inum = u64::from(cable.client.inum());
    probe.wait_for("every SYN sent again", |events| {
        let ours = events.iter().filter(|event| number(event, "netns") == inum);
        ours.count() as u64 >= SYNS
    });
    drop(clients);
    let run = probe.stop();
    let only = only.stop();
    resident.kill().expect("it is there");
    resident.wait().expect("it ends");
    let [segments] = &run.summary.reconciled[..] else {
        panic!("{:?}", run.summary);
    };
    assert_eq!(segments.counter, "Tcp.RetransSegs - TcpExt.TCPRetransFail");
    assert!(segments.agrees && segments.seen >= SYNS, "{segments:?}");
    assert!(segments.least >= SYNS, "{segments:?}");
    assert!(run.summary.totals.is_empty(), "{:?}", run.summary);
    let [segments] = &only.summary.reconciled[..] else {
        panic!("{:?}", only.summary);
    };
    assert!(segments.agrees, "{segments:?}");
    assert_eq!(segments.seen, only.all().len() as u64, "{segments:?}");
}

#[test]
fn attempts_of_a_syn_are_numbered() {
    if !has_hooks("retransmits", &[]) {
        return;
    }
    let cable = Cable::new();
    let _blackhole = cable.server.firewall("input", &format!("tcp dport {PORT}"));
    let mut probe = Probe::of(&cable.client, "retransmits");
    let client = cable.client.run(|| Family::V4.begin(PORT));
    probe.wait_for("two retransmissions", |events| events.len() >= 2);
    drop(client);
    let run = probe.stop();
    let attempts: Vec<u64> = run
        .all()
        .iter()
        .map(|event| number(event, "attempt"))
        .collect();
    let expected: Vec<u64> = (1..=attempts.len() as u64).collect();
    assert_eq!(attempts, expected);
}

#[test]
fn lost_syn_acks_equal_tcp_syn_retrans() {
    if !has_hooks("retransmits", &["SYN-ACK"]) {
        return;
    }
    let cable = Cable::new();
    let answers = format!("tcp sport {PORT} tcp flags & (syn | ack) == (syn | ack)");
    let _deaf = cable.client.firewall("input", &answers);
    let mut probe = Probe::of(&cable.server, "retransmits");
    // Listens on all addresses, for all families.
    let listener = cable.server.run(|| Family::Mapped.listen(PORT, 64));
    let mut clients = Vec::new();
    for family in Family::OF_PACKETS {
        clients.extend(
            cable
                .client
                .run(|| (0..SYNS).map(|_| family.begin(PORT)).collect::<Vec<_>>()),
        );
    }
    // Owners are looked up while their sockets live.
    probe.wait_for("every SYN-ACK sent again", |events| {
        events.iter().filter(|event| event["attempt"] == 1).count() >= clients.len()
    });
    drop((clients, listener));
    cable.server.wait_for_silence();
    let run = probe.stop();
    assert_totals(&run, &cable.server);
    assert_eq!(run.count("cause", "syn-ack"), run.all().len() as u64);
    for (family, shown) in [(Family::V4, "ipv4-mapped"), (Family::V6, "ipv6")] {
        let events = run.with("family", shown);
        assert!(events.len() as u64 >= SYNS, "{family:?}: {events:?}");
        for event in events {
            assert_eq!(text(event, "saddr"), family.shown(SERVER));
            assert_eq!(text(event, "daddr"), family.shown(CLIENT));
            assert_eq!(number(event, "sport"), u64::from(PORT));
            assert_eq!(number(event, "pid"), u64::from(std::process::id()));
            assert!(number(event, "attempt") >= 1, "{event:?}");
        }
    }
}

/// Sends much over a cable that loses packets, to the end.
fn send_much(cable: &Cable, family: Family, listener: &Socket) {
    const BYTES: u64 = 1 << 20;
    let (near, far) = family.pair(&cable.client, listener);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let chunk = vec![b'x'; 1 << 16];
            let mut near = near;
            for _ in 0..BYTES / chunk.len() as u64 {
                near.write_all(&chunk).expect("send");
            }
        });
        let mut far = far;
        let received = std::io::copy(&mut Read::by_ref(&mut far), &mut std::io::sink());
        assert_eq!(received.expect("receive"), BYTES);
    });
}

#[test]
fn data_lost_in_bulk_equals_retrans_segs() {
    if !has_hooks("retransmits", &[]) {
        return;
    }
    let cable = Cable::new();
    // Buffers of up to 64 KiB travel whole, so what is lost is many segments at once.
    let lost = "tcp dport 7201-7203 meta length > 1000 numgen inc mod 7 == 3";
    let _lossy = cable.server.firewall("input", lost);
    let probe = Probe::of(&cable.client, "retransmits");
    for family in Family::OF_SOCKETS {
        let listener = cable.server.run(|| family.listen(family.port(PORT), 1));
        send_much(&cable, family, &listener);
    }
    cable.client.wait_for_silence();
    cable.server.wait_for_silence();
    let run = probe.stop();
    assert_totals(&run, &cable.client);
    let fast = segments(run.with("cause", "fast"));
    assert_eq!(fast, cable.client.counters().get("TcpExt.TCPFastRetrans"));
    for family in Family::OF_SOCKETS {
        let events = run.with("dport", family.port(PORT));
        assert!(
            events.iter().any(|event| number(event, "segs") > 1),
            "{family:?}"
        );
        assert!(
            events.iter().any(|event| text(event, "cause") == "fast"),
            "{family:?}"
        );
        for event in events {
            assert_client_to_server(event, family);
            assert_ne!(*column_of(event, "srtt_us"), Value::Null);
        }
    }
}

/// Loses the last segment of a connection, and those that repeat it, until `is_enough`.
fn lose_the_tail(cable: &Cable, family: Family, is_enough: impl Fn(&Counters) -> bool) {
    let listener = cable.server.run(|| family.listen(family.port(PORT), 1));
    let (near, far) = family.pair(&cable.client, &listener);
    // One exchange, so that the round-trip time is known.
    near.send(b"question").expect("send");
    let mut answer = [0; 8];
    (&far).read_exact(&mut answer).expect("receive");
    (&far).write_all(&answer).expect("send");
    (&near).read_exact(&mut answer).expect("receive");
    let ports = format!("tcp dport {}", family.port(PORT));
    let _blackhole = cable.server.firewall("input", &ports);
    near.send(b"tail").expect("send");
    wait_until("the tail was sent again", || {
        is_enough(&cable.client.counters())
    });
    abort(near);
    cable.client.wait_for_silence();
}

#[test]
fn a_lost_tail_is_probed_for() {
    if !has_hooks("retransmits", &[]) {
        return;
    }
    let cable = Cable::new();
    let probe = Probe::of(&cable.client, "retransmits");
    let probes = |counters: &Counters| counters.get("TcpExt.TCPLossProbes");
    for family in Family::OF_SOCKETS {
        let before = probes(&cable.client.counters());
        lose_the_tail(&cable, family, |now| probes(now) > before);
    }
    let run = probe.stop();
    assert_totals(&run, &cable.client);
    let seen = segments(run.with("cause", "tlp"));
    assert_eq!(seen, probes(&cable.client.counters()), "{:?}", run.events);
    for family in Family::OF_SOCKETS {
        let events = run.with("dport", family.port(PORT));
        assert_eq!(text(events[0], "cause"), "tlp");
        assert_eq!(text(events[0], "state"), "ESTAB");
        assert_client_to_server(events[0], family);
    }
}

#[test]
fn timeouts_equal_tcp_timeouts_and_are_numbered() {
    if !has_hooks("retransmits", &[]) {
        return;
    }
    let cable = Cable::new();
    let probe = Probe::of(&cable.client, "retransmits");
    let timeouts = |counters: &Counters| counters.get("TcpExt.TCPTimeouts");
    for family in Family::OF_SOCKETS {
        let before = timeouts(&cable.client.counters());
        lose_the_tail(&cable, family, |now| timeouts(now) >= before + 2);
    }
    let run = probe.stop();
    assert_totals(&run, &cable.client);
    let timed_out = run.with("cause", "rto");
    let segments = segments(timed_out.iter().copied());
    assert_eq!(
        segments,
        timeouts(&cable.client.counters()),
        "{:?}",
        run.events
    );
    for family in Family::OF_SOCKETS {
        let port = u64::from(family.port(PORT));
        let events = timed_out
            .iter()
            .filter(|event| number(event, "dport") == port);
        let attempts: Vec<u64> = events.map(|event| number(event, "attempt")).collect();
        let expected: Vec<u64> = (1..=attempts.len() as u64).collect();
        assert_eq!(attempts, expected, "{family:?}");
        assert!(attempts.len() >= 2, "{family:?}");
    }
}

#[test]
fn linear_timeouts_are_numbered_too() {
    if !has_hooks("retransmits", &[]) {
        return;
    }
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 1));
    let (near, _far) = Family::V4.pair(&cable.client, &listener);
    // With it a stream without loss so far is never thin enough.
    near.set_tcp_congestion(b"reno")
        .expect("reno is always there");
    near.set_tcp_thin_linear_timeouts(true)
        .expect("set thin timeouts");
    let probe = Probe::of(&cable.client, "retransmits");
    let _blackhole = cable.server.firewall("input", &format!("tcp dport {PORT}"));
    near.send(b"tail").expect("send");
    wait_until("it was sent again five times", || {
        cable.client.counters().get("TcpExt.TCPTimeouts") >= 5
    });
    abort(near);
    let run = probe.stop();
    let events = run.with("cause", "rto");
    let attempts: Vec<u64> = events
        .iter()
        .map(|event| number(event, "attempt"))
        .collect();
    assert_eq!(attempts[..5], [1, 2, 3, 4, 5], "{:?}", run.events);
}

/// A narrow link behind the server, which tells the client of it when a packet does not fit.
#[test]
fn what_did_not_fit_through_a_tunnel_was_no_timeout() {
    if !has_hooks("retransmits", &[]) {
        return;
    }
    let (cable, far) = (Cable::new(), Netns::new());
    cable.server.ip(&format!(
        "link add far type veth peer name far netns {}\nlink set far mtu 1300 up\naddress add 10.78.0.1/24 dev far\n",
        far.path()
    ));
    far.ip("link set far up\naddress add 10.78.0.2/24 dev far\nroute add default via 10.78.0.1\n");
    cable.server.sysctl("net.ipv4.ip_forward", 1);
    cable.client.ip("route add 10.78.0.0/24 via 10.77.0.2\n");
    let listener = far.run(|| TcpListener::bind("10.78.0.2:7201").expect("listen"));
    let probe = Probe::of(&cable.client, "retransmits");
    let connect = || TcpStream::connect("10.78.0.2:7201").expect("connect");
    let mut near = cable.client.run(connect);
    let (mut there, _) = listener.accept().expect("accept");
    near.write_all(&[7; 10_000]).expect("send");
    there.read_exact(&mut [0; 10_000]).expect("receive");
    let counters = cable.client.counters();
    let run = probe.stop();
    assert!(counters.get("Tcp.RetransSegs") > 0, "it was told");
    assert_eq!(
        segments(run.with("cause", "other")),
        counters.get("Tcp.RetransSegs")
    );
}
