//! Which finding must be fixed first: what stops connections earliest in their life comes first,
//! and what is only its consequence, or will show once it is fixed, stands behind it.

use std::net::IpAddr;

use super::{RULES, translated::Translated, window::Window};
use crate::report::diagnosis::{Affected, Checked, Confidence, Finding, Severity};

/// Causes, and what follows from each where it hits the same namespace or port.
const FOLLOWS: &[(&str, &[&str])] = &[
    (
        "neighbour-table-full",
        &["syn-retransmits", "path-loss", "resets"],
    ),
    ("route-cache-full", &["syn-retransmits", "path-loss"]),
    (
        "conntrack-table-full",
        &[
            "conntrack-stale-entries",
            "application-not-accepting",
            "syn-retransmits",
            "path-loss",
        ],
    ),
    (
        "firewall-drops",
        &["syn-retransmits", "path-loss", "resets"],
    ),
    (
        "receive-path-drops",
        &["path-loss", "syn-retransmits", "small-packet-load"],
    ),
    (
        "fd-exhaustion",
        &[
            "application-not-accepting",
            "accept-queue-overflow",
            "half-open-established",
            "syn-backlog-full",
            "syn-retransmits",
            "path-loss",
            "resets",
        ],
    ),
    (
        "application-not-accepting",
        &[
            "accept-queue-overflow",
            "half-open-established",
            "syn-backlog-full",
            "syn-retransmits",
            "path-loss",
            "long-held-connections",
            "resets",
        ],
    ),
    (
        "accept-queue-overflow",
        &[
            "half-open-established",
            "syn-backlog-full",
            "syn-retransmits",
            "path-loss",
            "resets",
        ],
    ),
    (
        "syn-backlog-full",
        &["syn-retransmits", "half-open-established"],
    ),
    (
        "ephemeral-ports-exhausted",
        &[
            "port-search-cost",
            "time-wait-buildup",
            "short-lived-connections",
        ],
    ),
    (
        "port-search-cost",
        &["time-wait-buildup", "short-lived-connections"],
    ),
    ("time-wait-overflow", &["time-wait-buildup"]),
    (
        "time-wait-buildup",
        &["port-search-cost", "short-lived-connections"],
    ),
    (
        "tcp-memory-pressure",
        &[
            "orphan-overflow",
            "resets",
            "path-loss",
            "long-held-connections",
        ],
    ),
    ("egress-queue-drops", &["path-loss", "syn-retransmits"]),
    ("orphan-overflow", &["path-loss", "resets"]),
    ("path-loss", &["syn-retransmits"]),
    ("idle-reset", &["path-loss", "resets"]),
];

/// What fills a table, and the table: until it is full and stops connections itself, the reason comes first.
const FILLS: &[(&str, &str)] = &[("conntrack-stale-entries", "conntrack-table-full")];

/// What goes wrong at single services: nothing follows from it at others, however near they are.
const AT_SERVICES: &[&str] = &[
    "firewall-drops",
    "fd-exhaustion",
    "application-not-accepting",
    "accept-queue-overflow",
    "syn-backlog-full",
    "idle-reset",
];

/// What goes wrong on the way to single hosts: only what goes to them follows from it.
const ON_PATHS: &[&str] = &["path-loss"];

/// What loses some packets of many: what follows from it is late, and does not fail altogether.
const LOSSY: &[&str] = &["path-loss", "egress-queue-drops", "receive-path-drops"];

/// What goes wrong at a single service, too: where that is not known, it follows from nothing at another.
const OF_SERVICES: &[&str] = &["syn-backlog-full"];

/// What follows from a cause at the very service only that it names.
const AT_THE_SAME: &[(&str, &str)] = &[("tcp-memory-pressure", "long-held-connections")];

/// What stops nothing until it is critical: before, it is a forecast.
const FORECASTS: &[&str] = &["conntrack-table-full", "fd-exhaustion"];

/// What keeps connections from getting further, so that what comes later shows nothing.
const GATES: &[&str] = &[
    "neighbour-table-full",
    "route-cache-full",
    "conntrack-table-full",
    "fd-exhaustion",
    "application-not-accepting",
    "accept-queue-overflow",
    "ephemeral-ports-exhausted",
];

