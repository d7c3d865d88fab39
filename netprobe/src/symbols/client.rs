//! netprobe's side of the symbol worker: starts it, asks, waits only so long, and goes on without
//! names where it does not answer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{BufRead, BufReader, ErrorKind, Read, Write},
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

use crate::report::name_bytes;

use super::{
    protocol::{Answer, Missing, Names, Request, plain},
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
/// Bytes of a line that are read.
const LINE_BYTES: u64 = 1 << 17;

/// Processes that have run several programs, or may have.
pub type Several = BTreeSet<u32>;

/// The names that were found.
#[derive(Debug, Default)]
pub struct Found {
    names: HashMap<(u32, u64), Names>,
    /// Where a process has run several programs with code at an address, or may have: by the names of their threads.
    of_programs: HashMap<(u32, u64, String), Names>,
    /// The same of stacks that are of a program that was looked at.
    of_known: HashMap<(u32, u64), Names>,
}

/// What shows which program of a process a stack is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whose<'a> {
    /// The name of the thread: that of the program, unless the thread has taken another one. None in the middle of exec.
    pub comm: Option<&'a [u8; 16]>,
    /// There is code in it that is only in a program that was looked at.
    pub is_known: bool,
}

impl Found {
    /// Those for an address in a stack.
    pub fn get(&self, pid: u32, address: u64, whose: Whose<'_>) -> Option<&Names> {
        let names = self.names.get(&(pid, address))?;
        if names.missing != Some(Missing::Replaced) {
            return Some(names);
        }
        let by_name = whose.comm.and_then(|comm| {
            let comm = String::from_utf8_lossy(name_bytes(comm));
            let key = (pid, address, plain(&comm));
            self.of_programs.get(&key)
        });
        let known = || self.of_known.get(&(pid, address));
        let found = by_name.or_else(|| known().filter(|_| whose.is_known));
        Some(found.unwrap_or(names))
    }

    /// Whether one of these addresses can only be of a program of the process that was looked at: the kernel chose where
    /// its file is.
    pub fn is_known(&self, pid: u32, mut addresses: impl Iterator<Item = u64>) -> bool {
        addresses.any(|address| {
            let names = self.names.get(&(pid, address));
            names.is_some_and(|names| names.missing.is_none_or(Missing::is_of_known))
        })
    }

    /// Takes other names too, instead of those for the same addresses.
    pub fn extend(&mut self, other: Self) {
        self.names.extend(other.names);
        self.of_programs.extend(other.of_programs);
        self.of_known.extend(other.of_known);
    }

    fn take(&mut self, pid: u32, answer: Answer) {
        match answer {
            Answer::Names(address, names) => {
                self.names.insert((pid, address), names);
            }
            Answer::Of(program, address, names) => {
                self.of_programs.insert((pid, address, program), names);
            }
            Answer::OfKnown(address, names) => {
                self.of_known.insert((pid, address), names);
            }
            Answer::Stack(..) | Answer::Done(_) => {}
        }
    }
}

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
    answers: Receiver<Answer>,
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

    /// Has the worker look at processes that have not run for long, which may be other programs by now.
    pub fn look(&mut self) {
        self.tell(&Request::Look);
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
        })
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
            let left = until.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left).context("no answer")? {
                answer @ (Answer::Names(..) | Answer::Of(..) | Answer::OfKnown(..)) => each(answer),
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
        for (pid, stack) in stacks {
            let request = Request::Unwind(*pid, stack.bytes.len(), stack.registers);
            self.write(request.line().as_bytes(), until)?;
            self.write(&stack.bytes, until)?;
        }
        while unwound.len() < stacks.len() {
            let left = until.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left).context("no answer")? {
                Answer::Stack(stack, needs_copies) => unwound.push(Some((stack, needs_copies))),
                Answer::Names(..) | Answer::Of(..) | Answer::OfKnown(..) | Answer::Done(_) => {
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

/// Reads answers in a thread that ends with the worker.
fn read_answers(output: ChildStdout) -> Receiver<Answer> {
    let (sender, answers) = mpsc::sync_channel(4096);
    thread::spawn(move || {
        let mut reader = BufReader::with_capacity(1 << 16, output);
        let mut line = Vec::new();
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
            if sender.send(answer).is_err() {
                return;
            }
        }
    });
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_exec_the_name_of_the_thread_tells_the_program() {
        let names = |frame: &str, missing| Names {
            frames: vec![frame.to_owned()],
            missing,
        };
        let mut found = Found::default();
        found.take(
            7,
            Answer::Names(1, names("[unknown: exec]", Some(Missing::Replaced))),
        );
        found.take(7, Answer::Of("exa".into(), 1, names("aaa_leaf", None)));
        found.take(7, Answer::Of("exb".into(), 1, names("bbb_leaf", None)));
        found.take(7, Answer::Names(2, names("both", None)));
        let of = |address, comm: &str| {
            let mut bytes = [0; 16];
            bytes[..comm.len()].copy_from_slice(comm.as_bytes());
            let whose = Whose {
                comm: Some(&bytes),
                is_known: false,
            };
            found.get(7, address, whose).unwrap().frames[0].clone()
        };
        assert_eq!(of(1, "exa"), "aaa_leaf");
        assert_eq!(of(1, "exb"), "bbb_leaf");
        assert_eq!(of(1, "renamed"), "[unknown: exec]");
        assert_eq!(of(2, "exa"), "both");
    }

    #[test]
    fn code_that_only_a_known_program_has_tells_whose_a_stack_is() {
        let names = |frame: &str, missing| Names {
            frames: vec![frame.to_owned()],
            missing,
        };
        let mut found = Found::default();
        for (address, missing) in [(1, Some(Missing::Replaced)), (2, Some(Missing::Unmapped))] {
            found.take(7, Answer::Names(address, names("[unknown]", missing)));
        }
        found.take(
            7,
            Answer::Names(3, names("[libc.so]", Some(Missing::Stripped))),
        );
        found.take(7, Answer::OfKnown(1, names("main", None)));
        let of = |places: &[u64]| {
            let whose = Whose {
                comm: None,
                is_known: found.is_known(7, places.iter().copied()),
            };
            found.get(7, places[0], whose).unwrap().frames[0].clone()
        };
        assert_eq!(of(&[1]), "[unknown]");
        assert_eq!(of(&[1, 2]), "[unknown]");
        assert_eq!(of(&[1, 3]), "main");
    }
}
