use crate::{
    diagnose::{Verdict, fixtures::quiet, window::Window},
    observe::diag::{Path, Quietness, Unanswered},
    report::Value,
};

fn resets(idle_s: &[f64]) -> Window {
    resets_in("ESTAB", idle_s)
}

fn resets_in(state: &'static str, idle_s: &[f64]) -> Window {
    let mut window = quiet();
    for idle_s in idle_s {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small positive number"
        )]
        let reset = [
            ("direction", Value::Word("received")),
            ("state", Value::Word(state)),
            ("saddr", Value::Ip([10, 0, 0, 1].into())),
            ("sport", Value::Unsigned(41_000)),
            ("daddr", Value::Ip([10, 0, 0, 2].into())),
            ("dport", Value::Unsigned(3306)),
            ("idle_ns", Value::Unsigned((idle_s * 1e9) as u64)),
        ];
        window.event("resets", 1, &reset);
    }
    window
}

fn confirms(window: &Window, words: &str, settings: &[&str]) {
    let findings = window.findings();
    assert_eq!(findings[0].id, "idle-reset");
    assert!(
        findings[0].summary.contains(words),
        "{}",
        findings[0].summary
    );
    let set = findings[0].fixes.iter().flat_map(|fix| &fix.set);
    let set: Vec<_> = set.map(|(name, _)| name.as_str()).collect();
    assert_eq!(set.is_empty(), settings.is_empty(), "{set:?}");
    assert!(settings.iter().all(|name| set.contains(name)), "{set:?}");
}

#[test]
fn quiet_times_of_all_lengths_are_a_device_that_forgets_and_equal_ones_a_timer() {
    let window = resets(&[90.0, 121.5, 95.0, 172.0]);
    confirms(
        &window,
        "something on the way has forgotten them",
        &["TCP_KEEPIDLE"],
    );
    let findings = window.findings();
    assert_eq!(findings[0].affected[0].port, Some(3306));
    assert_eq!(findings[0].fixes[0].set[0].1, "45");
    let window = resets(&[90.0, 90.2, 90.0, 90.1]);
    confirms(
        &window,
        "after 90 s without a word: all after the same time",
        &["TCP_KEEPIDLE"],
    );
    // Of equal pauses none tells how much sooner the device forgets: a quarter, and less if need be.
    let fixes = &window.findings()[0].fixes;
    assert_eq!(fixes[0].set[0].1, "22");
    assert!(
        fixes[0].text.contains("a quarter of 90.0 s"),
        "{}",
        fixes[0].text
    );
    assert!(
        fixes[0].text.contains("90.0 s or less"),
        "{}",
        fixes[0].text
    );
    let fix = &fixes[2].text;
    assert!(
        fix.contains("if the service at 10.0.0.2:3306 has an idle timeout"),
        "{fix}"
    );
}

#[test]
fn a_service_here_that_sent_no_reset_is_not_blamed() {
    let mut window = resets(&[9.0, 9.1, 9.0, 9.0]);
    let mut there = crate::diagnose::window::Netns {
        inode: 7,
        ..window.netns().clone()
    };
    there.after.addresses = [[10, 0, 0, 2].into()].into();
    window.namespaces.push(there);
    confirms(
        &window,
        "something on the way has forgotten them",
        &["TCP_KEEPIDLE"],
    );
    let fixes = &window.findings()[0].fixes;
    assert!(
        fixes.iter().all(|fix| !fix.text.contains("service")),
        "{fixes:?}"
    );
    // A namespace that forgets sooner than that is the likely one, and says when.
    window.namespaces[1].after.sysctls.insert(
        "net.netfilter.nf_conntrack_tcp_timeout_established",
        "5".to_owned(),
    );
    window.namespaces[1]
        .after
        .sysctls
        .insert("net.netfilter.nf_conntrack_count", "12".to_owned());
    let fix = window.findings()[0].fixes[0].clone();
    assert_eq!(fix.set[0].1, "2");
    assert!(fix.text.contains("half of the 5 s"), "{}", fix.text);
}

#[test]
fn where_keepalive_was_answered_more_of_it_is_no_advice() {
    let mut window = resets(&[2.0, 2.1, 2.0, 2.0]);
    let seen = Quietness {
        connections: 10,
        kept_alive: 4,
        quietest_ms: 3_900,
        heard: 0,
    };
    window
        .sockets()
        .quietness
        .insert(([10, 0, 0, 2].into(), 3306), seen);
    confirms(&window, "keepalive was answered meanwhile", &[]);
}

