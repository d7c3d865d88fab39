//! Connections that were accepted, and whose requests nobody reads.

use super::{
    super::super::{
        accepting, cpu_time,
        finding::finding,
        sizing::{counted, spoken},
        window::{Netns, Queue, Window, ratio},
        workers::{self, BUSY},
    },
    RULE,
};
use crate::{
    observe::{
        diag::{Clients, LATE_MS, Late, UNREAD_MS},
        processes::Process,
    },
    report::diagnosis::{Confidence, Finding, Severity},
};

/// Fewer are clients of their own kind.
pub(super) const LEAST: u32 = 3;
/// From here on most clients have given up.
const TOO_LONG_S: f64 = 5.0;
/// Somebody waits nearly always who does at this share of the looks, of which there are so many.
const NEARLY_ALWAYS: f64 = 0.8;
const LEAST_LOOKS: usize = 4;

/// The listeners of a namespace whose accepted connections are not read.
pub(super) fn of(window: &Window, netns: &Netns) -> impl Iterator<Item = Finding> {
    let sockets = netns.after.sockets.iter();
    let clients = sockets.flat_map(|sockets| &sockets.clients);
    clients.filter_map(|(port, clients)| {
        let queue = netns.queue(None, *port)?;
        let before = before(netns, *port);
        let (mut connections, mut longest_ms) =
            clients.unread.since(before.map(|before| &before.unread));
        let late = late(netns, *port).filter(|_| connections < LEAST);
        if let Some((late, _)) = late {
            (connections, longest_ms) = (late.connections, late.longest_ms);
        }
        let case = Case {
            window,
            netns,
            queue,
            clients,
            connections,
            late_at: late.map(|(_, looks)| looks),
            waits_s: f64::from(longest_ms) / 1000.0,
            grown: i64::from(clients.unread.now)
                - before.map_or(0, |before| i64::from(before.unread.now)),
        };
        (connections >= LEAST && !case.is_held_up()).then(|| case.describe())
    })
}

/// The clients of a port when the window began.
fn before(netns: &Netns, port: u16) -> Option<&Clients> {
    netns.before.sockets.as_ref()?.clients.get(&port)
}

/// What is seen of a port where somebody waits nearly always, though nobody for long, and at how many of how many looks.
fn late(netns: &Netns, port: u16) -> Option<(Late, [usize; 2])> {
    let mut looks = netns.late.get(&port)?.clone();
    // Who stands still is looked at more often meanwhile, and told by that.
    let all = looks.len();
    looks.retain(|late| !late.is_still);
    let all = netns.late_looks - (all - looks.len());
    looks.retain(|late| late.connections >= LEAST);
    let seen = looks.len();
    let is_always = seen >= LEAST_LOOKS && ratio(seen as u64, all as u64) >= NEARLY_ALWAYS;
    looks.sort_unstable_by_key(|late| late.connections);
    let usual = looks.get(seen / 2).filter(|_| is_always);
    usual.map(|late| (*late, [seen, all]))
}

/// Whether the listener at a port is one of these, or only passes on what others take.
pub(super) fn is_told(netns: &Netns, port: u16) -> bool {
    let sockets = netns.after.sockets.as_ref();
    let clients = sockets.and_then(|sockets| sockets.clients.get(&port));
    let before = before(netns, port).map(|before| &before.unread);
    clients.is_some_and(|clients| clients.unread.since(before).0 >= LEAST)
        || late(netns, port).is_some()
}

/// A listener, and the connections that it has accepted and does not read.
struct Case<'a> {
    window: &'a Window,
    netns: &'a Netns,
    queue: &'a Queue,
    clients: &'a Clients,
    connections: u32,
    /// Where nobody waits for long, but somebody nearly always: at how many of how many looks.
    late_at: Option<[usize; 2]>,
    waits_s: f64,
    /// By how many more requests wait than before.
    grown: i64,
}

/// What comes, what is answered, and by how many at once.
struct Rates {
    came: f64,
    answered: f64,
    served: u64,
}

