//! The memory that the kernel sizes its limits by, from `/proc/meminfo` and `/proc/zoneinfo`.

use std::fs;

/// Zones that buffers of the kernel are not taken from.
const OTHERS: [&str; 3] = ["HighMem", "Movable", "Device"];

/// Pages that buffers of the kernel may be taken from, of this machine.
pub fn buffer_pages(page_bytes: u64) -> Option<u64> {
    let memory = fs::read_to_string("/proc/meminfo").ok()?;
    let zones = fs::read_to_string("/proc/zoneinfo").unwrap_or_default();
    buffer_pages_of(&memory, &zones, page_bytes)
}

/// As `nr_free_buffer_pages()` counts them: those of the zones up to Normal, without what is kept free there (`high`). Where
/// memory is taken into use later or given back, `managed` of a zone may be older than the sum of `MemTotal`.
fn buffer_pages_of(memory: &str, zones: &str, page_bytes: u64) -> Option<u64> {
    let line = memory.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    let mut pages = kib * 1024 / page_bytes.max(1);
    let mut zone = "";
    for line in zones.lines() {
        let mut words = line.split_ascii_whitespace();
        let (name, value) = (words.next(), words.next());
        let count = value.and_then(|value| value.parse::<u64>().ok());
        let is_other = OTHERS.contains(&zone);
        match (name, count) {
            (Some("Node"), _) => zone = line.split_ascii_whitespace().last().unwrap_or(""),
            (Some("high"), Some(high)) if !is_other => pages = pages.saturating_sub(high),
            (Some("managed"), Some(managed)) if is_other => pages = pages.saturating_sub(managed),
            _ => {}
        }
    }
    Some(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_zones_keep_free_and_those_of_other_memory_are_no_buffers() {
        let memory = "MemTotal:        4000000 kB\nMemFree:         1000000 kB\n";
        let zones = "Node 0, zone      DMA\n  pages free     3840\n        min      15\n        high     21\n        managed  \
                     3840\n              high:  378\nNode 0, zone   Normal\n        high     979\n        managed  700000\nNode 0, \
                     zone  Movable\n        high     32\n        managed  100000\n";
        let counted = |zones| buffer_pages_of(memory, zones, 4096);
        assert_eq!(counted(zones), Some(1_000_000 - 21 - 979 - 100_000));
        // A kernel that keeps its zones to itself.
        assert_eq!(counted(""), Some(1_000_000));
        assert_eq!(buffer_pages_of("", zones, 4096), None);
        assert!(buffer_pages(4096).is_some());
    }
}
