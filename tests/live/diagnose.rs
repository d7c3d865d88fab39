//! Incidents with real traffic: the first finding is the right one, with whom it hits, and its
//! neighbours are told apart.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use netprobe_tests::{
    netns::{Cable, Netns},
    probe::binary,
    process::Actor,
    skip,
    traffic::{Family, abort, accept_queue, is_connected},
    wait_until,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde_json::Value;
use socket2::Socket;

const PORT: u16 = 7301;
const STEP: Duration = Duration::from_millis(20);

/// What `netprobe diagnose` says of a namespace, while `step` is done again and again.
fn diagnose(netns: &Netns, mut step: impl FnMut()) -> Value {
    let mut child = Command::new(binary())
        .args(["diagnose", "--json", "--duration", "3s", "--netns"])
        .arg(netns.inum().to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run netprobe");
    let stderr = child.stderr.take().expect("standard error is a pipe");
    let mut lines = BufReader::new(stderr).lines();
    let ready = lines.any(|line| line.is_ok_and(|line| line.starts_with("netprobe: ready")));
    assert!(ready, "netprobe has ended before it was ready");
    while child
        .try_wait()
        .expect("netprobe can be waited for")
        .is_none()
    {
        step();
        sleep(STEP);
    }
    let mut json = String::new();
    let mut stdout = child.stdout.take().expect("standard output is a pipe");
    stdout
        .read_to_string(&mut json)
        .expect("read the diagnosis");
    serde_json::from_str(&json).expect("the diagnosis is JSON")
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
fn a_queue_too_short_for_bursts_is_told_from_a_server_that_does_not_accept() {
    if !skip::is_root() {
        return;
    }
    let cable = Cable::new();
    let listener = listen(&cable, 4);
    let diagnosis = diagnose(&cable.server, || {
        let burst = begin(&cable, 12);
        sleep(STEP);
        drop(accept_all(&listener));
        burst.into_iter().for_each(abort);
    });
    let finding = first(&diagnosis, "accept-queue-overflow", PORT);
    let backlog = finding["fixes"]
        .as_array()
        .expect("a list")
        .iter()
        .find_map(|fix| fix["set"]["listen_backlog"].as_str());
    let backlog: i32 = backlog.expect("a backlog").parse().expect("a number");
    drop(listener);
    // The fix helps.
    let listener = listen(&cable, backlog);
    let diagnosis = diagnose(&cable.server, || {
        let burst = begin(&cable, 12);
        sleep(STEP);
        drop(accept_all(&listener));
        burst.into_iter().for_each(abort);
    });
    assert!(
        !ids(&diagnosis).contains(&"accept-queue-overflow"),
        "{diagnosis:#}"
    );
}

#[test]
fn a_server_that_does_not_accept_is_found_and_no_longer_queue_is_proposed() {
    if !skip::is_root() {
        return;
    }
    let cable = Cable::new();
    let listener = listen(&cable, 4);
    let mut clients = begin(&cable, 5);
    wait_until("the queue was full", || accept_queue(&listener) == 5);
    let diagnosis = diagnose(&cable.server, || clients.extend(begin(&cable, 1)));
    let finding = first(&diagnosis, "application-not-accepting", PORT);
    assert_eq!(finding["affected"][0]["pid"], std::process::id());
    assert!(
        !finding["fixes"].to_string().contains("listen_backlog"),
        "{finding:#}"
    );
    assert!(
        !ids(&diagnosis).contains(&"accept-queue-overflow"),
        "{diagnosis:#}"
    );
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

#[test]
fn a_rule_that_drops_syns_is_found_with_the_listener() {
    if !skip::is_root() {
        return;
    }
    let cable = Cable::new();
    let _listener = listen(&cable, 128);
    let _rule = cable.server.firewall("input", &format!("tcp dport {PORT}"));
    let mut clients = Vec::new();
    let diagnosis = diagnose(&cable.server, || clients.extend(begin(&cable, 1)));
    first(&diagnosis, "firewall-drops", PORT);
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
fn a_server_without_descriptors_comes_before_its_full_queue() {
    if !skip::is_root() {
        return;
    }
    let cable = Cable::new();
    let mut server = Actor::start("np-few-fds", |stage| {
        let limit = Rlimit {
            current: Some(64),
            maximum: Some(64),
        };
        setrlimit(Resource::Nofile, limit).expect("lower the limit");
        cable.server.enter();
        let listener = Family::V4.listen(PORT, 8);
        let mut kept = Vec::new();
        stage.tell(b'l');
        // It keeps every connection, until it cannot.
        while let Ok((accepted, _)) = listener.accept() {
            kept.push(accepted);
        }
        stage.tell(b'f');
        stage.await_byte();
    });
    server.hear();
    let mut clients = begin(&cable, 80);
    assert_eq!(server.hear(), b'f');
    let diagnosis = diagnose(&cable.server, || clients.extend(begin(&cable, 1)));
    let finding = first(&diagnosis, "fd-exhaustion", PORT);
    assert_eq!(finding["affected"][0]["comm"], "np-few-fds");
    assert!(finding["fixes"].to_string().contains("LimitNOFILE"));
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

#[test]
fn an_idle_namespace_has_no_finding() {
    if !skip::is_root() {
        return;
    }
    let cable = Cable::new();
    let diagnosis = diagnose(&cable.server, || {});
    assert_eq!(
        diagnosis["findings"],
        Value::Array(Vec::new()),
        "{diagnosis:#}"
    );
    assert_eq!(diagnosis["checked"].as_array().map(Vec::len), Some(26));
}
