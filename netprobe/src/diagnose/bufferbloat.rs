//! A queue on a path that is always full, as the round-trip times of open connections show it.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    finding::{finding, host},
    sizing::{median, millis},
    window::{Netns, Window, ratio, ss_dst},
};
use crate::{
    observe::{
        diag::{LOCAL_US, Path, SWOLLEN},
        interfaces::Interface,
    },
    report::diagnosis::{Affected, Confidence, Finding, Severity},
};

/// A queue on a path that is long and loses nothing: only the round-trip times tell, of connections
/// that fill it, at the beginning of the window and at its end.
#[expect(
    clippy::too_many_lines,
    reason = "a straight list of evidence and fixes"
)]
pub(super) fn delayed(id: &'static str, window: &Window, netns: &Netns) -> Option<Finding> {
    let [before, after] = [&netns.before, &netns.after].map(|snapshot| snapshot.sockets.as_ref());
    let (before, after) = before.zip(after)?;
    let is_filled = |path: &Path| path.filling > 0;
    let mut slow: Vec<(&IpAddr, &Path)> = after
        .paths
        .iter()
        .filter(|(address, path)| {
            is_filled(path) && before.paths.get(*address).is_some_and(is_filled)
        })
        .collect();
    slow.sort_by_key(|(address, path)| (std::cmp::Reverse(path.swollen), **address));
    let (address, worst) = slow.first()?;
    let swollen: u32 = slow.iter().map(|(_, path)| path.swollen).sum();
    // What stays within the machine does not count.
    let paths = after
        .paths
        .values()
        .filter(|path| path.min_rtt_us >= LOCAL_US);
    let active: u32 = paths.map(|path| path.active).sum();
    let severity = if swollen * 2 >= active {
        Severity::Warning
    } else {
        Severity::Info
    };
    let srtt = u64::from(median(&worst.srtts_us)?);
    let least = u64::from(worst.min_rtt_us);
    let summary = format!(
        "the path to {address}{} is slowed by a full queue (bufferbloat): a round trip takes {:.0} ms, at best {:.0} ms; \
         nothing is lost",
        netns.place(),
        millis(srtt),
        millis(least)
    );
    let found = finding(id, severity, Confidence::Medium, summary)
        .measured(
            format!(
                "{swollen} of {active} active connections have {SWOLLEN} times the round trip that they had at best, or more"
            ),
            ratio(srtt, least),
            "times",
            "tcp_info srtt (median), min_rtt",
        )
        .counted(
            format!("{} of those to {address} keep that queue full", worst.filling),
            worst.filling.into(),
            "connections",
            "tcp_info unacked",
        );
    let hits = slow
        .iter()
        .take(4)
        .map(|(address, _)| host("destination", **address, netns.inode));
    let hits: Vec<Affected> = hits.collect();
    Some(
        found
            .hits(hits)
            .command(
                format!(
                    "find who fills it: {}ss -tin {} (large unacked, cwnd); {:.1} Mbit/s leave this namespace",
                    netns.enter(),
                    ss_dst(**address),
                    sent_mbits(window, netns)
                ),
                "none",
            )
            .application(
                "send bulk below the rate of the link, or with BBR (net.ipv4.tcp_congestion_control), which keeps queues short; \
                 shape with fq_codel where the queue is, if it is yours",
                &[],
                "other flows on that path may get less or more than now",
            ),
    )
}

fn sent_mbits(window: &Window, netns: &Netns) -> f64 {
    let sent = |interfaces: &BTreeMap<String, Interface>| {
        let real = interfaces.iter().filter(|(name, _)| *name != "lo");
        real.map(|(_, interface)| interface.tx_bytes).sum::<u64>()
    };
    let bytes = sent(&netns.after.interfaces).saturating_sub(sent(&netns.before.interfaces));
    window.rate(bytes) * 8.0 / 1e6
}
