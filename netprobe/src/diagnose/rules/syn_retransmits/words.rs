//! What a finding says first: who does not answer, how often, and who is at fault, as far as that is known.

use super::{
    super::super::{
        links,
        sizing::lasting,
        window::{Netns, Window},
    },
    connects::{Connects, Ending},
    lost_here,
    strangers::Strangers,
    unanswered::Unanswered,
};

/// Of a listener.
pub(super) fn clients_are_silent(
    window: &Window,
    near: &Unanswered<'_>,
    strangers: Option<&Strangers>,
) -> String {
    let who = near.silent.first().map_or("", |hit| hit.name.as_str());
    if let Some(strangers) = strangers.filter(|strangers| strangers.is_noise) {
        return strangers.noise(who, &near.netns.place(), window.seconds);
    }
    // The counter is of the whole namespace.
    let listeners = near.netns.after.sockets.as_ref();
    let is_only = listeners.is_some_and(|table| table.listeners.len() == 1);
    let completed = near.netns.grown("Tcp.PassiveOpens").unwrap_or(0);
    let (some, rest) = if is_only && completed > 0 {
        (
            "some ",
            format!(", while {completed} handshakes completed there"),
        )
    } else {
        ("", String::new())
    };
    format!(
        "{some}clients of {who}{} do not answer: {} SYN-ACKs were sent again in {:.0} s{rest}; they, or the way back to \
         them, are at fault",
        near.netns.place(),
        near.answers,
        window.seconds
    )
}

/// How much a destination answers, if it does at all.
fn answering(connects: Option<&Connects>) -> String {
    match connects {
        Some(connects) if connects.attempts > 0 && connects.established == connects.attempts => {
            format!(
                "answers late (all {} connects seen succeed)",
                connects.attempts
            )
        }
        Some(connects) if connects.established > 0 => format!(
            "answers only {} of {} connects seen",
            connects.established, connects.attempts
        ),
        Some(connects) if connects.is_down() => {
            format!(
                "does not answer (all {} connects seen fail or wait)",
                connects.attempts
            )
        }
        _ => "does not answer".to_owned(),
    }
}

/// Of handshakes that are seen at both ends.
pub(super) fn both_ends(
    window: &Window,
    (near, far): (&Unanswered<'_>, &Unanswered<'_>),
    connects: Option<&Connects>,
) -> String {
    let who = near.silent.first().map_or("", |hit| hit.name.as_str());
    let share = connects.filter(|connects| connects.attempts > 0);
    let share = share.map_or(String::new(), |connects| {
        format!(
            ", and {} of {} connects succeed",
            connects.established, connects.attempts
        )
    });
    let is_late = connects.is_some_and(|connects| connects.established > 0);
    let (how, fate) = if is_late {
        ("get their SYN-ACKs late or not", "lost or late")
    } else {
        ("lose their SYN-ACKs", "lost")
    };
    let had_no_link = [near.netns, far.netns]
        .map(links::went_down)
        .contains(&true);
    let (what, why) = match near.answered(window, far) {
        // Once it is up again, what waited for it comes at once, the same SYN twice too, and is answered as often.
        (answered, tried) if tried > 0 && answered * 2 >= tried && !had_no_link => (
            how,
            format!(
                "the SYNs arrive and are answered ({answered} of {tried} that were looked at): the answers are {fate} on \
                 their way back"
            ),
        ),
        _ => (
            "lose segments",
            "both ends are on this machine: one of them, or what lies between them, drops"
                .to_owned(),
        ),
    };
    let place = near.netns.place();
    let tries = match near.ended {
        Some((Ending::GivenUp { waited_ns }, count)) => format!(
            "{count} connects{place} were given up within {}",
            lasting(waited_ns / 1000)
        ),
        Some((Ending::Unreachable { errno, .. }, count)) => {
            format!("{count} connects{place} failed with {errno}")
        }
        None => format!("{} SYNs{place}", near.syns),
    };
    format!(
        "handshakes with {who} {what}: {tries} and {} SYN-ACKs{} were sent again in {:.0} s{share}; {why}",
        far.answers,
        far.netns.place(),
        window.seconds
    )
}

