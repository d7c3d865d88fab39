//! How much memory a process takes, its BPF maps included.

use std::fs;

/// Resident memory now, in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    number(&format!("/proc/{pid}/status"), "VmRSS")
}

/// The most that was resident, in KiB.
pub fn peak_kib(pid: u32) -> u64 {
    number(&format!("/proc/{pid}/status"), "VmHWM")
}

/// Memory of the maps that it holds, in KiB.
pub fn maps_kib(pid: u32) -> u64 {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("its files");
    let paths = entries
        .flatten()
        .map(|entry| entry.path().display().to_string());
    let is_map = |path: &String| fs::read_to_string(path).is_ok_and(|text| text.contains("map_id"));
    let bytes = paths
        .filter(is_map)
        .map(|path| number(&path, "memlock"))
        .sum::<u64>();
    bytes / 1024
}

/// The number after `key:` in a file.
fn number(path: &str, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let value = lines.find(|(name, _)| *name == key).map(|(_, value)| value);
    let digits = value.and_then(|value| value.split_whitespace().next());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
