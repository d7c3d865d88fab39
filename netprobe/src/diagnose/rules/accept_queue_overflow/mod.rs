//! A listener's queue is too short for the bursts that come: it is full now and then, and empty in
//! between, so a longer one would help.

use super::super::{
    Explanation, Rule, Verdict,
    accepting::{self, Accepting},
    cpu_time::Lack,
    fifo::Emptied,
    finding::{finding, somewhere},
    halted, in_each,
    overflow::{self, Overflow},
    pause::{self, Pause},
    places,
    sizing::{PERSIST, counted, roomy},
    stalled,
    window::{Netns, Window, ratio},
};
use crate::{
    observe::processes::Process,
    report::diagnosis::{Confidence, Finding, Severity},
};

pub(super) static RULE: Rule = Rule {
    id: "accept-queue-overflow",
    title: "a listener's accept queue is too short",
    check,
    explanation: Explanation {
        symptom: "Clients time out or see latencies of whole seconds (1, 3, 7; since Linux 6.5 1, 2, 3 and so on) while the CPU is idle and the port is open.",
        cause: "A finished handshake waits in the listener's accept queue until the application calls accept(). \
                The queue holds min(listen() argument, net.core.somaxconn), fixed when listen() is called. When \
                sk_acceptq_is_full(), tcp_conn_request() drops SYNs and tcp_v4_syn_recv_sock() drops the final ACK; \
                both count ListenOverflows. The client sends its SYN again after 1 s, and so on (see \
                syn-retransmits).",
        recognised: "ListenOverflows grew; the listeners probe names the listener and stage. The queue was sampled \
                     and was not full all the time: the application does empty it. Where connections came and none was \
                     accepted for a second or more in one piece (queue and Tcp.PassiveOpens at each look), it is that \
                     pause which it is too short for. Fewer than one in a hundred connections are a warning. If it is always full, the rule application-not-accepting holds instead, because a longer queue would only wait longer.",
        fixes: &[
            (
                "raise net.core.somaxconn, then the listen() backlog, then restart or reload the application",
                "a listener keeps its limit until it calls listen() again; each waiting connection takes about 2 KiB",
            ),
            (
                "accept faster: more acceptors, SO_REUSEPORT, no work between accept() calls",
                "SO_REUSEPORT spreads connections by hash, not by load",
            ),
        ],
    },
};

/// Fewer of the connections are a warning.
const FEW: f64 = 0.01;
/// A shorter queue saves nothing.
const SMALLEST: u64 = 128;

fn check(window: &Window) -> Verdict {
    let mut explained = None;
    let verdict = in_each(window, |netns| {
        let (others, short): (Vec<_>, Vec<_>) = overflow::of(window, netns)?
            .into_iter()
            .map(|overflow| (elsewhere(window, netns, &overflow), overflow))
            .partition(|(why, _)| why.is_some());
        explained = explained.or_else(|| others.into_iter().find_map(|(why, _)| why));
        Ok(short
            .iter()
            .map(|(_, overflow)| {
                stalled::add(describe(window, netns, overflow), window, netns, overflow)
            })
            .collect())
    });
    match (verdict, explained) {
        (Verdict::Ok, Some(why)) => Verdict::OkBecause(why.to_owned()),
        (verdict, _) => verdict,
    }
}

/// Why an overflow is not the fault of a short queue.
fn elsewhere(window: &Window, netns: &Netns, overflow: &Overflow) -> Option<&'static str> {
    let queue = overflow.queue.as_ref()?;
    let mut holders = window.processes.holders(queue.listener.ino);
    if overflow.is_pinned() {
        Some("queues overflow, but they are always full: see application-not-accepting")
    } else if is_waiting(&accepting::of(window, netns, queue)) {
        Some("queues overflow, but what is in them is not accepted: see application-not-accepting")
    } else if holders.any(Process::has_no_descriptors) {
        Some("queues overflow, but accept() fails for want of file descriptors: see fd-exhaustion")
    } else {
        None
    }
}

/// Of many connections few that came a second later are no outage.
fn severity(window: &Window, netns: &Netns, overflow: &Overflow) -> Severity {
    let served = match overflow.port {
        Some(port) => places::connections(window, netns, port),
        None => netns.grown("Tcp.PassiveOpens").unwrap_or(0),
    };
    if ratio(overflow.refused, overflow.refused + served) < FEW {
        Severity::Warning
    } else {
        Severity::Critical
    }
}

