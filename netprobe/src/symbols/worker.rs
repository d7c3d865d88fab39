//! The symbol worker: reads requests, answers them, and ends with its parent.
//!
//! It limits itself: memory, processor time, open files, capabilities. Whatever it trips over costs names, never
//! the run.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
};

use anyhow::{Context, Result};
use rustix::process::{
    Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit,
};

use super::{
    images::{Content, Images, MOST_FILES, Mapping},
    naming::Naming,
    perf_map,
    processes::{At, Processes},
    protocol::{Answer, Missing, Names, Request},
    returns::Returns,
    table_store::TableStore,
    unwind::{Code, CopiedStack, INSTRUCTION_POINTER, Unwound, unwind},
};
use crate::kernel::privileges;

/// Bytes of private memory; mapped files do not count.
const MEMORY_BYTES: u64 = 96 << 20;
/// Bytes of addresses, mapped files included.
const ADDRESS_BYTES: u64 = 8 << 30;
/// Seconds of processor time.
const CPU_SECONDS: u64 = 20;
/// Bytes of a stack.
const MOST_STACK_BYTES: usize = 1 << 16;

/// What the worker knows.
#[derive(Debug)]
struct Worker {
    images: Images,
    naming: Naming,
    tables: TableStore,
    returns: Returns,
    processes: Processes,
}

/// Answers requests until there are no more.
pub fn run(uses_debug_info: bool) -> Result<()> {
    limit()?;
    let mut worker = Worker {
        images: Images::default(),
        naming: Naming::new(uses_debug_info),
        tables: TableStore::default(),
        returns: Returns::default(),
        processes: Processes::default(),
    };
    worker.processes.survey();
    let mut out = BufWriter::new(io::stdout().lock());
    let mut input = BufReader::with_capacity(1 << 16, io::stdin().lock());
    let mut line = String::new();
    while input.read_line(&mut line).context("read a request")? > 0 {
        let request = Request::parse(&line).context("not a request")?;
        line.clear();
        match request {
            Request::See(pid) => worker.processes.see(pid, &mut worker.images),
            Request::Look(first) => {
                worker.processes.look_at_young(&mut worker.images);
                worker
                    .processes
                    .look_at_libraries(&first, &mut worker.images);
            }
            Request::Resolve(pid, addresses) => {
                for (address, names) in worker.resolve(pid, &addresses) {
                    out.write_all(Answer::Names(address, names).line().as_bytes())?;
                }
                for answer in worker.of_programs(pid, &addresses) {
                    out.write_all(answer.line().as_bytes())?;
                }
                let several = worker.processes.has_several(pid);
                out.write_all(Answer::Done(several).line().as_bytes())?;
                out.flush()?;
            }
            Request::Unwind(pid, length, taken, registers, walked) => {
                let mut bytes = vec![0; length.min(MOST_STACK_BYTES)];
                input.read_exact(&mut bytes).context("read a stack")?;
                let stack = CopiedStack {
                    registers,
                    bytes,
                    walked,
                    taken,
                };
                let answer = worker.unwind(pid, &stack);
                out.write_all(answer.line().as_bytes())?;
                // More may be in the pipe, whose answers go together.
                if input.buffer().is_empty() {
                    out.flush()?;
                }
            }
        }
    }
    Ok(())
}

fn limit() -> Result<()> {
    rustix::thread::set_name(c"netprobe-symbol").context("take a name")?;
    set_parent_process_death_signal(Some(Signal::KILL)).context("die with the parent")?;
    for (resource, most) in [
        (Resource::Data, MEMORY_BYTES),
        (Resource::As, ADDRESS_BYTES),
        (Resource::Cpu, CPU_SECONDS),
        (Resource::Core, 0),
        // Twice as many as are kept.
        (Resource::Nofile, 2 * MOST_FILES as u64),
    ] {
        // As far as that is allowed.
        let allowed = getrlimit(resource).maximum;
        let most = Some(allowed.map_or(most, |allowed| allowed.min(most)));
        let limit = Rlimit {
            current: most,
            maximum: most,
        };
        setrlimit(resource, limit).context("limit the worker")?;
    }
    privileges::reduce_to_reading();
    Ok(())
}

impl Worker {
    fn resolve(&mut self, pid: u32, addresses: &[u64]) -> Vec<(u64, Names)> {
        self.processes.look_again(pid, addresses, &mut self.images);
        self.processes.watch(pid, addresses, &mut self.images);
        self.processes.learn_names(pid);
        let mut answers = Vec::new();
        let mut by_file: HashMap<usize, (String, Vec<(u64, u64)>)> = HashMap::new();
        for address in addresses {
            match self.place(pid, *address) {
                Place::InFile(number, name, offset) => {
                    let (_, wanted) = by_file.entry(number).or_insert((name, Vec::new()));
                    wanted.push((*address, offset));
                }
                Place::Named(names) => answers.push((*address, names)),
            }
        }
        for (number, (module, wanted)) in by_file {
            answers.extend(self.name_in_file(number, &module, &wanted));
        }
        apply_perf_map(pid, &mut answers);
        answers
    }

