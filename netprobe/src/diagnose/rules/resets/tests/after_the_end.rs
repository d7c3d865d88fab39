//! What comes for connections that one end has closed.

use super::{caused, lives, received};
use crate::{
    diagnose::{fixtures::quiet, window::Window},
    report::{Value, diagnosis::Severity},
};

/// Resets that a client of 10.0.0.2:5432 received after the end, so long after that, with so many bytes lost.
fn used_after_close(state: &'static str, data: u64, idle_ns: u64, acked_ns: u64) -> Window {
    let mut window = quiet();
    lives(&mut window, 5432, "reset", 30);
    let reset = [
        ("direction", Value::Word("received")),
        ("state", Value::Word(state)),
        ("saddr", Value::Ip([10, 0, 0, 1].into())),
        ("sport", Value::Unsigned(41_000)),
        ("daddr", Value::Ip([10, 0, 0, 2].into())),
        ("dport", Value::Unsigned(5432)),
        ("comm", Value::Word("pool")),
        ("idle_ns", Value::Unsigned(idle_ns)),
        ("acked_ns", Value::Unsigned(acked_ns)),
        ("data", Value::nonzero(data)),
    ];
    window.event("resets", 20, &reset);
    window
}

#[test]
fn connections_that_are_used_after_their_end_are_a_warning_that_names_the_client() {
    let told = |data, idle_ns| used_after_close("CLOSE-WAIT", data, idle_ns, idle_ns).findings();
    let findings = told(400, 1_020_000_000);
    assert_eq!(findings.len(), 1);
    assert_eq!(
        (findings[0].id, findings[0].severity),
        ("resets", Severity::Warning)
    );
    let said = "pool wrote to 20 connections that 10.0.0.2:5432 had closed 1.0 s before";
    let summary = &findings[0].summary;
    assert!(summary.starts_with(said), "{summary}");
    // It said its farewell, or nothing at all: keepalive was answered.
    assert!(told(24, 1_020_000_000).is_empty());
    assert!(told(0, 1_020_000_000).is_empty());
}

#[test]
fn requests_that_cross_the_end_are_told_where_the_client_is_with_the_timeout() {
    let told = |state, data, acked_ns| {
        let window = used_after_close(state, data, 20_000_000, acked_ns);
        window.findings().first().map(|found| {
            assert_eq!(found.severity, Severity::Warning);
            (found.summary.clone(), found.fixes[0].text.clone())
        })
    };
    for state in ["CLOSE-WAIT", "LAST-ACK"] {
        let (summary, fix) = told(state, 61, 2_020_000_000).unwrap();
        for words in [
            "pool wrote to 20 connections while 10.0.0.2:5432 closed them",
            "without a request for 2.0 s: an idle timeout of 2.0 s there",
        ] {
            assert!(summary.contains(words), "{summary}");
        }
        assert!(fix.contains("well before 2.0 s"), "{fix}");
        assert!(told(state, 24, 2_020_000_000).is_none());
    }
    // They had been in use until then.
    let (summary, _) = told("CLOSE-WAIT", 61, 30_000_000).unwrap();
    assert!(summary.contains("connections that are in use"), "{summary}");
    // A client that had closed by itself.
    assert!(told("FIN-WAIT-2", 61, 30_000_000).is_none());
}

/// What clients of a service at port 9400 sent after its end: resets there and at the client, by cause.
fn used_after_end(window: &mut Window) {
    let ends = |local: ([u8; 4], u64), remote: ([u8; 4], u64)| {
        vec![
            ("saddr", Value::Ip(local.0.into())),
            ("sport", Value::Unsigned(local.1)),
            ("daddr", Value::Ip(remote.0.into())),
            ("dport", Value::Unsigned(remote.1)),
        ]
    };
    for (cause, first, count) in [("data-after-close", 41_000, 20), ("time-wait", 42_000, 60)] {
        let group = [
            ("direction", Value::Word("sent")),
            ("cause", Value::Word(cause)),
            ("service_port", Value::Unsigned(9400)),
        ];
        window.total("resets", count, &group);
        for port in first..first + count {
            let mut sent = ends(([10, 0, 0, 1], 9400), ([10, 0, 0, 2], port));
            sent.extend([
                ("direction", Value::Word("sent")),
                ("cause", Value::Word(cause)),
            ]);
            window.event("resets", 1, &sent);
            let mut received = ends(([10, 0, 0, 2], port), ([10, 0, 0, 1], 9400));
            received.extend([
                ("direction", Value::Word("received")),
                ("state", Value::Word("CLOSE-WAIT")),
                ("idle_ns", Value::Unsigned(2_000_000_000)),
                ("data", Value::Unsigned(400)),
                ("comm", Value::Text("pool".into())),
                ("pid", Value::Unsigned(7)),
            ]);
            window.event("resets", 1, &received);
        }
    }
    lives(window, 9400, "fin", 100);
}

