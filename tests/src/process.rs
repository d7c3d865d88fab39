//! Processes with a name and id of their own, to be found as the owners of events.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::abort,
    time::Duration,
};

use rustix::{
    process::{Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, waitpid},
    thread::set_name,
    time::{ClockId, clock_gettime},
};

/// CPU time of this process: other load on the machine does not count.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).expect("a time since the start");
    let nanos = u32::try_from(time.tv_nsec).expect("less than a second");
    Duration::new(seconds, nanos)
}

/// A child process that does one thing and stays until it is dropped.
#[derive(Debug)]
pub struct Actor {
    pid: Pid,
    line: UnixStream,
}

/// The child's end of the line to the test.
#[derive(Debug)]
pub struct Stage(UnixStream);

impl Actor {
    /// Starts a process of this name, which does `work` and then waits for its end.
    ///
    /// `name` has at most 15 bytes, as the kernel keeps no more.
    pub fn start(name: &str, work: impl FnOnce(&mut Stage)) -> Self {
        let name = std::ffi::CString::new(name).expect("a name has no NUL");
        let (line, stage) = UnixStream::pair().expect("make a pair of sockets");
        // SAFETY: the child has this thread alone, never returns, and glibc makes its allocator
        // usable after a fork.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid > 0 {
            let pid = Pid::from_raw(pid).expect("a process id is positive");
            return Self { pid, line };
        }
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            set_parent_process_death_signal(Some(Signal::KILL)).expect("die with the parent");
            set_name(&name).expect("take a name");
            drop(line);
            let mut stage = Stage(stage);
            work(&mut stage);
            stage.tell(b'.');
            stage.await_byte();
        }));
        drop(played);
        abort()
    }

    /// Its process id.
    pub fn pid(&self) -> u64 {
        u64::from(self.pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// Waits until it says something; panics if it died instead.
    #[track_caller]
    pub fn hear(&mut self) -> u8 {
        self.line
            .set_read_timeout(Some(crate::PATIENCE))
            .expect("bound the wait");
        let mut byte = [0];
        self.line
            .read_exact(&mut byte)
            .expect("the process is alive and well");
        byte[0]
    }

    /// Gives it a cue.
    pub fn cue(&mut self) {
        self.line.write_all(b"!").expect("the process listens");
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // It may have ended by itself.
        kill_process(self.pid, Signal::KILL).ok();
        waitpid(Some(self.pid), WaitOptions::empty()).ok();
    }
}

impl Stage {
    /// Says something to the test.
    pub fn tell(&mut self, what: u8) {
        self.0.write_all(&[what]).expect("the test listens");
    }

    /// Waits for a cue; the process ends if the test is gone.
    pub fn await_byte(&mut self) {
        let mut byte = [0];
        if self.0.read_exact(&mut byte).is_err() {
            abort();
        }
    }
}
