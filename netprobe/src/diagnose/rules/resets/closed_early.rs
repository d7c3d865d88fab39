//! An application that closes a connection while its client still sends: whether that is reset when it is closed, as
//! unread, or when more comes, is a matter of which is first, so that it is one thing with two causes.

use std::collections::HashSet;

use super::{
    super::super::{
        sizing::{lasting, median},
        window::{Netns, Window, ratio},
    },
    idle_timeout,
};
use crate::report::diagnosis::{Affected, Finding, Severity};

/// Both causes.
pub(in super::super) const CAUSES: [&str; 2] = ["unread-data", "data-after-close"];
/// So soon after it was opened nobody has served anything.
const AT_ONCE_NS: u64 = 5_000_000;
/// Fewer say nothing of the others.
const LEAST_SEEN: usize = 10;
/// A service that turns away so many of its clients fails.
const MANY: f64 = 1.0 / 3.0;
/// What a process that ends closes, it closes within such a time.
const END_NS: u64 = 200_000_000;

/// A finding of one of these causes, with how many resets it is of, and what the cause means.
type Early = (u64, Finding, &'static str);

/// Findings of these causes: of one service they are one.
pub(super) fn merge(window: &Window, netns: &Netns, found: Vec<Early>) -> Vec<(u64, Finding)> {
    let merged = match <[Early; 2]>::try_from(found) {
        Ok([first, second]) if service(&first.1) == service(&second.1) => vec![both(first, second)],
        Ok(apart) => Vec::from(apart),
        Err(found) => found,
    };
    let merged = merged.into_iter();
    merged
        .map(|(count, finding, _)| {
            let finding = at_once(window, netns, finding);
            let finding = when_idle(window, netns, finding);
            (count, at_its_end(window, netns, finding))
        })
        .collect()
}

/// The service that most of them are of.
fn service(finding: &Finding) -> Option<(&str, u16)> {
    let first = finding.affected.first()?;
    Some((first.kind, first.port?))
}

/// The one with more resets, and what the other adds.
fn both(one: Early, other: Early) -> Early {
    let ((count, mut more, meaning), (few, less, why)) = if one.0 >= other.0 {
        (one, other)
    } else {
        (other, one)
    };
    more.summary = format!("{}; {few} more: {why}", more.summary);
    more.severity = more.severity.max(less.severity);
    more.evidence.extend(less.evidence);
    more.fixes.extend(less.fixes);
    for hit in less.affected {
        add(&mut more.affected, hit);
    }
    (count + few, more, meaning)
}

/// Who is hit, unless it is among them; with its process if that was not known.
fn add(affected: &mut Vec<Affected>, hit: Affected) {
    let is_it = |known: &&mut Affected| (known.kind, &known.name) == (hit.kind, &hit.name);
    match affected.iter_mut().find(is_it) {
        Some(known) if known.pid.is_none() => *known = hit,
        Some(_) => {}
        None => affected.push(hit),
    }
}

/// A client that ends leaves what was under way, once: that is no failure of its own.
fn at_its_end(window: &Window, netns: &Netns, mut found: Finding) -> Finding {
    let resets = window.events.within("resets", netns.inode);
    let resets: Vec<_> = resets
        .filter(|reset| CAUSES.iter().any(|cause| reset.is("cause", cause)))
        .collect();
    let owners: HashSet<_> = resets.iter().map(|reset| reset.owner()).collect();
    let times = || resets.iter().map(|reset| reset.at_ns);
    let (Some(first), Some(last)) = (times().min().filter(|first| *first > 0), times().max())
    else {
        return found;
    };
    if let (1, Some((Some(_), Some(comm)))) = (owners.len(), owners.iter().next())
        && service(&found).is_some_and(|(kind, _)| kind == "destination")
        && last - first <= END_NS
    {
        found.severity = Severity::Info;
        found.summary = format!(
            "{}; all within {}, as where {comm} ends",
            found.summary,
            lasting((last - first) / 1000)
        );
    }
    found
}

/// Whether a service closes connections that were idle.
fn when_idle(window: &Window, netns: &Netns, found: Finding) -> Finding {
    match service(&found) {
        Some(("listener", port)) => idle_timeout::told(window, netns, found, port),
        _ => found,
    }
}

/// Whether connections are closed as soon as they are accepted: clients are turned away, as by a limit of connections.
fn at_once(window: &Window, netns: &Netns, found: Finding) -> Finding {
    let Some(("listener", port)) = service(&found) else {
        return found;
    };
    let ends = window.events.within("lifetimes", netns.inode);
    let ends: Vec<_> = ends
        .filter(|end| end.is("role", "server") && end.small("sport") == Some(port))
        .collect();
    let reset = ends.iter().filter(|end| !end.is("result", "fin"));
    let lived: Vec<u64> = reset.filter_map(|end| end.number("duration_ns")).collect();
    let Some(lived_ns) = median(&lived).filter(|_| lived.len() >= LEAST_SEEN) else {
        return found;
    };
    if lived_ns > AT_ONCE_NS {
        return found;
    }
    let share = ratio(lived.len() as u64, ends.len() as u64);
    let mut found = found
        .measured(
            format!(
                "{:.0} % of its connections ended so, of {} that were looked at",
                share * 100.0,
                ends.len()
            ),
            share * 100.0,
            "percent",
            "lifetimes",
        )
        .counted(
            format!(
                "half of those that were reset lived no longer than {}: they were closed as soon as they were accepted",
                lasting(lived_ns / 1000)
            ),
            lived_ns / 1000,
            "us",
            "lifetimes",
        )
        .command(
            "see whether the application turns clients away (its limit of connections, an access list; its log)",
            "none",
        );
    if share >= MANY {
        found.severity = Severity::Critical;
    }
    // Whoever is turned away cannot be served in a better order.
    found.fixes.rotate_right(1);
    found
}
