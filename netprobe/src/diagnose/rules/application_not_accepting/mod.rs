//! Connections arrive faster than the application accepts them: a listener's queue is full all the
//! time, or long and growing. A longer queue would only make them wait longer.

mod alike;
mod pauses;

use self::alike::Alike;
use super::super::{
    Explanation, Rule, Verdict,
    accepting::{self, Accepting},
    fifo::Emptied,
    finding::finding,
    in_each,
    overflow::{self, Overflow},
    sizing::{counted, seconds_left, spoken, waiting},
    tiers::Upstream,
    window::{Gap, Netns, Queue, Window},
    workers::{Before, Workers},
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

pub(super) static RULE: Rule = Rule {
    id: "application-not-accepting",
    title: "an application does not accept connections fast enough",
    check,
    explanation: Explanation {
        symptom: "Clients hang after connecting, or time out; the port is open and connections pile up in the \
                  listener's queue (Recv-Q of ss -ltn), up to its limit.",
        cause: "The application's workers are all busy or blocked, so nobody calls accept() \
                (inet_csk_accept()). The accept queue fills up to its limit and stays there; from then on \
                tcp_conn_request() and tcp_v4_syn_recv_sock() drop what comes, as in accept-queue-overflow.",
        recognised: "The queue was at its limit at nearly every look during the window; or it is far from full, but its \
                     first connection waits for 3 s or more and others have come since; or for 1 s, and nothing of it was worked off in the \
                     window. It is critical when nothing \
                     is accepted, attempts are turned away, or the wait is 5 s. Connections that wait for 5 s or more though nobody came in \
                     the window are a warning where the queue is full, else a note; so are those of clients that have closed \
                     (CLOSE_WAIT), where hardly anybody comes. Listeners of the same processes that nobody accepts from are one \
                     finding. Requests that were read and not answered for 10 s longer than one waits in the queue are of workers \
                     that hang, where others are served in 2.5 s or less. How many are accepted follows from the \
                     sockets of the port before and after and from those that ended. Bursts that a fast application \
                     empties in between are accept-queue-overflow instead, and so is a queue whose connections all came at \
                     once, after a pause. Where everybody who waited at some look still waits, nothing was accepted since. \
                     Where connections came and none was accepted for a second or more in one piece, though the queue had room, \
                     it is a warning if such pauses take up half the window, else a note. \
                     How many it serves at once are the connections that it holds, whatever serves them: processes, threads or \
                     a limit. Where nearly all that it serves have a connection of its own to a listener in whose queue \
                     somebody always waits, it waits for that one, which comes first; also where a proxy without a queue of its \
                     own is between the two. Where nearly all wait in connect() (SYN-SENT) for a destination, what is wrong with \
                     that one comes first.",
        fixes: &[
            (
                "more workers (php-fpm pm.max_children, Apache MaxRequestWorkers, more threads): arrivals/s x service time / 0.8",
                "each worker takes memory, and perhaps a connection of the database behind it",
            ),
            (
                "find what the workers wait for: a slow upstream, a lock, a connection held open by an idle client",
                "none",
            ),
            (
                "a longer queue is no cure: it fills just the same and everybody waits longer",
                "latency",
            ),
        ],
    },
};

fn check(window: &Window) -> Verdict {
    let mut cases = Vec::new();
    let verdict = in_each(window, |netns| {
        let found = cases_of(window, netns)?;
        let ports: Vec<u16> = found.iter().map(Case::port).collect();
        cases.extend(found);
        Ok(pauses::of(window, netns, &ports))
    });
    if cases.is_empty() {
        return verdict;
    }
    link(&mut cases);
    let mut found: Vec<Finding> = Alike::all(&cases).iter().map(Alike::describe).collect();
    if let Verdict::Found(pauses) = verdict {
        found.extend(pauses);
    }
    Verdict::Found(found)
}

/// The listeners of a namespace whose connections are not accepted.
fn cases_of<'a>(window: &'a Window, netns: &'a Netns) -> Result<Vec<Case<'a>>, Gap> {
    let overflows = overflow::of(window, netns);
    let mut cases: Vec<Case<'a>> = Vec::new();
    let mut deepest_first: Vec<&Queue> = netns.queues.iter().collect();
    deepest_first.sort_by_key(|queue| std::cmp::Reverse(queue.deepest()));
    for queue in deepest_first {
        let mut found = overflows.iter().flatten();
        let overflow = found.find(|overflow| {
            let found = overflow.queue.as_ref();
            found.is_some_and(|found| found.listener.ino == queue.listener.ino)
        });
        let accepting = accepting::of(window, netns, queue);
        let is_pinned = overflow.is_some_and(Overflow::is_pinned);
        // Several that share a port are one service.
        let is_told = cases.iter().any(|case| case.port() == queue.listener.port);
        let is_stalled = overflow.is_some() && accepting.is_stalled();
        let waits = accepting.waits_long || accepting.is_left;
        if (is_pinned || is_stalled || waits) && !is_told {
            cases.push(Case::new(
                window,
                netns,
                queue,
                accepting,
                overflow.cloned(),
            ));
        }
    }
    match overflows {
        Err(gap) if cases.is_empty() => Err(gap),
        _ => Ok(cases),
    }
}

/// Finds what each waits for. A service that keeps others waiting comes before them, also where its own clients do not
/// wait for long, as they are few.
fn link(cases: &mut Vec<Case<'_>>) {
    let mut next = 0;
    while let Some(case) = cases.get(next) {
        if let Some((netns, queue)) = case.upstream.as_ref().and_then(Upstream::busy) {
            let window = case.window;
            let is_it = |other: &Case<'_>| {
                other.netns.inode == netns.inode && other.port() == queue.listener.port
            };
            let place = cases.iter().position(is_it).unwrap_or_else(|| {
                let accepting = accepting::of(window, netns, queue);
                cases.push(Case::new(window, netns, queue, accepting, None));
                cases.len() - 1
            });
            if !leads_to(cases, place, next) {
                cases[next].waits_for = Some(place);
            }
        }
        next += 1;
    }
    // Who is furthest from what all wait for comes first, and passes on what it gets from those that wait for it.
    let mut furthest_first: Vec<usize> = (0..cases.len()).collect();
    furthest_first.sort_by_key(|place| std::cmp::Reverse(distance(cases, *place)));
    for from in furthest_first {
        if let Some(to) = cases[from].waits_for {
            let (before, is_critical) = (cases[from].as_before(), cases[from].is_critical());
            cases[to].before.extend(before);
            cases[to].keeps_critical |= is_critical;
        }
    }
}