const fn is_waiting(accepting: &Accepting) -> bool {
    accepting.waits_long || accepting.is_stalled()
}

#[expect(
    clippy::too_many_lines,
    reason = "a straight list of evidence and fixes"
)]
fn describe(window: &Window, netns: &Netns, overflow: &Overflow) -> Finding {
    let who = match &overflow.queue {
        Some(queue) => {
            let holder = window.holder(&queue.listener);
            let comm = holder.map_or(String::new(), |process| format!("{}, ", process.comm));
            format!(
                "the listener at port {} ({comm}queue of {})",
                queue.listener.port, queue.listener.limit
            )
        }
        None => match overflow.port {
            Some(port) => format!("the listener at port {port}"),
            None => "a listener".to_owned(),
        },
    };
    let rate = window.rate(overflow.refused);
    let pause = overflow.queue.as_ref().and_then(|queue| {
        pause::longest(window, netns, queue, &accepting::of(window, netns, queue))
    });
    let (confidence, why) = if let Some(pause) = pause {
        (overflow.confidence, paused(window, overflow, pause))
    } else if overflow.is_undecided() {
        (
            Confidence::Low,
            "it was not looked at often enough to tell a short queue from an application that does not accept".to_owned(),
        )
    } else {
        (
            overflow.confidence,
            "its accept queue is too short for the bursts".to_owned(),
        )
    };
    let found = finding(
        RULE.id,
        severity(window, netns, overflow),
        confidence,
        format!(
            "{who}{} {}; in {:.0} s {}: {why}",
            netns.place(),
            how_often(window, netns, overflow, pause),
            window.seconds,
            overflow.turned_away()
        ),
    )
    .counted(
        format!(
            "{} refused by {}, {rate:.1}/s",
            counted(overflow.refused, "attempt"),
            if overflow.others == 0 {
                "a full accept queue"
            } else {
                "all full accept queues of this namespace"
            }
        ),
        overflow.refused,
        "attempts",
        "TcpExt.ListenOverflows",
    );
    let found = match &overflow.queue {
        None => found,
        Some(queue) => found
            .counted(
                format!(
                    "the queue held up to {} of {}",
                    queue.deepest(),
                    queue.listener.limit
                ),
                u64::from(queue.deepest()),
                "connections",
                "sock_diag",
            )
            .measured(
                format!(
                    "it was full at {:.0} % of {} looks{}",
                    queue.full_share() * 100.0,
                    queue.depths.len(),
                    match overflow.emptied {
                        _ if pause.is_some() => "",
                        Emptied::InGulps => ", but taken whole now and then",
                        _ if overflow.is_undecided() => "",
                        _ => ": the application does empty it",
                    }
                ),
                queue.full_share() * 100.0,
                "percent",
                "sock_diag",
            )
            .hits([window.affected_listener(netns, &queue.listener)]),
    };
    let certain = pause.filter(|pause| pause.is_certain);
    let found = match certain {
        Some(Pause { seconds, .. }) => found.measured(
            format!("nothing was accepted for {seconds:.1} s in one piece, while somebody waited all the time"),
            seconds,
            "s",
            "Tcp.PassiveOpens, sock_diag",
        ),
        None => found,
    };
    let found = if found.affected.is_empty() {
        found.hits([somewhere(netns)])
    } else {
        found
    };
    let found = found.since(window, netns, "TcpExt.ListenOverflows");
    let found = match certain {
        Some(pause) if pause.lasts => {
            return against_pause(found, window, overflow, pause).command(
                "look again once it accepts: how long a queue the pause needs follows from the whole of it",
                "none",
            );
        }
        Some(pause) => against_pause(found, window, overflow, pause),
        None => found,
    };
    fixes(found, netns, overflow, certain)
}

/// When it was full, in words.
fn how_often(
    window: &Window,
    netns: &Netns,
    overflow: &Overflow,
    pause: Option<Pause>,
) -> &'static str {
    let certain = pause.filter(|pause| pause.is_certain);
    match certain.zip(overflow.queue.as_ref()) {
        Some((pause, _)) if pause.lasts => "is full now",
        Some((_, queue)) => {
            let accepting = accepting::of(window, netns, queue);
            if pause::certain(window, netns, queue, &accepting).len() == 1 {
                "was full for a while"
            } else {
                "is full now and then"
            }
        }
        None => "is full now and then",
    }
}

