//! Resets: every one that is sent is counted by the kernel, and each has its cause.

use std::{
    io::{Read, Write},
    time::{Duration, Instant},
};

use netprobe_tests::{
    event::{Event, column_of, number, text},
    netns::{Cable, Netns},
    probe::{Probe, Run},
    program::check,
    skip::has_hooks,
    traffic::{CLIENT, Family, SERVER, abort},
    wait_until,
};
use serde_json::Value;
use socket2::Socket;

const PORT: u16 = 7501;
const TIMES: u64 = 5;
/// How long the connection is left alone.
const IDLE: Duration = Duration::from_millis(300);
/// The longest clock tick of any kernel, twice, in nanoseconds.
const COARSE: u64 = 20_000_000;
const ANSWERS: &str = "resets that answer packets without a connection";

/// Resets that `run` saw sent; they are those that the kernel of the namespace counted.
#[track_caller]
fn assert_sent(run: &Run, netns: &Netns) {
    let sent = run.count("direction", "sent");
    let counted = netns.counters().get("Tcp.OutRsts");
    assert_eq!(i64::try_from(sent), Ok(counted), "{:#?}", run.events);
}

/// What `run` saw of each family, which has a port of its own.
fn by_family(run: &Run) -> impl Iterator<Item = (Family, Run)> {
    Family::OF_SOCKETS
        .into_iter()
        .map(|family| (family, run.at_port(family.port(PORT))))
}

/// Listens once for each family.
fn listeners(cable: &Cable) -> Vec<(Family, Socket)> {
    let listen = |family: Family| cable.server.run(|| family.listen(family.port(PORT), 8));
    let families = Family::OF_SOCKETS.into_iter();
    families.map(|family| (family, listen(family))).collect()
}

