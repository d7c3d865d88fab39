//! Libraries that a program closes, and others that it opens at the same place (dlclose, dlopen): what it had mapped when.
//!
//! What is mapped where samples were is looked at again and again, mostly soon after a sample: one call for each file, a few
//! for each process. What was
//! there at two looks was there in between; a sample that was taken between looks that differ is of neither.

use std::collections::{BTreeMap, VecDeque};

use super::{Identity, Processes, Program, find, is_same_place, with_code};
use crate::{
    observe::clock::now_ns,
    symbols::{
        images::{Content, Images, Mapped, Mapping},
        unwind::Taken,
    },
};

/// How long after a look the next one is due of a process that was sampled, of one that has had different files at the same
/// place too, and of one that was not sampled.
const PAUSE_NS: u64 = 90_000_000;
const SHORT_PAUSE_NS: u64 = 40_000_000;
const LONG_PAUSE_NS: u64 = 250_000_000;
/// Files that are looked at at a time, for up to 10 us each.
const MOST_LOOKS: usize = 16;
/// Processes that are thought of at a time.
const MOST_TURNS: usize = 256;
/// Files of one process that are looked at.
const MOST_WATCHED: usize = 16;
/// Times that are remembered at which one program had the same mapped.
const MOST_SPANS: usize = 64;
/// Mappings that are gone and remembered.
const MOST_GONE: usize = 1024;
/// How many times as long as reading mappings took they are not read again for this.
const REST: u64 = 50;

/// When a program had mapped what it has, as far as that is known.
#[derive(Debug)]
pub(super) struct Libraries {
    /// From the first look that found it so to the last, in nanoseconds.
    spans: VecDeque<(u64, u64)>,
    /// Mappings that are looked at, by their beginning, and when that was last.
    watched: BTreeMap<u64, u64>,
    /// When all mappings were read.
    read_ns: u64,
    /// When there was a look last.
    looked_ns: u64,
    /// Not to be read again before.
    rest_until_ns: u64,
}

impl Libraries {
    /// Those of a program that is seen for the first time, or, if it was seen `earlier`, with others mapped than then.
    pub(super) fn begin(earlier: Option<&Program>, mapped: &Mapped) -> Self {
        let read_ns = mapped.began_ns;
        // What ran before the first look is taken for what it finds.
        let from_ns = if earlier.is_none() { 0 } else { now_ns() };
        let watched = earlier.map(|earlier| &earlier.libraries.watched);
        let watched = watched.into_iter().flatten();
        let watched = watched.filter(|(start, _)| begins(&mapped.mappings, **start));
        Self {
            spans: VecDeque::from([(from_ns, read_ns.max(from_ns))]),
            watched: watched.map(|(start, _)| (*start, read_ns)).collect(),
            read_ns,
            looked_ns: 0,
            rest_until_ns: 0,
        }
    }

    /// Those that were the same at all looks in between.
    #[cfg(test)]
    pub(super) fn of(from_ns: u64, to_ns: u64) -> Self {
        Self {
            spans: VecDeque::from([(from_ns, to_ns)]),
            watched: BTreeMap::new(),
            read_ns: to_ns,
            looked_ns: to_ns,
            rest_until_ns: 0,
        }
    }

    /// They are mapped again.
    fn resume(&mut self, now_ns: u64) {
        if self.spans.len() == MOST_SPANS {
            self.spans.pop_front();
        }
        self.spans.push_back((now_ns, now_ns));
    }

    /// They were still mapped then.
    fn extend(&mut self, until_ns: u64) {
        if let Some((_, to)) = self.spans.back_mut() {
            *to = until_ns.max(*to);
        }
    }

    /// Something else was mapped at some time after this.
    fn end(&mut self, last_ns: u64) {
        if let Some((from, to)) = self.spans.back_mut() {
            *to = last_ns.min(*to).max(*from);
        }
    }

    fn covers(&self, taken: Taken) -> bool {
        let mut spans = self.spans.iter();
        spans.any(|(from, to)| *from <= taken.after_ns && taken.before_ns <= *to)
    }
}

impl Program {
    /// If other mappings of the program have something else at the same place: when this was seen there last.
    fn gave_way_to(&self, mappings: &[Mapping]) -> Option<u64> {
        let different = mappings.iter().flat_map(|new| {
            let here = overlapping(&self.mappings, new).chain(overlapping(&self.gone, new));
            here.filter(|old| !is_same_code(old, new))
        });
        let seen = different.map(|old| {
            let watched = self.libraries.watched.get(&old.start);
            watched.copied().unwrap_or(self.libraries.read_ns)
        });
        seen.min()
    }

