//! Windows for the tests of rules: a quiet machine, to which each test adds its incident.

use std::collections::HashMap;

use super::{
    Verdict, diagnose,
    window::{Netns, Queue, Window},
};
use crate::{
    observe::{
        counters,
        diag::{Clients, Destination, Listener, Ports, SocketTable},
        processes::Process,
        snapshot::Snapshot,
    },
    probes::PROBES,
    report::{Hook, Probe, Row, Total, Value, diagnosis::Finding},
};

/// The only namespace of [`quiet`].
pub(super) const NETNS: u32 = 4_026_531_840;

/// A machine on which nothing happens, with every probe attached.
#[expect(clippy::too_many_lines, reason = "a table of what is quiet")]
pub(super) fn quiet() -> Window {
    let sysctls = [
        ("net.core.somaxconn", "4096"),
        ("net.core.netdev_max_backlog", "1000"),
        ("net.ipv4.tcp_max_syn_backlog", "1024"),
        ("net.ipv4.tcp_syncookies", "1"),
        ("net.ipv4.ip_local_port_range", "32768 60999"),
        ("net.ipv4.tcp_tw_reuse", "2"),
        ("net.ipv4.tcp_timestamps", "1"),
        ("net.ipv4.tcp_max_tw_buckets", "131072"),
        ("net.ipv4.tcp_keepalive_time", "7200"),
        ("net.ipv4.tcp_slow_start_after_idle", "1"),
        ("net.ipv4.tcp_mem", "100000 150000 200000"),
        ("net.ipv4.tcp_max_orphans", "65536"),
        ("net.ipv4.neigh.default.gc_thresh3", "1024"),
        ("net.netfilter.nf_conntrack_max", "262144"),
        ("net.netfilter.nf_conntrack_count", "10"),
        (
            "net.netfilter.nf_conntrack_tcp_timeout_established",
            "432000",
        ),
    ];
    let snapshot = Snapshot {
        counters: counters::WANTED.iter().map(|name| (*name, 0)).collect(),
        sysctls: sysctls
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect(),
        sockets: Some(SocketTable::default()),
        ..Snapshot::default()
    };
    Window {
        seconds: 10.0,
        namespaces: vec![Netns {
            inode: NETNS,
            is_initial: true,
            before: snapshot.clone(),
            after: snapshot,
            ..Netns::default()
        }],
        probes: PROBES
            .iter()
            .map(|spec| Probe {
                name: spec.name(),
                about: spec.about,
                weight: spec.weight,
                hooks: vec![Hook {
                    sees: "everything",
                    required: true,
                    state: Ok("test"),
                }],
                counters: netprobe_common::counters::Counters::ZERO,
                decode_errors: 0,
                filtered_user: 0,
                unwritten: 0,
                missed: None,
            })
            .collect(),
        files: Some((100, 100_000)),
        page_bytes: 4096,
        ..Window::default()
    }
}

impl Window {
    /// The namespace of the test.
    pub(super) fn netns(&mut self) -> &mut Netns {
        &mut self.namespaces[0]
    }

