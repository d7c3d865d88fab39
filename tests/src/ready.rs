//! Waiting until a netprobe watches.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStderr, Command, Stdio},
    thread,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{netns::Netns, program::binary};

/// Begin of the line on standard error that says that everything is attached.
pub const READY: &str = "netprobe: ready";

/// Waits for that line of a netprobe whose standard error is a pipe, and returns the rest of it.
#[track_caller]
pub fn await_ready(child: &mut Child) -> BufReader<ChildStderr> {
    let stderr = child.stderr.take().expect("standard error is a pipe");
    let mut complaints = BufReader::new(stderr);
    let mut line = String::new();
    while !line.starts_with(READY) {
        line.clear();
        let length = complaints.read_line(&mut line).expect("it is text");
        assert!(length > 0, "netprobe ended before it was ready");
    }
    complaints
}

/// Starts a netprobe that watches until it is ended, and to whose words nobody listens.
#[track_caller]
pub fn start_unheard(arguments: &[&str]) -> Child {
    let mut child = Command::new(binary())
        .args(arguments)
        .args(["--duration", "10m"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start netprobe");
    let complaints = await_ready(&mut child);
    // What it says must find a reader.
    thread::spawn(move || complaints.lines().for_each(drop));
    child
}

/// Ends it, as Ctrl-C would.
#[track_caller]
pub fn end(mut child: Child) {
    kill_process(Pid::from_child(&child), Signal::INT).expect("it is still there");
    child.wait().expect("it ends");
}

/// A `netprobe diagnose` that watches.
#[derive(Debug)]
pub struct Diagnosing {
    child: Child,
    complaints: BufReader<ChildStderr>,
}

impl Diagnosing {
    /// Starts to watch a namespace for so many seconds.
    #[track_caller]
    pub fn start(netns: &Netns, seconds: u32) -> Self {
        Self::start_with(netns, seconds, &[])
    }

    /// As [`Diagnosing::start`], with more arguments.
    #[track_caller]
    pub fn start_with(netns: &Netns, seconds: u32, arguments: &[&str]) -> Self {
        let mut child = Command::new(binary())
            .args(["diagnose", "--json", "--duration"])
            .arg(format!("{seconds}s"))
            .args(["--netns", &netns.inum().to_string()])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run netprobe");
        let complaints = await_ready(&mut child);
        Self { child, complaints }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    #[track_caller]
    pub fn is_over(&mut self) -> bool {
        let status = self.child.try_wait().expect("it can be waited for");
        status.is_some()
    }

    /// Waits for what it says.
    #[track_caller]
    pub fn verdict(self) -> Value {
        self.end().0
    }

    /// Waits for what it says, and what it complained of.
    #[track_caller]
    pub fn end(mut self) -> (Value, String) {
        let mut complaints = String::new();
        let read = self.complaints.read_to_string(&mut complaints);
        read.expect("it is text");
        let output = self.child.wait_with_output().expect("wait for its end");
        let diagnosis = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|why| panic!("the diagnosis is no JSON: {why}\n{complaints}"));
        (diagnosis, complaints)
    }
}
