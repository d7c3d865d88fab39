//! Resets: every one that is sent is counted by the kernel, and each has its cause.

use std::{
    io::{Read, Write},
    time::{Duration, Instant},
};

use netprobe_tests::{
    netns::Cable,
    probe::{Event, Probe, Run, check, column_of, number, text},
    skip::has_hooks,
    traffic::{CLIENT, Family, SERVER, abort},
    wait_until,
};
use serde_json::Value;

const PORT: u16 = 7501;
const TIMES: u64 = 5;
/// How long the connection is left alone.
const IDLE: Duration = Duration::from_millis(300);
/// The longest clock tick of any kernel, twice, in nanoseconds.
const COARSE: u64 = 20_000_000;
const ANSWERS: &str = "resets that answer packets without a connection";

/// Resets that `run` saw sent; they are those that the kernel of the namespace counted.
#[track_caller]
fn assert_sent(run: &Run, before: i64, after: i64, family: Family) {
    let sent = run.count("direction", "sent");
    assert_eq!(
        i64::try_from(sent),
        Ok(after - before),
        "{family:?}: {:#?}",
        run.events
    );
}

/// The ends of an event at the server.
#[track_caller]
fn assert_at_server(event: &Event, cable: &Cable, family: Family) {
    assert_eq!(text(event, "saddr"), family.shown(SERVER), "{event:?}");
    assert_eq!(number(event, "sport"), u64::from(PORT), "{event:?}");
    assert_eq!(text(event, "daddr"), family.shown(CLIENT), "{event:?}");
    assert_ne!(number(event, "dport"), 0, "{event:?}");
    assert_eq!(number(event, "netns"), u64::from(cable.server.inum()));
}

/// Newer kernels name their reason, older ones have none.
#[track_caller]
fn assert_reason(event: &Event, reason: &str) {
    if check().version() >= (6, 12) {
        assert_eq!(text(event, "reason"), reason, "{event:?}");
    } else {
        assert_eq!(*column_of(event, "reason"), Value::Null, "{event:?}");
    }
}

#[test]
fn answers_of_a_port_without_listener_equal_out_rsts() {
    if !has_hooks("resets", &[ANSWERS]) {
        return;
    }
    for family in Family::OF_SOCKETS {
        let cable = Cable::new();
        let probe = Probe::of(&cable.server, "resets");
        for _ in 0..TIMES {
            cable
                .client
                .run(|| family.connect(PORT))
                .expect_err("nobody listens");
        }
        let run = probe.stop();
        assert_sent(&run, 0, cable.server.counters().get("Tcp.OutRsts"), family);
        assert_eq!(run.count("cause", "no-listener"), TIMES);
        assert_eq!(run.all().len() as u64, TIMES);
        for event in run.all() {
            assert_at_server(event, &cable, family);
            assert_reason(event, "NO_SOCKET");
            assert_eq!(*column_of(event, "pid"), Value::Null);
            assert_eq!(*column_of(event, "idle_ns"), Value::Null);
        }
    }
}

#[test]
fn refusals_are_received_in_syn_sent() {
    if !has_hooks("resets", &[]) {
        return;
    }
    for family in Family::OF_SOCKETS {
        let cable = Cable::new();
        let probe = Probe::of(&cable.client, "resets");
        for _ in 0..TIMES {
            cable
                .client
                .run(|| family.connect(PORT))
                .expect_err("nobody listens");
        }
        let run = probe.stop();
        assert_eq!(
            run.count("cause", "refused"),
            TIMES,
            "{family:?}: {:#?}",
            run.events
        );
        for event in run.all() {
            assert_eq!(text(event, "direction"), "received");
            assert_eq!(text(event, "state"), "SYN-SENT");
            assert_eq!(text(event, "family"), family.name());
            assert_eq!(number(event, "pid"), u64::from(std::process::id()));
            assert_ne!(number(event, "age_ns"), 0);
        }
    }
}

#[test]
fn closing_with_unread_data_equals_abort_on_close() {
    if !has_hooks("resets", &[]) {
        return;
    }
    for family in Family::OF_SOCKETS {
        let cable = Cable::new();
        let listener = cable.server.run(|| family.listen(PORT, 8));
        let probe = Probe::of(&cable.server, "resets");
        for _ in 0..TIMES {
            let (near, far) = family.pair(&cable.client, &listener);
            near.send(b"never read").expect("send");
            wait_until("it came", || {
                far.peek(&mut [std::mem::MaybeUninit::uninit()]).is_ok()
            });
            drop(far);
        }
        let run = probe.stop();
        let counters = cable.server.counters();
        assert_sent(&run, 0, counters.get("Tcp.OutRsts"), family);
        assert_eq!(counters.get("TcpExt.TCPAbortOnClose"), TIMES.cast_signed());
        assert_eq!(
            run.count("cause", "unread-data"),
            TIMES,
            "{family:?}: {:#?}",
            run.events
        );
        for event in run.all() {
            assert_at_server(event, &cable, family);
            assert_reason(event, "TCP_ABORT_ON_CLOSE");
            assert_eq!(text(event, "state"), "ESTAB");
            assert_eq!(number(event, "pid"), u64::from(std::process::id()));
        }
    }
}

