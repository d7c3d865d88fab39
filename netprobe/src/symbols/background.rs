//! The client on a thread of its own, so that most names are there when sampling ends, and neither
//! a slow worker nor a hostile process holds up who asks.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};

use super::{
    client::{Client, Several},
    found::Found,
    unwind::{CopiedStack, Unwound},
};

/// How long the last answers may take, once nothing else is left to do.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long the worker may take to start.
const START: Duration = Duration::from_secs(1);

/// Something to ask the worker.
#[derive(Debug)]
enum Ask {
    See(u32),
    Look(Vec<u32>),
    Resolve(BTreeMap<u32, BTreeSet<u64>>),
    Unwind(Vec<(u32, CopiedStack)>),
}

/// What the worker found out.
#[derive(Debug)]
enum Answered {
    Names(Found, Several),
    Stacks(Vec<Followed>),
}

/// The functions of a copied stack and whether its process needs copying at all; `None` if the
/// worker failed.
pub type Followed = Option<(Unwound, bool)>;

/// A running thread and what was asked of it.
#[derive(Debug)]
pub struct Background {
    asks: Sender<Ask>,
    answers: Receiver<Answered>,
    /// Questions for names without an answer.
    waiting: usize,
    /// The same for stacks.
    unwinding: usize,
    unwound: Vec<Followed>,
    /// Addresses that were asked for, by process.
    asked: BTreeMap<u32, BTreeSet<u64>>,
    found: Found,
    several: Several,
}

impl Background {
    /// Starts the thread and the worker.
    pub fn start(uses_debug_info: bool) -> Self {
        let (asks, asked) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        thread::spawn(move || serve(uses_debug_info, &asked, &answer));
        Self {
            asks,
            answers,
            waiting: 0,
            unwinding: 0,
            unwound: Vec::new(),
            asked: BTreeMap::new(),
            found: Found::default(),
            several: Several::new(),
        }
    }

    /// Waits until the worker has seen what is running, or that takes long.
    pub fn wait_ready(&mut self) {
        // There is no such process: the answer is only that it answers.
        self.resolve(BTreeMap::from([(0, BTreeSet::new())]));
        let deadline = Instant::now() + START;
        while self.waiting > 0 && self.take_next(deadline) {}
    }

    /// Has the worker look at a process while it lives.
    pub fn see(&self, pid: u32) {
        // A thread that is gone shows when it is asked for names.
        let _gone = self.asks.send(Ask::See(pid));
    }

    /// Has the worker look whether young processes are other programs by now, and whether processes have other libraries,
    /// these first.
    pub fn look(&self, first: Vec<u32>) {
        let _gone = self.asks.send(Ask::Look(first));
    }

    /// Asks for names, without waiting for them; those that were asked for before are left out.
    pub fn ask(&mut self, pid: u32, addresses: impl Iterator<Item = u64>) {
        let known = self.asked.entry(pid).or_default();
        let new: BTreeSet<u64> = addresses.filter(|address| known.insert(*address)).collect();
        if !new.is_empty() {
            self.resolve(BTreeMap::from([(pid, new)]));
        }
    }

    fn resolve(&mut self, wanted: BTreeMap<u32, BTreeSet<u64>>) {
        if self.asks.send(Ask::Resolve(wanted)).is_ok() {
            self.waiting += 1;
        }
    }

    /// Has the worker see whether the processes asked for run other programs by now, and how their threads are called.
    pub fn check(&mut self) {
        let pids = self.asked.keys().map(|pid| (*pid, BTreeSet::new()));
        self.resolve(pids.collect());
    }

    /// Asks for the functions of copied stacks, without waiting for them.
    pub fn unwind(&mut self, stacks: Vec<(u32, CopiedStack)>) {
        if self.asks.send(Ask::Unwind(stacks)).is_ok() {
            self.unwinding += 1;
        }
    }

    /// What was unwound since the last time, in the order in which it was asked for.
    pub fn unwound(&mut self) -> Vec<Followed> {
        while let Ok(answer) = self.answers.try_recv() {
            self.take(answer);
        }
        mem::take(&mut self.unwound)
    }

    /// What is still to be unwound, or was until the time was over.
    pub fn wait_unwound(&mut self) -> Vec<Followed> {
        let deadline = Instant::now() + PATIENCE;
        while self.unwinding > 0 && self.take_next(deadline) {}
        mem::take(&mut self.unwound)
    }

    /// Waits for an answer; false if there is none.
    fn take_next(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = self.answers.recv_timeout(left);
        answer.is_ok_and(|answer| {
            self.take(answer);
            true
        })
    }

    fn take(&mut self, answer: Answered) {
        match answer {
            Answered::Names(found, several) => {
                self.found.extend(found);
                self.several.extend(several);
                self.waiting -= 1;
            }
            Answered::Stacks(stacks) => {
                self.unwound.extend(stacks);
                self.unwinding -= 1;
            }
        }
    }

    /// All names, after the worker has answered or its time was over. The worker is gone then.
    pub fn finish(mut self) -> Found {
        let deadline = Instant::now() + PATIENCE;
        self.check();
        self.wait_names(deadline);
        // What was named while a process ran its first program, or had its first library, may be of its second.
        let again = mem::take(&mut self.several).into_iter();
        let again = again.filter_map(|pid| Some((pid, self.asked.get(&pid)?.clone())));
        let again: BTreeMap<_, _> = again.collect();
        if !again.is_empty() {
            self.resolve(again);
            self.wait_names(deadline);
        }
        self.found
    }

    fn wait_names(&mut self, deadline: Instant) {
        while self.waiting > 0 {
            if !self.take_next(deadline) {
                log::warn!("not all functions of processes were named in time");
                return;
            }
        }
    }
}

fn serve(uses_debug_info: bool, asked: &Receiver<Ask>, answer: &Sender<Answered>) {
    let mut client = Client::start(uses_debug_info);
    for ask in asked {
        match ask {
            Ask::See(pid) => client.see(pid),
            Ask::Look(first) => client.look(first),
            Ask::Resolve(wanted) => {
                let (found, several) = client.resolve(&wanted);
                if answer.send(Answered::Names(found, several)).is_err() {
                    return;
                }
            }
            Ask::Unwind(stacks) => {
                if answer
                    .send(Answered::Stacks(client.unwind(&stacks)))
                    .is_err()
                {
                    return;
                }
            }
        }
    }
}
