//! What the kernel says about links of ours: how often a kprobe could not run (`nmissed`), which
//! happens when another one was being handled on that CPU. Told from 6.7 on.

use std::{collections::HashMap, fs, os::fd::RawFd};

use super::pod::{LinkInfo as Info, link_info};

/// `BPF_LINK_TYPE_PERF_EVENT`
const LINK_PERF_EVENT: u32 = 7;
/// `BPF_PERF_EVENT_KPROBE` and `BPF_PERF_EVENT_KRETPROBE`
const KPROBES: [u32; 2] = [3, 4];
/// Where `struct bpf_link_info` has its `type`, `prog_id`, `perf_event.type` and
/// `perf_event.kprobe.missed`.
const TYPE: usize = 0;
const PROGRAM: usize = 8;
const PERF_TYPE: usize = 16;
const MISSED: usize = 48;

/// Runs that kprobes of this process have missed, by the id of their program.
pub(super) fn missed() -> HashMap<u32, u64> {
    let mut missed = HashMap::new();
    for fd in links() {
        if let Some((program, count)) = link_info(fd).as_ref().and_then(missed_of) {
            *missed.entry(program).or_default() += count;
        }
    }
    missed
}

/// Open files of this process that are links.
///
/// The kernel calls them `anon_inode:bpf_link`, or `anon_inode:bpf-link` when it made them of a tracepoint
/// in one step.
fn links() -> Vec<RawFd> {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten();
    let is_link = |path: &std::path::Path| {
        let target = fs::read_link(path).unwrap_or_default();
        let name = target.to_str().unwrap_or_default();
        matches!(name, "anon_inode:bpf_link" | "anon_inode:bpf-link")
    };
    entries
        .flatten()
        .filter(|entry| is_link(&entry.path()))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Program and missed runs, if the link is of a kprobe.
fn missed_of(info: &Info) -> Option<(u32, u64)> {
    let word = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
    let is_kprobe = word(TYPE)? == LINK_PERF_EVENT && KPROBES.contains(&word(PERF_TYPE)?);
    let missed = u64::from_ne_bytes(info.get(MISSED..)?.try_into().ok()?);
    is_kprobe.then_some((word(PROGRAM)?, missed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kprobes_have_missed_runs() {
        let mut info: Info = [0; 56];
        info[0] = 7;
        info[8] = 42;
        info[16] = 3;
        info[48] = 9;
        assert_eq!(missed_of(&info), Some((42, 9)));
        info[16] = 1;
        assert_eq!(missed_of(&info), None);
        info[16] = 4;
        info[0] = 2;
        assert_eq!(missed_of(&info), None);
    }
}
