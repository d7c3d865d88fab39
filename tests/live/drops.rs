//! Dropped packets: each is seen once, with its own addresses.

use std::collections::BTreeSet;

use netprobe_tests::{
    event::{Event, column_of, number, text},
    netns::{Cable, Firewall, INTERFACE},
    probe::{Probe, Run},
    program::check,
    skip::has_hooks,
    traffic::{
        CLIENT, Family, SERVER,
        packet::{Packet, Shape, Wire, flags},
    },
    wait_until,
};
use serde_json::Value;

use crate::listeners::{Waiting, overflow_at_final_ack};

const PORT: u16 = 7001;
const PACKETS: u16 = 20;

/// Sends [`PACKETS`] packets of both families, each from a port of its own.
fn send(cable: &Cable, change: impl Fn(&mut Packet) + Sync) {
    cable.client.run(|| {
        let wire = Wire::open();
        for family in Family::OF_PACKETS {
            for index in 0..PACKETS {
                let mut packet = Packet::new(family, flags::SYN, PORT);
                packet.sport += index;
                packet.seq += u32::from(index);
                change(&mut packet);
                wire.send(&packet);
            }
        }
    });
}

/// Both families have sent [`PACKETS`].
const SENT: u64 = 2 * PACKETS as u64;

/// The events of one family, which must be those of [`send`].
#[track_caller]
fn sent_by(run: &Run, family: Family) -> Vec<&Event> {
    let events = run.with("family", family.name());
    let ports: BTreeSet<u64> = events.iter().map(|event| number(event, "sport")).collect();
    let expected: BTreeSet<u64> = (40_000..40_000 + u64::from(PACKETS)).collect();
    assert_eq!(ports, expected);
    for event in &events {
        assert_eq!(text(event, "saddr"), family.shown(CLIENT));
        assert_eq!(text(event, "daddr"), family.shown(SERVER));
        assert_eq!(number(event, "dport"), u64::from(PORT));
        assert_eq!(number(event, "seq"), 960_000 + number(event, "sport"));
    }
    events
}

/// Kernels before 5.17 give no reasons.
#[track_caller]
fn assert_reason(events: &[&Event], reason: &str) {
    let expected = if check().version() < (5, 17) {
        Value::Null
    } else {
        reason.into()
    };
    for event in events {
        assert_eq!(*column_of(event, "reason"), expected, "{event:?}");
        assert!(!text(event, "location").is_empty(), "{event:?}");
    }
}

#[test]
fn firewall_drops_equal_the_firewalls_own_counter() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let firewall = cable.server.firewall("input", &format!("tcp dport {PORT}"));
    let probe = Probe::of(&cable.server, "drops");
    send(&cable, |_| {});
    wait_until("all were dropped", || firewall.dropped() == SENT);
    let run = probe.stop();
    assert_eq!(run.count("dport", PORT), firewall.dropped());
    for (family, length) in [(Family::V4, 40), (Family::V6, 60)] {
        let events = sent_by(&run, family);
        assert_reason(&events, "NETFILTER_DROP");
        for event in events {
            assert_eq!(text(event, "flags"), "SYN");
            assert_eq!(number(event, "len"), length);
            assert_eq!(text(event, "iface"), INTERFACE);
            assert_eq!(number(event, "netns"), u64::from(cable.server.inum()));
            assert_eq!(*column_of(event, "pid"), Value::Null);
            assert_eq!(*column_of(event, "state"), Value::Null);
        }
    }
}

/// Until the IP layer takes it over, a packet from another namespace still has the socket of its sender.
#[test]
fn what_is_dropped_at_ingress_is_dropped_where_it_came_in() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    cable.server.nft(&format!(
        "table netdev netprobe {{\n\
         chain drops {{ type filter hook ingress device {INTERFACE} priority 0; tcp dport {PORT} drop; }}\n\
         }}\n"
    ));
    let mut probe = Probe::of(&cable.server, "drops");
    let _client = cable.client.run(|| Family::V4.begin(PORT));
    probe.wait_for("the SYN is dropped", |events| !events.is_empty());
    let run = probe.stop();
    assert_reason(&run.with("dport", PORT), "NETFILTER_DROP");
    for event in run.all() {
        assert_eq!(number(event, "netns"), u64::from(cable.server.inum()));
        assert_eq!(text(event, "iface"), INTERFACE);
    }
}

/// Where netfilter sees it, what is on its way out has a route but no device yet; the kernel's own answers over IPv6
/// have no socket either.
#[test]
fn resets_dropped_on_output_say_where_they_were_to_leave() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let resets = format!("tcp sport {PORT} tcp flags & rst == rst");
    let firewall = cable.server.firewall("output", &resets);
    let probe = Probe::of(&cable.server, "drops");
    send(&cable, |_| {});
    wait_until("all were dropped", || firewall.dropped() == SENT);
    let run = probe.stop();
    assert_eq!(run.count("sport", PORT), firewall.dropped());
    for event in run.with("sport", PORT) {
        assert_eq!(text(event, "iface"), INTERFACE, "{event:?}");
        assert_eq!(number(event, "netns"), u64::from(cable.server.inum()));
    }
}