    /// Follows a copied stack, and says whether other stacks of the process need copying too.
    fn unwind(&mut self, pid: u32, stack: &CopiedStack) -> Answer {
        let place = stack.registers[INSTRUCTION_POINTER];
        self.processes.look_again(pid, &[place], &mut self.images);
        let (mut best, mut needs_copies) = self.follow(pid, stack);
        let processes = &mut self.processes;
        let is_new = processes.watch(pid, &best.places, &mut self.images);
        if is_new || processes.look_since(pid, stack.taken, &mut self.images) {
            let version = self.processes.version(pid, stack.taken);
            if version != best.version && self.processes.has_several(pid) {
                (best, needs_copies) = self.follow(pid, stack);
            }
            best.version = version;
        }
        Answer::Stack(best, needs_copies)
    }

    /// The same by what is known of the process.
    fn follow(&mut self, pid: u32, stack: &CopiedStack) -> (Unwound, bool) {
        let place = stack.registers[INSTRUCTION_POINTER];
        let version = self.processes.version(pid, stack.taken);
        let mut best = Unwound {
            places: vec![place],
            is_whole: false,
            version,
        };
        let mut needs_copies = true;
        let (programs, are_one) = self.processes.that_ran(pid, place, version);
        // If several have code there, the stack is of the one whose tables lead to its beginning; of libraries that took
        // turns, only what all lead to is certain.
        for (index, process) in programs.into_iter().enumerate() {
            for mapping in process.all_mappings() {
                if let Content::File(number, _) = mapping.content {
                    self.tables.read(number, &self.images);
                }
            }
            let (tables, returns, images) = (&self.tables, &self.returns, &self.images);
            let code = |address| match process.at(address) {
                Some(mapping) => tables.code(mapping, address),
                None => Code::None,
            };
            let is_return = |address: u64| {
                let mapping = process.at(address.wrapping_sub(1));
                mapping.is_some_and(|mapping| returns.is_return(mapping, address, images))
            };
            let unwound = unwind(stack, code, is_return);
            let mut mappings = process.all_mappings();
            let needs = mappings.any(|mapping| tables.needs_copies(mapping));
            if index > 0 && are_one {
                best = best.common(&unwound);
                needs_copies |= needs;
            } else if index == 0 || unwound.is_whole {
                best = Unwound { version, ..unwound };
                needs_copies = needs;
            }
            if best.is_whole && !are_one {
                break;
            }
        }
        (best, needs_copies)
    }

    /// Where an address is.
    fn place(&self, pid: u32, address: u64) -> Place {
        let mapping = match self.processes.at(pid, address) {
            At::Mapping(mapping) => mapping,
            At::Exited => return Place::missing(Missing::Exited, "[unknown: exited]"),
            At::Denied => return Place::missing(Missing::Denied, "[unknown: no permission]"),
            At::Outside => return Place::missing(Missing::Outside, "[unknown: outside]"),
            At::Unmapped => return Place::missing(Missing::Unmapped, "[unknown]"),
            At::TooMany => {
                return Place::missing(Missing::TooMany, "[unknown: too many mappings]");
            }
            At::Several => return Place::missing(Missing::Replaced, "[unknown: exec]"),
            At::Remapped => return Place::missing(Missing::Remapped, "[unknown: dlopen]"),
        };
        Self::place_in(mapping, address)
    }

    fn place_in(mapping: &Mapping, address: u64) -> Place {
        match &mapping.content {
            Content::File(number, name) => {
                let offset = address - mapping.start + mapping.offset;
                Place::InFile(*number, name.clone(), offset)
            }
            Content::Refused(missing, name) => Place::missing(*missing, &format!("[{name}]")),
            Content::Anonymous => Place::missing(Missing::Jit, "[jit]"),
            Content::Kernel(name) => Place::Named(Names {
                frames: vec![name.clone()],
                missing: None,
                is_call: true,
            }),
        }
    }

    /// The names for those addresses that alone do not tell which program of the process they are of: by the names of
    /// its threads, and if it was one that is known.
    fn of_programs(&self, pid: u32, addresses: &[u64]) -> Vec<Answer> {
        let mut answers = Vec::new();
        for address in addresses {
            match self.processes.at(pid, *address) {
                At::Several => {}
                At::Remapped => {
                    answers.extend(self.of_versions(pid, *address));
                    continue;
                }
                At::Exited
                | At::Denied
                | At::Outside
                | At::Unmapped
                | At::TooMany
                | At::Mapping(_) => continue,
            }
            let known = self.processes.at_in_known(pid, *address);
            let known = known.and_then(|mapping| self.names_in(mapping, *address));
            for (name, mapping) in self.processes.each_at(pid, *address) {
                let names = known.clone().or_else(|| self.names_in(mapping, *address));
                answers.extend(names.map(|names| Answer::Of(name.to_owned(), *address, names)));
            }
            answers.extend(known.map(|names| Answer::OfKnown(*address, names)));
        }
        answers
    }

