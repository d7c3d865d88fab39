use crate::{
    diagnose::{Verdict, fixtures::quiet},
    report::{
        Value,
        diagnosis::{Confidence, Severity},
    },
};

const BURSTS: [u32; 10] = [0, 0, 11, 0, 3, 0, 11, 0, 0, 0];

#[test]
fn bursts_that_overflow_a_short_queue_are_its_fault() {
    let mut window = quiet();
    window.listen(80, 10, &BURSTS);
    window.grow(&[("TcpExt.ListenOverflows", 50), ("TcpExt.ListenDrops", 50)]);
    let findings = window.findings();
    let first = &findings[0];
    assert_eq!(first.id, "accept-queue-overflow");
    assert_eq!(first.confidence, Confidence::Medium);
    assert_eq!(first.affected[0].port, Some(80));
    assert_eq!(first.affected[0].comm.as_deref(), Some("server"));
    // 10 + 5 within a second and half as much again is 23; not below 128.
    let listen = first.fixes.last().unwrap();
    assert_eq!(
        listen.set,
        [("listen_backlog".to_owned(), "128".to_owned())]
    );
}

#[test]
fn a_few_of_many_connections_are_no_outage() {
    let severity = |served| {
        let mut window = quiet();
        window.listen(80, 10, &BURSTS);
        window.serving(80, 4, served);
        window.grow(&[("TcpExt.ListenOverflows", 9), ("TcpExt.ListenDrops", 9)]);
        window.findings()[0].severity
    };
    assert_eq!(severity(24_000), Severity::Warning);
    assert_eq!(severity(240), Severity::Critical);
}

#[test]
fn the_probe_names_the_listener_and_makes_it_certain() {
    let mut window = quiet();
    window.listen(80, 10, &BURSTS);
    window.listen(81, 10, &[0; 10]);
    window.set("net.core.somaxconn", "10");
    window.grow(&[("TcpExt.ListenOverflows", 500)]);
    let group = [
        ("stage", Value::Word("syn-accept-queue")),
        ("listener_port", Value::Unsigned(81)),
    ];
    window.total("listeners", 500, &group);
    window.netns().listen_overflows = vec![0, 0, 0, 500, 500, 500, 500, 500, 500, 500];
    let findings = window.findings();
    assert_eq!(findings[0].affected[0].port, Some(81));
    assert_eq!(findings[0].confidence, Confidence::High);
    let set: Vec<_> = findings[0].fixes.iter().flat_map(|fix| &fix.set).collect();
    // 510 and half as much again, as a power of two; both limits, somaxconn first.
    assert_eq!(
        set[0],
        &("net.core.somaxconn".to_owned(), "1024".to_owned())
    );
    assert_eq!(set[1], &("listen_backlog".to_owned(), "1024".to_owned()));
}

#[test]
fn the_size_does_not_depend_on_how_long_one_watches() {
    // Every second the application pauses, and 60 are turned away meanwhile.
    let wanted = |seconds: i64| {
        let mut window = quiet();
        #[expect(clippy::cast_precision_loss, reason = "a few seconds")]
        let length = seconds as f64;
        window.seconds = length;
        let looks: Vec<u32> = (0..seconds * 10)
            .map(|look| [0, 17][usize::from(look % 10 < 5)])
            .collect();
        window.listen(8081, 16, &looks);
        window.grow(&[("TcpExt.ListenOverflows", 60 * seconds)]);
        window.netns().listen_overflows = (0..seconds * 10)
            .map(|look| look / 10 * 60 + (look % 10).min(4) * 15)
            .collect();
        let findings = window.findings();
        assert_eq!(findings[0].id, "accept-queue-overflow");
        findings[0].fixes[0].set[0].1.clone()
    };
    assert_eq!(wanted(4), "128");
    assert_eq!(wanted(24), "128");
}

#[test]
fn the_size_is_that_of_a_pause_and_not_of_a_second() {
    let mut window = quiet();
    window.listen(8080, 5, &[5, 0, 3, 5, 0, 4, 5, 1, 0, 5]);
    // Each 50 ms the application takes the 6 that wait, and 97 are turned away, 20 of them new.
    window.grow(&[
        ("TcpExt.ListenOverflows", 19_400),
        ("Tcp.PassiveOpens", 1200),
    ]);
    window.netns().listen_overflows = (0..100).map(|look| look * 194).collect();
    window.netns().passive_opens = (0..100).map(|look| look * 12).collect();
    let said = |window: &crate::diagnose::window::Window| {
        let fix = window.findings()[0].fixes.last().unwrap().clone();
        (fix.set[0].1.clone(), fix.text)
    };
    let (wanted, text) = said(&window);
    assert!(text.contains("5 waiting + about 97 turned away"), "{text}");
    assert_eq!(wanted, "256");
    // The clients are of this machine: 4000 attempts among the 20,600.
    let group = [
        ("role", Value::Word("client")),
        ("service_port", Value::Unsigned(8080)),
    ];
    window.total("lifetimes", 4000, &group);
    let (wanted, text) = said(&window);
    assert!(text.contains("5 waiting + 19 turned away"), "{text}");
    assert_eq!(wanted, "128");
}