    /// Lets counters grow.
    pub(super) fn grow(&mut self, counters: &[(&'static str, i64)]) {
        for (name, by) in counters {
            *self.netns().after.counters.entry(name).or_default() += by;
        }
    }

    /// Sets a setting.
    pub(super) fn set(&mut self, name: &'static str, value: &str) {
        self.netns().after.sysctls.insert(name, value.to_owned());
    }

    /// The sockets at the end.
    pub(super) fn sockets(&mut self) -> &mut SocketTable {
        self.netns()
            .after
            .sockets
            .get_or_insert_with(SocketTable::default)
    }

    /// Adds a listener with the history of its queue, held by process 100 named `server`.
    pub(super) fn listen(&mut self, port: u16, limit: u32, depths: &[u32]) {
        let ino = u64::from(port) + 70_000;
        let listener = Listener {
            address: [10, 0, 0, 1].into(),
            port,
            ino,
            queue: depths.last().copied().unwrap_or(0),
            limit,
            is_v6_only: false,
        };
        self.sockets().listeners.push(listener.clone());
        self.netns().queues.push(Queue {
            listener,
            depths: depths.to_vec(),
        });
        let process = self.processes.by_pid.entry(100).or_insert(Process {
            pid: 100,
            comm: "server".to_owned(),
            fds: 20,
            fd_limit: 1024,
            fd_hard_limit: 4096,
            ..Process::default()
        });
        process.sockets.push(ino);
    }

    /// Lets connections to port `to` of another machine hold local ports, of which `odd` are odd ones.
    pub(super) fn hold_ports(&mut self, to: u16, time_wait: u32, open: u32, odd: u32) {
        let destination = Destination {
            local: [10, 0, 0, 1].into(),
            remote: [10, 0, 0, 2].into(),
            port: to,
        };
        let ports = Ports {
            time_wait,
            open,
            odd,
            ..Ports::default()
        };
        self.sockets().ports.insert(destination, ports);
    }

    /// Lets connections of a listener wait: so many that were there before the window, and so many
    /// that came in it; nobody accepts them.
    pub(super) fn waiting(&mut self, port: u16, before: u32, came: u32) {
        let past_ms = 15_000;
        let clients = |waiting_ms: Vec<u32>| Clients {
            open: waiting_ms.len().try_into().unwrap(),
            waiting_ms,
            ..Clients::default()
        };
        let netns = self.netns();
        let mut old = netns.after.sockets.clone().unwrap_or_default();
        for listener in &mut old.listeners {
            listener.queue = if listener.port == port { before } else { 0 };
        }
        old.clients
            .insert(port, clients(vec![5000; before as usize]));
        netns.before.sockets = Some(old);
        let mut waiting_ms = vec![past_ms; before as usize];
        waiting_ms.extend((0..came).map(|number| number * 10_000 / came));
        self.sockets().clients.insert(port, clients(waiting_ms));
    }

    /// Lets a listener's application hold so many connections all the time, of which `ended` were served to their end.
    pub(super) fn serving(&mut self, port: u16, held: u32, ended: u64) {
        let sockets = self.sockets();
        let clients = sockets.clients.entry(port).or_default();
        clients.held += held;
        clients.open += held;
        let netns = self.netns();
        let before = netns.before.sockets.get_or_insert_default();
        before.listeners = netns.after.sockets.clone().unwrap_or_default().listeners;
        let clients = before.clients.entry(port).or_default();
        clients.held += held;
        clients.open += held;
        let group = [
            ("role", Value::Word("server")),
            ("service_port", Value::Unsigned(port.into())),
        ];
        self.total("lifetimes", ended, &group);
    }

    /// Adds a group of totals.
    pub(super) fn total(
        &mut self,
        kind: &'static str,
        events: u64,
        group: &[(&'static str, Value)],
    ) {
        let mut group = group.to_vec();
        group.push(("netns", Value::Unsigned(NETNS.into())));
        self.events.totals.push(Total {
            kind,
            group,
            events,
            weight: events,
        });
    }

    /// Adds an event in the namespace of the test, `times` times.
    pub(super) fn event(
        &mut self,
        kind: &'static str,
        times: usize,
        values: &[(&'static str, Value)],
    ) {
        let spec = PROBES.iter().find(|spec| spec.name() == kind).unwrap();
        let mut given: HashMap<&str, Value> = values.iter().cloned().collect();
        given.insert("netns", Value::Unsigned(NETNS.into()));
        let known = |name: &&str| spec.columns.iter().any(|column| column.name == *name);
        assert!(given.keys().all(known), "{kind}: {given:?}");
        let row = Row {
            kind,
            values: spec
                .columns
                .iter()
                .map(|column| given.get(column.name).cloned().unwrap_or(Value::Unknown))
                .collect(),
            ..Row::default()
        };
        for _ in 0..times {
            self.events.add(spec.columns, &row);
        }
    }

    /// Says of all events and totals so far that they happened in another namespace.
    pub(super) fn relocate(&mut self, netns: u32) {
        let there = Value::Unsigned(netns.into());
        for total in &mut self.events.totals {
            for (name, value) in &mut total.group {
                if *name == "netns" {
                    *value = there.clone();
                }
            }
        }
        self.events.relocate(&there);
    }

    /// Takes a probe away, as on a machine without function probes.
    pub(super) fn blind(&mut self, probe: &str) {
        let probe = self.probes.iter_mut().find(|found| found.name == probe);
        probe.unwrap().hooks[0].state = Err("no kprobes".to_owned());
    }

    /// What all rules together say.
    pub(super) fn findings(&self) -> Vec<Finding> {
        diagnose(self).0
    }

    /// What one rule says.
    pub(super) fn verdict(&self, id: &str) -> Verdict {
        (super::rule(id).unwrap().check)(self)
    }

    /// The ids of all findings, in order, and what each stands behind.
    pub(super) fn told(&self) -> Vec<(&'static str, Option<&'static str>)> {
        let findings = self.findings();
        findings
            .iter()
            .map(|finding| (finding.id, finding.behind))
            .collect()
    }

    /// The ids of all findings, in order.
    pub(super) fn ids(&self) -> Vec<&'static str> {
        self.findings().iter().map(|finding| finding.id).collect()
    }
}

#[test]
fn a_quiet_machine_has_no_findings_and_every_rule_has_looked() {
    let (findings, checked) = diagnose(&quiet());
    assert_eq!(findings, []);
    for check in checked {
        assert_eq!(check.verdict, "ok", "{}: {}", check.id, check.why);
    }
}

#[test]
fn counters_that_go_backwards_are_never_an_incident() {
    let mut window = quiet();
    for count in window.netns().before.counters.values_mut() {
        *count = 1000;
    }
    let (findings, checked) = diagnose(&window);
    assert_eq!(findings, []);
    let unsure = checked
        .iter()
        .filter(|check| check.verdict == "not-enough-data");
    assert!(unsure.count() >= 8, "{checked:?}");
}

#[test]
fn a_module_that_was_loaded_meanwhile_has_no_past_to_compare_with() {
    let mut window = quiet();
    window.set("net.netfilter.nf_conntrack_max", "200");
    window.set("net.netfilter.nf_conntrack_count", "200");
    window.grow(&[("nf_conntrack.drop", 1000)]);
    let before = &mut window.netns().before.counters;
    before.retain(|name, _| !name.starts_with("nf_conntrack."));
    let verdict = window.verdict("conntrack-table-full");
    assert!(matches!(verdict, Verdict::NotEnoughData(_)), "{verdict:?}");
}

#[test]
fn nothing_is_said_to_be_in_order_after_a_busy_namespace_has_vanished() {
    let verdicts = |window: &Window| {
        let (findings, checked) = diagnose(window);
        assert_eq!(findings, []);
        let unsure = |verdict: &str| checked.iter().all(|check| check.verdict == verdict);
        (unsure("ok"), unsure("not-enough-data"))
    };
    let mut window = quiet();
    window.vanished = vec![77];
    // It was idle: what was seen is all there was.
    assert_eq!(verdicts(&window), (true, false));
    window.events.totals.push(Total {
        kind: "connects",
        group: vec![("netns", Value::Unsigned(77))],
        events: 1,
        weight: 0,
    });
    assert_eq!(verdicts(&window), (false, true));
}

#[test]
fn nothing_is_said_to_be_in_order_where_a_busy_namespace_could_not_be_read() {
    let is_decided = |window: &Window| {
        let (findings, checked) = diagnose(window);
        assert_eq!(findings, []);
        checked.iter().all(|check| check.verdict == "ok")
    };
    let mut window = quiet();
    window.total("connects", 1, &[]);
    window.unread = Some("needs CAP_SYS_ADMIN".to_owned());
    // What happened happened in the namespace that was read.
    assert!(is_decided(&window));
    window.relocate(77);
    assert!(!is_decided(&window));
    // Others were not asked for.
    window.unread = None;
    assert!(is_decided(&window));
}

#[test]
fn a_window_of_no_time_rules_nothing_out_and_tells_what_it_found() {
    let mut window = quiet();
    window.seconds = 0.04;
    let (_, checked) = diagnose(&window);
    for check in checked {
        assert_eq!(check.verdict, "not-enough-data", "{}", check.id);
        let why = "0.0 s of watching are too short to rule it out";
        assert_eq!(check.why, why, "{}", check.id);
    }
    window.set("net.netfilter.nf_conntrack_max", "200");
    window.set("net.netfilter.nf_conntrack_count", "200");
    window.total("conntrack", 30, &[("errno", Value::Word("ENOMEM"))]);
    window.grow(&[("nf_conntrack.drop", 30)]);
    assert_eq!(window.ids(), ["conntrack-table-full"]);
}
