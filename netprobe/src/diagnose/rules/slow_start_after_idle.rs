//! Kept connections begin slowly after each pause, because their congestion window was forgotten.

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, somewhere},
    in_each,
    sizing::PERSIST,
    window::Window,
};
use crate::report::diagnosis::{Confidence, Severity};

pub(super) static RULE: Rule = Rule {
    id: "slow-start-after-idle",
    title: "kept connections begin slowly after each pause",
    check,
    explanation: Explanation {
        symptom: "Persistent connections over a long path are slow for the first round trips after each pause.",
        cause: "With net.ipv4.tcp_slow_start_after_idle=1 (the default), tcp_cwnd_restart() sets the congestion window back \
                towards its initial value when nothing was sent for one retransmission timeout.",
        recognised: "The setting is on, and several connections over paths of 5 ms and more have sent over 128 KiB and pause \
                     now for longer than their timeout. What they lose is not measured, so it is a note.",
        fixes: &[(
            "net.ipv4.tcp_slow_start_after_idle=0",
            "a burst into a path that has changed meanwhile; not for shared slow links",
        )],
    },
};

const LEAST: u64 = 5;

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let pausing = netns
            .after
            .sockets
            .as_ref()
            .map_or(0, |sockets| sockets.pausing);
        let is_on = netns.sysctl("net.ipv4.tcp_slow_start_after_idle") == Some(1);
        if !is_on || pausing < LEAST {
            return Ok(Vec::new());
        }
        Ok(vec![
            finding(
                RULE.id,
                Severity::Info,
                Confidence::Low,
                format!(
                    "{pausing} busy connections{} over long paths pause now and will begin slowly again",
                    netns.place()
                ),
            )
            .counted(
                format!("{pausing} connections have sent over 128 KiB, have a round trip of 5 ms or more, and pause"),
                pausing,
                "connections",
                "sock_diag tcp_info",
            )
            .counted("tcp_slow_start_after_idle is 1", 1, "", "net.ipv4.tcp_slow_start_after_idle")
            .hits([somewhere(netns)])
            .sysctl(
                format!("keep the congestion window over pauses; {PERSIST}"),
                &[("net.ipv4.tcp_slow_start_after_idle", "0".to_owned())],
                "a burst into a path that has changed meanwhile; not for shared slow links",
            ),
        ])
    })
}

#[cfg(test)]
mod tests {
    use crate::diagnose::fixtures::quiet;

    #[test]
    fn the_setting_and_the_pattern_are_both_needed() {
        let mut window = quiet();
        assert!(window.ids().is_empty());
        window.sockets().pausing = 8;
        assert_eq!(window.ids(), ["slow-start-after-idle"]);
        window.set("net.ipv4.tcp_slow_start_after_idle", "0");
        assert!(window.ids().is_empty());
    }
}