#[test]
fn a_burst_needs_room_for_all_of_it_though_each_tries_again_later() {
    let mut window = quiet();
    window.listen(8080, 16, &[0, 17, 0, 0, 0, 0, 0, 0, 0, 0]);
    // 500 at once; who is turned away tries again after 1, 3 and 7 s.
    window.grow(&[("TcpExt.ListenOverflows", 1800), ("Tcp.PassiveOpens", 68)]);
    let looks = (0..100).map(|look| match look {
        0 => 0,
        1..12 => 483,
        12..32 => 949,
        32..72 => 1398,
        _ => 1800,
    });
    window.netns().listen_overflows = looks.collect();
    window.netns().passive_opens = (0..100).map(|look| i64::from(look > 0) * 17).collect();
    let group = [
        ("role", Value::Word("client")),
        ("service_port", Value::Unsigned(8080)),
    ];
    window.total("lifetimes", 500, &group);
    let fix = window.findings()[0].fixes.last().unwrap().clone();
    assert!(fix.text.contains("16 waiting + about 483"), "{}", fix.text);
    assert_eq!(fix.set[0].1, "1024");
}

#[test]
fn a_queue_is_not_too_short_where_descriptors_are_missing() {
    let mut window = quiet();
    window.listen(80, 10, &BURSTS);
    window.grow(&[("TcpExt.ListenOverflows", 50)]);
    let server = window.processes.by_pid.get_mut(&100).unwrap();
    (server.fds, server.fd_limit) = (64, 64);
    assert_eq!(window.ids(), ["fd-exhaustion"]);
    let verdict = window.verdict("accept-queue-overflow");
    assert!(matches!(verdict, Verdict::OkBecause(_)), "{verdict:?}");
}

#[test]
fn a_queue_that_is_always_full_is_not_too_short() {
    let mut window = quiet();
    window.listen(80, 10, &[11; 10]);
    window.grow(&[("TcpExt.ListenOverflows", 50)]);
    assert_eq!(window.ids(), ["application-not-accepting"]);
    assert!(matches!(
        window.verdict("accept-queue-overflow"),
        Verdict::OkBecause(_)
    ));
}

#[test]
fn a_queue_that_is_emptied_in_gulps_is_too_short_for_the_pauses() {
    let mut window = quiet();
    window.listen(80, 10, &[11; 10]);
    window.grow(&[("TcpExt.ListenOverflows", 50), ("Tcp.PassiveOpens", 22)]);
    window.netns().passive_opens = vec![0, 0, 0, 11, 11, 11, 11, 11, 22, 22];
    assert_eq!(window.ids(), ["accept-queue-overflow"]);
    // One by one is not in gulps.
    window.netns().passive_opens = vec![0, 2, 4, 7, 9, 11, 14, 17, 20, 22];
    assert_eq!(window.ids(), ["application-not-accepting"]);
}

#[test]
fn counters_that_went_backwards_or_are_missing_give_no_verdict() {
    let mut window = quiet();
    window.grow(&[("TcpExt.ListenOverflows", -5)]);
    let verdict = window.verdict("accept-queue-overflow");
    assert!(matches!(verdict, Verdict::NotEnoughData(_)), "{verdict:?}");
    let mut window = quiet();
    window.netns().after.counters.clear();
    let verdict = window.verdict("accept-queue-overflow");
    assert!(matches!(verdict, Verdict::NotEnoughData(_)), "{verdict:?}");
}

#[test]
fn a_burst_that_no_look_caught_is_of_the_only_service() {
    let summary = |port| {
        let mut window = quiet();
        window.listen(80, 10, &[0; 10]);
        // The same service for the other family of addresses.
        window.listen(80, 10, &[0; 10]);
        window.listen(port, 10, &[0; 10]);
        window.grow(&[("TcpExt.ListenOverflows", 27)]);
        window.findings()[0].summary.clone()
    };
    let told = summary(80);
    assert!(
        told.starts_with("the listener at port 80 (server, queue of 10)"),
        "{told}"
    );
    let told = summary(81);
    assert!(told.starts_with("a listener is full"), "{told}");
}
