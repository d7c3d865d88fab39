//! Names that a JIT compiler wrote down: `/tmp/perf-PID.map` of the process's own root, one
//! `START SIZE NAME` per line, both in hex.
//!
//! The file is the process's own to write, of any size; its end is read in order, up to a bound, and only what covers a
//! wanted address is kept. What was written last holds, so that the beginning of a longer one would name other code.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader, Read, Seek, SeekFrom},
    os::fd::OwnedFd,
    path::Path,
};

use rustix::fs::{Stat, fstat};

use super::{
    images::{inner_pid, open_below, with_memory},
    paths::{Refusal, Root},
    protocol::Missing,
};
use crate::observe::{clock::wall_offset_ns, owners::started_ns};

/// Bytes of a map that are read, from its end.
const MOST_BYTES: u64 = 128 << 20;
/// Bytes of a line that are kept; the rest belongs to no name that a person would read.
const LINE_BYTES: u64 = 1024;

/// How much later than its time says a file may have been written, in nanoseconds: the kernel's clock for files goes by
/// ticks of at most 10 ms, as do the times at which processes begin.
const CLOCK_STEPS_NS: i64 = 20_000_000;

/// What a map knows.
#[derive(Debug)]
pub(super) struct Known {
    /// Names by address.
    pub(super) names: HashMap<u64, String>,
    /// Why other code that was made at run time has none.
    pub(super) others: Missing,
}

impl Known {
    fn nothing(others: Missing) -> Self {
        let names = HashMap::new();
        Self { names, others }
    }
}

/// Names for those of `addresses` that the map of the process knows.
pub(super) fn lookup(pid: u32, addresses: &[u64]) -> Known {
    let known = open_map(pid).and_then(|map| lookup_in(map.into(), pid, addresses));
    known.unwrap_or_else(|| Known::nothing(why_none(pid)))
}

/// Why there is no map that can be read.
fn why_none(pid: u32) -> Missing {
    match Root::of(with_memory(pid)) {
        Err(Refusal::Denied) => Missing::JitDenied,
        Ok(_) | Err(Refusal::Absent | Refusal::Remote | Refusal::Failed) => Missing::Jit,
    }
}

fn lookup_in(map: File, pid: u32, addresses: &[u64]) -> Option<Known> {
    if is_older(&map, pid) {
        return Some(Known::nothing(Missing::JitOlder));
    }
    search_end(map, addresses, MOST_BYTES)
}

/// Whether a map was written last before the process began: by another one, which had its id.
fn is_older(map: &File, pid: u32) -> bool {
    let started_ns = started_ns(Path::new("/proc"), pid);
    let Some((started_ns, map)) = started_ns.zip(fstat(map).ok()) else {
        return false;
    };
    let began = wall_offset_ns().saturating_add_unsigned(started_ns);
    written_ns(&map).saturating_add(CLOCK_STEPS_NS) < began
}

/// When a file was written last, in nanoseconds since 1970.
fn written_ns(file: &Stat) -> i64 {
    let nanoseconds = i64::try_from(file.st_mtime_nsec).unwrap_or_default();
    let seconds = file.st_mtime.saturating_mul(1_000_000_000);
    seconds.saturating_add(nanoseconds)
}

/// Searches the last bytes of a map, which are at most so many.
fn search_end(mut map: File, addresses: &[u64], most: u64) -> Option<Known> {
    let begin = map.metadata().ok()?.len().saturating_sub(most);
    // Reading goes on one byte before, so that a line that begins there is whole.
    map.seek(SeekFrom::Start(begin.saturating_sub(1))).ok()?;
    let mut reader = BufReader::with_capacity(1 << 16, map.take(most + 1));
    let mut others = Missing::Jit;
    if begin > 0 {
        reader.skip_until(b'\n').ok()?;
        others = Missing::JitCut;
    }
    let names = search(reader, addresses);
    Some(Known { names, others })
}

/// The map, if it belongs to the owner of the process: anybody may write to `/tmp`.
fn open_map(pid: u32) -> Option<OwnedFd> {
    let path = format!("/tmp/perf-{}.map", inner_pid(pid));
    let file = open_below(with_memory(pid), Path::new(&path)).ok()?;
    let owner = fstat(&file).ok()?.st_uid;
    let process = rustix::fs::stat(format!("/proc/{pid}")).ok()?.st_uid;
    (owner == process || owner == 0).then_some(file)
}

