//! Too many handshakes are under way at a listener: half-open connections fill its SYN backlog.

use std::{collections::HashSet, net::IpAddr};

use super::super::{
    Explanation, Rule, Verdict,
    finding::{finding, host, somewhere},
    in_each, places,
    sizing::{PERSIST, roomy, several},
    syn_backlog::{Refused, port},
    window::{Gap, Netns, Queue, Window, ratio},
};
use crate::report::diagnosis::{Confidence, Finding, Severity};

pub(super) static RULE: Rule = Rule {
    id: "syn-backlog-full",
    title: "a listener's SYN backlog is full",
    check,
    explanation: Explanation {
        symptom: "SYNs go unanswered, or are answered with cookies, and many handshakes stay half open.",
        cause: "Each SYN that is answered takes a request in the listener's backlog until its final ACK. When \
                inet_csk_reqsk_queue_is_full() (as many as the accept queue may hold), tcp_conn_request() sends a \
                cookie (TCPReqQFullDoCookies) or drops the SYN (TCPReqQFullDrop). Without cookies, the last quarter of \
                tcp_max_syn_backlog is kept for peers that are known.",
        recognised: "TCPReqQFullDrop or TCPReqQFullDoCookies grew (with tcp_syncookies=1 or 0), the listeners probe saw such \
                     refusals, or without cookies ListenDrops grew by more than its other reasons while half of \
                     tcp_max_syn_backlog was taken. If hardly any of the handshakes of that port is completed it is a \
                     flood, or the answers are lost; else it is load. Where they are lost on their way to clients in namespaces that \
                     were watched, it is only noted: see syn-retransmits. A full accept queue fills the backlog too: then \
                     that comes first.",
        fixes: &[
            (
                "raise the listen() backlog and somaxconn (they bound the backlog), and tcp_max_syn_backlog",
                "memory: about 0.3 KiB for each half-open connection",
            ),
            (
                "net.ipv4.tcp_syncookies=1",
                "connections made from cookies have no window scaling unless timestamps are on",
            ),
            ("a flood: filter its sources upstream", "they may be forged"),
        ],
    },
};

/// Handshakes of a load are completed; of a flood, next to none.
const FLOOD: f64 = 0.2;
/// Fewer are no flood.
const LEAST_FLOOD: u64 = 50;
/// An accept queue that is full this share of the time keeps handshakes from completing.
const BLOCKED: f64 = 0.1;
/// The largest step that is proposed at once: beyond, the numbers say only that it is far too small.
const LARGEST_STEP: f64 = 64.0;
fn check(window: &Window) -> Verdict {
    in_each(window, |netns| {
        let refused = Refused::of(window, netns)?;
        if refused.all() == 0 {
            return Ok(Vec::new());
        }
        let place = Place {
            window,
            netns,
            refused,
            port: port(window, netns),
        };
        Ok(vec![place.describe()?])
    })
}

/// Why handshakes stay half open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Their accept queue is full: the final ACK is ignored.
    AcceptQueue,
    /// The answers do not reach clients in namespaces that were watched: they wait in vain.
    Unanswered,
    /// Next to none is completed, of many.
    Flood,
    /// Next to none is completed, of too few for a flood.
    Unfinished,
    /// They are completed, but there are more at once than have room.
    Load,
}

struct Place<'a> {
    window: &'a Window,
    netns: &'a Netns,
    refused: Refused,
    port: Option<u16>,
}

