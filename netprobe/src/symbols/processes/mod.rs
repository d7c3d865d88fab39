//! Processes as they were when somebody looked: one process may run several programs, one after another, and ids are
//! used again. All are remembered, for samples of each may still come to be named. So is what a program had mapped before
//! other libraries were mapped at the same places ([`libraries`]).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fs,
    io::ErrorKind,
    mem,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    param::clock_ticks_per_second,
    time::{ClockId, clock_gettime},
};

use super::images::{Images, Mapped, Mapping, with_memory};
use crate::observe::stat;

mod libraries;

use libraries::Libraries;

/// The programs have no id for processes that are not in our pid namespace.
const OUTSIDE: u32 = 0;
/// How long mappings are believed although an address is in none of them, and programs to be the same.
const BELIEVED: Duration = Duration::from_millis(100);
/// How long after its start a process is looked at again and again: scripts that only set something up take not long.
const YOUNG: Duration = Duration::from_secs(2);
/// Young processes that are looked at.
const MOST_YOUNG: usize = 64;
/// Processes that are remembered.
const MOST_PROCESSES: usize = 4096;
/// Programs of one process that are remembered, and what they had mapped at different times.
const MOST_PROGRAMS: usize = 8;
/// Processes of which it is remembered what they ran before anything was sampled.
const MOST_BEFORE: usize = 16_384;
/// Names of threads of one program that are remembered.
const MOST_NAMES: usize = 16;
/// Threads that are looked at for it.
const MOST_THREADS: usize = 256;

/// What tells the program of a process from the next one: exec changes neither the id nor the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    started: String,
    /// Where its code, its stack and its arguments are.
    places: Vec<String>,
}

impl Identity {
    /// That of a living process.
    fn of(pid: u32) -> Option<Self> {
        let of = |task| Self::parse(&fs::read_to_string(format!("/proc/{task}/stat")).ok()?);
        let process = of(pid)?;
        if process.is_settled() {
            return Some(process);
        }
        let places = match with_memory(pid) {
            task if task != pid => of(task)?.places,
            _ => process.places,
        };
        Some(Self { places, ..process })
    }

    /// How long ago its process was started.
    fn age(&self) -> Option<Duration> {
        let ticks: u64 = self.started.parse().ok()?;
        let started = Duration::from_secs(ticks) / u32::try_from(clock_ticks_per_second()).ok()?;
        let now = Duration::try_from(clock_gettime(ClockId::Boottime)).ok()?;
        Some(now.saturating_sub(started))
    }

    /// An address in the code of its program.
    fn code(&self) -> Option<u64> {
        self.places[0].parse().ok()
    }

    /// In the middle of exec there is no code yet, whatever the program will be.
    fn is_settled(&self) -> bool {
        self.places[0] != "0"
    }

    fn parse(stat: &str) -> Option<Self> {
        // startcode, endcode, startstack; arg_start.
        let places = [26, 27, 28, 48].map(|number| stat::field(stat, number).unwrap_or_default());
        Some(Self {
            started: stat::field(stat, 22)?.to_owned(),
            places: places.map(str::to_owned).into(),
        })
    }
}

/// A program that a process has run, with what it had mapped: the same program is here again where other libraries took
/// the place of its first ones.
#[derive(Debug)]
pub(super) struct Program {
    /// Which this is, from 1 on.
    pub(super) number: u32,
    identity: Identity,
    /// As its threads were called, the first one first.
    names: Vec<String>,
    /// It ran before anything was sampled.
    ran_before: bool,
    /// As they were read last.
    mappings: Vec<Mapping>,
    /// Where it had others before, and nothing since.
    gone: Vec<Mapping>,
    libraries: Libraries,
    /// It has more of them.
    is_cut: bool,
    /// When the mappings were read.
    seen: Instant,
    /// When it was last found to be the same program.
    checked: Instant,
}