fn search(mut reader: impl BufRead, addresses: &[u64]) -> HashMap<u64, String> {
    let mut sorted = addresses.to_vec();
    sorted.sort_unstable();
    let mut found = HashMap::new();
    let mut line = Vec::new();
    while next_line(&mut reader, &mut line) {
        let Some((start, end, name)) = parse(&line) else {
            continue;
        };
        let first = sorted.partition_point(|address| *address < start);
        for address in sorted[first..].iter().take_while(|address| **address < end) {
            // Code that was thrown away leaves its line; the latest holds.
            found.insert(*address, String::from_utf8_lossy(name).into_owned());
        }
    }
    found
}

/// Reads a line, of which only the beginning is kept; false at the end.
fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> bool {
    line.clear();
    let Ok(read) = reader.by_ref().take(LINE_BYTES).read_until(b'\n', line) else {
        return false;
    };
    if read > 0 && line.last() != Some(&b'\n') {
        // An error shows again at the next line.
        let _skipped = reader.skip_until(b'\n');
    }
    read > 0
}

pub(super) fn parse(line: &[u8]) -> Option<(u64, u64, &[u8])> {
    let mut parts = line.trim_ascii_end().splitn(3, |byte| *byte == b' ');
    let mut hex = || {
        let text = std::str::from_utf8(parts.next()?).ok()?;
        u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
    };
    let (start, size) = (hex()?, hex()?);
    Some((start, start.checked_add(size)?, parts.next()?))
}

#[cfg(test)]
mod tests {
    use std::{io::Write, time::SystemTime};

    use super::*;

    #[test]
    fn the_latest_line_that_covers_an_address_names_it() {
        let map = "1000 10 first\n2000 8 other\nnonsense\n1008 8 second name\n0x3000 1 x\n";
        let found = search(
            map.as_bytes(),
            &[0x1000, 0x1009, 0x1fff, 0x2007, 0x2008, 0x3000],
        );
        let mut found: Vec<(u64, &str)> = found
            .iter()
            .map(|(address, name)| (*address, name.as_str()))
            .collect();
        found.sort_unstable();
        let expected = [
            (0x1000, "first"),
            (0x1009, "second name"),
            (0x2007, "other"),
            (0x3000, "x"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn of_a_long_map_the_end_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map");
        let lines = [
            "1000 10 old",
            "2000 10 other",
            "3000 10 more",
            "1000 10 new",
        ];
        let text = lines.join("\n") + "\n";
        std::fs::write(&path, &text).unwrap();
        let known = |most: usize| {
            let map = File::open(&path).unwrap();
            let known = search_end(map, &[0x1000, 0x2000, 0x3000], most as u64).unwrap();
            let mut names: Vec<String> = known.names.into_values().collect();
            names.sort();
            (names.join(" "), known.others)
        };
        let (whole, cut) = (Missing::Jit, Missing::JitCut);
        assert_eq!(known(text.len()), ("more new other".to_owned(), whole));
        assert_eq!(known(text.len() - 1), ("more new other".to_owned(), cut));
        let end = lines[2].len() + lines[3].len() + 2;
        assert_eq!(known(end), ("more new".to_owned(), cut));
        assert_eq!(known(end - 1), ("new".to_owned(), cut));
    }

    #[test]
    fn a_map_from_before_the_process_is_of_another_one() {
        let pid = std::process::id();
        let mut map = tempfile::tempfile().unwrap();
        map.write_all(b"1000 10 name\n").unwrap();
        let known = |map: &File| {
            let known = lookup_in(map.try_clone().unwrap(), pid, &[0x1000]).unwrap();
            (known.names.len(), known.others)
        };
        assert_eq!(known(&map), (1, Missing::Jit));
        map.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(known(&map), (0, Missing::JitOlder));
    }

    #[test]
    fn an_endless_line_is_skipped() {
        let map = format!("1000 10 {}\n2000 8 other\n", "x".repeat(1 << 20));
        let found = search(map.as_bytes(), &[0x1000, 0x2000]);
        assert!(found[&0x1000].len() < 1024);
        assert_eq!(found[&0x2000], "other");
    }
}
