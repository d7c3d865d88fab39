//! TCP has taken all the memory that it may have: windows shrink and packets are dropped.

mod holder;

use holder::Holder;

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, named, somewhere},
    in_each,
    sizing::{PERSIST, bytes, counted},
    window::{Gap, Netns, Window, ratio},
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

pub(super) static RULE: Rule = Rule {
    id: "tcp-memory-pressure",
    title: "TCP is out of memory",
    check,
    explanation: Explanation {
        symptom: "Throughput of all connections collapses, windows are small, some are reset; \"TCP: out of memory\" in dmesg.",
        cause: "All TCP sockets share net.ipv4.tcp_mem (in pages). Above the second value __sk_mem_raise_allocated() calls \
                tcp_enter_memory_pressure(), buffers no longer grow; above the third, packets are dropped (PROTO_MEM) and \
                orphans are killed (tcp_check_oom).",
        recognised: "TCPMemoryPressures grew, or the memory in sockstat is above the second value of tcp_mem, or packets \
                     were dropped with PROTO_MEM (TCPRcvQDrop). tcp_mem is lowered where it is below nine tenths of what \
                     tcp_init_mem() sets: a sixteenth of the pages that buffers may be taken from, and 3/4 and 3/2 of it. The \
                     service whose connections have half of all that was not read (Recv-Q), or else was not acknowledged \
                     (Send-Q), and an eighth of the memory in use, is named with its process.",
        fixes: &[
            (
                "put net.ipv4.tcp_mem back to what the kernel sets itself, or raise it",
                "memory that the rest of the machine does not have",
            ),
            (
                "lower tcp_rmem and tcp_wmem maxima, or find the reader that does not read",
                "long fat paths need large buffers",
            ),
        ],
    },
};

/// Below this share of what the kernel sets itself somebody has lowered it: what memory it counts can only be estimated.
const LOWERED: f64 = 0.9;

fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let entered = netns.grown("TcpExt.TCPMemoryPressures")?;
        let used = used(netns);
        let limits = netns.sysctl_words("net.ipv4.tcp_mem");
        if entered > 0 && limits.len() < 3 {
            return Err(Gap("tcp_mem cannot be read".to_owned()));
        }
        let dropped = dropped(window, netns);
        // The memory is that of all namespaces together, so it is told once.
        let teller = window.namespaces.iter().find(|netns| netns.is_initial);
        let teller = teller.or_else(|| window.namespaces.first());
        let is_over = teller.is_some_and(|teller| teller.inode == netns.inode)
            && limits
                .get(1)
                .is_some_and(|limit| *limit > 0 && ratio(used, *limit) >= 1.0);
        let is_hit = entered > 0 || dropped > 0;
        if !is_hit
            && (!is_over
                || window
                    .namespaces
                    .iter()
                    .any(|netns| is_short(window, netns)))
        {
            return Ok(Vec::new());
        }
        Ok(vec![describe(
            window,
            netns,
            (used, &limits),
            (entered, dropped),
        )])
    })
}

/// Packets that were dropped for want of memory. A drop from a receive queue does not tell its namespace on older kernels (6.1), but a counter does: of
/// packets that a socket has no room for, which is for want of memory where that is short.
fn dropped(window: &Window, netns: &Netns) -> u64 {
    let inode = netns.inode.to_string();
    let group = [("reason", "PROTO_MEM"), ("netns", inode.as_str())];
    let seen = window.events.count("drops", &group);
    let is_short = netns
        .sysctl_words("net.ipv4.tcp_mem")
        .get(1)
        .is_some_and(|limit| *limit > 0 && used(netns) >= *limit);
    let counted = netns.grown("TcpExt.TCPRcvQDrop").unwrap_or(0);
    if is_short { seen.max(counted) } else { seen }
}

/// Pages that TCP has taken.
fn used(netns: &Netns) -> u64 {
    netns.gauge("sockstat.TCP.mem").unwrap_or(0)
}

/// Whether connections of a namespace were refused memory.
fn is_short(window: &Window, netns: &Netns) -> bool {
    let entered = netns.grown("TcpExt.TCPMemoryPressures");
    entered.is_ok_and(|entered| entered > 0) || dropped(window, netns) > 0
}

/// How bad it is: above its limits nobody has to be refused anything, as long as nobody asks for more.
const fn weight(entered: u64, dropped: u64) -> (Severity, Confidence) {
    match (dropped, entered) {
        (0, 0) => (Severity::Warning, Confidence::Medium),
        (0, _) => (Severity::Warning, Confidence::High),
        _ => (Severity::Critical, Confidence::High),
    }
}

