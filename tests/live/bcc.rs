//! The commands under the names of bcc, called through symlinks: their columns and what they say
//! of connections that are known.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::fs::symlink,
    process::{Child, ChildStderr, Command, Stdio},
};

use netprobe_tests::{
    netns::Cable,
    process::Actor,
    program::binary,
    ready::await_ready,
    skip::has_hooks,
    traffic::{CLIENT, Family, SERVER, port_of},
};
use rustix::process::{Pid, Signal, kill_process};
use socket2::Socket;

const PORT: u16 = 7641;
const QUESTION: usize = 5_000;
const ANSWER: usize = 70_000;

/// A tool that runs under its bcc name.
struct Tool {
    child: Child,
    complaints: BufReader<ChildStderr>,
    _folder: tempfile::TempDir,
}

impl Tool {
    /// Starts it and waits until it watches.
    #[track_caller]
    fn start(name: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let path = folder.path().join(name);
        symlink(binary(), &path).expect("make a symlink");
        let mut child = Command::new(path)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run the tool");
        let complaints = await_ready(&mut child);
        Self {
            child,
            complaints,
            _folder: folder,
        }
    }

    /// Ends it with Ctrl-C and returns the lines that it printed.
    #[track_caller]
    fn stop(mut self) -> Vec<String> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process id"), Signal::INT).expect("send SIGINT");
        let mut complaints = String::new();
        self.complaints
            .read_to_string(&mut complaints)
            .expect("read");
        let output = self.child.wait_with_output().expect("wait");
        assert!(output.status.success(), "{complaints}");
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines().map(str::to_owned).collect()
    }
}

/// Namespace of one end, as an option.
fn netns(cable: &Cable, is_client: bool) -> String {
    let netns = if is_client {
        &cable.client
    } else {
        &cable.server
    };
    format!("--netns={}", netns.inum())
}