impl Case<'_> {
    /// Whether its processes hold about as many connections whose peers take no more: they pass on what they read, and
    /// wait for those, as a proxy does before a slow service.
    fn is_held_up(&self) -> bool {
        let held_up = self.netns.after.sockets.iter();
        let held_up = held_up.flat_map(|sockets| &sockets.held_up);
        let holders: Vec<&Process> = self.holders().collect();
        let own = held_up.filter(|ino| {
            let mut holders = holders.iter();
            holders.any(|process| process.sockets.contains(ino))
        });
        own.count() * 2 >= self.connections as usize
    }

    fn holders(&self) -> impl Iterator<Item = &Process> {
        self.window.processes.holders(self.queue.listener.ino)
    }

    /// Where each request is a connection of its own, and more come than are answered.
    fn rates(&self) -> Option<Rates> {
        let accepted = accepting::of(self.window, self.netns, self.queue).accepted?;
        let answered = accepted.checked_add_signed(-self.grown)?;
        let served = self.served()?;
        (self.grown > 0 && answered > 0 && answered < accepted && served > 0).then(|| Rates {
            came: self.window.rate(accepted),
            answered: self.window.rate(answered),
            served: served.into(),
        })
    }

    /// How many are served at once.
    fn served(&self) -> Option<u32> {
        let unserved = self.clients.unread.now + self.clients.quiet;
        self.clients.held.checked_sub(unserved)
    }

    fn severity(&self, rates: Option<&Rates>) -> Severity {
        if rates.is_some() && self.waits_s >= TOO_LONG_S {
            Severity::Critical
        } else if self.connections >= self.others_served() {
            Severity::Warning
        } else {
            Severity::Info
        }
    }

    /// How many others are served meanwhile: where each waits for a moment only, at once.
    fn others_served(&self) -> u32 {
        match self.late_at {
            Some(_) => self.served().unwrap_or(0),
            None => self.clients.served,
        }
    }

    fn summary(&self) -> String {
        let comm = self.holders().next();
        let comm = comm.map_or("the application", |process| process.comm.as_str());
        let (port, place) = (self.queue.listener.port, self.netns.place());
        let connections = counted(self.connections.into(), "connection");
        let waits = spoken(self.waits_s);
        match self.late_at {
            Some([looks, all]) => format!(
                "{comm} at port {port}{place} reads requests late: at {looks} of {all} looks {connections}, as a rule, had waited for a \
                 second or more, up to {waits}: its workers are too few, or busy"
            ),
            None => format!(
                "{comm} at port {port}{place} has accepted {connections} and does not read what they sent, for up to {waits}: its \
                 workers are busy or blocked"
            ),
        }
    }

    fn describe(&self) -> Finding {
        let rates = self.rates();
        let found = finding(
            RULE.id,
            self.severity(rates.as_ref()),
            Confidence::Medium,
            self.summary(),
        )
        .counted(
            format!(
                "over {} data arrived {} s ago or earlier, was not read (Recv-Q), and nothing was sent since; over {} data went \
                 since",
                counted(self.connections.into(), "accepted connection"),
                if self.late_at.is_some() { LATE_MS } else { UNREAD_MS } / 1000,
                self.others_served()
            ),
            self.connections.into(),
            "connections",
            "sock_diag tcp_info",
        );
        let found = match &rates {
            Some(rates) => found.measured(
                format!(
                    "{:.1} connections/s came and {:.1}/s were answered, {} at once",
                    rates.came, rates.answered, rates.served
                ),
                rates.answered,
                "connections/s",
                "lifetimes, sock_diag",
            ),
            None => found,
        };
        let found = found.hits([self
            .window
            .affected_listener(self.netns, &self.queue.listener)]);
        self.fixes(found, rates.as_ref())
    }

    fn fixes(&self, found: Finding, rates: Option<&Rates>) -> Finding {
        const RISK: &str =
            "each worker takes memory, and perhaps a connection of the database behind it";
        let found = match rates {
            Some(rates) => found.application(
                format!(
                    "more workers (threads of its pool, such as maxThreads): {:.1} arrivals/s x {:.3} s per connection ({} served at \
                     once / {:.1} answered/s) / {BUSY}, so that they are busy {:.0} % of the time, rounded up, = {} at once",
                    rates.came,
                    rates.service_s(),
                    rates.served,
                    rates.answered,
                    BUSY * 100.0,
                    rates.workers(),
                ),
                &[("served_at_once", rates.workers().to_string())],
                RISK,
            ),
            None => found,
        };
        let found = found.command(self.look(), "none");
        if rates.is_some() {
            return found;
        }
        if let (Some(_), Some(served @ 1..)) = (self.late_at, self.served()) {
            let waiting = self.clients.unread.now.max(self.connections);
            let wanted = waiting + served;
            let text = format!(
                "if they are merely too few: more workers (threads of its pool, such as maxThreads): {waiting} that wait + {served} \
                 that are served = {wanted} at once"
            );
            return found.application(text, &[("served_at_once", wanted.to_string())], RISK);
        }
        found.application(
            "if they are merely too few: more workers (threads of its pool, such as maxThreads), or have it accept no more than \
             it serves, so that clients are sent elsewhere instead of waiting here",
            &[],
            RISK,
        )
    }

    /// Where to look.
    fn look(&self) -> String {
        let Some(process) = self.holders().next() else {
            return "see what its workers wait for: netprobe flame offcpu".to_owned();
        };
        let pid = process.pid;
        let share = cpu_time::running(self.window, process);
        if share >= BUSY {
            return format!(
                "its first thread runs, or waits for a CPU, {:.0} % of the time: see what it does: netprobe flame cpu --pid {pid}",
                (share * 100.0).min(100.0)
            );
        }
        format!(
            "see what its workers wait for: netprobe flame offcpu --pid {pid}, or the stacks of its own kind (jstack {pid}, gdb -p {pid})"
        )
    }
}

impl Rates {
    #[expect(clippy::cast_precision_loss, reason = "a few connections")]
    fn service_s(&self) -> f64 {
        self.served as f64 / self.answered
    }

