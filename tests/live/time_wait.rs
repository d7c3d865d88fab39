//! TIME_WAIT: entries equal the sockets that wait, refusals equal `TCPTimeWaitOverflow`.

use std::{
    fs,
    io::{Read, Write},
};

use netprobe_tests::{
    event::{number, text},
    netns::{Cable, Netns},
    probe::{Probe, Run},
    program::check,
    skip::has_hooks,
    traffic::Family,
};
use serde_json::Value;

const PORT: u16 = 7701;
const TIMES: u64 = 5;
const ROOM: &str = "whether there was room in TIME_WAIT";

/// Sockets in TIME_WAIT, or in FIN_WAIT2 without their application.
fn waiting(netns: &Netns) -> u64 {
    let text = netns.run(|| fs::read_to_string("/proc/thread-self/net/sockstat"));
    let text = text.expect("read sockstat");
    let (_, count) = text.split_once(" tw ").expect("it counts TIME_WAIT");
    let digits = count.split(' ').next().unwrap_or_default();
    digits.parse().expect("a number")
}

/// Opens connections of each family and closes them, the client's end first or the server's.
fn close_first(cable: &Cable, is_client: bool) -> Run {
    let closes = if is_client {
        &cable.client
    } else {
        &cable.server
    };
    let probe = Probe::of(closes, "time-wait");
    for family in Family::OF_SOCKETS {
        let listener = cable.server.run(|| family.listen(family.port(PORT), 8));
        for _ in 0..TIMES {
            let (near, far) = family.pair(&cable.client, &listener);
            let (first, mut second) = if is_client { (near, far) } else { (far, near) };
            drop(first);
            assert_eq!(second.read(&mut [0]).expect("the end"), 0);
        }
    }
    cable.client.wait_for_silence();
    cable.server.wait_for_silence();
    probe.stop()
}

fn knows_room() -> bool {
    let hooks = &check().probe("time-wait").hooks;
    hooks.iter().all(|hook| hook.via.is_some())
}

#[test]
fn entries_equal_the_sockets_that_wait_on_either_side() {
    if !has_hooks("time-wait", &[]) {
        return;
    }
    for is_client in [true, false] {
        let cable = Cable::new();
        let run = close_first(&cable, is_client);
        let (closes, role, port) = if is_client {
            (&cable.client, "client", "dport")
        } else {
            (&cable.server, "server", "sport")
        };
        assert_eq!(waiting(closes), 3 * TIMES);
        assert_eq!(run.all().len() as u64, 3 * TIMES, "{:#?}", run.events);
        for family in Family::OF_SOCKETS {
            let events = run.with(port, family.port(PORT));
            assert_eq!(events.len() as u64, TIMES, "{family:?}: {:#?}", run.events);
            for event in events {
                assert_eq!(text(event, "role"), role, "{event:?}");
                assert_eq!(text(event, "family"), family.name(), "{event:?}");
                assert_eq!(number(event, "pid"), u64::from(std::process::id()));
                let outcome = if knows_room() {
                    "entered".into()
                } else {
                    Value::Null
                };
                assert_eq!(event["outcome"], outcome, "{event:?}");
            }
        }
    }
}

#[test]
fn refusals_equal_time_wait_overflow() {
    if !has_hooks("time-wait", &[ROOM]) {
        return;
    }
    let cable = Cable::new();
    cable.client.sysctl("net.ipv4.tcp_max_tw_buckets", 2);
    let run = close_first(&cable, true);
    let overflows = cable.client.counters().get("TcpExt.TCPTimeWaitOverflow");
    assert!(overflows > 0);
    let refused = run.count("outcome", "refused");
    assert_eq!(i64::try_from(refused), Ok(overflows), "{:#?}", run.events);
    assert_eq!(run.count("outcome", "entered"), waiting(&cable.client));
    for family in Family::OF_SOCKETS {
        let events = run.with("dport", family.port(PORT));
        assert_eq!(events.len() as u64, TIMES, "{family:?}: {:#?}", run.events);
    }
}

#[test]
fn resets_do_not_wait() {
    if !has_hooks("time-wait", &[]) {
        return;
    }
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 8));
    let probe = Probe::of(&cable.client, "time-wait");
    for _ in 0..TIMES {
        let (near, _far) = Family::V4.pair(&cable.client, &listener);
        netprobe_tests::traffic::abort(near);
    }
    let run = probe.stop();
    assert_eq!(waiting(&cable.client), 0);
    assert!(run.all().is_empty(), "{:#?}", run.events);
}

#[test]
fn what_is_reset_by_data_that_comes_with_the_acknowledgement_does_not_wait() {
    if !has_hooks("time-wait", &[]) {
        return;
    }
    let cable = Cable::new();
    let probes = ["time-wait", "lifetimes", "resets"].map(|probe| Probe::of(&cable.client, probe));
    for family in Family::OF_SOCKETS {
        let listener = cable.server.run(|| family.listen(family.port(PORT), 8));
        for _ in 0..TIMES {
            let (mut near, mut far) = family.pair(&cable.client, &listener);
            near.write_all(b"?").expect("send");
            drop(near);
            // Its acknowledgement is delayed for data to go with it.
            let _reset_already = far.write_all(b"late");
        }
    }
    cable.client.wait_for_silence();
    let [waits, ends, resets] = probes.map(Probe::stop);
    let aborted = cable.client.counters().get("TcpExt.TCPAbortOnData");
    assert!(aborted > 0);
    assert_eq!(waits.all().len() as u64, waiting(&cable.client));
    assert_eq!(ends.count("time_wait", "yes"), waiting(&cable.client));
    let reset = ends.count("result", "reset");
    assert_eq!(i64::try_from(reset), Ok(aborted), "{:#?}", ends.events);
    let answers = resets.with("state", "FIN-WAIT-2");
    assert_eq!(
        i64::try_from(answers.len()),
        Ok(aborted),
        "{:#?}",
        resets.events
    );
    for event in answers {
        assert_eq!(text(event, "cause"), "data-after-close", "{event:?}");
        assert_eq!(number(event, "pid"), u64::from(std::process::id()));
    }
}
