//! `netprobe diagnose` on every kernel of the matrix: it sees what happens, and finds nothing where nothing
//! does. The incidents are in `tests/scenarios`.

use std::{
    io::{Read, Write},
    thread::sleep,
    time::{Duration, Instant},
};

use netprobe_tests::{
    bpf::{RunTime, Statistics},
    netns::{Cable, Netns},
    process::Actor,
    ready::Diagnosing,
    skip,
    traffic::{Family, SERVER, accept_queue},
    wait_until,
};
use rustix::event::epoll;
use serde_json::Value;
use socket2::Socket;

const PORT: u16 = 7301;

/// What `netprobe diagnose` says of a namespace, in which `happens` once it watches.
fn diagnose(netns: &Netns, happens: impl FnOnce()) -> Value {
    let diagnosing = Diagnosing::start(netns, 2);
    happens();
    diagnosing.verdict()
}

#[test]
fn a_server_that_does_not_accept_is_found_with_its_listener() {
    if !skip::is_root() {
        return;
    }
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 4));
    let begin = |count: usize| {
        cable.client.run(|| {
            let begin = (0..count).map(|_| Family::V4.begin(PORT));
            begin.collect::<Vec<_>>()
        })
    };
    let mut clients = begin(5);
    wait_until("the queue was full", || accept_queue(&listener) == 5);
    let diagnosis = diagnose(&cable.server, || clients.extend(begin(10)));
    let finding = &diagnosis["findings"][0];
    assert_eq!(finding["id"], "application-not-accepting", "{diagnosis:#}");
    assert_eq!(finding["affected"][0]["port"], PORT, "{finding:#}");
    assert_eq!(finding["affected"][0]["pid"], std::process::id());
}

#[test]
fn who_was_left_in_a_full_queue_is_told_though_nobody_comes() {
    if !skip::is_root() {
        return;
    }
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 4));
    let clients = [(); 5].map(|()| cable.client.run(|| Family::V4.begin(PORT)));
    wait_until("the queue was full", || accept_queue(&listener) == 5);
    // Clients that wait for less are not left yet.
    sleep(Duration::from_secs(4));
    let diagnosis = diagnose(&cable.server, || {});
    drop(clients);
    let finding = &diagnosis["findings"][0];
    assert_eq!(finding["id"], "application-not-accepting", "{diagnosis:#}");
    assert_eq!(finding["severity"], "warning", "{finding:#}");
    let summary = finding["summary"].as_str().unwrap_or_default();
    assert!(summary.contains("whoever does is turned away"), "{summary}");
}

#[test]
fn requests_that_nobody_reads_are_told() {
    if !skip::is_root() {
        return;
    }
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 128));
    let pairs = [(); 4].map(|()| {
        let (mut near, far) = Family::V4.pair(&cable.client, &listener);
        near.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("ask");
        (near, far)
    });
    sleep(Duration::from_secs(2));
    let diagnosis = diagnose(&cable.server, || {});
    drop(pairs);
    let finding = &diagnosis["findings"][0];
    assert_eq!(finding["id"], "long-held-connections", "{diagnosis:#}");
    assert_eq!(finding["severity"], "warning", "{finding:#}");
    let unread = &finding["evidence"][0]["value"];
    assert_eq!(unread.as_f64(), Some(4.0), "{finding:#}");
    assert_eq!(finding["affected"][0]["pid"], std::process::id());
}

#[test]
fn a_server_that_stood_still_and_went_on_is_told() {
    if !skip::is_root() {
        return;
    }
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 128));
    let mut pairs = [(); 4].map(|()| Family::V4.pair(&cable.client, &listener));
    let diagnosing = Diagnosing::start(&cable.server, 8);
    for (near, _) in &mut pairs {
        near.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("ask");
    }
    sleep(Duration::from_millis(3500));
    for (near, far) in &mut pairs {
        far.read_exact(&mut [0; 18]).expect("a request");
        far.write_all(b"answer").expect("answer");
        near.read_exact(&mut [0; 6]).expect("an answer");
    }
    let diagnosis = diagnosing.verdict();
    drop(pairs);
    let finding = &diagnosis["findings"][0];
    assert_eq!(finding["id"], "long-held-connections", "{diagnosis:#}");
    assert_eq!(finding["severity"], "warning", "{finding:#}");
    let summary = finding["summary"].as_str().unwrap_or_default();
    assert!(summary.contains("stood still for at least"), "{summary}");
    assert_eq!(finding["affected"][0]["port"], PORT, "{finding:#}");
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

