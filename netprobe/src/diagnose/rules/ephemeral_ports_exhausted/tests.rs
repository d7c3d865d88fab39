use super::*;
use crate::{
    diagnose::{Verdict, fixtures::quiet, window::Window},
    report::{
        Value,
        diagnosis::{Confidence, Severity},
    },
};

fn holding(time_wait: u32, open: u32) -> Window {
    let mut window = quiet();
    window.set("net.ipv4.ip_local_port_range", "20000 20050");
    window.hold_ports(9000, time_wait, open, 25);
    window
}

fn failing(window: &mut Window, errno: &'static str) {
    let group = [
        ("outcome", Value::Word("failed")),
        ("errno", Value::Word(errno)),
        ("dport", Value::Unsigned(9000)),
    ];
    window.total("connects", 120, &group);
    window.event(
        "connects",
        20,
        &[
            ("errno", Value::Word(errno)),
            ("daddr", Value::Ip([10, 0, 0, 2].into())),
            ("dport", Value::Unsigned(9000)),
            ("pid", Value::Unsigned(42)),
            ("comm", Value::Word("nginx")),
        ],
    );
}

#[test]
fn a_full_range_and_the_errno_name_the_destination_and_the_process() {
    let mut window = holding(50, 1);
    failing(&mut window, "EADDRNOTAVAIL");
    let findings = window.findings();
    let first = &findings[0];
    assert_eq!(
        (first.id, first.confidence),
        ("ephemeral-ports-exhausted", Confidence::High)
    );
    assert!(
        first
            .summary
            .starts_with("nginx cannot connect to 10.0.0.2:9000")
    );
    let shown: Vec<_> = first.affected.iter().map(|hit| hit.name.as_str()).collect();
    assert_eq!(shown, ["10.0.0.2:9000", "nginx"]);
    let names: Vec<_> = first
        .fixes
        .iter()
        .flat_map(|fix| fix.set.iter().map(|(name, _)| name.as_str()))
        .collect();
    let expected = [
        "keepalive",
        "net.ipv4.tcp_tw_reuse",
        "net.ipv4.ip_local_port_range",
    ];
    assert_eq!(names, expected);
    window.blind("connects");
    assert_eq!(window.findings()[0].confidence, Confidence::Medium);
}

fn fixes(window: &Window) -> Vec<String> {
    let findings = window.findings();
    let fixes = findings[0].fixes.iter();
    fixes.map(|fix| fix.text.clone()).collect()
}

#[test]
fn ports_of_open_connections_are_not_freed_by_keep_alive() {
    let mut window = holding(0, 51);
    failing(&mut window, "EADDRNOTAVAIL");
    let fixes = fixes(&window);
    assert!(
        fixes[0].starts_with("have fewer connections open at once: 51 to"),
        "{fixes:?}"
    );
    assert!(fixes.last().unwrap().contains("more addresses or ports"));
    assert!(
        fixes.iter().all(|fix| !fix.contains("TIME_WAIT")),
        "{fixes:?}"
    );
}

#[test]
fn connects_to_other_destinations_are_not_counted_or_said_to_be() {
    let mut window = holding(50, 1);
    window.grow(&[("Tcp.ActiveOpens", 1435)]);
    failing(&mut window, "EADDRNOTAVAIL");
    assert!(fixes(&window)[0].contains("12.0 connects/s x 60 s"));
    window.blind("connects");
    assert!(fixes(&window)[0].contains("155.5 connects/s of the whole namespace"));
}

#[test]
fn refused_connections_are_not_exhausted_ports() {
    let mut window = holding(5, 1);
    failing(&mut window, "ECONNREFUSED");
    assert_eq!(window.verdict("ephemeral-ports-exhausted"), Verdict::Ok);
}

#[test]
fn the_errno_with_free_ports_is_no_verdict() {
    let mut window = holding(5, 1);
    failing(&mut window, "EADDRNOTAVAIL");
    let verdict = window.verdict("ephemeral-ports-exhausted");
    assert!(matches!(verdict, Verdict::NotEnoughData(_)), "{verdict:?}");
}

