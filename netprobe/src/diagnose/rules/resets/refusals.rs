//! Connections that the peer refused: whether anybody listens there, after all, or next to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    super::super::{
        dropped,
        events::Owner,
        finding::finding,
        places::{self, End},
        sizing::several,
        translated::Translated,
        window::{Netns, Window, endpoint},
    },
    RULE, Reset, services,
};
use crate::{
    observe::diag::Listener,
    report::diagnosis::{Confidence, Finding, Severity},
};

/// Why a connection was refused.
enum Why {
    /// Nobody listens there; somebody did when the window began, or not.
    Nobody { is_gone: bool },
    /// Who listens there cannot be seen from here.
    Elsewhere,
    /// The service listens there, and a firewall of this machine dropped what came for it.
    Rejected(String),
    /// It began to listen there only in the window; or began anew.
    Began { name: String, is_anew: bool },
    /// It listens there all along, and who refused was not seen.
    Unseen(String),
    /// It listens at other addresses of the same machine only.
    Beside {
        name: String,
        addresses: String,
        /// The family of addresses that is left out altogether.
        lacks: Option<&'static str>,
        /// Whether those who are refused do get there.
        is_reached: bool,
    },
}

/// What is known of the end that refused.
fn why(window: &Window, netns: &Netns, end: End) -> Why {
    let name = |listener: &Listener| {
        let holder = window.holder(listener);
        holder.map_or_else(|| "a process".to_owned(), |process| process.comm.clone())
    };
    let is_refuser = |home: &Netns| refuses(window, home, end);
    let listener = places::listener(window, netns, end);
    let homes = places::homes(window, netns, end.0);
    // Of several namespaces with this address another may be meant, that says so itself.
    let is_other = |taker: &Netns| !is_refuser(taker) && homes.iter().any(|home| is_refuser(home));
    if let Some((home, listener)) = listener.filter(|(taker, _)| !is_other(taker)) {
        let name = name(listener);
        return match was_there(home, end) {
            _ if is_firewalled(window, end) => Why::Rejected(name),
            Some((false, is_anew)) => Why::Began { name, is_anew },
            _ => Why::Unseen(name),
        };
    }
    if homes.is_empty() {
        return Why::Elsewhere;
    }
    // Of several with the same address it is one that says so itself, if one does; else one with such a listener.
    let home = homes.iter().find(|home| is_refuser(home)).or_else(|| {
        let mut homes = homes.iter();
        homes.find(|home| places::at_port(home, end.1).next().is_some())
    });
    let Some(home) = home.copied() else {
        let is_gone = |home: &&Netns| was_there(home, end).is_some_and(|(_, is_gone)| is_gone);
        return Why::Nobody {
            is_gone: homes.iter().any(is_gone),
        };
    };
    let beside: Vec<&Listener> = places::at_port(home, end.1).collect();
    let Some(first) = beside.first() else {
        return Why::Nobody {
            is_gone: was_there(home, end).is_some_and(|(_, is_gone)| is_gone),
        };
    };
    let addresses: BTreeSet<String> = beside
        .iter()
        .map(|listener| endpoint(listener.address, listener.port))
        .collect();
    let is_any = beside
        .iter()
        .any(|listener| listener.address.is_unspecified());
    Why::Beside {
        name: name(first),
        addresses: addresses.into_iter().collect::<Vec<_>>().join(", "),
        lacks: is_any.then_some(if end.0.is_ipv6() { "IPv6" } else { "IPv4" }),
        is_reached: is_reached(window, netns, home, end),
    }
}

/// Whether the kernel of a namespace was seen to refuse connections at an end, as nobody listens there.
fn refuses(window: &Window, home: &Netns, end: End) -> bool {
    let mut resets = window.events.within("resets", home.inode);
    resets.any(|event| {
        event.is("cause", "no-listener")
            && places::ends(event).is_some_and(|(local, _)| local == end)
    })
}

/// Whether one of the listeners of an end was there when the window began, and whether another was;
/// `None` if that was not seen.
fn was_there(home: &Netns, end: End) -> Option<(bool, bool)> {
    let before = &home.before.sockets.as_ref()?.listeners;
    let takers = |listener: &&Listener| listener.port == end.1 && listener.takes(end.0);
    let old: Vec<u64> = before
        .iter()
        .filter(takers)
        .map(|listener| listener.ino)
        .collect();
    let mut now = places::at_port(home, end.1).filter(takers);
    let stayed = now.any(|listener| old.contains(&listener.ino));
    Some((stayed, !old.is_empty()))
}