#[test]
fn a_peer_here_that_closes_or_does_not_know_them_is_told_from_one_that_finds_its_own_reason() {
    let ends = |local: [u8; 4], sport, remote: [u8; 4], dport| {
        [
            ("saddr", Value::Ip(local.into())),
            ("sport", Value::Unsigned(sport)),
            ("daddr", Value::Ip(remote.into())),
            ("dport", Value::Unsigned(dport)),
        ]
    };
    for (cause, expected) in [
        ("listener-closed", None),
        ("linger-0", Some(("mysqld closes connections", false))),
        ("no-connection", Some(("forgotten", true))),
    ] {
        let mut window = quiet();
        for port in 40_000..40_005 {
            let mut sent = ends([10, 0, 0, 2], 80, [10, 0, 0, 1], port).to_vec();
            sent.extend([
                ("direction", Value::Word("sent")),
                ("cause", Value::Word(cause)),
                ("comm", Value::Text("mysqld".into())),
            ]);
            window.event("resets", 1, &sent);
            let mut received = ends([10, 0, 0, 1], port, [10, 0, 0, 2], 80).to_vec();
            received.extend([
                ("direction", Value::Word("received")),
                ("state", Value::Word("ESTAB")),
                ("idle_ns", Value::Unsigned(6_000_000_000)),
            ]);
            window.event("resets", 1, &received);
        }
        match expected {
            None => assert!(!window.ids().contains(&"idle-reset")),
            Some((words, true)) => confirms(&window, words, &["TCP_KEEPIDLE"]),
            Some((words, false)) => confirms(&window, words, &[]),
        }
    }
}

#[test]
fn resets_of_busy_connections_are_the_applications() {
    assert!(!resets(&[0.1, 0.0, 0.2, 0.01]).ids().contains(&"idle-reset"));
    // One quiet one among many.
    assert!(
        !resets(&[0.1, 0.0, 0.2, 0.01, 5.0])
            .ids()
            .contains(&"idle-reset")
    );
    assert!(!resets(&[90.0, 91.0]).ids().contains(&"idle-reset"));
}

#[test]
fn answers_that_come_long_after_the_peer_has_closed_are_not_forgotten_connections() {
    let late = resets_in("CLOSE-WAIT", &[27.0, 28.0, 29.0, 31.0]);
    assert!(!late.ids().contains(&"idle-reset"));
    let forgotten = resets(&[27.0, 28.0, 29.0, 31.0]);
    assert!(forgotten.ids().contains(&"idle-reset"));
}

#[test]
fn nothing_is_in_order_where_resets_were_counted_and_not_looked_at() {
    let counted = |window: &mut Window, port: u64, count| {
        let group = [
            ("direction", Value::Word("received")),
            ("service_port", Value::Unsigned(port)),
        ];
        window.total("resets", count, &group);
    };
    let is_undecided = |window: &Window| {
        ["idle-reset", "resets"].map(|id| matches!(window.verdict(id), Verdict::NotEnoughData(_)))
    };
    // One of 24 was looked at.
    let mut window = resets(&[5.0]);
    counted(&mut window, 3306, 24);
    assert_eq!(is_undecided(&window), [true, true]);
    // All of them were, or enough: busy ones.
    for seen in [8, 24] {
        let mut window = resets(&vec![0.1; seen]);
        counted(&mut window, 3306, 24);
        assert_eq!(is_undecided(&window), [false, false], "{seen}");
    }
    // Two of them are no pattern.
    let mut window = quiet();
    counted(&mut window, 3306, 2);
    assert_eq!(is_undecided(&window), [false, false]);
    // Clients that leave a service here are none of it, unless it is a client of such a service, too.
    let mut window = quiet();
    window.listen(3306, 128, &[0; 10]);
    counted(&mut window, 3306, 24);
    assert_eq!(is_undecided(&window), [false, false]);
    window.hold_ports(3306, 0, 12, 6);
    assert_eq!(is_undecided(&window), [true, true]);
}

/// Ten connections to 10.0.0.2:5432, quiet when the window began, that send something for the `attempt`th time; beside
/// `heard` others, of which `lossy` lose something.
fn silenced(attempt: u64, heard: u32, lossy: u64) -> Window {
    let mut window = quiet();
    let mut again = |port: u64, attempt| {
        let segment = [
            ("cause", Value::Word("rto")),
            ("attempt", Value::Unsigned(attempt)),
            ("saddr", Value::Ip([10, 0, 0, 1].into())),
            ("sport", Value::Unsigned(port)),
            ("daddr", Value::Ip([10, 0, 0, 2].into())),
            ("dport", Value::Unsigned(5432)),
        ];
        window.event("retransmits", 4, &segment);
    };
    for port in 41_000..41_010 {
        again(port, attempt);
    }
    for port in 42_000..42_000 + lossy {
        again(port, 2);
        again(port, 1);
    }
    for port in 43_000..43_010 {
        again(port, 1);
    }
    let retransmits = 40 + 4 * lossy;
    window.total("retransmits", retransmits, &[("cause", Value::Word("rto"))]);
    window.grow(&[
        ("Tcp.RetransSegs", retransmits.cast_signed()),
        ("Tcp.OutSegs", 2000),
    ]);
    let before = window.netns().before.sockets.as_mut().unwrap();
    for port in 41_000..41_010 {
        let connection = ([10, 0, 0, 2].into(), 5432, port);
        before.unheard_ms.insert(connection, 20_000);
    }
    // What was late is not answered to the end.
    let waits = (41_000..41_010).filter(|_| attempt >= 3);
    for port in waits {
        let connection = ([10, 0, 0, 2].into(), 5432, port);
        let unanswered = Unanswered {
            timeouts: 3,
            quiet_ms: 22_000,
        };
        window.sockets().unanswered.insert(connection, unanswered);
    }
    let seen = Quietness {
        heard,
        ..Quietness::default()
    };
    let service = ([10, 0, 0, 2].into(), 5432);
    window.sockets().quietness.insert(service, seen);
    window
}

