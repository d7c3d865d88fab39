//! The commands under the names of bcc beside the tools of bcc themselves (Debian package
//! `bpfcc-tools`), all at once on the same traffic: the same header, the same flows, the same columns
//! but for those that `docs/bcc.md` says are wrong there.
//!
//! bcc compiles its programs when it starts and needs the headers of the running kernel:
//! `cargo xtask test bcc` has both in a virtual machine, most other machines skip this, and say why.

use std::{
    env,
    ffi::OsString,
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use netprobe_tests::{
    netns::Cable,
    program::binary,
    skip::{has_hooks, skip},
    traffic::Family,
    wait_until,
};
use rustix::process::{Pid, Signal, kill_process};

const PORT: u16 = 7651;
const CONNECTIONS: usize = 3;
/// How long they may compile together, also on a machine without acceleration.
const COMPILING: Duration = Duration::from_mins(30);
/// How long bcc, which polls its buffers, may take to show the last event.
const SHOWING: Duration = Duration::from_secs(20);
/// A directory for chroot(8) that has bcc; without it bcc is where Debian installs it.
const ROOT: &str = "NETPROBE_BCC";
/// Names of tools, with commas between them: only these.
const ONLY: &str = "NETPROBE_BCC_TOOLS";

/// What the rows of bcc are of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    /// The same.
    All,
    /// Among ours: bcc does not see every event.
    Some,
    /// All lines after the header, about no connection in particular.
    Text,
}

/// A tool, and the columns that both must fill in alike.
struct Tool {
    name: &'static str,
    arguments: &'static [&'static str],
    /// The probe that netprobe's has.
    probe: &'static str,
    /// How its header begins.
    header: &'static str,
    /// Whether it prints anything before it is ended.
    is_live: bool,
    rows: Rows,
    /// Columns by position: addresses, ports, bytes, states.
    same: &'static [usize],
}

const TOOL: Tool = Tool {
    name: "",
    arguments: &[],
    probe: "",
    header: "",
    is_live: true,
    rows: Rows::All,
    same: &[],
};

const TOOLS: &[Tool] = &[
    // COMM may be that of the task that the softirq interrupted, MS begins elsewhere.
    Tool {
        name: "tcplife",
        probe: "lifetimes",
        header: "PID",
        same: &[2, 3, 4, 5, 6, 7],
        ..TOOL
    },
    Tool {
        name: "tcpstates",
        probe: "states",
        header: "SKADDR",
        same: &[0, 3, 4, 5, 6, 7, 8, 9],
        ..TOOL
    },
    // COMM is the name of the process, there that of the thread.
    Tool {
        name: "tcpconnect",
        probe: "connects",
        header: "PID",
        same: &[0, 2, 3, 4, 5],
        ..TOOL
    },
    Tool {
        name: "tcpaccept",
        probe: "accepts",
        header: "PID",
        same: &[0, 2, 3, 4, 5, 6],
        ..TOOL
    },
    Tool {
        name: "tcpconnlat",
        probe: "connects",
        header: "PID",
        same: &[0, 2, 3, 4, 5],
        ..TOOL
    },
    // The clock may tick between the two, the process is the one that was interrupted.
    Tool {
        name: "tcpretrans",
        probe: "retransmits",
        header: "TIME",
        same: &[2, 3, 4, 5, 6],
        ..TOOL
    },
    Tool {
        name: "tcpdrop",
        probe: "drops",
        header: "TIME",
        rows: Rows::Some,
        same: &[2, 3, 5, 6, 7],
        ..TOOL
    },
    Tool {
        name: "tcpsynbl",
        probe: "listeners",
        header: "Tracing",
        is_live: false,
        rows: Rows::Text,
        ..TOOL
    },
    // One interval, which the end of the test ends. COMM is `b'name` there.
    Tool {
        name: "tcptop",
        arguments: &["-C", "-S", "3600"],
        probe: "lifetimes",
        header: "Tracing",
        is_live: false,
        same: &[0, 2, 3, 4, 5],
        ..TOOL
    },
];

/// One of them at work.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    header: String,
    rows: Vec<Vec<String>>,
}

impl Running {
    /// Starts it.
    fn start(mut command: Command) -> Self {
        let mut child = command
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start it");
        let stdout = child.stdout.take().expect("standard output is a pipe");
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            lines.for_each(|line| drop(sender.send(line)));
        });
        Self {
            child,
            lines,
            header: String::new(),
            rows: Vec::new(),
        }
    }

    /// Waits for its header; what it complained of if that does not come.
    fn wait(&mut self, tool: &Tool, until: Instant) -> Result<(), String> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.starts_with(tool.header) => {
                    line.trim_end().clone_into(&mut self.header);
                    return Ok(());
                }
                Ok(_before) => {}
                Err(_ended) => return Err(self.complaint()),
            }
        }
    }

    /// The last thing that it said on standard error; ends it.
    fn complaint(&mut self) -> String {
        self.child.kill().ok();
        let mut complaints = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut complaints).ok();
        }
        self.child.wait().ok();
        let last = complaints.lines().rfind(|line| !line.trim().is_empty());
        last.unwrap_or("it did not get ready").to_owned()
    }

    fn take(&mut self, tool: &Tool, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if tool.rows == Rows::Text {
            if !words.is_empty() {
                self.rows.push(vec![words.join(" ")]);
            }
            return;
        }
        let (port, end) = (PORT.to_string(), format!(":{PORT}"));
        if words
            .iter()
            .any(|word| *word == port || word.ends_with(&end))
        {
            let column = |index: &usize| words.get(*index).map_or("", |word| *word).to_owned();
            self.rows.push(tool.same.iter().map(column).collect());
        }
    }

    /// Ends it once it has shown `enough` rows; its rows, sorted.
    fn stop(mut self, tool: &Tool, enough: usize) -> Vec<Vec<String>> {
        let until = Instant::now() + SHOWING;
        while self.rows.len() < enough {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                break;
            };
            self.take(tool, &line);
        }
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("send SIGINT");
        while let Ok(line) = self.lines.recv() {
            self.take(tool, &line);
        }
        self.child.wait().expect("it ends");
        self.rows.sort();
        self.rows
    }
}

