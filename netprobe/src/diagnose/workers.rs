//! What to do about the processes of a listener that do not accept, or not fast enough: wake them,
//! give them what they lack, or have more served at once.

use std::collections::BTreeSet;

use super::{
    accepting::{self, Accepting},
    attempts::{Attempts, SYNS},
    cpu_time::Lack,
    halted::{self, Halt},
    overflow::{self, Overflow},
    sizing::several,
    slow_requests,
    window::{Netns, Window},
    zero_window,
};
use crate::{
    observe::{
        diag::{Listener, QUIET_MS},
        processes::Process,
    },
    report::diagnosis::Finding,
};

/// Of more workers.
const RISK: &str = "each worker takes memory, and perhaps a connection of the database behind it";

/// Of clients that are known by their attempts only: there are more if they give up sooner.
const ABOUT: &str = "at least about ";

/// Workers that are busy for a larger share of the time let a queue grow before them at every burst.
pub(super) const BUSY: f64 = 0.8;

/// The processes of a listener, and how they accept.
pub(super) struct Workers<'a> {
    pub(super) window: &'a Window,
    pub(super) netns: &'a Netns,
    pub(super) listener: &'a Listener,
    pub(super) accepting: &'a Accepting,
    pub(super) overflow: Option<&'a Overflow>,
    /// Those that wait for it with their own clients.
    pub(super) before: &'a [Before],
}

/// A service that waits for another, and what it passes on.
#[derive(Clone, Debug)]
pub(super) struct Before {
    /// How it is called.
    pub(super) name: String,
    /// Connections that come to it each second.
    pub(super) arrivals: f64,
    /// What to say if that is an estimate.
    pub(super) about: &'static str,
    /// Connections that it opens for each that it accepts.
    pub(super) each: f64,
    /// Connections that it opens each second now.
    pub(super) opens: f64,
}

/// What comes each second, and how that is known.
struct Arrivals {
    rate: f64,
    /// What to say if that is an estimate.
    about: &'static str,
    text: String,
}

