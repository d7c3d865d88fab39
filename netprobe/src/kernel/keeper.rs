//! A thread that looks after the programs while events are read elsewhere: it attaches what
//! waits for a module, opens and closes the windows in which candidate ports are counted, and
//! measures what it all costs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use super::{
    cost::{LOOKS, Meter},
    sampler,
    session::Session,
    windows,
};
use crate::{observe::clock, report::Cost};

/// So long after its end nobody has come for the session.
const FORGOTTEN: Duration = Duration::from_secs(1);
/// How often modules are looked for.
const MODULES: Duration = Duration::from_secs(1);

/// Whether the programs leave something out to stay cheap, for whoever looks at other things meanwhile.
#[derive(Clone, Debug, Default)]
pub struct Saving(Arc<AtomicBool>);

impl Saving {
    /// Whether they do now.
    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, is_on: bool) {
        self.0.store(is_on, Ordering::Relaxed);
    }
}

/// The running thread.
#[derive(Debug)]
pub struct Keeper {
    stop: Sender<()>,
    thread: JoinHandle<(Session, Cost)>,
}

impl Keeper {
    /// Hands the session to the thread. What netprobe costs is kept below `limit`, a share of the
    /// machine, if the programs were told that they are governed. Soon after `ends` it takes the programs out, if nobody
    /// has come for them: then the output waits for its reader.
    pub fn start(session: Session, limit: f64, ends: Option<Instant>) -> Self {
        Self::start_with(session, limit, ends, Saving::default())
    }

    /// As [`Keeper::start`], and lets others know when it saves.
    pub fn start_with(session: Session, limit: f64, ends: Option<Instant>, saving: Saving) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || keep(session, &stopped, (limit, ends), &saving));
        Self { stop, thread }
    }

    /// Ends the thread and takes the session back, with the cost of the run.
    pub fn finish(self) -> Result<(Session, Cost)> {
        drop(self.stop);
        self.thread
            .join()
            .map_err(|_panic| anyhow!("the thread that keeps the probes panicked"))
    }
}

fn keep(
    mut session: Session,
    stopped: &Receiver<()>,
    (limit, ends): (f64, Option<Instant>),
    saving: &Saving,
) -> (Session, Cost) {
    let mut meter = Meter::new(limit, &session);
    let mut windows = Windows::of(&session, limit);
    let mut next_modules = Instant::now();
    let mut losses = Losses::default();
    loop {
        session.flush_log();
        if Instant::now() >= next_modules {
            next_modules += MODULES;
            for change in session.attach_modules() {
                log::log!(change.level(), "{change}");
            }
        }
        windows.open_if_due(&mut session, stopped);
        let wait = windows.wait().min(LOOKS);
        match stopped.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return end(session, meter),
        }
        if ends.is_some_and(|ends| ends.elapsed() >= FORGOTTEN) {
            session.detach();
            let _ended = stopped.recv();
            return end(session, meter);
        }
        if !meter.is_due() {
            continue;
        }
        losses.tell(&session);
        // Ends early when the run does.
        meter.measure(&mut session, |slice| {
            let _stopping = stopped.recv_timeout(slice);
        });
        saving.set(meter.is_saving());
    }
}

fn end(session: Session, mut meter: Meter) -> (Session, Cost) {
    let cost = meter.finish(&session);
    (session, cost)
}

/// Says when the ring had no room, once it happens, and again whenever that has doubled.
#[derive(Debug, Default)]
struct Losses {
    told: u64,
}

impl Losses {
    fn tell(&mut self, session: &Session) {
        // Who watches sparsely says at the end what that means.
        if session.config().sparse != 0 {
            return;
        }
        let lost = session.all_counters().reserve_failed;
        if lost >= self.told.saturating_mul(2).max(1) {
            self.told = lost;
            log::warn!("LOST: the ring had no room for {lost} events so far, which are counted");
        }
    }
}

/// When candidate ports are counted next.
struct Windows {
    is_there: bool,
    number: u64,
    next: Instant,
    limit: f64,
}

impl Windows {
    fn of(session: &Session, limit: f64) -> Self {
        Self {
            is_there: session
                .windowed()
                .is_some_and(|attached| attached.result.is_ok()),
            number: 0,
            next: Instant::now(),
            limit,
        }
    }

    fn open_if_due(&mut self, session: &mut Session, stopped: &Receiver<()>) {
        if !self.is_there || Instant::now() < self.next {
            return;
        }
        self.number += 1;
        match window(session, self.number, stopped, self.limit) {
            Ok(pause) => self.next = Instant::now() + pause,
            Err(error) => {
                log::warn!("candidate ports are not counted: {error:#}");
                self.is_there = false;
            }
        }
    }

    fn wait(&self) -> Duration {
        if self.is_there {
            self.next.saturating_duration_since(Instant::now())
        } else {
            Duration::MAX
        }
    }
}

/// Opens a window, closes it, and says how long to pause.
fn window(
    session: &mut Session,
    number: u64,
    stopped: &Receiver<()>,
    limit: f64,
) -> Result<Duration> {
    let (before, began) = (session.candidate_calls()?, clock::thread_cpu());
    let links = session.open_windowed()?;
    session.set_window(number)?;
    // Ends early when the run does.
    let _stopping = stopped.recv_timeout(windows::OPEN);
    session.set_window(0)?;
    drop(links);
    let calls = session.candidate_calls()? - before;
    Ok(windows::pause(
        calls,
        clock::thread_cpu().saturating_sub(began),
        sampler::online(),
        limit,
    ))
}
