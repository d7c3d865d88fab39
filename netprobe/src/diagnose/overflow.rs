//! Listeners whose accept queue overflowed, and why: too small for bursts, or nobody accepts.

use std::collections::{BTreeMap, HashSet};

use super::{
    accepting,
    events::port_of,
    fifo::{self, Emptied},
    sizing::counted,
    stalled,
    window::{Gap, Netns, Queue, Window, ratio},
};
use crate::report::diagnosis::Confidence;

/// Full this share of the time is full all the time: a sample may fall just behind an `accept`.
const ALWAYS: f64 = 0.85;
/// Fewer samples say nothing about "all the time".
const LEAST_SAMPLES: usize = 4;
/// What happens between this share of the looks happens all the time.
const STEADY: f64 = 0.8;
/// Fewer connections that ended say nothing of the others.
const LEAST_ENDED: u64 = 5;
/// Stages of the `listeners` probe at which the accept queue was full.
pub(super) const STAGES: [&str; 2] = ["syn-accept-queue", "ack-accept-queue"];

/// A listener that turned clients away.
#[derive(Clone, Debug)]
pub(super) struct Overflow {
    /// Its history, if it was still there to be asked.
    pub(super) queue: Option<Queue>,
    /// Its port, if it is known.
    pub(super) port: Option<u16>,
    /// How many SYNs and handshakes it turned away, or, where there are `others`, all of them
    /// together; clients that try again count again.
    pub(super) refused: u64,
    /// The most of them in one pause of the application, before any of them tried again.
    pub(super) at_once: u64,
    /// Whether some of those may have tried again, nonetheless, or been turned away by others.
    pub(super) is_at_most: bool,
    /// Other listeners of the namespace that may have turned away some or all of them.
    pub(super) others: usize,
    /// Different clients among them at most, where events tell.
    pub(super) clients: Option<u64>,
    /// How its queue is emptied.
    pub(super) emptied: Emptied,
    /// How sure it is that it is this one.
    pub(super) confidence: Confidence,
}

impl Overflow {
    /// Nothing known.
    const NONE: Self = Self {
        queue: None,
        port: None,
        refused: 0,
        at_once: 0,
        is_at_most: true,
        others: 0,
        clients: None,
        emptied: Emptied::Unknown,
        confidence: Confidence::Low,
    };

    /// With how many were turned away in one pause, of `total` that the namespace turned away.
    fn sized(mut self, window: &Window, netns: &Netns, total: u64) -> Self {
        let limit = self.queue.as_ref().map_or(0, |queue| queue.listener.limit);
        let in_a_pause = in_a_pause(window, netns, (total, limit));
        let own = share(in_a_pause, self.refused, total);
        let clients = self.clients.map(|clients| (clients, self.refused));
        let first = clients.or_else(|| self.attempts(window, netns));
        self.at_once = match first {
            // Who tries again comes all the time, so that as many of a pause do as of all.
            Some((first, all)) if self.others == 0 && is_steady(netns) => {
                self.is_at_most = false;
                share(own, first, all)
            }
            Some((first, _)) => own.min(first),
            None => own,
        };
        self.at_once = self.at_once.max(1);
        self
    }

    /// How many clients of this machine tried to get in, and how often, if all of them are of this machine.
    fn attempts(&self, window: &Window, netns: &Netns) -> Option<(u64, u64)> {
        let queue = self.queue.as_ref()?;
        let came = accepting::of(window, netns, queue).came?;
        let local = accepting::local_attempts(window, netns, queue.listener.port);
        (local > 0 && local >= came).then_some((local, came + self.refused))
    }

    /// How many attempts were turned away, in words, and by whom if that is not certain.
    pub(super) fn turned_away(&self) -> String {
        let attempts = counted(self.refused, "attempt");
        let were = if self.refused == 1 { "was" } else { "were" };
        match self.others {
            0 => format!("{attempts} {were} turned away"),
            1 => format!("{attempts} {were} turned away by it and another full queue"),
            others => {
                format!("{attempts} {were} turned away by it and {others} other full queues")
            }
        }
    }

    /// Whether there were too few looks to tell a short queue from a slow application.
    pub(super) fn is_undecided(&self) -> bool {
        self.emptied != Emptied::InGulps
            && self
                .queue
                .as_ref()
                .is_none_or(|queue| queue.depths.len() < LEAST_SAMPLES)
    }