#[test]
fn its_price_includes_what_its_programs_take_in_the_kernel() {
    const WINDOW: Duration = Duration::from_secs(3);
    const SEEN: Duration = Duration::from_millis(2500);
    if !skip::is_root() {
        return;
    }
    let statistics = Statistics::enable();
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 128));
    let diagnosing = Diagnosing::start(&cable.server, 3);
    let began = Instant::now();
    while began.elapsed() < SEEN {
        drop(Family::V4.pair(&cable.client, &listener));
    }
    let in_kernel = RunTime::of(diagnosing.id()).ns;
    let diagnosis = diagnosing.verdict();
    drop(statistics);
    let cpu_percent = diagnosis["cost"]["cpu_percent"].as_f64();
    let told = WINDOW.mul_f64(cpu_percent.expect("a number") / 100.0);
    assert!(
        told >= Duration::from_nanos(in_kernel / 2),
        "{told:?}, and {in_kernel} ns of programs: {}",
        diagnosis["cost"]
    );
}

#[test]
fn where_cost_is_kept_low_connections_are_all_counted() {
    const SEEN: Duration = Duration::from_secs(3);
    const BUSY: f64 = 800.0;
    if !skip::is_root() {
        return;
    }
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 128));
    let diagnosing = Diagnosing::start_with(&cable.server, 4, &["--max-overhead", "0.0001"]);
    let began = Instant::now();
    let mut connections = 0;
    while began.elapsed() < SEEN {
        drop(Family::V4.pair(&cable.client, &listener));
        connections += 1;
    }
    let (diagnosis, complaints) = diagnosing.end();
    let findings = diagnosis["findings"].as_array().expect("a list");
    let finding = findings
        .iter()
        .find(|finding| finding["id"] == "short-lived-connections");
    let counted = finding.map(|finding| finding["evidence"][0]["value"].as_f64());
    assert_eq!(counted, Some(Some(f64::from(connections))), "{diagnosis:#}");
    // So few connections are worth no step.
    if f64::from(connections) < BUSY * SEEN.as_secs_f64() {
        skip::skip("this machine is too slow to keep netprobe busy");
        return;
    }
    assert!(complaints.contains("an eighth of the time"), "{complaints}");
}

/// Has a process wait for its own listener, and accept what comes for as long as it is there.
fn worker(name: &str, own: &Socket) -> Actor {
    Actor::start(name, |stage| {
        let polled = epoll::create(epoll::CreateFlags::CLOEXEC).expect("make an epoll");
        let readable = epoll::EventFlags::IN;
        epoll::add(&polled, own, epoll::EventData::new_u64(0), readable).expect("wait for it");
        stage.tell(b'!');
        loop {
            drop(own.accept());
        }
    })
}

#[test]
fn of_workers_with_a_listener_each_the_one_that_is_stopped_is_named() {
    if !skip::is_root() {
        return;
    }
    let cable = Cable::new();
    let listeners: [Socket; 2] = [(); 2].map(|()| {
        cable.server.run(|| {
            let socket = Family::V4.socket();
            socket.set_reuse_port(true).expect("share the port");
            let address = (SERVER.0, PORT).into();
            let address: std::net::SocketAddr = address;
            socket.bind(&address.into()).expect("bind the listener");
            socket.listen(64).expect("listen");
            socket
        })
    });
    let mut workers = [
        worker("worker-well", &listeners[0]),
        worker("worker-halted", &listeners[1]),
    ];
    for worker in &mut workers {
        worker.hear();
    }
    let halted = i32::try_from(workers[1].pid()).expect("a process id");
    let halted = rustix::process::Pid::from_raw(halted).expect("a process id");
    rustix::process::kill_process(halted, rustix::process::Signal::STOP).expect("stop it");
    let begin = || cable.client.run(|| Family::V4.begin(PORT));
    let mut clients: Vec<Socket> = (0..16).map(|_| begin()).collect();
    wait_until("some wait", || accept_queue(&listeners[1]) >= 4);
    let diagnosing = Diagnosing::start(&cable.server, 4);
    for _ in 0..12 {
        clients.push(begin());
        sleep(Duration::from_millis(250));
    }
    let diagnosis = diagnosing.verdict();
    let finding = &diagnosis["findings"][0];
    assert_eq!(finding["id"], "application-not-accepting", "{diagnosis:#}");
    assert_eq!(
        finding["affected"][0]["pid"],
        workers[1].pid(),
        "{finding:#}"
    );
    let fix = &finding["fixes"][0]["text"];
    let fix = fix.as_str().expect("a text");
    assert!(fix.contains("kill -CONT"), "{finding:#}");
}
