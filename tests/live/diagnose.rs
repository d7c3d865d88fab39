//! `netprobe diagnose` on every kernel of the matrix: it sees what happens, and finds nothing where nothing
//! does. The incidents are in `tests/scenarios`.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
};

use netprobe_tests::{
    netns::{Cable, Netns},
    probe::binary,
    skip,
    traffic::{Family, accept_queue},
    wait_until,
};
use serde_json::Value;

const PORT: u16 = 7301;

/// What `netprobe diagnose` says of a namespace, in which `happens` once it watches.
fn diagnose(netns: &Netns, happens: impl FnOnce()) -> Value {
    let mut child = Command::new(binary())
        .args(["diagnose", "--json", "--duration", "2s", "--netns"])
        .arg(netns.inum().to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run netprobe");
    let stderr = child.stderr.take().expect("standard error is a pipe");
    let mut lines = BufReader::new(stderr).lines();
    let ready = lines.any(|line| line.is_ok_and(|line| line.starts_with("netprobe: ready")));
    assert!(ready, "netprobe has ended before it was ready");
    happens();
    let mut json = String::new();
    let mut stdout = child.stdout.take().expect("standard output is a pipe");
    stdout
        .read_to_string(&mut json)
        .expect("read the diagnosis");
    child.wait().expect("wait for its end");
    serde_json::from_str(&json).expect("the diagnosis is JSON")
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