    /// Takes what it has mapped now; what it had elsewhere stays known.
    fn take(&mut self, mapped: Mapped) {
        let old = self.mappings.drain(..).chain(self.gone.drain(..));
        let is_gone = |old: &Mapping| overlapping(&mapped.mappings, old).next().is_none();
        let mut gone: Vec<Mapping> = old.filter(is_gone).take(MOST_GONE).collect();
        gone.sort_by_key(|mapping| mapping.start);
        self.gone = gone;
        self.mappings = mapped.mappings;
        self.is_cut |= mapped.is_cut;
        self.libraries.read_ns = mapped.began_ns;
        let mappings = &self.mappings;
        self.libraries.watched.retain(|start, seen| {
            *seen = mapped.began_ns;
            begins(mappings, *start)
        });
        let now = super::Instant::now();
        (self.seen, self.checked) = (now, now);
    }
}

/// Takes what a process has mapped now for what one of its programs had before, if that fits, which is the last one then;
/// gives it back if something else is somewhere.
pub(super) fn again<'a>(
    programs: &'a mut Vec<Program>,
    identity: &Identity,
    mapped: Mapped,
) -> Result<&'a mut Program, Mapped> {
    let last = programs.len().wrapping_sub(1);
    let gave_way = |program: &Program| program.gave_way_to(&mapped.mappings);
    if let Some(last) = programs.last_mut()
        && let Some(seen_ns) = gave_way(last)
    {
        last.libraries.end(seen_ns);
    }
    let fits = |program: &Program| program.identity == *identity && gave_way(program).is_none();
    let Some(index) = programs.iter().rposition(fits) else {
        return Err(mapped);
    };
    let mut program = programs.remove(index);
    if index == last {
        program.libraries.extend(mapped.began_ns);
    } else {
        program.libraries.resume(now_ns());
    }
    program.take(mapped);
    Ok(programs.push_mut(program))
}

/// Whether a file is mapped from there on.
fn begins(mappings: &[Mapping], start: u64) -> bool {
    let mapping = find(mappings, start).filter(|mapping| mapping.start == start);
    mapping.is_some_and(|mapping| matches!(mapping.content, Content::File(..)))
}

/// Those mappings of one time that share addresses with `other`.
fn overlapping<'a>(
    mappings: &'a [Mapping],
    other: &'a Mapping,
) -> impl Iterator<Item = &'a Mapping> {
    let first = mappings.partition_point(|mapping| mapping.end <= other.start);
    let rest = mappings[first..].iter();
    rest.take_while(|mapping| mapping.start < other.end)
}

/// Whether equal addresses in two mappings of a program are the same code: that made at run time is named as it is last.
pub(super) fn is_same_code(one: &Mapping, other: &Mapping) -> bool {
    let is_made = |mapping: &Mapping| mapping.content == Content::Anonymous;
    is_same_place(one, other) || is_made(one) && is_made(other)
}

/// Whether those programs of a process that had code at an address are one program, and the kernel chose where it is.
pub(super) fn took_turns(programs: &[Program], address: u64) -> bool {
    let mut places = with_code(programs, address);
    let Some((first, mapping)) = places.next() else {
        return false;
    };
    !mapping.is_fixed()
        && places
            .all(|(program, mapping)| program.identity == first.identity && !mapping.is_fixed())
}

impl Processes {
    /// What the process had mapped when a sample was taken, by its number; 0 if that is not known.
    pub(in crate::symbols) fn version(&self, pid: u32, taken: Taken) -> u32 {
        let mut programs = self.programs.get(&pid).into_iter().flatten();
        let covers = |program: &&Program| program.libraries.covers(taken);
        programs.find(covers).map_or(0, |program| program.number)
    }

    /// The programs that a stack may be of whose innermost function is at `place`, and whether they are one, with different
    /// libraries: that version alone, if it is known.
    pub(in crate::symbols) fn that_ran(
        &self,
        pid: u32,
        place: u64,
        version: u32,
    ) -> (Vec<&Program>, bool) {
        let programs = self.programs(pid, place);
        let all = self.programs.get(&pid).into_iter().flatten();
        let first = programs.first().map(|program| &program.identity);
        let are_one = all.clone().all(|program| Some(&program.identity) == first);
        match all.clone().find(|program| program.number == version) {
            Some(program) if are_one && program.at(place).is_some() => (vec![program], true),
            Some(_) | None => (programs, are_one),
        }
    }

