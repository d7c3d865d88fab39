//! Runs QEMU with a kernel and a file system, and carries the serial ports of the machine out of it.
//!
//! Four ports, each a socket in a temporary folder: the kernel's log, stdout, stderr, and the control
//! port on which init says that the machine is up and how the command ended.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::accelerator::Accelerator;
use super::{Machine, Outcome, initramfs};
use crate::process;

const PROGRAM: &str = "qemu-system-x86_64";
const PORTS: [&str; 4] = ["log", "stdout", "stderr", "control"];
/// What the kernel prints when nothing good will come any more.
const FATAL: [&str; 5] = [
    "Kernel panic - not syncing",
    "soft lockup",
    "self-detected stall",
    "detected stalls on CPUs",
    "Unable to mount root fs",
];
/// How many lines of the kernel's log an error message carries.
const LOG_LINES: usize = 30;
/// How long a kernel that gives up may go on to say why.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long QEMU may take to open its ports.
const START: Duration = Duration::from_secs(30);

/// What the threads that read the ports tell the one that waits.
enum Event {
    Control(String),
    Log(String),
    Closed,
}

/// A running QEMU, ended when dropped.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself: then both are no-ops.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Boots `machine`, runs its command with output going to the two writers, and says how it ended.
pub(super) fn run(
    machine: &Machine,
    stdout: impl Write + Send,
    stderr: impl Write + Send,
) -> Result<Outcome> {
    let start = Instant::now();
    let dir = tempfile::Builder::new()
        .prefix("netprobe-vm")
        .tempdir()
        .context("create a temporary folder")?;
    initramfs::write(machine, &dir.path().join("initramfs"))?;
    let listeners = PORTS.map(|port| UnixListener::bind(dir.path().join(port)));
    let mut guest = start_qemu(machine, dir.path())?;
    let mut streams = Vec::new();
    for listener in listeners {
        let listener = listener.context("listen for a serial port")?;
        streams.push(accept(&listener, &mut guest.0)?);
    }
    let streams: [UnixStream; 4] = streams.try_into().ok().context("four serial ports")?;
    let [log, out, err, control] = streams;
    let (sender, events) = mpsc::channel();
    thread::scope(|scope| {
        let log_sender = sender.clone();
        scope.spawn(move || lines(log, &log_sender, Event::Log));
        scope.spawn(move || lines(control, &sender, Event::Control));
        scope.spawn(move || copy(out, stdout));
        scope.spawn(move || copy(err, stderr));
        let mut wait = Wait {
            machine,
            start,
            up: None,
            fatal: None,
            log: VecDeque::new(),
        };
        let outcome = wait.until_end(&events, || drop(std::fs::remove_dir_all(dir.path())));
        // Ends the sockets, and with them the threads, which have read everything by then.
        drop(guest);
        outcome
    })
}

fn start_qemu(machine: &Machine, dir: &Path) -> Result<Guest> {
    let mut command = dying_with_us();
    command
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-machine", "pc"])
        .args(["-smp", &machine.cpus])
        .args(["-m", &machine.memory])
        .args(Accelerator::of_this_machine()?.arguments())
        .arg("-kernel")
        .arg(machine.kernel.image())
        .arg("-initrd")
        .arg(dir.join("initramfs"))
        .args(["-append", &command_line(machine)]);
    for port in PORTS {
        let path = dir.join(port);
        command.arg("-chardev");
        command.arg(format!("socket,id={port},path={}", path.display()));
        command.args(["-serial", &format!("chardev:{port}")]);
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("start {PROGRAM}; `cargo xtask setup` installs it"))?;
    Ok(Guest(child))
}

/// QEMU, to be killed by the kernel when this process is, however that happens.
fn dying_with_us() -> Command {
    match process::find("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--", PROGRAM]);
            command
        }
        None => Command::new(PROGRAM),
    }
}

fn command_line(machine: &Machine) -> String {
    let mut words = vec!["console=ttyS0", "panic=-1", "oops=panic", "mitigations=off"];
    if machine.verbose {
        words.extend(["loglevel=6", "netprobe.verbose"]);
    } else {
        words.extend(["quiet", "loglevel=1"]);
    }
    words.extend(machine.append.as_deref());
    words.join(" ")
}