/// The tool of bcc, as Debian names it.
fn real(tool: &Tool) -> Option<Command> {
    let path = format!("/usr/sbin/{}-bpfcc", tool.name);
    let mut command = if let Some(root) = env::var_os(ROOT) {
        let mut command = Command::new("chroot");
        command.args([root, OsString::from(path)]);
        command
    } else {
        Some(PathBuf::from(&path)).filter(|path| path.exists())?;
        Command::new(path)
    };
    command.args(tool.arguments);
    Some(command)
}

/// Connections over which data goes both ways, closed by the client; the first data of the last one
/// is lost.
fn converse(cable: &Cable) {
    let listener = cable.server.run(|| Family::V4.listen(PORT, 8));
    for index in 1..=CONNECTIONS {
        let (mut near, mut far) = Family::V4.pair(&cable.client, &listener);
        let lost = format!("tcp dport {PORT} meta length > 1000");
        let firewall = (index == CONNECTIONS).then(|| cable.server.firewall("input", &lost));
        near.write_all(&[1; 5000]).expect("send");
        if let Some(firewall) = firewall {
            let sent_again = || cable.client.counters().get("Tcp.RetransSegs") > 0;
            wait_until("data was sent again", sent_again);
            firewall.open();
        }
        far.read_exact(&mut [0; 5000]).expect("receive");
        far.write_all(&[2; 9000]).expect("send");
        near.read_exact(&mut [0; 9000]).expect("receive");
        near.shutdown(Shutdown::Write).expect("close");
        assert_eq!(far.read(&mut [0]).expect("the end"), 0);
    }
    drop(listener);
    cable.client.wait_for_silence();
    cable.server.wait_for_silence();
}

/// The tools of bcc that run here, all at work.
fn start_real() -> Vec<(&'static Tool, Running)> {
    let until = Instant::now() + COMPILING;
    let mut started = Vec::new();
    let only = env::var(ONLY).ok();
    let is_wanted = |tool: &&Tool| {
        let only = only.as_deref();
        only.is_none_or(|only| only.split(',').any(|name| name == tool.name))
    };
    for tool in TOOLS.iter().filter(is_wanted) {
        match real(tool) {
            Some(command) if has_hooks(tool.probe, &[]) => {
                started.push((tool, Running::start(command)));
            }
            Some(_) => {}
            None => skip(&format!("{}: bpfcc-tools is not installed", tool.name)),
        }
    }
    started.retain_mut(|(tool, running)| match running.wait(tool, until) {
        Ok(()) => true,
        Err(why) => {
            let why = format!("{} of bcc does not run here: {why}", tool.name);
            assert!(env::var_os(ROOT).is_none(), "{why}");
            skip(&why);
            false
        }
    });
    started
}

#[test]
fn flows_and_columns_are_those_of_the_tools_of_bcc() {
    let theirs = start_real();
    if theirs.is_empty() {
        return;
    }
    let mut ours: Vec<Running> = theirs
        .iter()
        .map(|(tool, _)| {
            let mut command = Command::new(binary());
            command.arg(tool.name).args(tool.arguments);
            Running::start(command)
        })
        .collect();
    for ((tool, _), own) in theirs.iter().zip(&mut ours) {
        let ready = own.wait(tool, Instant::now() + COMPILING);
        ready.unwrap_or_else(|why| panic!("{}: {why}", tool.name));
    }
    let cable = Cable::new();
    converse(&cable);
    let mut different = Vec::new();
    for ((tool, theirs), ours) in theirs.into_iter().zip(ours) {
        // Newer releases of bcc have added columns at the end, and ours has those of the newest.
        let (own_header, header) = (ours.header.clone(), theirs.header.clone());
        let found = ours.stop(tool, 0);
        let enough = match tool.rows {
            _ if !tool.is_live => 0,
            Rows::All | Rows::Text => found.len(),
            Rows::Some => 1,
        };
        let expected = theirs.stop(tool, enough);
        let is_same = match tool.rows {
            Rows::All | Rows::Text => found == expected,
            Rows::Some => expected.iter().all(|row| found.contains(row)),
        };
        if !is_same || expected.is_empty() || !own_header.starts_with(&header) {
            different.push(format!(
                "{}: netprobe {own_header:?} {found:#?}\nbcc {header:?} {expected:#?}",
                tool.name
            ));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}