impl Workers<'_> {
    /// Adds what helps.
    pub(super) fn advise(&self, found: Finding) -> Finding {
        let holder = self.window.holder(self.listener);
        let sockets = self.netns.after.sockets.as_ref();
        let clients = sockets.and_then(|sockets| sockets.clients.get(&self.listener.port));
        let found = match clients {
            Some(clients) if zero_window::holds(clients, clients.held) => {
                zero_window::advise(found, clients)
            }
            Some(clients) if slow_requests::holds(clients, clients.held) => {
                slow_requests::advise(found, clients)
            }
            _ => found,
        };
        match (holder, self.accepting.accepted) {
            (Some(holder), _) if holder.has_no_descriptors() => found.command(
                format!(
                    "give {} (pid {}) more file descriptors: accept() fails while it has none (see fd-exhaustion)",
                    holder.comm, holder.pid
                ),
                "none",
            ),
            (_, Some(0) | None) => self.wake(found),
            (_, Some(_)) if self.accepting.is_stalled() => self.wake(found),
            (_, Some(accepted)) => match self.accepting.busy {
                Some(busy) if busy.1 > 0.0 => self.more(found, accepted, busy),
                _ => self.wake(found),
            },
        }
    }

    /// Adds what to do about processes that do not call accept().
    fn wake(&self, found: Finding) -> Finding {
        let throttled = self
            .lack()
            .filter(|lack| matches!(lack, Lack::Throttled(..)));
        let found = match throttled {
            Some(lack) => lack.advise(found, None).0,
            None => found,
        };
        wake(found, &self.acceptors(), self.accepting.served)
    }

    /// The CPU time that they lack.
    pub(super) fn lack(&self) -> Option<Lack<'_>> {
        Lack::of(self.window, self.listener.ino)
    }

    /// Those of its processes that are there to accept: not the one that only started all others.
    fn acceptors(&self) -> Vec<&Process> {
        let holders: Vec<&Process> = self.window.processes.holders(self.listener.ino).collect();
        let is_master = |process: &&Process| {
            let mut others = holders.iter().filter(|other| other.pid != process.pid);
            holders.len() > 1 && others.all(|other| other.parent == process.pid)
        };
        let acceptors = holders.iter().filter(|process| !is_master(process));
        acceptors.copied().collect()
    }

    /// Connections that want to come each second, turned away or not, and what to say if that is an estimate.
    pub(super) fn arrival_rate(&self) -> (f64, &'static str) {
        let accepted = self.accepting.accepted.unwrap_or(0);
        let rates = self.accepting.busy.unwrap_or_default();
        let Arrivals { rate, about, .. } = self.demand(accepted, rates);
        (rate, about)
    }

    /// Little's law: connections served at once = arrivals/s x service time, and service time = connections served at once
    /// / accepts/s while all are busy.
    fn more(&self, found: Finding, accepted: u64, (came, taken): (f64, f64)) -> Finding {
        let Arrivals { rate, text, .. } = self.demand(accepted, (came, taken));
        if rate <= taken * BUSY {
            return found.command(
                format!(
                    "no more come than it can serve ({rate:.1} arrivals/s, and it accepts {taken:.1}/s): the queue is of those \
                     who came before; look again when it is empty, or once nothing else keeps clients away"
                ),
                "none",
            );
        }
        let lack = self.lack();
        let (found, is_all) = match lack {
            Some(lack) => lack.advise(found, Some(rate / taken)),
            None => (found, false),
        };
        if is_all {
            return found;
        }
        let Some(served) = self.accepting.served else {
            return found.application(
                format!(
                    "let it serve {:.1} times as many connections at once (more processes, threads or connections of each, \
                     whatever binds): {text} / {taken:.1} accepted/s / {BUSY}, so that it is busy {:.0} % of the time; how many \
                     it serves now is not known",
                    rate / taken / BUSY,
                    BUSY * 100.0,
                ),
                &[],
                RISK,
            );
        };
        self.more_at_once(found, served, (rate, &text), taken)
    }

    /// How many it should serve at once, of those that come so often, instead of so many, of which so many are accepted each
    /// second.
    fn more_at_once(
        &self,
        found: Finding,
        served: u64,
        (rate, text): (f64, &str),
        taken: f64,
    ) -> Finding {
        #[expect(clippy::cast_precision_loss, reason = "a few connections")]
        let service_s = served as f64 / taken;
        let processes = self.window.processes.holders(self.listener.ino).count() as u64;
        let silent = self.accepting.silent.len() as u64;
        let is_one_each = served + silent <= processes;
        let there = if is_one_each {
            (self.acceptors().len() as u64).saturating_sub(silent)
        } else {
            0
        };
        let (wanted, least) = wanted(rate * service_s / BUSY, there);
        let (found, hanging) = match silent {
            0 => (found, String::new()),
            silent => (
                self.hang(found, silent),
                format!(", and {silent} for those that hang"),
            ),
        };
        let (what, setting) = if is_one_each {
            let holder = self.window.holder(self.listener);
            worker_limit(holder.map_or("", |holder| holder.comm.as_str()))
        } else {
            (
                "let it serve more connections at once (threads, workers or its limit of connections, whatever binds)",
                "served_at_once",
            )
        };
        found.application(
            format!(
                "{what}: {text} x {service_s:.3} s per connection ({served} held at once / {taken:.1} accepted/s) / {BUSY}, so \
                 that they are busy {:.0} % of the time, rounded up{least}, = {wanted} at once{hanging}; now {} at once{}",
                BUSY * 100.0,
                several(served, "is served", "are served"),
                self.by_whom(served, processes),
            ),
            &[(setting, (wanted + silent).to_string())],
            RISK,
        )
    }

    /// Adds what to do about so many connections over which nothing goes.
    fn hang(&self, found: Finding, silent: u64) -> Finding {
        let connections = several(
            silent,
            "connection that it has accepted is",
            "connections that it has accepted are",
        );
        let (who, pid) = self.hanging();
        found
            .command(
                format!(
                    "{connections} silent for {} s and more, though others are served in far less: look where {who} \
                     (netprobe flame offcpu --pid {pid}, /proc/{pid}/stack), and restart what hangs",
                    QUIET_MS / 1000
                ),
                "what it holds is lost",
            )
            .at_once()
    }

    /// Whose the silent connections are, as far as each is of one process alone, and the first of these.
    fn hanging(&self) -> (String, String) {
        let processes = &self.window.processes;
        let mut pids = BTreeSet::new();
        for ino in &self.accepting.silent {
            let mut holders = processes.holders(*ino);
            if let (Some(holder), None) = (holders.next(), holders.next()) {
                pids.insert(holder.pid);
            }
        }
        let Some(first) = pids.first().map(u32::to_string) else {
            return ("its process or thread is".to_owned(), "PID".to_owned());
        };
        let named: Vec<String> = pids.iter().take(MOST_NAMED).map(u32::to_string).collect();
        let named = named.join(", ");
        let who = match pids.len() {
            1 if self.accepting.silent.len() == 1 => format!("pid {first} is"),
            1 => format!("the threads of pid {first} are"),
            ..=MOST_NAMED => format!("pids {named} are"),
            _ => format!("pids {named} and others are"),
        };
        (who, first)
    }

    /// Which of its processes serve so many at once.
    fn by_whom(&self, served: u64, processes: u64) -> String {
        if served >= processes {
            return format!(" by {}", several(processes, "process", "processes"));
        }
        let master = if self.has_master() {
            ", one of them the parent of the others"
        } else {
            ""
        };
        format!(", and {processes} processes hold the listener{master}")
    }

    /// Whether one of its processes started all others.
    fn has_master(&self) -> bool {
        self.acceptors().len() < self.window.processes.holders(self.listener.ino).count()
    }

    /// What comes, and what would come if those that wait for it did not have to.
    fn demand(&self, accepted: u64, (came, taken): (f64, f64)) -> Arrivals {
        let (arrivals, attempts) = self.arrivals(accepted);
        let own = self.window.rate(arrivals).max(came);
        let about = attempts.map_or("", |_| ABOUT);
        let passed: f64 = self
            .before
            .iter()
            .map(|before| before.arrivals * before.each)
            .sum();
        let opened: f64 = self.before.iter().map(|before| before.opens).sum();
        // Less is within what two counts differ by.
        let others = Some(taken - opened).filter(|others| *others >= taken * 0.1);
        let others = others.unwrap_or(0.0);
        let rate = passed + others;
        // Who tries again here is counted once by those that wait for it.
        let least = if about.is_empty() { own } else { came };
        if self.before.is_empty() || rate <= least {
            return Arrivals {
                rate: own,
                about,
                text: format!("{about}{own:.1} arrivals/s{}", self.estimated(attempts)),
            };
        }
        let mut known = self.before.iter().map(|before| before.about);
        let passed_about = known.find(|about| !about.is_empty());
        let passed = self.before.iter().map(|before| {
            let each = if (before.each - 1.0).abs() < 0.05 {
                String::new()
            } else {
                format!(" x {:.1} connections for each", before.each)
            };
            let Before {
                arrivals,
                about,
                name,
                ..
            } = before;
            format!("{about}{arrivals:.1} arrivals/s at {name}{each}")
        });
        let mut terms: Vec<String> = passed.collect();
        if others > 0.0 {
            terms.push(format!("{others:.1} arrivals/s of others"));
        }
        let text = match terms.as_slice() {
            [only] => only.clone(),
            _ => format!("({})", terms.join(" + ")),
        };
        Arrivals {
            rate,
            about: passed_about.unwrap_or(""),
            text,
        }
    }

    /// How many clients came, turned away or not; and by which attempts, where that is all that is known of them.
    fn arrivals(&self, accepted: u64) -> (u64, Option<Attempts>) {
        let admitted = self.accepting.came.unwrap_or(accepted);
        let Some(overflow) = self.overflow else {
            return (admitted, None);
        };
        let most = admitted + overflow.clients.unwrap_or(overflow.refused);
        let local = accepting::local_attempts(self.window, self.netns, self.listener.port);
        // Who was let in came from this machine, so those who were not did as well.
        if local >= admitted {
            return (local.min(most), None);
        }
        let later = overflow::let_in_later(self.window, self.netns, self.listener.port);
        if let (Some(_), Some((later, all))) = (overflow.clients, later) {
            return (most - (admitted * later / all).min(most - admitted), None);
        }
        let attempts = Attempts {
            let_in: admitted,
            // Several full queues turn away as many each, as far as is known.
            refused: overflow.refused / (overflow.others as u64 + 1),
        };
        (attempts.clients().min(most), Some(attempts))
    }

    /// How it is estimated how many clients make these attempts.
    fn estimated(&self, attempts: Option<Attempts>) -> String {
        attempts.map_or(String::new(), |attempts| {
            format!(
                " ({:.1} attempts/s / {:.1} of each client, as {:.0} % are turned away and it sends up to {SYNS} SYNs)",
                self.window.rate(attempts.all()),
                attempts.of_each(),
                attempts.refused_share() * 100.0
            )
        })
    }
}

