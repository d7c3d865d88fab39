//! What is lost on the way to single addresses, however much goes well to others.

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr};

use super::{
    super::super::{
        events::Event,
        overflow,
        stalled::is_data,
        window::{Netns, Window},
    },
    LEAST, Loss, is_away,
};

/// Most addresses that are told.
const MOST: usize = 4;

/// Segments that were sent again to an address.
#[derive(Default)]
struct Again {
    total: u64,
    rto: u64,
    fast: u64,
    tlp: u64,
}

impl Loss {
    /// What is lost to each address that loses much, the worst first, of those that this side connects to; without those
    /// where it is not known how much was sent there. Clients are many, and some of them always have a bad line.
    pub(super) fn to_each(window: &Window, netns: &Netns, needless: u64) -> Vec<Self> {
        let weight = window.events.weight("retransmits");
        let scale = |events: u64| scaled(events, weight);
        let losses = addresses(window, netns).into_iter();
        let losses = losses.filter_map(|(address, again)| {
            // Which of them had arrived is not known.
            let lost = scale(again.total).saturating_sub(needless);
            let sent = (lost >= LEAST).then(|| sent_to(window, netns, address));
            let sent = sent.filter(|sent| *sent > 0)?;
            Some(Self {
                address: Some(address),
                lost,
                sent: sent.max(scale(again.total)),
                needless,
                rto: scale(again.rto),
                fast: scale(again.fast),
                tlp: scale(again.tlp),
            })
        });
        let mut losses: Vec<Self> = losses.filter(Self::is_much).collect();
        losses.sort_by_key(|loss| Reverse(loss.lost));
        losses.truncate(MOST);
        losses
    }
}

/// How many events are meant where each stands for `weight`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "an estimate"
)]
pub(super) fn scaled(events: u64, weight: f64) -> u64 {
    (events as f64 * weight) as u64
}

/// The addresses that this side connects to and has sent segments to again.
fn addresses(window: &Window, netns: &Netns) -> BTreeMap<IpAddr, Again> {
    let refusing = overflow::refusing(window);
    let mut all = BTreeMap::<IpAddr, Again>::new();
    let events = window.events.within("retransmits", netns.inode);
    for event in events.filter(|event| is_data(event) && is_away(netns, event, &refusing)) {
        let Some(address) = event.ip("daddr").filter(|_| !is_served(netns, event)) else {
            continue;
        };
        let again = all.entry(address).or_default();
        again.total += 1;
        again.rto += u64::from(event.is("cause", "rto"));
        again.fast += u64::from(event.is("cause", "fast"));
        again.tlp += u64::from(event.is("cause", "tlp"));
    }
    all
}

/// Whether a segment is of a connection that was accepted here.
fn is_served(netns: &Netns, event: &Event) -> bool {
    let port = event.small::<u16>("sport");
    let mut queues = netns.queues.iter();
    queues.any(|queue| Some(queue.listener.port) == port)
}

/// Segments that were sent to an address: by connections that are open, and by those that ended.
fn sent_to(window: &Window, netns: &Netns, address: IpAddr) -> u64 {
    let [before, after] = [&netns.before, &netns.after].map(|snapshot| {
        let table = snapshot.sockets.as_ref();
        let path = table.and_then(|table| table.paths.get(&address));
        path.map_or(0, |path| path.data_segments)
    });
    let ended = window.events.within("lifetimes", netns.inode);
    let ended = ended.filter(|event| event.ip("daddr") == Some(address));
    let ended: u64 = ended.filter_map(|event| event.number("segs_out")).sum();
    after.saturating_sub(before) + scaled(ended, window.events.weight("lifetimes"))
}