/// Sorts findings and marks those that stand behind another.
pub(super) fn order(findings: &mut [Finding], window: &Window) {
    let scene = Scene {
        window,
        translated: Translated::of(window),
    };
    for index in 0..findings.len() {
        // A rule knows more of what it says itself.
        let known = findings[index].behind;
        let found = &findings[index];
        findings[index].behind = known
            .or_else(|| cause(found, findings, &scene))
            .or_else(|| awaited(found, findings, &scene));
    }
    findings.sort_by_key(|finding| {
        (
            finding.severity < Severity::Warning,
            finding.behind.is_some(),
            std::cmp::Reverse(finding.severity),
            rank(finding.id),
        )
    });
}

/// Where the findings were made.
struct Scene<'a> {
    window: &'a Window,
    translated: Translated,
}

/// What all of an effect follows from: where there are several causes, that which explains most of it, or else the first.
fn cause(effect: &Finding, findings: &[Finding], scene: &Scene<'_>) -> Option<&'static str> {
    let causes = FOLLOWS.iter().filter(|(_, all)| all.contains(&effect.id));
    let fills = FILLS.iter().filter(|(_, table)| *table == effect.id);
    let ids = fills
        .map(|(reason, _)| *reason)
        .chain(causes.map(|(cause, _)| *cause));
    let possible = |id| {
        findings
            .iter()
            .filter(move |finding| finding.id == id && may_explain(finding, effect))
    };
    let causes: Vec<&Finding> = ids.flat_map(possible).collect();
    let hit: Vec<&Affected> = services(effect).collect();
    if hit.is_empty() {
        let is_of_another = |id| OF_SERVICES.contains(&effect.id) && AT_SERVICES.contains(id);
        let mut meeting = causes
            .iter()
            .filter(|cause| meet(cause, effect) && !is_of_another(&cause.id));
        return meeting.next().map(|cause| cause.id);
    }
    let by_hit: Option<Vec<&str>> = hit
        .iter()
        .map(|hit| Some(nearest(&causes, (effect, hit), scene)?.id))
        .collect();
    let by_hit = by_hit?;
    let explained = |id: &str| by_hit.iter().filter(|other| **other == id).count();
    // Of equals max_by_key() takes the last.
    by_hit.iter().rev().max_by_key(|id| explained(id)).copied()
}

/// What one of the services that are hit follows from: the first cause, but rather one that hits the very service than one
/// that is merely near it, unless that follows from the first as well.
fn nearest<'a>(
    causes: &[&'a Finding],
    (effect, hit): (&Finding, &Affected),
    scene: &Scene<'_>,
) -> Option<&'a Finding> {
    let all = causes.iter().copied();
    let mut all = all.filter(|cause| explains(cause, (effect, hit), scene));
    let first = all.next()?;
    let is_nearer = |cause: &&Finding| is_at(cause, hit, scene) && !follows(first.id, cause.id);
    let nearer = std::iter::once(first).chain(all).find(is_nearer);
    Some(nearer.unwrap_or(first))
}

/// Whether a service that is hit follows from a cause.
fn explains(cause: &Finding, (effect, hit): (&Finding, &Affected), scene: &Scene<'_>) -> bool {
    if ON_PATHS.contains(&cause.id) {
        return is_on_path(cause, hit, scene.window);
    }
    let is_of_services = AT_SERVICES.contains(&cause.id) && services(cause).next().is_some()
        || AT_THE_SAME.contains(&(cause.id, effect.id));
    is_at(cause, hit, scene)
        || !is_of_services && (meet(cause, effect) || is_in(hit, cause, scene.window))
}

/// Whether a cause hits a service itself.
fn is_at(cause: &Finding, hit: &Affected, scene: &Scene<'_>) -> bool {
    let mut hits = services(cause).chain(&cause.stops);
    hits.any(|service| is_same(service, hit, scene))
}

