//! A thread that looks after the programs while events are read elsewhere: it attaches what
//! waits for a module, and opens and closes the windows in which candidate ports are counted.

use std::{
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use super::{session::Session, windows};
/// How often modules are looked for.
const MODULES: Duration = Duration::from_secs(1);

/// The running thread.
#[derive(Debug)]
pub struct Keeper {
    stop: Sender<()>,
    thread: JoinHandle<Session>,
}

impl Keeper {
    /// Hands the session to the thread.
    pub fn start(session: Session) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || keep(session, &stopped));
        Self { stop, thread }
    }

    /// Ends the thread and takes the session back.
    pub fn finish(self) -> Result<Session> {
        drop(self.stop);
        self.thread
            .join()
            .map_err(|_panic| anyhow!("the thread that keeps the probes panicked"))
    }
}

fn keep(mut session: Session, stopped: &Receiver<()>) -> Session {
    let mut number = 0;
    let mut has_windows = matches!(session.windowed(), Some(attached) if attached.result.is_ok());
    let mut next_window = Instant::now();
    loop {
        session.flush_log();
        if session.attach_modules() {
            log::info!("a module was loaded; its probes are attached");
        }
        let mut wait = MODULES;
        if has_windows {
            if Instant::now() >= next_window {
                number += 1;
                match window(&mut session, number, stopped) {
                    Ok(pause) => next_window = Instant::now() + pause,
                    Err(error) => {
                        log::warn!("candidate ports are not counted: {error:#}");
                        has_windows = false;
                    }
                }
            }
            wait = wait.min(next_window.saturating_duration_since(Instant::now()));
        }
        match stopped.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return session,
        }
    }
}

/// Opens a window, closes it, and says how long to pause.
fn window(session: &mut Session, number: u64, stopped: &Receiver<()>) -> Result<Duration> {
    let before = session.candidate_calls()?;
    let links = session.open_windowed()?;
    session.set_window(number)?;
    // Ends early when the run does.
    let _stopping = stopped.recv_timeout(windows::OPEN);
    session.set_window(0)?;
    drop(links);
    let calls = session.candidate_calls()? - before;
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    Ok(windows::pause(
        calls,
        u32::try_from(cpus).unwrap_or(u32::MAX),
    ))
}
