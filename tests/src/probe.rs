//! The netprobe under test: started, waited for, stopped, and its accounts checked.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    PATIENCE,
    accounts::{Account, Summary},
    event::{Event, column_of},
    netns::Netns,
    program::binary,
    ready::READY,
};

/// A running netprobe.
#[derive(Debug)]
pub struct Probe {
    child: Child,
    name: String,
    events: mpsc::Receiver<String>,
    reader: Option<JoinHandle<Tally>>,
    complaints: Option<JoinHandle<String>>,
    said: mpsc::Receiver<String>,
    seen: Vec<Event>,
    tally: Tally,
    last: Option<Summary>,
}

/// Lines by kind.
type Tally = BTreeMap<String, u64>;

/// Whether events are kept, or only counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    Keep,
    Count,
}

/// What a netprobe said in its life.
#[derive(Clone, Debug)]
pub struct Run {
    /// Every event, in the order of arrival.
    pub events: Vec<Event>,
    /// The last line.
    pub summary: Summary,
    /// All of standard error.
    pub complaints: String,
}

impl Probe {
    /// Streams `probe`, of one namespace.
    #[track_caller]
    pub fn of(netns: &Netns, probe: &str) -> Self {
        Self::start(&[probe, "--json", "--netns", &netns.inum().to_string()])
    }

    /// Counts `probe`, of one namespace.
    #[track_caller]
    pub fn counting(netns: &Netns, probe: &str) -> Self {
        let netns = netns.inum().to_string();
        Self::start(&[probe, "--json", "--count", "--netns", &netns])
    }

    /// Starts with these arguments, and returns once everything is attached.
    #[track_caller]
    pub fn start(arguments: &[&str]) -> Self {
        Self::launch(arguments, Memory::Keep)
    }

    /// Like [`Probe::start`] for a flood: events are counted but not kept.
    #[track_caller]
    pub fn start_forgetful(arguments: &[&str]) -> Self {
        Self::launch(arguments, Memory::Count)
    }