/// Waits for QEMU to connect to a port, unless it ends first.
fn accept(listener: &UnixListener, qemu: &mut Child) -> Result<UnixStream> {
    listener
        .set_nonblocking(true)
        .context("listen for a serial port")?;
    let deadline = Instant::now() + START;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream
                    .set_nonblocking(false)
                    .context("read a serial port")?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("accept a serial port"),
        }
        if let Some(status) = qemu.try_wait().context("wait for qemu")? {
            bail!("{PROGRAM} ended before the machine started ({status})");
        }
        if Instant::now() > deadline {
            bail!("{PROGRAM} does not start");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Copies a port out until it closes; where nobody reads any more, what comes is thrown away.
fn copy(mut port: UnixStream, mut to: impl Write) {
    let mut buffer = [0; 4096];
    let mut open = true;
    while let Ok(size @ 1..) = port.read(&mut buffer) {
        open = open && to.write_all(&buffer[..size]).is_ok() && to.flush().is_ok();
    }
}

/// Sends each line of a port on until it closes.
fn lines(mut port: UnixStream, to: &Sender<Event>, event: fn(String) -> Event) {
    let mut pending = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(size @ 1..) = port.read(&mut buffer) {
        pending.extend_from_slice(&buffer[..size]);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<_> = pending.drain(..=end).collect();
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if to.send(event(text)).is_err() {
                return;
            }
        }
    }
    // The receiver may have what it wanted and be gone.
    drop(to.send(Event::Closed));
}

/// Waits for the end of a machine.
struct Wait<'a> {
    machine: &'a Machine,
    start: Instant,
    up: Option<Duration>,
    /// When to stop waiting for more of the log of a kernel that gave up.
    fatal: Option<Instant>,
    log: VecDeque<String>,
}

impl Wait<'_> {
    fn until_end(&mut self, events: &Receiver<Event>, on_up: impl Fn()) -> Result<Outcome> {
        loop {
            let deadline = self.fatal.unwrap_or(self.start + self.machine.timeout);
            let left = deadline.saturating_duration_since(Instant::now());
            match events.recv_timeout(left) {
                Ok(Event::Control(line)) => match line.split_once(' ').unwrap_or((&line, "")) {
                    ("up", _) => {
                        self.up = Some(self.start.elapsed());
                        on_up();
                    }
                    ("exit", code) => return self.end(code),
                    ("warning", text) => eprintln!("vm {}: {text}", self.machine.kernel.version),
                    _ => {}
                },
                Ok(Event::Log(line)) => self.see(line),
                Ok(Event::Closed)
                | Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {
                    bail!("{}{}", self.reason(deadline), self.tail());
                }
            }
        }
    }

    fn end(&self, code: &str) -> Result<Outcome> {
        let status = code
            .parse()
            .with_context(|| format!("exit status {code:?} from the machine"))?;
        Ok(Outcome {
            status,
            boot: self.up.unwrap_or_default(),
            total: self.start.elapsed(),
        })
    }

    fn see(&mut self, line: String) {
        if self.machine.verbose {
            eprintln!("{line}");
        }
        if self.fatal.is_none() && FATAL.iter().any(|marker| line.contains(marker)) {
            self.fatal = Some(Instant::now() + LAST_WORDS);
        }
        self.log.push_back(line);
        if self.log.len() > LOG_LINES {
            self.log.pop_front();
        }
    }

    /// Why there is nothing more to wait for.
    fn reason(&self, deadline: Instant) -> String {
        let limit = self.machine.timeout.as_secs();
        match self.fatal {
            Some(_) => "the kernel gave up".to_owned(),
            None if Instant::now() >= deadline => {
                format!("the machine did not finish in {limit} s")
            }
            None => "the machine ended before the command did".to_owned(),
        }
    }

    /// The end of the kernel's log, for an error message.
    fn tail(&self) -> String {
        if self.log.is_empty() {
            return "; its kernel said nothing (-v shows the whole log)".to_owned();
        }
        let lines: Vec<_> = self
            .log
            .iter()
            .map(|line| format!("\n  | {line}"))
            .collect();
        format!("; the last of its kernel log:{}", lines.concat())
    }
}
