//! Ctrl-C: the first ends the run in order, the second at once. A lost terminal ends it in order, too.

use std::{
    ffi::c_int,
    fs,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Interval, MissedTickBehavior},
};

use super::output::Reader;

/// What the shell expects of a program that Ctrl-C ended.
const INTERRUPTED: c_int = 130;

/// How often it is looked whether somebody still reads.
const LOOK: Duration = Duration::from_millis(250);

/// A signal has come. The handler says so itself: whoever would be told may be waiting for the reader of the output.
static CAME: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// The next SIGINT or SIGTERM ends the program at once.
static KILLS: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Whether a signal has asked this program to end.
pub(super) fn has_come() -> bool {
    CAME.load(Ordering::Relaxed)
}

/// From here on the next signal ends the program at once: somebody is impatient. A lost terminal sends more than one
/// SIGHUP, and nobody is.
pub(super) fn second_kills() {
    KILLS.store(true, Ordering::Relaxed);
}

/// The same once results are on their way: whoever ends at this moment what has just ended by itself does not lose them,
/// and gets his way with one more signal.
pub(super) fn one_more_kills() {
    if has_come() {
        return second_kills();
    }
    for number in [SIGINT, SIGTERM] {
        if let Err(error) = flag::register(number, Arc::clone(&KILLS)) {
            log::debug!("a second signal ends nothing: {error}");
        }
    }
}

/// A write beyond the limit of file sizes (`ulimit -f`) fails then, as on a full disk, and does not kill.
pub(super) fn survive_file_limits() {
    if let Err(error) = flag::register(libc::SIGXFSZ, Arc::default()) {
        log::debug!("SIGXFSZ stays as it is: {error}");
    }
}

/// Leaves signals to the parent: a helper of a run is there until that has drawn what it collected, also where a signal was
/// sent to everything of our name (`pkill netprobe`). It ends with its parent.
pub(super) fn leave_to_parent() {
    for number in [SIGHUP, SIGINT, SIGTERM] {
        if let Err(error) = flag::register(number, Arc::default()) {
            log::debug!("signal {number} stays as it is: {error}");
        }
    }
}

/// Waits for SIGINT, SIGTERM, or SIGHUP unless that was to be ignored (nohup).
///
/// If it is told of one, also until nobody is left to read the output.
pub(super) struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
    /// Who reads, and when it is looked whether he still does.
    reader: Option<(Reader, Interval)>,
}

impl Stop {
    /// From here on the signals do not kill. Once in a run.
    pub(super) fn listen() -> Result<Self> {
        let listens_to_hangup = !ignores_hangup();
        for number in [SIGINT, SIGTERM] {
            flag::register_conditional_shutdown(number, INTERRUPTED, Arc::clone(&KILLS))
                .context("listen for signals")?;
        }
        for number in [SIGINT, SIGTERM]
            .into_iter()
            .chain(listens_to_hangup.then_some(SIGHUP))
        {
            flag::register(number, Arc::clone(&CAME)).context("listen for signals")?;
        }
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
            hangup: listens_to_hangup
                .then(|| signal(SignalKind::hangup()))
                .transpose()
                .context("listen for SIGHUP")?,
            reader: None,
        })
    }

    /// From here on a run also ends when the only one who could read its results has gone.
    pub(super) fn while_read(&mut self, reader: Option<Reader>) {
        self.reader = reader.map(|reader| {
            let mut look = tokio::time::interval(LOOK);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            (reader, look)
        });
    }

    /// Returns when the first signal comes, or the reader has gone; can be waited for again.
    pub(super) async fn wait(&mut self) {
        let is_unread = async {
            match &mut self.reader {
                Some((reader, look)) => loop {
                    look.tick().await;
                    if reader.has_gone() {
                        break;
                    }
                },
                None => std::future::pending().await,
            }
        };
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
            () = is_unread => {}
        }
    }
}

/// Whether this process was started so that it outlives its terminal. Unknown is no.
fn ignores_hangup() -> bool {
    let status = fs::read_to_string("/proc/self/status");
    status.is_ok_and(|status| has_hangup_ignored(&status))
}

/// Reads `SigIgn` of proc_pid_status(5), whose lowest bit is signal 1.
fn has_hangup_ignored(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Signal as Number, getpid, kill_process};

    #[test]
    fn nohup_is_respected() {
        assert!(has_hangup_ignored("Name:\tx\nSigIgn:\t0000000000001001\n"));
        assert!(!has_hangup_ignored("SigIgn:\t0000000000001000\n"));
        assert!(!has_hangup_ignored(""));
    }

    /// What has ended by itself survives one signal. The handlers are those of all tests of this process, so that this is
    /// part of the one that follows.
    fn one_signal_is_survived() {
        let is_killed = || KILLS.load(Ordering::Relaxed);
        assert!(!has_come() && !is_killed());
        flag::register_conditional_shutdown(SIGTERM, INTERRUPTED, Arc::clone(&KILLS)).unwrap();
        one_more_kills();
        assert!(!is_killed());
        kill_process(getpid(), Number::TERM).unwrap();
        while !is_killed() {
            std::thread::yield_now();
        }
        KILLS.store(false, Ordering::Relaxed);
    }

    /// Also where so much happens that no wait lasts until it is looked.
    async fn a_gone_reader_ends_it(stop: &mut Stop) {
        let (reader, writer) = std::io::pipe().unwrap();
        let writer = std::os::fd::OwnedFd::from(writer);
        stop.while_read(Reader::of(&writer.into()));
        let brief = LOOK / 10;
        let waited = tokio::time::timeout(brief, stop.wait());
        assert!(waited.await.is_err());
        drop(reader);
        let mut waits = 0;
        while tokio::time::timeout(brief, stop.wait()).await.is_err() {
            waits += 1;
            assert!(waits < 100);
        }
    }

    #[test]
    fn a_lost_terminal_ends_a_run_in_order() {
        one_signal_is_survived();
        if ignores_hangup() {
            println!("SKIP this process ignores SIGHUP");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            let mut stop = Stop::listen().unwrap();
            kill_process(getpid(), Number::HUP).unwrap();
            let stopped = tokio::time::timeout(Duration::from_secs(5), stop.wait());
            stopped.await.unwrap();
            assert!(has_come());
            a_gone_reader_ends_it(&mut stop).await;
            // What follows it does not kill.
            second_kills();
            kill_process(getpid(), Number::HUP).unwrap();
        });
    }
}