    #[track_caller]
    fn launch(arguments: &[&str], memory: Memory) -> Self {
        let is_stream = memory == Memory::Keep || arguments.contains(&"--json");
        let says_cost = arguments.contains(&"--max-overhead");
        let free: &[&str] = if is_stream && arguments.first() != Some(&"flame") && !says_cost {
            // Tests ask for everything, however slow the machine.
            &["--max-overhead", "100%"]
        } else {
            &[]
        };
        let mut child = Command::new(binary())
            .args(arguments)
            .args(free)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|why| panic!("run {}: {why}", binary().display()));
        let stdout = child.stdout.take().expect("standard output is a pipe");
        let (reader, events) = read_lines(stdout, memory);
        let stderr = child.stderr.take().expect("standard error is a pipe");
        let (complaints, said) = read_complaints(stderr);
        let mut probe = Self {
            child,
            name: arguments
                .first()
                .map_or_else(String::new, |&name| name.into()),
            events,
            reader: Some(reader),
            complaints: Some(complaints),
            said,
            seen: Vec::new(),
            tally: Tally::new(),
            last: None,
        };
        if !probe.has_said(READY) {
            let (status, complaints) = probe.end(Signal::KILL);
            panic!("netprobe {arguments:?} did not get ready ({status}): {complaints}");
        }
        probe
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has said a line with `words` on standard error; false if it never did.
    pub fn has_said(&mut self, words: &str) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.said.recv_timeout(left) {
                Ok(line) if line.contains(words) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    /// Waits until `is_enough` of the events so far.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, mut is_enough: impl FnMut(&[Event]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_enough(&self.seen) {
            let left = deadline.saturating_duration_since(Instant::now());
            // Events that keep coming are no reason to wait on.
            let heard = (!left.is_zero()).then(|| self.events.recv_timeout(left));
            match heard {
                Some(Ok(line)) => self.take(&line),
                _ => panic!("waited in vain for {what}: {:#?}", self.seen),
            }
        }
    }

    /// Ends it with SIGINT and checks its accounts.
    #[track_caller]
    pub fn stop(mut self) -> Run {
        let (status, complaints) = self.end(Signal::INT);
        self.account_for(status, complaints)
    }

    /// Waits until it ends by itself (`--duration`) and checks its accounts.
    #[track_caller]
    pub fn finish(mut self) -> Run {
        let (status, complaints) = self.wait();
        self.account_for(status, complaints)
    }

    /// Ends a command that prints no summary (`flame`) with SIGINT.
    #[track_caller]
    pub fn stop_without_summary(mut self) {
        let (status, complaints) = self.end(Signal::INT);
        assert!(
            status.success(),
            "netprobe {}: {status}: {complaints}",
            self.name
        );
    }

    /// Ends it with SIGKILL; its last words do not count.
    pub fn kill(mut self) {
        self.end(Signal::KILL);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id has 31 bits");
        let pid = Pid::from_raw(pid).expect("a process id is positive");
        // It may have ended by itself; its status tells.
        kill_process(pid, signal).ok();
    }

    fn end(&mut self, signal: Signal) -> (ExitStatus, String) {
        self.signal(signal);
        self.wait()
    }

    fn wait(&mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        let mut is_late = false;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait for netprobe") {
                break status;
            }
            if Instant::now() > deadline && !is_late {
                self.child.kill().expect("kill netprobe");
                is_late = true;
            }
            // Drains the pipe, so that it is not blocked by us.
            while let Ok(line) = self.events.recv_timeout(Duration::from_millis(5)) {
                self.take(&line);
            }
        };
        assert!(!is_late, "netprobe {} did not end", self.name);
        if let Some(reader) = self.reader.take() {
            self.tally = reader.join().expect("read standard output");
        }
        while let Ok(line) = self.events.try_recv() {
            self.take(&line);
        }
        let complaints = self.complaints.take().map(JoinHandle::join);
        let complaints = complaints.and_then(Result::ok).unwrap_or_default();
        (status, complaints)
    }

    fn take(&mut self, line: &str) {
        let value: Value =
            serde_json::from_str(line).unwrap_or_else(|why| panic!("not JSON ({why}): {line}"));
        assert!(self.last.is_none(), "after the summary: {line}");
        crate::schema::assert_valid(&value);
        if value["kind"] == "summary" {
            let summary = serde_json::from_value(value);
            self.last = Some(summary.unwrap_or_else(|why| panic!("summary: {why}: {line}")));
            return;
        }
        match value {
            Value::Object(event) => self.seen.push(event),
            _ => panic!("not an object: {line}"),
        }
    }

    #[track_caller]
    fn account_for(&mut self, status: ExitStatus, complaints: String) -> Run {
        assert!(
            status.success(),
            "netprobe {}: {status}: {complaints}",
            self.name
        );
        let summary = self.last.take();
        let summary = summary.unwrap_or_else(|| panic!("no summary: {complaints}"));
        assert_eq!(summary.schema, "netprobe.summary/1");
        for probe in &summary.probes {
            probe.assert_balanced();
            let lines = self.tally.get(&probe.name).copied().unwrap_or(0);
            assert_eq!(lines, probe.shown, "lines of {}", probe.name);
        }
        Run {
            events: std::mem::take(&mut self.seen),
            summary,
            complaints,
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Run {
    /// The account of one probe.
    #[track_caller]
    pub fn account(&self, probe: &str) -> &Account {
        let found = self
            .summary
            .probes
            .iter()
            .find(|account| account.name == probe);
        found.unwrap_or_else(|| panic!("the summary does not account for {probe}"))
    }

    /// The events, of which none was lost.
    #[track_caller]
    pub fn all(&self) -> &[Event] {
        let mut probes = self.summary.probes.iter();
        // The kernel may skip a program that interrupts itself; that is said, and shows in totals
        // if it mattered.
        let is_whole =
            probes.all(|probe| probe.state == "attached" && probe.missed.unwrap_or(0) == 0);
        assert_eq!(self.summary.complete, is_whole, "{:#?}", self.summary);
        for Account { name, counters, .. } in &self.summary.probes {
            assert_eq!(counters.reserve_failed, 0, "{name}: {counters:?}");
            assert_eq!(counters.sampled_out, 0, "{name}: {counters:?}");
        }
        &self.events
    }

    /// Those whose `column` is `value`, of which none was lost.
    #[track_caller]
    pub fn with(&self, column: &str, value: impl Into<Value>) -> Vec<&Event> {
        let value = value.into();
        let is_wanted = |event: &&Event| *column_of(event, column) == value;
        self.all().iter().filter(is_wanted).collect()
    }

    /// The run with only those of its events, of which none was lost, that have this port at either end.
    #[track_caller]
    #[must_use]
    pub fn at_port(&self, port: u16) -> Self {
        let has_port = |event: &&Event| {
            let mut ends = ["sport", "dport"].iter();
            ends.any(|end| *column_of(event, end) == port)
        };
        let events = self.all().iter().filter(has_port).cloned().collect();
        Self {
            events,
            ..self.clone()
        }
    }

    /// How many have `value` in `column`.
    #[track_caller]
    pub fn count(&self, column: &str, value: impl Into<Value>) -> u64 {
        u64::try_from(self.with(column, value).len()).expect("a count has 64 bits")
    }
}

/// What `netprobe lifetimes --open` lists of one namespace.
#[track_caller]
pub fn open_connections(netns: &Netns, arguments: &[&str]) -> Vec<Event> {
    let output = Command::new(binary())
        .args(["lifetimes", "--open", "--json", "--netns"])
        .arg(netns.inum().to_string())
        .args(arguments)
        .output()
        .expect("run netprobe");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    let lines = output.stdout.split(|byte| *byte == b'\n');
    let lines = lines.filter(|line| !line.is_empty());
    let read = |line| serde_json::from_slice(line).expect("an object per line");
    let lines = lines.map(read).collect::<Vec<Value>>();
    let (summary, events) = lines.split_last().expect("a summary last");
    assert_eq!(summary["complete"], true, "{summary}");
    let event = |line: &Value| Event::deserialize(line).expect("an event");
    events.iter().map(event).collect()
}

/// Standard output is read at once, so that a slow test is not a slow reader.
fn read_lines(stdout: ChildStdout, memory: Memory) -> (JoinHandle<Tally>, mpsc::Receiver<String>) {
    #[derive(Deserialize)]
    struct Head {
        kind: String,
    }
    let (sender, receiver) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut tally = Tally::new();
        let mut lines = BufReader::with_capacity(1 << 16, stdout);
        let mut line = String::new();
        while lines.read_line(&mut line).expect("standard output is text") > 0 {
            let kind =
                serde_json::from_str(&line).map_or_else(|_| String::new(), |head: Head| head.kind);
            let is_kept = memory == Memory::Keep || kind == "summary" || kind.is_empty();
            *tally.entry(kind).or_default() += 1;
            if is_kept && sender.send(std::mem::take(&mut line)).is_err() {
                break;
            }
            line.clear();
        }
        tally
    });
    (reader, receiver)
}

/// Standard error, line by line and as a whole.
fn read_complaints(stderr: ChildStderr) -> (JoinHandle<String>, mpsc::Receiver<String>) {
    let (sender, lines) = mpsc::channel();
    let complaints = thread::spawn(move || {
        let mut said = String::new();
        let mut stderr = BufReader::new(stderr);
        let mut begin = 0;
        while stderr.read_line(&mut said).is_ok_and(|length| length > 0) {
            // The test may no longer listen.
            sender.send(said[begin..].to_owned()).ok();
            begin = said.len();
        }
        said
    });
    (complaints, lines)
}