/// Of a destination.
pub(super) fn destination_is_silent(
    window: &Window,
    near: &Unanswered<'_>,
    (connects, are_seen_lost): (Option<&Connects>, bool),
) -> String {
    if let (Some(ended), Some(connects)) = (near.ended, connects) {
        return destination_is_dead(window, near, ended, (connects, are_seen_lost));
    }
    if near.is_scattered {
        return destinations_are_silent(window, near);
    }
    let inode = near.netns.inode.to_string();
    let group = [("errno", "ETIMEDOUT"), ("netns", inode.as_str())];
    let timed_out = match window.events.count("connects", &group) {
        0 => String::new(),
        count => format!(", {count} connects timed out"),
    };
    let who = near.silent.first();
    // Counted, but not seen as they happened.
    let what = if near.syns == 0 {
        "SYNs or SYN-ACKs"
    } else {
        "SYNs"
    };
    format!(
        "{}{} {}: {} {what} were sent again in {:.0} s{timed_out}{}",
        who.map_or("a destination", |hit| hit.name.as_str()),
        near.netns.place(),
        answering(connects),
        near.again,
        window.seconds,
        if are_seen_lost {
            ""
        } else if is_over(window, near, connects) {
            "; none went out twice, and all were answered: they may have been lost before this window"
        } else {
            elsewhere(window)
        }
    )
}

/// Many destinations that were tried next to never.
fn destinations_are_silent(window: &Window, near: &Unanswered<'_>) -> String {
    format!(
        "{} destinations{} do not answer, each of which was tried once or twice: {} SYNs were sent again in {:.0} s{}",
        near.silent.len(),
        near.netns.place(),
        near.again,
        window.seconds,
        elsewhere(window)
    )
}

/// Whether nothing is known to have been lost in the window.
fn is_over(window: &Window, near: &Unanswered<'_>, connects: Option<&Connects>) -> bool {
    let all = connects.filter(|connects| connects.attempts > 0);
    all.is_some_and(|connects| connects.established == connects.attempts)
        && near.syns > 0
        && !near.is_lost_now(window)
}

/// Who drops them, if nobody here does.
fn elsewhere(window: &Window) -> &'static str {
    if is_elsewhere(window) {
        if window.is_narrowed {
            "; nobody in the namespaces that were watched was seen to drop them: another one, the path or the peer"
        } else {
            "; nobody on this machine was seen to drop them: the path or the peer"
        }
    } else {
        ""
    }
}

/// A destination that no SYN was sent to again.
fn destination_is_dead(
    window: &Window,
    near: &Unanswered<'_>,
    (ending, count): (Ending, u64),
    (connects, are_seen_lost): (&Connects, bool),
) -> String {
    let who = near.silent.first().map_or("", |hit| hit.name.as_str());
    let more = match near.silent.len() {
        0 | 1 => String::new(),
        all => format!(" (and {} more)", all - 1),
    };
    let (how, why) = match ending {
        Ending::GivenUp { waited_ns } => (
            format!(
                "were given up without an answer, within {}",
                lasting(waited_ns / 1000)
            ),
            elsewhere(window),
        ),
        Ending::Unreachable {
            errno,
            is_neighbour,
        } => (
            format!("failed with {errno}"),
            match errno {
                _ if are_seen_lost => "",
                _ if is_neighbour => {
                    "; nobody on the link answers for its address, or for that of the router (ARP, ND)"
                }
                "ENETUNREACH" => "; there is no route to it",
                "EACCES" => {
                    "; a route here prohibits it, as a rule, or else a security module or BPF program"
                }
                "EINVAL" => "; a route here is a black hole, as a rule",
                _ => "",
            },
        ),
    };
    let reached = if near.is_reached {
        "; its clients get through by the other family of addresses"
    } else {
        ""
    };
    format!(
        "{who}{more}{} takes no connection: {count} of {} connects seen in {:.0} s {how}{why}{reached}",
        near.netns.place(),
        connects.attempts,
        window.seconds
    )
}

/// Whether none of what drops SYNs within this machine has dropped any, and all of it was looked at.
fn is_elsewhere(window: &Window) -> bool {
    // The other end, or a router, may be in another namespace of this machine.
    let mut dropped = window.events.of("drops").iter().peekable();
    let is_sample = dropped.peek().is_some() || window.events.count("drops", &[]) == 0;
    let is_sent = window.watched_required("drops").is_ok()
        && is_sample
        && !dropped.any(|event| lost_here::is_lost(window, event))
        && window.events.count("conntrack", &[]) == 0;
    let counters = [
        "TcpExt.ListenDrops",
        "TcpExt.TCPReqQFullDrop",
        "nf_conntrack.drop",
    ];
    let is_quiet = |netns: &Netns| {
        let quiet = |name| netns.grown_if_any(name) == Ok(0);
        counters.into_iter().all(quiet)
    };
    is_sent && window.namespaces.iter().all(is_quiet) && window.vanished.is_empty()
}
