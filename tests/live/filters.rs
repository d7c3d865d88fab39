//! Filters: the same sockets as ss(8) selects, and the same events in the kernel as in user space.

use std::{
    collections::BTreeSet,
    io::Write,
    process::{Command, Stdio},
};

use netprobe_tests::{
    cgroup::Cgroup,
    event::{Event, number, text},
    netns::{Cable, INTERFACE, Netns},
    probe::{Probe, Run},
    process::Actor,
    program::{binary, check},
    skip::{self, has_hooks},
    traffic::{
        Family,
        packet::{Packet, Wire, flags},
    },
    wait_until,
};
use socket2::Socket;

const PORT: u16 = 7301;
const PACKETS: u16 = 6;

/// Source and destination port, which no two connections of a test share.
type Ports = (u64, u64);

fn ports(events: &[Event]) -> BTreeSet<Ports> {
    let ports = events
        .iter()
        .map(|event| (number(event, "sport"), number(event, "dport")));
    ports.collect()
}

/// The TCP sockets of a namespace that ss selects, listeners not included.
fn selected_by_ss(netns: &Netns, expression: &str) -> BTreeSet<Ports> {
    let output = netns.run(|| {
        Command::new("ss")
            .arg("-tnH")
            .args(expression.split(' '))
            .output()
            .expect("run ss")
    });
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(complaint.is_empty(), "ss '{expression}': {complaint}");
    let port = |end: &str| -> u64 {
        let (_, port) = end.rsplit_once(':').expect("an end has a port");
        port.parse().expect("a port is a number")
    };
    let lines = String::from_utf8(output.stdout).expect("ss writes text");
    let ends = lines.lines().map(|line| {
        // The state comes first, unless only one was asked for.
        let mut words = line.split_ascii_whitespace().rev();
        let mut end = || port(words.next().expect("a socket has two ends"));
        let remote = end();
        (end(), remote)
    });
    ends.collect()
}

/// Forms that ss knows, none of which selects everything or nothing by accident.
const FORMS: &[&str] = &[
    "dport = :7301",
    "dport == 7301",
    "dport eq :7301",
    "dport :7301",
    "dport != :7301",
    "dport ne 7301",
    "dport neq :7301",
    "dport > :7302",
    "dport gt 7302",
    "dport >= :7302",
    "dport ge :7302",
    "dport geq :7302",
    "dport < :7302",
    "dport lt :7302",
    "dport <= :7302",
    "dport le :7302",
    "dport leq :7302",
    "dport >= :7302 and dport <= :7303",
    "dport >= :7302 dport <= :7303",
    "sport >= :1024 && dport = :7304",
    "dport = :7301 or dport = :7304",
    "dport = :7301 || dport = :7302 and dst 10.77.0.2",
    "( dport = :7301 or dport = :7302 ) and dst 10.77.0.2",
    "not dport = :7302",
    "! dport = :7302 & ! dport = :7303",
    "not ( dport = :7301 or dst [fd77::2] )",
    "dst 10.77.0.2",
    "dst = 10.77.0.2",
    "dst 10.77.0.0/24",
    "dst 10.77.0.2:7304",
    "dst 10.77.0.2/32 and dport < :7303",
    "dst inet:10.77.0.2",
    "dst [fd77::2]",
    "dst [fd77::2]:7302",
    "dst [::ffff:10.77.0.2]",
    "src 10.77.0.1 and not dst :7301",
    "src 10.77.0.0/16 or src [fd77::1]",
    "dst 192.0.2.1 or dport = :7303",
    "dst *:7303",
    "state established dport = :7301",
    "state connected exclude established",
    "state syn-sent state established dst 10.77.0.2",
    "exclude established",
];

/// All forms; in a machine of the matrix some, on each kernel others. There each start of netprobe takes a
/// second, and of a filter only what the programs do with it is up to the kernel.
fn forms_here<T: Clone>(forms: &[T]) -> Vec<T> {
    const OF_MATRIX: usize = 4;
    if !skip::is_disposable() {
        return forms.to_vec();
    }
    let stride = forms.len().div_ceil(OF_MATRIX);
    let (_, minor) = check().version();
    let first = minor as usize % stride.min(5);
    let here = forms.iter().skip(first).step_by(stride);
    here.cloned().collect()
}

