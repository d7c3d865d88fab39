//! Names that a JIT compiler wrote down: `/tmp/perf-PID.map` of the process's own root, one
//! `START SIZE NAME` per line, both in hex.
//!
//! The file is the process's own to write, of any size; it is read once, in order, up to a
//! bound, and only what covers a wanted address is kept.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader, Read},
    os::fd::OwnedFd,
    path::Path,
};

use rustix::fs::fstat;

use super::images::{inner_pid, open_regular};

/// Bytes of a map that are read.
const MOST_BYTES: u64 = 64 << 20;
/// Bytes of a line that are kept; the rest belongs to no name that a person would read.
const LINE_BYTES: u64 = 1024;

/// Names for those of `addresses` that the map of the process knows.
pub(super) fn lookup(pid: u32, addresses: &[u64]) -> HashMap<u64, String> {
    open_map(pid).map_or_else(HashMap::new, |file| search(File::from(file), addresses))
}

/// The map, if it belongs to the owner of the process: anybody may write to `/tmp`.
fn open_map(pid: u32) -> Option<OwnedFd> {
    let path = format!("/proc/{pid}/root/tmp/perf-{}.map", inner_pid(pid));
    let file = open_regular(Path::new(&path)).ok()?;
    let owner = fstat(&file).ok()?.st_uid;
    let process = rustix::fs::stat(format!("/proc/{pid}")).ok()?.st_uid;
    (owner == process || owner == 0).then_some(file)
}

fn search(map: impl Read, addresses: &[u64]) -> HashMap<u64, String> {
    let mut sorted = addresses.to_vec();
    sorted.sort_unstable();
    let mut found = HashMap::new();
    let mut reader = BufReader::with_capacity(1 << 16, map.take(MOST_BYTES));
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
    fn an_endless_line_is_skipped() {
        let map = format!("1000 10 {}\n2000 8 other\n", "x".repeat(1 << 20));
        let found = search(map.as_bytes(), &[0x1000, 0x2000]);
        assert!(found[&0x1000].len() < 1024);
        assert_eq!(found[&0x2000], "other");
    }
}