#[test]
fn packets_of_an_ipv6_socket_over_ipv4_are_mapped() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let netns = cable.client.inum().to_string();
    let _firewall = cable.client.firewall("output", "tcp dport 7001-7003");
    let mut probe = Probe::of(&cable.client, "drops");
    let mut ipv6 = Probe::start(&["drops", "--json", "--netns", &netns, "-6"]);
    let clients =
        Family::OF_SOCKETS.map(|family| cable.client.run(|| family.begin(family.port(PORT))));
    probe.wait_for("each SYN", |events| events.len() >= clients.len());
    ipv6.wait_for("two SYNs", |events| events.len() >= 2);
    let (run, ipv6) = (probe.stop(), ipv6.stop());
    drop(clients);
    for family in Family::OF_SOCKETS {
        let events = run.with("dport", family.port(PORT));
        assert!(!events.is_empty(), "{family:?}: {:?}", run.events);
        for event in events {
            assert_eq!(text(event, "family"), family.name());
            assert_eq!(text(event, "saddr"), family.shown(CLIENT));
            assert_eq!(text(event, "daddr"), family.shown(SERVER));
            assert_eq!(text(event, "iface"), INTERFACE);
        }
        let is_shown = ipv6.count("family", family.name()) > 0;
        assert_eq!(is_shown, family != Family::V4, "{:?}", ipv6.events);
    }
}

/// Data of a later fragment stands where the first one has the TCP header.
#[test]
fn only_the_first_fragment_has_ports_and_flags() {
    if !has_hooks("drops", &[]) {
        return;
    }
    for (family, rule) in [
        (Family::V4, "ip frag-off & 0x3fff != 0"),
        (Family::V6, "exthdr frag exists"),
    ] {
        let cable = Cable::new();
        let firewall = cable.server.firewall("prerouting", rule);
        let probe = Probe::of(&cable.server, "drops");
        cable.client.run(|| {
            for shape in [Shape::First, Shape::Later] {
                let packet = Packet::new(family, flags::SYN, PORT);
                Wire::open().send(&Packet { shape, ..packet });
            }
        });
        wait_until("both were dropped", || firewall.dropped() == 2);
        let run = probe.stop();
        let [first, later] = run.all() else {
            panic!("two were expected: {:?}", run.events);
        };
        for event in [first, later] {
            assert_eq!(text(event, "saddr"), family.shown(CLIENT));
            assert_eq!(text(event, "family"), family.name());
        }
        assert_eq!(number(first, "dport"), u64::from(PORT));
        assert_eq!(text(first, "flags"), "SYN");
        for column in ["sport", "dport", "flags", "seq"] {
            assert_eq!(*column_of(later, column), Value::Null, "{column}");
        }
    }
}

#[test]
fn segments_for_nobody_equal_the_resets_that_answer_them() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let before = cable.server.counters();
    let probe = Probe::of(&cable.server, "drops");
    send(&cable, |packet| packet.flags = flags::ACK);
    let resets = || cable.server.counters().grown(&before, "Tcp.OutRsts");
    wait_until("all were answered", || resets() == SENT);
    let run = probe.stop();
    assert_eq!(run.count("dport", PORT), resets());
    for family in Family::OF_PACKETS {
        let events = sent_by(&run, family);
        assert_reason(&events, "NO_SOCKET");
        for event in events {
            assert_eq!(text(event, "flags"), "ACK");
        }
    }
}

#[test]
fn resets_for_nobody_are_seen_though_nothing_answers_them() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let before = cable.server.counters();
    let probe = Probe::of(&cable.server, "drops");
    send(&cable, |packet| packet.flags = flags::RST);
    let segments = || cable.server.counters().grown(&before, "Tcp.InSegs");
    wait_until("all were received", || segments() == SENT);
    let run = probe.stop();
    assert_eq!(run.count("dport", PORT), SENT);
    for family in Family::OF_PACKETS {
        assert_reason(&sent_by(&run, family), "NO_SOCKET");
    }
}

#[test]
fn wrong_checksums_equal_the_counter_of_checksum_errors() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let before = cable.server.counters();
    let probe = Probe::of(&cable.server, "drops");
    send(&cable, |packet| packet.is_intact = false);
    let errors = || cable.server.counters().grown(&before, "Tcp.InCsumErrors");
    wait_until("all were refused", || errors() == SENT);
    let run = probe.stop();
    assert_eq!(run.count("dport", PORT), errors());
    for family in Family::OF_PACKETS {
        assert_reason(&sent_by(&run, family), "TCP_CSUM");
    }
}

