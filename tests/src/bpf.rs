//! BPF objects that a process holds, and whether they are still in the kernel.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{FromRawFd, OwnedFd},
    process::id,
};

/// `bpf(2)` commands that turn an id into a file descriptor.
const PROG_GET_FD_BY_ID: i64 = 13;
const MAP_GET_FD_BY_ID: i64 = 14;
const LINK_GET_FD_BY_ID: i64 = 30;

/// `bpf(2)` commands that list ids; the last not before 5.8.
const PROG_GET_NEXT_ID: i64 = 11;
const MAP_GET_NEXT_ID: i64 = 12;
const LINK_GET_NEXT_ID: i64 = 31;

/// Calls `bpf(2)`.
///
/// # Safety
///
/// `attributes` must hold what the command reads, and what addresses in them point at must be as the command expects it.
pub(crate) unsafe fn call(command: i64, attributes: &mut [u8]) -> io::Result<i64> {
    // SAFETY: `attributes` is as long as it is said to be; the rest is the caller's word.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_mut_ptr(),
            attributes.len(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Calls `bpf(2)` for a file descriptor.
///
/// # Safety
///
/// As [`call`]; the command must return a descriptor.
pub(crate) unsafe fn open(command: i64, attributes: &mut [u8]) -> io::Result<OwnedFd> {
    // SAFETY: the caller's word.
    let fd = unsafe { call(command, attributes) }?;
    let fd = i32::try_from(fd).expect("a file descriptor is a small number");
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A program, map or link, by its kind and id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    command: i64,
    id: u32,
}

/// All that the process `pid` holds open.
pub fn held_by(pid: u32) -> BTreeSet<Object> {
    let mut objects = BTreeSet::new();
    let folder = format!("/proc/{pid}/fdinfo");
    for entry in fs::read_dir(&folder).expect("list the files of the process") {
        let path = entry.expect("list the files of the process").path();
        // A file may be closed while we look.
        let text = fs::read_to_string(path).unwrap_or_default();
        objects.extend(text.lines().filter_map(object));
    }
    objects
}

/// All programs, maps and links of the machine.
pub fn all() -> BTreeSet<Object> {
    let kinds = [
        (PROG_GET_NEXT_ID, PROG_GET_FD_BY_ID),
        (MAP_GET_NEXT_ID, MAP_GET_FD_BY_ID),
        (LINK_GET_NEXT_ID, LINK_GET_FD_BY_ID),
    ];
    let mut objects = BTreeSet::new();
    for (next, command) in kinds {
        let mut last = 0;
        while let Some(id) = next_id(next, last) {
            objects.insert(Object { command, id });
            last = id;
        }
    }
    objects
}

/// The id after `last`.
fn next_id(command: i64, last: u32) -> Option<u32> {
    let mut attributes = [0_u8; 64];
    attributes[..4].copy_from_slice(&last.to_ne_bytes());
    // SAFETY: the call only writes the second word of its attributes.
    let result = unsafe { call(command, &mut attributes) };
    let id = attributes[4..]
        .first_chunk()
        .map(|id| u32::from_ne_bytes(*id));
    id.filter(|_| result.is_ok())
}

fn object(line: &str) -> Option<Object> {
    let (key, value) = line.split_once(':')?;
    let command = match key {
        "prog_id" => PROG_GET_FD_BY_ID,
        "map_id" => MAP_GET_FD_BY_ID,
        "link_id" => LINK_GET_FD_BY_ID,
        _ => return None,
    };
    let id = value.trim().parse().ok()?;
    Some(Object { command, id })
}

impl Object {
    /// Whether it is a program.
    pub const fn is_program(self) -> bool {
        self.command == PROG_GET_FD_BY_ID
    }

    /// Whether the kernel still has it.
    pub fn exists(self) -> bool {
        let mut attributes = [0_u8; 64];
        attributes[..4].copy_from_slice(&self.id.to_ne_bytes());
        // SAFETY: the call only reads its attributes.
        match unsafe { open(self.command, &mut attributes) } {
            Ok(_closed) => true,
            Err(why) => {
                let is_gone = why.raw_os_error() == Some(libc::ENOENT);
                assert!(is_gone, "{self:?} of {}: {why}", id());
                false
            }
        }
    }
}

/// Names of probes in tracefs, which outlive their maker; empty where there is no tracefs.
pub fn trace_events() -> BTreeSet<String> {
    let paths = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    let read = |file: &str| {
        let texts = paths.map(|path| fs::read_to_string(format!("{path}/{file}")));
        texts.into_iter().flatten().collect::<String>()
    };
    let events = read("kprobe_events") + &read("uprobe_events");
    events.lines().map(str::to_owned).collect()
}

/// How long the programs of a process ran, and how often, while statistics were on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunTime {
    /// Nanoseconds in its programs.
    pub ns: u64,
    /// Runs of its programs.
    pub runs: u64,
}

impl RunTime {
    /// The figures of the programs that process `pid` holds now.
    pub fn of(pid: u32) -> Self {
        let mut programs = std::collections::BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))
            .into_iter()
            .flatten()
        {
            let path = entry.expect("list the files of the process").path();
            let text = fs::read_to_string(path).unwrap_or_default();
            let number = |key: &str| {
                let mut lines = text.lines().filter_map(|line| line.split_once(':'));
                let (_, value) = lines.find(|(name, _)| *name == key)?;
                value.trim().parse::<u64>().ok()
            };
            // Links show the program's id as well, but not its figures.
            if let (Some(id), Some(ns), Some(runs)) =
                (number("prog_id"), number("run_time_ns"), number("run_cnt"))
            {
                programs.insert(id, Self { ns, runs });
            }
        }
        let none = Self::default();
        programs.values().fold(none, |sum, one| Self {
            ns: sum.ns + one.ns,
            runs: sum.runs + one.runs,
        })
    }

    /// What was added since `earlier`, per run.
    pub fn ns_per_run_since(self, earlier: Self) -> f64 {
        let count = |number: u64| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
        count((self.ns - earlier.ns) / 1000) * 1000.0 / count((self.runs - earlier.runs).max(1))
    }
}

/// The kernel keeps figures of run time as long as this lives.
#[derive(Debug)]
pub struct Statistics {
    _held: OwnedFd,
}

impl Statistics {
    /// Asks the kernel to keep them (`BPF_ENABLE_STATS`).
    pub fn enable() -> Self {
        const ENABLE_STATS: i64 = 32;
        // SAFETY: the call only reads its attributes.
        let held = unsafe { open(ENABLE_STATS, &mut [0; 64]) };
        Self {
            _held: held.expect("statistics"),
        }
    }
}
