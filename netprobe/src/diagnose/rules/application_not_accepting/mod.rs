//! Connections arrive faster than the application accepts them: a listener's queue is full all the
//! time, or long and growing. A longer queue would only make them wait longer.

mod alike;
mod case;
mod chain;
mod pauses;
mod words;

use self::{alike::Alike, case::Case};
use super::super::{
    Explanation, Rule, Verdict, accepting, in_each,
    overflow::{self, Overflow},
    window::{Gap, Netns, Queue, Window},
};
use crate::report::diagnosis::Finding;

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
                     that one comes first; so does what is wrong on the way to a destination where half of the time of its \
                     workers passes until what they sent there is sent again. Where its control group used up its CPU time in a fifth of the periods or more \
                     (cpu.stat), or its first thread waits for a CPU most of the time (/proc/PID/schedstat), it lacks that and not \
                     workers.",
        fixes: &[
            (
                "more CPU time for a control group that is throttled (cpu.max, docker --cpus, CPUQuota=, limits.cpu): what it may use \
                 x arrivals/s / accepted/s / 0.8; thaw one that is frozen",
                "what else runs there has less",
            ),
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
    chain::link(&mut cases);
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

#[cfg(test)]
mod tests;
