//! Incidents that could be mistaken for each other, and load that is none, made by hand.

use std::{thread::sleep, time::Duration};

use netprobe_tests::{
    netns::{Cable, Netns},
    ready::Diagnosing,
    skip,
    traffic::{Family, abort, is_connected},
    wait_until,
};
use serde_json::Value;
use socket2::Socket;

const PORT: u16 = 7301;
const STEP: Duration = Duration::from_millis(20);

/// What `netprobe diagnose` says of a namespace, while `step` is done again and again.
fn diagnose(netns: &Netns, mut step: impl FnMut()) -> Value {
    let mut diagnosing = Diagnosing::start(netns, 3);
    while !diagnosing.is_over() {
        step();
        sleep(STEP);
    }
    diagnosing.verdict()
}

/// Findings above info, by id.
fn ids(diagnosis: &Value) -> Vec<&str> {
    let findings = diagnosis["findings"].as_array().expect("a list");
    let serious = findings
        .iter()
        .filter(|finding| finding["severity"] != "info");
    serious
        .map(|finding| finding["id"].as_str().expect("an id"))
        .collect()
}

/// The first finding, which must have this id and hit somebody at this port.
#[track_caller]
fn first<'a>(diagnosis: &'a Value, id: &str, port: u16) -> &'a Value {
    let finding = &diagnosis["findings"][0];
    assert_eq!(finding["id"], id, "{diagnosis:#}");
    let hits = finding["affected"].as_array().expect("a list");
    assert!(hits.iter().any(|hit| hit["port"] == port), "{finding:#}");
    let fixes = finding["fixes"].as_array().expect("a list");
    assert!(!fixes.is_empty(), "{finding:#}");
    finding
}

fn begin(cable: &Cable, count: usize) -> Vec<Socket> {
    cable
        .client
        .run(|| (0..count).map(|_| Family::V4.begin(PORT)).collect())
}

/// Accepts all that wait.
fn accept_all(listener: &Socket) -> Vec<Socket> {
    std::iter::from_fn(|| listener.accept().ok())
        .map(|(accepted, _)| accepted)
        .collect()
}

fn listen(cable: &Cable, backlog: i32) -> Socket {
    let listener = cable.server.run(|| Family::V4.listen(PORT, backlog));
    listener.set_nonblocking(true).expect("do not block");
    listener
}

#[test]
fn exhausted_ports_are_told_from_refused_connections() {
    if !skip::is_root() {
        return;
    }
    let cable = Cable::new();
    cable
        .client
        .sysctl("net.ipv4.ip_local_port_range", "20000 20019");
    cable.client.sysctl("net.ipv4.tcp_tw_reuse", 0);
    // Nobody listens: refused, and the ports are free again.
    let diagnosis = diagnose(&cable.client, || {
        cable
            .client
            .run(|| Family::V4.connect(PORT).expect_err("nobody listens"));
    });
    let refused = ids(&diagnosis);
    assert!(
        !refused.contains(&"ephemeral-ports-exhausted"),
        "{diagnosis:#}"
    );
    let listener = listen(&cable, 128);
    let diagnosis = diagnose(&cable.client, || {
        // Clients close first, so the port waits on their side.
        drop(cable.client.run(|| Family::V4.connect(PORT)));
        drop(accept_all(&listener));
    });
    let finding = first(&diagnosis, "ephemeral-ports-exhausted", PORT);
    assert_eq!(finding["affected"][0]["netns"], cable.client.inum());
    assert!(finding["fixes"].to_string().contains("ip_local_port_range"));
}

/// The server forgets its end of a connection without a word, as a device on the way would.
fn forget(cable: &Cable, far: Socket) {
    let _rule = cable.server.firewall("output", "tcp flags & rst == rst");
    abort(far);
}

#[test]
fn resets_after_silence_are_told_from_resets_in_use() {
    if !skip::is_root() {
        return;
    }
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 128));
    let mut quiet: Vec<Socket> = (0..6)
        .map(|_| {
            let (near, far) = Family::V4.pair(&cable.client, &listener);
            forget(&cable, far);
            near
        })
        .collect();
    sleep(Duration::from_millis(1500));
    let diagnosis = diagnose(&cable.client, || {
        if let Some(near) = quiet.pop() {
            near.send(b"still there?").expect("there is room to send");
        }
    });
    let finding = first(&diagnosis, "idle-reset", PORT);
    assert!(finding["fixes"].to_string().contains("tcp_keepalive_time"));
    let diagnosis = diagnose(&cable.server, || {
        let (near, far) = Family::V4.pair(&cable.client, &listener);
        near.send(b"never read").expect("there is room to send");
        wait_until("it has come", || {
            let mut byte = [std::mem::MaybeUninit::uninit()];
            far.peek(&mut byte).is_ok_and(|length| length > 0)
        });
        drop(far);
    });
    first(&diagnosis, "resets", PORT);
    assert!(!ids(&diagnosis).contains(&"idle-reset"), "{diagnosis:#}");
}

#[test]
fn requests_that_cross_the_end_are_told_from_farewells() {
    if !skip::is_root() {
        return;
    }
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 128));
    // What the client says just when the service has ended a connection that was idle.
    let told = |last_words: &[u8]| {
        let mut idle: Vec<(Socket, Socket)> = (0..20)
            .map(|_| {
                let (near, far) = Family::V4.pair(&cable.client, &listener);
                near.send(b"request").expect("there is room to send");
                wait_until("it is acknowledged", || {
                    let mut byte = [std::mem::MaybeUninit::uninit(); 7];
                    far.recv(&mut byte).is_ok_and(|length| length > 0)
                });
                (near, far)
            })
            .collect();
        sleep(Duration::from_secs(1));
        diagnose(&cable.client, || {
            if let Some((near, far)) = idle.pop() {
                drop(far);
                near.send(last_words).expect("there is room to send");
            }
        })
    };
    let diagnosis = told(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n");
    let finding = first(&diagnosis, "resets", PORT);
    let summary = finding["summary"].as_str().expect("a text");
    for words in ["closed them, and was reset", "idle"] {
        assert!(summary.contains(words), "{summary}");
    }
    // close_notify of TLS 1.3.
    let diagnosis = told(&[23; 24]);
    assert_eq!(ids(&diagnosis), Vec::<&str>::new(), "{diagnosis:#}");
}

#[test]
fn load_within_limits_has_no_finding_above_info() {
    if !skip::is_root() {
        return;
    }
    let cable = Cable::new();
    let listener = listen(&cable, 128);
    let kept: Vec<Socket> = begin(&cable, 20);
    wait_until("all were connected", || kept.iter().all(is_connected));
    let servers = accept_all(&listener);
    for netns in [&cable.server, &cable.client] {
        let diagnosis = diagnose(netns, || {
            for client in &kept {
                client.send(b"request").expect("there is room to send");
            }
            let mut buffer = [std::mem::MaybeUninit::uninit(); 64];
            for server in &servers {
                if server.recv(&mut buffer).is_ok() {
                    server.send(b"answer").expect("there is room to send");
                }
            }
            for client in &kept {
                client.recv(&mut buffer).ok();
            }
            // And as many that are opened for a request.
            drop(begin(&cable, 4));
            drop(accept_all(&listener));
        });
        assert_eq!(ids(&diagnosis), Vec::<&str>::new(), "{diagnosis:#}");
    }
}