/// Connections that retransmit: one of each family, and a second of IPv4.
fn connections(cable: &Cable) -> Vec<(Socket, Socket)> {
    let families = [Family::V4, Family::V6, Family::Mapped, Family::V4];
    let pair = |(port, family): (u16, Family)| {
        let listener = cable.server.run(|| family.listen(port, 8));
        family.pair(&cable.client, &listener)
    };
    (PORT..).zip(families).map(pair).collect()
}

#[test]
fn every_form_selects_the_sockets_that_ss_selects() {
    if !has_hooks("retransmits", &[]) {
        return;
    }
    let cable = Cable::new();
    let mut pairs = connections(&cable);
    let netns = cable.client.inum().to_string();
    // Each run costs memory for its maps; a few at a time are enough to share one storm.
    for forms in forms_here(FORMS).chunks(14) {
        let start = |form: &&'static str| {
            let options = ["retransmits", "--json", "--netns", &netns, "--filter", form];
            (*form, Probe::start(&options))
        };
        let mut all = Probe::of(&cable.client, "retransmits");
        let probes: Vec<(&str, Probe)> = forms.iter().map(start).collect();
        let wall = cable.server.firewall("input", "tcp dport 7301-7304");
        for (near, _) in &mut pairs {
            near.write_all(b"x").expect("send");
        }
        all.wait_for("every connection to send again", |events| {
            ports(events).len() == 4
        });
        for (form, probe) in probes {
            let expected = selected_by_ss(&cable.client, form);
            let run = probe.stop();
            assert_eq!(ports(run.all()), expected, "{form}");
        }
        let run = all.stop();
        assert_eq!(ports(run.all()).len(), 4);
        drop(wall);
        wait_until("all was acknowledged", || {
            cable
                .client
                .run(|| selected_by_ss(&cable.client, "state established").len() == 4)
        });
        cable.client.wait_for_silence();
    }
}

/// Forms beyond those of ss, for dropped packets.
fn forms_of_drops(netns: &Netns) -> Vec<String> {
    let netns = netns.inum();
    let mut forms: Vec<String> = [
        "src 10.77.0.1",
        "src != 10.77.0.1",
        "dst fd77::/16",
        "host 10.77.0.2",
        "host != 10.77.0.2",
        "src 10/8 or src fd77::1",
        "src 10.77.0.1:40001",
        "sport 40001-40003",
        "sport != 40001-40003",
        "port 40002",
        "port != 40002",
        "sport 40000 or sport 40002 or sport 40004",
        "family inet",
        "not family inet",
        "state all exclude listening",
        "not state connected",
        "dev np0",
        "dev != np0",
        "dev lo",
        "sport > 40001 and sport < 40005 and not src 10.77.0.0/24 and dev np0",
    ]
    .map(str::to_owned)
    .into();
    forms.push(format!("netns {netns}"));
    forms.push(format!("netns != {netns}"));
    forms.push(format!(
        "netns != pid:{} and sport 40001",
        std::process::id()
    ));
    if check().version() >= (5, 17) {
        forms.push("reason NETFILTER_DROP and sport 40001".into());
        forms.push("reason != netfilter-drop".into());
        forms.push("reason NO_SOCKET or reason NETFILTER_DROP".into());
    }
    forms
}

#[test]
fn the_kernel_admits_what_user_space_admits() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let firewall = cable.server.firewall("input", "tcp dport 7001");
    let start = |form: &str| Probe::start(&["drops", "--json", "--filter", form]);
    for forms in forms_here(&forms_of_drops(&cable.server)).chunks(8) {
        let probes: Vec<(&String, Probe, Probe)> = forms
            .iter()
            .map(|form| {
                let scope = format!("dport 7001 and ({form})");
                // An alternative that the kernel cannot test leaves all of it to user space.
                let of_user = format!("dport 7001 and ({form}) or pid 4000000000");
                (form, start(&scope), start(&of_user))
            })
            .collect();
        let before = firewall.dropped();
        send(&cable);
        let sent = 2 * u64::from(PACKETS);
        wait_until("all were dropped", || firewall.dropped() - before == sent);
        for (form, of_kernel, of_user) in probes {
            let (of_kernel, of_user) = (of_kernel.stop(), of_user.stop());
            assert_eq!(ends(of_kernel.all()), ends(of_user.all()), "{form}");
            assert_eq!(of_kernel.account("drops").filtered_user, 0, "{form}");
            let account = of_user.account("drops");
            assert!(account.counters.delivered >= sent, "{form}: {account:?}");
        }
    }
}

fn send(cable: &Cable) {
    cable.client.run(|| {
        let wire = Wire::open();
        for family in Family::OF_PACKETS {
            for index in 0..PACKETS {
                let mut packet = Packet::new(family, flags::SYN, 7001);
                packet.sport += index;
                wire.send(&packet);
            }
        }
    });
}

