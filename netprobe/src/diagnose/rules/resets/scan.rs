//! Somebody tries one port after the other.

use std::collections::BTreeSet;

use super::{
    super::super::{
        finding::{finding, process, somewhere},
        places::{self, End},
        window::{Netns, Window},
    },
    RULE, Reset,
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

/// Whether those who were refused try one end after the other.
pub(super) fn is_scan(window: &Window, netns: &Netns) -> bool {
    let resets = window.events.within("resets", netns.inode);
    let refused = resets.filter(|event| event.is("cause", "refused"));
    let ends: Vec<End> = refused
        .filter_map(|event| Some(places::ends(event)?.1))
        .collect();
    let distinct: BTreeSet<&End> = ends.iter().collect();
    !ends.is_empty() && distinct.len() * 2 >= ends.len()
}

/// Refusals at more ports than can be told apart.
pub(super) fn describe(window: &Window, netns: &Netns, reset: &Reset) -> Finding {
    let mut resets = window.events.within("resets", netns.inode);
    let scanner = resets.find_map(|event| {
        let (pid, comm) = event.owner();
        Some((pid?, comm?)).filter(|_| event.is("cause", "refused"))
    });
    let (who, hit) = match scanner {
        Some((pid, comm)) => (
            format!("{comm} (pid {pid})"),
            process(Some(pid), Some(comm), Some(netns.inode)),
        ),
        None => ("somebody".to_owned(), somewhere(netns)),
    };
    finding(
        RULE.id,
        Severity::Info,
        Confidence::Medium,
        format!(
            "{} connections{} to many ports were refused in {:.0} s: {who} tries one after the other, as a port scan does",
            reset.count,
            netns.place(),
            window.seconds
        ),
    )
    .counted(
        format!("{} resets with cause refused, at more ports than are told apart", reset.count),
        reset.count,
        "resets",
        "resets",
    )
    .hits([hit])
    .command("nothing to do if it is meant to; netprobe resets shows each of them with its process", "none")
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::fixtures::quiet,
        report::{Value, diagnosis::Severity},
    };

    /// What is found where so many connects were refused at ports that the kernel does not tell apart, of which these
    /// were seen.
    fn found(ports: impl Iterator<Item = u64>) -> (Severity, String) {
        let mut window = quiet();
        window.total("resets", 8000, &[("cause", Value::Word("refused"))]);
        for (index, port) in ports.enumerate() {
            let row = [
                ("cause", Value::Word("refused")),
                ("saddr", Value::Ip([10, 0, 0, 2].into())),
                ("sport", Value::Unsigned(40_000 + index as u64)),
                ("daddr", Value::Ip([10, 0, 0, 1].into())),
                ("dport", Value::Unsigned(port)),
                ("pid", Value::Unsigned(7)),
                ("comm", Value::Text("nmap".into())),
            ];
            window.event("resets", 1, &row);
        }
        let found = window.findings().remove(0);
        (found.severity, found.summary)
    }

    #[test]
    fn who_tries_all_ports_is_told_and_no_service_is_blamed() {
        let (severity, summary) = found(1..200);
        assert_eq!(severity, Severity::Info, "{summary}");
        assert!(summary.contains("to many ports"), "{summary}");
        assert!(summary.contains("nmap (pid 7)"), "{summary}");
        let (severity, summary) = found([9; 200].into_iter());
        assert_eq!(severity, Severity::Warning, "{summary}");
        assert!(summary.contains("most of them by 10.0.0.1:9"), "{summary}");
    }
}
