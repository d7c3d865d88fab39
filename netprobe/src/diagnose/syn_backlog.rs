//! SYNs that found the backlog of a listener full, and which listener that is.

use super::{
    events::{port_of, value_of},
    window::{Gap, Netns, Window},
};
use crate::{observe::snapshot::Snapshot, report::Value};

const STAGES: [&str; 3] = ["syn-backlog", "syn-reserved", "syn-cookie"];

/// SYNs that found the backlog full.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused {
    /// Dropped because it was full.
    pub(super) full: u64,
    /// Dropped because its last quarter is kept for peers that are known.
    pub(super) reserved: u64,
    /// Found it full and were worth a cookie.
    pub(super) cookies: u64,
    /// Of those, answered; the others were dropped, as the accept queue was full too.
    pub(super) answered: u64,
}

impl Refused {
    /// Those of a namespace.
    pub(super) fn of(window: &Window, netns: &Netns) -> Result<Self, Gap> {
        let inode = netns.inode.to_string();
        let [backlog, reserved, cookie] = STAGES.map(|stage| {
            let group = [("stage", stage), ("netns", inode.as_str())];
            window.events.count("listeners", &group)
        });
        let full = netns.grown("TcpExt.TCPReqQFullDrop")?;
        let reserved = reserved.max(unnamed(netns, full)?);
        // With 2 every SYN gets a cookie, however empty the backlog is.
        let is_always = netns.sysctl("net.ipv4.tcp_syncookies") == Some(2);
        let cookies = if is_always {
            0
        } else {
            netns.grown("TcpExt.TCPReqQFullDoCookies")?.max(cookie)
        };
        Ok(Self {
            full: full.max(backlog),
            reserved,
            cookies,
            answered: netns.grown("TcpExt.SyncookiesSent")?.min(cookies),
        })
    }

    /// How many were dropped because of the backlog.
    pub(super) const fn dropped(&self) -> u64 {
        self.full + self.reserved
    }

    /// How many found it full.
    pub(super) const fn all(&self) -> u64 {
        self.dropped() + self.cookies
    }
}

/// SYNs dropped for the sake of the reserved quarter, which no counter names: `ListenDrops` has them,
/// beside those that have counters of their own. Other reasons are left out by asking for a backlog
/// that is half taken, at least, without cookies.
fn unnamed(netns: &Netns, full: u64) -> Result<u64, Gap> {
    let backlog = netns.sysctl("net.ipv4.tcp_max_syn_backlog");
    let half_open = |snapshot: &Snapshot| {
        let clients = snapshot.sockets.as_ref()?.clients.values();
        clients.map(|clients| u64::from(clients.half_open)).max()
    };
    let most = half_open(&netns.before).max(half_open(&netns.after));
    let is_taken = most
        .zip(backlog)
        .is_some_and(|(most, backlog)| most * 2 >= backlog);
    if netns.sysctl("net.ipv4.tcp_syncookies") != Some(0) || !is_taken {
        return Ok(0);
    }
    let named = netns.grown("TcpExt.ListenOverflows")? + full;
    Ok(netns.grown("TcpExt.ListenDrops")?.saturating_sub(named))
}

/// The port where most were refused, or else where most are half open.
pub(super) fn port(window: &Window, netns: &Netns) -> Option<u16> {
    let inode = netns.inode.to_string();
    let group = [("netns", inode.as_str())];
    let is_ours = |value: &Value| matches!(value, Value::Word(stage) if STAGES.contains(stage));
    let groups = window.events.groups("listeners", &group);
    let most = groups
        .filter(|total| is_ours(value_of(total, "stage")))
        .max_by_key(|total| total.events);
    let seen = most.and_then(|total| port_of(total, "listener_port"));
    let only = match netns.queues.as_slice() {
        [only] => Some(only.listener.port),
        _ => None,
    };
    seen.or_else(|| fullest(netns)).or(only)
}

/// The port with most half-open handshakes, at the beginning or at the end.
fn fullest(netns: &Netns) -> Option<u16> {
    let tables = [&netns.after, &netns.before];
    let tables = tables
        .into_iter()
        .filter_map(|table| table.sockets.as_ref());
    let clients = tables.flat_map(|table| &table.clients);
    let (port, clients) = clients.max_by_key(|(_, clients)| clients.half_open)?;
    (clients.half_open > 0).then_some(*port)
}
