//! Too many closed connections still wait for their peers, so the kernel resets some.

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, somewhere},
    in_each,
    sizing::{PERSIST, roomy},
    window::{Gap, Window},
};
use crate::report::diagnosis::{Confidence, Severity};

pub(super) static RULE: Rule = Rule {
    id: "orphan-overflow",
    title: "too many closed connections wait for their peers",
    check,
    explanation: Explanation {
        symptom: "Connections are reset while they close, the last data is lost; \"too many orphaned sockets\" in dmesg.",
        cause: "A connection that its process has closed stays as an orphan until its data is acknowledged. Above \
                net.ipv4.tcp_max_orphans (half or a quarter of it, for peers that do not answer) tcp_check_oom() makes \
                tcp_close() and tcp_out_of_resources() reset it; TCPAbortOnMemory counts.",
        recognised: "TCPAbortOnMemory grew while orphans were near their limit. Without orphans it is tcp-memory-pressure.",
        fixes: &[
            (
                "raise net.ipv4.tcp_max_orphans",
                "memory: up to 64 KiB for each that cannot be swapped",
            ),
            (
                "lower net.ipv4.tcp_orphan_retries and tcp_fin_timeout",
                "slow clients lose the end of an answer",
            ),
        ],
    },
};

#[expect(
    clippy::too_many_lines,
    reason = "a straight list of evidence and fixes"
)]
fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let aborted = netns.grown("TcpExt.TCPAbortOnMemory")?;
        if aborted == 0 {
            return Ok(Vec::new());
        }
        let before = netns
            .before
            .counters
            .get("sockstat.TCP.orphan")
            .copied()
            .unwrap_or(0);
        let orphans = netns
            .gauge("sockstat.TCP.orphan")?
            .max(u64::try_from(before).unwrap_or(0));
        let Some(limit) = netns.sysctl("net.ipv4.tcp_max_orphans") else {
            return Err(Gap("tcp_max_orphans cannot be read".to_owned()));
        };
        let has_pressure = netns.grown("TcpExt.TCPMemoryPressures")? > 0;
        if orphans * 4 < limit {
            return if has_pressure {
                Ok(Vec::new())
            } else {
                Err(Gap(format!(
                    "{aborted} connections were aborted for want of memory, but only {orphans} of {limit} orphans were \
                     there at either end of the window"
                )))
            };
        }
        #[expect(clippy::cast_precision_loss, reason = "a size")]
        let wanted = roomy((limit.max(orphans) + aborted) as f64);
        Ok(vec![
            finding(
                RULE.id,
                Severity::Warning,
                Confidence::Medium,
                format!(
                    "{aborted} closing connections{} were reset in {:.0} s: {orphans} orphans, limit {limit}",
                    netns.place(),
                    window.seconds
                ),
            )
            .counted(
                format!("{aborted} connections aborted"),
                aborted,
                "connections",
                "TcpExt.TCPAbortOnMemory",
            )
            .counted(
                format!("{orphans} orphans of {limit}"),
                orphans,
                "connections",
                "/proc/net/sockstat orphan",
            )
            .hits([somewhere(netns)])
            .sysctl(
                format!("allow {limit} + {aborted} and half as many again; {PERSIST}"),
                &[("net.ipv4.tcp_max_orphans", wanted.to_string())],
                "memory: up to 64 KiB for each that cannot be swapped",
            )
            .sysctl(
                "or give up sooner on peers that do not answer",
                &[("net.ipv4.tcp_orphan_retries", "2".to_owned())],
                "slow clients lose the end of an answer",
            ),
        ])
    })
}

#[cfg(test)]
mod tests {
    use crate::diagnose::{Verdict, fixtures::quiet};

    #[test]
    fn aborts_need_orphans_to_be_theirs() {
        let mut window = quiet();
        window.grow(&[("TcpExt.TCPAbortOnMemory", 10)]);
        let verdict = window.verdict("orphan-overflow");
        assert!(matches!(verdict, Verdict::NotEnoughData(_)), "{verdict:?}");
        window.grow(&[("sockstat.TCP.orphan", 60_000)]);
        assert_eq!(window.ids(), ["orphan-overflow"]);
    }
}
