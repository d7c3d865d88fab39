//! The processes of an incident: netprobe itself, started again with a [`Workload`] to do.
//!
//! Each dies with the demo, also when that is killed: the kernel sends it SIGKILL when its parent
//! ends. None of them makes processes of its own.

use std::{
    env,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use super::{
    network::{Netns, enter_path},
    stage::Process,
    workload::{Tally, Workload},
};

/// How long a process may take until it is ready: in an emulated machine, filling tens of thousands
/// of ports takes a while.
const READY_WITHIN: Duration = Duration::from_mins(1);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What a process is told on its command line.
#[derive(Debug, Serialize, Deserialize)]
pub struct Part {
    parent: i32,
    name: String,
    netns: PathBuf,
    workload: Workload,
}

impl Part {
    /// Plays it in this process, until it is killed.
    pub fn play(&self) -> Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL)).context("die with the demo")?;
        // It may have died before that.
        if getppid() != Pid::from_raw(self.parent) {
            bail!("the demo that started this process is gone");
        }
        rustix::thread::set_name(&std::ffi::CString::new(self.name.as_str())?)
            .context("take a name")?;
        enter_path(&self.netns)?;
        self.workload.run()
    }
}

/// A running process of an incident.
#[derive(Debug)]
pub struct Actor {
    /// What it is, and does.
    pub process: Process,
    child: Child,
    tally: Arc<Mutex<Option<Tally>>>,
}

impl Actor {
    /// Starts it and waits until it is ready.
    ///
    /// It dies with the calling thread, which must therefore be one that stays.
    pub(super) fn start(process: &Process, netns: &Netns) -> Result<Self> {
        let part = Part {
            parent: rustix::process::getpid().as_raw_nonzero().get(),
            name: process.name.to_owned(),
            netns: netns.path().into(),
            workload: process.workload.clone(),
        };
        let mut child = Command::new("/proc/self/exe")
            .arg0(env::args_os().next().unwrap_or_else(|| "netprobe".into()))
            .arg("play")
            .arg(serde_json::to_string(&part)?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Ctrl-C at the terminal is for the demo alone.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", process.name))?;
        let tally = Arc::new(Mutex::new(None));
        if let Some(stdout) = child.stdout.take() {
            let tally = Arc::clone(&tally);
            let following = thread::Builder::new();
            following
                .spawn(move || follow(BufReader::new(stdout), &tally))
                .context("start a thread")?;
        }
        let mut actor = Self {
            process: process.clone(),
            child,
            tally,
        };
        actor.wait_until_ready()?;
        Ok(actor)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        while self.tally().is_none() {
            self.check()?;
            if Instant::now() > deadline {
                bail!("{} did not become ready", self.process.name);
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Fails if it has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        match self.child.try_wait().context("look after a process")? {
            Some(status) => bail!("{} ended: {status}", self.process.name),
            None => Ok(()),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it fares; nothing until it is ready.
    pub fn tally(&self) -> Option<Tally> {
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.clone()
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// Keeps the last tally that a process told.
fn follow(lines: impl BufRead, tally: &Mutex<Option<Tally>>) {
    for line in lines.lines().map_while(Result::ok) {
        if let Ok(told) = serde_json::from_str(&line) {
            *tally.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
        }
    }
}