impl Place<'_> {
    fn queue(&self) -> Option<&Queue> {
        self.netns.queue(None, self.port?)
    }

    /// How many handshakes of the port were completed, and where that was counted.
    fn completed(&self) -> Result<(u64, &'static str), Gap> {
        let all = self.netns.grown("Tcp.PassiveOpens")?;
        let tables =
            [&self.netns.before, &self.netns.after].map(|snapshot| snapshot.sockets.as_ref());
        let [Some(before), Some(after)] = tables else {
            return Ok((all, "Tcp.PassiveOpens"));
        };
        let Some(port) = self.port.filter(|_| after.listeners.len() > 1) else {
            return Ok((all, "Tcp.PassiveOpens"));
        };
        if self.window.watched_required("lifetimes").is_err() {
            return Ok((all, "Tcp.PassiveOpens of all listeners"));
        }
        let [before, after] = [before, after].map(|table| {
            let clients = table.clients.get(&port);
            clients.map_or(0, |clients| {
                u64::from(clients.established + clients.close_wait)
            })
        });
        let (inode, port) = (self.netns.inode.to_string(), port.to_string());
        let group = [
            ("netns", inode.as_str()),
            ("service_port", port.as_str()),
            ("role", "server"),
        ];
        let ended = self.window.events.count("lifetimes", &group);
        let completed = (ended + after).saturating_sub(before).min(all);
        Ok((completed, "lifetimes, sock_diag"))
    }

    fn why(&self, completed: u64, sources: &HashSet<IpAddr>) -> Why {
        let blocked = self.queue().map_or(0.0, Queue::full_share);
        if blocked >= BLOCKED {
            return Why::AcceptQueue;
        }
        let attempts = self.refused.all();
        if ratio(completed, attempts) >= FLOOD {
            return Why::Load;
        }
        let waiting = sources.iter().filter(|source| self.is_waiting(**source));
        let waiting = waiting.count();
        if waiting > 0 && waiting * 2 >= sources.len() {
            Why::Unanswered
        } else if attempts >= LEAST_FLOOD {
            Why::Flood
        } else {
            Why::Unfinished
        }
    }

    /// Whether a source is a client in a namespace that was watched, none of whose connects to that port succeeds.
    fn is_waiting(&self, source: IpAddr) -> bool {
        let homes = places::homes(self.window, self.netns, source);
        let connects = homes
            .iter()
            .flat_map(|home| self.window.events.within("connects", home.inode));
        let own = connects.filter(|event| {
            let ends = places::ends(event);
            ends.is_some_and(|(local, remote)| local.0 == source && Some(remote.1) == self.port)
        });
        let mut outcomes = own.map(|event| event.is("outcome", "established"));
        let first = outcomes.next();
        first == Some(false) && !outcomes.any(|is_established| is_established)
    }

    /// Addresses with refused or half-open handshakes; more may have been there in between.
    fn sources(&self) -> HashSet<IpAddr> {
        let refused = self.window.events.within("listeners", self.netns.inode);
        let port = self.port;
        let refused = refused
            .filter(|event| event.small("listener_port") == port)
            .filter_map(|event| event.ip("saddr"));
        let tables = [&self.netns.before, &self.netns.after];
        let clients = tables
            .into_iter()
            .filter_map(|snapshot| snapshot.sockets.as_ref()?.clients.get(&port?));
        let half_open = clients.flat_map(|clients| clients.half_open_sources.iter().copied());
        refused.chain(half_open).collect()
    }

    fn how(&self) -> (Severity, String) {
        let refused = &self.refused;
        if refused.dropped() > 0 {
            let how = format!("{} SYNs were dropped", refused.dropped());
            return (Severity::Critical, how);
        }
        let lost = refused.cookies - refused.answered;
        let how = if lost == 0 {
            format!("{} SYNs were answered with cookies", refused.answered)
        } else {
            format!(
                "{} SYNs were answered with cookies, {lost} with nothing",
                refused.answered
            )
        };
        (Severity::Warning, how)
    }

    fn describe(&self) -> Result<Finding, Gap> {
        let (completed, counted) = self.completed()?;
        let sources = self.sources();
        let why = self.why(completed, &sources);
        let kind = match why {
            Why::AcceptQueue => {
                "handshakes stay half open because its accept queue is full".to_owned()
            }
            Why::Flood => format!(
                "hardly any handshake is completed: a flood ({} seen among refused and half-open ones), or the answers do \
                 not arrive",
                several(sources.len() as u64, "source address", "source addresses")
            ),
            Why::Unanswered => {
                "handshakes stay half open because the answers do not reach the clients, who wait for them in vain".to_owned()
            }
            Why::Unfinished => {
                "hardly any handshake is completed: the answers do not arrive, or nobody waits for them".to_owned()
            }
            Why::Load => "handshakes do complete: too many at once".to_owned(),
        };
        let (severity, how) = self.how();
        // With more room as few of them would be completed.
        let severity = if why == Why::Unanswered {
            Severity::Info
        } else {
            severity
        };
        let confidence = match self.window.watched("listeners") {
            Ok(()) => Confidence::High,
            Err(_) => Confidence::Medium,
        };
        let place = self.port.map_or("a listener".to_owned(), |port| {
            format!("the listener at port {port}")
        });
        let summary = format!(
            "the SYN backlog of {place}{} is full: {how} in {:.0} s; {kind}",
            self.netns.place(),
            self.window.seconds
        );
        let found = finding(RULE.id, severity, confidence, summary);
        let found = self.evidence(found, (completed, counted), sources.len());
        let found = match self.queue() {
            Some(queue) => found.hits([self.window.affected_listener(self.netns, &queue.listener)]),
            None => found.hits([somewhere(self.netns)]),
        };
        let found = match sources.iter().next() {
            Some(source) if why == Why::Flood && sources.len() == 1 => {
                found.hits([host("source", *source, self.netns.inode)])
            }
            _ => found,
        };
        Ok(self.fixes(found, why, completed))
    }

    fn evidence(&self, found: Finding, completed: (u64, &str), sources: usize) -> Finding {
        let refused = &self.refused;
        let (completed, counted) = completed;
        let found = found.counted(
            format!("{} SYNs dropped because it was full", refused.full),
            refused.full,
            "SYNs",
            "TcpExt.TCPReqQFullDrop",
        );
        let found = if refused.reserved > 0 {
            found.counted(
                format!(
                    "{} SYNs dropped because the last quarter of tcp_max_syn_backlog is kept for peers that are known",
                    refused.reserved
                ),
                refused.reserved,
                "SYNs",
                "TcpExt.ListenDrops without ListenOverflows and TCPReqQFullDrop",
            )
        } else {
            found
        };
        let lost = refused.cookies - refused.answered;
        let cookies = if lost > 0 {
            format!(
                "{} SYNs answered with a cookie; {lost} more found the accept queue full too and got no answer",
                refused.answered
            )
        } else {
            format!("{} SYNs answered with a cookie", refused.answered)
        };
        found
            .counted(
                cookies,
                refused.answered,
                "SYNs",
                "TcpExt.SyncookiesSent, TCPReqQFullDoCookies",
            )
            .counted(
                format!("{completed} handshakes completed meanwhile"),
                completed,
                "connections",
                counted,
            )
            .counted(
                format!(
                    "{} seen",
                    several(sources as u64, "source address", "source addresses")
                ),
                sources as u64,
                "addresses",
                "listeners, sock_diag",
            )
    }

    fn fixes(&self, found: Finding, why: Why, completed: u64) -> Finding {
        let has_no_cookies = self.netns.sysctl("net.ipv4.tcp_syncookies") == Some(0);
        let found = if has_no_cookies && why != Why::Unanswered {
            found.sysctl(
                format!("answer with cookies when the backlog is full; {PERSIST}"),
                &[("net.ipv4.tcp_syncookies", "1".to_owned())],
                "connections made from cookies have no window scaling unless timestamps are on",
            )
        } else {
            found
        };
        match why {
            Why::AcceptQueue => found.command(
                "make room in the accept queue first (the finding about it says how): half-open handshakes then complete",
                "none",
            ),
            Why::Flood => found.command(
                format!(
                    "find out where they come from ({}): filter a flood upstream; if they are clients, see whether the SYN-ACKs \
                     reach them",
                    self.look()
                ),
                "sources may be forged",
            ),
            Why::Unfinished => found.command(
                format!(
                    "find out where they come from ({}), and see whether the SYN-ACKs reach them",
                    self.look()
                ),
                "none",
            ),
            Why::Unanswered => found.command(
                "see what keeps the SYN-ACKs from the clients (syn-retransmits says more): a larger backlog helps nobody",
                "none",
            ),
            Why::Load => self.room(found, completed),
        }
    }

    /// What shows the sources, here.
    fn look(&self) -> String {
        let enter = self.netns.enter();
        if self.window.watched("listeners").is_ok() {
            return "netprobe listeners --json".to_owned();
        }
        let port = self
            .port
            .map_or(String::new(), |port| format!(" sport = :{port}"));
        format!("{enter}ss -Htn state syn-recv{port}")
    }

    /// The load and the room for it. The backlog is full with as many handshakes as fit, and those
    /// are completed at a known rate; so it takes as many times that room as more handshakes come.
    #[expect(
        clippy::too_many_lines,
        reason = "a straight list of evidence and fixes"
    )]
    fn room(&self, found: Finding, completed: u64) -> Finding {
        let recovered = self.netns.grown("TcpExt.SyncookiesRecv").unwrap_or(0);
        let fitted = completed
            .saturating_sub(recovered.min(self.refused.answered))
            .max(1);
        let wished = completed + self.refused.dropped();
        let times = ratio(wished, fitted).clamp(1.0, LARGEST_STEP);
        let reserve = self
            .netns
            .sysctl("net.ipv4.tcp_max_syn_backlog")
            .unwrap_or(0);
        let is_reserved = self.refused.reserved > self.refused.full;
        let queue = self
            .queue()
            .map_or(0, |queue| u64::from(queue.listener.limit));
        let limit = if is_reserved {
            reserve - reserve / 4
        } else {
            queue
        };
        #[expect(clippy::cast_precision_loss, reason = "a size")]
        let needed = limit as f64 * times;
        let wanted = roomy(needed).clamp(16, 65_535);
        let text = format!(
            "{:.0} handshakes/s want to begin, and {:.0}/s fit into a backlog of {limit}: they need {needed:.0}; {wanted} \
             is that and half as much again, as a power of two",
            self.window.rate(wished),
            self.window.rate(fitted)
        );
        let memory = "memory: about 0.3 KiB for each half-open connection";
        let found = if is_reserved {
            let set = [("net.ipv4.tcp_max_syn_backlog", (wanted * 4 / 3).to_string())];
            found.sysctl(
                format!("{text}, and a third more that is kept back; {PERSIST}"),
                &set,
                memory,
            )
        } else {
            found
        };
        if queue == 0 {
            return found.command(
                format!(
                    "find the listener ({}) and raise its listen() backlog, and net.core.somaxconn if that is lower",
                    self.look()
                ),
                "a longer queue hides a slow application",
            );
        }
        if wanted <= queue {
            return found;
        }
        let found = if is_reserved {
            found
        } else {
            let set = [("net.core.somaxconn", wanted.to_string())];
            found.sysctl(
                format!("let listeners have a backlog of {wanted}; {PERSIST}"),
                &set,
                memory,
            )
        };
        found.application(
            format!(
                "have the application listen with a backlog of {wanted}, then restart it: {text}"
            ),
            &[("listen_backlog", wanted.to_string())],
            "a longer queue hides a slow application",
        )
    }
}

#[cfg(test)]
mod tests;
