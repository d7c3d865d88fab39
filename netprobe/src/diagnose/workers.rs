//! What to do about the processes of a listener that do not accept, or not fast enough: wake them,
//! give them what they lack, or have more of them.

use std::collections::HashSet;

use super::{
    accepting::{self, Accepting},
    overflow::Overflow,
    sizing::several,
    window::Window,
};
use crate::{
    observe::{diag::Listener, processes::Process},
    report::diagnosis::Finding,
};

/// Workers that are busy for a larger share of the time let a queue grow before them at every burst.
const BUSY: f64 = 0.8;

/// The processes of a listener, and how they accept.
pub(super) struct Workers<'a> {
    pub(super) window: &'a Window,
    pub(super) listener: &'a Listener,
    pub(super) accepting: &'a Accepting,
    pub(super) overflow: Option<&'a Overflow>,
}

impl Workers<'_> {
    /// Adds what helps.
    pub(super) fn advise(&self, found: Finding) -> Finding {
        let holder = self.window.holder(self.listener);
        match (holder, self.accepting.accepted) {
            (Some(holder), _) if holder.has_no_descriptors() => found.command(
                format!(
                    "give {} (pid {}) more file descriptors: accept() fails while it has none (see fd-exhaustion)",
                    holder.comm, holder.pid
                ),
                "none",
            ),
            (holder, Some(0) | None) => wake(found, holder),
            (holder, Some(_)) if self.accepting.is_stalled() => wake(found, holder),
            (holder, Some(accepted)) => match self.accepting.busy {
                Some(busy) if busy.1 > 0.0 => self.more(found, accepted, busy),
                _ => wake(found, holder),
            },
        }
    }

    /// Little's law: busy workers = arrivals/s x service time, and service time = workers / accepts/s
    /// while all are busy.
    fn more(&self, found: Finding, accepted: u64, (came, taken): (f64, f64)) -> Finding {
        let (workers, verb) = self.workers();
        let (arrivals, at_most) = self.arrivals(accepted);
        let arrival_rate = self.window.rate(arrivals).max(came);
        #[expect(clippy::cast_precision_loss, reason = "a few processes")]
        let service_s = workers as f64 / taken;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a bounded positive number"
        )]
        let wanted = (arrival_rate * service_s / BUSY).ceil().clamp(1.0, 1e6) as u64;
        found.application(
            format!(
                "give it more workers: {at_most}{arrival_rate:.1} arrivals/s x {service_s:.3} s per connection and \
                 process / {BUSY}, so that they are busy {:.0} % of the time, rounded up, = {wanted}, where {} now {verb}",
                BUSY * 100.0,
                several(workers as u64, "process", "processes"),
            ),
            &[("workers", wanted.to_string())],
            "each worker takes memory, and perhaps a connection of the database behind it",
        )
    }

    /// How many processes serve its connections, and what they are known to do. A parent of others that hold the
    /// listener, too, may only watch over them: so it is where its children were seen to have connections of the
    /// listener, and it was not.
    fn workers(&self) -> (usize, &'static str) {
        let holders: Vec<&Process> = self.window.processes.holders(self.listener.ino).collect();
        let served = self.window.events.of("lifetimes").iter().filter(|end| {
            end.is("role", "server") && end.small("sport") == Some(self.listener.port)
        });
        let serving: HashSet<u32> = served.filter_map(|end| end.small("pid")).collect();
        let is_master = |holder: &Process| {
            let mut children = holders.iter().filter(|other| other.parent == holder.pid);
            !serving.contains(&holder.pid) && children.any(|child| serving.contains(&child.pid))
        };
        let masters = holders.iter().filter(|holder| is_master(holder)).count();
        let verb = match (masters, holders.len()) {
            (0, 0 | 1) => "holds the listener",
            (0, _) => "hold the listener",
            (_, 2) => "accepts from it",
            _ => "accept from it",
        };
        ((holders.len() - masters).max(1), verb)
    }

    /// How many clients came, turned away or not, and what to say if some are counted more than once.
    fn arrivals(&self, accepted: u64) -> (u64, &'static str) {
        let admitted = self.accepting.came.unwrap_or(accepted);
        let Some(overflow) = self.overflow else {
            return (admitted, "");
        };
        if let Some(clients) = overflow.clients {
            return (admitted + clients, "");
        }
        let most = admitted + overflow.refused;
        let local = accepting::local_attempts(self.window, self.listener.port);
        // Who was let in came from this machine, so those who were not did as well.
        if local >= admitted {
            return (local.min(most), "");
        }
        (most, "at most (who tried again is counted again) ")
    }
}

/// What to do about a process that does not call accept().
fn wake(found: Finding, holder: Option<&Process>) -> Finding {
    const HELD: &str = "`netprobe lifetimes --open --longest` shows who holds its workers";
    let text = match holder.map(|holder| (holder, holder.state)) {
        Some((holder, Some('T'))) => {
            return found.command(
                format!(
                    "pid {pid} is stopped (state T): kill -CONT {pid}, and find out who sent SIGSTOP",
                    pid = holder.pid
                ),
                "none",
            );
        }
        Some((holder, Some('t'))) => format!("pid {} is held by a debugger (state t)", holder.pid),
        Some((holder, Some('D'))) => format!(
            "pid {pid} is blocked in the kernel (state D), on a disk or a remote file system, as a rule: see \
             /proc/{pid}/stack",
            pid = holder.pid
        ),
        Some((holder, _)) => format!(
            "find out why pid {pid} does not call accept(): all workers busy or blocked (see /proc/{pid}/stack; {HELD})",
            pid = holder.pid
        ),
        None => format!("find out why nobody calls accept(); {HELD}"),
    };
    found.application(text, &[], "none")
}