#[test]
fn quiet_connections_that_get_no_answer_beside_busy_ones_that_do_are_forgotten_and_no_loss() {
    let window = silenced(3, 5, 0);
    let told = [("idle-reset", None), ("path-loss", Some("idle-reset"))];
    assert_eq!(window.told(), told);
    confirms(
        &window,
        "10 quiet connections with 10.0.0.2 (port 5432) got no answer",
        &["TCP_KEEPIDLE"],
    );
    assert_eq!(window.findings()[0].fixes[0].set[0].1, "5");
    // What arrives at the second attempt, a peer that is gone, and a path that loses of all.
    for (attempt, heard, lossy) in [(2, 5, 0), (3, 0, 0), (3, 5, 5)] {
        let ids = silenced(attempt, heard, lossy).ids();
        assert_eq!(ids, ["path-loss"], "{attempt} {heard} {lossy}");
    }
    // They were busy.
    let mut window = silenced(3, 5, 0);
    let before = window.netns().before.sockets.as_mut().unwrap();
    before.unheard_ms.clear();
    let table = window.sockets();
    let all = table.unanswered.values_mut();
    all.for_each(|unanswered| unanswered.quiet_ms = 100);
    assert_eq!(window.ids(), ["path-loss"]);
    // A path that was gone for a while: they were answered in the end.
    let mut window = silenced(3, 5, 0);
    window.sockets().unanswered.clear();
    assert_eq!(window.ids(), ["path-loss"]);
}

/// The busy connections of [`silenced`] have ended by the time that the window does, as these.
fn with_others(port: u64, kind: &'static str, event: (&'static str, &'static str)) -> Window {
    let mut window = silenced(3, 0, 0);
    let other = [
        (event.0, Value::Word(event.1)),
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(44_000)),
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(port)),
    ];
    window.event(kind, 10, &other);
    window
}

#[test]
fn others_that_go_on_may_end_in_order_or_be_with_another_port_of_that_address() {
    for (port, kind, event, told) in [
        (
            5432,
            "lifetimes",
            ("result", "fin"),
            "10 others with it go on",
        ),
        (
            5432,
            "connects",
            ("outcome", "established"),
            "10 others with it go on",
        ),
        (
            443,
            "lifetimes",
            ("result", "fin"),
            "10 others with other ports of 10.0.0.2 go on",
        ),
    ] {
        let window = with_others(port, kind, event);
        assert_eq!(window.ids(), ["idle-reset", "path-loss"], "{kind}");
        confirms(&window, told, &["TCP_KEEPIDLE"]);
    }
    // Others that time out, too; and a service that answers nobody.
    let ids = with_others(5432, "lifetimes", ("result", "timeout")).ids();
    assert_eq!(ids, ["path-loss"]);
    let mut window = with_others(443, "lifetimes", ("result", "fin"));
    let asks = [
        ("cause", Value::Word("syn")),
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(45_000)),
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(5432)),
    ];
    window.event("retransmits", 1, &asks);
    assert_eq!(window.ids(), ["path-loss"]);
    // The path was gone in a part of the window: others went on before that.
    let mut window = with_others(5432, "connects", ("outcome", "established"));
    window.event("retransmits", 1, &asks);
    assert_eq!(window.ids(), ["path-loss"]);
}

#[test]
fn connections_of_a_pool_that_were_opened_in_the_window_were_quiet_in_it() {
    let mut window = silenced(3, 5, 0);
    let before = window.netns().before.sockets.as_mut().unwrap();
    before.unheard_ms.clear();
    assert_eq!(window.ids(), ["idle-reset", "path-loss"]);
    // A quarter of 22 s.
    assert_eq!(window.findings()[0].fixes[0].set[0].1, "5");
}

#[test]
fn nothing_is_said_to_be_in_order_where_what_was_sent_again_was_not_looked_at() {
    let mut window = silenced(3, 5, 0);
    window.sockets().unanswered.clear();
    assert_eq!(window.verdict("idle-reset"), Verdict::Ok);
    window.events.forget("retransmits");
    let verdict = window.verdict("idle-reset");
    assert!(matches!(verdict, Verdict::NotEnoughData(_)), "{verdict:?}");
}

#[test]
fn segments_that_are_larger_than_all_that_arrive_are_not_forgotten() {
    let ids = |stuck: u32, arriving: u32| {
        let mut window = silenced(3, 5, 0);
        let path = Path {
            stuck_bytes: vec![stuck; 10],
            arriving_bytes: arriving,
            ..Path::default()
        };
        window.sockets().paths.insert([10, 0, 0, 2].into(), path);
        window.ids()
    };
    assert_eq!(ids(1448, 100), ["path-loss"]);
    for (stuck, arriving) in [(100, 100), (1448, 1448)] {
        assert_eq!(ids(stuck, arriving), ["idle-reset", "path-loss"]);
    }
}