/// Whether a firewall of this machine was seen to drop SYNs to an end: a rule that rejects does.
fn is_firewalled(window: &Window, end: End) -> bool {
    let drops = window.events.of("drops").iter();
    let dropped = drops.filter(|event| {
        dropped::is_netfilter(|name| event.value(name))
            && dropped::is_syn(event)
            && places::ends(event).is_some_and(|(_, destination)| destination == end)
    });
    dropped.take(LEAST_SEEN).count() == LEAST_SEEN
}

/// How often a process was refused at an address, and got through at another of the same machine.
#[derive(Default)]
struct Attempts {
    comm: Option<String>,
    refused: usize,
    reached: usize,
}

/// The attempts of each process at an end. Of those that connect once or twice not every connection was seen: they are
/// taken together by name.
fn attempts(window: &Window, netns: &Netns, home: &Netns, end: End) -> Vec<Attempts> {
    let mut processes = BTreeMap::<Owner, Attempts>::new();
    for event in window.events.within("connects", netns.inode) {
        let Some(address) = event
            .ip("daddr")
            .filter(|_| event.small("dport") == Some(end.1))
        else {
            continue;
        };
        let is_home = || {
            let mut homes = places::homes(window, netns, address).into_iter();
            homes.any(|there| there.inode == home.inode)
        };
        let (pid, comm) = event.owner();
        let process = processes
            .entry((pid, comm.clone().filter(|_| pid.is_none())))
            .or_default();
        process.comm = process.comm.take().or(comm);
        if address == end.0 && event.is("errno", "ECONNREFUSED") {
            process.refused += 1;
        } else if event.is("outcome", "established") && is_home() {
            process.reached += 1;
        }
    }
    let (long, short): (Vec<Attempts>, Vec<Attempts>) = processes
        .into_values()
        .partition(|process| process.refused + process.reached >= LEAST_SEEN);
    let mut names = BTreeMap::<Option<String>, Attempts>::new();
    for process in short {
        let all = names.entry(process.comm).or_default();
        all.refused += process.refused;
        all.reached += process.reached;
    }
    long.into_iter().chain(names.into_values()).collect()
}

/// Whether the processes that are refused at one address get through at another of the same machine
/// (localhost as ::1 and 127.0.0.1), as often or nearly so.
fn is_reached(window: &Window, netns: &Netns, home: &Netns, end: End) -> bool {
    let attempts = attempts(window, netns, home, end);
    if attempts.iter().all(|process| process.refused == 0) {
        // None was seen as it happened.
        let [inode, port] = [netns.inode.to_string(), end.1.to_string()];
        let reached = [
            ("outcome", "established"),
            ("dport", port.as_str()),
            ("netns", inode.as_str()),
        ];
        return window.events.count("connects", &reached) >= LEAST_SEEN as u64;
    }
    let kept_out = attempts
        .iter()
        .filter(|process| process.reached * 2 < process.refused);
    kept_out.map(|process| process.refused).sum::<usize>() < LEAST_SEEN
}

/// Fewer are chance.
const LEAST_SEEN: usize = 3;

/// A health check, even one every 200 ms, asks less often than this each second.
const REAL_USE: f64 = 8.0;
/// Fewer may be all there are by chance.
const LEAST_OF_ALL: u64 = 10;

/// The address that refuses most connects to a port.
pub(super) struct Worst {
    /// How many it refused, and how many connections there were to it.
    pub(super) refused: u64,
    pub(super) connections: u64,
    /// Some were not seen one by one: these are estimates.
    is_sampled: bool,
    /// How many other addresses refused some.
    others: usize,
}

impl Worst {
    /// What goes before the number that it refused, and how many others did.
    fn words(&self, reset: &Reset) -> (&'static str, String) {
        if self.others == 0 {
            return ("", String::new());
        }
        let about = if self.is_sampled { "about " } else { "" };
        let count = reset.at_port.saturating_sub(reset.count);
        let addresses = several(self.others as u64, "other address", "other addresses");
        (
            about,
            format!(", and {about}{count} by {addresses} at that port"),
        )
    }
}