impl Program {
    fn has_fixed_code(&self) -> bool {
        self.mappings.iter().any(Mapping::is_fixed)
    }

    /// The mapping that an address is in.
    pub(super) fn at(&self, address: u64) -> Option<&Mapping> {
        find(&self.mappings, address).or_else(|| find(&self.gone, address))
    }

    /// Its mappings, those that are gone too.
    pub(super) fn all_mappings(&self) -> impl Iterator<Item = &Mapping> {
        self.mappings.iter().chain(&self.gone)
    }
}

fn are_mappings_denied(pid: u32) -> bool {
    let opened = fs::File::open(format!("/proc/{}/maps", with_memory(pid)));
    opened.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

/// The mapping that an address is in, of those of one time.
fn find(mappings: &[Mapping], address: u64) -> Option<&Mapping> {
    // As the kernel lists them: by address.
    let after = mappings.partition_point(|mapping| mapping.start <= address);
    let mapping = mappings.get(after.checked_sub(1)?)?;
    (address < mapping.end).then_some(mapping)
}

/// Where an address was in the programs of a process.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum At<'a> {
    /// Nothing is known of the process.
    Exited,
    /// The process lives, and nothing of it may be known.
    Denied,
    /// The process is not in our pid namespace.
    Outside,
    /// In none of its mappings.
    Unmapped,
    /// In none of those that were read, and there are more.
    TooMany,
    /// Here, and nowhere else.
    Mapping(&'a Mapping),
    /// In one program here, in another one there; or it is not known whether there was another one with code there.
    Several,
    /// In one file at one time, in another one at another.
    Remapped,
}

/// All that were looked at.
#[derive(Debug, Default)]
pub(super) struct Processes {
    programs: HashMap<u32, Vec<Program>>,
    /// Those whose mappings may not be read.
    denied: BTreeSet<u32>,
    /// Those that may soon run another program, as what a script starts.
    young: BTreeSet<u32>,
    /// What ran before anything was sampled.
    before: HashMap<u32, Identity>,
    /// Those whose libraries are watched, the one whose turn is next first.
    turns: VecDeque<u32>,
    /// The number of the last program.
    numbers: u32,
}

impl Processes {
    /// Remembers what is running; nothing has been sampled yet.
    pub(super) fn survey(&mut self) {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let found = pids.filter_map(|pid| Some((pid, Identity::of(pid)?)));
        self.before = found.take(MOST_BEFORE).collect();
    }

    /// Remembers what a process has mapped; if it is gone, what it had mapped before.
    pub(super) fn see(&mut self, pid: u32, images: &mut Images) {
        let is_full = self.programs.len() >= MOST_PROCESSES && !self.programs.contains_key(&pid);
        if is_full || pid == OUTSIDE {
            return;
        }
        let (before, mapped) = (Identity::of(pid), images.mappings(pid));
        let has_fixed_code = mapped.as_ref().is_some_and(Mapped::has_fixed_code);
        let names = if has_fixed_code {
            thread_names(pid)
        } else {
            Vec::new()
        };
        let after = Identity::of(pid);
        let Some(identity) = before else {
            images.forget_last();
            return;
        };
        if identity.age().is_some_and(|age| age < YOUNG) && self.young.len() < MOST_YOUNG {
            self.young.insert(pid);
        }
        // Between two programs it is neither.
        let is_one = identity.is_settled() && after.as_ref() == Some(&identity);
        if mapped.is_none() && self.denied.len() < MOST_PROCESSES && are_mappings_denied(pid) {
            self.denied.insert(pid);
        }
        if let (Some(mapped), true) = (mapped, is_one) {
            self.add(pid, identity, names, mapped);
        } else {
            images.forget_last();
        }
    }

    /// Looks again at the young processes that run another program by now.
    pub(super) fn look_at_young(&mut self, images: &mut Images) {
        for pid in mem::take(&mut self.young) {
            let Some(identity) = Identity::of(pid) else {
                continue;
            };
            let last = self.programs.get(&pid).and_then(|all| all.last());
            if last.is_none_or(|last| last.identity != identity) {
                self.see(pid, images);
            } else if identity.age().is_some_and(|age| age < YOUNG) {
                self.young.insert(pid);
            }
        }
    }

    fn add(&mut self, pid: u32, identity: Identity, names: Vec<String>, mapped: Mapped) {
        let programs = self.programs.entry(pid).or_default();
        let mapped = match libraries::again(programs, &identity, mapped) {
            Ok(program) => {
                add_names(&mut program.names, names);
                return;
            }
            Err(mapped) => mapped,
        };
        let earlier = programs.iter().rfind(|last| last.identity == identity);
        let mut all_names = earlier.map_or_else(Vec::new, |earlier| earlier.names.clone());
        add_names(&mut all_names, names);
        let libraries = Libraries::begin(earlier, &mapped);
        if programs.len() == MOST_PROGRAMS {
            programs.remove(0);
        }
        let now = Instant::now();
        self.numbers += 1;
        programs.push(Program {
            number: self.numbers,
            ran_before: self.before.get(&pid) == Some(&identity),
            identity,
            names: all_names,
            mappings: mapped.mappings,
            gone: Vec::new(),
            libraries,
            is_cut: mapped.is_cut,
            seen: now,
            checked: now,
        });
    }

    /// Looks at a process that is not known, may have mapped more since, or runs another program: reading mappings is
    /// what costs most.
    pub(super) fn look_again(&mut self, pid: u32, addresses: &[u64], images: &mut Images) {
        if !self.is_as_it_was(pid, addresses) {
            self.see(pid, images);
        }
    }

    fn is_as_it_was(&mut self, pid: u32, addresses: &[u64]) -> bool {
        let Some(program) = self.programs.get_mut(&pid).and_then(|all| all.last_mut()) else {
            return false;
        };
        if program.checked.elapsed() >= BELIEVED {
            program.checked = Instant::now();
            if Identity::of(pid).is_some_and(|now| now != program.identity) {
                return false;
            }
        }
        let is_mapped = |address: &u64| program.at(*address).is_some();
        program.seen.elapsed() < BELIEVED || addresses.iter().all(is_mapped)
    }

    /// Remembers the names of the threads of a process too, where it takes them to tell its programs apart.
    pub(super) fn learn_names(&mut self, pid: u32) {
        if !self.is_unsure(pid) {
            return;
        }
        let Some(program) = self.programs.get_mut(&pid).and_then(|all| all.last_mut()) else {
            return;
        };
        let names = thread_names(pid);
        if program.has_fixed_code() && Identity::of(pid).as_ref() == Some(&program.identity) {
            add_names(&mut program.names, names);
        }
    }

    /// Where an address is in each program of a process, by the names of its threads, if the address alone does not
    /// tell; nothing by a name of two that are different there.
    pub(super) fn each_at(&self, pid: u32, address: u64) -> BTreeMap<&str, &Mapping> {
        let mut places: BTreeMap<&str, Option<&Mapping>> = BTreeMap::new();
        if self.at(pid, address) != At::Several {
            return BTreeMap::new();
        }
        let programs = self.programs.get(&pid).map_or(&[][..], Vec::as_slice);
        for program in programs {
            let Some(mapping) = program.at(address) else {
                continue;
            };
            // Whatever it had mapped then, the names are the program's.
            let same = programs.iter();
            let same = same.filter(|other| other.identity == program.identity);
            for name in same.flat_map(|program| &program.names) {
                let place = places.entry(name).or_insert(Some(mapping));
                *place = place.filter(|other| is_same_place(mapping, other));
            }
        }
        let clear = places.into_iter();
        clear
            .filter_map(|(name, place)| Some((name, place?)))
            .collect()
    }

    /// Whether the process has run more than one program, or may have, with code at the same places.
    pub(super) fn is_unsure(&self, pid: u32) -> bool {
        let programs = self.programs.get(&pid).map_or(&[][..], Vec::as_slice);
        let Some((first, others)) = programs.split_first() else {
            return false;
        };
        others.iter().any(|other| other.identity != first.identity)
            || !first.ran_before && programs.iter().any(Program::has_fixed_code)
    }

    /// The same, or it had different files at the same place.
    pub(super) fn has_several(&self, pid: u32) -> bool {
        let programs = self.programs.get(&pid);
        self.is_unsure(pid) || programs.is_some_and(|programs| programs.len() > 1)
    }

    /// The programs of a process that had code at this address, the last first; if none had, the last.
    pub(super) fn programs(&self, pid: u32, address: u64) -> Vec<&Program> {
        let Some(programs) = self.programs.get(&pid) else {
            return Vec::new();
        };
        let has_code = |program: &&Program| program.at(address).is_some();
        let found: Vec<&Program> = programs.iter().rev().filter(has_code).collect();
        if found.is_empty() {
            programs.last().into_iter().collect()
        } else {
            found
        }
    }

    /// Where an address is if the process ran a program that is known: nothing if that depends on which.
    pub(super) fn at_in_known(&self, pid: u32, address: u64) -> Option<&Mapping> {
        let programs = self.programs.get(&pid)?;
        let mut places = with_code(programs, address);
        let (first_program, first) = places.next()?;
        let mut is_same = |(program, other): (&Program, &Mapping)| {
            let is_one = program.identity == first_program.identity;
            is_same_place(other, first) || is_one && libraries::is_same_code(other, first)
        };
        places.all(&mut is_same).then_some(first)
    }

    /// Where an address is, or was.
    pub(super) fn at(&self, pid: u32, address: u64) -> At<'_> {
        let Some(programs) = self.programs.get(&pid) else {
            return match pid {
                OUTSIDE => At::Outside,
                pid if self.denied.contains(&pid) => At::Denied,
                _ => At::Exited,
            };
        };
        if !programs.iter().any(|program| program.at(address).is_some()) {
            let is_cut = programs.iter().any(|program| program.is_cut);
            return if is_cut { At::TooMany } else { At::Unmapped };
        }
        match self.at_in_known(pid, address) {
            Some(mapping) if !(mapping.is_fixed() && self.is_unsure(pid)) => At::Mapping(mapping),
            None if libraries::took_turns(programs, address) => At::Remapped,
            Some(_) | None => At::Several,
        }
    }
}