/// The ends of an event at the server.
#[track_caller]
fn assert_at_server(event: &Event, cable: &Cable, family: Family) {
    assert_eq!(text(event, "saddr"), family.shown(SERVER), "{event:?}");
    assert_eq!(
        number(event, "sport"),
        u64::from(family.port(PORT)),
        "{event:?}"
    );
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
    let cable = Cable::new();
    let probe = Probe::of(&cable.server, "resets");
    refuse(&cable);
    let run = probe.stop();
    assert_sent(&run, &cable.server);
    for (family, run) in by_family(&run) {
        assert_eq!(run.count("cause", "no-listener"), TIMES, "{family:?}");
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
    let cable = Cable::new();
    let probe = Probe::of(&cable.client, "resets");
    refuse(&cable);
    let run = probe.stop();
    for (family, run) in by_family(&run) {
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

/// Connects to ports where nobody listens.
fn refuse(cable: &Cable) {
    for family in Family::OF_SOCKETS {
        for _ in 0..TIMES {
            let connect = || family.connect(family.port(PORT));
            cable.client.run(connect).expect_err("nobody listens");
        }
    }
}

#[test]
fn closing_with_unread_data_equals_abort_on_close() {
    if !has_hooks("resets", &[]) {
        return;
    }
    let cable = Cable::new();
    let probe = Probe::of(&cable.server, "resets");
    for (family, listener) in listeners(&cable) {
        for _ in 0..TIMES {
            let (near, far) = family.pair(&cable.client, &listener);
            near.send(b"never read").expect("send");
            wait_until("it came", || {
                far.peek(&mut [std::mem::MaybeUninit::uninit()]).is_ok()
            });
            drop(far);
        }
    }
    let run = probe.stop();
    assert_sent(&run, &cable.server);
    let aborted = cable.server.counters().get("TcpExt.TCPAbortOnClose");
    assert_eq!(aborted, 3 * TIMES.cast_signed());
    // An ACK of the client that comes after the close is answered by the listener, or for it when that is closed.
    let answers = run.all().len() as u64 - run.count("cause", "unread-data");
    let late = run.count("cause", "unexpected-ack") + run.count("cause", "no-connection");
    assert_eq!(late, answers, "{:#?}", run.events);
    for (family, run) in by_family(&run) {
        assert_eq!(
            run.count("cause", "unread-data"),
            TIMES,
            "{family:?}: {:#?}",
            run.events
        );
        for event in run.with("cause", "unread-data") {
            assert_at_server(event, &cable, family);
            assert_reason(event, "TCP_ABORT_ON_CLOSE");
            assert_eq!(number(event, "data"), 10, "never read");
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
    let cable = Cable::new();
    let at_client = Probe::of(&cable.client, "resets");
    let at_server = Probe::of(&cable.server, "resets");
    for (family, listener) in listeners(&cable) {
        for _ in 0..TIMES {
            let (near, mut far) = family.pair(&cable.client, &listener);
            abort(near);
            far.read(&mut [0]).expect_err("it was reset");
        }
    }
    let ends = [(at_client, &cable.client), (at_server, &cable.server)];
    for ((probe, netns), direction) in ends.into_iter().zip(["sent", "received"]) {
        let run = probe.stop();
        assert_sent(&run, netns);
        let reset = netns.counters().get("Tcp.EstabResets");
        assert_eq!(reset, 3 * TIMES.cast_signed());
        let lingered = if direction == "sent" { TIMES } else { 0 };
        for (family, run) in by_family(&run) {
            for (column, value) in [("direction", direction), ("state", "ESTAB")] {
                assert_eq!(
                    run.count(column, value),
                    TIMES,
                    "{family:?}: {:#?}",
                    run.events
                );
            }
            assert_eq!(run.count("cause", "linger-0"), lingered);
        }
    }
}

#[test]
fn packets_for_closed_connections_equal_out_rsts() {
    if !has_hooks("resets", &[ANSWERS]) {
        return;
    }
    let cable = Cable::new();
    let probe = Probe::of(&cable.server, "resets");
    let at_client = Probe::of(&cable.client, "resets");
    for (family, listener) in listeners(&cable) {
        for _ in 0..TIMES {
            let (mut near, far) = family.pair(&cable.client, &listener);
            drop(far);
            assert_eq!(near.read(&mut [0]).expect("the end"), 0);
            near.write_all(b"too late").expect("send");
            wait_until("it was reset", || {
                near.take_error().ok().flatten().is_some()
            });
        }
    }
    let run = probe.stop();
    assert_sent(&run, &cable.server);
    for (family, run) in by_family(&run) {
        let answered = run.count("cause", "data-after-close");
        assert_eq!(answered, TIMES, "{family:?}: {:#?}", run.events);
        for event in run.all() {
            assert_at_server(event, &cable, family);
            assert_eq!(number(event, "data"), 8, "too late");
        }
    }
    let received = at_client.stop();
    assert_eq!(received.count("state", "CLOSE-WAIT"), 3 * TIMES);
    for event in received.all() {
        assert_eq!(number(event, "data"), 8, "it is lost");
    }
}

#[test]
fn closing_a_listener_resets_what_it_never_accepted() {
    if !has_hooks("resets", &[]) {
        return;
    }
    let cable = Cable::new();
    let probe = Probe::of(&cable.server, "resets");
    for (family, listener) in listeners(&cable) {
        let connect = || family.connect(family.port(PORT)).expect("connect");
        let _clients: Vec<_> = (0..TIMES).map(|_| cable.client.run(connect)).collect();
        wait_until("all were established", || {
            u64::from(netprobe_tests::traffic::accept_queue(&listener)) == TIMES
        });
        drop(listener);
    }
    let run = probe.stop();
    assert_sent(&run, &cable.server);
    for (family, run) in by_family(&run) {
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

/// A connection that idled before it was reset, and how long that may have been.
struct Idled {
    least_idle: Duration,
    most_idle: Duration,
    most_age: Duration,
}

fn idle_and_abort(cable: &Cable, family: Family, listener: &Socket) -> Idled {
    let opened = Instant::now();
    let (near, mut far) = family.pair(&cable.client, listener);
    let before = Instant::now();
    near.send(b"last words").expect("send");
    far.read_exact(&mut [0; 10]).expect("receive");
    let after = Instant::now();
    wait_until("it was idle for a while", || after.elapsed() >= IDLE);
    let least_idle = after.elapsed();
    abort(near);
    far.read(&mut [0]).expect_err("it was reset");
    Idled {
        least_idle,
        most_idle: before.elapsed(),
        most_age: opened.elapsed(),
    }
}

#[test]
fn idle_time_and_age_are_those_of_the_connection() {
    if !has_hooks("resets", &[]) {
        return;
    }
    let cable = Cable::new();
    let probe = Probe::of(&cable.server, "resets");
    let idled: Vec<Idled> = listeners(&cable)
        .iter()
        .map(|(family, listener)| idle_and_abort(&cable, *family, listener))
        .collect();
    let run = probe.stop();
    for ((family, run), idled) in by_family(&run).zip(idled) {
        assert_eq!(run.all().len(), 1, "{family:?}: {:#?}", run.events);
        let idle = number(&run.all()[0], "idle_ns");
        let (least, most) = (nanos(idled.least_idle), nanos(idled.most_idle));
        assert!(idle + COARSE >= least, "{idle} {least:?}");
        assert!(idle <= most + COARSE, "{idle} {most:?}");
        let age = number(&run.all()[0], "age_ns");
        let whole = nanos(idled.most_age);
        assert!(age >= least && age <= whole, "{age} {whole:?}");
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
    // 5.10 may answer a late packet of the server as well.
    let totals: Vec<_> = totals
        .filter(|total| total.group["cause"] != "no-connection")
        .collect();
    assert_eq!(totals.len(), 1, "{totals:#?}");
    assert_eq!(totals[0].events, TIMES);
    assert_eq!(totals[0].group["direction"], "sent");
    assert_eq!(totals[0].group["cause"], "linger-0");
    assert_eq!(totals[0].group["service_port"], PORT);
}