    /// The names for an address where libraries took turns, by what was mapped.
    fn of_versions(&self, pid: u32, address: u64) -> Vec<Answer> {
        let programs = self.processes.programs(pid, address).into_iter();
        let names = programs.filter_map(|program| {
            let mapping = program.at(address)?;
            let names = match Self::place_in(mapping, address) {
                Place::Named(names) => names,
                Place::InFile(..) => self.names_in(mapping, address)?,
            };
            Some(Answer::OfVersion(program.number, address, names))
        });
        names.collect()
    }

    fn names_in(&self, mapping: &Mapping, address: u64) -> Option<Names> {
        let Content::File(number, module) = &mapping.content else {
            return None;
        };
        let offset = address - mapping.start + mapping.offset;
        let mut named = self.name_in_file(*number, module, &[(address, offset)]);
        named.pop().map(|(_, names)| names)
    }

    fn name_in_file(
        &self,
        number: usize,
        module: &str,
        wanted: &[(u64, u64)],
    ) -> Vec<(u64, Names)> {
        let offsets: Vec<u64> = wanted.iter().map(|(_, offset)| *offset).collect();
        let found = match self.images.path(number) {
            Some(path) => self.naming.names(&path, &offsets),
            None => vec![None; offsets.len()],
        };
        // Also while they were looked up.
        let (found, missing) = if self.images.was_written(number) {
            (vec![None; offsets.len()], Missing::Overwritten)
        } else {
            (found, Missing::Stripped)
        };
        let named = wanted.iter().zip(found).map(|((address, offset), frames)| {
            let after = offset.wrapping_add(1);
            let is_call = self.returns.is_return_in(number, after, &self.images);
            let (frames, missing) = match frames {
                Some(frames) => (frames, None),
                None => (vec![format!("[{module}]")], Some(missing)),
            };
            let names = Names {
                frames,
                missing,
                is_call,
            };
            (*address, names)
        });
        named.collect()
    }
}

/// Where an address is.
enum Place {
    /// In a file, by its number, name and offset.
    InFile(usize, String, u64),
    /// Somewhere that needs no looking up.
    Named(Names),
}

impl Place {
    fn missing(missing: Missing, frame: &str) -> Self {
        Self::Named(Names {
            frames: vec![frame.to_owned()],
            missing: Some(missing),
            is_call: true,
        })
    }
}

/// Names what is still without a name by the process's own map.
fn apply_perf_map(pid: u32, answers: &mut [(u64, Names)]) {
    let nameless = |names: &Names| {
        matches!(
            names.missing,
            Some(Missing::Jit | Missing::Stripped | Missing::Unreadable | Missing::Overwritten)
        )
    };
    let addresses: Vec<u64> = answers
        .iter()
        .filter(|(_, names)| nameless(names))
        .map(|(address, _)| *address)
        .collect();
    if addresses.is_empty() {
        return;
    }
    let mut found = perf_map::lookup(pid, &addresses);
    for (address, names) in answers {
        if !nameless(names) {
            continue;
        }
        match found.names.remove(address) {
            Some(name) => {
                names.frames = vec![format!("{name}_[j]")];
                names.missing = None;
            }
            None if names.missing == Some(Missing::Jit) => names.missing = Some(found.others),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_functions_have_names_and_nonsense_has_none() {
        let mut worker = Worker {
            images: Images::default(),
            naming: Naming::new(true),
            tables: TableStore::default(),
            returns: Returns::default(),
            processes: Processes::default(),
        };
        let here = our_own_functions_have_names_and_nonsense_has_none as *const () as u64;
        let answers = worker.resolve(std::process::id(), &[here, 1]);
        let of = |address| &answers.iter().find(|(a, _)| *a == address).unwrap().1;
        let name = &of(here).frames[0];
        assert!(name.contains("our_own_functions_have_names"), "{name}");
        assert_eq!(of(1).missing, Some(Missing::Unmapped));
    }

    #[test]
    fn a_process_that_is_not_there_has_exited() {
        let mut worker = Worker {
            images: Images::default(),
            naming: Naming::new(false),
            tables: TableStore::default(),
            returns: Returns::default(),
            processes: Processes::default(),
        };
        let answers = worker.resolve(u32::MAX, &[4096]);
        assert_eq!(answers[0].1.missing, Some(Missing::Exited));
        // What the programs say of processes in other pid namespaces.
        let answers = worker.resolve(0, &[4096]);
        assert_eq!(answers[0].1.missing, Some(Missing::Outside));
    }
}