#[test]
fn resets_of_open_connections_equal_estab_resets_at_both_ends() {
    if !has_hooks("resets", &[]) {
        return;
    }
    for family in Family::OF_SOCKETS {
        let cable = Cable::new();
        let listener = cable.server.run(|| family.listen(PORT, 8));
        let at_client = Probe::of(&cable.client, "resets");
        let at_server = Probe::of(&cable.server, "resets");
        for _ in 0..TIMES {
            let (near, mut far) = family.pair(&cable.client, &listener);
            abort(near);
            far.read(&mut [0]).expect_err("it was reset");
        }
        let ends = [(at_client, &cable.client), (at_server, &cable.server)];
        for ((probe, netns), direction) in ends.into_iter().zip(["sent", "received"]) {
            let run = probe.stop();
            let counters = netns.counters();
            assert_eq!(
                run.count("direction", direction),
                TIMES,
                "{family:?}: {:#?}",
                run.events
            );
            assert_eq!(
                run.count("state", "ESTAB"),
                TIMES,
                "{family:?}: {:#?}",
                run.events
            );
            assert_eq!(counters.get("Tcp.EstabResets"), TIMES.cast_signed());
            assert_sent(&run, 0, counters.get("Tcp.OutRsts"), family);
            let lingered = if direction == "sent" { TIMES } else { 0 };
            assert_eq!(run.count("cause", "linger-0"), lingered);
        }
    }
}

#[test]
fn packets_for_closed_connections_equal_out_rsts() {
    if !has_hooks("resets", &[ANSWERS]) {
        return;
    }
    for family in Family::OF_SOCKETS {
        let cable = Cable::new();
        let listener = cable.server.run(|| family.listen(PORT, 8));
        let probe = Probe::of(&cable.server, "resets");
        for _ in 0..TIMES {
            let (mut near, far) = family.pair(&cable.client, &listener);
            drop(far);
            assert_eq!(near.read(&mut [0]).expect("the end"), 0);
            near.write_all(b"too late").expect("send");
            wait_until("it was reset", || {
                near.take_error().ok().flatten().is_some()
            });
        }
        let run = probe.stop();
        assert_sent(&run, 0, cable.server.counters().get("Tcp.OutRsts"), family);
        let answered = run.count("cause", "time-wait") + run.count("cause", "data-after-close");
        assert_eq!(answered, TIMES, "{family:?}: {:#?}", run.events);
        for event in run.all() {
            assert_at_server(event, &cable, family);
        }
    }
}

#[test]
fn closing_a_listener_resets_what_it_never_accepted() {
    if !has_hooks("resets", &[]) {
        return;
    }
    for family in Family::OF_SOCKETS {
        let cable = Cable::new();
        let listener = cable.server.run(|| family.listen(PORT, 8));
        let probe = Probe::of(&cable.server, "resets");
        let clients: Vec<_> = (0..TIMES)
            .map(|_| cable.client.run(|| family.connect(PORT)).expect("connect"))
            .collect();
        wait_until("all were established", || {
            u64::from(netprobe_tests::traffic::accept_queue(&listener)) == TIMES
        });
        drop(listener);
        let run = probe.stop();
        drop(clients);
        assert_sent(&run, 0, cable.server.counters().get("Tcp.OutRsts"), family);
        assert_eq!(
            run.count("cause", "listener-closed"),
            TIMES,
            "{family:?}: {:#?}",
            run.events
        );
        for event in run.all() {
            assert_at_server(event, &cable, family);
        }
    }
}

#[test]
fn idle_time_and_age_are_those_of_the_connection() {
    if !has_hooks("resets", &[]) {
        return;
    }
    for family in Family::OF_SOCKETS {
        let cable = Cable::new();
        let listener = cable.server.run(|| family.listen(PORT, 8));
        let probe = Probe::of(&cable.server, "resets");
        let opened = Instant::now();
        let (near, mut far) = family.pair(&cable.client, &listener);
        let before = Instant::now();
        near.send(b"last words").expect("send");
        far.read_exact(&mut [0; 10]).expect("receive");
        let after = Instant::now();
        wait_until("it was idle for a while", || after.elapsed() >= IDLE);
        let least = after.elapsed();
        abort(near);
        far.read(&mut [0]).expect_err("it was reset");
        let (most, whole) = (before.elapsed(), opened.elapsed());
        let run = probe.stop();
        assert_eq!(run.all().len(), 1, "{family:?}: {:#?}", run.events);
        let idle = number(&run.all()[0], "idle_ns");
        assert!(idle + COARSE >= nanos(least), "{idle} {least:?}");
        assert!(idle <= nanos(most) + COARSE, "{idle} {most:?}");
        let age = number(&run.all()[0], "age_ns");
        assert!(
            age >= nanos(least) && age <= nanos(whole),
            "{age} {whole:?}"
        );
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("it was short")
}

#[test]
fn counts_are_grouped_by_cause_and_service() {
    if !has_hooks("resets", &[]) {
        return;
    }
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 8));
    let probe = Probe::counting(&cable.client, "resets");
    for _ in 0..TIMES {
        let (near, _far) = Family::V4.pair(&cable.client, &listener);
        abort(near);
    }
    let run = probe.stop();
    let totals = run.summary.totals.iter().filter(|total| total.events > 0);
    let totals: Vec<_> = totals.collect();
    assert_eq!(totals.len(), 1, "{totals:#?}");
    assert_eq!(totals[0].events, TIMES);
    assert_eq!(totals[0].group["direction"], "sent");
    assert_eq!(totals[0].group["cause"], "linger-0");
    assert_eq!(totals[0].group["service_port"], PORT);
}