    /// In words, that nobody empties the queue: it may have been one short of full whenever one looked.
    pub(super) fn how_full(&self) -> &'static str {
        let full = self.queue.as_ref().map_or(0.0, Queue::full_share);
        if full >= ALWAYS {
            "always full"
        } else {
            "always full or nearly so"
        }
    }

    /// Whether the queue was full whenever one looked, but for what had just been accepted: then
    /// nobody empties it, or only one by one.
    pub(super) fn is_pinned(&self) -> bool {
        self.emptied != Emptied::InGulps
            && self.queue.as_ref().is_some_and(|queue| {
                queue.depths.len() >= LEAST_SAMPLES && queue.nearly_full_share() >= ALWAYS
            })
    }
}

/// The listeners of a namespace that turned clients away because their accept queue was full.
pub(super) fn of(window: &Window, netns: &Netns) -> Result<Vec<Overflow>, Gap> {
    let refused = netns.grown("TcpExt.ListenOverflows")?;
    if refused == 0 {
        return Ok(Vec::new());
    }
    let by_port = events(window, netns);
    let total = by_port.values().map(|(refused, _)| refused).sum();
    if !by_port.is_empty() {
        let overflows = by_port.into_iter().map(|(port, (refused, clients))| {
            let queue = netns.queue(None, port);
            let emptied = queue.map_or(Emptied::Unknown, |queue| emptied(window, netns, queue));
            let overflow = Overflow {
                queue: queue.cloned(),
                port: Some(port),
                refused,
                clients,
                emptied,
                confidence: Confidence::High,
                ..Overflow::NONE
            };
            overflow.sized(window, netns, total)
        });
        return Ok(overflows.collect());
    }
    let full = of_full_queues(window, netns, refused).into_iter();
    let sized = full.map(|overflow| overflow.sized(window, netns, refused));
    Ok(sized.collect())
}

/// Listeners that turned clients away, in all namespaces: their queue was seen full, or their clients show it.
pub(super) fn refusing(window: &Window) -> Vec<&Queue> {
    let all = window.namespaces.iter();
    let overflowing = all.filter(|netns| {
        let turned_away = netns.grown("TcpExt.ListenOverflows");
        turned_away.is_ok_and(|count| count > 0)
    });
    let queues = overflowing.flat_map(|netns| netns.queues.iter().map(move |queue| (netns, queue)));
    let refusing = queues.filter(|(netns, queue)| {
        queue.full_share() > 0.0 || stalled::clients(window, netns, queue) > 0
    });
    refusing.map(|(_, queue)| queue).collect()
}

/// Without events: whose queue was seen full, or else is the likely one.
fn of_full_queues(window: &Window, netns: &Netns, refused: u64) -> Vec<Overflow> {
    let mut full: Vec<&Queue> = netns
        .queues
        .iter()
        .filter(|queue| {
            queue.deepest() >= queue.listener.limit.max(1)
                || stalled::clients(window, netns, queue) > 0
        })
        .collect();
    if full.is_empty() {
        // Between two looks; the fullest that had anything is the likely one.
        let deepest = netns.queues.iter().max_by_key(|queue| {
            (u64::from(queue.deepest()) << 16) / u64::from(queue.listener.limit.max(1))
        });
        let likely = deepest.filter(|queue| queue.deepest() > 0);
        let only = netns.queues.first().filter(|first| {
            let mut others = netns.queues.iter();
            others.all(|other| {
                let [own, other] = [&first.listener, &other.listener];
                (own.port, own.limit) == (other.port, other.limit)
            }) && accepting::is_one_service(window, netns, first)
        });
        let queue = likely.or(only).cloned();
        return vec![Overflow {
            port: queue.as_ref().map(|queue| queue.listener.port),
            queue,
            refused,
            confidence: Confidence::Low,
            ..Overflow::NONE
        }];
    }
    full.sort_by(|a, b| b.full_share().total_cmp(&a.full_share()));
    let confidence = if full.len() == 1 {
        Confidence::Medium
    } else {
        Confidence::Low
    };
    let others = full.len() - 1;
    let overflows = full.into_iter().map(|queue| Overflow {
        port: Some(queue.listener.port),
        emptied: emptied(window, netns, queue),
        queue: Some(queue.clone()),
        refused,
        others,
        confidence,
        ..Overflow::NONE
    });
    overflows.collect()
}

