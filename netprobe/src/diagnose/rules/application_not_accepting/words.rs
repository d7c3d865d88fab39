//! What is said of a case: its headline, its evidence, and what to do.

use super::{
    super::super::{
        accepting,
        fifo::Emptied,
        finding::finding,
        halted::{self, Halt},
        sizing::{counted, seconds_left, spoken, waiting},
        tiers::Upstream,
    },
    RULE,
    case::Case,
};
use crate::report::diagnosis::{Confidence, Finding};

impl Case<'_> {
    pub(super) fn describe(&self) -> Finding {
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
        let found = match self.workers().lack() {
            Some(lack) => lack.measured(found),
            None => found,
        };
        let listener = &self.queue.listener;
        let mut found = found.hits([self.window.affected_listener(self.netns, listener)]);
        found.behind = self.waits_for.map(|_| RULE.id);
        let awaited = self.silent().or_else(|| self.late());
        found.awaits = awaited.map(Upstream::destination);
        self.fixes(found)
    }

    pub(super) fn summary(&self) -> String {
        let (listener, comm) = (&self.queue.listener, self.comm());
        let state = halted::all(self.window, self.queue).map_or("", Halt::words);
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
        let lack = self.workers().lack().map_or("", |lack| lack.words());
        format!(
            "{comm} at port {}{} {accepts}: {state}{others}{lack}{}",
            listener.port,
            self.netns.place(),
            self.shared()
        )
    }

    /// How many connections it accepts each second, and how many come, turned away or not: as many as its fix counts with.
    fn pace(&self, accepted: f64) -> String {
        let (arrivals, about) = self.workers().arrival_rate();
        // What others pass on to it, or would, is told with them.
        let is_own = about.is_empty() && self.before.is_empty();
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
            Some(path) if self.late().is_some() => {
                format!("; it waits for {path}, to which packets are lost")
            }
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
        let found = connections.fold(found, |found, (text, count)| {
            found.counted(text, count, "connections", "sock_diag, connects")
        });
        match self.late().map(|late| late.lateness(self.window)) {
            Some((text, seconds)) => found.measured(text, seconds, "s", "tcp_retransmit_skb"),
            None => found,
        }
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
        if let (Some(path), Some(_)) = (&path, self.late()) {
            return found.command(
                format!(
                    "mend the way to {path} first: its workers wait for it, so that more of them would only wait there as well"
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

/// One less.
const fn lower(confidence: Confidence) -> Confidence {
    match confidence {
        Confidence::High => Confidence::Medium,
        Confidence::Medium | Confidence::Low => Confidence::Low,
    }
}