#[test]
fn a_service_that_ended_with_connections_open_is_a_note_that_names_it_and_its_clients() {
    let mut window = quiet();
    window.listen(9400, 128, &[0; 10]);
    window.netns().after.addresses = [1, 2].map(|host| [10, 0, 0, host].into()).into();
    window.netns().before = window.netns().after.clone();
    window.processes_before = window.processes.clone();
    used_after_end(&mut window);
    // It is there: its way to close is at fault, and the pool's.
    let found = &window.findings()[0];
    assert_eq!(found.severity, Severity::Warning);
    assert!(!found.summary.contains("listened"), "{}", found.summary);
    let told = |window: &Window, words: &[&str]| {
        let found = window.findings();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].id, found[0].severity), ("resets", Severity::Info));
        for word in words {
            assert!(found[0].summary.contains(word), "{}", found[0].summary);
        }
        assert!(!found[0].fixes[0].text.contains("shutdown, then read"));
    };
    let ended = "server (pid 100) that listened at 10.0.0.1:9400 ended or closed its listener";
    let words = [
        "nobody listens there any more",
        "connections of pool",
        "80 times",
    ];
    // Somebody else listens there now.
    let mut anew = window.clone();
    anew.sockets().listeners[0].ino += 1;
    told(&anew, &["was replaced by another"]);
    // Or the same again.
    let ino = anew.sockets().listeners[0].ino;
    let server = anew.processes.by_pid.get_mut(&100).unwrap();
    server.sockets.push(ino);
    told(&anew, &["closed its listener and opened it again"]);
    window.sockets().listeners.clear();
    window.processes.by_pid.clear();
    told(&window, &[&[ended][..], &words].concat());
    // Some of them had not heard of its end when they sent.
    let mut crossed = window.clone();
    received(&mut crossed, ([10, 0, 0, 1], 9400), 60);
    told(&crossed, &words[..1]);
    // It ended before the window.
    window.netns().before = window.netns().after.clone();
    told(&window, &["is gone, and nobody listens there"]);
}

#[test]
fn an_idle_timeout_that_the_next_request_crosses_is_cured_in_the_pool() {
    let told = |cause, pauses_ms: [u64; 20]| {
        let mut window = quiet();
        window.listen(3000, 100, &[0; 10]);
        caused(&mut window, cause, 3000, 20);
        for pause_ms in pauses_ms {
            let reset = [
                ("cause", Value::Word(cause)),
                ("direction", Value::Word("sent")),
                ("saddr", Value::Ip([10, 0, 0, 1].into())),
                ("sport", Value::Unsigned(3000)),
                ("daddr", Value::Ip([10, 0, 0, 2].into())),
                ("dport", Value::Unsigned(41_000)),
                ("idle_ns", Value::Unsigned(pause_ms * 1_000_000)),
            ];
            window.event("resets", 1, &reset);
        }
        window.grow(&[("Tcp.PassiveOpens", 100)]);
        let found = window.findings().remove(0);
        assert_eq!(found.severity, Severity::Warning);
        (found.summary, found.fixes[0].text.clone())
    };
    let alike: [u64; 20] = std::array::from_fn(|place| 1004 + 4 * place as u64);
    let (summary, fix) = told("data-after-close", alike);
    let said = "had closed; they had been without a request for 1.0 to 1.1 s: an idle timeout of 1.0 s there";
    assert!(summary.contains(said), "{summary}");
    assert!(
        fix.contains("pool give up idle connections well before 1.0 s"),
        "{fix}"
    );
    // It ends those that are idle, whenever that may be.
    let apart = std::array::from_fn(|place| 1000 + 500 * place as u64);
    let (summary, fix) = told("data-after-close", apart);
    assert!(!summary.contains("an idle timeout"), "{summary}");
    assert!(fix.contains("pool give up idle connections"), "{fix}");
    // Most were in use.
    let busy = std::array::from_fn(|place| if place < 9 { 1000 } else { 3 });
    for told in [told("data-after-close", busy), told("unread-data", alike)] {
        assert!(!told.1.contains("pool"), "{told:?}");
    }
}

/// Resets that a service at 10.0.0.1:8443 sent, of so many bytes of data each.
fn sent_of(window: &mut Window, cause: &'static str, data: &[u64]) {
    window.listen(8443, 100, &[0; 10]);
    caused(window, cause, 8443, data.len() as u64);
    for (port, bytes) in (41_000..).zip(data) {
        let reset = [
            ("cause", Value::Word(cause)),
            ("direction", Value::Word("sent")),
            ("saddr", Value::Ip([10, 0, 0, 1].into())),
            ("sport", Value::Unsigned(8443)),
            ("daddr", Value::Ip([10, 0, 0, 2].into())),
            ("dport", Value::Unsigned(port)),
            ("data", Value::nonzero(*bytes)),
            ("lastrcv_ns", Value::Unsigned(2_010_000_000)),
        ];
        window.event("resets", 1, &reset);
    }
    window.grow(&[("Tcp.PassiveOpens", 100)]);
}

