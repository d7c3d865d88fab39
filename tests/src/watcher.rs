//! A program that watches events while it is measured: netprobe in its modes, or bpftrace.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

/// A way to watch.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name in tables.
    pub name: &'static str,
    program: Program,
    arguments: &'static [&'static str],
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Netprobe,
    Bpftrace,
}

/// What a watcher sends to user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Totals at the end.
    Totals,
    /// Every event.
    Events,
}

/// netprobe with these arguments.
pub const fn netprobe(
    name: &'static str,
    arguments: &'static [&'static str],
    output: Output,
) -> Case {
    Case {
        name,
        program: Program::Netprobe,
        arguments,
        output,
    }
}

/// bpftrace with this script.
pub const fn bpftrace(name: &'static str, script: &'static [&'static str], output: Output) -> Case {
    Case {
        name,
        program: Program::Bpftrace,
        arguments: script,
        output,
    }
}

impl Case {
    /// Whether it can be measured on this machine.
    pub fn is_installed(&self) -> bool {
        self.program == Program::Netprobe
            || Command::new("bpftrace")
                .arg("--version")
                .stdout(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
    }

    fn command(&self) -> Command {
        /// bpftrace reads the formats of tracepoints there, and not every machine has it.
        const TRACEFS: &str = "mount -t tracefs none /sys/kernel/tracing; exec bpftrace -e \"$0\"";
        match self.program {
            Program::Netprobe => {
                let mut command = Command::new(crate::program::binary());
                command.args(self.arguments);
                command
            }
            Program::Bpftrace => {
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", TRACEFS]);
                command.args(self.arguments);
                command
            }
        }
    }
}

/// One at work.
#[derive(Debug)]
pub struct Watcher {
    child: Child,
    case: Case,
    said: JoinHandle<String>,
}

impl Watcher {
    /// Starts it and waits until it is attached.
    #[track_caller]
    pub fn start(case: &Case) -> Self {
        let mut command = case.command();
        command.stdin(Stdio::null());
        let is_own = case.program == Program::Netprobe;
        let (own, other) = (Stdio::piped(), Stdio::null());
        let (stdout, stderr) = if is_own { (other, own) } else { (own, other) };
        let mut child = command
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .expect("start");
        let said: Box<dyn Read + Send> = if is_own {
            Box::new(child.stderr.take().expect("standard error is a pipe"))
        } else {
            Box::new(child.stdout.take().expect("standard output is a pipe"))
        };
        let mut said = BufReader::new(said);
        let mut line = String::new();
        let ready = if is_own { "ready" } else { "Attaching" };
        while !line.contains(ready) {
            line.clear();
            let length = said.read_line(&mut line).expect("it speaks");
            assert!(length > 0, "{} ended", case.name);
        }
        let said = thread::spawn(move || last_lines(said));
        if !is_own {
            // It says so before it has done so.
            thread::sleep(Duration::from_millis(500));
        }
        Self {
            child,
            case: *case,
            said,
        }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that it has used.
    pub fn cpu_time(&self) -> Duration {
        const TICK: Duration = Duration::from_millis(10);
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap_or_default();
        let (_, fields) = stat.rsplit_once(") ").unwrap_or_default();
        let times = fields.split(' ').skip(11).take(2);
        let ticks: u32 = times.filter_map(|ticks| ticks.parse::<u32>().ok()).sum();
        TICK * ticks
    }

    /// Ends it; says how many events it has shown, if it shows any.
    pub fn stop(mut self) -> Option<u64> {
        let pid = Pid::from_child(&self.child);
        // bpftrace forgets a signal that comes before it looks at events.
        while self
            .child
            .try_wait()
            .expect("it can be waited for")
            .is_none()
        {
            kill_process(pid, Signal::INT).expect("it is still there");
            wait_for_end(&mut self.child);
        }
        let said = self.said.join().expect("its words");
        match (self.case.output, self.case.program) {
            (Output::Totals, _) => None,
            (Output::Events, Program::Netprobe) => {
                let words: Vec<&str> = said.split([' ', '\n']).collect();
                let shown = words.windows(2).find(|pair| pair[1].starts_with("shown"))?;
                shown[0].parse().ok()
            }
            (Output::Events, Program::Bpftrace) => said.parse().ok(),
        }
    }
}

/// Gives it some seconds.
fn wait_for_end(child: &mut Child) {
    const LOOK_EVERY: Duration = Duration::from_millis(10);
    for _ in 0..500 {
        if child.try_wait().expect("it can be waited for").is_some() {
            return;
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// What netprobe says on standard error; of bpftrace only how many lines of events.
fn last_lines(mut from: BufReader<Box<dyn Read + Send>>) -> String {
    let mut kept = String::new();
    let mut lines = 0_u64;
    let mut line = Vec::new();
    loop {
        line.clear();
        if from.read_until(b'\n', &mut line).unwrap_or(0) == 0 {
            break;
        }
        if line.starts_with(b"netprobe") {
            kept.push_str(&String::from_utf8_lossy(&line));
        } else if line.len() > 1 {
            lines += 1;
        }
    }
    if kept.is_empty() {
        lines.to_string()
    } else {
        kept
    }
}