/// How many services are behind one another from this one on.
fn distance(cases: &[Case<'_>], from: usize) -> usize {
    let next = |place: &usize| cases[*place].waits_for;
    std::iter::successors(Some(from), next).count()
}

/// Whether a service waits for another, if only for one that waits for it.
fn leads_to(cases: &[Case<'_>], from: usize, to: usize) -> bool {
    let next = |place: &usize| cases[*place].waits_for;
    std::iter::successors(Some(from), next).any(|place| place == to)
}

/// A listener whose connections are not accepted, and what is known of it.
struct Case<'a> {
    window: &'a Window,
    netns: &'a Netns,
    queue: &'a Queue,
    overflow: Option<Overflow>,
    accepting: Accepting,
    /// The service that its processes seem to wait for.
    upstream: Option<Upstream<'a>>,
    /// Its place among the cases, if it is one.
    waits_for: Option<usize>,
    /// The services that wait for this one.
    before: Vec<Before>,
    /// Whether clients of one of those are turned away.
    keeps_critical: bool,
}

impl<'a> Case<'a> {
    fn new(
        window: &'a Window,
        netns: &'a Netns,
        queue: &'a Queue,
        accepting: Accepting,
        overflow: Option<Overflow>,
    ) -> Self {
        Self {
            window,
            netns,
            queue,
            overflow,
            upstream: Upstream::of(window, netns, queue, &accepting),
            accepting,
            waits_for: None,
            before: Vec::new(),
            keeps_critical: false,
        }
    }

    /// The service that takes no connection, though its processes wait for one.
    fn silent(&self) -> Option<&Upstream<'a>> {
        let upstream = self.upstream.as_ref();
        upstream
            .and_then(Upstream::silent)
            .filter(|_| self.waits_for.is_none())
    }

    const fn port(&self) -> u16 {
        self.queue.listener.port
    }

    fn is_critical(&self) -> bool {
        let is_hopeless = self.accepting.is_hopeless() && !self.accepting.is_left;
        self.keeps_critical || self.overflow.is_some() || is_hopeless
    }

    /// How bad it is: where nobody came, nobody was kept waiting or turned away in the window.
    fn severity(&self) -> Severity {
        if self.is_critical() {
            Severity::Critical
        } else if self.accepting.is_left && !(self.turns_next_away() && self.is_queue()) {
            Severity::Info
        } else {
            Severity::Warning
        }
    }

    /// Whether more wait than somebody who knocked at a port that nobody uses.
    const fn is_queue(&self) -> bool {
        self.queue.listener.queue >= accepting::LEAST_WAITING
    }

    /// Whether there is no room for one more: `sk_acceptq_is_full()`.
    const fn turns_next_away(&self) -> bool {
        self.queue.listener.queue > self.queue.listener.limit
    }

    /// What it passes on to the service that it waits for.
    fn as_before(&self) -> Option<Before> {
        let accepted = self.accepting.accepted.filter(|accepted| *accepted > 0)?;
        let each = self.upstream.as_ref().and_then(Upstream::each);
        let (arrivals, at_most) = self.workers().arrival_rate();
        Some(Before {
            name: format!("port {} of {}", self.port(), self.comm()),
            arrivals,
            at_most,
            each: each.unwrap_or(1.0),
            opens: each.map_or(0.0, |each| self.window.rate(accepted) * each),
        })
    }

    fn comm(&self) -> &str {
        let holder = self.window.holder(&self.queue.listener);
        holder.map_or("the application", |process| process.comm.as_str())
    }

    fn workers(&self) -> Workers<'_> {
        Workers {
            window: self.window,
            netns: self.netns,
            listener: &self.queue.listener,
            accepting: &self.accepting,
            overflow: self.overflow.as_ref(),
            before: &self.before,
        }
    }
}