fn ends(events: &[Event]) -> BTreeSet<(String, u64)> {
    let ends = events
        .iter()
        .map(|event| (text(event, "saddr").to_owned(), number(event, "sport")));
    ends.collect()
}

#[test]
fn what_user_space_leaves_out_is_accounted_for() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let firewall = cable.server.firewall("input", "tcp dport 7001");
    let netns = cable.server.inum().to_string();
    let start = |form: &str| {
        Probe::start(&[
            "drops", "--json", "--netns", &netns, "--port", "7001", "--filter", form,
        ])
    };
    // Nobody owns these packets, and an unknown owner is not process 1.
    let (nothing, everything, some) = (
        start("pid 1"),
        start("not pid 1"),
        start("(pid 1 or sport 40001) and dev np*"),
    );
    send(&cable);
    let sent = 2 * u64::from(PACKETS);
    wait_until("all were dropped", || firewall.dropped() == sent);
    for (probe, shown) in [(nothing, 0), (everything, sent), (some, 2)] {
        let run = probe.stop();
        let account = run.account("drops");
        assert_eq!(account.counters.delivered, sent);
        assert_eq!(account.shown, shown);
        assert_eq!(account.filtered_user, sent - shown);
        assert_eq!(run.with("iface", INTERFACE).len() as u64, shown);
    }
}

#[test]
fn what_cannot_be_counted_in_the_kernel_is_refused() {
    let refused = |arguments: &[&str]| {
        let output = Command::new(binary())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("run netprobe");
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {complaint}");
        complaint
    };
    let complaint = refused(&["drops", "--count", "--filter", "dport 80 and comm nginx"]);
    assert!(
        complaint.contains("`comm nginx` cannot be tested"),
        "{complaint}"
    );
    assert!(
        complaint.ends_with("               ^^^^^^^^^^\n"),
        "{complaint}"
    );
    let complaint = refused(&["flame", "drops", "--pid", "5"]);
    assert!(
        complaint.contains("`--pid 5` cannot be tested"),
        "{complaint}"
    );
    let complaint = refused(&["flame", "port-search", "--port", "80"]);
    assert!(complaint.contains("--port 80"), "{complaint}");
    let complaint = refused(&["retransmits", "--filter", "stat established"]);
    assert!(complaint.contains("did you mean `state`"), "{complaint}");
}

#[test]
fn sockets_of_a_cgroup_are_those_of_it_and_of_the_groups_below() {
    if !has_hooks("lifetimes", &[]) {
        return;
    }
    let Some(group) = Cgroup::new() else {
        return;
    };
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 8));
    let (netns, path) = (cable.client.inum().to_string(), group.path());
    let inside = format!("cgroup = {path}");
    let outside = format!("cgroup != {path}");
    // A name that nobody has sends the whole expression to user space.
    let in_user_space = format!("cgroup {path} or comm np-nobody");
    let probes = [&inside, &outside, &in_user_space].map(|filter| {
        Probe::start(&["lifetimes", "--json", "--netns", &netns, "--filter", filter])
    });
    // Made after the programs have looked at the ones that are there.
    let child = group.child("below");
    let visitors = [None, Some(&group), Some(&child)].map(|group| {
        let mut visitor = Actor::start("np-visitor", |_| {
            cable.client.enter();
            if let Some(group) = group {
                group.enter();
            }
            drop(Family::V4.connect(PORT).expect("connect"));
        });
        visitor.hear();
        drop(listener.accept().expect("accept"));
        visitor
    });
    cable.client.wait_for_silence();
    let [inside, outside, in_user_space] = probes.map(Probe::stop);
    let seen = |run: &Run| -> BTreeSet<(u64, String)> {
        let events = run.all().iter();
        events
            .map(|event| (number(event, "pid"), text(event, "cgroup").to_owned()))
            .collect()
    };
    let [_, here, below] = visitors.each_ref().map(Actor::pid);
    let expected = BTreeSet::from([(here, path), (below, child.path())]);
    assert_eq!(seen(&inside), expected);
    assert_eq!(seen(&in_user_space), expected);
    assert_eq!(outside.all().len(), 1, "{:?}", outside.events);
    assert_eq!(inside.account("lifetimes").filtered_user, 0);
    assert_eq!(in_user_space.account("lifetimes").filtered_user, 1);
    drop(visitors);
    drop(child);
}
