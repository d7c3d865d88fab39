//! There is no room in TIME_WAIT: closed connections are forgotten at once.

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, somewhere},
    in_each,
    sizing::{PERSIST, SPARED, roomy},
    window::Window,
};
use crate::report::diagnosis::{Confidence, Severity};

pub(super) static RULE: Rule = Rule {
    id: "time-wait-overflow",
    title: "closed connections find no room in TIME_WAIT",
    check,
    explanation: Explanation {
        symptom: "Connections vanish without TIME_WAIT; dmesg says \"TCP: time wait bucket table overflow\". Now and then a \
                  new connection gets a late packet of an old one, or a reset.",
        cause: "tcp_time_wait() asks inet_twsk_alloc() for a bucket, which returns NULL above net.ipv4.tcp_max_tw_buckets \
                of the namespace; the socket is closed without waiting and TCPTimeWaitOverflow counts.",
        recognised: "TCPTimeWaitOverflow grew: the kernel counts exactly this.",
        fixes: &[
            (
                "raise net.ipv4.tcp_max_tw_buckets to closes/s x 60 s",
                "memory: about 0.25 KiB for each",
            ),
            ("close fewer connections: keep-alive", "none"),
        ],
    },
};

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let refused = netns.grown("TcpExt.TCPTimeWaitOverflow")?;
        if refused == 0 {
            return Ok(Vec::new());
        }
        let opened = netns.grown("Tcp.ActiveOpens")? + netns.grown("Tcp.PassiveOpens")?;
        let closes = window.rate(opened.max(refused));
        let limit = netns.sysctl("net.ipv4.tcp_max_tw_buckets").unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "a size")]
        let wanted = roomy((closes * 60.0).max(limit as f64));
        Ok(vec![
            finding(
                RULE.id,
                Severity::Warning,
                Confidence::High,
                format!(
                    "{refused} closed connections{} found no room in TIME_WAIT in {:.0} s (limit {limit})",
                    netns.place(),
                    window.seconds
                ),
            )
            .counted(
                format!("{refused} were forgotten at once, {:.1}/s", window.rate(refused)),
                refused,
                "connections",
                "TcpExt.TCPTimeWaitOverflow",
            )
            .counted(
                format!("{limit} may wait"),
                limit,
                "connections",
                "net.ipv4.tcp_max_tw_buckets",
            )
            .hits([somewhere(netns)])
            .sysctl(
                format!(
                    "raise tcp_max_tw_buckets: {closes:.1} closes/s x 60 s = {:.0}, at least the {limit} of now, {SPARED}; \
                     {PERSIST}",
                    closes * 60.0
                ),
                &[("net.ipv4.tcp_max_tw_buckets", wanted.to_string())],
                "memory: about 0.25 KiB for each",
            ),
        ])
    })
}

#[cfg(test)]
mod tests {
    use crate::diagnose::fixtures::quiet;

    #[test]
    fn buckets_are_sized_from_the_rate_of_closes() {
        let mut window = quiet();
        window.set("net.ipv4.tcp_max_tw_buckets", "10");
        window.grow(&[
            ("TcpExt.TCPTimeWaitOverflow", 900),
            ("Tcp.ActiveOpens", 1000),
        ]);
        let findings = window.findings();
        assert_eq!(findings[0].id, "time-wait-overflow");
        // 100/s x 60 s = 6000, and half as much again.
        assert_eq!(findings[0].fixes[0].set[0].1, "16384");
        let text = &findings[0].fixes[0].text;
        assert!(text.contains("rounded up to a power of two"), "{text}");
    }
}
