//! What the processes of a demo do: real sockets, real packets.
//!
//! A workload is data that the demo hands to a process of its own on the command line;
//! [`Workload::run`] is what that process does until it is killed. Each tells on stdout how it
//! fares, one [`Tally`] per line; the first line says that it is ready.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::{self, Write},
    rc::Rc,
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

pub use datagrams::{Datagrams, Sink};
pub use flood::Flood;
pub use request::{Parting, Request};
pub use serve::{Closing, Serve};

mod datagrams;
mod flood;
mod request;
mod serve;

/// How often a process tells how it fares.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// What a process does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Listens, and answers requests.
    Serve(Serve),
    /// Connects, and sends requests.
    Request(Request),
    /// Opens connections from addresses that nobody has.
    Flood(Flood),
    /// Sends datagrams at a rate.
    Send(Datagrams),
    /// Takes datagrams.
    Take(Sink),
    /// Does nothing, and is there to be seen.
    Rest,
}

impl Workload {
    /// Does it, in the namespace of this thread, until the process is killed.
    pub(super) fn run(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime")?;
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&runtime, async {
            match self {
                Self::Serve(serve) => serve.run().await,
                Self::Request(request) => request.run().await,
                Self::Flood(flood) => flood.run().await,
                Self::Send(datagrams) => datagrams.run().await,
                Self::Take(sink) => sink.run().await,
                Self::Rest => Account::default().keep_reporting().await,
            }
        })
    }
}

/// What became of the connections that a process opened or was given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Connections that were begun or accepted, or packets of a flood.
    pub started: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// Connections that failed, by errno.
    pub failed: BTreeMap<i32, u64>,
    /// Connections given up because the peer took too long.
    pub gave_up: u64,
    /// The longest that an answered request took, from the connect on, in milliseconds.
    pub slowest_ms: u64,
}

impl Tally {
    /// Connections that came to a bad end.
    pub fn bad(&self) -> u64 {
        self.gave_up + self.failed.values().sum::<u64>()
    }
}

/// The tally of a process, shared by its tasks.
#[derive(Clone, Debug, Default)]
struct Account(Rc<RefCell<Tally>>);

impl Account {
    fn change(&self, change: impl FnOnce(&mut Tally)) {
        change(&mut self.0.borrow_mut());
    }

    fn fail(&self, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(0);
        self.change(|tally| *tally.failed.entry(errno).or_default() += 1);
    }

    /// Writes it to stdout, for the demo to read.
    fn report(&self) -> Result<()> {
        let line = serde_json::to_string(&*self.0.borrow())?;
        let mut out = io::stdout().lock();
        writeln!(out, "{line}").context("tell the demo")?;
        out.flush().context("tell the demo")
    }

    /// Says that the process is ready, and from then on how it fares.
    async fn keep_reporting(&self) -> Result<()> {
        loop {
            self.report()?;
            tokio::time::sleep(REPORT_INTERVAL).await;
        }
    }
}
