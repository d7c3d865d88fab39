//! The client on a thread of its own, so that most names are there when sampling ends, and neither
//! a slow worker nor a hostile process holds up who asks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};

use super::client::{Client, Found};

/// How long the last answers may take, once nothing else is left to do.
const PATIENCE: Duration = Duration::from_secs(8);

/// Something to ask the worker.
#[derive(Debug)]
enum Ask {
    See(u32),
    Resolve(BTreeMap<u32, BTreeSet<u64>>),
}

/// A running thread and what was asked of it.
#[derive(Debug)]
pub struct Background {
    asks: Sender<Ask>,
    answers: Receiver<Found>,
    /// Questions without an answer.
    waiting: usize,
    /// Addresses that were asked for, by process.
    asked: BTreeMap<u32, BTreeSet<u64>>,
    found: Found,
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
            asked: BTreeMap::new(),
            found: Found::new(),
        }
    }

    /// Has the worker look at a process while it lives.
    pub fn see(&self, pid: u32) {
        // A thread that is gone shows when it is asked for names.
        let _gone = self.asks.send(Ask::See(pid));
    }

    /// Asks for names, without waiting for them; those that were asked for before are left out.
    pub fn ask(&mut self, pid: u32, addresses: impl Iterator<Item = u64>) {
        let known = self.asked.entry(pid).or_default();
        let new: BTreeSet<u64> = addresses.filter(|address| known.insert(*address)).collect();
        if !new.is_empty()
            && self
                .asks
                .send(Ask::Resolve(BTreeMap::from([(pid, new)])))
                .is_ok()
        {
            self.waiting += 1;
        }
    }

    /// All names, after the worker has answered or its time was over. The worker is gone then.
    pub fn finish(mut self) -> Found {
        drop(self.asks);
        let deadline = Instant::now() + PATIENCE;
        while self.waiting > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(found) = self.answers.recv_timeout(left) else {
                log::warn!("not all functions of processes were named in time");
                break;
            };
            self.found.extend(found);
            self.waiting -= 1;
        }
        self.found
    }
}

fn serve(uses_debug_info: bool, asked: &Receiver<Ask>, answer: &Sender<Found>) {
    let mut client = Client::start(uses_debug_info);
    for ask in asked {
        match ask {
            Ask::See(pid) => client.see(pid),
            Ask::Resolve(wanted) => {
                if answer.send(client.resolve(&wanted)).is_err() {
                    return;
                }
            }
        }
    }
}