#[test]
fn a_range_that_fills_is_forecast() {
    let window = holding(40, 1);
    let findings = window.findings();
    assert_eq!(findings[0].severity, Severity::Warning);
    // 41 in 10 s; 10 are left.
    assert!(
        findings[0].summary.contains("used up in 2 s"),
        "{}",
        findings[0].summary
    );
}

#[test]
fn a_range_that_is_full_but_steady_is_no_error_yet() {
    let mut window = holding(51, 0);
    window.netns().before.sockets = window.netns().after.sockets.clone();
    assert_eq!(window.verdict("ephemeral-ports-exhausted"), Verdict::Ok);
}

#[test]
fn a_range_that_open_connections_hold_may_fail_those_who_bind_first() {
    let steady = |time_wait, open| {
        let mut window = holding(time_wait, open);
        window.netns().before.sockets = window.netns().after.sockets.clone();
        window
    };
    let found = steady(0, 51).findings().remove(0);
    assert_eq!(found.id, "ephemeral-ports-exhausted");
    assert_eq!(
        (found.severity, found.confidence),
        (Severity::Warning, Confidence::Low)
    );
    assert!(found.summary.contains("EADDRINUSE"), "{}", found.summary);
    assert_eq!(steady(0, 49).ids(), [""; 0]);
    // In TIME_WAIT: only where somebody goes on to connect, and may not take a port again.
    let goes_on = |reuse: &str| {
        let mut window = steady(51, 0);
        window.set("net.ipv4.tcp_tw_reuse", reuse);
        let connect = [
            ("daddr", Value::Ip([10, 0, 0, 2].into())),
            ("dport", Value::Unsigned(9000)),
        ];
        window.event("connects", 5, &connect);
        window.verdict("ephemeral-ports-exhausted")
    };
    assert!(matches!(goes_on("0"), Verdict::Found(_)));
    assert_eq!(goes_on("1"), Verdict::Ok);
}

#[test]
fn of_two_exhausted_destinations_each_has_its_own_process_and_count() {
    let mut window = holding(50, 1);
    window.hold_ports(9001, 49, 2, 25);
    for (port, comm, count) in [(9000, "gateway", 30), (9001, "loginapp", 90)] {
        let group = [
            ("outcome", Value::Word("failed")),
            ("errno", Value::Word("EADDRNOTAVAIL")),
            ("dport", Value::Unsigned(port)),
        ];
        window.total("connects", count, &group);
        let event = [
            ("errno", Value::Word("EADDRNOTAVAIL")),
            ("daddr", Value::Ip([10, 0, 0, 2].into())),
            ("dport", Value::Unsigned(port)),
            ("pid", Value::Unsigned(port)),
            ("comm", Value::Word(comm)),
        ];
        window.event("connects", 10, &event);
    }
    let findings = window.findings();
    let told: Vec<_> = findings
        .iter()
        .filter(|found| found.id == "ephemeral-ports-exhausted")
        .map(|found| found.summary.split(" connects failed").next().unwrap())
        .collect();
    assert_eq!(
        told,
        [
            "loginapp cannot connect to 10.0.0.2:9001: 90",
            "gateway cannot connect to 10.0.0.2:9000: 30"
        ]
    );
}