    /// Little's law.
    fn workers(&self) -> u64 {
        workers::rounded_up(self.came * self.service_s() / BUSY)
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::{fixtures::quiet, window::Window},
        observe::diag::Late,
        report::diagnosis::Severity,
    };

    /// A server that has served so many in 10 s and serves `served` now, with `unread` requests that wait.
    fn with(unread: u32, served: u32, ended: u64) -> Window {
        let mut window = quiet();
        window.listen(8080, 128, &[0; 10]);
        window.serving(8080, served, ended);
        let clients = window.sockets().clients.get_mut(&8080).unwrap();
        clients.held += unread;
        clients.open += unread;
        clients.served = served;
        clients.unread.connections = unread;
        clients.unread.now = unread;
        clients.unread.longest_ms = 12_000;
        window
    }

    #[test]
    fn requests_that_nobody_reads_are_told_with_who_should() {
        // All came before the window.
        let told = |unread: u32, served: u32| {
            let mut window = with(unread, served, 0);
            let before = window.netns().before.sockets.as_mut().unwrap();
            let clients = before.clients.get_mut(&8080).unwrap();
            clients.unread.now = unread;
            clients.open += unread;
            clients.held += unread;
            window.findings()
        };
        let found = told(50, 5).remove(0);
        assert_eq!(
            (found.id, found.severity),
            ("long-held-connections", Severity::Warning)
        );
        let said = "server at port 8080 has accepted 50 connections and does not read what they sent, for up to 12 s";
        assert!(found.summary.contains(said), "{}", found.summary);
        assert!(found.fixes[0].text.contains("--pid 100"), "{found:?}");
        assert_eq!(told(5, 50)[0].severity, Severity::Info);
        assert!(told(2, 0).is_empty());
    }

    #[test]
    fn workers_are_sized_where_more_come_than_are_answered() {
        // 60 were served in 10 s by four at once, and 40 more wait.
        let found = with(40, 4, 60).findings().remove(0);
        assert_eq!(
            (found.id, found.severity),
            ("long-held-connections", Severity::Critical)
        );
        // 10/s x 4 / 6/s / 0.8.
        let set = found.fixes[0].set.clone();
        assert_eq!(set, [("served_at_once".to_owned(), "9".to_owned())]);
        let text = &found.fixes[0].text;
        assert!(text.contains("10.0 arrivals/s x 0.667 s"), "{text}");
    }

    #[test]
    fn a_pool_that_is_too_small_is_told_though_nobody_waits_for_long() {
        // 24 of 28 wait for two seconds at each look, one a second, and four are served.
        let told = |looks: usize, served: u32| {
            let mut window = with(24, served, 0);
            window.netns().before = window.netns().after.clone();
            let clients = window.sockets().clients.get_mut(&8080).unwrap();
            clients.unread.connections = 0;
            clients.unread.longest_ms = 0;
            let late = Late {
                port: 8080,
                connections: 24,
                longest_ms: 2500,
                is_still: false,
                read: 0,
            };
            window.netns().late_looks = 8;
            window.netns().late.insert(8080, vec![late; looks]);
            window.findings().into_iter().next()
        };
        let found = told(8, 4).unwrap();
        assert_eq!(found.severity, Severity::Warning);
        let said = "reads requests late: at 8 of 8 looks 24 connections, as a rule, had waited for a second or more, up to 2 s";
        assert!(found.summary.contains(said), "{}", found.summary);
        let fix = found.fixes.last().unwrap();
        assert!(
            fix.text
                .contains("24 that wait + 4 that are served = 28 at once"),
            "{fix:?}"
        );
        // Most are served.
        assert_eq!(told(8, 40).unwrap().severity, Severity::Info);
        // Now and then.
        assert_eq!(told(4, 4), None);
        // Nor are the looks of a standstill, however many.
        let mut window = with(0, 4, 0);
        let netns = window.netns();
        netns.late_looks = 40;
        let still = Late {
            port: 8080,
            connections: 24,
            longest_ms: 2500,
            is_still: true,
            read: 0,
        };
        netns.late.insert(8080, vec![still; 36]);
        assert!(window.findings().is_empty());
    }

    #[test]
    fn who_passes_on_what_a_slow_service_takes_is_not_blocked() {
        let mut window = with(5, 0, 0);
        assert!(!window.findings().is_empty());
        window.sockets().held_up = vec![901, 902, 903];
        assert!(!window.findings().is_empty(), "of others");
        let server = window.processes.by_pid.get_mut(&100).unwrap();
        server.sockets.extend([901, 902, 903]);
        assert!(window.findings().is_empty());
    }

    #[test]
    fn who_has_no_time_is_looked_at_while_he_runs() {
        let mut window = with(50, 0, 0);
        window.processes_before = window.processes.clone();
        let server = window.processes.by_pid.get_mut(&100).unwrap();
        server.runnable_ns += 9_800_000_000;
        let found = window.findings().remove(0);
        let text = &found.fixes[0].text;
        assert!(text.contains("98 % of the time"), "{text}");
        assert!(text.contains("flame cpu --pid 100"), "{text}");
    }
}