impl Case<'_> {
    fn describe(&self) -> Finding {
        // That its own connections wait, or none was accepted, is certain.
        let is_certain =
            self.accepting.waits_long || self.accepting.is_stuck() || self.accepting.is_stalled();
        let confidence = match &self.overflow {
            Some(overflow) if !is_certain && overflow.emptied == Emptied::Unknown => {
                lower(overflow.confidence)
            }
            Some(overflow) if !is_certain => overflow.confidence,
            _ => Confidence::High,
        };
        let found = finding(RULE.id, self.severity(), confidence, self.summary());
        let found = self.waits(self.measures(self.stall(self.depths(found))));
        let listener = &self.queue.listener;
        let mut found = found.hits([self.window.affected_listener(self.netns, listener)]);
        found.behind = self.waits_for.map(|_| RULE.id);
        found.awaits = self.silent().map(Upstream::destination);
        self.fixes(found)
    }

    fn summary(&self) -> String {
        let (listener, comm) = (&self.queue.listener, self.comm());
        let state = accepting::state(self.window, self.queue).map_or("", does);
        let accepts = match self.accepting.accepted {
            Some(0) => format!("accepts no connections{state}"),
            _ if let Some(stall) = self.accepting.stall => {
                format!("has not accepted for {}{state}", spoken(stall.seconds))
            }
            Some(accepted) => self.pace(self.window.rate(accepted)),
            None => "accepts connections too slowly".to_owned(),
        };
        let state = match &self.overflow {
            None if self.accepting.is_left => format!(
                "{}; {}{}",
                self.in_queue(),
                match self.accepting.came {
                    None | Some(0) => "nobody tried to connect since".to_owned(),
                    Some(came) => format!("only {came} came in {:.0} s", self.window.seconds),
                },
                if self.turns_next_away() {
                    ", and whoever does is turned away, as the queue is full"
                } else {
                    ""
                }
            ),
            Some(overflow) => format!(
                "its queue of {} is {} and {}",
                listener.limit,
                if overflow.is_pinned() && !self.accepting.is_stalled() {
                    overflow.how_full()
                } else {
                    "full"
                },
                overflow.turned_away()
            ),
            None => format!("{}{}", self.in_queue(), self.forecast()),
        };
        let others = self.others();
        format!(
            "{comm} at port {}{} {accepts}: {state}{others}{}",
            listener.port,
            self.netns.place(),
            self.shared()
        )
    }

    /// How many connections it accepts each second, and how many come, turned away or not: as many as its fix counts with.
    fn pace(&self, accepted: f64) -> String {
        let (arrivals, at_most) = self.workers().arrival_rate();
        // What others pass on to it, or would, is told with them.
        let is_own = at_most.is_empty() && self.before.is_empty();
        let tenths = |rate: f64| (rate * 10.0).round();
        if is_own && tenths(arrivals) > tenths(accepted) {
            format!("accepts {accepted:.1} connections/s where {arrivals:.1} come")
        } else {
            format!("accepts no more than {accepted:.1} connections/s")
        }
    }

    /// Who waits in its queue, and who does not any more.
    fn in_queue(&self) -> String {
        let (queue, limit) = (self.queue.listener.queue, self.queue.listener.limit);
        let first = self.accepting.waited_s.map_or(String::new(), first_waits);
        let waits = format!("{} in its queue of {limit}{first}", waiting(queue));
        match self.accepting.hung_up {
            0 => waits,
            gone if gone == queue => format!(
                "its queue of {limit} holds {} of clients that have closed{first}",
                counted(queue.into(), "connection")
            ),
            gone => format!("{waits} ({gone} of them of clients that have closed)"),
        }
    }

    /// The services that wait for it, or that it waits for.
    fn others(&self) -> String {
        let mut others: Vec<&str> = self
            .before
            .iter()
            .map(|before| before.name.as_str())
            .collect();
        others.truncate(MOST_NAMED);
        let waiting = match others.as_slice() {
            [] => String::new(),
            [only] => format!("; {only} waits for it"),
            others => format!("; {} wait for it", others.join(" and ")),
        };
        let path = self.path();
        let awaited = match path {
            Some(path) if self.waits_for.is_some() => format!("; it waits for {path}"),
            Some(path) if self.silent().is_some() => format!("; it waits in connect() for {path}"),
            _ => String::new(),
        };
        format!("{waiting}{awaited}")
    }

    /// How that is called that it seems to wait for.
    fn path(&self) -> Option<String> {
        let upstream = self.upstream.as_ref();
        upstream.map(|upstream| upstream.path(self.window))
    }

    /// Who does not have to wait, as the port is shared.
    fn shared(&self) -> String {
        let shared = accepting::shared(self.netns, self.queue);
        shared.map_or(String::new(), |(emptied, all)| {
            let verb = if emptied == 1 { "is" } else { "are" };
            format!(
                "; of the {all} queues that share the port (SO_REUSEPORT), {emptied} {verb} emptied in time"
            )
        })
    }

    /// What its own connections are to, while it serves others.
    fn waits(&self, found: Finding) -> Finding {
        let upstream = self.upstream.iter();
        let connections = upstream.flat_map(|upstream| upstream.connections(self.window));
        connections.fold(found, |found, (text, count)| {
            found.counted(text, count, "connections", "sock_diag, connects")
        })
    }

    /// When the queue is full, if it grows.
    fn forecast(&self) -> String {
        let listener = &self.queue.listener;
        let (used, limit) = (u64::from(listener.queue), u64::from(listener.limit));
        seconds_left(used, limit, self.accepting.growth).map_or(String::new(), |left| {
            format!("; full in {} at this rate", spoken(left))
        })
    }

    /// What was seen of the queue.
    fn depths(&self, found: Finding) -> Finding {
        let (queue, limit) = (self.queue, self.queue.listener.limit);
        let found = if self.overflow.is_some() {
            found.measured(
                format!(
                    "the queue was full at {:.0} % of {} looks ({} of {limit})",
                    queue.full_share() * 100.0,
                    queue.depths.len(),
                    queue.deepest(),
                ),
                queue.full_share() * 100.0,
                "percent",
                "sock_diag",
            )
        } else {
            found.counted(
                format!(
                    "the queue went from {} to {} of {limit} in {:.0} s",
                    queue.depths.first().copied().unwrap_or(0),
                    queue.listener.queue,
                    self.window.seconds
                ),
                queue.listener.queue.into(),
                "connections",
                "sock_diag",
            )
        };
        match self.accepting.waited_s {
            Some(waited) if self.accepting.waits_long || self.accepting.is_left => found.measured(
                format!("its first connection waits for {waited:.1} s so far"),
                waited,
                "s",
                "sock_diag tcp_info",
            ),
            _ => found,
        }
    }

    /// What was counted.
    fn measures(&self, found: Finding) -> Finding {
        let found = match &self.overflow {
            None => found,
            Some(overflow) => found.counted(
                match overflow.others {
                    0 => format!("{} refused meanwhile", counted(overflow.refused, "attempt")),
                    _ => format!(
                        "{} refused meanwhile by all full queues of this namespace",
                        counted(overflow.refused, "attempt")
                    ),
                },
                overflow.refused,
                "attempts",
                "TcpExt.ListenOverflows",
            ),
        };
        if let Some(accepted) = self.accepting.accepted {
            let came = self.accepting.came.unwrap_or(accepted);
            let (came_rate, rate) = (self.window.rate(came), self.window.rate(accepted));
            return found.measured(
                format!(
                    "{} came into its queue, {came_rate:.1}/s, and {accepted} were accepted, {rate:.1}/s",
                    counted(came, "connection")
                ),
                rate,
                "connections/s",
                self.accepting.source,
            );
        }
        let admitted = self.netns.grown("Tcp.PassiveOpens").unwrap_or(0);
        found.measured(
            format!(
                "{} came into all queues of this namespace; which of them into this one is not known",
                counted(admitted, "connection")
            ),
            self.window.rate(admitted),
            "connections/s",
            "Tcp.PassiveOpens",
        )
    }

    /// Since when nothing was accepted.
    fn stall(&self, found: Finding) -> Finding {
        let Some(stall) = self.accepting.stall else {
            return found;
        };
        found.measured(
            format!(
                "nothing was accepted in the last {:.1} s: all that came since still wait",
                stall.seconds
            ),
            stall.seconds,
            "s",
            "sock_diag tcp_info",
        )
    }

    fn fixes(&self, found: Finding) -> Finding {
        let path = self.path();
        if let (Some(path), true) = (&path, self.waits_for.is_some()) {
            return found.command(
                format!(
                    "first have more served at once by what it waits for, {path}: more workers here would only wait there as well"
                ),
                "none",
            );
        }
        if let (Some(path), Some(_)) = (&path, self.silent()) {
            return found.command(
                format!(
                    "first see to what it waits for in connect(), {path}: more workers here would only wait there as well; a \
                     shorter timeout of connect() has them fail sooner"
                ),
                "none",
            );
        }
        let found = self.workers().advise(found);
        let found = match path {
            Some(path) => found.command(
                format!("see whether {path} is what is slow: more workers help only if it answers more at once"),
                "none",
            ),
            None => found,
        };
        if self
            .overflow
            .as_ref()
            .is_some_and(|overflow| overflow.is_pinned() && overflow.emptied == Emptied::Unknown)
        {
            return found.command(
                "a longer queue helps only if this one is taken whole now and then (watch Recv-Q of ss -ltn); else \
                 everybody would only wait longer",
                "none",
            );
        }
        found.command(
            match self
                .overflow
                .as_ref()
                .filter(|overflow| overflow.is_pinned())
            {
                Some(overflow) => format!(
                    "do not make the queue longer: it is {}, so everybody would only wait longer",
                    overflow.how_full()
                ),
                None => "do not make the queue longer: everybody would only wait longer".to_owned(),
            },
            "none",
        )
    }
}

/// More that wait for the same are not named.
const MOST_NAMED: usize = 2;

/// How long the first in the queue waits, if that is worth a word.
fn first_waits(seconds: f64) -> String {
    match seconds {
        ..0.05 => String::new(),
        ..2.0 => format!(", the first for {seconds:.1} s"),
        _ => format!(", the first for {}", spoken(seconds)),
    }
}

/// What a process does that runs nothing, to be said after what it does not do.
const fn does(state: char) -> &'static str {
    match state {
        'T' => " (stopped, state T)",
        't' => " (held by a debugger, state t)",
        'D' => " (blocked in the kernel, state D)",
        _ => "",
    }
}

/// One less.
const fn lower(confidence: Confidence) -> Confidence {
    match confidence {
        Confidence::High => Confidence::Medium,
        Confidence::Medium | Confidence::Low => Confidence::Low,
    }
}

#[cfg(test)]
mod tests;
