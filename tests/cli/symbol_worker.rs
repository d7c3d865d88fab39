//! The process that looks up names of functions for a run.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use netprobe_tests::program::binary;
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn it_is_there_as_long_as_it_is_asked_whatever_signals_come() {
    let mut child = Command::new(binary())
        .arg("symbol-worker")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run netprobe");
    let mut questions = child.stdin.take().expect("a pipe");
    let mut answers = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut ask = || {
        // There is no such process: it has no names.
        questions
            .write_all(b"resolve\t0\n")
            .expect("it takes questions");
        answers.next().expect("it answers").expect("in text")
    };
    assert_eq!(ask(), "done");
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        kill_process(Pid::from_child(&child), signal).expect("it is there");
    }
    assert_eq!(ask(), "done");
    drop(questions);
    assert!(child.wait().expect("it ends").success());
}