fn describe(
    window: &Window,
    netns: &Netns,
    (used, limits): (u64, &[u64]),
    (entered, dropped): (u64, u64),
) -> Finding {
    let (severity, confidence) = weight(entered, dropped);
    let [pressure, limit] = [1, 2].map(|place| limits.get(place).copied().unwrap_or(0));
    let pages = |count: u64| bytes(count * window.page_bytes);
    let found = finding(
        RULE.id,
        severity,
        confidence,
        format!(
            "TCP is short of memory on this machine: {} are in use, where {} are allowed, and {dropped} packets{} were dropped \
             for it in {:.0} s",
            pages(used),
            pages(limit),
            netns.place(),
            window.seconds
        ),
    )
    .counted(
        format!(
            "{used} pages ({}) in use; pressure from {pressure} ({}), none beyond {limit} ({})",
            pages(used),
            pages(pressure),
            pages(limit)
        ),
        used,
        "pages",
        "/proc/net/sockstat mem, net.ipv4.tcp_mem",
    )
    .counted(
        format!("TCP came under pressure {}", counted(entered, "time")),
        entered,
        "times",
        "TcpExt.TCPMemoryPressures",
    )
    .counted(
        format!("{} dropped for want of memory", counted(dropped, "packet")),
        dropped,
        "packets",
        "kfree_skb PROTO_MEM, TcpExt.TCPRcvQDrop",
    )
    .hits([named("table", "TCP memory", None)]);
    // Where nobody in particular was refused, it is everybody's.
    let found = match (entered, dropped) {
        (0, 0) => found,
        _ => found.hits([somewhere(netns)]),
    };
    fixes(found, window, (used, limit))
}

fn fixes(found: Finding, window: &Window, (used, limit): (u64, u64)) -> Finding {
    let holder = Holder::of(window, used);
    let own = window.buffer_pages.map(Limits::of_kernel);
    let lowered = own.filter(|own| ratio(limit, own.most) < LOWERED);
    let found = match &holder {
        Some(holder) => holder.shown(found),
        None => found,
    };
    // Who does not read takes more memory as well.
    let found = match (lowered, &holder) {
        (Some(own), Some(holder)) => holder.advise(own.restore(found, window)),
        (Some(own), None) => own.restore(found, window),
        (None, Some(holder)) => raise(holder.advise(found), window, used.max(limit)),
        (None, None) => raise(found, window, used.max(limit)),
    };
    if holder.is_some() {
        return found;
    }
    found.command(
        "see whose it is: ss -tm shows the memory of each connection; a reader that does not read fills its buffer",
        "none",
    )
}

/// `tcp_mem`, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    least: u64,
    pressure: u64,
    most: u64,
    /// Pages of the machine that they are computed from.
    buffer_pages: u64,
}

impl Limits {
    /// What the kernel itself sets when it starts (`tcp_init_mem()`).
    fn of_kernel(buffer_pages: u64) -> Self {
        let pressure = (buffer_pages / 16).max(128);
        let least = pressure / 4 * 3;
        Self {
            least,
            pressure,
            most: least * 2,
            buffer_pages,
        }
    }

    /// Sets them.
    fn restore(self, found: Finding, window: &Window) -> Finding {
        let Self {
            least,
            pressure,
            most,
            buffer_pages,
        } = self;
        found.sysctl(
            format!(
                "tcp_mem is lower than what the kernel sets itself: put that back, {} at most (about {buffer_pages} pages of this \
                 machine / 16 = {pressure}, and 3/4 and 3/2 of it); {PERSIST}",
                bytes(most * window.page_bytes)
            ),
            &[("net.ipv4.tcp_mem", format!("{least} {pressure} {most}"))],
            "memory that the rest of the machine does not have",
        )
    }
}

/// Twice as much, unless that is most of the machine.
fn raise(found: Finding, window: &Window, present: u64) -> Finding {
    let most = present * 2;
    if window.buffer_pages.is_some_and(|pages| most > pages / 2) {
        return found;
    }
    found.sysctl(
        format!(
            "allow twice as much, {}: no more than the limit can be in use, so how much is wanted shows only then; {PERSIST}",
            bytes(most * window.page_bytes)
        ),
        &[(
            "net.ipv4.tcp_mem",
            format!("{} {} {most}", most / 2, most / 4 * 3),
        )],
        "memory that the rest of the machine does not have",
    )
}

#[cfg(test)]
mod tests;