/// A connection over which [`QUESTION`] and [`ANSWER`] went; returns the client's port.
fn converse(cable: &Cable, family: Family) -> u16 {
    let listener = cable.server.run(|| family.listen(PORT, 8));
    let (mut near, mut far): (Socket, Socket) = family.pair(&cable.client, &listener);
    near.write_all(&[1; QUESTION]).expect("send");
    far.read_exact(&mut [0; QUESTION]).expect("receive");
    far.write_all(&vec![2; ANSWER]).expect("send");
    near.read_exact(&mut vec![0; ANSWER]).expect("receive");
    near.shutdown(Shutdown::Write).expect("close");
    assert_eq!(far.read(&mut [0]).expect("the end"), 0);
    let port = port_of(&near);
    drop(far);
    drop(near);
    cable.client.wait_for_silence();
    port
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// The name of this test's thread or process, as bcc would cut it.
fn own_pid() -> String {
    std::process::id().to_string()
}

/// Address as bcc writes it for a socket of this family.
fn address(family: Family, end: (std::net::Ipv4Addr, std::net::Ipv6Addr)) -> String {
    match family {
        Family::V4 | Family::V6 => family.shown(end),
        Family::Mapped => format!("::ffff:{}", end.0),
    }
}

#[test]
fn tcplife_prints_bytes_in_kib_under_the_columns_of_bcc() {
    if !has_hooks("lifetimes", &[]) {
        return;
    }
    for family in Family::OF_SOCKETS {
        let cable = Cable::new();
        let tool = Tool::start("tcplife", &[&netns(&cable, true)]);
        let port = converse(&cable, family).to_string();
        let lines = tool.stop();
        assert_eq!(
            lines[0],
            "PID   COMM       LADDR           LPORT RADDR           RPORT TX_KB RX_KB MS"
        );
        assert_eq!(lines.len(), 2, "{lines:#?}");
        let found = words(&lines[1]);
        let [local, remote] = [CLIENT, SERVER].map(|end| address(family, end));
        assert_eq!(found[0], own_pid());
        assert_eq!(found[2..6], [&*local, &port, &*remote, "7641"]);
        assert_eq!(found[6..8], ["4", "68"], "{lines:#?}");
        let (_, decimals) = found[8].split_once('.').expect("milliseconds");
        assert_eq!(decimals.len(), 2);
    }
}

#[test]
fn tcplife_has_csv_and_filters_by_port() {
    if !has_hooks("lifetimes", &[]) {
        return;
    }
    let cable = Cable::new();
    let arguments = ["-s", "-D", "1,7641", &netns(&cable, true)];
    let [tool, silent] = [
        Tool::start("tcplife", &arguments),
        Tool::start("tcplife", &["-s", "-L", "7641", &netns(&cable, true)]),
    ];
    let port = converse(&cable, Family::V4);
    let lines = tool.stop();
    assert_eq!(
        lines[0],
        "PID,COMM,IP,LADDR,LPORT,RADDR,RPORT,TX_KB,RX_KB,MS"
    );
    let fields: Vec<&str> = lines[1].split(',').collect();
    assert_eq!(
        fields[2..8],
        [
            "4",
            "10.77.0.1",
            &port.to_string(),
            "10.77.0.2",
            "7641",
            "4"
        ]
    );
    assert_eq!(silent.stop().len(), 1, "the port is the remote one");
}

#[test]
fn tcpstates_names_states_as_the_kernel_does() {
    if !has_hooks("states", &[]) {
        return;
    }
    let cable = Cable::new();
    let tool = Tool::start("tcpstates", &[&netns(&cable, true)]);
    converse(&cable, Family::V4);
    let lines = tool.stop();
    assert_eq!(
        words(&lines[0]).join(" "),
        "SKADDR C-PID C-COMM LADDR LPORT RADDR RPORT OLDSTATE -> NEWSTATE MS"
    );
    let changes: Vec<String> = lines[1..]
        .iter()
        .map(|line| words(line)[7..10].join(" "))
        // The kernel sets FIN_WAIT1 again at close() if the peer has not acknowledged shutdown().
        .filter(|change| change != "FIN_WAIT1 -> FIN_WAIT1")
        .collect();
    assert_eq!(
        changes,
        [
            "CLOSE -> SYN_SENT",
            "SYN_SENT -> ESTABLISHED",
            "ESTABLISHED -> FIN_WAIT1",
            "FIN_WAIT1 -> FIN_WAIT2",
            "FIN_WAIT2 -> CLOSE"
        ]
    );
    assert!(lines[1].starts_with("ff"), "{}", lines[1]);
}

#[test]
fn tcpconnect_prints_each_connect_once_with_its_local_port() {
    if !has_hooks("states", &[]) {
        return;
    }
    for family in Family::OF_SOCKETS {
        let cable = Cable::new();
        let tool = Tool::start("tcpconnect", &["-L", "-U", &netns(&cable, true)]);
        let port = converse(&cable, family).to_string();
        let lines = tool.stop();
        assert_eq!(lines[0], "Tracing connect ... Hit Ctrl-C to end");
        assert_eq!(
            words(&lines[1]).join(" "),
            "UID PID COMM IP SADDR LPORT DADDR DPORT"
        );
        assert_eq!(lines.len(), 3, "{lines:#?}");
        let found = words(&lines[2]);
        let [local, remote] = [CLIENT, SERVER].map(|end| address(family, end));
        let ip = if family == Family::V4 { "4" } else { "6" };
        assert_eq!((found[0], found[1]), ("0", &*own_pid()));
        assert_eq!(found[3..], [ip, &*local, &port, &*remote, "7641"]);
    }
}

#[test]
fn tcpconnect_knows_the_port_of_a_connect_that_nobody_answers() {
    if !has_hooks("states", &[]) {
        return;
    }
    let cable = Cable::new();
    let _blackhole = cable.server.firewall("input", &format!("tcp dport {PORT}"));
    let mut tool = Tool::start("tcpconnect", &["-L", &netns(&cable, true)]);
    // The kernel is asked in namespaces that a process is in.
    let mut dialler = Actor::start("dialler", |stage| {
        cable.client.enter();
        let pending = Family::V4.begin(PORT);
        for byte in port_of(&pending).to_be_bytes() {
            stage.tell(byte);
        }
        std::mem::forget(pending);
    });
    let port = u16::from_be_bytes([dialler.hear(), dialler.hear()]);
    let mut lines = BufReader::new(tool.child.stdout.take().expect("a pipe")).lines();
    let line = lines.nth(2).expect("a line").expect("text");
    assert_eq!(words(&line)[4], port.to_string(), "{line}");
    tool.stop();
}

#[test]
fn tcpconnect_counts_by_target() {
    if !has_hooks("states", &[]) {
        return;
    }
    let cable = Cable::new();
    let tool = Tool::start("tcpconnect", &["-c", &netns(&cable, true)]);
    converse(&cable, Family::V4);
    converse(&cable, Family::V4);
    let lines = tool.stop();
    assert_eq!(words(&lines[2]).join(" "), "LADDR RADDR RPORT CONNECTS");
    assert_eq!(words(&lines[3]).join(" "), "10.77.0.1 10.77.0.2 7641 2");
}

#[test]
fn tcpconnlat_prints_milliseconds_above_its_threshold() {
    if !has_hooks("connects", &[]) {
        return;
    }
    let cable = Cable::new();
    let tool = Tool::start("tcpconnlat", &[&netns(&cable, true)]);
    let silent = Tool::start("tcpconnlat", &["60000", &netns(&cable, true)]);
    converse(&cable, Family::V4);
    let lines = tool.stop();
    assert_eq!(
        words(&lines[0]).join(" "),
        "PID COMM IP SADDR DADDR DPORT LAT(ms)"
    );
    assert_eq!(
        words(&lines[1])[2..6],
        ["4", "10.77.0.1", "10.77.0.2", "7641"]
    );
    assert_eq!(silent.stop().len(), 1);
}

#[test]
fn tcpaccept_prints_the_peer_first() {
    if !has_hooks("accepts", &[]) {
        return;
    }
    let cable = Cable::new();
    let tool = Tool::start("tcpaccept", &["-P", "7641", &netns(&cable, false)]);
    let port = converse(&cable, Family::V4).to_string();
    let lines = tool.stop();
    assert_eq!(
        words(&lines[0]).join(" "),
        "PID COMM IP RADDR RPORT LADDR LPORT"
    );
    assert_eq!(lines.len(), 2, "{lines:#?}");
    let found = words(&lines[1]);
    assert_eq!(found[2..], ["4", "10.77.0.1", &port, "10.77.0.2", "7641"]);
}

#[test]
fn tcpretrans_prints_and_counts_unanswered_syns() {
    if !has_hooks("retransmits", &[]) {
        return;
    }
    let cable = Cable::new();
    let _blackhole = cable.server.firewall("input", &format!("tcp dport {PORT}"));
    let tool = Tool::start("tcpretrans", &["-s", &netns(&cable, true)]);
    let count = Tool::start("tcpretrans", &["-c", &netns(&cable, true)]);
    let pending = cable.client.run(|| Family::V4.begin(PORT));
    let port = port_of(&pending);
    netprobe_tests::wait_until("a SYN was sent again", || {
        cable.client.counters().get("Tcp.RetransSegs") > 0
    });
    let lines = tool.stop();
    assert_eq!(lines[0], "Tracing retransmits ... Hit Ctrl-C to end");
    assert_eq!(
        words(&lines[1]).join(" "),
        "TIME PID IP LADDR:LPORT T> RADDR:RPORT STATE SEQ"
    );
    let local = format!("10.77.0.1:{port}");
    assert_eq!(
        words(&lines[2])[1..7],
        [
            &*own_pid(),
            "4",
            &*local,
            "R>",
            "10.77.0.2:7641",
            "SYN_SENT"
        ]
    );
    let lines = count.stop();
    drop(pending);
    assert_eq!(
        words(&lines[3]).join(" "),
        format!("[10.77.0.1]#{port} <-> [10.77.0.2]#7641 1")
    );
}

#[test]
fn tcpdrop_prints_a_stack_below_each_drop() {
    if !has_hooks("drops", &[]) {
        return;
    }
    let cable = Cable::new();
    let netns_id = cable.server.inum().to_string();
    let tool = Tool::start("tcpdrop", &["--netns-id", &netns_id]);
    cable
        .client
        .run(|| Family::V4.connect(PORT))
        .expect_err("nobody listens");
    let lines = tool.stop();
    assert!(lines[0].starts_with("TIME     PID     IP SADDR:SPORT          > DADDR:DPORT          STATE (FLAGS)        REASON (CODE)"));
    let found = words(&lines[1]);
    assert_eq!(found[2..3], ["4"]);
    assert_eq!(found[5], "10.77.0.2:7641");
    assert_eq!(found[6..8], ["-", "(SYN)"]);
    let frames: Vec<&String> = lines[2..]
        .iter()
        .take_while(|line| line.starts_with('\t'))
        .collect();
    assert!(
        frames.iter().any(|frame| frame.contains("tcp_v4_rcv+0x")),
        "{lines:#?}"
    );
}

#[test]
fn tcptop_counts_every_byte_once() {
    if !has_hooks("lifetimes", &[]) {
        return;
    }
    for family in Family::OF_SOCKETS {
        let cable = Cable::new();
        let arguments = ["-C", "-S", &netns(&cable, true), "3600"];
        let tool = Tool::start("tcptop", &arguments);
        let port = converse(&cable, family);
        let lines = tool.stop();
        assert_eq!(
            lines[0],
            "Tracing... Output every 3600 secs. Hit Ctrl-C to end"
        );
        let end = |end, port| format!("{}:{port}", address(family, end));
        let line = lines.last().expect("a line");
        let found = words(line);
        assert_eq!(found[0], own_pid(), "{lines:#?}");
        assert_eq!(found[2], end(CLIENT, port));
        assert_eq!(found[3], end(SERVER, PORT));
        assert_eq!(found[4..], ["68", "4"]);
    }
}

#[test]
fn tcpsynbl_draws_the_depth_of_accept_queues() {
    if !has_hooks("listeners", &["final ACK"]) {
        return;
    }
    for family in Family::OF_SOCKETS {
        let cable = Cable::new();
        let tool = Tool::start("tcpsynbl", &[&netns(&cable, false)]);
        let listener = cable.server.run(|| family.listen(PORT, 12));
        // Found 0, 1, 2 and 3 that wait.
        let clients: Vec<Socket> = (0..4)
            .map(|_| cable.client.run(|| family.connect(PORT)).expect("connect"))
            .collect();
        netprobe_tests::wait_until("all wait", || {
            netprobe_tests::traffic::accept_queue(&listener) == 4
        });
        drop(clients);
        let lines = tool.stop();
        let at = lines.iter().position(|line| line == "backlog_max = 12");
        let at = at.unwrap_or_else(|| panic!("{lines:#?}"));
        assert_eq!(
            lines[at + 1],
            "     backlog             : count     distribution"
        );
        assert_eq!(
            words(&lines[at + 2])[..5],
            ["0", "->", "1", ":", "2"],
            "{family:?}"
        );
        assert_eq!(
            words(&lines[at + 3])[..5],
            ["2", "->", "3", ":", "2"],
            "{family:?}"
        );
        assert!(lines[at + 2].ends_with(&format!("|{}|", "*".repeat(40))));
    }
}
