//! Clients believe that they are connected, but the server has dropped their final ACK.

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, somewhere},
    in_each, overflow,
    window::{Netns, Window},
};
use crate::report::diagnosis::{Affected, Confidence, Severity};

pub(super) static RULE: Rule = Rule {
    id: "half-open-established",
    title: "clients are connected, the server is not",
    check,
    explanation: Explanation {
        symptom: "connect() succeeds at once, but the first request is retransmitted and the answer is late or never comes.",
        cause: "The handshake's last ACK found the accept queue full: tcp_v4_syn_recv_sock() returned NULL, the request stays \
                half open, and the server sends its SYN-ACK again (tcp_retransmit_synack). The client has been \
                ESTABLISHED since the first SYN-ACK and sends data, which is dropped.",
        recognised: "The listeners probe saw final ACKs refused, or SYN-ACKs were sent again in a namespace whose accept \
                     queues overflow. It follows from accept-queue-overflow or application-not-accepting.",
        fixes: &[
            (
                "those of accept-queue-overflow or application-not-accepting",
                "theirs",
            ),
            (
                "net.ipv4.tcp_abort_on_overflow=1 tells clients with a reset instead",
                "clients that would have been served a moment later fail",
            ),
        ],
    },
};

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        if netns.grown("TcpExt.ListenOverflows")? == 0 {
            return Ok(Vec::new());
        }
        let inode = netns.inode.to_string();
        let group = [("netns", inode.as_str())];
        let refused = window
            .events
            .count("listeners", &[("stage", "ack-accept-queue"), group[0]]);
        let named_by_kernel = window
            .events
            .count("drops", &[("reason", "TCP_LISTEN_OVERFLOW"), group[0]]);
        let again = window
            .events
            .count("retransmits", &[("cause", "syn-ack"), group[0]]);
        let seen = refused.max(named_by_kernel);
        if seen == 0 && again == 0 {
            return Ok(Vec::new());
        }
        // Without the probe the kernel's reason tells: it says it of a full queue, at whatever stage.
        let (confidence, source) = if seen == 0 {
            (Confidence::Low, "TcpExt.ListenOverflows")
        } else if refused >= named_by_kernel {
            (Confidence::High, "tcp_v4_syn_recv_sock")
        } else {
            (Confidence::Medium, "TCP_LISTEN_OVERFLOW")
        };
        Ok(vec![
            finding(
                RULE.id,
                Severity::Warning,
                confidence,
                format!(
                    "clients{} believe that they are connected while the server refuses them: {seen} final ACKs were \
                     dropped, {again} SYN-ACKs sent again",
                    netns.place()
                ),
            )
            .counted(
                format!("{seen} final ACKs refused by a full accept queue"),
                seen,
                "ACKs",
                source,
            )
            .counted(
                format!("{again} SYN-ACKs were sent again"),
                again,
                "SYN-ACKs",
                "tcp_retransmit_synack",
            )
            .hits(refusing(window, netns))
            .command("fix the accept queue first: this follows from it", "none"),
        ])
    })
}

/// The listeners whose queues refused them, or the namespace where those are not known.
fn refusing(window: &Window, netns: &Netns) -> Vec<Affected> {
    let overflows = overflow::of(window, netns).unwrap_or_default();
    let queues = overflows.iter().map(|overflow| overflow.queue.as_ref());
    let listeners: Option<Vec<Affected>> = queues
        .map(|queue| Some(window.affected_listener(netns, &queue?.listener)))
        .collect();
    let listeners = listeners.filter(|listeners| !listeners.is_empty());
    listeners.unwrap_or_else(|| vec![somewhere(netns)])
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::fixtures::quiet,
        observe::processes::Process,
        report::{Value, diagnosis::Confidence},
    };

    #[test]
    fn refused_final_acks_stand_behind_the_queue_that_refused_them() {
        let mut window = quiet();
        window.listen(80, 10, &[0, 11, 0, 0, 0]);
        window.grow(&[("TcpExt.ListenOverflows", 5)]);
        let group = [
            ("stage", Value::Word("ack-accept-queue")),
            ("listener_port", Value::Unsigned(80)),
        ];
        window.total("listeners", 5, &group);
        let findings = window.findings();
        assert_eq!(findings[1].id, "half-open-established");
        assert_eq!(findings[1].behind, Some("accept-queue-overflow"));
    }

    #[test]
    fn they_stand_behind_their_own_listener_and_not_another_of_the_namespace() {
        let mut window = quiet();
        window.listen(7300, 3, &[4; 10]);
        window.listen(7301, 64, &[30; 10]);
        let server = window.processes.by_pid.get_mut(&100).unwrap();
        let sockets = vec![server.sockets.pop().unwrap()];
        let poor = Process {
            pid: 101,
            fds: 40,
            fd_limit: 40,
            sockets,
            ..Process::default()
        };
        window.processes.by_pid.insert(101, poor);
        window.grow(&[("TcpExt.ListenOverflows", 30)]);
        let reason = [("reason", Value::Word("TCP_LISTEN_OVERFLOW"))];
        window.total("drops", 30, &reason);
        let told = window.told();
        assert!(told.contains(&("fd-exhaustion", None)), "{told:?}");
        let expected = Some("application-not-accepting");
        assert!(
            told.contains(&("half-open-established", expected)),
            "{told:?}"
        );
    }

    #[test]
    fn a_probe_that_is_missing_is_no_source() {
        let mut window = quiet();
        window.listen(80, 10, &[0, 11, 0, 0, 0]);
        window.grow(&[("TcpExt.ListenOverflows", 5)]);
        window.blind("listeners");
        let reason = [("reason", Value::Word("TCP_LISTEN_OVERFLOW"))];
        window.total("drops", 5, &reason);
        let findings = window.findings();
        let found = findings
            .iter()
            .find(|found| found.id == "half-open-established");
        let found = found.unwrap();
        assert_eq!(found.confidence, Confidence::Medium);
        assert_eq!(found.evidence[0].source, "TCP_LISTEN_OVERFLOW");
    }

    #[test]
    fn syn_acks_sent_again_without_an_overflow_are_not() {
        let mut window = quiet();
        window.total("retransmits", 9, &[("cause", Value::Word("syn-ack"))]);
        assert!(!window.ids().contains(&"half-open-established"));
    }
}
