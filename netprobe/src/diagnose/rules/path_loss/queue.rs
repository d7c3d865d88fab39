//! Whether a queue on the path is full where segments are lost, as the round trips tell, and who fills it.

use std::net::IpAddr;

use super::{
    super::super::{
        events::Owner,
        senders,
        sizing::{median, millis},
        window::{Netns, Window, ratio},
    },
    Peer,
};
use crate::{
    observe::diag::{LOCAL_US, Path, SWOLLEN, TRAIN},
    report::diagnosis::Finding,
};

/// A queue is built to hold what is in flight on the path: bulk that fills it doubles the round trip, nearly.
const DOUBLED: f64 = 1.7;
/// Less may be spent at the two ends.
const LONG_US: u64 = 5000;
/// Up to so many times the shortest round trip no queue builds up.
const EMPTY: f64 = 1.2;

/// Round trips to an address at which segments were lost. Half of them lie below the one that counts: single ones contain
/// timeouts.
pub(super) struct RoundTrips {
    pub(super) address: IpAddr,
    srtt_us: u64,
    least_us: u64,
    /// Whether many segments are in flight to it.
    is_bulk: bool,
    /// Bits per second that arrived there, in millions; 0 where that is not known.
    mbits: f64,
    /// Who had most sent again.
    owner: Owner,
}

impl RoundTrips {
    /// `None` where they are not known.
    pub(super) fn of(window: &Window, netns: &Netns, address: IpAddr, peer: &Peer) -> Option<Self> {
        let [before, after] = [&netns.before, &netns.after].map(|snapshot| {
            let sockets = snapshot.sockets.as_ref();
            sockets.and_then(|sockets| sockets.paths.get(&address))
        });
        let path = after.filter(|path| path.min_rtt_us > 0)?;
        let known = median(&peer.srtt_us).or_else(|| median(&path.srtts_us).map(u64::from));
        let arrived = |path: &Path| path.arrived_bytes;
        let grown = path.arrived_bytes.saturating_sub(before.map_or(0, arrived));
        Some(Self {
            address,
            srtt_us: known?,
            least_us: path.min_rtt_us.into(),
            is_bulk: path.in_flight >= TRAIN,
            mbits: window.rate(grown) * 8.0 / 1e6,
            owner: senders::owner(window, address, |event| event.netns() == Some(netns.inode)),
        })
    }

    fn swell(&self) -> f64 {
        ratio(self.srtt_us, self.least_us)
    }

    /// Whether what is sent to it fills a queue on the path.
    pub(super) fn is_filled(&self) -> bool {
        let is_doubled =
            self.swell() >= DOUBLED && self.srtt_us.saturating_sub(self.least_us) >= LONG_US;
        self.is_bulk && (is_doubled || self.is_full())
    }

    /// Whether a queue on the path is full, whoever fills it.
    fn is_full(&self) -> bool {
        self.swell() >= f64::from(SWOLLEN) && self.least_us >= LOCAL_US.into()
    }

    /// What is lost, where a queue is filled from here.
    pub(super) fn words(&self) -> String {
        format!(
            "; a queue on the way to {} is full and drops the rest (a round trip takes {:.0} ms, at best {:.0} ms): {} fills it",
            self.address,
            millis(self.srtt_us),
            millis(self.least_us),
            self.whose()
        )
    }

    /// What fills it.
    fn whose(&self) -> String {
        senders::named(&self.owner).unwrap_or_else(|| "bulk from here".to_owned())
    }

    /// Adds them, and what they mean.
    pub(super) fn add(&self, found: Finding) -> Finding {
        let verdict = if self.is_filled() || self.is_full() {
            ": a queue on the path is full (bufferbloat)"
        } else if self.swell() < EMPTY {
            ": no queue builds up: clean loss"
        } else {
            ""
        };
        let found = found.measured(
            format!(
                "round trip {:.1} ms, at best {:.1} ms{verdict}",
                millis(self.srtt_us),
                millis(self.least_us)
            ),
            self.swell(),
            "times",
            "tcp_info srtt (median), min_rtt",
        );
        if self.mbits < 0.1 {
            return found;
        }
        found.measured(
            format!("{:.1} Mbit/s arrive at {}", self.mbits, self.address),
            self.mbits,
            "Mbit/s",
            "tcp_info bytes_acked",
        )
    }

    /// What helps against a queue that is filled from here.
    pub(super) fn relieve(&self, found: Finding) -> Finding {
        let (whose, address) = (self.whose(), self.address);
        let rate = if self.mbits < 0.1 {
            String::new()
        } else {
            format!(", below the {:.1} Mbit/s that get through now", self.mbits)
        };
        found
            .application(
                format!(
                    "limit what {whose} sends to {address}{rate}: fewer streams, a limit of its own (rsync --bwlimit, curl \
                     --limit-rate, SO_MAX_PACING_RATE), or BBR (net.ipv4.tcp_congestion_control), which keeps queues short"
                ),
                &[],
                "it takes longer",
            )
            .command(
                "find the queue: mtr while it sends, and the counters of the devices on the path; put fq_codel there if it is \
                 yours",
                "none",
            )
    }
}