#[test]
fn equal_addresses_in_two_namespaces_are_told_apart() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let (one, two) = (Cable::new(), Cable::new());
    let walls = [&one, &two].map(|cable| cable.server.firewall("input", "tcp dport 7002"));
    let probe = Probe::start(&["drops", "--json", "--port", "7002"]);
    for (cable, count) in [(&one, 3), (&two, 5)] {
        let packet = Packet::new(Family::V4, flags::SYN, 7002);
        let sent = cable.client.run(|| Wire::open().flood(&packet, count));
        assert_eq!(usize::try_from(sent), Ok(count));
    }
    wait_until("all were dropped", || {
        walls.each_ref().map(Firewall::dropped) == [3, 5]
    });
    let run = probe.stop();
    assert_eq!(run.count("netns", one.server.inum()), 3);
    assert_eq!(run.count("netns", two.server.inum()), 5);
}

#[test]
fn filters_leave_the_rest_out_and_account_for_it() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let firewall = cable.server.firewall("input", "tcp dport {7001, 7002}");
    let netns = cable.server.inum().to_string();
    let of =
        |filter: &[&str]| Probe::start(&[&["drops", "--json", "--netns", &netns], filter].concat());
    let (ipv4, ipv6, port) = (of(&["-4"]), of(&["-6"]), of(&["--port", "7002"]));
    send(&cable, |packet| packet.dport += packet.sport % 2);
    wait_until("all were dropped", || firewall.dropped() == SENT);
    let (ipv4, ipv6, port) = (ipv4.stop(), ipv6.stop(), port.stop());
    assert_eq!(ipv4.count("family", "ipv4"), u64::from(PACKETS));
    assert_eq!(ipv4.all().len(), usize::from(PACKETS));
    assert_eq!(ipv6.count("family", "ipv6"), u64::from(PACKETS));
    assert_eq!(ipv6.all().len(), usize::from(PACKETS));
    assert_eq!(port.count("dport", 7002), u64::from(PACKETS));
    assert_eq!(port.all().len(), usize::from(PACKETS));
    for run in [ipv4, ipv6, port] {
        let counters = run.account("drops").counters;
        assert!(counters.filtered >= u64::from(PACKETS), "{counters:?}");
    }
}

#[test]
fn counted_drops_equal_the_firewalls_own_counter() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let firewall = cable.server.firewall("input", &format!("tcp dport {PORT}"));
    let probe = Probe::counting(&cable.server, "drops");
    send(&cable, |_| {});
    wait_until("all were dropped", || firewall.dropped() == SENT);
    let run = probe.stop();
    let of_port = |group: &std::collections::BTreeMap<String, Value>| group["dport"] == PORT;
    let totals = run.summary.totals.iter();
    let [total] = totals
        .filter(|total| of_port(&total.group))
        .collect::<Vec<_>>()[..]
    else {
        panic!("one group was expected: {:#?}", run.summary.totals);
    };
    assert_eq!(total.kind, "drops");
    assert_eq!(total.events, firewall.dropped());
    assert_eq!(total.weight, u64::from(PACKETS) * (40 + 60));
    assert_eq!(total.group["netns"], cable.server.inum());
    assert!(run.events.is_empty(), "{:?}", run.events);
    assert_eq!(run.account("drops").counters.aggregated, SENT);
}

/// Before 6.18 the kernel does not say why it drops these.
#[test]
fn handshakes_refused_at_the_final_ack_show_as_drops_too() {
    if !has_hooks("drops", &[]) {
        return;
    }
    if check().version() < (6, 18) {
        netprobe_tests::skip::skip("drops, TCP_LISTEN_OVERFLOW: this kernel has no such reason");
        return;
    }
    let cable = Cable::new();
    let before = cable.server.counters();
    let probe = Probe::of(&cable.server, "drops");
    for family in Family::OF_SOCKETS {
        let port = family.port(PORT);
        overflow_at_final_ack((&cable, family), port, Waiting::AsRequests, || {});
    }
    let run = probe.stop();
    let now = cable.server.counters();
    let overflows = now.grown(&before, "TcpExt.ListenOverflows");
    let refused = run.with("reason", "TCP_LISTEN_OVERFLOW");
    assert_eq!(refused.len() as u64, overflows);
    for family in Family::OF_SOCKETS {
        let port = u64::from(family.port(PORT));
        let mut events = refused
            .iter()
            .filter(|event| number(event, "dport") == port);
        let event = events.next().expect("each family was refused");
        assert_eq!(text(event, "saddr"), family.shown(CLIENT));
    }
}
