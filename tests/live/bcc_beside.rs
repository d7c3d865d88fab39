//! The commands under the names of bcc beside the tools of bcc themselves (Debian package
//! `bpfcc-tools`), on the same traffic: the same header, the same flows, the same columns but for
//! those that `docs/bcc.md` says are wrong there.
//!
//! bcc compiles its programs when it starts and needs the headers of the running kernel, so most
//! machines skip this, and say why.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use netprobe_tests::{
    netns::Cable,
    probe::binary,
    skip::{has_hooks, skip},
    traffic::Family,
};
use rustix::process::{Pid, Signal, kill_process};

const PORT: u16 = 7651;
const CONNECTIONS: usize = 3;
/// How long bcc may compile, also on a machine without acceleration.
const COMPILING: Duration = Duration::from_secs(150);

/// A tool, and the columns that both must fill in alike.
struct Tool {
    name: &'static str,
    /// The probe that netprobe's has.
    probe: &'static str,
    /// How its header begins.
    header: &'static str,
    /// Columns by position: addresses, ports, bytes, states.
    same: &'static [usize],
}

const TOOLS: &[Tool] = &[
    // COMM may be that of the task that the softirq interrupted, MS begins elsewhere.
    Tool {
        name: "tcplife",
        probe: "lifetimes",
        header: "PID",
        same: &[2, 3, 4, 5, 6, 7],
    },
    Tool {
        name: "tcpstates",
        probe: "states",
        header: "SKADDR",
        same: &[0, 3, 4, 5, 6, 7, 8, 9],
    },
    Tool {
        name: "tcpconnect",
        probe: "connects",
        header: "PID",
        same: &[0, 1, 2, 3, 4, 5],
    },
    Tool {
        name: "tcpaccept",
        probe: "accepts",
        header: "PID",
        same: &[0, 1, 2, 3, 4, 5, 6],
    },
];

/// One of them at work.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    header: String,
}

impl Running {
    /// Starts it and waits for its header; what it complained of if that does not come.
    fn start(mut command: Command, header: &str, patience: Duration) -> Result<Self, String> {
        let mut child = command
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|why| why.to_string())?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            lines.for_each(|line| drop(sender.send(line)));
        });
        loop {
            match lines.recv_timeout(patience) {
                Ok(line) if line.starts_with(header) => {
                    return Ok(Self {
                        child,
                        lines,
                        header: line,
                    });
                }
                Ok(_before) => {}
                Err(_ended) => {
                    // It may still run.
                    child.kill().ok();
                    let mut complaints = String::new();
                    if let Some(mut stderr) = child.stderr.take() {
                        stderr.read_to_string(&mut complaints).ok();
                    }
                    child.wait().ok();
                    let last = complaints.lines().rfind(|line| !line.trim().is_empty());
                    return Err(last.unwrap_or("it did not get ready").to_owned());
                }
            }
        }
    }

    /// Ends it; its header, and its lines about `port` in these columns, sorted.
    fn stop(mut self, same: &[usize], enough: usize) -> (String, Vec<Vec<String>>) {
        let port = PORT.to_string();
        let mut rows = Vec::new();
        let mut take = |line: String| {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words.contains(&&*port) {
                let column = |index: &usize| words.get(*index).map_or("", |word| *word).to_owned();
                rows.push(same.iter().map(column).collect::<Vec<_>>());
            }
            rows.len()
        };
        // bcc polls its buffers.
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(5)) {
            if take(line) >= enough {
                break;
            }
        }
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::INT).expect("send SIGINT");
        self.child.wait().expect("it ends");
        self.lines.iter().for_each(|line| {
            take(line);
        });
        rows.sort();
        (self.header.trim_end().to_owned(), rows)
    }
}

/// The tool of bcc, as Debian names it.
fn real(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(format!("/usr/sbin/{name}-bpfcc"));
    path.exists().then_some(path)
}

/// Connections over which data goes both ways, closed by the client.
fn converse(cable: &Cable) {
    let listener = cable.server.run(|| Family::V4.listen(PORT, 8));
    for _ in 0..CONNECTIONS {
        let (mut near, mut far) = Family::V4.pair(&cable.client, &listener);
        near.write_all(&[1; 5000]).expect("send");
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

#[test]
fn flows_and_columns_are_those_of_the_tools_of_bcc() {
    for tool in TOOLS {
        let Some(path) = real(tool.name) else {
            skip(&format!("{}: bpfcc-tools is not installed", tool.name));
            continue;
        };
        if !has_hooks(tool.probe, &[]) {
            continue;
        }
        let theirs = match Running::start(Command::new(path), tool.header, COMPILING) {
            Ok(running) => running,
            Err(why) => {
                skip(&format!("{} of bcc does not run here: {why}", tool.name));
                continue;
            }
        };
        let mut command = Command::new(binary());
        command.arg(tool.name);
        let ours = Running::start(command, tool.header, COMPILING).expect("netprobe runs");
        let cable = Cable::new();
        converse(&cable);
        let (header, expected) = theirs.stop(tool.same, usize::MAX);
        let (own_header, found) = ours.stop(tool.same, expected.len());
        assert_eq!(own_header, header, "{}", tool.name);
        assert!(expected.len() >= CONNECTIONS, "{}: {expected:?}", tool.name);
        assert_eq!(found, expected, "{}", tool.name);
    }
}