/// Those programs that had code at an address, and where it was.
fn with_code(programs: &[Program], address: u64) -> impl Iterator<Item = (&Program, &Mapping)> {
    let mapping = move |program| Program::at(program, address);
    let places = programs.iter();
    places.filter_map(move |program| Some((program, mapping(program)?)))
}

/// How the threads of a process are called, the first one first.
fn thread_names(pid: u32) -> Vec<String> {
    let name = |path: &Path| fs::read_to_string(path.join("comm")).ok();
    let first = PathBuf::from(format!("/proc/{pid}"));
    let others = fs::read_dir(first.join("task")).into_iter().flatten();
    let others = others.take(MOST_THREADS).flatten();
    let paths = [first].into_iter().chain(others.map(|entry| entry.path()));
    let names = paths.filter_map(|path| name(&path));
    names
        .map(|name| name.trim_end_matches('\n').to_owned())
        .collect()
}

fn add_names(names: &mut Vec<String>, more: Vec<String>) {
    for name in more {
        if names.len() < MOST_NAMES && !names.contains(&name) {
            names.push(name);
        }
    }
}

/// Whether equal addresses in two mappings are the same place in the same file.
fn is_same_place(one: &Mapping, other: &Mapping) -> bool {
    let offset = |mapping: &Mapping| mapping.offset.wrapping_sub(mapping.start);
    one.content == other.content && offset(one) == offset(other)
}

#[cfg(test)]
mod tests;