fn comm(window: &Window, overflow: &Overflow) -> String {
    let queue = overflow.queue.as_ref();
    let holder = queue.and_then(|queue| window.holder(&queue.listener));
    holder.map_or("the application".to_owned(), |process| process.comm.clone())
}

/// That the application took a break, or may have.
fn paused(window: &Window, overflow: &Overflow, pause: Pause) -> String {
    let comm = comm(window, overflow);
    let seconds = pause.seconds;
    let more = if pause.is_older { " or more" } else { "" };
    if pause.is_certain && pause.lasts {
        format!("{comm} has not accepted for {seconds:.1} s so far")
    } else if pause.is_certain {
        format!(
            "{comm} did not accept for {seconds:.1} s{more}, and its accept queue is too short for that"
        )
    } else {
        format!(
            "it was full for {seconds:.1} s{more} in one piece: bursts came, or {comm} did not accept meanwhile"
        )
    }
}

/// The pause itself is what to look at first.
fn against_pause(found: Finding, window: &Window, overflow: &Overflow, pause: Pause) -> Finding {
    let ino = overflow
        .queue
        .as_ref()
        .map_or(0, |queue| queue.listener.ino);
    let holders: Vec<&Process> = window.processes.holders(ino).collect();
    if let Some(released) = halted::release(&holders).filter(|_| pause.lasts) {
        return found.command(released, "none").at_once();
    }
    let found = match Lack::of(window, ino) {
        Some(lack) if lack.is_throttled() => lack.advise(found, None).0,
        _ => found,
    };
    let who = holders
        .first()
        .map_or("the application".to_owned(), |process| {
            format!("pid {}", process.pid)
        });
    found.application(
        format!(
            "find out why {who} {} call accept() for {:.1} s: {}",
            if pause.lasts { "does not" } else { "did not" },
            pause.seconds,
            pause::REASONS
        ),
        &[],
        "none",
    )
}

/// Room for those that waited and those that were turned away in the same pause of the application: however long one
/// watches.
fn fixes(found: Finding, netns: &Netns, overflow: &Overflow, pause: Option<Pause>) -> Finding {
    let limit = u64::from(
        overflow
            .queue
            .as_ref()
            .map_or(0, |queue| queue.listener.limit),
    );
    let turned_away = overflow.at_once;
    #[expect(clippy::cast_precision_loss, reason = "a size")]
    let (needed, terms) = match pause {
        // Where those that were turned away have not come again yet, too few are known.
        Some(Pause {
            seconds, arrivals, ..
        }) if arrivals * seconds > limit as f64 => (
            arrivals * seconds,
            format!("{arrivals:.1} arrivals/s x {seconds:.1} s without accept()"),
        ),
        _ => (
            (limit + turned_away) as f64,
            format!(
                "{limit} waiting + {}{turned_away} turned away before they are accepted",
                if overflow.is_at_most { "about " } else { "" }
            ),
        ),
    };
    let wanted = roomy(needed).clamp(SMALLEST, 65_535);
    let arithmetic = format!(
        "{terms}, and half as much again, rounded up to a power of two and to no less than {SMALLEST}"
    );
    let somaxconn = netns.sysctl("net.core.somaxconn");
    let is_capped = somaxconn.is_some_and(|somaxconn| somaxconn < wanted);
    let found = match somaxconn {
        Some(somaxconn) if is_capped => found.sysctl(
            format!("first raise somaxconn from {somaxconn} to {wanted} ({arithmetic}); {PERSIST}"),
            &[("net.core.somaxconn", wanted.to_string())],
            "none by itself: it is an upper limit for listen()",
        ),
        _ => found,
    };
    let binding = match somaxconn {
        Some(somaxconn) if limit >= somaxconn => "the limit is that of somaxconn",
        _ => "the limit is the listen() argument",
    };
    found.application(
        format!(
            "{} the application listen with a backlog of {wanted} ({arithmetic}; {binding}) and restart it: a \
             queue keeps its limit until listen() is called again",
            if is_capped { "then have" } else { "have" }
        ),
        &[("listen_backlog", wanted.to_string())],
        "a longer queue hides a slow application: latency grows instead of errors",
    )
}

#[cfg(test)]
mod tests;
