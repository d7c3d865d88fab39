//! `netprobe demo`: what it lists, what it refuses, and that nothing survives it.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use netprobe_tests::{program::binary, skip::is_root, wait_until};
use serde_json::Value;

use crate::{assert_complaint, complaint, netprobe};

#[test]
fn every_incident_is_listed_with_a_sentence_and_a_cure() {
    let output = netprobe(&["demo", "--list", "--json"]);
    assert!(output.status.success(), "{}", complaint(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    let listed: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect();
    assert!(listed.len() >= 20, "{text}");
    for one in &listed {
        for field in ["id", "about", "cure"] {
            assert!(one[field].as_str().is_some_and(|text| !text.is_empty()));
        }
    }
}

#[test]
fn an_unknown_incident_is_refused_with_the_next_step() {
    let output = netprobe(&["demo", "weather"]);
    assert_complaint(&output, 2, "netprobe demo --list");
}

#[test]
fn what_would_change_the_machine_is_refused_unless_it_is_disposable() {
    if !is_root() {
        return;
    }
    let output = netprobe(&["demo", "conntrack-table-full"]);
    assert_complaint(&output, 3, "--disposable");
}

/// Whether a process runs; those that have ended but were not asked for yet do not.
fn runs(pid: u64) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat"));
    status.is_ok_and(|status| !status.contains(") Z "))
}

#[test]
fn nothing_survives_a_demo_that_is_killed() {
    if !is_root() {
        return;
    }
    let mut demo = Command::new(binary())
        .args(["demo", "healthy", "--hold", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run netprobe demo");
    let mut line = String::new();
    let stdout = demo.stdout.take().expect("standard output is a pipe");
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("it says where it is");
    let said: Value = serde_json::from_str(&line).expect("it speaks JSON");
    let processes = said["processes"].as_array().expect("a list");
    let pids = processes
        .iter()
        .map(|one| one["pid"].as_u64().expect("a number"));
    let pids: Vec<u64> = pids.collect();
    assert!(pids.len() >= 3, "{said}");
    assert!(pids.iter().all(|pid| runs(*pid)), "{pids:?}");
    // SIGKILL: it can do nothing about it.
    demo.kill().expect("kill it");
    demo.wait().expect("wait for its end");
    wait_until("all of its processes had ended", || {
        !pids.iter().any(|pid| runs(*pid))
    });
}
