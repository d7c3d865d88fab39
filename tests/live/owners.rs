//! Whose a socket is, when who opened it has gone.

use std::{io::Write, process::Command};

use netprobe_tests::{
    event::{number, text},
    netns::Cable,
    probe::Probe,
    process::Actor,
    skip::has_hooks,
    traffic::Family,
};
use rustix::{
    io::{FdFlags, fcntl_setfd},
    process::{Pid, Signal, kill_process},
};

const PORT: u16 = 7251;

/// Opens a connection that nothing comes back on once `cut` is cued, and then sends.
fn sender(cable: &Cable, name: &str) -> Actor {
    Actor::start(name, |stage| {
        cable.client.enter();
        let mut connection = Family::V4.connect(PORT).expect("connect");
        stage.tell(b'c');
        stage.await_byte();
        connection.write_all(&[1; 100]).expect("send");
        // Kept open to the end of the process.
        std::mem::forget(connection);
    })
}

#[test]
fn the_owner_is_known_when_its_process_has_gone() {
    if !has_hooks("retransmits", &["who opens"]) {
        return;
    }
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 8));
    let mut before = sender(&cable, "np-before");
    before.hear();
    let mut probe = Probe::of(&cable.client, "retransmits");
    let mut after = sender(&cable, "np-after");
    after.hear();
    let accepted = [(); 2].map(|()| listener.accept().expect("accept"));
    let blackhole = cable.server.firewall("input", &format!("tcp dport {PORT}"));
    let pids = [before, after].map(|mut sender| {
        sender.cue();
        sender.hear();
        // Killed here: its socket is orphaned, and goes on sending.
        sender.pid()
    });
    probe.wait_for("both sent again", |events| {
        pids.iter().all(|pid| {
            let mine = events.iter().filter(|event| event["pid"] == *pid);
            mine.filter(|event| event["state"] == "FIN-WAIT-1").count() > 1
        })
    });
    drop((accepted, listener));
    blackhole.open();
    let run = probe.stop();
    for event in run.all() {
        assert!(pids.contains(&number(event, "pid")), "{event:?}");
        assert!(
            ["np-before", "np-after"].contains(&text(event, "comm")),
            "{event:?}"
        );
    }
}

/// As a daemon does that connects, forks and ends.
#[test]
#[expect(clippy::zombie_processes, reason = "it is to outlive who starts it")]
fn a_socket_that_was_handed_on_is_that_of_who_has_it() {
    if !has_hooks("retransmits", &["who opens"]) {
        return;
    }
    let cable = Cable::new();
    let listener = cable.server.run(|| Family::V4.listen(PORT, 8));
    let mut probe = Probe::of(&cable.client, "retransmits");
    let mut parent = Actor::start("np-parent", |stage| {
        cable.client.enter();
        let mut connection = Family::V4.connect(PORT).expect("connect");
        fcntl_setfd(&connection, FdFlags::empty()).expect("let a child have it");
        let child = Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("start sleep(1)");
        for byte in child.id().to_ne_bytes() {
            stage.tell(byte);
        }
        stage.await_byte();
        connection.write_all(&[1; 100]).expect("send");
    });
    let child = u32::from_ne_bytes([(); 4].map(|()| parent.hear()));
    let accepted = listener.accept().expect("accept");
    let blackhole = cable.server.firewall("input", &format!("tcp dport {PORT}"));
    parent.cue();
    parent.hear();
    drop(parent);
    probe.wait_for("sent again for the child", |events| {
        events
            .iter()
            .any(|event| event["pid"] == child && event["comm"] == "sleep")
    });
    let child = Pid::from_raw(child.cast_signed()).expect("a process id is positive");
    kill_process(child, Signal::KILL).expect("it is there");
    drop(accepted);
    blackhole.open();
    probe.stop();
}
