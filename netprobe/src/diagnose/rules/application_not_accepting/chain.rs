//! Services that wait for one another: what each case of [`Case`] waits for, if that is one too, and what is passed on to it.

use super::{
    super::super::{accepting, tiers::Upstream},
    case::Case,
};

/// Finds what each waits for. A service that keeps others waiting comes before them, also where its own clients do not
/// wait for long, as they are few.
pub(super) fn link(cases: &mut Vec<Case<'_>>) {
    let mut next = 0;
    while let Some(case) = cases.get(next) {
        if let Some((netns, queue)) = case.upstream.as_ref().and_then(Upstream::busy) {
            let window = case.window;
            let is_it = |other: &Case<'_>| {
                other.netns.inode == netns.inode && other.port() == queue.listener.port
            };
            let place = cases.iter().position(is_it).unwrap_or_else(|| {
                let accepting = accepting::of(window, netns, queue);
                cases.push(Case::new(window, netns, queue, accepting, None));
                cases.len() - 1
            });
            if !leads_to(cases, place, next) {
                cases[next].waits_for = Some(place);
            }
        }
        next += 1;
    }
    // Who is furthest from what all wait for comes first, and passes on what it gets from those that wait for it.
    let mut furthest_first: Vec<usize> = (0..cases.len()).collect();
    furthest_first.sort_by_key(|place| std::cmp::Reverse(distance(cases, *place)));
    for from in furthest_first {
        if let Some(to) = cases[from].waits_for {
            let (before, is_critical) = (cases[from].as_before(), cases[from].is_critical());
            cases[to].before.extend(before);
            cases[to].keeps_critical |= is_critical;
        }
    }
}

/// How many services are behind one another from this one on.
fn distance(cases: &[Case<'_>], from: usize) -> usize {
    let next = |place: &usize| cases[*place].waits_for;
    std::iter::successors(Some(from), next).count()
}

/// Whether a service waits for another, if only for one that waits for it.
fn leads_to(cases: &[Case<'_>], from: usize, to: usize) -> bool {
    let next = |place: &usize| cases[*place].waits_for;
    std::iter::successors(Some(from), next).any(|place| place == to)
}
