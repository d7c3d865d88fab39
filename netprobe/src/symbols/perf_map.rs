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

use rustix::fs::fstat;

use super::images::{inner_pid, open_below, with_memory};

/// Bytes of a map that are read, from its end.
const MOST_BYTES: u64 = 128 << 20;
/// Bytes of a line that are kept; the rest belongs to no name that a person would read.
const LINE_BYTES: u64 = 1024;

/// What a map knows.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Names by address.
    pub(super) names: HashMap<u64, String>,
    /// Its beginning was not read.
    pub(super) is_cut: bool,
}

/// Names for those of `addresses` that the map of the process knows.
pub(super) fn lookup(pid: u32, addresses: &[u64]) -> Known {
    let file = open_map(pid).map(File::from);
    file.and_then(|file| search_end(file, addresses, MOST_BYTES))
        .unwrap_or_default()
}

/// Searches the last bytes of a map, which are at most so many.
fn search_end(mut map: File, addresses: &[u64], most: u64) -> Option<Known> {
    let begin = map.metadata().ok()?.len().saturating_sub(most);
    // Reading goes on one byte before, so that a line that begins there is whole.
    map.seek(SeekFrom::Start(begin.saturating_sub(1))).ok()?;
    let mut reader = BufReader::with_capacity(1 << 16, map.take(most + 1));
    let is_cut = begin > 0;
    if is_cut {
        reader.skip_until(b'\n').ok()?;
    }
    Some(Known {
        names: search(reader, addresses),
        is_cut,
    })
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
            (names.join(" "), known.is_cut)
        };
        assert_eq!(known(text.len()), ("more new other".to_owned(), false));
        assert_eq!(known(text.len() - 1), ("more new other".to_owned(), true));
        let end = lines[2].len() + lines[3].len() + 2;
        assert_eq!(known(end), ("more new".to_owned(), true));
        assert_eq!(known(end - 1), ("new".to_owned(), true));
    }

    #[test]
    fn an_endless_line_is_skipped() {
        let map = format!("1000 10 {}\n2000 8 other\n", "x".repeat(1 << 20));
        let found = search(map.as_bytes(), &[0x1000, 0x2000]);
        assert!(found[&0x1000].len() < 1024);
        assert_eq!(found[&0x2000], "other");
    }
}