#[test]
fn farewells_that_come_after_the_end_are_a_note() {
    let told = |cause, data: &[u64]| {
        let mut window = quiet();
        sent_of(&mut window, cause, data);
        let found = window.findings();
        assert_eq!(found.len(), 1, "{found:?}");
        (found[0].severity, found[0].summary.clone())
    };
    for cause in ["data-after-close", "unread-data"] {
        for bytes in [24, 31, 6] {
            let (severity, summary) = told(cause, &[bytes; 30]);
            assert_eq!(severity, Severity::Info, "{summary}");
            assert!(summary.contains("are harmless: one end said its farewell"));
        }
        assert_eq!(told(cause, &[61; 30]).0, Severity::Warning);
        // Requests beside them count.
        assert_eq!(
            told(cause, &[[24; 30], [61; 30]].concat()).0,
            Severity::Warning
        );
        assert_eq!(
            told(cause, &[&[24; 30][..], &[61; 3]].concat()).0,
            Severity::Info
        );
    }
    // What comes of it is not told on its own.
    let mut window = quiet();
    sent_of(&mut window, "data-after-close", &[24; 30]);
    caused(&mut window, "time-wait", 8443, 40);
    assert_eq!(window.findings().len(), 1);
}

#[test]
fn clients_that_close_as_soon_as_they_are_connected_are_health_checks() {
    let told = |lasted_ns: u64, bytes_sent: u64, known: u64, all: u64| {
        let mut window = quiet();
        window.total("lifetimes", all, &[]);
        window.listen(3306, 100, &[0; 10]);
        caused(&mut window, "data-after-close", 3306, 30);
        for port in 41_000..41_030 {
            let ends = [
                ("saddr", Value::Ip([10, 0, 0, 2].into())),
                ("sport", Value::Unsigned(port)),
                ("daddr", Value::Ip([10, 0, 0, 1].into())),
                ("dport", Value::Unsigned(3306)),
            ];
            let with = |more: [(&'static str, Value); 3]| [ends.to_vec(), more.to_vec()].concat();
            let reset = with([
                ("cause", Value::Word("data-after-close")),
                ("direction", Value::Word("sent")),
                ("data", Value::Unsigned(78)),
            ]);
            window.event("resets", 1, &reset);
            let life = with([
                ("role", Value::Word("client")),
                ("bytes_sent", Value::Unsigned(bytes_sent)),
                ("duration_ns", Value::Unsigned(lasted_ns)),
            ]);
            if port < 41_000 + known {
                window.event("lifetimes", 1, &life);
            }
        }
        window.grow(&[("Tcp.ActiveOpens", 100)]);
        let found = window.findings().remove(0);
        (found.severity, found.summary)
    };
    let (severity, summary) = told(300_000, 0, 30, 30);
    assert_eq!(severity, Severity::Info, "{summary}");
    assert!(summary.contains("as health checks do"), "{summary}");
    // It waited for the answer, or had asked for something.
    assert_eq!(told(5_000_000_000, 0, 30, 30).0, Severity::Warning);
    assert_eq!(told(300_000, 100, 30, 30).0, Severity::Warning);
    // Of thousands, not all were looked at; where there are no others, what was not is something else.
    assert_eq!(told(300_000, 0, 5, 5000).0, Severity::Info);
    assert_eq!(told(300_000, 100, 5, 5000).0, Severity::Warning);
    assert_eq!(told(300_000, 0, 5, 5).0, Severity::Warning);
}

#[test]
fn an_idle_timeout_of_a_service_that_says_farewell_is_known_by_its_last_request() {
    let mut window = quiet();
    sent_of(&mut window, "data-after-close", &[61; 30]);
    let found = &window.findings()[0];
    let said = "an idle timeout of 2.0 s there";
    assert!(found.summary.contains(said), "{}", found.summary);
}

#[test]
fn packets_of_no_connection_that_say_nothing_tell_of_no_service() {
    let told = |data: u64| {
        let mut window = quiet();
        let group = [
            ("direction", Value::Word("sent")),
            ("cause", Value::Word("no-connection")),
            ("service_port", Value::Unsigned(9500)),
        ];
        window.total("resets", 60, &group);
        for port in 41_000..41_060 {
            let reset = [
                ("cause", Value::Word("no-connection")),
                ("direction", Value::Word("sent")),
                ("saddr", Value::Ip([10, 0, 0, 1].into())),
                ("sport", Value::Unsigned(9500)),
                ("daddr", Value::Ip([10, 0, 0, 2].into())),
                ("dport", Value::Unsigned(port)),
                ("data", Value::nonzero(data)),
            ];
            window.event("resets", 1, &reset);
        }
        window.netns().before.sockets = Some(window.sockets().clone());
        window.findings().remove(0).summary
    };
    let gone = "is gone, and nobody listens there";
    assert!(told(400).contains(gone));
    let scanned = told(0);
    assert!(!scanned.contains(gone), "{scanned}");
    assert!(scanned.contains("belong to no connection"), "{scanned}");
}
