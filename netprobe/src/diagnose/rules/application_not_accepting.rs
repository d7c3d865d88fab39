//! A listener's queue is full all the time: connections arrive faster than the application accepts
//! them, and a longer queue would only make them wait longer.

use super::super::{
    Explanation, Rule, Verdict,
    finding::finding,
    in_each,
    overflow::{self, Overflow},
    window::{Netns, Window},
};
use crate::report::diagnosis::{Finding, Severity};

pub(super) static RULE: Rule = Rule {
    id: "application-not-accepting",
    title: "an application does not accept connections fast enough",
    check,
    explanation: Explanation {
        symptom: "Clients hang after connecting, or time out; the port is open and the listener's queue is full.",
        cause: "The application's workers are all busy or blocked, so nobody calls accept() \
                (inet_csk_accept()). The accept queue fills up to its limit and stays there; from then on \
                tcp_conn_request() and tcp_v4_syn_recv_sock() drop what comes, as in accept-queue-overflow.",
        recognised: "The queue was at its limit at nearly every look during the window. Bursts that a fast \
                     application empties in between are accept-queue-overflow instead.",
        fixes: &[
            (
                "more workers (php-fpm pm.max_children, Apache MaxRequestWorkers, more threads): arrivals/s x service time",
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
    in_each(window, |netns| {
        let overflows = overflow::of(window, netns)?;
        Ok(overflows
            .iter()
            .filter(|overflow| overflow.is_pinned())
            .filter_map(|overflow| describe(window, netns, overflow))
            .collect())
    })
}

fn describe(window: &Window, netns: &Netns, overflow: &Overflow) -> Option<Finding> {
    let queue = overflow.queue.as_ref()?;
    let listener = &queue.listener;
    let holder = window.holder(listener);
    let comm = holder.map_or("the application", |process| process.comm.as_str());
    let admitted = netns.grown("Tcp.PassiveOpens").unwrap_or(0);
    let admitted_rate = window.rate(admitted);
    let accepts = if admitted == 0 {
        "accepts no connections".to_owned()
    } else {
        format!("accepts no more than {admitted_rate:.1} connections/s")
    };
    let workers = window.processes.holders(listener.ino).count().max(1);
    let arrivals = admitted + overflow.clients.unwrap_or(overflow.refused);
    let found = finding(
        RULE.id,
        Severity::Critical,
        overflow.confidence,
        format!(
            "{comm} at port {}{} {accepts}: its queue of {} is always full and {} attempts were turned away",
            listener.port,
            netns.place(),
            listener.limit,
            overflow.refused
        ),
    )
    .measured(
        format!(
            "the queue was full at {:.0} % of {} looks ({} of {})",
            queue.full_share() * 100.0,
            queue.depths.len(),
            queue.deepest(),
            listener.limit
        ),
        queue.full_share() * 100.0,
        "percent",
        "sock_diag",
    )
    .counted(
        format!("{} attempts refused meanwhile", overflow.refused),
        overflow.refused,
        "attempts",
        "TcpExt.ListenOverflows",
    )
    .measured(
        format!("{admitted} connections came into queues of this namespace, {admitted_rate:.1}/s"),
        admitted_rate,
        "connections/s",
        "Tcp.PassiveOpens",
    )
    .hits([window.affected_listener(netns, listener)]);
    Some(fixes(found, window, workers, (arrivals, admitted)))
}

/// Little's law: workers = arrivals/s x service time, and service time = workers / accepts/s.
fn fixes(
    found: Finding,
    window: &Window,
    workers: usize,
    (arrivals, admitted): (u64, u64),
) -> Finding {
    let arrival_rate = window.rate(arrivals);
    let found = if admitted > 0 {
        let service_s = super::super::window::ratio(workers as u64, admitted) * window.seconds;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a bounded positive number"
        )]
        let wanted = (arrival_rate * service_s).ceil().clamp(1.0, 1e6) as u64;
        found.application(
            format!(
                "give it more workers: {arrival_rate:.1} arrivals/s x {service_s:.2} s per connection and process = \
                 {wanted}, where {workers} process{} now hold{} the listener",
                if workers == 1 { "" } else { "es" },
                if workers == 1 { "s" } else { "" },
            ),
            &[("workers", wanted.to_string())],
            "each worker takes memory, and perhaps a connection of the database behind it",
        )
    } else {
        found.application(
            "find out why it does not call accept(): all workers busy, blocked or stopped (look at \
             /proc/PID/stack, or `netprobe lifetimes --open --longest` for who holds them)",
            &[],
            "none",
        )
    };
    found.command(
        "do not make the queue longer: it is always full, so everybody would only wait longer",
        "none",
    )
}

#[cfg(test)]
mod tests {
    use crate::diagnose::fixtures::quiet;

    #[test]
    fn workers_are_sized_by_littles_law() {
        let mut window = quiet();
        window.listen(9000, 10, &[11, 10, 11, 11, 11, 11, 11, 11, 11, 11]);
        // One process accepts 20/s, so a connection takes 50 ms; 60/s arrive.
        window.grow(&[("TcpExt.ListenOverflows", 400), ("Tcp.PassiveOpens", 200)]);
        let findings = window.findings();
        assert_eq!(findings[0].id, "application-not-accepting");
        assert_eq!(
            findings[0].fixes[0].set,
            [("workers".to_owned(), "3".to_owned())]
        );
        assert!(findings[0].fixes.iter().all(|fix| {
            fix.set
                .iter()
                .all(|(name, _)| !name.contains("somaxconn") && name != "listen_backlog")
        }));
    }

    #[test]
    fn few_looks_are_not_all_the_time() {
        let mut window = quiet();
        window.listen(9000, 10, &[11, 11]);
        window.grow(&[("TcpExt.ListenOverflows", 4)]);
        assert_eq!(window.ids(), ["accept-queue-overflow"]);
    }
}
