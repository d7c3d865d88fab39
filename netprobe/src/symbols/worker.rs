//! The symbol worker: reads requests, answers them, and ends with its parent.
//!
//! It limits itself: memory, processor time, open files. Whatever it trips over costs names, never
//! the run.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};

use super::{
    images::{Content, Images, Mapping},
    naming::Naming,
    perf_map,
    protocol::{Answer, Missing, Names, Request},
    table_store::TableStore,
    unwind::{Code, CopiedStack, INSTRUCTION_POINTER, Unwound, unwind},
};

/// Bytes of private memory; mapped files do not count.
const MEMORY_BYTES: u64 = 96 << 20;
/// Bytes of addresses, mapped files included.
const ADDRESS_BYTES: u64 = 8 << 30;
/// Seconds of processor time.
const CPU_SECONDS: u64 = 20;
/// Bytes of a stack.
const MOST_STACK_BYTES: usize = 1 << 16;
/// How long the mappings of a process are believed although an address is in none of them.
const MAPPINGS_LAST: Duration = Duration::from_millis(100);
/// Processes that are remembered.
const MOST_PROCESSES: usize = 4096;

/// A process as it was when it was looked at.
#[derive(Debug)]
struct Process {
    /// When it was started, which tells it from a later one with the same id.
    started: String,
    mappings: Vec<Mapping>,
    /// When the mappings were read.
    seen: Instant,
}

/// What the worker knows.
#[derive(Debug)]
struct Worker {
    images: Images,
    naming: Naming,
    tables: TableStore,
    processes: HashMap<u32, Process>,
}

/// Answers requests until there are no more.
pub fn run(uses_debug_info: bool) -> Result<()> {
    limit()?;
    let mut worker = Worker {
        images: Images::default(),
        naming: Naming::new(uses_debug_info),
        tables: TableStore::default(),
        processes: HashMap::new(),
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let mut input = BufReader::with_capacity(1 << 16, io::stdin().lock());
    let mut line = String::new();
    while input.read_line(&mut line).context("read a request")? > 0 {
        let request = Request::parse(&line).context("not a request")?;
        line.clear();
        match request {
            Request::See(pid) => worker.see(pid),
            Request::Resolve(pid, addresses) => {
                for (address, names) in worker.resolve(pid, &addresses) {
                    out.write_all(Answer::Names(address, names).line().as_bytes())?;
                }
                out.write_all(Answer::Done.line().as_bytes())?;
                out.flush()?;
            }
            Request::Unwind(pid, length, registers) => {
                let mut bytes = vec![0; length.min(MOST_STACK_BYTES)];
                input.read_exact(&mut bytes).context("read a stack")?;
                let stack = CopiedStack { registers, bytes };
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
    ] {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        setrlimit(resource, limit).context("limit the worker")?;
    }
    Ok(())
}

impl Process {
    /// The mapping that an address is in.
    fn at(&self, address: u64) -> Option<&Mapping> {
        // As the kernel lists them: by address.
        let after = self
            .mappings
            .partition_point(|mapping| mapping.start <= address);
        let mapping = self.mappings.get(after.checked_sub(1)?)?;
        (address < mapping.end).then_some(mapping)
    }
}

impl Worker {
    /// Remembers what a process has mapped; if it is gone, what it had mapped before.
    fn see(&mut self, pid: u32) {
        if self.processes.len() >= MOST_PROCESSES {
            return;
        }
        let Some(started) = start_time(pid) else {
            return;
        };
        if let Some(known) = self.processes.get(&pid)
            && known.started != started
        {
            return;
        }
        if let Some(mappings) = self.images.mappings(pid) {
            let process = Process {
                started,
                mappings,
                seen: Instant::now(),
            };
            self.processes.insert(pid, process);
        }
    }

    /// Looks at a process that is not known, or may have mapped more since: reading mappings is
    /// what costs most.
    fn look_again(&mut self, pid: u32, addresses: &[u64]) {
        let is_known = self.processes.get(&pid).is_some_and(|process| {
            let is_mapped = |address: &u64| process.at(*address).is_some();
            process.seen.elapsed() < MAPPINGS_LAST || addresses.iter().all(is_mapped)
        });
        if !is_known {
            self.see(pid);
        }
    }

    fn resolve(&mut self, pid: u32, addresses: &[u64]) -> Vec<(u64, Names)> {
        self.look_again(pid, addresses);
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
        self.look_again(pid, &[stack.registers[INSTRUCTION_POINTER]]);
        let Some(process) = self.processes.get(&pid) else {
            let unwound = Unwound {
                places: vec![stack.registers[INSTRUCTION_POINTER]],
                is_whole: false,
            };
            return Answer::Stack(unwound, true);
        };
        for mapping in &process.mappings {
            if let Content::File(number, _) = mapping.content {
                self.tables.read(number, &self.images);
            }
        }
        let tables = &self.tables;
        let unwound = unwind(stack, |address| match process.at(address) {
            Some(mapping) => tables.code(mapping, address),
            None => Code::None,
        });
        let needs_copies = process
            .mappings
            .iter()
            .any(|mapping| tables.needs_copies(mapping));
        Answer::Stack(unwound, needs_copies)
    }

    /// Where an address is.
    fn place(&self, pid: u32, address: u64) -> Place {
        let Some(process) = self.processes.get(&pid) else {
            return Place::missing(Missing::Exited, "[unknown: exited]");
        };
        let Some(mapping) = process.at(address) else {
            return Place::missing(Missing::Unmapped, "[unknown]");
        };
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
            }),
        }
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
        let named = wanted.iter().zip(found).map(|((address, _), frames)| {
            let names = match frames {
                Some(frames) => Names {
                    frames,
                    missing: None,
                },
                None => Names {
                    frames: vec![format!("[{module}]")],
                    missing: Some(Missing::Stripped),
                },
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
        })
    }
}

/// Names what is still without a name by the process's own map.
fn apply_perf_map(pid: u32, answers: &mut [(u64, Names)]) {
    let nameless = |names: &Names| {
        matches!(
            names.missing,
            Some(Missing::Jit | Missing::Stripped | Missing::Unreadable)
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
        if let (true, Some(name)) = (nameless(names), found.remove(address)) {
            *names = Names {
                frames: vec![format!("{name}_[j]")],
                missing: None,
            };
        }
    }
}

/// When a process was started, in the kernel's own words; none if there is no such process.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may have anything in it, parentheses too.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19).map(str::to_owned)
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
            processes: HashMap::new(),
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
            processes: HashMap::new(),
        };
        let answers = worker.resolve(u32::MAX, &[4096]);
        assert_eq!(answers[0].1.missing, Some(Missing::Exited));
    }
}