/// A number of workers.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a bounded positive number"
)]
pub(super) fn rounded_up(workers: f64) -> u64 {
    workers.ceil().clamp(1.0, 1e6) as u64
}

/// So many rounded up, but more than are there, and what to say of that.
fn wanted(busy: f64, there: u64) -> (u64, String) {
    let wanted = rounded_up(busy);
    if wanted > there {
        return (wanted, String::new());
    }
    let least = format!(" and more than the {there} that are there");
    (there + 1, least)
}

/// What to do where each worker serves one connection, and the setting for it by the name that the program has for it.
fn worker_limit(comm: &str) -> (&'static str, &'static str) {
    match comm {
        _ if comm.starts_with("php-fpm") => (
            "give its pool more workers (pm.max_children)",
            "pm.max_children",
        ),
        "apache2" | "httpd" => (
            "give it more workers (MaxRequestWorkers)",
            "MaxRequestWorkers",
        ),
        _ => ("give it more workers", "workers"),
    }
}

/// Most processes that are named.
const MOST_NAMED: usize = 4;

/// What to do about processes that do not call accept().
fn wake(found: Finding, acceptors: &[&Process], served: Option<u64>) -> Finding {
    const HELD: &str = "`netprobe lifetimes --open --longest` shows who holds its workers";
    if let Some(released) = halted::release(acceptors) {
        return found.command(released, "none").at_once();
    }
    let is_traced = |process: &&&Process| Halt::of(process) == Some(Halt::Traced);
    let first = acceptors.iter().find(is_traced).or(acceptors.first());
    let text = match first.map(|process| (process, Halt::of(process))) {
        Some((holder, Some(Halt::Traced))) => {
            format!("pid {} is held by a debugger (state t)", holder.pid)
        }
        Some((holder, Some(Halt::Blocked))) => format!(
            "pid {pid} is blocked in the kernel (state D), on a disk or a remote file system, as a rule: see \
             /proc/{pid}/stack",
            pid = holder.pid
        ),
        Some(_) if acceptors.len() > 1 => {
            let named = acceptors.iter().take(MOST_NAMED);
            let named: Vec<String> = named.map(|process| process.pid.to_string()).collect();
            let (processes, first) = (acceptors.len(), &named[0]);
            let named = if processes > MOST_NAMED {
                format!("pid {} and others", named.join(", "))
            } else {
                format!("pid {}", named.join(", "))
            };
            let why = if served == Some(processes as u64) {
                format!(
                    "each of them holds one of the {processes} connections that are open: let it have more ({}), or have quiet ones \
                     closed sooner, and {HELD}",
                    worker_limit(&acceptors[0].comm).1
                )
            } else {
                format!("all busy or blocked (see /proc/{first}/stack; {HELD})")
            };
            format!(
                "find out why none of its {processes} processes ({named}) calls accept(): {why}"
            )
        }
        Some((holder, _)) => format!(
            "find out why pid {pid} does not call accept(): all workers busy or blocked (see /proc/{pid}/stack; {HELD})",
            pid = holder.pid
        ),
        None => format!("find out why nobody calls accept(); {HELD}"),
    };
    found.application(text, &[], "none")
}