/// What is wrong with the destination that the processes of a service wait for, or on the way there: what stops connections
/// to it first, and does not follow from the rest.
fn awaited(effect: &Finding, findings: &[Finding], scene: &Scene<'_>) -> Option<&'static str> {
    let destination = effect.awaits.as_ref()?;
    let is_of_it = |cause: &&Finding| {
        let is_on_way =
            ON_PATHS.contains(&cause.id) && is_on_path(cause, destination, scene.window);
        cause.id != effect.id
            && cause.severity >= Severity::Warning
            && (is_at(cause, destination, scene) || is_on_way)
    };
    let causes: Vec<&Finding> = findings.iter().filter(is_of_it).collect();
    let is_first = |found: &&&Finding| {
        let mut others = causes.iter();
        !others.any(|cause| follows(cause.id, found.id) && may_explain(cause, found))
    };
    let first = causes.iter().filter(is_first).map(|cause| cause.id);
    first.min_by_key(|id| rank(id))
}

/// Whether a finding follows from another, as a rule.
fn follows(cause: &str, effect: &str) -> bool {
    let mut causes = FOLLOWS.iter();
    causes.any(|(id, effects)| *id == cause && effects.contains(&effect))
}

/// Whether a finding that may be the cause of another is bad enough for that.
fn may_explain(cause: &Finding, effect: &Finding) -> bool {
    let is_filling = |reason: &Finding, table: &Finding| {
        FILLS.contains(&(reason.id, table.id)) && table.severity < Severity::Critical
    };
    let is_filled = FILLS.contains(&(cause.id, effect.id)) && !is_filling(cause, effect);
    let is_forecast = FORECASTS.contains(&cause.id) && cause.severity < Severity::Critical;
    // Who answers none is not merely hard to reach, unless nothing at all arrives there.
    let is_dead = ON_PATHS.contains(&cause.id) && cause.severity == Severity::Critical;
    let is_cut = LOSSY.contains(&cause.id) && effect.severity == Severity::Critical && !is_dead;
    // Ports that go on to fill with TIME_WAIT (which makes it certain) are why the search is long; where others have left
    // them, the search is what is wrong now.
    let is_fed = |of: &Finding| of.id == "time-wait-buildup" && of.confidence == Confidence::High;
    let is_backwards = cause.id == "port-search-cost" && is_fed(effect)
        || effect.id == "port-search-cost" && cause.id == "time-wait-buildup" && !is_fed(cause);
    // A client that can open nothing: nobody else has its connections fail for that.
    let is_of_client = cause.id == "fd-exhaustion"
        && !cause.affected.is_empty()
        && services(cause).next().is_none();
    // Where later segments are acknowledged (fast retransmits, which make it certain), the path itself loses: that lets
    // orphans wait, rather than the other way round.
    let is_of_path = cause.id == "orphan-overflow"
        && effect.id == "path-loss"
        && effect.confidence == Confidence::High;
    cause.severity >= Severity::Warning
        && !is_forecast
        && !is_of_client
        && !is_backwards
        && !is_of_path
        && !is_filled
        && !is_filling(effect, cause)
        && !is_cut
}

/// The services that a finding names.
fn services(finding: &Finding) -> impl Iterator<Item = &Affected> {
    finding.affected.iter().filter(|hit| hit.port.is_some())
}

/// Whether two are one service: a listener and a destination of its clients, who may be in another namespace and know it by
/// another address, or twice the same.
fn is_same(one: &Affected, other: &Affected, scene: &Scene<'_>) -> bool {
    is_same_end(one, other, scene.window) || is_translated(one, other, scene)
}

/// Whether one of them is what the other is translated to.
fn is_translated(one: &Affected, other: &Affected, scene: &Scene<'_>) -> bool {
    let leads = |from: &Affected, to: &Affected| {
        let known = from.address.zip(from.port);
        let mut ends = known
            .into_iter()
            .flat_map(|end| scene.translated.leads_to(end));
        ends.any(|(address, port)| {
            let seen = Affected {
                address: Some(address),
                port: Some(port),
                ..to.clone()
            };
            is_same_end(to, &seen, scene.window)
        })
    };
    leads(one, other) || leads(other, one)
}

fn is_same_end(one: &Affected, other: &Affected, window: &Window) -> bool {
    if one.port != other.port {
        return false;
    }
    let is_at = |listener: &Affected, address: IpAddr| match listener.address {
        Some(own) if !own.is_unspecified() => {
            own == address && (!own.is_loopback() || listener.netns == other.netns)
        }
        Some(any) if any.is_ipv4() && address.is_ipv6() => false,
        _ => is_local(address, listener.netns, other.netns, window),
    };
    match (one.address, other.address) {
        (_, Some(address)) if !address.is_unspecified() => is_at(one, address),
        (Some(address), _) if !address.is_unspecified() => is_at(other, address),
        _ => one.netns == other.netns,
    }
}

/// Whether a service is one of the namespaces that a cause hits.
fn is_in(service: &Affected, cause: &Finding, window: &Window) -> bool {
    let Some(address) = service.address else {
        return false;
    };
    let mut places = cause.affected.iter().filter(|hit| hit.netns.is_some());
    places.any(|hit| is_local(address, hit.netns, service.netns, window))
}

/// Whether a handshake with a service goes the way on which segments are lost: to the same host, or the other way round, or
/// by a link of either end that went down.
fn is_on_path(cause: &Finding, hit: &Affected, window: &Window) -> bool {
    cause.affected.iter().any(|lost| {
        let is_same =
            lost.netns == hit.netns && (lost.address == hit.address || hit.kind == "listener");
        let is_back = lost.address.zip(hit.address).is_some_and(|(to, service)| {
            is_own(to, hit.netns, window) && is_own(service, lost.netns, window)
        });
        let is_at_link = lost.kind == "interface"
            && (lost.netns == hit.netns
                || hit
                    .address
                    .is_some_and(|service| is_own(service, lost.netns, window)));
        is_same || is_back || is_at_link
    })
}

/// Whether an address is known to be one of a namespace.
fn is_own(address: IpAddr, netns: Option<u32>, window: &Window) -> bool {
    let mut all = window.namespaces.iter();
    all.any(|own| Some(own.inode) == netns && own.after.addresses.contains(&address))
}

/// Whether an address that was seen in a namespace is one of namespace `owner`. Where its addresses are not known, it is
/// that which it was seen in.
fn is_local(address: IpAddr, owner: Option<u32>, seen_in: Option<u32>, window: &Window) -> bool {
    let mut all = window.namespaces.iter();
    let known = all.find(|netns| Some(netns.inode) == owner);
    match known.map(|netns| &netns.after.addresses) {
        Some(addresses) if !addresses.is_empty() && !address.is_loopback() => {
            addresses.contains(&address)
        }
        _ => owner == seen_in,
    }
}

/// Whether two findings hit the same namespace, or one of them hits the whole machine.
fn meet(a: &Finding, b: &Finding) -> bool {
    let shares = |x: &Affected| {
        let mut others = b.affected.iter();
        x.netns.is_some() && others.any(|y| x.netns == y.netns)
    };
    a.affected.iter().any(shares)
        || b.affected.is_empty()
        || a.affected.iter().all(|x| x.netns.is_none())
}

/// The place in the list of rules, which is the order in which connections are stopped.
fn rank(id: &str) -> usize {
    RULES
        .iter()
        .position(|rule| rule.id == id)
        .unwrap_or(RULES.len())
}

/// Says of rules that found nothing when an earlier failure may keep them from seeing anything.
pub(super) fn mark_hidden(findings: &[Finding], checked: &mut [Checked]) {
    let gate = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Critical)
        .filter(|finding| GATES.contains(&finding.id))
        .min_by_key(|finding| rank(finding.id));
    let Some(gate) = gate else { return };
    for check in checked {
        let is_later = rank(check.id) > rank(gate.id);
        if check.verdict == "ok" && check.why.is_empty() && is_later {
            check.why = format!(
                "not seen; may still show once {} is fixed, which stops connections earlier",
                gate.id
            );
        }
    }
}

#[cfg(test)]
mod tests;
