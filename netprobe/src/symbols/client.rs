//! netprobe's side of the symbol worker: starts it, asks, waits only so long, and goes on without
//! names where it does not answer.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    mem,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
};
use std::os::unix::process::CommandExt;

use super::{
    found::Found,
    protocol::{Answer, Missing, Names, Request},
    unwind::{CopiedStack, Unwound},
};

/// Name of the hidden command that the worker is.
pub const COMMAND: &str = "symbol-worker";
/// Its option to leave debug information alone.
pub const NO_DEBUG_INFO: &str = "--no-debug-info";

/// Addresses asked for at a time; the question must fit into a pipe.
const BATCH: usize = 1000;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(6);
/// Workers that may fail before no more are started.
const MOST_FAILURES: u32 = 4;
/// Bytes of stacks that are written at a time: half of what a pipe takes.
const TOGETHER: usize = 32 << 10;
/// Bytes of a line that are read.
const LINE_BYTES: u64 = 1 << 17;

/// Processes that have run several programs, or may have, or had different files at the same place.
pub type Several = BTreeSet<u32>;

/// Asks a worker, and another one if that fails.
#[derive(Debug)]
pub struct Client {
    worker: Option<Worker>,
    failures: u32,
    uses_debug_info: bool,
}

#[derive(Debug)]
struct Worker {
    child: Child,
    input: ChildStdin,
    answers: Receiver<Vec<Answer>>,
    /// Answers that came together with others.
    next: VecDeque<Answer>,
}

impl Client {
    /// Starts a worker.
    pub fn start(uses_debug_info: bool) -> Self {
        let mut client = Self {
            worker: None,
            failures: 0,
            uses_debug_info,
        };
        client.restart();
        client
    }

    /// Has the worker look at a process while it lives.
    pub fn see(&mut self, pid: u32) {
        self.tell(&Request::See(pid));
    }

    /// Has the worker look whether young processes are other programs by now, and whether processes have other libraries,
    /// these first.
    pub fn look(&mut self, first: Vec<u32>) {
        self.tell(&Request::Look(first));
    }

    /// Asks what has no answer.
    fn tell(&mut self, request: &Request) {
        if let Some(worker) = &mut self.worker
            && let Err(error) = worker.ask(request)
        {
            self.fail(&format!("{error:#}"));
        }
    }

    /// Names for all addresses, by process; of processes without addresses only what they have run.
    pub fn resolve(&mut self, wanted: &BTreeMap<u32, BTreeSet<u64>>) -> (Found, Several) {
        let mut found = Found::default();
        let mut several = Several::new();
        for (pid, addresses) in wanted {
            let addresses: Vec<u64> = addresses.iter().copied().collect();
            let first = addresses.len().min(BATCH);
            let (first, rest) = addresses.split_at(first);
            for batch in [first].into_iter().chain(rest.chunks(BATCH)) {
                // A worker that failed with debug information may do without.
                let answer = self.resolve_batch(*pid, batch, &mut found);
                let answer = answer.or_else(|| self.resolve_batch(*pid, batch, &mut found));
                if answer == Some(true) {
                    several.insert(*pid);
                }
                for address in batch {
                    let names = found.names.entry((*pid, *address));
                    names.or_insert_with(stopped);
                }
            }
        }
        (found, several)
    }

    /// The functions of copied stacks, by process, and whether its stacks need copying at all;
    /// `None` for those that the worker did not get done.
    pub fn unwind(&mut self, stacks: &[(u32, CopiedStack)]) -> Vec<Option<(Unwound, bool)>> {
        let mut unwound = Vec::with_capacity(stacks.len());
        if let Some(worker) = &mut self.worker
            && let Err(error) = worker.unwind(stacks, Instant::now() + PATIENCE, &mut unwound)
        {
            self.fail(&format!("unwinding: {error:#}"));
        }
        unwound.resize(stacks.len(), None);
        unwound
    }

    /// Asks for a batch; whether the process has run several programs, nothing if the worker failed.
    fn resolve_batch(&mut self, pid: u32, batch: &[u64], found: &mut Found) -> Option<bool> {
        let Some(worker) = &mut self.worker else {
            return Some(false);
        };
        let until = Instant::now() + PATIENCE;
        match worker.resolve(pid, batch, until, &mut |answer| found.take(pid, answer)) {
            Ok(several) => Some(several),
            Err(error) => {
                self.fail(&format!("process {pid}: {error:#}"));
                None
            }
        }
    }

    /// Does away with a worker, and starts another one that does less.
    fn fail(&mut self, why: &str) {
        log::warn!("the symbol worker was stopped; some names will be missing ({why})");
        self.worker = None;
        self.failures += 1;
        self.uses_debug_info = false;
        if self.failures < MOST_FAILURES {
            self.restart();
        }
    }

    fn restart(&mut self) {
        match Worker::start(self.uses_debug_info) {
            Ok(worker) => self.worker = Some(worker),
            Err(error) => log::warn!("functions of processes get no names: {error:#}"),
        }
    }
}

