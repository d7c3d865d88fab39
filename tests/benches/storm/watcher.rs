//! A program that watches drops: netprobe in its modes, or a peer.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    thread,
};

/// How drops are watched.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name in tables.
    pub name: &'static str,
    /// Its command line; `netprobe` is the one under test.
    pub command: &'static [&'static str],
    /// What it says once it is attached.
    ready: &'static str,
}

/// Old bpftrace reads the formats of tracepoints there, and not every machine has it.
const TRACEFS: &str = "mount -t tracefs none /sys/kernel/tracing; exec \"$0\" \"$@\"";

const LINE: &str = r#"tracepoint:skb:kfree_skb {
  $skb = (struct sk_buff *)args->skbaddr;
  $ip = (struct iphdr *)($skb->head + $skb->network_header);
  $tcp = (struct tcphdr *)($skb->head + $skb->transport_header);
  printf("%d %s:%d %s:%d\n", args->reason, ntop($ip->saddr), $tcp->source, ntop($ip->daddr), $tcp->dest);
}"#;

/// Every way.
pub const CASES: &[Case] = &[
    Case { name: "netprobe count", command: &["netprobe", "drops", "--count"], ready: "ready" },
    Case { name: "netprobe line", command: &["netprobe", "drops", "--json"], ready: "ready" },
    Case { name: "netprobe stack", command: &["netprobe", "drops", "--json", "--stack"], ready: "ready" },
    Case { name: "bpftrace empty", command: &["bpftrace", "-e", "tracepoint:skb:kfree_skb { $x = 1; }"], ready: "Attaching" },
    Case { name: "bpftrace count", command: &["bpftrace", "-e", "tracepoint:skb:kfree_skb { @[args->reason] = count(); }"], ready: "Attaching" },
    Case { name: "bpftrace line", command: &["bpftrace", "-e", LINE], ready: "Attaching" },
    Case { name: "bpftrace kstack", command: &["bpftrace", "-e", "tracepoint:skb:kfree_skb { @[kstack] = count(); }"], ready: "Attaching" },
];

/// One at work.
#[derive(Debug)]
pub struct Watcher {
    child: Child,
}

impl Watcher {
    /// Starts it and waits until it is attached.
    pub fn start(case: &Case) -> Self {
        let (program, arguments) = case.command.split_first().expect("a command");
        let mut command = if *program == "netprobe" {
            Command::new(netprobe_tests::probe::binary())
        } else {
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", TRACEFS, program]);
            command
        };
        command.args(arguments).stdin(Stdio::null());
        let is_own = *program == "netprobe";
        command.stdout(if is_own { Stdio::null() } else { Stdio::piped() });
        command.stderr(if is_own { Stdio::piped() } else { Stdio::null() });
        let mut child = command.spawn().expect("start the watcher");
        let said: Box<dyn Read + Send> = if is_own {
            Box::new(child.stderr.take().expect("a pipe"))
        } else {
            Box::new(child.stdout.take().expect("a pipe"))
        };
        let mut said = BufReader::new(said);
        let mut line = String::new();
        while !line.contains(case.ready) {
            line.clear();
            assert!(said.read_line(&mut line).expect("text") > 0, "{} ended", case.name);
        }
        thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        thread::sleep(std::time::Duration::from_millis(300));
        Self { child }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it.
    pub fn stop(mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