/// Of `refused` connects to a port, those of the address that refused most.
pub(super) fn at_worst_end(
    window: &Window,
    netns: &Netns,
    port: u16,
    refused: u64,
) -> Option<Worst> {
    let mut ends = BTreeMap::<IpAddr, [u64; 2]>::new();
    for event in window.events.within("connects", netns.inode) {
        let address = event
            .ip("daddr")
            .filter(|_| event.small("dport") == Some(port));
        let Some(address) = address else { continue };
        let [refused, reached] = ends.entry(address).or_default();
        *refused += u64::from(event.is("errno", "ECONNREFUSED"));
        *reached += u64::from(event.is("outcome", "established"));
    }
    let all: u64 = ends.values().map(|[refused, _]| refused).sum();
    let refusing = ends.values().filter(|[refused, _]| *refused > 0).count();
    let [here, reached] = ends.into_values().max_by_key(|[refused, _]| *refused)?;
    // What was seen is a sample of what was counted.
    let times = |part: u64| (refused * part).checked_div(all);
    Some(Worst {
        refused: times(here)?,
        connections: times(here + reached)?,
        is_sampled: all != refused,
        others: refusing.saturating_sub(1),
    })
}

/// Whether an end that is in real use refuses every connect, and those that connect get through nowhere else at that
/// port (as where a proxy tries another instance). `refused` is how many connects to the port were refused.
fn is_outage(window: &Window, netns: &Netns, (address, port): End, refused: u64) -> bool {
    // Of each process: how often it was refused here, and got through elsewhere at the port.
    let mut processes = BTreeMap::<Owner, [u64; 2]>::new();
    let (mut here, mut all) = (0, 0);
    for event in window.events.within("connects", netns.inode) {
        if event.small("dport") != Some(port) {
            continue;
        }
        let is_here = event.ip("daddr") == Some(address);
        let process = processes.entry(event.owner()).or_default();
        if event.is("outcome", "established") {
            if is_here {
                return false;
            }
            process[1] += 1;
        } else if event.is("errno", "ECONNREFUSED") {
            all += 1;
            if is_here {
                here += 1;
                process[0] += 1;
            }
        }
    }
    // Those that get through elsewhere do not lose all.
    let kept_out = processes
        .values()
        .filter(|[here, through]| through * 2 < *here);
    let kept_out: u64 = kept_out.map(|[here, _]| here).sum();
    // What was seen is a sample of what was counted.
    let times = |part: u64| refused * part / all.max(1);
    kept_out * 2 > here && times(here) >= LEAST_OF_ALL && window.rate(times(kept_out)) >= REAL_USE
}

/// Whether some connects to an end succeed.
fn do_some_succeed(window: &Window, end: Option<End>) -> bool {
    let mut connects = window.events.of("connects").iter();
    connects.any(|connect| {
        let remote = connect.ip("daddr").zip(connect.small("dport"));
        remote.is_some() && remote == end && connect.is("outcome", "established")
    })
}

/// How bad it is, what is the matter, and what to do.
#[expect(
    clippy::too_many_lines,
    reason = "a straight list of reasons and what to do"
)]
fn judged(
    window: &Window,
    why: Why,
    worst: Option<End>,
    severity: Severity,
) -> (Severity, String, String) {
    let port = worst.map_or(0, |(_, port)| port);
    match why {
        Why::Nobody { is_gone: false } => (
            severity,
            "nobody listens there".to_owned(),
            "start the service, or correct address and port".to_owned(),
        ),
        Why::Nobody { is_gone: true } => (
            severity,
            "nobody listens there any more".to_owned(),
            "start the service again, its log says why it ended; or have its clients connect elsewhere, if it was stopped on \
             purpose"
                .to_owned(),
        ),
        Why::Elsewhere => (
            severity,
            if do_some_succeed(window, worst) {
                "others get through: nobody listens there for moments (a restart), or one of several instances does not, or a \
                 firewall rejects some; that end cannot be seen here"
            } else {
                "nobody listens there, or a firewall rejects them: that end cannot be seen here"
            }
            .to_owned(),
            "see at that end whether the service listens (ss -ltn), and whether a rule rejects, there or on the way \
             (nft list ruleset)"
                .to_owned(),
        ),
        Why::Rejected(name) => (
            severity,
            format!("though {name} listens there: a firewall rule of this machine rejects them"),
            "look for the rule that rejects (nft list ruleset), at the address that was connected to and on the way to it"
                .to_owned(),
        ),
        Why::Began { name, is_anew } => (
            severity,
            if is_anew {
                format!("{name} was restarted meanwhile, and nobody listened there in between")
            } else {
                format!("{name} began to listen there only meanwhile")
            },
            "if nobody restarted it, its log says why it ended; if somebody did, have the new process take over the \
             listener (systemd socket unit, graceful reload)"
                .to_owned(),
        ),
        Why::Unseen(name) => (
            severity,
            format!(
                "though {name} listens there; {}",
                if window.watched_required("drops").is_ok() {
                    "no firewall of this machine was seen to drop them"
                } else {
                    "whether a firewall rejects them cannot be seen here"
                }
            ),
            "see who refuses: netprobe resets at that end shows those that its kernel sends (no-listener: it did not listen \
             at that moment, or not on that interface); others come from a firewall or proxy on the way"
                .to_owned(),
        ),
        Why::Beside {
            name,
            addresses,
            lacks,
            is_reached,
        } => {
            let only = match lacks {
                Some("IPv6") => ", IPv4 only",
                Some(_) => ", IPv6 only",
                None => " only",
            };
            let reached = if is_reached {
                ", where connections do get through"
            } else {
                ""
            };
            (
                if is_reached { Severity::Info } else { severity },
                format!("{name} listens at {addresses}{only}{reached}"),
                match lacks {
                    Some("IPv6") => format!(
                        "have {name} listen on IPv6, too ([::]:{port}), or its clients connect over IPv4 (no AAAA record)"
                    ),
                    Some(_) => format!(
                        "have {name} listen on IPv4, too (0.0.0.0:{port}, or [::]:{port} with IPV6_V6ONLY off), or its clients \
                         connect over IPv6 (no A record)"
                    ),
                    None => format!(
                        "have {name} listen at this address, too, or its clients connect to the one that it listens at"
                    ),
                },
            )
        }
    }
}