fn stopped() -> Names {
    Names {
        frames: vec!["[unknown]".to_owned()],
        missing: Some(Missing::Stopped),
        is_call: true,
    }
}

impl Worker {
    fn start(uses_debug_info: bool) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(COMMAND);
        if !uses_debug_info {
            command.arg(NO_DEBUG_INFO);
        }
        // In a group of its own, so that Ctrl-C does not reach it.
        let mut child = command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start the symbol worker")?;
        let input = child.stdin.take().context("its input is a pipe")?;
        let output = child.stdout.take().context("its output is a pipe")?;
        // A question that does not fit into the pipe shows that it hangs.
        fcntl_setfl(&input, fcntl_getfl(&input)? | OFlags::NONBLOCK)?;
        Ok(Self {
            child,
            input,
            answers: read_answers(output),
            next: VecDeque::new(),
        })
    }

    /// The next answer.
    fn answer(&mut self, until: Instant) -> Result<Answer> {
        loop {
            if let Some(answer) = self.next.pop_front() {
                return Ok(answer);
            }
            let left = until.saturating_duration_since(Instant::now());
            let answers = self.answers.recv_timeout(left).context("no answer")?;
            self.next.extend(answers);
        }
    }

    fn ask(&mut self, request: &Request) -> Result<()> {
        let line = request.line();
        self.input
            .write_all(line.as_bytes())
            .context("it does not take the question")
    }

    fn resolve(
        &mut self,
        pid: u32,
        addresses: &[u64],
        until: Instant,
        each: &mut impl FnMut(Answer),
    ) -> Result<bool> {
        self.ask(&Request::Resolve(pid, addresses.to_vec()))?;
        loop {
            match self.answer(until)? {
                answer @ (Answer::Names(..)
                | Answer::Of(..)
                | Answer::OfKnown(..)
                | Answer::OfVersion(..)) => each(answer),
                Answer::Done(several) => return Ok(several),
                Answer::Stack(..) => bail!("an answer to another question"),
            }
        }
    }

    fn unwind(
        &mut self,
        stacks: &[(u32, CopiedStack)],
        until: Instant,
        unwound: &mut Vec<Option<(Unwound, bool)>>,
    ) -> Result<()> {
        let mut together = Vec::new();
        for (pid, stack) in stacks {
            let request = Request::Unwind(
                *pid,
                stack.bytes.len(),
                stack.taken,
                stack.registers,
                stack.walked.clone(),
            );
            together.extend_from_slice(request.line().as_bytes());
            together.extend_from_slice(&stack.bytes);
            if together.len() >= TOGETHER {
                self.write(&together, until)?;
                together.clear();
            }
        }
        self.write(&together, until)?;
        while unwound.len() < stacks.len() {
            match self.answer(until)? {
                Answer::Stack(stack, needs_copies) => unwound.push(Some((stack, needs_copies))),
                Answer::Names(..)
                | Answer::Of(..)
                | Answer::OfKnown(..)
                | Answer::OfVersion(..)
                | Answer::Done(_) => {
                    bail!("an answer to another question")
                }
            }
        }
        Ok(())
    }

    /// Writes more than fits into a pipe.
    fn write(&mut self, mut bytes: &[u8], until: Instant) -> Result<()> {
        while !bytes.is_empty() {
            match self.input.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let left = until.saturating_duration_since(Instant::now());
                    let left = Timespec::try_from(left).context("a short time")?;
                    let mut wait = [PollFd::new(&self.input, PollFlags::OUT)];
                    if poll(&mut wait, Some(&left)).context("wait for it")? == 0 {
                        bail!("it does not read");
                    }
                }
                Err(error) => return Err(error).context("it does not take the question"),
            }
        }
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill() {
            log::debug!("kill the symbol worker: {error}");
        }
        // One that hangs in a read from a network drive dies when that ends; nobody waits for it.
        for _look in 0..20 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        log::debug!("the symbol worker hangs; it dies when what it waits for ends");
    }
}

/// Reads answers in a thread that ends with the worker, and hands those on together that came together.
fn read_answers(output: ChildStdout) -> Receiver<Vec<Answer>> {
    let (sender, answers) = mpsc::sync_channel(4096);
    thread::spawn(move || {
        let mut reader = BufReader::with_capacity(1 << 16, output);
        let mut line = Vec::new();
        let mut together = Vec::new();
        loop {
            line.clear();
            let read = reader
                .by_ref()
                .take(LINE_BYTES)
                .read_until(b'\n', &mut line);
            if !matches!(read, Ok(1..)) {
                return;
            }
            let Some(answer) = Answer::parse(&String::from_utf8_lossy(&line)) else {
                return;
            };
            together.push(answer);
            let is_last = !reader.buffer().contains(&b'\n');
            if is_last && sender.send(mem::take(&mut together)).is_err() {
                return;
            }
        }
    });
    answers
}
