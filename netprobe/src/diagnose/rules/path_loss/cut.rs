//! A destination that no data arrives at: it is not merely that the path loses some.

use super::{
    super::super::{
        places::End,
        window::{Netns, Window},
    },
    Loss, Peer, is_in_vain,
};
use crate::report::diagnosis::Finding;

/// Fewer connections may have been forgotten on their own.
const LEAST: usize = 3;
/// A path that is switched over is back sooner.
const LONG_MS: u32 = 3000;

/// Connections whose data does not arrive.
pub(super) struct Cut {
    /// How many wait, of those that were looked at.
    stuck: usize,
    /// Since the peer was last heard of over any that has brought it data.
    unheard_ms: Option<u32>,
}

impl Cut {
    /// Of an address that this side connects to, where it takes data of none.
    pub(super) fn of(
        window: &Window,
        netns: &Netns,
        loss: &Loss,
        peers: &[(End, Peer)],
    ) -> Option<Self> {
        let address = loss.address?;
        let path = netns.after.sockets.as_ref()?.paths.get(&address)?;
        let is_heard = path.unheard_ms.is_some_and(|ms| ms < LONG_MS);
        let mut ended = window.events.within("lifetimes", netns.inode);
        let is_served = ended.any(|event| {
            let bytes = ["bytes_sent", "bytes_received"].map(|name| event.number(name));
            event.ip("daddr") == Some(address)
                && event.is("result", "fin")
                && bytes.iter().flatten().any(|bytes| *bytes > 0)
        });
        let stuck = path.stuck_bytes.len();
        let is_cut = stuck >= LEAST && loss.fast == 0 && is_in_vain(peers);
        (is_cut && !is_heard && !is_served).then_some(Self {
            stuck,
            unheard_ms: path.unheard_ms,
        })
    }

    /// Adds what it rests on.
    pub(super) fn add(&self, found: Finding) -> Finding {
        let heard = self.unheard_ms.map_or_else(
            || "no open one has brought it any data".to_owned(),
            |ms| {
                format!(
                    "nothing was heard of it for {:.0} s",
                    f64::from(ms) / 1000.0
                )
            },
        );
        found.counted(
            format!(
                "{} connections with it have sent the same data again and again, and {heard}",
                self.stuck
            ),
            self.stuck as u64,
            "connections",
            "tcp_info backoff, last_ack_recv, bytes_acked",
        )
    }
}