#[test]
fn what_an_earlier_load_has_left_is_not_what_fails_now() {
    // 10.0.0.2:9000 holds all ports in TIME_WAIT; who connects now goes to another address, at the same port.
    let mut window = holding(51, 0);
    let now = Destination {
        local: [10, 0, 0, 1].into(),
        remote: [10, 0, 0, 3].into(),
        port: 9000,
    };
    let ports = Ports {
        time_wait: 40,
        open: 1,
        odd: 20,
        ..Ports::default()
    };
    window.sockets().ports.insert(now, ports);
    let group = [
        ("outcome", Value::Word("failed")),
        ("errno", Value::Word("EADDRNOTAVAIL")),
        ("dport", Value::Unsigned(9000)),
    ];
    window.total("connects", 120, &group);
    let event = [
        ("errno", Value::Word("EADDRNOTAVAIL")),
        ("daddr", Value::Ip(now.remote)),
        ("dport", Value::Unsigned(9000)),
    ];
    window.event("connects", 20, &event);
    let findings = window.findings();
    let told = findings.iter().filter(|found| found.id == RULE.id);
    let told: Vec<&str> = told.map(|found| found.summary.as_str()).collect();
    assert_eq!(
        told,
        [
            "a process cannot connect to 10.0.0.3:9000: 120 connects failed with EADDRNOTAVAIL, as all 51 local ports are in \
          use at times (41 when looked at)"
        ]
    );
    assert!(
        !fixes(&window)[0].contains("10.0.0.2"),
        "{:?}",
        fixes(&window)
    );
}

#[test]
fn a_range_that_will_be_full_in_a_moment_is_forecast_long_before() {
    let used = |time_wait: u32, range: &str| {
        let mut window = quiet();
        window.seconds = 3.0;
        window.set("net.ipv4.ip_local_port_range", range);
        window.hold_ports(9000, time_wait - 453, 0, 0);
        window.netns().before.sockets = window.netns().after.sockets.clone();
        window.hold_ports(9000, time_wait, 0, 0);
        window.findings()
    };
    // 1026 of 2000 ports, 151 more each second.
    let found = used(1026, "30000 31999");
    assert_eq!(found[0].id, "ephemeral-ports-exhausted");
    assert!(
        found[0].summary.contains("used up in 6 s"),
        "{}",
        found[0].summary
    );
    // The first are free again before the range is full.
    assert!(used(5000, "30000 43999").is_empty());
}

#[test]
fn a_range_is_widened_by_what_was_measured() {
    let range = |connects: i64, range: &str| {
        let mut window = holding(50, 1);
        window.set("net.ipv4.ip_local_port_range", range);
        window.grow(&[("Tcp.ActiveOpens", connects)]);
        failing(&mut window, "EADDRNOTAVAIL");
        window.blind("connects");
        let fixes = window.findings()[0].fixes.clone();
        let fix = fixes
            .into_iter()
            .find(|fix| fix.text.contains("widen"))
            .unwrap();
        (fix.set[0].1.clone(), fix.text)
    };
    // 122/s x 60 s + 1 = 7321, half as much again is 10,982.
    let (set, text) = range(1100, "20000 20050");
    assert_eq!(set, "20000 30999", "{text}");
    assert!(
        text.contains(
            "122.0 connects/s of the whole namespace x 60 s in TIME_WAIT + 1 open = 7321"
        ),
        "{text}"
    );
    let rounding = "half as much again, rounded up so that the range has a multiple of 1000;";
    assert!(text.contains(rounding), "{text}");
    // Above there is no room.
    assert_eq!(range(1100, "60950 61000").0, "54536 65535");
    // There are not so many.
    let (set, text) = range(11_880, "20000 20050");
    assert_eq!(set, "1024 65535");
    assert!(text.contains("more than there are"), "{text}");
}

fn widened(window: &Window) -> (String, String) {
    let fixes = window.findings()[0].fixes.clone();
    let mut widen = fixes.into_iter().filter(|fix| !fix.set.is_empty());
    let fix = widen
        .find(|fix| fix.set[0].0.ends_with("ip_local_port_range"))
        .unwrap();
    (fix.set[0].1.clone(), fix.text)
}