/// The most attempts that were turned away before the application took what waited in a queue of `limit`: as long as the
/// queue took in so many, and one more, as it holds when it is full. Nobody waits for longer than a second, as who tries
/// again does so after that, as a rule.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "small positive numbers"
)]
fn in_a_pause(window: &Window, netns: &Netns, (refused, limit): (u64, u32)) -> u64 {
    let (turned_away, taken) = (&netns.listen_overflows, &netns.passive_opens);
    let looks = turned_away.len();
    let between_s = (window.seconds / looks.max(1) as f64).max(0.001);
    let span = (1.0 / between_s).ceil() as usize + 1;
    let grown = |counts: &[i64], from: usize, to: usize| {
        let [from, to] = [from, to].map(|place| counts.get(place).copied().unwrap_or(0));
        (to - from).max(0) as f64
    };
    let queueful = f64::from(limit) + 1.0;
    let most = (0..looks).map(|from| {
        let spans = from + 1..looks.min(from + span.max(2));
        let emptied = spans.clone().find(|to| grown(taken, from, *to) >= queueful);
        match emptied {
            Some(to) => grown(turned_away, from, to) * queueful / grown(taken, from, to),
            None => spans.last().map_or(0.0, |to| grown(turned_away, from, to)),
        }
    });
    let most = most.fold(0.0, f64::max).ceil() as u64;
    // Where nobody looked in between, not less than on average.
    let evenly = share(refused, 1000, (window.seconds * 1000.0) as u64);
    let most = if most == 0 { evenly } else { most };
    most.clamp(1, refused.max(1))
}

/// Whether attempts were turned away between nearly all looks.
fn is_steady(netns: &Netns) -> bool {
    let spans = netns.listen_overflows.windows(2);
    let looks = spans.len() as u64;
    let growing = spans.filter(|span| span[1] > span[0]).count() as u64;
    ratio(growing, looks) >= STEADY
}

/// `part` of `whole` of a number, rounded up; all of it where the part is larger.
fn share(number: u64, part: u64, whole: u64) -> u64 {
    let part = part.min(whole.max(1));
    (number.saturating_mul(part)).div_ceil(whole.max(1))
}

/// How many of the connections to a port that came and ended in the window had been turned away before, and how many those
/// are, where all were seen.
pub(super) fn let_in_later(window: &Window, netns: &Netns, port: u16) -> Option<(u64, u64)> {
    let are_all = ["listeners", "lifetimes"].map(|kind| window.events.weight(kind) < 1.5);
    let refused = window.events.within("listeners", netns.inode);
    let refused = refused.filter(|event| event.small("listener_port") == Some(port));
    let refused: HashSet<_> = refused
        .map(|event| (event.ip("saddr"), event.small("sport")))
        .collect();
    let ends = window.events.within("lifetimes", netns.inode);
    // How long they lasted is known of those that were seen to come.
    let ends = ends.filter(|end| {
        end.is("role", "server")
            && end.small("sport") == Some(port)
            && end.number("duration_ns").is_some()
    });
    let (mut later, mut all) = (0, 0);
    for end in ends {
        later += u64::from(refused.contains(&(end.ip("daddr"), end.small::<u16>("dport"))));
        all += 1;
    }
    (are_all == [true; 2] && all >= LEAST_ENDED).then_some((later, all))
}

fn emptied(window: &Window, netns: &Netns, queue: &Queue) -> Emptied {
    fifo::emptied(window, netns, queue, &accepting::of(window, netns, queue))
}

/// Refusals and different clients by port, as the probe counted them.
fn events(window: &Window, netns: &Netns) -> BTreeMap<u16, (u64, Option<u64>)> {
    let mut by_port = BTreeMap::new();
    let inode = netns.inode.to_string();
    for stage in STAGES {
        let group = [("stage", stage), ("netns", inode.as_str())];
        for total in window.events.groups("listeners", &group) {
            if let Some(port) = port_of(total, "listener_port") {
                by_port.entry(port).or_insert((0, None)).0 += total.events;
            }
        }
    }
    for (port, (refused, clients)) in &mut by_port {
        let events = window
            .events
            .within("listeners", netns.inode)
            .filter(|event| event.small("listener_port") == Some(*port));
        let seen: Vec<_> = events
            .map(|event| (event.ip("saddr"), event.number("sport")))
            .collect();
        let different = seen.iter().collect::<HashSet<_>>().len() as u64;
        // Of a sample the same client is less often seen again: no more than this.
        let clients_at_most = share(*refused, different, seen.len() as u64);
        *clients = (!seen.is_empty()).then_some(clients_at_most);
    }
    by_port
}
