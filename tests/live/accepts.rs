//! Accepted connections: as many as `accept` returned, by the process that called it.

use std::time::{Duration, Instant};

use netprobe_tests::{
    event::{number, text},
    netns::Cable,
    probe::Probe,
    process::Actor,
    skip::has_hooks,
    traffic::{Family, accept_queue},
    wait_until,
};

const PORT: u16 = 7631;
const TIMES: u64 = 5;

#[test]
fn what_a_process_waits_for_already_is_seen_too() {
    if !has_hooks("accepts", &[]) {
        return;
    }
    let cable = Cable::new();
    let mut server = Actor::start("np-waits", |stage| {
        cable.server.enter();
        let listener = Family::V4.listen(PORT + 10, 16);
        stage.tell(b'l');
        for _ in 0..2 {
            drop(listener.accept().expect("accept"));
        }
        stage.await_byte();
    });
    assert_eq!(server.hear(), b'l');
    let stat = format!("/proc/{}/stat", server.pid());
    wait_until("it waits in accept()", || {
        std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S "))
    });
    let mut probe = Probe::of(&cable.server, "accepts");
    let connect = || Family::V4.connect(PORT + 10).expect("connect");
    let first = cable.client.run(connect);
    probe.wait_for("the first accept", |events| events.len() == 1);
    let second = cable.client.run(connect);
    probe.wait_for("both accepts", |events| events.len() == 2);
    server.cue();
    let run = probe.stop();
    drop((first, second));
    assert_eq!(run.all().len(), 2);
    for event in run.all() {
        assert_eq!(number(event, "pid"), server.pid(), "{event:?}");
        assert_eq!(number(event, "accept_limit"), 16);
    }
}

#[test]
fn accepts_equal_those_of_the_process_that_listens() {
    if !has_hooks("accepts", &[]) {
        return;
    }
    let cable = Cable::new();
    let all = 3 * TIMES;
    let mut server = Actor::start("np-accepts", |stage| {
        cable.server.enter();
        let listeners = Family::OF_SOCKETS.map(|family| family.listen(family.port(PORT), 16));
        stage.tell(b'l');
        stage.await_byte();
        for listener in &listeners {
            wait_until("all wait", || u64::from(accept_queue(listener)) == TIMES);
        }
        let waited = Instant::now();
        wait_until("they waited", || {
            waited.elapsed() > Duration::from_millis(20)
        });
        for listener in &listeners {
            for _ in 0..TIMES {
                drop(listener.accept().expect("accept"));
            }
        }
        stage.tell(b'a');
        stage.await_byte();
    });
    assert_eq!(server.hear(), b'l');
    let mut probe = Probe::of(&cable.server, "accepts");
    let clients = Family::OF_SOCKETS.map(|family| {
        let connect = || family.connect(family.port(PORT)).expect("connect");
        let connections = (0..TIMES).map(|_| cable.client.run(connect));
        connections.collect::<Vec<_>>()
    });
    server.cue();
    assert_eq!(server.hear(), b'a');
    probe.wait_for("all accepts", |events| events.len() as u64 == all);
    let run = probe.stop();
    drop(clients);
    for family in Family::OF_SOCKETS {
        let events = run.with("sport", family.port(PORT));
        assert_eq!(events.len() as u64, TIMES, "{family:?}");
        for (index, event) in (1..).zip(events) {
            assert_eq!(number(event, "pid"), server.pid(), "{family:?}: {event:?}");
            assert_eq!(text(event, "comm"), "np-accepts");
            assert_eq!(text(event, "family"), family.name());
            assert_eq!(number(event, "accept_limit"), 16);
            if text(event, "seen") == "accepted" {
                assert_eq!(number(event, "accept_queue"), TIMES - index);
                assert!(number(event, "waited_ns") > 20_000_000, "{event:?}");
            }
        }
    }
    assert_eq!(run.all().len() as u64, all);
}
