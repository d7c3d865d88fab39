//! The command line: help, exit codes, complaints. Needs no root but for what says so.
//!
//! `NETPROBE_BIN` names the program (default: the workspace's, built for release).

mod complaints;
mod demo;
mod explain;
mod help;
mod readme;
mod schema;
mod symbol_worker;

use std::process::{Command, Output};

use netprobe_tests::program::binary;

/// Runs netprobe to its end.
fn netprobe(arguments: &[&str]) -> Output {
    Command::new(binary())
        .args(arguments)
        .output()
        .expect("run netprobe")
}

/// Standard error, as text.
fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// It has ended with `code` and one line of complaint that has `words`.
#[track_caller]
fn assert_complaint(output: &Output, code: i32, words: &str) {
    let complaint = complaint(output);
    assert_eq!(output.status.code(), Some(code), "{complaint}");
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    assert!(complaint.starts_with("netprobe: "), "{complaint}");
    assert!(complaint.contains(words), "{complaint}");
}