#[test]
fn ports_of_open_connections_are_sized_by_what_is_wanted_and_how_long_they_are_open() {
    // 201 ports let 50/s through, each for 4 s; 150/s are wanted.
    let mut window = quiet();
    window.set("net.ipv4.ip_local_port_range", "20000 20200");
    window.hold_ports(9000, 0, 201, 100);
    window.netns().before.sockets = window.netns().after.sockets.clone();
    failing(&mut window, "EADDRNOTAVAIL");
    window.total("connects", 1380, &[("dport", Value::Unsigned(9000))]);
    let lived = |result| {
        [
            ("role", Value::Word("client")),
            ("result", Value::Word(result)),
            ("service_port", Value::Unsigned(9000)),
        ]
    };
    window.total("lifetimes", 502, &lived("fin"));
    window.total("lifetimes", 120, &lived("failed"));
    let (set, text) = widened(&window);
    let arithmetic =
        "150.0 connects/s (each failed try too) x 4.0 s open (201 open / 50.2 closed/s) = 601,";
    assert!(text.contains(arithmetic), "{text}");
    assert_eq!(set, "20000 20999", "{text}");
    // Nobody was closed: they are open for as long as one looked, at least.
    window
        .events
        .totals
        .retain(|total| total.kind != "lifetimes");
    let (set, text) = widened(&window);
    assert!(
        text.contains("x at least 10.0 s open (hardly any was closed"),
        "{text}"
    );
    assert_eq!(set, "20000 22999", "{text}");
}

#[test]
fn connections_that_are_never_closed_are_not_told_that_the_range_is_wide_enough() {
    let mut window = quiet();
    window.seconds = 3.0;
    window.set("net.ipv4.ip_local_port_range", "20000 20999");
    window.hold_ports(9000, 0, 274, 0);
    window.netns().before.sockets = window.netns().after.sockets.clone();
    window.hold_ports(9000, 0, 391, 0);
    let (set, text) = widened(&window);
    // 39/s x 600 s + 391.
    assert_eq!(set, "20000 43999", "{text}");
    let said = "23000 more ports: at 39.0 more open connections each second that lasts 10 min: it gains time";
    assert!(text.contains(said), "{text}");
}

/// A client that wants 1,000 connects/s, of which the failing search for a port lets 322/s through, in this range.
fn slowed(range: &str, ports: u32) -> Window {
    let mut window = quiet();
    window.set("net.ipv4.ip_local_port_range", range);
    window.hold_ports(9000, ports, 0, 0);
    let held = window.sockets().ports.values_mut().next().unwrap();
    // All came within 28 s, and few since.
    for number in 0..ports {
        held.ages.add(40_000 - number * 28_000 / ports);
    }
    failing(&mut window, "EADDRNOTAVAIL");
    let others = [("dport", Value::Unsigned(9000))];
    window.total("connects", 3105, &others);
    window
}

#[test]
fn who_searches_for_a_port_in_vain_is_measured_by_what_came_before() {
    let all = fixes(&slowed("32768 60999", 28_232));
    let told =
        "1008.3 connects/s (as many went into TIME_WAIT when most did) x 60 s in TIME_WAIT = 604";
    assert!(all[0].contains(told), "{all:?}");
    let mut widen = all.iter().filter(|fix| fix.starts_with("widen"));
    let widen = widen.next().unwrap();
    assert!(widen.contains("does not help alone"), "{widen}");
    assert!(widen.contains("1024-65535"), "{widen}");
}

#[test]
fn a_product_that_is_below_what_exists_is_no_reason() {
    let mut window = slowed("32768 60999", 28_232);
    let held = window.sockets().ports.values_mut().next().unwrap();
    held.ages = crate::observe::diag::Ages::default();
    let all = fixes(&window);
    assert!(
        !all[0].contains("19350") && !all[0].contains("connects/s"),
        "{all:?}"
    );
    let told = "28232 of 28232 ports are in TIME_WAIT, for 60 s each";
    assert!(all[0].contains(told), "{all:?}");
    let mut widen = all.iter().filter(|fix| fix.starts_with("widen"));
    let at_least = "= 28232, or more, as connects that fail are slow";
    assert!(widen.next().unwrap().contains(at_least), "{all:?}");
}
