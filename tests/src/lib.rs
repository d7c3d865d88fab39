//! What the tests of the whole program share.
//!
//! - [`netns`]: private network namespaces, joined by a cable, with their sysctls and firewall;
//! - [`traffic`]: connections and packets that provoke an incident a known number of times;
//! - [`process`]: processes with a name of their own, to be found as owners;
//! - [`counters`]: what the kernel counted meanwhile;
//! - [`program`]: the netprobe under test, and what it can do here;
//! - [`probe`]: one that runs, with its events ([`event`]) and its accounts ([`accounts`]);
//! - [`schema`]: whether what it writes is what `netprobe schema` says;
//! - [`skip`]: what cannot run here, and why;
//! - [`bpf`]: whether objects of a dead process are gone;
//! - [`tracepoints`]: whether they fire wherever the kernel counts.
#![expect(
    clippy::missing_panics_doc,
    reason = "a test ends with a panic wherever something is not as it should be"
)]

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

pub mod accounts;
pub mod bpf;
pub mod cgroup;
pub mod counters;
pub mod event;
pub mod memory;
pub mod netns;
pub mod probe;
pub mod process;
pub mod program;
pub mod ready;
pub mod schema;
pub mod skip;
pub mod tracepoints;
pub mod traffic;
pub mod watcher;

/// Nothing that a test waits for takes longer, also in an emulated machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `is_so`; panics with `what` when [`PATIENCE`] is at its end.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(5));
    }
}