/// The end that refuses where clients connect to `end`, if that is translated on the way, with a namespace that it is
/// seen from.
fn asked<'a>(window: &'a Window, netns: &'a Netns, end: End) -> (&'a Netns, End) {
    let Some(to) = Translated::of(window).leads_to(end).next() else {
        return (netns, end);
    };
    let home = || places::homes(window, netns, end.0).into_iter().next();
    let seen_in = if to.0.is_loopback() { home() } else { None };
    (seen_in.unwrap_or(netns), to)
}

pub(super) fn describe(
    window: &Window,
    netns: &Netns,
    port: Option<u16>,
    reset: &Reset,
) -> Finding {
    let mut hits = services(window, netns, "refused");
    hits.retain(|hit| port.is_none() || hit.port == port);
    let worst = hits.first().and_then(|hit| hit.address.zip(hit.port));
    let asked = worst.map(|end| asked(window, netns, end));
    let why = asked.map_or(Why::Elsewhere, |(netns, end)| why(window, netns, end));
    let place = match (worst, port) {
        (Some(end), _) if let Some((_, to)) = asked.filter(|(_, to)| *to != end) => format!(
            " by {}, which leads to {} (address translation)",
            endpoint(end.0, end.1),
            endpoint(to.0, to.1)
        ),
        (Some((address, port)), Some(_)) => format!(" by {}", endpoint(address, port)),
        (Some((address, port)), None) => format!(", most of them by {},", endpoint(address, port)),
        (None, Some(port)) => format!(" at port {port}"),
        (None, None) => String::new(),
    };
    let is_outage = reset.severity >= Severity::Warning
        && !matches!(why, Why::Began { .. })
        && worst.is_some_and(|end| is_outage(window, netns, end, reset.at_port));
    let severity = if is_outage {
        Severity::Critical
    } else {
        reset.severity
    };
    let (severity, meaning, advice) = judged(window, why, worst, severity);
    let meaning = if severity == Severity::Critical {
        format!("no connect to it gets through: {meaning}")
    } else {
        meaning
    };
    if hits.is_empty() {
        hits.push(super::somewhere(netns));
    }
    let worst_end = reset.worst_end.as_ref();
    let (about, others) = worst_end.map_or(("", String::new()), |worst| worst.words(reset));
    finding(
        RULE.id,
        severity,
        Confidence::High,
        format!(
            "{about}{} connections{} were refused{place}{others} in {:.0} s: {meaning}",
            reset.count,
            netns.place(),
            window.seconds
        ),
    )
    .counted(
        format!(
            "{about}{} resets with cause refused: {:.0} % of the connections",
            reset.count,
            reset.share * 100.0
        ),
        reset.count,
        "resets",
        "resets",
    )
    .hits(hits)
    .command(advice, "none")
}