    /// Watches the files that these addresses are in from now on, after a look at them; false if it did before. Without
    /// addresses it is a look.
    pub(in crate::symbols) fn watch(
        &mut self,
        pid: u32,
        addresses: &[u64],
        images: &mut Images,
    ) -> bool {
        let Some(program) = self.programs.get_mut(&pid).and_then(|all| all.last_mut()) else {
            return false;
        };
        let libraries = &mut program.libraries;
        let (watched, read_ns) = (&mut libraries.watched, libraries.read_ns);
        let before = watched.len();
        // No program closes itself.
        let own_code = program.identity.code();
        for address in addresses {
            if let Some(mapping) = find(&program.mappings, *address)
                && matches!(mapping.content, Content::File(..))
                && !own_code.is_some_and(|code| (mapping.start..mapping.end).contains(&code))
                && watched.len() < MOST_WATCHED
            {
                watched.entry(mapping.start).or_insert(read_ns);
            }
        }
        if before == 0 && !watched.is_empty() && !self.turns.contains(&pid) {
            self.turns.push_back(pid);
        }
        let is_new = watched.len() > before;
        if is_new || addresses.is_empty() {
            self.look_at(pid, images);
        }
        is_new
    }

    /// Looks at the libraries of a process if that was not done since a sample was taken; whether it did.
    pub(in crate::symbols) fn look_since(
        &mut self,
        pid: u32,
        taken: Taken,
        images: &mut Images,
    ) -> bool {
        let last = self.programs.get(&pid).and_then(|all| all.last());
        let is_due = last.is_some_and(|last| last.libraries.looked_ns < taken.before_ns);
        if is_due {
            self.look_at(pid, images);
        }
        is_due
    }

    /// Looks at the libraries of some processes: of these, which were sampled just now, those first that are known to change
    /// them; then of others.
    pub(in crate::symbols) fn look_at_libraries(&mut self, first: &[u32], images: &mut Images) {
        let mut left = MOST_LOOKS;
        let takes_turns = |pid: &u32| self.programs.get(pid).is_some_and(|all| all.len() > 1);
        let (some, others): (Vec<u32>, Vec<u32>) = first.iter().partition(|pid| takes_turns(pid));
        let some = some.into_iter().map(|pid| (pid, SHORT_PAUSE_NS));
        let others = others.into_iter().map(|pid| (pid, PAUSE_NS));
        for (pid, pause_ns) in some.chain(others) {
            left = left.saturating_sub(self.look_if_due(pid, pause_ns, images));
            if left == 0 {
                return;
            }
        }
        for _turn in 0..self.turns.len().min(MOST_TURNS) {
            let Some(pid) = self.turns.pop_front() else {
                return;
            };
            let looks = self.look_if_due(pid, LONG_PAUSE_NS, images);
            let last = self.programs.get(&pid).and_then(|all| all.last());
            if last.is_some_and(|last| !last.libraries.watched.is_empty()) {
                self.turns.push_back(pid);
            }
            left = left.saturating_sub(looks);
            if left == 0 {
                return;
            }
        }
    }

    /// Looks at the libraries of a process if that was not done for so long; at how many.
    fn look_if_due(&mut self, pid: u32, pause_ns: u64, images: &mut Images) -> usize {
        let last = self.programs.get(&pid).and_then(|all| all.last());
        let libraries = last.map(|last| &last.libraries);
        let due_ns = now_ns().saturating_sub(pause_ns);
        let Some(libraries) = libraries.filter(|libraries| libraries.looked_ns <= due_ns) else {
            return 0;
        };
        let looks = libraries.watched.len();
        self.look_at(pid, images);
        looks
    }

    /// Looks whether a process still has the files mapped that are watched, and at everything if it has not.
    fn look_at(&mut self, pid: u32, images: &mut Images) {
        let Some(program) = self.programs.get_mut(&pid).and_then(|all| all.last_mut()) else {
            return;
        };
        let now = now_ns();
        let libraries = &mut program.libraries;
        libraries.looked_ns = now;
        let mut is_sure = !libraries.watched.is_empty();
        let mut has_changed = false;
        for (start, seen) in &mut libraries.watched {
            let mapping = find(&program.mappings, *start);
            match mapping.and_then(|mapping| images.is_still(pid, mapping)) {
                Some(true) => *seen = now,
                Some(false) => has_changed = true,
                None => is_sure = false,
            }
        }
        if has_changed {
            if now >= libraries.rest_until_ns {
                self.read_again(pid, images);
            }
        } else if is_sure {
            libraries.extend(now);
        }
    }

    fn read_again(&mut self, pid: u32, images: &mut Images) {
        let began_ns = now_ns();
        let is_there = Identity::of(pid).is_some();
        self.see(pid, images);
        let Some(program) = self.programs.get_mut(&pid).and_then(|all| all.last_mut()) else {
            return;
        };
        let libraries = &mut program.libraries;
        let ended_ns = now_ns();
        libraries.rest_until_ns = ended_ns + (ended_ns - began_ns) * REST;
        if !is_there {
            libraries.watched.clear();
        }
    }
}
